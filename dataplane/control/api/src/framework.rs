//! Workers and subsystems; methods of SPDK's framework.

use crate::Phase;
use crate::config::Call;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    GetReactors: "framework_get_reactors" -> Reactors;
    GetSubsystems: "framework_get_subsystems" -> Vec<Subsystem>;
    GetConfig: "framework_get_config" -> Vec<Call>;
    WaitInit: "framework_wait_init" -> bool;
    StartInit: "framework_start_init" -> bool, Phase::Startup;
    SetIdle: "framework_set_idle" -> bool;
    GetThreadStats: "thread_get_stats" -> ThreadStats;
    GetPollers: "thread_get_pollers" -> ThreadPollers;
}

/// Lists the workers with their CPUs and their busy and idle time, in ticks since they started.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetReactors {}

/// The workers, in SPDK's shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reactors {
    /// Ticks per second.
    pub tick_rate: u64,
    /// The daemon's process ID.
    pub pid: u32,
    /// The workers.
    pub reactors: Vec<Reactor>,
}

/// A worker.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reactor {
    /// The CPU.
    pub lcore: usize,
    /// Ticks in polls that did work.
    pub busy: u64,
    /// Ticks in polls that found none, and asleep.
    pub idle: u64,
    /// Ticks asleep; part of `idle`.
    pub asleep: u64,
    /// Number of times the worker went to sleep.
    pub sleeps: u64,
    /// Whether the worker sleeps when idle.
    pub in_interrupt: bool,
    /// The sources that the worker polls.
    pub lw_threads: Vec<LwThread>,
}

/// A source that a worker polls.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LwThread {
    /// Name of the source.
    pub name: String,
    /// Number of the source on its worker, from 1.
    pub id: u64,
    /// The worker's CPU as a hexadecimal mask.
    pub cpumask: String,
    /// Ticks in polls that did work.
    pub elapsed: u64,
}

/// Lists the subsystems in the order in which their configuration is loaded.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetSubsystems {}

/// A subsystem.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Subsystem {
    /// Name of the subsystem.
    pub subsystem: String,
    /// The subsystems that it needs.
    pub depends_on: Vec<String>,
}

/// Shows the calls that create the objects of a subsystem, in order.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GetConfig {
    /// Name of the subsystem.
    pub name: String,
    /// For SPDK's clients: write batches as lists. There are no batches.
    #[serde(default)]
    #[schemars(extend("x-sluice-hidden" = true))]
    pub with_batches: bool,
}

/// Waits until each call of the saved configuration was tried once.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct WaitInit {}

/// Starts the subsystems. They are started already when the daemon answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StartInit {}

/// Sets how long an idle worker spins before it sleeps.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct SetIdle {
    /// Spin time in microseconds; without it workers never sleep.
    pub spin_us: Option<u64>,
}

/// Shows the busy and idle time of the workers, in ticks since they started.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetThreadStats {}

/// Times of the workers, in SPDK's shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ThreadStats {
    /// Ticks per second.
    pub tick_rate: u64,
    /// The workers.
    pub threads: Vec<ThreadTimes>,
}

/// Times of a worker.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // SPDK's names
pub struct ThreadTimes {
    pub name: String,
    pub id: u64,
    pub cpumask: String,
    pub busy: u64,
    pub idle: u64,
    pub active_pollers_count: usize,
    pub timed_pollers_count: usize,
    pub paused_pollers_count: usize,
}

/// Lists the sources that each worker polls, with their ticks and their amount of work.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetPollers {}

/// Sources of the workers, in SPDK's shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ThreadPollers {
    /// Ticks per second.
    pub tick_rate: u64,
    /// The workers.
    pub threads: Vec<Pollers>,
}

/// Sources of a worker.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // SPDK's names
pub struct Pollers {
    pub name: String,
    pub id: u64,
    pub active_pollers: Vec<Poller>,
    pub timed_pollers: Vec<Poller>,
    pub paused_pollers: Vec<Poller>,
}

/// A source that a worker polls.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // SPDK's names
pub struct Poller {
    pub name: String,
    pub id: u64,
    pub state: String,
    pub busy_ticks: u64,
    pub idle_ticks: u64,
    pub work_count: u64,
}
