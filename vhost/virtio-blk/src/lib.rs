//! virtio-blk over vhost-user: a disk for a guest.
//!
//! A [`BlkController`] is one device: a socket with a thread that speaks vhost-user, and queues that are spread over workers. On
//! each worker that serves one of its queues stands one `Shard`, an [`engine::Source`] with one [`block::BlockChannel`] into the
//! disk. A queue belongs to one shard at a time; it moves, stops and changes by message, drained ([`vhost_device`]).
//!
//! ```text
//! vhost_device::Controller --mailbox--> Shard (worker 0): queues 0, 2 --> BlockChannel
//!                         \--mailbox--> Shard (worker 1): queues 1, 3 --> BlockChannel
//! ```
//!
//! A guest that breaks its rings, or memory that vanishes, quarantines the device: its queues take nothing more, the
//! front-end's error descriptors are signalled and a [`DeviceEvent`] says why. The quarantine ends when the front-end has stopped all rings.

mod config;
mod controller;
mod device;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod queue;
mod request;
mod shard;

pub use controller::{BlkController, BlkParams};
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_requests, fuzz_requests_race};
pub use shard::{StandAlone, stand_alone};
pub use vhost_device::{
    ControllerError, ControllerReport, DeviceEvent, DeviceEventKind, DeviceEventSink, DeviceFault, MoveQueueError,
    Quarantine, QueuePlace,
};
pub use vhost_user::{Role, SocketError};

/// Most segments of a request: with header and status it fills the 128 entries that front-ends give a queue by default.
pub const SEG_MAX: u32 = 126;
/// Largest ring that a front-end may set up.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// Most queues of a controller.
pub const MAX_QUEUES: u16 = 64;

#[cfg(test)]
mod tests;
