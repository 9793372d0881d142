//! Bridges, their ports and their stations.

use crate::Control;
use crate::bdevs::check_name;
use crate::desired::{Call, Object, Slot};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch::{BridgeConfig, BridgePort, BridgeReport, Mac, Security, Station, VlanMode};

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<BridgeCreate>(),
        Entry::of::<BridgeDelete>(),
        Entry::of::<BridgeGet>(),
        Entry::of::<BridgeAddPort>(),
        Entry::of::<BridgeRemovePort>(),
        Entry::of::<BridgeGetFdb>(),
        Entry::of::<BridgeFlushFdb>(),
        Entry::of::<BridgeAddFdb>(),
        Entry::of::<BridgeDeleteFdb>(),
    ]
}

/// Makes a bridge: it learns who is behind which of its ports, and keeps VLANs apart.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeCreate {
    /// Its name.
    name: String,
    /// Seconds after which a station that says nothing is forgotten; 300 when it is not given.
    mac_aging_s: Option<u32>,
    /// Stations that it remembers; 8192 when it is not given.
    mac_table_size: Option<u32>,
    /// Packets a second that may be flooded: broadcasts, multicasts, and what is for unknown stations. Any number when it is not
    /// given.
    flood_pps: Option<u64>,
}

impl Method for BridgeCreate {
    const NAME: &'static str = "bridge_create";
    type Output = bool;

    fn effect(&self) -> Effect {
        let undo = Call::new(BridgeDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bridge(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        check_name("name", &self.name)?;
        let default = BridgeConfig::default();
        let config = BridgeConfig {
            mac_age: self.mac_aging_s.map_or(default.mac_age, |seconds| Duration::from_secs(seconds.into())),
            mac_table_size: self.mac_table_size.map_or(default.mac_table_size, |size| size as usize),
            flood_pps: self.flood_pps,
        };
        control.make_switch().await?.create_bridge(&self.name, config)?;
        Ok(true)
    }
}

/// Deletes a bridge that has no ports.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeDelete {
    /// Its name.
    name: String,
}

impl Method for BridgeDelete {
    const NAME: &'static str = "bridge_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bridge(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.switch("bridge", &self.name)?.delete_bridge(&self.name)?;
        Ok(true)
    }
}

/// Lists the bridges with their ports.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeGet {
    /// Only this one.
    name: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct BridgeInfo {
    name: String,
    mac_aging_s: u64,
    mac_table_size: usize,
    flood_pps: Option<u64>,
    /// Stations that it knows.
    stations: usize,
    ports: Vec<MemberInfo>,
}

#[derive(Serialize, JsonSchema)]
struct MemberInfo {
    port: String,
    tag: Option<u16>,
    trunks: Vec<u16>,
    native_vlan: Option<u16>,
    allowed_macs: Vec<String>,
    allowed_ips: Vec<String>,
    flood_pps: Option<u64>,
}

impl Method for BridgeGet {
    const NAME: &'static str = "bridge_get";
    type Output = Vec<BridgeInfo>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<BridgeInfo>, RpcError> {
        let mut bridges = control.switching.get().map(|switch| switch.bridges()).unwrap_or_default();
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
        MemberInfo {
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

/// Puts a port into a bridge, or gives it other settings there. Without tag, trunks and native_vlan it carries all VLANs.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeAddPort {
    /// The bridge.
    bridge: String,
    /// The port.
    port: String,
    /// Makes it an access port of this VLAN: packets have no tag on the wire.
    tag: Option<u16>,
    /// The VLANs that a trunk port carries; all when none is given.
    #[serde(default)]
    trunks: Vec<u16>,
    /// The VLAN of packets that have no tag on a trunk port.
    native_vlan: Option<u16>,
    /// MAC addresses that the port may use as a source; any when none is given.
    #[serde(default)]
    allowed_macs: Vec<String>,
    /// IP addresses and prefixes that the port may use as a source; any when none is given. ARP and neighbour discovery are held
    /// to them as well.
    #[serde(default)]
    allowed_ips: Vec<String>,
    /// Packets a second from this port that may be flooded; any number when it is not given.
    flood_pps: Option<u64>,
}

impl Method for BridgeAddPort {
    const NAME: &'static str = "bridge_add_port";
    type Output = bool;

    fn effect(&self) -> Effect {
        let undo = Call::new(BridgeRemovePort::NAME, json!({"bridge": self.bridge, "port": self.port}));
        Effect::Keep { slot: membership(&self.bridge, &self.port), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
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
        control.switch("bridge", &self.bridge)?.attach(&self.bridge, &self.port, config)?;
        Ok(true)
    }
}

/// Where the desired state keeps that a port is in a bridge.
pub(super) fn membership(bridge: &str, port: &str) -> Slot {
    Object::bridge(bridge).aspect(crate::desired::Aspect::BridgePort(port.to_owned()))
}

fn parse_all<T: FromStr<Err = switch::ParseError>>(field: &str, texts: &[String]) -> Result<Vec<T>, RpcError> {
    texts.iter().enumerate().map(|(i, text)| parse(format!("{field}[{i}]"), text)).collect()
}

fn parse<T: FromStr<Err = switch::ParseError>>(field: impl Into<String>, text: &str) -> Result<T, RpcError> {
    text.parse().map_err(|error: switch::ParseError| RpcError::invalid(field, error.got, error.expected))
}

/// Takes a port out of a bridge.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeRemovePort {
    /// The bridge.
    bridge: String,
    /// The port.
    port: String,
}

impl Method for BridgeRemovePort {
    const NAME: &'static str = "bridge_remove_port";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Clear(membership(&self.bridge, &self.port))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.switch("bridge", &self.bridge)?.detach(&self.bridge, &self.port)?;
        Ok(true)
    }
}

/// Lists the stations that a bridge knows, and behind which port each is.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeGetFdb {
    /// The bridge.
    bridge: String,
}

#[derive(Serialize, JsonSchema)]
struct StationInfo {
    mac: String,
    vlan: u16,
    port: String,
    /// Seconds since it was seen; none for one that was put in.
    age_s: Option<u64>,
}

impl Method for BridgeGetFdb {
    const NAME: &'static str = "bridge_get_fdb";
    type Output = Vec<StationInfo>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<StationInfo>, RpcError> {
        let (stations, now) = (control.switch("bridge", &self.bridge)?.stations(&self.bridge)?, Instant::now());
        let describe = |(entry, port): (switch::MacEntry, String)| StationInfo {
            mac: entry.station.mac.to_string(),
            vlan: entry.station.vlan,
            port,
            age_s: entry.seen.map(|seen| now.saturating_duration_since(seen).as_secs()),
        };
        Ok(stations.into_iter().map(describe).collect())
    }
}

/// Forgets the stations that a bridge learned, all or those behind one port. Returns how many there were.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeFlushFdb {
    /// The bridge.
    bridge: String,
    /// Only those behind this port.
    port: Option<String>,
}

impl Method for BridgeFlushFdb {
    const NAME: &'static str = "bridge_flush_fdb";
    type Output = usize;

    async fn call(&mut self, control: &Arc<Control>) -> Result<usize, RpcError> {
        Ok(control.switch("bridge", &self.bridge)?.flush(&self.bridge, self.port.as_deref())?)
    }
}

/// Puts a station behind a port for good: it is neither learned anew nor forgotten.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeAddFdb {
    /// The bridge.
    bridge: String,
    /// The station's address.
    mac: String,
    /// The port.
    port: String,
    /// Its VLAN; 0, that of packets without a tag, when it is not given.
    #[serde(default)]
    vlan: u16,
}

impl Method for BridgeAddFdb {
    const NAME: &'static str = "bridge_add_fdb";
    type Output = bool;

    fn effect(&self) -> Effect {
        let params = json!({"bridge": self.bridge, "mac": self.mac, "vlan": self.vlan});
        let undo = Call::new(BridgeDeleteFdb::NAME, params);
        Effect::Keep { slot: fdb_entry(&self.bridge, &self.mac, self.vlan), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let station = station(&self.mac, self.vlan)?;
        control.switch("bridge", &self.bridge)?.pin(&self.bridge, station, &self.port)?;
        Ok(true)
    }
}

fn station(mac: &str, vlan: u16) -> Result<Station, RpcError> {
    Ok(Station { vlan, mac: parse("mac", mac)? })
}

/// One address has one place, however it is written.
fn fdb_entry(bridge: &str, mac: &str, vlan: u16) -> Slot {
    let mac = mac.parse().map_or_else(|_| mac.to_owned(), |mac: Mac| mac.to_string());
    Object::bridge(bridge).aspect(crate::desired::Aspect::Fdb { vlan, mac })
}

/// Forgets one station, whether it was learned or put in.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BridgeDeleteFdb {
    /// The bridge.
    bridge: String,
    /// The station's address.
    mac: String,
    /// Its VLAN; 0 when it is not given.
    #[serde(default)]
    vlan: u16,
}

impl Method for BridgeDeleteFdb {
    const NAME: &'static str = "bridge_delete_fdb";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Clear(fdb_entry(&self.bridge, &self.mac, self.vlan))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let station = station(&self.mac, self.vlan)?;
        control.switch("bridge", &self.bridge)?.unpin(&self.bridge, station)?;
        Ok(true)
    }
}
