//! The vhost-user-blk controllers, and the disk that each serves.

use crate::limits;
use crate::state::registry::{Object, Registry, Reservation};
use api::RpcError;
use std::sync::Arc;
use std::time::Duration;
use virtio_blk::{BlkController, Role};

/// A controller that serves.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) bdev: String,
    pub(crate) socket: String,
    pub(crate) role: Role,
    pub(crate) read_only: bool,
    /// The cores that it may use.
    pub(crate) cpus: Vec<usize>,
    pub(crate) controller: BlkController,
}

impl Object for Served {
    const KIND: &'static str = "controller";
    const LISTED_BY: &'static str = "vhost_get_controllers";
    const LIMIT: usize = limits::CONTROLLERS;
    type Claims = ();
}

/// All controllers, in the order in which they were made.
#[derive(Clone, Default)]
pub(crate) struct Controllers(Registry<Served>);

impl Controllers {
    /// Takes a name for a controller that is about to be made.
    pub(crate) fn reserve(&self, name: &str) -> Result<Reservation<Served>, RpcError> {
        self.0.reserve("ctrlr", name)
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Served>, RpcError> {
        self.0.get(name)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Served>> {
        self.0.list()
    }

    /// Takes a controller out of use. Its name stays taken until the reservation is dropped.
    pub(crate) fn take(&self, name: &str) -> Result<(Arc<Served>, Reservation<Served>), RpcError> {
        self.0.take(name)
    }
}

/// Stops a controller that was taken out of use; waits for its requests in flight, and for those who still look at it.
pub(crate) fn stop(mut served: Arc<Served>) {
    let alone = loop {
        match Arc::try_unwrap(served) {
            Ok(alone) => break alone,
            Err(shared) => served = shared,
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    alone.controller.stop();
}
