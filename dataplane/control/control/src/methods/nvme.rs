//! Disks at NVMe/TCP targets.

use super::bdev::unsupported;
use crate::Control;
use crate::desired::{Call, Object};
use crate::events::EventType;
use crate::nvme::{Attached, DETACH, sync};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method, blocking};
use ::nvme::{AttachError, AttachParams, InvalidParam, Options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<BdevNvmeAttachController>(),
        Entry::of::<BdevNvmeDetachController>(),
        Entry::of::<BdevNvmeGetControllers>(),
        Entry::of::<BdevNvmeGetIoPaths>(),
        Entry::of::<BdevNvmeResetController>(),
        Entry::of::<NvmeDiscover>(),
    ]
}

/// Connects to an NVMe/TCP subsystem and makes a disk of each of its namespaces. While it cannot be reached, I/O is held.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevNvmeAttachController {
    /// The controller's name; its disks are this name, n, and the namespace's number.
    name: String,
    /// The transport: TCP.
    trtype: String,
    /// The target's IP address.
    traddr: String,
    /// IPv4 or IPv6; must agree with traddr.
    adrfam: Option<String>,
    /// The target's port; 4420 when it is not given.
    trsvcid: Option<String>,
    /// The subsystem's NQN.
    subnqn: String,
    /// Our own NQN; made of the daemon's host id when it is not given.
    hostnqn: Option<String>,
    /// The local address to connect from.
    hostaddr: Option<String>,
    /// The local port to connect from.
    hostsvcid: Option<String>,
    /// CRC32C on headers.
    #[serde(default)]
    hdgst: bool,
    /// CRC32C on data.
    #[serde(default)]
    ddgst: bool,
    /// Microseconds that connecting a queue may take; 0 takes 5 s.
    fabrics_connect_timeout_us: Option<u64>,
    /// I/O queues at most, one a worker that serves a disk of it: 1 to 1024; 64 when it is not given.
    num_io_queues: Option<u32>,
    /// Seconds until a lost controller is given up and its disks fail; -1, never, when it is not given.
    ctrlr_loss_timeout_sec: Option<i32>,
    /// Longest pause between attempts to reconnect, in seconds; 2 when it is not given.
    reconnect_delay_sec: Option<u32>,
    /// Seconds until held I/O fails; 0, never, when it is not given.
    fast_io_fail_timeout_sec: Option<u32>,
    /// Not supported.
    priority: Option<String>,
    /// Protection information is not supported.
    prchk_reftag: Option<bool>,
    /// Protection information is not supported.
    prchk_guard: Option<bool>,
    /// One path a controller: disable is accepted.
    multipath: Option<String>,
    /// TLS is not supported yet.
    psk: Option<String>,
    /// DH-HMAC-CHAP is not supported yet.
    dhchap_key: Option<String>,
    /// DH-HMAC-CHAP is not supported yet.
    dhchap_ctrlr_key: Option<String>,
    /// Disks at most; all namespaces are taken.
    max_bdevs: Option<u32>,
    /// Only the NVM command set is supported.
    allow_unrecognized_csi: Option<bool>,
}

impl BdevNvmeAttachController {
    fn params(&self) -> Result<AttachParams, RpcError> {
        unsupported("prchk_reftag", self.prchk_reftag.map(u8::from))?;
        unsupported("prchk_guard", self.prchk_guard.map(u8::from))?;
        for (field, value) in [
            ("psk", &self.psk),
            ("dhchap_key", &self.dhchap_key),
            ("dhchap_ctrlr_key", &self.dhchap_ctrlr_key),
            ("priority", &self.priority),
        ] {
            if value.is_some() {
                return Err(RpcError::invalid(field, "a value", "nothing: it is not supported yet"));
            }
        }
        if let Some(mode) = self.multipath.as_deref().filter(|mode| *mode != "disable") {
            return Err(RpcError::invalid("multipath", mode, "disable: one path a controller"));
        }
        let placeholder = SocketAddr::from(([0, 0, 0, 0], 0));
        let usual = AttachParams::new(&self.name, placeholder, &self.subnqn);
        Ok(AttachParams {
            trtype: self.trtype.clone(),
            traddr: self.traddr.clone(),
            adrfam: self.adrfam.clone(),
            trsvcid: self.trsvcid.clone(),
            hostnqn: self.hostnqn.clone(),
            hostaddr: self.hostaddr.clone(),
            hostsvcid: self.hostsvcid.clone(),
            hdgst: self.hdgst,
            ddgst: self.ddgst,
            fabrics_connect_timeout_us: self.fabrics_connect_timeout_us.unwrap_or(usual.fabrics_connect_timeout_us),
            num_io_queues: self.num_io_queues.unwrap_or(usual.num_io_queues),
            ctrlr_loss_timeout_sec: self.ctrlr_loss_timeout_sec.unwrap_or(usual.ctrlr_loss_timeout_sec),
            reconnect_delay_sec: self.reconnect_delay_sec.unwrap_or(usual.reconnect_delay_sec),
            fast_io_fail_timeout_sec: self.fast_io_fail_timeout_sec.unwrap_or(usual.fast_io_fail_timeout_sec),
            options: Options::default(),
            ..usual
        })
    }
}

impl Method for BdevNvmeAttachController {
    const NAME: &'static str = "bdev_nvme_attach_controller";
    /// Names of the disks.
    type Output = Vec<String>;

    fn effect(&self) -> Effect {
        let undo = Call::new(DETACH, json!({"name": self.name}));
        Effect::Keep { slot: Object::nvme_controller(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<String>, RpcError> {
        let params = self.params()?;
        params.validate()?;
        control.nvme.reserve(&self.name)?;
        let connecting = control.clone();
        let connected = match blocking(move || Attached::connect(&connecting, &params)).await {
            Ok(connected) => connected.map_err(RpcError::from),
            Err(error) => Err(error),
        };
        let synced = connected.and_then(|attached| {
            sync(control, &attached).map(|()| attached.clone()).or_else(|error| {
                let_go(control, &attached)?;
                Err(error)
            })
        });
        match synced {
            Ok(attached) => {
                control.nvme.settle(&self.name, Some(attached.clone()));
                Ok(attached.disks())
            }
            Err(error) => {
                control.nvme.settle(&self.name, None);
                Err(error)
            }
        }
    }
}

/// Takes down the disks of a controller; none when one of them is held.
fn let_go(control: &Control, attached: &Attached) -> Result<(), RpcError> {
    let names = attached.disks();
    if let Some((name, holder)) = names.iter().find_map(|n| control.bdevs.holders(n).into_iter().next().map(|h| (n, h)))
    {
        let error = RpcError::errno(libc::EBUSY, format!("the disk {name} is busy: {holder}"));
        return Err(error.field("name", name).hint("delete what holds it first"));
    }
    for name in names {
        drop(control.bdevs.take(&name, DETACH)?);
        control.events.add(EventType::BdevUnregister, &name, "");
    }
    Ok(())
}

impl From<InvalidParam> for RpcError {
    fn from(error: InvalidParam) -> RpcError {
        RpcError::invalid(error.field, error.got, error.expected).hint(error.hint)
    }
}

impl From<AttachError> for RpcError {
    fn from(error: AttachError) -> RpcError {
        let message = error.to_string();
        match error {
            AttachError::Invalid(param) => param.into(),
            AttachError::Failed { .. } => RpcError::errno(libc::EIO, message),
            AttachError::Timeout { .. } => RpcError::errno(libc::ETIMEDOUT, message),
            AttachError::System { source, .. } => RpcError::from_io(&source, message),
        }
    }
}

/// Disconnects an NVMe controller and deletes its disks.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevNvmeDetachController {
    /// Its name.
    name: String,
}

impl Method for BdevNvmeDetachController {
    const NAME: &'static str = DETACH;
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::nvme_controller(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let attached = control.nvme.get(&self.name)?;
        let disks = attached.disks();
        let_go(control, &attached)?;
        disks.iter().for_each(|disk| control.desired.forget(&Object::bdev(disk)));
        blocking(move || attached.controller.detach()).await?;
        control.nvme.settle(&self.name, None);
        Ok(true)
    }
}

/// Lists the NVMe controllers.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevNvmeGetControllers {
    /// Only this one.
    name: Option<String>,
}

fn selected(control: &Control, name: Option<&String>) -> Result<Vec<Arc<Attached>>, RpcError> {
    match name {
        Some(name) => Ok(vec![control.nvme.get(name)?]),
        None => Ok(control.nvme.all()),
    }
}

fn transport(attached: &Attached) -> Value {
    let params = attached.controller.params();
    json!({
        "trtype": "TCP",
        "adrfam": if params.traddr.contains(':') { "IPv6" } else { "IPv4" },
        "traddr": params.traddr,
        "trsvcid": params.trsvcid.as_deref().unwrap_or("4420"),
        "subnqn": params.subnqn,
    })
}

impl Method for BdevNvmeGetControllers {
    const NAME: &'static str = "bdev_nvme_get_controllers";
    /// SPDK's shape, and what is held while a controller is lost.
    type Output = Vec<Value>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<Value>, RpcError> {
        let describe = |attached: Arc<Attached>| {
            let (status, (held, oldest)) = (attached.controller.status(), attached.controller.held());
            let counters = attached.controller.counters();
            json!({
                "name": attached.name,
                "ctrlrs": [{
                    "state": state(&status.phase.to_string()),
                    "cntlid": status.facts.controller_id,
                    "trid": transport(&attached),
                    "host": {"nqn": attached.controller.hostnqn()},
                    "failed_attempts": status.attempts,
                    "last_error": status.last_error.map(|error| error.to_string()),
                    "held": held,
                    "oldest_ms": if held > 0 { oldest.as_millis() as u64 } else { 0 },
                    "associations": status.associations,
                    "retried": counters.retried,
                    "fenced": counters.fenced,
                    "connections_lost": counters.lost,
                    "digest_errors": counters.digest_errors,
                    "timeouts": counters.timeouts,
                }],
                "bdevs": attached.disks(),
            })
        };
        Ok(selected(control, self.name.as_ref())?.into_iter().map(describe).collect())
    }
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

/// Lists the ways from disks to their NVMe controllers.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevNvmeGetIoPaths {
    /// Only those of this disk.
    name: Option<String>,
}

impl Method for BdevNvmeGetIoPaths {
    const NAME: &'static str = "bdev_nvme_get_io_paths";
    /// SPDK's shape, as one group.
    type Output = Value;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Value, RpcError> {
        let mut paths = Vec::new();
        for attached in control.nvme.all() {
            let status = attached.controller.status();
            let up = state(&status.phase.to_string()) == "enabled";
            for disk in attached.disks().into_iter().filter(|disk| self.name.as_ref().is_none_or(|name| name == disk)) {
                paths.push(json!({
                    "bdev_name": disk,
                    "cntlid": status.facts.controller_id,
                    "current": true,
                    "connected": up,
                    "accessible": up,
                    "transport": transport(&attached),
                }));
            }
        }
        Ok(json!({"poll_groups": [{"thread": "workers", "io_paths": paths}]}))
    }
}

/// Ends the association with an NVMe controller and begins a new one; I/O is held meanwhile.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevNvmeResetController {
    /// Its name.
    name: String,
}

impl Method for BdevNvmeResetController {
    const NAME: &'static str = "bdev_nvme_reset_controller";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.nvme.get(&self.name)?.controller.reset();
        Ok(true)
    }
}

/// Asks an NVMe/TCP discovery controller, and those it refers to, for subsystems.
#[derive(Serialize, Deserialize, JsonSchema)]
struct NvmeDiscover {
    /// The IP address of the discovery controller.
    traddr: String,
    /// Its port; 8009 when it is not given.
    trsvcid: Option<String>,
    /// Our own NQN.
    hostnqn: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct FoundSubsystem {
    /// Its NQN.
    subnqn: String,
    /// Its address.
    traddr: String,
    /// Its port.
    trsvcid: String,
}

impl Method for NvmeDiscover {
    const NAME: &'static str = "nvme_discover";
    type Output = Vec<FoundSubsystem>;

    async fn call(&mut self, _: &Arc<Control>) -> Result<Vec<FoundSubsystem>, RpcError> {
        let placeholder = SocketAddr::from(([0, 0, 0, 0], 0));
        let params = AttachParams {
            traddr: self.traddr.clone(),
            trsvcid: Some(self.trsvcid.clone().unwrap_or_else(|| "8009".to_owned())),
            hostnqn: self.hostnqn.clone(),
            ..AttachParams::new("discovery", placeholder, "")
        };
        let found = blocking(move || ::nvme::discover(&params)).await??;
        let subsystem =
            |e: ::nvme::spec::DiscoveryEntry| FoundSubsystem { subnqn: e.subnqn, traddr: e.traddr, trsvcid: e.trsvcid };
        Ok(found.into_iter().map(subsystem).collect())
    }
}
