//! Virtqueues, device side: split and packed, indirect, event idx, in order, inflight.
//!
//! A [`Virtqueue`] belongs to one worker. Its loop: [`pop`](Virtqueue::pop) chains until there is none, serve them, give each
//! back with [`complete`](Virtqueue::complete), then [`flush`](Virtqueue::flush) once a burst: it publishes what was completed
//! and says whether the driver wants to be notified. Looking and arming are two calls: [`arm`](Virtqueue::arm) asks the driver
//! for a kick and then looks once more.
//!
//! Every descriptor is read once into a local copy and only the copy is believed. What the driver can get wrong is a
//! [`QueueError`]; the queue then takes nothing more until it is set up again.

mod chain;
pub mod driver;
mod error;
#[cfg(any(test, fuzzing))]
mod fuzz;
pub mod inflight;
mod layout;
mod order;
mod packed;
mod resume;
mod split;

pub use chain::{Access, Chain, Descriptor, Single, Token};
pub use error::QueueError;
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_ring, fuzz_ring_race};
pub use layout::{RingAddresses, Setup};
pub use resume::packed_base;

use guest_memory::{DirtyLog, GuestAddress, GuestMemory, Window};
use packed::PackedQueue;
use split::SplitQueue;
use std::sync::Arc;

/// A virtqueue, seen from the device.
#[derive(Debug)]
pub struct Virtqueue(Layout);

#[derive(Debug)]
enum Layout {
    Split(SplitQueue),
    Packed(PackedQueue),
}

macro_rules! each {
    ($queue:expr, $q:ident => $call:expr) => {
        match $queue {
            Layout::Split($q) => $call,
            Layout::Packed($q) => $call,
        }
    };
}

impl Virtqueue {
    /// Starts a ring; with an inflight region it goes on where the process before it died.
    pub fn new(memory: Arc<GuestMemory>, setup: &Setup) -> Result<Virtqueue, QueueError> {
        Ok(Virtqueue(if setup.packed() {
            Layout::Packed(PackedQueue::new(memory, setup)?)
        } else {
            Layout::Split(SplitQueue::new(memory, setup)?)
        }))
    }

    /// Notes the ring's place in an inflight region, instead of the chains in flight, and goes on from the place that a process
    /// before us noted there: for a device that serves chains in order, and to which it does not matter whether one that it worked
    /// on is served again. Before the first [`pop`](Self::pop). In a split ring the used index is the place, and may be the base.
    pub fn note_place(&mut self, region: Window) -> Result<(), QueueError> {
        match &mut self.0 {
            Layout::Split(_) => Ok(()),
            Layout::Packed(queue) => queue.note_place(region),
        }
    }

    /// A chain to pop into, large enough for any chain of a ring of `size`.
    pub fn chain(size: u16) -> Chain {
        Chain::new(size)
    }

    /// Takes the next chain that is available. `false` when there is none, or when as many are in flight as the ring has
    /// entries.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        each!(&mut self.0, q => q.pop(chain))
    }

    /// Takes the chains that come next, as many as there are places in `singles`, for as long as each is one buffer, in the ring
    /// itself, for `access`. Returns how many: what [`pop`](Self::pop) would have given, in one go; fewer where the ring starts
    /// anew. When there is none, what comes is for `pop`, be it a longer chain or an error. Rings with an inflight region give all
    /// to `pop`.
    #[inline]
    pub fn pop_singles(&mut self, access: Access, singles: &mut [Single]) -> usize {
        each!(&mut self.0, q => q.pop_singles(access, singles))
    }

    /// Undoes the last [`pop`](Self::pop) that was neither undone nor completed: the chain is available again. `token` is its
    /// name. Not for a ring with an inflight region.
    #[inline]
    pub fn unpop(&mut self, token: Token) {
        each!(&mut self.0, q => q.unpop(token))
    }

    /// Gives a chain back, with the bytes that were written to it. The driver sees it after the next [`flush`](Self::flush).
    #[inline]
    pub fn complete(&mut self, token: Token, written: u32) {
        each!(&mut self.0, q => q.complete(token, written))
    }

    /// Gives back chains that were only read, in the order in which they were taken. On a ring in order one used element stands for
    /// all.
    #[inline]
    pub fn complete_read(&mut self, singles: &[Single]) {
        each!(&mut self.0, q => q.complete_read(singles))
    }

    /// Gives back chains with the bytes that each says were written, in the order in which they were taken.
    #[inline]
    pub fn complete_written(&mut self, singles: &[Single]) {
        each!(&mut self.0, q => q.complete_written(singles))
    }

    /// Publishes what was completed. Returns whether the driver wants to be notified of it.
    #[inline]
    pub fn flush(&mut self) -> bool {
        each!(&mut self.0, q => q.flush())
    }

    /// Asks the driver for a kick, then looks. Returns whether something is available already.
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        each!(&mut self.0, q => q.arm())
    }

    /// Tells the driver that kicks are not needed.
    pub fn disarm(&mut self) {
        each!(&mut self.0, q => q.disarm())
    }

    /// Moves on to another epoch of the memory table, in which the ring lies at the same front-end addresses.
    pub fn relocate(&mut self, memory: Arc<GuestMemory>) -> Result<(), QueueError> {
        each!(&mut self.0, q => q.relocate(memory))
    }

    /// Starts or stops logging writes to guest memory.
    pub fn set_log(&mut self, log: Option<DirtyLog>) {
        each!(&mut self.0, q => q.set_log(log))
    }

    /// Changes where writes to the used ring are logged.
    pub fn set_used_log(&mut self, address: Option<GuestAddress>) {
        each!(&mut self.0, q => q.set_used_log(address))
    }

    /// The log, if writes are logged.
    #[inline(always)]
    pub fn log(&self) -> Option<&DirtyLog> {
        each!(&self.0, q => q.log())
    }

    /// The memory that the ring and its chains lie in.
    #[inline(always)]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        each!(&self.0, q => q.memory())
    }

    /// Chains taken and not yet published as used.
    #[inline(always)]
    pub fn in_flight(&self) -> u16 {
        each!(&self.0, q => q.in_flight())
    }

    /// Where to go on, as GET_VRING_BASE has it. Meant for a drained ring.
    pub fn base(&self) -> u32 {
        each!(&self.0, q => q.base())
    }
}

#[cfg(test)]
mod tests;
