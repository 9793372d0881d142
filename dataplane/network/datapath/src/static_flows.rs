//! Flows of operators, by mask: a packet's flow is one look-up a mask.

use flow::{Key, Mask, Megaflow};
use std::collections::HashMap;

/// Flows that no packet matches two of.
#[derive(Debug, Default)]
pub(crate) struct OperatorFlows {
    flows: HashMap<u128, Megaflow>,
    /// The names of the flows of a mask, by key.
    masks: HashMap<Mask, HashMap<Key, u128>>,
}

impl OperatorFlows {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn contains(&self, ufid: u128) -> bool {
        self.flows.contains_key(&ufid)
    }

    /// `flow` overlaps no other, or replaces one of its key and mask.
    pub(crate) fn insert(&mut self, flow: Megaflow) {
        self.masks.entry(flow.mask).or_default().insert(flow.key, flow.ufid);
        self.flows.insert(flow.ufid, flow);
    }

    pub(crate) fn remove(&mut self, ufid: u128) -> Option<Megaflow> {
        let flow = self.flows.remove(&ufid)?;
        if let Some(flows) = self.masks.get_mut(&flow.mask) {
            flows.remove(&flow.key);
            if flows.is_empty() {
                self.masks.remove(&flow.mask);
            }
        }
        Some(flow)
    }

    /// The flow that a packet matches.
    pub(crate) fn of_packet(&self, packet: &Key) -> Option<&Megaflow> {
        let ufid = self.masks.iter().find_map(|(mask, flows)| flows.get(&packet.masked(mask)))?;
        self.flows.get(ufid)
    }

    /// The flows that some packet matches which agrees with `key` where `mask` looks.
    pub(crate) fn overlapping(&self, key: &Key, mask: &Mask) -> impl Iterator<Item = &Megaflow> {
        let of_mask = move |(other, flows): (&Mask, &HashMap<Key, u128>)| {
            let both = other.intersection(mask);
            let (one, many) = if both == *other {
                (flows.get(&key.masked(other)).copied(), Vec::new())
            } else {
                let agrees = |(other, ufid): (&Key, &u128)| other.matches(key, &both).then_some(*ufid);
                (None, flows.iter().filter_map(agrees).collect())
            };
            one.into_iter().chain(many)
        };
        self.masks.iter().flat_map(of_mask).filter_map(|ufid| self.flows.get(&ufid))
    }
}
