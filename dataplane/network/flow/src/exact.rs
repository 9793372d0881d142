//! The two tiers before the classifier. Both map a hash of what flows look at to a flow; neither owns anything, and a stale entry
//! is noticed when it is hit, so flows come and go without a walk over them.

use crate::key::{Mask, Miniflow, NARROW};
use crate::prefetch::prefetch;

/// The exact-match cache: the whole narrow key, in one cache line with its flow. Two entries a set.
#[derive(Debug)]
pub(crate) struct Emc {
    entries: Box<[EmcEntry]>,
    /// Insertions asked for since start; one in [`THRASH`] of them may displace a live entry.
    asked: u32,
    /// Misses since start.
    missed: u32,
    window: Window,
}

/// Whether the tier is worth asking: look-ups and hits of the present window, and windows to go without.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    lookups: u32,
    hits: u32,
    skipped: u32,
    /// The last window, in which the tier was asked, had many misses: most of them leave it as it is.
    sampled: bool,
}

/// Look-ups after which it is decided anew.
const WINDOW: u32 = 8192;
/// Windows without, after one in which fewer than a quarter hit.
const SKIPPED_WINDOWS: u32 = 15;

/// Of so many keys that find their set full, one gets in: a working set larger than the cache does not wash it out.
const THRASH: u32 = 4;
/// Of so many misses, one is looked at where there are many.
const SAMPLE: u32 = 16;

#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub(crate) struct EmcEntry {
    hash: u32,
    /// 0 in an entry that was never used.
    epoch: u32,
    pub(crate) flow: u32,
    pub(crate) generation: u32,
    words: [u64; NARROW],
}

impl EmcEntry {
    /// Whether it is of this packet, all of whose relevant words are narrow.
    #[inline]
    pub(crate) fn is_of(&self, packet: &Miniflow, union: &Mask, epoch: u32) -> bool {
        let mut difference = u64::from(self.hash ^ packet.hash | self.epoch ^ epoch);
        for i in 0..NARROW {
            difference |= packet.key.words[i] & union.words[i] ^ self.words[i];
        }
        difference == 0
    }
}

impl Emc {
    /// `entries` is rounded up to a power of two.
    pub(crate) fn new(entries: usize) -> Emc {
        Emc {
            entries: vec![EmcEntry::default(); entries.max(2).next_power_of_two()].into(),
            asked: 0,
            missed: 0,
            window: Window::default(),
        }
    }

    /// Whether to ask: a working set far larger than the cache only costs look-ups that miss.
    #[inline]
    pub(crate) fn is_worth_asking(&self) -> bool {
        self.window.skipped == 0
    }

    /// Counts a batch.
    #[inline]
    pub(crate) fn count(&mut self, lookups: u32, hits: u32) {
        let window = &mut self.window;
        window.lookups += lookups;
        window.hits += hits;
        if window.lookups >= WINDOW {
            let skipped = match window.skipped {
                0 if window.hits * 4 < window.lookups => SKIPPED_WINDOWS,
                skipped => skipped.saturating_sub(1),
            };
            let sampled = window.skipped + skipped == 0 && window.hits < window.lookups / 8 * 7;
            *window = Window { skipped, sampled, ..Window::default() };
        }
    }

    /// Whether a miss is worth a look at its set. Such a look costs as much as the look-up.
    #[inline]
    pub(crate) fn wants(&mut self) -> bool {
        self.missed = self.missed.wrapping_add(1);
        !self.window.sampled || self.missed.is_multiple_of(SAMPLE)
    }

    /// Fetches the set of this hash.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u32) {
        let set = self.set(hash);
        prefetch(&self.entries, set);
        prefetch(&self.entries, set + 1);
    }

    #[inline]
    fn set(&self, hash: u32) -> usize {
        hash as usize & (self.entries.len() - 2)
    }

    /// The one entry that can be of a packet with this hash. Chosen without a branch, which nothing could predict.
    #[inline]
    pub(crate) fn entry(&self, hash: u32) -> &EmcEntry {
        let set = self.set(hash);
        &self.entries[set + usize::from(self.entries[set + 1].hash == hash)]
    }

    /// Remembers the flow of a packet. `is_live` tells whether an entry's flow is still there.
    pub(crate) fn insert(
        &mut self,
        packet: &Miniflow,
        union: &Mask,
        epoch: u32,
        (flow, generation): (u32, u32),
        is_live: impl Fn(&EmcEntry) -> bool,
    ) {
        let set = self.set(packet.hash);
        let same = (set..set + 2).find(|i| self.entries[*i].hash == packet.hash);
        let free = || (set..set + 2).find(|i| self.entries[*i].epoch != epoch || !is_live(&self.entries[*i]));
        let at = same.or_else(free).or_else(|| {
            self.asked = self.asked.wrapping_add(1);
            self.asked.is_multiple_of(THRASH).then_some(set + (self.asked / THRASH % 2) as usize)
        });
        if let Some(at) = at {
            let words = std::array::from_fn(|i| packet.key.words[i] & union.words[i]);
            self.entries[at] = EmcEntry { hash: packet.hash, epoch, flow, generation, words };
        }
    }
}

/// The signature cache: only hash and flow, eight entries a cache line. What it says is checked against the flow itself.
#[derive(Debug)]
pub(crate) struct Smc {
    slots: Box<[[u64; 2]]>,
}

impl Smc {
    /// `entries` is rounded up to a power of two.
    pub(crate) fn new(entries: usize) -> Smc {
        Smc { slots: vec![[0; 2]; (entries / 2).max(1).next_power_of_two()].into() }
    }

    pub(crate) fn entries(&self) -> usize {
        self.slots.len() * 2
    }

    /// Fetches the set of this hash.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u32) {
        prefetch(&self.slots, hash as usize & (self.slots.len() - 1));
    }

    /// The one flow that can be of a packet with this hash.
    #[inline]
    pub(crate) fn flow(&self, hash: u32) -> Option<u32> {
        let set = self.slots[hash as usize & (self.slots.len() - 1)];
        // Without a branch, which nothing could predict.
        let way = set[usize::from((set[1] >> 32) as u32 == hash)];
        ((way >> 32) as u32 == hash && way as u32 != 0).then(|| way as u32 - 1)
    }

    /// Remembers a flow; of the set, the entry that is older goes.
    #[inline]
    pub(crate) fn insert(&mut self, hash: u32, flow: u32) {
        let last = self.slots.len() - 1;
        let set = &mut self.slots[hash as usize & last];
        let new = u64::from(hash) << 32 | u64::from(flow + 1);
        if (set[0] >> 32) as u32 != hash {
            set[1] = set[0];
        }
        set[0] = new;
    }
}
