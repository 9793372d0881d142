//! The scheduler's methods, and the moves of queues by hand. Names are SPDK's where it has them, else those of OVS's
//! pmd-auto-lb.

use super::{QueueId, QueueLoad, Scheduler, Settings, Thresholds};
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::object::{Aspect, ObjectId};
use api::config::Call;
use api::port::{MoveQueuePair, PortMoveQueue};
use api::scheduler::{self, GetScheduler, SchedulerInfo, SchedulerName, SetScheduler, WorkerLoad};
use api::vhost::MoveQueue;
use api::{Method, RpcError};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Shortest and longest period, in microseconds.
const PERIODS: std::ops::RangeInclusive<u64> = 100_000..=3_600_000_000;

pub(crate) fn rows() -> Vec<Row> {
    vec![
        Row::of::<SetScheduler>(),
        Row::of::<GetScheduler>(),
        Row::of::<PortMoveQueue>(),
        Row::of::<MoveQueuePair>(),
        Row::of::<MoveQueue>(),
    ]
}

fn settings(call: &SetScheduler) -> Result<Settings, RpcError> {
    let default = Settings::default();
    let percent = |field, given: Option<u8>, default: f64| match given {
        None => Ok(default),
        Some(percent @ 1..=100) => Ok(f64::from(percent) / 100.0),
        Some(other) => Err(RpcError::invalid(field, other, "1 to 100")),
    };
    if let Some(period) = call.period.filter(|period| !PERIODS.contains(period)) {
        return Err(RpcError::invalid("period", period, format!("{} to {}", PERIODS.start(), PERIODS.end())));
    }
    Ok(Settings {
        dynamic: call.name == SchedulerName::Dynamic,
        period: call.period.map_or(default.period, Duration::from_micros),
        thresholds: Thresholds {
            load: percent("load_threshold", call.load_threshold, default.thresholds.load)?,
            improvement: percent("improvement_threshold", call.improvement_threshold, default.thresholds.improvement)?,
        },
    })
}

impl Handler for SetScheduler {
    type Plane = Scheduler;

    fn effect(&self) -> Effect {
        let undo = Call::new(Self::NAME, json!({"name": "static"}));
        Effect::Keep { slot: ObjectId::Engine.aspect(Aspect::Scheduler), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<Scheduler>) -> Result<bool, RpcError> {
        plane.set(settings(self)?);
        Ok(true)
    }
}

fn percent(share: f64) -> f64 {
    (share * 1000.0).round() / 10.0
}

fn describe(load: QueueLoad<QueueId>) -> scheduler::QueueLoad {
    let QueueLoad { queue: QueueId { device, queue }, worker, load, allowed } = load;
    let (kind, name, pinned) = (device.subsystem().to_owned(), device.name().to_owned(), allowed.is_empty());
    scheduler::QueueLoad { kind, name, queue, worker, load: percent(load), pinned }
}

impl Handler for GetScheduler {
    type Plane = Scheduler;

    async fn call(&mut self, plane: &Arc<Scheduler>) -> Result<SchedulerInfo, RpcError> {
        let Settings { dynamic, period, thresholds } = plane.settings();
        let loads = plane.loads();
        let workers = loads.workers.into_iter().enumerate();
        Ok(SchedulerInfo {
            scheduler_name: if dynamic { SchedulerName::Dynamic } else { SchedulerName::Static },
            scheduler_period: period.as_micros() as u64,
            load_threshold: percent(thresholds.load),
            improvement_threshold: percent(thresholds.improvement),
            moves: plane.moves().into_iter().map(|(cause, moves)| (cause.to_owned(), moves)).collect(),
            workers: workers.map(|(worker, load)| WorkerLoad { worker, load: percent(load) }).collect(),
            queues: loads.queues.into_iter().map(describe).collect(),
        })
    }
}

/// Refuses a queue that the device does not have.
fn check_queue(field: &str, queue: u16, queues: usize) -> Result<(), RpcError> {
    if usize::from(queue) < queues {
        return Ok(());
    }
    Err(RpcError::invalid(field, queue, format!("0 to {}", queues.saturating_sub(1))))
}

impl Handler for PortMoveQueue {
    type Plane = Scheduler;

    fn effect(&self) -> Effect {
        QueueId::port(&self.name, self.queue).effect(self.worker)
    }

    async fn call(&mut self, plane: &Arc<Scheduler>) -> Result<bool, RpcError> {
        check_queue("queue", self.queue, plane.network.port(&self.name)?.rx_queues().len())?;
        plane.move_by_hand(QueueId::port(&self.name, self.queue), self.worker).await?;
        Ok(true)
    }
}

/// Deprecated: `port_move_queue`.
impl Handler for MoveQueuePair {
    type Plane = Scheduler;

    fn effect(&self) -> Effect {
        QueueId::port(&self.ctrlr, self.pair).effect(self.worker)
    }

    async fn call(&mut self, plane: &Arc<Scheduler>) -> Result<bool, RpcError> {
        let port = plane.network.vhost_user.get(&self.ctrlr)?;
        check_queue("pair", self.pair, port.device.report().queues.len() / 2)?;
        plane.move_by_hand(QueueId::port(&self.ctrlr, self.pair), self.worker).await?;
        Ok(true)
    }
}

impl Handler for MoveQueue {
    type Plane = Scheduler;

    fn effect(&self) -> Effect {
        QueueId::controller(&self.ctrlr, self.queue).effect(self.worker)
    }

    async fn call(&mut self, plane: &Arc<Scheduler>) -> Result<bool, RpcError> {
        let report = plane.storage.controllers.get(&self.ctrlr)?.device.controller.report();
        check_queue("queue", self.queue, report.queues.len())?;
        plane.move_by_hand(QueueId::controller(&self.ctrlr, self.queue), self.worker).await?;
        Ok(true)
    }
}
