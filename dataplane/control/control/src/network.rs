//! The network plane: the switch, its ports, bridges and flows, captures, and DPDK.

mod bridge;
mod capture;
mod captures;
mod dpdk;
#[cfg(feature = "dpdk")]
mod eal;
pub(crate) mod flow;
pub(crate) mod port;
pub(crate) mod switching;
mod tap;
pub(crate) mod vhost_user;

use crate::blocking::blocking;
use crate::limits;
use crate::observe::Observe;
use crate::rpc::OrRefuse;
use crate::rpc::method::Row;
use crate::state::desired::Desired;
use crate::state::registry::Registry;
use crate::vhost::{self, SocketDir, VhostController};
use crate::workers::Workers;
use ::port::Port;
use api::RpcError;
use captures::Captures;
use l2::Switch;
use std::sync::Arc;
use switching::Switching;
use virtio_net::{DeviceEventSink, NetController};

/// What the handlers of ports, bridges and flows are given.
pub(crate) struct NetworkPlane {
    pub(crate) workers: Arc<Workers>,
    pub(crate) observe: Arc<Observe>,
    pub(crate) desired: Arc<Desired>,
    pub(crate) switching: Switching,
    /// The ports that are devices of guests.
    pub(crate) vhost_user: Registry<VhostController<Arc<NetController>>>,
    pub(crate) captures: Captures,
    sockets: Arc<SocketDir>,
    /// Takes what vhost-user ports report by themselves.
    controller_events: DeviceEventSink,
}

/// The handlers of this plane. A kind of port has a file and a line here.
pub(crate) fn rows() -> Vec<Row> {
    let kinds = [tap::rows(), dpdk::rows(), vhost_user::rows()];
    let others = [bridge::rows(), capture::rows(), flow::rows(), port::rows()];
    kinds.into_iter().chain(others).flatten().collect()
}

impl NetworkPlane {
    pub(crate) fn new(
        workers: Arc<Workers>,
        observe: Arc<Observe>,
        desired: Arc<Desired>,
        sockets: Arc<SocketDir>,
        switching: Switching,
    ) -> NetworkPlane {
        let (controller_events, events) = DeviceEventSink::new(limits::CONTROLLER_EVENTS);
        let vhost_user = Registry::default();
        vhost::listen("events-net", &observe, events);
        let captures = Captures::default();
        NetworkPlane { workers, observe, desired, switching, vhost_user, captures, sockets, controller_events }
    }

    /// The switch, for looking up the object `name` of a kind.
    pub(crate) fn switch(&self, kind: &str, name: &str) -> Result<Arc<Switch>, RpcError> {
        self.switching.get().ok_or_else(|| RpcError::no_such(kind, name))
    }

    /// The port of that name.
    pub(crate) fn port(&self, name: &str) -> Result<Arc<dyn Port>, RpcError> {
        let found = self.switch("port", name)?.ports().into_iter().find(|port| port.name == name);
        found.map(|found| found.port).ok_or_else(|| RpcError::no_such("port", name).hint("port_get lists the ports"))
    }

    /// The switch, made if there is none yet.
    pub(crate) async fn make_switch(self: &Arc<NetworkPlane>) -> Result<Arc<Switch>, RpcError> {
        let _making = self.switching.making.lock().await;
        if let Some(switch) = self.switching.get() {
            return Ok(switch);
        }
        let plane = self.clone();
        let made = blocking(move || {
            let pool = plane.switching.packet_pool()?;
            let switch = Switch::start(plane.workers.all(), pool).or_refuse()?;
            #[cfg(feature = "dpdk")]
            plane.switching.offload(&switch)?;
            Ok::<_, RpcError>(switch)
        });
        let switch = Arc::new(made.await??);
        self.switching.set(switch.clone());
        Ok(switch)
    }

    /// Ends captures, ports and the switch. Waits for them.
    pub(crate) fn stop(&self) {
        self.captures.stop_all();
        self.switching.stop();
        for port in self.vhost_user.list() {
            let _ = self.vhost_user.take(&port.name); // Its last holder closes its socket.
        }
    }
}
