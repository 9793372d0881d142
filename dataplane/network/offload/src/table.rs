//! Which flows are in the hardware: what comes in, what has to go for it, and what is on its way.

use crate::device::{Completed, Device, Progress};
use crate::flows::{Flow, Flows, State, worth};
use crate::offloader::Config;
use crate::{Refusal, Rule, Totals};
use clock::Cycles;
use dpdk::flow::{FlowError, Operation};
use flow::PortNo;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::time::Duration;
use switch::{Offer, Placed};

/// A flow is not taken out for another before it was looked at so often.
pub(crate) const SETTLED: u8 = 2;
/// A device has so long for what it was asked.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two looks at what takes too long.
const OVERDUE_EVERY: Duration = Duration::from_millis(100);

/// The flows in hardware, of all devices.
pub(crate) struct Table<D: Device> {
    pub(crate) config: Config,
    /// By the number of their switch: rules lead between ports of the same one.
    pub(crate) devices: HashMap<u16, OfDevice<D>>,
    pub(crate) ports: HashMap<PortNo, PortState>,
    pub(crate) flows: Flows<D::Rule>,
    /// Flows that moved when they were looked at last: place and ticket.
    pub(crate) active: VecDeque<(u32, u32)>,
    pub(crate) last_ticket: u32,
    /// The place of the flow that the hand came to last.
    pub(crate) hand: u32,
    /// By the name of the flow.
    waiting: HashMap<u128, Waiting<D::Rule>>,
    completed: Vec<Completed<D::Rule>>,
    next_overdue: Cycles,
    /// Flows were lost since somebody asked.
    pub(crate) has_lost: bool,
    pub(crate) totals: Totals,
}

/// A device with what is on its way.
pub(crate) struct OfDevice<D: Device> {
    pub(crate) device: D,
    coming: HashMap<D::Rule, Coming>,
    going: HashMap<D::Rule, Going>,
    /// Rules that the device did not let go of yet.
    leaving: Vec<(D::Rule, PortNo)>,
}

/// A port that rules may lead from and to.
pub(crate) struct PortState {
    /// The switch of its device.
    pub(crate) domain: u16,
    /// The device's number for it.
    number: u16,
    /// Rules that are there for flows from it, or on their way.
    rules: u32,
}

#[cfg(test)]
impl PortState {
    pub(crate) fn rules(&self) -> u32 {
        self.rules
    }
}

/// A rule that is to come.
struct Coming {
    offer: Box<Offer>,
    /// The place of its flow.
    at: u32,
    port: PortNo,
    priority: u8,
    /// Why it only marks, where it does.
    partial: Option<Refusal>,
    since: Cycles,
}

/// A rule that is to go.
struct Going {
    port: PortNo,
    since: Cycles,
}

/// An offer that cannot be taken now.
struct Waiting<R> {
    offer: Box<Offer>,
    /// The rule that has to go first.
    after: Option<(u16, R)>,
}

/// A flow that may have to go.
#[derive(Clone, Copy)]
struct Victim {
    ufid: u128,
    rate: u32,
}

/// Those who may have to go for others, by device and, where it is about credits, by port: the last is the first to go.
type Victims = HashMap<(u16, Option<PortNo>), Vec<Victim>>;

impl<D: Device> Table<D> {
    pub(crate) fn new(config: Config) -> Table<D> {
        Table {
            config,
            devices: HashMap::new(),
            ports: HashMap::new(),
            flows: Flows::default(),
            active: VecDeque::new(),
            last_ticket: 0,
            hand: 0,
            waiting: HashMap::new(),
            completed: Vec::new(),
            next_overdue: Cycles::default(),
            has_lost: false,
            totals: Totals::default(),
        }
    }

    /// Nothing is in hardware, so there is nothing to look at.
    pub(crate) fn is_empty(&self) -> bool {
        let no_rule = |of: &OfDevice<D>| of.going.is_empty() && of.leaving.is_empty();
        self.flows.len() == 0 && self.waiting.is_empty() && self.devices.values().all(no_rule)
    }

    /// Completions are awaited.
    pub(crate) fn is_busy(&self) -> bool {
        self.devices.values().any(|of| !of.coming.is_empty() || !of.going.is_empty())
    }

    /// What was done so far.
    pub(crate) fn totals(&self) -> Totals {
        let coming = self.devices.values().flat_map(|of| of.coming.values());
        let coming = coming.filter(|coming| !self.flows[coming.at].is_placed()).count();
        let leaving: usize = self.devices.values().map(|of| of.leaving.len()).sum();
        let partial = self.flows.marking();
        let flows = self.flows.len().saturating_sub(coming + partial) as u64;
        Totals { flows, partial: partial as u64, leaving: leaving as u64, ..self.totals.clone() }
    }

    /// A port that rules may lead from and to, with the switch of its device and its number there.
    pub(crate) fn add_port(&mut self, number: PortNo, port: D::Port, domain: u16, device_number: u16) {
        let of = self.devices.entry(domain).or_insert_with(|| OfDevice {
            device: D::default(),
            coming: HashMap::new(),
            going: HashMap::new(),
            leaving: Vec::new(),
        });
        of.device.attach(number, port);
        self.ports.insert(number, PortState { domain, number: device_number, rules: 0 });
    }

    /// A port is gone, and rules from it with it. Returns whether the device has let go of them; if not, turns may help.
    pub(crate) fn remove_port(&mut self, number: PortNo, now: Cycles) -> bool {
        let Some(domain) = self.ports.get(&number).map(|port| port.domain) else { return true };
        let is_in_charge = self.devices.get(&domain).is_some_and(|of| of.device.is_in_charge(number));
        let of_domain = |port| self.ports.get(&port).is_some_and(|port| port.domain == domain);
        let concerned = |port: PortNo| port == number || is_in_charge && of_domain(port);
        let gone: Vec<u128> =
            self.flows.iter().filter(|(_, flow)| concerned(flow.port)).map(|(_, flow)| flow.ufid()).collect();
        gone.into_iter().for_each(|ufid| self.withdraw(ufid, now));
        self.retry_leaving(domain, now);
        let Some(of) = self.devices.get(&domain) else { return true };
        let busy = of.coming.values().any(|coming| is_in_charge || coming.port == number)
            || of.going.values().any(|going| is_in_charge || going.port == number);
        !busy
    }

    /// Nothing of a port is held any more, whatever its device says.
    pub(crate) fn detach(&mut self, number: PortNo) {
        let Some(port) = self.ports.remove(&number) else { return };
        let Some(of) = self.devices.get_mut(&port.domain) else { return };
        let is_in_charge = of.device.is_in_charge(number);
        let concerned = |port: PortNo| is_in_charge || port == number;
        let (going, leaving) = (&mut of.going, &mut of.leaving);
        let rules = going.extract_if(|_, going| concerned(going.port)).map(|(rule, _)| rule);
        let rules: Vec<_> =
            rules.chain(leaving.extract_if(.., |(_, port)| concerned(*port)).map(|(rule, _)| rule)).collect();
        rules.into_iter().for_each(|rule| of.device.abandon(rule));
        let coming: Vec<_> = of.coming.extract_if(|_, coming| concerned(coming.port)).collect();
        for (rule, coming) in coming {
            of.device.abandon(rule);
            self.flows.remove(coming.at).share.set_placed(Placed::No);
        }
        of.device.detach(number);
        if !self.ports.values().any(|other| other.domain == port.domain) {
            self.devices.remove(&port.domain);
        }
    }

    /// Takes in what was offered, as far as there is room: those that see most first.
    #[expect(clippy::vec_box, reason = "they are sorted, and wait, as they came")]
    pub(crate) fn offer(&mut self, mut offers: Vec<Box<Offer>>, now: Cycles) {
        offers.sort_by_key(|offer| std::cmp::Reverse(offer.packets));
        let mut victims = Victims::new();
        offers.into_iter().for_each(|offer| self.take(offer, now, &mut victims));
    }

    fn take(&mut self, offer: Box<Offer>, now: Cycles, victims: &mut Victims) {
        let known = self.flows.find(offer.flow.ufid);
        if known.is_some_and(|at| self.flows[at].state != State::There) {
            return self.wait(offer, None, now);
        }
        match self.project(&offer) {
            Ok((port, rule)) => self.put(offer, port, &rule, None, now, victims),
            Err(why) => self.take_partly(offer, why, now, victims),
        }
    }

    /// Takes a flow that its device does not do as a whole, for this reason: the device marks its packets.
    fn take_partly(&mut self, offer: Box<Offer>, why: Refusal, now: Cycles, victims: &mut Victims) {
        let known = self.flows.find(offer.flow.ufid);
        if known.is_some_and(|at| self.flows[at].marks()) {
            return offer.share.refuse(why.to_string());
        }
        match self.project_partly(&offer) {
            Some((port, rule)) => self.put(offer, port, &rule, Some(why), now, victims),
            None => self.refuse(&offer, &why, now),
        }
    }

    /// Puts a rule for a flow into its device. One that only marks has a reason for that.
    fn put(
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
        // The rule that is there goes on until the new one is there as well.
        let priority = known.map_or(0, |at| 1 - self.flows[at].priority);
        loop {
            let Some(PortState { domain, rules, .. }) = self.ports.get_mut(&port) else { return };
            let (domain, has_credit) = (*domain, known.is_some() || *rules < self.config.rules_of_a_port);
            let Some(of) = self.devices.get_mut(&domain) else { return };
            let since = Cycles::now();
            let placed = has_credit.then(|| of.device.place(port, rule, priority.into(), flow.ufid as u64));
            match placed {
                Some(Ok((placed, progress))) => {
                    *rules += 1;
                    let at = self.enter(&offer, known, placed, port, now);
                    let coming = Coming { offer, at, port, priority, partial, since };
                    if progress == Progress::Asked {
                        drop(self.devices.get_mut(&domain).map(|of| of.coming.insert(placed, coming)));
                    } else {
                        self.arrived(domain, placed, coming, now);
                    }
                    return;
                }
                None | Some(Err(FlowError::Full { .. })) => {
                    self.totals.full += 1;
                    let of_port = (!has_credit).then_some(port);
                    match self.make_room((domain, of_port), worth, now, victims) {
                        Room::Made => {}
                        Room::After(rule) => return self.wait(offer, Some((domain, rule)), now),
                        // What was there does something else by now.
                        Room::None => return self.withdraw(flow.ufid, now),
                    }
                }
                Some(Err(FlowError::Gone { .. })) => return self.lose(domain, now),
                Some(Err(FlowError::Busy { .. })) => return self.wait(offer, None, now),
                // The rule of before may be on its way out.
                Some(Err(FlowError::Exists { .. })) if !of.going.is_empty() => return self.wait(offer, None, now),
                Some(Err(error)) => return self.refused(offer, error, partial, now, victims),
            }
        }
    }

    /// A device refuses a rule for a flow, which only marks for the reason that is given.
    fn refused(
        &mut self,
        offer: Box<Offer>,
        error: FlowError,
        partial: Option<Refusal>,
        now: Cycles,
        victims: &mut Victims,
    ) {
        let marking = error.to_string();
        match partial {
            None => self.take_partly(offer, Refusal::Device(marking), now, victims),
            Some(Refusal::Device(whole)) if whole == marking => self.refuse(&offer, &Refusal::Device(whole), now),
            Some(whole) => self.refuse(&offer, &Refusal::Both { whole: Box::new(whole), marking }, now),
        }
    }

    /// The rule for a flow, and the port that its packets come from.
    fn project(&self, offer: &Offer) -> Result<(PortNo, Rule), Refusal> {
        let flow = &offer.flow;
        let in_port = flow.key.get(flow::field::IN_PORT) as PortNo;
        let domain = self.ports.get(&in_port).ok_or(Refusal::Port(in_port))?.domain;
        let of_device = |number| self.ports.get(&number).filter(|port| port.domain == domain).map(|port| port.number);
        Rule::of(&flow.key, &flow.mask, &flow.actions, of_device).map(|rule| (in_port, rule))
    }

    /// The rule that marks the flow's packets, where there is one, and the port that they come from.
    fn project_partly(&self, offer: &Offer) -> Option<(PortNo, Rule)> {
        let flow = &offer.flow;
        let in_port = flow.key.get(flow::field::IN_PORT) as PortNo;
        let queues = self.devices.get(&self.ports.get(&in_port)?.domain)?.device.queues(in_port);
        let rule = Rule::marking(&flow.key, &flow.mask, offer.share.mark()?, queues).ok()?;
        Some((in_port, rule))
    }

    /// A rule is on its way. Returns the place of its flow.
    fn enter(&mut self, offer: &Offer, known: Option<u32>, rule: D::Rule, port: PortNo, now: Cycles) -> u32 {
        match known {
            Some(at) => {
                self.flows[at].state = State::Changing;
                at
            }
            None => self.flows.insert(Flow::coming(offer.flow.ufid, offer.share.clone(), rule, port, now)),
        }
    }

    /// A rule is in the device.
    fn arrived(&mut self, domain: u16, rule: D::Rule, coming: Coming, now: Cycles) {
        let Coming { offer, at, port, priority, partial, since } = coming;
        self.totals.insertions += 1;
        self.totals.insertion_cycles += Cycles::now().since(since).0;
        if self.flows[at].state == State::Unwanted {
            self.flows.remove(at);
            return self.remove(domain, rule, port, now);
        }
        let is_change = self.flows[at].state == State::Changing;
        let old = is_change.then(|| self.flows[at].rule);
        if is_change {
            self.count_last(domain, at, now);
        }
        self.flows.set_marks(at, partial.is_some());
        let flow = &mut self.flows[at];
        flow.replace_rule(rule, priority);
        flow.state = State::There;
        flow.moved = now.into();
        if !is_change {
            flow.rate = flow.worth(offer.packets);
        }
        match partial {
            None => flow.share.set_placed(Placed::Full),
            Some(why) => {
                *self.totals.refused.entry(why.kind()).or_default() += 1;
                flow.share.refuse(why.to_string());
                flow.share.set_placed(Placed::Partial);
            }
        }
        self.activate(at);
        old.into_iter().for_each(|old| self.remove(domain, old, port, now));
    }

    /// A rule that was on its way is not in the device.
    fn failed(&mut self, domain: u16, coming: Coming, why: Result<FlowError, Refusal>, now: Cycles) {
        let Coming { offer, at, port, partial, .. } = coming;
        let mut victims = Victims::new();
        self.credit(port);
        let was = self.flows[at].state;
        match was {
            State::Changing => self.flows[at].state = State::There,
            _ => drop(self.flows.remove(at)),
        }
        match why {
            _ if was == State::Unwanted => {}
            Ok(FlowError::Full { .. }) => {
                self.totals.full += 1;
                match self.make_room((domain, None), worth(offer.packets, partial.is_some()), now, &mut victims) {
                    Room::Made => self.wait(offer, None, now),
                    Room::After(rule) => self.wait(offer, Some((domain, rule)), now),
                    Room::None => self.withdraw(offer.flow.ufid, now),
                }
            }
            Ok(error) => self.refused(offer, error, partial, now, &mut victims),
            Err(why) => self.refuse(&offer, &why, now),
        }
    }

    fn refuse(&mut self, offer: &Offer, why: &Refusal, now: Cycles) {
        *self.totals.refused.entry(why.kind()).or_default() += 1;
        self.withdraw(offer.flow.ufid, now);
        offer.share.refuse(why.to_string());
    }

    /// The offer is taken later, if not too many wait. A flow that does something else by now does not stay as it was.
    fn wait(&mut self, offer: Box<Offer>, after: Option<(u16, D::Rule)>, now: Cycles) {
        let ufid = offer.flow.ufid;
        if self.waiting.len() >= self.config.waiting && !self.waiting.contains_key(&ufid) {
            self.totals.dropped += 1;
            return self.withdraw(ufid, now);
        }
        self.waiting.insert(ufid, Waiting { offer, after });
    }

    /// Takes out a flow that sees much less, of the device and, where given, of the port.
    fn make_room(
        &mut self,
        of: (u16, Option<PortNo>),
        worth: u32,
        now: Cycles,
        victims: &mut Victims,
    ) -> Room<D::Rule> {
        let victims = victims.entry(of).or_insert_with(|| self.victims(of));
        loop {
            let Some(victim) = victims.pop_if(|victim| u64::from(worth) > 2 * u64::from(victim.rate)) else {
                return Room::None;
            };
            let Some(at) = self.flows.find(victim.ufid).filter(|at| self.flows[*at].state == State::There) else {
                continue;
            };
            self.totals.evictions += 1;
            let rule = self.flows[at].rule;
            self.withdraw(victim.ufid, now);
            let is_going = self.devices.get(&of.0).is_some_and(|of| of.going.contains_key(&rule));
            return if is_going { Room::After(rule) } else { Room::Made };
        }
    }

    /// The flows that see least: as many as may have to go at a time.
    fn victims(&self, (domain, of_port): (u16, Option<PortNo>)) -> Vec<Victim> {
        const MOST: usize = 1024;
        let of_domain = |port: PortNo| self.ports.get(&port).is_some_and(|port| port.domain == domain);
        let concerned = |flow: &Flow<D::Rule>| of_port.map_or_else(|| of_domain(flow.port), |port| flow.port == port);
        let settled = |flow: &Flow<D::Rule>| flow.state == State::There && flow.looks >= SETTLED;
        let flows = self.flows.iter().map(|(_, flow)| flow).filter(|flow| settled(flow) && concerned(flow));
        let mut victims: Vec<_> = flows.map(|flow| Victim { ufid: flow.ufid(), rate: flow.rate }).collect();
        if victims.len() > MOST {
            victims.select_nth_unstable_by_key(MOST, |victim| victim.rate);
            victims.truncate(MOST);
        }
        victims.sort_by_key(|victim| std::cmp::Reverse(victim.rate));
        victims
    }

    /// A flow is to be done by the workers alone.
    pub(crate) fn withdraw(&mut self, ufid: u128, now: Cycles) {
        self.waiting.remove(&ufid);
        if let Some(at) = self.flows.find(ufid) {
            self.take_out(at, now);
        }
    }

    /// Takes the rule of a flow out; what is new in its counters came at `used`.
    pub(crate) fn take_out(&mut self, at: u32, used: Cycles) {
        let flow = &mut self.flows[at];
        flow.share.set_placed(Placed::No);
        let (port, rule, state) = (flow.port, flow.rule, flow.state);
        let Some(domain) = self.ports.get(&port).map(|port| port.domain) else { return };
        if matches!(state, State::There | State::Changing) {
            self.count_last(domain, at, used);
            self.remove(domain, rule, port, Cycles::now());
        }
        match state {
            State::There => drop(self.flows.remove(at)),
            _ => self.flows[at].state = State::Unwanted,
        }
    }

    fn count_last(&mut self, domain: u16, at: u32, used: Cycles) {
        let flow = &mut self.flows[at];
        if let Some(Ok(count)) = self.devices.get(&domain).map(|of| of.device.count(flow.rule)) {
            let seen = flow.seen(count, used);
            if !flow.marks() {
                self.totals.add(seen);
            }
        }
    }

    fn remove(&mut self, domain: u16, rule: D::Rule, port: PortNo, now: Cycles) {
        let Some(of) = self.devices.get_mut(&domain) else { return };
        match of.device.remove(rule) {
            Ok(Progress::Done) => self.credit(port),
            Ok(Progress::Asked) => drop(of.going.insert(rule, Going { port, since: now })),
            Err(FlowError::Gone { .. } | FlowError::Lost { .. }) => {
                of.device.abandon(rule);
                self.totals.lost += 1;
                self.credit(port);
            }
            Err(_) => of.leaving.push((rule, port)),
        }
    }

    /// A rule for a flow from this port is gone.
    pub(crate) fn credit(&mut self, port: PortNo) {
        self.ports.get_mut(&port).into_iter().for_each(|port| port.rules = port.rules.saturating_sub(1));
    }

    /// Lets the devices do what they were asked, and takes note of what they have done.
    pub(crate) fn turn(&mut self, now: Cycles) {
        let domains: Vec<u16> = self.devices.keys().copied().collect();
        for &domain in &domains {
            let mut completed = std::mem::take(&mut self.completed);
            self.devices.get_mut(&domain).into_iter().for_each(|of| of.device.poll(&mut completed));
            let has_room = !completed.is_empty();
            completed.drain(..).for_each(|completed| self.complete(domain, completed, now));
            self.completed = completed;
            if has_room {
                self.retry_leaving(domain, now);
                self.retry_waiting(now);
            }
        }
        if now >= self.next_overdue {
            self.next_overdue = now + OVERDUE_EVERY.into();
            domains.into_iter().for_each(|domain| self.give_up_overdue(domain, now));
        }
    }

    fn complete(&mut self, domain: u16, completed: Completed<D::Rule>, now: Cycles) {
        let Completed { rule, operation, done } = completed;
        let Some(of) = self.devices.get_mut(&domain) else { return };
        match operation {
            Operation::Create => match of.coming.remove(&rule) {
                Some(coming) if done => self.arrived(domain, rule, coming, now),
                Some(coming) => {
                    let why = self.explain(domain, &coming);
                    self.failed(domain, coming, why, now);
                }
                None => {}
            },
            Operation::Destroy => match of.going.remove(&rule) {
                Some(Going { port, .. }) if done => self.credit(port),
                Some(Going { port, .. }) => of.leaving.push((rule, port)),
                None => {}
            },
        }
    }

    /// What the device finds wrong in a rule that it did not take.
    fn explain(&self, domain: u16, coming: &Coming) -> Result<FlowError, Refusal> {
        let projected = match coming.partial {
            None => self.project(&coming.offer)?,
            Some(ref why) => self.project_partly(&coming.offer).ok_or_else(|| why.clone())?,
        };
        let (port, rule) = projected;
        let of = self.devices.get(&domain).ok_or(Refusal::Port(port))?;
        Ok(of.device.explain(port, &rule, coming.priority.into()))
    }

    /// Whatever takes too long is not waited for: a rule to come may be there, and is taken out; one to go is taken for gone.
    fn give_up_overdue(&mut self, domain: u16, now: Cycles) {
        let Some(of) = self.devices.get_mut(&domain) else { return };
        let is_overdue = |since: Cycles| now.since(since) > PATIENCE.into();
        let coming: Vec<_> = of.coming.extract_if(|_, coming| is_overdue(coming.since)).collect();
        let going: Vec<_> = of.going.extract_if(|_, going| is_overdue(going.since)).collect();
        self.totals.lost_completions += (coming.len() + going.len()) as u64;
        for (rule, Going { port, .. }) in going {
            of.device.abandon(rule);
            self.ports.get_mut(&port).into_iter().for_each(|port| port.rules = port.rules.saturating_sub(1));
        }
        for (rule, coming) in coming {
            // Its removal gives its credit back.
            self.ports.get_mut(&coming.port).into_iter().for_each(|port| port.rules += 1);
            self.remove(domain, rule, coming.port, now);
            self.failed(domain, coming, Err(Refusal::Completion(PATIENCE)), now);
        }
    }

    pub(crate) fn retry_leaving(&mut self, domain: u16, now: Cycles) {
        let Some(of) = self.devices.get_mut(&domain) else { return };
        std::mem::take(&mut of.leaving).into_iter().for_each(|(rule, port)| self.remove(domain, rule, port, now));
    }

    pub(crate) fn retry_waiting(&mut self, now: Cycles) {
        let is_going =
            |(domain, rule): &(u16, D::Rule)| self.devices.get(domain).is_some_and(|of| of.going.contains_key(rule));
        let ready = self.waiting.extract_if(|_, waiting| !waiting.after.as_ref().is_some_and(is_going));
        let ready = ready.map(|(_, waiting)| waiting.offer).collect();
        self.offer(ready, now);
    }
}

/// Whether there is room for a rule.
enum Room<R> {
    Made,
    /// As soon as this one is gone.
    After(R),
    None,
}
