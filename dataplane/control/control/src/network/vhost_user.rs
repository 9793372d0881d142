//! vhost-user ports: network devices of guests.

use super::NetworkPlane;
use super::port::{self, DEFAULT_MTU};
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::registry::Object;
use crate::vhost::{self, VhostController};
use api::RpcError;
use api::port::{CreateNetController, CreateVhostUser, GetNetControllers, NetControllerInfo, VhostUserInfo};
use l2::{Mac, PortConfig, PortNo};
use std::sync::Arc;
use virtio_net::{MAX_QUEUE_PAIRS, NetController, NetParams};

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<CreateVhostUser>(), Row::of::<CreateNetController>(), Row::of::<GetNetControllers>()]
}

impl Object for VhostController<Arc<NetController>> {
    const KIND: &'static str = "vhost-user port";
    const LISTED_BY: &'static str = "port_get";
    /// The switch has a limit of its own.
    const LIMIT: usize = usize::MAX;
    type Claims = ();
}

impl Handler for CreateVhostUser {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        port::created(&self.name)
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<PortNo, RpcError> {
        let parse =
            |mac: &String| mac.parse::<Mac>().map_err(|e: l2::ParseError| RpcError::invalid("mac", e.got, e.expected));
        let mac = self.mac.as_ref().map(parse).transpose()?.map(|mac: Mac| mac.octets());
        let queue_pairs = self.num_queue_pairs.unwrap_or(1);
        if !(1..=MAX_QUEUE_PAIRS).contains(&queue_pairs) {
            return Err(RpcError::invalid("num_queue_pairs", queue_pairs, format!("1 to {MAX_QUEUE_PAIRS}")));
        }
        let reservation = plane.vhost_user.reserve("name", &self.name)?;
        let (role, socket) = (vhost::role(self.socket_role), plane.sockets.path.join(&self.name));
        let (name, path, socket_mode) = (self.name.clone(), socket.clone(), plane.sockets.mode);
        let (packed_ring, mrg_rxbuf) = (self.packed_ring.unwrap_or(true), self.mrg_rxbuf.unwrap_or(true));
        let (mtu, workers) = (self.mtu.unwrap_or(DEFAULT_MTU), plane.workers.all().to_vec());
        let events = plane.controller_events.clone();
        let config = PortConfig { number: self.port_no, upcall_pps: self.upcall_pps };
        let (device, number) = port::add(plane, &self.name, config, move |switch| {
            let pool = switch.pool().clone();
            let params = NetParams {
                name,
                socket: path,
                role,
                socket_mode,
                queue_pairs,
                packed_ring,
                mrg_rxbuf,
                mtu,
                mac,
                workers,
                pool,
            };
            NetController::start(params, events)
        })
        .await?;
        reservation.fill(VhostController::new(&self.name, socket, role, device));
        // The chosen number is kept: flows name ports by number.
        self.port_no = Some(number);
        Ok(number)
    }
}

/// What port_get reports of a vhost-user port beside what it reports of all ports.
pub(super) fn describe(port: &VhostController<Arc<NetController>>) -> VhostUserInfo {
    let report = port.device.report();
    VhostUserInfo {
        socket: port.socket.display().to_string(),
        socket_role: vhost::socket_role(port.role),
        connected: report.session.connected,
        quarantined: report.quarantine.map(|quarantine| quarantine.to_string()),
        queues: vhost::started_queues(&report),
        last_error: report.session.last_error,
    }
}

/// Deprecated: `port_create_vhost_user`.
impl Handler for CreateNetController {
    type Plane = NetworkPlane;

    fn effect(&self) -> Effect {
        port::created(&self.ctrlr)
    }

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<PortNo, RpcError> {
        let mut create = CreateVhostUser {
            name: self.ctrlr.clone(),
            num_queue_pairs: self.num_queue_pairs,
            mac: self.mac.clone(),
            mtu: self.mtu,
            packed_ring: Some(!self.no_packed_ring),
            mrg_rxbuf: Some(!self.no_mrg_rxbuf),
            socket_role: self.socket_role,
            port_no: self.port_no,
            upcall_pps: self.upcall_pps,
        };
        let number = create.call(plane).await?;
        self.port_no = Some(number);
        Ok(number)
    }
}

/// Deprecated: `port_get`.
impl Handler for GetNetControllers {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<Vec<NetControllerInfo>, RpcError> {
        let ports = match &self.name {
            Some(name) => vec![plane.vhost_user.get(name)?],
            None => plane.vhost_user.list(),
        };
        let info = |port: &Arc<VhostController<Arc<NetController>>>| {
            let VhostUserInfo { socket, connected, quarantined, last_error, queues, .. } = describe(port);
            let quarantined = quarantined.is_some();
            NetControllerInfo { ctrlr: port.name.clone(), socket, connected, quarantined, last_error, rings: queues }
        };
        Ok(ports.iter().map(info).collect())
    }
}
