//! The control side of the datapath: ports, megaflows and meters. Answers upcalls, and revalidates megaflows when what they
//! rest on has changed.

use crate::limit::{Meter, RateLimit};
use crate::marks::Marks;
use crate::megaflows::{Megaflows, Record, Translation};
use crate::pipeline::{Dependencies, Learn, Pipeline, Tracked};
use crate::stats::{LoadCounters, PathCounters};
use crate::upcall::Upcall;
use crate::worker::{Message, UpcallReply};
use crate::{Offload, OffloadState, PortNo, limits};
use clock::Cycles;
use engine::{Sender, WorkerSet};
use flow::{DropReason, Key, Mask, Megaflow, Stats, field};
use port::Port;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

/// A port of the datapath.
pub(crate) struct PortState {
    pub(crate) name: String,
    pub(crate) port: Arc<dyn Port>,
    /// The limit of packets that come in by the port.
    pub(crate) limit: RateLimit,
    /// Whether a capture of the port runs.
    pub(crate) captured: bool,
    /// Whether hardware may forward flows from the port.
    pub(crate) has_hardware: bool,
    /// The counters of the port, one a worker.
    pub(crate) counters: Vec<Arc<PathCounters>>,
    /// The cost of the port, one a worker.
    pub(crate) loads: Vec<Arc<LoadCounters>>,
    /// Packets that flows dropped, by the pipeline's reason.
    pub(crate) drops: HashMap<DropReason, u64>,
}

/// The control side of a datapath whose packets `P` decides over. It is kept under one lock, which no worker takes.
pub struct DatapathState<P> {
    pub(crate) pipeline: P,
    pub(crate) ports: BTreeMap<PortNo, PortState>,
    pub(crate) flows: Megaflows,
    pub(crate) offload: Option<Arc<dyn Offload>>,
    pub(crate) marks: Arc<Marks>,
    meters: Vec<Option<Arc<Meter>>>,
    /// Each worker as a set, and its mailbox.
    workers: Vec<(WorkerSet, Sender<Message>)>,
    pub(crate) next_instance: u32,
}

impl<P: Pipeline> DatapathState<P> {
    pub(crate) fn new(pipeline: P, workers: Vec<(WorkerSet, Sender<Message>)>) -> DatapathState<P> {
        DatapathState {
            pipeline,
            ports: BTreeMap::new(),
            flows: Megaflows::default(),
            offload: None,
            marks: Arc::default(),
            meters: Vec::new(),
            workers,
            next_instance: 1,
        }
    }

    /// The pipeline.
    pub fn pipeline(&self) -> &P {
        &self.pipeline
    }

    /// The pipeline, to be changed. [`DatapathState::revalidate_changed`] must follow a change.
    pub fn pipeline_mut(&mut self) -> &mut P {
        &mut self.pipeline
    }

    /// Sends a message to workers.
    pub(crate) fn send_to(&self, workers: WorkerSet, message: impl Fn() -> Message) {
        for (_, worker) in self.workers.iter().filter(|(own, _)| !own.intersection(workers).is_empty()) {
            let _ = worker.send(message()); // a worker that has ended forwards nothing any more
        }
    }

    pub(crate) fn send_to_all(&self, message: impl Fn() -> Message) {
        self.send_to(WorkerSet::ALL, message);
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = &Sender<Message>> {
        self.workers.iter().map(|(_, sender)| sender)
    }

    /// Answers an upcall.
    pub(crate) fn answer(&mut self, upcall: &Upcall, now: Instant) {
        let mut translation = self.translate(&upcall.key, Learn::At(now));
        self.revalidate_changed();
        if upcall.narrow {
            translation.mask = translation.mask.union(&Mask::CONNECTION);
        }
        let key = upcall.key.masked(&translation.mask);
        let ufid = self.flows.ufid(&key, &translation.mask);
        let port = upcall.key.get(field::IN_PORT) as PortNo;
        let flow = Megaflow { ufid, ..Megaflow::new(key, translation.mask, translation.actions.clone()) };
        let (worker, sender) = self.workers[upcall.worker].clone();
        let known = self.flows.get(ufid).is_some();
        let room = self.flows.len() < limits::FLOWS && self.flows.count_of_port(port) < limits::FLOWS_PER_PORT;
        let install = (known || room) && self.ports.contains_key(&port);
        if install && !known {
            let record = Record {
                packet: Box::new(upcall.key),
                port,
                translation,
                workers: WorkerSet::EMPTY,
                stats: Stats::default(),
                installed: Cycles::now(),
                offload: None,
                marked: false,
            };
            self.flows.insert(ufid, record);
        }
        if let Some(record) = self.flows.get_mut(ufid).filter(|_| install) {
            record.workers = record.workers.union(worker);
            record.installed = Cycles::now();
        }
        let reply = UpcallReply { ticket: upcall.ticket, flow, install, narrow: upcall.narrow };
        let _ = sender.send(Message::CompleteUpcall(reply)); // a worker that has ended has dropped its packets
        self.send_mark(ufid, worker);
    }

    /// Decides over a packet.
    pub fn translate(&mut self, key: &Key, mode: Learn) -> Translation {
        let mut packet = Tracked::new(key);
        let mut dependencies = Dependencies::default();
        let (actions, drop) = match self.pipeline.translate(&mut packet, &mut dependencies, mode) {
            Ok(actions) => (actions, None),
            Err(reason) => (Arc::default(), Some(reason)),
        };
        Translation { mask: packet.mask(), actions, dependencies, drop }
    }

    /// Revalidates the megaflows that rest on what has changed in the pipeline.
    pub fn revalidate_changed(&mut self) {
        let changes = self.pipeline.take_changes();
        let concerned: HashSet<u128> = changes.iter().flat_map(|change| self.flows.depending_on(change)).collect();
        concerned.into_iter().for_each(|ufid| self.revalidate(ufid));
    }

    /// Decides over a flow again. The flow stays where only its actions change; else it is removed, and the next packet makes an
    /// upcall and is learned from.
    fn revalidate(&mut self, ufid: u128) {
        let Some(record) = self.flows.get(ufid) else { return };
        let packet = record.packet.clone();
        let now = self.translate(&packet, Learn::No);
        let Some(record) = self.flows.get_mut(ufid) else { return };
        let was = &record.translation;
        let same = now.mask == was.mask && now.dependencies.as_slice() == was.dependencies.as_slice();
        if !same || now.dependencies.source_unknown() {
            return self.remove_flow(ufid);
        }
        if now.actions != was.actions {
            record.translation = now;
            let (workers, flow) = (record.workers, record.megaflow(ufid));
            self.send_to(workers, || Message::Install(flow.clone()));
            self.offload_changed(ufid);
        }
    }

    /// Removes a flow from all caches.
    pub(crate) fn remove_flow(&mut self, ufid: u128) {
        let Some(record) = self.flows.remove(ufid) else { return };
        let (key, mask) = (record.key(), record.translation.mask);
        self.send_to(record.workers, || Message::Remove(key, mask));
        self.withdraw(ufid, &record);
    }

    /// Takes note of the statistics of flows: refreshes what the pipeline has learned, offers busy flows to hardware, and removes
    /// idle ones.
    pub(crate) fn apply_stats(&mut self, seen: &HashMap<u128, Stats>, now: Instant, cycles: Cycles) {
        let mut idle = Vec::new();
        let mut busy = Vec::new();
        let mut marked = Vec::new();
        for (ufid, stats) in seen {
            let Some(record) = self.flows.get_mut(*ufid) else { continue };
            let mut stats = *stats;
            let (mut state, mut removed) = (OffloadState::No, false);
            if let Some(offload) = &record.offload {
                stats.add(&offload.stats());
                state = offload.state();
                removed = offload.take_removed();
            }
            let packets = stats.packets.saturating_sub(record.stats.packets);
            record.stats = stats;
            if state == OffloadState::Partial && !std::mem::replace(&mut record.marked, true) {
                marked.push(*ufid);
            }
            let since = stats.used.max(record.installed);
            let may_age = state != OffloadState::Full && !record.translation.dependencies.is_static();
            if may_age && cycles.since(since) > limits::FLOW_IDLE.into() {
                idle.push(*ufid);
            }
            if removed || packets >= limits::OFFLOAD_PACKETS {
                busy.push((*ufid, packets));
            }
            if packets == 0 {
                continue;
            }
            if let (Some(reason), Some(port)) = (record.translation.drop, self.ports.get_mut(&record.port)) {
                *port.drops.entry(reason).or_default() += packets;
            }
            self.pipeline.refresh(&record.translation.dependencies, record.port, now);
        }
        idle.into_iter().for_each(|ufid| self.remove_flow(ufid));
        marked.into_iter().for_each(|ufid| self.send_mark(ufid, WorkerSet::ALL));
        busy.into_iter().for_each(|(ufid, packets)| self.offer(ufid, packets));
        self.pipeline.expire(now);
        self.revalidate_changed();
    }

    /// Makes a meter on all workers. Returns its number; `None` where nothing is limited.
    pub fn add_meter(&mut self, packets_per_second: Option<u64>) -> Option<u32> {
        let meter = Arc::new(Meter::packets(packets_per_second?, None));
        let id = self.meters.iter().position(Option::is_none).unwrap_or(self.meters.len());
        if id == self.meters.len() {
            self.meters.push(None);
        }
        self.meters[id] = Some(meter.clone());
        let id = id as u32;
        self.send_to_all(|| Message::SetMeter(id, Some(meter.clone())));
        Some(id)
    }

    /// Removes a meter that no flow uses any more.
    pub fn remove_meter(&mut self, id: Option<u32>) {
        let Some(id) = id else { return };
        self.meters[id as usize] = None;
        self.send_to_all(|| Message::SetMeter(id, None));
    }
}
