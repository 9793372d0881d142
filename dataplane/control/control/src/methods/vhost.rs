//! Controllers: what guests connect to.

use crate::Control;
use crate::bdevs::{Holder, Use};
use crate::controllers::{self, Served};
use crate::desired::{Call, Object};
use crate::events::EventType;
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method, blocking};
use crate::scheduler::QueueId;
use engine::{CpuSet, WorkerHandle};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::{Arc, Mutex};
use virtio_blk::{Controller, ControllerError, ControllerParams, MAX_QUEUES, Place, Report, Role};

/// SPDK's name for what we are.
const TRANSPORT: &str = "vhost_user_blk";

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<VhostCreateBlkController>(),
        Entry::of::<VhostGetControllers>(),
        Entry::of::<VhostDeleteController>(),
        Entry::of::<VhostControllerMoveQueue>(),
        Entry::of::<VirtioBlkCreateTransport>(),
        Entry::of::<VirtioBlkGetTransports>(),
    ]
}

/// Serves a disk to a guest: a vhost-user-blk device whose socket appears in the daemon's vhost directory.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VhostCreateBlkController {
    /// Its name, and that of its socket.
    ctrlr: String,
    /// The disk, by name or UUID.
    dev_name: String,
    /// The guest may not write.
    #[serde(default)]
    readonly: bool,
    /// The packed ring layout is offered, too.
    #[serde(default)]
    packed_ring: bool,
    /// The CPUs whose workers serve it: a list such as "[0,2-3]", or a hexadecimal mask. All workers when it is not given.
    cpumask: Option<String>,
    /// The kind of device: vhost_user_blk.
    transport: Option<String>,
    /// Who listens on the socket: "server" (this daemon, the default) or "client" (the front-end; this daemon connects, and
    /// again after a loss).
    socket_role: Option<SocketRole>,
    /// Queues that a guest may use, 1 to 64; 64 when it is not given. They are dealt to the workers in turn.
    num_queues: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum SocketRole {
    Server,
    Client,
}

impl From<Role> for SocketRole {
    fn from(role: Role) -> SocketRole {
        match role {
            Role::Server => SocketRole::Server,
            Role::Client => SocketRole::Client,
        }
    }
}

impl Method for VhostCreateBlkController {
    const NAME: &'static str = "vhost_create_blk_controller";
    type Output = bool;

    fn effect(&self) -> Effect {
        let undo = Call::new(VhostDeleteController::NAME, json!({"ctrlr": self.ctrlr}));
        Effect::Keep { slot: Object::controller(&self.ctrlr).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        if let Some(other) = self.transport.as_deref().filter(|transport| *transport != TRANSPORT) {
            return Err(RpcError::invalid("transport", other, TRANSPORT));
        }
        let workers = self.workers(control)?;
        let reservation = control.controllers.reserve(&self.ctrlr)?;
        let holder = Holder::Controller(self.ctrlr.clone());
        let how = if self.readonly { Use::ReadOnly } else { Use::Exclusive };
        let disk = control.bdevs.hold(&self.dev_name, holder.clone(), how)?;
        let role = if self.socket_role == Some(SocketRole::Client) { Role::Client } else { Role::Server };
        let params = ControllerParams {
            name: self.ctrlr.clone(),
            socket: control.vhost_dir.join(&self.ctrlr),
            role,
            socket_mode: control.vhost_socket_mode,
            read_only: self.readonly,
            packed_ring: self.packed_ring,
            queues: self.num_queues.unwrap_or(MAX_QUEUES),
            workers,
        };
        let mut cpus: Vec<usize> = params.workers.iter().map(WorkerHandle::cpu).collect();
        cpus.sort_unstable();
        let socket = params.socket.display().to_string();
        let (bdev, events) = (disk.bdev.clone(), control.controller_events.clone());
        let started = blocking(move || Controller::start(params, bdev, events)).await;
        let controller = started.and_then(|started| started.map_err(RpcError::from)).inspect_err(|_| {
            control.bdevs.release(disk.name(), &holder);
        })?;
        reservation.fill(Served {
            name: self.ctrlr.clone(),
            bdev: disk.name().to_owned(),
            socket: socket.clone(),
            role,
            read_only: self.readonly,
            cpus,
            controller,
            fault: Mutex::default(),
        });
        control.events.add(EventType::VhostControllerCreate, &self.ctrlr, format!("disk {} at {socket}", disk.name()));
        Ok(true)
    }
}

impl VhostCreateBlkController {
    /// The workers of its CPUs, those with the fewest queues first.
    fn workers(&self, control: &Control) -> Result<Vec<WorkerHandle>, RpcError> {
        let mut workers = control.engine().workers().to_vec();
        if let Some(mask) = &self.cpumask {
            let expected = || {
                let cpus: CpuSet = control.engine().workers().iter().map(WorkerHandle::cpu).collect();
                format!("CPUs that have a worker, of the mask 0x{cpus:x}")
            };
            let cpus: CpuSet = mask.parse().map_err(|_| RpcError::invalid("cpumask", mask, expected()))?;
            workers.retain(|worker| cpus.contains(worker.cpu()));
            if workers.is_empty() {
                return Err(RpcError::invalid("cpumask", mask, expected()));
            }
        }
        let reports: Vec<Report> = control.controllers.all().iter().map(|s| s.controller.report()).collect();
        let queues = |worker: &WorkerHandle| {
            reports.iter().flat_map(|r| &r.queues).filter(|q| q.worker.id() == worker.id()).count()
        };
        workers.sort_by_cached_key(queues);
        Ok(workers)
    }
}

impl From<ControllerError> for RpcError {
    fn from(error: ControllerError) -> RpcError {
        use virtio_blk::SocketError;
        let text = error.to_string();
        match error {
            ControllerError::Invalid { field, got, expected } => RpcError::invalid(field, got, expected),
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

/// Lists the controllers.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VhostGetControllers {
    /// Only this one.
    name: Option<String>,
}

/// SPDK's shape, and below `connected` what we add.
#[derive(Serialize, JsonSchema)]
struct ControllerInfo {
    ctrlr: String,
    cpumask: String,
    delay_base_us: u32,
    iops_threshold: u32,
    socket: String,
    sessions: Vec<SessionInfo>,
    backend_specific: BackendInfo,
    connected: bool,
    socket_role: SocketRole,
    /// Why it serves nothing, when it does not.
    quarantined: Option<String>,
    /// The last message of the front-end that was refused, or why the last session ended.
    last_error: Option<String>,
    num_queues: usize,
    /// The worker of each queue.
    queue_workers: Vec<usize>,
    /// The queues that a front-end has started.
    queues: Vec<QueueInfo>,
}

#[derive(Serialize, JsonSchema)]
struct SessionInfo {
    vid: u32,
    id: u32,
    name: String,
    started: bool,
    max_queues: usize,
    inflight_task_cnt: u32,
}

#[derive(Serialize, JsonSchema)]
struct BackendInfo {
    block: BlockInfo,
}

#[derive(Serialize, JsonSchema)]
struct BlockInfo {
    readonly: bool,
    bdev: String,
    transport: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct QueueInfo {
    index: usize,
    worker: usize,
    enabled: bool,
    size: u16,
    packed: bool,
}

impl Method for VhostGetControllers {
    const NAME: &'static str = "vhost_get_controllers";
    type Output = Vec<ControllerInfo>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<ControllerInfo>, RpcError> {
        match &self.name {
            Some(name) => Ok(vec![describe(&*control.controllers.get(name)?)]),
            None => Ok(control.controllers.all().iter().map(|served| describe(served)).collect()),
        }
    }
}

fn describe(served: &Served) -> ControllerInfo {
    let report = served.controller.report();
    let session = SessionInfo {
        vid: 0,
        id: 0,
        name: format!("{}s0", served.name),
        started: report.queues.iter().any(|queue| queue.started),
        max_queues: report.queues.len(),
        inflight_task_cnt: report.in_flight,
    };
    let started = report.queues.iter().enumerate().filter(|(_, queue)| queue.started);
    let queue = |(index, q): (usize, &Place)| QueueInfo {
        index,
        worker: q.worker.id(),
        enabled: q.enabled,
        size: q.size,
        packed: q.packed,
    };
    ControllerInfo {
        ctrlr: served.name.clone(),
        cpumask: format!("0x{:x}", CpuSet::from_iter(served.cpus.iter().copied())),
        delay_base_us: 0,
        iops_threshold: 0,
        socket: served.socket.clone(),
        sessions: if report.session.connected { vec![session] } else { Vec::new() },
        backend_specific: BackendInfo {
            block: BlockInfo { readonly: served.read_only, bdev: served.bdev.clone(), transport: TRANSPORT },
        },
        connected: report.session.connected,
        socket_role: served.role.into(),
        quarantined: served.quarantine(&report),
        num_queues: report.queues.len(),
        queue_workers: report.queues.iter().map(|queue| queue.worker.id()).collect(),
        queues: started.map(queue).collect(),
        last_error: report.session.last_error,
    }
}

/// Deletes a controller. The guest's disk goes away as if it were unplugged; requests in flight are finished first.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VhostDeleteController {
    /// Its name.
    ctrlr: String,
}

impl Method for VhostDeleteController {
    const NAME: &'static str = "vhost_delete_controller";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::controller(&self.ctrlr))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let (served, reservation) = control.controllers.take(&self.ctrlr)?;
        let (bdev, stats) = (served.bdev.clone(), served.controller.stats());
        let disk = control.bdevs.get(&bdev)?;
        let counted = || disk.stats.lock().expect("no panic under this lock");
        counted().leaves(&stats);
        blocking(move || controllers::stop(served)).await?;
        counted().left(&stats);
        control.bdevs.release(&bdev, &Holder::Controller(self.ctrlr.clone()));
        drop(reservation);
        control.events.add(EventType::VhostControllerDelete, &self.ctrlr, "");
        Ok(true)
    }
}

/// Moves a queue to another worker while it serves. It stays there, whatever its load, until this is called without a worker.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VhostControllerMoveQueue {
    /// The controller.
    ctrlr: String,
    /// The queue, from 0.
    queue: u16,
    /// The worker, from 0; when it is not given, the queue stays where it is and may be moved by load again.
    worker: Option<usize>,
}

impl Method for VhostControllerMoveQueue {
    const NAME: &'static str = "vhost_controller_move_queue";
    type Output = bool;

    fn effect(&self) -> Effect {
        QueueId::controller(&self.ctrlr, self.queue).effect(self.worker)
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let queues = control.controllers.get(&self.ctrlr)?.controller.report().queues.len();
        if usize::from(self.queue) >= queues {
            return Err(RpcError::invalid("queue", self.queue, format!("0 to {}", queues - 1)));
        }
        control.move_by_hand(QueueId::controller(&self.ctrlr, self.queue), self.worker).await?;
        Ok(true)
    }
}

/// Makes a kind of device available. vhost_user_blk always is, and there is no other.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VirtioBlkCreateTransport {
    /// The kind.
    name: String,
}

impl Method for VirtioBlkCreateTransport {
    const NAME: &'static str = "virtio_blk_create_transport";
    type Output = bool;

    async fn call(&mut self, _: &Arc<Control>) -> Result<bool, RpcError> {
        match self.name.as_str() {
            TRANSPORT => Err(RpcError::name_taken("name", TRANSPORT).hint("it is always there: nothing is to be done")),
            other => Err(RpcError::invalid("name", other, TRANSPORT)),
        }
    }
}

/// Lists the kinds of devices.
#[derive(Serialize, Deserialize, JsonSchema)]
struct VirtioBlkGetTransports {
    /// Only this one.
    name: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct TransportInfo {
    name: &'static str,
}

impl Method for VirtioBlkGetTransports {
    const NAME: &'static str = "virtio_blk_get_transports";
    type Output = Vec<TransportInfo>;

    async fn call(&mut self, _: &Arc<Control>) -> Result<Vec<TransportInfo>, RpcError> {
        match self.name.as_deref() {
            None | Some(TRANSPORT) => Ok(vec![TransportInfo { name: TRANSPORT }]),
            Some(other) => Err(RpcError::no_such("transport", other).hint(TRANSPORT)),
        }
    }
}
