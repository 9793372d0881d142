//! Bdevs of every kind: listing, deleting.

use super::bdevs::Registered;
use super::{StoragePlane, qos};
use crate::blocking::blocking;
use crate::rpc::OrRefuse;
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::object::ObjectId;
use api::RpcError;
use api::bdev::{BdevInfo, Delete, GetBdevs, IoTypes, Rescan, WaitForExamine};
use block::Geometry;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<GetBdevs>(), Row::of::<Delete>(), Row::of::<Rescan>(), Row::of::<WaitForExamine>()]
}

impl Handler for GetBdevs {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<Vec<BdevInfo>, RpcError> {
        const INTERVAL: Duration = Duration::from_millis(10);
        let Some(name) = &self.name else {
            return Ok(plane.bdevs.all().iter().map(|disk| describe(plane, disk)).collect());
        };
        let mut attempts = self.timeout / INTERVAL.as_millis() as u64;
        loop {
            match plane.bdevs.get(name) {
                Ok(disk) => return Ok(vec![describe(plane, &disk)]),
                Err(error) if attempts == 0 => return Err(error),
                Err(_) => tokio::time::sleep(INTERVAL).await,
            }
            attempts -= 1;
        }
    }
}

fn describe(plane: &StoragePlane, disk: &Registered) -> BdevInfo {
    let (identity, geometry) = (disk.bdev.identity(), disk.bdev.geometry());
    let holders = plane.bdevs.holders(&identity.name);
    BdevInfo {
        name: identity.name.clone(),
        aliases: vec![identity.uuid.to_string()],
        product_name: identity.product_name.to_owned(),
        block_size: geometry.block_size,
        num_blocks: geometry.num_blocks,
        physical_block_size: geometry.physical_block_size,
        uuid: identity.uuid.to_string(),
        assigned_rate_limits: qos::assigned(&disk.qos.limits()),
        claimed: !holders.is_empty(),
        held_by: holders.iter().map(ToString::to_string).collect(),
        size: geometry.size_bytes(),
        zoned: false,
        supported_io_types: io_types(&geometry),
        driver_specific: disk.details.lock().clone(),
    }
}

fn io_types(geometry: &Geometry) -> IoTypes {
    let writable = !geometry.read_only;
    IoTypes {
        read: true,
        write: writable,
        unmap: writable && geometry.max_discard_blocks > 0,
        write_zeroes: writable && geometry.max_write_zeroes_blocks > 0,
        flush: true,
        compare: geometry.compare,
        ..IoTypes::default()
    }
}

impl Handler for Delete {
    type Plane = StoragePlane;

    fn effect(&self) -> Effect {
        Effect::Forget(ObjectId::bdev(&self.name))
    }

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let method = plane.bdevs.get(&self.name)?.deleted_by;
        self.name = plane.delete(&self.name, method).await?;
        Ok(true)
    }
}

impl Handler for Rescan {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let bdev = plane.bdevs.get(&self.name)?.bdev.clone();
        let scanned = bdev.clone();
        if blocking(move || scanned.rescan()).await?.or_refuse()? {
            plane.announce_resize(&bdev.identity().name);
        }
        Ok(true)
    }
}

impl Handler for WaitForExamine {
    type Plane = StoragePlane;

    async fn call(&mut self, _: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        Ok(true)
    }
}
