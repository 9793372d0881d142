//! Datapath flows in the text of `ovs-appctl dpctl/*-flow`, and their offload.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

methods! {
    FlowAdd: "flow_add" -> bool;
    FlowDelete: "flow_delete" -> bool;
    FlowDump: "flow_dump" -> Vec<String>;
    FlowTrace: "flow_trace" -> TraceInfo;
    FlowGetOffload: "flow_get_offload" -> OffloadInfo;
}

/// Adds a static flow, as `ovs-appctl dpctl/add-flow` does. Static flows take precedence over the bridges and must not overlap.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlowAdd {
    /// Match of the flow, such as in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.0.0.0/255.0.0.0).
    pub flow: String,
    /// Actions of the flow, such as push_vlan(vid=5,pcp=0),2 or drop.
    pub actions: String,
}

/// Deletes a static flow.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlowDelete {
    /// Match of the flow.
    pub flow: String,
}

/// Dumps all flows with their statistics, static ones and those of bridges, as `ovs-appctl dpctl/dump-flows` does.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct FlowDump {
    /// Include the ufids and the wildcarded fields.
    #[serde(default)]
    pub more: bool,
}

/// Traces a packet through the switch, as `ovs-appctl ofproto/trace` does. Nothing is learned from it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlowTrace {
    /// The packet, such as in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800).
    pub flow: String,
}

/// The trace of a packet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TraceInfo {
    /// What decides on the packet: operator (a static flow), a bridge, or nothing.
    pub decided_by: String,
    /// The source MAC address with its VLAN.
    pub source: Option<String>,
    /// The destination MAC address with its VLAN.
    pub destination: Option<String>,
    /// Why the packet is dropped.
    pub drop: Option<String>,
    /// The megaflow that the packet would install.
    pub flow: String,
    /// The actions of the megaflow.
    pub actions: String,
}

/// Shows the state of the flow offload: what hardware does, and which flows it refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct FlowGetOffload {}

/// The state of the flow offload.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct OffloadInfo {
    /// Flows that are fully offloaded now.
    pub flows: u64,
    /// Flows that are partially offloaded: hardware marks their packets, and workers need no look-up.
    pub partial: u64,
    /// Packets processed by hardware.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// Rules inserted so far.
    pub insertions: u64,
    /// Mean duration of an insertion in microseconds.
    pub insertion_us: f64,
    /// Rules evicted for busier flows.
    pub evictions: u64,
    /// Idle rules removed.
    pub aged: u64,
    /// Flows that found no room.
    pub full: u64,
    /// Flows dropped because too many were waiting; they are offered again.
    pub dropped: u64,
    /// Rules lost by a device: it was reset, or another program removed them.
    pub lost: u64,
    /// Operations without a completion within a second.
    pub lost_completions: u64,
    /// Rules to be destroyed that a device has not released yet.
    pub leaving: u64,
    /// Refusals so far, by cause: match, action, port, device, completion.
    pub refusals: BTreeMap<String, u64>,
    /// Present flows that were refused; for partially offloaded ones, the full offload was.
    pub refused: Vec<RefusedFlow>,
}

/// A flow that hardware refused.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RefusedFlow {
    /// Match of the flow.
    pub flow: String,
    /// The refused clause, and why.
    pub reason: String,
}
