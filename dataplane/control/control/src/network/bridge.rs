//! Bridges, their ports and their FDBs.

use super::NetworkPlane;
use crate::rpc::OrRefuse;
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::object::{Aspect, ObjectId, Slot};
use crate::state::registry::check_name;
use api::bridge::{
    AddFdb, AddPort, BridgeCreate, BridgeDelete, BridgeGet, BridgeInfo, BridgePortInfo, DeleteFdb, FdbEntry, FlushFdb,
    GetFdb, RemovePort,
};
use api::config::Call;
use api::{Method, RpcError};
use l2::{BridgeConfig, BridgePort, BridgeReport, FdbKey, Mac, Security, VlanMode};
use serde_json::json;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::of::<BridgeCreate>(),
        Row::of::<BridgeDelete>(),
        Row::of::<BridgeGet>(),
        Row::of::<AddPort>(),
        Row::of::<RemovePort>(),
        Row::of::<GetFdb>(),
        Row::of::<FlushFdb>(),
        Row::of::<AddFdb>(),
        Row::of::<DeleteFdb>(),
    ]
}

impl Handler for BridgeCreate {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        let undo = Call::new(BridgeDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: ObjectId::bridge(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        check_name("name", &self.name)?;
        let default = BridgeConfig::default();
        let config = BridgeConfig {
            mac_age: self.mac_aging_s.map_or(default.mac_age, |seconds| Duration::from_secs(seconds.into())),
            mac_table_size: self.mac_table_size.map_or(default.mac_table_size, |size| size as usize),
            flood_pps: self.flood_pps,
        };
        plane.make_switch().await?.create_bridge(&self.name, config).or_refuse()?;
        Ok(true)
    }
}

impl Handler for BridgeDelete {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        Effect::Forget(ObjectId::bridge(&self.name))
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        plane.switch("bridge", &self.name)?.delete_bridge(&self.name).or_refuse()?;
        Ok(true)
    }
}

impl Handler for BridgeGet {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<Vec<BridgeInfo>, RpcError> {
        let mut bridges = plane.switching.get().map(|switch| switch.bridges()).unwrap_or_default();
        if let Some(name) = &self.name {
            bridges.retain(|bridge| bridge.name == *name);
            if bridges.is_empty() {
                return Err(RpcError::no_such("bridge", name));
            }
        }
        Ok(bridges.into_iter().map(describe).collect())
    }
}

fn describe(bridge: BridgeReport) -> BridgeInfo {
    let member = |(port, config): (String, BridgePort)| {
        let (tag, trunks, native_vlan) = match config.vlan {
            VlanMode::Access { vlan } => (Some(vlan), Vec::new(), None),
            VlanMode::Trunk { vlans, native } => (None, vlans, native),
        };
        BridgePortInfo {
            port,
            tag,
            trunks,
            native_vlan,
            allowed_macs: config.security.macs.iter().map(Mac::to_string).collect(),
            allowed_ips: config.security.ips.iter().map(|ip| ip.to_string()).collect(),
            flood_pps: config.flood_pps,
        }
    };
    BridgeInfo {
        name: bridge.name,
        mac_aging_s: bridge.config.mac_age.as_secs(),
        mac_table_size: bridge.config.mac_table_size,
        flood_pps: bridge.config.flood_pps,
        stations: bridge.stations,
        ports: bridge.ports.into_iter().map(member).collect(),
    }
}

impl Handler for AddPort {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        let undo = Call::new(RemovePort::NAME, json!({"bridge": self.bridge, "port": self.port}));
        Effect::Keep { slot: membership(&self.bridge, &self.port), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        let vlan = match self.tag {
            Some(vlan) if self.trunks.is_empty() && self.native_vlan.is_none() => VlanMode::Access { vlan },
            Some(vlan) => {
                let error = RpcError::invalid("tag", vlan, "no tag where trunks or native_vlan is given");
                return Err(error.hint("a port is an access port of one VLAN, or a trunk"));
            }
            None => VlanMode::Trunk { vlans: self.trunks.clone(), native: self.native_vlan },
        };
        let security = Security {
            macs: parse_all("allowed_macs", &self.allowed_macs)?,
            ips: parse_all("allowed_ips", &self.allowed_ips)?,
        };
        let config = BridgePort { vlan, security, flood_pps: self.flood_pps };
        plane.switch("bridge", &self.bridge)?.attach(&self.bridge, &self.port, config).or_refuse()?;
        Ok(true)
    }
}

/// The slot of the call that adds a port to a bridge.
pub(super) fn membership(bridge: &str, port: &str) -> Slot {
    ObjectId::bridge(bridge).aspect(Aspect::BridgePort(port.to_owned()))
}

fn parse_all<T: FromStr<Err = l2::ParseError>>(field: &str, texts: &[String]) -> Result<Vec<T>, RpcError> {
    texts.iter().enumerate().map(|(i, text)| parse(format!("{field}[{i}]"), text)).collect()
}

fn parse<T: FromStr<Err = l2::ParseError>>(field: impl Into<String>, text: &str) -> Result<T, RpcError> {
    text.parse().map_err(|error: l2::ParseError| RpcError::invalid(field, error.got, error.expected))
}

impl Handler for RemovePort {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        Effect::Clear(membership(&self.bridge, &self.port))
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        plane.switch("bridge", &self.bridge)?.detach(&self.bridge, &self.port).or_refuse()?;
        Ok(true)
    }
}

impl Handler for GetFdb {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<Vec<FdbEntry>, RpcError> {
        let (stations, now) =
            (plane.switch("bridge", &self.bridge)?.stations(&self.bridge).or_refuse()?, Instant::now());
        let describe = |(entry, port): (l2::MacEntry, String)| FdbEntry {
            mac: entry.station.mac.to_string(),
            vlan: entry.station.vlan,
            port,
            age_s: entry.seen.map(|seen| now.saturating_duration_since(seen).as_secs()),
        };
        Ok(stations.into_iter().map(describe).collect())
    }
}

impl Handler for FlushFdb {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<usize, RpcError> {
        plane.switch("bridge", &self.bridge)?.flush(&self.bridge, self.port.as_deref()).or_refuse()
    }
}

impl Handler for AddFdb {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        let params = json!({"bridge": self.bridge, "mac": self.mac, "vlan": self.vlan});
        let undo = Call::new(DeleteFdb::NAME, params);
        Effect::Keep { slot: fdb_entry(&self.bridge, &self.mac, self.vlan), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        let station = station(&self.mac, self.vlan)?;
        plane.switch("bridge", &self.bridge)?.pin(&self.bridge, station, &self.port).or_refuse()?;
        Ok(true)
    }
}

fn station(mac: &str, vlan: u16) -> Result<FdbKey, RpcError> {
    Ok(FdbKey { vlan, mac: parse("mac", mac)? })
}

/// The slot of a static FDB entry. However an address is written, it has one slot.
fn fdb_entry(bridge: &str, mac: &str, vlan: u16) -> Slot {
    let mac = mac.parse().map_or_else(|_| mac.to_owned(), |mac: Mac| mac.to_string());
    ObjectId::bridge(bridge).aspect(Aspect::Fdb { vlan, mac })
}

impl Handler for DeleteFdb {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        Effect::Clear(fdb_entry(&self.bridge, &self.mac, self.vlan))
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        let station = station(&self.mac, self.vlan)?;
        plane.switch("bridge", &self.bridge)?.unpin(&self.bridge, station).or_refuse()?;
        Ok(true)
    }
}
