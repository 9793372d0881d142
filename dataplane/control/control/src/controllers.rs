//! The controllers: who has which name, and which disk each serves.

use crate::bdevs::check_name;
use crate::limits;
use crate::rpc::RpcError;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use virtio_blk::{Controller, Report, Role};

/// A controller that serves.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) bdev: String,
    pub(crate) socket: String,
    pub(crate) role: Role,
    pub(crate) read_only: bool,
    /// The cores that it may use.
    pub(crate) cpus: Vec<usize>,
    pub(crate) controller: Controller,
    /// Why it was quarantined last.
    pub(crate) fault: Mutex<Option<String>>,
}

impl Served {
    /// Why it serves nothing; `None` while all is well.
    pub(crate) fn quarantine(&self, report: &Report) -> Option<String> {
        report.quarantined.then(|| self.fault.lock().expect("no panic under this lock").clone().unwrap_or_default())
    }
}

struct Slot {
    name: String,
    /// `None` while it is being made or taken down.
    served: Option<Arc<Served>>,
}

/// All controllers, in the order in which they were made.
#[derive(Clone, Default)]
pub(crate) struct Controllers(Arc<Mutex<Vec<Slot>>>);

/// A name that is taken while a controller is being made or taken down. Dropping it frees the name.
#[must_use]
pub(crate) struct Reservation {
    controllers: Controllers,
    name: String,
    done: bool,
}

impl Controllers {
    /// Takes a name for a controller that is about to be made.
    pub(crate) fn reserve(&self, name: &str) -> Result<Reservation, RpcError> {
        check_name("ctrlr", name)?;
        let mut slots = self.lock();
        if slots.iter().any(|slot| slot.name == name) {
            return Err(RpcError::name_taken("ctrlr", name));
        }
        if slots.len() >= limits::CONTROLLERS {
            return Err(RpcError::limit("controllers", limits::CONTROLLERS));
        }
        slots.push(Slot { name: name.to_owned(), served: None });
        Ok(Reservation { controllers: self.clone(), name: name.to_owned(), done: false })
    }

    /// The controller of that name.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Served>, RpcError> {
        let found = self.lock().iter().find(|slot| slot.name == name).and_then(|slot| slot.served.clone());
        found.ok_or_else(|| no_such(name))
    }

    /// All controllers.
    pub(crate) fn all(&self) -> Vec<Arc<Served>> {
        self.lock().iter().filter_map(|slot| slot.served.clone()).collect()
    }

    /// Takes a controller out of use. Its name stays taken until the reservation is dropped.
    pub(crate) fn take(&self, name: &str) -> Result<(Arc<Served>, Reservation), RpcError> {
        let mut slots = self.lock();
        let slot = slots.iter_mut().find(|slot| slot.name == name);
        let served = slot.and_then(|slot| slot.served.take()).ok_or_else(|| no_such(name))?;
        Ok((served, Reservation { controllers: self.clone(), name: name.to_owned(), done: false }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.0.lock().expect("no panic under this lock")
    }
}

impl Reservation {
    /// The controller serves.
    pub(crate) fn fill(mut self, served: Served) {
        self.done = true;
        let mut slots = self.controllers.lock();
        let slot = slots.iter_mut().find(|slot| slot.name == self.name).expect("reserved");
        slot.served = Some(Arc::new(served));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.done {
            self.controllers.lock().retain(|slot| slot.name != self.name);
        }
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

fn no_such(name: &str) -> RpcError {
    RpcError::no_such("controller", name).hint("vhost_get_controllers lists the controllers")
}
