//! Offload requests: work on a packet that its sender leaves to the device that puts it on a wire.

use crate::Packet;
use crate::mbuf::offload_flag as flag;

/// An L4 checksum that is to be completed: the field holds the sum of the pseudo header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Checksum {
    /// Over the TCP header at `l2_len + l3_len`.
    Tcp,
    /// Over the UDP header.
    Udp,
    /// CRC32c over the SCTP header.
    Sctp,
}

/// Work that the sender leaves to the device that puts the packet on a wire. A receiver in the same machine may leave it undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum to complete.
    pub checksum: Option<L4Checksum>,
    /// TCP (or UDP) payload is to be cut into segments of this many bytes; 0: not at all.
    pub segment_size: u16,
    /// IPv6, else IPv4: good where there is something to do.
    pub ipv6: bool,
    /// Bytes of the Ethernet header, tags included.
    pub l2_len: u8,
    /// Bytes of the IP header, extensions included.
    pub l3_len: u16,
    /// Bytes of the L4 header; good where `segment_size` is not 0.
    pub l4_len: u8,
}

impl Offload {
    /// Whether the packet is ready for any wire.
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        self.checksum.is_none() && self.segment_size == 0
    }
}

impl Packet {
    /// The offload request of the packet.
    #[inline]
    pub fn offload(&self) -> Offload {
        let mbuf = self.mbuf();
        if mbuf.ol_flags & (flag::TX_L4_MASK | flag::TX_TCP_SEG | flag::TX_UDP_SEG) == 0 {
            return Offload::default();
        }
        let segmented = mbuf.ol_flags & (flag::TX_TCP_SEG | flag::TX_UDP_SEG) != 0;
        let lengths = mbuf.tx_offload;
        Offload {
            checksum: match mbuf.ol_flags & flag::TX_L4_MASK {
                flag::TX_TCP_CKSUM => Some(L4Checksum::Tcp),
                flag::TX_UDP_CKSUM => Some(L4Checksum::Udp),
                flag::TX_SCTP_CKSUM => Some(L4Checksum::Sctp),
                _ => None,
            },
            segment_size: if segmented { (lengths >> 24) as u16 } else { 0 },
            ipv6: mbuf.ol_flags & flag::TX_IPV6 != 0,
            l2_len: (lengths & 0x7f) as u8,
            l3_len: (lengths >> 7 & 0x1ff) as u16,
            l4_len: (lengths >> 16) as u8,
        }
    }

    /// Leaves work to the device that puts the packet on a wire.
    #[inline]
    pub fn set_offload(&mut self, offload: &Offload) {
        let mbuf = self.mbuf_mut();
        let cleared =
            flag::TX_L4_MASK | flag::TX_TCP_SEG | flag::TX_UDP_SEG | flag::TX_IPV4 | flag::TX_IPV6 | flag::TX_IP_CKSUM;
        mbuf.ol_flags &= !cleared;
        mbuf.tx_offload = 0;
        if offload.is_none() {
            return;
        }
        mbuf.ol_flags |= if offload.ipv6 { flag::TX_IPV6 } else { flag::TX_IPV4 };
        mbuf.ol_flags |= match offload.checksum {
            Some(L4Checksum::Tcp) => flag::TX_TCP_CKSUM,
            Some(L4Checksum::Udp) => flag::TX_UDP_CKSUM,
            Some(L4Checksum::Sctp) => flag::TX_SCTP_CKSUM,
            None => 0,
        };
        if offload.segment_size != 0 {
            let udp = offload.checksum == Some(L4Checksum::Udp);
            mbuf.ol_flags |= if udp { flag::TX_UDP_SEG } else { flag::TX_TCP_SEG };
            // Segments of IPv4 get headers of their own.
            mbuf.ol_flags |= if offload.ipv6 { 0 } else { flag::TX_IP_CKSUM };
        }
        mbuf.tx_offload = u64::from(offload.l2_len & 0x7f)
            | u64::from(offload.l3_len & 0x1ff) << 7
            | u64::from(offload.l4_len) << 16
            | u64::from(offload.segment_size) << 24;
    }
}
