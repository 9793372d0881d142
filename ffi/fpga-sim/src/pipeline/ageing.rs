//! When rules are to be looked at again for their age. A rule is looked at when it could have aged at the earliest, and not
//! before: one that has had packets meanwhile is put off until it could have aged since the last of them.

use super::table::RuleId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Times are told apart so far.
const TICK: Duration = Duration::from_millis(100);
/// Rules that are gone are put up with, so many or as many as are there.
const GONE: usize = 1024;

/// Rules in the order in which they are to be looked at.
#[derive(Default)]
pub(super) struct Deadlines {
    ticks: BTreeMap<u128, Vec<RuleId>>,
    len: usize,
    gone: usize,
}

impl Deadlines {
    /// Has a rule looked at when it is `time`, or a tick later.
    pub(super) fn add(&mut self, time: Duration, id: RuleId) {
        self.ticks.entry(time.as_nanos().div_ceil(TICK.as_nanos())).or_default().push(id);
        self.len += 1;
    }

    /// One that is to be looked at now.
    pub(super) fn next(&mut self, now: Duration) -> Option<RuleId> {
        loop {
            let mut first = self.ticks.first_entry()?;
            if *first.key() > now.as_nanos() / TICK.as_nanos() {
                return None;
            }
            if let Some(id) = first.get_mut().pop() {
                self.len -= 1;
                return Some(id);
            }
            first.remove();
        }
    }

    /// Says that one of the rules is gone; `is_there` knows the others.
    pub(super) fn forget_one(&mut self, is_there: impl Fn(RuleId) -> bool) {
        self.gone += 1;
        if self.gone > GONE.max(self.len / 2) {
            self.ticks.retain(|_, ids| {
                ids.retain(|&id| is_there(id));
                !ids.is_empty()
            });
            self.len = self.ticks.values().map(Vec::len).sum();
            self.gone = 0;
        }
    }

    /// Says that one that was gone has come up.
    pub(super) fn found_gone(&mut self) {
        self.gone = self.gone.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_expire_in_time_and_are_freed_with_their_rules() {
        let seconds = Duration::from_secs;
        let mut deadlines = Deadlines::default();
        (0..10).for_each(|id| deadlines.add(seconds(10 - id), id));
        assert_eq!(deadlines.next(Duration::from_millis(999)), None);
        assert_eq!(std::iter::from_fn(|| deadlines.next(seconds(3))).collect::<Vec<_>>(), [9, 8, 7]);
        for id in 100..100_000 {
            deadlines.add(seconds(1_000_000), id);
            deadlines.forget_one(|id| id < 100);
        }
        assert!(deadlines.ticks.values().map(Vec::len).sum::<usize>() <= 7 + 2 * GONE);
        let left: Vec<_> = std::iter::from_fn(|| deadlines.next(seconds(10))).collect();
        assert_eq!(left, [6, 5, 4, 3, 2, 1, 0]);
    }
}
