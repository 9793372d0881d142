//! Sets of workers, one bit each.

use invalid::Invalid;
use std::sync::atomic::{AtomicU64, Ordering};

/// The largest number of workers of one process: a [`WorkerSet`] has a bit for each.
pub const MAX_WORKERS: usize = u64::BITS as usize;

/// A set of workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerSet(u64);

impl WorkerSet {
    /// The set without workers.
    pub const EMPTY: WorkerSet = WorkerSet(0);
    /// The set of all workers that there can be.
    pub const ALL: WorkerSet = WorkerSet(u64::MAX);

    /// The set of one worker. Refuses a number from [`MAX_WORKERS`] on.
    pub fn of(worker: usize) -> Result<WorkerSet, Invalid> {
        check_worker_count(worker.saturating_add(1))?;
        Ok(WorkerSet(1 << worker))
    }

    /// The workers of both sets.
    #[inline]
    pub const fn union(self, other: WorkerSet) -> WorkerSet {
        WorkerSet(self.0 | other.0)
    }

    /// The workers that `other` has too.
    #[inline]
    pub const fn intersection(self, other: WorkerSet) -> WorkerSet {
        WorkerSet(self.0 & other.0)
    }

    /// The workers that `other` does not have.
    #[inline]
    pub const fn difference(self, other: WorkerSet) -> WorkerSet {
        WorkerSet(self.0 & !other.0)
    }

    /// Whether the set has no worker.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The worker with the smallest number.
    #[inline]
    pub const fn first(self) -> Option<usize> {
        if self.is_empty() { None } else { Some(self.0.trailing_zeros() as usize) }
    }
}

impl Iterator for WorkerSet {
    type Item = usize;

    /// Takes out the worker with the smallest number.
    #[inline]
    fn next(&mut self) -> Option<usize> {
        let first = self.first()?;
        self.0 &= self.0 - 1;
        Some(first)
    }
}

/// A set of workers that several threads read and change.
#[derive(Debug, Default)]
pub struct AtomicWorkerSet(AtomicU64);

impl AtomicWorkerSet {
    /// The set as it is now.
    #[inline]
    pub fn load(&self) -> WorkerSet {
        WorkerSet(self.0.load(Ordering::Relaxed))
    }

    /// Adds workers.
    pub fn insert(&self, workers: WorkerSet) {
        self.0.fetch_or(workers.0, Ordering::Relaxed);
    }

    /// Takes workers out.
    pub fn remove(&self, workers: WorkerSet) {
        self.0.fetch_and(!workers.0, Ordering::Relaxed);
    }
}

/// Refuses more workers than [`MAX_WORKERS`].
pub(crate) fn check_worker_count(count: usize) -> Result<(), Invalid> {
    if count > MAX_WORKERS {
        return Err(Invalid::new("workers", count, format_args!("at most {MAX_WORKERS} (one CPU each)")));
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_64_workers_and_refuses_the_next() {
        let all = (0..MAX_WORKERS).fold(WorkerSet::EMPTY, |set, worker| set.union(WorkerSet::of(worker).unwrap()));
        assert_eq!(all, WorkerSet::ALL);
        assert!(all.eq(0..64));
        let refused = WorkerSet::of(64).unwrap_err();
        assert_eq!(refused.to_string(), "workers: got 65, expected at most 64 (one CPU each)");
    }

    #[test]
    fn workers_come_and_go() {
        let (set, last) = (AtomicWorkerSet::default(), WorkerSet::of(63).unwrap());
        set.insert(last);
        set.insert(WorkerSet::of(2).unwrap());
        assert_eq!((set.load().first(), set.load().difference(last).collect::<Vec<_>>()), (Some(2), vec![2]));
        set.remove(WorkerSet::of(2).unwrap());
        assert_eq!((set.load(), set.load().intersection(WorkerSet::ALL).is_empty()), (last, false));
        set.remove(last);
        assert_eq!(set.load().first(), None);
    }
}
