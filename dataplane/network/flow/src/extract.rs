//! From the bytes of a packet to its [`Miniflow`], in one pass and without allocation.
//!
//! Only the first segment is read. A header that is malformed or cut off ends the pass: the fields of it and of what it would
//! carry stay 0, what came before is kept, so a broken packet still has a key that a flow can match on. Padding behind the
//! length of the IP header is never read as payload.

use crate::key::{GENEVE_BYTES, Key, MPLS_LABELS, Miniflow, NARROW, VLAN_PRESENT, VLAN_TAGS, WORDS, field, frag};

/// Numbers of the headers that are understood.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// Reverse ARP.
    pub const RARP: u16 = 0x8035;
    /// A VLAN tag.
    pub const VLAN: u16 = 0x8100;
    /// A service VLAN tag.
    pub const QINQ: u16 = 0x88a8;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// MPLS.
    pub const MPLS: u16 = 0x8847;
    /// MPLS with upstream labels.
    pub const MPLS_MULTICAST: u16 = 0x8848;
    /// Network service header.
    pub const NSH: u16 = 0x894f;
    /// The key of a frame with a length (IEEE 802.3) and no SNAP header.
    pub const NONE: u16 = 0x05ff;
    /// The smallest that is a type and not a length.
    pub const MIN: u16 = 0x0600;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// What is known of a packet besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Metadata<'a> {
    /// Port that the packet came in by.
    pub in_port: u32,
    /// 0 for a packet from a port, else what the `recirc` action gave it.
    pub recirc_id: u32,
    /// Bytes of the packet over all its segments; 0 where the first is all of it.
    pub packet_len: u32,
    /// The ethertype of a packet that has no Ethernet header.
    pub packet_type: Option<u16>,
    /// Where there is any: tunnel, connection tracking, marks and hash. Fields of the packet itself are not taken from it.
    pub rest: Option<&'a Key>,
}

/// The first word of what [`Metadata::rest`] gives.
const FIRST_REST: usize = field::SKB_PRIORITY.word();
const _: () = assert!(field::GENEVE + GENEVE_BYTES / 8 <= WORDS);

/// The four words that nearly every packet fills, before they are stored.
#[derive(Default)]
struct Hot {
    eth_dst: u64,
    eth_src: u64,
    eth_type: u16,
    protocol: u8,
    frag: u8,
    tos: u8,
    ttl: u8,
    ns: u8,
    tcp_flags: u16,
    ports: u32,
    ipv4: u64,
    vlans: u64,
}

/// Fills `out` with the key of a packet, given the bytes of its first segment.
#[inline]
pub fn extract(frame: &[u8], metadata: &Metadata<'_>, out: &mut Miniflow) {
    out.clear_beyond_narrow();
    out.len = if metadata.packet_len == 0 { frame.len() as u32 } else { metadata.packet_len };
    out.key.words[0] = u64::from(metadata.in_port) << 32 | u64::from(metadata.recirc_id);
    if let Some(rest) = metadata.rest {
        (FIRST_REST..WORDS).for_each(|i| out.put(i, rest.words[i]));
    }
    if metadata.packet_type.is_none()
        && let Some((head, tcp_flags)) = ipv4_common(frame, out.len)
    {
        let words = &mut out.key.words;
        words[1] = be64(head, 0) & !0xffff | u64::from(ethertype::IPV4);
        words[2] = be64(head, 6) & !0xffff | u64::from(head[23]) << 8 | frag::NO;
        words[3] = be64(head, 26);
        words[4] = u64::from(be32(head, 34)) << 32
            | u64::from(tcp_flags) << 16
            | u64::from(head[15]) << 8
            | u64::from(head[22]);
        words[5] = 0;
        return;
    }
    let mut hot = Hot::default();
    layer_2(frame, metadata, &mut hot, out);
    let words = &mut out.key.words;
    words[1] = hot.eth_dst << 16 | u64::from(hot.eth_type);
    words[2] = hot.eth_src << 16 | u64::from(hot.protocol) << 8 | u64::from(hot.frag);
    words[3] = hot.ipv4;
    words[4] = u64::from(hot.ports) << 32
        | u64::from(hot.ns) << 28
        | u64::from(hot.tcp_flags) << 16
        | u64::from(hot.tos) << 8
        | u64::from(hot.ttl);
    words[5] = hot.vlans;
}

/// What is counted of a packet whose flow is known: its length and its TCP flags. No more of `out` is good afterwards.
#[inline]
pub fn extract_counted(frame: &[u8], metadata: &Metadata<'_>, out: &mut Miniflow) {
    let len = if metadata.packet_len == 0 { frame.len() as u32 } else { metadata.packet_len };
    match ipv4_common(frame, len) {
        Some((_, tcp_flags)) if metadata.packet_type.is_none() => {
            out.len = len;
            out.key.set(field::TCP_FLAGS, tcp_flags.into());
        }
        _ => extract(frame, metadata, out),
    }
}

/// The headers and TCP flags of an untagged IPv4 packet without options or fragments that carries TCP or UDP.
#[inline]
fn ipv4_common(frame: &[u8], len: u32) -> Option<(&[u8; 54], u16)> {
    const ETHERNET: usize = 14;
    const IPV4: usize = 20;
    let head = frame.first_chunk::<{ ETHERNET + IPV4 + 20 }>()?;
    let total = usize::from(be16(head, 16));
    let packet_type_version = be32(head, 12) & 0xffff_ff00;
    let fragment = be16(head, 20) & 0x3fff;
    if packet_type_version != 0x0800_4500 || fragment != 0 || total > (len as usize).saturating_sub(ETHERNET) {
        return None;
    }
    match head[23] {
        protocol::TCP => {
            let header = usize::from(head[46] >> 4) * 4;
            let whole = header >= 20 && total >= IPV4 + header && frame.len() >= ETHERNET + IPV4 + header;
            whole.then(|| (head, be16(head, 46) & 0xfff))
        }
        protocol::UDP if total >= IPV4 + 8 => Some((head, 0)),
        _ => None,
    }
}

fn layer_2(frame: &[u8], metadata: &Metadata<'_>, hot: &mut Hot, out: &mut Miniflow) {
    let mut at = 0;
    if let Some(packet_type) = metadata.packet_type {
        hot.ns = 1;
        hot.eth_type = packet_type;
        out.put(field::PACKET_TYPE_ID.word(), u64::from(packet_type) << 8);
    } else {
        let Some(head) = frame.first_chunk::<14>() else { return };
        hot.eth_dst = be64(head, 0) >> 16;
        hot.eth_src = be64(head, 6) >> 16;
        at = 12;
        for tag in 0..VLAN_TAGS {
            let Some(vlan) = frame[at..].first_chunk::<6>() else { break };
            let tpid = be16(vlan, 0);
            if tpid != ethertype::VLAN && tpid != ethertype::QINQ {
                break;
            }
            let tci = u64::from(be16(vlan, 2)) | VLAN_PRESENT;
            hot.vlans |= (u64::from(tpid) << 16 | tci) << (32 - 32 * tag);
            at += 4;
        }
        at = ethertype(frame, at, hot);
    }
    let rest = &frame[at..];
    match hot.eth_type {
        ethertype::IPV4 => ipv4(rest, out.len as usize - at, hot, out),
        ethertype::IPV6 => ipv6(rest, out.len as usize - at, hot, out),
        ethertype::ARP | ethertype::RARP => arp(rest, hot, out),
        ethertype::MPLS | ethertype::MPLS_MULTICAST => mpls(rest, out),
        ethertype::NSH => nsh(rest, out),
        _ => {}
    }
}

/// The ethertype at `at`, from a SNAP header if there is a length instead. Returns where its payload begins.
fn ethertype(frame: &[u8], at: usize, hot: &mut Hot) -> usize {
    hot.eth_type = be16(frame, at);
    let payload = at + 2;
    if hot.eth_type >= ethertype::MIN {
        return payload;
    }
    hot.eth_type = ethertype::NONE;
    match frame[payload..].first_chunk::<8>() {
        Some(llc) if llc[..6] == [0xaa, 0xaa, 3, 0, 0, 0] && be16(llc, 6) >= ethertype::MIN => {
            hot.eth_type = be16(llc, 6);
            payload + 8
        }
        _ => payload,
    }
}

fn ipv4(data: &[u8], packet_len: usize, hot: &mut Hot, out: &mut Miniflow) {
    let Some(head) = data.first_chunk::<20>() else { return };
    let (header, total) = (usize::from(head[0] & 15) * 4, usize::from(be16(head, 2)));
    if head[0] >> 4 != 4 || header < 20 || header > total || total > packet_len || header > data.len() {
        return;
    }
    hot.ipv4 = be64(head, 12);
    hot.tos = head[1];
    hot.ttl = head[8];
    hot.protocol = head[9];
    let fragment = be16(head, 6);
    hot.frag = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => frag::NO,
        (0, _) => frag::FIRST,
        _ => frag::LATER,
    } as u8;
    layer_4(&data[header..total.min(data.len())], hot, out);
}

fn ipv6(data: &[u8], packet_len: usize, hot: &mut Hot, out: &mut Miniflow) {
    let Some(head) = data.first_chunk::<40>() else { return };
    let payload = usize::from(be16(head, 4));
    if head[0] >> 4 != 6 || payload + 40 > packet_len {
        return;
    }
    (0..4).for_each(|i| out.put(field::IPV6_SRC.word() + i, be64(head, 8 + 8 * i)));
    let mut data = &data[40..(40 + payload).min(data.len())];
    let mut protocol = head[6];
    let mut fragment = frag::NO;
    // RFC 8200, section 4: extension headers, each at least 8 bytes long, begin with the number of the next.
    loop {
        let length = |unit: usize, more: usize| data.get(1).map(|length| (usize::from(*length) + more) * unit);
        let length = match protocol {
            0 | 43 | 60 => length(8, 1),
            51 => length(4, 2),
            protocol::FRAGMENT => Some(8),
            _ => break,
        };
        let Some((extension, rest)) = length.and_then(|length| data.split_at_checked(length.max(8))) else { return };
        let is_fragment = protocol == protocol::FRAGMENT;
        protocol = extension[0];
        data = rest;
        if is_fragment {
            let offset_and_more = be16(extension, 2) & 0xfff9;
            if offset_and_more & 0xfff8 != 0 {
                fragment = frag::LATER;
                protocol = protocol::FRAGMENT;
                break;
            }
            if offset_and_more != 0 {
                fragment = frag::FIRST;
            }
        }
    }
    let class_label = be32(head, 0);
    hot.tos = (class_label >> 20) as u8;
    hot.ttl = head[7];
    hot.protocol = protocol;
    hot.frag = fragment as u8;
    out.put(
        field::IPV6_LABEL.word(),
        out.key.words[field::IPV6_LABEL.word()] | u64::from(class_label & 0xf_ffff) << 32,
    );
    layer_4(data, hot, out);
}

fn layer_4(data: &[u8], hot: &mut Hot, out: &mut Miniflow) {
    if u64::from(hot.frag) == frag::LATER {
        return;
    }
    match hot.protocol {
        protocol::TCP => {
            let Some(head) = data.first_chunk::<20>() else { return };
            let header = usize::from(head[12] >> 4) * 4;
            if header >= 20 && header <= data.len() {
                hot.ports = be32(head, 0);
                hot.tcp_flags = be16(head, 12) & 0xfff;
            }
        }
        protocol::UDP if data.len() >= 8 => hot.ports = be32(data, 0),
        protocol::SCTP if data.len() >= 12 => hot.ports = be32(data, 0),
        protocol::ICMP if hot.eth_type == ethertype::IPV4 && data.len() >= 8 => {
            hot.ports = u32::from(data[0]) << 16 | u32::from(data[1]);
        }
        protocol::ICMPV6 if hot.eth_type == ethertype::IPV6 && data.len() >= 8 => {
            hot.ports = u32::from(data[0]) << 16 | u32::from(data[1]);
            if matches!(data[0], 135 | 136) && data[1] == 0 {
                neighbour(data, out);
            }
        }
        _ => {}
    }
}

/// Neighbour solicitation and advertisement: RFC 4861, sections 4.3, 4.4 and 4.6.1. Where an option is malformed or there
/// twice the message counts as having no target and no addresses.
fn neighbour(data: &[u8], out: &mut Miniflow) {
    out.put(field::ND_RESERVED.word(), u64::from(be32(data, 4)));
    let Some(target) = data[8..].first_chunk::<16>() else { return };
    let mut link_layer = [0; 2]; // source, target
    let mut option_type = 0;
    let mut options = &data[24..];
    while options.len() >= 8 {
        let length = usize::from(options[1]) * 8;
        let Some((option, rest)) = options.split_at_checked(length).filter(|_| length != 0) else { return };
        if matches!(option[0], 1 | 2) && length == 8 {
            let address = &mut link_layer[usize::from(option[0]) - 1];
            if *address != 0 {
                return;
            }
            *address = be64(option, 0) & 0xffff_ffff_ffff;
            option_type = option[0];
        }
        options = rest;
    }
    out.put(field::ND_TARGET.word(), be64(target, 0));
    out.put(field::ND_TARGET.word() + 1, be64(target, 8));
    out.put(field::ARP_SHA.word(), link_layer[0]);
    out.put(field::ARP_THA.word(), link_layer[1]);
    let word = field::ND_OPTIONS_TYPE.word();
    out.put(word, out.key.words[word] | u64::from(option_type));
}

/// ARP for IPv4 on Ethernet.
fn arp(data: &[u8], hot: &mut Hot, out: &mut Miniflow) {
    let Some(arp) = data.first_chunk::<28>() else { return };
    if arp[..6] != [0, 1, 8, 0, 6, 4] {
        return;
    }
    if arp[6] == 0 {
        hot.protocol = arp[7];
    }
    hot.ipv4 = u64::from(be32(arp, 14)) << 32 | u64::from(be32(arp, 24));
    out.put(field::ARP_SHA.word(), be64(arp, 8) >> 16);
    out.put(field::ARP_THA.word(), be64(arp, 18) >> 16);
}

/// RFC 3032: label stack entries up to the one with the bottom bit.
fn mpls(data: &[u8], out: &mut Miniflow) {
    let mut labels = [0; MPLS_LABELS];
    for (label, entry) in labels.iter_mut().zip(data.chunks_exact(4)) {
        *label = u64::from(be32(entry, 0));
        if *label & 0x100 != 0 {
            break;
        }
    }
    out.put(field::MPLS[0].word(), labels[0] << 32 | labels[1]);
    out.put(field::MPLS[2].word(), labels[2] << 32);
}

/// RFC 8300, section 2: base header, service path, and the context of metadata type 1.
fn nsh(data: &[u8], out: &mut Miniflow) {
    let Some(head) = data.first_chunk::<8>() else { return };
    let base = be16(head, 0);
    let length = usize::from(base & 0x3f) * 4;
    if base >> 14 != 0 || length < 8 || length > data.len() {
        return;
    }
    let (flags, ttl) = (u64::from(base >> 12 & 3), u64::from(base >> 6 & 0x3f));
    if head[2] == 1 {
        let Some(context) = data.first_chunk::<24>().filter(|_| length == 24) else { return };
        out.put(field::NSH_C[0].word(), be64(context, 8));
        out.put(field::NSH_C[2].word(), be64(context, 16));
    }
    out.put(
        field::NSH_FLAGS.word(),
        flags << 56 | ttl << 48 | u64::from(head[2]) << 40 | u64::from(head[3]) << 32 | u64::from(be32(head, 4)),
    );
}

impl Miniflow {
    /// Sets the words of the packet before to 0, but for the first, which are always written.
    #[inline]
    fn clear_beyond_narrow(&mut self) {
        const NARROW_BITS: u64 = (1 << NARROW) - 1;
        let mut stale = self.map & !NARROW_BITS;
        while stale != 0 {
            self.key.words[stale.trailing_zeros() as usize] = 0;
            stale &= stale - 1;
        }
        self.map = NARROW_BITS;
    }

    #[inline]
    fn put(&mut self, word: usize, value: u64) {
        self.key.words[word] = value;
        self.map |= u64::from(value != 0) << word;
    }
}

#[inline]
fn be16(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([data[at], data[at + 1]])
}

#[inline]
fn be32(data: &[u8], at: usize) -> u32 {
    u32::from(be16(data, at)) << 16 | u32::from(be16(data, at + 2))
}

#[inline]
fn be64(data: &[u8], at: usize) -> u64 {
    u64::from(be32(data, at)) << 32 | u64::from(be32(data, at + 4))
}
