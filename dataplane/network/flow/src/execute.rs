//! Carrying actions out on packets.
//!
//! An [`Executor`] runs a flow's actions on each packet of a burst and hands the results to a [`Sink`]. The last output takes the
//! packet itself; each one before it takes a copy, so a flow that forwards copies nothing. Nothing here allocates but buffers from
//! the pool. Every packet that goes nowhere is reported with a [`DropReason`]; a copy for which there is no buffer is counted.

use crate::action::{Action, HashAlgorithm, Header, PortNo, SetField, Userspace};
use crate::extract::{Metadata, ethertype, extract};
use crate::key::{Key, Miniflow, VLAN_PRESENT, field};
use crate::rewrite::{self, Checksum, Layout};
use packet::{L4Checksum, Packet, Pool};

/// An action that nothing carries out yet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the action `{0}` is not supported")]
pub struct Unsupported(pub &'static str);

/// Whether every action, however deep, can be carried out.
pub fn supported(actions: &[Action]) -> Result<(), Unsupported> {
    actions.iter().try_for_each(|action| match action {
        Action::Ct(_) => Err(Unsupported("ct")),
        Action::CtClear => Err(Unsupported("ct_clear")),
        Action::TnlPush(_) => Err(Unsupported("tnl_push")),
        Action::TnlPop(_) => Err(Unsupported("tnl_pop")),
        Action::LbOutput(_) => Err(Unsupported("lb_output")),
        Action::AddMpls { .. } => Err(Unsupported("add_mpls")),
        Action::Set(set) if set.header == Header::Nsh => Err(Unsupported("set(nsh)")),
        Action::Set(set) if set.header == Header::NdExt => Err(Unsupported("set(nd_ext)")),
        Action::Sample { actions, .. } | Action::Clone(actions) => supported(actions),
        Action::DecTtl { exceeded } => supported(exceeded),
        Action::CheckPktLen { greater, less_equal, .. } => supported(greater).and_then(|()| supported(less_equal)),
        _ => Ok(()),
    })
}

/// Why a packet, or a copy of one, went nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DropReason {
    /// The flow has no action that sends it anywhere, or says `drop`.
    Action,
    /// A meter said so.
    Meter,
    /// There was no room in front for a header.
    NoHeadroom,
    /// It does not have the header that an action changes or removes.
    NoHeader,
    /// Its TTL is spent and nothing says what to do then.
    TtlExceeded,
}

/// Where packets go.
pub trait Sink {
    /// Out by a port.
    fn output(&mut self, packet: Packet, port: PortNo);
    /// To the control plane.
    fn userspace(&mut self, packet: Packet, userspace: &Userspace);
    /// Back to the look-up, with what is known of it now.
    fn recirculate(&mut self, packet: Packet, metadata: &Metadata<'_>);
    /// Whether the meter lets it pass.
    fn meter(&mut self, packet: &Packet, meter: u32) -> bool;
    /// Nowhere.
    fn dropped(&mut self, packet: Packet, reason: DropReason);
}

/// What is known of one packet under way.
#[derive(Clone, Copy)]
struct Flight {
    in_port: PortNo,
    packet_type: Option<u16>,
    /// Whether [`Executor::rest`] is of this packet and worth looking at.
    has_rest: bool,
    /// From `trunc`: most bytes of the next output.
    max_len: Option<u32>,
    /// Whether it, or a copy, went anywhere.
    sent: bool,
}

/// Carries actions out. A worker has one.
pub struct Executor {
    pool: Pool,
    /// Metadata that actions set, of the packet under way.
    rest: Key,
    miniflow: Miniflow,
    random: u64,
    lost_copies: u64,
}

/// What an action leaves of the packet.
type Left = Option<Packet>;

impl Executor {
    /// `pool` is where copies come from.
    pub fn new(pool: Pool) -> Executor {
        use std::hash::{BuildHasher, RandomState};
        let random = RandomState::new().hash_one(0) | 1;
        Executor { pool, rest: Key::EMPTY, miniflow: Miniflow::default(), random, lost_copies: 0 }
    }

    /// Copies that were not made because the pool was empty.
    pub fn lost_copies(&self) -> u64 {
        self.lost_copies
    }

    /// Runs the actions on each packet.
    pub fn burst<S: Sink>(
        &mut self,
        packets: impl IntoIterator<Item = Packet>,
        metadata: &Metadata<'_>,
        actions: &[Action],
        sink: &mut S,
    ) {
        if let [Action::Output(port)] = actions {
            packets.into_iter().for_each(|packet| sink.output(packet, *port));
            return;
        }
        packets.into_iter().for_each(|packet| self.run(packet, metadata, actions, sink));
    }

    /// Runs the actions on a packet.
    pub fn run<S: Sink>(&mut self, packet: Packet, metadata: &Metadata<'_>, actions: &[Action], sink: &mut S) {
        if let Some(rest) = metadata.rest {
            self.rest = *rest;
        }
        let mut flight = Flight {
            in_port: metadata.in_port,
            packet_type: metadata.packet_type,
            has_rest: metadata.rest.is_some(),
            max_len: None,
            sent: false,
        };
        self.list(packet, &mut flight, actions, sink);
    }

    fn list<S: Sink>(&mut self, mut packet: Packet, flight: &mut Flight, actions: &[Action], sink: &mut S) {
        for (i, action) in actions.iter().enumerate() {
            let is_last = i + 1 == actions.len();
            let Some(left) = self.action(packet, flight, action, is_last, sink) else { return };
            packet = left;
        }
        if !flight.sent {
            sink.dropped(packet, DropReason::Action);
        }
    }

    fn action<S: Sink>(
        &mut self,
        packet: Packet,
        flight: &mut Flight,
        action: &Action,
        is_last: bool,
        sink: &mut S,
    ) -> Left {
        match action {
            Action::Output(port) => self.send(packet, flight, is_last, sink, |packet, sink| sink.output(packet, *port)),
            Action::Userspace(to) => {
                self.send(packet, flight, is_last, sink, |packet, sink| sink.userspace(packet, to))
            }
            Action::Set(set) => self.set(packet, flight, set, sink),
            Action::Meter(meter) if sink.meter(&packet, *meter) => Some(packet),
            Action::Meter(_) => gone(packet, DropReason::Meter, sink),
            Action::Drop => {
                flight.sent = true;
                gone(packet, DropReason::Action, sink)
            }
            Action::Trunc(len) => {
                flight.max_len = Some(*len);
                Some(packet)
            }
            Action::Recirc(id) => self.recirculate(packet, flight, *id, is_last, sink),
            Action::Hash { algorithm, basis } => {
                let hash = self.hash(&packet, flight, *algorithm, *basis);
                self.metadata(flight).set(field::DP_HASH, hash.into());
                Some(packet)
            }
            Action::Sample { probability, actions } if self.chance() <= *probability && *probability != 0 => {
                self.on_copy(packet, flight, actions, is_last, sink)
            }
            Action::Sample { .. } => Some(packet),
            Action::Clone(actions) => self.on_copy(packet, flight, actions, is_last, sink),
            Action::CheckPktLen { size, greater, less_equal } => {
                let chosen = if packet.len() > usize::from(*size) { greater } else { less_equal };
                self.on_copy(packet, flight, chosen, is_last, sink)
            }
            Action::DecTtl { exceeded } => self.dec_ttl(packet, flight, exceeded, sink),
            _ => match change_headers(packet, flight, action) {
                Ok(packet) => Some(packet),
                Err((packet, reason)) => gone(packet, reason, sink),
            },
        }
    }

    /// Sends the packet itself if nothing follows, else a copy.
    fn send<S: Sink>(
        &mut self,
        packet: Packet,
        flight: &mut Flight,
        is_last: bool,
        sink: &mut S,
        send: impl FnOnce(Packet, &mut S),
    ) -> Left {
        flight.sent = true;
        let max_len = flight.max_len.take();
        let (mut out, left) = if is_last {
            (packet, None)
        } else {
            let Some(copy) = packet.copy(&self.pool) else {
                self.lost_copies += 1;
                return Some(packet);
            };
            (copy, Some(packet))
        };
        if let Some(len) = max_len {
            out.truncate(len as usize);
        }
        send(out, sink);
        left
    }

    fn recirculate<S: Sink>(
        &mut self,
        packet: Packet,
        flight: &mut Flight,
        id: u32,
        is_last: bool,
        sink: &mut S,
    ) -> Left {
        let Flight { in_port, packet_type, has_rest, .. } = *flight;
        let rest = self.rest;
        self.send(packet, flight, is_last, sink, |packet, sink| {
            let packet_len = packet.len() as u32;
            let rest = has_rest.then_some(&rest);
            sink.recirculate(packet, &Metadata { in_port, recirc_id: id, packet_len, packet_type, rest });
        })
    }

    /// Runs the actions on a copy; what they change, the packet does not see.
    fn on_copy<S: Sink>(
        &mut self,
        packet: Packet,
        flight: &mut Flight,
        actions: &[Action],
        is_last: bool,
        sink: &mut S,
    ) -> Left {
        let mut inner = *flight;
        flight.sent = true;
        if is_last {
            self.list(packet, &mut inner, actions, sink);
            return None;
        }
        if let Some(copy) = packet.copy(&self.pool) {
            let rest = self.rest;
            self.list(copy, &mut inner, actions, sink);
            self.rest = rest;
        } else {
            self.lost_copies += 1;
        }
        Some(packet)
    }

    /// The metadata of the packet under way, to be changed.
    fn metadata(&mut self, flight: &mut Flight) -> &mut Key {
        if !std::mem::replace(&mut flight.has_rest, true) {
            self.rest = Key::EMPTY;
        }
        &mut self.rest
    }

    fn set<S: Sink>(&mut self, mut packet: Packet, flight: &mut Flight, set: &SetField, sink: &mut S) -> Left {
        match set.header {
            Header::InPort => {
                flight.in_port = set.key.get(field::IN_PORT) as PortNo;
                return Some(packet);
            }
            Header::SkbPriority | Header::SkbMark | Header::DpHash | Header::Tunnel => {
                let rest = self.metadata(flight);
                let words = rest.words.iter_mut().zip(set.mask.words.iter().zip(&set.key.words));
                words.for_each(|(word, (mask, value))| *word = *word & !mask | value & mask);
                return Some(packet);
            }
            _ => {}
        }
        let mut offload = packet.offload();
        let checksum = if offload.checksum.is_some() { Checksum::Pending } else { Checksum::Complete };
        if rewrite::set(packet.data_mut(), flight.packet_type, checksum, set).is_none() {
            return gone(packet, DropReason::NoHeader, sink);
        }
        if set.header == Header::Sctp && checksum == Checksum::Complete {
            // A CRC over the whole packet: left to whoever sends it, as a guest leaves it.
            let Some(layout) = Layout::of(packet.data(), flight.packet_type) else { return Some(packet) };
            offload.checksum = Some(L4Checksum::Sctp);
            offload.ipv6 = layout.eth_type == ethertype::IPV6;
            offload.l2_len = layout.layer_3 as u8;
            offload.l3_len = if offload.ipv6 { 40 } else { u16::from(packet.data()[layout.layer_3] & 15) * 4 };
            packet.set_offload(&offload);
        }
        Some(packet)
    }

    fn dec_ttl<S: Sink>(&mut self, mut packet: Packet, flight: &mut Flight, exceeded: &[Action], sink: &mut S) -> Left {
        if rewrite::decrement_ttl(packet.data_mut(), flight.packet_type) {
            return Some(packet);
        }
        if exceeded.is_empty() {
            return gone(packet, DropReason::TtlExceeded, sink);
        }
        self.list(packet, flight, exceeded, sink);
        None
    }

    /// Over addresses, protocol and ports as they are now.
    fn hash(&mut self, packet: &Packet, flight: &Flight, algorithm: HashAlgorithm, basis: u32) -> u32 {
        let metadata =
            Metadata { packet_len: packet.len() as u32, packet_type: flight.packet_type, ..Metadata::default() };
        extract(packet.data(), &metadata, &mut self.miniflow);
        let key = &self.miniflow.key;
        let ends = [
            (key.get_wide(field::IPV6_SRC), key.get(field::IPV4_SRC), key.get(field::TP_SRC)),
            (key.get_wide(field::IPV6_DST), key.get(field::IPV4_DST), key.get(field::TP_DST)),
        ]
        .map(|(ipv6, ipv4, port)| mix(mix(mix(0, (ipv6 >> 64) as u64), ipv6 as u64), ipv4 << 16 | port));
        let both = match algorithm {
            HashAlgorithm::L4 => mix(ends[0], ends[1]),
            HashAlgorithm::SymL4 => ends[0] ^ ends[1],
        };
        let hash = mix(mix(both, key.get(field::NW_PROTO)), basis.into());
        (hash ^ hash >> 32) as u32
    }

    /// Any number, all equally likely (xorshift64*).
    fn chance(&mut self) -> u32 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    let product = u128::from(hash ^ value ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
    product as u64 ^ (product >> 64) as u64
}

fn gone<S: Sink>(packet: Packet, reason: DropReason, sink: &mut S) -> Left {
    sink.dropped(packet, reason);
    None
}

type Changed = Result<Packet, (Packet, DropReason)>;

/// The actions that add and remove headers.
fn change_headers(packet: Packet, flight: &mut Flight, action: &Action) -> Changed {
    let layout = Layout::of(packet.data(), flight.packet_type);
    let Some(layout) = layout.filter(|layout| layout.layer_3 <= packet.data().len()) else {
        return Err((packet, DropReason::NoHeader));
    };
    let is_mpls = matches!(layout.eth_type, ethertype::MPLS | ethertype::MPLS_MULTICAST);
    match action {
        Action::PushVlan { tpid, tci } if layout.eth_type_at.is_some() => {
            let tag = (u32::from(*tpid) << 16 | u32::from(*tci & !(VLAN_PRESENT as u16))).to_be_bytes();
            insert(packet, 12, &tag)
        }
        Action::PopVlan if layout.layer_3 >= 18 => cut(packet, 12, 4),
        Action::PushMpls { lse, eth_type } => {
            let mut packet = insert(packet, layout.layer_3, &lse.to_be_bytes())?;
            set_eth_type(&mut packet, &layout, flight, *eth_type);
            Ok(packet)
        }
        Action::PopMpls { eth_type } if is_mpls && packet.data().len() >= layout.layer_3 + 4 => {
            let mut packet = cut(packet, layout.layer_3, 4)?;
            set_eth_type(&mut packet, &layout, flight, *eth_type);
            Ok(packet)
        }
        Action::PushEth { src, dst } => {
            let Some(eth_type) = flight.packet_type.take() else { return Err((packet, DropReason::NoHeader)) };
            let mut header = [0; 14];
            header[..6].copy_from_slice(&dst.to_be_bytes()[2..]);
            header[6..12].copy_from_slice(&src.to_be_bytes()[2..]);
            header[12..].copy_from_slice(&eth_type.to_be_bytes());
            insert(packet, 0, &header)
        }
        Action::PopEth if layout.eth_type_at == Some(12) => {
            flight.packet_type = Some(layout.eth_type);
            cut(packet, 0, 14)
        }
        _ => Err((packet, DropReason::NoHeader)),
    }
}

/// Puts bytes in at `at`, at the cost of moving what is in front of it.
fn insert(mut packet: Packet, at: usize, bytes: &[u8]) -> Changed {
    let Some(data) = packet.prepend(bytes.len()) else { return Err((packet, DropReason::NoHeadroom)) };
    data.copy_within(bytes.len()..bytes.len() + at, 0);
    data[at..at + bytes.len()].copy_from_slice(bytes);
    move_layer_3(&mut packet, bytes.len() as i16);
    Ok(packet)
}

/// Takes `count` bytes out at `at`.
fn cut(mut packet: Packet, at: usize, count: usize) -> Changed {
    packet.data_mut().copy_within(..at, count);
    packet.trim_front(count);
    move_layer_3(&mut packet, -(count as i16));
    Ok(packet)
}

fn move_layer_3(packet: &mut Packet, by: i16) {
    let mut offload = packet.offload();
    if !offload.is_none() {
        offload.l2_len = (i16::from(offload.l2_len) + by).max(0) as u8;
        packet.set_offload(&offload);
    }
}

fn set_eth_type(packet: &mut Packet, layout: &Layout, flight: &mut Flight, eth_type: u16) {
    match layout.eth_type_at {
        Some(at) => packet.data_mut()[at..at + 2].copy_from_slice(&eth_type.to_be_bytes()),
        None => flight.packet_type = Some(eth_type),
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("pool", &self.pool).finish_non_exhaustive()
    }
}
