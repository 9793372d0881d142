//! The attached NVMe controllers, and the disks that their namespaces are.

use crate::Control;
use crate::methods::bdev;
use api::RpcError;
use api::notify::EventType;
use block::{Bdev, BlockChannel, BlockError, Geometry, Identity};
use nvme::{AttachError, AttachParams, Event, EventSink, NvmeController, NvmeEvent};
use serde_json::json;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

/// The method that deletes a namespace's disk: the controller's.
pub(crate) const DETACH: &str = "bdev_nvme_detach_controller";

/// An attached controller.
pub(crate) struct Attached {
    pub(crate) name: String,
    pub(crate) controller: NvmeController,
    /// Its disks, by NSID. Held while they are brought up to date.
    disks: Mutex<Vec<(u32, String)>>,
}

/// All controllers, in the order in which they were attached. `None` stands for one that is being attached or detached.
#[derive(Default)]
pub(crate) struct NvmeControllers(Mutex<Vec<(String, Option<Arc<Attached>>)>>);

/// A namespace of a controller, which lives as long as a disk of it.
struct Namespace {
    bdev: Arc<dyn Bdev>,
    _attached: Arc<Attached>,
}

impl Bdev for Namespace {
    fn identity(&self) -> &Identity {
        self.bdev.identity()
    }

    fn geometry(&self) -> Geometry {
        self.bdev.geometry()
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        self.bdev.open_channel()
    }

    fn rescan(&self) -> Result<bool, BlockError> {
        self.bdev.rescan()
    }
}

impl NvmeControllers {
    fn lock(&self) -> MutexGuard<'_, Vec<(String, Option<Arc<Attached>>)>> {
        self.0.lock().expect("no panic under this lock")
    }

    /// Takes a name for a controller that is about to be attached.
    pub(crate) fn reserve(&self, name: &str) -> Result<(), RpcError> {
        let mut slots = self.lock();
        if slots.iter().any(|(taken, _)| taken == name) {
            return Err(
                RpcError::name_taken("name", name).hint("one path a controller: multipath is not supported yet")
            );
        }
        slots.push((name.to_owned(), None));
        Ok(())
    }

    /// What was reserved is there, or is gone.
    pub(crate) fn settle(&self, name: &str, attached: Option<Arc<Attached>>) {
        let mut slots = self.lock();
        match attached {
            Some(_) => {
                slots.iter_mut().filter(|(taken, _)| taken == name).for_each(|slot| slot.1.clone_from(&attached))
            }
            None => slots.retain(|(taken, _)| taken != name),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Attached>, RpcError> {
        let found = self.lock().iter().find(|(taken, _)| taken == name).and_then(|(_, attached)| attached.clone());
        found.ok_or_else(|| {
            RpcError::no_such("NVMe controller", name).hint("bdev_nvme_get_controllers lists the controllers")
        })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Attached>> {
        self.lock().iter().filter_map(|(_, attached)| attached.clone()).collect()
    }
}

impl Attached {
    /// Connects; blocks. Its namespaces become disks with [`sync`], now and whenever they change.
    pub(crate) fn connect(control: &Arc<Control>, params: &AttachParams) -> Result<Arc<Attached>, AttachError> {
        let itself: Arc<OnceLock<Weak<Attached>>> = Arc::default();
        let sink = event_sink(Arc::downgrade(control), itself.clone(), params.name.clone());
        let controller = NvmeController::attach(params, sink)?;
        let attached = Arc::new(Attached { name: params.name.clone(), controller, disks: Mutex::default() });
        let _ = itself.set(Arc::downgrade(&attached)); // Set once: here.
        Ok(attached)
    }

    /// Names of its disks.
    pub(crate) fn disks(&self) -> Vec<String> {
        self.lock_disks().iter().map(|(_, name)| name.clone()).collect()
    }

    fn lock_disks(&self) -> MutexGuard<'_, Vec<(u32, String)>> {
        self.disks.lock().expect("no panic under this lock")
    }
}

/// Registers the namespaces that came and takes down those that went. A disk that is held stays, and its I/O fails.
pub(crate) fn sync(control: &Control, attached: &Arc<Attached>) -> Result<(), RpcError> {
    let mut disks = attached.lock_disks();
    let now = attached.controller.namespaces();
    let mut failed = None;
    disks.retain(|(nsid, name)| {
        let there = now.iter().any(|(other, _)| other == nsid);
        let taken = !there && control.bdevs.take(name, DETACH).is_ok();
        if taken {
            control.events.add(EventType::BdevUnregister, name, "");
        }
        !taken
    });
    for (nsid, bdev) in now {
        if disks.iter().any(|(known, _)| *known == nsid) {
            continue;
        }
        let name = bdev.identity().name.clone();
        let reserved = control.bdevs.reserve("name", &name).and_then(|reservation| {
            reservation.identify(bdev.identity().uuid)?;
            Ok(reservation)
        });
        match reserved {
            Ok(reservation) => {
                let about = json!({"nvme": [{"nvme_controller": attached.name, "ns_data": {"id": nsid}}]});
                let new = bdev::New { name_field: "name", name: &name, deleted_by: DETACH, base: None, about };
                let disk = Arc::new(Namespace { bdev, _attached: attached.clone() });
                bdev::fill(control, reservation, new, disk);
                disks.push((nsid, name));
            }
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Turns what a controller reports into events and disks. Called on its supervisor's thread.
fn event_sink(control: Weak<Control>, itself: Arc<OnceLock<Weak<Attached>>>, name: String) -> EventSink {
    Arc::new(move |event| {
        let Some(control) = control.upgrade() else { return };
        match event {
            Event::Protocol(NvmeEvent::NamespaceResized { nsid, .. }) => {
                bdev::announce_resize(&control, &format!("{name}n{nsid}"))
            }
            Event::Protocol(NvmeEvent::NamespaceAdded { .. } | NvmeEvent::NamespaceRemoved { .. }) => {
                // Before attach has returned there is nothing to bring up to date.
                if let Some(attached) = itself.get().and_then(Weak::upgrade)
                    && let Err(error) = sync(&control, &attached)
                {
                    control.events.add(EventType::BdevPath, &name, error.message);
                }
            }
            _ => control.events.add(EventType::BdevPath, &name, event.to_string()),
        }
    })
}
