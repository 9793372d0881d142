//! Disks in memory.

use super::StoragePlane;
use super::disk_kind::{DiskKind, New};
use crate::rpc::OrRefuse;
use api::bdev::{MallocCreate, MallocDelete};
use api::{Method, RpcError};
use block::{Bdev, Malloc, MallocParams};
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

impl DiskKind for MallocCreate {
    const DELETED_BY: &'static str = MallocDelete::NAME;
    type Disk = Malloc;

    fn name(&self) -> String {
        self.name.clone().unwrap_or_default()
    }

    fn prepare(&mut self, plane: &Arc<StoragePlane>, _: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError> {
        let name = self.name.get_or_insert_with(|| plane.bdevs.free_name("Malloc")).clone();
        let params = MallocParams {
            name: name.clone(),
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            physical_block_size: self.physical_block_size.filter(|size| *size != 0),
            uuid: self.uuid,
            numa_node: numa_node(self.numa_id)?,
        };
        let open = Box::new(move || Malloc::create(params).or_refuse());
        Ok(New { open, details: json!({}), answer: name })
    }

    fn set_uuid(&mut self, uuid: Uuid) {
        self.uuid = Some(uuid);
    }
}

fn numa_node(id: Option<i32>) -> Result<Option<u32>, RpcError> {
    match id {
        None | Some(-1) => Ok(None),
        Some(id) => u32::try_from(id).map(Some).map_err(|_| RpcError::invalid("numa_id", id, "a node, or -1 for any")),
    }
}
