//! A disk without content: SPDK's `Null disk`. Writes vanish and reads complete without touching their buffers, so that what is
//! measured over it is everything but a disk.

use crate::{Bdev, BlockChannel, BlockError, BlockRequest, Completions, Geometry, Identity, Op, Status, limits};
use clock::Cycles;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// Parameters of a [`Null`] disk.
#[derive(Clone, Debug)]
pub struct NullParams {
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
}

impl NullParams {
    /// A disk with nothing special about it.
    pub fn new(name: &str, block_size: u32, num_blocks: u64) -> NullParams {
        NullParams { name: name.into(), block_size, num_blocks, physical_block_size: None, uuid: None }
    }
}

/// A disk without content.
#[derive(Debug)]
pub struct Null {
    identity: Identity,
    block_size: u32,
    physical_block_size: u32,
    /// Written by `resize`, read by every channel.
    size_bytes: Arc<AtomicU64>,
}

impl Null {
    /// Makes the disk.
    pub fn create(params: NullParams) -> Result<Arc<Null>, BlockError> {
        let block_size = limits::block_size(params.block_size)?;
        let physical_block_size = limits::physical_block_size(params.physical_block_size, block_size)?;
        let num_blocks = limits::num_blocks(params.num_blocks, block_size)?;
        let identity = limits::identity(params.name, "Null disk", params.uuid)?;
        let size_bytes = Arc::new(AtomicU64::new(num_blocks * u64::from(block_size)));
        Ok(Arc::new(Null { identity, block_size, physical_block_size, size_bytes }))
    }

    /// Gives the disk another size. Requests under way are not concerned.
    pub fn resize(&self, num_blocks: u64) -> Result<(), BlockError> {
        let num_blocks = limits::num_blocks(num_blocks, self.block_size)?;
        self.size_bytes.store(num_blocks * u64::from(self.block_size), Ordering::Relaxed);
        Ok(())
    }
}

impl Bdev for Null {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: self.block_size,
            num_blocks: self.size_bytes.load(Ordering::Relaxed) / u64::from(self.block_size),
            physical_block_size: self.physical_block_size,
            optimal_io_size: 0,
            max_io_size: u32::MAX,
            max_discard_blocks: u32::MAX,
            max_write_zeroes_blocks: u32::MAX,
            compare: false,
            read_only: false,
            write_cache: false,
        }
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        Ok(Box::new(NullChannel { size_bytes: self.size_bytes.clone() }))
    }
}

struct NullChannel {
    size_bytes: Arc<AtomicU64>,
}

impl BlockChannel for NullChannel {
    #[inline]
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        let status = match request.op {
            Op::Compare => Status::Unsupported,
            _ if request.fits(self.size_bytes.load(Ordering::Relaxed)) => Status::Ok,
            _ => Status::IoError,
        };
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
