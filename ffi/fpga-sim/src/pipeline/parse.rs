//! A packet's bytes to its key, and to the places of its headers.

use super::key::{Key, Layer, field, present, tunnel};

pub(super) const ETH_LEN: usize = 14;
pub(super) const VLAN_LEN: usize = 4;
pub(super) const UDP_LEN: usize = 8;
pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;
const VLAN_TPIDS: [u16; 2] = [0x8100, 0x88a8];
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;
/// IPv6 extension headers that are walked over: as many as a real parser's few cycles allow.
const EXTENSIONS: usize = 4;

/// Protocol numbers of IP.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP of IPv6.
    pub const ICMP6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// UDP's port of VXLAN.
pub const VXLAN_PORT: u16 = 4789;
/// UDP's port of Geneve.
pub const GENEVE_PORT: u16 = 6081;

/// Where a layer's headers begin; those that are there are whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// VLAN tags.
    pub vlans: usize,
    /// The network header: its version, 4 or 6, and where it begins.
    pub l3: Option<(u8, usize)>,
    /// The transport header: its protocol, and where it begins. A later fragment has none.
    pub l4: Option<(u8, usize)>,
    /// Where the packet begins that a tunnel carries.
    pub inner: Option<usize>,
}

/// Reads a packet.
pub fn parse(bytes: &[u8]) -> (Key, Headers) {
    let mut key = Key::default();
    let mut headers = parse_layer(bytes, 0, Layer::Outer, &mut key);
    headers.inner = parse_tunnel(bytes, &headers, &mut key);
    if let Some(start) = headers.inner {
        parse_layer(bytes, start, Layer::Inner, &mut key);
    }
    (key, headers)
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn parse_layer(bytes: &[u8], start: usize, layer: Layer, key: &mut Key) -> Headers {
    let mut headers = Headers::default();
    let Some(eth) = bytes.get(start..start + ETH_LEN) else { return headers };
    key.set(layer, field::ETH_DST, &eth[..6]);
    key.set(layer, field::ETH_SRC, &eth[6..12]);
    key.set(layer, field::ETH_TYPE, &eth[12..]);
    let mut ethertype = u16::from_be_bytes([eth[12], eth[13]]);
    let mut at = start + ETH_LEN;
    let mut there = 0;
    for (tci, inner_type) in field::VLAN {
        let Some(tag) = bytes.get(at..at + VLAN_LEN).filter(|_| VLAN_TPIDS.contains(&ethertype)) else { break };
        key.set(layer, tci, &tag[..2]);
        key.set(layer, inner_type, &tag[2..]);
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        at += VLAN_LEN;
        there |= if headers.vlans == 0 { present::VLAN } else { present::SECOND_VLAN };
        headers.vlans += 1;
    }
    key.set(layer, field::PRESENT, &[there]);
    match ethertype {
        IPV4 => parse_ipv4(bytes, at, layer, key, &mut headers),
        IPV6 => parse_ipv6(bytes, at, layer, key, &mut headers),
        _ => {}
    }
    headers
}

fn parse_ipv4(bytes: &[u8], at: usize, layer: Layer, key: &mut Key, headers: &mut Headers) {
    let Some(ip) = bytes.get(at..at + 20).filter(|ip| ip[0] >> 4 == 4) else { return };
    let header_len = usize::from(ip[0] & 0xf) * 4;
    if header_len < 20 || bytes.len() < at + header_len {
        return;
    }
    headers.l3 = Some((4, at));
    key.set(layer, field::L3, &[4]);
    key.set(layer, field::IPV4_TOS, &ip[1..2]);
    key.set(layer, field::IP_FRAGMENT, &ip[6..8]);
    key.set(layer, field::IP_TTL, &ip[8..9]);
    key.set(layer, field::IP_PROTOCOL, &ip[9..10]);
    key.set(layer, field::IPV4_SRC, &ip[12..16]);
    key.set(layer, field::IPV4_DST, &ip[16..20]);
    if u16::from_be_bytes([ip[6], ip[7]]) & IPV4_FRAGMENT_OFFSET == 0 {
        parse_l4(bytes, at + header_len, ip[9], layer, key, headers);
    }
}

fn parse_ipv6(bytes: &[u8], at: usize, layer: Layer, key: &mut Key, headers: &mut Headers) {
    let Some(ip) = bytes.get(at..at + 40).filter(|ip| ip[0] >> 4 == 6) else { return };
    headers.l3 = Some((6, at));
    key.set(layer, field::L3, &[6]);
    key.set(layer, field::IP_CLASS, &ip[..4]);
    key.set(layer, field::IP_PROTOCOL, &ip[6..7]);
    key.set(layer, field::IP_TTL, &ip[7..8]);
    key.set(layer, field::IPV6_SRC, &ip[8..24]);
    key.set(layer, field::IPV6_DST, &ip[24..40]);
    let (mut next, mut at) = (ip[6], at + 40);
    for _ in 0..EXTENSIONS {
        match next {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {
                let Some(extension) = bytes.get(at..at + 8) else { return };
                next = extension[0];
                at += 8 * (usize::from(extension[1]) + 1);
            }
            44 => {
                let Some(fragment) = bytes.get(at..at + 8) else { return };
                let there = key.byte(layer, field::PRESENT) | present::IPV6_FRAGMENT;
                key.set(layer, field::PRESENT, &[there]);
                key.set(layer, field::FRAGMENT_NEXT, &fragment[..1]);
                key.set(layer, field::IP_FRAGMENT, &fragment[2..4]);
                if u16::from_be_bytes([fragment[2], fragment[3]]) & IPV6_FRAGMENT_OFFSET != 0 {
                    return;
                }
                next = fragment[0];
                at += 8;
            }
            _ => return parse_l4(bytes, at, next, layer, key, headers),
        }
    }
}

fn parse_l4(bytes: &[u8], at: usize, protocol: u8, layer: Layer, key: &mut Key, headers: &mut Headers) {
    let len = match protocol {
        protocol::TCP => 20,
        protocol::UDP | protocol::ICMP => 8,
        protocol::SCTP => 12,
        protocol::ICMP6 => 4,
        _ => return,
    };
    let Some(header) = bytes.get(at..at + len) else { return };
    headers.l4 = Some((protocol, at));
    key.set(layer, field::L4, &[protocol]);
    match protocol {
        protocol::ICMP => {
            key.set(layer, field::ICMP_TYPE, &header[..1]);
            key.set(layer, field::ICMP_CODE, &header[1..2]);
            key.set(layer, field::ICMP_IDENT, &header[4..6]);
            key.set(layer, field::ICMP_SEQUENCE, &header[6..8]);
        }
        protocol::ICMP6 => {
            key.set(layer, field::ICMP_TYPE, &header[..1]);
            key.set(layer, field::ICMP_CODE, &header[1..2]);
        }
        _ => {
            key.set(layer, field::L4_SRC, &header[..2]);
            key.set(layer, field::L4_DST, &header[2..4]);
            match protocol {
                protocol::TCP => key.set(layer, field::TCP_FLAGS, &header[13..14]),
                protocol::SCTP => key.set(layer, field::SCTP_TAG, &header[4..8]),
                _ => {}
            }
        }
    }
}

/// Reads a tunnel's header. Returns where the packet in it begins.
fn parse_tunnel(bytes: &[u8], headers: &Headers, key: &mut Key) -> Option<usize> {
    const TRANSPARENT_ETHERNET: [u8; 2] = [0x65, 0x58];
    let (_, udp) = headers.l4.filter(|&(protocol, _)| protocol == protocol::UDP)?;
    let at = udp + UDP_LEN;
    let header = bytes.get(at..at + 8)?;
    match be16(bytes, udp + 2)? {
        VXLAN_PORT => {
            key.set(Layer::Outer, field::TUNNEL, &[tunnel::VXLAN]);
            key.set(Layer::Outer, field::TUNNEL_FLAGS, &header[..1]);
            key.set(Layer::Outer, field::VNI, &header[4..7]);
            Some(at + 8)
        }
        GENEVE_PORT => {
            key.set(Layer::Outer, field::TUNNEL, &[tunnel::GENEVE]);
            key.set(Layer::Outer, field::TUNNEL_OPTIONS, &header[..2]);
            key.set(Layer::Outer, field::TUNNEL_PROTOCOL, &header[2..4]);
            key.set(Layer::Outer, field::VNI, &header[4..7]);
            let inner = at + 8 + usize::from(header[0] & 0x3f) * 4;
            (header[2..4] == TRANSPARENT_ETHERNET && inner <= bytes.len()).then_some(inner)
        }
        _ => None,
    }
}
