//! Disks that fail on demand.

use super::StoragePlane;
use super::disk_kind::{DiskKind, New};
use crate::rpc::OrRefuse;
use crate::rpc::method::{Handler, Row};
use api::bdev::{ErrorCreate, ErrorDelete, ErrorInject, ErrorIoType, InjectedError};
use api::{Method, RpcError};
use block::{Bdev, ErrorInjection, ErrorType, Injection, OpKind};
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<ErrorInject>()]
}

/// What SPDK puts before the base disk's name to name a disk that fails on demand.
const PREFIX: &str = "EE_";

impl DiskKind for ErrorCreate {
    const DELETED_BY: &'static str = ErrorDelete::NAME;
    const NAME_FIELD: &'static str = "base_name";
    type Disk = ErrorInjection;

    fn name(&self) -> String {
        format!("{PREFIX}{}", self.base_name)
    }

    fn base(&mut self) -> Option<&mut String> {
        Some(&mut self.base_name)
    }

    fn prepare(&mut self, _: &Arc<StoragePlane>, base: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError> {
        let (base, uuid) = (base.expect("an error disk has a base"), self.uuid);
        let open = Box::new(move || ErrorInjection::create(base, uuid).or_refuse());
        Ok(New { open, details: json!({"error_disk": {"base_bdev": self.base_name}}), answer: true })
    }

    fn set_uuid(&mut self, uuid: Uuid) {
        self.uuid = Some(uuid);
    }
}

fn error_type(injected: InjectedError) -> ErrorType {
    match injected {
        InjectedError::Failure => ErrorType::Failure,
        InjectedError::Pending => ErrorType::Pending,
        InjectedError::CorruptData => ErrorType::CorruptData,
        InjectedError::Nomem => ErrorType::NoMem,
    }
}

impl Handler for ErrorInject {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let disk = plane.bdevs.backend::<ErrorInjection>(&self.name, Self::NAME)?;
        let kind = match self.io_type {
            ErrorIoType::Clear => {
                disk.clear();
                return Ok(true);
            }
            ErrorIoType::All => None,
            ErrorIoType::Read => Some(OpKind::Read),
            ErrorIoType::Write => Some(OpKind::Write),
            ErrorIoType::Unmap => Some(OpKind::Discard),
            ErrorIoType::Flush => Some(OpKind::Flush),
        };
        disk.inject(
            kind,
            Injection {
                error_type: error_type(self.error_type),
                num: self.num.unwrap_or(1),
                queue_depth: self.queue_depth,
                corrupt_offset: self.corrupt_offset,
                corrupt_value: self.corrupt_value,
            },
        )
        .or_refuse()?;
        Ok(true)
    }
}
