//! Queues moved by load: whether, when, and what is seen of it. Names are SPDK's where it has them, else those of OVS's
//! pmd-auto-lb.

use crate::Control;
use crate::desired::Object;
use crate::rpc::method::{Effect, Handler, Row};
use crate::scheduler::{QueueId, QueueLoad, Settings, Thresholds};
use api::config::Call;
use api::scheduler::{self, GetScheduler, SchedulerInfo, SchedulerName, SetScheduler, WorkerLoad};
use api::{Method, RpcError};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Shortest and longest period, in microseconds.
const PERIODS: std::ops::RangeInclusive<u64> = 100_000..=3_600_000_000;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<SetScheduler>(), Row::of::<GetScheduler>()]
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
    fn effect(&self) -> Effect {
        let undo = Call::new(Self::NAME, json!({"name": "static"}));
        Effect::Keep { slot: Object::Engine.aspect(crate::desired::Aspect::Scheduler), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.scheduler.set(settings(self)?);
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
    async fn call(&mut self, control: &Arc<Control>) -> Result<SchedulerInfo, RpcError> {
        let Settings { dynamic, period, thresholds } = control.scheduler.settings();
        let loads = control.scheduler.loads();
        let workers = loads.workers.into_iter().enumerate();
        Ok(SchedulerInfo {
            scheduler_name: if dynamic { SchedulerName::Dynamic } else { SchedulerName::Static },
            scheduler_period: period.as_micros() as u64,
            load_threshold: percent(thresholds.load),
            improvement_threshold: percent(thresholds.improvement),
            moves: control.scheduler.moves().into_iter().map(|(cause, moves)| (cause.to_owned(), moves)).collect(),
            workers: workers.map(|(worker, load)| WorkerLoad { worker, load: percent(load) }).collect(),
            queues: loads.queues.into_iter().map(describe).collect(),
        })
    }
}
