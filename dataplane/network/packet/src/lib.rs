//! Packet buffers: one representation from NIC to guest.
//!
//! A [`Packet`] owns a chain of [`Mbuf`]s, laid out to the byte as DPDK 22.11 lays out `rte_mbuf`, so a burst goes to and comes
//! from a DPDK port as it is. Where DPDK is not used, or not compiled in, the buffers come from a [`Pool`] of ours; where it is,
//! from a `rte_mempool` behind the same [`Pool`]. DPDK takes packets of its own pools only ([`Packet::is_foreign`]); others are
//! copied when they leave by a port of DPDK.
//!
//! A packet goes back to its pool when it is dropped. Buffers that a thread frees are the first that it takes again: each thread
//! has a cache a pool, and only full or empty caches touch what is shared.
//!
//! ```text
//! rx -> Burst (up to 32 packets) -> look-up, actions -> tx; what is left in the burst is dropped: back to the pool
//! ```
//!
//! A pool that is empty gives fewer packets than asked for; it never fails otherwise.

#![allow(unsafe_code)] // raw buffers shared with DPDK; each block says why it is sound

mod checksum;
mod headers;
mod mbuf;
mod offload;
mod packet;
mod pool;
mod segment;
mod slot;
mod vnet;

pub use checksum::internet_checksum;
pub use headers::Headers;
pub use mbuf::{Mbuf, offload_flag};
pub use offload::{L4Checksum, Offload};
pub use packet::{Packet, Segments};
pub use pool::{Allocate, DATA_ROOM, FreeSegments, HEADROOM, MAX_BUFFERS, MIN_BUFFERS, Pool, PoolError, free};
pub use segment::Segmented;
pub use vnet::{InvalidOffload, MIN_SEGMENT};

/// Packets that are handled together.
pub const BURST: usize = 32;

/// Up to [`BURST`] packets, each owned.
pub type Burst = arrayvec::ArrayVec<Packet, BURST>;

#[cfg(test)]
mod tests;
