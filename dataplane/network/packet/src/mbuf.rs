//! The buffer's header, as DPDK has it.

use std::ptr::NonNull;

/// A buffer's header: `rte_mbuf` of DPDK 22.11, field for field (`rte_mbuf_core.h`). `ffi/dpdk` checks the layout.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Mbuf {
    /// Start of the buffer, in front of the headroom.
    pub buf_addr: *mut u8,
    /// The same for devices.
    pub buf_iova: u64,
    /// Where the data starts in the buffer.
    pub data_off: u16,
    /// Owners; always 1 where a [`crate::Packet`] owns it.
    pub refcnt: u16,
    /// Segments of the packet; good in the first.
    pub nb_segs: u16,
    /// Port that it came in by, as DPDK numbers ports.
    pub port: u16,
    /// Bits of [`offload_flag`].
    pub ol_flags: u64,
    /// Packet type, as a NIC has parsed it.
    pub packet_type: u32,
    /// Bytes of the packet; good in the first segment.
    pub pkt_len: u32,
    /// Bytes of this segment.
    pub data_len: u16,
    /// VLAN tag that a NIC took off.
    pub vlan_tci: u16,
    /// RSS hash, where [`offload_flag::RX_RSS_HASH`] says so.
    pub rss: u32,
    /// Mark of a flow rule, where [`offload_flag::RX_FDIR_ID`] says so.
    pub mark: u32,
    /// Outer VLAN tag.
    pub vlan_tci_outer: u16,
    /// Bytes of the buffer.
    pub buf_len: u16,
    /// The pool: DPDK's, or ours with bit 0 set.
    pub(crate) pool: *mut u8,
    /// The next segment.
    pub next: Option<NonNull<Mbuf>>,
    /// Header lengths and segment size for sending, packed as DPDK has them: l2 7 bits, l3 9, l4 8, segment size 16.
    pub tx_offload: u64,
    /// DPDK's own.
    pub shinfo: *mut u8,
    /// Bytes between header and buffer.
    pub priv_size: u16,
    /// DPDK's own.
    pub timesync: u16,
    /// DPDK's own.
    pub dynfield1: [u32; 9],
}

impl Mbuf {
    /// Whether the buffer is of another maker's pool, DPDK's.
    #[inline(always)]
    pub(crate) fn is_foreign(&self) -> bool {
        self.pool.addr() & 1 == 0
    }
}

const _: () = assert!(size_of::<Mbuf>() == 128);
const _: () = assert!(std::mem::offset_of!(Mbuf, pool) == 56 && std::mem::offset_of!(Mbuf, dynfield1) == 92);

/// Bits of [`Mbuf::ol_flags`] that Sluice reads or writes (`rte_mbuf_core.h`).
pub mod offload_flag {
    /// The NIC put the VLAN tag into `vlan_tci`.
    pub const RX_VLAN: u64 = 1 << 0;
    /// `rss` is good.
    pub const RX_RSS_HASH: u64 = 1 << 1;
    /// A flow rule matched.
    pub const RX_FDIR: u64 = 1 << 2;
    /// The L4 checksum is wrong.
    pub const RX_L4_CKSUM_BAD: u64 = 1 << 3;
    /// The IP checksum is wrong.
    pub const RX_IP_CKSUM_BAD: u64 = 1 << 4;
    /// The VLAN tag is not in the data any more.
    pub const RX_VLAN_STRIPPED: u64 = 1 << 6;
    /// The IP checksum is right.
    pub const RX_IP_CKSUM_GOOD: u64 = 1 << 7;
    /// The L4 checksum is right.
    pub const RX_L4_CKSUM_GOOD: u64 = 1 << 8;
    /// `mark` is good.
    pub const RX_FDIR_ID: u64 = 1 << 13;
    /// To be cut into UDP datagrams of `tso_segsz` bytes.
    pub const TX_UDP_SEG: u64 = 1 << 42;
    /// To be cut into TCP segments of `tso_segsz` bytes.
    pub const TX_TCP_SEG: u64 = 1 << 50;
    /// The TCP checksum is to be completed.
    pub const TX_TCP_CKSUM: u64 = 1 << 52;
    /// The SCTP checksum is to be completed.
    pub const TX_SCTP_CKSUM: u64 = 2 << 52;
    /// The UDP checksum is to be completed.
    pub const TX_UDP_CKSUM: u64 = 3 << 52;
    /// The bits of the three above.
    pub const TX_L4_MASK: u64 = 3 << 52;
    /// The IPv4 header's checksum is to be completed.
    pub const TX_IP_CKSUM: u64 = 1 << 54;
    /// IPv4.
    pub const TX_IPV4: u64 = 1 << 55;
    /// IPv6.
    pub const TX_IPV6: u64 = 1 << 56;
}
