//! Counters of a worker and of a source: written by the worker with plain stores, read by any thread.

#![cfg(not(loom))]

use std::sync::atomic::{AtomicU64, Ordering};

/// Where a worker's time went, in cycles since it started.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// In polls that did work.
    pub busy: AtomicU64,
    /// In polls that found none.
    pub idle: AtomicU64,
    /// Asleep in the kernel.
    pub asleep: AtomicU64,
    /// Turns.
    pub turns: AtomicU64,
    /// Times it went to sleep.
    pub sleeps: AtomicU64,
}

/// Where a source's time went, in cycles since it was added.
#[derive(Debug, Default)]
pub struct SourceStats {
    /// In polls that did work.
    pub busy: AtomicU64,
    /// In polls that found none.
    pub idle: AtomicU64,
    /// Polls that did work.
    pub busy_polls: AtomicU64,
    /// Items of work.
    pub work: AtomicU64,
}

/// Adds to a counter that only this thread writes.
#[inline(always)]
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}
