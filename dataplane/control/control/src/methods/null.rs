//! Disks that hold nothing.

use super::bdev;
use crate::Control;
use crate::desired::Object;
use crate::rpc::Refuse;
use crate::rpc::method::{Effect, Handler, Row};
use api::bdev::{NullCreate, NullDelete, NullResize};
use api::config::Call;
use api::{Method, RpcError};
use block::{Bdev, Null, NullParams};
use serde_json::json;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<NullCreate>(), Row::of::<NullDelete>(), Row::of::<NullResize>()]
}

impl Handler for NullCreate {
    fn effect(&self) -> Effect {
        let undo = Call::new(NullDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        let params = NullParams {
            name: self.name.clone(),
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            physical_block_size: self.physical_block_size.filter(|size| *size != 0),
            uuid: self.uuid,
        };
        let new = bdev::New {
            name_field: "name",
            name: &self.name,
            deleted_by: NullDelete::NAME,
            base: None,
            about: json!({}),
        };
        self.uuid = Some(bdev::register(control, new, move || Null::create(params)).await?.uuid);
        Ok(self.name.clone())
    }
}

impl Handler for NullDelete {
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

impl Handler for NullResize {
    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let null = control.bdevs.backend::<Null>(&self.name, Self::NAME)?;
        let bytes = self.new_size.checked_mul(1 << 20).ok_or_else(|| too_large(self.new_size))?;
        let num_blocks = bytes / u64::from(null.geometry().block_size);
        null.resize(num_blocks).map_err(|error| error.refuse().field("new_size", self.new_size))?;
        let name = &null.identity().name;
        control.desired.amend(&Object::bdev(name).itself(), "num_blocks", json!(num_blocks));
        bdev::announce_resize(control, name);
        Ok(true)
    }
}

fn too_large(mib: u64) -> RpcError {
    RpcError::invalid("new_size", mib, format!("at most {} MiB", u64::MAX >> 20))
}
