//! A descriptor chain: the device's own copy of what the driver made available.

use crate::QueueError;
use guest_memory::{GuestAddress, GuestMemory};
use virtio_spec::ring::{DESC_LEN, desc};

/// The longest chain that is taken whatever the ring's size: a driver may build an indirect table for all segments that the
/// device allows, although the ring is smaller.
const MIN_CHAIN_LIMIT: u16 = 128;

/// A buffer of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// First byte of the buffer.
    pub address: GuestAddress,
    /// Bytes of the buffer.
    pub len: u32,
}

/// What the device may do with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it: the driver wrote it.
    Read,
    /// Write it.
    Write,
}

impl Access {
    /// The flags of a descriptor that is a whole chain, of those that say what it is.
    pub(crate) const MASK: u16 = desc::NEXT | desc::WRITE | desc::INDIRECT;

    #[inline(always)]
    pub(crate) fn flags(self) -> u16 {
        match self {
            Access::Read => 0,
            Access::Write => desc::WRITE,
        }
    }
}

/// A chain of one buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleBufferChain {
    /// The chain's only buffer.
    pub buffer: Descriptor,
    /// Names the chain when it is given back.
    pub token: ChainToken,
    /// Bytes that the device wrote: for the device to fill in.
    pub written: u32,
}

/// Names a chain between pop and complete.
///
/// One word, made and passed on in one piece: a worker moves it several times a request.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ChainToken(u64);

impl ChainToken {
    #[inline(always)]
    pub(crate) fn new(id: u16, count: u16, entry: u16, sequence: u16) -> ChainToken {
        ChainToken(u64::from(id) | u64::from(count) << 16 | u64::from(entry) << 32 | u64::from(sequence) << 48)
    }

    /// Split: head of the chain. Packed: buffer id.
    #[inline(always)]
    pub(crate) fn id(self) -> u16 {
        self.0 as u16
    }

    /// Packed: descriptors that the chain takes in the ring.
    #[inline(always)]
    pub(crate) fn count(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Packed: the chain's entry in the inflight region.
    #[inline(always)]
    pub(crate) fn entry(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Place in the order of availability.
    #[inline(always)]
    pub(crate) fn sequence(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

impl std::fmt::Debug for ChainToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ChainToken {{ id: {}, count: {}, entry: {}, sequence: {} }}",
            self.id(),
            self.count(),
            self.entry(),
            self.sequence()
        )
    }
}

/// A chain. Reused from pop to pop: nothing is allocated.
pub struct DescriptorChain {
    /// As many as the longest chain has.
    descriptors: Box<[Descriptor]>,
    len: usize,
    /// How many of them, from the start, are readable.
    readable: usize,
    pub(crate) token: ChainToken,
    /// Staging for an indirect table: copied once, then parsed.
    table: Vec<u8>,
}

impl DescriptorChain {
    pub(crate) fn new(size: u16) -> DescriptorChain {
        let limit = size.max(MIN_CHAIN_LIMIT);
        DescriptorChain {
            descriptors: vec![Descriptor { address: GuestAddress(0), len: 0 }; limit.into()].into(),
            len: 0,
            readable: 0,
            token: ChainToken::default(),
            table: vec![0; usize::from(limit) * DESC_LEN],
        }
    }

    /// Buffers that the device may read, in order.
    #[inline(always)]
    pub fn readable(&self) -> &[Descriptor] {
        &self.descriptors[..self.readable]
    }

    /// Buffers that the device may write, in order.
    #[inline(always)]
    pub fn writable(&self) -> &[Descriptor] {
        &self.descriptors[self.readable..self.len]
    }

    /// Names the chain when it is given back.
    #[inline(always)]
    pub fn token(&self) -> ChainToken {
        self.token
    }

    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.readable = 0;
    }

    /// Adds one descriptor, already copied.
    #[inline(always)]
    pub(crate) fn push(&mut self, address: u64, len: u32, flags: u16) -> Result<(), QueueError> {
        let Some(slot) = self.descriptors.get_mut(self.len) else {
            return Err(QueueError::ChainLoop { limit: self.len as u16 });
        };
        if flags & desc::WRITE == 0 {
            if self.readable != self.len {
                return Err(QueueError::Order);
            }
            self.readable += 1;
        }
        *slot = Descriptor { address: GuestAddress(address), len };
        self.len += 1;
        Ok(())
    }

    /// Copies an indirect table once. Returns its entries.
    fn copy_table(&mut self, memory: &GuestMemory, address: u64, len: u32) -> Result<usize, QueueError> {
        let limit = self.table.len() as u32;
        if len == 0 || len > limit || !len.is_multiple_of(DESC_LEN as u32) {
            return Err(QueueError::IndirectLength { len, limit });
        }
        let table = &mut self.table[..len as usize];
        memory.read(GuestAddress(address), table).map_err(QueueError::access("indirect table"))?;
        Ok(len as usize / DESC_LEN)
    }

    fn table_entry(&self, index: usize) -> (u64, u32, u16, u16) {
        let entry = &self.table[index * DESC_LEN..][..DESC_LEN];
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, x0, x1, y0, y1] =
            *entry.first_chunk::<DESC_LEN>().expect("an entry has 16 bytes");
        (
            u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            u32::from_le_bytes([l0, l1, l2, l3]),
            u16::from_le_bytes([x0, x1]),
            u16::from_le_bytes([y0, y1]),
        )
    }

    /// Adds the chain in an indirect table of the split layout: entries are linked by `next` (2.7.5.3).
    pub(crate) fn push_split_table(&mut self, memory: &GuestMemory, address: u64, len: u32) -> Result<(), QueueError> {
        let size = self.copy_table(memory, address, len)?;
        let mut index = 0;
        for _ in 0..size {
            let (address, len, flags, next) = self.table_entry(index);
            if flags & desc::INDIRECT != 0 {
                return Err(QueueError::Indirect("inside an indirect table"));
            }
            self.push(address, len, flags)?;
            if flags & desc::NEXT == 0 {
                return Ok(());
            }
            index = next as usize;
            if index >= size {
                return Err(QueueError::DescriptorIndex { index: next, size: size as u16 });
            }
        }
        Err(QueueError::ChainLoop { limit: size as u16 })
    }

    /// Adds all entries of an indirect table of the packed layout: they stand in order (2.8.7).
    pub(crate) fn push_packed_table(&mut self, memory: &GuestMemory, address: u64, len: u32) -> Result<(), QueueError> {
        let size = self.copy_table(memory, address, len)?;
        for index in 0..size {
            let (address, len, _id, flags) = self.table_entry(index);
            if flags & desc::INDIRECT != 0 {
                return Err(QueueError::Indirect("inside an indirect table"));
            }
            self.push(address, len, flags)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for DescriptorChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut chain = f.debug_struct("DescriptorChain");
        chain.field("token", &self.token).field("readable", &self.readable()).field("writable", &self.writable());
        chain.finish()
    }
}
