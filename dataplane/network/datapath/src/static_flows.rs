//! Static flows: datapath flows that an operator installs. They take precedence over the pipeline behind them.

use crate::megaflows::{Record, Translation};
use crate::pipeline::{Actions, Dependencies, Dependency, Learn, Pipeline, Tracked};
use crate::state::DatapathState;
use crate::worker::Message;
use crate::{PortNo, SwitchError, limits};
use clock::Cycles;
use engine::WorkerSet;
use flow::text::FlowMatch;
use flow::{Action, DropReason, Key, Mask, Megaflow, Stats, field};
use std::collections::HashMap;
use std::time::Instant;

/// A pipeline with static flows before it. No packet matches two flows: static flows do not overlap, and the megaflows of the
/// pipeline match on what tells them apart from static flows.
#[derive(Debug, Default)]
pub struct StaticFlows<P> {
    flows: StaticFlowTable,
    /// The pipeline for packets that no static flow takes.
    pub pipeline: P,
}

impl<P> StaticFlows<P> {
    /// Puts an empty table of static flows before a pipeline.
    pub fn new(pipeline: P) -> StaticFlows<P> {
        StaticFlows { flows: StaticFlowTable::default(), pipeline }
    }

    /// The number of static flows.
    pub fn len(&self) -> usize {
        self.flows.flows.len()
    }

    /// Whether there is no static flow.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<P: Pipeline> Pipeline for StaticFlows<P> {
    fn translate(
        &mut self,
        packet: &mut Tracked<'_>,
        dependencies: &mut Dependencies,
        mode: Learn,
    ) -> Result<Actions, DropReason> {
        let key = packet.key();
        if let Some(flow) = self.flows.of_packet(key) {
            packet.look_at(&flow.mask);
            dependencies.add(Dependency::StaticFlow(flow.ufid));
            return Ok(flow.actions.clone());
        }
        let decided = self.pipeline.translate(packet, dependencies, mode);
        // No packet of this megaflow may match a static flow: it matches on what tells them apart.
        let read = packet.mask();
        self.flows.overlapping(key, &read).for_each(|flow| packet.look_at(&flow.mask));
        decided
    }

    fn refresh(&mut self, dependencies: &Dependencies, in_port: PortNo, now: Instant) {
        self.pipeline.refresh(dependencies, in_port, now);
    }

    fn expire(&mut self, now: Instant) {
        self.pipeline.expire(now);
    }

    fn has_learned(&self) -> bool {
        self.pipeline.has_learned()
    }

    fn take_changes(&mut self) -> Vec<Dependency> {
        self.pipeline.take_changes()
    }

    fn bridge_of(&self, port: PortNo) -> Option<&str> {
        self.pipeline.bridge_of(port)
    }
}

impl<P: Pipeline> DatapathState<StaticFlows<P>> {
    /// Installs a static flow on all workers, or gives the one with this key and mask other actions.
    pub fn add_flow(&mut self, key: &Key, mask: &Mask, actions: Vec<Action>) -> Result<(), SwitchError> {
        let key = key.masked(mask);
        let ufid = self.flows.ufid(&key, mask);
        let flow = Megaflow { ufid, ..Megaflow::new(key, *mask, actions) };
        let table = &mut self.pipeline.flows;
        let is_new = !table.flows.contains_key(&ufid);
        if is_new {
            if let Some(other) = table.overlapping(&key, mask).next() {
                return Err(SwitchError::Overlaps(Box::new(FlowMatch { key: other.key, mask: other.mask })));
            }
            if table.flows.len() >= limits::STATIC_FLOWS {
                return Err(SwitchError::Limit { what: "flows", limit: limits::STATIC_FLOWS });
            }
        }
        // Megaflows for such packets are removed first, so that no packet ever matches two flows.
        let has_others = self.flows.len() > self.pipeline.len();
        if has_others || !is_new {
            for overlapping in self.flows.matching(|record| record.overlaps(&key, mask)) {
                self.remove_flow(overlapping);
            }
        }
        self.pipeline.flows.insert(flow.clone());
        let mut dependencies = Dependencies::default();
        dependencies.add(Dependency::StaticFlow(ufid));
        let record = Record {
            packet: Box::new(key),
            port: key.get(field::IN_PORT) as PortNo,
            translation: Translation { mask: *mask, actions: flow.actions.clone(), dependencies, drop: None },
            workers: WorkerSet::ALL,
            stats: Stats::default(),
            installed: Cycles::now(),
            offload: None,
            marked: false,
        };
        self.flows.insert(ufid, record);
        self.send_to_all(|| Message::Install(flow.clone()));
        Ok(())
    }

    /// Removes a static flow, and returns it.
    pub fn delete_flow(&mut self, key: &Key, mask: &Mask) -> Result<Megaflow, SwitchError> {
        let key = key.masked(mask);
        let ufid = self.flows.ufid(&key, mask);
        let flow = self.pipeline.flows.remove(ufid);
        let flow = flow.ok_or_else(|| SwitchError::NoSuch { kind: "flow", name: "of this match".to_owned() })?;
        let narrowed = self.flows.depending_on(&Dependency::StaticFlow(ufid));
        narrowed.into_iter().chain([ufid]).for_each(|gone| self.remove_flow(gone));
        Ok(flow)
    }
}

/// The static flows, by mask: finding a packet's flow takes one look-up a mask. No packet matches two of them.
#[derive(Debug, Default)]
struct StaticFlowTable {
    flows: HashMap<u128, Megaflow>,
    /// The ufids of the flows of a mask, by key.
    masks: HashMap<Mask, HashMap<Key, u128>>,
}

impl StaticFlowTable {
    /// Inserts a flow that overlaps no other, or that has the key and mask of one.
    fn insert(&mut self, flow: Megaflow) {
        self.masks.entry(flow.mask).or_default().insert(flow.key, flow.ufid);
        self.flows.insert(flow.ufid, flow);
    }

    fn remove(&mut self, ufid: u128) -> Option<Megaflow> {
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
    fn of_packet(&self, packet: &Key) -> Option<&Megaflow> {
        let ufid = self.masks.iter().find_map(|(mask, flows)| flows.get(&packet.masked(mask)))?;
        self.flows.get(ufid)
    }

    /// The flows that some packet matches which agrees with `key` where `mask` looks.
    fn overlapping(&self, key: &Key, mask: &Mask) -> impl Iterator<Item = &Megaflow> {
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
