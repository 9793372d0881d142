//! Ports of the switch, whatever their kind.

use super::bridge::membership;
use super::{NetworkPlane, vhost_user};
use crate::blocking::blocking;
use crate::rpc::OrRefuse;
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::object::{Aspect, ObjectId};
use crate::state::registry::check_name;
use api::config::Call;
use api::notify::EventType;
use api::port::{PortDelete, PortGet, PortInfo, PortSetRateLimit};
use api::{Method, RpcError};
use l2::{Mac, PortConfig, PortNo, PortReport, RateLimit, Switch};
use port::{Counters, Port, PortError};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// MTU of a port for which the call gives none.
pub(super) const DEFAULT_MTU: u16 = 1500;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<PortGet>(), Row::of::<PortDelete>(), Row::of::<PortSetRateLimit>()]
}

/// The effect of a call that creates the port `name`.
pub(super) fn created(name: &str) -> Effect {
    let undo = Call::new(PortDelete::NAME, json!({"name": name}));
    Effect::Keep { slot: ObjectId::port(name).itself(), undo: Some(undo) }
}

/// Makes a port with `make`, off the control thread, and adds it to the switch. Returns it with its number.
pub(super) async fn add<P: Port + 'static>(
    plane: &Arc<NetworkPlane>,
    name: &str,
    config: PortConfig,
    make: impl FnOnce(&Switch) -> Result<P, PortError> + Send + 'static,
) -> Result<(Arc<P>, PortNo), RpcError> {
    check_name("name", name)?;
    let switch = plane.make_switch().await?;
    if switch.ports().iter().any(|port| port.name == name) {
        return Err(RpcError::name_taken("name", name));
    }
    let owned = name.to_owned();
    let made = blocking(move || {
        let port = Arc::new(make(&switch).or_refuse()?);
        let number = switch.add_port(&owned, port.clone(), &config).or_refuse()?;
        Ok::<_, RpcError>((port, number))
    });
    let (port, number) = made.await??;
    plane.observe.events.add(EventType::PortCreate, name, format!("{} port {number}", port.info().kind));
    Ok((port, number))
}

impl Handler for PortGet {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<Vec<PortInfo>, RpcError> {
        let mut ports = plane.switching.get().map(|switch| switch.ports()).unwrap_or_default();
        if let Some(name) = &self.name {
            ports.retain(|port| port.name == *name);
            if ports.is_empty() {
                return Err(RpcError::no_such("port", name));
            }
        }
        Ok(ports.into_iter().map(|port| describe(plane, port)).collect())
    }
}

fn describe(plane: &NetworkPlane, report: PortReport) -> PortInfo {
    let info = report.port.info();
    PortInfo {
        vhost_user: plane.vhost_user.get(&report.name).ok().map(|port| vhost_user::describe(&port)),
        stats: owned(counters(&*report.port).named()),
        switch: owned(report.path.named().chain(report.drops)),
        name: report.name,
        port_no: report.number,
        kind: info.kind.as_str().to_owned(),
        bridge: report.bridge,
        mac: Mac::from(info.mac).to_string(),
        mtu: info.mtu,
        link_up: info.link_up,
        rx_queues: info.rx_queues,
        rx_workers: report.port.rx_queues().iter().map(|queue| queue.worker).collect(),
        tx_queues: info.tx_queues,
        rate_limit: owned(limits(&report.limit).into_iter().filter_map(|(name, limit)| Some((name, limit?)))),
    }
}

fn owned(counters: impl IntoIterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// The limits by the parameter names of port_set_rate_limit.
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

impl Handler for PortDelete {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        Effect::Forget(ObjectId::port(&self.name))
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        let switch = plane.switch("port", &self.name)?;
        let bridge = switch.ports().into_iter().find(|port| port.name == self.name).and_then(|port| port.bridge);
        let guest = plane.vhost_user.take(&self.name).ok();
        let (name, capturing) = (self.name.clone(), plane.clone());
        // The last holder of the port takes it down.
        let remove = move || {
            capturing.captures.stop(&name);
            switch.remove_port(&name).map(|_| drop(guest))
        };
        blocking(remove).await?.or_refuse()?;
        if let Some(bridge) = bridge {
            plane.desired.clear(&membership(&bridge, &self.name));
        }
        plane.observe.events.add(EventType::PortDelete, &self.name, "");
        Ok(true)
    }
}

impl Handler for PortSetRateLimit {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        let slot = ObjectId::port(&self.name).aspect(Aspect::RateLimit);
        if self.packets_per_second.is_none() && self.bits_per_second.is_none() {
            return Effect::Clear(slot);
        }
        Effect::Keep { slot, undo: Some(Call::new(Self::NAME, json!({"name": self.name}))) }
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        let limit = RateLimit {
            packets_per_second: self.packets_per_second,
            burst_packets: self.burst_packets,
            bits_per_second: self.bits_per_second,
            burst_bytes: self.burst_bytes,
        };
        plane.switch("port", &self.name)?.limit_port(&self.name, limit).or_refuse()?;
        Ok(true)
    }
}
