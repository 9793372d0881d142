//! virtio-net over vhost-user: a guest as a port of the switch.
//!
//! A [`NetController`] is one device: a socket with a thread that speaks vhost-user, and queue pairs that are dealt to workers.
//! It is a [`port::Port`]: on each worker the switch opens one shard, which holds the rings there. Ring `2i` is the guest's
//! receive ring of pair `i`, where [`port::PortShard::tx`] goes; ring `2i + 1` is its transmit ring, where
//! [`port::PortShard::rx`] takes from. A pair belongs to one worker at a time; it moves, stops and changes by message.
//!
//! ```text
//! rx: transmit ring -> header checked -> bytes copied once into mbufs -> Burst
//! tx: Burst -> what the guest did not negotiate is done here: checksum, segmentation -> bytes copied into receive buffers
//! flush: used rings published, guest called if it wants that
//! ```
//!
//! A packet that is malformed, or names memory that is not there, is dropped and counted, and its buffers go back. A ring that
//! is broken quarantines the device, and only it, until the front-end has stopped all rings. After a restart of this process
//! rings go on from what the guest has seen as used; of a packed ring that place is noted in the inflight region, if there is one.

mod controller;
mod features;
mod from_guest;
#[cfg(any(test, fuzzing))]
mod fuzz;
#[cfg(any(test, fuzzing))]
mod guest;
mod queue;
mod shard;
mod to_guest;

pub use controller::{NetController, NetParams};
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_receive, fuzz_receive_race, fuzz_transmit};
pub use shard::{StandAlone, stand_alone};
pub use vhost_device::{
    ControllerReport, DeviceEvent, DeviceEventKind, DeviceEventSink, DeviceFault, MoveQueueError, Quarantine,
};
pub use vhost_user::{Role, SocketError};

/// Most queue pairs of a controller: SET_VRING_KICK has 8 bits for a ring.
pub const MAX_QUEUE_PAIRS: u16 = 64;
/// Largest ring that a front-end may set up.
pub const MAX_QUEUE_SIZE: u16 = 4096;
/// Smallest MTU: IPv4's (RFC 791).
pub const MIN_MTU: u16 = 68;
/// Largest MTU.
pub const MAX_MTU: u16 = 65535 - FRAMING as u16;

/// Bytes of a frame around its payload: an Ethernet header and two VLAN tags.
const FRAMING: usize = 22;

#[cfg(test)]
mod tests;
