//! cloud-init disks.

use super::StoragePlane;
use super::disk_kind::{DiskKind, New};
use crate::rpc::{OrRefuse, Refuse};
use api::bdev::{CidataCreate, CidataDelete, CidataInfo};
use api::{Method, RpcError};
use block::Bdev;
use cidata::{Cidata, Instance, Seed, SeedError};
use serde_json::json;
use std::sync::Arc;

impl DiskKind for CidataCreate {
    const DELETED_BY: &'static str = CidataDelete::NAME;
    type Disk = Cidata;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn prepare(&mut self, _: &Arc<StoragePlane>, _: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError> {
        let instance = match (self.instance_id.clone(), self.new_instance) {
            (Some(_), Some(true)) => {
                return Err(RpcError::invalid("new_instance", true, "not together with instance_id"));
            }
            (Some(id), _) => Instance::Id(id),
            (None, Some(true)) => Instance::New,
            (None, _) => Instance::OfName,
        };
        let is_new = instance == Instance::New;
        let (user, meta, network) = (self.user_data.clone(), self.meta_data.clone(), self.network_config.clone());
        let seed = Seed::new(&self.name, user, meta, network, instance).or_refuse()?;
        let instance_id = seed.instance_id().to_owned();
        if is_new {
            // New once: after a restart the guest is the same machine.
            self.instance_id = Some(instance_id.clone());
            self.new_instance = None;
        }
        let details = json!({"cidata": {"instance_id": instance_id, "network_config": self.network_config.is_some()}});
        let (name, answer) = (self.name.clone(), CidataInfo { name: self.name.clone(), instance_id });
        Ok(New { open: Box::new(move || Cidata::create(&name, &seed).or_refuse()), details, answer })
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
