//! The attached NVMe controllers, and the disks that their namespaces are.

use super::StoragePlane;
use crate::limits;
use crate::state::registry::Object;
use api::RpcError;
use api::notify::EventType;
use block::{Bdev, BlockChannel, BlockError, Geometry, Identity};
use nvme::{AttachError, AttachParams, Event, EventSink, NvmeController, NvmeEvent};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::{Arc, OnceLock, Weak};

/// The method that deletes a namespace's disk: the controller's.
pub(crate) const DETACH: &str = "bdev_nvme_detach_controller";

/// An attached controller.
pub(crate) struct Attached {
    pub(crate) name: String,
    pub(crate) controller: NvmeController,
    /// Names of the controller's disks, by NSID. Locked while they are brought up to date.
    disks: Mutex<Vec<(u32, String)>>,
}

impl Object for Attached {
    const KIND: &'static str = "NVMe controller";
    const LISTED_BY: &'static str = "bdev_nvme_get_controllers";
    const LIMIT: usize = limits::BDEVS;
    const NAME_TAKEN: &'static str = "one path a controller: multipath is not supported yet";
    type Claims = ();
}

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

impl Attached {
    /// Connects to a controller; may wait. [`sync`] makes disks of the namespaces, now and whenever they change.
    pub(crate) fn connect(plane: &Arc<StoragePlane>, params: &AttachParams) -> Result<Arc<Attached>, AttachError> {
        let itself: Arc<OnceLock<Weak<Attached>>> = Arc::default();
        let sink = event_sink(Arc::downgrade(plane), itself.clone(), params.name.clone());
        let controller = NvmeController::attach(params, sink)?;
        let attached = Arc::new(Attached { name: params.name.clone(), controller, disks: Mutex::default() });
        let _ = itself.set(Arc::downgrade(&attached)); // Set once: here.
        Ok(attached)
    }

    /// Names of the controller's disks.
    pub(crate) fn disks(&self) -> Vec<String> {
        self.disks.lock().iter().map(|(_, name)| name.clone()).collect()
    }
}

/// Registers new namespaces as disks and takes down the disks of those that are gone. A disk that is held stays, and its I/O fails.
pub(crate) fn sync(plane: &StoragePlane, attached: &Arc<Attached>) -> Result<(), RpcError> {
    let mut disks = attached.disks.lock();
    let now = attached.controller.namespaces();
    let mut failed = None;
    disks.retain(|(nsid, name)| {
        let there = now.iter().any(|(other, _)| other == nsid);
        let taken = !there && plane.bdevs.take(name, DETACH).is_ok();
        if taken {
            plane.observe.events.add(EventType::BdevUnregister, name, "");
        }
        !taken
    });
    for (nsid, bdev) in now {
        if disks.iter().any(|(known, _)| *known == nsid) {
            continue;
        }
        let name = bdev.identity().name.clone();
        let reserved = plane.bdevs.reserve("name", &name).and_then(|reservation| {
            reservation.identify(bdev.identity().uuid)?;
            Ok(reservation)
        });
        match reserved {
            Ok(reservation) => {
                let details = json!({"nvme": [{"nvme_controller": attached.name, "ns_data": {"id": nsid}}]});
                let disk = Arc::new(Namespace { bdev, _attached: attached.clone() });
                plane.register(reservation, disk, DETACH, None, details);
                disks.push((nsid, name));
            }
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Turns what a controller reports into events and disks. Called on its supervisor's thread.
fn event_sink(plane: Weak<StoragePlane>, itself: Arc<OnceLock<Weak<Attached>>>, name: String) -> EventSink {
    Arc::new(move |event| {
        let Some(plane) = plane.upgrade() else { return };
        match event {
            Event::Protocol(NvmeEvent::NamespaceResized { nsid, .. }) => {
                plane.announce_resize(&format!("{name}n{nsid}"))
            }
            Event::Protocol(NvmeEvent::NamespaceAdded { .. } | NvmeEvent::NamespaceRemoved { .. }) => {
                // Before `connect` has returned, no namespace is registered.
                if let Some(attached) = itself.get().and_then(Weak::upgrade)
                    && let Err(error) = sync(&plane, &attached)
                {
                    plane.observe.events.add(EventType::BdevPath, &name, error.message);
                }
            }
            _ => plane.observe.events.add(EventType::BdevPath, &name, event.to_string()),
        }
    })
}
