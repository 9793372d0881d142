//! Queues moved by load: whether, when, and what is seen of it. Names are SPDK's where it has them, else those of OVS's
//! pmd-auto-lb.

use crate::Control;
use crate::desired::{Call, Object};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use crate::scheduler::{QueueId, QueueLoad, Settings, Thresholds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Shortest and longest period, in microseconds.
const PERIODS: std::ops::RangeInclusive<u64> = 100_000..=3_600_000_000;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<FrameworkSetScheduler>(), Entry::of::<FrameworkGetScheduler>()]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum SchedulerName {
    Static,
    Dynamic,
}

/// Says whether queues of ports and disks move between workers by load. They do when a worker was busy for `load_threshold` of the
/// last period, and moving spreads the workers' loads better by `improvement_threshold`. A queue that was moved by hand stays.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FrameworkSetScheduler {
    /// "static": queues stay where they are. "dynamic": they move by load.
    name: SchedulerName,
    /// Microseconds between two looks, 100000 to 3600000000; 10000000 when it is not given.
    period: Option<u64>,
    /// A worker that is busy for so many percent of its time is overloaded, 1 to 100; 95 when it is not given.
    load_threshold: Option<u8>,
    /// By so many percent must the variance of the workers' loads become less, 1 to 100; 25 when it is not given.
    improvement_threshold: Option<u8>,
}

impl FrameworkSetScheduler {
    fn settings(&self) -> Result<Settings, RpcError> {
        let default = Settings::default();
        let percent = |field, given: Option<u8>, default: f64| match given {
            None => Ok(default),
            Some(percent @ 1..=100) => Ok(f64::from(percent) / 100.0),
            Some(other) => Err(RpcError::invalid(field, other, "1 to 100")),
        };
        if let Some(period) = self.period.filter(|period| !PERIODS.contains(period)) {
            return Err(RpcError::invalid("period", period, format!("{} to {}", PERIODS.start(), PERIODS.end())));
        }
        Ok(Settings {
            dynamic: self.name == SchedulerName::Dynamic,
            period: self.period.map_or(default.period, Duration::from_micros),
            thresholds: Thresholds {
                load: percent("load_threshold", self.load_threshold, default.thresholds.load)?,
                improvement: percent(
                    "improvement_threshold",
                    self.improvement_threshold,
                    default.thresholds.improvement,
                )?,
            },
        })
    }
}

impl Method for FrameworkSetScheduler {
    const NAME: &'static str = "framework_set_scheduler";
    type Output = bool;

    fn effect(&self) -> Effect {
        let undo = Call::new(Self::NAME, json!({"name": "static"}));
        Effect::Keep { slot: Object::Engine.aspect(crate::desired::Aspect::Scheduler), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.scheduler.set(self.settings()?);
        Ok(true)
    }
}

/// Tells whether queues move by load, and the loads of the last period.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FrameworkGetScheduler {}

/// SPDK's shape, and below `scheduler_period` what we add.
#[derive(Serialize, JsonSchema)]
struct SchedulerInfo {
    scheduler_name: SchedulerName,
    /// Microseconds.
    scheduler_period: u64,
    /// Percent.
    load_threshold: f64,
    /// Percent.
    improvement_threshold: f64,
    /// Moves that were made, by hand and by load.
    moves: BTreeMap<&'static str, u64>,
    workers: Vec<WorkerInfo>,
    /// Those that stayed where they were.
    queues: Vec<QueueInfo>,
}

#[derive(Serialize, JsonSchema)]
struct WorkerInfo {
    worker: usize,
    /// Percent of its time that it was busy.
    load: f64,
}

#[derive(Serialize, JsonSchema)]
struct QueueInfo {
    /// What it is of: "port" or "vhost_blk".
    kind: &'static str,
    /// The port, or the controller.
    name: String,
    /// The queue, or the queue pair.
    queue: u16,
    worker: usize,
    /// Percent of its worker's time.
    load: f64,
    /// Whether it stays, because it was moved by hand.
    pinned: bool,
}

fn percent(share: f64) -> f64 {
    (share * 1000.0).round() / 10.0
}

impl From<QueueLoad<QueueId>> for QueueInfo {
    fn from(QueueLoad { queue: QueueId { device, queue }, worker, load, allowed }: QueueLoad<QueueId>) -> QueueInfo {
        let (kind, name, pinned) = (device.subsystem(), device.name().to_owned(), allowed.is_empty());
        QueueInfo { kind, name, queue, worker, load: percent(load), pinned }
    }
}

impl Method for FrameworkGetScheduler {
    const NAME: &'static str = "framework_get_scheduler";
    type Output = SchedulerInfo;

    async fn call(&mut self, control: &Arc<Control>) -> Result<SchedulerInfo, RpcError> {
        let Settings { dynamic, period, thresholds } = control.scheduler.settings();
        let loads = control.scheduler.loads();
        let workers = loads.workers.into_iter().enumerate();
        Ok(SchedulerInfo {
            scheduler_name: if dynamic { SchedulerName::Dynamic } else { SchedulerName::Static },
            scheduler_period: period.as_micros() as u64,
            load_threshold: percent(thresholds.load),
            improvement_threshold: percent(thresholds.improvement),
            moves: control.scheduler.moves().into(),
            workers: workers.map(|(worker, load)| WorkerInfo { worker, load: percent(load) }).collect(),
            queues: loads.queues.into_iter().map(QueueInfo::from).collect(),
        })
    }
}
