//! The bridges of the switch as a pipeline of the datapath.

use crate::bridge::{Bridge, Member};
use crate::mac_table::FdbKey;
use crate::{BridgeConfig, Mac, PortNo};
use datapath::{Actions, BridgeId, Dependencies, Dependency, DropReason, Learn, Pipeline, Tracked};
use flow::{Mask, field};
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// A bridge with its name and settings.
#[derive(Debug)]
pub(crate) struct NamedBridge {
    pub(crate) name: String,
    pub(crate) config: BridgeConfig,
    pub(crate) bridge: Bridge,
}

/// All bridges.
#[derive(Debug, Default)]
pub(crate) struct L2Pipeline {
    pub(crate) bridges: BTreeMap<BridgeId, NamedBridge>,
    /// The bridge of each port that is in one.
    bridge_of_port: HashMap<PortNo, BridgeId>,
    last_id: BridgeId,
    changes: Vec<Dependency>,
}

/// What a bridge has decided by, read back from the dependencies of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) bridge: Option<BridgeId>,
    pub(crate) source: Option<FdbKey>,
    pub(crate) destination: Option<FdbKey>,
}

/// The fields that every megaflow matches on: OVS does the same, and its tools expect it.
fn always() -> Mask {
    Mask::exact(&[
        field::IN_PORT,
        field::RECIRC_ID,
        field::PACKET_TYPE_NS,
        field::PACKET_TYPE_ID,
        field::ETH_TYPE,
        field::NW_FRAG,
    ])
}

impl Pipeline for L2Pipeline {
    fn translate(
        &mut self,
        packet: &mut Tracked<'_>,
        dependencies: &mut Dependencies,
        mode: Learn,
    ) -> Result<Actions, DropReason> {
        packet.look_at(&always());
        let port = packet.get(field::IN_PORT) as PortNo;
        dependencies.add(Dependency::Port(port));
        let id = self.bridge_id(port).ok_or(DropReason::NoBridge)?;
        let NamedBridge { bridge, .. } = self.bridges.get_mut(&id).ok_or(DropReason::NoBridge)?;
        dependencies.add(Dependency::Bridge(id));
        let member = bridge.members.get(&port).ok_or(DropReason::NoBridge)?;
        let admitted = bridge.admit(member, packet)?;
        dependencies.add(dependency(id, admitted.source));
        dependencies.add(dependency(id, admitted.destination));
        let mut changed = Vec::new();
        match mode {
            Learn::At(now) => bridge.stations.learn(admitted.source, port, now, &mut changed),
            Learn::No if bridge.stations.port(admitted.source) != Some(port) => dependencies.set_source_unknown(),
            Learn::No => {}
        }
        let actions = bridge.forward(port, &admitted);
        self.stations_changed(id, &changed);
        actions.map(Actions::from)
    }

    fn refresh(&mut self, dependencies: &Dependencies, in_port: PortNo, now: Instant) {
        let Decision { bridge: Some(id), source: Some(source), .. } = Decision::from(dependencies) else { return };
        if let Some(NamedBridge { bridge, .. }) = self.bridges.get_mut(&id)
            && bridge.stations.port(source) == Some(in_port)
        {
            // Seen again where it was: only the age changes.
            bridge.stations.learn(source, in_port, now, &mut Vec::new());
        }
    }

    fn expire(&mut self, now: Instant) {
        for (id, NamedBridge { bridge, .. }) in &mut self.bridges {
            let mut expired = Vec::new();
            bridge.stations.expire(now, &mut expired);
            self.changes.extend(expired.into_iter().map(|station| dependency(*id, station)));
        }
    }

    fn has_learned(&self) -> bool {
        self.bridges.values().any(|named| named.bridge.stations.len() > 0)
    }

    fn take_changes(&mut self) -> Vec<Dependency> {
        std::mem::take(&mut self.changes)
    }

    fn bridge_of(&self, port: PortNo) -> Option<&str> {
        self.bridges.get(&self.bridge_id(port)?).map(|named| named.name.as_str())
    }
}

impl L2Pipeline {
    /// The bridge that a port is in.
    pub(crate) fn bridge_id(&self, port: PortNo) -> Option<BridgeId> {
        self.bridge_of_port.get(&port).copied()
    }

    pub(crate) fn add_bridge(&mut self, named: NamedBridge) {
        self.last_id += 1;
        self.bridges.insert(self.last_id, named);
    }

    /// Puts a port into a bridge, or gives it other settings there. Returns the member that it was before.
    pub(crate) fn attach(&mut self, id: BridgeId, port: PortNo, member: Member) -> Option<Member> {
        let before = self.bridges.get_mut(&id)?.bridge.members.insert(port, member);
        self.bridge_of_port.insert(port, id);
        self.changes.extend([Dependency::Port(port), Dependency::Bridge(id)]);
        before
    }

    /// Takes a port out of a bridge. Returns the member that it was; `None` where the port is not in the bridge.
    pub(crate) fn detach(&mut self, id: BridgeId, port: PortNo) -> Option<Member> {
        let NamedBridge { bridge, .. } = self.bridges.get_mut(&id)?;
        let member = bridge.members.remove(&port)?;
        // The flows that rest on these stations rest on the bridge as well.
        bridge.stations.retain(|entry| entry.port != port, &mut Vec::new());
        self.bridge_of_port.remove(&port);
        self.changes.extend([Dependency::Port(port), Dependency::Bridge(id)]);
        Some(member)
    }

    /// Records stations of a bridge that came, moved or went.
    pub(crate) fn stations_changed(&mut self, id: BridgeId, stations: &[FdbKey]) {
        self.changes.extend(stations.iter().map(|station| dependency(id, *station)));
    }
}

fn dependency(bridge: BridgeId, station: FdbKey) -> Dependency {
    Dependency::Fdb { bridge, vlan: station.vlan, mac: station.mac.bits() }
}

impl From<&Dependencies> for Decision {
    fn from(dependencies: &Dependencies) -> Decision {
        let mut decision = Decision::default();
        for dependency in dependencies.as_slice() {
            match dependency {
                Dependency::Bridge(id) => decision.bridge = Some(*id),
                Dependency::Fdb { vlan, mac, .. } => {
                    let station = FdbKey { vlan: *vlan, mac: Mac::new(*mac) };
                    // The source is recorded first.
                    let place =
                        if decision.source.is_none() { &mut decision.source } else { &mut decision.destination };
                    *place = Some(station);
                }
                Dependency::Port(_) | Dependency::StaticFlow(_) => {}
            }
        }
        decision
    }
}
