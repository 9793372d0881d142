//! Checksums, completed in software for receivers that cannot.

use crate::headers::{Headers, protocol};
use crate::{L4Checksum, Offload, Packet};
use crc_fast::CrcAlgorithm;

/// Where the checksum stands in its header.
const IPV4_CHECKSUM: usize = 10;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const SCTP_CHECKSUM: usize = 8;

impl L4Checksum {
    /// Where it stands in its header.
    pub fn offset(self) -> usize {
        match self {
            L4Checksum::Tcp => TCP_CHECKSUM,
            L4Checksum::Udp => UDP_CHECKSUM,
            L4Checksum::Sctp => SCTP_CHECKSUM,
        }
    }
}

/// The ones' complement sum of `bytes` and `start` (RFC 1071): what a checksum is the complement of.
#[inline]
pub fn internet_checksum(start: u32, bytes: &[u8]) -> u16 {
    // Eight bytes at a time: such a sum does not mind in which order, width or byte order it is taken.
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let sum = words.iter().chain([&last]).fold(0_u64, |sum, word| {
        let word = u64::from_ne_bytes(*word);
        sum + (word & 0xffff_ffff) + (word >> 32)
    });
    let sum = u16::from_be_bytes(fold(sum).to_ne_bytes());
    fold(u64::from(start) + u64::from(sum))
}

#[inline(always)]
fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header of the IP packet that starts `ip`, for `len` bytes of L4 (RFC 9293, 3.1; RFC 8200, 8.1).
pub(crate) fn pseudo_header(ip: &[u8], ipv6: bool, protocol: u8, len: usize) -> u16 {
    let addresses = if ipv6 { &ip[8..40] } else { &ip[12..20] };
    let (high, low) = (len as u32 >> 16, len as u32 & 0xffff);
    internet_checksum(u32::from(protocol) + high + low, addresses)
}

/// Writes the checksum of an IPv4 header.
pub(crate) fn set_ipv4_checksum(header: &mut [u8]) {
    header[IPV4_CHECKSUM..][..2].fill(0);
    let sum = !internet_checksum(0, header);
    header[IPV4_CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
}

impl Packet {
    /// Completes the checksum that was left to do. What was to be segmented stays to be segmented.
    pub fn complete_checksum(&mut self) {
        let offload = self.offload();
        let Some(kind) = offload.checksum else { return };
        let start = usize::from(offload.l2_len) + usize::from(offload.l3_len);
        match kind {
            L4Checksum::Sctp => self.complete_sctp(start),
            L4Checksum::Tcp | L4Checksum::Udp => {
                self.complete_sum(start, kind.offset());
            }
        }
        self.set_offload(&Offload { checksum: None, ..offload });
    }

    /// Completes the Internet checksum over all from `start` on, stored at `start + offset`, where the sum of the pseudo header
    /// stands. `false` when that is outside the packet or not in its first segment: nothing is done.
    pub fn complete_sum(&mut self, start: usize, offset: usize) -> bool {
        let at = start.saturating_add(offset);
        if self.data().len() < at.saturating_add(2) {
            return false;
        }
        let sum = !self.sum_from(start, 0);
        // "If the computed checksum is zero, it is transmitted as all ones" (RFC 768); for TCP the two are equal.
        let sum = if sum == 0 { 0xffff } else { sum };
        self.data_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        true
    }

    /// CRC32c over the SCTP packet, with zeros in its own place (RFC 9260, 6.8).
    fn complete_sctp(&mut self, start: usize) {
        let at = start + SCTP_CHECKSUM;
        if self.data().len() < at + 4 {
            return;
        }
        self.data_mut()[at..at + 4].fill(0);
        let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
        for (index, segment) in self.segments().enumerate() {
            digest.update(if index == 0 { &segment[start..] } else { segment });
        }
        self.data_mut()[at..at + 4].copy_from_slice(&(digest.finalize() as u32).to_le_bytes());
    }

    /// Whether the L4 checksum of an unfragmented TCP or UDP packet is right; `None` for what is neither.
    pub fn verify_checksum(&self) -> Option<bool> {
        let headers = Headers::parse(self.data())?;
        if headers.fragment || !matches!(headers.protocol, protocol::TCP | protocol::UDP) {
            return None;
        }
        let start = headers.l4_start();
        let ip = &self.data()[headers.l2_len..];
        let pseudo = pseudo_header(ip, headers.ipv6, headers.protocol, self.len() - start);
        Some(self.sum_from(start, pseudo) == 0xffff)
    }

    /// The sum of `first` and all bytes from `start` on, which is in the first segment.
    fn sum_from(&self, start: usize, first: u16) -> u16 {
        let (mut sum, mut odd) = (u32::from(first), false);
        for (index, segment) in self.segments().enumerate() {
            let bytes = if index == 0 { &segment[start..] } else { segment };
            let part = internet_checksum(0, bytes);
            // Bytes behind an odd count of them stand in the other half of a word.
            sum += u32::from(if odd { part.swap_bytes() } else { part });
            odd ^= bytes.len() % 2 == 1;
        }
        fold(u64::from(sum))
    }
}
