//! Disks that fail on demand.

use super::bdev;
use crate::Control;
use crate::desired::Object;
use crate::rpc::OrRefuse;
use crate::rpc::method::{Effect, Handler, Row};
use api::bdev::{ErrorCreate, ErrorDelete, ErrorInject, ErrorIoType, InjectedError};
use api::config::Call;
use api::{Method, RpcError};
use block::{ErrorInjection, ErrorType, Injection, OpKind};
use serde_json::json;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<ErrorCreate>(), Row::of::<ErrorDelete>(), Row::of::<ErrorInject>()]
}

/// SPDK's name for a disk that fails on demand: that of the disk it stands on, with this before it.
const PREFIX: &str = "EE_";

fn name_over(base: &str) -> String {
    format!("{PREFIX}{base}")
}

impl Handler for ErrorCreate {
    fn effect(&self) -> Effect {
        let undo = Call::new(ErrorDelete::NAME, json!({"name": name_over(&self.base_name)}));
        Effect::Keep { slot: Object::bdev(&name_over(&self.base_name)).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.base_name = control.bdevs.get(&self.base_name)?.name().to_owned();
        let name = name_over(&self.base_name);
        let base = bdev::hold_base(control, &self.base_name, &name)?;
        let (bdev, uuid) = (base.bdev.clone(), self.uuid);
        let new = bdev::New {
            name_field: "base_name",
            name: &name,
            deleted_by: ErrorDelete::NAME,
            base: Some(base.name()),
            about: json!({"error_disk": {"base_bdev": base.name()}}),
        };
        self.uuid = Some(bdev::register(control, new, move || ErrorInjection::create(bdev, uuid)).await?.uuid);
        Ok(true)
    }
}

impl Handler for ErrorDelete {
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
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
    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let disk = control.bdevs.backend::<ErrorInjection>(&self.name, Self::NAME)?;
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
