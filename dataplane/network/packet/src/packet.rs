//! A packet: a chain of segments that one owner has.

use crate::mbuf::{Mbuf, offload_flag};
use crate::{Pool, pool};
use std::ptr::NonNull;

/// A packet. Dropped, it goes back to its pool.
#[repr(transparent)]
pub struct Packet(NonNull<Mbuf>);

// SAFETY: a packet owns its segments, which are plain memory; pools take them back from any thread.
unsafe impl Send for Packet {}

impl Drop for Packet {
    #[inline]
    fn drop(&mut self) {
        let mut segment = Some(self.0);
        while let Some(mbuf) = segment {
            // SAFETY: the packet owns its segments.
            segment = unsafe { (*mbuf.as_ptr()).next };
            // SAFETY: the packet owns the segment, which came from a `Pool`, and does not use it any more.
            unsafe { pool::free_segments(&[mbuf]) };
        }
    }
}

impl Packet {
    /// Takes ownership of a chain that DPDK, or a pool, gave.
    ///
    /// # Safety
    /// `mbuf` leads to a chain of valid headers with `refcnt` 1 that came from a [`Pool`] and that have no other owner; data lies
    /// inside each buffer, and `pkt_len` and `nb_segs` tell the truth.
    #[inline(always)]
    pub unsafe fn from_raw(mbuf: NonNull<Mbuf>) -> Packet {
        Packet(mbuf)
    }

    /// Gives ownership away, to DPDK. Nothing is freed.
    #[inline(always)]
    pub fn into_raw(self) -> NonNull<Mbuf> {
        std::mem::ManuallyDrop::new(self).0
    }

    /// The first segment's header.
    #[inline(always)]
    pub fn mbuf(&self) -> &Mbuf {
        // SAFETY: the packet owns its header.
        unsafe { self.0.as_ref() }
    }

    /// The first segment's header, to change what does not concern ownership or bounds.
    #[inline(always)]
    pub(crate) fn mbuf_mut(&mut self) -> &mut Mbuf {
        // SAFETY: the packet owns its header.
        unsafe { self.0.as_mut() }
    }

    /// Bytes of all segments.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.mbuf().pkt_len as usize
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the first segment.
    #[inline(always)]
    pub fn data(&self) -> &[u8] {
        let mbuf = self.mbuf();
        // SAFETY: the data lies inside the buffer, which the packet owns and borrows out.
        unsafe { std::slice::from_raw_parts(mbuf.buf_addr.add(usize::from(mbuf.data_off)), usize::from(mbuf.data_len)) }
    }

    /// Bytes of the first segment.
    #[inline(always)]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let mbuf = self.mbuf();
        let (start, len) = (mbuf.buf_addr.wrapping_add(usize::from(mbuf.data_off)), usize::from(mbuf.data_len));
        // SAFETY: the data lies inside the buffer, which the packet owns.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Bytes of each segment.
    pub fn segments(&self) -> Segments<'_> {
        Segments { next: Some(self.0), packet: std::marker::PhantomData }
    }

    /// Segments.
    #[inline(always)]
    pub fn segment_count(&self) -> usize {
        usize::from(self.mbuf().nb_segs)
    }

    /// Whether all segments are from pools of another maker, DPDK's: only such packets may be given to DPDK.
    #[inline]
    pub fn is_foreign(&self) -> bool {
        let (mut mbuf, mut foreign) = (self.mbuf(), self.mbuf().is_foreign());
        while let Some(next) = mbuf.next {
            // SAFETY: the packet is borrowed: its segments stay as they are.
            mbuf = unsafe { next.as_ref() };
            foreign &= mbuf.is_foreign();
        }
        foreign
    }

    /// Bytes free in front of the data.
    #[inline(always)]
    pub fn headroom(&self) -> usize {
        usize::from(self.mbuf().data_off)
    }

    /// Bytes free behind the data of a packet of one segment; 0 with more.
    #[inline(always)]
    pub fn tailroom(&self) -> usize {
        let mbuf = self.mbuf();
        if mbuf.next.is_some() {
            0
        } else {
            usize::from(mbuf.buf_len) - usize::from(mbuf.data_off) - usize::from(mbuf.data_len)
        }
    }

    /// Grows at the front by `count` arbitrary bytes and returns the first segment's data; `None` without headroom for it.
    #[inline]
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        if count > self.headroom() || count + self.data().len() > usize::from(u16::MAX) {
            return None;
        }
        let mbuf = self.mbuf_mut();
        mbuf.data_off -= count as u16;
        mbuf.data_len += count as u16;
        mbuf.pkt_len += count as u32;
        Some(self.data_mut())
    }

    /// Takes `count` bytes off the front. `false`, and nothing done, when the first segment has fewer.
    #[inline]
    pub fn trim_front(&mut self, count: usize) -> bool {
        if count > self.data().len() {
            return false;
        }
        let mbuf = self.mbuf_mut();
        mbuf.data_off += count as u16;
        mbuf.data_len -= count as u16;
        mbuf.pkt_len -= count as u32;
        true
    }

    /// Grows a packet of one segment at its end by `count` arbitrary bytes and returns those; `None` without room.
    #[inline]
    pub fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        if count > self.tailroom() {
            return None;
        }
        let mbuf = self.mbuf_mut();
        mbuf.data_len += count as u16;
        mbuf.pkt_len += count as u32;
        let data = self.data_mut();
        let start = data.len() - count;
        Some(&mut data[start..])
    }

    /// Cuts the packet to at most `len` bytes; segments behind go back to their pool.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        let (mut left, mut segment, mut kept) = (len, self.0, 0);
        loop {
            // SAFETY: the packet owns its segments, and no slice of one is lent.
            let mbuf = unsafe { &mut *segment.as_ptr() };
            kept += 1;
            if usize::from(mbuf.data_len) >= left {
                mbuf.data_len = left as u16;
                if let Some(rest) = mbuf.next.take() {
                    // SAFETY: this packet owned the rest of the chain until it was cut off.
                    drop(unsafe { Packet::from_raw(rest) });
                }
                break;
            }
            left -= usize::from(mbuf.data_len);
            segment = mbuf.next.expect("pkt_len counts the segments");
        }
        let mbuf = self.mbuf_mut();
        mbuf.nb_segs = kept;
        mbuf.pkt_len = len as u32;
    }

    /// Adds the segments of `tail` behind those here. `false`, and `tail` is dropped, when they would be more than can be counted.
    pub fn chain(&mut self, tail: Packet) -> bool {
        let (len, segments) = (tail.mbuf().pkt_len, tail.mbuf().nb_segs);
        let (Some(pkt_len), Some(nb_segs)) =
            (self.mbuf().pkt_len.checked_add(len), self.mbuf().nb_segs.checked_add(segments))
        else {
            return false;
        };
        let mut last = self.0;
        // SAFETY: the packet owns its segments.
        while let Some(next) = unsafe { (*last.as_ptr()).next } {
            last = next;
        }
        // SAFETY: the packet owns its segments.
        unsafe { (*last.as_ptr()).next = Some(tail.into_raw()) };
        let mbuf = self.mbuf_mut();
        mbuf.pkt_len = pkt_len;
        mbuf.nb_segs = nb_segs;
        true
    }

    /// Appends bytes, taking further segments from `pool` where they do not fit. `false` when the pool is empty; what was
    /// appended so far stays.
    pub fn extend_from_slice(&mut self, mut bytes: &[u8], pool: &Pool) -> bool {
        let room = self.tailroom().min(bytes.len());
        if room > 0 {
            let (now, later) = bytes.split_at(room);
            self.append(room).expect("there is room").copy_from_slice(now);
            bytes = later;
        }
        while !bytes.is_empty() {
            let Some(mut segment) = pool.take_one() else { return false };
            let room = segment.tailroom().min(bytes.len());
            let (now, later) = bytes.split_at(room);
            segment.append(room).expect("there is room").copy_from_slice(now);
            bytes = later;
            if !self.chain(segment) {
                return false;
            }
        }
        true
    }

    /// A copy, with metadata and offload requests. `None` when the pool is empty.
    pub fn copy(&self, pool: &Pool) -> Option<Packet> {
        let mut copy = pool.take_one()?;
        for segment in self.segments() {
            if !copy.extend_from_slice(segment, pool) {
                return None;
            }
        }
        let (from, to) = (self.mbuf(), copy.mbuf_mut());
        to.ol_flags = from.ol_flags;
        to.tx_offload = from.tx_offload;
        to.packet_type = from.packet_type;
        to.port = from.port;
        to.vlan_tci = from.vlan_tci;
        to.vlan_tci_outer = from.vlan_tci_outer;
        to.rss = from.rss;
        to.mark = from.mark;
        Some(copy)
    }

    /// Copies all bytes into `to`, which has [`len`](Self::len) bytes.
    pub fn copy_to(&self, to: &mut [u8]) {
        let mut at = 0;
        for segment in self.segments() {
            to[at..at + segment.len()].copy_from_slice(segment);
            at += segment.len();
        }
    }

    /// Takes the mark that a rule of the receiving NIC wrote. It is cleared, so that no later reader takes it for that of another NIC.
    #[inline(always)]
    pub fn take_mark(&mut self) -> Option<u32> {
        let mbuf = self.mbuf_mut();
        if mbuf.ol_flags & offload_flag::RX_FDIR_ID == 0 {
            return None;
        }
        mbuf.ol_flags &= !(offload_flag::RX_FDIR | offload_flag::RX_FDIR_ID);
        Some(mbuf.mark)
    }

    /// Marks the packet as a NIC does.
    pub fn set_mark(&mut self, mark: u32) {
        let mbuf = self.mbuf_mut();
        mbuf.ol_flags |= offload_flag::RX_FDIR | offload_flag::RX_FDIR_ID;
        mbuf.mark = mark;
    }

    /// Bits of [`crate::offload_flag`].
    #[inline(always)]
    pub fn flags(&self) -> u64 {
        self.mbuf().ol_flags
    }

    /// Sets bits of [`crate::offload_flag`].
    #[inline(always)]
    pub fn add_flags(&mut self, flags: u64) {
        self.mbuf_mut().ol_flags |= flags;
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packet({} bytes, {} segments)", self.len(), self.segment_count())
    }
}

/// Bytes of each segment of a packet.
#[derive(Debug)]
pub struct Segments<'a> {
    next: Option<NonNull<Mbuf>>,
    packet: std::marker::PhantomData<&'a Packet>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        // SAFETY: the packet is borrowed: its segments stay as they are.
        let mbuf = unsafe { self.next?.as_ref() };
        self.next = mbuf.next;
        // SAFETY: the data lies inside the buffer.
        Some(unsafe {
            std::slice::from_raw_parts(mbuf.buf_addr.add(usize::from(mbuf.data_off)), usize::from(mbuf.data_len))
        })
    }
}
