//! Disks at NVMe/TCP targets.

use super::StoragePlane;
use super::nvme_controllers::{Attached, DETACH, sync};
use crate::blocking::blocking;
use crate::rpc::method::{Effect, Handler, Row};
use crate::rpc::{OrRefuse, Refuse};
use crate::state::object::ObjectId;
use ::nvme::{AttachError, AttachParams, Options, RecoveryOptions};
use api::RpcError;
use api::config::Call;
use api::notify::EventType;
use api::nvme::{
    AttachController, ControllerInfo, DetachController, Discover, DiscoveredSubsystem, GetControllers, GetIoPaths,
    HostId, IoPath, IoPaths, PathInfo, PollGroup, ResetController, TransportId,
};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::of::<AttachController>(),
        Row::of::<DetachController>(),
        Row::of::<GetControllers>(),
        Row::of::<GetIoPaths>(),
        Row::of::<ResetController>(),
        Row::of::<Discover>(),
    ]
}

fn attach_params(call: &AttachController) -> AttachParams {
    let placeholder = SocketAddr::from(([0, 0, 0, 0], 0));
    let usual = AttachParams::new(&call.name, placeholder, &call.subnqn);
    AttachParams {
        trtype: call.trtype.clone(),
        traddr: call.traddr.clone(),
        adrfam: call.adrfam.clone(),
        trsvcid: call.trsvcid.clone(),
        hostnqn: call.hostnqn.clone(),
        hostaddr: call.hostaddr.clone(),
        hostsvcid: call.hostsvcid.clone(),
        hdgst: call.hdgst,
        ddgst: call.ddgst,
        fabrics_connect_timeout_us: call.fabrics_connect_timeout_us.unwrap_or(usual.fabrics_connect_timeout_us),
        num_io_queues: call.num_io_queues.unwrap_or(usual.num_io_queues),
        recovery: RecoveryOptions {
            ctrlr_loss_timeout_sec: call.ctrlr_loss_timeout_sec.unwrap_or(usual.recovery.ctrlr_loss_timeout_sec),
            reconnect_delay_sec: call.reconnect_delay_sec.unwrap_or(usual.recovery.reconnect_delay_sec),
            fast_io_fail_timeout_sec: call.fast_io_fail_timeout_sec.unwrap_or(usual.recovery.fast_io_fail_timeout_sec),
        },
        options: Options::default(),
        ..usual
    }
}

impl Handler for AttachController {
    type Plane = StoragePlane;

    fn effect(&self) -> Effect {
        let undo = Call::new(DETACH, json!({"name": self.name}));
        Effect::Keep { slot: ObjectId::nvme_controller(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<Vec<String>, RpcError> {
        let params = attach_params(self);
        params.validate().or_refuse()?;
        let reservation = plane.nvme.reserve("name", &self.name)?;
        let connecting = plane.clone();
        let attached = blocking(move || Attached::connect(&connecting, &params)).await?.or_refuse()?;
        let max = self.max_bdevs.map_or(usize::MAX, |max| max as usize);
        let found = attached.controller.namespaces().len();
        if found > max {
            attached.controller.detach();
            return Err(RpcError::invalid(
                "max_bdevs",
                max,
                format!("at least the {found} namespaces of the subsystem"),
            ));
        }
        if let Err(error) = sync(plane, &attached) {
            let_go(plane, &attached)?;
            return Err(error);
        }
        let disks = attached.disks();
        reservation.fill(attached);
        Ok(disks)
    }
}

/// Takes down the disks of a controller; none when one of them is held.
fn let_go(plane: &StoragePlane, attached: &Attached) -> Result<(), RpcError> {
    let names = attached.disks();
    if let Some((name, holder)) = names.iter().find_map(|n| plane.bdevs.holders(n).into_iter().next().map(|h| (n, h))) {
        let error = RpcError::errno(libc::EBUSY, format!("the disk {name} is busy: {holder}"));
        return Err(error.field("name", name).hint("delete what holds it first"));
    }
    for name in names {
        let _ = plane.bdevs.take(&name, DETACH)?; // Gone with its reservation.
        plane.observe.events.add(EventType::BdevUnregister, &name, "");
    }
    Ok(())
}

impl Refuse for AttachError {
    fn refuse(self) -> RpcError {
        let error = self;
        let message = error.to_string();
        match error {
            AttachError::Invalid(error) => error.refuse(),
            AttachError::Failed { .. } => RpcError::errno(libc::EIO, message),
            AttachError::Timeout { .. } => RpcError::errno(libc::ETIMEDOUT, message),
            AttachError::System { source, .. } => RpcError::from_io(&source, message),
        }
    }
}

impl Handler for DetachController {
    type Plane = StoragePlane;

    fn effect(&self) -> Effect {
        Effect::Forget(ObjectId::nvme_controller(&self.name))
    }

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let attached = plane.nvme.get(&self.name)?;
        let disks = attached.disks();
        let_go(plane, &attached)?;
        let (attached, reservation) = plane.nvme.take(&self.name)?;
        disks.iter().for_each(|disk| plane.desired.forget(&ObjectId::bdev(disk)));
        blocking(move || attached.controller.detach()).await?;
        drop(reservation);
        Ok(true)
    }
}

fn selected(plane: &StoragePlane, name: Option<&String>) -> Result<Vec<Arc<Attached>>, RpcError> {
    match name {
        Some(name) => Ok(vec![plane.nvme.get(name)?]),
        None => Ok(plane.nvme.list()),
    }
}

fn transport(attached: &Attached) -> TransportId {
    let params = attached.controller.params();
    TransportId {
        trtype: "TCP".to_owned(),
        adrfam: if params.traddr.contains(':') { "IPv6" } else { "IPv4" }.to_owned(),
        traddr: params.traddr.clone(),
        trsvcid: params.trsvcid.clone().unwrap_or_else(|| "4420".to_owned()),
        subnqn: params.subnqn.clone(),
    }
}

impl Handler for GetControllers {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<Vec<ControllerInfo>, RpcError> {
        Ok(selected(plane, self.name.as_ref())?.iter().map(|attached| describe(attached)).collect())
    }
}

fn describe(attached: &Attached) -> ControllerInfo {
    let (status, (held, oldest)) = (attached.controller.status(), attached.controller.held());
    let counters = attached.controller.counters();
    let path = PathInfo {
        state: state(&status.phase.to_string()).to_owned(),
        cntlid: status.facts.controller_id,
        trid: transport(attached),
        host: HostId { nqn: attached.controller.hostnqn().to_owned() },
        failed_attempts: status.attempts,
        last_error: status.last_error.map(|error| error.to_string()),
        held,
        oldest_ms: if held > 0 { oldest.as_millis() as u64 } else { 0 },
        associations: status.associations,
        retried: counters.retried,
        fenced: counters.fenced,
        connections_lost: counters.lost,
        digest_errors: counters.digest_errors,
        timeouts: counters.timeouts,
    };
    ControllerInfo { name: attached.name.clone(), ctrlrs: vec![path], bdevs: attached.disks() }
}

/// SPDK's word for a phase.
fn state(phase: &str) -> &str {
    match phase {
        "up" => "enabled",
        "dead" => "failed",
        "connecting" | "reconnecting" => "reconnect_is_delayed",
        other => other,
    }
}

impl Handler for GetIoPaths {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<IoPaths, RpcError> {
        let mut io_paths = Vec::new();
        for attached in plane.nvme.list() {
            let status = attached.controller.status();
            let up = state(&status.phase.to_string()) == "enabled";
            for bdev_name in
                attached.disks().into_iter().filter(|disk| self.name.as_ref().is_none_or(|name| name == disk))
            {
                io_paths.push(IoPath {
                    bdev_name,
                    cntlid: status.facts.controller_id,
                    current: true,
                    connected: up,
                    accessible: up,
                    transport: transport(&attached),
                });
            }
        }
        Ok(IoPaths { poll_groups: vec![PollGroup { thread: "workers".to_owned(), io_paths }] })
    }
}

impl Handler for ResetController {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        plane.nvme.get(&self.name)?.controller.reset();
        Ok(true)
    }
}

impl Handler for Discover {
    type Plane = StoragePlane;

    async fn call(&mut self, _: &Arc<StoragePlane>) -> Result<Vec<DiscoveredSubsystem>, RpcError> {
        let placeholder = SocketAddr::from(([0, 0, 0, 0], 0));
        let params = AttachParams {
            traddr: self.traddr.clone(),
            trsvcid: Some(self.trsvcid.clone().unwrap_or_else(|| "8009".to_owned())),
            hostnqn: self.hostnqn.clone(),
            ..AttachParams::new("discovery", placeholder, "")
        };
        let found = blocking(move || ::nvme::discover(&params)).await?.or_refuse()?;
        let subsystem = |e: ::nvme::spec::DiscoveryEntry| DiscoveredSubsystem {
            subnqn: e.subnqn,
            traddr: e.traddr,
            trsvcid: e.trsvcid,
        };
        Ok(found.into_iter().map(subsystem).collect())
    }
}
