//! Time as the poll loops see it: cycles of the invariant time-stamp counter.
//!
//! Reading it costs about 20 cycles and no system call, so a turn of a worker may do it. The rate is measured once, at the
//! first conversion, against the monotonic clock. Where there is no TSC a cycle is a nanosecond.

#![allow(unsafe_code)] // the time-stamp counter is read with an intrinsic

use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A point in time, or a span of it, in TSC cycles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cycles(pub u64);

impl Cycles {
    /// The end of time: a deadline that never comes.
    pub const NEVER: Cycles = Cycles(u64::MAX);

    /// Reads the counter.
    #[inline(always)]
    pub fn now() -> Cycles {
        Cycles(counter())
    }

    /// The span from `earlier` to `self`, zero if `earlier` is later.
    #[inline(always)]
    pub fn since(self, earlier: Cycles) -> Cycles {
        Cycles(self.0.saturating_sub(earlier.0))
    }

    /// This span as wall time.
    pub fn to_duration(self) -> Duration {
        Duration::from_nanos((u128::from(self.0) * 1_000_000_000 / u128::from(hz())) as u64)
    }

    /// This span in whole nanoseconds.
    pub fn as_nanos(self) -> u64 {
        self.to_duration().as_nanos() as u64
    }
}

impl From<Duration> for Cycles {
    fn from(span: Duration) -> Cycles {
        let cycles = span.as_nanos() * u128::from(hz()) / 1_000_000_000;
        Cycles(cycles.try_into().unwrap_or(u64::MAX))
    }
}

impl Add for Cycles {
    type Output = Cycles;
    #[inline(always)]
    fn add(self, span: Cycles) -> Cycles {
        Cycles(self.0.saturating_add(span.0))
    }
}

impl Sub for Cycles {
    type Output = Cycles;
    #[inline(always)]
    fn sub(self, span: Cycles) -> Cycles {
        Cycles(self.0.saturating_sub(span.0))
    }
}

/// Cycles a second. The first call measures for 20 ms; call it once before the workers start.
pub fn hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        let (wall, cycles) = (Instant::now(), counter());
        std::thread::sleep(Duration::from_millis(20));
        let (elapsed, spent) = (wall.elapsed(), counter() - cycles);
        (u128::from(spent) * 1_000_000_000 / elapsed.as_nanos()) as u64
    })
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn counter() -> u64 {
    // SAFETY: every x86-64 has the instruction; it reads a register and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_follow_the_wall_clock() {
        hz();
        let (wall, start) = (Instant::now(), Cycles::now());
        std::thread::sleep(Duration::from_millis(50));
        let (wall, cycles) = (wall.elapsed().as_secs_f64(), Cycles::now().since(start).to_duration().as_secs_f64());
        assert!((cycles / wall - 1.0).abs() < 0.05, "{cycles} s by cycles, {wall} s by the wall");
    }

    #[test]
    fn spans_convert_both_ways() {
        let span = Duration::from_micros(12_345);
        let back = Cycles::from(span).to_duration();
        assert!(span.abs_diff(back) < Duration::from_nanos(10));
        assert_eq!(Cycles::from(Duration::MAX), Cycles::NEVER);
    }
}
