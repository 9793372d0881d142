//! Packets or bytes a second: a limit for one worker, and one that workers share.

use clock::Cycles;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long a limit may be saved up, as part of a second.
const BURST_PART: u64 = 10;
/// Packets that may always come at once.
const MIN_BURST: u64 = 32;

/// Bits of a [`Rate`]'s cost behind the point: a byte may cost less than a cycle.
const FRACTION: u32 = 16;

/// What a unit (a packet, a byte) costs, in cycles, and how much may be saved up.
#[derive(Clone, Copy, Debug)]
struct Rate {
    cost: u64,
    burst_cycles: u64,
}

impl Rate {
    fn new(per_second: u64, burst: u64) -> Rate {
        let cost = (u128::from(clock::hz()) << FRACTION).div_ceil(per_second.max(1).into());
        let mut rate = Rate { cost: u64::try_from(cost).unwrap_or(u64::MAX), burst_cycles: 0 };
        rate.burst_cycles = rate.cycles(burst).0;
        rate
    }

    fn packets(per_second: u64) -> Rate {
        Rate::new(per_second, (per_second / BURST_PART).max(MIN_BURST))
    }

    #[inline(always)]
    fn cycles(&self, units: u64) -> Cycles {
        let cycles = (u128::from(self.cost) * u128::from(units)) >> FRACTION;
        Cycles(u64::try_from(cycles).unwrap_or(u64::MAX))
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
        TokenBucket { rate: Rate::packets(packets_per_second), full_at: Cycles(0) }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Cycles) -> bool {
        let full_at = self.full_at.max(now) + self.rate.cycles(1);
        let granted = full_at.since(now).0 <= self.rate.burst_cycles;
        if granted {
            self.full_at = full_at;
        }
        granted
    }
}

/// A rate that workers share. Each takes a batch at a time, so that the shared word is written rarely.
#[derive(Debug)]
pub(crate) struct Meter {
    rate: Rate,
    /// Units that a worker takes at a time, at least.
    batch: u64,
    full_at: AtomicU64,
}

impl Meter {
    const BATCH_PACKETS: u64 = 8;
    const BATCH_BYTES: u64 = 16 << 10;

    /// A meter that lets so many packets a second pass, over all workers, and after a pause `burst` at once.
    pub(crate) fn packets(per_second: u64, burst: Option<u64>) -> Meter {
        let rate = burst.map_or_else(|| Rate::packets(per_second), |burst| Rate::new(per_second, burst));
        Meter { rate, batch: Self::BATCH_PACKETS, full_at: AtomicU64::new(0) }
    }

    /// A meter that lets so many bytes a second pass, over all workers, and after a pause `burst` at once.
    pub(crate) fn bytes(per_second: u64, burst: Option<u64>) -> Meter {
        let burst = burst.unwrap_or((per_second / BURST_PART).max(RateLimit::MIN_BURST_BYTES));
        Meter { rate: Rate::new(per_second, burst), batch: Self::BATCH_BYTES, full_at: AtomicU64::new(0) }
    }

    /// Whether so many units may pass. `credit` is the worker's own, taken and not used yet.
    #[inline]
    pub(crate) fn pass(&self, units: u64, credit: &mut u64, now: Cycles) -> bool {
        if *credit < units {
            let wanted = (units - *credit).max(self.batch);
            let cycles = self.rate.cycles(wanted);
            let take = |full_at: u64| {
                let full_at = Cycles(full_at.max(now.0)) + cycles;
                (full_at.since(now).0 <= self.rate.burst_cycles).then_some(full_at.0)
            };
            if self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return false;
            }
            *credit += wanted;
        }
        *credit -= units;
        true
    }
}

/// How much may come in by a port, over all workers. What is not set is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Packets a second.
    pub packets_per_second: Option<u64>,
    /// Packets that may come at once after a pause; a tenth of a second's, at least 32, if not set.
    pub burst_packets: Option<u64>,
    /// Bits a second, Ethernet headers included.
    pub bits_per_second: Option<u64>,
    /// Bytes that may come at once after a pause; a tenth of a second's, at least [`RateLimit::MIN_BURST_BYTES`], if not set.
    pub burst_bytes: Option<u64>,
}

impl RateLimit {
    /// Two of the largest packets there are: with less, some could never pass.
    pub const MIN_BURST_BYTES: u64 = 128 << 10;
    /// As workers take packets in batches.
    pub const MIN_BURST_PACKETS: u64 = MIN_BURST;
    /// A byte a second.
    pub const MIN_BITS_PER_SECOND: u64 = 8;
}

/// The limits of a port, on one worker.
#[derive(Clone, Debug)]
pub(crate) struct Policer {
    packets: Option<(Arc<Meter>, u64)>,
    bytes: Option<(Arc<Meter>, u64)>,
}

impl Policer {
    /// `None` where nothing is limited.
    pub(crate) fn new(limit: &RateLimit) -> Option<Policer> {
        let packets = limit.packets_per_second.map(|rate| (Arc::new(Meter::packets(rate, limit.burst_packets)), 0));
        let bytes = limit.bits_per_second.map(|rate| (Arc::new(Meter::bytes(rate / 8, limit.burst_bytes)), 0));
        (packets.is_some() || bytes.is_some()).then_some(Policer { packets, bytes })
    }

    /// Whether a packet of so many bytes may come in.
    #[inline]
    pub(crate) fn admits(&mut self, len: usize, now: Cycles) -> bool {
        let packets = self.packets.as_mut().is_none_or(|(meter, credit)| meter.pass(1, credit, now));
        packets && self.bytes.as_mut().is_none_or(|(meter, credit)| meter.pass(len as u64, credit, now))
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
        let meter = Meter::packets(1000, None);
        let start = Cycles(1 << 40);
        let mut credits = [0; 4];
        let passed = (0..1000).filter(|n| meter.pass(1, &mut credits[n % 4], start)).count();
        assert_eq!(passed, 96, "whole batches of the burst of 100");
        let slow = Meter::packets(1, None);
        let mut credit = 0;
        assert_eq!(
            (0..100).filter(|_| slow.pass(1, &mut credit, start)).count(),
            32,
            "a small burst is always allowed"
        );
    }

    #[test]
    fn bytes_are_limited_to_the_rate_and_the_burst() {
        let limit =
            RateLimit { bits_per_second: Some(80_000_000_000), burst_bytes: Some(1 << 20), ..RateLimit::default() };
        let mut policer = Policer::new(&limit).unwrap();
        let mut other = policer.clone();
        let start = Cycles(1 << 40);
        let mut passed = |now| (0..4000).filter(|_| policer.admits(1000, now) | other.admits(500, now)).count();
        let burst = passed(start);
        assert!((600..1100).contains(&burst), "{burst} turns of 1.5 kB, of a burst of 1 MiB");
        // 10 GB/s: less than a cycle a byte.
        let later = passed(start + Cycles::from(Duration::from_micros(60)));
        assert!((350..650).contains(&later), "{later} turns, of 600 kB");
        assert!(Policer::new(&RateLimit::default()).is_none());
    }
}
