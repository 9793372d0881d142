//! Memory for disks and DMA: hugepages where the machine has them, normal pages where it has not.
//!
//! [`Memory`] is one run of zeroed, page-aligned bytes, made off the poll cores and freed when it is dropped. The largest page
//! that fits and that the system has free is taken: 1 GiB, 2 MiB, else normal pages that the kernel is asked to merge. The
//! first time hugepages would have been taken and were not there, one log line says so; nothing fails for it. No privilege is
//! needed.
//!
//! [`Pool`] cuts such a run into buffers of one size that a poll loop takes and gives back without allocation.
//!
//! [`IoBuffers`] is a scatter list over memory that something else owns (a guest's table, a [`Memory`]): the payload of a block
//! request, which a backend reads and fills in place.
//!
//! [`prefer_huge_pages`] asks for large pages behind memory of the common allocator: tables that are read at random.
//!
//! [`usage()`] tells how much is allocated, by page size and NUMA node.

#![allow(unsafe_code)] // NUMA policy and the advice to free pages are raw system calls on mapped ranges

mod io_buffers;
mod numa;
mod pool;
mod usage;

pub use io_buffers::{BufferRangeError, IoBuffers, Iovec};
pub use pool::{Buffer, Pool};
pub use usage::{Usage, usage};

use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};
use std::sync::{Arc, Once};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// The hugepages of x86-64 and of arm64 with 4 KiB granules, largest first.
const HUGE_PAGES: [usize; 2] = [GIB, 2 * MIB];

/// A hugepage is taken where rounding up to it wastes at most this part of what was asked for.
const WASTE: usize = 8;

/// An allocation that failed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The length is zero or does not fit an address space.
    #[error("memory of {got} bytes: expected 1 to {} bytes", isize::MAX)]
    Length {
        /// Bytes asked for.
        got: usize,
    },
    /// The machine has no such NUMA node.
    #[error("NUMA node {got}: expected one of {online}")]
    Node {
        /// The node asked for.
        got: u32,
        /// The nodes there are, in the kernel's list notation.
        online: String,
    },
    /// The system refused.
    #[error("allocation of {len} bytes: {source}")]
    Os {
        /// Bytes asked for.
        len: usize,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Zeroed memory that starts at a page and is backed when it is first touched.
///
/// It hands out an address, never a reference: what lies there is shared with devices, with the kernel, or with other workers.
#[derive(Debug)]
pub struct Memory {
    map: MmapMut,
    address: *mut u8,
    len: usize,
    page: usize,
    node: Option<u32>,
}

// SAFETY: the pointer leads into `map`, which the value owns; all access goes through the caller's own raw copies.
unsafe impl Send for Memory {}
// SAFETY: `&self` gives nothing but the address, whose users make their own raw copies, and freeing pages is an atomic operation
// of the kernel.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` bytes, on NUMA node `node` where one is given, else near the CPU that touches them first.
    ///
    /// The node is a preference: when it is full the kernel takes memory elsewhere rather than fail.
    pub fn allocate(len: usize, node: Option<u32>) -> Result<Memory, MemoryError> {
        if len == 0 || len > isize::MAX as usize - GIB {
            return Err(MemoryError::Length { got: len });
        }
        if let Some(node) = node {
            numa::check(node)?;
        }
        let (mut map, page) = map(len)?;
        let address = map.as_mut_ptr();
        if let Some(node) = node {
            numa::prefer(address, map.len(), node);
        }
        usage::add(page, node, map.len() as i64);
        Ok(Memory { map, address, len, page, node })
    }

    /// The first byte. Good for as long as the value lives.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut u8 {
        self.address
    }

    /// Bytes of the allocation, as they were asked for.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an allocation has at least a byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Adds the `len` bytes at `offset` to `buffers`, whose owner this memory is.
    pub fn append_buffers(self: &Arc<Self>, offset: usize, len: usize, buffers: &mut IoBuffers) {
        assert!(offset <= self.len && len <= self.len - offset, "range inside the allocation");
        assert!(buffers.is_owned_by(self), "buffers of this memory");
        // SAFETY: the range lies inside the allocation, by the assertion.
        let host = unsafe { self.address.add(offset) };
        // SAFETY: the allocation, to which no reference is ever made, stays mapped as long as `self`, which owns the buffers.
        unsafe { buffers.push(host, len, offset as u64) }
    }

    /// Bytes of a page: the unit that [`release`](Memory::release) works in.
    pub fn page_size(&self) -> usize {
        self.page
    }

    /// Gives whole pages back to the system: they read as zero from now on. `offset` and `len` are in bytes, multiples of the
    /// page size. Returns whether the system did it; if not, the pages are as they were.
    pub fn release(&self, offset: usize, len: usize) -> bool {
        assert!(offset.is_multiple_of(self.page) && len.is_multiple_of(self.page), "whole pages");
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.map.len()), "range inside the allocation");
        // SAFETY: the range is ours, private and anonymous: its pages become zero. No reference leads into it, since
        // none is ever made.
        unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len).is_ok() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        usage::add(self.page, self.node, -(self.map.len() as i64));
    }
}

/// Maps at least `len` bytes with the best pages there are, and tells their size.
fn map(len: usize) -> Result<(MmapMut, usize), MemoryError> {
    let mut wanted = false;
    for page in HUGE_PAGES {
        let rounded = len.next_multiple_of(page);
        if rounded - len > len / WASTE {
            continue;
        }
        wanted = true;
        // The kernel sets the pages aside now, so that a later touch cannot fail.
        if let Ok(map) = MmapOptions::new().len(rounded).huge(Some(page.trailing_zeros() as u8)).map_anon() {
            return Ok((map, page));
        }
    }
    let page = normal_page();
    let map = MmapOptions::new().len(len.next_multiple_of(page)).map_anon();
    let map = map.map_err(|source| MemoryError::Os { len, source })?;
    if wanted {
        log_shortage_once(len);
        let _ = map.advise(Advice::HugePage); // Without transparent hugepages the kernel refuses, and normal pages do.
    }
    Ok((map, page))
}

/// Asks the kernel for transparent hugepages behind memory that is not touched yet, such as a vector's spare capacity. Only advice:
/// with a kernel without them, or memory smaller than one, nothing changes.
pub fn prefer_huge_pages<T>(memory: &[T]) {
    let start = memory.as_ptr().addr().next_multiple_of(2 * MIB);
    let end = (memory.as_ptr().addr() + size_of_val(memory)) / (2 * MIB) * (2 * MIB);
    if start < end {
        let address = memory.as_ptr().with_addr(start).cast_mut().cast();
        // SAFETY: the range is inside a live allocation; the advice changes no byte of it.
        unsafe { libc::madvise(address, end - start, libc::MADV_HUGEPAGE) };
    }
}

fn normal_page() -> usize {
    // SAFETY: sysconf reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4 * KIB)
}

/// Logs once a process that hugepages are short, and how to get some.
fn log_shortage_once(len: usize) {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| {
        tracing::warn!(
            bytes = len,
            "no free hugepages: using normal pages, which cost more TLB misses \
             (to reserve 1 GiB: echo 512 > /proc/sys/vm/nr_hugepages)"
        );
    });
}

#[cfg(test)]
mod tests;
