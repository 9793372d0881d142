//! Comparing a disk's bytes with those of a request.

use memory::IoBuffers;
use std::ffi::c_void;

/// Whether the buffers hold, from `skip` on, the `len` bytes at `bytes`.
///
/// # Safety
///
/// `bytes` leads to `len` mapped bytes. Others may change them, and the buffers, at the same time: the answer is then that of
/// some mixture.
pub(crate) unsafe fn holds(buffers: &IoBuffers, skip: usize, bytes: *const u8, len: usize) -> bool {
    let (mut skip, mut done) = (skip, 0);
    for piece in buffers.iovecs() {
        let from = skip.min(piece.iov_len);
        skip -= from;
        let run = (piece.iov_len - from).min(len - done);
        // SAFETY: both ranges lie inside what the caller and the buffers vouch for; the C library reads them without assuming
        // that no other thread writes.
        let order = unsafe {
            libc::memcmp(bytes.add(done).cast::<c_void>(), piece.iov_base.cast::<u8>().add(from).cast::<c_void>(), run)
        };
        if order != 0 {
            return false;
        }
        done += run;
    }
    done == len
}
