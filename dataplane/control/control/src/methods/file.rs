//! Disks in files and on block devices. SPDK has two kinds, by the way they reach the kernel; here both use io_uring, and the
//! kinds differ in their names and parameters.

use super::bdev;
use crate::Control;
use crate::desired::{Call, Object};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method, blocking};
use block::{Bdev, FileBdev, FileParams, FileProduct};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<BdevAioCreate>(),
        Entry::of::<BdevAioDelete>(),
        Entry::of::<BdevAioRescan>(),
        Entry::of::<BdevUringCreate>(),
        Entry::of::<BdevUringDelete>(),
        Entry::of::<BdevUringRescan>(),
    ]
}

/// Makes a disk of a file or a block device.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevAioCreate {
    /// Its name.
    name: String,
    /// The file, as the daemon sees it.
    filename: String,
    /// Bytes a block: a power of two from 512 to 65536; the device's own, or 512 for a file, when it is not given.
    block_size: Option<u32>,
    /// Open it for reading alone.
    #[serde(default)]
    readonly: bool,
    /// Accepted for SPDK's clients: space is always given back by discards where the file system can.
    #[serde(default)]
    fallocate: bool,
    /// Its UUID; a random one when it is not given.
    uuid: Option<Uuid>,
    /// Accepted for SPDK's clients: io_uring never waits in the caller.
    #[serde(default)]
    nowait: bool,
}

impl Method for BdevAioCreate {
    const NAME: &'static str = "bdev_aio_create";
    type Output = String;

    fn effect(&self) -> Effect {
        let undo = Call::new(BdevAioDelete::NAME, json!({"name": self.name}));
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
        let new =
            bdev::New { name_field: "name", name: &self.name, deleted_by: BdevAioDelete::NAME, base: None, about };
        self.uuid = Some(bdev::register(control, new, move || FileBdev::create(params)).await?.uuid);
        Ok(self.name.clone())
    }
}

/// Makes a disk of a file or a block device, reached by io_uring.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevUringCreate {
    /// Its name.
    name: String,
    /// The file, as the daemon sees it.
    filename: String,
    /// Bytes a block: a power of two from 512 to 65536; the device's own, or 512 for a file, when it is not given.
    block_size: Option<u32>,
    /// Its UUID; a random one when it is not given.
    uuid: Option<Uuid>,
}

impl Method for BdevUringCreate {
    const NAME: &'static str = "bdev_uring_create";
    type Output = String;

    fn effect(&self) -> Effect {
        let undo = Call::new(BdevUringDelete::NAME, json!({"name": self.name}));
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
        let new =
            bdev::New { name_field: "name", name: &self.name, deleted_by: BdevUringDelete::NAME, base: None, about };
        self.uuid = Some(bdev::register(control, new, move || FileBdev::create(params)).await?.uuid);
        Ok(self.name.clone())
    }
}

/// Deletes a disk made by bdev_aio_create. The file stays.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevAioDelete {
    /// Its name.
    name: String,
}

impl Method for BdevAioDelete {
    const NAME: &'static str = "bdev_aio_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

/// Deletes a disk made by bdev_uring_create. The file stays.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevUringDelete {
    /// Its name.
    name: String,
}

impl Method for BdevUringDelete {
    const NAME: &'static str = "bdev_uring_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

/// Takes a file's size anew, and tells the guest.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevAioRescan {
    /// The disk.
    name: String,
}

impl Method for BdevAioRescan {
    const NAME: &'static str = "bdev_aio_rescan";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        rescan(control, &self.name, Self::NAME).await
    }
}

/// Takes a file's size anew, and tells the guest.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevUringRescan {
    /// The disk.
    name: String,
}

impl Method for BdevUringRescan {
    const NAME: &'static str = "bdev_uring_rescan";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        rescan(control, &self.name, Self::NAME).await
    }
}

async fn rescan(control: &Arc<Control>, name: &str, method: &str) -> Result<bool, RpcError> {
    let file = control.bdevs.backend::<FileBdev>(name, method)?;
    let scanned = file.clone();
    if blocking(move || scanned.rescan()).await?? {
        bdev::announce_resize(control, &file.identity().name);
    }
    Ok(true)
}
