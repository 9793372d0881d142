//! Rate limits over any disk: requests and bytes a second, in total and for each direction.
//!
//! All channels of a disk share one bucket a limit. A bucket is a point in time: when all that it has lent will have been
//! earned at the limit's rate. A channel borrows a millisecond's worth at a time and spends that alone, so workers meet at a
//! bucket a thousand times a second, not at each request. A request passes as soon as every limit that concerns it has lent
//! enough; a large one may leave the bucket in debt, which later ones pay. Requests of a channel keep their order.
//!
//! Limits change while requests flow. Without any limit a channel costs one test of a flag.

use crate::{Bdev, BlockChannel, BlockError, BlockRequest, Completions, Geometry, Identity, Op, Request, RequestQueue};
use clock::Cycles;
use crossbeam::utils::CachePadded;
use parking_lot::Mutex;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The tokens that a channel borrows at a time: this much of the rate, at least one token.
const QUANTUM_PER_SECOND: u64 = 1000;
/// The tokens that a bucket always saves up, so that a worker that is late loses nothing.
const SLACK: Duration = Duration::from_millis(10);
/// A sleeping worker with requests in its queue looks this often whether limits have changed.
const RECHECK: Duration = Duration::from_millis(10);

/// One limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Requests or bytes a second; 0: no limit.
    pub per_second: u64,
    /// Requests or bytes that may pass at once after a pause. Ten milliseconds' worth are always allowed.
    pub burst: u64,
}

impl Rate {
    /// A limit without a burst.
    pub fn new(per_second: u64) -> Rate {
        Rate { per_second, burst: 0 }
    }
}

/// The limits of a disk. A flush is free; a compare counts as a read; a discard and a write-zeroes count as one write without bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QosLimits {
    /// Requests a second.
    pub rw_ios: Rate,
    /// Reads a second.
    pub r_ios: Rate,
    /// Writes a second.
    pub w_ios: Rate,
    /// Bytes a second.
    pub rw_bytes: Rate,
    /// Bytes read a second.
    pub r_bytes: Rate,
    /// Bytes written a second.
    pub w_bytes: Rate,
}

/// Limits in the order of [`QosLimits`]: total, reads, writes, of requests and then of bytes.
const BUCKETS: usize = 6;
const READS: usize = 1;
const WRITES: usize = 2;
const BYTES: usize = 3;

impl QosLimits {
    fn rates(&self) -> [Rate; BUCKETS] {
        [self.rw_ios, self.r_ios, self.w_ios, self.rw_bytes, self.r_bytes, self.w_bytes]
    }
}

/// The state that all channels of a disk share.
#[derive(Debug, Default)]
struct Limiter {
    /// Written by control.
    limits: Mutex<QosLimits>,
    /// Raised by control after `limits` changed; looked at by channels at each poll.
    generation: CachePadded<AtomicU64>,
    buckets: [CachePadded<Bucket>; BUCKETS],
}

/// When all that was lent will have been earned, in cycles. Moved forward by channels, put back to zero by control.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Lends `tokens`, or tells when to ask again.
    fn borrow(&self, tokens: u64, terms: &Terms, now: Cycles) -> Result<(), Cycles> {
        let price = terms.price(tokens);
        let lend = |earned: u64| {
            let in_credit = Cycles(earned) <= now + terms.burst;
            in_credit.then(|| (Cycles(earned.max(now.0)) + price).0)
        };
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lend) {
            Ok(_) => Ok(()),
            Err(earned) => Err(Cycles(earned) - terms.burst),
        }
    }
}

/// A channel's copy of one limit.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    /// 0: no limit.
    per_second: u64,
    /// How far ahead of its earnings a bucket may lend.
    burst: Cycles,
    /// The tokens that are borrowed at a time.
    quantum: u64,
}

impl Terms {
    fn new(rate: Rate) -> Terms {
        let mut terms = Terms { per_second: rate.per_second, ..Terms::default() };
        if rate.per_second > 0 {
            terms.quantum = (rate.per_second / QUANTUM_PER_SECOND).max(1);
            terms.burst = terms.price(rate.burst).max(SLACK.into());
        }
        terms
    }

    /// The time in which `tokens` are earned.
    fn price(&self, tokens: u64) -> Cycles {
        let cycles = (u128::from(tokens) * u128::from(clock::hz())).div_ceil(u128::from(self.per_second));
        Cycles(cycles.try_into().unwrap_or(u64::MAX))
    }
}

/// A disk with limits. It has the name and the uuid of the disk under it.
pub struct Qos {
    base: Arc<dyn Bdev>,
    limiter: Arc<Limiter>,
}

impl Qos {
    /// Puts limits, none at first, over `base`.
    pub fn new(base: Arc<dyn Bdev>) -> Arc<Qos> {
        Arc::new(Qos { base, limiter: Arc::default() })
    }

    /// Replaces all limits. Requests that wait are judged by the new ones within ten milliseconds.
    pub fn set_limits(&self, limits: QosLimits) {
        let mut current = self.limiter.limits.lock();
        *current = limits;
        for bucket in &self.limiter.buckets {
            bucket.0.store(0, Ordering::Relaxed);
        }
        self.limiter.generation.fetch_add(1, Ordering::Release);
    }

    /// The limits in force.
    pub fn limits(&self) -> QosLimits {
        *self.limiter.limits.lock()
    }
}

impl Bdev for Qos {
    fn identity(&self) -> &Identity {
        self.base.identity()
    }

    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        let base = self.base.open_channel()?;
        Ok(Box::new(QosChannel::new(base, self.limiter.clone())))
    }

    fn rescan(&self) -> Result<bool, BlockError> {
        self.base.rescan()
    }

    fn timed_out(&self) -> u64 {
        self.base.timed_out()
    }
}

struct QosChannel {
    base: Box<dyn BlockChannel>,
    limiter: Arc<Limiter>,
    generation: u64,
    terms: [Terms; BUCKETS],
    /// Whether any limit is set.
    limited: bool,
    /// Borrowed and not yet spent.
    credit: [u64; BUCKETS],
    queue: RequestQueue,
    /// When the first of the queue may pass.
    next_admission: Cycles,
}

impl QosChannel {
    fn new(base: Box<dyn BlockChannel>, limiter: Arc<Limiter>) -> QosChannel {
        let mut channel = QosChannel {
            base,
            limiter,
            generation: 0,
            terms: [Terms::default(); BUCKETS],
            limited: false,
            credit: [0; BUCKETS],
            queue: RequestQueue::new(),
            next_admission: Cycles(0),
        };
        channel.adopt_limits();
        channel
    }

    #[cold]
    fn adopt_limits(&mut self) {
        // Control holds this lock for a copy of a few words, and a worker comes here once a change.
        let Some(limits) = self.limiter.limits.try_lock() else { return };
        self.generation = self.limiter.generation.load(Ordering::Acquire);
        self.terms = limits.rates().map(Terms::new);
        self.limited = self.terms.iter().any(|terms| terms.per_second > 0);
        self.credit = [0; BUCKETS];
        self.next_admission = Cycles(0);
    }

    /// Passes on what the limits allow. Returns the number of requests.
    fn admit(&mut self, now: Cycles, done: &mut Completions) -> usize {
        let mut admitted = 0;
        while let Some(request) = self.queue.peek() {
            let need = need(request);
            if self.limited && !self.pay(&need, now) {
                break;
            }
            let Some(request) = self.queue.pop() else { break };
            self.base.submit(request, done);
            admitted += 1;
        }
        admitted
    }

    /// Spends `need` of every limit that is set, or sets `next_admission` and spends nothing.
    fn pay(&mut self, need: &[u64; BUCKETS], now: Cycles) -> bool {
        for (bucket, (&need, terms)) in need.iter().zip(&self.terms).enumerate() {
            if terms.per_second == 0 || self.credit[bucket] >= need {
                continue;
            }
            let tokens = terms.quantum.max(need - self.credit[bucket]);
            match self.limiter.buckets[bucket].borrow(tokens, terms, now) {
                Ok(()) => self.credit[bucket] += tokens,
                Err(when) => {
                    self.next_admission = when.min(now + RECHECK.into());
                    return false;
                }
            }
        }
        self.credit.iter_mut().zip(need).for_each(|(credit, need)| *credit = credit.saturating_sub(*need));
        true
    }
}

/// The tokens that a request takes from each bucket.
fn need(request: &Request) -> [u64; BUCKETS] {
    let mut need = [0; BUCKETS];
    let (direction, bytes) = match request.op {
        Op::Flush => return need,
        Op::Read | Op::Compare => (READS, request.len),
        Op::Write => (WRITES, request.len),
        Op::Discard | Op::WriteZeroes { .. } => (WRITES, 0),
    };
    need[0] = 1;
    need[direction] = 1;
    need[BYTES] = bytes;
    need[BYTES + direction] = bytes;
    need
}

impl BlockChannel for QosChannel {
    #[inline]
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        if !self.limited && self.queue.is_empty() {
            return self.base.submit(request, done);
        }
        if self.queue.is_empty() {
            self.next_admission = Cycles(0);
        }
        self.queue.push(request);
    }

    #[inline]
    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        if self.limiter.generation.load(Ordering::Relaxed) != self.generation {
            self.adopt_limits();
        }
        let mut events = 0;
        if !self.queue.is_empty() && now >= self.next_admission {
            events += self.admit(now, done);
        }
        events + self.base.poll(now, done)
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.base.wake_fd()
    }

    fn deadline(&self) -> Cycles {
        let admission = if self.queue.is_empty() { Cycles::NEVER } else { self.next_admission };
        self.base.deadline().min(admission)
    }

    fn outstanding(&self) -> usize {
        self.base.outstanding() + self.queue.len()
    }
}
