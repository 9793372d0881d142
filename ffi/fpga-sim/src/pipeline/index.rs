//! Rules by the hashes of their values: open addressing with linear probing. Slots stand in the order of hashes, so that to grow
//! is to walk from one end to the other.

use super::table::RuleId;

const SLOTS: usize = 16;

/// An index.
pub(super) struct Index {
    /// A power of two of them; some are free.
    slots: Box<[Slot]>,
    len: usize,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    hash: u64,
    /// A free slot has none.
    id: Option<std::num::NonZero<RuleId>>,
}

impl Index {
    pub(super) fn new() -> Index {
        Index { slots: [Slot::default(); SLOTS].into(), len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn home(&self, hash: u64) -> usize {
        (hash >> (u64::BITS - self.slots.len().trailing_zeros())) as usize
    }

    fn behind(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    /// A look at where a hash is or would be: it is near when it is needed.
    pub(super) fn peek(&self, hash: u64) -> u64 {
        self.slots[self.home(hash)].hash
    }

    /// The rules of a hash.
    pub(super) fn find(&self, hash: u64) -> impl Iterator<Item = RuleId> {
        let places = std::iter::successors(Some(self.home(hash)), |&at| Some(self.behind(at)));
        let rules = places.map_while(move |at| Some((self.slots[at].hash, self.slots[at].id?.get())));
        rules.filter_map(move |(other, id)| (other == hash).then_some(id))
    }

    /// Puts a rule in, whose number is not 0.
    pub(super) fn insert(&mut self, hash: u64, id: RuleId) {
        if (self.len + 1) * 3 > self.slots.len() * 2 {
            let longer = vec![Slot::default(); self.slots.len() * 2].into();
            let old = std::mem::replace(&mut self.slots, longer);
            old.iter().filter(|slot| slot.id.is_some()).for_each(|&slot| self.place(slot));
        }
        self.place(Slot { hash, id: std::num::NonZero::new(id) });
        self.len += 1;
    }

    fn place(&mut self, slot: Slot) {
        let mut at = self.home(slot.hash);
        while self.slots[at].id.is_some() {
            at = self.behind(at);
        }
        self.slots[at] = slot;
    }

    /// Takes a rule out that is there.
    pub(super) fn remove(&mut self, hash: u64, id: RuleId) {
        let mut hole = self.home(hash);
        while self.slots[hole].id.is_none_or(|there| there.get() != id) {
            if self.slots[hole].id.is_none() {
                return;
            }
            hole = self.behind(hole);
        }
        self.len -= 1;
        // Those behind come nearer to their homes.
        let last = self.slots.len() - 1;
        let distance = |from: usize, to: usize| to.wrapping_sub(from) & last;
        let mut at = self.behind(hole);
        while self.slots[at].id.is_some() {
            if distance(self.home(self.slots[at].hash), at) >= distance(hole, at) {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
            at = self.behind(at);
        }
        self.slots[hole] = Slot::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        /// The index has what a map has, whatever comes, goes and has the same home, at the end of the slots too.
        #[test]
        fn the_index_acts_as_a_map(steps in prop::collection::vec((any::<bool>(), prop::sample::select(vec![0u64, 1 << 59, 7 << 60, u64::MAX, u64::MAX - 1]), 0u64..3), 1..300)) {
            let mut index = Index::new();
            let mut map: BTreeMap<u64, BTreeSet<RuleId>> = BTreeMap::new();
            for (id, &(insert, hash, offset)) in steps.iter().enumerate() {
                let hash = hash.wrapping_add(offset);
                let rules = map.entry(hash).or_default();
                if insert {
                    index.insert(hash, id as u64 + 1);
                    rules.insert(id as u64 + 1);
                } else if let Some(id) = rules.pop_first() {
                    index.remove(hash, id);
                }
                for (&hash, rules) in &map {
                    prop_assert_eq!(&index.find(hash).collect::<BTreeSet<_>>(), rules);
                }
            }
            prop_assert_eq!(index.len, map.values().map(BTreeSet::len).sum::<usize>());
        }
    }
}
