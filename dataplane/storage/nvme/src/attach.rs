//! The outside of the initiator: attach a controller, get its disks, look at it, detach it.

use crate::channel::{Channel, ChannelLimits};
use crate::controller::ControllerError;
use crate::event::EventSink;
use crate::io::{ByteStream, Socket};
use crate::io_queue::{Counters, IoQueue, IoQueues};
use crate::namespace::Namespace;
use crate::params::{AttachParams, Settings};
use crate::supervisor::{Command, Dial, Phase, SharedStatus, Status, Supervisor};
use block::{Bdev, BlockChannel, BlockError, Geometry, Identity};
use clock::Cycles;
use initiator::{CommandQueue, SupervisorWake};
use invalid::Invalid;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for a controller to shut down.
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a controller could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A parameter cannot be used.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The target could not be reached, or refused.
    #[error("{traddr} {subnqn}: {reason} ({})", hint(.reason))]
    Failed {
        /// The target's address.
        traddr: SocketAddr,
        /// The subsystem.
        subnqn: String,
        /// The cause.
        reason: Box<ControllerError>,
    },
    /// Attaching took too long altogether.
    #[error("{traddr} {subnqn}: not usable within {after:?}")]
    Timeout {
        /// The target's address.
        traddr: SocketAddr,
        /// The subsystem.
        subnqn: String,
        /// The time it was given.
        after: Duration,
    },
    /// The system refused a thread or a descriptor.
    #[error("{what}: {source}")]
    System {
        /// The resource that was asked for.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// The operator's remedy for an error.
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
        ControllerError::Unusable(_) => "the target does not follow the specification",
    }
}

/// An attached controller. Dropping it detaches.
pub struct NvmeController {
    params: AttachParams,
    settings: Arc<Settings>,
    io_queues: Arc<IoQueues>,
    shared_status: Arc<SharedStatus>,
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
    fn dial(&mut self) -> io::Result<Arc<dyn ByteStream>> {
        Ok(Arc::new(Socket::connect(self.target, self.source)?))
    }
}

impl NvmeController {
    /// Connects to a subsystem and waits until its namespaces are known, or the first attempt failed. Blocks for at most the
    /// connect timeout and a few admin commands: not for a poll core. `sink` receives the controller's events, on its thread.
    pub fn attach(params: &AttachParams, sink: EventSink) -> Result<NvmeController, AttachError> {
        let settings = Arc::new(params.validate()?);
        let system = |what| move |source| AttachError::System { what, source };
        clock::hz();
        let wake = SupervisorWake::new().map_err(system("eventfd"))?;
        let io_queues = Arc::new(IoQueues::new(sink, wake.clone()));
        let now = Cycles::now();
        let shared_status = Arc::new(SharedStatus::new(CommandQueue::new(wake.clone()), now));
        let dialer = Box::new(SocketDial { target: settings.target, source: settings.source });
        let supervisor =
            Supervisor::new(settings.clone(), io_queues.clone(), shared_status.clone(), dialer, now.0, now);
        // The thread ends by itself, when the last fence has fallen.
        initiator::spawn(format!("nvme-{}", settings.name), supervisor, wake).map_err(system("thread"))?;
        let controller = NvmeController { params: params.clone(), settings, io_queues, shared_status };
        controller.wait_until_up()?;
        Ok(controller)
    }

    fn wait_until_up(&self) -> Result<(), AttachError> {
        let after = self.settings.connect_timeout + self.settings.admin_timeout;
        let (traddr, subnqn) = (self.settings.target, self.settings.connect.subnqn.clone());
        let end = Instant::now() + after;
        let mut status = self.shared_status.current.lock();
        loop {
            match (status.phase, &status.last_error) {
                (Phase::Up, _) => return Ok(()),
                (Phase::Dead, Some(reason)) => {
                    return Err(AttachError::Failed { traddr, subnqn, reason: Box::new(reason.clone()) });
                }
                _ => {}
            }
            if self.shared_status.changed.wait_until(&mut status, end).timed_out() {
                return Err(AttachError::Timeout { traddr, subnqn, after });
            }
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

    /// The status of the controller.
    pub fn status(&self) -> Status {
        self.shared_status.current.lock().clone()
    }

    /// Requests that wait for a connection or a fence, and the age of the oldest.
    pub fn held(&self) -> (u64, Duration) {
        let (held, oldest) = self.io_queues.held();
        (held, Cycles::now().since(oldest).to_duration())
    }

    /// Errors and retries so far.
    pub fn counters(&self) -> Counters {
        self.io_queues.counters()
    }

    /// One disk a namespace, as they are now, by NSID.
    pub fn namespaces(&self) -> Vec<(u32, Arc<dyn Bdev>)> {
        let namespaces = self.shared_status.namespaces.lock();
        let disk = |(&nsid, namespace): (&u32, &Arc<Namespace>)| {
            let disk = Disk {
                namespace: namespace.clone(),
                settings: self.settings.clone(),
                io_queues: self.io_queues.clone(),
                shared_status: self.shared_status.clone(),
            };
            (nsid, Arc::new(disk) as Arc<dyn Bdev>)
        };
        namespaces.iter().map(disk).collect()
    }

    /// Resets the controller: its association ends and a new one begins; requests are held meanwhile.
    pub fn reset(&self) {
        self.shared_status.commands.send(Command::Reset);
    }

    /// Shuts the controller down. Requests that are under way fail once it has let go of them; disks of it never work again.
    pub fn detach(&self) {
        self.shared_status.commands.send(Command::Stop);
        let mut status = self.shared_status.current.lock();
        self.shared_status.changed.wait_while_for(&mut status, |status| status.phase != Phase::Dead, DETACH_TIMEOUT);
    }
}

impl Drop for NvmeController {
    fn drop(&mut self) {
        self.shared_status.commands.send(Command::Stop);
    }
}

/// A namespace behind the block seam.
#[derive(Debug)]
struct Disk {
    namespace: Arc<Namespace>,
    settings: Arc<Settings>,
    io_queues: Arc<IoQueues>,
    shared_status: Arc<SharedStatus>,
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
        let queue = open_queue(&self.io_queues, &self.shared_status, true)?;
        self.io_queues.wake.wake();
        let limits = ChannelLimits { io_timeout: self.settings.io_timeout, retries: self.settings.retries };
        Ok(Box::new(Channel::new(self.namespace.clone(), self.io_queues.clone(), queue, limits)))
    }

    /// Asks the controller for its namespaces now and waits for the answer, at most the admin timeout.
    fn rescan(&self) -> Result<bool, BlockError> {
        let before = self.geometry();
        let mut status = self.shared_status.current.lock();
        let seen = status.scans;
        self.shared_status.commands.send(Command::Rescan);
        let unseen = |status: &mut Status| status.scans == seen && status.phase == Phase::Up;
        self.shared_status.changed.wait_while_for(&mut status, unseen, self.settings.admin_timeout);
        if status.scans == seen {
            return Err(Invalid::new("controller", status.phase, "up and answering").into());
        }
        drop(status);
        Ok(self.geometry() != before)
    }
}

/// Opens an I/O queue for a channel.
pub(crate) fn open_queue(
    io_queues: &IoQueues,
    shared_status: &SharedStatus,
    with_wake: bool,
) -> Result<Arc<IoQueue>, BlockError> {
    let granted = shared_status.current.lock().facts.io_queues.max(1);
    let system = |source| BlockError::Io { what: "epoll", path: "channel".to_owned(), source };
    io_queues.open(granted, with_wake).map_err(system)?.ok_or_else(|| {
        let expected = format!("at most {granted}: as many I/O queues as the target grants, one a channel");
        Invalid::new("num_io_queues", format!("channel {}", granted + 1), expected).into()
    })
}
