//! Network devices of guests: ports that speak vhost-user.

use super::port::{self, DEFAULT_MTU};
use crate::Control;
use crate::rpc::method::{Effect, Handler, Row};
use crate::scheduler::QueueId;
use api::RpcError;
use api::port::{CreateNetController, GetNetControllers, MoveQueuePair, NetControllerInfo};
use api::vhost::{QueueInfo, SocketRole};
use std::sync::Arc;
use switch::{Mac, PortConfig, PortNo};
use virtio_net::{ControllerReport, MAX_QUEUE_PAIRS, NetController, NetParams, Role};

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<CreateNetController>(), Row::of::<GetNetControllers>(), Row::of::<MoveQueuePair>()]
}

impl Handler for CreateNetController {
    fn effect(&self) -> Effect {
        port::created(&self.ctrlr)
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<PortNo, RpcError> {
        let mac = self
            .mac
            .as_deref()
            .map(|mac| mac.parse::<Mac>().map_err(|error| RpcError::invalid("mac", error.got, error.expected)));
        let mac = mac.transpose()?.map(|mac| mac.octets());
        let events = control.controller_events.clone();
        let name = self.ctrlr.clone();
        let (socket, socket_mode) = (control.vhost_dir.join(&name), control.vhost_socket_mode);
        let role = if self.socket_role == Some(SocketRole::Client) { Role::Client } else { Role::Server };
        let workers = control.engine().workers().to_vec();
        let (queue_pairs, mtu) = (self.num_queue_pairs.unwrap_or(1), self.mtu.unwrap_or(DEFAULT_MTU));
        let (packed_ring, mrg_rxbuf) = (!self.no_packed_ring, !self.no_mrg_rxbuf);
        if !(1..=MAX_QUEUE_PAIRS).contains(&queue_pairs) {
            return Err(RpcError::invalid("num_queue_pairs", queue_pairs, format!("1 to {MAX_QUEUE_PAIRS}")));
        }
        let config = PortConfig { number: self.port_no, upcall_pps: self.upcall_pps };
        let (guest, number) = port::add(control, &self.ctrlr, config, move |switch| {
            let pool = switch.pool().clone();
            let params = NetParams {
                name,
                socket,
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
        control.switching.add_guest(&self.ctrlr, guest);
        // What was chosen is kept: flows name ports by number.
        self.port_no = Some(number);
        Ok(number)
    }
}

impl Handler for GetNetControllers {
    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<NetControllerInfo>, RpcError> {
        let guests = match &self.name {
            Some(name) => vec![(name.clone(), control.switching.guest(name)?)],
            None => control.switching.guests(),
        };
        let describe = |(name, guest): &(String, Arc<NetController>)| describe(control, name, guest.report());
        Ok(guests.iter().map(describe).collect())
    }
}

fn describe(control: &Control, name: &str, report: ControllerReport) -> NetControllerInfo {
    let started = report.queues.iter().enumerate().filter(|(_, ring)| ring.started);
    let rings = started.map(|(index, ring)| QueueInfo {
        index,
        worker: ring.worker.id(),
        enabled: ring.enabled,
        size: ring.size,
        packed: ring.packed,
    });
    NetControllerInfo {
        ctrlr: name.to_owned(),
        socket: control.vhost_dir.join(name).display().to_string(),
        connected: report.session.connected,
        quarantined: report.quarantine.is_some(),
        rings: rings.collect(),
        last_error: report.session.last_error,
    }
}

impl Handler for MoveQueuePair {
    fn effect(&self) -> Effect {
        QueueId::port(&self.ctrlr, self.pair).effect(self.worker)
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let pairs = control.switching.guest(&self.ctrlr)?.report().queues.len() / 2;
        if usize::from(self.pair) >= pairs {
            return Err(RpcError::invalid("pair", self.pair, format!("0 to {}", pairs - 1)));
        }
        control.move_by_hand(QueueId::port(&self.ctrlr, self.pair), self.worker).await?;
        Ok(true)
    }
}
