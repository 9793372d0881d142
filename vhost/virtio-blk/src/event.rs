//! What a controller tells the control plane on its own account.

use crossbeam::channel;
use std::sync::Arc;
use virtqueue::QueueError;

/// Something happened to a controller.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name.
    pub controller: Arc<str>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The device takes nothing more until its front-end sets it up again.
    Quarantined {
        /// The queue that showed it.
        queue: u16,
        /// Why.
        fault: Fault,
    },
}

/// Why a device was quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The driver broke the ring.
    #[error(transparent)]
    Ring(#[from] QueueError),
    /// A chain without room for the header or the status byte.
    #[error("request without {0}")]
    Chain(&'static str),
    /// A buffer outside guest memory.
    #[error(transparent)]
    Access(#[from] guest_memory::AccessError),
    /// The file behind guest memory was truncated.
    #[error("guest memory was truncated by its owner")]
    Truncated,
}

/// Takes events from workers and sessions. Never waits: when nobody reads, events are lost and counted by the reader's absence.
#[derive(Clone, Debug)]
pub struct EventSink(channel::Sender<Event>);

impl EventSink {
    /// A sink and the end to read, with room for `capacity` events.
    pub fn new(capacity: usize) -> (EventSink, channel::Receiver<Event>) {
        let (sender, receiver) = channel::bounded(capacity);
        (EventSink(sender), receiver)
    }

    pub(crate) fn send(&self, controller: &Arc<str>, kind: EventKind) {
        // Full or closed: a worker cannot wait for a reader.
        drop(self.0.try_send(Event { controller: controller.clone(), kind }));
    }
}
