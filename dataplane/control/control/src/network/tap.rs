//! Kernel taps as ports: the host's network stack, or a namespace's, in a bridge.

use super::NetworkPlane;
use super::port::{self, DEFAULT_MTU};
use crate::rpc::method::{Effect, Handler, Row};
use ::port::{TapParams, TapPort};
use api::RpcError;
use api::port::CreateTap;
use l2::{PortConfig, PortNo};
use std::sync::Arc;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<CreateTap>()]
}

impl Handler for CreateTap {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        port::created(&self.name)
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<PortNo, RpcError> {
        let name = self.ifname.clone().unwrap_or_else(|| self.name.clone());
        let (queues, mtu) = (self.queues.unwrap_or(1), self.mtu.unwrap_or(DEFAULT_MTU));
        let config = PortConfig { number: self.port_no, upcall_pps: self.upcall_pps };
        let (_, number) = port::add(plane, &self.name, config, move |switch| {
            TapPort::open(TapParams { name, queues, mtu, pool: switch.pool().clone() })
        })
        .await?;
        // What was chosen is kept: flows name ports by number.
        self.port_no = Some(number);
        Ok(number)
    }
}
