//! Offloads as virtio and the kernel's taps have them: `virtio_net_hdr` (virtio 1.3, 5.1.6).

use crate::headers::protocol;
use crate::{Headers, L4Checksum, Offload, Packet};
use virtio_spec::net::{Header, flag, gso};

/// Fewest bytes that a packet may be cut into: Linux's TCP_MIN_SND_MSS. Less would make thousands of packets of one.
pub const MIN_SEGMENT: u16 = 48;

/// A header that does not fit its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOffload {
    /// The checksum's place is outside the packet.
    #[error("checksum at {start}+{offset}: outside the packet")]
    Checksum {
        /// Where it starts.
        start: u16,
        /// Where it is stored, from there.
        offset: u16,
    },
    /// Segmentation of a kind that is not known, or not of the packet's.
    #[error("GSO type {0}: not known, or not what the packet is")]
    Kind(u8),
    /// Segments of no, or hardly any, bytes.
    #[error("GSO size {0}: expected {MIN_SEGMENT} or more")]
    Size(u16),
}

impl Packet {
    /// Takes over what the sender's header says is left to do, checked against the packet's own headers: the sender may lie. A
    /// checksum that [`Offload`] cannot express is completed here and now.
    #[inline]
    pub fn set_vnet_header(&mut self, header: &Header) -> Result<(), InvalidOffload> {
        if header.flags & flag::NEEDS_CSUM == 0 && header.gso_type == gso::NONE {
            return Ok(());
        }
        self.take_vnet_header(header)
    }

    fn take_vnet_header(&mut self, header: &Header) -> Result<(), InvalidOffload> {
        let Header { flags, gso_type, csum_start, csum_offset, .. } = *header;
        if flags & flag::NEEDS_CSUM == 0 {
            // "If the driver negotiated ... it MUST set VIRTIO_NET_HDR_F_NEEDS_CSUM" for a segmented packet (5.1.6.2.1).
            return Err(InvalidOffload::Kind(gso_type));
        }
        let (start, offset) = (usize::from(csum_start), usize::from(csum_offset));
        if start + offset + 2 > self.data().len() {
            return Err(InvalidOffload::Checksum { start: csum_start, offset: csum_offset });
        }
        let found = Headers::parse(self.data()).filter(|h| !h.fragment && h.l4_start() == start);
        let checksum = match found.map(|h| (h.protocol, offset)) {
            Some((protocol::TCP, 16)) => Some(L4Checksum::Tcp),
            Some((protocol::UDP, 6)) => Some(L4Checksum::Udp),
            _ => None,
        };
        let (Some(headers), Some(kind)) = (found.filter(|h| h.l3_len < 512 && h.l2_len < 128), checksum) else {
            if gso_type != gso::NONE {
                return Err(InvalidOffload::Kind(gso_type));
            }
            self.complete_sum(start, offset);
            return Ok(());
        };
        let mut offload = Offload {
            checksum,
            segment_size: 0,
            ipv6: headers.ipv6,
            l2_len: headers.l2_len as u8,
            l3_len: headers.l3_len as u16,
            l4_len: 0,
        };
        if gso_type != gso::NONE {
            self.take_segmentation(header, kind, &mut offload)?;
        }
        self.set_offload(&offload);
        Ok(())
    }

    fn take_segmentation(
        &self,
        header: &Header,
        kind: L4Checksum,
        offload: &mut Offload,
    ) -> Result<(), InvalidOffload> {
        let start = usize::from(header.csum_start);
        let l4_len = match (header.gso_type, kind, offload.ipv6) {
            (gso::TCPV4, L4Checksum::Tcp, false) | (gso::TCPV6, L4Checksum::Tcp, true) => {
                usize::from(self.data()[start + 12] >> 4) * 4
            }
            (gso::UDP_L4, L4Checksum::Udp, _) => 8,
            (other, ..) => return Err(InvalidOffload::Kind(other)),
        };
        let least = if kind == L4Checksum::Tcp { 20 } else { 8 };
        if l4_len < least || start + l4_len > self.data().len() {
            return Err(InvalidOffload::Kind(header.gso_type));
        }
        if header.gso_size < MIN_SEGMENT {
            return Err(InvalidOffload::Size(header.gso_size));
        }
        // A packet that is one segment is none to be cut.
        if self.len() - start - l4_len > usize::from(header.gso_size) {
            (offload.segment_size, offload.l4_len) = (header.gso_size, l4_len as u8);
        }
        Ok(())
    }

    /// The header that says what is left to do.
    #[inline]
    pub fn vnet_header(&self) -> Header {
        let offload = self.offload();
        let Some(checksum) = offload.checksum else { return Header::default() };
        let csum_start = u16::from(offload.l2_len) + offload.l3_len;
        let mut header =
            Header { flags: flag::NEEDS_CSUM, csum_start, csum_offset: checksum.offset() as u16, ..Header::default() };
        if offload.segment_size != 0 {
            header.gso_type = match (checksum, offload.ipv6) {
                (L4Checksum::Udp, _) => gso::UDP_L4,
                (_, true) => gso::TCPV6,
                (_, false) => gso::TCPV4,
            };
            header.gso_size = offload.segment_size;
            header.hdr_len = csum_start + u16::from(offload.l4_len);
        }
        header
    }
}
