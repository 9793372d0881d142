//! vhost-user controllers: what those of disks and those of ports have in common.

use crate::observe::Observe;
use crate::rpc::Refuse;
use api::RpcError;
use api::notify::EventType;
use api::vhost::{QueueInfo, SocketRole};
use crossbeam::channel::Receiver;
use std::path::PathBuf;
use std::sync::Arc;
use virtio_blk::{ControllerError, ControllerReport, DeviceEvent, DeviceEventKind, Role, SocketError};

/// Where the sockets of controllers are.
pub(crate) struct SocketDir {
    pub(crate) path: PathBuf,
    /// Permissions of a socket that the daemon listens on.
    pub(crate) mode: u32,
}

/// A controller: a socket in the daemon's vhost directory, and the device behind it.
pub(crate) struct VhostController<D> {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    pub(crate) role: Role,
    pub(crate) device: D,
}

impl<D> VhostController<D> {
    pub(crate) fn new(name: &str, socket: PathBuf, role: Role, device: D) -> VhostController<D> {
        VhostController { name: name.to_owned(), socket, role, device }
    }
}

/// The daemon's role on a socket, for which a call may give one.
pub(crate) fn role(given: Option<SocketRole>) -> Role {
    match given {
        Some(SocketRole::Client) => Role::Client,
        Some(SocketRole::Server) | None => Role::Server,
    }
}

pub(crate) fn socket_role(role: Role) -> SocketRole {
    match role {
        Role::Server => SocketRole::Server,
        Role::Client => SocketRole::Client,
    }
}

/// The queues that a front-end has started.
pub(crate) fn started_queues(report: &ControllerReport) -> Vec<QueueInfo> {
    let started = report.queues.iter().enumerate().filter(|(_, queue)| queue.started);
    let info = started.map(|(index, queue)| QueueInfo {
        index,
        worker: queue.worker.id(),
        enabled: queue.enabled,
        size: queue.size,
        packed: queue.packed,
    });
    info.collect()
}

/// Turns what devices report by themselves into events, on a thread named `thread`.
pub(crate) fn listen(thread: &str, observe: &Arc<Observe>, events: Receiver<DeviceEvent>) {
    // Controllers hold the other end of `events`: the thread ends with the last of them.
    let observe = Arc::downgrade(observe);
    let listen = move || {
        for DeviceEvent { controller, kind: DeviceEventKind::Quarantined(quarantine) } in events {
            let Some(observe) = observe.upgrade() else { return };
            observe.events.add(EventType::VhostQuarantine, &controller, quarantine.to_string());
        }
    };
    if let Err(error) = std::thread::Builder::new().name(thread.to_owned()).spawn(listen) {
        tracing::error!(%error, "events of controllers will not be seen");
    }
}

impl Refuse for ControllerError {
    fn refuse(self) -> RpcError {
        let text = self.to_string();
        match self {
            ControllerError::Invalid(invalid) => RpcError::invalid(invalid.field, invalid.got, invalid.expected),
            ControllerError::Socket(SocketError::Os { source, .. }) | ControllerError::Thread(source) => {
                RpcError::from_io(&source, text)
            }
            ControllerError::Socket(SocketError::PathTooLong { len, .. }) => {
                RpcError::invalid("ctrlr", format!("a socket path of {len} bytes"), "a path that fits a Unix socket")
                    .hint("choose a shorter name, or start the daemon with a shorter --vhost-dir")
            }
            ControllerError::Socket(SocketError::InUse { .. } | SocketError::NotASocket { .. }) => {
                RpcError::errno(libc::EADDRINUSE, text).hint("stop who has it, or choose another name")
            }
            ControllerError::Socket(_) => RpcError::errno(libc::ENOENT, text).hint("see --vhost-dir of the daemon"),
        }
    }
}
