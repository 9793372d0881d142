//! vhost-user-blk controllers: disks served to guests.

use super::StoragePlane;
use super::bdevs::{Holder, Use};
use crate::blocking::blocking;
use crate::limits;
use crate::rpc::OrRefuse;
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::object::ObjectId;
use crate::state::registry::Object;
use crate::vhost::{self, VhostController};
use api::config::Call;
use api::notify::EventType;
use api::vhost::{
    BackendInfo, BlockInfo, ControllerInfo, CreateBlkController, CreateTransport, DeleteController, GetControllers,
    GetTransports, SessionInfo, TransportInfo,
};
use api::{Method, RpcError};
use engine::{CpuSet, WorkerHandle};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use virtio_blk::{BlkController, BlkParams, ControllerReport, MAX_QUEUES};

/// SPDK's name for a vhost-user-blk controller's transport.
const TRANSPORT: &str = "vhost_user_blk";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::of::<CreateBlkController>(),
        Row::of::<GetControllers>(),
        Row::of::<DeleteController>(),
        Row::of::<CreateTransport>(),
        Row::of::<GetTransports>(),
    ]
}

/// The device of a vhost-user-blk controller.
pub(crate) struct BlkDevice {
    pub(crate) controller: BlkController,
    /// The disk that it serves.
    pub(crate) bdev: String,
    read_only: bool,
    /// CPUs of the workers that may serve it.
    pub(crate) cpus: Vec<usize>,
}

impl Object for VhostController<BlkDevice> {
    const KIND: &'static str = "controller";
    const LISTED_BY: &'static str = "vhost_get_controllers";
    const LIMIT: usize = limits::CONTROLLERS;
    type Claims = ();
}

/// Stops a controller that was taken out of use. Waits for its requests in flight, and until its reports are read.
pub(super) fn stop(mut served: Arc<VhostController<BlkDevice>>) {
    let alone = loop {
        match Arc::try_unwrap(served) {
            Ok(alone) => break alone,
            Err(shared) => served = shared,
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    alone.device.controller.stop();
}

impl Handler for CreateBlkController {
    type Plane = StoragePlane;

    fn effect(&self) -> Effect {
        let undo = Call::new(DeleteController::NAME, json!({"ctrlr": self.ctrlr}));
        Effect::Keep { slot: ObjectId::vhost_controller(&self.ctrlr).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        if let Some(other) = self.transport.as_deref().filter(|transport| *transport != TRANSPORT) {
            return Err(RpcError::invalid("transport", other, TRANSPORT));
        }
        let workers = workers(self.cpumask.as_ref(), plane)?;
        let reservation = plane.controllers.reserve("ctrlr", &self.ctrlr)?;
        let holder = Holder::Controller(self.ctrlr.clone());
        let how = if self.readonly { Use::ReadOnly } else { Use::Exclusive };
        let disk = plane.bdevs.hold(&self.dev_name, holder.clone(), how)?;
        let (role, socket) = (vhost::role(self.socket_role), plane.sockets.path.join(&self.ctrlr));
        let params = BlkParams {
            name: self.ctrlr.clone(),
            socket: socket.clone(),
            role,
            socket_mode: plane.sockets.mode,
            read_only: self.readonly,
            packed_ring: self.packed_ring,
            queues: self.num_queues.unwrap_or(MAX_QUEUES),
            workers,
        };
        let mut cpus: Vec<usize> = params.workers.iter().map(WorkerHandle::cpu).collect();
        cpus.sort_unstable();
        let (bdev, events) = (disk.bdev.clone(), plane.controller_events.clone());
        let started = blocking(move || BlkController::start(params, bdev, events)).await;
        let controller = started.and_then(|started| started.or_refuse()).inspect_err(|_| {
            plane.bdevs.release(disk.name(), &holder);
        })?;
        let device = BlkDevice { controller, bdev: disk.name().to_owned(), read_only: self.readonly, cpus };
        let detail = format!("disk {} at {}", disk.name(), socket.display());
        reservation.fill(VhostController::new(&self.ctrlr, socket, role, device));
        plane.observe.events.add(EventType::VhostControllerCreate, &self.ctrlr, detail);
        Ok(true)
    }
}

/// The workers of the CPUs in a mask, those with the fewest queues first.
fn workers(cpumask: Option<&String>, plane: &StoragePlane) -> Result<Vec<WorkerHandle>, RpcError> {
    let mut workers = plane.workers.all().to_vec();
    if let Some(mask) = cpumask {
        let expected = || {
            let cpus: CpuSet = plane.workers.all().iter().map(WorkerHandle::cpu).collect();
            format!("CPUs that have a worker, of the mask 0x{cpus:x}")
        };
        let cpus: CpuSet = mask.parse().map_err(|_| RpcError::invalid("cpumask", mask, expected()))?;
        workers.retain(|worker| cpus.contains(worker.cpu()));
        if workers.is_empty() {
            return Err(RpcError::invalid("cpumask", mask, expected()));
        }
    }
    let reports: Vec<ControllerReport> =
        plane.controllers.list().iter().map(|s| s.device.controller.report()).collect();
    let queues =
        |worker: &WorkerHandle| reports.iter().flat_map(|r| &r.queues).filter(|q| q.worker.id() == worker.id()).count();
    workers.sort_by_cached_key(queues);
    Ok(workers)
}

impl Handler for GetControllers {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<Vec<ControllerInfo>, RpcError> {
        match &self.name {
            Some(name) => Ok(vec![describe(&*plane.controllers.get(name)?)]),
            None => Ok(plane.controllers.list().iter().map(|served| describe(served)).collect()),
        }
    }
}

fn describe(served: &VhostController<BlkDevice>) -> ControllerInfo {
    let (device, report) = (&served.device, served.device.controller.report());
    let session = SessionInfo {
        vid: 0,
        id: 0,
        name: format!("{}s0", served.name),
        started: report.queues.iter().any(|queue| queue.started),
        max_queues: report.queues.len(),
        inflight_task_cnt: report.in_flight,
    };
    ControllerInfo {
        ctrlr: served.name.clone(),
        cpumask: format!("0x{:x}", CpuSet::from_iter(device.cpus.iter().copied())),
        delay_base_us: 0,
        iops_threshold: 0,
        socket: served.socket.display().to_string(),
        sessions: if report.session.connected { vec![session] } else { Vec::new() },
        backend_specific: BackendInfo {
            block: BlockInfo { readonly: device.read_only, bdev: device.bdev.clone(), transport: TRANSPORT.to_owned() },
        },
        connected: report.session.connected,
        socket_role: vhost::socket_role(served.role),
        quarantined: report.quarantine.map(|reason| reason.to_string()),
        num_queues: report.queues.len(),
        queue_workers: report.queues.iter().map(|queue| queue.worker.id()).collect(),
        queues: vhost::started_queues(&report),
        last_error: report.session.last_error,
    }
}

impl Handler for DeleteController {
    type Plane = StoragePlane;

    fn effect(&self) -> Effect {
        Effect::Forget(ObjectId::vhost_controller(&self.ctrlr))
    }

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let (served, reservation) = plane.controllers.take(&self.ctrlr)?;
        let (bdev, stats) = (served.device.bdev.clone(), served.device.controller.stats());
        let disk = plane.bdevs.get(&bdev)?;
        let counted = || disk.stats.lock();
        counted().add_leaving(&stats);
        blocking(move || stop(served)).await?;
        counted().settle(&stats);
        plane.bdevs.release(&bdev, &Holder::Controller(self.ctrlr.clone()));
        drop(reservation);
        plane.observe.events.add(EventType::VhostControllerDelete, &self.ctrlr, "");
        Ok(true)
    }
}

impl Handler for CreateTransport {
    type Plane = StoragePlane;

    async fn call(&mut self, _: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        match self.name.as_str() {
            TRANSPORT => Err(RpcError::name_taken("name", TRANSPORT).hint("it is always there: nothing is to be done")),
            other => Err(RpcError::invalid("name", other, TRANSPORT)),
        }
    }
}

impl Handler for GetTransports {
    type Plane = StoragePlane;

    async fn call(&mut self, _: &Arc<StoragePlane>) -> Result<Vec<TransportInfo>, RpcError> {
        match self.name.as_deref() {
            None | Some(TRANSPORT) => Ok(vec![TransportInfo { name: TRANSPORT.to_owned() }]),
            Some(other) => Err(RpcError::no_such("transport", other).hint(TRANSPORT)),
        }
    }
}
