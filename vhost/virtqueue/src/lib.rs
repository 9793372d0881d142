//! Virtqueues, device side: split and packed, indirect, event idx, in order, inflight.
//!
//! A [`Virtqueue`] belongs to one worker. Its loop: [`pop`](Virtqueue::pop) chains until there is none, serve them, give each
//! back with [`complete`](Virtqueue::complete), then [`flush`](Virtqueue::flush) once a burst: it publishes what was completed
//! and says whether the driver wants to be notified. Looking and arming are two calls: [`arm`](Virtqueue::arm) asks the driver
//! for a kick and then looks once more.
//!
//! A [`Ring`] is the same for both layouts, [`Split`] and [`Packed`], which differ in what [`Layout`] names. A device that works
//! through a burst matches on the layout once, in front of it.
//!
//! Every descriptor is read once into a local copy and only the copy is believed. What the driver can get wrong is a
//! [`QueueError`]; the queue then takes nothing more until it is set up again.

mod chain;
pub mod driver;
mod error;
#[cfg(any(test, fuzzing))]
mod fuzz;
pub mod inflight;
mod order;
mod packed;
mod resume;
mod ring;
mod setup;
mod split;

pub use chain::{Access, ChainToken, Descriptor, DescriptorChain, SingleBufferChain};
pub use error::QueueError;
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_ring, fuzz_ring_race};
pub use packed::Packed;
pub use resume::packed_base;
pub use ring::{Layout, Ring, RingCore};
pub use setup::{RingAddresses, RingSetup};
pub use split::Split;

use guest_memory::{DirtyLog, GuestAddress, GuestMemory, Window};
use std::sync::Arc;

/// A virtqueue, seen from the device.
#[derive(Debug)]
pub enum Virtqueue {
    /// In the split layout.
    Split(Ring<Split>),
    /// In the packed layout.
    Packed(Ring<Packed>),
}

impl Virtqueue {
    /// Starts a ring; with an inflight region it goes on where the process before it died.
    pub fn new(memory: Arc<GuestMemory>, setup: &RingSetup) -> Result<Virtqueue, QueueError> {
        Ok(if setup.packed() {
            Virtqueue::Packed(Ring::new(memory, setup)?)
        } else {
            Virtqueue::Split(Ring::new(memory, setup)?)
        })
    }

    /// Keeps the ring's position in an inflight region, instead of the chains in flight, and goes on from the position that a
    /// process before this one kept there: for a device that serves chains in order, and to which it does not matter whether a
    /// chain is served again. Before the first [`pop`](Self::pop). In a split ring the used index is the position, and may be the
    /// base.
    pub fn persist_ring_position(&mut self, region: Window) -> Result<(), QueueError> {
        match self {
            Virtqueue::Split(_) => Ok(()),
            Virtqueue::Packed(ring) => ring.layout.persist_ring_position(&mut ring.core, region),
        }
    }

    /// A chain to pop into, large enough for any chain of a ring of `size`.
    pub fn chain(size: u16) -> DescriptorChain {
        DescriptorChain::new(size)
    }

    /// Takes the next chain that is available. `false` when there is none, or when as many are in flight as the ring has
    /// entries.
    #[inline]
    pub fn pop(&mut self, chain: &mut DescriptorChain) -> Result<bool, QueueError> {
        match self {
            Virtqueue::Split(ring) => ring.pop(chain),
            Virtqueue::Packed(ring) => ring.pop(chain),
        }
    }

    /// Takes the chains that come next, as many as there are places in `chains`, for as long as each is one buffer, in the ring
    /// itself, for `access`. Returns how many: what [`pop`](Self::pop) would have given, in one go; fewer where the ring starts
    /// anew. When there is none, what comes is for `pop`, be it a longer chain or an error. Rings with an inflight region give all
    /// to `pop`.
    #[inline]
    pub fn pop_singles(&mut self, access: Access, chains: &mut [SingleBufferChain]) -> usize {
        match self {
            Virtqueue::Split(ring) => ring.pop_singles(access, chains),
            Virtqueue::Packed(ring) => ring.pop_singles(access, chains),
        }
    }

    /// Undoes the last [`pop`](Self::pop) that was neither undone nor completed: the chain of `token` is available again. Not for
    /// a ring with an inflight region.
    #[inline]
    pub fn unpop(&mut self, token: ChainToken) {
        match self {
            Virtqueue::Split(ring) => ring.unpop(token),
            Virtqueue::Packed(ring) => ring.unpop(token),
        }
    }

    /// Gives a chain back, with the bytes that were written to it. The driver sees it after the next [`flush`](Self::flush).
    #[inline]
    pub fn complete(&mut self, token: ChainToken, written: u32) {
        match self {
            Virtqueue::Split(ring) => ring.complete(token, written),
            Virtqueue::Packed(ring) => ring.complete(token, written),
        }
    }

    /// Gives back chains that were only read, in the order in which they were taken. On a ring in order one used element stands for
    /// all.
    #[inline]
    pub fn complete_read(&mut self, chains: &[SingleBufferChain]) {
        match self {
            Virtqueue::Split(ring) => ring.complete_read(chains),
            Virtqueue::Packed(ring) => ring.complete_read(chains),
        }
    }

    /// Gives back chains with the bytes that each says were written, in the order in which they were taken.
    #[inline]
    pub fn complete_written(&mut self, chains: &[SingleBufferChain]) {
        match self {
            Virtqueue::Split(ring) => ring.complete_written(chains),
            Virtqueue::Packed(ring) => ring.complete_written(chains),
        }
    }

    /// Publishes what was completed. Returns whether the driver wants to be notified of it.
    #[inline]
    pub fn flush(&mut self) -> bool {
        match self {
            Virtqueue::Split(ring) => ring.flush(),
            Virtqueue::Packed(ring) => ring.flush(),
        }
    }

    /// Asks the driver for a kick, then looks. Returns whether something is available already.
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        match self {
            Virtqueue::Split(ring) => ring.arm(),
            Virtqueue::Packed(ring) => ring.arm(),
        }
    }

    /// Tells the driver that kicks are not needed.
    pub fn disarm(&mut self) {
        match self {
            Virtqueue::Split(ring) => ring.disarm(),
            Virtqueue::Packed(ring) => ring.disarm(),
        }
    }

    /// Moves on to another epoch of the memory table, in which the ring lies at the same front-end addresses.
    pub fn relocate(&mut self, memory: Arc<GuestMemory>) -> Result<(), QueueError> {
        match self {
            Virtqueue::Split(ring) => ring.relocate(memory),
            Virtqueue::Packed(ring) => ring.relocate(memory),
        }
    }

    /// Starts or stops logging writes to guest memory.
    pub fn set_log(&mut self, log: Option<DirtyLog>) {
        self.core_mut().log = log;
    }

    /// Changes where writes to the used ring are logged.
    pub fn set_used_log(&mut self, address: Option<GuestAddress>) {
        self.core_mut().addresses.used_log = address;
    }

    /// The log, if writes are logged.
    #[inline(always)]
    pub fn log(&self) -> Option<&DirtyLog> {
        self.core().log.as_ref()
    }

    /// The memory that the ring and its chains lie in.
    #[inline(always)]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.core().memory
    }

    /// Chains taken and not yet published as used.
    #[inline(always)]
    pub fn in_flight(&self) -> u16 {
        self.core().in_flight()
    }

    /// Where to go on, as GET_VRING_BASE has it. Meant for a drained ring.
    pub fn base(&self) -> u32 {
        match self {
            Virtqueue::Split(ring) => ring.base(),
            Virtqueue::Packed(ring) => ring.base(),
        }
    }

    #[inline(always)]
    fn core(&self) -> &RingCore {
        match self {
            Virtqueue::Split(ring) => &ring.core,
            Virtqueue::Packed(ring) => &ring.core,
        }
    }

    fn core_mut(&mut self) -> &mut RingCore {
        match self {
            Virtqueue::Split(ring) => &mut ring.core,
            Virtqueue::Packed(ring) => &mut ring.core,
        }
    }
}

#[cfg(test)]
mod tests;
