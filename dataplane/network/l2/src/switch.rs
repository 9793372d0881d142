//! The switch, as the control plane uses it.

use crate::bridge::{Bridge, BridgePort, Member};
use crate::mac_table::{FdbKey, MacEntry, MacTable};
use crate::pipeline::{Decision, L2Pipeline, NamedBridge};
use crate::vlan::{MAX_VLAN, VlanMode};
use crate::{Capture, FlowReport, Offload, PortConfig, PortReport, RateLimit, SwitchError, WorkerStats, limits};
use datapath::{BridgeId, Datapath, DatapathState, DropReason, Learn, PortNo, StaticFlows};
use engine::{SourceId, WorkerHandle};
use flow::{Action, Key, Mask, Megaflow};
use invalid::Invalid;
use packet::Pool;
use port::Port;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Settings of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// How long a station that sends nothing is remembered.
    pub mac_age: Duration,
    /// The size of the FDB.
    pub mac_table_size: usize,
    /// Packets a second that may be flooded, from all ports; any number if not set.
    pub flood_pps: Option<u64>,
}

impl Default for BridgeConfig {
    fn default() -> BridgeConfig {
        BridgeConfig { mac_age: Duration::from_secs(300), mac_table_size: 8192, flood_pps: None }
    }
}

/// A bridge at one moment.
#[derive(Clone, Debug)]
pub struct BridgeReport {
    /// The name of the bridge.
    pub name: String,
    /// The settings of the bridge.
    pub config: BridgeConfig,
    /// The ports of the bridge, by name, with their settings.
    pub ports: Vec<(String, BridgePort)>,
    /// The number of stations that the bridge knows.
    pub stations: usize,
}

/// What the switch would do with a packet.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The megaflow that the packet would make, or the static flow that it matches.
    pub flow: Megaflow,
    /// The bridge, if one decides.
    pub bridge: Option<String>,
    /// The source of the packet, as the bridge sees it.
    pub source: Option<FdbKey>,
    /// The destination of the packet, as the bridge sees it.
    pub destination: Option<FdbKey>,
    /// The reason, if the packet is dropped.
    pub drop: Option<DropReason>,
    /// Whether a static flow decides.
    pub operator: bool,
}

/// The control side of the switch's datapath.
type State = DatapathState<StaticFlows<L2Pipeline>>;

/// The switch of a process: a datapath whose pipeline is bridges, with static flows before them.
pub struct Switch {
    pub(crate) datapath: Datapath<StaticFlows<L2Pipeline>>,
}

impl Switch {
    /// Starts a switch on these workers, whose copies of packets come from `pool`.
    pub fn start(workers: &[WorkerHandle], pool: Pool) -> Result<Switch, SwitchError> {
        Ok(Switch { datapath: Datapath::start(StaticFlows::default(), workers, pool)? })
    }

    /// Offers busy flows to this hardware from now on.
    pub fn set_offload(&self, offload: Arc<dyn Offload>) {
        self.datapath.set_offload(offload);
    }

    /// The pool of copies of packets.
    pub fn pool(&self) -> &Pool {
        self.datapath.pool()
    }

    /// The counters of each worker's part.
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.datapath.worker_stats()
    }

    /// The source that is the switch on a worker.
    pub fn source(&self, worker: usize) -> Option<SourceId> {
        self.datapath.source(worker)
    }

    /// The number of megaflows.
    pub fn megaflows(&self) -> usize {
        self.datapath.lock().megaflows()
    }

    /// Adds a port. Returns its number.
    pub fn add_port(&self, name: &str, port: Arc<dyn Port>, config: &PortConfig) -> Result<PortNo, SwitchError> {
        self.datapath.add_port(name, port, config)
    }

    /// Takes a port out of its bridge and removes it. Nothing of the switch leads to it any more when this returns.
    pub fn remove_port(&self, name: &str) -> Result<Arc<dyn Port>, SwitchError> {
        let mut state = self.datapath.lock();
        let number = state.port_named(name)?;
        if let Some(id) = l2(&mut state).bridge_id(number) {
            detach(&mut state, id, number);
        }
        state.remove_port(name)
    }

    /// Sets the rate limit of packets that come in by a port.
    pub fn limit_port(&self, name: &str, limit: RateLimit) -> Result<(), SwitchError> {
        self.datapath.lock().limit_port(name, limit)
    }

    /// Shows the packets of a port to `capture`, one capture at a time. Returns the port's number.
    pub fn start_capture(&self, name: &str, capture: &Arc<Capture>) -> Result<PortNo, SwitchError> {
        self.datapath.lock().start_capture(name, capture)
    }

    /// Ends the capture of a port. Workers let go of it a little later.
    pub fn stop_capture(&self, name: &str) -> Result<(), SwitchError> {
        self.datapath.lock().stop_capture(name)
    }

    /// All ports, by number.
    pub fn ports(&self) -> Vec<PortReport> {
        self.datapath.lock().port_reports()
    }

    /// Makes a bridge.
    pub fn create_bridge(&self, name: &str, config: BridgeConfig) -> Result<(), SwitchError> {
        let mut state = self.datapath.lock();
        if bridge_named(&mut state, name).is_ok() {
            return Err(SwitchError::Exists { kind: "bridge", name: name.to_owned() });
        }
        if l2(&mut state).bridges.len() >= limits::BRIDGES {
            return Err(SwitchError::Limit { what: "bridges", limit: limits::BRIDGES });
        }
        if !(1..=limits::FDB_ENTRIES).contains(&config.mac_table_size) {
            let expected = format!("1 to {}", limits::FDB_ENTRIES);
            return Err(Invalid::new("mac_table_size", config.mac_table_size, expected).into());
        }
        if config.mac_age.is_zero() {
            return Err(Invalid::new("mac_age", 0, "at least one second").into());
        }
        check_pps("flood_pps", config.flood_pps)?;
        let bridge = Bridge {
            members: BTreeMap::new(),
            stations: MacTable::new(config.mac_table_size, config.mac_age),
            meter: state.add_meter(config.flood_pps),
        };
        l2(&mut state).add_bridge(NamedBridge { name: name.to_owned(), config, bridge });
        Ok(())
    }

    /// Deletes a bridge that has no ports.
    pub fn delete_bridge(&self, name: &str) -> Result<(), SwitchError> {
        let mut state = self.datapath.lock();
        let (id, named) = bridge_named(&mut state, name)?;
        let meter = named.bridge.meter;
        if let Some(first) = named.bridge.members.keys().next().copied() {
            let by = format!("port {}", state.port_name(first));
            return Err(SwitchError::Busy { kind: "bridge", name: name.to_owned(), by });
        }
        l2(&mut state).bridges.remove(&id);
        state.remove_meter(meter);
        Ok(())
    }

    /// All bridges.
    pub fn bridges(&self) -> Vec<BridgeReport> {
        let state = self.datapath.lock();
        let named = |(number, member): (&PortNo, &Member)| (state.port_name(*number), member.config.clone());
        let report = |bridge: &NamedBridge| BridgeReport {
            name: bridge.name.clone(),
            config: bridge.config.clone(),
            ports: bridge.bridge.members.iter().map(named).collect(),
            stations: bridge.bridge.stations.len(),
        };
        state.pipeline().pipeline.bridges.values().map(report).collect()
    }

    /// Puts a port into a bridge, or gives it other settings there.
    pub fn attach(&self, bridge: &str, port: &str, config: BridgePort) -> Result<(), SwitchError> {
        check_vlans(&config.vlan)?;
        check_pps("flood_pps", config.flood_pps)?;
        let mut state = self.datapath.lock();
        let number = state.port_named(port)?;
        let id = bridge_named(&mut state, bridge)?.0;
        if let Some(other) = l2(&mut state).bridge_id(number).filter(|other| *other != id) {
            let by = format!("bridge {}", l2(&mut state).bridges[&other].name);
            return Err(SwitchError::Busy { kind: "port", name: port.to_owned(), by });
        }
        let meter = state.add_meter(config.flood_pps);
        let before = l2(&mut state).attach(id, number, Member { config, meter });
        state.revalidate_changed();
        state.remove_meter(before.and_then(|member| member.meter));
        Ok(())
    }

    /// Takes a port out of a bridge.
    pub fn detach(&self, bridge: &str, port: &str) -> Result<(), SwitchError> {
        let mut state = self.datapath.lock();
        let number = state.port_named(port)?;
        let id = bridge_named(&mut state, bridge)?.0;
        match detach(&mut state, id, number) {
            true => Ok(()),
            false => Err(SwitchError::NoSuch { kind: "port", name: format!("{port} in bridge {bridge}") }),
        }
    }

    /// The stations of a bridge, each with the name of its port.
    pub fn stations(&self, bridge: &str) -> Result<Vec<(MacEntry, String)>, SwitchError> {
        let mut state = self.datapath.lock();
        let entries = bridge_named(&mut state, bridge)?.1.bridge.stations.entries();
        Ok(entries.into_iter().map(|entry| (entry, state.port_name(entry.port))).collect())
    }

    /// Forgets the stations that a bridge learned, all or those behind one port. Returns how many.
    pub fn flush(&self, bridge: &str, port: Option<&str>) -> Result<usize, SwitchError> {
        let mut state = self.datapath.lock();
        let port = port.map(|name| state.port_named(name)).transpose()?;
        forget(&mut state, bridge, |entry| entry.seen.is_none() || port.is_some_and(|port| entry.port != port))
    }

    /// Adds a static FDB entry: the station is behind the port, whatever packets say.
    pub fn pin(&self, bridge: &str, station: FdbKey, port: &str) -> Result<(), SwitchError> {
        let mut state = self.datapath.lock();
        let number = state.port_named(port)?;
        let (id, named) = bridge_named(&mut state, bridge)?;
        let Some(member) = named.bridge.members.get(&number) else {
            return Err(SwitchError::NoSuch { kind: "port", name: format!("{port} in bridge {bridge}") });
        };
        if !station.mac.is_station() {
            return Err(Invalid::new("mac", station.mac, "the address of one station, not of a group").into());
        }
        if member.config.vlan.egress(station.vlan).is_none() {
            return Err(Invalid::new("vlan", station.vlan, "a VLAN that the port carries").into());
        }
        let mut changed = Vec::new();
        if !named.bridge.stations.pin(station, number, &mut changed) {
            let limit = named.config.mac_table_size;
            return Err(SwitchError::Limit { what: "stations of this bridge", limit });
        }
        l2(&mut state).stations_changed(id, &changed);
        state.revalidate_changed();
        Ok(())
    }

    /// Removes an FDB entry, learned or static.
    pub fn unpin(&self, bridge: &str, station: FdbKey) -> Result<(), SwitchError> {
        match forget(&mut self.datapath.lock(), bridge, |entry| entry.station != station)? {
            0 => Err(SwitchError::NoSuch { kind: "station", name: station.to_string() }),
            _ => Ok(()),
        }
    }

    /// Installs a static flow, which takes precedence over the bridges.
    pub fn add_flow(&self, key: &Key, mask: &Mask, actions: Vec<Action>) -> Result<(), SwitchError> {
        self.datapath.lock().add_flow(key, mask, actions)
    }

    /// Deletes a static flow, and returns it.
    pub fn delete_flow(&self, key: &Key, mask: &Mask) -> Result<Megaflow, SwitchError> {
        self.datapath.lock().delete_flow(key, mask)
    }

    /// All flows with their statistics as of now.
    pub fn dump(&self) -> Vec<FlowReport> {
        self.datapath.dump_flows()
    }

    /// What the switch would do with a packet. Nothing is learned from the packet.
    pub fn trace(&self, packet: &Key) -> Trace {
        let mut state = self.datapath.lock();
        let translation = state.translate(packet, Learn::No);
        let Decision { bridge, source, destination } = Decision::from(&translation.dependencies);
        Trace {
            flow: Megaflow::new(packet.masked(&translation.mask), translation.mask, translation.actions),
            bridge: bridge.and_then(|id| l2(&mut state).bridges.get(&id)).map(|named| named.name.clone()),
            source,
            destination,
            drop: translation.drop,
            operator: translation.dependencies.is_static(),
        }
    }
}

fn l2(state: &mut State) -> &mut L2Pipeline {
    &mut state.pipeline_mut().pipeline
}

fn bridge_named<'a>(state: &'a mut State, name: &str) -> Result<(BridgeId, &'a mut NamedBridge), SwitchError> {
    let found = l2(state).bridges.iter_mut().find(|(_, bridge)| bridge.name == name);
    let found = found.map(|(id, bridge)| (*id, bridge));
    found.ok_or_else(|| SwitchError::NoSuch { kind: "bridge", name: name.to_owned() })
}

/// Takes a port out of a bridge. Returns whether it was in the bridge.
fn detach(state: &mut State, id: BridgeId, port: PortNo) -> bool {
    let Some(member) = l2(state).detach(id, port) else { return false };
    state.revalidate_changed();
    state.remove_meter(member.meter);
    true
}

/// Removes the FDB entries for which `keep` does not hold. Returns how many.
fn forget(state: &mut State, bridge: &str, keep: impl Fn(&MacEntry) -> bool) -> Result<usize, SwitchError> {
    let (id, named) = bridge_named(state, bridge)?;
    let mut removed = Vec::new();
    named.bridge.stations.retain(keep, &mut removed);
    l2(state).stations_changed(id, &removed);
    state.revalidate_changed();
    Ok(removed.len())
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
