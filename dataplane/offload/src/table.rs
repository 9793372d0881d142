//! Which flows are in the hardware: what comes in, what has to go for it, and what each has seen.

use crate::{Refusal, Rule};
use clock::Cycles;
use dpdk::flow::{FlowCount, FlowError, FlowPort, FlowRule};
use flow::PortNo;
use std::collections::HashMap;
use std::sync::Arc;
use switch::{HardwareShare, Offer};

/// A port of a device that takes rules.
pub(crate) trait RulePort: Send {
    /// A rule in the device.
    type Placed: PlacedRule;

    /// The device's number for it.
    fn number(&self) -> u16;

    /// Puts a rule into the device.
    fn place(&self, rule: &Rule, priority: u32) -> Result<Self::Placed, FlowError>;
}

/// A rule in a device.
pub(crate) trait PlacedRule: Send {
    /// What it has counted.
    fn count(&self) -> Result<FlowCount, FlowError>;

    /// Takes it out of the device. After an error it is still there.
    fn remove(&mut self) -> Result<(), FlowError>;

    /// The device has lost it: nothing is left to take out.
    fn abandon(self);
}

impl RulePort for FlowPort {
    type Placed = FlowRule;

    fn number(&self) -> u16 {
        self.port_id()
    }

    fn place(&self, rule: &Rule, priority: u32) -> Result<FlowRule, FlowError> {
        self.create(&Rule::attributes(priority), &rule.pattern, &rule.actions)
    }
}

impl PlacedRule for FlowRule {
    fn count(&self) -> Result<FlowCount, FlowError> {
        self.query()
    }

    fn remove(&mut self) -> Result<(), FlowError> {
        FlowRule::remove(self)
    }

    fn abandon(self) {
        FlowRule::abandon(self);
    }
}

/// What was done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Flows in hardware now.
    pub flows: u64,
    /// Rules put in.
    pub insertions: u64,
    /// Time that this took, in cycles.
    pub insertion_cycles: u64,
    /// Rules taken out for flows that see more.
    pub evictions: u64,
    /// Rules that a device lost: it was reset, or somebody else took them out.
    pub lost: u64,
    /// Offers that found no room.
    pub full: u64,
    /// Rules that are to go, and that a device has not let go of.
    pub leaving: u64,
    /// Packets that the hardware did.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Flows refused, by clause.
    pub refused: HashMap<&'static str, u64>,
}

/// A flow in hardware.
struct Entry<R> {
    rule: R,
    priority: u32,
    port: PortNo,
    share: Arc<HardwareShare>,
    /// The device's counters at the last look.
    counted: FlowCount,
    /// Packets between two looks, of late.
    rate: u64,
    /// Looks since it was put in.
    looks: u32,
}

/// The flows in hardware, of all devices.
pub(crate) struct Table<P: RulePort> {
    /// Each with the switch of its device: rules lead between ports of the same one.
    ports: HashMap<PortNo, (P, u16)>,
    entries: HashMap<u128, Entry<P::Placed>>,
    /// Rules that a device did not let go of yet.
    leaving: Vec<P::Placed>,
    totals: Totals,
}

/// A flow is not taken out for another before it was looked at so often.
const SETTLED: u32 = 2;

impl<P: RulePort> Default for Table<P> {
    fn default() -> Table<P> {
        Table { ports: HashMap::new(), entries: HashMap::new(), leaving: Vec::new(), totals: Totals::default() }
    }
}

impl<P: RulePort> Table<P> {
    /// Nothing is in hardware, so there is nothing to look at.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.leaving.is_empty()
    }

    /// What was done so far.
    pub(crate) fn totals(&self) -> Totals {
        Totals { flows: self.entries.len() as u64, leaving: self.leaving.len() as u64, ..self.totals.clone() }
    }

    /// A port that rules may lead from and to, with the switch of its device.
    pub(crate) fn add_port(&mut self, number: PortNo, port: P, switch_domain: u16) {
        self.ports.insert(number, (port, switch_domain));
    }

    /// A port is gone, and rules from it with it.
    pub(crate) fn remove_port(&mut self, number: PortNo) {
        self.ports.remove(&number);
        let of_port = |(ufid, entry): (&u128, &Entry<P::Placed>)| (entry.port == number).then_some(*ufid);
        let gone: Vec<u128> = self.entries.iter().filter_map(of_port).collect();
        gone.into_iter().for_each(|ufid| self.withdraw(ufid, Cycles::now()));
    }

    /// Takes in what was offered, as far as there is room: those that see most first.
    pub(crate) fn offer(&mut self, mut offers: Vec<Offer>, now: Cycles) {
        offers.sort_by_key(|offer| std::cmp::Reverse(offer.packets));
        let mut victims = None;
        for offer in offers {
            if let Err(why) = self.take(&offer, now, &mut victims) {
                *self.totals.refused.entry(why.kind()).or_default() += 1;
                self.withdraw(offer.flow.ufid, now);
                offer.share.refuse(why.to_string());
            }
        }
    }

    fn take(&mut self, offer: &Offer, now: Cycles, victims: &mut Option<Vec<Victim>>) -> Result<(), Refusal> {
        let flow = &offer.flow;
        let in_port = flow.key.get(flow::field::IN_PORT) as PortNo;
        let domain = self.ports.get(&in_port).ok_or(Refusal::Port(in_port))?.1;
        let of_device = |number| {
            let found = self.ports.get(&number).filter(|(_, of)| *of == domain);
            found.map(|(port, _)| port.number())
        };
        let rule = Rule::of(&flow.key, &flow.mask, &flow.actions, of_device)?;
        // The rule that is there goes on until the new one is there as well.
        let priority = self.entries.get(&flow.ufid).map_or(0, |old| 1 - old.priority);
        loop {
            let began = Cycles::now();
            match self.ports[&in_port].0.place(&rule, priority) {
                Ok(placed) => {
                    self.totals.insertions += 1;
                    self.totals.insertion_cycles += Cycles::now().since(began).0;
                    self.enter(offer, in_port, placed, priority, now);
                    return Ok(());
                }
                Err(FlowError::Full { .. }) => {
                    self.totals.full += 1;
                    let victims = victims.get_or_insert_with(|| self.victims());
                    match victims.pop_if(|victim| offer.packets > 2 * victim.rate) {
                        Some(victim) => {
                            self.totals.evictions += 1;
                            self.withdraw(victim.ufid, now);
                        }
                        // What was there does something else by now.
                        None => {
                            self.withdraw(flow.ufid, now);
                            return Ok(());
                        }
                    }
                }
                Err(FlowError::Gone { .. }) => {
                    self.lose(domain);
                    return Ok(());
                }
                Err(error) => return Err(Refusal::Device(error.to_string())),
            }
        }
    }

    fn enter(&mut self, offer: &Offer, port: PortNo, rule: P::Placed, priority: u32, now: Cycles) {
        let (share, counted) = (offer.share.clone(), FlowCount::default());
        share.set_placed(true);
        let entry = Entry { rule, priority, port, share, counted, rate: offer.packets, looks: 0 };
        if let Some(old) = self.entries.insert(offer.flow.ufid, entry) {
            self.take_out(old, now);
        }
    }

    /// Those who may have to go: the last is the first to go.
    fn victims(&self) -> Vec<Victim> {
        let settled = self.entries.iter().filter(|(_, entry)| entry.looks >= SETTLED);
        let mut victims: Vec<_> = settled.map(|(ufid, entry)| Victim { ufid: *ufid, rate: entry.rate }).collect();
        victims.sort_by_key(|victim| std::cmp::Reverse(victim.rate));
        victims
    }

    /// A flow is to be done by the workers alone.
    pub(crate) fn withdraw(&mut self, ufid: u128, now: Cycles) {
        if let Some(entry) = self.entries.remove(&ufid) {
            entry.share.set_placed(false);
            self.take_out(entry, now);
        }
    }

    fn take_out(&mut self, mut entry: Entry<P::Placed>, now: Cycles) {
        if let Ok(count) = entry.rule.count() {
            self.totals.add(entry.seen(count, now));
        }
        self.remove(entry.rule);
    }

    fn remove(&mut self, mut rule: P::Placed) {
        match rule.remove() {
            Ok(()) => {}
            Err(FlowError::Gone { .. } | FlowError::Lost { .. }) => {
                self.totals.lost += 1;
                rule.abandon();
            }
            Err(_) => self.leaving.push(rule),
        }
    }

    /// Looks at what every flow has seen.
    pub(crate) fn look(&mut self, now: Cycles) {
        std::mem::take(&mut self.leaving).into_iter().for_each(|rule| self.remove(rule));
        let mut lost = Vec::new();
        let mut reset = Vec::new();
        for (ufid, entry) in &mut self.entries {
            match entry.rule.count() {
                Ok(count) => {
                    let seen = entry.seen(count, now);
                    entry.rate = (entry.rate + seen.0).div_ceil(2);
                    entry.looks += 1;
                    self.totals.add(seen);
                }
                Err(FlowError::Gone { .. }) => reset.extend(self.ports.get(&entry.port).map(|(_, domain)| *domain)),
                Err(FlowError::Lost { .. }) => lost.push(*ufid),
                // Its counters may come with the next look.
                Err(_) => {}
            }
        }
        lost.into_iter().for_each(|ufid| self.forget(ufid));
        reset.sort_unstable();
        reset.dedup();
        reset.into_iter().for_each(|domain| self.lose(domain));
    }

    /// A device was reset: it has none of its rules any more. Its flows are offered again as soon as the workers see them.
    fn lose(&mut self, domain: u16) {
        let of_device = |port: PortNo| self.ports.get(&port).is_some_and(|(_, of)| *of == domain);
        let lost: Vec<u128> =
            self.entries.iter().filter(|(_, entry)| of_device(entry.port)).map(|(ufid, _)| *ufid).collect();
        lost.into_iter().for_each(|ufid| self.forget(ufid));
    }

    fn forget(&mut self, ufid: u128) {
        if let Some(entry) = self.entries.remove(&ufid) {
            self.totals.lost += 1;
            entry.share.set_placed(false);
            entry.rule.abandon();
        }
    }
}

struct Victim {
    ufid: u128,
    rate: u64,
}

impl<R> Entry<R> {
    /// Takes note of the device's counters. Returns what is new.
    fn seen(&mut self, count: FlowCount, now: Cycles) -> (u64, u64) {
        let new = |now: Option<u64>, before: Option<u64>| now.unwrap_or(0).saturating_sub(before.unwrap_or(0));
        let packets = new(count.packets, self.counted.packets);
        let bytes = new(count.bytes, self.counted.bytes);
        self.counted = count;
        if packets != 0 {
            self.share.add(packets, bytes, now);
        }
        (packets, bytes)
    }
}

impl Totals {
    fn add(&mut self, (packets, bytes): (u64, u64)) {
        self.packets += packets;
        self.bytes += bytes;
    }
}
