//! Counters and latency histograms of one worker's requests.
//!
//! One worker writes them with plain loads and stores; any thread reads them at any time through [`IoStats::snapshot`]. A snapshot
//! taken while the worker writes may miss the request that is being counted, never more.

use crate::{Completed, Op, Status};
use clock::Cycles;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of request that are counted apart: the index into [`IoSnapshot::kinds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum OpKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Compares.
    Compare,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Write zeroes, unmapping or not.
    WriteZeroes,
}

impl OpKind {
    /// All kinds, in the order of their index.
    pub const ALL: [OpKind; 6] =
        [OpKind::Read, OpKind::Write, OpKind::Compare, OpKind::Flush, OpKind::Discard, OpKind::WriteZeroes];
}

impl From<Op> for OpKind {
    #[inline(always)]
    fn from(op: Op) -> OpKind {
        match op {
            Op::Read => OpKind::Read,
            Op::Write => OpKind::Write,
            Op::Compare => OpKind::Compare,
            Op::Flush => OpKind::Flush,
            Op::Discard => OpKind::Discard,
            Op::WriteZeroes { .. } => OpKind::WriteZeroes,
        }
    }
}

/// Linear steps in each power of two of a histogram, as a power of two: a bucket is at most an eighth of its value wide.
const STEP_BITS: u32 = 3;
const STEPS: usize = 1 << STEP_BITS;
/// Values of this many bits and more share the last bucket: seven minutes at 2.6 GHz.
const MAX_BITS: u32 = 40;
/// Buckets of a histogram.
pub const BUCKETS: usize = (MAX_BITS - STEP_BITS + 1) as usize * STEPS;

/// The bucket of a value.
#[inline(always)]
fn bucket_of(value: u64) -> usize {
    let value = value.min((1 << MAX_BITS) - 1);
    let shift = (u64::BITS - (value | STEPS as u64).leading_zeros()) - STEP_BITS - 1;
    ((shift as usize) << STEP_BITS) + (value >> shift) as usize
}

/// The smallest value of a bucket.
pub fn bucket_floor(bucket: usize) -> Cycles {
    let (row, step) = (bucket / STEPS, bucket % STEPS);
    Cycles(if row == 0 { step as u64 } else { ((STEPS + step) as u64) << (row - 1) })
}

#[derive(Debug)]
struct Counters {
    ops: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    latency: AtomicU64,
    histogram: [AtomicU64; BUCKETS],
}

impl Counters {
    const fn new() -> Counters {
        Counters {
            ops: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            histogram: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

/// Counters of a disk's requests on one worker. Written by that worker alone, read by control threads.
#[derive(Debug)]
#[repr(align(128))] // its own pair of cache lines: neighbours belong to other workers
pub struct IoStats {
    kinds: [Counters; OpKind::ALL.len()],
}

impl Default for IoStats {
    fn default() -> IoStats {
        IoStats { kinds: [const { Counters::new() }; OpKind::ALL.len()] }
    }
}

/// Adds without a locked instruction: the caller is the only writer.
#[inline(always)]
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

impl IoStats {
    /// Counts a completed request. Called by the owning worker alone.
    #[inline]
    pub fn record(&self, completed: &Completed, now: Cycles) {
        let request = &completed.request;
        let latency = now.since(request.submitted).0;
        let counters = &self.kinds[OpKind::from(request.op) as usize];
        add(&counters.ops, 1);
        add(&counters.latency, latency);
        add(&counters.histogram[bucket_of(latency)], 1);
        if completed.status == Status::Ok {
            add(&counters.bytes, request.len);
        } else {
            add(&counters.errors, 1);
        }
    }

    /// A copy of the counters.
    pub fn snapshot(&self) -> IoSnapshot {
        let copy = |counters: &Counters| KindSnapshot {
            ops: counters.ops.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            latency: Cycles(counters.latency.load(Ordering::Relaxed)),
            histogram: counters.histogram.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
        };
        IoSnapshot { kinds: std::array::from_fn(|kind| copy(&self.kinds[kind])) }
    }
}

/// Counters of one kind of request at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindSnapshot {
    /// Requests that ended, well or not.
    pub ops: u64,
    /// Bytes of those that ended well.
    pub bytes: u64,
    /// Requests that did not end well.
    pub errors: u64,
    /// The sum of their latencies.
    pub latency: Cycles,
    /// Requests by latency: [`bucket_floor`] tells where a bucket begins. Always [`BUCKETS`] long.
    pub histogram: Vec<u64>,
}

impl Default for KindSnapshot {
    fn default() -> KindSnapshot {
        KindSnapshot { ops: 0, bytes: 0, errors: 0, latency: Cycles(0), histogram: vec![0; BUCKETS] }
    }
}

impl KindSnapshot {
    /// The latency that `quantile` (0 to 1) of the requests did not exceed, rounded up to a bucket's end, at most an eighth too
    /// much; zero when there was none.
    pub fn quantile(&self, quantile: f64) -> Cycles {
        let total: u64 = self.histogram.iter().sum();
        let rank = ((total as f64 * quantile).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.histogram.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Cycles(bucket_floor(bucket + 1).0 - 1);
            }
        }
        Cycles(0)
    }

    /// The mean latency; zero when there was no request.
    pub fn mean(&self) -> Cycles {
        Cycles(self.latency.0.checked_div(self.ops).unwrap_or(0))
    }
}

impl AddAssign<&KindSnapshot> for KindSnapshot {
    fn add_assign(&mut self, other: &KindSnapshot) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.latency = self.latency + other.latency;
        self.histogram.iter_mut().zip(&other.histogram).for_each(|(mine, theirs)| *mine += theirs);
    }
}

/// Counters of all kinds at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoSnapshot {
    /// By [`OpKind`].
    pub kinds: [KindSnapshot; OpKind::ALL.len()],
}

impl IoSnapshot {
    /// One kind's counters.
    pub fn of(&self, kind: OpKind) -> &KindSnapshot {
        &self.kinds[kind as usize]
    }

    /// The difference to `earlier`, an older snapshot of the same worker or workers.
    pub fn since(&self, earlier: &IoSnapshot) -> IoSnapshot {
        let since = |now: &KindSnapshot, then: &KindSnapshot| KindSnapshot {
            ops: now.ops.saturating_sub(then.ops),
            bytes: now.bytes.saturating_sub(then.bytes),
            errors: now.errors.saturating_sub(then.errors),
            latency: now.latency - then.latency,
            histogram: now.histogram.iter().zip(&then.histogram).map(|(a, b)| a.saturating_sub(*b)).collect(),
        };
        IoSnapshot { kinds: std::array::from_fn(|kind| since(&self.kinds[kind], &earlier.kinds[kind])) }
    }
}

impl AddAssign<&IoSnapshot> for IoSnapshot {
    /// Adds another worker's counters.
    fn add_assign(&mut self, other: &IoSnapshot) {
        self.kinds.iter_mut().zip(&other.kinds).for_each(|(mine, theirs)| *mine += theirs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockRequest, Completions, Request};
    use memory::IoBuffers;

    #[test]
    fn buckets_cover_all_values_without_gap_and_within_an_eighth() {
        for bucket in 0..BUCKETS - 1 {
            let (floor, next) = (bucket_floor(bucket).0, bucket_floor(bucket + 1).0);
            assert_eq!((bucket_of(floor), bucket_of(next - 1)), (bucket, bucket));
            assert!((next - floor) * STEPS as u64 <= floor.max(STEPS as u64), "{floor}..{next}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    fn ended(op: Op, len: u64, submitted: u64, status: Status) -> Completed {
        let mut request = Request::new(IoBuffers::anonymous(512).unwrap());
        request.op = op;
        request.len = len;
        request.submitted = Cycles(submitted);
        let mut done = Completions::default();
        BlockRequest::new(request).complete(&mut done, status);
        done.drain().next().unwrap()
    }

    #[test]
    fn counters_add_up_over_workers_and_differences_take_back() {
        let (one, other) = (IoStats::default(), IoStats::default());
        for latency in 1..=100 {
            one.record(&ended(Op::Read, 4096, 1000, Status::Ok), Cycles(1000 + latency * 1000));
        }
        let before = one.snapshot();
        one.record(&ended(Op::Read, 4096, 0, Status::IoError), Cycles(5));
        other.record(&ended(Op::WriteZeroes { unmap: true }, 512, 0, Status::Ok), Cycles(7));

        let mut sum = one.snapshot();
        sum += &other.snapshot();
        let reads = sum.of(OpKind::Read);
        assert_eq!((reads.ops, reads.bytes, reads.errors), (101, 409_600, 1));
        assert_eq!(sum.of(OpKind::WriteZeroes).bytes, 512);
        let p50 = before.of(OpKind::Read).quantile(0.5).0;
        assert!((50_000..=56_250).contains(&p50), "{p50}");
        assert_eq!(before.of(OpKind::Read).mean(), Cycles(50_500));

        let since = one.snapshot().since(&before);
        assert_eq!((since.of(OpKind::Read).ops, since.of(OpKind::Read).errors), (1, 1));
        assert_eq!(since.of(OpKind::Read).quantile(1.0), Cycles(5));
        assert_eq!(since.of(OpKind::Write).quantile(0.99), Cycles(0));
    }
}
