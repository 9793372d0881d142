//! The inflight region: what a process was working on, kept where the next process finds it (vhost-user, "Inflight I/O tracking").
//!
//! Chains are marked before they are served and unmarked after they were used, in steps such that a process may die between any
//! two of them: [`SplitInflight::recover`] and [`PackedInflight::recover`] then commit or roll back the last batch and name the
//! chains to serve again, oldest first.
//!
//! A device that serves chains in order, and to which it does not matter whether a chain is served again, marks none: in a packed
//! ring it keeps its position ([`Virtqueue::persist_ring_position`](crate::Virtqueue::persist_ring_position)), which the region
//! has cursors for. To other devices such a region says that nothing is in flight.

use crate::{ChainToken, QueueError};
use guest_memory::Window;
use std::sync::atomic::Ordering::{Relaxed, Release};
use virtio_spec::ring::{MAX_SIZE, desc};

/// Version of the layouts below.
const VERSION: u16 = 1;

// Header, both layouts: features (u64, unused), version, number of descriptors.
const H_VERSION: usize = 8;
const H_DESC_NUM: usize = 10;

/// Bytes that a ring needs in the inflight region. A multiple of 64, so that rings do not share cache lines.
pub const fn region_len(packed: bool, size: u16) -> usize {
    let len = if packed { P_DESC + P_DESC_LEN * size as usize } else { S_DESC + S_DESC_LEN * size as usize };
    len.next_multiple_of(64)
}

/// Takes over a region: checks its length, and sets up one that is new or was left by a ring of another size or version.
/// Returns whether it was set up anew.
fn take_over(region: &Window, packed: bool, size: u16) -> Result<bool, QueueError> {
    let expected = region_len(packed, size);
    if region.len() < expected {
        return Err(QueueError::Inflight { len: region.len(), expected });
    }
    if region.load_u16(H_VERSION, Relaxed) == VERSION && region.load_u16(H_DESC_NUM, Relaxed) == size {
        return Ok(false);
    }
    for offset in (0..expected).step_by(8) {
        region.store_u64(offset, 0, Relaxed);
    }
    region.store_u16(H_DESC_NUM, size, Relaxed);
    Ok(true)
}

// Split: header, then an entry a descriptor, found by the head's index.
const S_LAST_BATCH_HEAD: usize = 12;
const S_USED_IDX: usize = 14;
const S_DESC: usize = 16;
const S_DESC_LEN: usize = 16;
const S_INFLIGHT: usize = 0;
const S_NEXT: usize = 6;
const S_COUNTER: usize = 8;

/// The region of a split ring.
#[derive(Debug)]
pub(crate) struct SplitInflight {
    region: Window,
    size: u16,
    counter: u64,
}

impl SplitInflight {
    pub(crate) fn new(region: Window, size: u16) -> Result<SplitInflight, QueueError> {
        if take_over(&region, false, size)? {
            region.store_u16(H_VERSION, VERSION, Release);
        }
        Ok(SplitInflight { region, size, counter: 0 })
    }

    fn entry(&self, head: u16) -> usize {
        S_DESC + usize::from(head % self.size) * S_DESC_LEN
    }

    /// Finishes what the last process left half done, given the ring's own used index. Returns the heads to serve again.
    pub(crate) fn recover(&mut self, used_idx: u16) -> Vec<u16> {
        let pending = used_idx.wrapping_sub(self.region.load_u16(S_USED_IDX, Relaxed));
        let mut head = self.region.load_u16(S_LAST_BATCH_HEAD, Relaxed);
        // "If used_idx does not match the used ring's idx, the inflight field of entries in the last batch may be incorrect":
        // the batch was published, so it is done.
        for _ in 0..pending.min(self.size) {
            let entry = self.entry(head);
            self.region.store_u8(entry + S_INFLIGHT, 0, Relaxed);
            head = self.region.load_u16(entry + S_NEXT, Relaxed);
        }
        self.region.store_u16(S_USED_IDX, used_idx, Release);
        let marked = |&head: &u16| self.region.load_u8(self.entry(head) + S_INFLIGHT, Relaxed) == 1;
        let counter = |&head: &u16| self.region.load_u64(self.entry(head) + S_COUNTER, Relaxed);
        let mut heads: Vec<u16> = (0..self.size).filter(marked).collect();
        heads.sort_by_key(counter);
        self.counter = heads.last().map_or(0, |head| counter(head).wrapping_add(1));
        heads
    }

    /// A chain was taken.
    #[inline]
    pub(crate) fn take(&mut self, head: u16) {
        let entry = self.entry(head);
        self.region.store_u64(entry + S_COUNTER, self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.region.store_u8(entry + S_INFLIGHT, 1, Release);
    }

    /// Before the used index is published: `heads` are the batch, in order.
    #[inline]
    pub(crate) fn link(&mut self, heads: &[u16]) {
        for &head in heads {
            let last = self.region.load_u16(S_LAST_BATCH_HEAD, Relaxed);
            self.region.store_u16(self.entry(head) + S_NEXT, last, Relaxed);
            self.region.store_u16(S_LAST_BATCH_HEAD, head, Release);
        }
    }

    /// After the used index was published.
    #[inline]
    pub(crate) fn unmark(&mut self, heads: &[u16], used_idx: u16) {
        for &head in heads {
            self.region.store_u8(self.entry(head) + S_INFLIGHT, 0, Release);
        }
        self.region.store_u16(S_USED_IDX, used_idx, Release);
    }
}

// Packed: header, then entries that copy the descriptors, linked into free list and chains.
const P_FREE_HEAD: usize = 12;
// used_idx, old_used_idx (u16), used_wrap_counter, old_used_wrap_counter (u8), padding: one word, stored whole. A process that
// dies between an index and its wrap counter would leave a position that never was.
const P_CURSORS: usize = 16;
const P_DESC: usize = 32;
const P_DESC_LEN: usize = 32;
const P_INFLIGHT: usize = 0;
const P_NEXT: usize = 2;
const P_LAST: usize = 4;
const P_NUM: usize = 6;
const P_COUNTER: usize = 8;
const P_ID: usize = 16;
const P_FLAGS: usize = 18;
const P_LEN: usize = 20;
const P_ADDR: usize = 24;

/// A descriptor of a packed ring, as the ring and the region have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedDesc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

impl PackedDesc {
    /// Whether the driver made it available in the lap of `at` (2.8.1).
    #[inline(always)]
    pub(crate) fn is_available(self, at: Position) -> bool {
        (self.flags & desc::AVAIL != 0) == at.wrap && (self.flags & desc::USED != 0) != at.wrap
    }
}

/// A position in a packed ring: index and wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u16,
    pub(crate) wrap: bool,
}

impl Position {
    /// `count` descriptors further in a ring of `size`.
    #[inline(always)]
    pub(crate) fn advanced(self, count: u16, size: u16) -> Position {
        // At most 32,767 + 32,768.
        let index = self.index + count;
        if index >= size { Position { index: index - size, wrap: !self.wrap } } else { Position { index, ..self } }
    }

    /// `count` descriptors back in a ring of `size`, which has as many.
    #[inline(always)]
    pub(crate) fn retreated(self, count: u16, size: u16) -> Position {
        match self.index.checked_sub(count) {
            Some(index) => Position { index, ..self },
            None => Position { index: self.index + size - count, wrap: !self.wrap },
        }
    }

    /// Descriptors from here to `end`, 0 to `size`.
    fn distance(self, end: Position, size: u16) -> u16 {
        let around = (u32::from(end.index) + u32::from(size) - u32::from(self.index)) % u32::from(size);
        if around == 0 && self.wrap != end.wrap { size } else { around as u16 }
    }

    /// As SET_VRING_BASE and event suppression have it: wrap counter in bit 15.
    pub(crate) fn to_bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    pub(crate) fn from_bits(bits: u16) -> Position {
        Position { index: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }
}

/// The region of a packed ring.
#[derive(Debug)]
pub(crate) struct PackedInflight {
    region: Window,
    size: u16,
    counter: u64,
}

/// What a dead process was working on in a packed ring.
#[derive(Debug)]
pub(crate) struct PackedRecovery {
    /// Where the next used descriptor goes; `None` when the region is new.
    pub(crate) used: Option<Position>,
    /// Entries of the chains to serve again.
    pub(crate) entries: Vec<u16>,
}

impl PackedInflight {
    pub(crate) fn new(region: Window, size: u16, start: Position) -> Result<(PackedInflight, bool), QueueError> {
        let fresh = take_over(&region, true, size)?;
        let inflight = PackedInflight { region, size, counter: 0 };
        if fresh {
            for index in 0..size {
                inflight.store16(inflight.entry(index) + P_NEXT, (index + 1) % size);
            }
            inflight.store_cursors(start, start);
            inflight.region.store_u16(H_VERSION, VERSION, Release);
        }
        Ok((inflight, fresh))
    }

    fn entry(&self, index: u16) -> usize {
        P_DESC + usize::from(index % self.size) * P_DESC_LEN
    }

    fn load16(&self, offset: usize) -> u16 {
        self.region.load_u16(offset, Relaxed)
    }

    fn store16(&self, offset: usize, value: u16) {
        self.region.store_u16(offset, value, Release);
    }

    /// Where used descriptors go: after the batch under way, and after the last one that is done.
    fn cursors(&self) -> (Position, Position) {
        let word = self.region.load_u64(P_CURSORS, Relaxed);
        let position = |index: u64, wrap: u64| Position { index: index as u16, wrap: wrap & 0xff != 0 };
        (position(word, word >> 32), position(word >> 16, word >> 40))
    }

    fn store_cursors(&self, used: Position, old: Position) {
        let indices = u64::from(used.index) | u64::from(old.index) << 16;
        let wraps = u64::from(used.wrap) | u64::from(old.wrap) << 8;
        self.region.store_u64(P_CURSORS, indices | wraps << 32, Release);
    }

    /// Finishes or undoes what the last process left half done. `available` says whether the ring's descriptor at a position
    /// is still available, `take_back` makes it look so.
    pub(crate) fn recover(
        &mut self,
        available: impl Fn(Position) -> bool,
        take_back: impl Fn(Position),
    ) -> PackedRecovery {
        let (mut used, old) = self.cursors();
        if used.index < self.size && old.index < self.size {
            let batch = old.distance(used, self.size);
            if batch > 0 && available(old) {
                // The batch was not published. Flags behind its first descriptor may stand in the ring already.
                (1..batch).for_each(|n| take_back(old.advanced(n, self.size)));
                used = old;
            } else {
                // It was: "it has to commit the in-progress update".
                self.unmark_freed(batch);
            }
        }
        self.store_cursors(used, used);
        let marked = |&index: &u16| self.region.load_u8(self.entry(index) + P_INFLIGHT, Relaxed) == 1;
        let counter = |&index: &u16| self.region.load_u64(self.entry(index) + P_COUNTER, Relaxed);
        let mut entries: Vec<u16> = (0..self.size).filter(marked).collect();
        entries.sort_by_key(counter);
        self.counter = entries.last().map_or(0, |index| counter(index).wrapping_add(1));
        self.rebuild_free_list(&entries);
        PackedRecovery { used: (used.index < self.size).then_some(used), entries }
    }

    /// The position of a process that kept it, and no chains. `available` says whether the ring's descriptor at a position
    /// is still available. `None` when the region makes no sense.
    pub(crate) fn recover_ring_position(&self, available: impl Fn(Position) -> bool) -> Option<Position> {
        let (used, old) = self.cursors();
        if used.index >= self.size || old.index >= self.size {
            return None;
        }
        let position = if used != old && available(old) { old } else { used };
        self.store_cursors(position, position);
        Some(position)
    }

    /// Keeps the position of a device that publishes what is used from `old` to `used`, or, where they are equal, has done so.
    #[inline]
    pub(crate) fn persist_ring_position(&self, old: Position, used: Position) {
        self.store_cursors(used, old);
    }

    /// The last batch stands at the head of the free list: an entry for each of its descriptors.
    fn unmark_freed(&self, batch: u16) {
        let mut index = self.load16(P_FREE_HEAD);
        for _ in 0..batch {
            let entry = self.entry(index);
            self.region.store_u8(entry + P_INFLIGHT, 0, Relaxed);
            index = self.load16(entry + P_NEXT);
        }
    }

    /// Links every entry that belongs to no chain in flight.
    fn rebuild_free_list(&self, chains: &[u16]) {
        let mut held = vec![false; usize::from(self.size)];
        for &head in chains {
            let mut index = head;
            for _ in 0..self.count(head) {
                held[usize::from(index % self.size)] = true;
                index = self.load16(self.entry(index) + P_NEXT);
            }
        }
        let mut free = (0..self.size).filter(|&index| !held[usize::from(index)]);
        let Some(first) = free.next() else { return };
        let mut last = first;
        for index in free {
            self.store16(self.entry(last) + P_NEXT, index);
            last = index;
        }
        self.store16(P_FREE_HEAD, first);
    }

    /// A chain was taken from the ring: copies its descriptors. Returns its entry.
    pub(crate) fn take(&mut self, descriptors: &[PackedDesc]) -> u16 {
        let head = self.load16(P_FREE_HEAD) % self.size;
        let mut index = head;
        for (at, d) in descriptors.iter().enumerate() {
            let entry = self.entry(index);
            self.region.store_u64(entry + P_ADDR, d.addr, Relaxed);
            self.region.store_u32(entry + P_LEN, d.len, Relaxed);
            self.store16(entry + P_FLAGS, d.flags);
            self.store16(entry + P_ID, d.id);
            if at + 1 == descriptors.len() {
                self.store16(self.entry(head) + P_LAST, index);
            }
            index = self.load16(entry + P_NEXT) % self.size;
        }
        let entry = self.entry(head);
        self.store16(entry + P_NUM, descriptors.len() as u16);
        self.region.store_u64(entry + P_COUNTER, self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.store16(P_FREE_HEAD, index);
        // Last: a recovery takes an entry that is not marked as free, and the ring still has the chain.
        self.region.store_u8(entry + P_INFLIGHT, 1, Release);
        head
    }

    /// Descriptors that a chain takes in the ring.
    pub(crate) fn count(&self, head: u16) -> u16 {
        self.load16(self.entry(head) + P_NUM).min(self.size)
    }

    /// The descriptors of a chain to serve again.
    pub(crate) fn descriptors(&self, head: u16) -> impl Iterator<Item = PackedDesc> + '_ {
        let mut index = head;
        (0..self.count(head)).map(move |_| {
            let entry = self.entry(index);
            index = self.load16(entry + P_NEXT);
            PackedDesc {
                addr: self.region.load_u64(entry + P_ADDR, Relaxed),
                len: self.region.load_u32(entry + P_LEN, Relaxed),
                id: self.load16(entry + P_ID),
                flags: self.load16(entry + P_FLAGS),
            }
        })
    }

    /// Before the batch's first descriptor is published: its entries go back to the free list.
    pub(crate) fn free<'a>(&mut self, batch: impl Iterator<Item = &'a ChainToken>, used: Position) {
        for token in batch {
            let last = self.load16(self.entry(token.entry()) + P_LAST);
            self.store16(self.entry(last) + P_NEXT, self.load16(P_FREE_HEAD));
            self.store16(P_FREE_HEAD, token.entry());
        }
        let (_, old) = self.cursors();
        self.store_cursors(used, old);
    }

    /// After the batch was published.
    pub(crate) fn unmark<'a>(&mut self, batch: impl Iterator<Item = &'a ChainToken>) {
        for token in batch {
            self.region.store_u8(self.entry(token.entry()) + P_INFLIGHT, 0, Release);
        }
        let (used, _) = self.cursors();
        self.store_cursors(used, used);
    }
}

const _: () = assert!(region_len(true, MAX_SIZE) < 1 << 21);
