//! Changes header fields in place; checksums are updated and never computed anew ([RFC 1624]).
//!
//! Everything here works on the first segment's bytes and does nothing where the header is not there, malformed or cut off.
//!
//! [RFC 1624]: https://www.rfc-editor.org/rfc/rfc1624

use crate::action::{Header, SetField};
use crate::extract::{ethertype, protocol};
use crate::key::{Field, Key, Mask, VLAN_PRESENT, Wide, field};

/// Where the headers of a packet are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// Where the ethertype before layer 3 is; none without an Ethernet header.
    pub(crate) eth_type_at: Option<usize>,
    pub(crate) eth_type: u16,
    pub(crate) layer_3: usize,
}

/// A transport header that is there.
#[derive(Clone, Copy)]
struct Transport {
    at: usize,
    protocol: u8,
}

/// How the transport checksum stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checksum {
    /// Complete.
    Complete,
    /// The field holds the sum of the pseudo header; the port that sends the packet completes it.
    Pending,
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn put16(data: &mut [u8], at: usize, value: u16) {
    if let Some(bytes) = data.get_mut(at..at + 2) {
        bytes.copy_from_slice(&value.to_be_bytes());
    }
}

impl Layout {
    /// Looks for the headers; `packet_type` is the ethertype of a packet without an Ethernet header.
    pub(crate) fn of(data: &[u8], packet_type: Option<u16>) -> Option<Layout> {
        if let Some(eth_type) = packet_type {
            return Some(Layout { eth_type_at: None, eth_type, layer_3: 0 });
        }
        let mut at = 12;
        let mut eth_type = be16(data, at)?;
        while matches!(eth_type, ethertype::VLAN | ethertype::QINQ) {
            at += 4;
            eth_type = be16(data, at)?;
        }
        Some(Layout { eth_type_at: Some(at), eth_type, layer_3: at + 2 })
    }

    /// The transport header, unless this is a later fragment.
    fn transport(&self, data: &[u8]) -> Option<Transport> {
        let packet = data.get(self.layer_3..)?;
        match self.eth_type {
            ethertype::IPV4 => {
                let header = packet.first_chunk::<20>()?;
                let is_later = be16(header, 6)? & 0x1fff != 0;
                let length = usize::from(header[0] & 15) * 4;
                (!is_later && length >= 20).then_some(Transport { at: self.layer_3 + length, protocol: header[9] })
            }
            ethertype::IPV6 => {
                let mut protocol = packet.first_chunk::<40>()?[6];
                let mut at = 40;
                while matches!(protocol, 0 | 43 | 44 | 51 | 60) {
                    let extension = packet.get(at..)?.first_chunk::<8>()?;
                    if protocol == protocol::FRAGMENT && be16(extension, 2)? >> 3 != 0 {
                        return None;
                    }
                    at += match protocol {
                        protocol::FRAGMENT => 8,
                        51 => ((usize::from(extension[1]) + 2) * 4).max(8),
                        _ => (usize::from(extension[1]) + 1) * 8,
                    };
                    protocol = extension[0];
                }
                Some(Transport { at: self.layer_3 + at, protocol })
            }
            _ => None,
        }
    }
}

impl Transport {
    /// Where the checksum is. None where there is none that addresses go into: SCTP, ICMP, UDP without.
    fn checksum_at(&self, data: &[u8], with_addresses: bool) -> Option<usize> {
        let at = self.at
            + match self.protocol {
                protocol::TCP => 16,
                protocol::UDP => 6,
                protocol::ICMPV6 => 2,
                protocol::ICMP if !with_addresses => 2,
                _ => return None,
            };
        let checksum = be16(data, at)?;
        (self.protocol != protocol::UDP || checksum != 0).then_some(at)
    }
}

/// The checksum after 16-bit words changed: RFC 1624, equation 3.
fn update(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte))).sum()
    };
    let complement: u32 = old.len().div_ceil(2) as u32 * 0xffff - words(old);
    let mut sum = u32::from(!checksum) + complement + words(new);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Replaces bytes and returns what was there; none, and nothing done, if they are not all there.
fn replace<const N: usize>(
    data: &mut [u8],
    at: usize,
    change: impl Fn([u8; N]) -> [u8; N],
) -> Option<([u8; N], [u8; N])> {
    let bytes = data.get_mut(at..)?.first_chunk_mut::<N>()?;
    let old = *bytes;
    *bytes = change(old);
    Some((old, *bytes))
}

fn fix_checksum(data: &mut [u8], at: usize, old: &[u8], new: &[u8], is_udp: bool) {
    if let Some(checksum) = be16(data, at) {
        let updated = update(checksum, old, new);
        put16(data, at, if is_udp && updated == 0 { 0xffff } else { updated });
    }
}

/// Changes one header as the action says. `data` is the first segment.
pub(crate) fn set(data: &mut [u8], packet_type: Option<u16>, checksum: Checksum, set: &SetField) -> Option<()> {
    let layout = Layout::of(data, packet_type)?;
    let rewrite = Rewrite { key: &set.key, mask: &set.mask, layout, checksum };
    match set.header {
        Header::Eth => {
            layout.eth_type_at?;
            rewrite.plain::<6>(data, 0, field::ETH_DST)?;
            rewrite.plain::<6>(data, 6, field::ETH_SRC)
        }
        Header::EthType => rewrite.plain::<2>(data, layout.eth_type_at?, field::ETH_TYPE),
        Header::Vlan => rewrite.vlan(data),
        Header::Mpls => (0..3).try_for_each(|i| rewrite.plain::<4>(data, layout.layer_3 + 4 * i, field::MPLS[i])),
        Header::Ipv4 => rewrite.ipv4(data),
        Header::Ipv6 => rewrite.ipv6(data),
        Header::Tcp => rewrite.ports(data, protocol::TCP),
        Header::Udp => rewrite.ports(data, protocol::UDP),
        Header::Sctp => rewrite.ports(data, protocol::SCTP),
        Header::Icmp => rewrite.icmp(data, protocol::ICMP),
        Header::Icmpv6 => rewrite.icmp(data, protocol::ICMPV6),
        Header::Arp => rewrite.arp(data),
        Header::Nd => rewrite.neighbour(data),
        // Not executed yet.
        Header::NdExt | Header::Nsh => None,
        // Not in the packet.
        Header::Tunnel | Header::InPort | Header::SkbPriority | Header::SkbMark | Header::DpHash => None,
    }
}

struct Rewrite<'a> {
    key: &'a Key,
    mask: &'a Mask,
    layout: Layout,
    checksum: Checksum,
}

impl Rewrite<'_> {
    /// A field of `N` bytes, without any checksum. Nothing is done where the mask is 0.
    fn change<const N: usize>(&self, data: &mut [u8], at: usize, field: Field) -> Option<([u8; N], [u8; N])> {
        let (value, bits) = (self.key.get(field), self.mask.get(field));
        if bits == 0 {
            return Some(([0; N], [0; N]));
        }
        replace(data, at, |old| {
            let mut wide = [0; 8];
            wide[8 - N..].copy_from_slice(&old);
            let new = u64::from_be_bytes(wide) & !bits | value & bits;
            let mut bytes = [0; N];
            bytes.copy_from_slice(&new.to_be_bytes()[8 - N..]);
            bytes
        })
    }

    fn plain<const N: usize>(&self, data: &mut [u8], at: usize, field: Field) -> Option<()> {
        self.change::<N>(data, at, field).map(|_| ())
    }

    fn change_wide(&self, data: &mut [u8], at: usize, wide: Wide) -> Option<([u8; 16], [u8; 16])> {
        let (value, bits) = (self.key.get_wide(wide), self.mask.get_wide(wide));
        replace(data, at, |old| (u128::from_be_bytes(old) & !bits | value & bits).to_be_bytes())
    }

    fn vlan(&self, data: &mut [u8]) -> Option<()> {
        if !matches!(be16(data, 12)?, ethertype::VLAN | ethertype::QINQ) {
            return None;
        }
        let (tci, bits) = (self.key.get(field::VLAN_TCI[0]), self.mask.get(field::VLAN_TCI[0]) & !VLAN_PRESENT);
        put16(data, 14, be16(data, 14)? & !(bits as u16) | (tci & bits) as u16);
        Some(())
    }

    /// An address changed: so do the checksums that cover the pseudo header.
    fn address_changed(&self, data: &mut [u8], old: &[u8], new: &[u8]) {
        let Some(transport) = self.layout.transport(data) else { return };
        let Some(at) = transport.checksum_at(data, true) else { return };
        match self.checksum {
            Checksum::Complete => fix_checksum(data, at, old, new, transport.protocol == protocol::UDP),
            // Not complemented yet: the update works on the complement.
            Checksum::Pending => {
                if let Some(sum) = be16(data, at) {
                    put16(data, at, !update(!sum, old, new));
                }
            }
        }
    }

    fn ipv4(&self, data: &mut [u8]) -> Option<()> {
        let at = self.layout.layer_3;
        if self.layout.eth_type != ethertype::IPV4 || data.len() < at + 20 {
            return None;
        }
        for (offset, field) in [(12, field::IPV4_SRC), (16, field::IPV4_DST)] {
            let (old, new) = self.change::<4>(data, at + offset, field)?;
            if old != new {
                fix_checksum(data, at + 10, &old, &new, false);
                self.address_changed(data, &old, &new);
            }
        }
        // Type of service and TTL are halves of two words.
        for (offset, field) in [(1, field::NW_TOS), (8, field::NW_TTL)] {
            let (old, new) = self.change::<1>(data, at + offset, field)?;
            if old != new {
                let word = |byte: u8| if offset == 1 { [0, byte] } else { [byte, 0] };
                fix_checksum(data, at + 10, &word(old[0]), &word(new[0]), false);
            }
        }
        Some(())
    }

    fn ipv6(&self, data: &mut [u8]) -> Option<()> {
        let at = self.layout.layer_3;
        if self.layout.eth_type != ethertype::IPV6 || data.len() < at + 40 {
            return None;
        }
        for (offset, wide) in [(8, field::IPV6_SRC), (24, field::IPV6_DST)] {
            let (old, new) = self.change_wide(data, at + offset, wide)?;
            if old != new {
                self.address_changed(data, &old, &new);
            }
        }
        let bits = |field: Field, shift: u32| {
            ((self.key.get(field) & self.mask.get(field)) << shift, self.mask.get(field) << shift)
        };
        let (class, class_mask) = bits(field::NW_TOS, 20);
        let (label, label_mask) = bits(field::IPV6_LABEL, 0);
        let mask = (class_mask | label_mask) as u32;
        replace::<4>(data, at, |old| (u32::from_be_bytes(old) & !mask | (class | label) as u32).to_be_bytes())?;
        self.plain::<1>(data, at + 7, field::NW_TTL)
    }

    /// Ports. The CRC of SCTP is left to the port that sends the packet: see [`crate::execute`].
    fn ports(&self, data: &mut [u8], protocol: u8) -> Option<()> {
        let transport = self.layout.transport(data).filter(|transport| transport.protocol == protocol)?;
        for (offset, field) in [(0, field::TP_SRC), (2, field::TP_DST)] {
            let (old, new) = self.change::<2>(data, transport.at + offset, field)?;
            if old != new
                && self.checksum == Checksum::Complete
                && let Some(at) = transport.checksum_at(data, false)
            {
                fix_checksum(data, at, &old, &new, protocol == protocol::UDP);
            }
        }
        Some(())
    }

    fn icmp(&self, data: &mut [u8], protocol: u8) -> Option<()> {
        let transport = self.layout.transport(data).filter(|transport| transport.protocol == protocol)?;
        for (offset, field) in [(0, field::TP_SRC), (1, field::TP_DST)] {
            let (value, bits) = (self.key.get(field) as u8, self.mask.get(field) as u8);
            let (old, new) = replace::<1>(data, transport.at + offset, |old| [old[0] & !bits | value & bits])?;
            let word = |byte: u8| if offset == 0 { [byte, 0] } else { [0, byte] };
            fix_checksum(data, transport.at + 2, &word(old[0]), &word(new[0]), false);
        }
        Some(())
    }

    fn arp(&self, data: &mut [u8]) -> Option<()> {
        let at = self.layout.layer_3;
        if !matches!(self.layout.eth_type, ethertype::ARP | ethertype::RARP) || data.len() < at + 28 {
            return None;
        }
        self.plain::<2>(data, at + 6, field::NW_PROTO)?;
        self.plain::<6>(data, at + 8, field::ARP_SHA)?;
        self.plain::<4>(data, at + 14, field::IPV4_SRC)?;
        self.plain::<6>(data, at + 18, field::ARP_THA)?;
        self.plain::<4>(data, at + 24, field::IPV4_DST)
    }

    fn neighbour(&self, data: &mut [u8]) -> Option<()> {
        let transport = self.layout.transport(data).filter(|transport| transport.protocol == protocol::ICMPV6)?;
        if !matches!(data.get(transport.at)?, 135 | 136) {
            return None;
        }
        let checksum = transport.at + 2;
        let (old, new) = self.change_wide(data, transport.at + 8, field::ND_TARGET)?;
        fix_checksum(data, checksum, &old, &new, false);
        let mut at = transport.at + 24;
        while let (Some(kind), Some(length)) =
            (data.get(at).copied(), data.get(at + 1).map(|length| usize::from(*length) * 8))
        {
            let field = match kind {
                1 => field::ARP_SHA,
                2 => field::ARP_THA,
                _ if length == 0 => break,
                _ => {
                    at += length;
                    continue;
                }
            };
            let (old, new) = self.change::<6>(data, at + 2, field)?;
            fix_checksum(data, checksum, &old, &new, false);
            at += length.max(8);
        }
        Some(())
    }
}

/// Lowers TTL or hop limit by one. False, and nothing done, if it was 1 or less; true where there is none.
pub(crate) fn decrement_ttl(data: &mut [u8], packet_type: Option<u16>) -> bool {
    let Some(layout) = Layout::of(data, packet_type) else { return true };
    let at = layout.layer_3;
    let ttl_at = at + if layout.eth_type == ethertype::IPV4 { 8 } else { 7 };
    let Some(ttl) = data.get_mut(ttl_at).filter(|_| matches!(layout.eth_type, ethertype::IPV4 | ethertype::IPV6))
    else {
        return true;
    };
    if *ttl <= 1 {
        return false;
    }
    let old = *ttl;
    *ttl -= 1;
    if layout.eth_type == ethertype::IPV4 {
        fix_checksum(data, at + 10, &[old, 0], &[old - 1, 0], false);
    }
    true
}
