//! The table over a device that can be full, refuse, hold rules, and be reset.

use crate::nic::NicPort;
use crate::offloader::Config;
use crate::table::{COMPLETION_TIMEOUT, Table};
use crate::{IDLE, Rule, Totals};
use clock::Cycles;
use datapath::{Offer, OffloadHandle, OffloadState};
use flow::text::{FlowMatch, parse_actions};
use flow::{Megaflow, PortNo, Stats};
use parking_lot::{Mutex, MutexGuard};
use rte_rule::{
    Clause, Completion, DeviceInfo, FlowAction, FlowAttr, FlowCount, FlowDevice, FlowError, FlowEvent, FlowEvents,
    FlowItem, FlowQueue, FlowRule, Operation, RuleId,
};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A rule with its priority and its counters.
struct Installed {
    rule: Rule,
    priority: u32,
    count: FlowCount,
}

#[derive(Default)]
struct State {
    room: usize,
    rules: HashMap<u64, Installed>,
    next: u64,
    /// Largest number of rules at a time.
    most: usize,
    refuses: bool,
    /// Whether refusals come with the completion alone.
    refuses_late: bool,
    /// Whether removals are refused.
    holds: bool,
    /// Whether rules of before a reset are reported as of a device that is gone, or as lost.
    says_gone: bool,
    /// Whether there is a flow queue.
    queued: bool,
    /// Whether completions do not come.
    mute: bool,
    /// Operations without a completion.
    pending: VecDeque<(u64, Operation)>,
    /// Rules whose insertion is pending.
    inserting: HashMap<u64, Installed>,
    aged: Vec<u64>,
    /// Number of queries.
    queries: usize,
}

#[derive(Clone)]
struct Handle(Arc<Mutex<State>>);

impl Handle {
    fn new(room: usize, queued: bool) -> Handle {
        Handle(Arc::new(Mutex::new(State { room, queued, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Counts packets to this station, if their flow has a rule.
    fn packets(&self, station: usize, packets: u64) {
        let action = FlowAction::RepresentedPort(12);
        let mac = mac(station);
        let mut state = self.state();
        let hit = state.rules.values_mut().find(|Installed { rule, .. }| {
            (rule.actions.contains(&action) || marks(rule))
                && rule.pattern.iter().any(|item| matches!(item, FlowItem::Eth(eth) if eth.spec.dst == mac))
        });
        if let Some(Installed { count, .. }) = hit {
            let add = |counted: &mut Option<u64>, more| *counted = Some(counted.unwrap_or(0) + more);
            add(&mut count.packets, packets);
            add(&mut count.bytes, packets * 100);
        }
    }

    fn reset(&self) {
        self.state().rules.clear();
    }

    fn rules(&self) -> usize {
        self.state().rules.len()
    }
}

impl State {
    fn install(&mut self, id: u64, rule: Installed) {
        self.rules.insert(id, rule);
        self.most = self.most.max(self.rules.len());
    }

    /// Admits a rule, which is returned with its name, or refuses it.
    fn admit(
        &mut self,
        attr: &FlowAttr,
        pattern: &[FlowItem],
        actions: &[FlowAction],
    ) -> Result<(u64, Installed), FlowError> {
        let device = "fake".to_owned();
        if self.refuses {
            return Err(refusal());
        }
        if self.rules.len() + self.inserting.len() >= self.room {
            return Err(FlowError::Full { device, said: String::new() });
        }
        let is_same = |other: &Installed| other.rule.pattern == pattern && other.priority == attr.priority;
        if self.rules.values().any(is_same) {
            return Err(FlowError::Exists { device, said: String::new() });
        }
        self.next += 1;
        let actions = actions.iter().filter(|action| !matches!(action, FlowAction::Age { .. })).cloned().collect();
        let rule = Rule { pattern: pattern.to_vec(), actions, direction: attr.direction };
        let count = FlowCount { packets: Some(0), bytes: Some(0) };
        Ok((self.next, Installed { rule, priority: attr.priority, count }))
    }

    fn query(&mut self, rule: u64) -> Result<FlowCount, FlowError> {
        self.queries += 1;
        self.rules.get(&rule).map(|installed| installed.count).ok_or_else(|| self.lost())
    }

    /// Whether a rule may be removed.
    fn check_removal(&self, rule: u64) -> Result<(), FlowError> {
        if !self.rules.contains_key(&rule) && !self.inserting.contains_key(&rule) {
            return Err(self.lost());
        }
        if self.holds {
            let (device, said) = ("fake".to_owned(), "busy".to_owned());
            return Err(FlowError::Failed { device, clause: Clause::Rule, said });
        }
        Ok(())
    }

    fn lost(&self) -> FlowError {
        match self.says_gone {
            true => FlowError::Gone { device: "fake".to_owned() },
            false => FlowError::Lost { device: "fake".to_owned(), said: String::new() },
        }
    }
}

fn refusal() -> FlowError {
    FlowError::Unsupported { device: "fake".to_owned(), clause: Clause::Item(1), said: "no such item".to_owned() }
}

/// A port of the device.
struct Device {
    handle: Handle,
    info: DeviceInfo,
}

impl FlowDevice for Device {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn validate(&self, _: &FlowAttr, _: &[FlowItem], _: &[FlowAction]) -> Result<(), FlowError> {
        let state = self.handle.state();
        if state.refuses || state.refuses_late { Err(refusal()) } else { Ok(()) }
    }

    fn create(
        &self,
        attr: &FlowAttr,
        pattern: &[FlowItem],
        actions: &[FlowAction],
    ) -> Result<Box<dyn FlowRule>, FlowError> {
        let mut state = self.handle.state();
        if state.refuses_late {
            return Err(refusal());
        }
        let (id, rule) = state.admit(attr, pattern, actions)?;
        state.install(id, rule);
        Ok(Box::new(SingleRule { handle: self.handle.clone(), id }))
    }

    fn queue(&self) -> Option<Box<dyn FlowQueue>> {
        let is_there = self.handle.state().queued && self.info.is_transfer_proxy();
        is_there.then(|| Box::new(self.handle.clone()) as _)
    }

    fn aged(&self, contexts: &mut Vec<u64>) -> Result<(), FlowError> {
        contexts.append(&mut self.handle.state().aged);
        Ok(())
    }

    fn listen(&self, _: Box<dyn Fn(FlowEvent) + Send + Sync>) -> Result<FlowEvents, FlowError> {
        Ok(Box::new(()))
    }
}

struct SingleRule {
    handle: Handle,
    id: u64,
}

impl std::fmt::Debug for SingleRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SingleRule({})", self.id)
    }
}

impl FlowRule for SingleRule {
    fn query(&self) -> Result<FlowCount, FlowError> {
        self.handle.state().query(self.id)
    }

    fn remove(&mut self) -> Result<(), FlowError> {
        let mut state = self.handle.state();
        state.check_removal(self.id)?;
        state.rules.remove(&self.id);
        Ok(())
    }

    fn abandon(self: Box<Self>) {}
}

fn rule_id(id: u64) -> RuleId {
    RuleId { index: id as u32, generation: 0 }
}

impl FlowQueue for Handle {
    fn create(&mut self, attr: &FlowAttr, pattern: &[FlowItem], actions: &[FlowAction]) -> Result<RuleId, FlowError> {
        let mut state = self.state();
        let (id, rule) = state.admit(attr, pattern, actions)?;
        state.inserting.insert(id, rule);
        state.pending.push_back((id, Operation::Create));
        Ok(rule_id(id))
    }

    fn destroy(&mut self, rule: RuleId) -> Result<(), FlowError> {
        let mut state = self.state();
        state.check_removal(rule.index.into())?;
        state.pending.push_back((rule.index.into(), Operation::Destroy));
        Ok(())
    }

    fn query(&self, rule: RuleId) -> Result<FlowCount, FlowError> {
        self.state().query(rule.index.into())
    }

    fn pending(&self) -> u32 {
        self.state().pending.len() as u32
    }

    fn push(&mut self) -> Result<(), FlowError> {
        Ok(())
    }

    fn pull(&mut self, completions: &mut Vec<Completion>) -> Result<(), FlowError> {
        let mut state = self.state();
        if state.mute {
            return Ok(());
        }
        for (rule, operation) in std::mem::take(&mut state.pending) {
            let done = operation == Operation::Destroy || !state.refuses_late;
            match (operation, state.inserting.remove(&rule)) {
                (Operation::Create, Some(installed)) if done => state.install(rule, installed),
                (Operation::Destroy, _) => _ = state.rules.remove(&rule),
                (Operation::Create, _) => {}
            }
            completions.push(Completion { rule: rule_id(rule), operation, done });
        }
        Ok(())
    }

    fn give_up(&mut self, _: RuleId) {}

    fn abandon(&mut self, _: RuleId) {}
}

fn marks(rule: &Rule) -> bool {
    rule.actions.iter().any(|action| matches!(action, FlowAction::Mark(_)))
}

fn mac(station: usize) -> [u8; 6] {
    [2, 0, 0, 0, (station >> 8) as u8, station as u8]
}

fn table(device: &Handle) -> Table {
    table_with(device, Config::default())
}

fn table_with(device: &Handle, config: Config) -> Table {
    let mut table = Table::new(config);
    for number in 1..=3 {
        let info = DeviceInfo {
            name: "fake".to_owned(),
            port_id: number as u16 + 10,
            switch_domain: Some(1),
            transfer_proxy: 13,
            rx_queues: 2,
        };
        let port = Device { handle: device.clone(), info };
        table.add_port(number, NicPort { device: Arc::new(port), _events: None }, 1);
    }
    table
}

impl Table {
    /// Offers flows, and handles the completions.
    fn offer_and_poll(&mut self, offers: impl IntoIterator<Item = Offer>, now: Cycles) {
        self.offer(offers.into_iter().map(Box::new).collect(), now);
        self.polls(now);
    }

    fn withdraw_and_poll(&mut self, ufid: u128, now: Cycles) {
        self.withdraw(ufid, now);
        self.polls(now);
    }

    fn polls(&mut self, now: Cycles) {
        (0..8).for_each(|_| self.poll(now));
    }
}

fn offer(station: usize, output: &str, packets: u64, handle: &Arc<OffloadHandle>) -> Offer {
    offer_from(1, station, output, packets, handle)
}

fn offer_from(port: PortNo, station: usize, output: &str, packets: u64, handle: &Arc<OffloadHandle>) -> Offer {
    let text = mac(station).map(|byte| format!("{byte:02x}")).join(":");
    let FlowMatch { key, mask } = format!("in_port({port}),eth(dst={text}),eth_type(0x88b5)").parse().unwrap();
    let flow = Megaflow { ufid: station as u128 + 1, ..Megaflow::new(key, mask, parse_actions(output).unwrap()) };
    Offer { flow, packets, handle: handle.clone() }
}

/// Runs a test on a device without a flow queue, and on one with.
fn both(test: impl Fn(bool)) {
    [false, true].into_iter().for_each(test);
}

fn seen(handle: &OffloadHandle) -> (u64, u64) {
    let Stats { packets, bytes, .. } = handle.stats();
    (packets, bytes)
}

#[test]
fn packets_counted_by_the_device_are_counted_once() {
    both(|queued| {
        let device = Handle::new(10, queued);
        let (mut table, handle) = (table(&device), Arc::default());
        table.offer_and_poll([offer(1, "2", 100, &handle)], Cycles(1));
        assert!(handle.is_offloaded());
        device.packets(1, 5);
        table.poll_counters(Cycles(2));
        table.poll_counters(Cycles(3));
        assert_eq!((seen(&handle), handle.stats().used), ((5, 500), Cycles(2)));
        // What came since the last look is not lost when the rule goes.
        device.packets(1, 2);
        table.withdraw_and_poll(2, Cycles(4));
        assert_eq!((seen(&handle), handle.is_offloaded(), device.state().rules.len()), ((7, 700), false, 0));
        assert_eq!((table.totals().packets, table.totals().insertions), (7, 1));
    });
}

#[test]
fn the_busiest_flows_stay_in_a_table_ten_times_too_small() {
    both(|queued| {
        const FLOWS: usize = 200;
        let device = Handle::new(FLOWS / 10, queued);
        let mut table = table(&device);
        let handles: Vec<Arc<OffloadHandle>> = (0..FLOWS).map(|_| Arc::default()).collect();
        // Zipf, of which the busiest come last.
        let packets = |station: usize| 100_000 / (FLOWS - station) as u64;
        let mut software = 0;
        for round in 0..30 {
            let offers = (0..FLOWS).filter(|n| !handles[*n].is_offloaded());
            table.offer_and_poll(offers.map(|n| offer(n, "2", packets(n), &handles[n])), Cycles(round));
            software = 0;
            for (n, handle) in handles.iter().enumerate() {
                device.packets(n, packets(n));
                software += if handle.is_offloaded() { 0 } else { packets(n) };
            }
            table.poll_counters(Cycles(round));
        }
        let best: u64 = (0..FLOWS * 9 / 10).map(packets).sum();
        assert!(software <= best + best / 10, "{software} packets in software, where {best} would do");
        assert_eq!(table.totals().flows, FLOWS as u64 / 10);
        assert!(table.totals().evictions < FLOWS as u64, "{} evictions", table.totals().evictions);
    });
}

#[test]
fn a_changed_flow_is_never_without_a_rule() {
    both(|queued| {
        let device = Handle::new(2, queued);
        let (mut table, handle) = (table(&device), Arc::default());
        for (round, output) in ["2", "3", "2", "drop"].into_iter().enumerate() {
            table.offer_and_poll([offer(1, output, 0, &handle)], Cycles(round as u64));
            assert!(handle.is_offloaded());
            assert_eq!(device.state().rules.len(), 1);
        }
        // The new one was there before the old one went.
        assert_eq!(device.state().most, 2);
        let state = device.state();
        assert!(state.rules.values().all(|installed| installed.rule.actions.ends_with(&[FlowAction::Drop])));
    });
}

#[test]
fn a_changed_flow_without_room_for_both_rules_goes_to_the_workers() {
    both(|queued| {
        let device = Handle::new(1, queued);
        let (mut table, handle) = (table(&device), Arc::default());
        table.offer_and_poll([offer(1, "2", 9, &handle)], Cycles(1));
        table.offer_and_poll([offer(1, "3", 0, &handle)], Cycles(2));
        assert!(!handle.is_offloaded() && device.state().rules.is_empty());
    });
}

#[test]
fn a_reset_device_is_filled_again() {
    both(|queued| both(|says_gone| reset_and_fill(queued, says_gone)));
}

fn reset_and_fill(queued: bool, says_gone: bool) {
    let device = Handle::new(10, queued);
    device.state().says_gone = says_gone;
    let (mut table, handle) = (table(&device), Arc::default());
    table.offer_and_poll([offer(1, "2", 100, &handle)], Cycles(1));
    device.packets(1, 5);
    table.poll_counters(Cycles(2));
    device.reset();
    table.poll_counters(Cycles(3));
    assert_eq!((handle.is_offloaded(), handle.refused(), table.totals().lost), (false, None, 1));
    table.offer_and_poll([offer(1, "2", 100, &handle)], Cycles(4));
    device.packets(1, 3);
    table.poll_counters(Cycles(5));
    assert_eq!((handle.is_offloaded(), seen(&handle)), (true, (8, 800)));
}

#[test]
fn a_flow_to_another_device_is_marked_and_counted_by_the_workers() {
    both(|queued| {
        let device = Handle::new(10, queued);
        let (mut table, handle) = (table(&device), Arc::<OffloadHandle>::default());
        table.offer_and_poll([offer(1, "9", 100, &handle)], Cycles(1));
        assert_eq!(handle.state(), OffloadState::Partial);
        assert_eq!(handle.refused().unwrap(), "port 9 is not in this device's switch domain");
        let rules: Vec<_> = device.state().rules.values().map(|installed| installed.rule.clone()).collect();
        let mark = FlowAction::Mark(handle.mark().unwrap());
        assert_eq!(rules[0].actions, [FlowAction::Count, mark, FlowAction::Rss(vec![0, 1])]);
        device.packets(1, 50);
        table.poll_counters(Cycles(2));
        let Totals { flows, partial, packets, ref refused, .. } = table.totals();
        assert_eq!((flows, partial, packets, seen(&handle)), (0, 1, 0, (0, 0)));
        assert_eq!(refused, &HashMap::from([("port", 1)]));
        // Elsewhere is still not of the device: the rule stays.
        table.offer_and_poll([offer(1, "8", 0, &handle)], Cycles(3));
        assert_eq!(
            (handle.state(), &*handle.refused().unwrap()),
            (OffloadState::Partial, "port 8 is not in this device's switch domain")
        );
        assert_eq!(device.state().next, 1);
        // It becomes one that the device does, and back.
        table.offer_and_poll([offer(1, "2", 0, &handle)], Cycles(4));
        assert_eq!((handle.state(), handle.refused(), device.rules()), (OffloadState::Full, None, 1));
        device.packets(1, 7);
        table.poll_counters(Cycles(5));
        assert_eq!((table.totals().partial, table.totals().packets, seen(&handle)), (0, 7, (7, 700)));
        table.offer_and_poll([offer(1, "9", 0, &handle)], Cycles(6));
        assert_eq!((handle.state(), device.rules(), table.totals().partial), (OffloadState::Partial, 1, 1));
        device.reset();
        table.poll_counters(Cycles(7));
        assert_eq!((handle.state(), handle.refused(), table.totals().partial), (OffloadState::No, None, 0));
        table.offer_and_poll([offer(1, "9", 100, &handle)], Cycles(8));
        table.withdraw_and_poll(2, Cycles(9));
        assert_eq!((handle.state(), device.rules(), table.is_empty()), (OffloadState::No, 0, true));
    });
}

#[test]
fn marked_flows_are_evicted_first() {
    both(|queued| {
        let device = Handle::new(1, queued);
        let mut table = table(&device);
        let handles: [Arc<OffloadHandle>; 2] = Default::default();
        table.offer_and_poll([offer(0, "2", 50, &handles[0])], Cycles(1));
        for turn in 2..6 {
            device.packets(0, 50);
            table.poll_counters(Cycles(turn));
        }
        // Three times the packets, but a mark does not spare as much.
        table.offer_and_poll([offer(1, "9", 150, &handles[1])], Cycles(6));
        assert_eq!(handles.each_ref().map(|handle| handle.state()), [OffloadState::Full, OffloadState::No]);
        assert_eq!(handles[1].refused(), None, "it is offered again");
        table.offer_and_poll([offer(1, "9", 500, &handles[1])], Cycles(7));
        assert_eq!(handles.each_ref().map(|handle| handle.state()), [OffloadState::No, OffloadState::Partial]);
        for turn in 8..14 {
            device.packets(1, 500);
            table.poll_counters(Cycles(turn));
        }
        table.offer_and_poll([offer(0, "2", 300, &handles[0])], Cycles(14));
        assert_eq!(handles.each_ref().map(|handle| handle.state()), [OffloadState::Full, OffloadState::No]);
    });
}

#[test]
fn a_refused_rule_names_the_refused_clause() {
    both(|queued| {
        let device = Handle::new(10, queued);
        let (mut table, handle) = (table(&device), Arc::default());
        device.state().refuses = true;
        table.offer_and_poll([offer(1, "2", 100, &handle)], Cycles(1));
        assert_eq!(handle.refused().unwrap(), "fake: item 1 is not supported: no such item");
        let elsewhere = Arc::default();
        table.offer_and_poll([offer(2, "9", 100, &elsewhere)], Cycles(1));
        let both = "port 9 is not in this device's switch domain; to mark its packets: fake: item 1 is not supported: no such item";
        assert_eq!(elsewhere.refused().unwrap(), both);
        assert_eq!(table.totals().refused, HashMap::from([("device", 1), ("port", 1)]));
    });
}

#[test]
fn a_refused_removal_is_repeated() {
    both(|queued| {
        let device = Handle::new(10, queued);
        let (mut table, handle) = (table(&device), Arc::default());
        table.offer_and_poll([offer(1, "2", 100, &handle)], Cycles(1));
        device.state().holds = true;
        table.withdraw_and_poll(2, Cycles(2));
        assert_eq!((handle.is_offloaded(), table.totals().leaving), (false, 1));
        device.state().holds = false;
        table.poll_counters(Cycles(3));
        table.polls(Cycles(3));
        assert_eq!((device.state().rules.len(), table.totals().leaving), (0, 0));
    });
}

fn cycles(time: Duration) -> Cycles {
    Cycles::from(time)
}

const TICK: Duration = Duration::from_millis(200);

#[test]
fn an_operation_without_completion_times_out() {
    let device = Handle::new(10, true);
    let (mut table, handle) = (table(&device), Arc::default());
    device.state().mute = true;
    let start = Cycles::now();
    table.offer_and_poll([offer(1, "2", 100, &handle)], start);
    assert!(!handle.is_offloaded() && table.is_busy());
    let late = Cycles::now() + cycles(COMPLETION_TIMEOUT + TICK);
    table.polls(late);
    assert_eq!(handle.refused().unwrap(), "no completion from the device in 1 s");
    // The rule may be there all the same, so it is taken out.
    assert_eq!(device.state().pending, [(1, Operation::Create), (1, Operation::Destroy)]);
    device.state().mute = false;
    table.polls(late);
    assert_eq!((handle.is_offloaded(), device.rules(), table.is_busy(), table.is_empty()), (false, 0, false, true));
    let totals = table.totals();
    assert_eq!((totals.lost_completions, totals.flows, totals.refused["completion"]), (1, 0, 1));
    // No credit is lost by it.
    assert!(table.ports.values().all(|port| port.rules() == 0));
}

#[test]
fn a_rule_refused_by_completion_names_the_refused_clause() {
    let device = Handle::new(10, true);
    let (mut table, handle) = (table(&device), Arc::default());
    device.state().refuses_late = true;
    table.offer_and_poll([offer(1, "2", 100, &handle)], Cycles(1));
    assert_eq!(
        (handle.is_offloaded(), &*handle.refused().unwrap()),
        (false, "fake: item 1 is not supported: no such item")
    );
    assert!(table.is_empty() && table.ports.values().all(|port| port.rules() == 0));
}

#[test]
fn flows_change_and_go_while_their_insertion_is_pending() {
    let device = Handle::new(10, true);
    let (mut table, handle) = (table(&device), Arc::default());
    // It goes.
    table.offer(vec![Box::new(offer(1, "2", 100, &handle))], Cycles(1));
    table.withdraw(2, Cycles(1));
    table.polls(Cycles(1));
    assert_eq!((handle.is_offloaded(), device.rules(), table.is_empty()), (false, 0, true));
    // It changes: the last word counts.
    table.offer(vec![Box::new(offer(1, "2", 100, &handle))], Cycles(2));
    table.offer(vec![Box::new(offer(1, "3", 0, &handle))], Cycles(2));
    table.offer(vec![Box::new(offer(1, "drop", 0, &handle))], Cycles(2));
    table.polls(Cycles(2));
    assert_eq!((handle.is_offloaded(), device.rules()), (true, 1));
    assert!(device.state().rules.values().all(|installed| installed.rule.actions.ends_with(&[FlowAction::Drop])));
}

#[test]
fn idle_flows_go_back_to_the_workers() {
    both(|queued| {
        let device = Handle::new(10, queued);
        let (mut table, handles) = (table(&device), [(); 2].map(|()| Arc::<OffloadHandle>::default()));
        let start = Cycles::now();
        table.offer_and_poll((0..2).map(|n| offer(n, "2", 100, &handles[n])), start);
        let later = start + cycles(IDLE + IDLE);
        device.packets(1, 7);
        // The device says which has aged; what it has counted before counts, and came before it aged.
        device.state().aged = vec![2, 99];
        table.handle_event(1, FlowEvent::Aged, later);
        table.polls(later);
        assert_eq!(handles.each_ref().map(|handle| handle.is_offloaded()), [true, false]);
        assert_eq!((seen(&handles[1]), handles[1].stats().used), ((7, 700), later - cycles(IDLE)));
        // The other is found without the device's help.
        table.poll_counters(later);
        table.poll_counters(later);
        table.polls(later);
        assert_eq!((handles[0].is_offloaded(), device.rules(), table.totals().aged), (false, 0, 2));
    });
}

#[test]
fn a_poll_costs_no_more_for_idle_flows() {
    let queries_of_a_look = |idle: usize| {
        let device = Handle::new(100_000, false);
        let mut table = table(&device);
        let handles: Vec<Arc<OffloadHandle>> = (0..idle + 50).map(|_| Arc::default()).collect();
        table.offer_and_poll(handles.iter().enumerate().map(|(n, handle)| offer(n, "2", 100, handle)), Cycles(1));
        let mut queries = 0;
        for round in 2..6 {
            (0..50).for_each(|station| device.packets(station, 1));
            let before = device.state().queries;
            table.poll_counters(Cycles(round));
            queries = device.state().queries - before;
            assert!(handles[..50].iter().all(|handle| seen(handle).0 == round - 1));
        }
        queries
    };
    assert_eq!(queries_of_a_look(0), 50);
    for idle in [2_000, 4_000, 8_000] {
        let queries = queries_of_a_look(idle);
        assert!(queries <= 50 + 1024, "{queries} for {idle} idle flows");
    }
}

#[test]
fn a_poll_of_all_counters_reads_every_counter() {
    let device = Handle::new(100_000, false);
    let mut table = table(&device);
    let handles: Vec<Arc<OffloadHandle>> = (0..3000).map(|_| Arc::default()).collect();
    table.offer_and_poll(handles.iter().enumerate().map(|(n, handle)| offer(n, "2", 100, handle)), Cycles(1));
    (0..3).for_each(|round| table.poll_counters(Cycles(round)));
    (0..3000).step_by(100).for_each(|station| device.packets(station, 3));
    table.poll_all_counters(Cycles(9));
    assert!(handles.iter().step_by(100).all(|handle| seen(handle).0 == 3));
}

#[test]
fn rules_of_a_port_are_bounded() {
    both(|queued| {
        let device = Handle::new(100, queued);
        let mut table = table_with(&device, Config { rules_of_a_port: 2, ..Config::default() });
        let handles: [Arc<OffloadHandle>; 5] = Default::default();
        table.offer_and_poll((0..3).map(|n| offer(n, "2", 100 - n as u64, &handles[n])), Cycles(1));
        // Another port has its own.
        table.offer_and_poll([offer_from(3, 3, "2", 50, &handles[3])], Cycles(1));
        let placed = |handles: &[Arc<OffloadHandle>; 5]| handles.each_ref().map(|handle| handle.is_offloaded());
        assert_eq!(placed(&handles), [true, true, false, true, false]);
        // One that sees more takes the place of one of the same port.
        (0..8).for_each(|round| table.poll_counters(Cycles(round)));
        table.offer_and_poll([offer(4, "2", 1000, &handles[4])], Cycles(9));
        let now = placed(&handles);
        assert_eq!((now[0] ^ now[1], now[3], now[4], table.totals().evictions), (true, true, true, 1));
        // A change needs no credit of its own.
        table.offer_and_poll([offer(4, "3", 0, &handles[4])], Cycles(9));
        assert!(handles[4].is_offloaded() && device.rules() == 3);
        (0..5).for_each(|ufid| table.withdraw_and_poll(ufid + 1, Cycles(10)));
        assert!(table.ports.values().all(|port| port.rules() == 0) && device.rules() == 0);
    });
}

#[test]
fn waiting_offers_are_bounded() {
    let device = Handle::new(100, true);
    let mut table = table_with(&device, Config { waiting: 3, ..Config::default() });
    let handles: [Arc<OffloadHandle>; 10] = Default::default();
    let all = |output| (0..10).map(|n| Box::new(offer(n, output, 1, &handles[n]))).collect();
    table.offer(all("2"), Cycles(1));
    // Each waits for the rule that is on its way.
    table.offer(all("3"), Cycles(1));
    assert_eq!(table.totals().dropped, 7);
    // The latest word on one that waits takes the place of the one before.
    table.offer(vec![Box::new(offer(0, "2", 1, &handles[0]))], Cycles(1));
    assert_eq!(table.totals().dropped, 7);
    table.polls(Cycles(1));
    assert_eq!((table.totals().flows, device.rules()), (3, 3));
}

#[test]
fn a_reported_reset_loses_all_flows_at_once() {
    both(|queued| {
        let device = Handle::new(100, queued);
        let (mut table, handles) = (table(&device), [(); 20].map(|()| Arc::<OffloadHandle>::default()));
        let fill = |table: &mut Table, now| {
            let missing = (0..20).filter(|n| !handles[*n].is_offloaded());
            table.offer_and_poll(missing.map(|n| offer(n, "2", 100, &handles[n])), now);
        };
        fill(&mut table, Cycles(1));
        (0..20).for_each(|station| device.packets(station, 5));
        table.poll_counters(Cycles(2));
        device.reset();
        table.handle_event(1, FlowEvent::Reset, Cycles(3));
        assert!(table.has_lost && handles.iter().all(|handle| !handle.is_offloaded()));
        assert_eq!((table.totals().lost, table.totals().flows), (20, 0));
        fill(&mut table, Cycles(4));
        (0..20).for_each(|station| device.packets(station, 3));
        table.poll_counters(Cycles(5));
        assert!(handles.iter().all(|handle| handle.is_offloaded() && seen(handle) == (8, 800)));
    });
}

#[test]
fn one_lost_rule_reveals_a_reset() {
    let device = Handle::new(10_000, false);
    let mut table = table(&device);
    let handles: Vec<Arc<OffloadHandle>> = (0..5000).map(|_| Arc::default()).collect();
    table.offer_and_poll(handles.iter().enumerate().map(|(n, handle)| offer(n, "2", 100, handle)), Cycles(1));
    (0..3).for_each(|round| table.poll_counters(Cycles(round)));
    device.reset();
    table.poll_counters(Cycles(4));
    assert_eq!((table.totals().lost, table.totals().flows), (5000, 0));
}

#[test]
fn nothing_of_a_removed_port_is_held() {
    both(|queued| {
        let device = Handle::new(10, queued);
        let (mut table, handles) = (table(&device), [(); 2].map(|()| Arc::<OffloadHandle>::default()));
        table.offer_and_poll([offer(0, "2", 9, &handles[0]), offer_from(2, 1, "1", 9, &handles[1])], Cycles(1));
        let remove = |table: &mut Table, port| {
            while !table.remove_port(port, Cycles(2)) {
                table.poll(Cycles(2));
            }
            table.detach(port);
        };
        remove(&mut table, 1);
        assert_eq!(handles.each_ref().map(|handle| handle.is_offloaded()), [false, true]);
        // Port 3 is in charge of the rules of all.
        remove(&mut table, 3);
        assert_eq!((handles[1].is_offloaded(), device.rules()), (false, 0));
        remove(&mut table, 2);
        assert!(table.is_empty() && table.devices.is_empty());
    });
}

#[test]
fn a_port_is_removed_without_completions() {
    let device = Handle::new(10, true);
    let (mut table, handles) = (table(&device), [(); 2].map(|()| Arc::<OffloadHandle>::default()));
    table.offer_and_poll([offer(0, "2", 9, &handles[0])], Cycles(1));
    device.state().mute = true;
    table.offer_and_poll([offer(1, "2", 9, &handles[1])], Cycles(1));
    assert!(!table.remove_port(1, Cycles(2)));
    table.detach(1);
    assert!(handles.iter().all(|handle| !handle.is_offloaded()) && !table.is_busy() && table.is_empty());
}
