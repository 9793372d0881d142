//! Where the flows are: parallel arrays, so that each step of a look-up touches only the lines that it needs.

use crate::action::Action;
use crate::cache::{FlowId, Stats};
use crate::key::{Key, Mask, Miniflow, NARROW, WIDE, WORDS, field};
use crate::prefetch::prefetch;
use clock::Cycles;
use memory::prefer_huge_pages;
use std::collections::HashMap;
use std::sync::Arc;

/// An epoch that no live flow has.
const DEAD: u32 = 0;

/// A keyed hash over masked words. The key is drawn at start: who chooses packets cannot choose collisions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher([u64; WIDE]);

impl Hasher {
    pub(crate) fn random() -> Hasher {
        use std::hash::{BuildHasher, RandomState};
        Hasher(std::array::from_fn(|i| RandomState::new().hash_one(i)))
    }

    /// The hash of what `mask` leaves of `key`.
    #[inline]
    pub(crate) fn hash(&self, key: &Key, mask: &Mask, mask_map: u64) -> u32 {
        let (k, m, s) = (&key.words, &mask.words, &self.0);
        let pair = |i: usize| fold(k[i] & m[i] ^ s[i], k[i + 1] & m[i + 1] ^ s[i + 1]);
        let mut hash = pair(0) ^ pair(2) ^ pair(4);
        if mask_map >> NARROW != 0 {
            hash ^= pair(6) ^ pair(8);
            let mut rest = mask_map >> WIDE << WIDE;
            while rest != 0 {
                let i = rest.trailing_zeros() as usize;
                hash = fold(hash ^ s[0], k[i] & m[i] ^ s[1].wrapping_add(i as u64));
                rest &= rest - 1;
            }
        }
        (hash ^ hash >> 32) as u32
    }
}

/// Both halves of the product, mixed.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// A mask that flows share.
#[derive(Debug)]
pub(crate) struct SharedMask {
    pub(crate) mask: Mask,
    pub(crate) map: u64,
    flows: u32,
}

/// What a packet is compared with: one cache line for the words that nearly every flow looks at.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Row {
    mask: u32,
    epoch: u32,
    narrow: [u64; NARROW],
}

/// What a packet that hits changes and reads: one cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Hot {
    stats: Stats,
    generation: u32,
    /// When ageing first saw it unused; 0 for not yet.
    unused_since: Cycles,
    actions: Arc<[Action]>,
}

/// The flows of one worker.
#[derive(Debug)]
pub(crate) struct Store {
    rows: Vec<Row>,
    /// The words from [`NARROW`] to [`WIDE`].
    wide: Vec<[u64; WIDE - NARROW]>,
    /// The words from [`WIDE`] on, of which the mask has any.
    rest: Vec<Box<[u64]>>,
    hot: Vec<Hot>,
    ufids: Vec<u128>,
    free: Vec<u32>,
    masks: Vec<SharedMask>,
    free_masks: Vec<u32>,
    mask_index: HashMap<Mask, u32>,
    union: Mask,
    union_map: u64,
    /// Each list of actions once, with the number of its flows: flows that do the same read the same line.
    actions: HashMap<Arc<[Action]>, u32>,
    no_actions: Arc<[Action]>,
}

impl Store {
    /// With room for `limit` flows, which takes no memory before they come.
    pub(crate) fn new(limit: usize) -> Store {
        Store {
            rows: table(limit),
            wide: Vec::new(),
            rest: Vec::new(),
            hot: table(limit),
            ufids: Vec::new(),
            free: Vec::new(),
            masks: Vec::new(),
            free_masks: Vec::new(),
            mask_index: HashMap::new(),
            union: Mask::EMPTY,
            union_map: 0,
            actions: HashMap::new(),
            no_actions: Arc::new([]),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    /// Indices that have ever been in use.
    pub(crate) fn capacity(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Everything that any flow looks at. Packets that agree in it hit the same flow.
    #[inline]
    pub(crate) fn union(&self) -> (&Mask, u64) {
        (&self.union, self.union_map)
    }

    pub(crate) fn mask_count(&self) -> usize {
        self.mask_index.len()
    }

    #[inline]
    pub(crate) fn mask(&self, index: u32) -> &SharedMask {
        &self.masks[self.rows[index as usize].mask as usize]
    }

    /// Fetches what [`Store::matches`] reads first.
    #[inline]
    pub(crate) fn prefetch_row(&self, index: u32) {
        prefetch(&self.rows, index as usize);
    }

    /// Fetches what a hit reads and changes.
    #[inline]
    pub(crate) fn prefetch_hot(&self, index: u32) {
        prefetch(&self.hot, index as usize);
    }

    /// Fetches what is done with a packet of the flow, if there is one.
    #[inline]
    pub(crate) fn prefetch_actions(&self, index: u32) {
        if let Some(hot) = self.hot.get(index as usize) {
            prefetch(&hot.actions, 0);
        }
    }

    /// Whether the flow is of this epoch and the packet matches it.
    #[inline]
    pub(crate) fn matches(&self, index: u32, packet: &Miniflow, epoch: u32) -> bool {
        let index = index as usize;
        let row = &self.rows[index];
        if row.epoch != epoch {
            return false;
        }
        let mask = &self.masks[row.mask as usize];
        let words = &packet.key.words;
        let mut difference = 0;
        for (i, value) in row.narrow.iter().enumerate() {
            difference |= words[i] & mask.mask.words[i] ^ value;
        }
        difference == 0 && (mask.map >> NARROW == 0 || self.matches_beyond(index, mask, words))
    }

    fn matches_beyond(&self, index: usize, mask: &SharedMask, words: &[u64; WORDS]) -> bool {
        let agrees = |i: usize, value: u64| words[i] & mask.mask.words[i] == value;
        self.wide[index].iter().enumerate().all(|(i, value)| agrees(NARROW + i, *value))
            && bits(mask.map >> WIDE << WIDE).zip(&self.rest[index]).all(|(i, value)| agrees(i, *value))
    }

    /// The key of the flow, 0 where its mask does not look.
    pub(crate) fn key(&self, index: u32) -> Key {
        let index = index as usize;
        let mut key = Key::EMPTY;
        key.words[..NARROW].copy_from_slice(&self.rows[index].narrow);
        key.words[NARROW..WIDE].copy_from_slice(&self.wide[index]);
        let map = self.masks[self.rows[index].mask as usize].map;
        bits(map >> WIDE << WIDE).zip(&self.rest[index]).for_each(|(i, value)| key.words[i] = *value);
        key
    }

    pub(crate) fn is_live(&self, index: u32) -> bool {
        self.rows.get(index as usize).is_some_and(|row| row.epoch != DEAD)
    }

    pub(crate) fn epoch(&self, index: u32) -> u32 {
        self.rows[index as usize].epoch
    }

    #[inline]
    pub(crate) fn id(&self, index: u32) -> FlowId {
        FlowId { index, generation: self.hot[index as usize].generation }
    }

    /// The index, if the flow is still there.
    #[inline]
    pub(crate) fn index(&self, id: FlowId) -> Option<u32> {
        // Removal changes the generation.
        self.hot.get(id.index as usize).filter(|hot| hot.generation == id.generation).map(|_| id.index)
    }

    #[inline]
    pub(crate) fn generation(&self, index: u32) -> u32 {
        self.hot[index as usize].generation
    }

    pub(crate) fn ufid(&self, index: u32) -> u128 {
        self.ufids[index as usize]
    }

    pub(crate) fn stats(&self, index: u32) -> &Stats {
        &self.hot[index as usize].stats
    }

    #[inline]
    pub(crate) fn record(&mut self, index: u32, packets: u64, bytes: u64, tcp_flags: u16, now: Cycles) {
        let stats = &mut self.hot[index as usize].stats;
        stats.packets += packets;
        stats.bytes += bytes;
        stats.used = now;
        stats.tcp_flags |= tcp_flags;
    }

    /// Whether nothing has hit the flow for `idle`. One that was never hit is idle from the first such question on.
    pub(crate) fn is_idle(&mut self, index: u32, now: Cycles, idle: Cycles) -> bool {
        let hot = &mut self.hot[index as usize];
        if hot.unused_since == Cycles(0) {
            hot.unused_since = now;
        }
        let since = if hot.stats.used == Cycles(0) { hot.unused_since } else { hot.stats.used };
        now.since(since) > idle
    }

    #[inline]
    pub(crate) fn actions(&self, index: u32) -> &Arc<[Action]> {
        &self.hot[index as usize].actions
    }

    pub(crate) fn renew(&mut self, index: u32, epoch: u32, actions: Arc<[Action]>) {
        let actions = self.share_actions(actions);
        self.rows[index as usize].epoch = epoch;
        let before = std::mem::replace(&mut self.hot[index as usize].actions, actions);
        self.unshare_actions(&before);
    }

    /// Takes a flow in; `key` is masked already.
    pub(crate) fn insert(&mut self, key: &Key, mask: &Mask, new: NewFlow) -> u32 {
        let mask_index = self.share(mask);
        let map = self.masks[mask_index as usize].map;
        let row = Row { mask: mask_index, epoch: new.epoch, narrow: std::array::from_fn(|i| key.words[i]) };
        let wide = std::array::from_fn(|i| key.words[NARROW + i]);
        let rest = bits(map >> WIDE << WIDE).map(|i| key.words[i]).collect();
        let actions = self.share_actions(new.actions);
        if let Some(index) = self.free.pop() {
            let at = index as usize;
            let generation = self.hot[at].generation;
            self.hot[at] = Hot { stats: new.stats, generation, unused_since: Cycles(0), actions };
            self.rows[at] = row;
            self.wide[at] = wide;
            self.rest[at] = rest;
            self.ufids[at] = new.ufid;
            return index;
        }
        self.rows.push(row);
        self.wide.push(wide);
        self.rest.push(rest);
        self.ufids.push(new.ufid);
        self.hot.push(Hot { stats: new.stats, generation: 0, unused_since: Cycles(0), actions });
        self.rows.len() as u32 - 1
    }

    pub(crate) fn remove(&mut self, index: u32) {
        let at = index as usize;
        let mask = std::mem::replace(&mut self.rows[at].mask, 0);
        self.rows[at].epoch = DEAD;
        self.rest[at] = Box::default();
        self.hot[at].generation = self.hot[at].generation.wrapping_add(1);
        let actions = std::mem::replace(&mut self.hot[at].actions, self.no_actions.clone());
        self.unshare_actions(&actions);
        self.free.push(index);
        self.unshare(mask);
    }

    /// The one list that is equal to this one, for one flow more.
    fn share_actions(&mut self, actions: Arc<[Action]>) -> Arc<[Action]> {
        let entry = self.actions.entry(actions);
        let shared = entry.key().clone();
        *entry.or_insert(0) += 1;
        shared
    }

    fn unshare_actions(&mut self, actions: &[Action]) {
        let Some(flows) = self.actions.get_mut(actions) else { return };
        *flows -= 1;
        if *flows == 0 {
            self.actions.remove(actions);
        }
    }

    fn share(&mut self, mask: &Mask) -> u32 {
        if let Some(index) = self.mask_index.get(mask) {
            self.masks[*index as usize].flows += 1;
            return *index;
        }
        let shared = SharedMask { mask: *mask, map: mask.bitmap(), flows: 1 };
        let index = match self.free_masks.pop() {
            Some(index) => {
                self.masks[index as usize] = shared;
                index
            }
            None => {
                self.masks.push(shared);
                self.masks.len() as u32 - 1
            }
        };
        self.mask_index.insert(*mask, index);
        self.union = self.union.union(mask);
        self.union_map = self.union.bitmap();
        index
    }

    fn unshare(&mut self, index: u32) {
        let shared = &mut self.masks[index as usize];
        shared.flows -= 1;
        if shared.flows > 0 {
            return;
        }
        self.mask_index.remove(&shared.mask);
        self.free_masks.push(index);
        let in_use = self.mask_index.keys();
        self.union = in_use.fold(Mask::EMPTY, |union, mask| union.union(mask));
        self.union_map = self.union.bitmap();
    }
}

/// A vector that is read at random.
fn table<T>(capacity: usize) -> Vec<T> {
    let mut table = Vec::with_capacity(capacity);
    prefer_huge_pages(table.spare_capacity_mut());
    table
}

/// What comes with a flow besides key and mask.
pub(crate) struct NewFlow {
    pub(crate) epoch: u32,
    pub(crate) ufid: u128,
    pub(crate) stats: Stats,
    pub(crate) actions: Arc<[Action]>,
}

/// The numbers of the bits that are set.
pub(crate) fn bits(mut map: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (map != 0).then(|| {
            let bit = map.trailing_zeros() as usize;
            map &= map - 1;
            bit
        })
    })
}

/// The same match in its shortest form: an Ethernet packet's type within its name space is always 0, so it need not be looked at.
pub(crate) fn normalize(key: &Key, mask: &Mask) -> (Key, Mask) {
    let mut mask = *mask;
    if is_ethernet(key, &mask) && key.get(field::PACKET_TYPE_ID) & mask.get(field::PACKET_TYPE_ID) == 0 {
        mask.0.set(field::PACKET_TYPE_ID, 0);
    }
    (key.masked(&mask), mask)
}

/// The form in which a match is shown: undoes [`normalize`].
pub(crate) fn expand(key: &Key, mask: &Mask) -> Mask {
    let mut mask = *mask;
    if is_ethernet(key, &mask) {
        mask.set_exact(field::PACKET_TYPE_ID);
    }
    mask
}

fn is_ethernet(key: &Key, mask: &Mask) -> bool {
    mask.get(field::PACKET_TYPE_NS) == field::PACKET_TYPE_NS.max() && key.get(field::PACKET_TYPE_NS) == 0
}
