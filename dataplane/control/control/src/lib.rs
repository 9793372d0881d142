//! The control plane: it owns the desired state, speaks JSON-RPC, prepares everything slow, and hands finished objects to the
//! workers.
//!
//! ```text
//! client --bytes--> rpc::framing --JSON--> rpc::message --name, params--> rpc::method --typed--> methods/* --> bdevs, controllers
//!                                                                             |
//!                                                                             +--> desired --> store
//! ```
//!
//! All handlers run on one thread (a tokio current-thread runtime): between two awaits of a handler nothing else changes.
//! What may wait (files, sockets, joins) runs on blocking threads while the object's name is reserved. Metrics are served by a
//! thread of their own from the workers' counters, and never wait for a call.

mod blocking;
mod desired {
    pub(crate) use crate::state::desired::*;
    pub(crate) use crate::state::object::{Aspect, ObjectId as Object, Slot};
}
pub mod limits;
mod methods;
mod network;
mod observe;
mod rpc;
mod scheduler;
mod state;
mod storage;

pub use observe::log::{Log, LogFormat};
pub use observe::metrics::{MetricsError, serve_metrics};
#[cfg(any(test, fuzzing))]
pub use rpc::fuzz_stream;
pub use rpc::{ServeError, Server};
pub use state::store::StoreError;

use api::notify::EventType;
use clock::Cycles;
use engine::{Engine, IdlePolicy, WorkerReport};
use network::captures as capture;
use network::switching as switch;
use observe::events::Events;
use observe::metrics;
use parking_lot::Mutex;
use rpc::method::Handlers;
use state::desired::Desired;
use state::store::Store;
use std::path::PathBuf;
use std::sync::Arc;
use storage::bdevs::Bdevs;
use storage::controllers::Controllers;
use storage::nvme_controllers as nvme;
use storage::{bdevs, controllers, disk_io};
use virtio_blk::{DeviceEventKind, DeviceEventSink};

/// What is fixed when the daemon starts.
pub struct Settings {
    /// Where the desired state is kept; `None` keeps it in memory alone.
    pub state_dir: Option<PathBuf>,
    /// Where the sockets of controllers appear, under their names.
    pub vhost_dir: PathBuf,
    /// Permissions of those sockets.
    pub vhost_socket_mode: u32,
    /// Buffers of the pool that packets of all ports come from. It is made with the first port or bridge.
    pub packet_buffers: usize,
    /// Rules in hardware for packets from one port, at most, where it is not as usual.
    pub offload_rules_per_port: Option<u32>,
    /// Options of DPDK's EAL. Where they are given, even none, packets of all ports are in DPDK's memory from the start; else DPDK
    /// is started with its first port.
    pub eal: Option<Vec<String>>,
    /// How workers idle, until `framework_set_idle` says otherwise.
    pub idle: IdlePolicy,
}

/// The control plane of a daemon.
pub struct Control {
    pub(crate) handlers: Handlers,
    engine: Engine,
    started: Cycles,
    idle: Mutex<IdlePolicy>,
    pub(crate) bdevs: Bdevs,
    pub(crate) controllers: Controllers,
    pub(crate) nvme: nvme::NvmeControllers,
    pub(crate) switching: switch::Switching,
    pub(crate) captures: capture::Captures,
    pub(crate) scheduler: scheduler::Scheduler,
    pub(crate) copies: methods::image::Copies,
    pub(crate) controller_events: DeviceEventSink,
    pub(crate) desired: Desired,
    pub(crate) events: Events,
    pub(crate) log: Log,
    pub(crate) vhost_dir: PathBuf,
    pub(crate) vhost_socket_mode: u32,
    restored: tokio::sync::watch::Sender<bool>,
}

impl Control {
    /// How long a worker without work spins before it sleeps, when nobody said otherwise.
    pub const DEFAULT_SPIN_US: u64 = 50;

    /// Packet buffers when nobody said otherwise: about 36 MiB, once there is a port.
    pub const DEFAULT_PACKET_BUFFERS: usize = 16384;

    /// A control plane over `engine`, with nothing restored yet.
    pub fn new(engine: Engine, log: Log, settings: Settings) -> Result<Arc<Control>, StoreError> {
        let store = settings.state_dir.as_deref().map(Store::open).transpose()?;
        let (controller_events, events) = DeviceEventSink::new(limits::CONTROLLER_EVENTS);
        let control = Arc::new(Control {
            handlers: methods::handlers(),
            engine,
            started: Cycles::now(),
            idle: Mutex::new(settings.idle),
            bdevs: Bdevs::default(),
            controllers: Controllers::default(),
            nvme: nvme::NvmeControllers::default(),
            switching: switch::Switching::new(&settings),
            captures: capture::Captures::default(),
            scheduler: scheduler::Scheduler::default(),
            copies: methods::image::Copies::default(),
            controller_events,
            desired: Desired::new(store),
            events: Events::default(),
            log,
            vhost_dir: settings.vhost_dir,
            vhost_socket_mode: settings.vhost_socket_mode,
            restored: tokio::sync::watch::Sender::new(false),
        });
        listen_to_controllers(&control, events);
        Ok(control)
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.engine.workers().len()
    }

    /// Ends what serves: controllers close, and their queues are drained; ports and switch end.
    pub async fn stop(self: &Arc<Control>) {
        let control = self.clone();
        let stop = move || {
            control.captures.stop_all();
            control.switching.stop();
        };
        if let Err(error) = tokio::task::spawn_blocking(stop).await {
            tracing::error!(%error, "the switch could not be stopped");
        }
        let names: Vec<String> = self.controllers.all().iter().map(|served| served.name.clone()).collect();
        let taken: Vec<_> = names.iter().filter_map(|name| self.controllers.take(name).ok()).collect();
        let stopping = taken.into_iter().map(|(served, _)| tokio::task::spawn_blocking(|| controllers::stop(served)));
        for stopped in stopping.collect::<Vec<_>>() {
            if let Err(error) = stopped.await {
                tracing::error!(%error, "a controller could not be stopped");
            }
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Cycles that a worker slept: what is left of its life, so that a sleep counts while it lasts.
    pub(crate) fn asleep(&self, report: &WorkerReport) -> u64 {
        Cycles::now().since(self.started).0.saturating_sub(report.busy + report.idle)
    }

    pub(crate) fn set_idle(&self, idle: IdlePolicy) {
        *self.idle.lock() = idle;
        self.engine.set_idle(idle);
    }

    pub(crate) fn sleeps_when_idle(&self) -> bool {
        *self.idle.lock() != IdlePolicy::POLL
    }
}

/// Turns what controllers report on their own account into events.
fn listen_to_controllers(control: &Arc<Control>, events: crossbeam::channel::Receiver<virtio_blk::DeviceEvent>) {
    let control = Arc::downgrade(control);
    let listen = move || {
        for event in events {
            let Some(control) = control.upgrade() else { return };
            let DeviceEventKind::Quarantined(quarantine) = event.kind;
            control.events.add(EventType::VhostQuarantine, &event.controller, quarantine.to_string());
        }
    };
    if let Err(error) = std::thread::Builder::new().name("events".to_owned()).spawn(listen) {
        tracing::error!(%error, "events of controllers will not be seen");
    }
}
