//! Network device (virtio 1.3, 5.1).

/// Feature bits (5.1.3).
pub mod feature {
    /// Device completes checksums.
    pub const CSUM: u64 = 1 << 0;
    /// Driver takes packets whose checksum is not complete.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// `mtu` is good.
    pub const MTU: u64 = 1 << 3;
    /// `mac` is good.
    pub const MAC: u64 = 1 << 5;
    /// Driver takes TCP over IPv4 unsegmented.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// Driver takes TCP over IPv6 unsegmented.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// Device segments TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// Device segments TCP over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A packet may lie in several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `status` is good.
    pub const STATUS: u64 = 1 << 16;
    /// Control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Driver announces itself when asked.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// Driver takes UDP over IPv4 unsegmented.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// Driver takes UDP over IPv6 unsegmented.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// Device segments UDP.
    pub const HOST_USO: u64 = 1 << 56;
}

/// [`Header::flags`] (5.1.6).
pub mod flag {
    /// The checksum from `csum_start` on is to be completed.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum is right.
    pub const DATA_VALID: u8 = 2;
}

/// [`Header::gso_type`] (5.1.6).
pub mod gso {
    /// Not to be segmented.
    pub const NONE: u8 = 0;
    /// TCP over IPv4.
    pub const TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const TCPV6: u8 = 4;
    /// UDP datagrams.
    pub const UDP_L4: u8 = 5;
}

/// Bytes of the header with `num_buffers`: always, but for a legacy driver without MRG_RXBUF (5.1.6.1).
pub const HEADER_LEN: usize = 12;
/// Bytes of the header of a legacy driver without MRG_RXBUF.
pub const LEGACY_HEADER_LEN: usize = 10;

/// The header in front of each packet: `struct virtio_net_hdr` (5.1.6). Little endian on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Bits of [`flag`].
    pub flags: u8,
    /// One of [`gso`].
    pub gso_type: u8,
    /// Bytes of the headers that each segment gets: a hint, not to be trusted (5.1.6.2.1).
    pub hdr_len: u16,
    /// Payload bytes of a segment.
    pub gso_size: u16,
    /// Where the checksum starts.
    pub csum_start: u16,
    /// Where it is stored, from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers that the packet takes.
    pub num_buffers: u16,
}

impl Header {
    /// From its bytes; of a legacy header the last two are 0.
    #[inline(always)]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Header {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = *bytes;
        Header {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Its bytes.
    #[inline(always)]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let [[h0, h1], [g0, g1], [s0, s1], [o0, o1], [n0, n1]] =
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers].map(u16::to_le_bytes);
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_little_endian() {
        let bytes = [1, 4, 54, 0, 0xb4, 5, 34, 0, 16, 0, 2, 1];
        let header = Header::parse(&bytes);
        assert_eq!((header.flags, header.gso_type, header.gso_size), (flag::NEEDS_CSUM, gso::TCPV6, 1460));
        assert_eq!((header.csum_start, header.csum_offset, header.num_buffers), (34, 16, 258));
        assert_eq!(header.to_bytes(), bytes);
    }
}
