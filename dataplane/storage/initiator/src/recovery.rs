//! When a lost connection is tried again, and how long its requests are held meanwhile.

use clock::Cycles;
use invalid::Invalid;
use std::time::Duration;

/// The recovery options as operators give them, with SPDK's names and meanings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryOptions {
    /// Seconds until a lost connection is given up and its disks fail for good; -1 never, 0 at once.
    pub ctrlr_loss_timeout_sec: i32,
    /// Longest pause between attempts to reconnect, in seconds: pauses double up to it.
    pub reconnect_delay_sec: u32,
    /// Seconds until held requests of a lost connection fail; 0 never.
    pub fast_io_fail_timeout_sec: u32,
}

impl Default for RecoveryOptions {
    /// A boot disk: requests are held and reconnects go on for ever.
    fn default() -> RecoveryOptions {
        RecoveryOptions { ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 2, fast_io_fail_timeout_sec: 0 }
    }
}

impl RecoveryOptions {
    /// Checks the three timeouts against each other by SPDK's rules (bdev_nvme.c, at attach).
    pub fn validate(&self) -> Result<Recovery, Invalid> {
        let (loss, delay, fail) =
            (self.ctrlr_loss_timeout_sec, self.reconnect_delay_sec, self.fast_io_fail_timeout_sec);
        if loss < -1 {
            let expected = "-1 or more (-1 holds for ever, 0 gives up at once)";
            return Err(Invalid::new("ctrlr_loss_timeout_sec", loss, expected));
        }
        let bound = if loss > 0 { loss as u32 } else { u32::MAX };
        if (loss == 0) != (delay == 0) || delay > bound {
            let expected = if loss == 0 {
                "0 where ctrlr_loss_timeout_sec is 0"
            } else {
                "1 to ctrlr_loss_timeout_sec (2 is usual)"
            };
            return Err(Invalid::new("reconnect_delay_sec", delay, expected));
        }
        if fail != 0 && (loss == 0 || fail < delay || fail > bound) {
            let expected = "0, or reconnect_delay_sec to ctrlr_loss_timeout_sec (0 holds requests)";
            return Err(Invalid::new("fast_io_fail_timeout_sec", fail, expected));
        }
        let seconds = |s: u32| Duration::from_secs(s.into());
        Ok(Recovery {
            loss_timeout: u32::try_from(loss).ok().map(seconds),
            fast_io_fail: (fail > 0).then(|| seconds(fail)),
            max_pause: seconds(delay),
            ..Recovery::default()
        })
    }
}

/// How a lost connection is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Time without a connection until the disk is given up and fails all requests; `None` never.
    pub loss_timeout: Option<Duration>,
    /// Time without a connection until held requests fail; `None` holds them for ever, as a boot disk needs.
    pub fast_io_fail: Option<Duration>,
    /// Pause after the first failed attempt; it doubles with every further one.
    pub min_pause: Duration,
    /// Longest pause.
    pub max_pause: Duration,
}

impl Default for Recovery {
    fn default() -> Recovery {
        Recovery {
            loss_timeout: None,
            fast_io_fail: None,
            min_pause: Duration::from_millis(100),
            max_pause: Duration::from_secs(5),
        }
    }
}

/// Pauses between attempts: exponential, with jitter, so that hosts that lost the same target do not return at one instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    min_pause: Duration,
    max_pause: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// The pauses that `recovery` allows; `seed` decides the jitter.
    pub fn new(recovery: &Recovery, seed: u64) -> Backoff {
        Backoff { min_pause: recovery.min_pause, max_pause: recovery.max_pause, failures: 0, random: seed | 1 }
    }

    /// Attempts that failed since the connection was lost.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts anew: a connection is up, or was just lost.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failed attempt. Returns the pause before the next one.
    pub fn fail(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let doubled = self.min_pause.saturating_mul(1 << (self.failures - 1).min(16)).min(self.max_pause);
        self.jitter(doubled).min(self.max_pause)
    }

    /// The shortest pause.
    pub fn first_pause(&mut self) -> Duration {
        self.jitter(self.min_pause)
    }

    /// `pause`, a quarter more or less.
    fn jitter(&mut self, pause: Duration) -> Duration {
        let permille = 750 + (self.random() % 501) as u32;
        pause * permille / 1000
    }

    /// The next number of a xorshift64 generator: scatters attempts, keeps no secret.
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// A limit of [`Recovery`] that an outage reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutageLimit {
    /// Held requests fail from now on.
    FastIoFail,
    /// The connection is given up.
    Loss,
}

/// The time without a connection, measured against the limits of [`Recovery`].
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    since: Cycles,
    failing_fast: bool,
}

impl Outage {
    /// An outage that begins now.
    pub fn new(now: Cycles) -> Outage {
        Outage { since: now, failing_fast: false }
    }

    /// When the connection was lost.
    pub fn since(&self) -> Cycles {
        self.since
    }

    /// Time since the connection was lost.
    pub fn lasted(&self, now: Cycles) -> Duration {
        now.since(self.since).to_duration()
    }

    /// The limit that was reached since the last call. After [`OutageLimit::Loss`] the caller asks no more.
    pub fn reached(&mut self, recovery: &Recovery, now: Cycles) -> Option<OutageLimit> {
        let passed = |limit: Option<Duration>| limit.is_some_and(|limit| now.since(self.since) >= Cycles::from(limit));
        if !self.failing_fast && passed(recovery.fast_io_fail) {
            self.failing_fast = true;
            return Some(OutageLimit::FastIoFail);
        }
        passed(recovery.loss_timeout).then_some(OutageLimit::Loss)
    }

    /// When the next limit is reached.
    pub fn deadline(&self, recovery: &Recovery) -> Cycles {
        let fast_io_fail = recovery.fast_io_fail.filter(|_| !self.failing_fast);
        let limits = [fast_io_fail, recovery.loss_timeout].into_iter().flatten();
        limits.map(|limit| self.since + Cycles::from(limit)).min().unwrap_or(Cycles::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut RecoveryOptions)) -> String {
        let mut options = RecoveryOptions::default();
        change(&mut options);
        options.validate().expect_err("must be refused").field.into_owned()
    }

    #[test]
    fn the_default_holds_for_ever() {
        let recovery = RecoveryOptions::default().validate().unwrap();
        assert_eq!((recovery.loss_timeout, recovery.fast_io_fail), (None, None));
    }

    #[test]
    fn reconnect_timeouts_follow_spdk() {
        assert_eq!(refused(|o| o.ctrlr_loss_timeout_sec = -2), "ctrlr_loss_timeout_sec");
        assert_eq!(refused(|o| o.ctrlr_loss_timeout_sec = 0), "reconnect_delay_sec");
        assert_eq!(refused(|o| o.reconnect_delay_sec = 0), "reconnect_delay_sec");
        let too_long = |o: &mut RecoveryOptions| (o.ctrlr_loss_timeout_sec, o.reconnect_delay_sec) = (5, 6);
        assert_eq!(refused(too_long), "reconnect_delay_sec");
        assert_eq!(refused(|o| o.fast_io_fail_timeout_sec = 1), "fast_io_fail_timeout_sec");
        let at_once =
            RecoveryOptions { ctrlr_loss_timeout_sec: 0, reconnect_delay_sec: 0, ..RecoveryOptions::default() };
        assert_eq!(at_once.validate().unwrap().loss_timeout, Some(Duration::ZERO));
    }

    #[test]
    fn pauses_double_up_to_the_longest_with_jitter() {
        let recovery = Recovery::default();
        let mut backoff = Backoff::new(&recovery, 7);
        for expected in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let pause = backoff.fail().as_millis();
            assert!((expected * 3 / 4..=expected * 5 / 4).contains(&pause), "{pause} for {expected}");
        }
        backoff.reset();
        assert!(backoff.fail() <= Duration::from_millis(125));
    }

    #[test]
    fn an_outage_reaches_fast_io_fail_before_loss() {
        let second = Duration::from_secs(1);
        let recovery = Recovery { fast_io_fail: Some(second), loss_timeout: Some(2 * second), ..Recovery::default() };
        let start = Cycles(5);
        let mut outage = Outage::new(start);
        assert_eq!((outage.reached(&recovery, start), outage.deadline(&recovery)), (None, start + second.into()));
        let late = start + Cycles::from(3 * second);
        assert_eq!(outage.reached(&recovery, late), Some(OutageLimit::FastIoFail));
        assert_eq!(outage.deadline(&recovery), start + (2 * second).into());
        assert_eq!(outage.reached(&recovery, late), Some(OutageLimit::Loss));
    }
}
