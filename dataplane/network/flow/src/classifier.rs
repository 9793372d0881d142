//! The megaflow tier: for each port a few hash tables (OVS: subtables of dpcls), not one for each mask.
//!
//! Tuple-space search has one table a mask and looks into each, so every new mask makes every packet slower, and a sender who
//! chooses packets chooses masks. Here a subtable hashes fewer bits than its flows match on (TupleMerge: Daly and others, IEEE/ACM
//! ToN 2019), so flows of many masks live in one subtable and are told apart by comparing. A new mask goes to the subtable that
//! keeps most of its bits; where there is none, the closest subtable is relaxed to the bits that both have in common, as long as no
//! more than [`Limits::chain`] flows then share a hash. The cost of a look-up is so bounded by [`Limits::subtables`] times
//! [`Limits::chain`], and is usually a single subtable. Beyond the limit a flow is refused; the upcall handler then narrows it to
//! the packet at hand, whose exact mask all such flows share.

use crate::key::{Key, Mask, Miniflow, field};
use crate::prefetch::prefetch;
use crate::store::{Hasher, Store};
use memory::prefer_huge_pages;
use std::collections::HashMap;

/// Bounds on the work of one look-up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tables of a port from which on a new mask rather relaxes one of them than adds one.
    pub merge_from: usize,
    /// Most subtables of a port.
    pub subtables: usize,
    /// Most flows of a subtable that share a hash.
    pub chain: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { merge_from: 2, subtables: 16, chain: 8 }
    }
}

/// Why a flow has no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Full;

/// Flows that look-up work a new flow pays for rebuilding subtables.
const REBUILD_CREDIT: usize = 8;
const NONE: u64 = 0;
const FIRST_SLOTS: usize = 16;

/// Hash and flow, in open addressing: probed linearly from the hash on, at most half full.
#[derive(Debug)]
struct Subtable {
    mask: Mask,
    map: u64,
    slots: Box<[u64]>,
    flows: usize,
    hits: u64,
}

#[inline]
fn slot(hash: u32, flow: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(flow + 1)
}

#[inline]
fn slot_hash(slot: u64) -> u32 {
    (slot >> 32) as u32
}

#[inline]
fn slot_flow(slot: u64) -> u32 {
    slot as u32 - 1
}

impl Subtable {
    fn new(mask: Mask) -> Subtable {
        Subtable { map: mask.bitmap(), mask, slots: vec![NONE; FIRST_SLOTS].into(), flows: 0, hits: 0 }
    }

    /// The flows that share the hash.
    #[inline]
    fn chain(&self, hash: u32) -> impl Iterator<Item = u32> {
        let last = self.slots.len() - 1;
        let occupied = (0..).map(move |i| self.slots[(hash as usize + i) & last]).take_while(|slot| *slot != NONE);
        occupied.filter(move |slot| slot_hash(*slot) == hash).map(slot_flow)
    }

    fn insert(&mut self, hash: u32, flow: u32) {
        if (self.flows + 1) * 2 > self.slots.len() {
            let larger: Box<[u64]> = vec![NONE; self.slots.len() * 2].into();
            prefer_huge_pages(&larger);
            let old = std::mem::replace(&mut self.slots, larger);
            old.iter().filter(|slot| **slot != NONE).for_each(|slot| self.place(*slot));
        }
        self.place(slot(hash, flow));
        self.flows += 1;
    }

    fn place(&mut self, slot: u64) {
        let last = self.slots.len() - 1;
        let mut at = slot_hash(slot) as usize & last;
        while self.slots[at] != NONE {
            at = (at + 1) & last;
        }
        self.slots[at] = slot;
    }

    /// Takes a flow out and moves back what was displaced by it. False if it was not there.
    fn remove(&mut self, hash: u32, flow: u32) -> bool {
        let last = self.slots.len() - 1;
        let mut hole = hash as usize & last;
        while self.slots[hole] != slot(hash, flow) {
            if self.slots[hole] == NONE {
                return false;
            }
            hole = (hole + 1) & last;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & last;
            let next = self.slots[at];
            if next == NONE {
                break;
            }
            let home = slot_hash(next) as usize & last;
            if at.wrapping_sub(home) & last >= at.wrapping_sub(hole) & last {
                self.slots[hole] = next;
                hole = at;
            }
        }
        self.slots[hole] = NONE;
        self.flows -= 1;
        true
    }

    fn flows(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().filter(|slot| **slot != NONE).map(|slot| slot_flow(*slot))
    }

    /// The same flows under another mask, none of whose chains is longer than `chain`.
    fn rehashed(&self, mask: Mask, store: &Store, hasher: &Hasher, chain: usize) -> Option<Subtable> {
        let mut subtable = Subtable { hits: self.hits, ..Subtable::new(mask) };
        for flow in self.flows() {
            let hash = hasher.hash(&store.key(flow), &subtable.mask, subtable.map);
            if subtable.chain(hash).count() >= chain {
                return None;
            }
            subtable.insert(hash, flow);
        }
        Some(subtable)
    }
}

/// The flows of one port: its subtables, those with most hits first.
#[derive(Debug, Default)]
struct PortClassifier {
    subtables: Vec<Subtable>,
    credit: usize,
}

impl PortClassifier {
    fn insert(
        &mut self,
        flow: u32,
        key: &Key,
        mask: &Mask,
        store: &Store,
        hasher: &Hasher,
        limits: &Limits,
    ) -> Result<(), Full> {
        self.credit += REBUILD_CREDIT;
        // A subtable serves a flow that matches on every bit that the subtable hashes; the more bits the better.
        let mut serving: Vec<usize> =
            (0..self.subtables.len()).filter(|i| self.subtables[*i].mask.is_subset(mask)).collect();
        serving.sort_by_key(|i| std::cmp::Reverse(self.subtables[*i].mask.count()));
        if serving.into_iter().any(|i| self.put(i, flow, key, hasher, limits)) {
            return Ok(());
        }
        if self.subtables.len() >= limits.merge_from && self.relax(flow, key, mask, store, hasher, limits) {
            return Ok(());
        }
        if self.subtables.len() >= limits.subtables {
            return Err(Full);
        }
        self.subtables.push(Subtable::new(*mask));
        self.put(self.subtables.len() - 1, flow, key, hasher, limits);
        Ok(())
    }

    fn put(&mut self, subtable: usize, flow: u32, key: &Key, hasher: &Hasher, limits: &Limits) -> bool {
        let subtable = &mut self.subtables[subtable];
        let hash = hasher.hash(key, &subtable.mask, subtable.map);
        let fits = subtable.chain(hash).count() < limits.chain;
        if fits {
            subtable.insert(hash, flow);
        }
        fits
    }

    /// Relaxes the closest subtable that can be relaxed, so that it serves this mask as well.
    fn relax(&mut self, flow: u32, key: &Key, mask: &Mask, store: &Store, hasher: &Hasher, limits: &Limits) -> bool {
        let mut order: Vec<(u32, usize)> = self
            .subtables
            .iter()
            .enumerate()
            .map(|(i, subtable)| (subtable.mask.intersection(mask).count(), i))
            .collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        for (_, i) in order {
            let subtable = &self.subtables[i];
            let relaxed = subtable.mask.intersection(mask);
            if subtable.flows > self.credit || relaxed == subtable.mask {
                continue;
            }
            self.credit -= subtable.flows;
            let Some(mut subtable) = subtable.rehashed(relaxed, store, hasher, limits.chain) else { continue };
            let hash = hasher.hash(key, &subtable.mask, subtable.map);
            if subtable.chain(hash).count() < limits.chain {
                subtable.insert(hash, flow);
                self.subtables[i] = subtable;
                return true;
            }
        }
        false
    }

    fn remove(&mut self, flow: u32, key: &Key, mask: &Mask, hasher: &Hasher) {
        let at = self.subtables.iter_mut().position(|subtable| {
            subtable.mask.is_subset(mask) && subtable.remove(hasher.hash(key, &subtable.mask, subtable.map), flow)
        });
        if let Some(at) = at.filter(|at| self.subtables[*at].flows == 0) {
            self.subtables.remove(at);
        }
    }

    fn rank(&mut self) {
        self.subtables.sort_unstable_by_key(|subtable| std::cmp::Reverse(subtable.hits));
        self.subtables.iter_mut().for_each(|subtable| subtable.hits /= 2);
    }
}

/// Work done, for tests and statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Look-ups.
    pub lookups: u64,
    /// Tables looked into.
    pub probes: u64,
    /// Flows compared with a packet.
    pub compared: u64,
}

/// The classifiers of all ports, on one worker.
#[derive(Debug)]
pub(crate) struct Classifier {
    hasher: Hasher,
    limits: Limits,
    /// Index of each port's classifier; [`None`] is of the flows that match on no port or a part of its number.
    ports: HashMap<Option<u32>, usize>,
    port_classifiers: Vec<PortClassifier>,
    pub(crate) work: Work,
}

impl Classifier {
    pub(crate) fn new(hasher: Hasher, limits: Limits) -> Classifier {
        Classifier { hasher, limits, ports: HashMap::new(), port_classifiers: Vec::new(), work: Work::default() }
    }

    fn port(key: &Key, mask: &Mask) -> Option<u32> {
        (mask.get(field::IN_PORT) == field::IN_PORT.max()).then(|| key.get(field::IN_PORT) as u32)
    }

    pub(crate) fn insert(&mut self, flow: u32, key: &Key, mask: &Mask, store: &Store) -> Result<(), Full> {
        let next = self.port_classifiers.len();
        let port_classifier = *self.ports.entry(Self::port(key, mask)).or_insert(next);
        if port_classifier == next {
            self.port_classifiers.push(PortClassifier::default());
        }
        self.port_classifiers[port_classifier].insert(flow, key, mask, store, &self.hasher, &self.limits)
    }

    pub(crate) fn remove(&mut self, flow: u32, key: &Key, mask: &Mask) {
        if let Some(port_classifier) = self.ports.get(&Self::port(key, mask)) {
            self.port_classifiers[*port_classifier].remove(flow, key, mask, &self.hasher);
        }
    }

    /// The flow with just this key and mask.
    pub(crate) fn find(&self, key: &Key, mask: &Mask, store: &Store) -> Option<u32> {
        let port_classifier = &self.port_classifiers[*self.ports.get(&Self::port(key, mask))?];
        let serving = port_classifier.subtables.iter().filter(|subtable| subtable.mask.is_subset(mask));
        let mut candidates =
            serving.flat_map(|subtable| subtable.chain(self.hasher.hash(key, &subtable.mask, subtable.map)));
        candidates.find(|flow| store.mask(*flow).mask == *mask && store.key(*flow) == *key)
    }

    /// A flow that a packet could match as well as this one. Looks at every flow of the subtables that hash other bits.
    pub(crate) fn overlap(&self, key: &Key, mask: &Mask, store: &Store, epoch: u32) -> Option<u32> {
        let overlaps = |flow: &u32| {
            let both = store.mask(*flow).mask.intersection(mask);
            store.epoch(*flow) == epoch && store.key(*flow).matches(key, &both)
        };
        let port = Self::port(key, mask);
        let shared = |(of, _): &(&Option<u32>, &usize)| port.is_none() || of.is_none() || **of == port;
        let port_classifiers = self.ports.iter().filter(shared).map(|(_, at)| &self.port_classifiers[*at]);
        port_classifiers.flat_map(|port_classifier| &port_classifier.subtables).find_map(|subtable| {
            if subtable.mask.is_subset(mask) {
                return subtable.chain(self.hasher.hash(key, &subtable.mask, subtable.map)).find(overlaps);
            }
            subtable.flows().find(overlaps)
        })
    }

    /// Looks up the packets whose bit is set in `missing`, and clears the bit of each that is found.
    pub(crate) fn lookup(
        &mut self,
        packets: &[Miniflow],
        missing: &mut u32,
        store: &Store,
        epoch: u32,
        found: &mut [u32],
    ) {
        let mut remaining = *missing;
        self.work.lookups += u64::from(remaining.count_ones());
        while remaining != 0 {
            // All packets of the batch that came in by the same port.
            let port = packets[remaining.trailing_zeros() as usize].key.get(field::IN_PORT);
            let mut same = 0;
            for i in set_bits(remaining) {
                same |= u32::from(packets[i].key.get(field::IN_PORT) == port) << i;
            }
            remaining &= !same;
            let mut left = same;
            for port_classifier in [Some(port as u32), None] {
                if let Some(port_classifier) = self.ports.get(&port_classifier).filter(|_| left != 0) {
                    let port_classifier = &mut self.port_classifiers[*port_classifier];
                    lookup_port(port_classifier, &self.hasher, &mut self.work, packets, &mut left, store, epoch, found);
                }
            }
            *missing &= !(same & !left);
        }
    }

    /// Puts the subtables with most hits first.
    pub(crate) fn rank(&mut self) {
        self.port_classifiers.iter_mut().for_each(PortClassifier::rank);
    }

    /// Tables of the port that has most.
    pub(crate) fn most_subtables(&self) -> usize {
        self.port_classifiers.iter().map(|port_classifier| port_classifier.subtables.len()).max().unwrap_or(0)
    }
}

/// Three passes a subtable, each of which fetches what the next one reads: hashes, slots, comparisons.
#[allow(clippy::too_many_arguments)] // the fields of two structures that are borrowed apart
fn lookup_port(
    port_classifier: &mut PortClassifier,
    hasher: &Hasher,
    work: &mut Work,
    packets: &[Miniflow],
    left: &mut u32,
    store: &Store,
    epoch: u32,
    found: &mut [u32],
) {
    let mut hashes = [0; 32];
    let mut firsts = [NONE; 32];
    let (union, _) = store.union();
    for subtable in &mut port_classifier.subtables {
        let last = subtable.slots.len() - 1;
        work.probes += u64::from(left.count_ones());
        // The hash of what all flows look at is there already.
        let is_union = subtable.mask == *union;
        for i in set_bits(*left) {
            hashes[i] =
                if is_union { packets[i].hash } else { hasher.hash(&packets[i].key, &subtable.mask, subtable.map) };
            prefetch(&subtable.slots, hashes[i] as usize & last);
        }
        for i in set_bits(*left) {
            firsts[i] = subtable.slots[hashes[i] as usize & last];
            if firsts[i] != NONE && slot_hash(firsts[i]) == hashes[i] {
                store.prefetch_row(slot_flow(firsts[i]));
                store.prefetch_hot(slot_flow(firsts[i]));
            }
        }
        for i in set_bits(*left) {
            let (hash, mut slot) = (hashes[i], firsts[i]);
            let mut at = hash as usize;
            while slot != NONE {
                if slot_hash(slot) == hash {
                    work.compared += 1;
                    if store.matches(slot_flow(slot), &packets[i], epoch) {
                        found[i] = slot_flow(slot);
                        *left &= !(1 << i);
                        subtable.hits += 1;
                        break;
                    }
                }
                at += 1;
                slot = subtable.slots[at & last];
            }
        }
        if *left == 0 {
            return;
        }
    }
}

/// The numbers of the bits that are set.
#[inline]
pub(crate) fn set_bits(mut map: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (map != 0).then(|| {
            let bit = map.trailing_zeros() as usize;
            map &= map - 1;
            bit
        })
    })
}
