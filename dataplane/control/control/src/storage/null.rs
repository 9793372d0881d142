//! Disks that discard what is written, for benchmarks.

use super::StoragePlane;
use super::disk_kind::{DiskKind, New};
use crate::rpc::method::{Handler, Row};
use crate::rpc::{OrRefuse, Refuse};
use crate::state::object::ObjectId;
use api::bdev::{NullCreate, NullDelete, NullResize};
use api::{Method, RpcError};
use block::{Bdev, Null, NullParams};
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<NullResize>()]
}

impl DiskKind for NullCreate {
    const DELETED_BY: &'static str = NullDelete::NAME;
    type Disk = Null;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn prepare(&mut self, _: &Arc<StoragePlane>, _: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError> {
        let params = NullParams {
            name: self.name.clone(),
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            physical_block_size: self.physical_block_size.filter(|size| *size != 0),
            uuid: self.uuid,
        };
        let open = Box::new(move || Null::create(params).or_refuse());
        Ok(New { open, details: json!({}), answer: self.name.clone() })
    }

    fn set_uuid(&mut self, uuid: Uuid) {
        self.uuid = Some(uuid);
    }
}

impl Handler for NullResize {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let null = plane.bdevs.backend::<Null>(&self.name, Self::NAME)?;
        let bytes = self.new_size.checked_mul(1 << 20).ok_or_else(|| too_large(self.new_size))?;
        let num_blocks = bytes / u64::from(null.geometry().block_size);
        null.resize(num_blocks).map_err(|error| error.refuse().field("new_size", self.new_size))?;
        let name = &null.identity().name;
        plane.desired.amend(&ObjectId::bdev(name).itself(), "num_blocks", json!(num_blocks));
        plane.announce_resize(name);
        Ok(true)
    }
}

fn too_large(mib: u64) -> RpcError {
    RpcError::invalid("new_size", mib, format!("at most {} MiB", u64::MAX >> 20))
}
