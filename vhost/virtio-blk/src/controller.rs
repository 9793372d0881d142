//! A controller: a disk behind its socket.

use crate::device::BlkDevice;
use crate::{DeviceEventSink, MAX_QUEUES, MoveQueueError, Role};
use block::{Bdev, IoStats};
use engine::WorkerHandle;
use invalid::Invalid;
use std::path::PathBuf;
use std::sync::Arc;
use vhost_device::{ControllerError, ControllerReport};
use vhost_user::Endpoint;

/// The parameters of a disk's controller.
#[derive(Clone)]
pub struct BlkParams {
    /// The name of the controller, in reports and events.
    pub name: String,
    /// The path of the vhost-user socket.
    pub socket: PathBuf,
    /// Which end listens: the controller (server) or the front-end (client).
    pub role: Role,
    /// Permissions of a socket on which the controller listens.
    pub socket_mode: u32,
    /// The guest may not write.
    pub read_only: bool,
    /// The packed layout is offered.
    pub packed_ring: bool,
    /// Queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// The workers that queues are assigned to round-robin; at least one.
    pub workers: Vec<WorkerHandle>,
}

/// A disk's controller. Serves until it is stopped.
pub struct BlkController(vhost_device::DeviceController<BlkDevice>);

impl BlkController {
    /// Makes the socket and starts to serve `bdev` on it.
    pub fn start(
        params: BlkParams,
        bdev: Arc<dyn Bdev>,
        events: DeviceEventSink,
    ) -> Result<BlkController, ControllerError> {
        if params.queues == 0 || params.queues > MAX_QUEUES {
            return Err(Invalid::new("num_queues", params.queues, format_args!("1 to {MAX_QUEUES}")).into());
        }
        let endpoint = Endpoint { path: params.socket, role: params.role, mode: params.socket_mode };
        let offer = (params.read_only, params.packed_ring, params.queues);
        let device = BlkDevice::new(params.name, events, bdev, offer);
        vhost_device::DeviceController::start(device, endpoint, &params.workers).map(BlkController)
    }

    /// The disk's geometry has changed: workers check against the new one, and the guest is told.
    pub fn resized(&self) {
        self.0.device().publish_geometry();
        self.0.config_changed();
    }

    /// Moves a queue to another worker while it serves.
    pub fn move_queue(&self, queue: u16, worker: &WorkerHandle) -> Result<(), MoveQueueError> {
        self.0.move_queue(queue, worker)
    }

    /// The state of the controller and of its queues.
    pub fn report(&self) -> ControllerReport {
        self.0.report()
    }

    /// Statistics of each worker that served the disk.
    pub fn stats(&self) -> Vec<Arc<IoStats>> {
        self.0.device().stats()
    }

    /// Ends the session and waits for what is in flight, but not for ever: see [`block::BlockChannel`] for what becomes of
    /// requests that a backend does not finish.
    pub fn stop(self) {
        drop(self);
    }
}
