//! A slower disk: SPDK's `delay`. Reads (compares too) and writes are given back no sooner than a latency after they were submitted; one in a
//! hundred, drawn at random, gets the other, longer one. What the disk under it takes counts in. Failures are not held back.

use crate::{
    Bdev, BlockChannel, BlockError, BlockRequest, Completed, Completions, Geometry, Identity, Op, RequestQueue, Status,
    limits,
};
use clock::Cycles;
use invalid::Invalid;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// Completions that a channel has room for before it has to grow.
const COMPLETIONS: usize = 256;

/// Which latency, in the order of SPDK's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum LatencyType {
    /// Of 99 in 100 reads.
    AvgRead,
    /// Of one in 100 reads.
    P99Read,
    /// Of 99 in 100 writes.
    AvgWrite,
    /// Of one in 100 writes.
    P99Write,
}

const LATENCIES: usize = 4;

/// Parameters of a [`Delay`] disk.
#[derive(Clone)]
pub struct DelayParams {
    /// The name operators use.
    pub name: String,
    /// The disk under it.
    pub base: Arc<dyn Bdev>,
    /// `None`: a random one.
    pub uuid: Option<Uuid>,
    /// By [`LatencyType`]. A 99th percentile is at least its average.
    pub latencies: [Duration; LATENCIES],
}

/// A slower disk.
pub struct Delay {
    identity: Identity,
    base: Arc<dyn Bdev>,
    /// By [`LatencyType`], in cycles. Written by control, read by channels.
    latencies: Arc<[AtomicU64; LATENCIES]>,
}

impl Delay {
    /// Puts latencies over `base`.
    pub fn create(params: DelayParams) -> Result<Arc<Delay>, BlockError> {
        let identity = limits::identity(params.name, "delay", params.uuid)?;
        let [avg_read, p99_read, avg_write, p99_write] = params.latencies;
        for (field, average, p99) in
            [("p99_read_latency", avg_read, p99_read), ("p99_write_latency", avg_write, p99_write)]
        {
            if p99 < average {
                let got = format!("{} us", p99.as_micros());
                let expected = format!("at least the average, {} us", average.as_micros());
                return Err(Invalid::new(field, got, expected).into());
            }
        }
        let latencies = params.latencies.map(|latency| AtomicU64::new(Cycles::from(latency).0));
        Ok(Arc::new(Delay { identity, base: params.base, latencies: Arc::new(latencies) }))
    }

    /// Changes one latency, for requests that complete from now on.
    pub fn update(&self, latency_type: LatencyType, latency: Duration) {
        self.latencies[latency_type as usize].store(Cycles::from(latency).0, Ordering::Relaxed);
    }
}

impl Bdev for Delay {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        Ok(Box::new(DelayChannel {
            base: self.base.open_channel()?,
            latencies: self.latencies.clone(),
            completed: Completions::with_capacity(COMPLETIONS),
            held: [const { RequestQueue::new() }; LATENCIES],
            next_due: Cycles::NEVER,
            random: Cycles::now().0 | 1,
        }))
    }

    fn rescan(&self) -> Result<bool, BlockError> {
        self.base.rescan()
    }

    fn timed_out(&self) -> u64 {
        self.base.timed_out()
    }
}

struct DelayChannel {
    base: Box<dyn BlockChannel>,
    latencies: Arc<[AtomicU64; LATENCIES]>,
    /// Completions of the base that were not looked at yet.
    completed: Completions,
    /// Done but early, by [`LatencyType`]. `scratch` is when each is due; within a queue the first is due first.
    held: [RequestQueue; LATENCIES],
    /// When the first of them is due.
    next_due: Cycles,
    /// State of the draw, never zero.
    random: u64,
}

impl DelayChannel {
    /// Gives a request back, or holds it until it is due.
    fn hold(&mut self, completed: Completed, now: Cycles, done: &mut Completions) {
        let Completed { mut request, status } = completed;
        let rare = self.one_in_a_hundred();
        let latency_type = match request.op {
            Op::Read | Op::Compare if rare => LatencyType::P99Read,
            Op::Read | Op::Compare => LatencyType::AvgRead,
            Op::Write if rare => LatencyType::P99Write,
            Op::Write => LatencyType::AvgWrite,
            _ => return BlockRequest::new(request).complete(done, status),
        };
        let latency = self.latencies[latency_type as usize].load(Ordering::Relaxed);
        let due = request.submitted + Cycles(latency);
        if status != Status::Ok || due <= now {
            return BlockRequest::new(request).complete(done, status);
        }
        request.scratch = due.0;
        self.held[latency_type as usize].push(BlockRequest::new(request));
    }

    /// Marsaglia's xorshift: fair enough to choose who is slow.
    fn one_in_a_hundred(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.is_multiple_of(100)
    }
}

impl BlockChannel for DelayChannel {
    fn submit(&mut self, request: BlockRequest, _: &mut Completions) {
        self.base.submit(request, &mut self.completed);
    }

    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        let mut events = self.base.poll(now, &mut self.completed);
        let mut completed = std::mem::take(&mut self.completed);
        for completed in completed.drain() {
            self.hold(completed, now, done);
            events += 1;
        }
        self.completed = completed;
        self.next_due = Cycles::NEVER;
        for held in &mut self.held {
            while let Some(due) = held.peek().map(|request| Cycles(request.scratch)) {
                if due > now {
                    self.next_due = self.next_due.min(due);
                    break;
                }
                if let Some(request) = held.pop() {
                    request.complete(done, Status::Ok);
                    events += 1;
                }
            }
        }
        events
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.base.wake_fd()
    }

    fn deadline(&self) -> Cycles {
        if !self.completed.is_empty() {
            return Cycles(0);
        }
        self.base.deadline().min(self.next_due)
    }

    fn outstanding(&self) -> usize {
        self.base.outstanding() + self.completed.len() + self.held.iter().map(RequestQueue::len).sum::<usize>()
    }
}
