//! Counters that workers raise on slow paths.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that workers raise on their slow paths, for metrics.
#[derive(Debug, Default)]
pub struct EventCounter(AtomicU64);

impl EventCounter {
    /// Raises the count.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
