//! The [vhost-user] protocol, back-end side: messages, sockets, session.
//!
//! A [`Backend`] is a device. [`Socket::open`] says at once what is wrong with an endpoint; [`serve`] then gives the device one
//! front-end after the other, on the calling thread: it takes messages, keeps what the front-end said about memory and rings, and
//! calls the device when a ring can start or must change. [`Control`] stops it from any thread. That thread may wait and
//! allocate; a worker never sees a message.
//!
//! ```no_run
//! # fn example(device: &mut dyn vhost_user::Backend) -> Result<(), Box<dyn std::error::Error>> {
//! use vhost_user::{Control, Endpoint, Role, Socket, serve};
//! let endpoint = Endpoint { path: "/run/sluice/disk0.sock".into(), role: Role::Server, mode: 0o600 };
//! let (socket, control) = (Socket::open(endpoint)?, Control::new()?);
//! serve(&socket, device, &control); // until another thread calls `control.stop()`
//! # Ok(())
//! # }
//! ```
//!
//! A message that cannot be obeyed is refused and changes nothing. A front-end that asked for an acknowledgement is told and the
//! session goes on; otherwise the session ends, for the front-end would believe in a state that is not there. Nothing that a
//! front-end sends, or does not send, leaks a descriptor, panics, or keeps [`serve`] from stopping.
//!
//! Seams for what is not offered: IOTLB messages belong beside the memory table in `session/memory.rs`, with misses sent over
//! the channel of SET_BACKEND_REQ_FD; device state (SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE) is one more pair of
//! [`Backend`] calls between stop and start of the rings.
//!
//! [vhost-user]: https://www.qemu.org/docs/master/interop/vhost-user.html

#![forbid(unsafe_code)]

mod backend;
mod connection;
mod error;
#[cfg(any(test, fuzzing))]
mod fake;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod inflight;
mod memory_table;
mod message;
pub mod protocol_feature;
mod request;
mod ring;
mod serve;
mod session;
mod socket;
mod status;
mod wait;

pub use backend::{Backend, Change, Properties, Refusal, RingStart};
pub use error::{Reason, SessionError};
#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_session;
pub use memory_table::{MAX_MEM_SLOTS, MAX_MEMORY};
pub use request::Request;
pub use serve::{Control, serve};
pub use socket::{Endpoint, Role, Socket, SocketError};
pub use status::{Peer, RingStatus, SessionStatus};

/// Most queues of a device: SET_VRING_KICK has 8 bits for the index.
pub const MAX_QUEUES: u16 = 256;

#[cfg(test)]
mod tests;
