//! The upcall handler, which is the revalidator too: one thread (in OVS: handler and revalidator threads).

use crate::limits;
use crate::pipeline::Pipeline;
use crate::state::DatapathState;
use crate::stats::{WorkerCounters, WorkerStats};
use crate::upcall::Upcalls;
use crate::worker::{Message, Sweep};
use clock::Cycles;
use crossbeam::channel;
use engine::Sender;
use flow::Stats;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The statistics of the flows of one worker, by ufid.
type FlowStats = Vec<(u128, Stats)>;

/// Answers upcalls and revalidates megaflows. [`crate::Datapath::start`] runs it on a thread.
pub struct UpcallHandler<P> {
    state: Mutex<DatapathState<P>>,
    upcalls: Arc<Upcalls>,
    counters: Vec<Arc<WorkerCounters>>,
    stop: AtomicBool,
    /// Whether the next sweep is not to wait for its time.
    sweep_requested: AtomicBool,
}

impl<P: Pipeline> UpcallHandler<P> {
    pub(crate) fn new(
        state: DatapathState<P>,
        upcalls: Arc<Upcalls>,
        counters: Vec<Arc<WorkerCounters>>,
    ) -> UpcallHandler<P> {
        let (stop, sweep_requested) = (AtomicBool::new(false), AtomicBool::new(false));
        UpcallHandler { state: Mutex::new(state), upcalls, counters, stop, sweep_requested }
    }

    /// Locks the control side of the datapath.
    pub fn lock(&self) -> MutexGuard<'_, DatapathState<P>> {
        self.state.lock()
    }

    pub(crate) fn worker_stats(&self) -> Vec<WorkerStats> {
        self.counters.iter().map(|counters| counters.read()).collect()
    }

    pub(crate) fn set_thread(&self, thread: Thread) {
        self.upcalls.set_handler(thread);
    }

    /// Answers a batch of the upcalls that wait. Returns how many.
    pub fn handle_upcalls(&self, now: Instant) -> usize {
        let mut state = self.lock();
        let waiting = std::iter::from_fn(|| self.upcalls.take()).take(limits::UPCALL_BATCH);
        waiting.map(|upcall| state.answer(&upcall, now)).count()
    }

    /// Asks every worker for the statistics of its flows.
    pub fn request_stats(&self) -> Vec<channel::Receiver<FlowStats>> {
        let state = self.lock();
        let room = state.flows.len() + limits::SWEEP_SLACK;
        let request = |worker: &Sender<Message>| {
            let (reply, answer) = channel::bounded(1);
            // A worker that has ended drops the request, and the receiver sees that.
            let _ = worker.send(Message::Sweep(Sweep { seen: Vec::with_capacity(room), cursor: 0, reply }));
            answer
        };
        state.workers().map(request).collect()
    }

    /// Takes note of the statistics that all workers have reported. The time is given by both clocks.
    pub fn apply_stats(&self, reported: impl IntoIterator<Item = FlowStats>, now: Instant, cycles: Cycles) {
        let mut sum: HashMap<u128, Stats> = HashMap::new();
        for (ufid, stats) in reported.into_iter().flatten() {
            sum.entry(ufid).or_default().add(&stats);
        }
        self.lock().apply_stats(&sum, now, cycles);
    }

    /// Refreshes the statistics of all flows at once, for an operator.
    pub(crate) fn refresh_stats(&self) {
        self.apply_stats(self.collect_stats(|| false), Instant::now(), Cycles::now());
    }

    /// The loop of the thread.
    pub(crate) fn run(&self) {
        let mut next_sweep = Instant::now() + limits::SWEEP_INTERVAL;
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            if self.handle_upcalls(now) > 0 {
                continue;
            }
            if now >= next_sweep || self.sweep_requested.swap(false, Ordering::AcqRel) {
                next_sweep = now + limits::SWEEP_INTERVAL;
                if self.is_idle() {
                    continue;
                }
                let reported = self.collect_stats(|| self.handle_upcalls(Instant::now()) > 0);
                self.apply_stats(reported, now, Cycles::now());
            }
            if self.upcalls.is_empty() {
                std::thread::park_timeout(next_sweep.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Makes the loop return; the caller wakes its thread.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Starts a sweep before its time: hardware has removed flows, which are to be offered again.
    pub(crate) fn request_sweep(&self) {
        self.sweep_requested.store(true, Ordering::Release);
        self.upcalls.notify();
    }

    /// Whether there is nothing that could age.
    fn is_idle(&self) -> bool {
        let state = self.lock();
        state.flows.len() == 0 && !state.pipeline.has_learned()
    }

    /// The statistics of all workers, or nothing where a worker has ended. Calls `meanwhile` while they count.
    fn collect_stats(&self, mut meanwhile: impl FnMut() -> bool) -> Vec<FlowStats> {
        const POLL_INTERVAL: Duration = Duration::from_millis(1);
        let mut reported = Vec::new();
        for answer in self.request_stats() {
            loop {
                match answer.recv_timeout(POLL_INTERVAL) {
                    Ok(seen) => break reported.push(seen),
                    Err(channel::RecvTimeoutError::Disconnected) => return Vec::new(),
                    Err(channel::RecvTimeoutError::Timeout) if self.stop.load(Ordering::Acquire) => return Vec::new(),
                    Err(channel::RecvTimeoutError::Timeout) => while meanwhile() {},
                }
            }
        }
        reported
    }
}
