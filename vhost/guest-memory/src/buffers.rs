//! A scatter list over guest memory, lent to a backend without a copy.

use crate::{AccessError, DirtyLog, GuestAddress, GuestMemory};
use std::sync::Arc;

/// A `struct iovec`: what readv, writev and io_uring take.
pub type Iovec = libc::iovec;

/// Payload of one request: pieces of guest memory in order, and the epoch of the table that keeps them mapped.
///
/// Reused from request to request: nothing is allocated once it has grown to the most pieces it is asked to hold.
pub struct IoBuffers {
    iovecs: Vec<Iovec>,
    guest: Vec<GuestAddress>,
    len: u64,
    memory: Arc<GuestMemory>,
}

// SAFETY: the raw pointers lead into mappings that `memory` keeps alive, and are only used for copies and by the kernel.
unsafe impl Send for IoBuffers {}

impl IoBuffers {
    /// An empty list over `memory` with room for `pieces`.
    pub fn new(memory: Arc<GuestMemory>, pieces: usize) -> IoBuffers {
        IoBuffers { iovecs: Vec::with_capacity(pieces), guest: Vec::with_capacity(pieces), len: 0, memory }
    }

    /// Zeroed private memory of `len` bytes: for requests of our own and for tests.
    pub fn anonymous(len: usize) -> Result<IoBuffers, crate::MapError> {
        let mut buffers = IoBuffers::new(Arc::new(GuestMemory::anonymous(len)?), 1);
        buffers.push(GuestAddress(0), len as u64).map_err(crate::MapError::Range)?;
        Ok(buffers)
    }

    /// Empties the list and moves it to `memory`, at the cost of a pointer comparison when it is there already.
    #[inline]
    pub fn reset(&mut self, memory: &Arc<GuestMemory>) {
        self.iovecs.clear();
        self.guest.clear();
        self.len = 0;
        if !Arc::ptr_eq(&self.memory, memory) {
            self.memory = memory.clone();
        }
    }

    /// The memory that the pieces lie in.
    #[inline(always)]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Adds a guest range. On an error nothing usable is added: reset or give up the request.
    #[inline]
    pub fn push(&mut self, address: GuestAddress, len: u64) -> Result<(), AccessError> {
        let error = AccessError { address: address.0, len };
        let mut done = 0;
        while done < len {
            let next = address.0.checked_add(done).ok_or(error)?;
            let (host, run) = self.memory.span(next, len - done)?;
            self.iovecs.push(Iovec { iov_base: host.cast(), iov_len: run as usize });
            self.guest.push(GuestAddress(next));
            done += run;
        }
        self.len = self.len.checked_add(len).ok_or(error)?;
        Ok(())
    }

    /// Bytes in the list.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, for the kernel. They stay mapped as long as this list is neither dropped nor reset; the guest may change
    /// their content at any time.
    #[inline(always)]
    pub fn iovecs(&self) -> &[Iovec] {
        &self.iovecs
    }

    /// Copies `bytes.len()` bytes out, from `offset` of the list.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.for_each(offset, bytes.len() as u64, |host, at, run| {
            // SAFETY: the piece is mapped while `memory` lives; `bytes` is ours alone.
            unsafe { std::ptr::copy_nonoverlapping(host, bytes[at..at + run].as_mut_ptr(), run) }
        })
    }

    /// Copies `bytes` in, at `offset` of the list.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), AccessError> {
        self.for_each(offset, bytes.len() as u64, |host, at, run| {
            // SAFETY: the piece is mapped while `memory` lives; the guest may race, which is its own loss.
            unsafe { std::ptr::copy_nonoverlapping(bytes[at..at + run].as_ptr(), host, run) }
        })
    }

    /// Fills `len` bytes at `offset` of the list with zeros.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), AccessError> {
        self.for_each(offset, len, |host, _, run| {
            // SAFETY: the piece is mapped while `memory` lives.
            unsafe { std::ptr::write_bytes(host, 0, run) }
        })
    }

    /// Calls `each(host, position, run)` for every contiguous run of `len` bytes from `offset` of the list.
    #[inline]
    fn for_each(&self, offset: u64, len: u64, mut each: impl FnMut(*mut u8, usize, usize)) -> Result<(), AccessError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(AccessError { address: offset, len });
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
            // SAFETY: `skip` lies inside the piece.
            each(unsafe { piece.iov_base.cast::<u8>().add(skip) }, done, run);
            (skip, done) = (0, done + run);
        }
        Ok(())
    }

    /// Marks the first `len` bytes of the list as written.
    pub fn mark_dirty(&self, log: &DirtyLog, mut len: u64) {
        for (piece, &address) in self.iovecs.iter().zip(&self.guest) {
            let run = len.min(piece.iov_len as u64);
            log.mark(address, run);
            len -= run;
        }
    }
}

impl std::fmt::Debug for IoBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoBuffers").field("pieces", &self.iovecs.len()).field("len", &self.len).finish_non_exhaustive()
    }
}
