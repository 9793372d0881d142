//! A packet in DPDK's buffers.
//!
//! # Invariant: owned-packet
//!
//! The pointer of an [`Mbuf`] leads to a whole packet, whose first segment only the [`Mbuf`] uses.

use super::restore;
use crate::pipeline::Frame;
use dpdk_sys as sys;
use std::ptr::NonNull;

/// An owned packet (owned-packet). The drop frees it.
pub(super) struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: owned-packet: no other thread uses the packet, and any thread may free it.
unsafe impl Send for Mbuf {}

/// Flags of buffers that lie in another one, or outside of their pool.
const ATTACHED: u64 = (1 << 62) | (1 << 61);
/// State of the checksum of the transport header: right, or absent with whole data.
const L4_CKSUM_MASK: u64 = L4_CKSUM_NONE;
const L4_CKSUM_GOOD: u64 = 1 << 8;
const L4_CKSUM_NONE: u64 = (1 << 3) | (1 << 8);
/// The sender fills the checksum in.
const TX_L4_MASK: u64 = 3 << 52;

impl Mbuf {
    /// # Safety
    /// `raw` is null or a whole packet that belongs to the caller.
    pub(super) unsafe fn from_raw(raw: *mut sys::rte_mbuf) -> Option<Mbuf> {
        NonNull::new(raw).map(Mbuf)
    }

    pub(super) fn into_raw(self) -> *mut sys::rte_mbuf {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }

    fn raw(&self) -> &sys::rte_mbuf {
        // SAFETY: owned-packet.
        unsafe { self.0.as_ref() }
    }

    fn raw_mut(&mut self) -> &mut sys::rte_mbuf {
        // SAFETY: owned-packet.
        unsafe { self.0.as_mut() }
    }

    /// The packet in one buffer without other owners: itself, or a copy. `None` without a free buffer.
    pub(super) fn unshared(self) -> Option<Mbuf> {
        if self.raw().refcnt == 1 && self.raw().nb_segs == 1 && self.raw().ol_flags & ATTACHED == 0 {
            return Some(self);
        }
        // SAFETY: owned-packet; the pool of a packet in use is alive.
        let copy = unsafe { sys::rte_pktmbuf_copy(self.raw(), self.raw().pool, 0, u32::MAX) };
        // SAFETY: null or a new packet, which is ours.
        let copy = unsafe { Mbuf::from_raw(copy) }?;
        // SAFETY: owned-packet. Where the packet does not fit into one buffer, its headers do.
        let _ = unsafe { sys::rte_pktmbuf_linearize(copy.0.as_ptr()) };
        Some(copy)
    }

    /// Writes the metadata with which the host receives the packet.
    pub(super) fn received(&mut self, port: u16, mark: Option<u32>, hash: Option<u32>) {
        let mbuf = self.raw_mut();
        mbuf.port = port;
        mbuf.ol_flags &= ATTACHED;
        if let Some(hash) = hash {
            mbuf.ol_flags |= u64::from(sys::RTE_MBUF_F_RX_RSS_HASH);
            mbuf.__bindgen_anon_2.hash.rss = hash;
        }
        if let Some(mark) = mark {
            mbuf.ol_flags |= u64::from(sys::RTE_MBUF_F_RX_FDIR | sys::RTE_MBUF_F_RX_FDIR_ID);
            mbuf.__bindgen_anon_2.hash.fdir.hi = mark;
        }
    }
}

impl Mbuf {
    /// Sets the number of the packet's restore data; 0 is none.
    pub(super) fn set_restore(&mut self, number: u64) {
        if let Some(offset) = restore::offset() {
            // SAFETY: DPDK has registered the field at this offset within an mbuf.
            let field = unsafe { self.0.as_ptr().cast::<u8>().add(offset) }.cast::<u64>();
            // SAFETY: owned-packet; DPDK has aligned the field for its type.
            unsafe { field.write(number) };
        }
    }
}

impl Frame for Mbuf {
    fn bytes(&self) -> &[u8] {
        let mbuf = self.raw();
        // SAFETY: DPDK keeps `data_off` within the buffer.
        let data = unsafe { mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off)) };
        // SAFETY: the buffer has `data_len` bytes from there on.
        unsafe { std::slice::from_raw_parts(data, usize::from(mbuf.data_len)) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let mbuf = self.raw_mut();
        // SAFETY: DPDK keeps `data_off` within the buffer.
        let data = unsafe { mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off)) };
        // SAFETY: the buffer has `data_len` bytes from there on, which only we use: the pipeline edits an `unshared` packet.
        unsafe { std::slice::from_raw_parts_mut(data, usize::from(mbuf.data_len)) }
    }

    fn total_len(&self) -> usize {
        self.raw().pkt_len as usize
    }

    fn l4_is_checked(&self) -> bool {
        let flags = self.raw().ol_flags;
        let received = flags & L4_CKSUM_MASK;
        received == L4_CKSUM_GOOD || received == L4_CKSUM_NONE || flags & TX_L4_MASK != 0
    }

    fn grow_front(&mut self, count: usize) -> bool {
        let Ok(count) = u16::try_from(count) else { return false };
        // SAFETY: owned-packet. Without room the packet stays as it is, and the call returns null.
        !unsafe { sys::rte_pktmbuf_prepend(self.0.as_ptr(), count) }.is_null()
    }

    fn shrink_front(&mut self, count: usize) -> bool {
        let Ok(count) = u16::try_from(count) else { return false };
        // SAFETY: owned-packet. Where the packet is shorter it stays as it is, and the call returns null.
        !unsafe { sys::rte_pktmbuf_adj(self.0.as_ptr(), count) }.is_null()
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: owned-packet; nothing uses the packet afterwards.
        unsafe { sys::rte_pktmbuf_free(self.0.as_ptr()) };
    }
}
