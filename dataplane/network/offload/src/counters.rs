//! Polling of the devices' counters: of all flows that move, and of some others.

use crate::IDLE;
use crate::flows::State;
use crate::table::{SETTLED_POLLS, Table};
use clock::Cycles;
use rte_rule::{FlowError, FlowEvent};

/// Largest number of active flows in a poll; those that were polled longest ago come first.
const ACTIVE_PER_POLL: usize = 1 << 14;
/// Number of places that a poll visits for inactive flows.
const RULES_PER_POLL: u32 = 1024;

/// The outcome of reading the counters of one flow.
enum Polled {
    /// There are new packets.
    Moved,
    /// There are no new packets.
    Idle,
    /// The device does not know the rule.
    Lost,
    /// The counters could not be read; the next poll may.
    Unknown,
}

impl Table {
    /// Polls the counters of flows that move, and of a few others.
    pub(crate) fn poll_counters(&mut self, now: Cycles) {
        let began = Cycles::now();
        self.poll_flows(ACTIVE_PER_POLL, RULES_PER_POLL, now);
        self.totals.looks += 1;
        self.totals.look_cycles += Cycles::now().since(began).0;
    }

    /// Polls the counters of every rule at once; used by the RPC.
    pub(crate) fn poll_all_counters(&mut self, now: Cycles) {
        self.poll_flows(usize::MAX, u32::MAX, now);
    }

    fn poll_flows(&mut self, active: usize, places: u32, now: Cycles) {
        let domains: Vec<u16> = self.devices.keys().copied().collect();
        for domain in domains {
            self.retry_destroy(domain, now);
        }
        self.retry_waiting(now);
        let active = self.active.len().min(active);
        let mut suspects = Vec::new();
        for _ in 0..places.min(self.flows.places()) {
            self.poll_cursor = (self.poll_cursor + 1) % self.flows.places();
            let at = self.poll_cursor;
            if self.flows.get(at).is_some_and(|flow| flow.is_offloaded() && !flow.is_active()) {
                match self.read_counters(at, now) {
                    Polled::Moved => self.activate(at),
                    Polled::Idle => self.withdraw_idle(at, now),
                    Polled::Lost => suspects.extend(self.domain_of(at)),
                    Polled::Unknown => {}
                }
            }
        }
        for _ in 0..active {
            let Some((at, ticket)) = self.active.pop_front() else { break };
            // Another flow may have the place by now.
            if self.flows.get(at).is_none_or(|flow| flow.ticket != ticket) {
                continue;
            }
            let polled = if self.flows[at].is_offloaded() { self.read_counters(at, now) } else { Polled::Unknown };
            match polled {
                Polled::Idle => self.flows[at].ticket = 0,
                Polled::Moved | Polled::Unknown | Polled::Lost => self.active.push_back((at, ticket)),
            }
            if matches!(polled, Polled::Lost) {
                suspects.extend(self.domain_of(at));
            }
        }
        suspects.sort_unstable();
        suspects.dedup();
        for domain in suspects {
            self.check_rules(domain, now);
        }
    }

    fn domain_of(&self, at: u32) -> Option<u16> {
        Some(self.ports.get(&self.flows.get(at)?.port)?.domain)
    }

    /// Polls a flow each time from now on.
    pub(crate) fn activate(&mut self, at: u32) {
        if !self.flows[at].is_active() {
            self.last_ticket = self.last_ticket.wrapping_add(1).max(1);
            self.flows[at].ticket = self.last_ticket;
            self.active.push_back((at, self.last_ticket));
        }
    }

    fn read_counters(&mut self, at: u32, now: Cycles) -> Polled {
        let Some(of) = self.domain_of(at).and_then(|domain| self.devices.get(&domain)) else { return Polled::Unknown };
        let flow = &mut self.flows[at];
        let count = match of.nic.query(flow.rule) {
            Ok(count) => count,
            Err(FlowError::Lost { .. } | FlowError::Gone { .. }) => return Polled::Lost,
            Err(_) => return Polled::Unknown,
        };
        let (packets, bytes) = flow.add_count(count, now);
        flow.rate = (u64::from(flow.rate) + u64::from(flow.worth(packets))).div_ceil(2) as u32;
        flow.polls = flow.polls.saturating_add(1).min(SETTLED_POLLS);
        if !flow.marks() {
            self.totals.add((packets, bytes));
        }
        if packets == 0 {
            return Polled::Idle;
        }
        flow.moved = now.into();
        Polled::Moved
    }

    /// Gives a flow without packets for [`IDLE`] back to the workers, where it ages.
    fn withdraw_idle(&mut self, at: u32, now: Cycles) {
        let flow = &self.flows[at];
        if flow.state == State::Installed && flow.moved.until(now.into()) > IDLE.into() {
            self.totals.aged += 1;
            self.remove_flow(at, now);
        }
    }

    /// Handles an event that a device reports.
    pub(crate) fn handle_event(&mut self, domain: u16, event: FlowEvent, now: Cycles) {
        match event {
            FlowEvent::Reset => self.check_rules(domain, now),
            FlowEvent::Aged => {
                let mut names = Vec::new();
                if let Some(of) = self.devices.get(&domain) {
                    of.nic.aged(&mut names);
                }
                for name in names {
                    self.withdraw_aged(name, now);
                }
            }
        }
    }

    /// Gives a flow whose rule has aged back to the workers: its last packet came [`IDLE`] ago.
    fn withdraw_aged(&mut self, name: u64, now: Cycles) {
        if let Some(at) = self.flows.find_by_half(name).filter(|at| self.flows[*at].state == State::Installed) {
            self.totals.aged += 1;
            self.remove_flow(at, now - IDLE.into());
        }
    }

    /// Queries every rule of a device that may have lost some.
    fn check_rules(&mut self, domain: u16, now: Cycles) {
        let Some(of) = self.devices.get(&domain) else { return };
        let of_device = |port| self.ports.get(&port).is_some_and(|port| port.domain == domain);
        let placed = self.flows.iter().filter(|(_, flow)| flow.is_offloaded() && of_device(flow.port));
        let is_lost = |rule| matches!(of.nic.query(rule), Err(FlowError::Lost { .. } | FlowError::Gone { .. }));
        let lost: Vec<u32> = placed.filter(|(_, flow)| is_lost(flow.rule)).map(|(at, _)| at).collect();
        for at in lost {
            self.lose_flow(at, now);
        }
    }

    /// Records that a device is gone, and with it all of its rules.
    pub(crate) fn lose_device(&mut self, domain: u16, now: Cycles) {
        let of_device = |port| self.ports.get(&port).is_some_and(|port| port.domain == domain);
        let placed = self.flows.iter().filter(|(_, flow)| flow.is_offloaded() && of_device(flow.port));
        let lost: Vec<u32> = placed.map(|(at, _)| at).collect();
        for at in lost {
            self.lose_flow(at, now);
        }
    }

    /// Records that the rule of a flow is lost. The switch offers the flow again.
    fn lose_flow(&mut self, at: u32, now: Cycles) {
        let Some(domain) = self.domain_of(at) else { return };
        let (port, rule) = (self.flows[at].port, self.flows[at].rule);
        if let Some(of) = self.devices.get_mut(&domain) {
            of.nic.abandon(rule);
        }
        self.totals.lost += 1;
        self.has_lost = true;
        self.return_credit(port);
        let flow = &mut self.flows[at];
        flow.handle.mark_removed();
        flow.moved = now.into();
        match flow.state {
            State::Replacing => {
                flow.state = State::Inserting;
                self.flows.set_marks(at, false);
            }
            State::Inserting | State::Installed | State::Unwanted => _ = self.flows.remove(at),
        }
    }
}
