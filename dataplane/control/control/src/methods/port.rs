//! Ports of the switch, whatever their kind.

use super::bridge::membership;
use crate::Control;
use crate::desired::{Call, Object};
use crate::events::EventType;
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method, blocking};
use crate::scheduler::QueueId;
use port::{Counters, Port, PortError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use switch::{Mac, PortConfig, PortNo, PortReport, RateLimit, Switch};

/// Of ports whose MTU nobody has said.
pub(super) const DEFAULT_MTU: u16 = 1500;

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<PortGet>(),
        Entry::of::<PortDelete>(),
        Entry::of::<PortSetRateLimit>(),
        Entry::of::<PortMoveQueue>(),
    ]
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
    /// The worker of each receive queue, where they can be moved.
    rx_workers: Vec<Option<usize>>,
    tx_queues: u16,
    /// What may come in by it; what is not limited is left out.
    rate_limit: BTreeMap<&'static str, u64>,
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
        rx_workers: report.port.rx_queues().iter().map(|queue| queue.worker).collect(),
        tx_queues: info.tx_queues,
        rate_limit: limits(&report.limit).into_iter().filter_map(|(name, limit)| Some((name, limit?))).collect(),
    }
}

/// The limits by the names that they have in calls.
fn limits(limit: &RateLimit) -> [(&'static str, Option<u64>); 4] {
    [
        ("packets_per_second", limit.packets_per_second),
        ("burst_packets", limit.burst_packets),
        ("bits_per_second", limit.bits_per_second),
        ("burst_bytes", limit.burst_bytes),
    ]
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
        let (name, capturing) = (self.name.clone(), control.clone());
        // The port itself goes with its last holder, there.
        let remove = move || {
            drop(capturing.captures.stop(&name));
            switch.remove_port(&name).map(drop).map(|()| drop(guest))
        };
        blocking(remove).await??;
        if let Some(bridge) = bridge {
            control.desired.clear(&membership(&bridge, &self.name));
        }
        control.events.add(EventType::PortDelete, &self.name, "");
        Ok(true)
    }
}

/// Limits what may come in by a port, over all its queues. What is beyond is dropped and counted. A limit that is not given is
/// lifted.
#[derive(Serialize, Deserialize, JsonSchema)]
struct PortSetRateLimit {
    /// The port.
    name: String,
    /// Packets a second.
    packets_per_second: Option<u64>,
    /// Packets that may come at once after a pause, at least 32; a tenth of a second's when it is not given.
    burst_packets: Option<u64>,
    /// Bits a second, Ethernet headers included.
    bits_per_second: Option<u64>,
    /// Bytes that may come at once after a pause, at least 131072; a tenth of a second's when it is not given.
    burst_bytes: Option<u64>,
}

impl Method for PortSetRateLimit {
    const NAME: &'static str = "port_set_rate_limit";
    type Output = bool;

    fn effect(&self) -> Effect {
        let slot = Object::port(&self.name).aspect(crate::desired::Aspect::RateLimit);
        if self.packets_per_second.is_none() && self.bits_per_second.is_none() {
            return Effect::Clear(slot);
        }
        Effect::Keep { slot, undo: Some(Call::new(Self::NAME, json!({"name": self.name}))) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let limit = RateLimit {
            packets_per_second: self.packets_per_second,
            burst_packets: self.burst_packets,
            bits_per_second: self.bits_per_second,
            burst_bytes: self.burst_bytes,
        };
        control.switch("port", &self.name)?.limit_port(&self.name, limit)?;
        Ok(true)
    }
}

/// Moves a receive queue of a port, or a queue pair of a guest, to another worker while it receives. It stays there, whatever its
/// load, until this is called without a worker.
#[derive(Serialize, Deserialize, JsonSchema)]
struct PortMoveQueue {
    /// The port.
    name: String,
    /// The queue, from 0.
    queue: u16,
    /// The worker, from 0; when it is not given, the queue stays where it is and may be moved by load again.
    worker: Option<usize>,
}

impl Method for PortMoveQueue {
    const NAME: &'static str = "port_move_queue";
    type Output = bool;

    fn effect(&self) -> Effect {
        QueueId::port(&self.name, self.queue).effect(self.worker)
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let ports = control.switch("port", &self.name)?.ports();
        let found = ports.iter().find(|port| port.name == self.name);
        let report = found.ok_or_else(|| RpcError::no_such("port", &self.name).hint("port_get lists the ports"))?;
        let queues = report.port.rx_queues().len();
        if usize::from(self.queue) >= queues {
            return Err(RpcError::invalid("queue", self.queue, format!("0 to {}", queues.saturating_sub(1))));
        }
        control.move_by_hand(QueueId::port(&self.name, self.queue), self.worker).await?;
        Ok(true)
    }
}
