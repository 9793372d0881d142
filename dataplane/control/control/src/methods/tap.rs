//! Kernel taps as ports: the host's network stack, or a namespace's, in a bridge.

use super::port::{self, DEFAULT_MTU};
use crate::Control;
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use ::port::{TapParams, TapPort};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use switch::{PortConfig, PortNo};

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<PortCreateTap>()]
}

/// Makes a port that is a tap: a network interface of this host, up, which may be moved into a namespace. It goes with the port.
/// The daemon needs CAP_NET_ADMIN.
#[derive(Serialize, Deserialize, JsonSchema)]
struct PortCreateTap {
    /// The port's name.
    name: String,
    /// The interface's name, up to 15 bytes; that of the port when it is not given.
    ifname: Option<String>,
    /// Queues, 1 to 256; 1 when it is not given. They are dealt to the workers in turn.
    queues: Option<u16>,
    /// The interface's MTU, 68 to 65521; 1500 when it is not given.
    mtu: Option<u16>,
    /// Its number in flows; the next free one when it is not given.
    port_no: Option<PortNo>,
    /// Packets a second, on each worker, for which the translation may be asked; any number when it is not given.
    upcall_pps: Option<u64>,
}

impl Method for PortCreateTap {
    const NAME: &'static str = "port_create_tap";
    type Output = PortNo;

    fn effect(&self) -> Effect {
        port::created(&self.name)
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<PortNo, RpcError> {
        let name = self.ifname.clone().unwrap_or_else(|| self.name.clone());
        let (queues, mtu) = (self.queues.unwrap_or(1), self.mtu.unwrap_or(DEFAULT_MTU));
        let config = PortConfig { number: self.port_no, upcall_pps: self.upcall_pps };
        let (_, number) = port::add(control, &self.name, config, move |switch| {
            TapPort::open(TapParams { name, queues, mtu, pool: switch.pool().clone() })
        })
        .await?;
        // What was chosen is kept: flows name ports by number.
        self.port_no = Some(number);
        Ok(number)
    }
}
