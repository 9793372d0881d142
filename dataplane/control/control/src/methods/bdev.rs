//! Disks of every kind: listing and deleting, and what the files of the kinds share.

use super::qos;
use crate::Control;
use crate::bdevs::{Holder, Registered, Reservation, Use};
use crate::desired::Object;
use crate::rpc::method::{Effect, Handler, Row, blocking};
use crate::rpc::{OrRefuse, Refuse};
use api::RpcError;
use api::bdev::{BdevInfo, Delete, GetBdevs, IoTypes, WaitForExamine};
use api::notify::EventType;
use block::{Bdev, Geometry, Identity, Qos};
use serde_json::Value;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<GetBdevs>(), Row::of::<Delete>(), Row::of::<WaitForExamine>()]
}

/// A disk that is about to be made.
pub(crate) struct New<'a> {
    /// The parameter that its name comes from.
    pub(crate) name_field: &'static str,
    pub(crate) name: &'a str,
    /// The method that deletes it.
    pub(crate) deleted_by: &'static str,
    /// The disk that it stands on, and holds.
    pub(crate) base: Option<&'a str>,
    /// What its kind says about it: `driver_specific` of bdev_get_bdevs.
    pub(crate) about: Value,
}

/// Makes a disk off the control thread and registers it. Nothing changes when it fails; its base is let go then.
pub(super) async fn register<T: Bdev + 'static, E: Refuse + Send + 'static>(
    control: &Arc<Control>,
    new: New<'_>,
    make: impl FnOnce() -> Result<Arc<T>, E> + Send + 'static,
) -> Result<Identity, RpcError> {
    let (name, base) = (new.name, new.base);
    let registered = make_and_fill(control, new, make).await;
    if let (Err(_), Some(base)) = (&registered, base) {
        control.bdevs.release(base, &Holder::Bdev(name.to_owned()));
    }
    registered
}

async fn make_and_fill<T: Bdev + 'static, E: Refuse + Send + 'static>(
    control: &Arc<Control>,
    new: New<'_>,
    make: impl FnOnce() -> Result<Arc<T>, E> + Send + 'static,
) -> Result<Identity, RpcError> {
    let reservation = control.bdevs.reserve(new.name_field, new.name)?;
    let disk = blocking(make).await?.or_refuse()?;
    if let Err(error) = reservation.identify(disk.identity().uuid) {
        // Its sessions log out.
        blocking(move || drop(disk)).await?;
        return Err(error);
    }
    Ok(fill(control, reservation, new, disk))
}

/// Registers a disk under the name and the identity that were taken for it.
pub(crate) fn fill<T: Bdev + 'static>(
    control: &Control,
    reservation: Reservation,
    new: New<'_>,
    disk: Arc<T>,
) -> Identity {
    let identity = disk.identity().clone();
    let qos = Qos::new(disk.clone());
    reservation.fill(Registered {
        bdev: qos.clone(),
        qos,
        backend: disk,
        deleted_by: new.deleted_by,
        base: new.base.map(str::to_owned),
        about: Mutex::new(new.about),
        stats: Mutex::default(),
    });
    control.events.add(EventType::BdevRegister, &identity.name, identity.product_name);
    identity
}

/// Takes the base of a disk that is about to be made.
pub(super) fn hold_base(control: &Control, base: &str, name: &str) -> Result<Arc<Registered>, RpcError> {
    control.bdevs.hold(base, Holder::Bdev(name.to_owned()), Use::Exclusive)
}

/// Deletes a disk with the method of its kind. Returns its name.
pub(super) async fn delete(control: &Arc<Control>, name: &str, method: &str) -> Result<String, RpcError> {
    let (disk, reservation) = control.bdevs.take(name, method)?;
    let (name, base) = (disk.name().to_owned(), disk.base.clone());
    // Closing a file or giving back memory may take its time.
    blocking(move || drop(disk)).await?;
    if let Some(base) = base {
        control.bdevs.release(&base, &Holder::Bdev(name.clone()));
    }
    drop(reservation);
    control.events.add(EventType::BdevUnregister, &name, "");
    Ok(name)
}

/// Tells everyone above a disk that its geometry has changed.
pub(crate) fn announce_resize(control: &Control, name: &str) {
    if let Ok(disk) = control.bdevs.get(name) {
        control.events.add(EventType::BdevResize, name, format!("{} bytes", disk.bdev.geometry().size_bytes()));
    }
    for holder in control.bdevs.holders(name) {
        match holder {
            Holder::Bdev(above) => announce_resize(control, &above),
            Holder::Controller(ctrlr) => {
                if let Ok(served) = control.controllers.get(&ctrlr) {
                    served.controller.resized();
                }
            }
            Holder::Copy(_) => {}
        }
    }
}

impl Handler for GetBdevs {
    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<BdevInfo>, RpcError> {
        const LOOK: Duration = Duration::from_millis(10);
        let Some(name) = &self.name else {
            return Ok(control.bdevs.all().iter().map(|disk| describe(control, disk)).collect());
        };
        let mut looks = self.timeout / LOOK.as_millis() as u64;
        loop {
            match control.bdevs.get(name) {
                Ok(disk) => return Ok(vec![describe(control, &disk)]),
                Err(error) if looks == 0 => return Err(error),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
            looks -= 1;
        }
    }
}

fn describe(control: &Control, disk: &Registered) -> BdevInfo {
    let (identity, geometry) = (disk.bdev.identity(), disk.bdev.geometry());
    let holders = control.bdevs.holders(&identity.name);
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
        driver_specific: disk.about.lock().expect("no panic under this lock").clone(),
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
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let method = control.bdevs.get(&self.name)?.deleted_by;
        self.name = delete(control, &self.name, method).await?;
        Ok(true)
    }
}

impl Handler for WaitForExamine {
    async fn call(&mut self, _: &Arc<Control>) -> Result<bool, RpcError> {
        Ok(true)
    }
}
