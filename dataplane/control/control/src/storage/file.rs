//! Disks in files and on block devices. SPDK has two kinds, by the way they reach the kernel; here both use io_uring, and the
//! kinds differ in their names and parameters.

use super::StoragePlane;
use super::disk_kind::{DiskKind, New};
use crate::blocking::blocking;
use crate::rpc::OrRefuse;
use crate::rpc::method::{Handler, Row};
use api::bdev::{AioCreate, AioDelete, AioRescan, UringCreate, UringDelete, UringRescan};
use api::{Method, RpcError};
use block::{Bdev, FileBdev, FileParams, FileProduct};
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<AioRescan>(), Row::of::<UringRescan>()]
}

impl DiskKind for AioCreate {
    const DELETED_BY: &'static str = AioDelete::NAME;
    type Disk = FileBdev;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn prepare(&mut self, _: &Arc<StoragePlane>, _: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError> {
        let details = json!({"aio": {
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
        let open = Box::new(move || FileBdev::create(params).or_refuse());
        Ok(New { open, details, answer: self.name.clone() })
    }

    fn set_uuid(&mut self, uuid: Uuid) {
        self.uuid = Some(uuid);
    }
}

impl DiskKind for UringCreate {
    const DELETED_BY: &'static str = UringDelete::NAME;
    type Disk = FileBdev;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn prepare(&mut self, _: &Arc<StoragePlane>, _: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError> {
        let params = FileParams {
            block_size: self.block_size.filter(|size| *size != 0),
            uuid: self.uuid,
            product: FileProduct::Uring,
            ..FileParams::new(&self.name, &self.filename)
        };
        let open = Box::new(move || FileBdev::create(params).or_refuse());
        Ok(New { open, details: json!({"uring": {"filename": self.filename}}), answer: self.name.clone() })
    }

    fn set_uuid(&mut self, uuid: Uuid) {
        self.uuid = Some(uuid);
    }
}

impl Handler for AioRescan {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        rescan(plane, &self.name, Self::NAME).await
    }
}

impl Handler for UringRescan {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        rescan(plane, &self.name, Self::NAME).await
    }
}

async fn rescan(plane: &Arc<StoragePlane>, name: &str, method: &str) -> Result<bool, RpcError> {
    let file = plane.bdevs.backend::<FileBdev>(name, method)?;
    let scanned = file.clone();
    if blocking(move || scanned.rescan()).await?.or_refuse()? {
        plane.announce_resize(&file.identity().name);
    }
    Ok(true)
}
