//! To the guest: packets become used buffers of its receive ring.

use crate::FRAMING;
use crate::queue::{NetQueue, spans};
use guest_memory::{AccessError, GuestAddress};
use packet::{BURST, L4Checksum, Offload, Packet, Pool, offload_flag};
use port::PortStats;
use vhost_device::DeviceFault;
use virtio_spec::net::{HEADER_LEN, Header, feature, flag, gso};
use virtqueue::{Access, Descriptor, QueueError};

/// Headers of packets with nothing left to do, in one buffer: unknown whether the checksum is right, or known.
const PLAIN: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const CHECKED: [u8; HEADER_LEN] = [flag::DATA_VALID, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The outcome for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    /// The guest has made too few buffers available.
    Full,
    /// Larger than the guest's buffers, or the buffers are not in guest memory.
    Invalid,
}

impl NetQueue {
    /// Sends packets.
    #[inline]
    pub(crate) fn push_to_guest(
        &mut self,
        mut packets: &mut [Packet],
        mtu: u16,
        pool: &Pool,
        stats: &PortStats,
    ) -> Result<(), DeviceFault> {
        loop {
            let sent = self.push_singles(packets, mtu, stats);
            let Some((first, rest)) = packets[sent..].split_first_mut() else { return Ok(()) };
            self.push_packet(first, mtu, pool, stats)?;
            packets = rest;
        }
    }

    /// Sends the packets that come next for as long as they are plain, of one segment and with nothing left to do, and each fits
    /// the guest's next buffer. Returns how many.
    #[inline]
    fn push_singles(&mut self, packets: &[Packet], mtu: u16, stats: &PortStats) -> usize {
        if self.header_len != HEADER_LEN {
            return 0;
        }
        let longest = usize::from(mtu) + FRAMING;
        let is_plain =
            |packet: &&Packet| packet.segment_count() == 1 && packet.offload().is_none() && packet.len() <= longest;
        let plain = packets.iter().take(BURST).take_while(is_plain).count();
        let count = self.vring.ring.pop_singles(Access::Write, &mut self.singles[..plain]);
        let checks = self.has(feature::GUEST_CSUM);
        let (ring, singles) = (&mut self.vring.ring, &mut self.singles[..count]);
        let spans = spans(ring.memory(), singles, HEADER_LEN..=usize::MAX);
        let log = ring.log();
        let (mut done, mut bytes) = (0, 0);
        for ((packet, single), span) in packets.iter().zip(&mut *singles).zip(spans) {
            let data = packet.data();
            let len = HEADER_LEN + data.len();
            if len > span.len() {
                break;
            }
            span.write(0, plain_header(packet, checks));
            span.write(HEADER_LEN, data);
            if let Some(log) = log {
                log.mark(single.buffer.address, len as u64);
            }
            single.written = len as u32;
            bytes += data.len() as u64;
            done += 1;
        }
        let (written, left) = singles.split_at(done);
        ring.complete_written(written);
        left.iter().rev().for_each(|single| ring.unpop(single.token));
        PortStats::add(&stats.tx_packets, done as u64);
        PortStats::add(&stats.tx_bytes, bytes);
        done
    }

    /// Sends a packet, in segments where the guest does not take it whole.
    fn push_packet(
        &mut self,
        packet: &mut Packet,
        mtu: u16,
        pool: &Pool,
        stats: &PortStats,
    ) -> Result<(), DeviceFault> {
        let offload = packet.offload();
        if offload.is_none() {
            let header = Header::parse(plain_header(packet, self.has(feature::GUEST_CSUM)));
            return self.push_one(packet, header, mtu, stats);
        }
        if offload.segment_size != 0 && !self.takes_segments(&offload) {
            return self.push_segmented(packet, mtu, pool, stats);
        }
        if !self.has(feature::GUEST_CSUM) || offload.checksum == Some(L4Checksum::Sctp) {
            packet.complete_checksum();
        }
        let header = packet.vnet_header();
        self.push_one(packet, header, mtu, stats)
    }

    #[cold]
    fn push_segmented(&mut self, packet: &Packet, mtu: u16, pool: &Pool, stats: &PortStats) -> Result<(), DeviceFault> {
        let Some(mut segments) = packet.segmented(pool) else {
            PortStats::add(&stats.tx_invalid, 1);
            return Ok(());
        };
        for mut segment in &mut segments {
            if !self.has(feature::GUEST_CSUM) {
                segment.complete_checksum();
            }
            let header = segment.vnet_header();
            self.push_one(&segment, header, mtu, stats)?;
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

    fn push_one(&mut self, packet: &Packet, header: Header, mtu: u16, stats: &PortStats) -> Result<(), DeviceFault> {
        let len = packet.len();
        let oversized = len > usize::from(mtu) + FRAMING && header.gso_type == gso::NONE;
        let counter = match if oversized { Sent::Invalid } else { self.put(packet, header)? } {
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

    /// Writes to guest memory, and to the log of such writes.
    #[inline(always)]
    fn write(&self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        self.vring.ring.memory().write(address, bytes)?;
        self.log(address, bytes.len());
        Ok(())
    }

    /// Notes a write for the front-end, if it wants that.
    #[inline(always)]
    fn log(&self, address: GuestAddress, len: usize) {
        if let Some(log) = self.vring.ring.log() {
            log.mark(address, len as u64);
        }
    }

    /// Copies a packet into the guest's buffers: several descriptors, or several chains where the guest takes that.
    fn put(&mut self, packet: &Packet, header: Header) -> Result<Sent, QueueError> {
        if !self.vring.ring.pop(&mut self.vring.chain)? {
            return Ok(Sent::Full);
        }
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
        let header = Header { num_buffers: self.taken.len() as u16, ..header }.to_bytes();
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

/// The header of a packet with nothing left to do, in one buffer. `checks`: whether the guest wants to hear of good checksums.
#[inline(always)]
fn plain_header(packet: &Packet, checks: bool) -> &'static [u8; HEADER_LEN] {
    if checks && packet.flags() & offload_flag::RX_L4_CKSUM_GOOD != 0 { &CHECKED } else { &PLAIN }
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
