//! A controller: a guest's network device behind its socket, and a port of the switch.

use crate::queue::NetQueue;
use crate::shard::{NetDeviceState, Shard};
use crate::{DeviceEventSink, MAX_MTU, MAX_QUEUE_PAIRS, MAX_QUEUE_SIZE, MIN_MTU, MoveQueueError, Role, features};
use crossbeam::utils::CachePadded;
use engine::WorkerHandle;
use invalid::Invalid;
use packet::Pool;
use parking_lot::Mutex;
use port::{Port, PortError, PortInfo, PortKind, PortShard, PortStats, QueueReport};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vhost_device::{
    ControllerError, ControllerReport, DeviceController, DeviceFault, DeviceHealth, QueuePlace, VhostDevice,
};
use vhost_user::{Change, Endpoint, Properties, Refusal, RingStart, protocol_feature};

/// The parameters of a guest's network device.
#[derive(Clone)]
pub struct NetParams {
    /// The name of the controller, in reports and events.
    pub name: String,
    /// The path of the vhost-user socket.
    pub socket: PathBuf,
    /// Which end listens: the controller (server) or the front-end (client).
    pub role: Role,
    /// Permissions of a socket on which the controller listens.
    pub socket_mode: u32,
    /// Queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// The packed layout is offered.
    pub packed_ring: bool,
    /// Mergeable receive buffers are offered.
    pub mrg_rxbuf: bool,
    /// Most bytes of a frame's payload, [`MIN_MTU`] to [`MAX_MTU`]; longer frames are dropped, both ways.
    pub mtu: u16,
    /// The guest's address, where it is known: for reports. The front-end gives the guest its own.
    pub mac: Option<[u8; 6]>,
    /// The workers that queue pairs are assigned to round-robin; at least one.
    pub workers: Vec<WorkerHandle>,
    /// Where packets from the guest are put.
    pub pool: Pool,
}

/// A guest's network device. Serves until it is dropped.
pub struct NetController(DeviceController<NetDevice>);

/// A guest's network device, as its session, its workers and the switch share it.
struct NetDevice {
    state: Arc<NetDeviceState>,
    properties: Properties,
    mtu: u16,
    mac: [u8; 6],
    pool: Pool,
    stats: Mutex<Vec<Arc<PortStats>>>,
}

impl NetController {
    /// Makes the socket and starts to serve on it. Packets move once the port's shards are open.
    pub fn start(params: NetParams, events: DeviceEventSink) -> Result<NetController, PortError> {
        check("queue_pairs", params.queue_pairs, 1, MAX_QUEUE_PAIRS)?;
        check("mtu", params.mtu, MIN_MTU, MAX_MTU)?;
        let endpoint = Endpoint { path: params.socket, role: params.role, mode: params.socket_mode };
        let device = NetDevice {
            state: Arc::new(NetDeviceState::new(
                DeviceHealth::new(params.name.into(), events),
                params.mtu,
                params.queue_pairs,
            )),
            properties: Properties {
                features: features::offered(params.queue_pairs, params.packed_ring, params.mrg_rxbuf),
                protocol_features: protocol_feature::RARP
                    | protocol_feature::NET_MTU
                    | protocol_feature::INFLIGHT_SHMFD,
                queues: params.queue_pairs * 2,
                max_queue_size: MAX_QUEUE_SIZE,
            },
            mtu: params.mtu,
            mac: params.mac.unwrap_or_default(),
            pool: params.pool,
            stats: Mutex::default(),
        };
        // Both rings of a pair on the same worker.
        let workers: Vec<_> = params.workers.iter().flat_map(|worker| [worker.clone(), worker.clone()]).collect();
        DeviceController::start(device, endpoint, &workers).map(NetController).map_err(port_error)
    }

    /// Moves both rings of a queue pair to another worker while it serves.
    pub fn move_queue_pair(&self, pair: u16, worker: &WorkerHandle) -> Result<(), MoveQueueError> {
        let last = self.0.device().properties.queues / 2 - 1;
        if pair > last {
            return Err(MoveQueueError::NoSuchQueue { got: pair, last });
        }
        self.0.move_queue(pair * 2, worker)?;
        self.0.move_queue(pair * 2 + 1, worker)
    }

    /// The state of the controller and of its queues: the guest's receive and transmit ring of pair 0, of pair 1, and so on.
    pub fn report(&self) -> ControllerReport {
        self.0.report()
    }
}

fn check<T: PartialOrd + Display>(field: &'static str, got: T, least: T, most: T) -> Result<(), PortError> {
    if got < least || got > most {
        return Err(Invalid::new(field, got, format_args!("{least} to {most}")).into());
    }
    Ok(())
}

fn port_error(error: ControllerError) -> PortError {
    match error {
        ControllerError::Invalid(invalid) => invalid.into(),
        ControllerError::Socket(source) => {
            PortError::Other { what: "vhost-user socket".to_owned(), source: source.into() }
        }
        ControllerError::Thread(source) => PortError::Os { what: "thread".to_owned(), source },
    }
}

impl Port for NetController {
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        let device = self.0.device();
        let stats = Arc::<PortStats>::default();
        device.stats.lock().push(stats.clone());
        let (state, queues, pool) = (device.state.clone(), self.0.open(worker), device.pool.clone());
        Ok(Box::new(Shard { state, queues, pool, stats, first: 0 }))
    }

    fn info(&self) -> PortInfo {
        let (device, places) = (self.0.device(), self.0.places());
        let in_use = |parity| {
            let ring = |(index, place): &(usize, &QueuePlace)| index % 2 == parity && place.started && place.enabled;
            places.iter().enumerate().filter(ring).count() as u16
        };
        let (tx_queues, rx_queues) = (in_use(0), in_use(1));
        PortInfo {
            kind: PortKind::VhostUser,
            mac: device.mac,
            mtu: device.state.mtu.load(Ordering::Relaxed),
            link_up: rx_queues > 0 && tx_queues > 0 && !device.state.health.is_quarantined(),
            rx_queues,
            tx_queues,
        }
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        self.0.device().stats.lock().clone()
    }

    fn move_rx_queue(&self, pair: u16, worker: &WorkerHandle) -> Result<(), PortError> {
        self.move_queue_pair(pair, worker).map_err(|error| match error {
            MoveQueueError::NoSuchQueue { got, last } => Invalid::new("queue", got, format_args!("0 to {last}")).into(),
            error => PortError::Other { what: "move".to_owned(), source: error.into() },
        })
    }

    /// One for each queue pair.
    fn rx_queues(&self) -> Vec<QueueReport> {
        let places = self.0.places();
        let pairs = places.iter().step_by(2).zip(&self.0.device().state.received);
        let report = |(place, packets): (&QueuePlace, &CachePadded<AtomicU64>)| QueueReport {
            worker: Some(place.worker.id()),
            packets: packets.load(Ordering::Relaxed),
        };
        pairs.map(report).collect()
    }
}

impl VhostDevice for NetDevice {
    type DeviceQueue = NetQueue;

    fn health(&self) -> &DeviceHealth {
        &self.state.health
    }

    fn properties(&self) -> Properties {
        self.properties
    }

    fn queue(&self, start: RingStart) -> Result<NetQueue, DeviceFault> {
        NetQueue::new(start)
    }

    fn apply(&self, change: Change) -> Result<(), Refusal> {
        match change {
            Change::SendRarp { mac } => self.state.announce(mac),
            Change::SetMtu(wanted) => self.state.mtu.store(wanted.min(MAX_MTU), Ordering::Relaxed),
            Change::Reset => self.state.mtu.store(self.mtu, Ordering::Relaxed),
            other => return Err(Refusal::new(format!("not a network device's: {other:?}"))),
        }
        Ok(())
    }
}
