//! cloud-init disks.

use super::bdev;
use crate::Control;
use crate::desired::{Call, Object};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use cidata::{Cidata, Instance, Seed, SeedError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<BdevCidataCreate>(), Entry::of::<BdevCidataDelete>()]
}

/// Makes a read-only disk labelled cidata, from which cloud-init takes a guest's user data and network configuration.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevCidataCreate {
    /// Its name.
    name: String,
    /// The file user-data: #cloud-config, a script, or another form that cloud-init knows; may be empty.
    #[serde(default)]
    user_data: String,
    /// The file meta-data: a YAML mapping; may be empty. An instance-id is added when it has none.
    #[serde(default)]
    meta_data: String,
    /// The file network-config, version 1 or 2; left out when it is not given.
    network_config: Option<String>,
    /// The instance-id: a guest that sees another one than before runs its first boot again. When it is not given it belongs to
    /// the disk's name, whatever the content.
    instance_id: Option<String>,
    /// Take a new instance-id.
    new_instance: Option<bool>,
}

#[derive(Serialize, JsonSchema)]
struct Made {
    /// The disk's name.
    name: String,
    /// What the guest will see.
    instance_id: String,
}

impl Method for BdevCidataCreate {
    const NAME: &'static str = "bdev_cidata_create";
    type Output = Made;

    fn effect(&self) -> Effect {
        let undo = Call::new(BdevCidataDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<Made, RpcError> {
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
        let seed = Seed::new(&self.name, user, meta, network, instance)?;
        let instance_id = seed.instance_id().to_owned();
        let new = bdev::New {
            name_field: "name",
            name: &self.name,
            deleted_by: BdevCidataDelete::NAME,
            base: None,
            about: json!({"cidata": {"instance_id": instance_id, "network_config": self.network_config.is_some()}}),
        };
        let name = self.name.clone();
        bdev::register(control, new, move || Cidata::create(&name, &seed)).await?;
        if asked_for_new {
            // New once: after a restart the guest is the same machine.
            (self.instance_id, self.new_instance) = (Some(instance_id.clone()), None);
        }
        Ok(Made { name: self.name.clone(), instance_id })
    }
}

impl From<SeedError> for RpcError {
    fn from(error: SeedError) -> RpcError {
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

/// Deletes a cloud-init disk.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevCidataDelete {
    /// Its name.
    name: String,
}

impl Method for BdevCidataDelete {
    const NAME: &'static str = "bdev_cidata_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}
