//! The scheduler of queues on workers. Names are SPDK's where it has them, else those of OVS's pmd-auto-lb.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

methods! {
    SetScheduler: "framework_set_scheduler" -> bool;
    GetScheduler: "framework_get_scheduler" -> SchedulerInfo;
}

/// A scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerName {
    /// Queues stay on their workers.
    Static,
    /// Queues move by load.
    Dynamic,
}

/// Selects the scheduler of queues of ports and disks. The dynamic one moves queues if a worker was busy for `load_threshold` of the
/// last period, and the move reduces the variance of the workers' loads by `improvement_threshold`. Pinned queues stay.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SetScheduler {
    /// static: queues stay on their workers. dynamic: queues move by load.
    pub name: SchedulerName,
    /// Period in microseconds, 100000 to 3600000000; 10000000 by default.
    pub period: Option<u64>,
    /// Load in percent from which a worker is overloaded, 1 to 100; 95 by default.
    pub load_threshold: Option<u8>,
    /// Minimum improvement of the variance of the loads in percent, 1 to 100; 25 by default.
    pub improvement_threshold: Option<u8>,
}

/// Shows the scheduler and the loads of the last period.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetScheduler {}

/// The scheduler, in SPDK's shape; the thresholds and what follows are additions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SchedulerInfo {
    /// The scheduler.
    pub scheduler_name: SchedulerName,
    /// Period in microseconds.
    pub scheduler_period: u64,
    /// Load in percent from which a worker is overloaded.
    pub load_threshold: f64,
    /// Minimum improvement of the variance in percent.
    pub improvement_threshold: f64,
    /// Moves so far, by cause: by hand, by load.
    pub moves: BTreeMap<String, u64>,
    /// The workers.
    pub workers: Vec<WorkerLoad>,
    /// The queues that were not moved in the period.
    pub queues: Vec<QueueLoad>,
}

/// The load of a worker.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WorkerLoad {
    /// Number of the worker.
    pub worker: usize,
    /// Load in percent.
    pub load: f64,
}

/// The load of a queue.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QueueLoad {
    /// The kind of device: "port" or "vhost_blk".
    pub kind: String,
    /// Name of the port or of the controller.
    pub name: String,
    /// Number of the queue or of the queue pair.
    pub queue: u16,
    /// The worker that serves the queue.
    pub worker: usize,
    /// Load in percent of the worker's time.
    pub load: f64,
    /// Whether the queue is pinned to its worker.
    pub pinned: bool,
}
