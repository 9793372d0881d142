//! The scatter list of a block request, lent to a backend without a copy.

use crate::{Memory, MemoryError};
use std::any::Any;
use std::sync::Arc;

/// A `struct iovec`: what readv, writev and io_uring take.
pub type Iovec = libc::iovec;

/// A range outside the buffers that it was asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("range {offset:#x}+{len:#x}: outside the buffers")]
pub struct BufferRangeError {
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range.
    pub len: u64,
}

/// Payload of one request: pieces of shared memory in order, and the owner that keeps them mapped, such as one epoch of a
/// guest's memory table.
///
/// Used again from request to request: nothing is allocated once the list has grown to the most pieces that a request has.
pub struct IoBuffers {
    iovecs: Vec<Iovec>,
    /// By piece: where it lies in the address space of `owner`.
    addresses: Vec<u64>,
    len: u64,
    owner: Arc<dyn Any + Send + Sync>,
    /// Address of the owner's value. To take it from `owner` costs a look into its vtable each time.
    owner_address: usize,
}

// SAFETY: the raw pointers lead into memory that `owner`, which may be sent, keeps mapped (`push`); only copies and the kernel
// follow them.
unsafe impl Send for IoBuffers {}

impl IoBuffers {
    /// An empty list over the memory of `owner`, with room for `pieces`.
    pub fn new(owner: Arc<dyn Any + Send + Sync>, pieces: usize) -> IoBuffers {
        let owner_address = Arc::as_ptr(&owner).addr();
        let (iovecs, addresses) = (Vec::with_capacity(pieces), Vec::with_capacity(pieces));
        IoBuffers { iovecs, addresses, len: 0, owner, owner_address }
    }

    /// Zeroed memory of its own, `len` bytes in one piece: for requests of the data plane itself and for tests.
    pub fn anonymous(len: usize) -> Result<IoBuffers, MemoryError> {
        let memory = Arc::new(Memory::allocate(len, None)?);
        let mut buffers = IoBuffers::new(memory.clone(), 1);
        memory.append_buffers(0, len, &mut buffers);
        Ok(buffers)
    }

    /// Empties the list. Its owner stays.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.addresses.clear();
        self.len = 0;
    }

    /// Empties the list and moves it to `owner`, at the cost of a pointer comparison when it is there already.
    #[inline]
    pub fn reset<T: Any + Send + Sync>(&mut self, owner: &Arc<T>) {
        self.clear();
        if !self.is_owned_by(owner) {
            self.owner = owner.clone();
            self.owner_address = Arc::as_ptr(owner).addr();
        }
    }

    /// Whether `owner` is what keeps the pieces mapped.
    #[inline(always)]
    pub fn is_owned_by<T>(&self, owner: &Arc<T>) -> bool {
        Arc::as_ptr(owner).addr() == self.owner_address
    }

    /// What keeps the pieces mapped.
    pub fn owner(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.owner
    }

    /// Adds the `len` bytes at `host`, which the owner has at `address`.
    ///
    /// # Safety
    /// The owner of this list keeps `len` bytes at `host` mapped, readable and writable, for as long as it lives, and no Rust
    /// reference leads into them.
    #[inline(always)]
    pub unsafe fn push(&mut self, host: *mut u8, len: usize, address: u64) {
        self.iovecs.push(Iovec { iov_base: host.cast(), iov_len: len });
        self.addresses.push(address);
        self.len += len as u64;
    }

    /// Bytes in the list.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the list has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, for the kernel. They stay mapped as long as this list is neither dropped nor reset; their owner may change
    /// their content at any time.
    #[inline(always)]
    pub fn iovecs(&self) -> &[Iovec] {
        &self.iovecs
    }

    /// By piece: where it lies in the owner's address space.
    #[inline(always)]
    pub fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// Copies `bytes.len()` bytes out, from `offset` of the list.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), BufferRangeError> {
        self.for_each_run(offset, bytes.len() as u64, |host, at, run| {
            // SAFETY: `for_each_run` gives `run` mapped bytes at `host` (`push`), and `bytes` is a unique borrow, apart from them.
            unsafe { std::ptr::copy_nonoverlapping(host, bytes[at..at + run].as_mut_ptr(), run) }
        })
    }

    /// Copies `bytes` in, at `offset` of the list.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), BufferRangeError> {
        self.for_each_run(offset, bytes.len() as u64, |host, at, run| {
            // SAFETY: `for_each_run` gives `run` mapped bytes at `host` (`push`), to which no reference, so not `bytes`, leads. A
            // guest that writes there too spoils its own data only.
            unsafe { std::ptr::copy_nonoverlapping(bytes[at..at + run].as_ptr(), host, run) }
        })
    }

    /// Fills `len` bytes at `offset` of the list with zeros.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), BufferRangeError> {
        self.for_each_run(offset, len, |host, _, run| {
            // SAFETY: `for_each_run` gives `run` mapped bytes at `host` (`push`).
            unsafe { std::ptr::write_bytes(host, 0, run) }
        })
    }

    /// Calls `each(host, position, run)` for every contiguous run of `len` bytes from `offset` of the list.
    #[inline]
    fn for_each_run(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(*mut u8, usize, usize),
    ) -> Result<(), BufferRangeError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(BufferRangeError { offset, len });
        }
        let (mut skip, mut done) = (offset as usize, 0);
        for piece in &self.iovecs {
            if done == len as usize {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let run = (piece.iov_len - skip).min(len as usize - done);
            // SAFETY: `skip` is less than the piece's length, by the test above.
            each(unsafe { piece.iov_base.cast::<u8>().add(skip) }, done, run);
            skip = 0;
            done += run;
        }
        Ok(())
    }
}

impl std::fmt::Debug for IoBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoBuffers").field("pieces", &self.iovecs.len()).field("len", &self.len).finish_non_exhaustive()
    }
}
