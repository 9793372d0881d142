//! The control plane: it owns the desired state, speaks JSON-RPC, prepares everything slow, and hands finished objects to the
//! workers.
//!
//! ```text
//! client --bytes--> rpc::framing --JSON--> rpc::message --name, params--> rpc::method --typed--> handlers --> planes
//!                                                                             |
//!                                                                             +--> state::desired --> state::store
//! ```
//!
//! A handler is given the plane that it needs: [`StoragePlane`], [`NetworkPlane`], the scheduler, the workers, what operators
//! observe, or the desired state. [`Control`] wires them; only calls that are made of other calls are given all of it.
//!
//! All handlers run on one thread (a tokio current-thread runtime): between two awaits of a handler nothing else changes.
//! What may wait (files, sockets, joins) runs on blocking threads while the object's name is reserved. Metrics are served by a
//! thread of their own from the workers' counters, and never wait for a call.

mod blocking;
mod framework;
pub mod limits;
mod network;
mod observe;
mod rpc;
mod scheduler;
mod state;
mod storage;
mod vhost;
mod workers;

pub use observe::log::{Log, LogFormat};
pub use observe::metrics::{MetricsError, serve_metrics};
#[cfg(any(test, fuzzing))]
pub use rpc::fuzz_stream;
pub use rpc::{ServeError, Server};
pub use state::store::StoreError;

use engine::{Engine, IdlePolicy};
use network::NetworkPlane;
use network::switching::Switching;
use observe::Observe;
use observe::events::Events;
use rpc::method::Handlers;
use scheduler::Scheduler;
use state::desired::Desired;
use state::store::Store;
use std::path::PathBuf;
use std::sync::Arc;
use storage::StoragePlane;
use vhost::SocketDir;
use workers::Workers;

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
    /// Rules in hardware for packets from one port, at most, where the default does not fit.
    pub offload_rules_per_port: Option<u32>,
    /// Options of DPDK's EAL. Where they are given, even none, packets of all ports are in DPDK's memory from the start; else DPDK
    /// is started with its first port.
    pub eal: Option<Vec<String>>,
    /// How workers idle, until `framework_set_idle` says otherwise.
    pub idle: IdlePolicy,
}

/// The control plane of a daemon: its planes, wired together.
pub struct Control {
    pub(crate) handlers: Handlers,
    pub(crate) workers: Arc<Workers>,
    pub(crate) observe: Arc<Observe>,
    pub(crate) desired: Arc<Desired>,
    pub(crate) storage: Arc<StoragePlane>,
    pub(crate) network: Arc<NetworkPlane>,
    pub(crate) scheduler: Arc<Scheduler>,
    restored: tokio::sync::watch::Sender<bool>,
}

/// The handlers of all methods.
pub(crate) fn handlers() -> Handlers {
    let planes = [
        framework::rows(),
        network::rows(),
        observe::rows(),
        rpc::introspection::rows(),
        scheduler::rows(),
        state::config::rows(),
        storage::rows(),
    ];
    Handlers::new(planes.into_iter().flatten().collect())
}

impl Control {
    /// How long a worker without work spins before it sleeps, by default.
    pub const DEFAULT_SPIN_US: u64 = 50;

    /// Packet buffers by default: about 36 MiB, once there is a port.
    pub const DEFAULT_PACKET_BUFFERS: usize = 16384;

    /// A control plane over `engine`, with nothing restored yet.
    pub fn new(engine: Engine, log: Log, settings: Settings) -> Result<Arc<Control>, StoreError> {
        let store = settings.state_dir.as_deref().map(Store::open).transpose()?;
        let switching = Switching::new(&settings);
        let workers = Arc::new(Workers::new(engine, settings.idle));
        let observe = Arc::new(Observe { events: Events::default(), log });
        let desired = Arc::new(Desired::new(store));
        let sockets = Arc::new(SocketDir { path: settings.vhost_dir, mode: settings.vhost_socket_mode });
        let storage = Arc::new(StoragePlane::new(workers.clone(), observe.clone(), desired.clone(), sockets.clone()));
        let network =
            Arc::new(NetworkPlane::new(workers.clone(), observe.clone(), desired.clone(), sockets, switching));
        let scheduler = Arc::new(Scheduler::new(&storage, &network));
        let (handlers, restored) = (handlers(), tokio::sync::watch::Sender::new(false));
        Ok(Arc::new(Control { handlers, workers, observe, desired, storage, network, scheduler, restored }))
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.workers.all().len()
    }

    /// Measures loads each period, and moves queues by them where the scheduler is dynamic. Never returns.
    pub async fn keep_balanced(self: Arc<Control>) {
        self.scheduler.clone().keep_balanced().await;
    }

    /// Stops all ports and controllers: their sockets close, and their queues are drained.
    pub async fn stop(&self) {
        let network = self.network.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || network.stop()).await {
            tracing::error!(%error, "the switch could not be stopped");
        }
        self.storage.stop().await;
    }
}
