//! Actions that several rules share, by the number of one.

use super::action::{Action, Rss};
use super::conntrack::{Connection, Direction};
use super::edit::Frame;
use super::meter::Meter;
use super::rule::{Age, Tally};
use super::table::RuleId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The kind of a shared action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedKind {
    /// Counts packets and bytes.
    Count,
    /// Ages when none of its rules has a packet.
    Age,
    /// Spreads packets over queues.
    Rss,
    /// Limits the rate.
    Meter,
    /// Checks packets against a connection.
    Conntrack,
}

/// A shared action.
#[derive(Clone, Debug)]
pub enum Shared {
    /// Counts packets and bytes.
    Count(Tally),
    /// Ages.
    Age {
        /// When.
        age: Age,
        /// When the last packet came.
        last_hit: Duration,
        /// Whether the action has aged and is listed as aged.
        aged: bool,
    },
    /// Spreads packets over queues.
    Rss(Arc<Rss>),
    /// Limits the rate.
    Meter(Box<Meter>),
    /// Checks packets against a connection.
    Conntrack(Box<Connection>),
}

impl Shared {
    fn kind(&self) -> SharedKind {
        match self {
            Shared::Count(_) => SharedKind::Count,
            Shared::Age { .. } => SharedKind::Age,
            Shared::Rss(_) => SharedKind::Rss,
            Shared::Meter(_) => SharedKind::Meter,
            Shared::Conntrack(_) => SharedKind::Conntrack,
        }
    }

    /// When it ages if no packet comes.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self {
            Shared::Age { age, last_hit, .. } => Some(*last_hit + age.timeout),
            _ => None,
        }
    }
}

/// The shared actions of the device.
#[derive(Default)]
pub struct SharedActions(pub(super) HashMap<RuleId, Sharing>);

/// One, whose it is, and how many rules have it.
pub(super) struct Sharing {
    pub owner: u16,
    pub users: usize,
    pub action: Shared,
}

impl SharedActions {
    /// The kind of the action with this number.
    pub fn kind(&self, id: RuleId) -> Option<SharedKind> {
        self.0.get(&id).map(|sharing| sharing.action.kind())
    }

    pub(super) fn get_mut(&mut self, id: RuleId) -> Option<&mut Shared> {
        self.0.get_mut(&id).map(|sharing| &mut sharing.action)
    }

    /// Whether a meter lets a packet through.
    pub(super) fn pass(&mut self, id: RuleId, bytes: usize, now: Duration) -> bool {
        match self.get_mut(id) {
            Some(Shared::Meter(meter)) => meter.pass(bytes, now),
            _ => true,
        }
    }

    /// The direction of the packets of a rule with these actions that is put in now.
    pub(super) fn direction(&self, actions: &[Action]) -> Direction {
        let shared = actions.iter().filter_map(Action::shared).filter_map(|(_, id)| self.0.get(&id));
        let directions = shared.map(|sharing| match &sharing.action {
            Shared::Conntrack(connection) => Some(connection.direction),
            _ => None,
        });
        directions.flatten().next().unwrap_or_default()
    }

    /// Checks a packet against a connection.
    pub(super) fn judge(&mut self, id: RuleId, direction: Direction, frame: &impl Frame) -> u8 {
        match self.get_mut(id) {
            Some(Shared::Conntrack(connection)) => connection.judge(direction, frame),
            _ => 0,
        }
    }

    /// A rule with these actions has come.
    pub(super) fn join(&mut self, actions: &[Action]) {
        for (_, id) in actions.iter().filter_map(Action::shared) {
            self.0.entry(id).and_modify(|sharing| sharing.users += 1);
        }
    }

    /// Such a rule has gone.
    pub(super) fn leave(&mut self, actions: &[Action]) {
        for (_, id) in actions.iter().filter_map(Action::shared) {
            self.0.entry(id).and_modify(|sharing| sharing.users -= 1);
        }
    }
}
