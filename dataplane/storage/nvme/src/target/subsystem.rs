//! The subsystem: namespaces, controllers, and who may connect.

use super::{Connection, Faults, Store};
use crate::spec::{IdentifyNamespace, NamespaceIds, NvmeStatus, cc, csts};
use clock::Cycles;
use initiator::target::{LateWrites, TargetService};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// Whether a namespace may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The namespace may be written.
    ReadWrite,
    /// The namespace is write protected.
    ReadOnly,
}

/// A namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// The bytes of the namespace.
    pub store: Arc<dyn Store>,
    /// Bytes a block: 512 or 4096.
    pub block_size: u32,
    /// Whether the namespace may be written.
    pub access: Access,
    /// The identity of the namespace.
    pub uuid: Uuid,
}

impl Namespace {
    pub(super) fn identify(&self) -> IdentifyNamespace {
        IdentifyNamespace {
            blocks: self.store.len() / u64::from(self.block_size),
            block_shift: self.block_size.trailing_zeros() as u8,
            write_protected: self.access == Access::ReadOnly,
            nguid: *self.uuid.as_bytes(),
            ..IdentifyNamespace::default()
        }
    }

    pub(super) fn ids(&self) -> NamespaceIds {
        NamespaceIds { uuid: Some(self.uuid), nguid: Some(*self.uuid.as_bytes()), eui64: None, csi: 0 }
    }
}

/// Parameters of a target.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// NQN of the subsystem.
    pub subnqn: String,
    /// Hosts that may connect; empty lets any.
    pub allowed_hosts: Vec<String>,
    /// I/O queues a controller has at most.
    pub max_queues: u16,
    /// Bytes of in-capsule data of I/O commands, a multiple of 16.
    pub in_capsule_len: u32,
    /// MDTS: largest transfer as a power of two of 4 KiB; 0 is no limit.
    pub mdts: u8,
    /// CQT: milliseconds that the controller takes to stop after it lost its host.
    pub quiesce_ms: u16,
    /// Referrals in the discovery log, as address and port.
    pub referrals: Vec<(String, String)>,
}

impl TargetConfig {
    /// A subsystem `subnqn` for any host.
    pub fn new(subnqn: &str) -> TargetConfig {
        TargetConfig {
            subnqn: subnqn.to_owned(),
            allowed_hosts: Vec::new(),
            max_queues: 64,
            in_capsule_len: 8192,
            mdts: 8,
            quiesce_ms: 0,
            referrals: Vec::new(),
        }
    }
}

/// A controller: one host's association with the subsystem.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) is_discovery: bool,
    pub(super) hostnqn: String,
    pub(super) keep_alive: Duration,
    /// When a command last came.
    pub(super) traffic: Cycles,
    pub(super) cc: u32,
    pub(super) csts: u32,
    /// Connected I/O queues.
    pub(super) queues: Vec<u16>,
    /// Connections of I/O queues that have not let go of their commands.
    pub(super) connections: u32,
    /// Asynchronous events the host asked for (feature 0Bh).
    pub(super) event_mask: u32,
    /// A namespace changed and no event said so yet.
    pub(super) namespaces_changed: bool,
}

impl Controller {
    /// The host reset or shut it down: its I/O queues let go of their commands.
    fn is_stopping(&self) -> bool {
        self.cc & cc::EN == 0 || self.cc & cc::SHN_NORMAL != 0
    }

    /// CSTS as the host sees it: a controller that is stopping has stopped when its last I/O queue has let go.
    pub(super) fn status(&self) -> u32 {
        if self.is_stopping() && self.connections > 0 { csts::RDY } else { self.csts }
    }
}

/// A write whose connection died before it was executed.
#[derive(Debug)]
struct LateWrite {
    controller: u16,
    nsid: u32,
    offset: u64,
    data: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) namespaces: BTreeMap<u32, Namespace>,
    pub(super) controllers: BTreeMap<u16, Controller>,
    late: LateWrites<LateWrite>,
    pub(super) faults: Arc<Faults>,
    /// Commands that the host wants aborted: controller, queue, CID.
    pub(super) aborts: Vec<(u16, u16, u16)>,
    next_controller: u16,
    rng: u64,
    pub(super) address: (String, String),
}

/// A target: the subsystem that all connections lead to.
#[derive(Debug)]
pub struct Target {
    pub(super) config: TargetConfig,
    state: Mutex<State>,
    io_commands: AtomicU64,
    late_applied: AtomicU64,
}

impl Target {
    /// A subsystem without namespaces. `seed` decides delays.
    pub fn new(config: TargetConfig, seed: u64) -> Arc<Target> {
        let state = State {
            namespaces: BTreeMap::new(),
            controllers: BTreeMap::new(),
            late: LateWrites::default(),
            faults: Arc::new(Faults::default()),
            aborts: Vec::new(),
            next_controller: 1,
            rng: seed | 1,
            address: (String::new(), String::new()),
        };
        Arc::new(Target {
            config,
            state: Mutex::new(state),
            io_commands: AtomicU64::new(0),
            late_applied: AtomicU64::new(0),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Adds or replaces a namespace; hosts get an event.
    pub fn set_namespace(&self, nsid: u32, namespace: Namespace) {
        let mut state = self.state();
        state.namespaces.insert(nsid, namespace);
        state.namespaces_changed();
    }

    /// Removes a namespace; hosts get an event. Returns whether the namespace was there.
    pub fn remove_namespace(&self, nsid: u32) -> bool {
        let mut state = self.state();
        let was_there = state.namespaces.remove(&nsid).is_some();
        state.namespaces_changed();
        was_there
    }

    /// Tells hosts that a namespace has another size now.
    pub fn namespace_resized(&self) {
        self.state().namespaces_changed();
    }

    /// Changes how it misbehaves from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = Arc::new(faults);
    }

    /// I/O commands seen.
    pub fn io_commands(&self) -> u64 {
        self.io_commands.load(Ordering::Relaxed)
    }

    /// Writes applied after their connection was gone.
    pub fn late_applied(&self) -> u64 {
        self.late_applied.load(Ordering::Relaxed)
    }

    /// Controllers that live.
    pub fn controllers(&self) -> usize {
        self.state().controllers.len()
    }

    pub(super) fn count_io_command(&self) -> u64 {
        self.io_commands.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection of an I/O queue is over. Its `writes` are kept for later, at any time before the controller must have
    /// stopped, or applied now if it is just doing so.
    pub(super) fn let_go(&self, controller: u16, writes: Vec<(u32, u64, Vec<u8>)>, now: Cycles) {
        let mut state = self.state();
        let Some(c) = state.controllers.get_mut(&controller) else { return };
        c.connections -= 1;
        let stopping = c.is_stopping();
        // With traffic based keep-alive the controller may take twice its timeout to notice, and then its quiesce time.
        let end = c.traffic + Cycles::from(c.keep_alive * 2 + Duration::from_millis(self.config.quiesce_ms.into()));
        for (nsid, offset, data) in writes {
            let span = end.since(now).0.max(1);
            let due = now + Cycles(state.random() % span);
            state.late.push(due, LateWrite { controller, nsid, offset, data });
        }
        if stopping {
            self.stop_commands(&mut state, controller);
        }
    }

    /// Whether the host reset or shut down a controller.
    pub(super) fn is_stopping(&self, controller: u16) -> bool {
        self.state().controllers.get(&controller).is_some_and(Controller::is_stopping)
    }

    /// The host reset or shut down a controller: whatever it still holds is applied now, or never.
    pub(super) fn stop_commands(&self, state: &mut State, controller: u16) {
        self.apply_late(state, Cycles::NEVER, Some(controller));
    }

    fn apply_late(&self, state: &mut State, now: Cycles, only: Option<u16>) {
        for write in state.late.take_due(now, |write| only.is_none_or(|id| id == write.controller)) {
            if let Some(namespace) = state.namespaces.get(&write.nsid)
                && namespace.store.write(write.offset, &write.data).is_ok()
            {
                self.late_applied.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn check_host(&self, hostnqn: &str) -> Result<(), NvmeStatus> {
        let allowed = &self.config.allowed_hosts;
        if allowed.is_empty() || allowed.iter().any(|host| host == hostnqn) {
            return Ok(());
        }
        Err(NvmeStatus::CONNECT_INVALID_HOST)
    }
}

impl TargetService for Target {
    type Connection = Connection;

    fn accept(self: &Arc<Self>) -> Connection {
        Connection::new(self.clone())
    }

    /// Applies late writes; controllers that received nothing for their keep-alive timeout die.
    fn tick(&self, now: Cycles) {
        let mut state = self.state();
        self.apply_late(&mut state, now, None);
        let is_alive = |c: &Controller| c.keep_alive.is_zero() || now.since(c.traffic) <= Cycles::from(c.keep_alive);
        state.controllers.retain(|_, controller| is_alive(controller));
    }

    fn deadline(&self) -> Cycles {
        let state = self.state();
        let expiry = |c: &Controller| (!c.keep_alive.is_zero()).then(|| c.traffic + Cycles::from(c.keep_alive));
        let expiry = state.controllers.values().filter_map(expiry).min().unwrap_or(Cycles::NEVER);
        state.late.deadline().min(expiry)
    }

    fn served_at(&self, address: SocketAddr) {
        self.state().address = (address.ip().to_string(), address.port().to_string());
    }
}

impl State {
    fn namespaces_changed(&mut self) {
        for controller in self.controllers.values_mut() {
            controller.namespaces_changed = true;
        }
    }

    /// xorshift64*: enough to scatter delays, and the same for the same seed.
    pub(super) fn random(&mut self) -> u64 {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        self.rng.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn new_controller(&mut self, controller: Controller) -> u16 {
        let id = self.next_controller;
        self.next_controller = if id >= 0xFFEF { 1 } else { id + 1 };
        self.controllers.insert(id, controller);
        id
    }
}
