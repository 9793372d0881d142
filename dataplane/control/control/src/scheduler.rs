//! Which worker has which queue: moved by hand, and by load.
//!
//! ```text
//! counters of workers, ports, disks --Sample, each period--> load::between --loads--> Balancer --moves--> ports, controllers
//! ```
//!
//! A queue that was moved by hand is pinned: the desired state has a call for it. Ports and disks are moved alike. One queue of a
//! device moves at a time, and whether it is pinned is checked while no other call can move it.

mod balance;
mod handlers;
mod load;

pub(crate) use balance::{QueueLoad, Thresholds};
pub(crate) use handlers::rows;
pub(crate) use load::Loads;

use crate::blocking::blocking;
use crate::network::NetworkPlane;
use crate::observe::Observe;
use crate::rpc::OrRefuse;
use crate::rpc::method::Effect;
use crate::state::desired::Desired;
use crate::state::object::{Aspect, ObjectId, Slot};
use crate::storage::StoragePlane;
use crate::storage::vhost_blk::BlkDevice;
use crate::vhost::VhostController;
use crate::workers::Workers;
use ::port::Port;
use api::RpcError;
use api::notify::EventType;
use balance::{Balancer, Move};
use engine::WorkerHandle;
use load::Sample;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedMutexGuard, watch};

/// A queue of a port, a queue pair of a guest's network device, or a queue of a disk's controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueueId {
    pub(crate) device: ObjectId,
    pub(crate) queue: u16,
}

impl QueueId {
    pub(crate) fn port(name: &str, queue: u16) -> QueueId {
        QueueId { device: ObjectId::port(name), queue }
    }

    pub(crate) fn controller(name: &str, queue: u16) -> QueueId {
        QueueId { device: ObjectId::vhost_controller(name), queue }
    }

    /// Where the call is kept that pins it.
    fn slot(&self) -> Slot {
        self.device.clone().aspect(Aspect::Queue(self.queue))
    }

    /// What a call leaves that moves it to a worker by hand, or gives it back.
    pub(crate) fn effect(&self, worker: Option<usize>) -> Effect {
        match worker {
            Some(_) => Effect::Keep { slot: self.slot(), undo: None },
            None => Effect::Clear(self.slot()),
        }
    }
}

/// How queues are moved by load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Whether queues are moved by load.
    pub(crate) dynamic: bool,
    pub(crate) period: Duration,
    pub(crate) thresholds: Thresholds,
}

impl Default for Settings {
    fn default() -> Settings {
        let thresholds = Thresholds { load: 0.95, improvement: 0.25 };
        Settings { dynamic: false, period: Duration::from_secs(10), thresholds }
    }
}

/// Who moved a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Hand,
    Load,
}

/// Moves queues between workers, and knows their loads.
pub(crate) struct Scheduler {
    pub(crate) workers: Arc<Workers>,
    observe: Arc<Observe>,
    desired: Arc<Desired>,
    storage: Arc<StoragePlane>,
    network: Arc<NetworkPlane>,
    settings: watch::Sender<Settings>,
    /// Of the last period.
    loads: Mutex<Loads>,
    moves_by_hand: AtomicU64,
    moves_by_load: AtomicU64,
    /// Devices of which a queue is being moved.
    moving: Mutex<HashMap<ObjectId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Scheduler {
    pub(crate) fn new(storage: &Arc<StoragePlane>, network: &Arc<NetworkPlane>) -> Scheduler {
        Scheduler {
            workers: storage.workers.clone(),
            observe: storage.observe.clone(),
            desired: storage.desired.clone(),
            storage: storage.clone(),
            network: network.clone(),
            settings: watch::Sender::default(),
            loads: Mutex::default(),
            moves_by_hand: AtomicU64::new(0),
            moves_by_load: AtomicU64::new(0),
            moving: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        *self.settings.borrow()
    }

    pub(crate) fn set(&self, settings: Settings) {
        self.settings.send_replace(settings);
    }

    /// The loads of the last period.
    pub(crate) fn loads(&self) -> Loads {
        self.loads.lock().clone()
    }

    /// Moves that were made, by hand and by load.
    pub(crate) fn moves(&self) -> [(&'static str, u64); 2] {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("hand", load(&self.moves_by_hand)), ("load", load(&self.moves_by_load))]
    }

    /// Held while a queue of the device is moved.
    fn turn(&self, device: &ObjectId) -> Arc<tokio::sync::Mutex<()>> {
        let mut moving = self.moving.lock();
        moving.retain(|_, turn| Arc::strong_count(turn) > 1);
        moving.entry(device.clone()).or_default().clone()
    }
}

/// A device whose queues can be moved.
enum Device {
    Port(Arc<dyn Port>),
    Disk(Arc<VhostController<BlkDevice>>),
}

impl Device {
    fn place(&self, queue: u16) -> Option<usize> {
        let at = usize::from(queue);
        match self {
            Device::Port(port) => port.rx_queues().get(at)?.worker,
            Device::Disk(served) => Some(served.device.controller.report().queues.get(at)?.worker.id()),
        }
    }

    /// Waits until the queue is drained.
    fn move_queue(&self, queue: u16, worker: &WorkerHandle) -> Result<(), RpcError> {
        match self {
            Device::Port(port) => port.move_rx_queue(queue, worker).or_refuse(),
            Device::Disk(served) => served
                .device
                .controller
                .move_queue(queue, worker)
                .map_err(|error| RpcError::errno(libc::EIO, error.to_string()).hint("the queue stays where it was")),
        }
    }
}

impl Scheduler {
    fn device(&self, device: &ObjectId) -> Result<Device, RpcError> {
        match device {
            ObjectId::VhostController(name) => self.storage.controllers.get(name).map(Device::Disk),
            port => self.network.port(port.name()).map(Device::Port),
        }
    }

    /// Moves a queue to a worker, as an operator wants; to none: gives it back. The caller keeps the call without another await: it
    /// pins the queue.
    pub(crate) async fn move_by_hand(
        self: &Arc<Scheduler>,
        queue: QueueId,
        worker: Option<usize>,
    ) -> Result<(), RpcError> {
        let Some(worker) = worker else { return Ok(()) };
        let workers = self.workers.all();
        if worker >= workers.len() {
            return Err(RpcError::invalid("worker", worker, format!("0 to {}", workers.len() - 1)));
        }
        let device = self.device(&queue.device)?;
        let turn = self.turn(&queue.device).lock_owned().await;
        self.relocate(device, queue, worker, By::Hand, turn).await
    }

    /// Moves a queue, reports it as an event, and lets the next move of the device begin.
    async fn relocate(
        self: &Arc<Scheduler>,
        device: Device,
        QueueId { device: object, queue }: QueueId,
        to: usize,
        by: By,
        _turn: OwnedMutexGuard<()>,
    ) -> Result<(), RpcError> {
        let worker = self.workers.all()[to].clone();
        let work = move || {
            let from = device.place(queue);
            device.move_queue(queue, &worker).map(|()| from)
        };
        let from = blocking(work).await??;
        if from == Some(to) {
            return Ok(());
        }
        let (counter, why) = match by {
            By::Hand => (&self.moves_by_hand, "by hand"),
            By::Load => (&self.moves_by_load, "by load"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let from = from.map_or_else(|| "none".to_owned(), |from| from.to_string());
        self.observe.events.add(
            EventType::QueueMove,
            object.name(),
            format!("queue {queue}: worker {from} to {to}, {why}"),
        );
        Ok(())
    }

    /// Measures loads each period, and moves queues by them where the scheduler is dynamic. Never returns.
    pub(crate) async fn keep_balanced(self: Arc<Scheduler>) {
        let mut settings = self.settings.subscribe();
        let mut watch = Watch::default();
        loop {
            let Settings { period, .. } = *settings.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep(period) => watch.look(&self).await,
                // The sender lives as long as `self`.
                _ = settings.changed() => watch.before = None,
            }
        }
    }
}

/// What is remembered from period to period.
#[derive(Default)]
struct Watch {
    before: Option<Sample>,
    /// Moves that had been made when it was taken.
    moves: u64,
    balancer: Balancer<QueueId>,
    since: Option<Instant>,
}

impl Watch {
    /// A period is over.
    async fn look(&mut self, scheduler: &Arc<Scheduler>) {
        let moves = scheduler.moves().iter().map(|(_, count)| count).sum();
        let sampled = scheduler.clone();
        // Off the control thread: the last holder of a port takes it down.
        let Ok(now) = blocking(move || Sample::take(&sampled)).await else { return };
        let loads = self.before.as_ref().map(|before| load::between(before, &now, |queue| scheduler.is_pinned(queue)));
        self.before = Some(now);
        let Some(loads) = loads else { return };
        // After a move in the period, its loads are not those of the queues' present workers.
        let settled = std::mem::replace(&mut self.moves, moves) == moves;
        let Settings { dynamic, thresholds, period } = scheduler.settings();
        if dynamic && settled {
            let time = self.since.get_or_insert_with(Instant::now).elapsed();
            let moves = self.balancer.balance(thresholds, &loads.workers, &loads.queues, time, period);
            for one in moves {
                scheduler.move_by_load(one);
            }
        }
        *scheduler.loads.lock() = loads;
    }
}

impl Scheduler {
    fn is_pinned(&self, queue: &QueueId) -> bool {
        self.desired.get(&queue.slot()).is_some()
    }

    /// Begins to move a queue, unless another queue of its device is being moved. A disk that does not answer keeps no others waiting.
    fn move_by_load(self: &Arc<Scheduler>, Move { queue, to, .. }: Move<QueueId>) {
        let Ok(turn) = self.turn(&queue.device).try_lock_owned() else { return };
        let Ok(device) = self.device(&queue.device) else { return };
        if self.is_pinned(&queue) {
            return;
        }
        let scheduler = self.clone();
        tokio::spawn(async move {
            if let Err(error) = scheduler.relocate(device, queue, to, By::Load, turn).await {
                tracing::warn!(%error, "a queue could not be moved");
            }
        });
    }
}

#[cfg(test)]
mod tests;
