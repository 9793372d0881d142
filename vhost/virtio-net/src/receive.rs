//! From the guest: chains of its transmit ring become packets.

use crate::FRAMING;
use crate::queue::NetQueue;
use guest_memory::GuestMemory;
use packet::{Burst, DATA_ROOM, Packet, Pool};
use port::PortStats;
use vhost_device::Fault;
use virtio_spec::net::{HEADER_LEN, Header, feature, gso};
use virtqueue::Descriptor;

/// Fewest bytes of a frame: an Ethernet header.
const MIN_FRAME: u64 = 14;
/// Most bytes of a frame: the largest IP packet.
const MAX_FRAME: u64 = 65535 + FRAMING as u64;

/// Why a chain did not become a packet.
enum Dropped {
    /// It is malformed, or not in guest memory.
    Invalid,
    /// No buffer for it: it stays in the ring.
    NoBuffer,
}

impl NetQueue {
    /// Takes packets until `burst` is full or the ring is empty.
    #[inline]
    pub(crate) fn receive(&mut self, pool: &Pool, mtu: u16, burst: &mut Burst, stats: &PortStats) -> Result<(), Fault> {
        let before = burst.len();
        let (mut bytes, mut invalid) = (0, 0);
        let mut result = Ok(());
        while !burst.is_full() {
            match self.vring.ring.pop(&mut self.vring.chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            }
            let token = self.vring.chain.token();
            match self.read_packet(pool, mtu) {
                Ok(packet) => {
                    bytes += packet.len() as u64;
                    burst.push(packet);
                }
                Err(Dropped::Invalid) => invalid += 1,
                Err(Dropped::NoBuffer) => {
                    self.vring.ring.unpop(token);
                    PortStats::add(&stats.rx_no_buffer, 1);
                    break;
                }
            }
            self.vring.ring.complete(token, 0);
        }
        PortStats::add(&stats.rx_packets, (burst.len() - before) as u64);
        PortStats::add(&stats.rx_bytes, bytes);
        PortStats::add(&stats.rx_invalid, invalid);
        result
    }

    /// Takes chains of a disabled ring and throws them away (vhost-user, "Ring states").
    pub(crate) fn discard(&mut self) -> Result<(), Fault> {
        for _ in 0..packet::BURST {
            if !self.vring.ring.pop(&mut self.vring.chain)? {
                break;
            }
            self.vring.ring.complete(self.vring.chain.token(), 0);
        }
        Ok(())
    }

    /// Copies the popped chain into a packet.
    #[inline]
    fn read_packet(&self, pool: &Pool, mtu: u16) -> Result<Packet, Dropped> {
        let (memory, chain) = (self.vring.ring.memory(), self.vring.chain.readable());
        // At most 32,768 descriptors of 32 bits: no overflow.
        let total: u64 = chain.iter().map(|d| u64::from(d.len)).sum();
        let len = total.checked_sub(self.header_len as u64).filter(|len| (MIN_FRAME..=MAX_FRAME).contains(len));
        let len = len.ok_or(Dropped::Invalid)?;
        let mut packet = read_frame(Cursor { rest: chain, offset: 0 }, memory, self.header_len, len as usize, pool)?;
        // A legacy header is shorter by the last field, which only the device fills in.
        let header = Header::parse(packet.data().first_chunk::<HEADER_LEN>().ok_or(Dropped::Invalid)?);
        packet.trim_front(self.header_len);
        if !self.may_be_segmented(header.gso_type)
            || (header.gso_type == gso::NONE && len > u64::from(mtu) + FRAMING as u64)
        {
            return Err(Dropped::Invalid);
        }
        packet.set_vnet_header(&header).map_err(|_| Dropped::Invalid)?;
        Ok(packet)
    }

    /// Whether the driver negotiated to leave this kind of segmentation to us.
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

/// Copies a header and `len` bytes behind it into buffers of `pool`, in one go where they lie in one: the header into the
/// headroom.
#[inline]
fn read_frame(
    mut cursor: Cursor<'_>,
    memory: &GuestMemory,
    header_len: usize,
    len: usize,
    pool: &Pool,
) -> Result<Packet, Dropped> {
    let mut packet = pool.take_one().ok_or(Dropped::NoBuffer)?;
    let mut left = len;
    let first = left.min(usize::from(DATA_ROOM));
    packet.append(first).ok_or(Dropped::NoBuffer)?;
    cursor.read(memory, packet.prepend(header_len).ok_or(Dropped::NoBuffer)?)?;
    left -= first;
    while left > 0 {
        let mut segment = pool.take_one().ok_or(Dropped::NoBuffer)?;
        let run = left.min(usize::from(DATA_ROOM));
        cursor.read(memory, segment.append(run).ok_or(Dropped::NoBuffer)?)?;
        if !packet.chain(segment) {
            return Err(Dropped::Invalid);
        }
        left -= run;
    }
    Ok(packet)
}

/// A place in a chain.
struct Cursor<'a> {
    rest: &'a [Descriptor],
    /// In the first one.
    offset: u32,
}

impl Cursor<'_> {
    /// Copies the next bytes, over as many descriptors as it takes.
    #[inline]
    fn read(&mut self, memory: &GuestMemory, mut bytes: &mut [u8]) -> Result<(), Dropped> {
        while !bytes.is_empty() {
            let Some((first, rest)) = self.rest.split_first() else { return Err(Dropped::Invalid) };
            let run = (first.len - self.offset).min(bytes.len() as u32);
            let (now, later) = bytes.split_at_mut(run as usize);
            let address = first.address.0.checked_add(u64::from(self.offset)).ok_or(Dropped::Invalid)?;
            memory.read(guest_memory::GuestAddress(address), now).map_err(|_| Dropped::Invalid)?;
            self.offset += run;
            if self.offset == first.len {
                (self.rest, self.offset) = (rest, 0);
            }
            bytes = later;
        }
        Ok(())
    }
}
