//! A controller: one vhost-user device with its socket and its session thread.

use crate::queue::NetQueue;
use crate::shard::{DeviceState, Shard};
use crate::{EventSink, MAX_MTU, MAX_QUEUE_PAIRS, MAX_QUEUE_SIZE, MIN_MTU, MoveError, Role, features};
use crossbeam::utils::CachePadded;
use engine::WorkerHandle;
use packet::Pool;
use port::{Port, PortError, PortInfo, PortShard, PortStats, QueueReport};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vhost_device::{Health, Place, Placement, Queues};
use vhost_user::{Backend, Change, Control, Endpoint, Properties, Refusal, SessionStatus, Socket, protocol_feature};

/// How long a controller that is stopped waits for its workers.
const DRAIN: Duration = Duration::from_secs(5);

/// What a controller is made of.
#[derive(Clone)]
pub struct NetParams {
    /// Its name.
    pub name: String,
    /// The path of its socket.
    pub socket: PathBuf,
    /// Who listens: we (server) or the front-end (client).
    pub role: Role,
    /// Permissions of a socket that we make.
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
    /// The workers that its queue pairs are dealt to in turn; at least one.
    pub workers: Vec<WorkerHandle>,
    /// Where packets from the guest are put.
    pub pool: Pool,
}

/// A controller at one moment.
#[derive(Clone)]
pub struct NetReport {
    /// The session with the front-end.
    pub session: SessionStatus,
    /// The device takes nothing until its front-end sets it up again; the event said why.
    pub quarantined: bool,
    /// Its rings: receive and transmit of pair 0, of pair 1, and so on.
    pub rings: Vec<Place>,
}

/// A guest's network device. Serves until it is stopped.
pub struct NetController {
    device: Arc<Device>,
    control: Control,
    thread: Option<JoinHandle<()>>,
}

/// What session and controller share.
struct Device {
    state: Arc<DeviceState>,
    placement: Placement<NetQueue>,
    properties: Properties,
    mtu: u16,
    mac: [u8; 6],
    pool: Pool,
    stats: Mutex<Vec<Arc<PortStats>>>,
}

impl NetController {
    /// Makes the socket and starts to serve on it. Packets move once the port's shards are open.
    pub fn start(params: NetParams, events: EventSink) -> Result<NetController, PortError> {
        check("queue_pairs", params.queue_pairs, 1, MAX_QUEUE_PAIRS)?;
        check("mtu", params.mtu, MIN_MTU, MAX_MTU)?;
        check("workers", params.workers.len(), 1, usize::MAX)?;
        let endpoint = Endpoint { path: params.socket, role: params.role, mode: params.socket_mode };
        let other = |what: &str, source| PortError::Other { what: what.to_owned(), source };
        let socket = Socket::open(endpoint).map_err(|e| other("vhost-user socket", e.into()))?;
        let name: Arc<str> = params.name.into();
        let rings = usize::from(params.queue_pairs) * 2;
        // Both rings of a pair on the same worker.
        let dealt = params.workers.iter().flat_map(|worker| [worker.clone(), worker.clone()]).cycle().take(rings);
        let device = Arc::new(Device {
            state: Arc::new(DeviceState::new(Health::new(name.clone(), events), params.mtu, params.queue_pairs)),
            placement: Placement::new(dealt.collect::<Vec<_>>().into_iter()),
            properties: Properties {
                features: features::offered(params.queue_pairs, params.packed_ring, params.mrg_rxbuf),
                protocol_features: protocol_feature::RARP | protocol_feature::NET_MTU,
                queues: params.queue_pairs * 2,
                max_queue_size: MAX_QUEUE_SIZE,
            },
            mtu: params.mtu,
            mac: params.mac.unwrap_or_default(),
            pool: params.pool,
            stats: Mutex::default(),
        });
        let os = |what: &str| {
            let what = what.to_owned();
            |source| PortError::Os { what, source }
        };
        let control = Control::new().map_err(os("eventfd"))?;
        let (mut session, handle) = (Session(device.clone()), control.clone());
        let thread = std::thread::Builder::new()
            .name(format!("vhost-{name}"))
            .spawn(move || vhost_user::serve(&socket, &mut session, &handle))
            .map_err(os("thread"))?;
        Ok(NetController { device, control, thread: Some(thread) })
    }

    /// Moves both rings of a queue pair to another worker while it serves.
    pub fn move_queue_pair(&self, pair: u16, worker: &WorkerHandle) -> Result<(), MoveError> {
        let last = self.device.properties.queues / 2 - 1;
        if pair > last {
            return Err(MoveError::NoSuchQueue { got: pair, last });
        }
        self.device.placement.move_queue(pair * 2, worker)?;
        self.device.placement.move_queue(pair * 2 + 1, worker)
    }

    /// What it is doing.
    pub fn report(&self) -> NetReport {
        NetReport {
            session: self.control.status(),
            quarantined: self.device.state.health.is_quarantined(),
            rings: self.device.placement.places(),
        }
    }

    fn shut_down(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.control.stop();
        let deadline = Instant::now() + DRAIN;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.device.placement.abandon();
        drop(thread.join());
        self.device.placement.close();
    }
}

impl Drop for NetController {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn check<T: PartialOrd + Display>(field: &'static str, got: T, least: T, most: T) -> Result<(), PortError> {
    if got < least || got > most {
        return Err(PortError::Invalid { field, got: got.to_string(), expected: format!("{least} to {most}") });
    }
    Ok(())
}

impl Port for NetController {
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        let device = &self.device;
        let stats = Arc::<PortStats>::default();
        device.stats.lock().expect("no panic under this lock").push(stats.clone());
        Ok(Box::new(Shard {
            state: device.state.clone(),
            queues: Queues::new(device.placement.open(worker), device.properties.queues),
            pool: device.pool.clone(),
            stats,
            first: 0,
        }))
    }

    fn info(&self) -> PortInfo {
        let places = self.device.placement.places();
        let in_use = |parity| {
            let ring = |(index, place): &(usize, &Place)| index % 2 == parity && place.started && place.enabled;
            places.iter().enumerate().filter(ring).count() as u16
        };
        let (tx_queues, rx_queues) = (in_use(0), in_use(1));
        PortInfo {
            kind: "vhost-user",
            mac: self.device.mac,
            mtu: self.device.state.mtu.load(Ordering::Relaxed),
            link_up: rx_queues > 0 && tx_queues > 0 && !self.device.state.health.is_quarantined(),
            rx_queues,
            tx_queues,
        }
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        self.device.stats.lock().expect("no panic under this lock").clone()
    }

    fn move_rx_queue(&self, pair: u16, worker: &WorkerHandle) -> Result<(), PortError> {
        self.move_queue_pair(pair, worker).map_err(|error| match error {
            MoveError::NoSuchQueue { got, last } => {
                PortError::Invalid { field: "queue", got: got.to_string(), expected: format!("0 to {last}") }
            }
            error => PortError::Other { what: "move".to_owned(), source: error.into() },
        })
    }

    /// One for each queue pair.
    fn rx_queues(&self) -> Vec<QueueReport> {
        let places = self.device.placement.places();
        let pairs = places.iter().step_by(2).zip(&self.device.state.received);
        let report = |(place, packets): (&Place, &CachePadded<AtomicU64>)| QueueReport {
            worker: Some(place.worker.id()),
            packets: packets.load(Ordering::Relaxed),
        };
        pairs.map(report).collect()
    }
}

/// The session's hold on the device.
struct Session(Arc<Device>);

impl Backend for Session {
    fn properties(&self) -> Properties {
        self.0.properties
    }

    fn read_config(&self, _: u32, _: &mut [u8]) -> Result<(), Refusal> {
        Err(Refusal::new("the configuration space of a network device is the front-end's"))
    }

    fn write_config(&mut self, _: u32, _: &[u8], _: u32) -> Result<(), Refusal> {
        Err(Refusal::new("the configuration space of a network device is the front-end's"))
    }

    fn apply(&mut self, change: Change) -> Result<(), Refusal> {
        let Device { state, placement, mtu, .. } = &*self.0;
        match placement.apply(change)? {
            None => {}
            Some(Change::StartRing(start)) => {
                placement.start(Box::new(NetQueue::new(start).map_err(Refusal::new)?))?;
            }
            Some(Change::SendRarp { mac }) => {
                state.announce(mac);
                placement.wake();
            }
            Some(Change::SetMtu(wanted)) => state.mtu.store(wanted.min(MAX_MTU), Ordering::Relaxed),
            Some(Change::Reset) => {
                state.health.recover();
                state.mtu.store(*mtu, Ordering::Relaxed);
            }
            Some(other) => return Err(Refusal::new(format!("not a network device's: {other:?}"))),
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: u16) -> Result<u32, Refusal> {
        let Device { state, placement, .. } = &*self.0;
        let queue = placement.stop(index);
        if !placement.any_started() {
            state.health.recover();
        }
        let queue = queue.ok_or_else(|| Refusal::new(MoveError::Gone(index)))?;
        Ok(queue.vring.ring.base())
    }
}
