//! Rules by number. Numbers follow each other, so rules that come together lie together.

use super::rule::Entry;
use super::table::RuleId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Rules that lie together.
const CHUNK: u64 = 512;

/// The rules of the device.
#[derive(Default)]
pub(super) struct Store {
    chunks: HashMap<u64, Chunk, BuildHasherDefault<NumberHasher>>,
}

struct Chunk {
    used: usize,
    entries: Box<[Option<Box<Entry>>]>,
}

#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(self.0 << 8 | u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

impl Store {
    pub(super) fn get(&self, id: RuleId) -> Option<&Entry> {
        self.chunks.get(&(id / CHUNK))?.entries[(id % CHUNK) as usize].as_deref()
    }

    pub(super) fn get_mut(&mut self, id: RuleId) -> Option<&mut Entry> {
        self.chunks.get_mut(&(id / CHUNK))?.entries[(id % CHUNK) as usize].as_deref_mut()
    }

    /// Puts a rule in under a number that is not in use.
    pub(super) fn insert(&mut self, id: RuleId, entry: Box<Entry>) {
        let empty = || Chunk { used: 0, entries: std::iter::repeat_with(|| None).take(CHUNK as usize).collect() };
        let chunk = self.chunks.entry(id / CHUNK).or_insert_with(empty);
        chunk.used += 1;
        chunk.entries[(id % CHUNK) as usize] = Some(entry);
    }

    pub(super) fn remove(&mut self, id: RuleId) -> Option<Box<Entry>> {
        let chunk = self.chunks.get_mut(&(id / CHUNK))?;
        let entry = chunk.entries[(id % CHUNK) as usize].take()?;
        chunk.used -= 1;
        if chunk.used == 0 {
            self.chunks.remove(&(id / CHUNK));
        }
        Some(entry)
    }

    /// The numbers of the rules that a condition is true of.
    pub(super) fn ids(&self, which: impl Fn(&Entry) -> bool) -> Vec<RuleId> {
        let rules = self.chunks.iter().flat_map(|(&chunk, Chunk { entries, .. })| {
            entries.iter().zip(chunk * CHUNK..).filter_map(|(entry, id)| Some((id, entry.as_deref()?)))
        });
        rules.filter(|(_, entry)| which(entry)).map(|(id, _)| id).collect()
    }
}
