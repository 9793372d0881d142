//! The storage plane: bdevs of every kind, and the vhost-user-blk controllers that serve them.

mod bdev;
pub(crate) mod bdevs;
mod boot;
mod cidata;
mod delay;
mod disk_io;
mod disk_kind;
mod error;
mod file;
mod image;
pub(crate) mod iostat;
mod iscsi;
mod malloc;
mod null;
mod nvme;
mod nvme_controllers;
mod qos;
pub(crate) mod vhost_blk;

use crate::blocking::blocking;
use crate::limits;
use crate::observe::Observe;
use crate::rpc::method::Row;
use crate::state::desired::Desired;
use crate::state::registry::Registry;
use crate::vhost::{self, SocketDir, VhostController};
use crate::workers::Workers;
use api::RpcError;
use api::notify::EventType;
use bdevs::{Bdevs, Holder, Registered, Reservation};
use block::{Bdev, Qos};
use nvme_controllers::Attached;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;
use vhost_blk::BlkDevice;
use virtio_blk::DeviceEventSink;

/// What the handlers of disks and of their controllers are given.
pub(crate) struct StoragePlane {
    pub(crate) workers: Arc<Workers>,
    pub(crate) observe: Arc<Observe>,
    pub(crate) desired: Arc<Desired>,
    pub(crate) bdevs: Bdevs,
    pub(crate) nvme: Registry<Attached>,
    pub(crate) controllers: Registry<VhostController<BlkDevice>>,
    copies: image::Copies,
    sockets: Arc<SocketDir>,
    /// Takes what controllers report by themselves.
    controller_events: DeviceEventSink,
}

/// The handlers of this plane. A kind of disk has a file and a line here.
pub(crate) fn rows() -> Vec<Row> {
    let kinds = [
        disk_kind::rows::<api::bdev::MallocCreate>(),
        disk_kind::rows::<api::bdev::NullCreate>(),
        disk_kind::rows::<api::bdev::AioCreate>(),
        disk_kind::rows::<api::bdev::UringCreate>(),
        disk_kind::rows::<api::bdev::DelayCreate>(),
        disk_kind::rows::<api::bdev::ErrorCreate>(),
        disk_kind::rows::<api::bdev::CidataCreate>(),
        disk_kind::rows::<api::iscsi::Create>(),
    ];
    let others = [
        bdev::rows(),
        boot::rows(),
        delay::rows(),
        error::rows(),
        file::rows(),
        image::rows(),
        iostat::rows(),
        iscsi::rows(),
        null::rows(),
        nvme::rows(),
        qos::rows(),
        vhost_blk::rows(),
    ];
    kinds.into_iter().flatten().chain(others.into_iter().flatten()).collect()
}

impl StoragePlane {
    pub(crate) fn new(
        workers: Arc<Workers>,
        observe: Arc<Observe>,
        desired: Arc<Desired>,
        sockets: Arc<SocketDir>,
    ) -> StoragePlane {
        let (controller_events, events) = DeviceEventSink::new(limits::CONTROLLER_EVENTS);
        let controllers = Registry::default();
        vhost::listen("events-blk", &observe, events);
        let (bdevs, nvme, copies) = (Bdevs::default(), Registry::default(), image::Copies::default());
        StoragePlane { workers, observe, desired, bdevs, nvme, controllers, copies, sockets, controller_events }
    }

    /// Registers a disk under the name and the identity that were taken for it.
    fn register<T: Bdev + 'static>(
        &self,
        reservation: Reservation,
        disk: Arc<T>,
        deleted_by: &'static str,
        base: Option<&str>,
        details: Value,
    ) {
        let identity = disk.identity().clone();
        let qos = Qos::new(disk.clone());
        reservation.fill(Registered {
            bdev: qos.clone(),
            qos,
            backend: disk,
            deleted_by,
            base: base.map(str::to_owned),
            details: Mutex::new(details),
            stats: Mutex::default(),
        });
        self.observe.events.add(EventType::BdevRegister, &identity.name, identity.product_name);
    }

    /// Deletes a disk by the method of its kind. Returns its name.
    async fn delete(&self, name: &str, method: &str) -> Result<String, RpcError> {
        let (disk, reservation) = self.bdevs.take(name, method)?;
        let (name, base) = (disk.name().to_owned(), disk.base.clone());
        // Closing a file or freeing memory may wait.
        blocking(move || drop(disk)).await?;
        if let Some(base) = base {
            self.bdevs.release(&base, &Holder::Bdev(name.clone()));
        }
        drop(reservation);
        self.observe.events.add(EventType::BdevUnregister, &name, "");
        Ok(name)
    }

    /// Tells all users of a disk that its geometry has changed.
    fn announce_resize(&self, name: &str) {
        if let Ok(disk) = self.bdevs.get(name) {
            let detail = format!("{} bytes", disk.bdev.geometry().size_bytes());
            self.observe.events.add(EventType::BdevResize, name, detail);
        }
        for holder in self.bdevs.holders(name) {
            match holder {
                Holder::Bdev(above) => self.announce_resize(&above),
                Holder::Controller(ctrlr) => {
                    if let Ok(served) = self.controllers.get(&ctrlr) {
                        served.device.controller.resized();
                    }
                }
                Holder::Copy(_) => {}
            }
        }
    }

    /// Stops all controllers; waits for requests in flight.
    pub(crate) async fn stop(&self) {
        let names: Vec<String> = self.controllers.list().iter().map(|served| served.name.clone()).collect();
        let taken: Vec<_> = names.iter().filter_map(|name| self.controllers.take(name).ok()).collect();
        let stopping = taken.into_iter().map(|(served, _)| tokio::task::spawn_blocking(|| vhost_blk::stop(served)));
        for stopped in stopping.collect::<Vec<_>>() {
            if let Err(error) = stopped.await {
                tracing::error!(%error, "a controller could not be stopped");
            }
        }
    }
}
