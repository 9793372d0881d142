//! The datapath of a process: its parts on workers, and the upcall handler.

use crate::handler::UpcallHandler;
use crate::handover::Handover;
use crate::output::Outputs;
use crate::pipeline::Pipeline;
use crate::state::DatapathState;
use crate::stats::WorkerCounters;
use crate::upcall::Upcalls;
use crate::worker::DatapathWorker;
use crate::{FlowReport, Offload, PortConfig, PortNo, SwitchError, WorkerStats, limits};
use engine::{SourceId, Waker, WorkerHandle, WorkerSet, mailbox};
use invalid::Invalid;
use packet::Pool;
use parking_lot::MutexGuard;
use port::Port;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The datapath of a process, whose packets `P` decides over.
pub struct Datapath<P: Pipeline> {
    handler: Arc<UpcallHandler<P>>,
    workers: Vec<WorkerHandle>,
    sources: Vec<SourceId>,
    thread: Option<JoinHandle<()>>,
    pool: Pool,
}

impl<P: Pipeline> Datapath<P> {
    /// Makes the parts of a datapath and runs none of them. `workers` have the ports' queues; `wakers` wake the parts on workers, and
    /// `cache` sizes their caches.
    pub fn assemble(
        pipeline: P,
        workers: &[WorkerHandle],
        wakers: Vec<Waker>,
        pool: Pool,
        cache: flow::Config,
    ) -> Result<(Datapath<P>, Vec<DatapathWorker>), Invalid> {
        let number = |(worker, waker)| WorkerSet::of(worker).map(|set| (set, waker));
        let wakers = wakers.into_iter().enumerate().map(number).collect::<Result<Vec<_>, _>>()?;
        let upcalls = Arc::new(Upcalls::new(wakers.len()));
        let counters: Vec<Arc<WorkerCounters>> = wakers.iter().map(|_| Arc::default()).collect();
        let mut senders = Vec::new();
        let mut parts = Vec::new();
        for (worker, ((set, waker), handover)) in wakers.iter().zip(Handover::connect(&wakers)).enumerate() {
            let (sender, inbox) = mailbox(waker.clone(), limits::MESSAGES);
            senders.push((*set, sender));
            let (outputs, counters) = (Outputs::new(*set, handover), counters[worker].clone());
            parts.push(DatapathWorker::new(worker, inbox, upcalls.clone(), outputs, pool.clone(), cache, counters));
        }
        let handler = Arc::new(UpcallHandler::new(DatapathState::new(pipeline, senders), upcalls, counters));
        Ok((Datapath { handler, workers: workers.to_vec(), sources: Vec::new(), thread: None, pool }, parts))
    }

    /// Starts a datapath on these workers, whose copies of packets come from `pool`.
    pub fn start(pipeline: P, workers: &[WorkerHandle], pool: Pool) -> Result<Datapath<P>, SwitchError> {
        let wakers = workers.iter().map(WorkerHandle::waker).collect();
        let (mut datapath, parts) = Datapath::assemble(pipeline, workers, wakers, pool, limits::cache())?;
        let handler = datapath.handler.clone();
        let thread = std::thread::Builder::new().name("upcall-handler".to_owned()).spawn(move || handler.run());
        let thread = thread.map_err(|source| SwitchError::Os { what: "thread", source })?;
        datapath.handler.set_thread(thread.thread().clone());
        datapath.thread = Some(thread);
        let add = |(worker, part): (&WorkerHandle, DatapathWorker)| worker.add("switch", Box::new(part));
        datapath.sources = workers.iter().zip(parts).map(add).collect();
        Ok(datapath)
    }

    /// The upcall handler, for a caller who runs it by hand.
    pub fn handler(&self) -> &Arc<UpcallHandler<P>> {
        &self.handler
    }

    /// Locks the control side.
    pub fn lock(&self) -> MutexGuard<'_, DatapathState<P>> {
        self.handler.lock()
    }

    /// Adds a port. Returns its number.
    pub fn add_port(&self, name: &str, port: Arc<dyn Port>, config: &PortConfig) -> Result<PortNo, SwitchError> {
        self.lock().add_port(name, port, config, &self.workers)
    }

    /// Offers busy flows to this hardware from now on.
    pub fn set_offload(&self, offload: Arc<dyn Offload>) {
        let handler = Arc::downgrade(&self.handler);
        offload.on_removed(Box::new(move || {
            if let Some(handler) = handler.upgrade() {
                handler.request_sweep();
            }
        }));
        self.lock().set_offload(offload);
    }

    /// The pool of copies of packets.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The counters of each worker's part.
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.handler.worker_stats()
    }

    /// The source that is the datapath's part on a worker.
    pub fn source(&self, worker: usize) -> Option<SourceId> {
        self.sources.get(worker).copied()
    }

    /// All flows with their statistics as of now.
    pub fn dump_flows(&self) -> Vec<FlowReport> {
        let offload = self.lock().offload.clone();
        if let Some(offload) = offload {
            offload.refresh();
        }
        self.handler.refresh_stats();
        self.lock().flow_reports()
    }
}

impl<P: Pipeline> Drop for Datapath<P> {
    fn drop(&mut self) {
        self.handler.stop();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // a panic was reported when it happened
        }
        for (worker, source) in self.workers.iter().zip(self.sources.drain(..)) {
            drop(worker.remove(source)); // the part is destroyed here, not on its worker
        }
    }
}
