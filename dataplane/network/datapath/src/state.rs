//! What the switch should do: topology, stations, flows of operators. Decides over packets that no worker knows what to do
//! with, and takes back decisions that no longer hold.

use crate::bridge::{Bridge, always, in_port};
use crate::datapath::{Message, Resolve};
use crate::limit::{Meter, RateLimit};
use crate::mac_table::Station;
use crate::marks::Marks;
use crate::megaflows::{Basis, Megaflows, Record, Translation};
use crate::operators::OperatorFlows;
use crate::tracked::Tracked;
use crate::upcall::Upcall;
use crate::{BridgeConfig, BridgeId, Offload, Placed, PortNo, limits};
use clock::Cycles;
use engine::{Sender, WorkerSet};
use flow::{Action, DropReason, Key, Mask, Megaflow, Stats};
use port::Port;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// A port of the switch.
pub(crate) struct PortState {
    pub(crate) name: String,
    pub(crate) port: Arc<dyn Port>,
    pub(crate) bridge: Option<BridgeId>,
    /// What may come in by it.
    pub(crate) limit: RateLimit,
    /// Somebody looks at its packets.
    pub(crate) captured: bool,
    /// Hardware may do the work of flows from it.
    pub(crate) has_hardware: bool,
    /// What each worker counts.
    pub(crate) counters: Vec<Arc<crate::stats::PathCounters>>,
    /// What it costs each worker.
    pub(crate) loads: Vec<Arc<crate::stats::LoadCounters>>,
    /// Packets that flows dropped, by reason.
    pub(crate) drops: HashMap<DropReason, u64>,
}

/// A bridge with its name and settings.
pub(crate) struct BridgeState {
    pub(crate) name: String,
    pub(crate) config: BridgeConfig,
    pub(crate) bridge: Bridge,
}

pub(crate) struct State {
    pub(crate) bridges: BTreeMap<BridgeId, BridgeState>,
    pub(crate) ports: BTreeMap<PortNo, PortState>,
    pub(crate) flows: Megaflows,
    /// Flows of operators: they go before bridges.
    pub(crate) operator: OperatorFlows,
    pub(crate) offload: Option<Arc<dyn Offload>>,
    pub(crate) marks: Arc<Marks>,
    meters: Vec<Option<Arc<Meter>>>,
    /// Each worker as a set, and its mailbox.
    workers: Vec<(WorkerSet, Sender<Message>)>,
    pub(crate) next_bridge: BridgeId,
    pub(crate) next_instance: u32,
}

impl State {
    pub(crate) fn new(workers: Vec<(WorkerSet, Sender<Message>)>) -> State {
        State {
            bridges: BTreeMap::new(),
            ports: BTreeMap::new(),
            flows: Megaflows::default(),
            operator: OperatorFlows::default(),
            offload: None,
            marks: Arc::default(),
            meters: Vec::new(),
            workers,
            next_bridge: 1,
            next_instance: 1,
        }
    }

    /// Sends a message to workers.
    pub(crate) fn tell(&self, workers: WorkerSet, message: impl Fn() -> Message) {
        for (_, worker) in self.workers.iter().filter(|(own, _)| !own.intersection(workers).is_empty()) {
            let _ = worker.send(message()); // a worker that has ended forwards nothing any more
        }
    }

    pub(crate) fn tell_all(&self, message: impl Fn() -> Message) {
        self.tell(WorkerSet::ALL, message);
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = &Sender<Message>> {
        self.workers.iter().map(|(_, sender)| sender)
    }

    /// Answers an upcall.
    pub(crate) fn resolve(&mut self, upcall: &Upcall, now: Instant) {
        let mut translation = self.translate(&upcall.key, Some(now));
        if upcall.narrow {
            translation.mask = translation.mask.union(&Mask::CONNECTION);
        }
        let key = upcall.key.masked(&translation.mask);
        let ufid = self.flows.ufid(&key, &translation.mask);
        let port = in_port(&upcall.key);
        let flow = Megaflow { ufid, ..Megaflow::new(key, translation.mask, translation.actions.clone()) };
        let (worker, sender) = self.workers[upcall.worker].clone();
        let known = self.flows.get(ufid).is_some();
        let room = self.flows.len() < limits::FLOWS && self.flows.of_port(port) < limits::FLOWS_OF_A_PORT;
        let install = (known || room) && self.ports.contains_key(&port);
        if install && !known {
            let record = Record {
                packet: Box::new(upcall.key),
                port,
                translation,
                workers: WorkerSet::EMPTY,
                stats: Stats::default(),
                installed: Cycles::now(),
                hardware: None,
                marked: false,
            };
            self.flows.insert(ufid, record);
        }
        if let Some(record) = self.flows.get_mut(ufid).filter(|_| install) {
            record.workers = record.workers.union(worker);
            record.installed = Cycles::now();
        }
        let answer = Resolve { ticket: upcall.ticket, flow, install, narrow: upcall.narrow };
        let _ = sender.send(Message::Resolve(answer)); // a worker that has ended has dropped its packets
        self.tell_mark(ufid, worker);
    }

    /// Decides over a packet. With a time, its source is learned, and what rests on where that was is taken back.
    pub(crate) fn translate(&mut self, key: &Key, learn: Option<Instant>) -> Translation {
        if let Some(flow) = self.operator.of_packet(key) {
            let basis = Basis { operator: true, ..Basis::default() };
            return Translation { mask: flow.mask, actions: flow.actions.clone(), basis };
        }
        let mut packet = Tracked::new(key);
        let mut basis = Basis::default();
        let actions = match self.bridge(key, &mut packet, &mut basis, learn) {
            Ok(actions) => actions,
            Err(reason) => {
                basis.drop = Some(reason);
                Vec::new()
            }
        };
        let mut mask = always().union(&packet.mask());
        // No packet of this flow may be one of an operator's flow: it looks at what tells them apart.
        let read = mask;
        for flow in self.operator.overlapping(key, &read) {
            mask = mask.union(&flow.mask);
        }
        Translation { mask, actions: actions.into(), basis }
    }

    /// What the bridge of the packet's port does with it.
    fn bridge(
        &mut self,
        key: &Key,
        packet: &mut Tracked<'_>,
        basis: &mut Basis,
        learn: Option<Instant>,
    ) -> Result<Vec<Action>, DropReason> {
        let port = in_port(key);
        let id = self.ports.get(&port).and_then(|state| state.bridge).ok_or(DropReason::NoBridge)?;
        let BridgeState { bridge, .. } = self.bridges.get_mut(&id).ok_or(DropReason::NoBridge)?;
        basis.bridge = Some(id);
        let member = bridge.members.get(&port).ok_or(DropReason::NoBridge)?;
        let admitted = bridge.admit(member, packet)?;
        (basis.source, basis.destination) = (Some(admitted.source), Some(admitted.destination));
        let mut changed = Vec::new();
        if let Some(now) = learn {
            bridge.stations.learn(admitted.source, port, now, &mut changed);
        }
        let actions = bridge.forward(port, &admitted);
        self.stations_changed(id, &changed);
        actions
    }

    /// Stations came, moved or went: what was decided by where they were is decided again.
    pub(crate) fn stations_changed(&mut self, bridge: BridgeId, changed: &[Station]) {
        for station in changed {
            for ufid in self.flows.of_station(bridge, *station) {
                self.revalidate(ufid);
            }
        }
    }

    /// The topology changed: flows for which `concerned` holds are decided again.
    pub(crate) fn revalidate_where(&mut self, concerned: impl Fn(&Record) -> bool) {
        for ufid in self.flows.where_(concerned) {
            self.revalidate(ufid);
        }
    }

    /// Decides a flow again. It stays where only its actions change; else the next packet asks anew, and is learned from.
    fn revalidate(&mut self, ufid: u128) {
        let Some(record) = self.flows.get(ufid) else { return };
        let (packet, port) = (record.packet.clone(), record.port);
        let now = self.translate(&packet, None);
        let Some(record) = self.flows.get_mut(ufid) else { return };
        let Basis { bridge, source, destination, .. } = now.basis;
        let was = &record.translation;
        // A source that is no longer known behind the port has to be learned from its next packet.
        let learned = source.is_none_or(|source| {
            let stations = bridge.and_then(|id| self.bridges.get(&id)).map(|state| &state.bridge.stations);
            stations.is_some_and(|stations| stations.port(source) == Some(port))
        });
        let same = (bridge, source, destination) == (was.basis.bridge, was.basis.source, was.basis.destination);
        if !same || !learned || now.mask != was.mask || now.basis.operator != was.basis.operator {
            return self.remove_flow(ufid);
        }
        if now.actions != was.actions {
            record.translation = now;
            let (workers, flow) = (record.workers, record.megaflow(ufid));
            self.tell(workers, || Message::Install(flow.clone()));
            self.offload_changed(ufid);
        }
    }

    /// Takes a flow out of all caches.
    pub(crate) fn remove_flow(&mut self, ufid: u128) {
        let Some(record) = self.flows.remove(ufid) else { return };
        let (key, mask) = (record.key(), record.translation.mask);
        self.tell(record.workers, || Message::Remove(key, mask));
        self.withdraw(ufid, &record);
    }

    /// Takes note of what the workers have seen, refreshes the stations that sent something, and removes flows that are idle.
    pub(crate) fn swept(&mut self, seen: &HashMap<u128, Stats>, now: Instant) {
        let cycles = Cycles::now();
        let mut idle = Vec::new();
        let mut busy = Vec::new();
        let mut marked = Vec::new();
        for (ufid, stats) in seen {
            let Some(record) = self.flows.get_mut(*ufid) else { continue };
            let mut stats = *stats;
            record.hardware.iter().for_each(|share| stats.add(&share.stats()));
            let packets = stats.packets.saturating_sub(record.stats.packets);
            record.stats = stats;
            let placed = record.hardware.as_ref().map_or(Placed::No, |share| share.placed());
            if placed == Placed::Partial && !std::mem::replace(&mut record.marked, true) {
                marked.push(*ufid);
            }
            let since = stats.used.max(record.installed);
            let Basis { bridge, source, drop, operator, .. } = record.translation.basis;
            if cycles.since(since) > limits::FLOW_IDLE.into() && !operator && placed != Placed::Full {
                idle.push(*ufid);
            }
            let lost = record.hardware.as_ref().is_some_and(|share| share.take_loss());
            if lost || packets >= limits::OFFLOAD_PACKETS {
                busy.push((*ufid, packets));
            }
            if packets == 0 {
                continue;
            }
            if let (Some(reason), Some(port)) = (drop, self.ports.get_mut(&record.port)) {
                *port.drops.entry(reason).or_default() += packets;
            }
            if let (Some(id), Some(source)) = (bridge, source)
                && let Some(state) = self.bridges.get_mut(&id)
                && state.bridge.stations.port(source) == Some(record.port)
            {
                // Seen again where it was: nothing changes but its age.
                state.bridge.stations.learn(source, record.port, now, &mut Vec::new());
            }
        }
        idle.into_iter().for_each(|ufid| self.remove_flow(ufid));
        marked.into_iter().for_each(|ufid| self.tell_mark(ufid, WorkerSet::ALL));
        busy.into_iter().for_each(|(ufid, packets)| self.offer(ufid, packets));
        self.expire(now);
    }

    /// Forgets stations that were not seen for too long.
    fn expire(&mut self, now: Instant) {
        let ids: Vec<BridgeId> = self.bridges.keys().copied().collect();
        for id in ids {
            let mut changed = Vec::new();
            self.bridges.get_mut(&id).into_iter().for_each(|state| state.bridge.stations.expire(now, &mut changed));
            self.stations_changed(id, &changed);
        }
    }

    /// A meter, known to all workers.
    pub(crate) fn add_meter(&mut self, packets_per_second: Option<u64>) -> Option<u32> {
        let meter = Arc::new(Meter::packets(packets_per_second?, None));
        let id = self.meters.iter().position(Option::is_none).unwrap_or(self.meters.len());
        if id == self.meters.len() {
            self.meters.push(None);
        }
        self.meters[id] = Some(meter.clone());
        let id = id as u32;
        self.tell_all(|| Message::SetMeter(id, Some(meter.clone())));
        Some(id)
    }

    /// A meter is no longer used by any flow.
    pub(crate) fn remove_meter(&mut self, id: Option<u32>) {
        let Some(id) = id else { return };
        self.meters[id as usize] = None;
        self.tell_all(|| Message::SetMeter(id, None));
    }
}
