//! The desired state: the ordered list of calls that makes today's objects again. It is what `framework_get_config` shows,
//! what `save_config` and `load_config` carry, and what the state directory keeps.

use crate::rpc::RpcError;
use crate::rpc::method::blocking;
use crate::store::Store;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The subsystems in the order in which they are restored, each with those it needs. Names are SPDK's where SPDK has them.
pub(crate) const SUBSYSTEMS: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("bdev", &["engine"]),
    ("vhost_blk", &["bdev"]),
    ("port", &["engine"]),
    ("bridge", &["port"]),
    ("flow", &["port"]),
];

/// One call of the desired state, in SPDK's form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The method.
    pub method: String,
    /// Its parameters.
    #[serde(default)]
    pub params: Value,
}

impl Call {
    pub(crate) fn new(method: &str, params: Value) -> Call {
        Call { method: method.to_owned(), params }
    }
}

/// A configuration document, in the form of SPDK's `save_config`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// In the order in which they are loaded.
    pub subsystems: Vec<Section>,
}

/// The calls of one subsystem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its name.
    pub subsystem: String,
    /// Calls `{method, params}`, in order; a list among them is a batch of calls.
    pub config: Option<Vec<Value>>,
}

impl Document {
    /// Each call with its subsystem and its place. Batches are flattened.
    pub(crate) fn calls(&self) -> Vec<Placed> {
        let mut placed = Vec::new();
        for (i, section) in self.subsystems.iter().enumerate() {
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

/// What a call is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Object {
    pub(crate) subsystem: &'static str,
    pub(crate) name: String,
}

impl Object {
    pub(crate) fn engine() -> Object {
        Object { subsystem: "engine", name: String::new() }
    }

    pub(crate) fn bdev(name: &str) -> Object {
        Object { subsystem: "bdev", name: name.to_owned() }
    }

    /// A controller has a name of its own beside those of disks; no disk's name has a space.
    pub(crate) fn nvme_controller(name: &str) -> Object {
        Object { subsystem: "bdev", name: format!("nvme {name}") }
    }

    pub(crate) fn controller(name: &str) -> Object {
        Object { subsystem: "vhost_blk", name: name.to_owned() }
    }

    pub(crate) fn port(name: &str) -> Object {
        Object { subsystem: "port", name: name.to_owned() }
    }

    pub(crate) fn bridge(name: &str) -> Object {
        Object { subsystem: "bridge", name: name.to_owned() }
    }

    pub(crate) fn flow(name: &str) -> Object {
        Object { subsystem: "flow", name: name.to_owned() }
    }

    /// The place of the call that makes the object.
    pub(crate) fn itself(self) -> Slot {
        Slot { object: self, aspect: String::new() }
    }

    /// The place of a call that sets one aspect of it.
    pub(crate) fn aspect(self, aspect: impl Into<String>) -> Slot {
        Slot { object: self, aspect: aspect.into() }
    }
}

/// Where in the desired state a call is kept: a later call for the same slot takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) object: Object,
    aspect: String,
}

/// Why a call is not in effect that was just read.
pub(crate) const NOT_TRIED: &str = "not tried yet";

/// A call that is wished for and not in effect.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Pending {
    /// Its subsystem.
    pub(crate) subsystem: String,
    /// The object that it is about.
    pub(crate) object: String,
    /// The call.
    #[serde(flatten)]
    pub(crate) call: Call,
    /// Why it is not in effect.
    pub(crate) error: String,
}

#[derive(Clone, Debug)]
struct Kept {
    subsystem: String,
    /// `None` for a call that this version does not understand: it is kept as it is.
    slot: Option<Slot>,
    call: Call,
    /// Why it is not in effect.
    pending: Option<String>,
    /// It is being tried right now.
    trying: bool,
}

impl Kept {
    fn as_pending(&self) -> Option<Pending> {
        let error = self.pending.clone()?;
        let object = self.slot.as_ref().map(|slot| slot.object.name.clone()).unwrap_or_default();
        Some(Pending { subsystem: self.subsystem.clone(), object, call: self.call.clone(), error })
    }
}

/// The desired state of the daemon.
pub(crate) struct Desired {
    kept: Mutex<Vec<Kept>>,
    /// Calls that were forgotten while they were being tried.
    unwanted: Mutex<Vec<Call>>,
    /// Counts the changes.
    revision: AtomicU64,
    store: Option<Arc<Store>>,
    /// The revision that the store holds.
    saved: tokio::sync::Mutex<u64>,
}

impl Desired {
    pub(crate) fn new(store: Option<Store>) -> Desired {
        Desired {
            kept: Mutex::default(),
            unwanted: Mutex::default(),
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

    /// Keeps `call` in `slot`: it is in effect.
    pub(crate) fn keep(&self, slot: Slot, call: Call) {
        let mut kept = self.lock();
        match kept.iter_mut().find(|k| k.slot.as_ref() == Some(&slot)) {
            Some(found) => {
                (found.pending, found.trying) = (None, false);
                if found.call == call {
                    return;
                }
                found.call = call;
            }
            None => {
                let subsystem = slot.object.subsystem.to_owned();
                kept.push(Kept { subsystem, slot: Some(slot), call, pending: None, trying: false });
            }
        }
        self.changed();
    }

    /// Takes up a call that is not in effect yet.
    pub(crate) fn wish(&self, subsystem: &str, slot: Option<Slot>, call: Call) {
        let (subsystem, pending) = (subsystem.to_owned(), Some(NOT_TRIED.to_owned()));
        self.lock().push(Kept { subsystem, slot, call, pending, trying: false });
    }

    /// The calls that are not in effect and not being tried, in order: from now on they are.
    pub(crate) fn begin_tries(&self) -> Vec<Pending> {
        let mut kept = self.lock();
        let begin = |k: &mut Kept| {
            k.trying = true;
            k.as_pending()
        };
        let idle = kept.iter_mut().filter(|k| k.pending.is_some() && !k.trying);
        let mut wishes: Vec<Pending> = idle.filter_map(begin).collect();
        wishes.sort_by_key(|wish| rank(&wish.subsystem));
        wishes
    }

    /// A try has ended. Returns whether the call is still wanted.
    pub(crate) fn end_try(&self, call: &Call) -> bool {
        self.lock().iter_mut().filter(|k| k.call == *call).for_each(|k| k.trying = false);
        let mut unwanted = self.unwanted.lock().expect("no panic under this lock");
        let found = unwanted.iter().position(|other| other == call);
        found.map(|at| unwanted.swap_remove(at)).is_none()
    }

    /// Says why a call is not in effect. Returns whether that is news.
    pub(crate) fn not_in_effect(&self, call: &Call, why: &str) -> bool {
        let mut kept = self.lock();
        let Some(found) = kept.iter_mut().find(|k| k.call == *call && k.pending.is_some()) else { return false };
        let news = found.pending.as_deref() != Some(why);
        found.pending = Some(why.to_owned());
        news
    }

    /// Forgets all about an object.
    pub(crate) fn forget(&self, object: &Object) {
        let mut kept = self.lock();
        let before = kept.len();
        kept.retain(|k| k.slot.as_ref().is_none_or(|slot| slot.object != *object));
        if kept.len() != before {
            self.changed();
        }
    }

    /// Forgets the call in `slot`.
    pub(crate) fn clear(&self, slot: &Slot) {
        let mut kept = self.lock();
        let before = kept.len();
        kept.retain(|k| k.slot.as_ref() != Some(slot));
        if kept.len() != before {
            self.changed();
        }
    }

    /// Forgets an object if it is only wished for. Returns whether it was.
    pub(crate) fn forget_pending(&self, object: &Object) -> bool {
        let itself = object.clone().itself();
        let found = self.lock().iter().find(|k| k.slot.as_ref() == Some(&itself) && k.pending.is_some()).cloned();
        let Some(found) = found else { return false };
        if found.trying {
            self.unwanted.lock().expect("no panic under this lock").push(found.call);
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

    /// The calls that are not in effect, in order.
    pub(crate) fn pending(&self) -> Vec<Pending> {
        let mut pending: Vec<Pending> = self.lock().iter().filter_map(Kept::as_pending).collect();
        pending.sort_by_key(|p| rank(&p.subsystem));
        pending
    }

    /// The calls of a subsystem, in order.
    pub(crate) fn section(&self, subsystem: &str) -> Vec<Call> {
        self.lock().iter().filter(|k| k.subsystem == subsystem).map(|k| k.call.clone()).collect()
    }

    /// The subsystems that have calls, and all that we know, in order.
    pub(crate) fn subsystems(&self) -> Vec<String> {
        let mut names: Vec<String> = SUBSYSTEMS.iter().map(|(name, _)| (*name).to_owned()).collect();
        for kept in self.lock().iter() {
            if !names.contains(&kept.subsystem) {
                names.push(kept.subsystem.clone());
            }
        }
        names
    }

    /// All of it, in the form of SPDK's `save_config`.
    pub(crate) fn document(&self) -> Document {
        let section = |subsystem: String| {
            let calls = self.section(&subsystem).into_iter().map(|call| serde_json::json!(call)).collect();
            Section { subsystem, config: Some(calls) }
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

    /// Has the state written anew by the next save, although nothing changed: what lies there is not sound.
    pub(crate) fn touch(&self) {
        self.changed();
    }

    fn changed(&self) {
        self.revision.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().expect("no panic under this lock")
    }
}

/// Where a subsystem stands in the order of restoration.
pub(crate) fn rank(subsystem: &str) -> usize {
    SUBSYSTEMS.iter().position(|(name, _)| *name == subsystem).unwrap_or(SUBSYSTEMS.len())
}
