//! Disks that fail on demand.

use super::bdev;
use crate::Control;
use crate::desired::{Call, Object};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use block::{ErrorInjection, ErrorType, Injection, OpKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<BdevErrorCreate>(), Entry::of::<BdevErrorDelete>(), Entry::of::<BdevErrorInjectError>()]
}

/// SPDK's name for a disk that fails on demand: that of the disk it stands on, with this before it.
const PREFIX: &str = "EE_";

/// Makes a disk that fails on demand, named EE_ and the name of the one it stands on.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevErrorCreate {
    /// The disk that it stands on.
    base_name: String,
    /// Its UUID; a random one when it is not given.
    uuid: Option<Uuid>,
}

impl BdevErrorCreate {
    fn name(&self) -> String {
        format!("{PREFIX}{}", self.base_name)
    }
}

impl Method for BdevErrorCreate {
    const NAME: &'static str = "bdev_error_create";
    type Output = bool;

    fn effect(&self) -> Effect {
        let undo = Call::new(BdevErrorDelete::NAME, json!({"name": self.name()}));
        Effect::Keep { slot: Object::bdev(&self.name()).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.base_name = control.bdevs.get(&self.base_name)?.name().to_owned();
        let name = self.name();
        let base = bdev::hold_base(control, &self.base_name, &name)?;
        let (bdev, uuid) = (base.bdev.clone(), self.uuid);
        let new = bdev::New {
            name_field: "base_name",
            name: &name,
            deleted_by: BdevErrorDelete::NAME,
            base: Some(base.name()),
            about: json!({"error_disk": {"base_bdev": base.name()}}),
        };
        self.uuid = Some(bdev::register(control, new, move || ErrorInjection::create(bdev, uuid)).await?.uuid);
        Ok(true)
    }
}

/// Deletes a disk that fails on demand. The one it stands on stays.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevErrorDelete {
    /// Its name, with EE_.
    name: String,
}

impl Method for BdevErrorDelete {
    const NAME: &'static str = "bdev_error_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

/// Has the next requests of a disk fail. It is not kept: a daemon that starts anew injects nothing.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevErrorInjectError {
    /// The disk, with EE_.
    name: String,
    /// Which requests; "clear" ends all injection and lets go what is held.
    io_type: IoType,
    /// What happens to them.
    error_type: InjectedError,
    /// To how many; 1 when it is not given.
    num: Option<u32>,
    /// Only while so many requests are in flight on a queue.
    #[serde(default)]
    queue_depth: u64,
    /// The byte of a request that is changed.
    #[serde(default)]
    corrupt_offset: u64,
    /// What the byte is XORed with, 1 to 255.
    #[serde(default)]
    corrupt_value: u8,
    /// NVMe status is not supported.
    nvme_sct: Option<u32>,
    /// NVMe status is not supported.
    nvme_sc: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum IoType {
    Clear,
    Read,
    Write,
    Unmap,
    Flush,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum InjectedError {
    /// They end with an error.
    Failure,
    /// They are held until they are cleared.
    Pending,
    /// A byte of their data is changed.
    CorruptData,
    /// They are put off for lack of memory.
    Nomem,
}

impl From<InjectedError> for ErrorType {
    fn from(injected: InjectedError) -> ErrorType {
        match injected {
            InjectedError::Failure => ErrorType::Failure,
            InjectedError::Pending => ErrorType::Pending,
            InjectedError::CorruptData => ErrorType::CorruptData,
            InjectedError::Nomem => ErrorType::NoMem,
        }
    }
}

impl Method for BdevErrorInjectError {
    const NAME: &'static str = "bdev_error_inject_error";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let disk = control.bdevs.backend::<ErrorInjection>(&self.name, Self::NAME)?;
        bdev::unsupported("nvme_sct", self.nvme_sct)?;
        bdev::unsupported("nvme_sc", self.nvme_sc)?;
        let kind = match self.io_type {
            IoType::Clear => {
                disk.clear();
                return Ok(true);
            }
            IoType::All => None,
            IoType::Read => Some(OpKind::Read),
            IoType::Write => Some(OpKind::Write),
            IoType::Unmap => Some(OpKind::Discard),
            IoType::Flush => Some(OpKind::Flush),
        };
        disk.inject(
            kind,
            Injection {
                error_type: self.error_type.into(),
                num: self.num.unwrap_or(1),
                queue_depth: self.queue_depth,
                corrupt_offset: self.corrupt_offset,
                corrupt_value: self.corrupt_value,
            },
        )?;
        Ok(true)
    }
}
