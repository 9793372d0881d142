//! Segmentation in software: one large TCP or UDP packet becomes many that fit a wire.

use crate::checksum::{pseudo_header, set_ipv4_checksum};
use crate::headers::protocol;
use crate::{L4Checksum, Offload, Packet, Pool};

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const UDP_LEN: usize = 4;
const IPV4_LEN: usize = 2;
const IPV4_ID: usize = 4;
const IPV6_LEN: usize = 4;

/// The segments of a packet, each made when it is asked for. Its checksum is left to do, as it was in the large one.
///
/// Ends early when the pool is empty: what is missing then is [`left`](Self::left).
#[derive(Debug)]
pub struct Segmented<'a> {
    packet: &'a Packet,
    offload: Offload,
    pool: &'a Pool,
    /// The next segment, and its first byte of payload.
    index: usize,
    at: usize,
}

impl Packet {
    /// Cuts the packet as [`Packet::offload`] says. `None` when it is not to be cut, or its headers are not as they must be.
    pub fn segmented<'a>(&'a self, pool: &'a Pool) -> Option<Segmented<'a>> {
        let offload = self.offload();
        let headers = header_len(&offload);
        let ip = if offload.ipv6 { 40 } else { 20 };
        let l4 = if offload.checksum == Some(L4Checksum::Udp) { 8 } else { 20 };
        let whole = usize::from(offload.l3_len) >= ip && usize::from(offload.l4_len) >= l4;
        let fits = offload.segment_size != 0 && whole && offload.checksum.is_some() && self.data().len() >= headers;
        fits.then_some(Segmented { packet: self, offload, pool, index: 0, at: headers })
    }

    /// The bytes from `offset` on, at most `len`, as they lie in the segments.
    fn pieces(&self, mut offset: usize, mut len: usize) -> impl Iterator<Item = &[u8]> {
        self.segments().filter_map(move |segment| {
            let start = offset.min(segment.len());
            let end = segment.len().min(start + len);
            offset -= start;
            len -= end - start;
            (end > start).then(|| &segment[start..end])
        })
    }
}

fn header_len(offload: &Offload) -> usize {
    usize::from(offload.l2_len) + usize::from(offload.l3_len) + usize::from(offload.l4_len)
}

impl Segmented<'_> {
    /// Segments that have not been made.
    pub fn left(&self) -> usize {
        (self.packet.len() - self.at).div_ceil(usize::from(self.offload.segment_size))
    }

    /// Adapts the headers of a segment with `len` bytes of payload (RFC 9293; RFC 768).
    fn adapt(&self, headers: &mut [u8], len: usize, last: bool) {
        let (l2_len, l3_len) = (usize::from(self.offload.l2_len), usize::from(self.offload.l3_len));
        let (ip, l4) = headers[l2_len..].split_at_mut(l3_len);
        let l4_len = l4.len() + len;
        let put = |bytes: &mut [u8], at: usize, value: usize| {
            bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
        };
        if self.offload.ipv6 {
            put(ip, IPV6_LEN, l3_len - 40 + l4_len);
        } else {
            let id = u16::from_be_bytes([ip[IPV4_ID], ip[IPV4_ID + 1]]).wrapping_add(self.index as u16);
            put(ip, IPV4_ID, usize::from(id));
            put(ip, IPV4_LEN, l3_len + l4_len);
            set_ipv4_checksum(ip);
        }
        let kind = if self.offload.checksum == Some(L4Checksum::Udp) {
            put(l4, UDP_LEN, l4_len);
            L4Checksum::Udp
        } else {
            let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            let done = (self.at - header_len(&self.offload)) as u32;
            l4[TCP_SEQUENCE..][..4].copy_from_slice(&sequence.wrapping_add(done).to_be_bytes());
            if !last {
                l4[TCP_FLAGS] &= !(TCP_FIN | TCP_PSH);
            }
            if self.index > 0 {
                l4[TCP_FLAGS] &= !TCP_CWR;
            }
            L4Checksum::Tcp
        };
        let protocol = if kind == L4Checksum::Udp { protocol::UDP } else { protocol::TCP };
        let sum = pseudo_header(ip, self.offload.ipv6, protocol, l4_len);
        put(l4, kind.offset(), usize::from(sum));
    }
}

impl Iterator for Segmented<'_> {
    type Item = Packet;

    fn next(&mut self) -> Option<Packet> {
        let left = self.packet.len() - self.at;
        let len = left.min(usize::from(self.offload.segment_size));
        if len == 0 {
            return None;
        }
        let mut segment = self.pool.take_one()?;
        let headers = segment.append(header_len(&self.offload)).expect("headers fit a buffer");
        headers.copy_from_slice(&self.packet.data()[..headers.len()]);
        self.adapt(headers, len, len == left);
        for piece in self.packet.pieces(self.at, len) {
            if !segment.extend_from_slice(piece, self.pool) {
                return None;
            }
        }
        segment.set_offload(&Offload { segment_size: 0, l4_len: 0, ..self.offload });
        (self.at, self.index) = (self.at + len, self.index + 1);
        Some(segment)
    }
}
