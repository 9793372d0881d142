//! An iSCSI target: a peer for tests, honest or misbehaving on demand, and a small server of cloud disks.
//!
//! [`Target`] is what initiators see: units, names, secrets, and the sessions there are. [`TargetConnection`] is one connection,
//! sans-IO: bytes and `now` in, bytes out. The [`Server`] puts it on sockets.

mod faults;
mod login;
mod scsi;
mod session;

pub use faults::{Faults, WrongR2t};
pub use initiator::target::{FileStore, MemoryStore, ServerConnection, Store, TargetService};
pub use scsi::Unit;
pub use session::TargetConnection;

use crate::login::Auth;
use crate::pdu::{Isid, Lun};
use clock::Cycles;
use initiator::target::LateWrites;
use parking_lot::{Mutex, RwLock};
use session::Job;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A target behind sockets.
pub type Server = initiator::target::Server<Target>;

/// The name of a target and the parameters that it agrees to.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// The target's name.
    pub iqn: String,
    /// Initiator names that may log in; empty for all.
    pub initiators: Vec<String>,
    /// The name and secret that initiators must prove to have, and the target's own for mutual CHAP.
    pub auth: Auth,
    /// CRC32C is accepted.
    pub digests: bool,
    /// Writes wait for an R2T, but for immediate data.
    pub initial_r2t: bool,
    /// Data may come with the command.
    pub immediate_data: bool,
    /// FirstBurstLength, bytes.
    pub first_burst: u32,
    /// MaxBurstLength, bytes.
    pub max_burst: u32,
    /// MaxRecvDataSegmentLength, bytes.
    pub recv_segment: u32,
    /// MaxOutstandingR2T.
    pub max_r2t: u32,
    /// Commands under way in one session.
    pub window: u32,
    /// The status of a read comes with its last data (the S bit) rather than apart.
    pub collapse_status: bool,
    /// TargetPortalGroupTag.
    pub portal_group: u16,
}

impl TargetConfig {
    /// A target without secrets that agrees to all that makes it fast.
    pub fn new(iqn: &str) -> TargetConfig {
        TargetConfig {
            iqn: iqn.to_owned(),
            initiators: Vec::new(),
            auth: Auth::default(),
            digests: true,
            initial_r2t: false,
            immediate_data: true,
            first_burst: 262_144,
            max_burst: 1 << 20,
            recv_segment: 262_144,
            max_r2t: 4,
            window: 128,
            collapse_status: true,
            portal_group: 1,
        }
    }
}

/// One initiator port: a name and an ISID. Its epoch moves on when a new session of the same port ends the old one.
#[derive(Debug, Default)]
struct Nexus {
    epoch: AtomicU64,
}

/// A target and its state across connections.
#[derive(Debug)]
pub struct Target {
    config: TargetConfig,
    units: RwLock<BTreeMap<u64, Arc<Unit>>>,
    nexuses: Mutex<HashMap<(String, Isid), Arc<Nexus>>>,
    /// How connections made from now on misbehave.
    faults: Mutex<Faults>,
    /// Writes of connections that are gone, still to be carried out if their session is not ended first.
    late: Mutex<LateWrites<Job>>,
    /// Counts changes of the list of units.
    unit_changes: AtomicU64,
    connections: AtomicU64,
    /// What the next connection draws its challenges and delays from.
    seed: AtomicU64,
}

impl Target {
    /// A target without units.
    pub fn new(config: TargetConfig) -> Target {
        Target {
            config,
            units: RwLock::default(),
            nexuses: Mutex::default(),
            faults: Mutex::default(),
            late: Mutex::default(),
            unit_changes: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            seed: AtomicU64::new(Cycles::now().0),
        }
    }

    /// Draws the challenges and delays of later connections from `seed`, for runs that repeat.
    #[cfg(test)]
    pub(crate) fn set_seed(&self, seed: u64) {
        self.seed.store(seed, Ordering::Relaxed);
    }

    /// Adds a unit, or puts another in its place.
    pub fn insert_unit(&self, lun: Lun, unit: Arc<Unit>) {
        self.units.write().insert(lun.0, unit);
        self.unit_changes.fetch_add(1, Ordering::Release);
    }

    /// Takes a unit away.
    pub fn remove_unit(&self, lun: Lun) {
        self.units.write().remove(&lun.0);
        self.unit_changes.fetch_add(1, Ordering::Release);
    }

    /// Connections made from now on misbehave in this way.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock() = faults;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    fn unit(&self, lun: Lun) -> Option<Arc<Unit>> {
        self.units.read().get(&lun.0).cloned()
    }

    fn luns(&self) -> Vec<u64> {
        self.units.read().keys().copied().collect()
    }

    /// A new session of this port. "The target MUST terminate the old session and all its tasks" before the login is answered
    /// (RFC 7143 6.3.5): the epoch that their jobs carry is past from now on.
    fn begin_session(&self, initiator: &str, isid: Isid, forget: bool) -> (Arc<Nexus>, u64) {
        let mut nexuses = self.nexuses.lock();
        let nexus = nexuses.entry((initiator.to_owned(), isid)).or_default().clone();
        let epoch = nexus.epoch.load(Ordering::Acquire) + u64::from(!forget);
        nexus.epoch.store(epoch, Ordering::Release);
        (nexus, epoch)
    }
}

impl TargetService for Target {
    type Connection = TargetConnection;

    fn accept(self: &Arc<Self>) -> TargetConnection {
        let faults = self.faults.lock().clone();
        let seed = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        TargetConnection::new(self.clone(), faults, seed)
    }

    /// Carries out late writes whose time has come.
    fn tick(&self, now: Cycles) {
        let due = self.late.lock().take_due(now, |_| true);
        for job in due {
            let _ = job.carry_out(); // the connection that would report an error is gone
        }
    }

    fn deadline(&self) -> Cycles {
        self.late.lock().deadline()
    }
}
