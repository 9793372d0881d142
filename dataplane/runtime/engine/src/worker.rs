//! The poll loop, and the handles that control threads have on it.

use crate::idle::IdlePolicy;
use crate::stats::{SourceStats, WorkerStats, add};
use crate::wake::{WakeSet, Waker};
use crate::worker_set::check_worker_count;
use crate::{Mailbox, Reader, Sender, Snapshot, Source, mailbox};
use clock::Cycles;
use crossbeam::channel;
use invalid::Invalid;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Turns between two quiescent points of a busy worker.
pub const QUIESCENT_TURNS: u64 = 64;

/// Names a source on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(u64);

/// Why the engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such core, or the process may not use it.
    #[error("workers: CPU {cpu} is not available; available: {available:?}")]
    NoSuchCpu {
        /// The core asked for.
        cpu: usize,
        /// Those that this process may use.
        available: Vec<usize>,
    },
    /// No core, too many cores, or one core twice.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The system refused.
    #[error("workers: {what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its reason.
        source: std::io::Error,
    },
}

enum Command {
    Add(Slot),
    Remove(SourceId, channel::Sender<Box<dyn Source>>),
    Stop,
}

struct Slot {
    id: SourceId,
    source: Box<dyn Source>,
    stats: Arc<SourceStats>,
}

/// A worker, as control threads see it.
#[derive(Clone)]
pub struct WorkerHandle(Arc<Handle>);

struct Handle {
    id: usize,
    cpu: usize,
    waker: Waker,
    commands: Sender<Command>,
    stats: Arc<WorkerStats>,
    sources: Mutex<Vec<(SourceId, String, Arc<SourceStats>)>>,
    next_source: AtomicU64,
}

/// A worker and its sources at one moment. Cycles since the start.
#[derive(Clone, Debug)]
pub struct WorkerReport {
    /// The number of the worker, from 0.
    pub id: usize,
    /// The core of the worker.
    pub cpu: usize,
    /// Cycles in polls that did work.
    pub busy: u64,
    /// Cycles in polls that found none.
    pub idle: u64,
    /// Cycles asleep.
    pub asleep: u64,
    /// Turns.
    pub turns: u64,
    /// The number of sleeps.
    pub sleeps: u64,
    /// The sources of the worker.
    pub sources: Vec<SourceReport>,
}

/// A source at one moment. Cycles since it was added.
#[derive(Clone, Debug)]
pub struct SourceReport {
    /// The identifier that [`WorkerHandle::add`] gave.
    pub id: SourceId,
    /// The name of the source.
    pub name: String,
    /// Cycles in polls that did work.
    pub busy: u64,
    /// Cycles in polls that found none.
    pub idle: u64,
    /// Items of work.
    pub work: u64,
}

impl WorkerHandle {
    /// The number of the worker, from 0.
    pub fn id(&self) -> usize {
        self.0.id
    }

    /// The core that the worker is pinned to.
    pub fn cpu(&self) -> usize {
        self.0.cpu
    }

    /// The waker of the worker.
    pub fn waker(&self) -> Waker {
        self.0.waker.clone()
    }

    /// The descriptors that wake the worker.
    pub fn wake_set(&self) -> WakeSet {
        self.0.waker.wake_set()
    }

    /// Hands `source` to the worker. `name` is for reports.
    pub fn add(&self, name: &str, source: Box<dyn Source>) -> SourceId {
        let id = SourceId(self.0.next_source.fetch_add(1, Ordering::Relaxed));
        let stats = Arc::new(SourceStats::default());
        self.0.sources.lock().push((id, name.to_owned(), stats.clone()));
        // A worker that has stopped gives the source back, which is dropped here, on the control thread.
        let _ = self.0.commands.send(Command::Add(Slot { id, source, stats }));
        id
    }

    /// Takes a source back; waits for the end of the worker's turn. `None` when it has no such source.
    pub fn remove(&self, id: SourceId) -> Option<Box<dyn Source>> {
        self.0.sources.lock().retain(|(known, ..)| *known != id);
        let (reply, answer) = channel::bounded(1);
        self.0.commands.send(Command::Remove(id, reply)).ok()?;
        answer.recv().ok()
    }

    /// The counters of the worker and of its sources.
    pub fn report(&self) -> WorkerReport {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = &self.0.stats;
        let sources = self.0.sources.lock();
        let sources = sources.iter().map(|(id, name, stats)| SourceReport {
            id: *id,
            name: name.clone(),
            busy: load(&stats.busy),
            idle: load(&stats.idle),
            work: load(&stats.work),
        });
        WorkerReport {
            id: self.0.id,
            cpu: self.0.cpu,
            busy: load(&stats.busy),
            idle: load(&stats.idle),
            asleep: load(&stats.asleep),
            turns: load(&stats.turns),
            sleeps: load(&stats.sleeps),
            sources: sources.collect(),
        }
    }
}

/// The workers of a process.
pub struct Engine {
    workers: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
    idle: Snapshot<IdlePolicy>,
}

impl Engine {
    /// Starts one worker on each of `cpus`.
    pub fn start(cpus: &[usize], idle: IdlePolicy) -> Result<Engine, EngineError> {
        clock::hz();
        let available: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|c| c.id).collect();
        if cpus.is_empty() {
            return Err(Invalid::new("workers", "no CPU", "at least one").into());
        }
        check_worker_count(cpus.len())?;
        let mut engine = Engine { workers: Vec::new(), threads: Vec::new(), idle: Snapshot::new(idle) };
        for (id, &cpu) in cpus.iter().enumerate() {
            if !available.contains(&cpu) {
                return Err(EngineError::NoSuchCpu { cpu, available });
            }
            if cpus[..id].contains(&cpu) {
                return Err(Invalid::new("workers", format_args!("CPU {cpu} named twice"), "each CPU once").into());
            }
            engine.spawn(id, cpu)?;
        }
        Ok(engine)
    }

    fn spawn(&mut self, id: usize, cpu: usize) -> Result<(), EngineError> {
        let waker = Waker::new().map_err(|source| EngineError::Os { what: "epoll", source })?;
        let (commands, inbox) = mailbox(waker.clone(), 64);
        let stats = Arc::new(WorkerStats::default());
        let worker =
            Worker { sources: Vec::new(), inbox, waker: waker.clone(), stats: stats.clone(), idle: self.idle.reader() };
        let thread = std::thread::Builder::new()
            .name(format!("worker-{id}"))
            .spawn(move || {
                core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
                worker.run()
            })
            .map_err(|source| EngineError::Os { what: "thread", source })?;
        self.threads.push(thread);
        let (sources, next_source) = (Mutex::default(), AtomicU64::new(0));
        self.workers.push(WorkerHandle(Arc::new(Handle { id, cpu, waker, commands, stats, sources, next_source })));
        Ok(())
    }

    /// The workers, by number.
    pub fn workers(&self) -> &[WorkerHandle] {
        &self.workers
    }

    /// Changes the idle policy of all workers.
    pub fn set_idle(&self, idle: IdlePolicy) {
        self.idle.publish(idle);
        self.workers.iter().for_each(|w| w.0.waker.wake());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for worker in &self.workers {
            let _ = worker.0.commands.send(Command::Stop); // it fails where the worker has stopped already
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a panic was reported when it happened
        }
    }
}

struct Worker {
    sources: Vec<Slot>,
    inbox: Mailbox<Command>,
    waker: Waker,
    stats: Arc<WorkerStats>,
    idle: Reader<IdlePolicy>,
}

impl Worker {
    fn run(mut self) {
        let mut last_work = Cycles::now();
        let mut turn = 0_u64;
        loop {
            let start = Cycles::now();
            let (work, now) = self.turn(start);
            turn += 1;
            let idle_for = now.since(if work > 0 { start } else { last_work });
            if work > 0 {
                last_work = now;
            }
            let tired = |policy: &IdlePolicy| work == 0 && idle_for >= policy.spin;
            if tired(self.idle.get()) || turn.is_multiple_of(QUIESCENT_TURNS) {
                add(&self.stats.turns, turn);
                turn = 0;
                if self.quiesce() {
                    return;
                }
            }
            // The quiescent point may have brought another policy.
            if tired(self.idle.get()) {
                self.sleep();
            } else if work == 0 {
                std::hint::spin_loop();
            }
        }
    }

    /// Polls every source once. Returns the work done and the time afterwards.
    #[inline]
    fn turn(&mut self, mut now: Cycles) -> (usize, Cycles) {
        let start = now;
        let mut total = 0;
        for slot in &mut self.sources {
            let work = slot.source.poll(now);
            let end = Cycles::now();
            let spent = end.since(now).0;
            if work > 0 {
                add(&slot.stats.busy, spent);
                add(&slot.stats.busy_polls, 1);
                add(&slot.stats.work, work as u64);
            } else {
                add(&slot.stats.idle, spent);
            }
            now = end;
            total += work;
        }
        if self.sources.is_empty() {
            now = Cycles::now();
        }
        add(if total > 0 { &self.stats.busy } else { &self.stats.idle }, now.since(start).0);
        (total, now)
    }

    /// Takes commands and looks at snapshots. Returns whether to stop.
    fn quiesce(&mut self) -> bool {
        self.idle.quiesce();
        self.sources.iter_mut().for_each(|slot| slot.source.quiesce());
        while let Some(command) = self.inbox.take() {
            match command {
                Command::Add(slot) => self.sources.push(slot),
                Command::Remove(id, reply) => {
                    if let Some(at) = self.sources.iter().position(|slot| slot.id == id) {
                        let _ = reply.send(self.sources.remove(at).source); // the caller waits for it
                    }
                }
                Command::Stop => return true,
            }
        }
        false
    }

    /// Sleeps until there is something to do. Nothing is missed: each inbox is looked at after the announcement.
    fn sleep(&mut self) {
        let start = Cycles::now();
        self.waker.0.sleep.announce();
        let ready = !self.inbox.is_empty() | self.sources.iter_mut().fold(false, |ready, s| s.source.arm() | ready);
        let deadline = self.sources.iter().map(|s| s.source.deadline()).min().unwrap_or(Cycles::NEVER);
        if !ready && deadline > start {
            let span = if deadline == Cycles::NEVER { deadline } else { deadline.since(start) };
            add(&self.stats.sleeps, 1);
            self.waker.0.sleep(span);
            add(&self.stats.asleep, Cycles::now().since(start).0);
        }
        self.waker.0.sleep.awake();
        self.sources.iter_mut().for_each(|s| s.source.disarm());
    }
}

#[cfg(test)]
mod tests;
