//! The boot flow: from a cloud disk across the network to a device that a host boots from, in one call that leaves nothing behind
//! when it fails.

use super::disk_io::DiskIo;
use crate::Control;
use crate::blocking::blocking;
use crate::rpc::method::{Handler, Row};
use api::bdev::{CidataCreate, CidataDelete};
use api::boot::{BootCreate, BootDelete, BootInfo, BootStep};
use api::vhost::{CreateBlkController, DeleteController};
use api::{Method, RpcError, iscsi, nvme};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Instant;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<BootCreate>(), Row::of::<BootDelete>()]
}

impl Handler for BootCreate {
    type Plane = Control;

    async fn call(&mut self, control: &Arc<Control>) -> Result<BootInfo, RpcError> {
        let begun = Instant::now();
        let mut flow = Flow { control, steps: Vec::new(), undo: Vec::new() };
        match run(self, &mut flow).await {
            Ok((disk, cidata_controller)) => Ok(BootInfo {
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

async fn run(call: &BootCreate, flow: &mut Flow<'_>) -> Result<(String, Option<String>), RpcError> {
    let name = &call.name;
    let disk = match (&call.nvme, &call.iscsi) {
        (Some(nvme), None) => attach_nvme(name, flow, nvme.clone()).await?,
        (None, Some(iscsi)) => {
            let undo = (iscsi::Delete::NAME, json!({"name": name}));
            flow.make(iscsi::Create::NAME, with(iscsi.clone(), &[("name", name)]), undo).await?;
            name.clone()
        }
        _ => return Err(RpcError::invalid("nvme, iscsi", "none or both", "one of them")),
    };
    flow.first_read(&disk).await?;
    if let Some(cidata) = &call.cidata {
        let seed = format!("{name}-cidata");
        let undo = (CidataDelete::NAME, json!({"name": seed}));
        flow.make(CidataCreate::NAME, with(cidata.clone(), &[("name", &seed)]), undo).await?;
        let served = with(Map::new(), &[("ctrlr", &seed), ("dev_name", &seed)]);
        let served = with_value(served, "readonly", json!(true));
        flow.make(CreateBlkController::NAME, served, (DeleteController::NAME, json!({"ctrlr": seed}))).await?;
    }
    let options = call.controller.clone().unwrap_or_default();
    let served = with(options, &[("ctrlr", name), ("dev_name", &disk)]);
    flow.make(CreateBlkController::NAME, served, (DeleteController::NAME, json!({"ctrlr": name}))).await?;
    Ok((disk, call.cidata.is_some().then(|| format!("{name}-cidata"))))
}

async fn attach_nvme(name: &str, flow: &mut Flow<'_>, mut params: Map<String, Value>) -> Result<String, RpcError> {
    let nsid = params.remove("nsid").unwrap_or(json!(1));
    params.entry("trtype").or_insert(json!("TCP"));
    let undo = (nvme::DetachController::NAME, json!({"name": name}));
    let disks = flow.make(nvme::AttachController::NAME, with(params, &[("name", name)]), undo).await?;
    let disk = format!("{name}n{nsid}");
    let found = disks.as_array().is_some_and(|disks| disks.iter().any(|known| *known == json!(disk)));
    if found { Ok(disk) } else { Err(RpcError::invalid("nvme.nsid", nsid, format!("one of the disks {disks}"))) }
}

/// Adds texts to the parameters of a call.
fn with(mut params: Map<String, Value>, fields: &[(&str, &str)]) -> Map<String, Value> {
    params.extend(fields.iter().map(|(field, text)| ((*field).to_owned(), json!(text))));
    params
}

fn with_value(mut params: Map<String, Value>, field: &str, value: Value) -> Map<String, Value> {
    params.insert(field.to_owned(), value);
    params
}

/// The steps of a boot flow, and the calls that undo them.
struct Flow<'a> {
    control: &'a Arc<Control>,
    steps: Vec<BootStep>,
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
        self.steps.push(BootStep { step: method.to_owned(), us: begun.elapsed().as_micros() as u64 });
        Ok(answer)
    }

    /// Reads the first block: the disk can be used.
    async fn first_read(&mut self, disk: &str) -> Result<(), RpcError> {
        let begun = Instant::now();
        let bdev = self.control.storage.bdevs.get(disk)?.bdev.clone();
        let read = blocking(move || {
            let block = bdev.geometry().block_size as usize;
            DiskIo::open(bdev.as_ref(), block)?.read(0, &mut vec![0; block])
        });
        read.await?.map_err(|error| RpcError::from_io(&error, format!("first read of {disk}: {error}")))?;
        self.steps.push(BootStep { step: "first read".to_owned(), us: begun.elapsed().as_micros() as u64 });
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

impl Handler for BootDelete {
    type Plane = Control;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let name = &self.name;
        let seed = format!("{name}-cidata");
        control.storage.controllers.get(name)?;
        let mut calls = vec![(DeleteController::NAME, json!({"ctrlr": name}))];
        if control.storage.controllers.get(&seed).is_ok() {
            calls.push((DeleteController::NAME, json!({"ctrlr": seed})));
            calls.push((CidataDelete::NAME, json!({"name": seed})));
        }
        let is_nvme = control.storage.nvme.get(name).is_ok();
        calls.push((if is_nvme { nvme::DetachController::NAME } else { iscsi::Delete::NAME }, json!({"name": name})));
        for (method, params) in calls {
            Box::pin(control.call_unsaved(method, params)).await?;
        }
        Ok(true)
    }
}
