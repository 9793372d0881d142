//! The flows of a table: one place each, found by ufid, small enough for a million.

use crate::nic::NicRule;
use clock::Cycles;
use datapath::OffloadHandle;
use flow::PortNo;
use hashbrown::HashTable;
use rte_rule::FlowCount;
use slab::Slab;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// The state of a flow's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The insertion is pending.
    Inserting,
    /// The rule is in the device.
    Installed,
    /// The rule is in the device, and the insertion of the rule that replaces it is pending.
    Replacing,
    /// The insertion is pending, and the rule is not wanted any more.
    Unwanted,
}

/// A flow whose rule is in a device, or whose insertion is pending.
pub(crate) struct Flow {
    /// The halves of the ufid.
    ufid: [u64; 2],
    pub(crate) handle: Arc<OffloadHandle>,
    /// The rule's counters at the last poll.
    packets: u64,
    bytes: u64,
    /// The installed rule.
    pub(crate) rule: NicRule,
    pub(crate) port: PortNo,
    /// Recent packets between two polls.
    pub(crate) rate: u32,
    /// Time of the last poll that showed new packets.
    pub(crate) moved: Moment,
    /// Priority of the installed rule.
    pub(crate) priority: u8,
    /// Number of polls, up to [`SETTLED_POLLS`](crate::table::SETTLED_POLLS).
    pub(crate) polls: u8,
    pub(crate) state: State,
    /// Whether the installed rule only marks packets, which workers then process.
    marks: bool,
    /// Ticket in the list of active flows; 0 if the flow is not active.
    pub(crate) ticket: u32,
}

/// A time with a precision of a few milliseconds, which wraps after months.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(u32);

impl Moment {
    const SHIFT: u32 = 23;

    /// The time from this moment to a later one.
    pub(crate) fn until(self, later: Moment) -> Cycles {
        Cycles(u64::from(later.0.wrapping_sub(self.0)) << Self::SHIFT)
    }
}

impl From<Cycles> for Moment {
    fn from(now: Cycles) -> Moment {
        Moment((now.0 >> Self::SHIFT) as u32)
    }
}

impl Flow {
    /// A flow whose insertion is pending.
    pub(crate) fn inserting(ufid: u128, handle: Arc<OffloadHandle>, rule: NicRule, port: PortNo, now: Cycles) -> Flow {
        Flow {
            ufid: [ufid as u64, (ufid >> 64) as u64],
            handle,
            packets: 0,
            bytes: 0,
            rule,
            port,
            rate: 0,
            moved: now.into(),
            priority: 0,
            polls: 0,
            state: State::Inserting,
            marks: false,
            ticket: 0,
        }
    }

    pub(crate) fn ufid(&self) -> u128 {
        u128::from(self.ufid[1]) << 64 | u128::from(self.ufid[0])
    }

    /// The packets that the installed rule spares the workers, of so many that match it.
    pub(crate) fn worth(&self, packets: u64) -> u32 {
        worth(packets, self.marks)
    }

    /// Whether the installed rule only marks packets, which workers then process.
    pub(crate) fn marks(&self) -> bool {
        self.marks
    }

    /// Whether the flow is polled each time.
    pub(crate) fn is_active(&self) -> bool {
        self.ticket != 0
    }

    /// Whether a rule of the flow is in the device.
    pub(crate) fn is_offloaded(&self) -> bool {
        matches!(self.state, State::Installed | State::Replacing)
    }

    /// Records a newly installed rule, which has counted nothing.
    pub(crate) fn replace_rule(&mut self, rule: NicRule, priority: u8) {
        self.rule = rule;
        self.priority = priority;
        self.packets = 0;
        self.bytes = 0;
        self.polls = 0;
    }

    /// Adds the rule's counters to the flow's statistics, new packets as seen at `used`. Returns the numbers of new packets and
    /// bytes. Packets that the rule only marks are counted by the workers.
    pub(crate) fn add_count(&mut self, count: FlowCount, used: Cycles) -> (u64, u64) {
        let (packets, bytes) = (count.packets.unwrap_or(0), count.bytes.unwrap_or(0));
        let new = (packets.saturating_sub(self.packets), bytes.saturating_sub(self.bytes));
        (self.packets, self.bytes) = (packets, bytes);
        if new.0 != 0 && !self.marks {
            self.handle.add(new.0, new.1, used);
        }
        new
    }
}

/// The number of packets that a rule spares the workers, of so many that match it. A marked packet costs a worker three quarters of
/// one that hits the first tier of the flow cache.
pub(crate) fn worth(packets: u64, marks: bool) -> u32 {
    u32::try_from(if marks { packets / 4 } else { packets }).unwrap_or(u32::MAX)
}

/// All flows of a table.
#[derive(Default)]
pub(crate) struct Flows {
    flows: Slab<Flow>,
    /// The places of the flows, by the lower half of the ufid, which is a hash.
    by_ufid: HashTable<u32>,
    /// Number of flows whose rule only marks.
    marking: usize,
}

impl Flows {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Number of flows whose rule only marks.
    pub(crate) fn marking(&self) -> usize {
        self.marking
    }

    /// Records whether the installed rule only marks.
    pub(crate) fn set_marks(&mut self, at: u32, marks: bool) {
        let flow = &mut self.flows[at as usize];
        self.marking = self.marking + usize::from(marks) - usize::from(flow.marks);
        flow.marks = marks;
    }

    /// An upper bound of all places.
    pub(crate) fn places(&self) -> u32 {
        self.flows.capacity() as u32
    }

    pub(crate) fn find(&self, ufid: u128) -> Option<u32> {
        let found = self.by_ufid.find(ufid as u64, |at| self.flows[*at as usize].ufid() == ufid);
        found.copied()
    }

    pub(crate) fn find_by_half(&self, half: u64) -> Option<u32> {
        self.by_ufid.find(half, |at| self.flows[*at as usize].ufid[0] == half).copied()
    }

    pub(crate) fn get(&self, at: u32) -> Option<&Flow> {
        self.flows.get(at as usize)
    }

    pub(crate) fn insert(&mut self, flow: Flow) -> u32 {
        let hash = flow.ufid[0];
        let at = self.flows.insert(flow) as u32;
        self.by_ufid.insert_unique(hash, at, |at| self.flows[*at as usize].ufid[0]);
        at
    }

    pub(crate) fn remove(&mut self, at: u32) -> Flow {
        self.set_marks(at, false);
        let flow = self.flows.remove(at as usize);
        if let Ok(found) = self.by_ufid.find_entry(flow.ufid[0], |other| *other == at) {
            found.remove();
        }
        flow
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Flow)> {
        self.flows.iter().map(|(at, flow)| (at as u32, flow))
    }
}

impl Index<u32> for Flows {
    type Output = Flow;

    fn index(&self, at: u32) -> &Flow {
        &self.flows[at as usize]
    }
}

impl IndexMut<u32> for Flows {
    fn index_mut(&mut self, at: u32) -> &mut Flow {
        &mut self.flows[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow's place, its part of the index (a byte and four for each of up to 2.3 buckets), its handle with malloc's overhead, and
    /// the queue's slot of its rule.
    #[test]
    fn a_flow_takes_less_than_two_hundred_bytes() {
        const INDEX: usize = 12;
        const SHARE: usize = (size_of::<OffloadHandle>() + 16 + 8).next_multiple_of(16);
        const QUEUE: usize = 16;
        assert_eq!(size_of::<Flow>(), 72);
        assert!(size_of::<Flow>() + INDEX + SHARE + QUEUE < 200);
    }

    #[test]
    fn flows_are_found_by_ufid() {
        let mut flows = Flows::default();
        let flow = |ufid| Flow::inserting(ufid, Arc::default(), NicRule::Single(0), 1, Cycles(0));
        // One half of the ufid is the same.
        let places: Vec<u32> = (0..10u128).map(|n| flows.insert(flow(n << 64 | 7))).collect();
        assert_eq!(flows.remove(places[3]).ufid(), 3 << 64 | 7);
        for (n, place) in (0..10u128).zip(places) {
            assert_eq!(flows.find(n << 64 | 7), (n != 3).then_some(place));
        }
        assert_eq!((flows.find(8), flows.len()), (None, 9));
    }
}
