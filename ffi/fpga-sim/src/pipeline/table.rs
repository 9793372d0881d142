//! Rules by what they have in common: one hash table for each mask in a group of a domain. The best of the rules that match
//! is the one of lowest priority number, and of those the oldest.

use super::Domain;
use super::index::Index;
use super::key::{Key, Pattern};
use super::rule::Entry;
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
    pub rules: Index,
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

    /// Forgets a format without holders and without rules.
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

    /// The best rule for a packet; `rule` knows all by number.
    pub(super) fn lookup<'a>(
        &self,
        domain: Domain,
        group: u32,
        key: &Key,
        rule: impl Fn(RuleId) -> Option<&'a Entry> + Copy,
    ) -> Option<RuleId> {
        let formats = self.groups.get(&(domain, group))?;
        let best = formats.iter().filter_map(|&id| self.get(id)?.lookup(key, rule)).min();
        best.map(|(_, id)| id)
    }
}

impl Format {
    fn new(group: (Domain, u32), pattern: &Pattern) -> Format {
        let mask = *pattern.mask();
        let words = (0..Key::WORDS).filter(|&at| mask.word(at) != 0).collect();
        let (whole, rules) = (pattern.is_whole(), Index::new());
        Format { group, mask, words, whole, exact: 0, holders: 0, rules }
    }

    /// The hash of a rule's value, or of what the mask leaves of a packet.
    pub(super) fn hash(&self, key: &Key) -> u64 {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let fold =
            |hash: u64, &at: &usize| (hash.rotate_left(5) ^ key.word(at) & self.mask.word(at)).wrapping_mul(MULTIPLIER);
        self.words.iter().fold(0, fold)
    }

    fn matches(&self, value: &Key, key: &Key) -> bool {
        self.words.iter().all(|&at| value.word(at) == key.word(at) & self.mask.word(at))
    }

    fn lookup<'a>(&self, key: &Key, rule: impl Fn(RuleId) -> Option<&'a Entry> + Copy) -> Option<(u32, RuleId)> {
        let rules = self.rules.find(self.hash(key)).filter_map(|id| Some((rule(id)?, id)));
        let matching = rules.filter(|(rule, _)| self.matches(&rule.value, key));
        matching.map(|(rule, id)| (rule.template.priority, id)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::RuleTemplate;
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

    const GROUP: (Domain, u32) = (Domain::Transfer, 3);

    fn forget(formats: &mut Formats, id: RuleId, pattern: &Pattern) {
        let format = formats.hold(GROUP.0, GROUP.1, pattern);
        let hash = formats.get(format).unwrap().hash(pattern.value());
        formats.get_mut(format).unwrap().rules.remove(hash, id);
        formats.release(format);
    }

    proptest! {
        /// The formats find what a walk over all rules finds, and none is left when no rule is.
        #[test]
        fn lookup_equals_a_linear_search(steps in steps()) {
            let mut formats = Formats::default();
            let mut rules: HashMap<RuleId, (Box<Entry>, Pattern)> = HashMap::new();
            for (step, id) in steps.iter().zip(1..) {
                match *step {
                    Step::Insert { mask, value, priority } => {
                        let pattern = pattern(value, mask);
                        let format = formats.hold(GROUP.0, GROUP.1, &pattern);
                        let hash = formats.get(format).unwrap().hash(pattern.value());
                        formats.get_mut(format).unwrap().rules.insert(hash, id);
                        formats.release(format);
                        let template = RuleTemplate { owner: 0, table: None, format, priority };
                        rules.insert(id, (template.fill(*pattern.value(), [].into(), false, None), pattern));
                    }
                    Step::Remove(index) if !rules.is_empty() => {
                        let id = *rules.keys().nth(index % rules.len()).unwrap();
                        let (_, pattern) = rules.remove(&id).unwrap();
                        forget(&mut formats, id, &pattern);
                    }
                    Step::Remove(_) => {}
                    Step::Lookup(packet) => {
                        let mut key = Key::default();
                        key.set(Layer::Outer, field::IPV4_SRC, &packet);
                        let matching = rules.iter().filter(|(_, (_, pattern))| key.masked(pattern.mask()) == *pattern.value());
                        let best = matching.map(|(&id, (rule, _))| (rule.template.priority, id)).min().map(|(_, id)| id);
                        let rule = |id| rules.get(&id).map(|(rule, _)| rule.as_ref());
                        prop_assert_eq!(formats.lookup(GROUP.0, GROUP.1, &key, rule), best);
                        prop_assert_eq!(formats.lookup(GROUP.0, 0, &key, rule), None);
                    }
                }
            }
            rules.iter().for_each(|(&id, (_, pattern))| forget(&mut formats, id, pattern));
            prop_assert!(formats.by_mask.is_empty() && formats.groups.is_empty());
        }
    }
}
