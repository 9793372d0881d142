//! The flows that a table keeps: one place each, found by name, small enough for a million.

use clock::Cycles;
use dpdk::flow::FlowCount;
use flow::PortNo;
use hashbrown::HashTable;
use slab::Slab;
use std::ops::{Index, IndexMut};
use std::sync::Arc;
use switch::HardwareShare;

/// How a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its rule is on its way.
    Coming,
    /// Its rule is in the device.
    There,
    /// Its rule is in the device until another one is, which is on its way.
    Changing,
    /// Its rule is on its way, and is not wanted any more.
    Unwanted,
}

/// A flow whose rule is in a device, or on its way.
pub(crate) struct Flow<R> {
    /// The halves of its name.
    name: [u64; 2],
    pub(crate) share: Arc<HardwareShare>,
    /// The device's counters when it was asked last.
    packets: u64,
    bytes: u64,
    /// The rule that is in the device.
    pub(crate) rule: R,
    pub(crate) port: PortNo,
    /// Packets between two looks, of late.
    pub(crate) rate: u32,
    /// When it was seen to move last.
    pub(crate) moved: Moment,
    /// Of the rule.
    pub(crate) priority: u8,
    /// Times that it was looked at, as far as they count.
    pub(crate) looks: u8,
    pub(crate) state: State,
    /// The rule that is in the device only marks packets: they are the workers'.
    marks: bool,
    /// Not 0 if it is among those that are looked at each time.
    pub(crate) ticket: u32,
}

/// A moment, a few milliseconds precise. It comes again after months.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(u32);

impl Moment {
    const SHIFT: u32 = 23;

    /// So long is between two.
    pub(crate) fn until(self, later: Moment) -> Cycles {
        Cycles(u64::from(later.0.wrapping_sub(self.0)) << Self::SHIFT)
    }
}

impl From<Cycles> for Moment {
    fn from(now: Cycles) -> Moment {
        Moment((now.0 >> Self::SHIFT) as u32)
    }
}

impl<R> Flow<R> {
    /// A flow whose rule is on its way.
    pub(crate) fn coming(ufid: u128, share: Arc<HardwareShare>, rule: R, port: PortNo, now: Cycles) -> Flow<R> {
        Flow {
            name: [ufid as u64, (ufid >> 64) as u64],
            share,
            packets: 0,
            bytes: 0,
            rule,
            port,
            rate: 0,
            moved: now.into(),
            priority: 0,
            looks: 0,
            state: State::Coming,
            marks: false,
            ticket: 0,
        }
    }

    pub(crate) fn ufid(&self) -> u128 {
        u128::from(self.name[1]) << 64 | u128::from(self.name[0])
    }

    /// What the rule in the device is worth: the packets that it spares the workers, of so many that it sees.
    pub(crate) fn worth(&self, packets: u64) -> u32 {
        worth(packets, self.marks)
    }

    /// The rule that is in the device only marks packets: they are the workers'.
    pub(crate) fn marks(&self) -> bool {
        self.marks
    }

    /// It is among those that are looked at each time.
    pub(crate) fn is_active(&self) -> bool {
        self.ticket != 0
    }

    /// A rule of it is in the device.
    pub(crate) fn is_placed(&self) -> bool {
        matches!(self.state, State::There | State::Changing)
    }

    /// Another rule is in the device from now on, and has counted nothing.
    pub(crate) fn replace_rule(&mut self, rule: R, priority: u8) {
        (self.rule, self.priority, self.packets, self.bytes, self.looks) = (rule, priority, 0, 0, 0);
    }

    /// Takes note of the device's counters; packets that are new came at `used`. Returns how many packets and bytes are. Those that
    /// it only marks the workers count.
    pub(crate) fn seen(&mut self, count: FlowCount, used: Cycles) -> (u64, u64) {
        let (packets, bytes) = (count.packets.unwrap_or(0), count.bytes.unwrap_or(0));
        let new = (packets.saturating_sub(self.packets), bytes.saturating_sub(self.bytes));
        (self.packets, self.bytes) = (packets, bytes);
        if new.0 != 0 && !self.marks {
            self.share.add(new.0, new.1, used);
        }
        new
    }
}

/// How many packets a rule spares the workers, of so many that it sees. One that is marked costs a worker three quarters of what one
/// costs that the first tier of its cache knows.
pub(crate) fn worth(packets: u64, marks: bool) -> u32 {
    u32::try_from(if marks { packets / 4 } else { packets }).unwrap_or(u32::MAX)
}

/// All flows of a table.
pub(crate) struct Flows<R> {
    flows: Slab<Flow<R>>,
    /// Their places, by name. Names are hashes already.
    by_name: HashTable<u32>,
    /// Those whose rule only marks.
    marking: usize,
}

impl<R> Default for Flows<R> {
    fn default() -> Flows<R> {
        Flows { flows: Slab::new(), by_name: HashTable::new(), marking: 0 }
    }
}

impl<R> Flows<R> {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Those whose rule only marks.
    pub(crate) fn marking(&self) -> usize {
        self.marking
    }

    /// Says whether the rule in the device only marks.
    pub(crate) fn set_marks(&mut self, at: u32, marks: bool) {
        let flow = &mut self.flows[at as usize];
        self.marking = self.marking + usize::from(marks) - usize::from(flow.marks);
        flow.marks = marks;
    }

    /// Every place is below this.
    pub(crate) fn places(&self) -> u32 {
        self.flows.capacity() as u32
    }

    pub(crate) fn find(&self, ufid: u128) -> Option<u32> {
        let found = self.by_name.find(ufid as u64, |at| self.flows[*at as usize].ufid() == ufid);
        found.copied()
    }

    pub(crate) fn find_short(&self, name: u64) -> Option<u32> {
        self.by_name.find(name, |at| self.flows[*at as usize].name[0] == name).copied()
    }

    pub(crate) fn get(&self, at: u32) -> Option<&Flow<R>> {
        self.flows.get(at as usize)
    }

    pub(crate) fn insert(&mut self, flow: Flow<R>) -> u32 {
        let hash = flow.name[0];
        let at = self.flows.insert(flow) as u32;
        self.by_name.insert_unique(hash, at, |at| self.flows[*at as usize].name[0]);
        at
    }

    pub(crate) fn remove(&mut self, at: u32) -> Flow<R> {
        self.set_marks(at, false);
        let flow = self.flows.remove(at as usize);
        if let Ok(found) = self.by_name.find_entry(flow.name[0], |other| *other == at) {
            found.remove();
        }
        flow
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Flow<R>)> {
        self.flows.iter().map(|(at, flow)| (at as u32, flow))
    }
}

impl<R> Index<u32> for Flows<R> {
    type Output = Flow<R>;

    fn index(&self, at: u32) -> &Flow<R> {
        &self.flows[at as usize]
    }
}

impl<R> IndexMut<u32> for Flows<R> {
    fn index_mut(&mut self, at: u32) -> &mut Flow<R> {
        &mut self.flows[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::CardRule;

    /// A flow's own place, a third of one more for its name's index (a byte and four for each of up to 2.3 buckets), its share with
    /// what malloc adds, and what the queue keeps of its rule.
    #[test]
    fn a_flow_takes_less_than_two_hundred_bytes() {
        const INDEX: usize = 12;
        const SHARE: usize = (size_of::<HardwareShare>() + 16 + 8).next_multiple_of(16);
        const QUEUE: usize = 16;
        assert_eq!(size_of::<Flow<CardRule>>(), 72);
        assert!(size_of::<Flow<CardRule>>() + INDEX + SHARE + QUEUE < 200);
    }

    #[test]
    fn flows_are_found_by_their_names() {
        let mut flows = Flows::default();
        let flow = |ufid| Flow::coming(ufid, Arc::default(), 0, 1, Cycles(0));
        // One half of the name is the same.
        let places: Vec<u32> = (0..10u128).map(|n| flows.insert(flow(n << 64 | 7))).collect();
        assert_eq!(flows.remove(places[3]).ufid(), 3 << 64 | 7);
        for (n, place) in (0..10u128).zip(places) {
            assert_eq!(flows.find(n << 64 | 7), (n != 3).then_some(place));
        }
        assert_eq!((flows.find(8), flows.len()), (None, 9));
    }
}
