//! What a request needs of the kernel, step by step: each step is one call, each result leads to the next step or to the end.
//!
//! Knows short reads and writes, interrupted calls, bounce buffers, and what to do on file systems that lack a call. Does no
//! I/O itself: an engine turns a [`Step`] into an io_uring entry or a system call.

use super::Disk;
use crate::compare::holds;
use crate::{Op, Request, Status};
use memory::Iovec;
use std::sync::atomic::Ordering;

/// Pieces that the kernel takes in one call (IOV_MAX).
const MAX_PIECES: usize = 1024;
/// Bytes of a single piece in one call; the kernel takes a page less than 2 GiB.
const MAX_BYTES: usize = 1 << 30;

/// Memory that a request which needs it goes through: page aligned, as large as [`super::BOUNCE_BYTES`] says.
pub(super) type Bounce = *mut u8;

/// The next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read into, or write from, one piece of memory.
    One { write: bool, address: *mut u8, len: u32, offset: u64 },
    /// The same with several pieces.
    Many { write: bool, iovecs: *const Iovec, count: u32, offset: u64 },
    /// fdatasync.
    Sync,
    /// fallocate.
    Allocate { mode: i32, offset: u64, len: u64 },
}

/// By which call a request goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Bounced,
    Sync,
    Discard,
    Unmap,
    ZeroRange,
    WriteZeros,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    way: Way,
    /// Bytes done.
    done: u64,
}

impl Transfer {
    /// The transfer of an unused slot.
    pub(super) const IDLE: Transfer = Transfer { way: Way::Sync, done: 0 };

    /// The begin of a request, or the end of one that the disk cannot serve.
    #[inline]
    pub(super) fn begin(disk: &Disk, request: &Request) -> Result<Transfer, Status> {
        if !request.fits(disk.size_bytes()) {
            return Err(Status::IoError);
        }
        let changes = !matches!(request.op, Op::Read | Op::Compare | Op::Flush);
        if changes && disk.read_only {
            return Err(Status::IoError);
        }
        if request.len == 0 && request.op != Op::Flush {
            return Err(Status::Ok);
        }
        let way = match request.op {
            Op::Read | Op::Write if is_aligned(disk, request.buffers.iovecs()) => Way::Direct,
            Op::Read | Op::Write | Op::Compare => Way::Bounced,
            Op::Flush => Way::Sync,
            Op::Discard => Way::Discard,
            Op::WriteZeroes { unmap: true } => Way::Unmap,
            Op::WriteZeroes { unmap: false } if disk.zero_range.load(Ordering::Relaxed) => Way::ZeroRange,
            Op::WriteZeroes { unmap: false } => Way::WriteZeros,
        };
        Ok(Transfer { way, done: 0 })
    }

    /// Whether the transfer goes through bounce memory, the same for all its steps.
    #[inline]
    pub(super) fn needs_bounce(&self) -> bool {
        self.way == Way::Bounced
    }

    /// The next call. What it points to stays in place as long as the request, the disk and the bounce memory.
    #[inline]
    pub(super) fn step(&self, disk: &Disk, request: &Request, bounce: Option<Bounce>) -> Step {
        let offset = request.offset + self.done;
        let rest = request.len - self.done;
        let write = request.op == Op::Write;
        match self.way {
            Way::Direct => self.direct(request),
            Way::Bounced => {
                let address = bounce.expect("a bounced transfer has its buffer");
                let len = rest.min(super::BOUNCE_BYTES as u64);
                if write {
                    // SAFETY: bounce memory is this request's own for now, and as long as `len` is at most.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(address, len as usize) };
                    request.buffers.read(self.done, bytes).expect("inside the request");
                }
                Step::One { write, address, len: len as u32, offset }
            }
            Way::WriteZeros => {
                let len = rest.min(disk.zeros.len() as u64) as u32;
                Step::One { write: true, address: disk.zeros.as_ptr(), len, offset }
            }
            Way::Sync => Step::Sync,
            Way::Discard | Way::Unmap => {
                Step::Allocate { mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len: rest }
            }
            Way::ZeroRange => {
                Step::Allocate { mode: libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, len: rest }
            }
        }
    }

    /// Straight between the file and the request's own buffers, from where the last call stopped.
    #[inline]
    fn direct(&self, request: &Request) -> Step {
        let (write, offset) = (request.op == Op::Write, request.offset + self.done);
        let mut skip = self.done as usize;
        let mut pieces = request.buffers.iovecs();
        while let [first, rest @ ..] = pieces
            && skip >= first.iov_len
        {
            skip -= first.iov_len;
            pieces = rest;
        }
        if pieces.len() > 1 && skip == 0 {
            let count = pieces.len().min(MAX_PIECES) as u32;
            return Step::Many { write, iovecs: pieces.as_ptr(), count, offset };
        }
        let piece = pieces.first().expect("bytes are left");
        let len = (piece.iov_len - skip).min(MAX_BYTES) as u32;
        // SAFETY: `skip` lies inside the piece.
        Step::One { write, address: unsafe { piece.iov_base.cast::<u8>().add(skip) }, len, offset }
    }

    /// Takes a call's result: bytes moved, or a negative errno. Returns the request's end, or nothing when another step is due.
    #[inline]
    pub(super) fn advance(
        &mut self,
        disk: &Disk,
        request: &Request,
        bounce: Option<Bounce>,
        result: i32,
    ) -> Option<Status> {
        if result < 0 {
            return self.failed(disk, -result);
        }
        match self.way {
            Way::Sync | Way::Discard | Way::Unmap | Way::ZeroRange => return Some(Status::Ok),
            // Nothing moved: the file ends here.
            Way::Direct | Way::Bounced | Way::WriteZeros if result == 0 => return Some(Status::IoError),
            Way::Bounced if request.op == Op::Read => {
                let address = bounce.expect("a bounced transfer has its buffer");
                // SAFETY: the kernel has just filled that many bytes of this request's bounce memory.
                let bytes = unsafe { std::slice::from_raw_parts(address, result as usize) };
                request.buffers.write(self.done, bytes).expect("inside the request");
            }
            Way::Bounced if request.op == Op::Compare => {
                let address = bounce.expect("a bounced transfer has its buffer");
                // SAFETY: the kernel has just filled that many bytes of this request's bounce memory.
                if !unsafe { holds(&request.buffers, self.done as usize, address, result as usize) } {
                    return Some(Status::Miscompare);
                }
            }
            Way::Direct | Way::Bounced | Way::WriteZeros => {}
        }
        self.done += result as u64;
        (self.done == request.len).then_some(Status::Ok)
    }

    #[cold]
    fn failed(&mut self, disk: &Disk, errno: i32) -> Option<Status> {
        match (errno, self.way) {
            (libc::EINTR | libc::EAGAIN, _) => None,
            (libc::EOPNOTSUPP, Way::Unmap) => {
                self.way = Way::ZeroRange;
                None
            }
            (libc::EOPNOTSUPP, Way::ZeroRange) => {
                disk.zero_range.store(false, Ordering::Relaxed);
                self.way = Way::WriteZeros;
                None
            }
            (libc::EOPNOTSUPP, _) => Some(Status::Unsupported),
            (libc::ENOSPC | libc::EDQUOT, _) => Some(Status::NoSpace),
            _ => Some(Status::IoError),
        }
    }
}

/// Whether the device can reach every piece directly.
#[inline]
fn is_aligned(disk: &Disk, pieces: &[Iovec]) -> bool {
    let (memory, length) = (disk.memory_align - 1, disk.length_align - 1);
    pieces.iter().all(|piece| piece.iov_base as usize & memory == 0 && piece.iov_len & length == 0)
}
