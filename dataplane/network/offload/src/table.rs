//! The flows that are offloaded: which to insert, which to evict for them, and the operations that are pending.

use crate::flows::{Flow, Flows, State, worth};
use crate::nic::{Nic, NicPort, NicRule, Progress};
use crate::offloader::Config;
use crate::{Refusal, Rule, Totals};
use clock::Cycles;
use datapath::{Offer, OffloadState};
use flow::PortNo;
use hashbrown::HashMap;
use rte_rule::{Completion, FlowError, Operation};
use std::collections::VecDeque;
use std::time::Duration;

/// Number of polls before a flow may be evicted for another.
pub(crate) const SETTLED_POLLS: u8 = 2;
/// Longest wait for a completion.
pub(crate) const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two searches for operations that have timed out.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);

/// The offloaded flows of all devices.
pub(crate) struct Table {
    pub(crate) config: Config,
    /// The devices by their switch domain: rules lead between ports of one domain.
    pub(crate) devices: HashMap<u16, DeviceRules>,
    pub(crate) ports: HashMap<PortNo, PortState>,
    pub(crate) flows: Flows,
    /// Flows that moved when they were polled last: place and ticket.
    pub(crate) active: VecDeque<(u32, u32)>,
    pub(crate) last_ticket: u32,
    /// The place of the inactive flow that was polled last.
    pub(crate) poll_cursor: u32,
    /// Offers that wait for room or for a pending operation, by ufid.
    waiting: HashMap<u128, Waiting>,
    completions: Vec<Completion>,
    next_expiry: Cycles,
    /// Whether flows were lost since the flag was cleared.
    pub(crate) has_lost: bool,
    pub(crate) totals: Totals,
}

/// A device with its pending operations.
#[derive(Default)]
pub(crate) struct DeviceRules {
    pub(crate) nic: Nic,
    inserting: HashMap<NicRule, PendingInsert>,
    destroying: HashMap<NicRule, PendingDestroy>,
    /// Rules whose removal the device refused so far, with the ports of their flows.
    pending_destroy: Vec<(NicRule, PortNo)>,
}

/// A port that rules may lead from and to.
pub(crate) struct PortState {
    /// Switch domain of the port's device.
    pub(crate) domain: u16,
    /// The device's number for the port.
    number: u16,
    /// Number of rules for flows from the port, pending insertions included.
    rules: u32,
}

#[cfg(test)]
impl PortState {
    pub(crate) fn rules(&self) -> u32 {
        self.rules
    }
}

/// An insertion without a completion.
struct PendingInsert {
    offer: Box<Offer>,
    /// The place of the flow.
    at: u32,
    port: PortNo,
    priority: u8,
    /// The reason why the rule only marks packets, where it does.
    partial: Option<Refusal>,
    since: Cycles,
}

/// A removal without a completion.
struct PendingDestroy {
    port: PortNo,
    since: Cycles,
}

/// An offer that cannot be placed yet.
struct Waiting {
    offer: Box<Offer>,
    /// The rule whose removal has to complete first.
    after: Option<(u16, NicRule)>,
}

/// A flow that may be evicted.
#[derive(Clone, Copy)]
struct Victim {
    ufid: u128,
    rate: u32,
}

/// Flows that may be evicted, by device and, where a port has no credit left, by port. The last one is evicted first.
type Victims = HashMap<(u16, Option<PortNo>), Vec<Victim>>;

impl Table {
    pub(crate) fn new(config: Config) -> Table {
        Table {
            config,
            devices: HashMap::new(),
            ports: HashMap::new(),
            flows: Flows::default(),
            active: VecDeque::new(),
            last_ticket: 0,
            poll_cursor: 0,
            waiting: HashMap::new(),
            completions: Vec::new(),
            next_expiry: Cycles::default(),
            has_lost: false,
            totals: Totals::default(),
        }
    }

    /// Whether nothing is offloaded, so that there are no counters to poll.
    pub(crate) fn is_empty(&self) -> bool {
        let no_rule = |of: &DeviceRules| of.destroying.is_empty() && of.pending_destroy.is_empty();
        self.flows.len() == 0 && self.waiting.is_empty() && self.devices.values().all(no_rule)
    }

    /// Whether operations are pending.
    pub(crate) fn is_busy(&self) -> bool {
        self.devices.values().any(|of| !of.inserting.is_empty() || !of.destroying.is_empty())
    }

    /// The totals until now.
    pub(crate) fn totals(&self) -> Totals {
        let inserting = self.devices.values().flat_map(|of| of.inserting.values());
        let inserting = inserting.filter(|insert| !self.flows[insert.at].is_offloaded()).count();
        let leaving: usize = self.devices.values().map(|of| of.pending_destroy.len()).sum();
        let partial = self.flows.marking();
        let flows = self.flows.len().saturating_sub(inserting + partial) as u64;
        Totals { flows, partial: partial as u64, leaving: leaving as u64, ..self.totals.clone() }
    }

    /// Adds a port that rules may lead from and to, with its switch domain.
    pub(crate) fn add_port(&mut self, number: PortNo, port: NicPort, domain: u16) {
        let port_id = port.device.info().port_id;
        self.devices.entry(domain).or_default().nic.attach(number, port);
        self.ports.insert(number, PortState { domain, number: port_id, rules: 0 });
    }

    /// Removes the rules of flows from a port. Returns whether the device has removed them; if not, [`poll`](Self::poll) may help.
    pub(crate) fn remove_port(&mut self, number: PortNo, now: Cycles) -> bool {
        let Some(domain) = self.ports.get(&number).map(|port| port.domain) else { return true };
        let is_proxy = self.devices.get(&domain).is_some_and(|of| of.nic.is_transfer_proxy(number));
        let of_domain = |port| self.ports.get(&port).is_some_and(|port| port.domain == domain);
        let concerned = |port: PortNo| port == number || is_proxy && of_domain(port);
        let gone: Vec<u128> =
            self.flows.iter().filter(|(_, flow)| concerned(flow.port)).map(|(_, flow)| flow.ufid()).collect();
        for ufid in gone {
            self.withdraw(ufid, now);
        }
        self.retry_destroy(domain, now);
        let Some(of) = self.devices.get(&domain) else { return true };
        let is_busy = of.inserting.values().any(|insert| is_proxy || insert.port == number)
            || of.destroying.values().any(|destroy| is_proxy || destroy.port == number);
        !is_busy
    }

    /// Forgets a port, with the pending operations on its rules.
    pub(crate) fn detach(&mut self, number: PortNo) {
        let Some(port) = self.ports.remove(&number) else { return };
        let Some(of) = self.devices.get_mut(&port.domain) else { return };
        let is_proxy = of.nic.is_transfer_proxy(number);
        let concerned = |port: PortNo| is_proxy || port == number;
        for (rule, _) in of.destroying.extract_if(|_, destroy| concerned(destroy.port)) {
            of.nic.abandon(rule);
        }
        for (rule, _) in of.pending_destroy.extract_if(.., |(_, port)| concerned(*port)) {
            of.nic.abandon(rule);
        }
        for (rule, insert) in of.inserting.extract_if(|_, insert| concerned(insert.port)) {
            of.nic.abandon(rule);
            self.flows.remove(insert.at).handle.set_state(OffloadState::No);
        }
        of.nic.detach(number);
        if !self.ports.values().any(|other| other.domain == port.domain) {
            self.devices.remove(&port.domain);
        }
    }

    /// Places offered flows as far as there is room, those with most packets first.
    #[expect(clippy::vec_box, reason = "they are sorted, and wait, as they came")]
    pub(crate) fn offer(&mut self, mut offers: Vec<Box<Offer>>, now: Cycles) {
        offers.sort_by_key(|offer| std::cmp::Reverse(offer.packets));
        let mut victims = Victims::new();
        for offer in offers {
            self.place_offer(offer, now, &mut victims);
        }
    }

    fn place_offer(&mut self, offer: Box<Offer>, now: Cycles, victims: &mut Victims) {
        let known = self.flows.find(offer.flow.ufid);
        if known.is_some_and(|at| self.flows[at].state != State::Installed) {
            return self.defer_offer(offer, None, now);
        }
        match self.project_whole(&offer) {
            Ok((port, rule)) => self.insert_rule(offer, port, &rule, None, now, victims),
            Err(reason) => self.place_marking(offer, reason, now, victims),
        }
    }

    /// Places a flow that the device does not take as a whole, for this reason, by a rule that marks its packets.
    fn place_marking(&mut self, offer: Box<Offer>, reason: Refusal, now: Cycles, victims: &mut Victims) {
        let known = self.flows.find(offer.flow.ufid);
        if known.is_some_and(|at| self.flows[at].marks()) {
            return offer.handle.refuse(reason.to_string());
        }
        match self.project_marking(&offer) {
            Some((port, rule)) => self.insert_rule(offer, port, &rule, Some(reason), now, victims),
            None => self.refuse_offer(&offer, &reason, now),
        }
    }

    /// Inserts a rule for a flow. `partial` is the reason why the rule only marks packets, where it does.
    fn insert_rule(
        &mut self,
        offer: Box<Offer>,
        port: PortNo,
        rule: &Rule,
        partial: Option<Refusal>,
        now: Cycles,
        victims: &mut Victims,
    ) {
        let flow = &offer.flow;
        let known = self.flows.find(flow.ufid);
        let worth = worth(offer.packets, partial.is_some());
        // The installed rule works on until the new one is installed as well.
        let priority = known.map_or(0, |at| 1 - self.flows[at].priority);
        loop {
            let Some(PortState { domain, rules, .. }) = self.ports.get_mut(&port) else { return };
            let domain = *domain;
            let has_credit = known.is_some() || *rules < self.config.rules_of_a_port;
            let Some(of) = self.devices.get_mut(&domain) else { return };
            let since = Cycles::now();
            let inserted = has_credit.then(|| of.nic.insert(port, rule, priority.into(), flow.ufid as u64));
            match inserted {
                Some(Ok((inserted, progress))) => {
                    *rules += 1;
                    let at = self.track_insert(&offer, known, inserted, port, now);
                    let insert = PendingInsert { offer, at, port, priority, partial, since };
                    match (progress, self.devices.get_mut(&domain)) {
                        (Progress::Pending, Some(of)) => _ = of.inserting.insert(inserted, insert),
                        _ => self.complete_insert(domain, inserted, insert, now),
                    }
                    return;
                }
                None | Some(Err(FlowError::Full { .. })) => {
                    self.totals.full += 1;
                    let of_port = (!has_credit).then_some(port);
                    match self.make_room((domain, of_port), worth, now, victims) {
                        Room::Made => {}
                        Room::After(rule) => return self.defer_offer(offer, Some((domain, rule)), now),
                        // A rule that is installed does not do what the flow does now.
                        Room::None => return self.withdraw(flow.ufid, now),
                    }
                }
                Some(Err(FlowError::Gone { .. })) => return self.lose_device(domain, now),
                Some(Err(FlowError::Busy { .. })) => return self.defer_offer(offer, None, now),
                // The removal of the rule of before may be pending.
                Some(Err(FlowError::Exists { .. })) if !of.destroying.is_empty() => {
                    return self.defer_offer(offer, None, now);
                }
                Some(Err(error)) => return self.handle_refusal(offer, error, partial, now, victims),
            }
        }
    }

    /// Handles the refusal of a rule. `partial` is the reason why the rule only marks packets, where it does.
    fn handle_refusal(
        &mut self,
        offer: Box<Offer>,
        error: FlowError,
        partial: Option<Refusal>,
        now: Cycles,
        victims: &mut Victims,
    ) {
        let marking = error.to_string();
        match partial {
            None => self.place_marking(offer, Refusal::Device(marking), now, victims),
            Some(Refusal::Device(whole)) if whole == marking => self.refuse_offer(&offer, &Refusal::Device(whole), now),
            Some(whole) => self.refuse_offer(&offer, &Refusal::Both { whole: Box::new(whole), marking }, now),
        }
    }

    /// The rule for a flow as a whole, and the port that its packets come from.
    fn project_whole(&self, offer: &Offer) -> Result<(PortNo, Rule), Refusal> {
        let flow = &offer.flow;
        let in_port = flow.key.get(flow::field::IN_PORT) as PortNo;
        let domain = self.ports.get(&in_port).ok_or(Refusal::Port(in_port))?.domain;
        let of_device = |number| self.ports.get(&number).filter(|port| port.domain == domain).map(|port| port.number);
        Rule::of(&flow.key, &flow.mask, &flow.actions, of_device).map(|rule| (in_port, rule))
    }

    /// The rule that marks the flow's packets, where there is one, and the port that they come from.
    fn project_marking(&self, offer: &Offer) -> Option<(PortNo, Rule)> {
        let flow = &offer.flow;
        let in_port = flow.key.get(flow::field::IN_PORT) as PortNo;
        let queues = self.devices.get(&self.ports.get(&in_port)?.domain)?.nic.rx_queues(in_port);
        let rule = Rule::marking(&flow.key, &flow.mask, offer.handle.mark()?, queues).ok()?;
        Some((in_port, rule))
    }

    /// Records that an insertion is pending. Returns the place of the flow.
    fn track_insert(&mut self, offer: &Offer, known: Option<u32>, rule: NicRule, port: PortNo, now: Cycles) -> u32 {
        match known {
            Some(at) => {
                self.flows[at].state = State::Replacing;
                at
            }
            None => self.flows.insert(Flow::inserting(offer.flow.ufid, offer.handle.clone(), rule, port, now)),
        }
    }

    /// Records that a rule is installed.
    fn complete_insert(&mut self, domain: u16, rule: NicRule, insert: PendingInsert, now: Cycles) {
        let PendingInsert { offer, at, port, priority, partial, since } = insert;
        self.totals.insertions += 1;
        self.totals.insertion_cycles += Cycles::now().since(since).0;
        if self.flows[at].state == State::Unwanted {
            self.flows.remove(at);
            return self.remove_rule(domain, rule, port, now);
        }
        let replaced = (self.flows[at].state == State::Replacing).then(|| self.flows[at].rule);
        if replaced.is_some() {
            self.read_last_counters(domain, at, now);
        }
        self.flows.set_marks(at, partial.is_some());
        let flow = &mut self.flows[at];
        flow.replace_rule(rule, priority);
        flow.state = State::Installed;
        flow.moved = now.into();
        if replaced.is_none() {
            flow.rate = flow.worth(offer.packets);
        }
        match partial {
            None => flow.handle.set_state(OffloadState::Full),
            Some(reason) => {
                *self.totals.refused.entry(reason.kind()).or_default() += 1;
                flow.handle.refuse(reason.to_string());
                flow.handle.set_state(OffloadState::Partial);
            }
        }
        self.activate(at);
        if let Some(replaced) = replaced {
            self.remove_rule(domain, replaced, port, now);
        }
    }

    /// Records that an insertion failed.
    fn fail_insert(&mut self, domain: u16, insert: PendingInsert, reason: Result<FlowError, Refusal>, now: Cycles) {
        let PendingInsert { offer, at, port, partial, .. } = insert;
        let mut victims = Victims::new();
        self.return_credit(port);
        let was = self.flows[at].state;
        match was {
            State::Replacing => self.flows[at].state = State::Installed,
            State::Inserting | State::Installed | State::Unwanted => _ = self.flows.remove(at),
        }
        match reason {
            _ if was == State::Unwanted => {}
            Ok(FlowError::Full { .. }) => {
                self.totals.full += 1;
                match self.make_room((domain, None), worth(offer.packets, partial.is_some()), now, &mut victims) {
                    Room::Made => self.defer_offer(offer, None, now),
                    Room::After(rule) => self.defer_offer(offer, Some((domain, rule)), now),
                    Room::None => self.withdraw(offer.flow.ufid, now),
                }
            }
            Ok(error) => self.handle_refusal(offer, error, partial, now, &mut victims),
            Err(reason) => self.refuse_offer(&offer, &reason, now),
        }
    }

    fn refuse_offer(&mut self, offer: &Offer, reason: &Refusal, now: Cycles) {
        *self.totals.refused.entry(reason.kind()).or_default() += 1;
        self.withdraw(offer.flow.ufid, now);
        offer.handle.refuse(reason.to_string());
    }

    /// Keeps an offer for later. If too many wait already, the offer is dropped and the flow withdrawn, since the installed rule does
    /// not do what the flow does now.
    fn defer_offer(&mut self, offer: Box<Offer>, after: Option<(u16, NicRule)>, now: Cycles) {
        let ufid = offer.flow.ufid;
        if self.waiting.len() >= self.config.waiting && !self.waiting.contains_key(&ufid) {
            self.totals.dropped += 1;
            return self.withdraw(ufid, now);
        }
        self.waiting.insert(ufid, Waiting { offer, after });
    }

    /// Evicts a flow with much fewer packets, of the device and, where given, of the port.
    fn make_room(&mut self, of: (u16, Option<PortNo>), worth: u32, now: Cycles, victims: &mut Victims) -> Room {
        let victims = victims.entry(of).or_insert_with(|| self.find_victims(of));
        loop {
            let Some(victim) = victims.pop_if(|victim| u64::from(worth) > 2 * u64::from(victim.rate)) else {
                return Room::None;
            };
            let Some(at) = self.flows.find(victim.ufid).filter(|at| self.flows[*at].state == State::Installed) else {
                continue;
            };
            self.totals.evictions += 1;
            let rule = self.flows[at].rule;
            self.withdraw(victim.ufid, now);
            let is_pending = self.devices.get(&of.0).is_some_and(|of| of.destroying.contains_key(&rule));
            return if is_pending { Room::After(rule) } else { Room::Made };
        }
    }

    /// The flows with fewest packets, as many as may be evicted at a time.
    fn find_victims(&self, (domain, of_port): (u16, Option<PortNo>)) -> Vec<Victim> {
        const MOST: usize = 1024;
        let of_domain = |port: PortNo| self.ports.get(&port).is_some_and(|port| port.domain == domain);
        let concerned = |flow: &Flow| of_port.map_or_else(|| of_domain(flow.port), |port| flow.port == port);
        let settled = |flow: &Flow| flow.state == State::Installed && flow.polls >= SETTLED_POLLS;
        let flows = self.flows.iter().map(|(_, flow)| flow).filter(|flow| settled(flow) && concerned(flow));
        let mut victims: Vec<_> = flows.map(|flow| Victim { ufid: flow.ufid(), rate: flow.rate }).collect();
        if victims.len() > MOST {
            victims.select_nth_unstable_by_key(MOST, |victim| victim.rate);
            victims.truncate(MOST);
        }
        victims.sort_by_key(|victim| std::cmp::Reverse(victim.rate));
        victims
    }

    /// Gives a flow back to the workers.
    pub(crate) fn withdraw(&mut self, ufid: u128, now: Cycles) {
        self.waiting.remove(&ufid);
        if let Some(at) = self.flows.find(ufid) {
            self.remove_flow(at, now);
        }
    }

    /// Removes the rule of a flow. Packets that its counters have not shown before were seen at `used`.
    pub(crate) fn remove_flow(&mut self, at: u32, used: Cycles) {
        let flow = &mut self.flows[at];
        flow.handle.set_state(OffloadState::No);
        let (port, rule, state) = (flow.port, flow.rule, flow.state);
        let Some(domain) = self.ports.get(&port).map(|port| port.domain) else { return };
        if matches!(state, State::Installed | State::Replacing) {
            self.read_last_counters(domain, at, used);
            self.remove_rule(domain, rule, port, Cycles::now());
        }
        match state {
            State::Installed => _ = self.flows.remove(at),
            State::Inserting | State::Replacing | State::Unwanted => self.flows[at].state = State::Unwanted,
        }
    }

    fn read_last_counters(&mut self, domain: u16, at: u32, used: Cycles) {
        let flow = &mut self.flows[at];
        if let Some(Ok(count)) = self.devices.get(&domain).map(|of| of.nic.query(flow.rule)) {
            let new = flow.add_count(count, used);
            if !flow.marks() {
                self.totals.add(new);
            }
        }
    }

    fn remove_rule(&mut self, domain: u16, rule: NicRule, port: PortNo, now: Cycles) {
        let Some(of) = self.devices.get_mut(&domain) else { return };
        match of.nic.remove(rule) {
            Ok(Progress::Done) => self.return_credit(port),
            Ok(Progress::Pending) => _ = of.destroying.insert(rule, PendingDestroy { port, since: now }),
            Err(FlowError::Gone { .. } | FlowError::Lost { .. }) => {
                of.nic.abandon(rule);
                self.totals.lost += 1;
                self.return_credit(port);
            }
            Err(_) => of.pending_destroy.push((rule, port)),
        }
    }

    /// Gives a port the credit of a rule back.
    pub(crate) fn return_credit(&mut self, port: PortNo) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.rules = port.rules.saturating_sub(1);
        }
    }

    /// Hands enqueued operations to the devices and handles their completions.
    pub(crate) fn poll(&mut self, now: Cycles) {
        let domains: Vec<u16> = self.devices.keys().copied().collect();
        for &domain in &domains {
            let mut completions = std::mem::take(&mut self.completions);
            if let Some(of) = self.devices.get_mut(&domain) {
                of.nic.poll(&mut completions);
            }
            let has_room = !completions.is_empty();
            for completion in completions.drain(..) {
                self.handle_completion(domain, completion, now);
            }
            self.completions = completions;
            if has_room {
                self.retry_destroy(domain, now);
                self.retry_waiting(now);
            }
        }
        if now >= self.next_expiry {
            self.next_expiry = now + EXPIRY_INTERVAL.into();
            for domain in domains {
                self.expire_operations(domain, now);
            }
        }
    }

    fn handle_completion(&mut self, domain: u16, completion: Completion, now: Cycles) {
        let Completion { rule, operation, done } = completion;
        let rule = NicRule::Queued(rule);
        let Some(of) = self.devices.get_mut(&domain) else { return };
        match operation {
            Operation::Create => match of.inserting.remove(&rule) {
                Some(insert) if done => self.complete_insert(domain, rule, insert, now),
                Some(insert) => {
                    let reason = self.explain_failure(domain, &insert);
                    self.fail_insert(domain, insert, reason, now);
                }
                None => {}
            },
            Operation::Destroy => match of.destroying.remove(&rule) {
                Some(PendingDestroy { port, .. }) if done => self.return_credit(port),
                Some(PendingDestroy { port, .. }) => of.pending_destroy.push((rule, port)),
                None => {}
            },
        }
    }

    /// The reason why the device did not take a rule.
    fn explain_failure(&self, domain: u16, insert: &PendingInsert) -> Result<FlowError, Refusal> {
        let (port, rule) = match &insert.partial {
            None => self.project_whole(&insert.offer)?,
            Some(reason) => self.project_marking(&insert.offer).ok_or_else(|| reason.clone())?,
        };
        let of = self.devices.get(&domain).ok_or(Refusal::Port(port))?;
        Ok(of.nic.explain(port, &rule, insert.priority.into()))
    }

    /// Ends operations that have timed out. A rule whose insertion timed out may be in the device, and is removed; one whose removal
    /// timed out is taken for removed.
    fn expire_operations(&mut self, domain: u16, now: Cycles) {
        let Some(of) = self.devices.get_mut(&domain) else { return };
        let has_expired = |since: Cycles| now.since(since) > COMPLETION_TIMEOUT.into();
        let inserts: Vec<_> = of.inserting.extract_if(|_, insert| has_expired(insert.since)).collect();
        let destroys: Vec<_> = of.destroying.extract_if(|_, destroy| has_expired(destroy.since)).collect();
        self.totals.lost_completions += (inserts.len() + destroys.len()) as u64;
        for (rule, _) in &destroys {
            of.nic.abandon(*rule);
        }
        for (_, PendingDestroy { port, .. }) in destroys {
            self.return_credit(port);
        }
        for (rule, insert) in inserts {
            // The removal returns a credit, and so does the failed insertion.
            if let Some(port) = self.ports.get_mut(&insert.port) {
                port.rules += 1;
            }
            self.remove_rule(domain, rule, insert.port, now);
            self.fail_insert(domain, insert, Err(Refusal::Completion(COMPLETION_TIMEOUT)), now);
        }
    }

    /// Removes the rules whose removal the device refused before.
    pub(crate) fn retry_destroy(&mut self, domain: u16, now: Cycles) {
        let Some(of) = self.devices.get_mut(&domain) else { return };
        for (rule, port) in std::mem::take(&mut of.pending_destroy) {
            self.remove_rule(domain, rule, port, now);
        }
    }

    /// Places the offers that wait for no removal any more.
    pub(crate) fn retry_waiting(&mut self, now: Cycles) {
        let is_pending = |(domain, rule): &(u16, NicRule)| {
            self.devices.get(domain).is_some_and(|of| of.destroying.contains_key(rule))
        };
        let ready = self.waiting.extract_if(|_, waiting| !waiting.after.as_ref().is_some_and(is_pending));
        let ready = ready.map(|(_, waiting)| waiting.offer).collect();
        self.offer(ready, now);
    }
}

/// The outcome of an eviction.
enum Room {
    /// There is room now.
    Made,
    /// There is room once the removal of this rule completes.
    After(NicRule),
    /// No flow has much fewer packets.
    None,
}
