//! A packet's metadata through the rules.

use super::key::{field, source};
use super::{
    Action, Destination, Domain, EditFailed, Frame, Key, Layer, Pipeline, Restore, Shared, SharedKind, Source, Tunnel,
    edit, key, parse, toeplitz,
};
use std::time::Duration;

/// The end of a packet's walk through the rules.
enum Walk {
    Fate(Action),
    /// In this group.
    Miss(u32),
    EditFailed,
    /// There was one action more to do than the fault lets be done.
    Aborted,
}

/// The metadata of a packet in the pipeline.
struct Metadata {
    from: Source,
    mark: Option<u32>,
    /// The tunnel from which a rule took the packet.
    tunnel: Option<Tunnel>,
}

impl Pipeline {
    /// Applies the rules to a packet. Returns the destination.
    pub fn process(&mut self, frame: &mut impl Frame, from: Source, now: Duration) -> Destination {
        let mut metadata = Metadata { from, mark: None, tunnel: None };
        if let Source::Representor(port) = from {
            match self.walk(Domain::Egress(port), frame, &mut metadata, now) {
                Walk::Fate(Action::Drop) => return Destination::Nowhere,
                Walk::EditFailed => return self.drop_edit_failed(),
                _ => {}
            }
        }
        let aborts = self.faults.abort_after.is_some() && matches!(from, Source::Represented(_));
        let received = aborts.then(|| frame.bytes().to_vec());
        let (port, restore) = match self.walk(Domain::Transfer, frame, &mut metadata, now) {
            Walk::Fate(Action::ToRepresentor(port)) => (port, None),
            Walk::Fate(Action::ToRepresented(port)) => {
                self.totals.offloaded += 1;
                return Destination::Represented(port);
            }
            Walk::Fate(_) => {
                self.totals.offloaded += 1;
                return Destination::Nowhere;
            }
            Walk::EditFailed => return self.drop_edit_failed(),
            end @ (Walk::Miss(_) | Walk::Aborted) => {
                let port = match from {
                    Source::Representor(port) => return Destination::Represented(port),
                    Source::Represented(port) => port,
                };
                self.totals.missed += 1;
                if let (Walk::Aborted, Some(received)) = (&end, received) {
                    self.totals.aborted += 1;
                    metadata.mark = None;
                    metadata.tunnel = None;
                    edit::restore(frame, &received);
                }
                let begun = !matches!(end, Walk::Miss(0)) || metadata.tunnel.is_some();
                let group = if let Walk::Miss(group) = end { group } else { 0 };
                (port, begun.then_some(Restore { group, tunnel: metadata.tunnel }))
            }
        };
        self.receive(port, frame, (metadata, restore), now)
    }

    /// Applies the ingress rules of a port to a packet for the host.
    fn receive(
        &mut self,
        port: u16,
        frame: &mut impl Frame,
        (mut metadata, mut restore): (Metadata, Option<Restore>),
        now: Duration,
    ) -> Destination {
        let mode = self.modes.get(&port).cloned().unwrap_or_default();
        let rss = match self.walk(Domain::Ingress(port), frame, &mut metadata, now) {
            Walk::Fate(Action::Queue(queue)) => {
                return Destination::Host { port, queue, mark: metadata.mark, hash: None, restore };
            }
            Walk::Fate(Action::Spread(rss)) => Some((*rss).clone()),
            Walk::Fate(Action::Shared(_, id)) => match self.shared.get_mut(id) {
                Some(Shared::Rss(rss)) => Some((**rss).clone()),
                _ => None,
            },
            Walk::Fate(_) => return Destination::Nowhere,
            Walk::EditFailed => return self.drop_edit_failed(),
            Walk::Miss(_) | Walk::Aborted if mode.isolated => return Destination::Nowhere,
            Walk::Miss(group @ 1..) => {
                restore = Some(Restore { group, tunnel: metadata.tunnel });
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
        Destination::Host { port, queue: queue.unwrap_or(0), mark: metadata.mark, hash, restore }
    }

    fn drop_edit_failed(&mut self) -> Destination {
        self.totals.unfit += 1;
        Destination::Nowhere
    }

    /// Applies the rules of a domain to a packet, which they count unless it is aborted.
    fn walk(&mut self, domain: Domain, frame: &mut impl Frame, metadata: &mut Metadata, now: Duration) -> Walk {
        self.met.clear();
        let end = self.follow(domain, frame, metadata, now);
        if !matches!(end, Walk::Aborted) {
            for at in 0..self.met.len() {
                let (id, bytes) = self.met[at];
                let Some(entry) = self.rules.get_mut(id) else { continue };
                entry.count(bytes, now, self.faults.counter_delay);
                if std::mem::take(&mut entry.aged) {
                    self.aged.entry(entry.template.owner).or_default().remove(&id);
                    if let Some(deadline) = entry.deadline() {
                        self.deadlines.add(deadline, id);
                    }
                }
                let actions = entry.actions.clone();
                actions.iter().filter_map(Action::shared).for_each(|(_, id)| self.hit_shared(id, bytes, now));
            }
        }
        end
    }

    /// Applies group after group, until a rule has a fate for the packet or none matches.
    fn follow(&mut self, domain: Domain, frame: &mut impl Frame, metadata: &mut Metadata, now: Duration) -> Walk {
        let aborts = domain == Domain::Transfer && matches!(metadata.from, Source::Represented(_));
        let mut left = self.faults.abort_after.filter(|_| aborts).unwrap_or(u64::MAX);
        let mut group = 0;
        let mut judged = 0;
        loop {
            if !self.formats.has_group(domain, group) {
                return Walk::Miss(group);
            }
            let key = key_of(frame.bytes(), metadata, judged);
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
                match apply(action, frame, metadata) {
                    Ok(()) => {}
                    Err(EditFailed) => return Walk::EditFailed,
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

fn key_of(bytes: &[u8], metadata: &Metadata, judged: u8) -> Key {
    let mut key = parse::parse(bytes).0;
    let (kind, port) = match metadata.from {
        Source::Represented(port) => (source::REPRESENTED, port),
        Source::Representor(port) => (source::REPRESENTOR, port),
    };
    key.set(Layer::Outer, field::SOURCE, &[kind]);
    key.set(Layer::Outer, field::SOURCE_PORT, &port.to_be_bytes());
    key.set(Layer::Outer, field::CONNTRACK, &[judged]);
    if metadata.tunnel.is_some() {
        key.set(Layer::Outer, field::LEFT_TUNNEL, &[key::tunnel::VXLAN]);
    }
    key
}

fn apply(action: &Action, frame: &mut impl Frame, metadata: &mut Metadata) -> Result<(), EditFailed> {
    match action {
        Action::Mark(id) => metadata.mark = Some(*id),
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
            if let Some(ttl) = edit::ttl(frame.bytes()) {
                edit::set_ttl(frame.bytes_mut(), ttl.saturating_sub(1));
            }
        }
        Action::Encapsulate(front) => edit::encapsulate(frame, front)?,
        Action::DecapsulateVxlan => {
            let tunnel = Tunnel::of(frame.bytes());
            edit::decapsulate(frame)?;
            metadata.tunnel = tunnel;
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
