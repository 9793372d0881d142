//! Flows of operators, and all flows, in the text of `ovs-appctl dpctl/*-flow`.

use crate::Control;
use crate::desired::{Call, Object};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method, blocking};
use clock::Cycles;
use flow::text::{Actions, DumpLine, FlowMatch, Offloaded, ParseError, parse_actions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use switch::{FlowReport, Placed, Station, Trace};

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<FlowAdd>(),
        Entry::of::<FlowDelete>(),
        Entry::of::<FlowDump>(),
        Entry::of::<FlowTrace>(),
        Entry::of::<FlowGetOffload>(),
    ]
}

/// Installs a flow that goes before the bridges, as `ovs-appctl dpctl/add-flow` does. No packet may match two such flows.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FlowAdd {
    /// What it matches, such as in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.0.0.0/255.0.0.0).
    flow: String,
    /// What is done, such as push_vlan(vid=5,pcp=0),2 or drop.
    actions: String,
}

impl Method for FlowAdd {
    const NAME: &'static str = "flow_add";
    type Output = bool;

    fn effect(&self) -> Effect {
        let undo = Call::new(FlowDelete::NAME, json!({"flow": self.flow}));
        Effect::Keep { slot: object(&self.flow).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let FlowMatch { key, mask } = parse_match(&self.flow)?;
        let actions = parse_actions(&self.actions).map_err(|error| refused("actions", &self.actions, &error))?;
        flow::execute::supported(&actions).map_err(|error| {
            RpcError::invalid("actions", &self.actions, "actions that the datapath carries out").hint(error.to_string())
        })?;
        control.make_switch().await?.add_flow(&key, &mask, actions)?;
        Ok(true)
    }
}

/// A flow goes by what it matches, however that is written.
fn object(flow: &str) -> Object {
    let name = flow.parse().map_or_else(|_| flow.to_owned(), |flow: FlowMatch| flow.to_string());
    Object::flow(&name)
}

fn parse_match(text: &str) -> Result<FlowMatch, RpcError> {
    text.parse().map_err(|error| refused("flow", text, &error))
}

/// Points at the place.
fn refused(field: &str, text: &str, error: &ParseError) -> RpcError {
    let refusal = RpcError::invalid(field, text, format!("{} at byte {}", error.expected, error.offset));
    let rest = if error.rest.is_empty() { "the end".to_owned() } else { format!("`{}`", error.rest) };
    match &error.hint {
        Some(hint) => refusal.hint(format!("before {rest}: {hint}")),
        None => refusal.hint(format!("before {rest}")),
    }
}

/// Deletes a flow that was installed with `flow_add`.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FlowDelete {
    /// What it matches.
    flow: String,
}

impl Method for FlowDelete {
    const NAME: &'static str = "flow_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(object(&self.flow))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let FlowMatch { key, mask } = parse_match(&self.flow)?;
        control.switch("flow", &self.flow)?.delete_flow(&key, &mask)?;
        Ok(true)
    }
}

/// Lists all flows with what they have seen: those of operators and those that bridges made, as `ovs-appctl dpctl/dump-flows`
/// does.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FlowDump {
    /// With their names, and with the fields that they do not look at.
    #[serde(default)]
    more: bool,
}

impl Method for FlowDump {
    const NAME: &'static str = "flow_dump";
    type Output = Vec<String>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<String>, RpcError> {
        let Some(switch) = control.switching.get() else { return Ok(Vec::new()) };
        let more = self.more;
        blocking(move || {
            let (flows, now) = (switch.dump(), Cycles::now());
            let line = |report: &FlowReport| {
                let (offloaded, dp) = match report.offloaded {
                    Placed::Full => (Offloaded::Yes, "dpdk"),
                    Placed::Partial => (Offloaded::Partial, "ovs"),
                    Placed::No => (Offloaded::No, "sluice"),
                };
                let line = DumpLine { flow: &report.flow, now, offloaded, dp: Some(dp) };
                if more { format!("{line:#}") } else { line.to_string() }
            };
            flows.iter().map(line).collect()
        })
        .await
    }
}

/// Says what would become of a packet. Nothing is learned from it.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FlowTrace {
    /// The packet, such as in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800).
    flow: String,
}

#[derive(Serialize, JsonSchema)]
struct TraceInfo {
    /// What decides: operator, a bridge, or nothing.
    decided_by: String,
    /// The station that it comes from, in its VLAN.
    source: Option<String>,
    /// The station that it goes to.
    destination: Option<String>,
    /// Why it is dropped.
    drop: Option<&'static str>,
    /// The flow that it would make.
    flow: String,
    /// What would be done.
    actions: String,
}

impl Method for FlowTrace {
    const NAME: &'static str = "flow_trace";
    type Output = TraceInfo;

    async fn call(&mut self, control: &Arc<Control>) -> Result<TraceInfo, RpcError> {
        let packet = parse_match(&self.flow)?.key;
        let trace = control.make_switch().await?.trace(&packet);
        Ok(describe(&trace))
    }
}

fn describe(trace: &Trace) -> TraceInfo {
    let decided_by = match &trace.bridge {
        _ if trace.operator => "operator".to_owned(),
        Some(bridge) => format!("bridge {bridge}"),
        None => "nothing".to_owned(),
    };
    TraceInfo {
        decided_by,
        source: trace.source.as_ref().map(Station::to_string),
        destination: trace.destination.as_ref().map(Station::to_string),
        drop: trace.drop.map(|reason| reason.as_str()),
        flow: FlowMatch { key: trace.flow.key, mask: trace.flow.mask }.to_string(),
        actions: Actions(&trace.flow.actions).to_string(),
    }
}

/// Tells what hardware does instead of the workers, and which flows it was asked for and cannot do.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FlowGetOffload {}

#[derive(Default, Serialize, JsonSchema)]
pub(crate) struct OffloadInfo {
    /// Flows that hardware does now.
    pub(crate) flows: u64,
    /// Flows whose packets it marks: workers do them without looking them up.
    pub(crate) partial: u64,
    /// Packets that the hardware did.
    pub(crate) packets: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Rules put in so far.
    pub(crate) insertions: u64,
    /// Mean time of an insertion, in microseconds.
    pub(crate) insertion_us: f64,
    /// Rules taken out for flows that see more.
    pub(crate) evictions: u64,
    /// Rules taken out as they saw nothing any more.
    pub(crate) aged: u64,
    /// Offers that found no room.
    pub(crate) full: u64,
    /// Offers that were dropped, as too many waited. Their flows are offered again.
    pub(crate) dropped: u64,
    /// Rules that a device lost: it was reset, or somebody else took them out.
    pub(crate) lost: u64,
    /// Operations that a device said nothing of in a second.
    pub(crate) lost_completions: u64,
    /// Rules that are to go, and that a device has not let go of.
    pub(crate) leaving: u64,
    /// Refusals so far, by what was refused: match, action, port, device, completion.
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    /// Flows that are there now and were refused; those that are partly in hardware, as a whole.
    refused: Vec<RefusedFlow>,
}

#[derive(Serialize, JsonSchema)]
struct RefusedFlow {
    /// What it matches.
    flow: String,
    /// The clause that was refused, and why.
    reason: String,
}

impl Method for FlowGetOffload {
    const NAME: &'static str = "flow_get_offload";
    type Output = OffloadInfo;

    async fn call(&mut self, control: &Arc<Control>) -> Result<OffloadInfo, RpcError> {
        let Some(switch) = control.switching.get() else { return Ok(OffloadInfo::default()) };
        let reports = blocking(move || switch.dump()).await?;
        let refused = reports.iter().filter_map(|FlowReport { flow, refused, .. }| {
            let reason = refused.clone()?;
            Some(RefusedFlow { flow: FlowMatch { key: flow.key, mask: flow.mask }.to_string(), reason })
        });
        Ok(OffloadInfo { refused: refused.collect(), ..OffloadInfo::totals(control) })
    }
}

impl OffloadInfo {
    #[cfg(feature = "dpdk")]
    pub(crate) fn totals(control: &Control) -> OffloadInfo {
        let Some(offloader) = control.switching.offloader.get() else { return OffloadInfo::default() };
        let totals = offloader.totals();
        let spent = Cycles(totals.insertion_cycles).to_duration();
        OffloadInfo {
            flows: totals.flows,
            partial: totals.partial,
            packets: totals.packets,
            bytes: totals.bytes,
            insertions: totals.insertions,
            insertion_us: spent.as_secs_f64() * 1e6 / totals.insertions.max(1) as f64,
            evictions: totals.evictions,
            aged: totals.aged,
            full: totals.full,
            dropped: totals.dropped,
            lost: totals.lost,
            lost_completions: totals.lost_completions,
            leaving: totals.leaving,
            refusals: totals.refused.into_iter().collect(),
            refused: Vec::new(),
        }
    }

    /// Hardware is behind ports of DPDK alone.
    #[cfg(not(feature = "dpdk"))]
    pub(crate) fn totals(_: &Control) -> OffloadInfo {
        OffloadInfo::default()
    }
}
