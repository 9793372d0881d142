//! The worker's end: its queues, and the messages that change them.

use crate::{DeviceFault, DeviceHealth, DeviceQueue, Vring};
use crossbeam::channel;
use engine::{Mailbox, Waker, mailbox};
use guest_memory::{DirtyLog, GuestAddress, GuestMemory};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A message to a worker's [`WorkerQueues`].
pub(crate) enum QueueCommand<Q> {
    /// A queue to serve.
    Add(Box<Q>),
    /// Drains a queue and gives it back.
    Take(u16, channel::Sender<Box<Q>>),
    /// Changes a queue.
    Update(u16, QueueUpdate),
    /// Answered when everything sent before has been done.
    Barrier(channel::Sender<()>),
}

/// A change of a queue. Descriptors that were replaced go back to be closed by the session.
pub(crate) enum QueueUpdate {
    /// SET_VRING_ENABLE.
    Enabled(bool),
    /// SET_VRING_KICK.
    Kick(Option<File>, channel::Sender<Option<File>>),
    /// SET_VRING_CALL.
    Call(Option<File>, channel::Sender<Option<File>>),
    /// SET_VRING_ERR.
    Err(Option<File>, channel::Sender<Option<File>>),
    /// Another memory table; the sender is told when the old one is not in use any more.
    Memory(Arc<GuestMemory>, channel::Sender<()>),
    /// The dirty log.
    Log(Option<DirtyLog>),
    /// Where writes to the used ring are logged.
    UsedLog(Option<GuestAddress>),
}

impl QueueUpdate {
    pub(crate) fn apply<Q: DeviceQueue>(self, queue: &mut Q) -> Result<(), DeviceFault> {
        let vring = queue.vring_mut();
        match self {
            QueueUpdate::Enabled(enabled) => vring.enabled = enabled,
            // A session that does not wait any more leaves the old descriptor to be closed here.
            QueueUpdate::Kick(kick, old) => _ = old.send(vring.set_kick(kick)),
            QueueUpdate::Call(call, old) => _ = old.send(vring.set_call(call)),
            QueueUpdate::Err(err, old) => _ = old.send(vring.set_err(err)),
            QueueUpdate::Memory(memory, fresh) => queue.set_memory(memory, fresh)?,
            QueueUpdate::Log(log) => vring.set_log(log),
            QueueUpdate::UsedLog(address) => vring.set_used_log(address),
        }
        Ok(())
    }
}

/// A device's queues on one worker.
#[allow(clippy::vec_box)] // a queue moves to another worker as one pointer
pub struct WorkerQueues<Q> {
    inbox: Mailbox<QueueCommand<Q>>,
    /// Chains in flight, for reports.
    in_flight: Arc<AtomicU32>,
    /// Queues that serve.
    serving: Vec<Box<Q>>,
    /// Queues that take nothing more and leave when drained, with the channels that they leave by.
    leaving: Vec<(Box<Q>, channel::Sender<Box<Q>>)>,
}

impl<Q: DeviceQueue> WorkerQueues<Q> {
    pub(crate) fn new(inbox: Mailbox<QueueCommand<Q>>, in_flight: Arc<AtomicU32>, room: usize) -> WorkerQueues<Q> {
        WorkerQueues { inbox, in_flight, serving: Vec::with_capacity(room), leaving: Vec::with_capacity(room) }
    }

    /// Queues on their own, without session or engine: for tests, and for benchmarks of a path alone.
    pub fn alone(queues: Vec<Q>) -> std::io::Result<WorkerQueues<Q>> {
        let (_, inbox) = mailbox(Waker::new()?, 1);
        let mut alone = WorkerQueues::new(inbox, Arc::default(), queues.len());
        alone.serving.extend(queues.into_iter().map(Box::new));
        Ok(alone)
    }

    /// The queues that serve.
    #[inline(always)]
    pub fn serving(&mut self) -> &mut [Box<Q>] {
        &mut self.serving
    }

    /// The queues that serve.
    pub fn iter(&self) -> impl Iterator<Item = &Q> {
        self.serving.iter().map(Box::as_ref)
    }

    /// All queues, those too that only end what is in flight.
    #[inline(always)]
    pub fn all(&mut self) -> impl Iterator<Item = &mut Q> {
        let leaving = self.leaving.iter_mut().map(|(queue, _)| queue);
        self.serving.iter_mut().chain(leaving).map(Box::as_mut)
    }

    /// A queue, serving or leaving.
    #[inline]
    pub fn find(&mut self, index: u16) -> Option<&mut Q> {
        self.all().find(|q| q.vring().index == index)
    }

    /// Whether no message waits.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Does what was sent. Once a turn, before the queues are served.
    #[inline]
    pub fn take_commands(&mut self, health: &DeviceHealth) {
        while let Some(command) = self.inbox.take() {
            self.command(command, health);
        }
    }

    #[cold]
    fn command(&mut self, command: QueueCommand<Q>, health: &DeviceHealth) {
        match command {
            QueueCommand::Add(queue) => self.serving.push(queue),
            QueueCommand::Take(index, waiter) => {
                if let Some(at) = self.serving.iter().position(|q| q.vring().index == index) {
                    let mut queue = self.serving.swap_remove(at);
                    // The session may have seen it first, and ends for that reason.
                    check_memory(queue.vring_mut(), health);
                    self.leaving.push((queue, waiter));
                    self.let_go();
                }
            }
            QueueCommand::Update(index, update) => {
                if let Some(queue) = self.find(index)
                    && let Err(fault) = update.apply(queue)
                {
                    health.quarantine(queue.vring_mut(), fault);
                }
            }
            QueueCommand::Barrier(waiter) => {
                let _ = waiter.send(()); // The session may not wait any more.
            }
        }
    }

    /// Tells what is in flight, and of memory that is lost. At quiescent points.
    pub fn quiesce(&mut self, health: &DeviceHealth) {
        let mut in_flight = 0;
        for queue in self.all() {
            in_flight += queue.in_flight() as u32;
            check_memory(queue.vring_mut(), health);
        }
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }

    /// Lets drained queues go, published. After completions were handed out.
    #[inline]
    pub fn release(&mut self) {
        if !self.leaving.is_empty() {
            self.let_go();
        }
    }

    #[cold]
    fn let_go(&mut self) {
        for (mut queue, waiter) in self.leaving.extract_if(.., |(queue, _)| queue.in_flight() == 0) {
            queue.vring_mut().flush();
            let _ = waiter.send(queue); // The session may not wait any more.
        }
    }
}

/// Quarantines the device if the memory of a ring is lost.
fn check_memory(vring: &mut Vring, health: &DeviceHealth) {
    if vring.memory_is_lost() {
        health.quarantine(vring, DeviceFault::Truncated);
    }
}
