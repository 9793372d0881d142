//! A TCP segment, as far as a connection has to know it.

use super::edit::Frame;
use super::key::{Layer, field};
use super::parse::{be16, parse, protocol};

const TCP_LEN: usize = 20;
/// Flags and offsets of fragments: of IPv4 and of IPv6.
const IPV4_FRAGMENT: u16 = 0x3fff;
const IPV6_FRAGMENT: u16 = 0xfff9;

/// Control bits (RFC 9293, section 3.1).
pub(super) mod control {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const URG: u8 = 0x20;
}

/// A segment.
pub(super) struct Segment {
    pub seq: u32,
    /// The sequence number behind it; SYN and FIN take one each.
    pub end: u32,
    /// Acknowledgment number, with the flag ACK.
    pub ack: Option<u32>,
    /// The same, or the last that a selective acknowledgment names (RFC 2018).
    pub sack: Option<u32>,
    /// As it stands there.
    pub window: u16,
    control: u8,
}

impl Segment {
    /// Reads a whole segment with right checksums. Nothing for any other packet.
    pub(super) fn read(frame: &impl Frame) -> Option<Segment> {
        let bytes = frame.bytes();
        let (key, headers) = parse(bytes);
        let ((version, l3), (protocol::TCP, l4)) = (headers.l3?, headers.l4?) else { return None };
        let fragment = be16(key.get(Layer::Outer, field::IP_FRAGMENT), 0)?;
        if fragment & if version == 4 { IPV4_FRAGMENT } else { IPV6_FRAGMENT } != 0 {
            return None;
        }
        // What is behind the packet that IP knows is padding of Ethernet.
        let ip_len: usize =
            if version == 4 { be16(bytes, l3 + 2)?.into() } else { 40 + usize::from(be16(bytes, l3 + 4)?) };
        let len = ip_len.checked_sub(l4 - l3).filter(|len| l4 + len <= frame.total_len())?;
        let header_len = usize::from(*bytes.get(l4 + 12)? >> 4) * 4;
        let payload = len.checked_sub(header_len.max(TCP_LEN))?;
        let header = bytes.get(l4..l4 + header_len).filter(|header| header.len() >= TCP_LEN)?;
        let control = header[13] & (control::FIN | control::SYN | control::RST | control::ACK | control::URG);
        let right = version == 6 || sum(&bytes[l3..l4]) == 0xffff;
        if !right || !is_sensible(control) || !frame.l4_is_checked() && !is_intact(bytes, (version, l3), l4, len) {
            return None;
        }
        let word = |at| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = payload as u32 + u32::from(control & control::SYN != 0) + u32::from(control & control::FIN != 0);
        // Some stacks have RST with ACK acknowledge nothing.
        let acknowledges = control & control::ACK != 0 && !(control & control::RST != 0 && word(8) == 0);
        let ack = acknowledges.then(|| word(8));
        let sack = ack.map(|ack| last_sacked(&header[TCP_LEN..], ack));
        let window = u16::from_be_bytes([header[14], header[15]]);
        Some(Segment { seq: word(4), end: word(4).wrapping_add(length), ack, sack, window, control })
    }

    /// Whether it has this control bit.
    pub(super) fn has(&self, control: u8) -> bool {
        self.control & control != 0
    }
}

/// Whether one sequence number is behind another (RFC 9293, section 3.4).
pub(super) fn is_after(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() > 0
}

/// Control bits that a segment can have together.
fn is_sensible(control: u8) -> bool {
    use control::{ACK, FIN, RST, SYN, URG};
    const FIN_ACK: u8 = FIN | ACK;
    const SYN_ACK: u8 = SYN | ACK;
    const RST_ACK: u8 = RST | ACK;
    match control & !URG {
        SYN | FIN_ACK | ACK => true,
        SYN_ACK | RST | RST_ACK => control & URG == 0,
        _ => false,
    }
}

/// Whether the checksum is right, where all that it is over can be seen.
fn is_intact(bytes: &[u8], (version, l3): (u8, usize), l4: usize, len: usize) -> bool {
    let Some(segment) = bytes.get(l4..l4 + len) else { return true };
    let addresses = if version == 4 { l3 + 12..l3 + 20 } else { l3 + 8..l3 + 40 };
    let pseudo = u32::from(sum(&bytes[addresses])) + u32::from(protocol::TCP) + len as u32;
    fold(pseudo + u32::from(sum(segment))) == 0xffff
}

/// The one's complement sum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    fold(words.sum())
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The last sequence number that options acknowledge selectively, or `ack`.
fn last_sacked(mut options: &[u8], ack: u32) -> u32 {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const SACK: u8 = 5;
    let mut last = ack;
    loop {
        match options {
            [] | [END, ..] => return last,
            [NOP, rest @ ..] => options = rest,
            &[kind, len, ..] if len >= 2 && usize::from(len) <= options.len() => {
                let (option, rest) = options.split_at(usize::from(len));
                let (edges, _) = option[2..].as_chunks::<8>();
                for edge in edges.iter().filter(|_| kind == SACK) {
                    let right = u32::from_be_bytes([edge[4], edge[5], edge[6], edge[7]]);
                    last = if is_after(right, last) { right } else { last };
                }
                options = rest;
            }
            _ => return last,
        }
    }
}
