//! The runtime that storage initiators share. A protocol crate (`nvme`, `iscsi`) adds what its standard defines.
//!
//! An initiator has two sides. A *supervisor* thread connects to the target, keeps the connection alive and recovers it; a
//! *channel* is polled by one worker and moves requests. They share no lock that a worker waits for:
//!
//! ```text
//! supervisor thread: spawn(Supervisor) -> Backoff, Outage -> connected queue --QueueHandoff--.
//! worker:            submit -> HeldRequests -> connected queue -> completions <--------------'
//! on failure:        HeldRequests keeps the requests; the lost queue goes back --QueueHandoff--> supervisor
//! ```
//!
//! - [`Recovery`], [`Backoff`] and [`Outage`] say when to connect again, and when held requests fail.
//! - [`QueueHandoff`] carries a connected queue to its channel and a lost one back.
//! - [`HeldRequests`] are the requests of a channel that cannot be sent now.
//! - [`Fence`] keeps writes of a lost connection from being sent again while the target may still execute them;
//!   [`PendingFences`] is the supervisor's list of connections that may.
//! - [`DiskIdentity`] keeps held writes from going to another disk than the one they were meant for.
//! - [`Event`] is what an operator learns.
//! - [`target`] and, with the feature `sim`, `sim` and `testing` are what test targets and tests share.

mod command;
mod counter;
mod event;
mod fence;
mod handoff;
mod held;
mod identity;
mod recovery;
mod supervisor;

#[cfg(feature = "sim")]
pub mod sim;
pub mod target;
#[cfg(feature = "sim")]
pub mod testing;

pub use command::{CommandQueue, SupervisorWake};
pub use counter::EventCounter;
pub use event::{ConnectionEvent, Event, EventSink, no_events};
pub use fence::{Fence, PendingFence, PendingFences};
pub use handoff::{HoldPolicy, HoldPolicyCell, QueueHandoff};
pub use held::{HeldRequest, HeldRequests};
pub use identity::{DiskIdentity, DiskReplaced};
pub use recovery::{Backoff, Outage, OutageLimit, Recovery, RecoveryOptions};
pub use supervisor::{Supervisor, spawn};
