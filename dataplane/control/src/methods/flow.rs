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
use std::sync::Arc;
use switch::{Station, Trace};

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<FlowAdd>(), Entry::of::<FlowDelete>(), Entry::of::<FlowDump>(), Entry::of::<FlowTrace>()]
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
            let line = |flow| DumpLine { flow, now, offloaded: Offloaded::No, dp: more.then_some("sluice") };
            let text = |flow| if more { format!("{:#}", line(flow)) } else { line(flow).to_string() };
            flows.iter().map(text).collect()
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
        drop: trace.drop.map(|reason| reason.name()),
        flow: FlowMatch { key: trace.flow.key, mask: trace.flow.mask }.to_string(),
        actions: Actions(&trace.flow.actions).to_string(),
    }
}
