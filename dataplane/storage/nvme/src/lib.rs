//! NVMe over TCP: an initiator that gives its namespaces as disks, and a target for tests and the demo.
//!
//! The initiator in three layers, each without the one above:
//!
//! - [`queue_pair`] is the protocol of one queue: bytes and the time in, bytes and completions out. No sockets, no threads.
//! - `controller` is the admin queue's state machine; `supervisor` gives a controller its life: association after
//!   association, with back-off, on a control thread. It connects I/O queues and hands them to the channels.
//! - `channel` is a worker's way into a namespace: one I/O queue with a connection of its own. A request is held while there
//!   is no connection, and a write that was in flight when one died is held until the old controller has let go of it.
//!
//! ```text
//! control thread:  NvmeController::attach -> supervisor -> connected queue -> hand-off
//! worker:          submit -> poll: writev | readv -> completions       <--------'
//! ```
//!
//! What has nothing to do with NVMe (recovery, hand-off, held requests, the fence) is in the crate [`initiator`].
//!
//! Errors: attach says what is wrong and what to do ([`AttachError`]); afterwards nothing is an error for long: a lost
//! controller is reconnected and reports [`Event`]s, until the operator's timeouts say otherwise.
//!
//! Sections are those of the NVM Express specifications: <https://nvmexpress.org/specifications/>.

mod attach;
mod channel;
mod controller;
mod discovery;
mod event;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod io_queue;
mod namespace;
mod params;
mod supervisor;

#[cfg(test)]
mod simulation;

pub use transport::crc32c as digest;
pub use transport::io;
pub mod link;
pub mod pdu;
pub mod queue_pair;
pub mod spec;
pub mod target;

pub use attach::{AttachError, NvmeController};
pub use controller::{ControllerError, ControllerFacts};
pub use discovery::discover;
pub use event::{Event, EventSink, NvmeEvent};
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_admin_session, fuzz_initiator, fuzz_initiator_session, fuzz_structures, fuzz_target};
pub use initiator::{ConnectionEvent, RecoveryOptions, no_events};
pub use io_queue::Counters;
pub use params::{AttachParams, Options};
pub use supervisor::{Phase, Status};
