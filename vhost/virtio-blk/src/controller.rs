//! A controller: one vhost-user device with its socket and its session thread.

use crate::device::{Device, Place, Session};
use crate::shard::DeviceState;
use crate::{EventSink, MAX_QUEUES, MoveError, Role};
use block::{Bdev, IoStats};
use engine::WorkerHandle;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vhost_user::{Control, Endpoint, SessionStatus, Socket, SocketError};
use virtio_spec::blk::ID_LEN;

/// How long a controller that is stopped waits for requests in flight before it gives them up.
const DRAIN: Duration = Duration::from_secs(5);

/// What a controller is made of.
#[derive(Clone)]
pub struct ControllerParams {
    /// Its name.
    pub name: String,
    /// The path of its socket.
    pub socket: PathBuf,
    /// Who listens: we (server) or the front-end (client).
    pub role: Role,
    /// Permissions of a socket that we make.
    pub socket_mode: u32,
    /// The guest may not write.
    pub read_only: bool,
    /// The packed layout is offered.
    pub packed_ring: bool,
    /// Queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// The workers that its queues are dealt to in turn; at least one.
    pub workers: Vec<WorkerHandle>,
}

/// Why a controller could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// A parameter is out of its range.
    #[error("{field}: got {got}, expected {expected}")]
    Invalid {
        /// The parameter.
        field: &'static str,
        /// What was given.
        got: u64,
        /// What is accepted.
        expected: String,
    },
    /// The socket could not be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The session's thread could not be started.
    #[error("thread: {0}")]
    Thread(std::io::Error),
}

/// A controller at one moment.
#[derive(Clone, Debug)]
pub struct ControllerReport {
    /// The session with the front-end.
    pub session: SessionStatus,
    /// The device takes nothing until its front-end sets it up again; the event said why.
    pub quarantined: bool,
    /// Requests in flight.
    pub in_flight: u32,
    /// Its queues.
    pub queues: Vec<QueueReport>,
}

/// A queue at one moment.
#[derive(Clone, Debug)]
pub struct QueueReport {
    /// The worker that serves it, or will when it starts.
    pub worker: usize,
    /// The front-end has started it.
    pub started: bool,
    /// The front-end has enabled it.
    pub enabled: bool,
    /// Entries; 0 before the first start.
    pub size: u16,
    /// Packed layout.
    pub packed: bool,
}

/// A controller. Serves until it is stopped.
pub struct Controller {
    device: Arc<Device>,
    control: Control,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Makes the socket and starts to serve `bdev` on it.
    pub fn start(
        params: ControllerParams,
        bdev: Arc<dyn Bdev>,
        events: EventSink,
    ) -> Result<Controller, ControllerError> {
        let invalid = |field, got, expected| Err(ControllerError::Invalid { field, got, expected });
        if params.queues == 0 || params.queues > MAX_QUEUES {
            return invalid("num_queues", u64::from(params.queues), format!("1 to {MAX_QUEUES}"));
        }
        if params.workers.is_empty() {
            return invalid("workers", 0, "at least one".to_owned());
        }
        let endpoint = Endpoint { path: params.socket, role: params.role, mode: params.socket_mode };
        let socket = Socket::open(endpoint)?;
        let name: Arc<str> = params.name.into();
        let id = id_string(&bdev.identity().name);
        let state = Arc::new(DeviceState { name: name.clone(), id, quarantined: AtomicBool::new(false), events });
        let offer = (params.read_only, params.packed_ring, params.queues);
        let device = Arc::new(Device::new(bdev, state, offer, params.workers));
        let control = Control::new().map_err(ControllerError::Thread)?;
        let (mut session, handle) = (Session(device.clone()), control.clone());
        let thread = std::thread::Builder::new()
            .name(format!("vhost-{name}"))
            .spawn(move || vhost_user::serve(&socket, &mut session, &handle))
            .map_err(ControllerError::Thread)?;
        Ok(Controller { device, control, thread: Some(thread) })
    }

    /// The disk's geometry has changed: workers check against the new one, and the guest is told.
    pub fn resized(&self) {
        self.device.publish_geometry();
        self.control.config_changed();
    }

    /// Moves a queue to another worker while it serves.
    pub fn move_queue(&self, queue: u16, worker: &WorkerHandle) -> Result<(), MoveError> {
        self.device.move_queue(queue, worker)
    }

    /// What it is doing.
    pub fn report(&self) -> ControllerReport {
        let queue = |place: Place| QueueReport {
            worker: place.worker.id(),
            started: place.started,
            enabled: place.enabled,
            size: place.size,
            packed: place.packed,
        };
        ControllerReport {
            session: self.control.status(),
            quarantined: self.device.state.quarantined.load(Ordering::Relaxed),
            in_flight: self.device.in_flight(),
            queues: self.device.places().into_iter().map(queue).collect(),
        }
    }

    /// Statistics, one a worker that served the disk.
    pub fn stats(&self) -> Vec<Arc<IoStats>> {
        self.device.stats()
    }

    /// Ends the session and waits for what is in flight, but not for ever: see [`block::BlockChannel`] for what becomes of
    /// requests that a backend does not finish.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.control.stop();
        let deadline = Instant::now() + DRAIN;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.device.abandon.store(true, Ordering::Relaxed);
        drop(thread.join());
        self.device.tear_down();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// The device id string: the disk's name, cut to 20 bytes (virtio 1.3, 5.2.6).
fn id_string(name: &str) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    let len = name.len().min(ID_LEN);
    id[..len].copy_from_slice(&name.as_bytes()[..len]);
    id
}
