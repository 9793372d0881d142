//! Ethernet devices of DPDK as ports.

use super::{NetworkPlane, port};
#[cfg(feature = "dpdk")]
use crate::blocking::blocking;
use crate::rpc::method::{Effect, Handler, Row};
use api::RpcError;
use api::port::CreateDpdk;
use l2::PortNo;
use std::sync::Arc;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<CreateDpdk>()]
}

impl Handler for CreateDpdk {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        port::created(&self.name)
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<PortNo, RpcError> {
        if self.queues == Some(0) {
            return Err(RpcError::invalid("queues", 0, "at least 1"));
        }
        let number = make(self, plane).await?;
        // What was chosen is kept: flows name ports by number.
        self.port_no = Some(number);
        Ok(number)
    }
}

#[cfg(feature = "dpdk")]
async fn make(call: &CreateDpdk, plane: &Arc<NetworkPlane>) -> Result<PortNo, RpcError> {
    use ::port::{EthdevParams, EthdevPort};
    let starting = plane.clone();
    let started = blocking(move || starting.switching.dpdk.start());
    let (eal, pool) = started.await??;
    let queues = call.queues.unwrap_or(0);
    let workers = plane.workers.all().len() as u16;
    let params = EthdevParams {
        rx_queues: queues,
        tx_queues: queues,
        mtu: call.mtu,
        ..EthdevParams::new(&call.devargs, &pool, workers)
    };
    let config = l2::PortConfig { number: call.port_no, upcall_pps: call.upcall_pps };
    let (_, number) = port::add(plane, &call.name, config, move |_| EthdevPort::open(&eal, &params)).await?;
    Ok(number)
}

#[cfg(not(feature = "dpdk"))]
async fn make(_: &CreateDpdk, _: &Arc<NetworkPlane>) -> Result<PortNo, RpcError> {
    let error = RpcError::errno(libc::ENOTSUP, "this daemon was built without DPDK");
    Err(error.hint("take a build with the feature dpdk, or a port of another kind: tap, vhost-user"))
}
