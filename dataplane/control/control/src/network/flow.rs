//! Flows of operators, and all flows, in the text of `ovs-appctl dpctl/*-flow`.

use super::NetworkPlane;
use crate::blocking::blocking;
use crate::rpc::OrRefuse;
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::object::ObjectId;
use api::config::Call;
use api::flow::{FlowAdd, FlowDelete, FlowDump, FlowGetOffload, FlowTrace, OffloadInfo, RefusedFlow, TraceInfo};
use api::{Method, RpcError};
use clock::Cycles;
use flow::text::{Actions, DumpLine, FlowMatch, Offloaded, ParseError, parse_actions};
use l2::{FdbKey, FlowReport, OffloadState, Trace};
use serde_json::json;
use std::sync::Arc;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::of::<FlowAdd>(),
        Row::of::<FlowDelete>(),
        Row::of::<FlowDump>(),
        Row::of::<FlowTrace>(),
        Row::of::<FlowGetOffload>(),
    ]
}

impl Handler for FlowAdd {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        let undo = Call::new(FlowDelete::NAME, json!({"flow": self.flow}));
        Effect::Keep { slot: object(&self.flow).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        let FlowMatch { key, mask } = parse_match(&self.flow)?;
        let actions = parse_actions(&self.actions).map_err(|error| refused("actions", &self.actions, &error))?;
        flow::execute::supported(&actions).map_err(|error| {
            RpcError::invalid("actions", &self.actions, "actions that the datapath carries out").hint(error.to_string())
        })?;
        plane.make_switch().await?.add_flow(&key, &mask, actions).or_refuse()?;
        Ok(true)
    }
}

/// The static flow of a match, however the match is written.
fn object(flow: &str) -> ObjectId {
    let name = flow.parse().map_or_else(|_| flow.to_owned(), |flow: FlowMatch| flow.to_string());
    ObjectId::Flow(name)
}

fn parse_match(text: &str) -> Result<FlowMatch, RpcError> {
    text.parse().map_err(|error| refused("flow", text, &error))
}

/// Refuses a text, with the place where the parser stopped.
fn refused(field: &str, text: &str, error: &ParseError) -> RpcError {
    let refusal = RpcError::invalid(field, text, format!("{} at byte {}", error.expected, error.offset));
    let rest = if error.rest.is_empty() { "the end".to_owned() } else { format!("`{}`", error.rest) };
    match &error.hint {
        Some(hint) => refusal.hint(format!("before {rest}: {hint}")),
        None => refusal.hint(format!("before {rest}")),
    }
}

impl Handler for FlowDelete {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        Effect::Forget(object(&self.flow))
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        let FlowMatch { key, mask } = parse_match(&self.flow)?;
        plane.switch("flow", &self.flow)?.delete_flow(&key, &mask).or_refuse()?;
        Ok(true)
    }
}

impl Handler for FlowDump {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<Vec<String>, RpcError> {
        let Some(switch) = plane.switching.get() else { return Ok(Vec::new()) };
        let more = self.more;
        blocking(move || {
            let (flows, now) = (switch.dump(), Cycles::now());
            let line = |report: &FlowReport| {
                let (offloaded, dp) = match report.offloaded {
                    OffloadState::Full => (Offloaded::Yes, "dpdk"),
                    OffloadState::Partial => (Offloaded::Partial, "ovs"),
                    OffloadState::No => (Offloaded::No, "sluice"),
                };
                let line = DumpLine { flow: &report.flow, now, offloaded, dp: Some(dp) };
                if more { format!("{line:#}") } else { line.to_string() }
            };
            flows.iter().map(line).collect()
        })
        .await
    }
}

impl Handler for FlowTrace {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<TraceInfo, RpcError> {
        let packet = parse_match(&self.flow)?.key;
        let trace = plane.make_switch().await?.trace(&packet);
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
        source: trace.source.as_ref().map(FdbKey::to_string),
        destination: trace.destination.as_ref().map(FdbKey::to_string),
        drop: trace.drop.map(|reason| reason.as_str().to_owned()),
        flow: FlowMatch { key: trace.flow.key, mask: trace.flow.mask }.to_string(),
        actions: Actions(&trace.flow.actions).to_string(),
    }
}

impl Handler for FlowGetOffload {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<OffloadInfo, RpcError> {
        let Some(switch) = plane.switching.get() else { return Ok(OffloadInfo::default()) };
        let reports = blocking(move || switch.dump()).await?;
        let refused = reports.iter().filter_map(|FlowReport { flow, refused, .. }| {
            let reason = refused.clone()?;
            Some(RefusedFlow { flow: FlowMatch { key: flow.key, mask: flow.mask }.to_string(), reason })
        });
        Ok(OffloadInfo { refused: refused.collect(), ..offload_totals(plane) })
    }
}

#[cfg(feature = "dpdk")]
pub(crate) fn offload_totals(plane: &NetworkPlane) -> OffloadInfo {
    let Some(offloader) = plane.switching.offloader.get() else { return OffloadInfo::default() };
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
        refusals: totals.refused.into_iter().map(|(cause, refusals)| (cause.to_owned(), refusals)).collect(),
        refused: Vec::new(),
    }
}

/// Hardware is behind ports of DPDK alone.
#[cfg(not(feature = "dpdk"))]
pub(crate) fn offload_totals(_: &NetworkPlane) -> OffloadInfo {
    OffloadInfo::default()
}
