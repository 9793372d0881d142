//! Packets a second: a limit for one worker, and one that workers share.

use clock::Cycles;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long a limit may be saved up, as part of a second.
const BURST_PART: u64 = 10;
/// Packets that may always come at once.
const MIN_BURST: u64 = 32;

/// A rate in cycles a packet.
#[derive(Clone, Copy, Debug)]
struct Rate {
    cycles_per_packet: u64,
    burst_cycles: u64,
}

impl Rate {
    fn new(packets_per_second: u64) -> Rate {
        let cycles_per_packet = clock::hz().div_ceil(packets_per_second.max(1));
        let burst = (packets_per_second / BURST_PART).max(MIN_BURST);
        Rate { cycles_per_packet, burst_cycles: cycles_per_packet.saturating_mul(burst) }
    }
}

/// A token bucket that one worker uses. Full at first.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    rate: Rate,
    /// When the bucket will be full again.
    full_at: Cycles,
}

impl TokenBucket {
    pub(crate) fn new(packets_per_second: u64) -> TokenBucket {
        TokenBucket { rate: Rate::new(packets_per_second), full_at: Cycles(0) }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Cycles) -> bool {
        let full_at = self.full_at.max(now) + Cycles(self.rate.cycles_per_packet);
        let granted = full_at.since(now).0 <= self.rate.burst_cycles;
        if granted {
            self.full_at = full_at;
        }
        granted
    }
}

/// A rate that workers share. Each takes a batch of packets at a time, so that the shared word is written rarely.
#[derive(Debug)]
pub struct Meter {
    rate: Rate,
    packets_per_second: u64,
    full_at: AtomicU64,
}

impl Meter {
    /// Packets that a worker takes at a time.
    const BATCH: u64 = 8;

    /// A meter that lets `packets_per_second` pass, over all workers.
    pub fn new(packets_per_second: u64) -> Meter {
        Meter { rate: Rate::new(packets_per_second), packets_per_second, full_at: AtomicU64::new(0) }
    }

    /// What it lets pass.
    pub fn packets_per_second(&self) -> u64 {
        self.packets_per_second
    }

    /// Whether a packet may pass. `credit` is the worker's own, taken and not used yet.
    pub(crate) fn pass(&self, credit: &mut u64, now: Cycles) -> bool {
        if *credit == 0 {
            let take = |full_at: u64| {
                let full_at = Cycles(full_at.max(now.0)) + Cycles(Self::BATCH * self.rate.cycles_per_packet);
                (full_at.since(now).0 <= self.rate.burst_cycles).then_some(full_at.0)
            };
            if self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return false;
            }
            *credit = Self::BATCH;
        }
        *credit -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::new(1000);
        let start = Cycles(1 << 40);
        assert_eq!((0..1000).filter(|_| bucket.take(start)).count(), 100);
        let later = start + Cycles::from(Duration::from_millis(10));
        let again = (0..1000).filter(|_| bucket.take(later)).count();
        assert!((9..=10).contains(&again), "{again}");
        let long_after = later + Cycles::from(Duration::from_secs(10));
        assert_eq!((0..1000).filter(|_| bucket.take(long_after)).count(), 100, "no more than the burst is saved up");
    }

    #[test]
    fn workers_share_a_meter() {
        let meter = Meter::new(1000);
        let start = Cycles(1 << 40);
        let mut credits = [0; 4];
        let passed = (0..1000).filter(|n| meter.pass(&mut credits[n % 4], start)).count();
        assert_eq!(passed, 96, "whole batches of the burst of 100");
        let slow = Meter::new(1);
        let mut credit = 0;
        assert_eq!((0..100).filter(|_| slow.pass(&mut credit, start)).count(), 32, "a small burst is always allowed");
    }
}
