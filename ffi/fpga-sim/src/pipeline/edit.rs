//! Changes to a packet's bytes. What a packet does not have is not changed; sums stay right by RFC 1624.

use super::action::End;
use super::parse::{ETH_LEN, Headers, UDP_LEN, VLAN_LEN, be16, parse, protocol};

/// Bytes of the two MAC addresses.
const MACS: usize = 12;

/// A packet that the pipeline may change.
pub trait Frame {
    /// Bytes of the packet, headers at least.
    fn bytes(&self) -> &[u8];
    /// The same, to be changed.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Length of the whole packet, of which [`bytes`](Self::bytes) may be a part.
    fn total_len(&self) -> usize;
    /// Whether the checksum of its transport header needs no look: it is known to be right, or to be filled in later.
    fn l4_is_checked(&self) -> bool {
        false
    }
    /// More bytes at the front, whatever is in them. Says whether there was room.
    fn grow_front(&mut self, count: usize) -> bool;
    /// Fewer bytes at the front. Says whether there were as many.
    fn shrink_front(&mut self, count: usize) -> bool;
}

impl Frame for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn total_len(&self) -> usize {
        self.len()
    }

    fn grow_front(&mut self, count: usize) -> bool {
        self.splice(..0, std::iter::repeat_n(0, count));
        true
    }

    fn shrink_front(&mut self, count: usize) -> bool {
        let there = count <= self.len();
        if there {
            self.drain(..count);
        }
        there
    }
}

/// The packet could not be changed as a rule wants it: no room in front, or not as long as what is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EditFailed;

/// Makes a packet what it was when its bytes were these; all changes are to them, or in front of them.
pub(super) fn restore(frame: &mut impl Frame, bytes: &[u8]) {
    let now = frame.bytes().len();
    let same = match now.checked_sub(bytes.len()) {
        Some(more) => frame.shrink_front(more),
        None => frame.grow_front(bytes.len() - now),
    };
    if same {
        frame.bytes_mut().copy_from_slice(bytes);
    }
}

pub(super) fn push_vlan(frame: &mut impl Frame, tpid: u16) -> Result<(), EditFailed> {
    let vlans = parse(frame.bytes()).1.vlans;
    let tci = if vlans > 0 { be16(frame.bytes(), ETH_LEN) } else { None };
    if frame.bytes().len() < ETH_LEN || !frame.grow_front(VLAN_LEN) {
        return Err(EditFailed);
    }
    let bytes = frame.bytes_mut();
    bytes.copy_within(VLAN_LEN..VLAN_LEN + MACS, 0);
    bytes[MACS..MACS + 2].copy_from_slice(&tpid.to_be_bytes());
    bytes[ETH_LEN..ETH_LEN + 2].copy_from_slice(&tci.unwrap_or(0).to_be_bytes());
    Ok(())
}

pub(super) fn pop_vlan(frame: &mut impl Frame) -> Result<(), EditFailed> {
    if parse(frame.bytes()).1.vlans == 0 {
        return Ok(());
    }
    frame.bytes_mut().copy_within(..MACS, VLAN_LEN);
    if frame.shrink_front(VLAN_LEN) { Ok(()) } else { Err(EditFailed) }
}

/// Puts `bits` of the front tag's control information where `mask` has ones.
pub(super) fn set_vlan(bytes: &mut [u8], bits: u16, mask: u16) {
    let tci = be16(bytes, ETH_LEN).filter(|_| parse(bytes).1.vlans > 0);
    if let Some(tci) = tci {
        bytes[ETH_LEN..ETH_LEN + 2].copy_from_slice(&(tci & !mask | bits).to_be_bytes());
    }
}

pub(super) fn set_mac(bytes: &mut [u8], end: End, mac: &[u8; 6]) {
    let at = if end == End::Destination { 0 } else { 6 };
    if let Some(place) = bytes.get_mut(at..at + 6) {
        place.copy_from_slice(mac);
    }
}

/// Sets an address of the version that `address` has the length of.
pub(super) fn set_ip(bytes: &mut [u8], end: End, address: &[u8]) {
    let headers = parse(bytes).1;
    let (version, source) = if address.len() == 4 { (4, 12) } else { (6, 8) };
    let Some((_, l3)) = headers.l3.filter(|&(found, _)| found == version) else { return };
    let at = l3 + source + if end == End::Destination { address.len() } else { 0 };
    let old = bytes[at..at + address.len()].to_vec();
    bytes[at..at + address.len()].copy_from_slice(address);
    if version == 4 {
        adjust(bytes, l3 + 10, &old, address);
    }
    adjust_l4(bytes, &headers, &old, address, version == 6);
}

pub(super) fn set_port(bytes: &mut [u8], end: End, port: u16) {
    let headers = parse(bytes).1;
    let Some((protocol::TCP | protocol::UDP, l4)) = headers.l4 else { return };
    let at = l4 + if end == End::Destination { 2 } else { 0 };
    let old = [bytes[at], bytes[at + 1]];
    bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
    adjust_l4(bytes, &headers, &old, &port.to_be_bytes(), false);
}

/// The time to live, where there is one.
pub(super) fn ttl(bytes: &[u8]) -> Option<u8> {
    let (version, l3) = parse(bytes).1.l3?;
    Some(bytes[l3 + if version == 4 { 8 } else { 7 }])
}

pub(super) fn set_ttl(bytes: &mut [u8], ttl: u8) {
    match parse(bytes).1.l3 {
        Some((4, l3)) => {
            let old = [bytes[l3 + 8], bytes[l3 + 9]];
            bytes[l3 + 8] = ttl;
            adjust(bytes, l3 + 10, &old, &[ttl, old[1]]);
        }
        Some((_, l3)) => bytes[l3 + 7] = ttl,
        None => {}
    }
}

/// Puts headers in front, and what depends on the packet's length into them.
pub(super) fn encapsulate(frame: &mut impl Frame, front: &[u8]) -> Result<(), EditFailed> {
    if !frame.grow_front(front.len()) {
        return Err(EditFailed);
    }
    let total = frame.total_len();
    let bytes = frame.bytes_mut();
    bytes[..front.len()].copy_from_slice(front);
    // The headers in front alone: what they carry has its lengths.
    let headers = parse(front).1;
    let Some((version, l3)) = headers.l3 else { return Ok(()) };
    let length = |from: usize| u16::try_from(total - from).map_err(|_| EditFailed).map(u16::to_be_bytes);
    if version == 4 {
        bytes[l3 + 2..l3 + 4].copy_from_slice(&length(l3)?);
        bytes[l3 + 10..l3 + 12].fill(0);
        let end = l3 + usize::from(bytes[l3] & 0xf) * 4;
        let sum = !sum(0, &bytes[l3..end]);
        bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        bytes[l3 + 4..l3 + 6].copy_from_slice(&length(l3 + 40)?);
    }
    if let Some((protocol::UDP, l4)) = headers.l4 {
        bytes[l4 + 4..l4 + 6].copy_from_slice(&length(l4)?);
        // No checksum, as tunnels may (RFC 7348, RFC 6935).
        bytes[l4 + 6..l4 + UDP_LEN].fill(0);
    }
    Ok(())
}

pub(super) fn decapsulate(frame: &mut impl Frame) -> Result<(), EditFailed> {
    let inner = parse(frame.bytes()).1.inner.ok_or(EditFailed)?;
    strip_front(frame, inner)
}

pub(super) fn strip_front(frame: &mut impl Frame, count: usize) -> Result<(), EditFailed> {
    if frame.shrink_front(count) { Ok(()) } else { Err(EditFailed) }
}

/// Adjusts the transport checksum for bytes that it covers; its pseudo-header among them, if `pseudo_v6` in ICMPv6 too.
fn adjust_l4(bytes: &mut [u8], headers: &Headers, old: &[u8], new: &[u8], pseudo_v6: bool) {
    let Some((protocol, l4)) = headers.l4 else { return };
    match protocol {
        protocol::TCP => adjust(bytes, l4 + 16, old, new),
        // Zero is none.
        protocol::UDP if be16(bytes, l4 + 6) != Some(0) => {
            adjust(bytes, l4 + 6, old, new);
            if be16(bytes, l4 + 6) == Some(0) {
                bytes[l4 + 6..l4 + 8].fill(0xff);
            }
        }
        protocol::ICMP6 if pseudo_v6 => adjust(bytes, l4 + 2, old, new),
        _ => {}
    }
}

/// RFC 1624, equation 3: HC' = ~(~HC + ~m + m').
fn adjust(bytes: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    let Some(check) = be16(bytes, at) else { return };
    let removed: Vec<u8> = old.iter().map(|byte| !byte).collect();
    let check = !sum(u32::from(sum(u32::from(!check), &removed)), new);
    bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

/// The ones' complement sum of 16-bit words.
fn sum(start: u32, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])));
    let mut sum = words.fold(start, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
