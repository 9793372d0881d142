//! What a device tells the control plane on its own account.

use crate::Vring;
use crossbeam::channel;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virtqueue::QueueError;

/// Something happened to a device.
#[derive(Clone, Debug)]
pub struct DeviceEvent {
    /// The name of the device's controller.
    pub controller: Arc<str>,
    /// What happened to the device.
    pub kind: DeviceEventKind,
}

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEventKind {
    /// The device takes nothing more until its front-end sets it up again.
    Quarantined(Quarantine),
}

/// Why a device takes nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("queue {queue}: {fault}")]
pub struct Quarantine {
    /// The queue that showed the fault.
    pub queue: u16,
    /// The fault of the driver or of the front-end.
    pub fault: DeviceFault,
}

/// A fault of a driver or a front-end, for which its device is quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
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

/// Takes events from workers and sessions. Never waits: while its channel is full or closed, events are lost.
#[derive(Clone, Debug)]
pub struct DeviceEventSink(channel::Sender<DeviceEvent>);

impl DeviceEventSink {
    /// A sink and the end to read, with room for `capacity` events.
    pub fn new(capacity: usize) -> (DeviceEventSink, channel::Receiver<DeviceEvent>) {
        let (sender, receiver) = channel::bounded(capacity);
        (DeviceEventSink(sender), receiver)
    }

    /// Reports an event of a controller.
    pub fn send(&self, controller: &Arc<str>, kind: DeviceEventKind) {
        let _ = self.0.try_send(DeviceEvent { controller: controller.clone(), kind }); // A worker cannot wait for a reader.
    }
}

/// Whether a device is in quarantine; shared by its session and its workers.
#[derive(Debug)]
pub struct DeviceHealth {
    name: Arc<str>,
    /// Set by the worker that finds a fault, cleared by the session when all rings are stopped.
    quarantined: AtomicBool,
    /// The reason, while `quarantined` is set.
    reason: Mutex<Option<Quarantine>>,
    events: DeviceEventSink,
}

impl DeviceHealth {
    /// The health of a device that works.
    pub fn new(name: Arc<str>, events: DeviceEventSink) -> DeviceHealth {
        DeviceHealth { name, quarantined: AtomicBool::new(false), reason: Mutex::default(), events }
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

    /// Why the device takes nothing; `None` while it works.
    pub fn quarantine_reason(&self) -> Option<Quarantine> {
        *self.reason.lock()
    }

    /// Stops the device: it takes nothing more; what is in flight ends as usual.
    #[cold]
    pub fn quarantine(&self, vring: &mut Vring, fault: DeviceFault) {
        if !self.quarantined.swap(true, Ordering::Relaxed) {
            let reason = Quarantine { queue: vring.index, fault };
            *self.reason.lock() = Some(reason);
            self.events.send(&self.name, DeviceEventKind::Quarantined(reason));
            vring.report_broken();
        }
    }

    /// All rings are stopped: the device may start again.
    pub fn recover(&self) {
        self.quarantined.store(false, Ordering::Relaxed);
        *self.reason.lock() = None;
    }
}
