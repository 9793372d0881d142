//! The flow cache of one worker.

use crate::action::{Action, PortNo};
use crate::classifier::{Classifier, Limits, Work, set_bits};
use crate::exact::{Emc, EmcEntry, Smc};
use crate::execute::Unsupported;
use crate::key::{Key, Mask, Miniflow, NARROW, field};
use crate::marks::{Marked, Marks};
use crate::store::{Hasher, NewFlow, Store, expand, normalize};
use clock::Cycles;
use std::sync::Arc;

/// Packets that are looked up together.
pub const BATCH: usize = 32;

/// A flow: what it matches and what is done to the packets.
#[derive(Clone, Debug)]
pub struct Megaflow {
    /// The values that packets have; where the mask does not look they are 0 in a flow that was installed.
    pub key: Key,
    /// The bits of the key that are matched.
    pub mask: Mask,
    /// The actions.
    pub actions: Arc<[Action]>,
    /// Statistics.
    pub stats: Stats,
    /// The unique flow identifier; 0 in a new flow takes the one that follows from key and mask.
    pub ufid: u128,
    /// The epoch in which the flow was installed or renewed, counted in [`FlowCache::invalidate`]s.
    pub epoch: u32,
}

impl Megaflow {
    /// A flow that has seen nothing yet.
    pub fn new(key: Key, mask: Mask, actions: impl Into<Arc<[Action]>>) -> Megaflow {
        Megaflow { key, mask, actions: actions.into(), stats: Stats::default(), ufid: 0, epoch: 0 }
    }

    /// The part of this flow that has the packet in it and matches on everything that tells transport connections apart. Such
    /// flows share few masks, so there is always room for them.
    pub fn narrowed(&self, packet: &Key) -> Megaflow {
        let mask = self.mask.union(&Mask::CONNECTION);
        Megaflow { key: packet.masked(&mask), mask, ..self.clone() }
    }
}

/// Statistics of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Packets.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// When the flow was last used; 0 for never.
    pub used: Cycles,
    /// All TCP flags of all packets.
    pub tcp_flags: u16,
}

impl Stats {
    /// Adds statistics of the same flow from another cache or from hardware.
    pub fn add(&mut self, other: &Stats) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.used = self.used.max(other.used);
        self.tcp_flags |= other.tcp_flags;
    }
}

/// Identifies a flow of one cache; an identifier is never used for another flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Sizes of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Entries of the exact-match tier.
    pub emc_entries: usize,
    /// Entries of the signature tier.
    pub smc_entries: usize,
    /// Most flows.
    pub flow_limit: usize,
    /// Bounds on a look-up in the megaflow tier.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        Config { emc_entries: 8192, smc_entries: 1 << 18, flow_limit: 1 << 20, limits: Limits::default() }
    }
}

/// Why a flow was not installed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InsertError {
    /// The same key and mask.
    #[error("a flow with this key and mask is there already: modify it, or delete it first")]
    Exists(FlowId),
    /// Some packet would match both.
    #[error(
        "the flow overlaps the flow {0} (make their keys differ in a bit that both masks have, or delete that flow first)"
    )]
    Overlaps(Box<crate::text::FlowMatch>),
    /// No more flows.
    #[error("there are {0} flows, as many as allowed: delete some, or wait for idle ones to go")]
    TooManyFlows(usize),
    /// The masks of this port differ too much from each other.
    #[error("the flows of this port have too many different masks: narrow the flow to a mask in use")]
    TooManyMasks,
    /// The flow has an action that is not executed yet.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

/// Look-ups that each tier answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hits {
    /// The mark that hardware gave the packet.
    pub mark: u64,
    /// The exact-match tier.
    pub exact: u64,
    /// The signature tier.
    pub signature: u64,
    /// The megaflow tier.
    pub megaflow: u64,
    /// None: the control plane decides.
    pub miss: u64,
}

/// The flow cache of one worker. Nothing in it is shared: a look-up takes no lock and writes no line that another core reads.
///
/// The tiers, in order, for a batch of packets:
///
/// 0. *Mark* ([`FlowCache::lookup_marked`]): hardware has looked the packet up, and its mark names the flow. It needs no key.
/// 1. *Exact match*: the packet's narrow words, as far as any flow looks at them, compared with one cache line.
/// 2. *Signature*: hash to flow, and the flow's own mask and key checked. Reaches further in the same memory.
/// 3. *Megaflow*: the classifier, a few hash tables a port whatever the number of masks.
///
/// The two before the last go by the union of all masks, not by the whole packet: what no flow looks at makes no new entry, so a million
/// connections under one flow need one entry. A hit is always right: flows are disjoint, and two packets that agree in the union
/// of the masks match the same flow.
///
/// Flows of an earlier epoch no longer match. They stay, with their statistics, until they are inserted again or aged out.
#[derive(Debug)]
pub struct FlowCache {
    config: Config,
    hasher: Hasher,
    epoch: u32,
    marks: Marks,
    emc: Emc,
    smc: Smc,
    classifier: Classifier,
    store: Store,
    hits: Hits,
    age_cursor: u32,
}

impl FlowCache {
    /// An empty cache.
    pub fn new(config: Config) -> FlowCache {
        let hasher = Hasher::random();
        FlowCache {
            hasher,
            epoch: 1,
            marks: Marks::default(),
            emc: Emc::new(config.emc_entries),
            smc: Smc::new(config.smc_entries),
            classifier: Classifier::new(hasher, config.limits),
            store: Store::new(config.flow_limit),
            hits: Hits::default(),
            age_cursor: 0,
            config,
        }
    }

    /// Assigns a mark to a flow: hardware marks all packets that the flow matches, and no others. False if the flow is gone, or does
    /// not match on a port.
    pub fn set_mark(&mut self, mark: u32, id: FlowId) -> bool {
        let Some(flow) = self.store.index(id) else { return false };
        if self.store.mask(flow).mask.get(field::IN_PORT) != field::IN_PORT.max() {
            return false;
        }
        let port = self.store.key(flow).get(field::IN_PORT) as PortNo;
        self.marks.insert(Marked { mark, port, epoch: self.store.epoch(flow), flow, generation: id.generation });
        true
    }

    /// Whether flows have marks.
    #[inline]
    pub fn has_marks(&self) -> bool {
        !self.marks.is_empty()
    }

    /// Looks up packets that came in by a port with these marks, 0 for none; `found` gets the flow of each whose mark is good.
    /// Returns a bit for each of those. The others are for [`FlowCache::lookup_unmarked`].
    ///
    /// # Panics
    /// If there are more packets than [`BATCH`].
    pub fn lookup_marked(&mut self, port: PortNo, marks: &[u32], found: &mut [Option<FlowId>; BATCH]) -> u32 {
        assert!(marks.len() <= BATCH, "a batch of {} packets", marks.len());
        marks.iter().for_each(|mark| self.marks.prefetch(*mark));
        let mut named = 0;
        for (i, mark) in marks.iter().enumerate() {
            if let Some(&Marked { flow: index, generation, .. }) = self.marks.find(*mark, port, self.epoch) {
                self.store.prefetch_hot(index);
                found[i] = Some(FlowId { index, generation });
                named |= 1 << i;
            }
        }
        for i in set_bits(named) {
            match found[i].and_then(|id| self.store.index(id)) {
                Some(flow) => self.store.prefetch_actions(flow),
                None => {
                    found[i] = None;
                    named &= !(1 << i);
                }
            }
        }
        self.hits.mark += u64::from(named.count_ones());
        named
    }

    /// Looks up to [`BATCH`] packets up; `found` gets the flow of each. Hits are counted with [`FlowCache::record`].
    ///
    /// # Panics
    /// If there are more packets than [`BATCH`].
    pub fn lookup_batch(&mut self, packets: &mut [Miniflow], found: &mut [Option<FlowId>; BATCH]) {
        self.lookup::<false>(packets, 0, found);
    }

    /// Looks up those of up to [`BATCH`] packets whose bit is not in `marked`, as [`FlowCache::lookup_batch`] does.
    ///
    /// # Panics
    /// If there are more packets than [`BATCH`].
    pub fn lookup_unmarked(&mut self, packets: &mut [Miniflow], marked: u32, found: &mut [Option<FlowId>; BATCH]) {
        match marked {
            0 => self.lookup::<false>(packets, 0, found),
            _ => self.lookup::<true>(packets, marked, found),
        }
    }

    /// Twice, so that packets without marks do not pay for those with.
    fn lookup<const MARKED: bool>(
        &mut self,
        packets: &mut [Miniflow],
        marked: u32,
        found: &mut [Option<FlowId>; BATCH],
    ) {
        assert!(packets.len() <= BATCH, "a batch of {} packets", packets.len());
        let mut flows = [0; BATCH];
        let all = ((1u64 << packets.len()) - 1) as u32 & !marked;
        if MARKED && all == 0 {
            return;
        }
        let ask_exact = self.emc.is_worth_asking();
        let (union, union_map) = self.store.union();
        for (i, packet) in packets.iter_mut().enumerate() {
            if MARKED && marked & 1 << i != 0 {
                continue;
            }
            packet.hash = self.hasher.hash(&packet.key, union, union_map);
            if ask_exact {
                self.emc.prefetch(packet.hash);
            }
        }
        let mut missing = all;
        if ask_exact {
            missing &= !self.lookup_exact(packets, &mut flows);
        }
        let hits = (all & !missing).count_ones();
        self.emc.count(all.count_ones(), hits);
        self.hits.exact += u64::from(hits);
        if missing != 0 {
            missing = self.lookup_slow(packets, missing, ask_exact, &mut flows);
        }
        for (i, (found, flow)) in found.iter_mut().zip(&flows[..packets.len()]).enumerate() {
            if MARKED && marked & 1 << i != 0 {
                continue;
            }
            *found = (missing & 1 << i == 0).then(|| self.store.id(*flow));
            self.store.prefetch_actions(*flow);
        }
    }

    /// The exact-match tier. Returns which packets it has found.
    #[inline]
    fn lookup_exact(&self, packets: &[Miniflow], flows: &mut [u32; BATCH]) -> u32 {
        let (union, union_map) = self.store.union();
        let mut generations = [0; BATCH];
        let mut hits = 0;
        for (i, packet) in packets.iter().enumerate() {
            let entry = self.emc.entry(packet.hash);
            self.store.prefetch_hot(entry.flow);
            flows[i] = entry.flow;
            generations[i] = entry.generation;
            let is_narrow = (packet.map & union_map) >> NARROW == 0;
            hits |= u32::from(is_narrow & entry.is_of(packet, union, self.epoch)) << i;
        }
        for i in set_bits(hits) {
            if self.store.generation(flows[i]) != generations[i] {
                hits &= !(1 << i);
            }
        }
        hits
    }

    /// The signature and megaflow tiers, for the packets whose bit is set. Returns the packets that neither has found.
    fn lookup_slow(&mut self, packets: &[Miniflow], slow: u32, fill_exact: bool, flows: &mut [u32; BATCH]) -> u32 {
        // A single table answers as fast, once there are more flows than signatures.
        let ask_signature = self.classifier.most_subtables() > 1 || self.store.len() <= self.smc.entries() / 4;
        let mut missing = if ask_signature { self.lookup_signature(packets, slow, flows) } else { slow };
        self.hits.signature += u64::from((slow & !missing).count_ones());
        let unknown = missing;
        if unknown != 0 {
            self.classifier.lookup(packets, &mut missing, &self.store, self.epoch, flows);
            if ask_signature {
                set_bits(unknown & !missing).for_each(|i| self.smc.insert(packets[i].hash, flows[i]));
            }
            self.hits.megaflow += u64::from((unknown & !missing).count_ones());
            self.hits.miss += u64::from(missing.count_ones());
        }
        if fill_exact {
            self.fill_exact(packets, slow & !missing, flows);
        }
        missing
    }

    /// The signature tier, for the packets whose bit is set. Returns which it has not found.
    fn lookup_signature(&self, packets: &[Miniflow], slow: u32, flows: &mut [u32; BATCH]) -> u32 {
        let mut missing = slow;
        let mut named = 0;
        set_bits(slow).for_each(|i| self.smc.prefetch(packets[i].hash));
        for i in set_bits(slow) {
            if let Some(flow) = self.smc.flow(packets[i].hash) {
                self.store.prefetch_row(flow);
                self.store.prefetch_hot(flow);
                flows[i] = flow;
                named |= 1 << i;
            }
        }
        for i in set_bits(named) {
            missing &= !(u32::from(self.store.matches(flows[i], &packets[i], self.epoch)) << i);
        }
        missing
    }

    /// Takes what the slower tiers found into the exact-match tier.
    fn fill_exact(&mut self, packets: &[Miniflow], found: u32, flows: &[u32; BATCH]) {
        let (union, union_map) = self.store.union();
        for i in set_bits(found) {
            if (packets[i].map & union_map) >> NARROW == 0 && self.emc.wants() {
                let flow = (flows[i], self.store.generation(flows[i]));
                let is_live = |entry: &EmcEntry| self.store.generation(entry.flow) == entry.generation;
                self.emc.insert(&packets[i], union, self.epoch, flow, is_live);
            }
        }
    }

    /// Counts packets that a look-up found this flow for. Does nothing if it is gone.
    #[inline]
    pub fn record(&mut self, id: FlowId, packets: u64, bytes: u64, tcp_flags: u16, now: Cycles) {
        if let Some(index) = self.store.index(id) {
            self.store.record(index, packets, bytes, tcp_flags, now);
        }
    }

    /// The actions of a flow; `None` if the flow is gone.
    #[inline]
    pub fn actions(&self, id: FlowId) -> Option<&Arc<[Action]>> {
        self.store.index(id).map(|index| self.store.actions(index))
    }

    /// Installs a flow that overlaps no other: the caller makes flows disjoint. A flow of the same key and mask from an earlier epoch
    /// is renewed and keeps its statistics.
    pub fn insert(&mut self, flow: Megaflow) -> Result<FlowId, InsertError> {
        crate::execute::supported(&flow.actions)?;
        let (key, mask) = normalize(&flow.key, &flow.mask);
        if let Some(index) = self.classifier.find(&key, &mask, &self.store) {
            let id = self.store.id(index);
            if self.store.epoch(index) == self.epoch {
                return Err(InsertError::Exists(id));
            }
            self.store.renew(index, self.epoch, flow.actions);
            return Ok(id);
        }
        if self.store.len() >= self.config.flow_limit {
            return Err(InsertError::TooManyFlows(self.store.len()));
        }
        let ufid = if flow.ufid == 0 { ufid(&key, &mask) } else { flow.ufid };
        let new = NewFlow { epoch: self.epoch, ufid, stats: flow.stats, actions: flow.actions };
        let index = self.store.insert(&key, &mask, new);
        if self.classifier.insert(index, &key, &mask, &self.store).is_err() {
            self.store.remove(index);
            return Err(InsertError::TooManyMasks);
        }
        Ok(self.store.id(index))
    }

    /// Installs a static flow, unless it overlaps another flow. The time is linear in the number of flows.
    pub fn insert_checked(&mut self, flow: Megaflow) -> Result<FlowId, InsertError> {
        let (key, mask) = normalize(&flow.key, &flow.mask);
        let same = self.classifier.find(&key, &mask, &self.store);
        if same.is_none()
            && let Some(other) = self.classifier.overlap(&key, &mask, &self.store, self.epoch)
        {
            return Err(InsertError::Overlaps(Box::new(self.flow_match(other))));
        }
        self.insert(flow)
    }

    /// Gives a flow other actions. False if the flow is gone.
    pub fn modify(&mut self, id: FlowId, actions: impl Into<Arc<[Action]>>) -> Result<bool, Unsupported> {
        let actions = actions.into();
        crate::execute::supported(&actions)?;
        let index = self.store.index(id);
        if let Some(index) = index {
            self.store.renew(index, self.store.epoch(index), actions);
        }
        Ok(index.is_some())
    }

    /// Removes a flow, and returns it with its final statistics.
    pub fn remove(&mut self, id: FlowId) -> Option<Megaflow> {
        let index = self.store.index(id)?;
        let flow = self.megaflow(index);
        self.classifier.remove(index, &self.store.key(index), &self.store.mask(index).mask);
        self.store.remove(index);
        Some(flow)
    }

    /// The flow with just this key and mask.
    pub fn find(&self, key: &Key, mask: &Mask) -> Option<FlowId> {
        let (key, mask) = normalize(key, mask);
        self.classifier.find(&key, &mask, &self.store).map(|index| self.store.id(index))
    }

    /// The flow with this ufid, found by a walk over all flows.
    pub fn find_ufid(&self, ufid: u128) -> Option<FlowId> {
        self.live().find(|index| self.store.ufid(*index) == ufid).map(|index| self.store.id(index))
    }

    /// A flow with its statistics.
    pub fn get(&self, id: FlowId) -> Option<Megaflow> {
        self.store.index(id).map(|index| self.megaflow(index))
    }

    /// All flows.
    pub fn dump(&self) -> impl Iterator<Item = (FlowId, Megaflow)> {
        self.live().map(|index| (self.store.id(index), self.megaflow(index)))
    }

    /// Shows name and statistics of up to `count` flows from `cursor` on, 0 at first. Returns where to go on; `None` at the end.
    pub fn sweep(&self, cursor: u32, count: usize, mut seen: impl FnMut(u128, &Stats)) -> Option<u32> {
        let end = self.store.capacity().min(cursor.saturating_add(count as u32));
        for index in (cursor..end).filter(|index| self.store.is_live(*index)) {
            seen(self.store.ufid(index), self.store.stats(index));
        }
        (end < self.store.capacity()).then_some(end)
    }

    /// Takes out flows that nothing has hit for `idle`, or that are of an earlier epoch. Looks at `sweep` flows at most and goes
    /// on from there the next time, so that a turn of the worker stays short.
    pub fn age(&mut self, now: Cycles, idle: Cycles, sweep: usize, mut removed: impl FnMut(Megaflow)) {
        let capacity = self.store.capacity();
        for _ in 0..sweep.min(capacity as usize) {
            self.age_cursor = if self.age_cursor + 1 >= capacity { 0 } else { self.age_cursor + 1 };
            let index = self.age_cursor;
            if !self.store.is_live(index) {
                continue;
            }
            let is_stale = self.store.epoch(index) != self.epoch;
            if is_stale || self.store.is_idle(index, now, idle) {
                let flow = self.remove(self.store.id(index));
                if let Some(flow) = flow {
                    removed(flow);
                }
            }
        }
    }

    /// Starts a new epoch: no flow matches any more until it is inserted again.
    pub fn invalidate(&mut self) {
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
    }

    /// Puts the tables with most hits first. To be called now and then, say once a second.
    pub fn rank(&mut self) {
        self.classifier.rank();
    }

    /// Flows that are installed.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Different masks, and tables of the port that has most.
    pub fn masks(&self) -> (usize, usize) {
        (self.store.mask_count(), self.classifier.most_subtables())
    }

    /// How often each tier answered.
    pub fn hits(&self) -> Hits {
        self.hits
    }

    /// What the megaflow tier has done so far.
    pub fn work(&self) -> Work {
        self.classifier.work
    }

    /// The present epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    fn live(&self) -> impl Iterator<Item = u32> {
        (0..self.store.capacity()).filter(|index| self.store.is_live(*index))
    }

    fn flow_match(&self, index: u32) -> crate::text::FlowMatch {
        let key = self.store.key(index);
        let mask = expand(&key, &self.store.mask(index).mask);
        crate::text::FlowMatch { key, mask }
    }

    fn megaflow(&self, index: u32) -> Megaflow {
        let crate::text::FlowMatch { key, mask } = self.flow_match(index);
        let store = &self.store;
        let (actions, stats) = (store.actions(index).clone(), *store.stats(index));
        Megaflow { key, mask, actions, stats, ufid: store.ufid(index), epoch: store.epoch(index) }
    }
}

/// The ufid that follows from key and mask, the same in every cache.
fn ufid(key: &Key, mask: &Mask) -> u128 {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128; // FNV-1a, 128 bits, a word at a time
    for (i, mask) in mask.words.iter().enumerate().filter(|(_, mask)| **mask != 0) {
        for word in [i as u64, *mask, key.words[i]] {
            hash = (hash ^ u128::from(word)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
            hash ^= hash >> 64;
        }
    }
    hash
}
