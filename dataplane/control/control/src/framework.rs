//! The workers, and what SPDK's clients ask of a framework.

use crate::Control;
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::desired::{Desired, SUBSYSTEMS};
use crate::state::object::{Aspect, ObjectId};
use crate::workers::Workers;
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

pub(crate) fn rows() -> Vec<Row> {
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
    type Plane = Workers;

    async fn call(&mut self, plane: &Arc<Workers>) -> Result<Reactors, RpcError> {
        let in_interrupt = plane.sleep_when_idle();
        let reactor = |report: WorkerReport| {
            let cpumask = mask_of(report.cpu);
            let thread = |(i, source): (usize, SourceReport)| LwThread {
                name: source.name,
                id: i as u64 + 1,
                cpumask: cpumask.clone(),
                elapsed: source.busy,
            };
            let asleep = plane.asleep(&report);
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
        let reactors = plane.reports().into_iter().map(reactor).collect();
        Ok(Reactors { tick_rate: clock::hz(), pid: std::process::id(), reactors })
    }
}

/// SPDK's way to write a set of CPUs: hexadecimal, without 0x.
fn mask_of(cpu: usize) -> String {
    format!("{:x}", engine::CpuSet::from_iter([cpu]))
}

impl Handler for GetSubsystems {
    type Plane = Workers;

    async fn call(&mut self, _: &Arc<Workers>) -> Result<Vec<Subsystem>, RpcError> {
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
    type Plane = Desired;

    async fn call(&mut self, plane: &Arc<Desired>) -> Result<Vec<Call>, RpcError> {
        let known = plane.subsystems();
        if known.contains(&self.name) {
            return Ok(plane.section(&self.name));
        }
        Err(RpcError::invalid("name", &self.name, format!("one of {}", known.join(", "))))
    }
}

impl Handler for WaitInit {
    type Plane = Control;

    async fn call(&mut self, plane: &Arc<Control>) -> Result<bool, RpcError> {
        plane.restored().await;
        Ok(true)
    }
}

impl Handler for StartInit {
    type Plane = Workers;

    async fn call(&mut self, _: &Arc<Workers>) -> Result<bool, RpcError> {
        Ok(true)
    }
}

impl Handler for SetIdle {
    type Plane = Workers;

    fn effect(&self) -> Effect {
        let undo = Call::new(Self::NAME, json!({"spin_us": Control::DEFAULT_SPIN_US}));
        Effect::Keep { slot: ObjectId::Engine.aspect(Aspect::Idle), undo: Some(undo) }
    }

    async fn call(&mut self, plane: &Arc<Workers>) -> Result<bool, RpcError> {
        let spin = |us| IdlePolicy::spin_for(Duration::from_micros(us));
        plane.set_idle(self.spin_us.map_or(IdlePolicy::POLL, spin));
        Ok(true)
    }
}

impl Handler for GetThreadStats {
    type Plane = Workers;

    async fn call(&mut self, plane: &Arc<Workers>) -> Result<ThreadStats, RpcError> {
        let thread = |report: WorkerReport| ThreadTimes {
            name: format!("worker-{}", report.id),
            id: report.id as u64 + 1,
            cpumask: mask_of(report.cpu),
            busy: report.busy,
            idle: report.idle + plane.asleep(&report),
            active_pollers_count: report.sources.len(),
            timed_pollers_count: 0,
            paused_pollers_count: 0,
        };
        let threads = plane.reports().into_iter().map(thread).collect();
        Ok(ThreadStats { tick_rate: clock::hz(), threads })
    }
}

impl Handler for GetPollers {
    type Plane = Workers;

    async fn call(&mut self, plane: &Arc<Workers>) -> Result<ThreadPollers, RpcError> {
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
        let threads = plane.reports().into_iter().map(thread).collect();
        Ok(ThreadPollers { tick_rate: clock::hz(), threads })
    }
}
