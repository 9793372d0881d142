//! Executes the actions of a flow on packets.
//!
//! An [`Executor`] runs the actions on each packet of a burst and hands the results to a [`Sink`]. The last output takes the
//! packet itself; each output before takes a copy, so a flow with one output copies nothing. The only allocations are buffers of
//! the pool. Every dropped packet is reported with a [`DropReason`]; a copy for which the pool has no buffer is counted.

use crate::DropReason;
use crate::action::{Action, HashAlgorithm, Header, HeaderEdit, PortNo, SetField, Userspace};
use crate::extract::{Metadata, ethertype, extract};
use crate::key::{Key, Miniflow, VLAN_PRESENT, field};
use crate::rewrite::{self, Checksum, Layout};
use packet::{L4Checksum, Packet, Pool};

/// An action that is parsed and printed, but not executed yet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the action `{0}` is not supported")]
pub struct Unsupported(pub &'static str);

/// Checks that every action, nested ones included, can be executed.
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
        Action::Output(_)
        | Action::Userspace(_)
        | Action::Set(_)
        | Action::Header(_)
        | Action::Recirc(_)
        | Action::Hash { .. }
        | Action::Trunc(_)
        | Action::Meter(_)
        | Action::Drop => Ok(()),
    })
}

/// Takes the packets that actions produce.
pub trait Sink {
    /// Sends a packet out by a port.
    fn output(&mut self, packet: Packet, port: PortNo);
    /// Sends a packet to the control plane.
    fn userspace(&mut self, packet: Packet, userspace: &Userspace);
    /// Looks a packet up again, with its metadata as the actions left it.
    fn recirculate(&mut self, packet: Packet, metadata: &Metadata<'_>);
    /// Returns whether the meter lets the packet pass.
    fn meter(&mut self, packet: &Packet, meter: u32) -> bool;
    /// Drops a packet.
    fn dropped(&mut self, packet: Packet, reason: DropReason);
}

/// The state of one packet while its actions are executed.
#[derive(Clone, Copy)]
struct PacketState {
    in_port: PortNo,
    packet_type: Option<u16>,
    /// Whether [`Executor::metadata`] belongs to this packet.
    has_metadata: bool,
    /// The limit in bytes that `trunc` set for the next output.
    max_len: Option<u32>,
    /// Whether the packet, or a copy, was sent anywhere.
    sent: bool,
}

/// Executes actions. A worker has one executor.
pub struct Executor {
    pool: Pool,
    /// The metadata (tunnel, marks, hash) of the current packet, as actions have set it.
    metadata: Key,
    miniflow: Miniflow,
    random: u64,
    lost_copies: u64,
}

impl Executor {
    /// Makes an executor that takes the buffers of copies from `pool`.
    pub fn new(pool: Pool) -> Executor {
        use std::hash::{BuildHasher, RandomState};
        let random = RandomState::new().hash_one(0) | 1;
        Executor { pool, metadata: Key::EMPTY, miniflow: Miniflow::default(), random, lost_copies: 0 }
    }

    /// Copies that were not made because the pool was empty.
    pub fn lost_copies(&self) -> u64 {
        self.lost_copies
    }

    /// Runs the actions on each packet.
    pub fn run_burst<S: Sink>(
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
            self.metadata = *rest;
        }
        let mut state = PacketState {
            in_port: metadata.in_port,
            packet_type: metadata.packet_type,
            has_metadata: metadata.rest.is_some(),
            max_len: None,
            sent: false,
        };
        self.run_list(packet, &mut state, actions, sink);
    }

    fn run_list<S: Sink>(&mut self, mut packet: Packet, state: &mut PacketState, actions: &[Action], sink: &mut S) {
        for (i, action) in actions.iter().enumerate() {
            let is_last = i + 1 == actions.len();
            let Some(left) = self.run_action(packet, state, action, is_last, sink) else { return };
            packet = left;
        }
        if !state.sent {
            sink.dropped(packet, DropReason::FlowDrop);
        }
    }

    fn run_action<S: Sink>(
        &mut self,
        packet: Packet,
        state: &mut PacketState,
        action: &Action,
        is_last: bool,
        sink: &mut S,
    ) -> Option<Packet> {
        match action {
            Action::Output(port) => self.send(packet, state, is_last, sink, |packet, sink| sink.output(packet, *port)),
            Action::Userspace(to) => self.send(packet, state, is_last, sink, |packet, sink| sink.userspace(packet, to)),
            Action::Set(set) => self.set_fields(packet, state, set, sink),
            Action::Meter(meter) if sink.meter(&packet, *meter) => Some(packet),
            Action::Meter(_) => drop_packet(packet, DropReason::Metered, sink),
            Action::Drop => {
                state.sent = true;
                drop_packet(packet, DropReason::FlowDrop, sink)
            }
            Action::Trunc(len) => {
                state.max_len = Some(*len);
                Some(packet)
            }
            Action::Recirc(id) => self.recirculate(packet, state, *id, is_last, sink),
            Action::Hash { algorithm, basis } => {
                let hash = self.hash(&packet, state, *algorithm, *basis);
                self.metadata_mut(state).set(field::DP_HASH, hash.into());
                Some(packet)
            }
            Action::Sample { probability, actions } if self.next_random() <= *probability && *probability != 0 => {
                self.run_on_copy(packet, state, actions, is_last, sink)
            }
            Action::Sample { .. } => Some(packet),
            Action::Clone(actions) => self.run_on_copy(packet, state, actions, is_last, sink),
            Action::CheckPktLen { size, greater, less_equal } => {
                let chosen = if packet.len() > usize::from(*size) { greater } else { less_equal };
                self.run_on_copy(packet, state, chosen, is_last, sink)
            }
            Action::DecTtl { exceeded } => self.dec_ttl(packet, state, exceeded, sink),
            Action::Header(edit) => match edit_headers(packet, state, edit) {
                Ok(packet) => Some(packet),
                Err((packet, reason)) => drop_packet(packet, reason, sink),
            },
            // No flow has these: `supported` refuses them.
            Action::AddMpls { .. }
            | Action::Ct(_)
            | Action::CtClear
            | Action::TnlPush(_)
            | Action::TnlPop(_)
            | Action::LbOutput(_) => drop_packet(packet, DropReason::NoHeader, sink),
        }
    }

    /// Sends the packet itself if no action follows, else a copy.
    fn send<S: Sink>(
        &mut self,
        packet: Packet,
        state: &mut PacketState,
        is_last: bool,
        sink: &mut S,
        send: impl FnOnce(Packet, &mut S),
    ) -> Option<Packet> {
        state.sent = true;
        let max_len = state.max_len.take();
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
        state: &mut PacketState,
        id: u32,
        is_last: bool,
        sink: &mut S,
    ) -> Option<Packet> {
        let PacketState { in_port, packet_type, has_metadata, .. } = *state;
        let rest = self.metadata;
        self.send(packet, state, is_last, sink, |packet, sink| {
            let packet_len = packet.len() as u32;
            let rest = has_metadata.then_some(&rest);
            sink.recirculate(packet, &Metadata { in_port, recirc_id: id, packet_len, packet_type, rest });
        })
    }

    /// Runs the actions on a copy; their changes do not reach the packet.
    fn run_on_copy<S: Sink>(
        &mut self,
        packet: Packet,
        state: &mut PacketState,
        actions: &[Action],
        is_last: bool,
        sink: &mut S,
    ) -> Option<Packet> {
        let mut inner = *state;
        state.sent = true;
        if is_last {
            self.run_list(packet, &mut inner, actions, sink);
            return None;
        }
        if let Some(copy) = packet.copy(&self.pool) {
            let rest = self.metadata;
            self.run_list(copy, &mut inner, actions, sink);
            self.metadata = rest;
        } else {
            self.lost_copies += 1;
        }
        Some(packet)
    }

    /// The metadata of the current packet, to be changed.
    fn metadata_mut(&mut self, state: &mut PacketState) -> &mut Key {
        if !std::mem::replace(&mut state.has_metadata, true) {
            self.metadata = Key::EMPTY;
        }
        &mut self.metadata
    }

    fn set_fields<S: Sink>(
        &mut self,
        mut packet: Packet,
        state: &mut PacketState,
        set: &SetField,
        sink: &mut S,
    ) -> Option<Packet> {
        match set.header {
            Header::InPort => {
                state.in_port = set.key.get(field::IN_PORT) as PortNo;
                return Some(packet);
            }
            Header::SkbPriority | Header::SkbMark | Header::DpHash | Header::Tunnel => {
                let rest = self.metadata_mut(state);
                let words = rest.words.iter_mut().zip(set.mask.words.iter().zip(&set.key.words));
                words.for_each(|(word, (mask, value))| *word = *word & !mask | value & mask);
                return Some(packet);
            }
            Header::Eth
            | Header::EthType
            | Header::Vlan
            | Header::Mpls
            | Header::Ipv4
            | Header::Ipv6
            | Header::Tcp
            | Header::Udp
            | Header::Sctp
            | Header::Icmp
            | Header::Icmpv6
            | Header::Arp
            | Header::Nd
            | Header::NdExt
            | Header::Nsh => {}
        }
        let mut offload = packet.offload();
        let checksum = if offload.checksum.is_some() { Checksum::Pending } else { Checksum::Complete };
        if rewrite::set(packet.data_mut(), state.packet_type, checksum, set).is_none() {
            return drop_packet(packet, DropReason::NoHeader, sink);
        }
        if set.header == Header::Sctp && checksum == Checksum::Complete {
            // A CRC over the whole packet: left to the port that sends the packet, as a guest leaves it.
            let Some(layout) = Layout::of(packet.data(), state.packet_type) else { return Some(packet) };
            offload.checksum = Some(L4Checksum::Sctp);
            offload.ipv6 = layout.eth_type == ethertype::IPV6;
            offload.l2_len = layout.layer_3 as u8;
            offload.l3_len = if offload.ipv6 { 40 } else { u16::from(packet.data()[layout.layer_3] & 15) * 4 };
            packet.set_offload(&offload);
        }
        Some(packet)
    }

    fn dec_ttl<S: Sink>(
        &mut self,
        mut packet: Packet,
        state: &mut PacketState,
        exceeded: &[Action],
        sink: &mut S,
    ) -> Option<Packet> {
        if rewrite::decrement_ttl(packet.data_mut(), state.packet_type) {
            return Some(packet);
        }
        if exceeded.is_empty() {
            return drop_packet(packet, DropReason::TtlExceeded, sink);
        }
        self.run_list(packet, state, exceeded, sink);
        None
    }

    /// Hashes addresses, protocol and ports of the packet.
    fn hash(&mut self, packet: &Packet, state: &PacketState, algorithm: HashAlgorithm, basis: u32) -> u32 {
        let metadata =
            Metadata { packet_len: packet.len() as u32, packet_type: state.packet_type, ..Metadata::default() };
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

    /// A random number, uniform over `u32` (xorshift64*).
    fn next_random(&mut self) -> u32 {
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

fn drop_packet<S: Sink>(packet: Packet, reason: DropReason, sink: &mut S) -> Option<Packet> {
    sink.dropped(packet, reason);
    None
}

type Edited = Result<Packet, (Packet, DropReason)>;

/// Adds or removes a header.
fn edit_headers(packet: Packet, state: &mut PacketState, edit: &HeaderEdit) -> Edited {
    let layout = Layout::of(packet.data(), state.packet_type);
    let Some(layout) = layout.filter(|layout| layout.layer_3 <= packet.data().len()) else {
        return Err((packet, DropReason::NoHeader));
    };
    let is_mpls = matches!(layout.eth_type, ethertype::MPLS | ethertype::MPLS_MULTICAST);
    match edit {
        HeaderEdit::PushVlan { tpid, tci } if layout.eth_type_at.is_some() => {
            let tag = (u32::from(*tpid) << 16 | u32::from(*tci & !(VLAN_PRESENT as u16))).to_be_bytes();
            insert(packet, 12, &tag)
        }
        HeaderEdit::PopVlan if layout.layer_3 >= 18 => cut(packet, 12, 4),
        HeaderEdit::PushMpls { lse, eth_type } => {
            let mut packet = insert(packet, layout.layer_3, &lse.to_be_bytes())?;
            set_eth_type(&mut packet, &layout, state, *eth_type);
            Ok(packet)
        }
        HeaderEdit::PopMpls { eth_type } if is_mpls && packet.data().len() >= layout.layer_3 + 4 => {
            let mut packet = cut(packet, layout.layer_3, 4)?;
            set_eth_type(&mut packet, &layout, state, *eth_type);
            Ok(packet)
        }
        HeaderEdit::PushEth { src, dst } => {
            let Some(eth_type) = state.packet_type.take() else { return Err((packet, DropReason::NoHeader)) };
            let mut header = [0; 14];
            header[..6].copy_from_slice(&dst.to_be_bytes()[2..]);
            header[6..12].copy_from_slice(&src.to_be_bytes()[2..]);
            header[12..].copy_from_slice(&eth_type.to_be_bytes());
            insert(packet, 0, &header)
        }
        HeaderEdit::PopEth if layout.eth_type_at == Some(12) => {
            state.packet_type = Some(layout.eth_type);
            cut(packet, 0, 14)
        }
        HeaderEdit::PushVlan { .. } | HeaderEdit::PopVlan | HeaderEdit::PopMpls { .. } | HeaderEdit::PopEth => {
            Err((packet, DropReason::NoHeader))
        }
    }
}

/// Puts bytes in at `at`, at the cost of moving what is in front of it.
fn insert(mut packet: Packet, at: usize, bytes: &[u8]) -> Edited {
    let Some(data) = packet.prepend(bytes.len()) else { return Err((packet, DropReason::NoHeadroom)) };
    data.copy_within(bytes.len()..bytes.len() + at, 0);
    data[at..at + bytes.len()].copy_from_slice(bytes);
    move_layer_3(&mut packet, bytes.len() as i16);
    Ok(packet)
}

/// Takes `count` bytes out at `at`.
fn cut(mut packet: Packet, at: usize, count: usize) -> Edited {
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

fn set_eth_type(packet: &mut Packet, layout: &Layout, state: &mut PacketState, eth_type: u16) {
    match layout.eth_type_at {
        Some(at) => packet.data_mut()[at..at + 2].copy_from_slice(&eth_type.to_be_bytes()),
        None => state.packet_type = Some(eth_type),
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("pool", &self.pool).finish_non_exhaustive()
    }
}
