//! Where a ring lies in memory, and how it is set up.

use guest_memory::{GuestAddress, UserAddress, Window};
use virtio_spec::feature;

/// The three areas of a ring, as SET_VRING_ADDR names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Split: descriptor table. Packed: descriptor ring.
    pub descriptor: UserAddress,
    /// Split: available ring. Packed: driver event suppression.
    pub driver: UserAddress,
    /// Split: used ring. Packed: device event suppression.
    pub device: UserAddress,
    /// Where writes to the used ring are logged (VHOST_VRING_F_LOG).
    pub used_log: Option<GuestAddress>,
}

/// The parameters with which a ring starts.
#[derive(Clone, Debug)]
pub struct RingSetup {
    /// Entries. Split: a power of two. At most 32,768.
    pub size: u16,
    /// Negotiated virtio features.
    pub features: u64,
    /// Where it lies.
    pub addresses: RingAddresses,
    /// Where to go on, as SET_VRING_BASE has it. Split: the next available index. Packed: available index (bits 0-14) and its
    /// wrap counter (15); the used half (16-31) equals it and is not looked at.
    pub base: u32,
    /// This ring's part of the inflight region, zeroed or left by the process before this one.
    pub inflight: Option<Window>,
}

impl RingSetup {
    /// Whether the ring is a packed one.
    pub fn packed(&self) -> bool {
        self.features & feature::RING_PACKED != 0
    }
}
