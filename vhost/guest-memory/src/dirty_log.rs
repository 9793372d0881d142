//! The migration log: a bitmap of guest pages that the device wrote (vhost-user, "Migration").

use crate::{GuestAddress, Mapping, Region, UserAddress, Window};
use memory::IoBuffers;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of guest memory that one bit of the log stands for.
pub const LOG_PAGE: u64 = 4096;

/// A bitmap shared with the front-end, one bit a page of guest addresses from 0.
#[derive(Clone, Debug)]
pub struct DirtyLog {
    bits: Window,
}

impl DirtyLog {
    /// A log over the whole of `mapping`.
    pub fn new(mapping: Mapping) -> Result<DirtyLog, crate::AccessError> {
        let len = mapping.len();
        let region = Arc::new(Region::new(GuestAddress(0), UserAddress(0), mapping)?);
        let host = region.mapping.at(0);
        // SAFETY: the whole mapping belongs to the region.
        let bits = unsafe { Window::new(host, len, region.clone()) };
        Ok(DirtyLog::over(bits))
    }

    /// A log over a window.
    pub fn over(bits: Window) -> DirtyLog {
        DirtyLog { bits }
    }

    /// Marks the pages of `len` bytes at `address`, and no other. Pages behind the log's end cannot be logged and are left out.
    pub fn mark(&self, address: GuestAddress, len: u64) {
        if len == 0 {
            return;
        }
        let first = address.0 / LOG_PAGE;
        let last = address.0.saturating_add(len - 1) / LOG_PAGE;
        let pages = self.bits.len() as u64 * 8;
        for page in first..=last.min(pages.saturating_sub(1)) {
            self.bits.fetch_or_u8((page / 8) as usize, 1 << (page % 8), Ordering::Relaxed);
        }
    }

    /// Marks the pages of the first `len` bytes of `buffers`, which lie in guest memory.
    pub fn mark_buffers(&self, buffers: &IoBuffers, mut len: u64) {
        for (piece, &address) in buffers.iovecs().iter().zip(buffers.addresses()) {
            let run = len.min(piece.iov_len as u64);
            self.mark(GuestAddress(address), run);
            len -= run;
        }
    }
}
