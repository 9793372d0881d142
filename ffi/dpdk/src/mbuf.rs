//! A [`packet::Mbuf`] is an `rte_mbuf`: the compiler checks it here, field by field.

use dpdk_sys::{self as sys, rte_mbuf};
use packet::{Mbuf, offload_flag as flag};
use std::mem::offset_of;

/// Each field of ours, and where DPDK has it.
macro_rules! same_place {
    ($($ours:ident = $($theirs:ident).+;)*) => {
        const _: () = {$(
            assert!(offset_of!(Mbuf, $ours) == offset_of!(rte_mbuf, $($theirs).+), stringify!($ours));
        )*};
    };
}

same_place! {
    buf_addr = buf_addr;
    buf_iova = buf_iova;
    data_off = data_off;
    refcnt = refcnt;
    nb_segs = nb_segs;
    port = port;
    ol_flags = ol_flags;
    packet_type = __bindgen_anon_1.packet_type;
    pkt_len = pkt_len;
    data_len = data_len;
    vlan_tci = vlan_tci;
    rss = __bindgen_anon_2.hash.rss;
    mark = __bindgen_anon_2.hash.fdir.hi;
    vlan_tci_outer = vlan_tci_outer;
    buf_len = buf_len;
    next = next;
    tx_offload = __bindgen_anon_3.tx_offload;
    shinfo = shinfo;
    priv_size = priv_size;
    timesync = timesync;
    dynfield1 = dynfield1;
}
// `packet` keeps this one to itself and asserts the same number.
const _: () = assert!(offset_of!(rte_mbuf, pool) == 56);
// The fields follow each other without gaps, so equal places and an equal end make equal sizes.
const _: () = assert!(size_of::<Mbuf>() == size_of::<rte_mbuf>() && align_of::<Mbuf>() == align_of::<rte_mbuf>());

/// Each flag of ours, and DPDK's.
macro_rules! same_value {
    ($($ours:ident = $theirs:ident;)*) => {
        const _: () = {$(assert!(flag::$ours == sys::$theirs as u64, stringify!($ours));)*};
    };
}

same_value! {
    RX_VLAN = RTE_MBUF_F_RX_VLAN;
    RX_RSS_HASH = RTE_MBUF_F_RX_RSS_HASH;
    RX_FDIR = RTE_MBUF_F_RX_FDIR;
    RX_L4_CKSUM_BAD = RTE_MBUF_F_RX_L4_CKSUM_BAD;
    RX_IP_CKSUM_BAD = RTE_MBUF_F_RX_IP_CKSUM_BAD;
    RX_VLAN_STRIPPED = RTE_MBUF_F_RX_VLAN_STRIPPED;
    RX_IP_CKSUM_GOOD = RTE_MBUF_F_RX_IP_CKSUM_GOOD;
    RX_L4_CKSUM_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
    RX_FDIR_ID = RTE_MBUF_F_RX_FDIR_ID;
    TX_UDP_SEG = RTE_MBUF_F_TX_UDP_SEG;
    TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;
    TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
    TX_SCTP_CKSUM = RTE_MBUF_F_TX_SCTP_CKSUM;
    TX_UDP_CKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
    TX_L4_MASK = RTE_MBUF_F_TX_L4_MASK;
    TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
    TX_IPV4 = RTE_MBUF_F_TX_IPV4;
    TX_IPV6 = RTE_MBUF_F_TX_IPV6;
}
