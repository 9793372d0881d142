//! The boot flow: from a cloud disk across the network to a device that a host boots from, in one call that leaves nothing behind
//! when it fails.

use crate::Control;
use crate::disk_io::DiskIo;
use crate::rpc::RpcError;
use crate::rpc::method::{Entry, Method, blocking};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Instant;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<BootCreate>(), Entry::of::<BootDelete>()]
}

/// Gives a host its boot disk: attaches the cloud disk, reads its first block, makes the cloud-init disk, and serves both. When a
/// step fails, those before it are undone.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BootCreate {
    /// The host: name of the controllers, NAME and NAME-cidata, and of the disks.
    name: String,
    /// The cloud disk at an NVMe/TCP target: parameters of bdev_nvme_attach_controller but its name, and nsid (1).
    nvme: Option<Map<String, Value>>,
    /// The cloud disk at an iSCSI target: parameters of bdev_iscsi_create but its name.
    iscsi: Option<Map<String, Value>>,
    /// The cloud-init disk: parameters of bdev_cidata_create but its name.
    cidata: Option<Map<String, Value>>,
    /// How it is served: parameters of vhost_create_blk_controller but its names.
    controller: Option<Map<String, Value>>,
}

#[derive(Serialize, JsonSchema)]
struct Booted {
    /// The boot disk.
    disk: String,
    /// The controller of the boot disk.
    controller: String,
    /// The controller of the cloud-init disk.
    cidata_controller: Option<String>,
    /// What was done, in order.
    steps: Vec<Step>,
    /// Microseconds from the call to the answer.
    total_us: u64,
}

#[derive(Serialize, JsonSchema)]
struct Step {
    /// What.
    step: String,
    /// Microseconds that it took.
    us: u64,
}

impl Method for BootCreate {
    const NAME: &'static str = "boot_create";
    type Output = Booted;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Booted, RpcError> {
        let begun = Instant::now();
        let mut flow = Flow { control, steps: Vec::new(), undo: Vec::new() };
        match self.run(&mut flow).await {
            Ok((disk, cidata_controller)) => Ok(Booted {
                disk,
                controller: self.name.clone(),
                cidata_controller,
                steps: flow.steps,
                total_us: begun.elapsed().as_micros() as u64,
            }),
            Err(error) => Err(flow.take_back(error).await),
        }
    }
}

impl BootCreate {
    async fn run(&self, flow: &mut Flow<'_>) -> Result<(String, Option<String>), RpcError> {
        let name = &self.name;
        let disk = match (&self.nvme, &self.iscsi) {
            (Some(nvme), None) => self.attach_nvme(flow, nvme.clone()).await?,
            (None, Some(iscsi)) => {
                let undo = ("bdev_iscsi_delete", json!({"name": name}));
                flow.make("bdev_iscsi_create", with(iscsi.clone(), &[("name", name)]), undo).await?;
                name.clone()
            }
            _ => return Err(RpcError::invalid("nvme, iscsi", "none or both", "one of them")),
        };
        flow.first_read(&disk).await?;
        if let Some(cidata) = &self.cidata {
            let seed = format!("{name}-cidata");
            let undo = ("bdev_cidata_delete", json!({"name": seed}));
            flow.make("bdev_cidata_create", with(cidata.clone(), &[("name", &seed)]), undo).await?;
            let served = with(Map::new(), &[("ctrlr", &seed), ("dev_name", &seed)]);
            let served = with_value(served, "readonly", json!(true));
            flow.make(SERVE, served, (UNSERVE, json!({"ctrlr": seed}))).await?;
        }
        let options = self.controller.clone().unwrap_or_default();
        let served = with(options, &[("ctrlr", name), ("dev_name", &disk)]);
        flow.make(SERVE, served, (UNSERVE, json!({"ctrlr": name}))).await?;
        Ok((disk, self.cidata.is_some().then(|| format!("{name}-cidata"))))
    }

    async fn attach_nvme(&self, flow: &mut Flow<'_>, mut params: Map<String, Value>) -> Result<String, RpcError> {
        let name = &self.name;
        let nsid = params.remove("nsid").unwrap_or(json!(1));
        params.entry("trtype").or_insert(json!("TCP"));
        let undo = ("bdev_nvme_detach_controller", json!({"name": name}));
        let disks = flow.make("bdev_nvme_attach_controller", with(params, &[("name", name)]), undo).await?;
        let disk = format!("{name}n{nsid}");
        let found = disks.as_array().is_some_and(|disks| disks.iter().any(|known| *known == json!(disk)));
        if found { Ok(disk) } else { Err(RpcError::invalid("nvme.nsid", nsid, format!("one of the disks {disks}"))) }
    }
}

const SERVE: &str = "vhost_create_blk_controller";
const UNSERVE: &str = "vhost_delete_controller";

/// Adds texts to the parameters of a call.
fn with(mut params: Map<String, Value>, fields: &[(&str, &str)]) -> Map<String, Value> {
    params.extend(fields.iter().map(|(field, text)| ((*field).to_owned(), json!(text))));
    params
}

fn with_value(mut params: Map<String, Value>, field: &str, value: Value) -> Map<String, Value> {
    params.insert(field.to_owned(), value);
    params
}

/// Steps, and how to take them back.
struct Flow<'a> {
    control: &'a Arc<Control>,
    steps: Vec<Step>,
    undo: Vec<(&'static str, Value)>,
}

impl Flow<'_> {
    /// Makes a call as a step.
    async fn make(
        &mut self,
        method: &str,
        params: Map<String, Value>,
        undo: (&'static str, Value),
    ) -> Result<Value, RpcError> {
        let begun = Instant::now();
        // Boxed: this future is one of those that it awaits.
        let answer =
            Box::pin(self.control.call_unsaved(method, Value::Object(params))).await.map_err(|mut error| {
                error.message = format!("{method}: {}", error.message);
                error
            })?;
        self.undo.push(undo);
        self.steps.push(Step { step: method.to_owned(), us: begun.elapsed().as_micros() as u64 });
        Ok(answer)
    }

    /// Reads the first block: the disk can be used.
    async fn first_read(&mut self, disk: &str) -> Result<(), RpcError> {
        let begun = Instant::now();
        let bdev = self.control.bdevs.get(disk)?.bdev.clone();
        let read = blocking(move || {
            let block = bdev.geometry().block_size as usize;
            DiskIo::open(bdev.as_ref(), block)?.read(0, &mut vec![0; block])
        });
        read.await?.map_err(|error| RpcError::from_io(&error, format!("first read of {disk}: {error}")))?;
        self.steps.push(Step { step: "first read".to_owned(), us: begun.elapsed().as_micros() as u64 });
        Ok(())
    }

    async fn take_back(self, mut error: RpcError) -> RpcError {
        for (method, params) in self.undo.into_iter().rev() {
            if let Err(failed) = Box::pin(self.control.call_unsaved(method, params)).await {
                error.message += &format!("; and {method} failed: {failed}");
            }
        }
        error
    }
}

/// Takes a host's boot disk away: what boot_create made.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BootDelete {
    /// The host.
    name: String,
}

impl Method for BootDelete {
    const NAME: &'static str = "boot_delete";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let name = &self.name;
        let seed = format!("{name}-cidata");
        control.controllers.get(name)?;
        let mut calls = vec![(UNSERVE, json!({"ctrlr": name}))];
        if control.controllers.get(&seed).is_ok() {
            calls.push((UNSERVE, json!({"ctrlr": seed})));
            calls.push(("bdev_cidata_delete", json!({"name": seed})));
        }
        let nvme = control.nvme.get(name).is_ok();
        calls.push((if nvme { "bdev_nvme_detach_controller" } else { "bdev_iscsi_delete" }, json!({"name": name})));
        for (method, params) in calls {
            Box::pin(control.call_unsaved(method, params)).await?;
        }
        Ok(true)
    }
}
