//! cloud-init disks.

use super::bdev;
use crate::Control;
use crate::desired::Object;
use crate::rpc::method::{Effect, Handler, Row};
use crate::rpc::{OrRefuse, Refuse};
use api::bdev::{CidataCreate, CidataDelete, CidataInfo};
use api::config::Call;
use api::{Method, RpcError};
use cidata::{Cidata, Instance, Seed, SeedError};
use serde_json::json;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<CidataCreate>(), Row::of::<CidataDelete>()]
}

impl Handler for CidataCreate {
    fn effect(&self) -> Effect {
        let undo = Call::new(CidataDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<CidataInfo, RpcError> {
        let instance = match (self.instance_id.clone(), self.new_instance) {
            (Some(_), Some(true)) => {
                return Err(RpcError::invalid("new_instance", true, "not together with instance_id"));
            }
            (Some(id), _) => Instance::Id(id),
            (None, Some(true)) => Instance::New,
            (None, _) => Instance::OfName,
        };
        let asked_for_new = instance == Instance::New;
        let (user, meta, network) = (self.user_data.clone(), self.meta_data.clone(), self.network_config.clone());
        let seed = Seed::new(&self.name, user, meta, network, instance).or_refuse()?;
        let instance_id = seed.instance_id().to_owned();
        let new = bdev::New {
            name_field: "name",
            name: &self.name,
            deleted_by: CidataDelete::NAME,
            base: None,
            about: json!({"cidata": {"instance_id": instance_id, "network_config": self.network_config.is_some()}}),
        };
        let name = self.name.clone();
        bdev::register(control, new, move || Cidata::create(&name, &seed)).await?;
        if asked_for_new {
            // New once: after a restart the guest is the same machine.
            (self.instance_id, self.new_instance) = (Some(instance_id.clone()), None);
        }
        Ok(CidataInfo { name: self.name.clone(), instance_id })
    }
}

impl Refuse for SeedError {
    fn refuse(self) -> RpcError {
        let error = self;
        let message = error.to_string();
        match error {
            SeedError::TooLong { file, len } => {
                RpcError::invalid(file, format!("{len} bytes"), format!("at most {} bytes", cidata::MAX_FILE_LEN))
            }
            SeedError::Yaml { file, reason } => RpcError::invalid(file, reason, "YAML"),
            SeedError::Invalid { file, field, got, expected } => {
                let mut error = RpcError::invalid(format!("{file}: {field}"), got, expected);
                error.message = message;
                error
            }
        }
    }
}

impl Handler for CidataDelete {
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}
