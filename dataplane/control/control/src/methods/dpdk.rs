//! Ethernet devices of DPDK as ports.

use super::port;
use crate::Control;
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use switch::PortNo;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<PortCreateDpdk>()]
}

/// Makes a port of an Ethernet device of DPDK: a NIC, or a virtual one (af_packet, af_xdp, pcap, memif, tap, null). The first
/// starts DPDK, with the daemon's --eal options.
#[derive(Serialize, Deserialize, JsonSchema)]
struct PortCreateDpdk {
    /// The port's name.
    name: String,
    /// The device, as DPDK names it: 0000:03:00.0, or `net_af_packet0,iface=eth1`.
    devargs: String,
    /// Queues each way; one for each worker, as far as the device has them, when it is not given. They are dealt to the workers in
    /// turn.
    queues: Option<u16>,
    /// The device's MTU, where it is to change.
    mtu: Option<u16>,
    /// Its number in flows; the next free one when it is not given.
    port_no: Option<PortNo>,
    /// Packets a second, on each worker, for which the translation may be asked; any number when it is not given.
    upcall_pps: Option<u64>,
}

impl Method for PortCreateDpdk {
    const NAME: &'static str = "port_create_dpdk";
    type Output = PortNo;

    fn effect(&self) -> Effect {
        port::created(&self.name)
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<PortNo, RpcError> {
        if self.queues == Some(0) {
            return Err(RpcError::invalid("queues", 0, "at least 1"));
        }
        let number = self.make(control).await?;
        // What was chosen is kept: flows name ports by number.
        self.port_no = Some(number);
        Ok(number)
    }
}

#[cfg(feature = "dpdk")]
impl PortCreateDpdk {
    async fn make(&self, control: &Arc<Control>) -> Result<PortNo, RpcError> {
        use ::port::{EthdevParams, EthdevPort};
        let starting = control.clone();
        let started = crate::rpc::method::blocking(move || starting.switching.dpdk.start());
        let (eal, pool) = started.await??;
        let queues = self.queues.unwrap_or(0);
        let workers = control.workers() as u16;
        let params = EthdevParams {
            rx_queues: queues,
            tx_queues: queues,
            mtu: self.mtu,
            ..EthdevParams::new(&self.devargs, &pool, workers)
        };
        let config = switch::PortConfig { number: self.port_no, upcall_pps: self.upcall_pps };
        let (_, number) = port::add(control, &self.name, config, move |_| EthdevPort::open(&eal, &params)).await?;
        Ok(number)
    }
}

#[cfg(not(feature = "dpdk"))]
impl PortCreateDpdk {
    async fn make(&self, _: &Arc<Control>) -> Result<PortNo, RpcError> {
        let error = RpcError::errno(libc::ENOTSUP, "this daemon was built without DPDK");
        Err(error.hint("take a build with the feature dpdk, or a port of another kind: tap, vhost-user"))
    }
}
