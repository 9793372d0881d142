//! To the guest: packets become used buffers of its receive ring.

use crate::FRAMING;
use crate::queue::NetQueue;
use guest_memory::{AccessError, GuestAddress};
use packet::{L4Checksum, Offload, Packet, Pool, offload_flag};
use port::PortStats;
use vhost_device::Fault;
use virtio_spec::net::{HEADER_LEN, Header, feature, flag, gso};
use virtqueue::{Descriptor, QueueError};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    /// The guest has made too few buffers available.
    Full,
    /// Larger than the guest's buffers, or the buffers are not in guest memory.
    Invalid,
}

impl NetQueue {
    /// Sends a packet, in segments where the guest does not take it whole.
    #[inline]
    pub(crate) fn transmit(
        &mut self,
        mut packet: Packet,
        mtu: u16,
        pool: &Pool,
        stats: &PortStats,
    ) -> Result<(), Fault> {
        let offload = packet.offload();
        if offload.is_none() {
            return self.transmit_one(packet, Header::default(), mtu, stats);
        }
        if offload.segment_size != 0 && !self.takes_segments(&offload) {
            return self.transmit_segmented(&packet, mtu, pool, stats);
        }
        if !self.has(feature::GUEST_CSUM) || offload.checksum == Some(L4Checksum::Sctp) {
            packet.complete_checksum();
        }
        let header = packet.vnet_header();
        self.transmit_one(packet, header, mtu, stats)
    }

    #[cold]
    fn transmit_segmented(&mut self, packet: &Packet, mtu: u16, pool: &Pool, stats: &PortStats) -> Result<(), Fault> {
        let Some(mut segments) = packet.segmented(pool) else {
            PortStats::add(&stats.tx_invalid, 1);
            return Ok(());
        };
        for mut segment in &mut segments {
            if !self.has(feature::GUEST_CSUM) {
                segment.complete_checksum();
            }
            let header = segment.vnet_header();
            self.transmit_one(segment, header, mtu, stats)?;
        }
        PortStats::add(&stats.tx_no_buffer, segments.left() as u64);
        Ok(())
    }

    /// Whether the guest takes a packet of this kind unsegmented.
    fn takes_segments(&self, offload: &Offload) -> bool {
        let kind = match (offload.checksum, offload.ipv6) {
            (Some(L4Checksum::Udp), false) => feature::GUEST_USO4,
            (Some(L4Checksum::Udp), true) => feature::GUEST_USO6,
            (_, false) => feature::GUEST_TSO4,
            (_, true) => feature::GUEST_TSO6,
        };
        self.has(feature::GUEST_CSUM | kind)
    }

    #[inline]
    fn transmit_one(&mut self, mut packet: Packet, header: Header, mtu: u16, stats: &PortStats) -> Result<(), Fault> {
        let len = packet.len();
        let oversized = len > usize::from(mtu) + FRAMING && header.gso_type == gso::NONE;
        let counter = match if oversized { Sent::Invalid } else { self.put(&mut packet, header)? } {
            Sent::Yes => {
                PortStats::add(&stats.tx_bytes, len as u64);
                &stats.tx_packets
            }
            Sent::Full => &stats.tx_full,
            Sent::Invalid => &stats.tx_invalid,
        };
        PortStats::add(counter, 1);
        Ok(())
    }

    /// Copies a packet into the guest's buffers.
    #[inline]
    fn put(&mut self, packet: &mut Packet, mut header: Header) -> Result<Sent, QueueError> {
        if !self.vring.ring.pop(&mut self.vring.chain)? {
            return Ok(Sent::Full);
        }
        header.num_buffers = 1;
        if header.flags == 0 && packet.flags() & offload_flag::RX_L4_CKSUM_GOOD != 0 && self.has(feature::GUEST_CSUM) {
            header.flags = flag::DATA_VALID;
        }
        let header = header.to_bytes();
        // The usual case: one buffer takes all.
        if let &[Descriptor { address, len }, ..] = self.vring.chain.writable()
            && packet.segment_count() == 1
            && len as usize >= self.header_len + packet.len()
            && let Some(data) = packet.prepend(self.header_len)
        {
            data[..self.header_len].copy_from_slice(&header[..self.header_len]);
            let token = self.vring.chain.token();
            let written = self.write(address, data);
            self.vring.ring.complete(token, if written.is_ok() { data.len() as u32 } else { 0 });
            return Ok(if written.is_ok() { Sent::Yes } else { Sent::Invalid });
        }
        self.put_scattered(packet, header)
    }

    /// Writes to guest memory, and to the log of such writes.
    #[inline(always)]
    fn write(&self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        let ring = &self.vring.ring;
        ring.memory().write(address, bytes)?;
        if let Some(log) = ring.log() {
            log.mark(address, bytes.len() as u64);
        }
        Ok(())
    }

    /// Copies a packet into several descriptors, or several buffers where the guest takes that. The first one is popped.
    fn put_scattered(&mut self, packet: &Packet, mut header: [u8; HEADER_LEN]) -> Result<Sent, QueueError> {
        let mut place = Scatter { header_left: self.header_len, ..Scatter::new(packet) };
        self.taken.clear();
        loop {
            let filled = self.fill(&mut place);
            self.taken.push((self.vring.chain.token(), *filled.as_ref().unwrap_or(&0)));
            if filled.is_err() {
                return Ok(self.give_back_empty());
            }
            if place.left == 0 {
                break;
            }
            if !self.has(feature::MRG_RXBUF) {
                return Ok(self.undo(Sent::Invalid));
            }
            match self.vring.ring.pop(&mut self.vring.chain) {
                Ok(true) => {}
                Ok(false) => return Ok(self.undo(Sent::Full)),
                Err(error) => {
                    self.undo(Sent::Invalid);
                    return Err(error);
                }
            }
        }
        header[10..].copy_from_slice(&(self.taken.len() as u16).to_le_bytes());
        let mut bytes = &header[..self.header_len];
        for &Descriptor { address, len } in &place.header_at[..place.header_pieces] {
            let (now, later) = bytes.split_at(len as usize);
            if self.write(address, now).is_err() {
                return Ok(self.give_back_empty());
            }
            bytes = later;
        }
        for &(token, written) in &self.taken {
            self.vring.ring.complete(token, written);
        }
        Ok(Sent::Yes)
    }

    /// Fills the popped chain. Returns the bytes that it holds.
    fn fill(&self, place: &mut Scatter<'_>) -> Result<u32, AccessError> {
        let mut written = 0;
        for &Descriptor { address, len } in self.vring.chain.writable() {
            let mut done = place.skip_header(address, len);
            while done < len && place.left > 0 {
                let bytes = place.next((len - done) as usize);
                let at = address.0.checked_add(u64::from(done));
                let at = at.ok_or(AccessError { address: address.0, len: u64::from(len) })?;
                self.write(GuestAddress(at), bytes)?;
                done += bytes.len() as u32;
            }
            written += done;
        }
        Ok(written)
    }

    /// The taken buffers are available again, as if they had not been looked at.
    fn undo(&mut self, sent: Sent) -> Sent {
        for &(token, _) in self.taken.iter().rev() {
            self.vring.ring.unpop(token);
        }
        sent
    }

    /// A buffer is not in guest memory: all go back with nothing in them, so that the ring moves on.
    fn give_back_empty(&mut self) -> Sent {
        for &(token, _) in &self.taken {
            self.vring.ring.complete(token, 0);
        }
        Sent::Invalid
    }
}

/// How far a packet is copied.
struct Scatter<'a> {
    segments: packet::Segments<'a>,
    segment: &'a [u8],
    /// Bytes of the packet to copy.
    left: usize,
    /// Bytes of the header that have no place yet, and the places of the others.
    header_left: usize,
    header_at: [Descriptor; HEADER_LEN],
    header_pieces: usize,
}

impl<'a> Scatter<'a> {
    fn new(packet: &'a Packet) -> Scatter<'a> {
        Scatter {
            segments: packet.segments(),
            segment: &[],
            left: packet.len(),
            header_left: 0,
            header_at: [Descriptor { address: GuestAddress(0), len: 0 }; HEADER_LEN],
            header_pieces: 0,
        }
    }

    /// Leaves room for what is left of the header in a descriptor. Returns how much.
    fn skip_header(&mut self, address: GuestAddress, len: u32) -> u32 {
        let room = len.min(self.header_left as u32);
        if room > 0 {
            self.header_at[self.header_pieces] = Descriptor { address, len: room };
            self.header_pieces += 1;
            self.header_left -= room as usize;
        }
        room
    }

    /// The next bytes of the packet, at most `room`.
    fn next(&mut self, room: usize) -> &'a [u8] {
        while self.segment.is_empty() {
            self.segment = self.segments.next().expect("the segments have all of the packet's bytes");
        }
        let (now, later) = self.segment.split_at(room.min(self.segment.len()));
        self.segment = later;
        self.left -= now.len();
        now
    }
}
