//! vhost-user-blk controllers: disks served to guests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    CreateBlkController: "vhost_create_blk_controller" -> bool;
    GetControllers: "vhost_get_controllers" -> Vec<ControllerInfo>;
    DeleteController: "vhost_delete_controller" -> bool;
    MoveQueue: "vhost_controller_move_queue" -> bool;
    CreateTransport: "virtio_blk_create_transport" -> bool;
    GetTransports: "virtio_blk_get_transports" -> Vec<TransportInfo>;
}

/// Creates a vhost-user-blk controller that serves a disk to a guest, with a socket in the daemon's vhost directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CreateBlkController {
    /// Name of the controller and of the socket.
    pub ctrlr: String,
    /// The disk; name or UUID.
    pub dev_name: String,
    /// Serve the disk read-only.
    #[serde(default)]
    pub readonly: bool,
    /// Offer packed rings (VIRTIO_F_RING_PACKED).
    #[serde(default)]
    pub packed_ring: bool,
    /// CPUs whose workers serve the controller: a list such as "[0,2-3]", or a hexadecimal mask; all workers by default.
    pub cpumask: Option<String>,
    /// Transport: vhost_user_blk.
    pub transport: Option<String>,
    /// Who listens on the socket: server (this daemon, the default) or client (the front-end; this daemon connects and reconnects).
    pub socket_role: Option<SocketRole>,
    /// Maximum number of queues, 1 to 64; 64 by default. Queues are assigned to workers round-robin.
    pub num_queues: Option<u16>,
}

/// The daemon's role on a vhost-user socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SocketRole {
    /// The daemon listens.
    Server,
    /// The daemon connects.
    Client,
}

/// Lists the vhost-user-blk controllers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetControllers {
    /// List only this controller.
    pub name: Option<String>,
}

/// A vhost-user-blk controller, in SPDK's shape; `connected` and what follows are additions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ControllerInfo {
    /// Name of the controller.
    pub ctrlr: String,
    /// CPUs of the workers that serve the controller, as a hexadecimal mask.
    pub cpumask: String,
    /// Always 0.
    pub delay_base_us: u32,
    /// Always 0.
    pub iops_threshold: u32,
    /// Path of the socket.
    pub socket: String,
    /// The front-end's session.
    pub sessions: Vec<SessionInfo>,
    /// The disk.
    pub backend_specific: BackendInfo,
    /// Whether a front-end is connected.
    pub connected: bool,
    /// The daemon's role on the socket.
    pub socket_role: SocketRole,
    /// Why the controller is quarantined.
    pub quarantined: Option<String>,
    /// The last refused message of the front-end, or why the last session ended.
    pub last_error: Option<String>,
    /// Number of queues.
    pub num_queues: usize,
    /// The worker of each queue.
    pub queue_workers: Vec<usize>,
    /// The queues that a front-end has started.
    pub queues: Vec<QueueInfo>,
}

/// A front-end's session, in SPDK's shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // SPDK's names
pub struct SessionInfo {
    pub vid: u32,
    pub id: u32,
    pub name: String,
    pub started: bool,
    pub max_queues: usize,
    pub inflight_task_cnt: u32,
}

/// What a controller serves.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BackendInfo {
    /// The disk.
    pub block: BlockInfo,
}

/// The disk of a controller.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BlockInfo {
    /// Whether the disk is served read-only.
    pub readonly: bool,
    /// The disk's name.
    pub bdev: String,
    /// The transport.
    pub transport: String,
}

/// A queue (vring) that a front-end has started.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QueueInfo {
    /// Number of the queue.
    pub index: usize,
    /// The worker that serves the queue.
    pub worker: usize,
    /// Whether the front-end has enabled the queue.
    pub enabled: bool,
    /// Number of descriptors.
    pub size: u16,
    /// Whether the ring is packed.
    pub packed: bool,
}

/// Deletes a controller. The guest's disk is unplugged; requests in flight are finished first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeleteController {
    /// Name of the controller.
    pub ctrlr: String,
}

/// Moves a queue of a controller to another worker without interruption. The queue is pinned there until the method is called
/// without a worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct MoveQueue {
    /// Name of the controller.
    pub ctrlr: String,
    /// Number of the queue, from 0.
    pub queue: u16,
    /// Number of the worker, from 0; without it the queue is unpinned, and the scheduler may move it.
    pub worker: Option<usize>,
}

/// Creates a virtio-blk transport. vhost_user_blk always exists, and there is no other.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CreateTransport {
    /// Name of the transport.
    pub name: String,
}

/// Lists the virtio-blk transports.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetTransports {
    /// List only this transport.
    pub name: Option<String>,
}

/// A virtio-blk transport.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TransportInfo {
    /// Name of the transport.
    pub name: String,
}
