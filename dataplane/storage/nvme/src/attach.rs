//! The outside of the initiator: attach a controller, get its disks, look at it, detach it.

use crate::channel::{Channel, ChannelLimits};
use crate::controller::ControllerError;
use crate::event::Event;
use crate::io::{EventFd, Interest, Socket, Wire, sleep_on};
use crate::namespace::Namespace;
use crate::params::{AttachParams, InvalidParam, Settings};
use crate::port::{Counters, EventSink, Port, Shared, lock};
use crate::supervisor::{Ask, Board, Dial, Phase, Status, Supervisor};
use block::{Bdev, BlockChannel, BlockError, Geometry, Identity};
use clock::Cycles;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Sleep of the supervisor at most.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Why a controller could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A parameter cannot be used.
    #[error("{0}")]
    Invalid(#[from] InvalidParam),
    /// The target could not be reached, or refused.
    #[error("{traddr} {subnqn}: {reason} ({})", hint(.reason))]
    Failed {
        /// Where.
        traddr: SocketAddr,
        /// Which subsystem.
        subnqn: String,
        /// Why.
        reason: ControllerError,
    },
    /// It took too long altogether.
    #[error("{traddr} {subnqn}: not usable within {after:?}")]
    Timeout {
        /// Where.
        traddr: SocketAddr,
        /// Which subsystem.
        subnqn: String,
        /// The time it was given.
        after: Duration,
    },
    /// The system refused a thread or a descriptor.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// What to do about it.
fn hint(reason: &ControllerError) -> &'static str {
    use crate::link::LinkError;
    match reason {
        ControllerError::Link(LinkError::Io(io::ErrorKind::ConnectionRefused)) => {
            "nothing listens there: check traddr and trsvcid"
        }
        ControllerError::Link(LinkError::Io(_)) => "check the network to the target",
        ControllerError::Link(LinkError::Closed) => "the target closed the connection: does it speak NVMe/TCP?",
        ControllerError::Link(LinkError::Protocol(crate::pdu::ProtocolError::Unsupported {
            field: "DGST", ..
        })) => "the target does not offer these digests: change hdgst and ddgst",
        ControllerError::Link(LinkError::Protocol(_)) => "is this an NVMe/TCP target?",
        ControllerError::Refused { .. } => "check subnqn and hostnqn, and whom the target allows",
        ControllerError::Timeout { .. } => "the target is silent: check that it runs, and fabrics_connect_timeout_us",
        ControllerError::Unusable { .. } => "the target does not follow the specification",
    }
}

/// An attached controller. Dropping it detaches.
pub struct NvmeController {
    params: AttachParams,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    board: Arc<Board>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for NvmeController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeController").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

struct SocketDial {
    target: SocketAddr,
    source: Option<SocketAddr>,
}

impl Dial for SocketDial {
    fn dial(&mut self) -> io::Result<Arc<dyn Wire>> {
        Ok(Arc::new(Socket::connect(self.target, self.source)?))
    }
}

impl NvmeController {
    /// Connects to a subsystem and waits until its namespaces are known, or the first attempt failed. Blocks for at most the
    /// connect timeout and a few admin commands: not for a poll core. `sink` hears the controller's story, on its thread.
    pub fn attach(params: &AttachParams, sink: EventSink) -> Result<NvmeController, AttachError> {
        let settings = Arc::new(params.validate()?);
        let system = |what| move |source| AttachError::System { what, source };
        clock::hz();
        let wake = EventFd::new().map_err(system("eventfd"))?;
        let shared = Arc::new(Shared::new(sink, Some(wake)));
        let now = Cycles::now();
        let board = Arc::new(Board::new(now));
        let dialer = Box::new(SocketDial { target: settings.target, source: settings.source });
        let supervisor = Supervisor::new(settings.clone(), shared.clone(), board.clone(), dialer, now.0, now);
        let name = format!("nvme-{}", settings.name);
        let thread = std::thread::Builder::new().name(name).spawn({
            let shared = shared.clone();
            move || run(supervisor, &shared)
        });
        let thread = Mutex::new(Some(thread.map_err(system("thread"))?));
        let controller = NvmeController { params: params.clone(), settings, shared, board, thread };
        controller.wait_until_up()?;
        Ok(controller)
    }

    fn wait_until_up(&self) -> Result<(), AttachError> {
        let after = self.settings.connect_timeout + self.settings.admin_timeout;
        let (traddr, subnqn) = (self.settings.target, self.settings.connect.subnqn.clone());
        let end = Instant::now() + after;
        let mut status = lock(&self.board.status);
        loop {
            match (status.phase, &status.last_error) {
                (Phase::Up, _) => return Ok(()),
                (Phase::Dead, Some(reason)) => {
                    return Err(AttachError::Failed { traddr, subnqn, reason: reason.clone() });
                }
                _ => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AttachError::Timeout { traddr, subnqn, after });
            }
            status = self.board.changed.wait_timeout(status, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// The parameters it was attached with.
    pub fn params(&self) -> &AttachParams {
        &self.params
    }

    /// The host NQN in use.
    pub fn hostnqn(&self) -> &str {
        &self.settings.connect.hostnqn
    }

    /// How it is now.
    pub fn status(&self) -> Status {
        lock(&self.board.status).clone()
    }

    /// Requests that wait for a connection or a fence, and the age of the oldest.
    pub fn held(&self) -> (u64, Duration) {
        let (held, oldest) = self.shared.held();
        (held, Cycles::now().since(oldest).to_duration())
    }

    /// What went wrong so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// One disk a namespace, as they are now, by NSID.
    pub fn namespaces(&self) -> Vec<(u32, Arc<dyn Bdev>)> {
        let namespaces = lock(&self.board.namespaces);
        let disk = |(&nsid, namespace): (&u32, &Arc<Namespace>)| {
            let disk = Disk {
                namespace: namespace.clone(),
                settings: self.settings.clone(),
                shared: self.shared.clone(),
                board: self.board.clone(),
            };
            (nsid, Arc::new(disk) as Arc<dyn Bdev>)
        };
        namespaces.iter().map(disk).collect()
    }

    /// Resets the controller: its association ends and a new one begins; requests are held meanwhile.
    pub fn reset(&self) {
        ask(&self.board, &self.shared, Ask::Reset);
    }

    /// Shuts the controller down. Requests that are under way fail once it has let go of them; disks of it never work again.
    pub fn detach(&self) {
        ask(&self.board, &self.shared, Ask::Stop);
        let end = Instant::now() + Duration::from_secs(5);
        let mut status = lock(&self.board.status);
        while status.phase != Phase::Dead && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            status = self.board.changed.wait_timeout(status, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }
}

impl Drop for NvmeController {
    fn drop(&mut self) {
        ask(&self.board, &self.shared, Ask::Stop);
        // The thread ends by itself, when the last fence has fallen.
        drop(lock(&self.thread).take());
    }
}

fn ask(board: &Board, shared: &Shared, ask: Ask) {
    lock(&board.asks).push_back(ask);
    shared.wake_supervisor();
}

fn run(mut supervisor: Supervisor, shared: &Shared) {
    let mut interests = Vec::new();
    while !supervisor.is_finished() {
        supervisor.turn(Cycles::now());
        interests.clear();
        interests.extend(shared.wake_fd().map(|wake| Interest { fd: wake.as_raw_fd(), writable: false }));
        supervisor.interests(&mut interests);
        let left = supervisor.deadline().since(Cycles::now()).to_duration();
        if !left.is_zero() {
            sleep_on(&interests, left.min(MAX_SLEEP));
        }
        if let Some(wake) = shared.wake_fd() {
            wake.clear();
        }
    }
}

/// A namespace behind the block seam.
#[derive(Debug)]
struct Disk {
    namespace: Arc<Namespace>,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    board: Arc<Board>,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Connecting => "connecting",
            Phase::Up => "up",
            Phase::Reconnecting => "reconnecting",
            Phase::Dead => "dead",
        })
    }
}

impl Bdev for Disk {
    fn identity(&self) -> &Identity {
        &self.namespace.identity
    }

    fn geometry(&self) -> Geometry {
        self.namespace.geometry()
    }

    /// Opens an I/O queue: the channel can be used at once and holds requests until its queue is connected.
    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        let port = open_port(&self.shared, &self.board, true)?;
        self.shared.wake_supervisor();
        let limits = ChannelLimits { io_timeout: self.settings.io_timeout, retries: self.settings.retries };
        Ok(Box::new(Channel::new(self.namespace.clone(), self.shared.clone(), port, limits)))
    }

    /// Asks the controller for its namespaces now and waits for the answer, at most the admin timeout.
    fn rescan(&self) -> Result<bool, BlockError> {
        let before = self.geometry();
        let mut status = lock(&self.board.status);
        let seen = status.scans;
        ask(&self.board, &self.shared, Ask::Rescan);
        let end = Instant::now() + self.settings.admin_timeout;
        while status.scans == seen && status.phase == Phase::Up && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            status = self.board.changed.wait_timeout(status, left).unwrap_or_else(|e| e.into_inner()).0;
        }
        if status.scans == seen {
            let (field, got) = ("controller", status.phase.to_string());
            return Err(BlockError::Invalid { field, got, expected: "up and answering".to_owned() });
        }
        drop(status);
        Ok(self.geometry() != before)
    }
}

/// Takes a free I/O queue: the one that was free the longest, as the target needs time to let go of the last user's.
pub(crate) fn open_port(shared: &Shared, board: &Board, with_wake: bool) -> Result<Arc<Port>, BlockError> {
    let granted = lock(&board.status).facts.io_queues.max(1);
    let mut ports = lock(&shared.ports);
    let last = shared.last_queue();
    let in_turn = (0..granted).map(|ahead| (last + ahead) % granted + 1);
    let free = in_turn.into_iter().find(|&queue| ports.iter().all(|port| port.queue != queue));
    let queue = free.ok_or_else(|| BlockError::Invalid {
        field: "num_io_queues",
        got: format!("channel {}", granted + 1),
        expected: format!("at most {granted}: as many I/O queues as the target grants, one a channel"),
    })?;
    let system = |source| BlockError::Io { what: "epoll", path: "channel".to_owned(), source };
    let port = Arc::new(Port::new(queue, with_wake).map_err(system)?);
    ports.push(port.clone());
    shared.set_last_queue(queue);
    Ok(port)
}

/// A sink that drops all events.
pub fn no_events() -> EventSink {
    Arc::new(|_: &Event| {})
}
