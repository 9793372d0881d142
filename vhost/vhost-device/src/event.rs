//! What a device tells the control plane on its own account.

use crate::Vring;
use crossbeam::channel;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

    /// Reports an event of a controller.
    pub fn send(&self, controller: &Arc<str>, kind: EventKind) {
        // Full or closed: a worker cannot wait for a reader.
        drop(self.0.try_send(Event { controller: controller.clone(), kind }));
    }
}

/// Whether a device is in quarantine; shared by its session and its workers.
#[derive(Debug)]
pub struct Health {
    name: Arc<str>,
    /// Set by the worker that finds a fault, cleared by the session when all rings are stopped.
    quarantined: AtomicBool,
    events: EventSink,
}

impl Health {
    /// Of a device that works.
    pub fn new(name: Arc<str>, events: EventSink) -> Health {
        Health { name, quarantined: AtomicBool::new(false), events }
    }

    /// The device's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether the device takes nothing.
    #[inline(always)]
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Stops the device: it takes nothing more; what is in flight ends as usual.
    #[cold]
    pub fn quarantine(&self, vring: &mut Vring, fault: Fault) {
        if !self.quarantined.swap(true, Ordering::Relaxed) {
            self.events.send(&self.name, EventKind::Quarantined { queue: vring.index, fault });
            vring.report_broken();
        }
    }

    /// All rings are stopped: the device may start again.
    pub fn recover(&self) {
        self.quarantined.store(false, Ordering::Relaxed);
    }
}
