//! Controllers: what guests connect to.

use crate::Control;
use crate::bdevs::{Holder, Use};
use crate::controllers::{self, Served};
use crate::desired::Object;
use crate::rpc::method::{Effect, Handler, Row, blocking};
use crate::rpc::{OrRefuse, Refuse};
use crate::scheduler::QueueId;
use api::config::Call;
use api::notify::EventType;
use api::vhost::{
    BackendInfo, BlockInfo, ControllerInfo, CreateBlkController, CreateTransport, DeleteController, GetControllers,
    GetTransports, MoveQueue, QueueInfo, SessionInfo, SocketRole, TransportInfo,
};
use api::{Method, RpcError};
use engine::{CpuSet, WorkerHandle};
use serde_json::json;
use std::sync::Arc;
use virtio_blk::{BlkController, BlkParams, ControllerError, ControllerReport, MAX_QUEUES, QueuePlace, Role};

/// SPDK's name for what we are.
const TRANSPORT: &str = "vhost_user_blk";

pub(super) fn methods() -> Vec<Row> {
    vec![
        Row::of::<CreateBlkController>(),
        Row::of::<GetControllers>(),
        Row::of::<DeleteController>(),
        Row::of::<MoveQueue>(),
        Row::of::<CreateTransport>(),
        Row::of::<GetTransports>(),
    ]
}

fn socket_role(role: Role) -> SocketRole {
    match role {
        Role::Server => SocketRole::Server,
        Role::Client => SocketRole::Client,
    }
}

impl Handler for CreateBlkController {
    fn effect(&self) -> Effect {
        let undo = Call::new(DeleteController::NAME, json!({"ctrlr": self.ctrlr}));
        Effect::Keep { slot: Object::controller(&self.ctrlr).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        if let Some(other) = self.transport.as_deref().filter(|transport| *transport != TRANSPORT) {
            return Err(RpcError::invalid("transport", other, TRANSPORT));
        }
        let workers = workers(self.cpumask.as_ref(), control)?;
        let reservation = control.controllers.reserve(&self.ctrlr)?;
        let holder = Holder::Controller(self.ctrlr.clone());
        let how = if self.readonly { Use::ReadOnly } else { Use::Exclusive };
        let disk = control.bdevs.hold(&self.dev_name, holder.clone(), how)?;
        let role = if self.socket_role == Some(SocketRole::Client) { Role::Client } else { Role::Server };
        let params = BlkParams {
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
        let started = blocking(move || BlkController::start(params, bdev, events)).await;
        let controller = started.and_then(|started| started.or_refuse()).inspect_err(|_| {
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
        });
        control.events.add(EventType::VhostControllerCreate, &self.ctrlr, format!("disk {} at {socket}", disk.name()));
        Ok(true)
    }
}

/// The workers of the CPUs in a mask, those with the fewest queues first.
fn workers(cpumask: Option<&String>, control: &Control) -> Result<Vec<WorkerHandle>, RpcError> {
    let mut workers = control.engine().workers().to_vec();
    if let Some(mask) = cpumask {
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
    let reports: Vec<ControllerReport> = control.controllers.all().iter().map(|s| s.controller.report()).collect();
    let queues =
        |worker: &WorkerHandle| reports.iter().flat_map(|r| &r.queues).filter(|q| q.worker.id() == worker.id()).count();
    workers.sort_by_cached_key(queues);
    Ok(workers)
}

impl Refuse for ControllerError {
    fn refuse(self) -> RpcError {
        let error = self;
        use virtio_blk::SocketError;
        let text = error.to_string();
        match error {
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

impl Handler for GetControllers {
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
    let queue = |(index, q): (usize, &QueuePlace)| QueueInfo {
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
            block: BlockInfo { readonly: served.read_only, bdev: served.bdev.clone(), transport: TRANSPORT.to_owned() },
        },
        connected: report.session.connected,
        socket_role: socket_role(served.role),
        quarantined: report.quarantine.map(|reason| reason.to_string()),
        num_queues: report.queues.len(),
        queue_workers: report.queues.iter().map(|queue| queue.worker.id()).collect(),
        queues: started.map(queue).collect(),
        last_error: report.session.last_error,
    }
}

impl Handler for DeleteController {
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

impl Handler for MoveQueue {
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

impl Handler for CreateTransport {
    async fn call(&mut self, _: &Arc<Control>) -> Result<bool, RpcError> {
        match self.name.as_str() {
            TRANSPORT => Err(RpcError::name_taken("name", TRANSPORT).hint("it is always there: nothing is to be done")),
            other => Err(RpcError::invalid("name", other, TRANSPORT)),
        }
    }
}

impl Handler for GetTransports {
    async fn call(&mut self, _: &Arc<Control>) -> Result<Vec<TransportInfo>, RpcError> {
        match self.name.as_deref() {
            None | Some(TRANSPORT) => Ok(vec![TransportInfo { name: TRANSPORT.to_owned() }]),
            Some(other) => Err(RpcError::no_such("transport", other).hint(TRANSPORT)),
        }
    }
}
