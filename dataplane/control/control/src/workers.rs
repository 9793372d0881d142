//! The workers: where their time goes, and how they idle.

use clock::Cycles;
use engine::{Engine, IdlePolicy, WorkerHandle, WorkerReport};
use parking_lot::Mutex;

/// The workers of the daemon.
pub(crate) struct Workers {
    engine: Engine,
    started: Cycles,
    idle: Mutex<IdlePolicy>,
}

impl Workers {
    pub(crate) fn new(engine: Engine, idle: IdlePolicy) -> Workers {
        Workers { engine, started: Cycles::now(), idle: Mutex::new(idle) }
    }

    pub(crate) fn all(&self) -> &[WorkerHandle] {
        self.engine.workers()
    }

    pub(crate) fn reports(&self) -> Vec<WorkerReport> {
        self.all().iter().map(|worker| worker.report()).collect()
    }

    /// Cycles that a worker slept: the rest of its life, so that a sleep counts while it lasts.
    pub(crate) fn asleep(&self, report: &WorkerReport) -> u64 {
        Cycles::now().since(self.started).0.saturating_sub(report.busy + report.idle)
    }

    pub(crate) fn set_idle(&self, idle: IdlePolicy) {
        *self.idle.lock() = idle;
        self.engine.set_idle(idle);
    }

    pub(crate) fn sleep_when_idle(&self) -> bool {
        *self.idle.lock() != IdlePolicy::POLL
    }
}
