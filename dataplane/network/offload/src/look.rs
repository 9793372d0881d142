//! Looks at what the devices have counted: of all flows that move, and of some others.

use crate::IDLE;
use crate::device::Device;
use crate::flows::State;
use crate::table::{SETTLED, Table};
use clock::Cycles;
use dpdk::flow::{FlowError, FlowEvent};

/// Active flows that are looked at, at a time: those first that were not for longest.
const ACTIVE: usize = 1 << 14;
/// Steps of the hand round the others, at a time.
const HAND: u32 = 1024;

/// What a look at one flow has shown.
enum Seen {
    Moved,
    Still,
    /// The device does not know its rule.
    Lost,
    /// Its counters may come with the next look.
    Nothing,
}

impl<D: Device> Table<D> {
    /// A look at those who move, and at a few others.
    pub(crate) fn look(&mut self, now: Cycles) {
        let began = Cycles::now();
        self.look_at(ACTIVE, HAND, now);
        self.totals.looks += 1;
        self.totals.look_cycles += Cycles::now().since(began).0;
    }

    /// A look at everybody, for somebody who asks.
    pub(crate) fn look_at_all(&mut self, now: Cycles) {
        self.look_at(usize::MAX, u32::MAX, now);
    }

    fn look_at(&mut self, active: usize, hand: u32, now: Cycles) {
        let domains: Vec<u16> = self.devices.keys().copied().collect();
        domains.into_iter().for_each(|domain| self.retry_leaving(domain, now));
        self.retry_waiting(now);
        let active = self.active.len().min(active);
        let mut suspects = Vec::new();
        for _ in 0..hand.min(self.flows.places()) {
            self.hand = (self.hand + 1) % self.flows.places();
            let at = self.hand;
            if self.flows.get(at).is_some_and(|flow| flow.is_placed() && !flow.is_active()) {
                match self.count(at, now) {
                    Seen::Moved => self.activate(at),
                    Seen::Still => self.take_back_idle(at, now),
                    Seen::Lost => suspects.extend(self.domain_of(at)),
                    Seen::Nothing => {}
                }
            }
        }
        for _ in 0..active {
            let Some((at, ticket)) = self.active.pop_front() else { break };
            // Another may have its place by now.
            if self.flows.get(at).is_none_or(|flow| flow.ticket != ticket) {
                continue;
            }
            let seen = if self.flows[at].is_placed() { self.count(at, now) } else { Seen::Nothing };
            match seen {
                Seen::Still => self.flows[at].ticket = 0,
                Seen::Moved | Seen::Nothing | Seen::Lost => self.active.push_back((at, ticket)),
            }
            if matches!(seen, Seen::Lost) {
                suspects.extend(self.domain_of(at));
            }
        }
        suspects.sort_unstable();
        suspects.dedup();
        suspects.into_iter().for_each(|domain| self.check(domain, now));
    }

    fn domain_of(&self, at: u32) -> Option<u16> {
        Some(self.ports.get(&self.flows.get(at)?.port)?.domain)
    }

    /// A flow is looked at each time, from now on.
    pub(crate) fn activate(&mut self, at: u32) {
        if !self.flows[at].is_active() {
            self.last_ticket = self.last_ticket.wrapping_add(1).max(1);
            self.flows[at].ticket = self.last_ticket;
            self.active.push_back((at, self.last_ticket));
        }
    }

    fn count(&mut self, at: u32, now: Cycles) -> Seen {
        let Some(of) = self.domain_of(at).and_then(|domain| self.devices.get(&domain)) else { return Seen::Nothing };
        let flow = &mut self.flows[at];
        let count = match of.device.count(flow.rule) {
            Ok(count) => count,
            Err(FlowError::Lost { .. } | FlowError::Gone { .. }) => return Seen::Lost,
            Err(_) => return Seen::Nothing,
        };
        let (packets, bytes) = flow.seen(count, now);
        flow.rate = (u64::from(flow.rate) + u64::from(flow.worth(packets))).div_ceil(2) as u32;
        flow.looks = flow.looks.saturating_add(1).min(SETTLED);
        if !flow.marks() {
            self.totals.add((packets, bytes));
        }
        if packets == 0 {
            return Seen::Still;
        }
        flow.moved = now.into();
        Seen::Moved
    }

    /// A flow that nothing was seen of for long enough goes back to the workers, where it ages.
    fn take_back_idle(&mut self, at: u32, now: Cycles) {
        let flow = &self.flows[at];
        if flow.state == State::There && flow.moved.until(now.into()) > IDLE.into() {
            self.totals.aged += 1;
            self.take_out(at, now);
        }
    }

    /// A device tells of itself.
    pub(crate) fn event(&mut self, domain: u16, event: FlowEvent, now: Cycles) {
        match event {
            FlowEvent::Reset => self.check(domain, now),
            FlowEvent::Aged => {
                let mut names = Vec::new();
                self.devices.get_mut(&domain).into_iter().for_each(|of| of.device.aged(&mut names));
                names.into_iter().for_each(|name| self.aged(name, now));
            }
        }
    }

    /// The device has seen nothing of a flow for [`IDLE`].
    fn aged(&mut self, name: u64, now: Cycles) {
        if let Some(at) = self.flows.find_short(name).filter(|at| self.flows[*at].state == State::There) {
            self.totals.aged += 1;
            self.take_out(at, now - IDLE.into());
        }
    }

    /// A device may have lost rules: it is asked for each.
    fn check(&mut self, domain: u16, now: Cycles) {
        let Some(of) = self.devices.get(&domain) else { return };
        let of_device = |port| self.ports.get(&port).is_some_and(|port| port.domain == domain);
        let placed = self.flows.iter().filter(|(_, flow)| flow.is_placed() && of_device(flow.port));
        let is_lost = |rule| matches!(of.device.count(rule), Err(FlowError::Lost { .. } | FlowError::Gone { .. }));
        let lost: Vec<u32> = placed.filter(|(_, flow)| is_lost(flow.rule)).map(|(at, _)| at).collect();
        lost.into_iter().for_each(|at| self.forget(at, now));
    }

    /// A device is gone, and with it all of its rules.
    pub(crate) fn lose(&mut self, domain: u16, now: Cycles) {
        let of_device = |port| self.ports.get(&port).is_some_and(|port| port.domain == domain);
        let placed = self.flows.iter().filter(|(_, flow)| flow.is_placed() && of_device(flow.port));
        let lost: Vec<u32> = placed.map(|(at, _)| at).collect();
        lost.into_iter().for_each(|at| self.forget(at, now));
    }

    /// A rule is lost. Its flow is offered again.
    fn forget(&mut self, at: u32, now: Cycles) {
        let Some(domain) = self.domain_of(at) else { return };
        let (port, rule) = (self.flows[at].port, self.flows[at].rule);
        self.devices.get_mut(&domain).into_iter().for_each(|of| of.device.abandon(rule));
        self.totals.lost += 1;
        self.has_lost = true;
        self.credit(port);
        let flow = &mut self.flows[at];
        flow.share.lose();
        flow.moved = now.into();
        match flow.state {
            State::Changing => {
                flow.state = State::Coming;
                self.flows.set_marks(at, false);
            }
            _ => drop(self.flows.remove(at)),
        }
    }
}
