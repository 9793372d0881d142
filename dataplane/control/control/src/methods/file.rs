//! Disks in files and on block devices. SPDK has two kinds, by the way they reach the kernel; here both use io_uring, and the
//! kinds differ in their names and parameters.

use super::bdev;
use crate::Control;
use crate::desired::Object;
use crate::rpc::OrRefuse;
use crate::rpc::method::{Effect, Handler, Row, blocking};
use api::bdev::{AioCreate, AioDelete, AioRescan, UringCreate, UringDelete, UringRescan};
use api::config::Call;
use api::{Method, RpcError};
use block::{Bdev, FileBdev, FileParams, FileProduct};
use serde_json::json;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Row> {
    vec![
        Row::of::<AioCreate>(),
        Row::of::<AioDelete>(),
        Row::of::<AioRescan>(),
        Row::of::<UringCreate>(),
        Row::of::<UringDelete>(),
        Row::of::<UringRescan>(),
    ]
}

impl Handler for AioCreate {
    fn effect(&self) -> Effect {
        let undo = Call::new(AioDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        let about = json!({"aio": {
            "filename": self.filename,
            "block_size_override": self.block_size.is_some(),
            "readonly": self.readonly,
            "fallocate": self.fallocate,
            "nowait": self.nowait,
        }});
        let params = FileParams {
            block_size: self.block_size.filter(|size| *size != 0),
            read_only: self.readonly,
            uuid: self.uuid,
            product: FileProduct::Aio,
            ..FileParams::new(&self.name, &self.filename)
        };
        let new = bdev::New { name_field: "name", name: &self.name, deleted_by: AioDelete::NAME, base: None, about };
        self.uuid = Some(bdev::register(control, new, move || FileBdev::create(params)).await?.uuid);
        Ok(self.name.clone())
    }
}

impl Handler for UringCreate {
    fn effect(&self) -> Effect {
        let undo = Call::new(UringDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        let about = json!({"uring": {"filename": self.filename}});
        let params = FileParams {
            block_size: self.block_size.filter(|size| *size != 0),
            uuid: self.uuid,
            product: FileProduct::Uring,
            ..FileParams::new(&self.name, &self.filename)
        };
        let new = bdev::New { name_field: "name", name: &self.name, deleted_by: UringDelete::NAME, base: None, about };
        self.uuid = Some(bdev::register(control, new, move || FileBdev::create(params)).await?.uuid);
        Ok(self.name.clone())
    }
}

impl Handler for AioDelete {
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

impl Handler for UringDelete {
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

impl Handler for AioRescan {
    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        rescan(control, &self.name, Self::NAME).await
    }
}

impl Handler for UringRescan {
    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        rescan(control, &self.name, Self::NAME).await
    }
}

async fn rescan(control: &Arc<Control>, name: &str, method: &str) -> Result<bool, RpcError> {
    let file = control.bdevs.backend::<FileBdev>(name, method)?;
    let scanned = file.clone();
    if blocking(move || scanned.rescan()).await?.or_refuse()? {
        bdev::announce_resize(control, &file.identity().name);
    }
    Ok(true)
}
