//! The disks: who has which name, and who holds whom.

use crate::limits;
use crate::rpc::RpcError;
use block::{Bdev, IoSnapshot, IoStats, Qos};
use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use uuid::Uuid;

/// A disk that is there.
pub(crate) struct Registered {
    /// What frontends and decorators open: the backend under its limits.
    pub(crate) bdev: Arc<dyn Bdev>,
    /// Its limits.
    pub(crate) qos: Arc<Qos>,
    /// The backend itself, for the methods of its own kind.
    pub(crate) backend: Arc<dyn Any + Send + Sync>,
    /// The method that deletes it.
    pub(crate) deleted_by: &'static str,
    /// The disk that it stands on.
    pub(crate) base: Option<String>,
    /// What its kind says about itself in `bdev_get_bdevs`.
    pub(crate) about: Mutex<serde_json::Value>,
    pub(crate) stats: Mutex<Counted>,
}

/// Counters of a disk that outlive those who counted.
#[derive(Default)]
pub(crate) struct Counted {
    /// By controllers that are gone.
    gone: IoSnapshot,
    /// By controllers that are being taken down.
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
    /// By controllers that are gone, or nearly so.
    pub(crate) fn gone(&self) -> IoSnapshot {
        let mut gone = self.gone.clone();
        self.leaving.iter().for_each(|stats| gone += &stats.snapshot());
        gone
    }

    /// A controller is being taken down: it may still count.
    pub(crate) fn leaves(&mut self, stats: &[Arc<IoStats>]) {
        self.leaving.extend_from_slice(stats);
    }

    /// It counts no more.
    pub(crate) fn left(&mut self, stats: &[Arc<IoStats>]) {
        self.leaving.retain(|leaving| !stats.iter().any(|left| Arc::ptr_eq(left, leaving)));
        stats.iter().for_each(|stats| self.gone += &stats.snapshot());
    }
}

/// Who holds a disk: it cannot be deleted meanwhile.
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

struct Slot {
    name: String,
    /// Of the disk that is there, is being made (once it is known), or is being taken down.
    uuid: Option<Uuid>,
    /// `None` while it is being made or taken down.
    disk: Option<Arc<Registered>>,
    holders: Vec<(Holder, Use)>,
}

/// All disks, in the order in which they were made.
#[derive(Clone, Default)]
pub(crate) struct Bdevs(Arc<Mutex<Vec<Slot>>>);

/// A name that is taken while a disk is being made or taken down. Dropping it frees the name.
#[must_use]
pub(crate) struct Reservation {
    bdevs: Bdevs,
    name: String,
    done: bool,
}

impl Bdevs {
    /// Takes a name for a disk that is about to be made.
    pub(crate) fn reserve(&self, field: &str, name: &str) -> Result<Reservation, RpcError> {
        check_name(field, name)?;
        let mut slots = self.lock();
        if slots.iter().any(|slot| slot.name == name) {
            return Err(RpcError::name_taken(field, name));
        }
        if slots.len() >= limits::BDEVS {
            return Err(RpcError::limit("disks", limits::BDEVS));
        }
        slots.push(Slot { name: name.to_owned(), uuid: None, disk: None, holders: Vec::new() });
        Ok(Reservation { bdevs: self.clone(), name: name.to_owned(), done: false })
    }

    /// A name that nothing has: `prefix` and the lowest free number, as SPDK gives to a disk without a name.
    pub(crate) fn free_name(&self, prefix: &str) -> String {
        let slots = self.lock();
        let mut names = (0_u32..).map(|n| format!("{prefix}{n}"));
        names.find(|name| !slots.iter().any(|slot| slot.name == *name)).expect("fewer disks than numbers")
    }

    /// The disk of that name or UUID.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Registered>, RpcError> {
        let slots = self.lock();
        let live = || slots.iter().filter_map(|slot| slot.disk.as_ref());
        let by_uuid = || Uuid::parse_str(name).ok().and_then(|id| live().find(|d| d.bdev.identity().uuid == id));
        let found = live().find(|disk| disk.name() == name).or_else(by_uuid);
        found.cloned().ok_or_else(|| RpcError::no_such("disk", name).hint("bdev_get_bdevs lists the disks"))
    }

    /// The backend of that name, if it is a `T`.
    pub(crate) fn backend<T: Any + Send + Sync>(&self, name: &str, kind: &str) -> Result<Arc<T>, RpcError> {
        let disk = self.get(name)?;
        disk.backend.clone().downcast().map_err(|_| wrong_kind(&disk, kind))
    }

    /// All disks.
    pub(crate) fn all(&self) -> Vec<Arc<Registered>> {
        self.lock().iter().filter_map(|slot| slot.disk.clone()).collect()
    }

    /// Who holds a disk.
    pub(crate) fn holders(&self, name: &str) -> Vec<Holder> {
        let slots = self.lock();
        let slot = slots.iter().find(|slot| slot.name == name);
        slot.map(|slot| slot.holders.iter().map(|(holder, _)| holder.clone()).collect()).unwrap_or_default()
    }

    /// Holds a disk for `holder`.
    pub(crate) fn hold(&self, name: &str, holder: Holder, how: Use) -> Result<Arc<Registered>, RpcError> {
        let name = self.get(name)?.name().to_owned();
        let mut slots = self.lock();
        let slot = slots.iter_mut().find(|slot| slot.name == name && slot.disk.is_some());
        let slot = slot.ok_or_else(|| RpcError::no_such("disk", &name))?;
        let conflict = slot.holders.iter().find(|(_, other)| how == Use::Exclusive || *other == Use::Exclusive);
        if let Some((other, _)) = conflict {
            let error = RpcError::errno(libc::EBUSY, format!("the disk {name} is busy: {other}"));
            return Err(error.hint("a disk has one holder, or several that are read-only"));
        }
        slot.holders.push((holder, how));
        Ok(slot.disk.clone().expect("looked at above"))
    }

    /// Takes a hold back.
    pub(crate) fn release(&self, name: &str, holder: &Holder) {
        if let Some(slot) = self.lock().iter_mut().find(|slot| slot.name == name) {
            slot.holders.retain(|(other, _)| other != holder);
        }
    }

    /// Takes a disk that nobody holds out of use. Its name stays taken until the reservation is dropped.
    pub(crate) fn take(&self, name: &str, deleted_by: &str) -> Result<(Arc<Registered>, Reservation), RpcError> {
        let disk = self.get(name)?;
        if disk.deleted_by != deleted_by {
            return Err(wrong_kind(&disk, deleted_by));
        }
        let mut slots = self.lock();
        let slot = slots.iter_mut().find(|slot| slot.name == disk.name() && slot.disk.is_some());
        let slot = slot.ok_or_else(|| RpcError::no_such("disk", name))?;
        if let Some((holder, _)) = slot.holders.first() {
            let error = RpcError::errno(libc::EBUSY, format!("the disk {name} is busy: {holder}"));
            return Err(error.field("name", name).hint("delete what holds it first"));
        }
        slot.disk = None;
        let reservation = Reservation { bdevs: self.clone(), name: disk.name().to_owned(), done: false };
        Ok((disk, reservation))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.0.lock().expect("no panic under this lock")
    }
}

impl Reservation {
    /// Takes the identity of the disk that is about to be there. Two names of one disk would each be given to a guest, and
    /// neither guest would know of the other's writes.
    pub(crate) fn identify(&self, uuid: Uuid) -> Result<(), RpcError> {
        let mut slots = self.bdevs.lock();
        if let Some(twin) = slots.iter().find(|slot| slot.uuid == Some(uuid) && slot.name != self.name) {
            return Err(RpcError::same_identity(&self.name, &twin.name, uuid));
        }
        let slot = slots.iter_mut().find(|slot| slot.name == self.name).expect("reserved");
        slot.uuid = Some(uuid);
        Ok(())
    }

    /// The disk is there; its identity was taken.
    pub(crate) fn fill(mut self, disk: Registered) {
        self.done = true;
        let mut slots = self.bdevs.lock();
        let slot = slots.iter_mut().find(|slot| slot.name == self.name).expect("reserved");
        slot.disk = Some(Arc::new(disk));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.done {
            self.bdevs.lock().retain(|slot| slot.name != self.name);
        }
    }
}

fn wrong_kind(disk: &Registered, wanted: &str) -> RpcError {
    let product = disk.bdev.identity().product_name;
    let error = RpcError::errno(libc::ENODEV, format!("the disk {} is of another kind: {product}", disk.name()));
    error.field("name", disk.name()).hint(format!("{wanted} does not do it; {} deletes this one", disk.deleted_by))
}

/// A name goes into paths and logs.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), RpcError> {
    let accepted = !name.is_empty()
        && name.len() <= limits::NAME_BYTES
        && !name.starts_with('.')
        && name.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != '/');
    if accepted {
        return Ok(());
    }
    let expected = format!("1 to {} bytes without white space or '/', not beginning with '.'", limits::NAME_BYTES);
    Err(RpcError::invalid(field, serde_json::json!(name), expected))
}
