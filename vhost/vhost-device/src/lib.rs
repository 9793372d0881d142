//! What all vhost-user devices share: queues that workers serve, and that are started, changed, moved and stopped by message.
//!
//! A device has a [`Placement`]: it knows which worker has which queue. The session's thread calls it with what the front-end
//! wants; it sends [`Command`]s. Each worker that serves the device has [`Queues`]: the other end, with the queues themselves.
//! A queue is anything around a [`Vring`] ([`Queue`]).
//!
//! ```text
//! session thread --start, apply, stop--> Placement --mailbox--> Queues (worker 0): 0, 2
//! control thread --open, move_queue-----^         \--mailbox--> Queues (worker 1): 1, 3
//! ```
//!
//! A queue whose worker has no [`Queues`] yet waits in the placement, started and changed all the same, until
//! [`Placement::open`]. A queue leaves its worker drained and published.
//!
//! What a guest breaks is a [`Fault`]: the device takes nothing more ([`Health`]), its front-end's error descriptor is
//! signalled, and an [`Event`] says why. It ends when the front-end has stopped all rings.

mod command;
mod event;
mod placement;
mod vring;

pub use command::{Command, Queues, Update};
pub use event::{Event, EventKind, EventSink, Fault, Health};
pub use placement::{MoveError, Place, Placement};
pub use vring::{Queue, Vring};
