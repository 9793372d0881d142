//! How a figure is taken: several windows, on a core of one's own, with the variants that are compared taking turns.

use anyhow::{Context, Result, ensure};
use clock::Cycles;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long everything takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Windows a figure.
    pub(crate) windows: usize,
    /// A window of a load that runs for a time.
    pub(crate) window: Duration,
    /// Times that an in-process window repeats its batch, divided by the batch.
    pub(crate) items: usize,
    /// The core of the client, and the one of the backend and of what is measured in this process.
    pub(crate) client_cpu: usize,
    /// See `client_cpu`.
    pub(crate) backend_cpu: usize,
}

/// One figure: what its windows said, sorted. Never empty.
#[derive(Clone, Debug)]
pub(crate) struct Measurement(Vec<f64>);

impl Measurement {
    /// Of at least one window.
    pub(crate) fn new(windows: impl IntoIterator<Item = f64>) -> Measurement {
        let mut windows: Vec<f64> = windows.into_iter().collect();
        assert!(!windows.is_empty(), "a figure has windows");
        windows.sort_by(f64::total_cmp);
        Measurement(windows)
    }

    pub(crate) fn median(&self) -> f64 {
        let (low, high) = (self.0[(self.0.len() - 1) / 2], self.0[self.0.len() / 2]);
        (low + high) / 2.0
    }

    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// In another unit.
    pub(crate) fn scaled(&self, factor: f64) -> Measurement {
        Measurement(self.0.iter().map(|figure| figure * factor).collect())
    }

    /// Median and range, with `digits` behind the point.
    pub(crate) fn show(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median(), self.min(), self.max())
    }
}

/// Windows of each variant in turn, so that a drift of the machine hits all alike. By variant.
pub(crate) fn take_turns<V, T>(
    windows: usize,
    variants: &mut [V],
    mut window: impl FnMut(&mut V) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut results: Vec<Vec<T>> = variants.iter().map(|_| Vec::with_capacity(windows)).collect();
    for _ in 0..windows {
        for (variant, results) in variants.iter_mut().zip(&mut results) {
            results.push(window(variant)?);
        }
    }
    Ok(results)
}

/// While it lives this thread runs on one core; so do processes that it starts.
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    pub(crate) fn to(cpu: usize) -> Result<Pinned> {
        let before = sched_getaffinity(None)?;
        pin_thread(None, cpu)?;
        Ok(Pinned(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.0).expect("these cores were permitted before");
    }
}

/// Puts every thread of a process on `cpu`; threads that they start follow.
pub(crate) fn pin_process(process: u32, cpu: usize) -> Result<()> {
    tasks(process)?.into_iter().try_for_each(|task| pin_thread(Pid::from_raw(task), cpu))
}

fn pin_thread(thread: Option<Pid>, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(thread, &cpus).with_context(|| format!("pin a thread to CPU {cpu}"))
}

/// CPU time that all threads of a process had so far. Threads that ended are not in it.
pub(crate) fn cpu_time(process: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in tasks(process)? {
        let path = format!("/proc/{process}/task/{task}/schedstat");
        // A thread may end between the listing and here.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let on_cpu = text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
        nanos += on_cpu.with_context(|| format!("{path}: no time on CPU in {text:?}"))?;
    }
    Ok(Duration::from_nanos(nanos))
}

fn tasks(process: u32) -> Result<Vec<i32>> {
    let directory = format!("/proc/{process}/task");
    let entries = std::fs::read_dir(&directory).with_context(|| directory.clone())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?)).collect()
}

/// While it lives nothing else runs on the cores of some threads, where the system permits that (`chrt -f 1`).
pub(crate) struct RealTime {
    threads: Vec<i32>,
    permitted: bool,
}

impl RealTime {
    /// This thread.
    pub(crate) fn enter() -> RealTime {
        RealTime::of(vec![gettid().as_raw_nonzero().get()])
    }

    /// The threads of a process whose names start with `name`; at least one.
    pub(crate) fn of_threads(process: u32, name: &str) -> Result<RealTime> {
        let mut threads = tasks(process)?;
        threads.retain(|task| {
            std::fs::read_to_string(format!("/proc/{process}/task/{task}/comm"))
                .is_ok_and(|comm| comm.starts_with(name))
        });
        ensure!(!threads.is_empty(), "process {process} has no thread {name}");
        Ok(RealTime::of(threads))
    }

    fn of(threads: Vec<i32>) -> RealTime {
        let permitted = threads.iter().all(|&thread| chrt(&["-f", "-p", "1"], thread));
        RealTime { threads, permitted }
    }

    pub(crate) fn permitted(&self) -> bool {
        self.permitted
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        self.threads.iter().for_each(|&thread| {
            chrt(&["-o", "-p", "0"], thread);
        });
    }
}

fn chrt(arguments: &[&str], thread: i32) -> bool {
    let mut command = Command::new("chrt");
    command.args(arguments).arg(thread.to_string()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// While it lives what this session runs goes ahead of other sessions, where the kernel groups by session and permits that.
///
/// Not for I/O that the kernel completes in threads of its own: they would wait for a worker that spins.
pub(crate) struct Ahead;

impl Ahead {
    pub(crate) fn enter() -> Ahead {
        set_session_nice("-20");
        Ahead
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        set_session_nice("0");
    }
}

fn set_session_nice(nice: &str) {
    let _refused_or_unknown = std::fs::write("/proc/self/autogroup", nice);
}

/// What two readings of the cycle counter cost by themselves.
pub(crate) fn timer_cost() -> u64 {
    let cost = || {
        let start = Cycles::now();
        Cycles::now().since(start).0
    };
    (0..10_000).map(|_| cost()).min().unwrap_or(0)
}
