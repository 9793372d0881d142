//! What all vhost-user devices share: a socket, sessions, and queues that workers serve and that are started, changed, moved and
//! stopped by message.
//!
//! A [`DeviceController`] serves a [`VhostDevice`], which is what a device type has of its own. The controller knows which worker
//! has which queue. The session's thread calls it with what the front-end wants, control threads to move queues; it sends
//! messages. Each worker that serves the device has [`WorkerQueues`]: the other end, with the queues themselves. A queue is
//! anything around a [`Vring`] ([`DeviceQueue`]).
//!
//! ```text
//! session thread --start, change, stop--> Placement --mailbox--> WorkerQueues (worker 0): 0, 2
//! control thread --open, move_queue-----^          \--mailbox--> WorkerQueues (worker 1): 1, 3
//! ```
//!
//! A device opens itself on a worker to which a queue comes ([`VhostDevice::source`]), or others open it there: until then a queue
//! waits, started and changed all the same. A queue leaves its worker drained and published.
//!
//! What a guest breaks is a [`DeviceFault`]: the device takes nothing more ([`DeviceHealth`]), its front-end's error descriptor is
//! signalled, and a [`DeviceEvent`] says why. The quarantine ends when the front-end has stopped all rings.

mod command;
mod controller;
mod device;
mod event;
mod placement;
#[cfg(test)]
mod tests;
mod vring;

use command::{QueueCommand, QueueUpdate};

pub use command::WorkerQueues;
pub use controller::{ControllerError, ControllerReport, DeviceController};
pub use device::VhostDevice;
pub use event::{DeviceEvent, DeviceEventKind, DeviceEventSink, DeviceFault, DeviceHealth, Quarantine};
pub use placement::{MoveQueueError, QueuePlace};
pub use vring::{DeviceQueue, Vring};
