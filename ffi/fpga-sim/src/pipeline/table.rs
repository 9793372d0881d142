//! A match table: rules by mask, then by value. The best is the one of lowest priority number, and of those the oldest.

use super::key::{Key, Pattern};
use std::collections::HashMap;

/// A rule's number; later ones are greater.
pub type RuleId = u64;

/// Rules of one group.
#[derive(Default)]
pub struct Table {
    tuples: Vec<Tuple>,
}

/// The rules that have one mask.
struct Tuple {
    mask: Key,
    rules: HashMap<Key, Vec<(u32, RuleId)>>,
}

impl Table {
    /// Whether a rule is there with this pattern and priority.
    pub fn contains(&self, pattern: &Pattern, priority: u32) -> bool {
        let same_value = |tuple: &Tuple| tuple.rules.get(pattern.value()).is_some_and(|rules| has(rules, priority));
        self.tuple(pattern.mask()).is_some_and(same_value)
    }

    /// Whether a rule is there with this mask.
    pub fn has_mask(&self, mask: &Key) -> bool {
        self.tuple(mask).is_some()
    }

    fn tuple(&self, mask: &Key) -> Option<&Tuple> {
        self.tuples.iter().find(|tuple| tuple.mask == *mask)
    }

    /// Puts a rule in.
    pub fn insert(&mut self, pattern: &Pattern, priority: u32, id: RuleId) {
        let at = self.tuples.iter().position(|tuple| tuple.mask == *pattern.mask()).unwrap_or_else(|| {
            self.tuples.push(Tuple { mask: *pattern.mask(), rules: HashMap::new() });
            self.tuples.len() - 1
        });
        self.tuples[at].rules.entry(*pattern.value()).or_default().push((priority, id));
    }

    /// Takes a rule out.
    pub fn remove(&mut self, pattern: &Pattern, id: RuleId) {
        let Some(at) = self.tuples.iter().position(|tuple| tuple.mask == *pattern.mask()) else { return };
        let tuple = &mut self.tuples[at];
        if let Some(rules) = tuple.rules.get_mut(pattern.value()) {
            rules.retain(|&(_, other)| other != id);
            if rules.is_empty() {
                tuple.rules.remove(pattern.value());
            }
        }
        if tuple.rules.is_empty() {
            self.tuples.swap_remove(at);
        }
    }

    /// The best rule for a packet, with its priority.
    pub fn lookup(&self, key: &Key) -> Option<(u32, RuleId)> {
        self.tuples.iter().filter_map(|tuple| tuple.rules.get(&key.masked(&tuple.mask))?.iter().min().copied()).min()
    }
}

fn has(rules: &[(u32, RuleId)], priority: u32) -> bool {
    rules.iter().any(|&(other, _)| other == priority)
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
        /// The table finds what a walk over all rules finds.
        #[test]
        fn lookup_is_that_of_a_linear_walk(steps in steps()) {
            let mut table = Table::default();
            let mut rules: Vec<(u32, RuleId, [u8; 4], [u8; 4])> = Vec::new();
            for (step, id) in steps.iter().zip(1..) {
                match *step {
                    Step::Insert { mask, value, priority } => {
                        table.insert(&pattern(value, mask), priority, id);
                        rules.push((priority, id, value, mask));
                    }
                    Step::Remove(index) if !rules.is_empty() => {
                        let (_, id, value, mask) = rules.remove(index % rules.len());
                        table.remove(&pattern(value, mask), id);
                    }
                    Step::Remove(_) => {}
                    Step::Lookup(packet) => {
                        let mut key = Key::default();
                        key.set(Layer::Outer, field::IPV4_SRC, &packet);
                        let matches = |value: &[u8; 4], mask: &[u8; 4]| (0..4).all(|i| (packet[i] ^ value[i]) & mask[i] == 0);
                        let best = rules.iter().filter(|(_, _, value, mask)| matches(value, mask)).map(|rule| (rule.0, rule.1)).min();
                        prop_assert_eq!(table.lookup(&key), best);
                    }
                }
            }
            prop_assert!(rules.iter().all(|&(priority, _, value, mask)| table.contains(&pattern(value, mask), priority)));
        }
    }
}
