//! Disks that hold nothing.

use super::bdev::{self, unsupported};
use crate::Control;
use crate::desired::{Call, Object};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use block::{Bdev, Null, NullParams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<BdevNullCreate>(), Entry::of::<BdevNullDelete>(), Entry::of::<BdevNullResize>()]
}

/// Makes a disk that forgets what is written and reads as whatever was in the buffer: for measuring.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevNullCreate {
    /// Its name.
    name: String,
    /// Bytes a block: a power of two from 512 to 65536.
    block_size: u32,
    /// Blocks.
    num_blocks: u64,
    /// Its UUID; a random one when it is not given.
    uuid: Option<Uuid>,
    /// Bytes a physical block, at least block_size.
    physical_block_size: Option<u32>,
    /// Metadata is not supported: 0 only.
    md_size: Option<u32>,
    /// Protection information is not supported: 0 only.
    dif_type: Option<i32>,
    /// Protection information is not supported: 0 only.
    dif_pi_format: Option<u32>,
    /// Protection information is not supported.
    dif_is_head_of_md: Option<bool>,
    /// Not supported: 0 only.
    preferred_write_granularity: Option<u32>,
    /// Not supported: 0 only.
    preferred_write_alignment: Option<u32>,
    /// Not supported: 0 only.
    optimal_write_size: Option<u32>,
    /// Not supported: 0 only.
    preferred_unmap_granularity: Option<u32>,
    /// Not supported: 0 only.
    preferred_unmap_alignment: Option<u32>,
}

impl BdevNullCreate {
    fn only_what_is_supported(&self) -> Result<(), RpcError> {
        unsupported("md_size", self.md_size)?;
        unsupported("dif_type", self.dif_type)?;
        unsupported("dif_pi_format", self.dif_pi_format)?;
        unsupported("preferred_write_granularity", self.preferred_write_granularity)?;
        unsupported("preferred_write_alignment", self.preferred_write_alignment)?;
        unsupported("optimal_write_size", self.optimal_write_size)?;
        unsupported("preferred_unmap_granularity", self.preferred_unmap_granularity)?;
        unsupported("preferred_unmap_alignment", self.preferred_unmap_alignment)
    }
}

impl Method for BdevNullCreate {
    const NAME: &'static str = "bdev_null_create";
    type Output = String;

    fn effect(&self) -> Effect {
        let undo = Call::new(BdevNullDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        self.only_what_is_supported()?;
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
            deleted_by: BdevNullDelete::NAME,
            base: None,
            about: json!({}),
        };
        self.uuid = Some(bdev::register(control, new, move || Null::create(params)).await?.uuid);
        Ok(self.name.clone())
    }
}

/// Deletes a disk that holds nothing.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevNullDelete {
    /// Its name.
    name: String,
}

impl Method for BdevNullDelete {
    const NAME: &'static str = "bdev_null_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

/// Gives a null disk another size, and tells the guest.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevNullResize {
    /// The disk.
    name: String,
    /// The new size in MiB.
    new_size: u64,
}

impl Method for BdevNullResize {
    const NAME: &'static str = "bdev_null_resize";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let null = control.bdevs.backend::<Null>(&self.name, Self::NAME)?;
        let bytes = self.new_size.checked_mul(1 << 20).ok_or_else(|| too_large(self.new_size))?;
        let num_blocks = bytes / u64::from(null.geometry().block_size);
        null.resize(num_blocks).map_err(|error| RpcError::from(error).field("new_size", self.new_size))?;
        let name = &null.identity().name;
        control.desired.amend(&Object::bdev(name).itself(), "num_blocks", json!(num_blocks));
        bdev::announce_resize(control, name);
        Ok(true)
    }
}

fn too_large(mib: u64) -> RpcError {
    RpcError::invalid("new_size", mib, format!("at most {} MiB", u64::MAX >> 20))
}
