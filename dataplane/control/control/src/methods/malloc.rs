//! Disks in memory.

use super::bdev;
use crate::Control;
use crate::desired::Object;
use crate::rpc::method::{Effect, Handler, Row};
use api::bdev::{MallocCreate, MallocDelete};
use api::config::Call;
use api::{Method, RpcError};
use block::{Malloc, MallocParams};
use serde_json::json;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<MallocCreate>(), Row::of::<MallocDelete>()]
}

impl Handler for MallocCreate {
    fn effect(&self) -> Effect {
        let name = self.name.as_deref().unwrap_or_default();
        let undo = Call::new(MallocDelete::NAME, json!({"name": name}));
        Effect::Keep { slot: Object::bdev(name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        let name = self.name.clone().unwrap_or_else(|| control.bdevs.free_name("Malloc"));
        let params = MallocParams {
            name: name.clone(),
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            physical_block_size: self.physical_block_size.filter(|size| *size != 0),
            uuid: self.uuid,
            numa_node: numa_node(self.numa_id)?,
        };
        let new =
            bdev::New { name_field: "name", name: &name, deleted_by: MallocDelete::NAME, base: None, about: json!({}) };
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

impl Handler for MallocDelete {
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}
