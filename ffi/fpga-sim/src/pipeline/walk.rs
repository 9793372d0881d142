//! A packet's way through the rules.

use super::key::{field, source};
use super::{
    Action, Destination, Domain, Frame, Key, Layer, Pipeline, Restore, Shared, SharedKind, Source, Tunnel, Unfit, edit,
    key, parse, toeplitz,
};
use std::time::Duration;

/// What the rules that a packet met leave of it.
enum Walk {
    Fate(Action),
    /// In this group.
    Miss(u32),
    Unfit,
    /// There was one action more to do than the fault lets be done.
    Aborted,
}

/// What goes with a packet on its way.
struct Way {
    from: Source,
    mark: Option<u32>,
    /// What a rule took it out of.
    tunnel: Option<Tunnel>,
}

impl Pipeline {
    /// Takes a packet to where it goes.
    pub fn process(&mut self, frame: &mut impl Frame, from: Source, now: Duration) -> Destination {
        let mut way = Way { from, mark: None, tunnel: None };
        if let Source::Representor(port) = from {
            match self.walk(Domain::Egress(port), frame, &mut way, now) {
                Walk::Fate(Action::Drop) => return Destination::Nowhere,
                Walk::Unfit => return self.unfit(),
                _ => {}
            }
        }
        let aborts = self.faults.abort_after.is_some() && matches!(from, Source::Represented(_));
        let received = aborts.then(|| frame.bytes().to_vec());
        let (port, restore) = match self.walk(Domain::Transfer, frame, &mut way, now) {
            Walk::Fate(Action::ToRepresentor(port)) => (port, None),
            Walk::Fate(Action::ToRepresented(port)) => {
                self.totals.offloaded += 1;
                return Destination::Represented(port);
            }
            Walk::Fate(_) => {
                self.totals.offloaded += 1;
                return Destination::Nowhere;
            }
            Walk::Unfit => return self.unfit(),
            end @ (Walk::Miss(_) | Walk::Aborted) => {
                let port = match from {
                    Source::Representor(port) => return Destination::Represented(port),
                    Source::Represented(port) => port,
                };
                self.totals.missed += 1;
                if let (Walk::Aborted, Some(received)) = (&end, received) {
                    self.totals.aborted += 1;
                    (way.mark, way.tunnel) = (None, None);
                    edit::restore(frame, &received);
                }
                let begun = !matches!(end, Walk::Miss(0)) || way.tunnel.is_some();
                let group = if let Walk::Miss(group) = end { group } else { 0 };
                (port, begun.then_some(Restore { group, tunnel: way.tunnel }))
            }
        };
        self.receive(port, frame, (way, restore), now)
    }

    /// Has the host receive a packet, as the port's rules say.
    fn receive(
        &mut self,
        port: u16,
        frame: &mut impl Frame,
        (mut way, mut restore): (Way, Option<Restore>),
        now: Duration,
    ) -> Destination {
        let mode = self.modes.get(&port).cloned().unwrap_or_default();
        let rss = match self.walk(Domain::Ingress(port), frame, &mut way, now) {
            Walk::Fate(Action::Queue(queue)) => {
                return Destination::Host { port, queue, mark: way.mark, hash: None, restore };
            }
            Walk::Fate(Action::Spread(rss)) => Some((*rss).clone()),
            Walk::Fate(Action::Shared(_, id)) => match self.shared.get_mut(id) {
                Some(Shared::Rss(rss)) => Some((**rss).clone()),
                _ => None,
            },
            Walk::Fate(_) => return Destination::Nowhere,
            Walk::Unfit => return self.unfit(),
            Walk::Miss(_) | Walk::Aborted if mode.isolated => return Destination::Nowhere,
            Walk::Miss(group @ 1..) => {
                restore = Some(Restore { group, tunnel: way.tunnel });
                mode.rss
            }
            Walk::Miss(0) | Walk::Aborted => mode.rss,
        };
        let hash = rss.as_ref().and_then(|rss| toeplitz::hash(&rss.key, &parse::parse(frame.bytes()).0, rss.ports));
        let queue = match (&rss, hash) {
            (Some(rss), Some(hash)) => rss.queues.get(hash as usize % rss.queues.len().max(1)).copied(),
            (Some(rss), None) => rss.queues.first().copied(),
            (None, _) => None,
        };
        Destination::Host { port, queue: queue.unwrap_or(0), mark: way.mark, hash, restore }
    }

    fn unfit(&mut self) -> Destination {
        self.totals.unfit += 1;
        Destination::Nowhere
    }

    /// Has the rules of a domain act on a packet, and count it if it gets to an end.
    fn walk(&mut self, domain: Domain, frame: &mut impl Frame, way: &mut Way, now: Duration) -> Walk {
        self.met.clear();
        let end = self.follow(domain, frame, way, now);
        if !matches!(end, Walk::Aborted) {
            for at in 0..self.met.len() {
                let (id, bytes) = self.met[at];
                let Some(entry) = self.rules.get_mut(id) else { continue };
                entry.count(bytes, now, self.faults.counter_delay);
                if std::mem::take(&mut entry.aged) {
                    self.aged.entry(entry.blank.owner).or_default().remove(&id);
                    entry.deadline().into_iter().for_each(|deadline| self.deadlines.add(deadline, id));
                }
                let actions = entry.actions.clone();
                actions.iter().filter_map(Action::shared).for_each(|(_, id)| self.hit_shared(id, bytes, now));
            }
        }
        end
    }

    /// Group after group, until a rule says where the packet goes or none wants it.
    fn follow(&mut self, domain: Domain, frame: &mut impl Frame, way: &mut Way, now: Duration) -> Walk {
        let aborts = domain == Domain::Transfer && matches!(way.from, Source::Represented(_));
        let mut left = self.faults.abort_after.filter(|_| aborts).unwrap_or(u64::MAX);
        let mut group = 0;
        let mut judged = 0;
        loop {
            if !self.formats.has_group(domain, group) {
                return Walk::Miss(group);
            }
            let key = key_of(frame.bytes(), way, judged);
            let best = self.formats.lookup(domain, group, &key, |id| self.rules.get(id));
            let Some((id, entry)) = best.and_then(|id| Some((id, self.rules.get(id)?))) else {
                return Walk::Miss(group);
            };
            let last_hop = || edit::ttl(frame.bytes()).is_some_and(|ttl| ttl <= 1);
            if entry.actions.contains(&Action::DecrementTtl) && last_hop() {
                return Walk::Miss(group);
            }
            let mut fate = None;
            let bytes = frame.total_len();
            for action in entry.actions.iter() {
                let Some(fewer) = left.checked_sub(1) else { return Walk::Aborted };
                left = fewer;
                if let Action::Shared(SharedKind::Meter, meter) = action
                    && !self.shared.pass(*meter, frame.total_len(), now)
                {
                    self.met.push((id, bytes));
                    return Walk::Fate(Action::Drop);
                }
                if let Action::Shared(SharedKind::Conntrack, connection) = action {
                    judged = self.shared.judge(*connection, entry.direction, frame);
                }
                match apply(action, frame, way) {
                    Ok(()) => {}
                    Err(Unfit) => return Walk::Unfit,
                }
                fate = action.is_fate().then(|| action.clone());
            }
            self.met.push((id, bytes));
            match fate {
                Some(Action::Jump(next)) => group = next,
                Some(fate) => return Walk::Fate(fate),
                // An egress rule that only counts or changes.
                None => return Walk::Miss(group),
            }
        }
    }
}

fn key_of(bytes: &[u8], way: &Way, judged: u8) -> Key {
    let mut key = parse::parse(bytes).0;
    let (kind, port) = match way.from {
        Source::Represented(port) => (source::REPRESENTED, port),
        Source::Representor(port) => (source::REPRESENTOR, port),
    };
    key.set(Layer::Outer, field::SOURCE, &[kind]);
    key.set(Layer::Outer, field::SOURCE_PORT, &port.to_be_bytes());
    key.set(Layer::Outer, field::CONNTRACK, &[judged]);
    if way.tunnel.is_some() {
        key.set(Layer::Outer, field::LEFT_TUNNEL, &[key::tunnel::VXLAN]);
    }
    key
}

fn apply(action: &Action, frame: &mut impl Frame, way: &mut Way) -> Result<(), Unfit> {
    match action {
        Action::Mark(id) => way.mark = Some(*id),
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
        Action::DecapsulateVxlan => {
            let tunnel = Tunnel::of(frame.bytes());
            edit::decapsulate(frame)?;
            way.tunnel = tunnel;
        }
        Action::StripFront(count) => edit::strip_front(frame, *count)?,
        Action::Drop
        | Action::ToRepresented(_)
        | Action::ToRepresentor(_)
        | Action::Queue(_)
        | Action::Spread(_)
        | Action::Jump(_)
        | Action::Shared(..) => {}
    }
    Ok(())
}
