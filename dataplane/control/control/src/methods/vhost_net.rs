//! Network devices of guests: ports that speak vhost-user.

use super::port::{self, DEFAULT_MTU};
use crate::Control;
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use crate::scheduler::QueueId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use switch::{Mac, PortConfig, PortNo};
use virtio_net::{MAX_QUEUE_PAIRS, NetController, NetParams, Report, Role};

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<VhostCreateNetController>(),
        Entry::of::<VhostGetNetControllers>(),
        Entry::of::<VhostNetControllerMoveQueuePair>(),
    ]
}

/// Gives a guest a network device: a port of the switch whose vhost-user socket appears in the daemon's vhost directory.
/// `port_delete` takes it away.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VhostCreateNetController {
    /// Its name, that of the port and that of its socket.
    ctrlr: String,
    /// Queue pairs that a guest may use, 1 to 64; 1 when it is not given. They are dealt to the workers in turn.
    num_queue_pairs: Option<u16>,
    /// The guest's address, for reports. The front-end gives the guest its own.
    mac: Option<String>,
    /// Most bytes of a frame's payload; 1500 when it is not given.
    mtu: Option<u16>,
    /// The packed ring layout is not offered.
    #[serde(default)]
    no_packed_ring: bool,
    /// Mergeable receive buffers are not offered.
    #[serde(default)]
    no_mrg_rxbuf: bool,
    /// Who listens on the socket: "server" (this daemon, the default) or "client" (the front-end; this daemon connects, and
    /// again after a loss).
    socket_role: Option<SocketRole>,
    /// Its number in flows; the next free one when it is not given.
    port_no: Option<PortNo>,
    /// Packets a second, on each worker, for which the translation may be asked; any number when it is not given.
    upcall_pps: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum SocketRole {
    Server,
    Client,
}

impl Method for VhostCreateNetController {
    const NAME: &'static str = "vhost_create_net_controller";
    type Output = PortNo;

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

/// Lists the network devices of guests. `port_get` has their counters.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VhostGetNetControllers {
    /// Only this one.
    name: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct GuestInfo {
    ctrlr: String,
    socket: String,
    connected: bool,
    /// Whether it serves nothing until its front-end sets it up again; an event said why.
    quarantined: bool,
    /// The last message of the front-end that was refused, or why the last session ended.
    last_error: Option<String>,
    /// The rings that a front-end has started: receive and transmit of pair 0, of pair 1, and so on.
    rings: Vec<RingInfo>,
}

#[derive(Serialize, JsonSchema)]
struct RingInfo {
    index: usize,
    worker: usize,
    enabled: bool,
    size: u16,
    packed: bool,
}

impl Method for VhostGetNetControllers {
    const NAME: &'static str = "vhost_get_net_controllers";
    type Output = Vec<GuestInfo>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<GuestInfo>, RpcError> {
        let guests = match &self.name {
            Some(name) => vec![(name.clone(), control.switching.guest(name)?)],
            None => control.switching.guests(),
        };
        let describe = |(name, guest): &(String, Arc<NetController>)| describe(control, name, guest.report());
        Ok(guests.iter().map(describe).collect())
    }
}

fn describe(control: &Control, name: &str, report: Report) -> GuestInfo {
    let started = report.queues.iter().enumerate().filter(|(_, ring)| ring.started);
    let rings = started.map(|(index, ring)| RingInfo {
        index,
        worker: ring.worker.id(),
        enabled: ring.enabled,
        size: ring.size,
        packed: ring.packed,
    });
    GuestInfo {
        ctrlr: name.to_owned(),
        socket: control.vhost_dir.join(name).display().to_string(),
        connected: report.session.connected,
        quarantined: report.quarantined,
        rings: rings.collect(),
        last_error: report.session.last_error,
    }
}

/// Moves a queue pair of a guest's network device to another worker while it serves, as `port_move_queue` does.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VhostNetControllerMoveQueuePair {
    /// The controller.
    ctrlr: String,
    /// The queue pair, from 0.
    pair: u16,
    /// The worker, from 0; when it is not given, the pair stays where it is and may be moved by load again.
    worker: Option<usize>,
}

impl Method for VhostNetControllerMoveQueuePair {
    const NAME: &'static str = "vhost_net_controller_move_queue_pair";
    type Output = bool;

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
