//! The kinds of disks: what each has of its own, and the calls that create and delete a disk of any kind.

use super::StoragePlane;
use super::bdevs::{Holder, Use};
use crate::blocking::blocking;
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::object::ObjectId;
use api::config::Call;
use api::{Method, RpcError};
use block::Bdev;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::marker::PhantomData;
use std::sync::Arc;
use uuid::Uuid;

/// A kind of disk, by the parameters of the method that creates one.
pub(crate) trait DiskKind: Method {
    /// The method that deletes a disk of this kind. Its parameter is `name`.
    const DELETED_BY: &'static str;
    /// The parameter that gives the disk its name.
    const NAME_FIELD: &'static str = "name";
    /// The disk itself.
    type Disk: Bdev + 'static;

    /// The disk's name; empty where it is still to be chosen.
    fn name(&self) -> String;

    /// The parameter that names the disk below.
    fn base(&mut self) -> Option<&mut String> {
        None
    }

    /// Checks the parameters and chooses what they leave open.
    fn prepare(&mut self, plane: &Arc<StoragePlane>, base: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError>;

    /// Keeps the identity of the disk, where it is a parameter.
    fn set_uuid(&mut self, _: Uuid) {}
}

/// A disk that is about to be made.
pub(crate) struct New<K: DiskKind> {
    /// Opens the disk; may wait.
    pub(crate) open: Box<dyn FnOnce() -> Result<Arc<K::Disk>, RpcError> + Send>,
    /// What the kind reports of it: `driver_specific` of bdev_get_bdevs.
    pub(crate) details: Value,
    /// The answer to the call.
    pub(crate) answer: K::Output,
}

/// The handlers that every kind of disk has.
pub(super) fn rows<K: DiskKind>() -> [Row; 2] {
    [Row::of::<K>(), Row::of::<DeleteDisk<K>>()]
}

impl<K: DiskKind> Handler for K {
    type Plane = StoragePlane;

    fn effect(&self) -> Effect {
        let undo = Call::new(K::DELETED_BY, json!({"name": self.name()}));
        Effect::Keep { slot: ObjectId::bdev(&self.name()).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<K::Output, RpcError> {
        let base = match self.base() {
            Some(base) => {
                let disk = plane.bdevs.get(base)?;
                disk.name().clone_into(base);
                Some(disk)
            }
            None => None,
        };
        let Some(base) = base else { return create(self, plane, None).await };
        let holder = Holder::Bdev(self.name());
        let base = plane.bdevs.hold(base.name(), holder.clone(), Use::Exclusive)?;
        let created = create(self, plane, Some((base.name(), base.bdev.clone()))).await;
        if created.is_err() {
            plane.bdevs.release(base.name(), &holder);
        }
        created
    }
}

/// Makes a disk off the control thread and registers it. Nothing has changed when it fails.
async fn create<K: DiskKind>(
    call: &mut K,
    plane: &Arc<StoragePlane>,
    base: Option<(&str, Arc<dyn Bdev>)>,
) -> Result<K::Output, RpcError> {
    let (base_name, base) = base.unzip();
    let New { open, details, answer } = call.prepare(plane, base)?;
    let reservation = plane.bdevs.reserve(K::NAME_FIELD, &call.name())?;
    let disk = blocking(open).await??;
    let uuid = disk.identity().uuid;
    if let Err(error) = reservation.identify(uuid) {
        blocking(move || drop(disk)).await?; // The sessions of the disk log out.
        return Err(error);
    }
    plane.register(reservation, disk, K::DELETED_BY, base_name, details);
    call.set_uuid(uuid);
    Ok(answer)
}

/// The call that deletes a disk of kind `K`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(bound = "")]
pub(crate) struct DeleteDisk<K> {
    name: String,
    #[serde(skip)]
    kind: PhantomData<K>,
}

impl<K: DiskKind> Method for DeleteDisk<K> {
    const NAME: &'static str = K::DELETED_BY;
    type Output = bool;
}

impl<K: DiskKind> Handler for DeleteDisk<K> {
    type Plane = StoragePlane;

    fn effect(&self) -> Effect {
        Effect::Forget(ObjectId::bdev(&self.name))
    }

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        self.name = plane.delete(&self.name, K::DELETED_BY).await?;
        Ok(true)
    }
}
