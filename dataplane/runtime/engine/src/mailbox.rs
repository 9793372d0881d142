//! Messages from control threads to a source on a worker.

#![cfg(not(loom))] // the queue is crossbeam's; the wake-up protocol is modelled in `idle`

use crate::Waker;
use crossbeam::channel;

/// The control side: sends and wakes the worker.
#[derive(Debug)]
pub struct Sender<T> {
    queue: channel::Sender<T>,
    waker: Waker,
}

/// The worker side: looked at every turn of the source.
#[derive(Debug)]
pub struct Mailbox<T>(channel::Receiver<T>);

/// A mailbox of `capacity` messages to a source of the worker that `waker` wakes.
pub fn mailbox<T>(waker: Waker, capacity: usize) -> (Sender<T>, Mailbox<T>) {
    let (queue, inbox) = channel::bounded(capacity);
    (Sender { queue, waker }, Mailbox(inbox))
}

impl<T> Sender<T> {
    /// Sends; waits while the mailbox is full. Gives the message back when the source is gone.
    pub fn send(&self, message: T) -> Result<(), T> {
        self.queue.send(message).map_err(|e| e.0)?;
        self.waker.wake();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { queue: self.queue.clone(), waker: self.waker.clone() }
    }
}

impl<T> Mailbox<T> {
    /// The next message, if one waits. Never blocks.
    #[inline]
    pub fn take(&self) -> Option<T> {
        self.0.try_recv().ok()
    }

    /// Whether none waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
