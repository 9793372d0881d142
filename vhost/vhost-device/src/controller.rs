//! A device that serves: its socket, the thread of its sessions, and the control of both.

use crate::placement::{MoveQueueError, Placement, QueuePlace};
use crate::{Quarantine, VhostDevice, WorkerQueues};
use engine::WorkerHandle;
use invalid::Invalid;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vhost_user::{Backend, Change, Control, Endpoint, Properties, Refusal, SessionStatus, Socket, SocketError};

/// How long a controller that is stopped waits for what is in flight before it gives it up.
const DRAIN: Duration = Duration::from_secs(5);

/// A controller that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// A parameter is out of its range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The socket could not be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The session's thread could not be started.
    #[error("thread: {0}")]
    Thread(std::io::Error),
}

/// A controller at one moment.
#[derive(Clone)]
pub struct ControllerReport {
    /// The session with the front-end.
    pub session: SessionStatus,
    /// Why the device takes nothing until its front-end sets it up again; `None` while it works.
    pub quarantine: Option<Quarantine>,
    /// Chains in flight, as the workers told last.
    pub in_flight: u32,
    /// The queues of the device.
    pub queues: Vec<QueuePlace>,
}

/// A device behind a socket. Serves until it is dropped: that ends the session and waits for what is in flight, but not for ever.
pub struct DeviceController<D: VhostDevice> {
    placement: Arc<Placement<D>>,
    control: Control,
    thread: Option<JoinHandle<()>>,
}

impl<D: VhostDevice> DeviceController<D> {
    /// Makes the socket and starts to serve `device` on it. Its queues are assigned to `workers` round-robin.
    pub fn start(
        device: D,
        endpoint: Endpoint,
        workers: &[WorkerHandle],
    ) -> Result<DeviceController<D>, ControllerError> {
        if workers.is_empty() {
            return Err(Invalid::new("workers", 0, "at least one").into());
        }
        let socket = Socket::open(endpoint)?;
        let name = format!("vhost-{}", device.health().name());
        let placement = Arc::new(Placement::new(device, workers));
        let control = Control::new().map_err(ControllerError::Thread)?;
        let (mut session, handle) = (Session(placement.clone()), control.clone());
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || vhost_user::serve(&socket, &mut session, &handle))
            .map_err(ControllerError::Thread)?;
        Ok(DeviceController { placement, control, thread: Some(thread) })
    }

    /// The device.
    pub fn device(&self) -> &D {
        self.placement.device()
    }

    /// Opens the device on `worker`, where [`VhostDevice::source`] leaves that to others. Queues that wait for the worker come first.
    pub fn open(&self, worker: &WorkerHandle) -> WorkerQueues<D::DeviceQueue> {
        self.placement.open(worker)
    }

    /// Moves a queue to another worker while it serves.
    pub fn move_queue(&self, index: u16, worker: &WorkerHandle) -> Result<(), MoveQueueError> {
        self.placement.move_queue(index, worker)
    }

    /// The device's configuration space changed: workers look at it anew, and the front-end is told.
    pub fn config_changed(&self) {
        self.placement.wake();
        self.control.config_changed();
    }

    /// Where the queues of the device are.
    pub fn places(&self) -> Vec<QueuePlace> {
        self.placement.places()
    }

    /// The state of the controller and of its queues.
    pub fn report(&self) -> ControllerReport {
        ControllerReport {
            session: self.control.status(),
            quarantine: self.device().health().quarantine_reason(),
            in_flight: self.placement.in_flight(),
            queues: self.places(),
        }
    }
}

impl<D: VhostDevice> Drop for DeviceController<D> {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.control.stop();
        let deadline = Instant::now() + DRAIN;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.placement.abandon();
        let _ = thread.join(); // A session that panicked has said so.
        self.placement.close();
    }
}

/// The session's hold on the device.
struct Session<D: VhostDevice>(Arc<Placement<D>>);

impl<D: VhostDevice> Backend for Session<D> {
    fn properties(&self) -> Properties {
        self.0.device().properties()
    }

    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> Result<(), Refusal> {
        self.0.device().read_config(offset, bytes)
    }

    fn write_config(&mut self, offset: u32, _: &[u8], _: u32) -> Result<(), Refusal> {
        Err(Refusal::new(format!("config: offset {offset} is read-only")))
    }

    fn apply(&mut self, change: Change) -> Result<(), Refusal> {
        self.0.apply(change)
    }

    fn stop_ring(&mut self, index: u16) -> Result<u32, Refusal> {
        self.0.stop(index)
    }
}
