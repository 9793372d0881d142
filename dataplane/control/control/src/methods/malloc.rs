//! Disks in memory.

use super::bdev::{self, unsupported};
use crate::Control;
use crate::desired::{Call, Object};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use block::{Malloc, MallocParams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<BdevMallocCreate>(), Entry::of::<BdevMallocDelete>()]
}

/// Makes a disk in memory. It is empty again when the daemon starts anew.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevMallocCreate {
    /// Its name; Malloc and a number when it is not given.
    name: Option<String>,
    /// Bytes a block: a power of two from 512 to 65536.
    block_size: u32,
    /// Blocks.
    num_blocks: u64,
    /// Its UUID; a random one when it is not given.
    uuid: Option<Uuid>,
    /// Bytes a physical block, at least block_size.
    physical_block_size: Option<u32>,
    /// The NUMA node of its memory; -1 is any.
    numa_id: Option<i32>,
    /// Not supported: 0 only.
    optimal_io_boundary: Option<u32>,
    /// Metadata is not supported: 0 only.
    md_size: Option<u32>,
    /// Metadata is not supported.
    md_interleave: Option<bool>,
    /// Protection information is not supported: 0 only.
    dif_type: Option<i32>,
    /// Protection information is not supported.
    dif_is_head_of_md: Option<bool>,
    /// Protection information is not supported: 0 only.
    dif_pi_format: Option<u32>,
}

impl Method for BdevMallocCreate {
    const NAME: &'static str = "bdev_malloc_create";
    type Output = String;

    fn effect(&self) -> Effect {
        let name = self.name.as_deref().unwrap_or_default();
        let undo = Call::new(BdevMallocDelete::NAME, json!({"name": name}));
        Effect::Keep { slot: Object::bdev(name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        unsupported("optimal_io_boundary", self.optimal_io_boundary)?;
        unsupported("md_size", self.md_size)?;
        unsupported("dif_type", self.dif_type)?;
        unsupported("dif_pi_format", self.dif_pi_format)?;
        let name = self.name.clone().unwrap_or_else(|| control.bdevs.free_name("Malloc"));
        let params = MallocParams {
            name: name.clone(),
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            physical_block_size: self.physical_block_size.filter(|size| *size != 0),
            uuid: self.uuid,
            numa_node: numa_node(self.numa_id)?,
        };
        let new = bdev::New {
            name_field: "name",
            name: &name,
            deleted_by: BdevMallocDelete::NAME,
            base: None,
            about: json!({}),
        };
        let disk = bdev::register(control, new, move || Malloc::create(params)).await?;
        (self.name, self.uuid) = (Some(name.clone()), Some(disk.uuid));
        Ok(name)
    }
}

fn numa_node(id: Option<i32>) -> Result<Option<u32>, RpcError> {
    match id {
        None | Some(-1) => Ok(None),
        Some(id) => u32::try_from(id).map(Some).map_err(|_| RpcError::invalid("numa_id", id, "a node, or -1 for any")),
    }
}

/// Deletes a disk in memory, and what is on it.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevMallocDelete {
    /// Its name.
    name: String,
}

impl Method for BdevMallocDelete {
    const NAME: &'static str = "bdev_malloc_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}
