//! The table before a device that can be full, refuse, hold on, and be reset.

use crate::Rule;
use crate::table::{PlacedRule, RulePort, Table};
use clock::Cycles;
use dpdk::Errno;
use dpdk::flow::{Clause, FlowAction, FlowCount, FlowError};
use flow::text::{FlowMatch, parse_actions};
use flow::{Megaflow, Stats};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use switch::{HardwareShare, Offer};

#[derive(Default)]
struct State {
    room: usize,
    rules: HashMap<u64, (Rule, u32, FlowCount)>,
    next: u64,
    /// Rules that were there at a time, at most.
    most: usize,
    refuses: bool,
    holds: bool,
    /// Rules of before a reset are of an earlier one.
    generation: u64,
    /// What is said of those: that the device is gone, or that there are no such rules.
    says_gone: bool,
}

#[derive(Clone)]
struct Device(Arc<Mutex<State>>);

impl Device {
    fn new(room: usize) -> Device {
        Device(Arc::new(Mutex::new(State { room, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Packets come that match the rule of the flow to this station, if it is there.
    fn packets(&self, station: usize, packets: u64) {
        let action = FlowAction::RepresentedPort(12);
        let mac = mac(station);
        let mut state = self.state();
        let hit = state.rules.values_mut().find(|(rule, ..)| {
            rule.actions.contains(&action)
                && rule.pattern.iter().any(|item| matches!(item, dpdk::flow::FlowItem::Eth(eth) if eth.spec.dst == mac))
        });
        if let Some((_, _, count)) = hit {
            let add = |counted: &mut Option<u64>, more| *counted = Some(counted.unwrap_or(0) + more);
            add(&mut count.packets, packets);
            add(&mut count.bytes, packets * 100);
        }
    }

    fn reset(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.generation += 1;
    }
}

struct Port(Device, u16);

struct Placed(Device, u64, u64);

impl RulePort for Port {
    type Placed = Placed;

    fn number(&self) -> u16 {
        self.1
    }

    fn place(&self, rule: &Rule, priority: u32) -> Result<Placed, FlowError> {
        let mut state = self.0.state();
        let device = "fake".to_owned();
        if state.refuses {
            return Err(FlowError::Unsupported { device, clause: Clause::Item(1), said: "no such item".to_owned() });
        }
        if state.rules.len() >= state.room {
            return Err(FlowError::Full { device, said: String::new() });
        }
        if state.rules.values().any(|(other, at, _)| other.pattern == rule.pattern && *at == priority) {
            return Err(FlowError::Exists { device, said: String::new() });
        }
        state.next += 1;
        let id = state.next;
        state.rules.insert(id, (rule.clone(), priority, FlowCount { packets: Some(0), bytes: Some(0) }));
        state.most = state.most.max(state.rules.len());
        Ok(Placed(self.0.clone(), id, state.generation))
    }
}

impl Placed {
    fn check(&self) -> Result<MutexGuard<'_, State>, FlowError> {
        let state = self.0.state();
        match state.generation == self.2 {
            true => Ok(state),
            false if state.says_gone => Err(FlowError::Gone { device: "fake".to_owned() }),
            false => Err(FlowError::Lost { device: "fake".to_owned(), said: String::new() }),
        }
    }
}

impl PlacedRule for Placed {
    fn count(&self) -> Result<FlowCount, FlowError> {
        Ok(self.check()?.rules[&self.1].2)
    }

    fn remove(&mut self) -> Result<(), FlowError> {
        let mut state = self.check()?;
        if state.holds {
            let (device, said) = ("fake".to_owned(), "busy".to_owned());
            return Err(FlowError::Failed { device, clause: Clause::Rule, errno: Errno(libc::EBUSY), said });
        }
        state.rules.remove(&self.1);
        Ok(())
    }

    fn abandon(self) {}
}

fn mac(station: usize) -> [u8; 6] {
    [2, 0, 0, 0, (station >> 8) as u8, station as u8]
}

fn table(device: &Device) -> Table<Port> {
    let mut table = Table::default();
    (1..=3).for_each(|n| table.add_port(n, Port(device.clone(), n as u16 + 10), 1));
    table
}

fn offer(station: usize, output: &str, packets: u64, share: &Arc<HardwareShare>) -> Offer {
    let text = mac(station).map(|byte| format!("{byte:02x}")).join(":");
    let FlowMatch { key, mask } = format!("in_port(1),eth(dst={text}),eth_type(0x88b5)").parse().unwrap();
    let flow = Megaflow { ufid: station as u128 + 1, ..Megaflow::new(key, mask, parse_actions(output).unwrap()) };
    Offer { flow, packets, share: share.clone() }
}

fn seen(share: &HardwareShare) -> (u64, u64) {
    let Stats { packets, bytes, .. } = share.stats();
    (packets, bytes)
}

#[test]
fn what_the_device_counts_is_counted_once() {
    let device = Device::new(10);
    let (mut table, share) = (table(&device), Arc::default());
    table.offer(vec![offer(1, "2", 100, &share)], Cycles(1));
    assert!(share.is_placed());
    device.packets(1, 5);
    table.look(Cycles(2));
    table.look(Cycles(3));
    assert_eq!((seen(&share), share.stats().used), ((5, 500), Cycles(2)));
    // What came since the last look is not lost when the rule goes.
    device.packets(1, 2);
    table.withdraw(2, Cycles(4));
    assert_eq!((seen(&share), share.is_placed(), device.state().rules.len()), ((7, 700), false, 0));
    assert_eq!((table.totals().packets, table.totals().insertions), (7, 1));
}

#[test]
fn the_flows_that_see_most_stay_in_a_table_ten_times_too_small() {
    const FLOWS: usize = 200;
    let device = Device::new(FLOWS / 10);
    let mut table = table(&device);
    let shares: Vec<Arc<HardwareShare>> = (0..FLOWS).map(|_| Arc::default()).collect();
    // Zipf, of which the busiest come last.
    let packets = |station: usize| 100_000 / (FLOWS - station) as u64;
    let mut software = 0;
    for round in 0..30 {
        let offers = (0..FLOWS).filter(|n| !shares[*n].is_placed());
        table.offer(offers.map(|n| offer(n, "2", packets(n), &shares[n])).collect(), Cycles(round));
        software = 0;
        for (n, share) in shares.iter().enumerate() {
            device.packets(n, packets(n));
            software += if share.is_placed() { 0 } else { packets(n) };
        }
        table.look(Cycles(round));
    }
    let best: u64 = (0..FLOWS * 9 / 10).map(packets).sum();
    assert!(software <= best + best / 10, "{software} packets in software, where {best} would do");
    assert_eq!(table.totals().flows, FLOWS as u64 / 10);
    assert!(table.totals().evictions < FLOWS as u64, "{} evictions", table.totals().evictions);
}

#[test]
fn a_changed_flow_is_never_without_a_rule() {
    let device = Device::new(2);
    let (mut table, share) = (table(&device), Arc::default());
    for (round, output) in ["2", "3", "2", "drop"].into_iter().enumerate() {
        table.offer(vec![offer(1, output, 0, &share)], Cycles(round as u64));
        assert!(share.is_placed());
        assert_eq!(device.state().rules.len(), 1);
    }
    // The new one was there before the old one went.
    assert_eq!(device.state().most, 2);
    let state = device.state();
    assert!(state.rules.values().all(|(rule, ..)| rule.actions.ends_with(&[FlowAction::Drop])));
}

#[test]
fn a_changed_flow_without_room_for_both_rules_goes_to_the_workers() {
    let device = Device::new(1);
    let (mut table, share) = (table(&device), Arc::default());
    table.offer(vec![offer(1, "2", 9, &share)], Cycles(1));
    table.offer(vec![offer(1, "3", 0, &share)], Cycles(2));
    assert!(!share.is_placed() && device.state().rules.is_empty());
}

#[test]
fn a_reset_device_is_filled_again() {
    [false, true].into_iter().for_each(reset_and_fill);
}

fn reset_and_fill(says_gone: bool) {
    let device = Device::new(10);
    device.state().says_gone = says_gone;
    let (mut table, share) = (table(&device), Arc::default());
    table.offer(vec![offer(1, "2", 100, &share)], Cycles(1));
    device.packets(1, 5);
    table.look(Cycles(2));
    device.reset();
    table.look(Cycles(3));
    assert_eq!((share.is_placed(), share.refused(), table.totals().lost), (false, None, 1));
    table.offer(vec![offer(1, "2", 100, &share)], Cycles(4));
    device.packets(1, 3);
    table.look(Cycles(5));
    assert_eq!((share.is_placed(), seen(&share)), (true, (8, 800)));
}

#[test]
fn what_a_device_refuses_is_told_with_its_clause() {
    let device = Device::new(10);
    let (mut table, share) = (table(&device), Arc::default());
    device.state().refuses = true;
    table.offer(vec![offer(1, "2", 100, &share)], Cycles(1));
    assert_eq!(share.refused().unwrap(), "fake: item 1 is not supported: no such item");
    let elsewhere = Arc::default();
    table.offer(vec![offer(2, "9", 100, &elsewhere)], Cycles(1));
    assert_eq!(elsewhere.refused().unwrap(), "port 9: it is not of the device");
    assert_eq!(table.totals().refused, HashMap::from([("device", 1), ("port", 1)]));
}

#[test]
fn a_rule_that_a_device_holds_on_to_is_taken_out_later() {
    let device = Device::new(10);
    let (mut table, share) = (table(&device), Arc::default());
    table.offer(vec![offer(1, "2", 100, &share)], Cycles(1));
    device.state().holds = true;
    table.withdraw(2, Cycles(2));
    assert_eq!((share.is_placed(), table.totals().leaving), (false, 1));
    device.state().holds = false;
    table.look(Cycles(3));
    assert_eq!((device.state().rules.len(), table.totals().leaving), (0, 0));
}
