//! Changes to bridges, ports and flows of operators.

use crate::bridge::{Bridge, BridgePort, Member, in_port};
use crate::capture::Capture;
use crate::datapath::Message;
use crate::limit::{Policer, RateLimit, TokenBucket};
use crate::mac_table::{MacEntry, MacTable, Station};
use crate::megaflows::{Basis, Record, Translation};
use crate::output::PortSlot;
use crate::state::{BridgeState, PortState, State};
use crate::stats::{LoadCounters, PathCounters, PathStats};
use crate::switch::{BridgeReport, FlowReport, PortReport, Trace};
use crate::vlan::{MAX_VLAN, VlanMode};
use crate::{BridgeConfig, BridgeId, DropReason, Placed, PortConfig, PortNo, SwitchError, limits};
use clock::Cycles;
use crossbeam::channel;
use engine::{AtomicWorkerSet, WorkerHandle, WorkerSet};
use flow::text::FlowMatch;
use flow::{Action, Key, Mask, Megaflow, Stats};
use invalid::Invalid;
use packet::Burst;
use port::Port;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

impl State {
    pub(crate) fn port_named(&self, name: &str) -> Result<PortNo, SwitchError> {
        let found = self.ports.iter().find(|(_, port)| port.name == name).map(|(number, _)| *number);
        found.ok_or_else(|| SwitchError::NoSuch { kind: "port", name: name.to_owned() })
    }

    pub(crate) fn bridge_named(&mut self, name: &str) -> Result<(BridgeId, &mut BridgeState), SwitchError> {
        let found = self.bridges.iter_mut().find(|(_, bridge)| bridge.name == name);
        let found = found.map(|(id, bridge)| (*id, bridge));
        found.ok_or_else(|| SwitchError::NoSuch { kind: "bridge", name: name.to_owned() })
    }

    pub(crate) fn add_port(
        &mut self,
        name: &str,
        port: Arc<dyn Port>,
        config: &PortConfig,
        workers: &[WorkerHandle],
    ) -> Result<PortNo, SwitchError> {
        if self.port_named(name).is_ok() {
            return Err(SwitchError::Exists { kind: "port", name: name.to_owned() });
        }
        let number = self.free_number(config.number)?;
        // All shards, or none: a worker sees the port only when every one could be opened.
        let shards = workers.iter().map(|worker| port.open_shard(worker)).collect::<Result<Vec<_>, _>>()?;
        let counters: Vec<Arc<PathCounters>> = workers.iter().map(|_| Arc::default()).collect();
        let loads: Vec<Arc<LoadCounters>> = workers.iter().map(|_| Arc::default()).collect();
        let senders = Arc::<AtomicWorkerSet>::default();
        let instance = self.next_instance;
        self.next_instance = self.next_instance.wrapping_add(1);
        let parts = shards.into_iter().zip(&counters).zip(&loads);
        for (((shard, counters), load), worker) in parts.zip(self.workers()) {
            let slot = Box::new(PortSlot {
                instance,
                shard,
                upcalls: config.upcall_pps.map(TokenBucket::new),
                policer: None,
                capture: None,
                parked: 0,
                counters: counters.clone(),
                load: load.clone(),
                senders: senders.clone(),
                sends: false,
                out: Burst::new(),
            });
            drop(worker.send(Message::AddPort(number, slot)));
        }
        let has_hardware = self.offload.as_ref().is_some_and(|offload| offload.add_port(number, &*port));
        let state = PortState {
            name: name.to_owned(),
            port,
            bridge: None,
            limit: RateLimit::default(),
            captured: false,
            has_hardware,
            counters,
            loads,
            drops: HashMap::new(),
        };
        self.ports.insert(number, state);
        Ok(number)
    }

    fn free_number(&self, wanted: Option<PortNo>) -> Result<PortNo, SwitchError> {
        let Some(number) = wanted else {
            let free = (1..=limits::PORTS as PortNo).find(|number| !self.ports.contains_key(number));
            return free.ok_or(SwitchError::Limit { what: "ports", limit: limits::PORTS });
        };
        if number == 0 || number as usize > limits::PORTS {
            return Err(Invalid::new("port_no", number, format_args!("1 to {}", limits::PORTS)).into());
        }
        match self.ports.get(&number) {
            Some(taken) => {
                let expected = format!("a number that no port has; {} has this one", taken.name);
                Err(Invalid::new("port_no", number, expected).into())
            }
            None => Ok(number),
        }
    }

    pub(crate) fn remove_port(&mut self, name: &str) -> Result<Arc<dyn Port>, SwitchError> {
        let number = self.port_named(name)?;
        if let Some(id) = self.ports[&number].bridge {
            let bridge = self.bridges[&id].name.clone();
            self.detach(&bridge, name)?;
        }
        let Some(state) = self.ports.remove(&number) else {
            return Err(SwitchError::NoSuch { kind: "port", name: name.to_owned() });
        };
        for ufid in self.flows.where_(|record| record.port == number && !record.translation.basis.operator) {
            self.remove_flow(ufid);
        }
        self.offload.iter().for_each(|offload| offload.remove_port(number));
        let take = |worker: &engine::Sender<Message>| {
            let (reply, answer) = channel::bounded(1);
            worker.send(Message::RemovePort(number, reply)).ok().map(|()| answer)
        };
        let answers: Vec<_> = self.workers().filter_map(take).collect();
        // Shards are destroyed here, not on their workers. One that has ended has dropped its own already.
        answers.into_iter().for_each(|answer| drop(answer.recv()));
        Ok(state.port)
    }

    pub(crate) fn limit_port(&mut self, name: &str, limit: RateLimit) -> Result<(), SwitchError> {
        let number = self.port_named(name)?;
        let at_least = |field: &'static str, given: Option<u64>, min: u64| match given {
            Some(got) if got < min => Err(Invalid::new(field, got, format_args!("at least {min}"))),
            _ => Ok(()),
        };
        at_least("packets_per_second", limit.packets_per_second, 1)?;
        at_least("burst_packets", limit.burst_packets, RateLimit::MIN_BURST_PACKETS)?;
        at_least("bits_per_second", limit.bits_per_second, RateLimit::MIN_BITS_PER_SECOND)?;
        at_least("burst_bytes", limit.burst_bytes, RateLimit::MIN_BURST_BYTES)?;
        self.ports.entry(number).and_modify(|state| state.limit = limit);
        self.withdraw_watched();
        let policer = Policer::new(&limit);
        self.tell_all(|| Message::SetPolicer(number, policer.clone()));
        Ok(())
    }

    pub(crate) fn start_capture(&mut self, name: &str, capture: &Arc<Capture>) -> Result<PortNo, SwitchError> {
        let number = self.port_named(name)?;
        if self.ports.get(&number).is_some_and(|state| state.captured) {
            let by = "another capture".to_owned();
            return Err(SwitchError::Busy { kind: "port", name: name.to_owned(), by });
        }
        self.ports.entry(number).and_modify(|state| state.captured = true);
        self.withdraw_watched();
        self.tell_all(|| Message::SetCapture(number, Some(capture.clone())));
        Ok(number)
    }

    pub(crate) fn stop_capture(&mut self, name: &str) -> Result<(), SwitchError> {
        let number = self.port_named(name)?;
        self.ports.entry(number).and_modify(|state| state.captured = false);
        self.tell_all(|| Message::SetCapture(number, None));
        Ok(())
    }

    pub(crate) fn create_bridge(&mut self, name: &str, config: BridgeConfig) -> Result<(), SwitchError> {
        if self.bridge_named(name).is_ok() {
            return Err(SwitchError::Exists { kind: "bridge", name: name.to_owned() });
        }
        if self.bridges.len() >= limits::BRIDGES {
            return Err(SwitchError::Limit { what: "bridges", limit: limits::BRIDGES });
        }
        if !(1..=limits::STATIONS).contains(&config.mac_table_size) {
            let expected = format!("1 to {}", limits::STATIONS);
            return Err(Invalid::new("mac_table_size", config.mac_table_size, expected).into());
        }
        if config.mac_age.is_zero() {
            return Err(Invalid::new("mac_age", 0, "at least one second").into());
        }
        check_pps("flood_pps", config.flood_pps)?;
        let bridge = Bridge {
            members: BTreeMap::new(),
            stations: MacTable::new(config.mac_table_size, config.mac_age),
            meter: self.add_meter(config.flood_pps),
        };
        self.bridges.insert(self.next_bridge, BridgeState { name: name.to_owned(), config, bridge });
        self.next_bridge += 1;
        Ok(())
    }

    pub(crate) fn delete_bridge(&mut self, name: &str) -> Result<(), SwitchError> {
        let (id, state) = self.bridge_named(name)?;
        if let Some(first) = state.bridge.members.keys().next().copied() {
            let by = self.ports.get(&first).map_or_else(|| first.to_string(), |port| format!("port {}", port.name));
            return Err(SwitchError::Busy { kind: "bridge", name: name.to_owned(), by });
        }
        let meter = state.bridge.meter;
        self.bridges.remove(&id);
        self.remove_meter(meter);
        Ok(())
    }

    pub(crate) fn attach(&mut self, bridge: &str, port: &str, config: BridgePort) -> Result<(), SwitchError> {
        check_vlans(&config.vlan)?;
        check_pps("flood_pps", config.flood_pps)?;
        let number = self.port_named(port)?;
        let id = self.bridge_named(bridge)?.0;
        if let Some(other) = self.ports[&number].bridge.filter(|other| *other != id) {
            let by = format!("it is in bridge {}", self.bridges[&other].name);
            return Err(SwitchError::Busy { kind: "port", name: port.to_owned(), by });
        }
        let meter = self.add_meter(config.flood_pps);
        let before = self.bridge_named(bridge)?.1.bridge.members.insert(number, Member { config, meter });
        self.ports.entry(number).and_modify(|state| state.bridge = Some(id));
        self.revalidate_where(|record| record.port == number || record.translation.basis.bridge == Some(id));
        self.remove_meter(before.and_then(|member| member.meter));
        Ok(())
    }

    pub(crate) fn detach(&mut self, bridge: &str, port: &str) -> Result<(), SwitchError> {
        let number = self.port_named(port)?;
        let (id, state) = self.bridge_named(bridge)?;
        let Some(member) = state.bridge.members.remove(&number) else {
            return Err(SwitchError::NoSuch { kind: "port", name: format!("{port} in bridge {bridge}") });
        };
        state.bridge.stations.retain(|entry| entry.port != number, &mut Vec::new());
        self.ports.entry(number).and_modify(|state| state.bridge = None);
        self.revalidate_where(|record| record.port == number || record.translation.basis.bridge == Some(id));
        self.remove_meter(member.meter);
        Ok(())
    }

    /// Forgets the stations for which `keep` does not hold. Returns how many.
    pub(crate) fn forget(&mut self, bridge: &str, keep: impl Fn(&MacEntry) -> bool) -> Result<usize, SwitchError> {
        let mut changed = Vec::new();
        let (id, state) = self.bridge_named(bridge)?;
        state.bridge.stations.retain(keep, &mut changed);
        self.stations_changed(id, &changed);
        Ok(changed.len())
    }

    pub(crate) fn pin(&mut self, bridge: &str, station: Station, port: &str) -> Result<(), SwitchError> {
        let number = self.port_named(port)?;
        let (id, state) = self.bridge_named(bridge)?;
        let Some(member) = state.bridge.members.get(&number) else {
            return Err(SwitchError::NoSuch { kind: "port", name: format!("{port} in bridge {bridge}") });
        };
        if !station.mac.is_station() {
            return Err(Invalid::new("mac", station.mac, "the address of one station, not of a group").into());
        }
        if member.config.vlan.egress(station.vlan).is_none() {
            return Err(Invalid::new("vlan", station.vlan, "a VLAN that the port carries").into());
        }
        let (limit, mut changed) = (state.config.mac_table_size, Vec::new());
        if !state.bridge.stations.pin(station, number, &mut changed) {
            return Err(SwitchError::Limit { what: "stations of this bridge", limit });
        }
        self.stations_changed(id, &changed);
        Ok(())
    }

    pub(crate) fn add_flow(&mut self, key: &Key, mask: &Mask, actions: Vec<Action>) -> Result<(), SwitchError> {
        let key = key.masked(mask);
        let ufid = self.flows.ufid(&key, mask);
        let flow = Megaflow { ufid, ..Megaflow::new(key, *mask, actions) };
        let is_new = !self.operator.contains(ufid);
        if is_new {
            if let Some(other) = self.operator.overlapping(&key, mask).next() {
                return Err(SwitchError::Overlaps(Box::new(FlowMatch { key: other.key, mask: other.mask })));
            }
            if self.operator.len() >= limits::OPERATOR_FLOWS {
                return Err(SwitchError::Limit { what: "flows", limit: limits::OPERATOR_FLOWS });
            }
        }
        // What bridges decided for such packets goes first, so that no packet ever matches two flows.
        let has_others = self.flows.len() > self.operator.len();
        if has_others || !is_new {
            for overlapping in self.flows.where_(|record| record.overlaps(&key, mask)) {
                self.remove_flow(overlapping);
            }
        }
        self.operator.insert(flow.clone());
        let basis = Basis { operator: true, ..Basis::default() };
        let record = Record {
            packet: Box::new(key),
            port: in_port(&key),
            translation: Translation { mask: *mask, actions: flow.actions.clone(), basis },
            workers: WorkerSet::ALL,
            stats: Stats::default(),
            installed: Cycles::now(),
            hardware: None,
            marked: false,
        };
        self.flows.insert(ufid, record);
        self.tell_all(|| Message::Install(flow.clone()));
        Ok(())
    }

    pub(crate) fn delete_flow(&mut self, key: &Key, mask: &Mask) -> Result<Megaflow, SwitchError> {
        let key = key.masked(mask);
        let ufid = self.flows.ufid(&key, mask);
        let flow = self.operator.remove(ufid);
        let flow = flow.ok_or_else(|| SwitchError::NoSuch { kind: "flow", name: "of this match".to_owned() })?;
        let derived = |record: &Record| record.translation.basis.operator && record.overlaps(&key, mask);
        for gone in self.flows.where_(derived) {
            self.remove_flow(gone);
        }
        Ok(flow)
    }

    pub(crate) fn trace(&mut self, packet: &Key) -> Trace {
        let Translation { mask, actions, basis } = self.translate(packet, None);
        Trace {
            flow: Megaflow::new(packet.masked(&mask), mask, actions),
            bridge: basis.bridge.and_then(|id| self.bridges.get(&id)).map(|state| state.name.clone()),
            source: basis.source,
            destination: basis.destination,
            drop: basis.drop,
            operator: basis.operator,
        }
    }

    pub(crate) fn flow_reports(&self) -> Vec<FlowReport> {
        let report = |(ufid, record): (u128, &Record)| FlowReport {
            flow: record.megaflow(ufid),
            offloaded: record.hardware.as_ref().map_or(Placed::No, |share| share.placed()),
            refused: record.hardware.as_ref().and_then(|share| share.refused()),
        };
        let mut flows: Vec<FlowReport> = self.flows.iter().map(report).collect();
        flows.sort_by_key(|report| report.flow.ufid);
        flows
    }

    pub(crate) fn bridge_reports(&self) -> Vec<BridgeReport> {
        let ports = |bridge: &Bridge| {
            let named = |(number, member): (&PortNo, &Member)| {
                let name = self.ports.get(number).map_or_else(String::new, |port| port.name.clone());
                (name, member.config.clone())
            };
            bridge.members.iter().map(named).collect()
        };
        let report = |state: &BridgeState| BridgeReport {
            name: state.name.clone(),
            config: state.config.clone(),
            ports: ports(&state.bridge),
            stations: state.bridge.stations.len(),
        };
        self.bridges.values().map(report).collect()
    }

    pub(crate) fn port_reports(&self) -> Vec<PortReport> {
        let report = |(number, state): (&PortNo, &PortState)| PortReport {
            number: *number,
            name: state.name.clone(),
            bridge: state.bridge.and_then(|id| self.bridges.get(&id)).map(|bridge| bridge.name.clone()),
            port: state.port.clone(),
            path: state.counters.iter().map(|c| c.read()).fold(PathStats::default(), |sum, one| sum + one),
            loads: state.loads.iter().map(|load| load.read()).collect(),
            limit: state.limit,
            drops: DropReason::OF_PIPELINE.map(|r| (r.as_str(), state.drops.get(&r).copied().unwrap_or(0))).into(),
        };
        self.ports.iter().map(report).collect()
    }
}

fn check_vlans(mode: &VlanMode) -> Result<(), Invalid> {
    let is_vlan = |vlan: u16| (1..=MAX_VLAN).contains(&vlan);
    match mode {
        VlanMode::Access { vlan } if !is_vlan(*vlan) => Err(Invalid::new("tag", vlan, "a VLAN from 1 to 4094")),
        VlanMode::Trunk { native: Some(vlan), .. } if !is_vlan(*vlan) => {
            Err(Invalid::new("native_vlan", vlan, "a VLAN from 1 to 4094"))
        }
        VlanMode::Trunk { vlans, .. } => match vlans.iter().find(|vlan| **vlan > MAX_VLAN) {
            Some(vlan) => Err(Invalid::new("trunks", vlan, "VLANs from 0 (no tag) to 4094")),
            None => Ok(()),
        },
        VlanMode::Access { .. } => Ok(()),
    }
}

fn check_pps(field: &'static str, pps: Option<u64>) -> Result<(), Invalid> {
    match pps {
        Some(0) => Err(Invalid::new(field, 0, "at least one packet a second")),
        _ => Ok(()),
    }
}
