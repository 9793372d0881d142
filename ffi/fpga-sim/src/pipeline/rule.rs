//! A rule, as it is asked for and as the device holds it.

use super::action::Action;
use super::conntrack::Direction;
use super::key::{Key, Pattern};
use super::shared::SharedKind;
use super::table::FormatId;
use super::{Domain, TableId};
use std::sync::Arc;
use std::time::Duration;

/// Ageing of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// So long without a packet, it has aged.
    pub timeout: Duration,
    /// The application's name for it, if not its number.
    pub context: Option<u64>,
}

/// A rule that is asked for.
#[derive(Clone)]
pub struct Rule {
    /// The port through which the application put it in.
    pub owner: u16,
    /// Which packets see it.
    pub domain: Domain,
    /// Group of the rule.
    pub group: u32,
    /// Priority in the group; 0 is the highest.
    pub priority: u32,
    /// Pattern of the rule.
    pub pattern: Pattern,
    /// Actions, in their order.
    pub actions: Arc<[Action]>,
    /// Whether it counts.
    pub counts: bool,
    /// Whether it ages.
    pub age: Option<Age>,
}

/// Counters of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counters {
    pub(super) fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// Counters, and as they are shown.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    counters: Counters,
    /// The counters in a period of the delay, and which.
    shown: (Counters, u64),
}

impl Tally {
    pub(super) fn count(&mut self, bytes: usize, now: Duration, delay: Duration) {
        self.show(now, delay);
        self.counters.add(bytes);
    }

    /// The counters that are shown now.
    pub(super) fn show(&mut self, now: Duration, delay: Duration) -> Counters {
        if delay.is_zero() {
            return self.counters;
        }
        let period = (now.as_nanos() / delay.as_nanos()) as u64;
        if period != self.shown.1 {
            self.shown = (self.counters, period);
        }
        self.shown.0
    }

    pub(super) fn reset(&mut self) {
        self.counters = Counters::default();
        self.shown.0 = Counters::default();
    }
}

/// The common part of the rules of a table: all but their values.
#[derive(Clone, Copy, Debug)]
pub struct RuleTemplate {
    pub(super) owner: u16,
    pub(super) table: Option<TableId>,
    pub(super) format: FormatId,
    pub(super) priority: u32,
}

impl RuleTemplate {
    /// Makes a rule with these values, which are zero where the pattern of the table does not match.
    pub fn fill(self, value: Key, actions: Arc<[Action]>, counts: bool, age: Option<Age>) -> Box<Entry> {
        Box::new(Entry {
            template: self,
            value,
            hash: 0,
            actions,
            counts,
            age,
            kind: Kind::Masked,
            direction: Direction::default(),
            aged: false,
            tally: Tally::default(),
            last_hit: Duration::ZERO,
        })
    }
}

/// Which table of the device a rule is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exact,
    Masked,
}

/// A rule in the device, or one whose insertion is pending.
pub struct Entry {
    pub(super) template: RuleTemplate,
    pub(super) value: Key,
    /// Hash of the value by its format.
    pub(super) hash: u64,
    pub(super) actions: Arc<[Action]>,
    /// Whether it counts.
    pub counts: bool,
    /// Whether it ages.
    pub age: Option<Age>,
    pub(super) kind: Kind,
    /// Direction of the rule's packets in the connection that checks them.
    pub(super) direction: Direction,
    /// Whether the rule has aged and is listed as aged.
    pub(super) aged: bool,
    pub(super) tally: Tally,
    pub(super) last_hit: Duration,
}

impl Entry {
    /// Whether a connection judges its packets.
    pub fn is_judged(&self) -> bool {
        self.actions.iter().any(|action| matches!(action, Action::Shared(SharedKind::Conntrack, _)))
    }

    pub(super) fn count(&mut self, bytes: usize, now: Duration, delay: Duration) {
        self.tally.count(bytes, now, delay);
        self.last_hit = now;
    }

    /// Time at which the rule ages if no packet comes.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.age.map(|age| self.last_hit + age.timeout)
    }

    pub(super) fn has_aged(&self, now: Duration) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }
}
