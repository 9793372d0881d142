//! A meter: the single rate three color marker of RFC 2697 in its color-blind mode, on the bytes of whole packets.

use super::rule::Counters;
use std::time::Duration;

/// The rate of a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Committed information rate, bytes a second.
    pub cir: u64,
    /// Committed burst size, bytes.
    pub cbs: u64,
    /// Excess burst size, bytes.
    pub ebs: u64,
}

/// Counters of a meter by color: green, yellow, red.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By color.
    pub colors: [Counters; 3],
    /// Dropped packets among them.
    pub dropped: Counters,
}

/// A meter.
#[derive(Clone, Debug)]
pub struct Meter {
    rate: Rate,
    /// The colors that are dropped.
    drops: [bool; 3],
    /// One that is not lets everything through and sees nothing.
    pub enabled: bool,
    /// Tokens, in billionths of a byte.
    committed: u128,
    excess: u128,
    filled: Duration,
    /// Counters of the meter.
    pub seen: Seen,
}

const BYTE: u128 = 1_000_000_000;

impl Meter {
    /// A meter with full buckets.
    pub fn new(rate: Rate, drops: [bool; 3], enabled: bool, now: Duration) -> Meter {
        let mut meter = Meter { rate, drops, enabled, committed: 0, excess: 0, filled: now, seen: Seen::default() };
        meter.set_rate(rate, now);
        meter
    }

    /// Has it let through something else, from full buckets.
    pub fn set_rate(&mut self, rate: Rate, now: Duration) {
        self.rate = rate;
        (self.committed, self.excess) = (u128::from(rate.cbs) * BYTE, u128::from(rate.ebs) * BYTE);
        self.filled = now;
    }

    /// Whether a packet passes.
    pub(super) fn pass(&mut self, bytes: usize, now: Duration) -> bool {
        if !self.enabled {
            return true;
        }
        self.fill(now);
        let size = bytes as u128 * BYTE;
        // RFC 2697, section 3.
        let color = if let Some(left) = self.committed.checked_sub(size) {
            self.committed = left;
            0
        } else if let Some(left) = self.excess.checked_sub(size) {
            self.excess = left;
            1
        } else {
            2
        };
        let passes = !self.drops[color];
        self.seen.colors[color].add(bytes);
        if !passes {
            self.seen.dropped.add(bytes);
        }
        passes
    }

    /// What has come since; what the committed bucket has no room for goes to the excess bucket.
    fn fill(&mut self, now: Duration) {
        let come = now.saturating_sub(self.filled).as_nanos() * u128::from(self.rate.cir);
        let (cbs, ebs) = (u128::from(self.rate.cbs) * BYTE, u128::from(self.rate.ebs) * BYTE);
        let over = (self.committed + come).saturating_sub(cbs);
        self.committed = (self.committed + come).min(cbs);
        self.excess = (self.excess + over).min(ebs);
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_green_yellow_and_red_as_rfc_2697_says() {
        let rate = Rate { cir: 1000, cbs: 300, ebs: 150 };
        let mut meter = Meter::new(rate, [false, false, true], true, Duration::ZERO);
        let at = Duration::from_millis;
        // Three fit into the committed bucket, one into the excess bucket.
        let passed: Vec<bool> = (0..5).map(|_| meter.pass(100, at(0))).collect();
        assert_eq!(passed, [true, true, true, true, false]);
        let packets = |meter: &Meter| meter.seen.colors.map(|color| color.packets);
        assert_eq!((packets(&meter), meter.seen.dropped.bytes), ([3, 1, 1], 100));
        assert!(!meter.pass(100, at(49)), "the 49 bytes that came and the 50 left of the excess are not together");
        assert!(meter.pass(100, at(100)), "a hundred bytes came");
        assert!(!meter.pass(100, at(100)), "they went into one bucket");
        // The committed bucket fills first, then the excess bucket with what is over.
        let passed = (0..9).filter(|_| meter.pass(100, at(100_000))).count();
        assert_eq!((passed, packets(&meter)), (4, [7, 2, 8]));
        meter.enabled = false;
        assert!(meter.pass(100, at(100_000)));
        assert_eq!(packets(&meter), [7, 2, 8]);
    }
}
