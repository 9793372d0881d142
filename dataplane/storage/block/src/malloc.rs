//! A disk in memory: SPDK's `Malloc disk`.
//!
//! Blocks read as zero until they are written, and take no memory until they are touched (but hugepages are set aside at once).
//! Every request is complete when `submit` returns. Channels on several workers copy at once without a lock: what a read sees
//! that races with a write is a mixture of both, as on a real disk.

use crate::compare::holds;
use crate::{
    Bdev, BlockChannel, BlockError, BlockRequest, Completions, Geometry, Identity, Op, Request, Status, limits,
};
use clock::Cycles;
use invalid::Invalid;
use memory::{Memory, MemoryError};
use std::sync::Arc;
use uuid::Uuid;

/// Bytes that one discard or write-zeroes may cover: what a worker clears in a fraction of a millisecond.
const MAX_ZERO_BYTES: u64 = 4 << 20;

/// Parameters of a [`Malloc`] disk.
#[derive(Clone, Debug)]
pub struct MallocParams {
    /// The name operators use.
    pub name: String,
    /// Bytes a logical block.
    pub block_size: u32,
    /// Logical blocks.
    pub num_blocks: u64,
    /// Bytes a physical block; `None`: as the logical.
    pub physical_block_size: Option<u32>,
    /// `None`: a random one.
    pub uuid: Option<Uuid>,
    /// The NUMA node to take memory from; `None`: the toucher's.
    pub numa_node: Option<u32>,
}

impl MallocParams {
    /// A disk with nothing special about it.
    pub fn new(name: &str, block_size: u32, num_blocks: u64) -> MallocParams {
        MallocParams {
            name: name.into(),
            block_size,
            num_blocks,
            physical_block_size: None,
            uuid: None,
            numa_node: None,
        }
    }
}

/// A disk in memory.
#[derive(Debug)]
pub struct Malloc {
    identity: Identity,
    geometry: Geometry,
    storage: Arc<Memory>,
}

impl Malloc {
    /// Makes the disk, full of zeros.
    pub fn create(params: MallocParams) -> Result<Arc<Malloc>, BlockError> {
        let block_size = limits::block_size(params.block_size)?;
        let physical_block_size = limits::physical_block_size(params.physical_block_size, block_size)?;
        let num_blocks = limits::num_blocks(params.num_blocks, block_size)?;
        let identity = limits::identity(params.name, "Malloc disk", params.uuid)?;
        let len = usize::try_from(num_blocks * u64::from(block_size)).unwrap_or(usize::MAX);
        let storage = Memory::allocate(len, params.numa_node).map_err(|error| match error {
            MemoryError::Length { .. } => {
                Invalid::new("num_blocks", num_blocks, "a disk that fits the address space").into()
            }
            MemoryError::Node { got, online } => Invalid::new("numa_id", got, format!("one of {online}")).into(),
            MemoryError::Os { source, .. } => {
                BlockError::Io { what: "allocate memory for", path: identity.name.clone(), source }
            }
        })?;
        let max_zero_blocks = limits::blocks_in(MAX_ZERO_BYTES, block_size);
        let geometry = Geometry {
            block_size,
            num_blocks,
            physical_block_size,
            optimal_io_size: 0,
            max_io_size: u32::MAX,
            max_discard_blocks: max_zero_blocks,
            max_write_zeroes_blocks: max_zero_blocks,
            compare: true,
            read_only: false,
            write_cache: false,
        };
        Ok(Arc::new(Malloc { identity, geometry, storage: Arc::new(storage) }))
    }
}

impl Bdev for Malloc {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        Ok(Box::new(MallocChannel { storage: self.storage.clone() }))
    }
}

struct MallocChannel {
    storage: Arc<Memory>,
}

impl BlockChannel for MallocChannel {
    #[inline]
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        let status = perform(&self.storage, &request);
        request.complete(done, status);
    }

    #[inline]
    fn poll(&mut self, _: Cycles, _: &mut Completions) -> usize {
        0
    }

    fn outstanding(&self) -> usize {
        0
    }
}

#[inline]
fn perform(storage: &Memory, request: &Request) -> Status {
    if !request.fits(storage.len() as u64) {
        return Status::IoError;
    }
    let (offset, len) = (request.offset as usize, request.len as usize);
    match request.op {
        Op::Read | Op::Write => copy(storage, request),
        Op::Compare => return compare(storage, request),
        Op::Flush => {}
        Op::Discard | Op::WriteZeroes { unmap: true } => release(storage, offset, len),
        Op::WriteZeroes { unmap: false } => zero(storage, offset, len),
    }
    Status::Ok
}

/// Moves a read's or a write's bytes. The request fits the storage.
#[inline]
fn copy(storage: &Memory, request: &Request) {
    let mut at = request.offset as usize;
    for piece in request.buffers.iovecs() {
        // SAFETY: the pieces add up to the request's length, which fits behind its offset.
        let block = unsafe { storage.as_ptr().add(at) };
        let guest = piece.iov_base.cast::<u8>();
        let (from, to) = if request.op == Op::Read { (block.cast_const(), guest) } else { (guest.cast_const(), block) };
        // SAFETY: both ends are mapped while the request and the storage live, and a guest's memory is never our storage.
        // Others may change either at the same time: bytes then are mixed, and nothing is concluded from them.
        unsafe { std::ptr::copy_nonoverlapping(from, to, piece.iov_len) };
        at += piece.iov_len;
    }
}

/// The request fits the storage.
#[cold]
fn compare(storage: &Memory, request: &Request) -> Status {
    // SAFETY: the range lies inside the storage, which is mapped as long as it lives.
    let same = unsafe {
        let bytes = storage.as_ptr().add(request.offset as usize);
        holds(&request.buffers, 0, bytes, request.len as usize)
    };
    if same { Status::Ok } else { Status::Miscompare }
}

fn zero(storage: &Memory, offset: usize, len: usize) {
    debug_assert!(offset + len <= storage.len());
    // SAFETY: the caller checked that the range fits.
    unsafe { storage.as_ptr().add(offset).write_bytes(0, len) };
}

/// Makes a range zero and gives its whole pages back.
#[cold]
fn release(storage: &Memory, offset: usize, len: usize) {
    let (page, end) = (storage.page_size(), offset + len);
    let (first, last) = (offset.next_multiple_of(page), end - end % page);
    if first < last && storage.release(first, last - first) {
        zero(storage, offset, first - offset);
        zero(storage, last, end - last);
    } else {
        zero(storage, offset, len);
    }
}
