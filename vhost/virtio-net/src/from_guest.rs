//! From the guest: chains of its transmit ring become packets.

use crate::FRAMING;
use crate::queue::{NetQueue, spans};
use guest_memory::{GuestAddress, GuestMemory, Span};
use packet::{BURST, Burst, DATA_ROOM, Packet, Pool};
use port::PortStats;
use vhost_device::DeviceFault;
use virtio_spec::net::{HEADER_LEN, Header, feature, flag, gso};
use virtqueue::{Access, Descriptor, QueueError};

/// Fewest bytes of a frame: an Ethernet header.
const MIN_FRAME: u64 = 14;
/// Most bytes of a frame: the largest IP packet.
const MAX_FRAME: u64 = 65535 + FRAMING as u64;

/// Counts of one burst, added to the port's once.
#[derive(Default)]
struct Received {
    bytes: u64,
    invalid: u64,
    no_buffer: u64,
}

/// The reason for which a chain did not become a packet.
enum Dropped {
    /// It is malformed, or not in guest memory.
    Invalid,
    /// No buffer for it: it stays in the ring.
    NoBuffer,
}

impl NetQueue {
    /// Takes packets until `burst` is full or the ring is empty.
    #[inline]
    pub(crate) fn poll_from_guest(
        &mut self,
        pool: &Pool,
        mtu: u16,
        burst: &mut Burst,
        stats: &PortStats,
    ) -> Result<(), DeviceFault> {
        let before = burst.len();
        let mut received = Received::default();
        let mut more = Ok(true);
        // Bounded whatever a guest sends: what is invalid does not fill the burst.
        for _ in 0..BURST {
            if burst.is_full() || !matches!(more, Ok(true)) {
                break;
            }
            if !self.poll_singles(pool, mtu, burst, &mut received) {
                more = self.poll_chain(pool, mtu, burst, &mut received);
            }
        }
        PortStats::add(&stats.rx_packets, (burst.len() - before) as u64);
        PortStats::add(&stats.rx_bytes, received.bytes);
        PortStats::add(&stats.rx_invalid, received.invalid);
        PortStats::add(&stats.rx_no_buffer, received.no_buffer);
        Ok(more.map(drop)?)
    }

    /// Takes the chains of one buffer that come next, for as long as they are of the usual size and in one region, and well-formed.
    /// `false` when there was none, or no buffer for one.
    #[inline]
    fn poll_singles(&mut self, pool: &Pool, mtu: u16, burst: &mut Burst, received: &mut Received) -> bool {
        if self.header_len != HEADER_LEN {
            return false;
        }
        let count = self.vring.ring.pop_singles(Access::Read, &mut self.singles[..burst.remaining_capacity()]);
        let longest = usize::from(DATA_ROOM.min(mtu.saturating_add(FRAMING as u16)));
        let usual = HEADER_LEN + MIN_FRAME as usize..=HEADER_LEN + longest;
        let spans = spans(self.vring.ring.memory(), &self.singles[..count], usual);
        let before = burst.len();
        pool.take(burst, spans.len());
        let read = |(packet, span): (&mut Packet, Span<'_>)| self.read_single(packet, &span);
        let done = burst[before..].iter_mut().zip(spans).map(read).take_while(|&read| read).count();
        burst.truncate(before + done);
        let (taken, left) = self.singles[..count].split_at(done);
        received.bytes += taken.iter().map(|single| u64::from(single.buffer.len) - HEADER_LEN as u64).sum::<u64>();
        self.vring.ring.complete_read(taken);
        left.iter().rev().for_each(|single| self.vring.ring.unpop(single.token));
        done > 0
    }

    /// Takes the next chain, of any kind. `false` when there is none, or no buffer for it.
    fn poll_chain(
        &mut self,
        pool: &Pool,
        mtu: u16,
        burst: &mut Burst,
        received: &mut Received,
    ) -> Result<bool, QueueError> {
        let vring = &mut self.vring;
        if !vring.ring.pop(&mut vring.chain)? {
            return Ok(false);
        }
        let (token, chain) = (self.vring.chain.token(), self.vring.chain.readable());
        let packet = pool.take_one().ok_or(Dropped::NoBuffer);
        match packet.and_then(|packet| self.read_packet(packet, chain, pool, mtu)) {
            Ok(packet) => {
                received.bytes += packet.len() as u64;
                burst.push(packet);
            }
            Err(Dropped::Invalid) => received.invalid += 1,
            Err(Dropped::NoBuffer) => {
                self.vring.ring.unpop(token);
                received.no_buffer += 1;
                return Ok(false);
            }
        }
        self.vring.ring.complete(token, 0);
        Ok(true)
    }

    /// Takes chains of a disabled ring and throws them away (vhost-user, "Ring states").
    pub(crate) fn discard(&mut self) -> Result<(), DeviceFault> {
        for _ in 0..BURST {
            if !self.vring.ring.pop(&mut self.vring.chain)? {
                break;
            }
            self.vring.ring.complete(self.vring.chain.token(), 0);
        }
        Ok(())
    }

    /// Copies a chain of one buffer into `packet`, which is empty: as [`read_packet`](Self::read_packet), which gets those for which
    /// this returns `false`.
    #[inline(always)]
    fn read_single(&self, packet: &mut Packet, span: &Span<'_>) -> bool {
        let mut header = [0; HEADER_LEN];
        span.read(0, &mut header);
        let Some(frame) = packet.append(span.len() - HEADER_LEN) else { return false };
        span.read(HEADER_LEN, frame);
        self.take_header(packet, &header).is_ok()
    }

    /// Copies a chain into `packet`, which is empty.
    #[inline]
    fn read_packet(&self, mut packet: Packet, chain: &[Descriptor], pool: &Pool, mtu: u16) -> Result<Packet, Dropped> {
        // At most 32,768 descriptors of 32 bits: no overflow.
        let total: u64 = chain.iter().map(|d| u64::from(d.len)).sum();
        let len = total.checked_sub(self.header_len as u64).filter(|len| (MIN_FRAME..=MAX_FRAME).contains(len));
        let len = len.ok_or(Dropped::Invalid)?;
        let mut cursor = Cursor { rest: chain, offset: 0, memory: self.vring.ring.memory() };
        // A legacy header is shorter by the last field, which only the device fills in.
        let mut header = [0; HEADER_LEN];
        cursor.read(&mut header[..self.header_len])?;
        cursor.read_frame(&mut packet, len as usize, pool)?;
        if header[1] == gso::NONE && len > u64::from(mtu) + FRAMING as u64 {
            return Err(Dropped::Invalid);
        }
        self.take_header(&mut packet, &header)?;
        Ok(packet)
    }

    /// Notes what the driver left undone: nothing, mostly.
    #[inline(always)]
    fn take_header(&self, packet: &mut Packet, header: &[u8; HEADER_LEN]) -> Result<(), Dropped> {
        let [flags, gso_type, ..] = *header;
        if flags & flag::NEEDS_CSUM != 0 || gso_type != gso::NONE {
            self.take_offloads(packet, &Header::parse(header))?;
        }
        Ok(())
    }

    #[inline(never)]
    fn take_offloads(&self, packet: &mut Packet, header: &Header) -> Result<(), Dropped> {
        if !self.may_be_segmented(header.gso_type) {
            return Err(Dropped::Invalid);
        }
        packet.set_vnet_header(header).map_err(|_| Dropped::Invalid)
    }

    /// Whether the driver negotiated to leave this kind of segmentation to the device.
    #[inline]
    fn may_be_segmented(&self, gso_type: u8) -> bool {
        match gso_type {
            gso::NONE => true,
            gso::TCPV4 => self.has(feature::HOST_TSO4),
            gso::TCPV6 => self.has(feature::HOST_TSO6),
            gso::UDP_L4 => self.has(feature::HOST_USO),
            _ => false,
        }
    }
}

/// A place in a chain.
struct Cursor<'a> {
    rest: &'a [Descriptor],
    /// In the first one.
    offset: u32,
    memory: &'a GuestMemory,
}

impl Cursor<'_> {
    /// Copies the next `len` bytes into `packet`, which is empty, and into further buffers of `pool` where they do not fit.
    #[inline]
    fn read_frame(&mut self, packet: &mut Packet, len: usize, pool: &Pool) -> Result<(), Dropped> {
        let mut left = len;
        let run = left.min(usize::from(DATA_ROOM));
        self.read(packet.append(run).ok_or(Dropped::NoBuffer)?)?;
        left -= run;
        while left > 0 {
            let mut segment = pool.take_one().ok_or(Dropped::NoBuffer)?;
            let run = left.min(usize::from(DATA_ROOM));
            self.read(segment.append(run).ok_or(Dropped::NoBuffer)?)?;
            if !packet.chain(segment) {
                return Err(Dropped::Invalid);
            }
            left -= run;
        }
        Ok(())
    }

    /// Copies the next bytes, over as many descriptors as it takes.
    #[inline]
    fn read(&mut self, mut bytes: &mut [u8]) -> Result<(), Dropped> {
        while !bytes.is_empty() {
            let Some((first, rest)) = self.rest.split_first() else { return Err(Dropped::Invalid) };
            let run = (first.len - self.offset).min(bytes.len() as u32);
            let (now, later) = bytes.split_at_mut(run as usize);
            let address = first.address.0.checked_add(u64::from(self.offset)).ok_or(Dropped::Invalid)?;
            self.memory.read(GuestAddress(address), now).map_err(|_| Dropped::Invalid)?;
            self.offset += run;
            if self.offset == first.len {
                (self.rest, self.offset) = (rest, 0);
            }
            bytes = later;
        }
        Ok(())
    }
}
