//! The slow twins: key extraction that reads a number at a time, and a classifier that looks at every flow. They are written to be
//! obviously right; tests and fuzz targets hold the fast ones against them.

use crate::extract::Metadata;
use crate::key::{Key, Mask, VLAN_PRESENT, field, frag};

/// Numbers out of bytes; none past the end.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    /// Bytes of the packet from here on, over all segments.
    packet_len: usize,
}

impl<'a> Reader<'a> {
    fn number(&self, at: usize, len: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn wide(&self, at: usize) -> Option<u128> {
        Some(u128::from(self.number(at, 8)?) << 64 | u128::from(self.number(at + 8, 8)?))
    }

    fn skip(&self, len: usize) -> Option<Reader<'a>> {
        Some(Reader { bytes: self.bytes.get(len..)?, packet_len: self.packet_len.checked_sub(len)? })
    }

    fn cut(&self, len: usize) -> Reader<'a> {
        Reader { bytes: &self.bytes[..len.min(self.bytes.len())], packet_len: self.packet_len.min(len) }
    }
}

/// The key of a packet, given the bytes of its first segment.
pub fn extract(frame: &[u8], metadata: &Metadata<'_>) -> Key {
    let mut key = Key::EMPTY;
    if let Some(rest) = metadata.rest {
        let first = field::SKB_PRIORITY.word();
        key.words[first..].copy_from_slice(&rest.words[first..]);
    }
    key.set(field::IN_PORT, metadata.in_port.into());
    key.set(field::RECIRC_ID, metadata.recirc_id.into());
    let packet_len = if metadata.packet_len == 0 { frame.len() } else { metadata.packet_len as usize };
    let reader = Reader { bytes: frame, packet_len };
    if let Some(packet_type) = metadata.packet_type {
        key.set(field::PACKET_TYPE_NS, 1);
        key.set(field::PACKET_TYPE_ID, packet_type.into());
        key.set(field::ETH_TYPE, packet_type.into());
        let _ = layer_3(reader, &mut key);
    } else {
        let _ = ethernet(reader, &mut key);
    }
    key
}

fn ethernet(frame: Reader<'_>, key: &mut Key) -> Option<()> {
    frame.number(0, 14)?;
    key.set(field::ETH_DST, frame.number(0, 6)?);
    key.set(field::ETH_SRC, frame.number(6, 6)?);
    let mut at = 12;
    for tag in 0..2 {
        let tpid = frame.number(at, 2)?;
        let has_next = frame.number(at + 4, 2).is_some();
        if !matches!(tpid, 0x8100 | 0x88a8) || !has_next {
            break;
        }
        key.set(field::VLAN_TPID[tag], tpid);
        key.set(field::VLAN_TCI[tag], frame.number(at + 2, 2)? | VLAN_PRESENT);
        at += 4;
    }
    let mut eth_type = frame.number(at, 2)?;
    at += 2;
    if eth_type < 0x600 {
        eth_type = 0x5ff;
        let is_snap = frame.number(at, 6) == Some(0xaaaa_0300_0000);
        if let Some(inner) = frame.number(at + 6, 2).filter(|inner| is_snap && *inner >= 0x600) {
            eth_type = inner;
            at += 8;
        }
    }
    key.set(field::ETH_TYPE, eth_type);
    layer_3(frame.skip(at)?, key)
}

fn layer_3(packet: Reader<'_>, key: &mut Key) -> Option<()> {
    match key.get(field::ETH_TYPE) {
        0x0800 => ipv4(packet, key),
        0x86dd => ipv6(packet, key),
        0x0806 | 0x8035 => arp(packet, key),
        0x8847 | 0x8848 => mpls(packet, key),
        0x894f => nsh(packet, key),
        _ => None,
    }
}

fn ipv4(packet: Reader<'_>, key: &mut Key) -> Option<()> {
    let (version, header) = (packet.number(0, 1)? >> 4, (packet.number(0, 1)? & 15) as usize * 4);
    let total = packet.number(2, 2)? as usize;
    packet.number(19, 1)?;
    if version != 4 || header < 20 || header > total || total > packet.packet_len {
        return None;
    }
    let payload = packet.cut(total).skip(header)?;
    key.set(field::NW_TOS, packet.number(1, 1)?);
    key.set(field::NW_TTL, packet.number(8, 1)?);
    key.set(field::NW_PROTO, packet.number(9, 1)?);
    key.set(field::IPV4_SRC, packet.number(12, 4)?);
    key.set(field::IPV4_DST, packet.number(16, 4)?);
    let (more, offset) = (packet.number(6, 2)? & 0x2000 != 0, packet.number(6, 2)? & 0x1fff);
    if offset != 0 {
        key.set(field::NW_FRAG, frag::LATER);
        return None;
    }
    key.set(field::NW_FRAG, if more { frag::FIRST } else { frag::NO });
    layer_4(payload, key)
}

fn ipv6(packet: Reader<'_>, key: &mut Key) -> Option<()> {
    packet.number(39, 1)?;
    let length = packet.number(4, 2)? as usize;
    if packet.number(0, 1)? >> 4 != 6 || 40 + length > packet.packet_len {
        return None;
    }
    key.set_wide(field::IPV6_SRC, packet.wide(8)?);
    key.set_wide(field::IPV6_DST, packet.wide(24)?);
    let mut payload = packet.cut(40 + length).skip(40)?;
    let mut protocol = packet.number(6, 1)?;
    let mut fragment = frag::NO;
    while matches!(protocol, 0 | 43 | 44 | 51 | 60) {
        let length = match protocol {
            44 => 8,
            51 => ((payload.number(1, 1)? + 2) * 4).max(8),
            _ => (payload.number(1, 1)? + 1) * 8,
        };
        let next = payload.skip(length as usize)?;
        let is_fragment = protocol == 44;
        protocol = payload.number(0, 1)?;
        if is_fragment && payload.number(2, 2)? >> 3 != 0 {
            fragment = frag::LATER;
            protocol = 44;
            break;
        }
        if is_fragment && payload.number(3, 1)? & 1 != 0 {
            fragment = frag::FIRST;
        }
        payload = next;
    }
    key.set(field::IPV6_LABEL, packet.number(0, 4)? & 0xf_ffff);
    key.set(field::NW_TOS, packet.number(0, 2)? >> 4 & 0xff);
    key.set(field::NW_TTL, packet.number(7, 1)?);
    key.set(field::NW_PROTO, protocol);
    key.set(field::NW_FRAG, fragment);
    if fragment == frag::LATER { None } else { layer_4(payload, key) }
}

fn layer_4(segment: Reader<'_>, key: &mut Key) -> Option<()> {
    let is_ipv6 = key.get(field::ETH_TYPE) == 0x86dd;
    let protocol = key.get(field::NW_PROTO);
    match protocol {
        6 => {
            let header = (segment.number(12, 1)? >> 4) as usize * 4;
            segment.number(header.max(20) - 1, 1)?;
            if header < 20 {
                return None;
            }
            key.set(field::TCP_FLAGS, segment.number(12, 2)? & 0xfff);
        }
        17 => drop(segment.number(7, 1)?),
        132 => drop(segment.number(11, 1)?),
        1 if !is_ipv6 => {
            segment.number(7, 1)?;
            key.set(field::TP_SRC, segment.number(0, 1)?);
            key.set(field::TP_DST, segment.number(1, 1)?);
            return None;
        }
        58 if is_ipv6 => {
            segment.number(7, 1)?;
            key.set(field::TP_SRC, segment.number(0, 1)?);
            key.set(field::TP_DST, segment.number(1, 1)?);
            return neighbour(segment, key);
        }
        _ => return None,
    }
    key.set(field::TP_SRC, segment.number(0, 2)?);
    key.set(field::TP_DST, segment.number(2, 2)?);
    None
}

fn neighbour(message: Reader<'_>, key: &mut Key) -> Option<()> {
    if !matches!(message.number(0, 2)?, 0x8700 | 0x8800) {
        return None;
    }
    key.set(field::ND_RESERVED, message.number(4, 4)?);
    let target = message.wide(8)?;
    let mut options = message.skip(24)?;
    let (mut source, mut link_layer, mut last) = (0, 0, 0);
    while options.bytes.len() >= 8 {
        let length = options.number(1, 1)? as usize * 8;
        let next = options.skip(length).filter(|_| length > 0)?;
        let kind = options.number(0, 1)?;
        if length == 8 && (kind == 1 || kind == 2) {
            let address = if kind == 1 { &mut source } else { &mut link_layer };
            if *address != 0 {
                return None;
            }
            *address = options.number(2, 6)?;
            last = kind;
        }
        options = next;
    }
    key.set_wide(field::ND_TARGET, target);
    key.set(field::ARP_SHA, source);
    key.set(field::ARP_THA, link_layer);
    key.set(field::ND_OPTIONS_TYPE, last);
    None
}

fn arp(packet: Reader<'_>, key: &mut Key) -> Option<()> {
    packet.number(27, 1)?;
    if packet.number(0, 6)? != 0x0001_0800_0604 {
        return None;
    }
    key.set(field::NW_PROTO, Some(packet.number(6, 2)?).filter(|operation| *operation < 256).unwrap_or(0));
    key.set(field::ARP_SHA, packet.number(8, 6)?);
    key.set(field::IPV4_SRC, packet.number(14, 4)?);
    key.set(field::ARP_THA, packet.number(18, 6)?);
    key.set(field::IPV4_DST, packet.number(24, 4)?);
    None
}

fn mpls(packet: Reader<'_>, key: &mut Key) -> Option<()> {
    for (i, entry) in field::MPLS.iter().enumerate() {
        let lse = packet.number(i * 4, 4)?;
        key.set(*entry, lse);
        if lse >> 8 & 1 == 1 {
            break;
        }
    }
    None
}

fn nsh(packet: Reader<'_>, key: &mut Key) -> Option<()> {
    packet.number(7, 1)?;
    let base = packet.number(0, 2)?;
    let length = (base & 0x3f) as usize * 4;
    if base >> 14 != 0 || length < 8 || length > packet.bytes.len() {
        return None;
    }
    if packet.number(2, 1)? == 1 {
        if length != 24 {
            return None;
        }
        for (i, context) in field::NSH_C.iter().enumerate() {
            key.set(*context, packet.number(8 + 4 * i, 4)?);
        }
    }
    key.set(field::NSH_FLAGS, base >> 12 & 3);
    key.set(field::NSH_TTL, base >> 6 & 0x3f);
    key.set(field::NSH_MDTYPE, packet.number(2, 1)?);
    key.set(field::NSH_NP, packet.number(3, 1)?);
    key.set(field::NSH_SPI, packet.number(4, 3)?);
    key.set(field::NSH_SI, packet.number(7, 1)?);
    None
}

/// A list of flows, all of which are looked at.
#[derive(Clone, Debug, Default)]
pub struct LinearClassifier<T> {
    flows: Vec<(Key, Mask, T)>,
}

impl<T: Copy + PartialEq> LinearClassifier<T> {
    /// An empty list.
    pub fn new() -> LinearClassifier<T> {
        LinearClassifier { flows: Vec::new() }
    }

    /// Adds a flow.
    pub fn insert(&mut self, key: Key, mask: Mask, value: T) {
        self.flows.push((key, mask, value));
    }

    /// Takes flows out.
    pub fn remove(&mut self, value: T) {
        self.flows.retain(|(_, _, other)| *other != value);
    }

    /// The first flow that the packet matches.
    pub fn lookup(&self, packet: &Key) -> Option<T> {
        self.flows.iter().find(|(key, mask, _)| packet.matches(key, mask)).map(|(_, _, value)| *value)
    }

    /// A flow that some packet could match besides one of this key and mask.
    pub fn overlap(&self, key: &Key, mask: &Mask) -> Option<T> {
        let overlaps = |(other, other_mask, _): &&(Key, Mask, T)| other.matches(key, &other_mask.intersection(mask));
        self.flows.iter().find(overlaps).map(|(_, _, value)| *value)
    }
}
