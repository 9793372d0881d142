//! The disks of the daemon, their holders and their identities.

use crate::limits;
use crate::state::registry::{self, Object, Registry};
use api::RpcError;
use block::{Bdev, IoSnapshot, IoStats, Qos};
use parking_lot::Mutex;
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// A disk that is there.
pub(crate) struct Registered {
    /// What frontends and decorators open: the backend under its limits.
    pub(crate) bdev: Arc<dyn Bdev>,
    /// Rate limits of the disk.
    pub(crate) qos: Arc<Qos>,
    /// The backend itself, for the methods of one kind of disk.
    pub(crate) backend: Arc<dyn Any + Send + Sync>,
    /// The method that deletes the disk.
    pub(crate) deleted_by: &'static str,
    /// The base disk.
    pub(crate) base: Option<String>,
    /// Details of the disk's kind: `driver_specific` of bdev_get_bdevs.
    pub(crate) details: Mutex<serde_json::Value>,
    pub(crate) stats: Mutex<Counted>,
}

/// Counters of a disk that outlive the controllers that counted.
#[derive(Default)]
pub(crate) struct Counted {
    /// Counted by controllers that were deleted.
    gone: IoSnapshot,
    /// Counted by controllers that are being deleted.
    leaving: Vec<Arc<IoStats>>,
    /// What was counted when the counters were reset.
    pub(crate) reset: IoSnapshot,
}

impl Registered {
    pub(crate) fn name(&self) -> &str {
        &self.bdev.identity().name
    }
}

impl Counted {
    /// The counts of controllers that were or are being deleted.
    pub(crate) fn gone(&self) -> IoSnapshot {
        let mut gone = self.gone.clone();
        self.leaving.iter().for_each(|stats| gone += &stats.snapshot());
        gone
    }

    /// Adds the counters of a controller that is being taken down: it may still count.
    pub(crate) fn add_leaving(&mut self, stats: &[Arc<IoStats>]) {
        self.leaving.extend_from_slice(stats);
    }

    /// Settles the counters of a controller that was taken down: it counts no more.
    pub(crate) fn settle(&mut self, stats: &[Arc<IoStats>]) {
        self.leaving.retain(|leaving| !stats.iter().any(|left| Arc::ptr_eq(left, leaving)));
        stats.iter().for_each(|stats| self.gone += &stats.snapshot());
    }
}

/// A user of a disk. A disk in use cannot be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A disk that stands on it.
    Bdev(String),
    /// A controller that serves it.
    Controller(String),
    /// An image that is copied onto it.
    Copy(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Bdev(name) => write!(f, "the disk {name} stands on it"),
            Holder::Controller(name) => write!(f, "the controller {name} serves it"),
            Holder::Copy(file) => write!(f, "the image {file} is copied onto it"),
        }
    }
}

/// How a holder uses a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Alone.
    Exclusive,
    /// With others that only read.
    ReadOnly,
}

impl Object for Registered {
    const KIND: &'static str = "disk";
    const LISTED_BY: &'static str = "bdev_get_bdevs";
    const LIMIT: usize = limits::BDEVS;
    type Claims = Claims;
}

/// What is known of a disk's name, whether the disk is being made, is there, or is being taken down.
#[derive(Default)]
pub(crate) struct Claims {
    /// The disk's identity, once it is known.
    uuid: Option<Uuid>,
    holders: Vec<(Holder, Use)>,
}

/// All disks, in the order in which they were made.
#[derive(Clone, Default)]
pub(crate) struct Bdevs(Registry<Registered>);

/// The name of a disk that is being made or taken down.
pub(crate) type Reservation = registry::Reservation<Registered>;

impl Bdevs {
    /// Takes a name for a disk that is about to be made.
    pub(crate) fn reserve(&self, field: &str, name: &str) -> Result<Reservation, RpcError> {
        self.0.reserve(field, name)
    }

    /// A free name: `prefix` and the lowest free number, as SPDK gives to a disk without a name.
    pub(crate) fn free_name(&self, prefix: &str) -> String {
        let slots = self.0.slots();
        let mut names = (0_u32..).map(|n| format!("{prefix}{n}"));
        names.find(|name| !slots.iter().any(|slot| slot.name == *name)).expect("fewer disks than numbers")
    }

    /// The disk of that name or UUID.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Registered>, RpcError> {
        self.0.get(name).or_else(|error| {
            let Ok(uuid) = Uuid::parse_str(name) else { return Err(error) };
            self.all().into_iter().find(|disk| disk.bdev.identity().uuid == uuid).ok_or(error)
        })
    }

    /// The backend of the disk `name`, if it is a `T`; else an error that names `method`, which needs one.
    pub(crate) fn backend<T: Any + Send + Sync>(&self, name: &str, method: &str) -> Result<Arc<T>, RpcError> {
        let disk = self.get(name)?;
        disk.backend.clone().downcast().map_err(|_| wrong_kind(&disk, method))
    }

    /// All disks.
    pub(crate) fn all(&self) -> Vec<Arc<Registered>> {
        self.0.list()
    }

    /// The holders of a disk.
    pub(crate) fn holders(&self, name: &str) -> Vec<Holder> {
        let slots = self.0.slots();
        let holders = slots.iter().find(|slot| slot.name == name).map(|slot| slot.claims.holders.iter());
        holders.into_iter().flatten().map(|(holder, _)| holder.clone()).collect()
    }

    /// Holds a disk for `holder`.
    pub(crate) fn hold(&self, name: &str, holder: Holder, how: Use) -> Result<Arc<Registered>, RpcError> {
        let name = self.get(name)?.name().to_owned();
        let mut slots = self.0.slots();
        let slot = slots.iter_mut().find(|slot| slot.name == name);
        let Some((disk, holders)) = slot.and_then(|slot| Some((slot.object.clone()?, &mut slot.claims.holders))) else {
            return Err(Registry::<Registered>::no_such(&name));
        };
        let conflict = holders.iter().find(|(_, other)| how == Use::Exclusive || *other == Use::Exclusive);
        if let Some((other, _)) = conflict {
            return Err(busy(&name, other).hint("a disk has one holder, or several that are read-only"));
        }
        holders.push((holder, how));
        Ok(disk)
    }

    /// Takes a hold back.
    pub(crate) fn release(&self, name: &str, holder: &Holder) {
        if let Some(slot) = self.0.slots().iter_mut().find(|slot| slot.name == name) {
            slot.claims.holders.retain(|(other, _)| other != holder);
        }
    }

    /// Takes a disk without holders out of use. Its name stays taken until the reservation is dropped.
    pub(crate) fn take(&self, name: &str, deleted_by: &str) -> Result<(Arc<Registered>, Reservation), RpcError> {
        let disk = self.get(name)?;
        if disk.deleted_by != deleted_by {
            return Err(wrong_kind(&disk, deleted_by));
        }
        self.0.take_if(disk.name(), |claims| match claims.holders.first() {
            Some((holder, _)) => Err(busy(name, holder).field("name", name).hint("delete what holds it first")),
            None => Ok(()),
        })
    }
}

impl Reservation {
    /// Takes the identity of the disk that is about to be there. Two names of one disk would each be given to a guest, and
    /// neither guest would know of the other's writes.
    pub(crate) fn identify(&self, uuid: Uuid) -> Result<(), RpcError> {
        let mut slots = self.registry().slots();
        if let Some(twin) = slots.iter().find(|slot| slot.claims.uuid == Some(uuid) && slot.name != self.name()) {
            return Err(RpcError::same_identity(self.name(), &twin.name, uuid));
        }
        let slot = slots.iter_mut().find(|slot| slot.name == self.name()).expect("a reserved name has a slot");
        slot.claims.uuid = Some(uuid);
        Ok(())
    }
}

fn busy(name: &str, holder: &Holder) -> RpcError {
    RpcError::errno(libc::EBUSY, format!("the disk {name} is busy: {holder}"))
}

fn wrong_kind(disk: &Registered, method: &str) -> RpcError {
    let product = disk.bdev.identity().product_name;
    let error = RpcError::errno(libc::ENODEV, format!("the disk {} is of another kind: {product}", disk.name()));
    error.field("name", disk.name()).hint(format!("{method} does not do it; {} deletes this one", disk.deleted_by))
}
