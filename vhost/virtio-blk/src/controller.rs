//! A controller: a disk behind its socket.

use crate::device::BlkDevice;
use crate::{EventSink, MAX_QUEUES, MoveError, Role};
use block::{Bdev, IoStats};
use engine::WorkerHandle;
use std::path::PathBuf;
use std::sync::Arc;
use vhost_device::{ControllerError, Report};
use vhost_user::Endpoint;

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

/// A controller. Serves until it is stopped.
pub struct Controller(vhost_device::Controller<BlkDevice>);

impl Controller {
    /// Makes the socket and starts to serve `bdev` on it.
    pub fn start(
        params: ControllerParams,
        bdev: Arc<dyn Bdev>,
        events: EventSink,
    ) -> Result<Controller, ControllerError> {
        if params.queues == 0 || params.queues > MAX_QUEUES {
            let (got, expected) = (u64::from(params.queues), format!("1 to {MAX_QUEUES}"));
            return Err(ControllerError::Invalid { field: "num_queues", got, expected });
        }
        let endpoint = Endpoint { path: params.socket, role: params.role, mode: params.socket_mode };
        let offer = (params.read_only, params.packed_ring, params.queues);
        let device = BlkDevice::new(params.name, events, bdev, offer);
        vhost_device::Controller::start(device, endpoint, &params.workers).map(Controller)
    }

    /// The disk's geometry has changed: workers check against the new one, and the guest is told.
    pub fn resized(&self) {
        self.0.device().publish_geometry();
        self.0.config_changed();
    }

    /// Moves a queue to another worker while it serves.
    pub fn move_queue(&self, queue: u16, worker: &WorkerHandle) -> Result<(), MoveError> {
        self.0.move_queue(queue, worker)
    }

    /// What it is doing.
    pub fn report(&self) -> Report {
        self.0.report()
    }

    /// Statistics, one a worker that served the disk.
    pub fn stats(&self) -> Vec<Arc<IoStats>> {
        self.0.device().stats()
    }

    /// Ends the session and waits for what is in flight, but not for ever: see [`block::BlockChannel`] for what becomes of
    /// requests that a backend does not finish.
    pub fn stop(self) {
        drop(self);
    }
}
