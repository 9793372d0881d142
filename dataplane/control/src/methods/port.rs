//! Ports of the switch, whatever their kind.

use super::bridge::membership;
use crate::Control;
use crate::desired::{Call, Object};
use crate::events::EventType;
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method, blocking};
use port::{Counters, Port, PortError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use switch::{Mac, PortConfig, PortNo, PortReport, Switch};

/// Of ports whose MTU nobody has said.
pub(super) const DEFAULT_MTU: u16 = 1500;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<PortGet>(), Entry::of::<PortDelete>()]
}

/// What a successful call that makes a port leaves.
pub(super) fn created(name: &str) -> Effect {
    let undo = Call::new(PortDelete::NAME, json!({"name": name}));
    Effect::Keep { slot: Object::port(name).itself(), undo: Some(undo) }
}

/// Makes a port with `make`, off the control thread, and adds it to the switch. Returns it with its number.
pub(super) async fn add<P: Port + 'static>(
    control: &Arc<Control>,
    name: &str,
    config: PortConfig,
    make: impl FnOnce(&Switch) -> Result<P, PortError> + Send + 'static,
) -> Result<(Arc<P>, PortNo), RpcError> {
    crate::bdevs::check_name("name", name)?;
    let switch = control.make_switch().await?;
    if switch.ports().iter().any(|port| port.name == name) {
        return Err(RpcError::name_taken("name", name));
    }
    let owned = name.to_owned();
    let made = blocking(move || {
        let port = Arc::new(make(&switch)?);
        let number = switch.add_port(&owned, port.clone(), &config)?;
        Ok::<_, RpcError>((port, number))
    });
    let (port, number) = made.await??;
    control.events.add(EventType::PortCreate, name, format!("{} port {number}", port.info().kind));
    Ok((port, number))
}

/// Lists the ports with their counters.
#[derive(Serialize, Deserialize, JsonSchema)]
struct PortGet {
    /// Only this one.
    name: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct PortDescription {
    name: String,
    /// Its number in flows.
    port_no: PortNo,
    /// What it is: vhost-user, tap, dpdk.
    kind: &'static str,
    /// The bridge that it is in.
    bridge: Option<String>,
    mac: String,
    mtu: u16,
    link_up: bool,
    rx_queues: u16,
    tx_queues: u16,
    /// What the port counted: packets, bytes, and what could not be received or sent, and why.
    stats: BTreeMap<&'static str, u64>,
    /// What the switch counted of the packets that came in by it: why it dropped some, and how many asked the translation.
    switch: BTreeMap<&'static str, u64>,
}

impl Method for PortGet {
    const NAME: &'static str = "port_get";
    type Output = Vec<PortDescription>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<PortDescription>, RpcError> {
        let mut ports = control.switching.get().map(|switch| switch.ports()).unwrap_or_default();
        if let Some(name) = &self.name {
            ports.retain(|port| port.name == *name);
            if ports.is_empty() {
                return Err(RpcError::no_such("port", name));
            }
        }
        Ok(ports.into_iter().map(describe).collect())
    }
}

fn describe(report: PortReport) -> PortDescription {
    let info = report.port.info();
    PortDescription {
        stats: counters(&*report.port).named().collect(),
        switch: report.path.named().chain(report.drops).collect(),
        name: report.name,
        port_no: report.number,
        kind: info.kind,
        bridge: report.bridge,
        mac: Mac::from(info.mac).to_string(),
        mtu: info.mtu,
        link_up: info.link_up,
        rx_queues: info.rx_queues,
        tx_queues: info.tx_queues,
    }
}

/// A port's counters, over all its shards.
pub(crate) fn counters(port: &dyn Port) -> Counters {
    port.stats().iter().map(|stats| &**stats).sum()
}

/// Deletes a port. It leaves its bridge first; packets in flight are dropped.
#[derive(Serialize, Deserialize, JsonSchema)]
struct PortDelete {
    /// Its name.
    name: String,
}

impl Method for PortDelete {
    const NAME: &'static str = "port_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::port(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let switch = control.switch("port", &self.name)?;
        let bridge = switch.ports().into_iter().find(|port| port.name == self.name).and_then(|port| port.bridge);
        let guest = control.switching.take_guest(&self.name);
        let name = self.name.clone();
        // The port itself goes with its last holder, there.
        blocking(move || switch.remove_port(&name).map(drop).map(|()| drop(guest))).await??;
        if let Some(bridge) = bridge {
            control.desired.clear(&membership(&bridge, &self.name));
        }
        control.events.add(EventType::PortDelete, &self.name, "");
        Ok(true)
    }
}
