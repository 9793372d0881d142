//! The match-action pipeline: rules in groups, a packet's way through them, counters and ages. Bytes and the time go in, bytes
//! and a destination come out; there is no DPDK here.
//!
//! A packet of the wire or of a guest function passes the *transfer* rules, group 0 first; what none of them wants goes to the
//! host, through the port that stands for where it came from, and there passes that port's *ingress* rules. What the host sends
//! through a port passes its *egress* rules, then the transfer rules, and goes by default to what the port stands for.

pub mod action;
pub mod edit;
pub mod key;
pub mod parse;
pub mod table;
pub mod toeplitz;

pub use action::{Action, End, Rss};
pub use edit::{Frame, Unfit};
pub use key::{Key, Layer, Pattern};
pub use table::RuleId;

use key::{field, source};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use table::Table;

/// Which packets a rule sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// All that pass the device's switch.
    Transfer,
    /// Those that the host receives through a port.
    Ingress(u16),
    /// Those that the host sends through a port.
    Egress(u16),
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// What a port stands for: the wire or a guest function.
    Represented(u16),
    /// The host, through a port.
    Representor(u16),
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To what a port stands for.
    Represented(u16),
    /// To the host.
    Host {
        /// The port it is received through.
        port: u16,
        /// Its queue there.
        queue: u16,
        /// The mark a rule gave it.
        mark: Option<u32>,
        /// The hash that spread it.
        hash: Option<u32>,
    },
    /// To nobody.
    Nowhere,
}

/// Ageing of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// So long without a packet, it has aged.
    pub timeout: Duration,
    /// The application's name for it, if not its number.
    pub context: Option<u64>,
}

/// A rule.
#[derive(Clone)]
pub struct Rule {
    /// The port through which the application put it in.
    pub owner: u16,
    /// Which packets see it.
    pub domain: Domain,
    /// Its group.
    pub group: u32,
    /// Its priority; 0 is the highest.
    pub priority: u32,
    /// What it matches.
    pub pattern: Pattern,
    /// What it does, in this order.
    pub actions: Vec<Action>,
    /// Whether it counts.
    pub counts: bool,
    /// Whether it ages.
    pub age: Option<Age>,
}

/// Sizes of the device, and its troubles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rules in the exact-match table, of all groups together.
    pub exact: usize,
    /// Key formats of the exact-match table.
    pub exact_formats: usize,
    /// Rules in the masked table, of all groups together.
    pub masked: usize,
    /// Groups in a domain.
    pub groups: u32,
    /// Priorities in a group.
    pub priorities: u32,
    /// Counters are brought up to date so often; zero: with each packet.
    pub counter_delay: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            exact: 65536,
            exact_formats: 64,
            masked: 4096,
            groups: 64,
            priorities: 16,
            counter_delay: Duration::ZERO,
        }
    }
}

/// A rule was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// One of the same pattern and priority is there.
    Exists,
    /// The exact-match table has no room, nor has the masked table.
    ExactFull,
    /// The masked table has no room.
    MaskedFull,
}

/// What a rule has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How a port receives what no ingress rule wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMode {
    /// It drops it.
    pub isolated: bool,
    /// It spreads it; without, all comes to queue 0.
    pub rss: Option<Rss>,
}

/// Totals of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that a transfer rule disposed of without the host.
    pub offloaded: u64,
    /// Packets that came to the host, as no transfer rule wanted them.
    pub missed: u64,
    /// Packets that could not be changed as a rule wants it.
    pub unfit: u64,
}

/// Which table a rule is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exact,
    Masked,
}

struct Entry {
    rule: Rule,
    kind: Kind,
    counters: Counters,
    /// The counters as they are shown, and in which period of the delay they were brought up to date.
    shown: (Counters, u128),
    last_hit: Duration,
}

impl Entry {
    fn count(&mut self, bytes: usize, now: Duration, delay: Duration) {
        self.show(now, delay);
        self.counters.packets += 1;
        self.counters.bytes += bytes as u64;
        self.last_hit = now;
    }

    /// What is shown now.
    fn show(&mut self, now: Duration, delay: Duration) -> Counters {
        let Some(period) = now.as_nanos().checked_div(delay.as_nanos()) else { return self.counters };
        if period != self.shown.1 {
            self.shown = (self.counters, period);
        }
        self.shown.0
    }

    fn has_aged(&self, now: Duration) -> bool {
        self.rule.age.is_some_and(|age| now.saturating_sub(self.last_hit) >= age.timeout)
    }
}

/// The two tables of a group.
#[derive(Default)]
struct Group {
    exact: Table,
    masked: Table,
}

impl Group {
    fn table(&mut self, kind: Kind) -> &mut Table {
        match kind {
            Kind::Exact => &mut self.exact,
            Kind::Masked => &mut self.masked,
        }
    }
}

/// What the rules that a packet met leave of it.
enum Walk {
    Fate(Action),
    Miss,
    Unfit,
}

/// The pipeline.
pub struct Pipeline {
    limits: Limits,
    groups: HashMap<(Domain, u32), Group>,
    rules: BTreeMap<RuleId, Entry>,
    modes: HashMap<u16, PortMode>,
    /// Rules in use, and key formats.
    exact: usize,
    masked: usize,
    formats: HashMap<(Domain, u32, Key), usize>,
    last_id: RuleId,
    totals: Totals,
}

impl Pipeline {
    /// A pipeline without rules.
    pub fn new(limits: Limits) -> Pipeline {
        Pipeline {
            limits,
            groups: HashMap::new(),
            rules: BTreeMap::new(),
            modes: HashMap::new(),
            exact: 0,
            masked: 0,
            formats: HashMap::new(),
            last_id: 0,
            totals: Totals::default(),
        }
    }

    /// Its sizes.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its totals.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Rules in the exact-match and in the masked table.
    pub fn rule_counts(&self) -> (usize, usize) {
        (self.exact, self.masked)
    }

    /// How a port receives what no rule wants.
    pub fn port_mode(&mut self, port: u16) -> &mut PortMode {
        self.modes.entry(port).or_default()
    }

    /// Whether a rule would be taken now.
    pub fn check(&self, rule: &Rule) -> Result<(), InsertError> {
        self.place(rule).map(|_| ())
    }

    fn place(&self, rule: &Rule) -> Result<Kind, InsertError> {
        let contains = |group: &Group| {
            let contains = |table: &Table| table.contains(&rule.pattern, rule.priority);
            contains(&group.exact) || contains(&group.masked)
        };
        if self.groups.get(&(rule.domain, rule.group)).is_some_and(contains) {
            return Err(InsertError::Exists);
        }
        let format = (rule.domain, rule.group, *rule.pattern.mask());
        let has_format = self.formats.contains_key(&format) || self.formats.len() < self.limits.exact_formats;
        let whole = rule.pattern.is_whole();
        if whole && has_format && self.exact < self.limits.exact {
            return Ok(Kind::Exact);
        }
        match self.masked < self.limits.masked {
            true => Ok(Kind::Masked),
            false if whole => Err(InsertError::ExactFull),
            false => Err(InsertError::MaskedFull),
        }
    }

    /// Puts a rule in.
    pub fn insert(&mut self, rule: Rule, now: Duration) -> Result<RuleId, InsertError> {
        let kind = self.place(&rule)?;
        self.last_id += 1;
        let id = self.last_id;
        let group = self.groups.entry((rule.domain, rule.group)).or_default();
        group.table(kind).insert(&rule.pattern, rule.priority, id);
        match kind {
            Kind::Exact => {
                self.exact += 1;
                *self.formats.entry((rule.domain, rule.group, *rule.pattern.mask())).or_default() += 1;
            }
            Kind::Masked => self.masked += 1,
        }
        let entry = Entry { rule, kind, counters: Counters::default(), shown: Default::default(), last_hit: now };
        self.rules.insert(id, entry);
        Ok(id)
    }

    /// Takes a rule out; says whether it was there.
    pub fn remove(&mut self, id: RuleId) -> bool {
        let Some(Entry { rule, kind, .. }) = self.rules.remove(&id) else { return false };
        if let Some(group) = self.groups.get_mut(&(rule.domain, rule.group)) {
            group.table(kind).remove(&rule.pattern, id);
        }
        match kind {
            Kind::Masked => self.masked -= 1,
            Kind::Exact => {
                self.exact -= 1;
                let format = (rule.domain, rule.group, *rule.pattern.mask());
                if let Some(users) = self.formats.get_mut(&format) {
                    *users -= 1;
                    if *users == 0 {
                        self.formats.remove(&format);
                    }
                }
            }
        }
        true
    }

    /// Takes out the rules that were put in through a port.
    pub fn remove_of(&mut self, owner: u16) {
        let of_port = |(&id, entry): (&RuleId, &Entry)| (entry.rule.owner == owner).then_some(id);
        let ids: Vec<RuleId> = self.rules.iter().filter_map(of_port).collect();
        for id in ids {
            self.remove(id);
        }
    }

    /// Forgets every rule, as a device does that is reset. Numbers are not used again.
    pub fn reset(&mut self) {
        self.groups.clear();
        self.rules.clear();
        self.formats.clear();
        (self.exact, self.masked) = (0, 0);
    }

    /// A rule, if it is there.
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(&id).map(|entry| &entry.rule)
    }

    /// What a rule has counted, as the device shows it now.
    pub fn counters(&mut self, id: RuleId, now: Duration) -> Option<Counters> {
        let delay = self.limits.counter_delay;
        self.rules.get_mut(&id).map(|entry| entry.show(now, delay))
    }

    /// Starts a rule's counters again at zero.
    pub fn reset_counters(&mut self, id: RuleId) {
        if let Some(entry) = self.rules.get_mut(&id) {
            (entry.counters, entry.shown.0) = Default::default();
        }
    }

    /// How long a rule has had no packet, and whether it has aged.
    pub fn idle(&self, id: RuleId, now: Duration) -> Option<(Duration, bool)> {
        self.rules.get(&id).map(|entry| (now.saturating_sub(entry.last_hit), entry.has_aged(now)))
    }

    /// The rules of a port that have aged, with the application's name for each if it gave one.
    pub fn aged(&self, owner: u16, now: Duration) -> impl Iterator<Item = (RuleId, Option<u64>)> {
        let aged = self.rules.iter().filter(move |(_, entry)| entry.rule.owner == owner && entry.has_aged(now));
        aged.map(|(&id, entry)| (id, entry.rule.age.and_then(|age| age.context)))
    }

    /// Takes a packet to where it goes.
    pub fn process(&mut self, frame: &mut impl Frame, from: Source, now: Duration) -> Destination {
        let mut mark = None;
        if let Source::Representor(port) = from {
            match self.walk(Domain::Egress(port), frame, from, &mut mark, now) {
                Walk::Fate(Action::Drop) => return Destination::Nowhere,
                Walk::Unfit => return self.unfit(),
                _ => {}
            }
        }
        let port = match self.walk(Domain::Transfer, frame, from, &mut mark, now) {
            Walk::Fate(Action::ToRepresentor(port)) => port,
            Walk::Fate(Action::ToRepresented(port)) => {
                self.totals.offloaded += 1;
                return Destination::Represented(port);
            }
            Walk::Fate(_) => {
                self.totals.offloaded += 1;
                return Destination::Nowhere;
            }
            Walk::Unfit => return self.unfit(),
            Walk::Miss => match from {
                Source::Representor(port) => return Destination::Represented(port),
                Source::Represented(port) => {
                    self.totals.missed += 1;
                    port
                }
            },
        };
        self.receive(port, frame, from, mark, now)
    }

    fn receive(
        &mut self,
        port: u16,
        frame: &mut impl Frame,
        from: Source,
        mut mark: Option<u32>,
        now: Duration,
    ) -> Destination {
        let mode = self.modes.get(&port).cloned().unwrap_or_default();
        let rss = match self.walk(Domain::Ingress(port), frame, from, &mut mark, now) {
            Walk::Fate(Action::Queue(queue)) => return Destination::Host { port, queue, mark, hash: None },
            Walk::Fate(Action::Spread(rss)) => Some(rss),
            Walk::Fate(_) => return Destination::Nowhere,
            Walk::Unfit => return self.unfit(),
            Walk::Miss if mode.isolated => return Destination::Nowhere,
            Walk::Miss => mode.rss,
        };
        let hash = rss.as_ref().and_then(|rss| toeplitz::hash(&rss.key, &parse::parse(frame.bytes()).0, rss.ports));
        let queue = match (&rss, hash) {
            (Some(rss), Some(hash)) => rss.queues.get(hash as usize % rss.queues.len().max(1)).copied(),
            (Some(rss), None) => rss.queues.first().copied(),
            (None, _) => None,
        };
        Destination::Host { port, queue: queue.unwrap_or(0), mark, hash }
    }

    fn unfit(&mut self) -> Destination {
        self.totals.unfit += 1;
        Destination::Nowhere
    }

    /// Group after group, until a rule says where the packet goes or none wants it.
    fn walk(
        &mut self,
        domain: Domain,
        frame: &mut impl Frame,
        from: Source,
        mark: &mut Option<u32>,
        now: Duration,
    ) -> Walk {
        let mut group = 0;
        loop {
            let Some(tables) = self.groups.get(&(domain, group)) else { return Walk::Miss };
            let key = key_of(frame.bytes(), from);
            let best = tables.exact.lookup(&key).into_iter().chain(tables.masked.lookup(&key)).min();
            let Some(entry) = best.and_then(|(_, id)| self.rules.get_mut(&id)) else { return Walk::Miss };
            let actions = &entry.rule.actions;
            if actions.contains(&Action::DecrementTtl) && edit::ttl(frame.bytes()).is_some_and(|ttl| ttl <= 1) {
                return Walk::Miss;
            }
            let mut fate = None;
            let bytes = frame.total_len();
            for action in actions {
                match apply(action, frame, mark) {
                    Ok(()) => {}
                    Err(Unfit) => return Walk::Unfit,
                }
                fate = action.is_fate().then(|| action.clone());
            }
            entry.count(bytes, now, self.limits.counter_delay);
            match fate {
                Some(Action::Jump(next)) => group = next,
                Some(fate) => return Walk::Fate(fate),
                // An egress rule that only counts or changes.
                None => return Walk::Miss,
            }
        }
    }
}

fn key_of(bytes: &[u8], from: Source) -> Key {
    let mut key = parse::parse(bytes).0;
    let (kind, port) = match from {
        Source::Represented(port) => (source::REPRESENTED, port),
        Source::Representor(port) => (source::REPRESENTOR, port),
    };
    key.set(Layer::Outer, field::SOURCE, &[kind]);
    key.set(Layer::Outer, field::SOURCE_PORT, &port.to_be_bytes());
    key
}

fn apply(action: &Action, frame: &mut impl Frame, mark: &mut Option<u32>) -> Result<(), Unfit> {
    match action {
        Action::Mark(id) => *mark = Some(*id),
        Action::PushVlan { tpid } => edit::push_vlan(frame, *tpid)?,
        Action::PopVlan => edit::pop_vlan(frame)?,
        Action::SetVlanId(id) => edit::set_vlan(frame.bytes_mut(), *id, 0x0fff),
        Action::SetVlanPriority(priority) => edit::set_vlan(frame.bytes_mut(), u16::from(*priority) << 13, 0xe000),
        Action::SetMac(end, mac) => edit::set_mac(frame.bytes_mut(), *end, mac),
        Action::SetIpv4(end, address) => edit::set_ip(frame.bytes_mut(), *end, address),
        Action::SetIpv6(end, address) => edit::set_ip(frame.bytes_mut(), *end, address),
        Action::SetPort(end, port) => edit::set_port(frame.bytes_mut(), *end, *port),
        Action::SetTtl(ttl) => edit::set_ttl(frame.bytes_mut(), *ttl),
        Action::DecrementTtl => {
            let ttl = edit::ttl(frame.bytes());
            ttl.into_iter().for_each(|ttl| edit::set_ttl(frame.bytes_mut(), ttl.saturating_sub(1)));
        }
        Action::Encapsulate(front) => edit::encapsulate(frame, front)?,
        Action::DecapsulateVxlan => edit::decapsulate(frame)?,
        Action::StripFront(count) => edit::strip_front(frame, *count)?,
        Action::Drop
        | Action::ToRepresented(_)
        | Action::ToRepresentor(_)
        | Action::Queue(_)
        | Action::Spread(_)
        | Action::Jump(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
