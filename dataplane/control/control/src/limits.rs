//! Every limit of the control plane, in one place. A refusal names the limit and its value.

/// Bytes of one JSON-RPC request.
pub const REQUEST_BYTES: usize = 8 << 20;
/// Clients of the RPC socket at a time.
pub const CLIENTS: usize = 128;
/// Requests in one batch.
pub const BATCH: usize = 1024;
/// Disks.
pub const BDEVS: usize = 4096;
/// Controllers.
pub const CONTROLLERS: usize = 1024;
/// Queues of one controller.
pub const QUEUES: u16 = virtio_blk::MAX_QUEUES;
/// Bytes of the name of a disk or a controller.
pub const NAME_BYTES: usize = 127;
/// Bytes of the path of a Unix socket: `sun_path` less its terminator (unix(7)).
pub const SOCKET_PATH_BYTES: usize = 107;
/// Events of controllers that wait for the control plane; more are lost.
pub(crate) const CONTROLLER_EVENTS: usize = 1024;
/// Notifications that are kept for notify_get_notifications.
pub const EVENTS: usize = 4096;
