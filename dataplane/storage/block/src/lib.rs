//! The block seam: what stands between a frontend (virtio-blk) and a backend (a file, memory, a cloud disk).
//!
//! A [`Bdev`] is the disk, shared by control threads. A [`BlockChannel`] is one worker's way into it: opened off the poll core,
//! handed to a worker, then polled by it alone. A request is a linear value: the frontend fills an idle [`Request`], turns it
//! into a [`BlockRequest`] and submits it; the channel gives it back through [`Completions`], once. Losing one is a bug, and a
//! debug build panics on it.
//!
//! ```text
//! frontend: Box<Request> --BlockRequest::new--> submit() ... poll() --Completions--> Box<Request> + Status
//! ```
//!
//! Backends: [`Malloc`] (memory), [`Null`] (nothing), [`FileBdev`] (a file or block device, by io_uring). Decorators, which are
//! disks over a disk: [`Qos`] (rate limits), [`Delay`] (latency), [`ErrorInjection`] (faults). [`IoStats`] counts what a worker's
//! requests did. What a disk may be stands in [`limits`].
//!
//! A worker's turn:
//!
//! ```
//! # use block::{Bdev, BlockRequest, Completions, Malloc, MallocParams, Op, Request, Status};
//! # use clock::Cycles;
//! # use memory::IoBuffers;
//! let disk = Malloc::create(MallocParams::new("ram0", 512, 2048))?;
//! let mut channel = disk.open_channel()?; // off the worker
//! let mut done = Completions::with_capacity(128);
//!
//! let mut request = Request::new(IoBuffers::anonymous(4096)?);
//! (request.op, request.offset, request.len) = (Op::Read, 0, 4096);
//! request.submitted = Cycles::now();
//! channel.submit(BlockRequest::new(request), &mut done);
//! channel.poll(Cycles::now(), &mut done);
//! for completed in done.drain() {
//!     assert_eq!(completed.status, Status::Ok); // and `completed.request` is free for the next one
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![allow(unsafe_code)] // raw copies between storage and guest memory; io_uring takes pointers

mod compare;
mod delay;
mod error;
mod file;
pub mod limits;
mod malloc;
mod null;
mod qos;
mod request;
mod request_queue;
pub mod stats;

pub use delay::{Delay, DelayParams, LatencyType};
pub use error::{ErrorInjection, ErrorType, Injection};
pub use file::{FileBdev, FileEngine, FileParams, FileProduct};
pub use malloc::{Malloc, MallocParams};
pub use null::{Null, NullParams};
pub use qos::{Qos, QosLimits, Rate};
pub use request::{BlockRequest, Completed, Completions, Op, Request, Status};
pub use request_queue::RequestQueue;
pub use stats::{IoSnapshot, IoStats, OpKind};

use clock::Cycles;
use invalid::Invalid;
use std::os::fd::RawFd;

/// The geometry of a disk. It changes when the disk is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes a logical block: a power of two from 512 to 65,536.
    pub block_size: u32,
    /// Logical blocks.
    pub num_blocks: u64,
    /// Bytes a physical block, at least `block_size`.
    pub physical_block_size: u32,
    /// Bytes that are best moved at once; 0 where the backend has no preference.
    pub optimal_io_size: u32,
    /// Bytes that one read, write or compare may move; `u32::MAX` where there is no limit.
    pub max_io_size: u32,
    /// Blocks that one discard may cover; 0 where discard is not supported.
    pub max_discard_blocks: u32,
    /// Blocks that one write-zeroes may cover; 0 where it is not supported.
    pub max_write_zeroes_blocks: u32,
    /// The disk compares, `max_io_size` bytes at most; otherwise a compare ends as unsupported.
    pub compare: bool,
    /// The disk refuses writes.
    pub read_only: bool,
    /// The disk has a volatile write cache: a flush means something.
    pub write_cache: bool,
}

impl Geometry {
    /// Bytes on the disk.
    pub fn size_bytes(&self) -> u64 {
        self.num_blocks * u64::from(self.block_size)
    }
}

/// The identity of a disk: fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name operators use.
    pub name: String,
    /// The kind, in SPDK's words: `Malloc disk`, `Null disk`, `AIO disk`, `URING bdev`, ...
    pub product_name: &'static str,
    /// Unique for this disk.
    pub uuid: uuid::Uuid,
}

/// A disk. Shared by control threads; no method of it runs on a worker.
pub trait Bdev: Send + Sync {
    /// The disk's name, kind and UUID.
    fn identity(&self) -> &Identity;
    /// The disk's geometry now.
    fn geometry(&self) -> Geometry;
    /// Opens one worker's way into the disk. May block: called off the poll cores.
    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError>;
    /// Brings the disk's geometry up to date with what lies under it (a file that grew). Returns whether it changed.
    fn rescan(&self) -> Result<bool, BlockError> {
        Ok(false)
    }
    /// Requests that were not finished in the time they are given, since the disk was made.
    fn timed_out(&self) -> u64 {
        0
    }
}

/// One worker's way into a disk. Never blocks, allocates or logs once it is open.
///
/// A channel dropped with requests outstanding abandons them, but not before the kernel or device that uses their buffers has let
/// go: such a drop may block, so it belongs off the workers.
pub trait BlockChannel: Send {
    /// Takes a request. It comes back through `done`, of this call or of a later [`poll`](BlockChannel::poll).
    fn submit(&mut self, request: BlockRequest, done: &mut Completions);
    /// Sends what was submitted and collects what is complete. Returns the number of events seen, 0 when idle.
    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize;
    /// A descriptor that becomes readable (edge) when `poll` has something to do; `None` where only time or `submit` matters.
    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
    /// When `poll` must be called although nothing woke the worker; [`Cycles::NEVER`] when it need not.
    fn deadline(&self) -> Cycles {
        Cycles::NEVER
    }
    /// Requests taken and not given back.
    fn outstanding(&self) -> usize;
}

/// Why a disk could not be made, opened or changed. [`hint`](BlockError::hint) says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// A parameter is out of its range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// The operation: `open`, `io_uring setup`, ...
        what: &'static str,
        /// The file or device.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl BlockError {
    /// What the operator can do about it, where we know.
    pub fn hint(&self) -> Option<&'static str> {
        let BlockError::Io { source, .. } = self else { return None };
        match source.raw_os_error()? {
            libc::ENOENT => {
                Some("create the file first, for example with truncate -s 10G FILE, and give its absolute path")
            }
            libc::EACCES | libc::EPERM => Some("let the daemon's user read and write it, or make the disk read-only"),
            libc::EROFS => Some("the file system is read-only: make the disk read-only"),
            libc::ETXTBSY | libc::EBUSY => Some("something else holds it: release it there first"),
            libc::EMFILE | libc::ENFILE => Some("raise the limit of open files"),
            libc::ENOMEM => Some("make the disk smaller, or free memory"),
            libc::ENXIO | libc::ENODEV => Some("the device is not there: check that it is attached"),
            _ => None,
        }
    }
}
