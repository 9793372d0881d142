//! The desired state: the ordered list of calls that creates the present objects again. `framework_get_config` shows it,
//! `save_config` and `load_config` carry it, and the state directory keeps it.

use super::object::{ObjectId, Slot};
use super::store::Store;
use crate::blocking::blocking;
use api::RpcError;
use api::config::{Call, Document, Pending, Section};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The subsystems in the order in which they are restored, each with the subsystems that it needs. Names are SPDK's where SPDK has them.
pub(crate) const SUBSYSTEMS: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("bdev", &["engine"]),
    ("vhost_blk", &["bdev"]),
    ("port", &["engine"]),
    ("bridge", &["port"]),
    ("flow", &["port"]),
];

/// Each call of a document with its subsystem and its place. Batches are flattened.
pub(crate) fn placed_calls(subsystems: &[Section]) -> Vec<Placed> {
    let mut placed = Vec::new();
    for (i, section) in subsystems.iter().enumerate() {
        for (j, item) in section.config.iter().flatten().enumerate() {
            let items = item.as_array().map_or(std::slice::from_ref(item), Vec::as_slice);
            for (k, value) in items.iter().enumerate() {
                let batch = if item.is_array() { format!("[{k}]") } else { String::new() };
                let place = format!("subsystems[{i}].config[{j}]{batch}");
                placed.push(Placed { subsystem: section.subsystem.clone(), place, value: value.clone() });
            }
        }
    }
    placed
}

/// A call of a document, and where it stands.
pub(crate) struct Placed {
    pub(crate) subsystem: String,
    pub(crate) place: String,
    value: Value,
}

impl Placed {
    pub(crate) fn call(&self) -> Result<Call, RpcError> {
        serde_json::from_value(self.value.clone()).map_err(|error| {
            RpcError::invalid(&self.place, &self.value, format!("an object {{method, params}}: {error}"))
        })
    }
}

/// Why a call is not in effect that was just read.
pub(crate) const NOT_APPLIED: &str = "not applied yet";

/// Where a call came from. Each source is saved in its own place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The RPC socket: the state file keeps it.
    Rpc,
}

impl Source {
    /// Whether the calls of this source are saved in the state file.
    fn is_saved(self) -> bool {
        match self {
            Source::Rpc => true,
        }
    }
}

#[derive(Clone, Debug)]
struct Kept {
    source: Source,
    subsystem: String,
    /// `None` for a call that this version does not understand: it is kept as it is.
    slot: Option<Slot>,
    call: Call,
    /// Why it is not in effect.
    pending: Option<String>,
    /// It is being applied right now.
    applying: bool,
}

impl Kept {
    fn as_pending(&self) -> Option<Pending> {
        let error = self.pending.clone()?;
        let object = self.slot.as_ref().map(|slot| slot.object.to_string()).unwrap_or_default();
        Some(Pending { subsystem: self.subsystem.clone(), object, call: self.call.clone(), error })
    }
}

/// The desired state of the daemon.
pub(crate) struct Desired {
    kept: Mutex<Vec<Kept>>,
    /// Calls that were cancelled while they were being applied.
    cancelled: Mutex<Vec<Call>>,
    /// Counts changes.
    revision: AtomicU64,
    store: Option<Arc<Store>>,
    /// The revision that the store holds.
    saved: tokio::sync::Mutex<u64>,
}

impl Desired {
    pub(crate) fn new(store: Option<Store>) -> Desired {
        Desired {
            kept: Mutex::default(),
            cancelled: Mutex::default(),
            revision: AtomicU64::new(0),
            store: store.map(Arc::new),
            saved: tokio::sync::Mutex::new(0),
        }
    }

    pub(crate) fn store(&self) -> Option<&Store> {
        self.store.as_deref()
    }

    /// Counts changes: two readings differ when something changed in between.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Keeps `call` in `slot`: it is in effect. From now on it belongs to `source`.
    pub(crate) fn keep(&self, source: Source, slot: Slot, call: Call) {
        let mut kept = self.lock();
        match kept.iter_mut().find(|k| k.slot.as_ref() == Some(&slot)) {
            Some(found) => {
                found.pending = None;
                found.applying = false;
                if found.call == call && found.source == source {
                    return;
                }
                found.source = source;
                found.call = call;
            }
            None => {
                let subsystem = slot.object.subsystem().to_owned();
                kept.push(Kept { source, subsystem, slot: Some(slot), call, pending: None, applying: false });
            }
        }
        self.changed();
    }

    /// Adds a call that is not in effect yet.
    pub(crate) fn add_pending(&self, source: Source, subsystem: &str, slot: Option<Slot>, call: Call) {
        let (subsystem, pending) = (subsystem.to_owned(), Some(NOT_APPLIED.to_owned()));
        self.lock().push(Kept { source, subsystem, slot, call, pending, applying: false });
    }

    /// The calls that are not in effect and not being applied, in order: from now on they are being applied.
    pub(crate) fn begin_applying(&self) -> Vec<(Source, Pending)> {
        let mut kept = self.lock();
        let begin = |k: &mut Kept| {
            k.applying = true;
            Some((k.source, k.as_pending()?))
        };
        let idle = kept.iter_mut().filter(|k| k.pending.is_some() && !k.applying);
        let mut pending: Vec<_> = idle.filter_map(begin).collect();
        pending.sort_by_key(|(_, pending)| rank(&pending.subsystem));
        pending
    }

    /// An attempt to apply `call` has ended. Returns whether the call is still desired.
    pub(crate) fn end_applying(&self, call: &Call) -> bool {
        self.lock().iter_mut().filter(|k| k.call == *call).for_each(|k| k.applying = false);
        let mut cancelled = self.cancelled.lock();
        let found = cancelled.iter().position(|other| other == call);
        found.map(|at| cancelled.swap_remove(at)).is_none()
    }

    /// Says why a call is not in effect. Returns whether that is news.
    pub(crate) fn not_in_effect(&self, call: &Call, why: &str) -> bool {
        let mut kept = self.lock();
        let Some(found) = kept.iter_mut().find(|k| k.call == *call && k.pending.is_some()) else { return false };
        let news = found.pending.as_deref() != Some(why);
        found.pending = Some(why.to_owned());
        news
    }

    /// Forgets all calls about an object.
    pub(crate) fn forget(&self, object: &ObjectId) {
        self.retain(|slot| slot.object != *object);
    }

    /// Forgets the call in `slot`.
    pub(crate) fn clear(&self, slot: &Slot) {
        self.retain(|other| other != slot);
    }

    fn retain(&self, is_kept: impl Fn(&Slot) -> bool) {
        let mut kept = self.lock();
        let before = kept.len();
        kept.retain(|k| k.slot.as_ref().is_none_or(&is_kept));
        if kept.len() != before {
            self.changed();
        }
    }

    /// Forgets an object whose creation is pending. Returns whether it was pending.
    pub(crate) fn cancel(&self, object: &ObjectId) -> bool {
        let itself = object.clone().itself();
        let found = self.lock().iter().find(|k| k.slot.as_ref() == Some(&itself) && k.pending.is_some()).cloned();
        let Some(found) = found else { return false };
        if found.applying {
            self.cancelled.lock().push(found.call);
        }
        self.forget(object);
        true
    }

    /// Changes one parameter of the call in `slot`.
    pub(crate) fn amend(&self, slot: &Slot, param: &str, value: Value) {
        if let Some(found) = self.lock().iter_mut().find(|k| k.slot.as_ref() == Some(slot)) {
            found.call.params[param] = value;
            self.changed();
        }
    }

    /// The call in `slot`.
    pub(crate) fn get(&self, slot: &Slot) -> Option<Call> {
        self.lock().iter().find(|k| k.slot.as_ref() == Some(slot)).map(|k| k.call.clone())
    }

    /// The pending calls, in order.
    pub(crate) fn pending(&self) -> Vec<Pending> {
        let mut pending: Vec<Pending> = self.lock().iter().filter_map(Kept::as_pending).collect();
        pending.sort_by_key(|p| rank(&p.subsystem));
        pending
    }

    /// The calls of a subsystem, in order.
    pub(crate) fn section(&self, subsystem: &str) -> Vec<Call> {
        self.lock().iter().filter(|k| k.subsystem == subsystem).map(|k| k.call.clone()).collect()
    }

    /// The known subsystems in order, then unknown ones that have calls.
    pub(crate) fn subsystems(&self) -> Vec<String> {
        let mut names: Vec<String> = SUBSYSTEMS.iter().map(|(name, _)| (*name).to_owned()).collect();
        for kept in self.lock().iter() {
            if !names.contains(&kept.subsystem) {
                names.push(kept.subsystem.clone());
            }
        }
        names
    }

    /// The calls of every source that is saved, in the form of SPDK's `save_config`.
    pub(crate) fn document(&self) -> Document {
        let section = |subsystem: String| {
            let kept = self.lock();
            let calls = kept.iter().filter(|k| k.subsystem == subsystem && k.source.is_saved());
            let config = Some(calls.map(|k| serde_json::json!(k.call)).collect());
            Section { subsystem, config }
        };
        Document { subsystems: self.subsystems().into_iter().map(section).collect() }
    }

    /// Makes the latest revision durable. Calls that come together are saved together.
    pub(crate) async fn save(&self) -> Result<(), RpcError> {
        let Some(store) = &self.store else { return Ok(()) };
        let wanted = self.revision();
        let mut saved = self.saved.lock().await;
        if *saved >= wanted {
            return Ok(());
        }
        let (revision, document) = (self.revision(), self.document());
        let store = store.clone();
        blocking(move || store.write(&document)).await?.map_err(|error| {
            let error = RpcError::from_io(&error.source, format!("the call took effect, but it is not saved: {error}"));
            error.hint("it is saved with the next change that succeeds; make room or repair the state directory")
        })?;
        *saved = revision;
        Ok(())
    }

    /// Makes the next save write the state file although no call changed, because the file is damaged.
    pub(crate) fn mark_unsaved(&self) {
        self.changed();
    }

    fn changed(&self) {
        self.revision.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock()
    }
}

/// Where a subsystem stands in the order of restoration.
pub(crate) fn rank(subsystem: &str) -> usize {
    SUBSYSTEMS.iter().position(|(name, _)| *name == subsystem).unwrap_or(SUBSYSTEMS.len())
}
