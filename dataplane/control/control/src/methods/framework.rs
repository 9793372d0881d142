//! The workers, and what SPDK's clients ask of a framework.

use crate::Control;
use crate::desired::{Call, Object, SUBSYSTEMS};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method, Phase};
use engine::{IdlePolicy, SourceReport, WorkerReport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<FrameworkGetReactors>(),
        Entry::of::<FrameworkGetSubsystems>(),
        Entry::of::<FrameworkGetConfig>(),
        Entry::of::<FrameworkWaitInit>(),
        Entry::of::<FrameworkStartInit>(),
        Entry::of::<FrameworkSetIdle>(),
        Entry::of::<ThreadGetStats>(),
        Entry::of::<ThreadGetPollers>(),
    ]
}

/// Lists the workers with their cores and where their time went, in ticks since they started.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FrameworkGetReactors {}

#[derive(Serialize, JsonSchema)]
struct Reactors {
    /// Ticks a second.
    tick_rate: u64,
    pid: u32,
    reactors: Vec<Reactor>,
}

#[derive(Serialize, JsonSchema)]
struct Reactor {
    /// The core.
    lcore: usize,
    /// Ticks in polls that did work.
    busy: u64,
    /// Ticks in polls that found none, and asleep.
    idle: u64,
    /// Of those, ticks asleep.
    asleep: u64,
    /// Times it went to sleep.
    sleeps: u64,
    /// Whether it sleeps when it is idle.
    in_interrupt: bool,
    /// What it polls.
    lw_threads: Vec<LwThread>,
}

#[derive(Serialize, JsonSchema)]
struct LwThread {
    name: String,
    id: u64,
    cpumask: String,
    /// Ticks in polls that did work.
    elapsed: u64,
}

impl Method for FrameworkGetReactors {
    const NAME: &'static str = "framework_get_reactors";
    type Output = Reactors;

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

/// Lists the subsystems in the order in which their configuration is loaded.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FrameworkGetSubsystems {}

#[derive(Serialize, JsonSchema)]
struct Subsystem {
    subsystem: &'static str,
    depends_on: Vec<&'static str>,
}

impl Method for FrameworkGetSubsystems {
    const NAME: &'static str = "framework_get_subsystems";
    type Output = Vec<Subsystem>;

    async fn call(&mut self, _: &Arc<Control>) -> Result<Vec<Subsystem>, RpcError> {
        Ok(SUBSYSTEMS.iter().map(|(subsystem, needs)| Subsystem { subsystem, depends_on: needs.to_vec() }).collect())
    }
}

/// Tells the calls that make a subsystem's objects again, in order.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FrameworkGetConfig {
    /// The subsystem.
    name: String,
    /// Batches are written as lists. There are none.
    #[serde(default)]
    with_batches: bool,
}

impl Method for FrameworkGetConfig {
    const NAME: &'static str = "framework_get_config";
    type Output = Vec<Call>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<Call>, RpcError> {
        let known = control.desired.subsystems();
        if known.contains(&self.name) {
            return Ok(control.desired.section(&self.name));
        }
        Err(RpcError::invalid("name", &self.name, format!("one of {}", known.join(", "))))
    }
}

/// Waits until all of the saved configuration was tried once.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FrameworkWaitInit {}

impl Method for FrameworkWaitInit {
    const NAME: &'static str = "framework_wait_init";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.restored().await;
        Ok(true)
    }
}

/// Starts the subsystems: they are started when this can be called.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FrameworkStartInit {}

impl Method for FrameworkStartInit {
    const NAME: &'static str = "framework_start_init";
    const PHASE: Phase = Phase::Startup;
    type Output = bool;

    async fn call(&mut self, _: &Arc<Control>) -> Result<bool, RpcError> {
        Ok(true)
    }
}

/// Sets how long a worker without work spins before it sleeps.
#[derive(Serialize, Deserialize, JsonSchema)]
struct FrameworkSetIdle {
    /// Microseconds; workers never sleep when it is not given.
    spin_us: Option<u64>,
}

impl Method for FrameworkSetIdle {
    const NAME: &'static str = "framework_set_idle";
    type Output = bool;

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

/// Tells where the workers' time went, in ticks since they started.
#[derive(Serialize, Deserialize, JsonSchema)]
struct ThreadGetStats {}

impl Method for ThreadGetStats {
    const NAME: &'static str = "thread_get_stats";
    type Output = Value;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Value, RpcError> {
        let thread = |report: WorkerReport| {
            json!({
                "name": format!("worker-{}", report.id),
                "id": report.id as u64 + 1,
                "cpumask": mask_of(report.cpu),
                "busy": report.busy,
                "idle": report.idle + control.asleep(&report),
                "active_pollers_count": report.sources.len(),
                "timed_pollers_count": 0,
                "paused_pollers_count": 0,
            })
        };
        let threads: Vec<Value> = control.engine().workers().iter().map(|worker| thread(worker.report())).collect();
        Ok(json!({"tick_rate": clock::hz(), "threads": threads}))
    }
}

/// Lists what each worker polls, with its ticks and its items of work.
#[derive(Serialize, Deserialize, JsonSchema)]
struct ThreadGetPollers {}

impl Method for ThreadGetPollers {
    const NAME: &'static str = "thread_get_pollers";
    type Output = Value;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Value, RpcError> {
        let poller = |(i, source): (usize, SourceReport)| {
            json!({
                "name": source.name,
                "id": i as u64 + 1,
                "state": "running",
                "busy_ticks": source.busy,
                "idle_ticks": source.idle,
                "work_count": source.work,
            })
        };
        let thread = |report: WorkerReport| {
            let pollers: Vec<Value> = report.sources.into_iter().enumerate().map(poller).collect();
            json!({
                "name": format!("worker-{}", report.id),
                "id": report.id as u64 + 1,
                "active_pollers": pollers,
                "timed_pollers": [],
                "paused_pollers": [],
            })
        };
        let threads: Vec<Value> = control.engine().workers().iter().map(|worker| thread(worker.report())).collect();
        Ok(json!({"tick_rate": clock::hz(), "threads": threads}))
    }
}
