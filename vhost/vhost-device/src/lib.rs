//! What all vhost-user devices share: a socket, sessions, and queues that workers serve and that are started, changed, moved and
//! stopped by message.
//!
//! A [`Controller`] serves a [`Device`]: what is a device type's own. It knows which worker has which queue. The session's thread
//! calls it with what the front-end wants, control threads to move queues; it sends messages. Each worker that serves the device
//! has [`Queues`]: the other end, with the queues themselves. A queue is anything around a [`Vring`] ([`Queue`]).
//!
//! ```text
//! session thread --start, change, stop--> Placement --mailbox--> Queues (worker 0): 0, 2
//! control thread --open, move_queue-----^          \--mailbox--> Queues (worker 1): 1, 3
//! ```
//!
//! A device opens itself on a worker to which a queue comes ([`Device::source`]), or others open it there: until then a queue
//! waits, started and changed all the same. A queue leaves its worker drained and published.
//!
//! What a guest breaks is a [`Fault`]: the device takes nothing more ([`Health`]), its front-end's error descriptor is
//! signalled, and an [`Event`] says why. It ends when the front-end has stopped all rings.

mod command;
mod controller;
mod device;
mod event;
mod placement;
#[cfg(test)]
mod tests;
mod vring;

use command::{Command, Update};

pub use command::Queues;
pub use controller::{Controller, ControllerError, Report};
pub use device::Device;
pub use event::{Event, EventKind, EventSink, Fault, Health};
pub use placement::{MoveError, Place};
pub use vring::{Queue, Vring};
