//! Buffers of one size for a poll loop.

use crate::{Memory, MemoryError};

/// A buffer taken from a [`Pool`]. Give it back to the pool it came from.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a buffer that is not given back is lost to its pool"]
pub struct Buffer(u32);

/// Buffers of one size, taken and given back without allocation. One thread's own.
#[derive(Debug)]
pub struct Pool {
    memory: Memory,
    size: usize,
    free: Vec<u32>,
}

impl Pool {
    /// `count` buffers of `size` bytes each, a multiple of the page size so that each starts at a page.
    pub fn new(size: usize, count: u32, node: Option<u32>) -> Result<Pool, MemoryError> {
        let len = size.checked_mul(count as usize).ok_or(MemoryError::Length { got: usize::MAX })?;
        let memory = Memory::allocate(len, node)?;
        assert!(size.is_multiple_of(crate::normal_page()), "buffers of whole pages");
        Ok(Pool { memory, size, free: (0..count).rev().collect() })
    }

    /// Bytes of each buffer.
    pub fn buffer_size(&self) -> usize {
        self.size
    }

    /// A buffer with arbitrary content; `None` while all are taken. The one given back last comes first: it is warm.
    pub fn take(&mut self) -> Option<Buffer> {
        self.free.pop().map(Buffer)
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        debug_assert!(!self.free.contains(&buffer.0), "given back once");
        self.free.push(buffer.0);
    }

    /// The first byte of a buffer, page aligned. Good for as long as the pool lives.
    pub fn address(&self, buffer: &Buffer) -> *mut u8 {
        let offset = buffer.0 as usize * self.size;
        assert!(offset < self.memory.len(), "a buffer of this pool");
        // SAFETY: the offset lies inside the allocation.
        unsafe { self.memory.as_ptr().add(offset) }
    }
}
