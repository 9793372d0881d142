//! The match-action pipeline: rules in groups, a packet's way through them, counters and ages. Bytes and the time go in, bytes
//! and a destination come out; there is no DPDK here.
//!
//! A packet of the wire or of a guest function passes the *transfer* rules, group 0 first; what none of them wants goes to the
//! host, through the port that stands for where it came from, and there passes that port's *ingress* rules. What the host sends
//! through a port passes its *egress* rules, then the transfer rules, and goes by default to what the port stands for.

pub mod action;
mod ageing;
mod conntrack;
pub mod edit;
mod index;
pub mod key;
mod meter;
pub mod parse;
mod restore;
mod rule;
mod segment;
mod shared;
mod store;
mod table;
pub mod toeplitz;
mod walk;

pub use action::{Action, End, Rss};
pub use conntrack::{Connection, Direction, Kind as TcpKind, Last, MAX_SCALE, MAX_WINDOW, Sender, State, judged};
pub use edit::{EditFailed, Frame};
pub use key::{Key, Layer, Pattern};
pub use meter::{Meter, Rate, Seen};
pub use restore::{Restore, Tunnel};
pub use rule::{Age, Counters, Entry, Rule, RuleTemplate, Tally};
pub use shared::{Shared, SharedActions, SharedKind};
pub use table::RuleId;

use ageing::Deadlines;
use rule::Kind;
use shared::Sharing;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use table::{Format, FormatId, Formats};

/// Which packets a rule sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// All that pass the device's switch.
    Transfer,
    /// Packets that the host receives through a port.
    Ingress(u16),
    /// Packets that the host sends through a port.
    Egress(u16),
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The other side of a port: the wire or a guest function.
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
        /// Receive queue of the port.
        queue: u16,
        /// The mark a rule gave it.
        mark: Option<u32>,
        /// The hash that spread it.
        hash: Option<u32>,
        /// How far rules came with it, if they began.
        restore: Option<Restore>,
    },
    /// Nowhere: the packet is dropped.
    Nowhere,
}

/// Sizes of the device.
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
}

/// Faults of the pipeline, injected on demand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Whether all tables are full.
    pub full: bool,
    /// Time between two updates of the counters; zero: with each packet.
    pub counter_delay: Duration,
    /// A packet of the wire or of a function for which transfer rules have done so many actions, and would do one more, leaves
    /// them: it comes to the host as it was received, and no rule on its way has counted it.
    pub abort_after: Option<u64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { exact: 65536, exact_formats: 64, masked: 4096, groups: 64, priorities: 16 }
    }
}

/// The reason why a rule was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// A rule of the same pattern and priority exists.
    Exists,
    /// The exact-match table has no room, nor has the masked table.
    ExactFull,
    /// The masked table has no room.
    MaskedFull,
    /// A shared action of the rule does not exist.
    NotShared,
    /// The application's table has as many rules as it was to have, or is closed.
    TableFull,
}

/// The error of an object that rules still use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse;

/// The way in which a port receives packets that no ingress rule matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMode {
    /// Whether the port drops them.
    pub isolated: bool,
    /// RSS over the queues of the port; without, all packets come to queue 0.
    pub rss: Option<Rss>,
}

/// Totals of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that a transfer rule disposed of without the host.
    pub offloaded: u64,
    /// Packets that came to the host, as no transfer rule matched them.
    pub missed: u64,
    /// Packets dropped as they could not be edited as a rule demands.
    pub unfit: u64,
    /// Packets that came to the host from the middle of the transfer rules, which are among those missed.
    pub aborted: u64,
}

/// A table of the application's: rules of a few forms, so many at most.
pub type TableId = u32;

struct RuleTable {
    owner: u16,
    priority: u32,
    limit: u32,
    used: u32,
    formats: Vec<FormatId>,
}

/// The pipeline.
pub struct Pipeline {
    limits: Limits,
    faults: Faults,
    formats: Formats,
    rules: Store,
    tables: Vec<Option<RuleTable>>,
    shared: SharedActions,
    modes: HashMap<u16, PortMode>,
    /// Rules in use, and key formats of the exact-match table.
    exact: usize,
    masked: usize,
    exact_formats: usize,
    last_id: RuleId,
    deadlines: Deadlines,
    /// Rules that have aged, by the port that they were put in through.
    aged: BTreeMap<u16, BTreeSet<RuleId>>,
    totals: Totals,
    /// The rules that a packet has met, and its length there.
    met: Vec<(RuleId, usize)>,
}

impl Pipeline {
    /// A pipeline without rules.
    pub fn new(limits: Limits) -> Pipeline {
        Pipeline {
            limits,
            faults: Faults::default(),
            formats: Formats::default(),
            rules: Store::default(),
            tables: Vec::new(),
            shared: SharedActions::default(),
            modes: HashMap::new(),
            exact: 0,
            masked: 0,
            exact_formats: 0,
            last_id: 0,
            deadlines: Deadlines::default(),
            aged: BTreeMap::new(),
            totals: Totals::default(),
            met: Vec::new(),
        }
    }

    /// Sizes of the device.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Injects these faults from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Totals of the device.
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
        let format = self.formats.find(rule.domain, rule.group, &rule.pattern);
        let hash = format.map_or(0, |format| format.hash(rule.pattern.value()));
        self.place(format, rule.pattern.is_whole(), (hash, rule.pattern.value()), rule.priority).map(|_| ())
    }

    fn place(
        &self,
        format: Option<&Format>,
        whole: bool,
        (hash, value): (u64, &Key),
        priority: u32,
    ) -> Result<Kind, InsertError> {
        let same =
            |id| self.rules.get(id).is_some_and(|there| there.template.priority == priority && there.value == *value);
        if format.is_some_and(|format| format.rules.find(hash).any(same)) {
            return Err(InsertError::Exists);
        }
        let has_format =
            format.is_some_and(|format| format.exact > 0) || self.exact_formats < self.limits.exact_formats;
        if whole && has_format && self.exact < self.limits.exact && !self.faults.full {
            return Ok(Kind::Exact);
        }
        match self.masked < self.limits.masked && !self.faults.full {
            true => Ok(Kind::Masked),
            false if whole => Err(InsertError::ExactFull),
            false => Err(InsertError::MaskedFull),
        }
    }

    /// Inserts a rule.
    pub fn insert(&mut self, rule: Rule, now: Duration) -> Result<RuleId, InsertError> {
        let Rule { owner, domain, group, priority, pattern, actions, counts, age } = rule;
        let format = self.formats.hold(domain, group, &pattern);
        let id = self.reserve_ids(1).start;
        let template = RuleTemplate { owner, table: None, format, priority };
        let mut entry = template.fill(*pattern.value(), actions, counts, age);
        self.set_ct_direction(&mut entry);
        self.prepare(&mut entry);
        let inserted = self.insert_filled(id, entry, now);
        self.formats.release(format);
        inserted.map(|()| id)
    }

    /// Reserves numbers for rules.
    pub fn reserve_ids(&mut self, count: u64) -> Range<RuleId> {
        let first = self.last_id + 1;
        self.last_id += count;
        first..first + count
    }

    /// Opens a table for so many rules, each with one of these patterns' masks.
    pub fn open_table(
        &mut self,
        owner: u16,
        (domain, group, priority): (Domain, u32, u32),
        patterns: &[Pattern],
        limit: u32,
    ) -> TableId {
        let formats = patterns.iter().map(|pattern| self.formats.hold(domain, group, pattern)).collect();
        self.tables.push(Some(RuleTable { owner, priority, limit, used: 0, formats }));
        (self.tables.len() - 1) as TableId
    }

    /// Closes a table without rules. Returns whether it has none.
    pub fn close_table(&mut self, table: TableId) -> bool {
        let Some(place) = self.tables.get_mut(table as usize) else { return true };
        if place.as_ref().is_some_and(|table| table.used > 0) {
            return false;
        }
        for format in place.take().into_iter().flat_map(|table| table.formats) {
            self.formats.release(format);
        }
        true
    }

    /// Closes the tables that were opened through a port, those that have no rules.
    pub fn close_tables_of(&mut self, owner: u16) {
        for table in 0..self.tables.len() {
            if self.tables[table].as_ref().is_some_and(|table| table.owner == owner) {
                self.close_table(table as TableId);
            }
        }
    }

    /// The template of a table's rules with this one of its patterns.
    pub fn rule_template(&self, table: TableId, pattern: usize) -> Option<RuleTemplate> {
        let of = self.tables.get(table as usize)?.as_ref()?;
        let format = *of.formats.get(pattern)?;
        Some(RuleTemplate { owner: of.owner, table: Some(table), format, priority: of.priority })
    }

    /// Sets the direction in which a rule's packets pass its connection: the one that the connection has now.
    pub fn set_ct_direction(&self, entry: &mut Entry) {
        entry.direction = self.shared.direction(&entry.actions);
    }

    /// Prepares the insertion of a rule. Touches its place in memory, so that the delays of many such calls overlap.
    pub fn prepare(&self, entry: &mut Entry) -> u64 {
        let Some(format) = self.formats.get(entry.template.format) else { return 0 };
        entry.hash = format.hash(&entry.value);
        format.rules.peek(entry.hash)
    }

    /// Prepares the removal of a rule in the same way.
    pub fn prepare_removal(&self, id: RuleId) -> u64 {
        let rule = self.rules.get(id).and_then(|entry| Some((self.formats.get(entry.template.format)?, entry.hash)));
        rule.map_or(0, |(format, hash)| format.rules.peek(hash))
    }

    /// Inserts a prepared rule under this number.
    pub fn insert_filled(&mut self, id: RuleId, mut entry: Box<Entry>, now: Duration) -> Result<(), InsertError> {
        let RuleTemplate { table, format, priority, .. } = entry.template;
        if table.is_some_and(|table| self.table(table).is_none_or(|table| table.used >= table.limit)) {
            return Err(InsertError::TableFull);
        }
        if entry.actions.iter().filter_map(Action::shared).any(|(kind, id)| self.shared.kind(id) != Some(kind)) {
            return Err(InsertError::NotShared);
        }
        let there = self.formats.get(format);
        entry.kind =
            self.place(there, there.is_some_and(|format| format.whole), (entry.hash, &entry.value), priority)?;
        let Some(format) = self.formats.get_mut(format) else { return Err(InsertError::TableFull) };
        format.rules.insert(entry.hash, id);
        match entry.kind {
            Kind::Masked => self.masked += 1,
            Kind::Exact => {
                self.exact += 1;
                self.exact_formats += usize::from(format.exact == 0);
                format.exact += 1;
            }
        }
        if let Some(table) = table.and_then(|table| self.table(table)) {
            table.used += 1;
        }
        self.shared.join(&entry.actions);
        entry.last_hit = now;
        if let Some(deadline) = entry.deadline() {
            self.deadlines.add(deadline, id);
        }
        self.rules.insert(id, entry);
        Ok(())
    }

    fn table(&mut self, id: TableId) -> Option<&mut RuleTable> {
        self.tables.get_mut(id as usize)?.as_mut()
    }

    /// Removes a rule. Returns whether it existed.
    pub fn remove(&mut self, id: RuleId) -> bool {
        let Some(entry) = self.rules.remove(id) else { return false };
        let RuleTemplate { owner, table, format: format_id, .. } = entry.template;
        if let Some(format) = self.formats.get_mut(format_id) {
            format.rules.remove(entry.hash, id);
            match entry.kind {
                Kind::Masked => self.masked -= 1,
                Kind::Exact => {
                    self.exact -= 1;
                    format.exact -= 1;
                    self.exact_formats -= usize::from(format.exact == 0);
                }
            }
        }
        self.formats.tidy(format_id);
        if let Some(table) = table.and_then(|table| self.table(table)) {
            table.used -= 1;
        }
        self.shared.leave(&entry.actions);
        self.forget_age(owner, id, entry.age.map(|_| entry.aged));
        true
    }

    /// Forgets when something ages; says `aged` whether it has, if it ages.
    fn forget_age(&mut self, owner: u16, id: RuleId, aged: Option<bool>) {
        match aged {
            None => {}
            Some(true) => {
                self.aged.entry(owner).or_default().remove(&id);
            }
            Some(false) => {
                let is_there = |id| self.rules.get(id).is_some() || self.shared.kind(id).is_some();
                self.deadlines.forget_one(is_there);
            }
        }
    }

    /// Makes an action that rules can share. Returns its number.
    pub fn share(&mut self, owner: u16, action: Shared) -> RuleId {
        let id = self.reserve_ids(1).start;
        if let Some(deadline) = action.deadline() {
            self.deadlines.add(deadline, id);
        }
        self.shared.0.insert(id, Sharing { owner, users: 0, action });
        id
    }

    /// Removes a shared action that no rule uses. Returns whether it existed.
    pub fn unshare(&mut self, id: RuleId) -> Result<bool, InUse> {
        match self.shared.0.get(&id) {
            None => return Ok(false),
            Some(sharing) if sharing.users > 0 => return Err(InUse),
            Some(_) => {}
        }
        let Some(Sharing { owner, action, .. }) = self.shared.0.remove(&id) else { return Ok(false) };
        self.forget_age(owner, id, if let Shared::Age { aged, .. } = action { Some(aged) } else { None });
        Ok(true)
    }

    /// The shared actions.
    pub fn shared(&self) -> &SharedActions {
        &self.shared
    }

    /// Counters of a shared action, as the device shows them now; `reset` sets them to zero.
    pub fn shared_counters(&mut self, id: RuleId, now: Duration, reset: bool) -> Option<Counters> {
        let Shared::Count(tally) = self.shared.get_mut(id)? else { return None };
        let shown = tally.show(now, self.faults.counter_delay);
        if reset {
            tally.reset();
        }
        Some(shown)
    }

    /// How long no rule that shares an age has had a packet, and whether it has aged.
    pub fn shared_idle(&mut self, id: RuleId, now: Duration) -> Option<(Duration, bool)> {
        let shared = self.shared.get_mut(id)?;
        let aged = shared.deadline().is_some_and(|deadline| now >= deadline);
        if let Shared::Age { last_hit, .. } = shared { Some((now.saturating_sub(*last_hit), aged)) } else { None }
    }

    /// Changes how a shared action spreads. Says whether it does.
    pub fn set_shared_rss(&mut self, id: RuleId, rss: Arc<Rss>) -> bool {
        let spread = self.shared.get_mut(id).filter(|shared| matches!(shared, Shared::Rss(_)));
        spread.map(|shared| *shared = Shared::Rss(rss)).is_some()
    }

    /// Changes when a shared action ages, or has it be as if a packet had come. Says whether it ages. That a shorter time is over
    /// is told when the longer one would have been.
    pub fn set_shared_age(&mut self, id: RuleId, timeout: Option<Duration>, touch: bool, now: Duration) -> bool {
        let Some(Shared::Age { age, .. }) = self.shared.get_mut(id) else { return false };
        age.timeout = timeout.unwrap_or(age.timeout);
        if touch {
            self.hit_shared(id, 0, now);
        }
        true
    }

    /// A meter.
    pub fn meter(&mut self, id: RuleId) -> Option<&mut Meter> {
        if let Shared::Meter(meter) = self.shared.get_mut(id)? { Some(meter) } else { None }
    }

    /// A connection.
    pub fn connection(&mut self, id: RuleId) -> Option<&mut Connection> {
        if let Shared::Conntrack(connection) = self.shared.get_mut(id)? { Some(connection) } else { None }
    }

    /// A packet came to a rule that shares an action.
    fn hit_shared(&mut self, id: RuleId, bytes: usize, now: Duration) {
        let Some(Sharing { owner, action, .. }) = self.shared.0.get_mut(&id) else { return };
        match action {
            Shared::Count(tally) => tally.count(bytes, now, self.faults.counter_delay),
            Shared::Age { age, last_hit, aged } => {
                *last_hit = now;
                if std::mem::take(aged) {
                    self.aged.entry(*owner).or_default().remove(&id);
                    self.deadlines.add(now + age.timeout, id);
                }
            }
            Shared::Rss(_) | Shared::Meter(_) | Shared::Conntrack(_) => {}
        }
    }

    /// Takes out the rules that were put in through a port.
    pub fn remove_of(&mut self, owner: u16) {
        for id in self.rules.ids(|entry| entry.template.owner == owner) {
            self.remove(id);
        }
    }

    /// Takes away the shared actions that were made through a port and no rule has.
    pub fn unshare_of(&mut self, owner: u16) {
        let of_port = self.shared.0.iter().filter(|(_, sharing)| sharing.owner == owner && sharing.users == 0);
        for id in of_port.map(|(&id, _)| id).collect::<Vec<_>>() {
            let _ = self.unshare(id);
        }
    }

    /// Forgets every rule and what rules share, as a device does that is reset. Numbers are not used again; tables stay open.
    pub fn reset(&mut self) {
        for id in self.rules.ids(|_| true) {
            self.remove(id);
        }
        for id in self.shared.0.keys().copied().collect::<Vec<_>>() {
            let _ = self.unshare(id);
        }
    }

    /// A rule, if it is there.
    pub fn rule(&self, id: RuleId) -> Option<&Entry> {
        self.rules.get(id)
    }

    /// Counters of a rule, as the device shows them now.
    pub fn counters(&mut self, id: RuleId, now: Duration) -> Option<Counters> {
        let delay = self.faults.counter_delay;
        self.rules.get_mut(id).map(|entry| entry.tally.show(now, delay))
    }

    /// Starts a rule's counters again at zero.
    pub fn reset_counters(&mut self, id: RuleId) {
        if let Some(entry) = self.rules.get_mut(id) {
            entry.tally.reset();
        }
    }

    /// How long a rule has had no packet, and whether it has aged.
    pub fn idle(&self, id: RuleId, now: Duration) -> Option<(Duration, bool)> {
        self.rules.get(id).map(|entry| (now.saturating_sub(entry.last_hit), entry.has_aged(now)))
    }

    /// Lists the rules that have aged since it was asked last. Returns the ports they were put in through, one for each rule.
    pub fn expire(&mut self, now: Duration) -> Vec<u16> {
        let mut owners = Vec::new();
        while let Some(id) = self.deadlines.next(now) {
            let (owner, deadline, aged) = match (self.rules.get_mut(id), self.shared.0.get_mut(&id)) {
                (Some(entry), _) => (entry.template.owner, entry.deadline(), &mut entry.aged),
                (None, Some(Sharing { owner, action, .. })) => {
                    let deadline = action.deadline();
                    let Shared::Age { aged, .. } = action else { continue };
                    (*owner, deadline, aged)
                }
                (None, None) => {
                    self.deadlines.found_gone();
                    continue;
                }
            };
            match deadline {
                Some(deadline) if deadline > now => self.deadlines.add(deadline, id),
                _ if *aged => {}
                _ => {
                    *aged = true;
                    self.aged.entry(owner).or_default().insert(id);
                    owners.push(owner);
                }
            }
        }
        owners
    }

    /// The rules of a port that have aged, with the application's name for each if it gave one.
    pub fn aged(&mut self, owner: u16, now: Duration) -> impl Iterator<Item = (RuleId, Option<u64>)> {
        self.expire(now);
        let context = |id| match (self.rules.get(id), self.shared.0.get(&id)) {
            (Some(entry), _) => entry.age?.context,
            (None, Some(Sharing { action: Shared::Age { age, .. }, .. })) => age.context,
            _ => None,
        };
        self.aged.get(&owner).into_iter().flatten().map(move |&id| (id, context(id)))
    }
}

#[cfg(test)]
mod tests;
