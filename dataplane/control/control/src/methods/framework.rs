//! The workers, and what SPDK's clients ask of a framework.

use crate::Control;
use crate::desired::{Object, SUBSYSTEMS};
use crate::rpc::method::{Effect, Handler, Row};
use api::config::Call;
use api::framework::{
    GetConfig, GetPollers, GetReactors, GetSubsystems, GetThreadStats, LwThread, Poller, Pollers, Reactor, Reactors,
    SetIdle, StartInit, Subsystem, ThreadPollers, ThreadStats, ThreadTimes, WaitInit,
};
use api::{Method, RpcError};
use engine::{IdlePolicy, SourceReport, WorkerReport};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn methods() -> Vec<Row> {
    vec![
        Row::of::<GetReactors>(),
        Row::of::<GetSubsystems>(),
        Row::of::<GetConfig>(),
        Row::of::<WaitInit>(),
        Row::of::<StartInit>(),
        Row::of::<SetIdle>(),
        Row::of::<GetThreadStats>(),
        Row::of::<GetPollers>(),
    ]
}

impl Handler for GetReactors {
    async fn call(&mut self, control: &Arc<Control>) -> Result<Reactors, RpcError> {
        let in_interrupt = control.sleeps_when_idle();
        let reactor = |report: WorkerReport| {
            let cpumask = mask_of(report.cpu);
            let thread = |(i, source): (usize, SourceReport)| LwThread {
                name: source.name,
                id: i as u64 + 1,
                cpumask: cpumask.clone(),
                elapsed: source.busy,
            };
            let asleep = control.asleep(&report);
            Reactor {
                lcore: report.cpu,
                busy: report.busy,
                idle: report.idle + asleep,
                asleep,
                sleeps: report.sleeps,
                in_interrupt,
                lw_threads: report.sources.into_iter().enumerate().map(thread).collect(),
            }
        };
        let reactors = control.engine().workers().iter().map(|worker| reactor(worker.report())).collect();
        Ok(Reactors { tick_rate: clock::hz(), pid: std::process::id(), reactors })
    }
}

/// SPDK's way to write a set of CPUs: hexadecimal, without 0x.
fn mask_of(cpu: usize) -> String {
    format!("{:x}", engine::CpuSet::from_iter([cpu]))
}

impl Handler for GetSubsystems {
    async fn call(&mut self, _: &Arc<Control>) -> Result<Vec<Subsystem>, RpcError> {
        Ok(SUBSYSTEMS
            .iter()
            .map(|(subsystem, needs)| Subsystem {
                subsystem: (*subsystem).to_owned(),
                depends_on: needs.iter().map(|need| (*need).to_owned()).collect(),
            })
            .collect())
    }
}

impl Handler for GetConfig {
    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<Call>, RpcError> {
        let known = control.desired.subsystems();
        if known.contains(&self.name) {
            return Ok(control.desired.section(&self.name));
        }
        Err(RpcError::invalid("name", &self.name, format!("one of {}", known.join(", "))))
    }
}

impl Handler for WaitInit {
    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.restored().await;
        Ok(true)
    }
}

impl Handler for StartInit {
    async fn call(&mut self, _: &Arc<Control>) -> Result<bool, RpcError> {
        Ok(true)
    }
}

impl Handler for SetIdle {
    fn effect(&self) -> Effect {
        let undo = Call::new(Self::NAME, json!({"spin_us": Control::DEFAULT_SPIN_US}));
        Effect::Keep { slot: Object::Engine.aspect(crate::desired::Aspect::Idle), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let spin = |us| IdlePolicy::spin_for(Duration::from_micros(us));
        control.set_idle(self.spin_us.map_or(IdlePolicy::POLL, spin));
        Ok(true)
    }
}

impl Handler for GetThreadStats {
    async fn call(&mut self, control: &Arc<Control>) -> Result<ThreadStats, RpcError> {
        let thread = |report: WorkerReport| ThreadTimes {
            name: format!("worker-{}", report.id),
            id: report.id as u64 + 1,
            cpumask: mask_of(report.cpu),
            busy: report.busy,
            idle: report.idle + control.asleep(&report),
            active_pollers_count: report.sources.len(),
            timed_pollers_count: 0,
            paused_pollers_count: 0,
        };
        let threads = control.engine().workers().iter().map(|worker| thread(worker.report())).collect();
        Ok(ThreadStats { tick_rate: clock::hz(), threads })
    }
}

impl Handler for GetPollers {
    async fn call(&mut self, control: &Arc<Control>) -> Result<ThreadPollers, RpcError> {
        let poller = |(i, source): (usize, SourceReport)| Poller {
            name: source.name,
            id: i as u64 + 1,
            state: "running".to_owned(),
            busy_ticks: source.busy,
            idle_ticks: source.idle,
            work_count: source.work,
        };
        let thread = |report: WorkerReport| Pollers {
            name: format!("worker-{}", report.id),
            id: report.id as u64 + 1,
            active_pollers: report.sources.into_iter().enumerate().map(poller).collect(),
            timed_pollers: Vec::new(),
            paused_pollers: Vec::new(),
        };
        let threads = control.engine().workers().iter().map(|worker| thread(worker.report())).collect();
        Ok(ThreadPollers { tick_rate: clock::hz(), threads })
    }
}
