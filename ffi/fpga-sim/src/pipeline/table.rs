//! Rules by what they have in common: one hash table for each mask in a group of a domain. The best of the rules that match
//! is the one of lowest priority number, and of those the oldest.

use super::Domain;
use super::key::{Key, Pattern};
use hashbrown::HashTable;
use std::collections::HashMap;

/// A rule's number; later ones are greater.
pub type RuleId = u64;

/// Where a format is among the others.
pub(super) type FormatId = u32;

/// The formats of the device.
#[derive(Default)]
pub(super) struct Formats {
    slots: Vec<Option<Format>>,
    by_mask: HashMap<(Domain, u32, Key), FormatId>,
    groups: HashMap<(Domain, u32), Vec<FormatId>>,
}

/// The rules of one group that have one mask.
pub(super) struct Format {
    group: (Domain, u32),
    mask: Key,
    /// The words of a key that the mask leaves something of.
    words: Vec<usize>,
    /// Whether every field is wanted whole or not at all.
    pub whole: bool,
    /// Rules of it that are in the exact-match table.
    pub exact: usize,
    holders: usize,
    rules: HashTable<Place>,
}

struct Place {
    hash: u64,
    priority: u32,
    id: RuleId,
}

impl Formats {
    /// The format of such rules, if it is there.
    pub(super) fn find(&self, domain: Domain, group: u32, pattern: &Pattern) -> Option<&Format> {
        self.get(*self.by_mask.get(&(domain, group, *pattern.mask()))?)
    }

    pub(super) fn get(&self, id: FormatId) -> Option<&Format> {
        self.slots.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: FormatId) -> Option<&mut Format> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    /// The format of such rules, which stays until it is released, and as long as it has rules.
    pub(super) fn hold(&mut self, domain: Domain, group: u32, pattern: &Pattern) -> FormatId {
        let id = *self.by_mask.entry((domain, group, *pattern.mask())).or_insert_with(|| {
            let id = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            });
            self.slots[id] = Some(Format::new((domain, group), pattern));
            self.groups.entry((domain, group)).or_default().push(id as FormatId);
            id as FormatId
        });
        if let Some(format) = self.get_mut(id) {
            format.holders += 1;
        }
        id
    }

    /// The opposite of [`hold`](Self::hold).
    pub(super) fn release(&mut self, id: FormatId) {
        if let Some(format) = self.get_mut(id) {
            format.holders -= 1;
        }
        self.tidy(id);
    }

    /// Forgets a format that nobody holds and no rule has.
    pub(super) fn tidy(&mut self, id: FormatId) {
        let Some(place) = self.slots.get_mut(id as usize) else { return };
        let Some(format) = place.take_if(|format| format.holders == 0 && format.rules.is_empty()) else { return };
        let (domain, group) = format.group;
        self.by_mask.remove(&(domain, group, format.mask));
        if let Some(formats) = self.groups.get_mut(&format.group) {
            formats.retain(|&other| other != id);
            if formats.is_empty() {
                self.groups.remove(&format.group);
            }
        }
    }

    /// Whether there are rules, or tables for them, in a group.
    pub(super) fn has_group(&self, domain: Domain, group: u32) -> bool {
        self.groups.contains_key(&(domain, group))
    }

    /// The best rule for a packet.
    pub(super) fn lookup<'a>(
        &self,
        domain: Domain,
        group: u32,
        key: &Key,
        value: impl Fn(RuleId) -> Option<&'a Key> + Copy,
    ) -> Option<RuleId> {
        let formats = self.groups.get(&(domain, group))?;
        let best = formats.iter().filter_map(|&id| self.get(id)?.lookup(key, value)).min();
        best.map(|(_, id)| id)
    }
}

impl Format {
    fn new(group: (Domain, u32), pattern: &Pattern) -> Format {
        let mask = *pattern.mask();
        let words = (0..Key::WORDS).filter(|&at| mask.word(at) != 0).collect();
        let (whole, rules) = (pattern.is_whole(), HashTable::new());
        Format { group, mask, words, whole, exact: 0, holders: 0, rules }
    }

    fn hash(&self, key: &Key) -> u64 {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let fold =
            |hash: u64, &at: &usize| (hash.rotate_left(5) ^ key.word(at) & self.mask.word(at)).wrapping_mul(MULTIPLIER);
        let hash = self.words.iter().fold(0, fold);
        // The low bits of a product know the low bits of its factors alone.
        hash ^ hash >> 32
    }

    fn matches(&self, value: &Key, key: &Key) -> bool {
        self.words.iter().all(|&at| value.word(at) == key.word(at) & self.mask.word(at))
    }

    /// Whether a rule is there with this value and priority; `value` knows those of rules.
    pub(super) fn contains<'a>(
        &self,
        wanted: &Key,
        priority: u32,
        value: impl Fn(RuleId) -> Option<&'a Key> + Copy,
    ) -> bool {
        let hash = self.hash(wanted);
        let same = |place: &Place| {
            place.hash == hash && place.priority == priority && value(place.id).is_some_and(|value| value == wanted)
        };
        self.rules.find(hash, same).is_some()
    }

    pub(super) fn insert(&mut self, value: &Key, priority: u32, id: RuleId) {
        let hash = self.hash(value);
        self.rules.insert_unique(hash, Place { hash, priority, id }, |place| place.hash);
    }

    pub(super) fn remove(&mut self, value: &Key, id: RuleId) {
        let hash = self.hash(value);
        if let Ok(place) = self.rules.find_entry(hash, |place| place.id == id) {
            place.remove();
        }
    }

    fn lookup<'a>(&self, key: &Key, value: impl Fn(RuleId) -> Option<&'a Key> + Copy) -> Option<(u32, RuleId)> {
        let hash = self.hash(key);
        let matching = self
            .rules
            .iter_hash(hash)
            .filter(|place| place.hash == hash && value(place.id).is_some_and(|value| self.matches(value, key)));
        matching.map(|place| (place.priority, place.id)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::key::{Layer, field};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert { mask: [u8; 4], value: [u8; 4], priority: u32 },
        Remove(usize),
        Lookup([u8; 4]),
    }

    /// Few values, so that rules overlap and packets match.
    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let mask = prop::array::uniform4(prop::sample::select(vec![0u8, 1, 3, 0xff]));
        let value = || prop::array::uniform4(0u8..4);
        let insert =
            (mask, value(), 0u32..3).prop_map(|(mask, value, priority)| Step::Insert { mask, value, priority });
        let step =
            prop_oneof![3 => insert, 1 => any::<usize>().prop_map(Step::Remove), 4 => value().prop_map(Step::Lookup)];
        prop::collection::vec(step, 1..200)
    }

    fn pattern(value: [u8; 4], mask: [u8; 4]) -> Pattern {
        let mut pattern = Pattern::default();
        pattern.want(Layer::Outer, field::IPV4_SRC, &value, &mask);
        pattern
    }

    proptest! {
        /// The formats find what a walk over all rules finds, and none is left when no rule is.
        #[test]
        fn lookup_is_that_of_a_linear_walk(steps in steps()) {
            const GROUP: (Domain, u32) = (Domain::Transfer, 3);
            let mut formats = Formats::default();
            let mut rules: HashMap<RuleId, (u32, Pattern)> = HashMap::new();
            for (step, id) in steps.iter().zip(1..) {
                match *step {
                    Step::Insert { mask, value, priority } => {
                        let pattern = pattern(value, mask);
                        let format = formats.hold(GROUP.0, GROUP.1, &pattern);
                        formats.get_mut(format).unwrap().insert(pattern.value(), priority, id);
                        formats.release(format);
                        rules.insert(id, (priority, pattern));
                    }
                    Step::Remove(index) if !rules.is_empty() => {
                        let id = *rules.keys().nth(index % rules.len()).unwrap();
                        let (_, pattern) = rules.remove(&id).unwrap();
                        let format = formats.hold(GROUP.0, GROUP.1, &pattern);
                        formats.get_mut(format).unwrap().remove(pattern.value(), id);
                        formats.release(format);
                    }
                    Step::Remove(_) => {}
                    Step::Lookup(packet) => {
                        let mut key = Key::default();
                        key.set(Layer::Outer, field::IPV4_SRC, &packet);
                        let matching = rules.iter().filter(|(_, (_, pattern))| key.masked(pattern.mask()) == *pattern.value());
                        let best = matching.map(|(&id, &(priority, _))| (priority, id)).min().map(|(_, id)| id);
                        let value = |id| rules.get(&id).map(|(_, pattern)| pattern.value());
                        prop_assert_eq!(formats.lookup(GROUP.0, GROUP.1, &key, value), best);
                        prop_assert_eq!(formats.lookup(GROUP.0, 0, &key, value), None);
                    }
                }
            }
            for (id, (priority, pattern)) in &rules {
                let value = |id| rules.get(&id).map(|(_, pattern)| pattern.value());
                let format = formats.find(GROUP.0, GROUP.1, pattern).unwrap();
                prop_assert!(format.contains(pattern.value(), *priority, value));
                prop_assert!(!format.contains(pattern.value(), 9, value), "{}", id);
            }
            for (id, (_, pattern)) in &rules {
                let format = formats.hold(GROUP.0, GROUP.1, pattern);
                formats.get_mut(format).unwrap().remove(pattern.value(), *id);
                formats.release(format);
            }
            prop_assert!(formats.by_mask.is_empty() && formats.groups.is_empty());
        }
    }
}
