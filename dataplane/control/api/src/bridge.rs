//! Learning bridges, their ports and their forwarding databases.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    BridgeCreate: "bridge_create" -> bool;
    BridgeDelete: "bridge_delete" -> bool;
    BridgeGet: "bridge_get" -> Vec<BridgeInfo>;
    AddPort: "bridge_add_port" -> bool;
    RemovePort: "bridge_remove_port" -> bool;
    GetFdb: "bridge_get_fdb" -> Vec<FdbEntry>;
    FlushFdb: "bridge_flush_fdb" -> usize;
    AddFdb: "bridge_add_fdb" -> bool;
    DeleteFdb: "bridge_delete_fdb" -> bool;
}

/// Creates a MAC-learning bridge with VLANs.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct BridgeCreate {
    /// Name of the bridge.
    pub name: String,
    /// Seconds after which an idle MAC address is forgotten; 300 by default.
    pub mac_aging_s: Option<u32>,
    /// Maximum number of MAC addresses; 8192 by default.
    pub mac_table_size: Option<u32>,
    /// Storm control: packets per second that may be flooded (broadcast, multicast, unknown unicast); unlimited by default.
    pub flood_pps: Option<u64>,
}

/// Deletes a bridge that has no ports.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BridgeDelete {
    /// Name of the bridge.
    pub name: String,
}

/// Lists the bridges with their ports.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct BridgeGet {
    /// List only this bridge.
    pub name: Option<String>,
}

/// A bridge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BridgeInfo {
    /// Name of the bridge.
    pub name: String,
    /// Seconds after which an idle MAC address is forgotten.
    pub mac_aging_s: u64,
    /// Maximum number of MAC addresses.
    pub mac_table_size: usize,
    /// Packets per second that may be flooded.
    pub flood_pps: Option<u64>,
    /// MAC addresses in the forwarding database.
    pub stations: usize,
    /// The ports of the bridge.
    pub ports: Vec<BridgePortInfo>,
}

/// A port of a bridge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BridgePortInfo {
    /// Name of the port.
    pub port: String,
    /// VLAN of an access port.
    pub tag: Option<u16>,
    /// VLANs of a trunk port; empty: all.
    pub trunks: Vec<u16>,
    /// VLAN of untagged packets on a trunk port.
    pub native_vlan: Option<u16>,
    /// Allowed source MAC addresses; empty: any.
    pub allowed_macs: Vec<String>,
    /// Allowed source IP addresses and prefixes; empty: any.
    pub allowed_ips: Vec<String>,
    /// Packets per second of the port that may be flooded.
    pub flood_pps: Option<u64>,
}

/// Adds a port to a bridge, or changes its settings there. Without tag, trunks and native_vlan it is a trunk of all VLANs.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct AddPort {
    /// Name of the bridge.
    pub bridge: String,
    /// Name of the port.
    pub port: String,
    /// Make it an access port of this VLAN: packets are untagged on the wire.
    pub tag: Option<u16>,
    /// VLANs of a trunk port; all by default.
    #[serde(default)]
    pub trunks: Vec<u16>,
    /// VLAN of untagged packets on a trunk port.
    pub native_vlan: Option<u16>,
    /// Port security: allowed source MAC addresses; any by default.
    #[serde(default)]
    pub allowed_macs: Vec<String>,
    /// Port security: allowed source IP addresses and prefixes; any by default. Applies to ARP and neighbour discovery as well.
    #[serde(default)]
    pub allowed_ips: Vec<String>,
    /// Storm control: packets per second of this port that may be flooded; unlimited by default.
    pub flood_pps: Option<u64>,
}

/// Removes a port from a bridge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RemovePort {
    /// Name of the bridge.
    pub bridge: String,
    /// Name of the port.
    pub port: String,
}

/// Lists the forwarding database (FDB) of a bridge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GetFdb {
    /// Name of the bridge.
    pub bridge: String,
}

/// An entry of a forwarding database.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FdbEntry {
    /// The MAC address.
    pub mac: String,
    /// The VLAN; 0 without.
    pub vlan: u16,
    /// The port.
    pub port: String,
    /// Seconds since the address was seen; null for a static entry.
    pub age_s: Option<u64>,
}

/// Flushes the learned FDB entries of a bridge, all or those of one port. Returns their number.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct FlushFdb {
    /// Name of the bridge.
    pub bridge: String,
    /// Flush only the entries of this port.
    pub port: Option<String>,
}

/// Adds a static FDB entry: it neither moves nor ages.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct AddFdb {
    /// Name of the bridge.
    pub bridge: String,
    /// The MAC address.
    pub mac: String,
    /// Name of the port.
    pub port: String,
    /// The VLAN; 0, untagged, by default.
    #[serde(default)]
    pub vlan: u16,
}

/// Deletes an FDB entry, static or learned.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DeleteFdb {
    /// Name of the bridge.
    pub bridge: String,
    /// The MAC address.
    pub mac: String,
    /// The VLAN; 0, untagged, by default.
    #[serde(default)]
    pub vlan: u16,
}
