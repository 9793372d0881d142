//! A disk in a file or on a block device: SPDK's `URING bdev` and `AIO disk`, one engine for both.
//!
//! Each channel has an io_uring of its own ([`uring`]); where the system has or allows no io_uring, a few threads that block in the
//! kernel stand in ([`threads`]). What a request needs of the kernel, step by step, is the same for both ([`transfer`]).
//!
//! The file is opened with `O_DIRECT` where its file system allows that for the disk's block size. Buffers that the device
//! cannot reach directly then go through a bounce buffer, as does what is compared.
//!
//! A file that shrinks under the disk: reads behind its end fail, writes there make it grow again, until
//! [`rescan`](Bdev::rescan) takes over the new size and both fail.

mod open;
mod threads;
mod transfer;
mod uring;

use crate::{Bdev, BlockChannel, BlockError, Geometry, Identity, limits};
use memory::Memory;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;
use threads::ThreadsChannel;
use uring::UringChannel;
use uuid::Uuid;

/// Requests of one channel that the kernel works on at a time; more wait in the channel.
const DEPTH: usize = 256;
/// Bytes of a bounce buffer.
const BOUNCE_BYTES: usize = 64 << 10;
/// Bounce buffers of a channel: requests beyond wait for one.
const BOUNCE_BUFFERS: u32 = 32;
/// Bytes that one discard or write-zeroes may cover, so that none keeps the file system for long.
const MAX_ZERO_BYTES: u64 = 1 << 30;

/// Which of SPDK's disks it stands for: a matter of names alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileProduct {
    /// `AIO disk`, of bdev_aio_create.
    Aio,
    /// `URING bdev`, of bdev_uring_create.
    #[default]
    Uring,
}

/// How a channel talks to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileEngine {
    /// io_uring, or threads where it is not allowed.
    #[default]
    Auto,
    /// Threads that block in preadv and pwritev.
    Threads,
}

/// Parameters of a [`FileBdev`].
#[derive(Clone, Debug)]
pub struct FileParams {
    /// The name operators use.
    pub name: String,
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Bytes a logical block; `None`: the device's own, 512 for a file.
    pub block_size: Option<u32>,
    /// Opens the file for reading alone.
    pub read_only: bool,
    /// `None`: a random one.
    pub uuid: Option<Uuid>,
    /// The product whose name the disk has.
    pub product: FileProduct,
    /// How to talk to the kernel.
    pub engine: FileEngine,
    /// Use `O_DIRECT` where possible. Without, the page cache stands between.
    pub direct: bool,
    /// A request that the kernel has for longer is counted and cancelled; `None`: never.
    pub timeout: Option<Duration>,
}

impl FileParams {
    /// A disk in `path` with nothing special about it.
    pub fn new(name: &str, path: impl Into<PathBuf>) -> FileParams {
        FileParams {
            name: name.into(),
            path: path.into(),
            block_size: None,
            read_only: false,
            uuid: None,
            product: FileProduct::default(),
            engine: FileEngine::default(),
            direct: true,
            timeout: Some(Duration::from_secs(30)),
        }
    }
}

/// A disk in a file or on a block device.
#[derive(Debug)]
pub struct FileBdev {
    identity: Identity,
    /// All but the number of blocks, which `disk` has.
    geometry: Geometry,
    engine: FileEngine,
    disk: Arc<Disk>,
}

/// The state that the channels of a disk share.
#[derive(Debug)]
struct Disk {
    file: File,
    path: PathBuf,
    read_only: bool,
    /// The address and the length of each piece of a buffer must be multiples of these (`O_DIRECT`); 1 where any will do.
    memory_align: usize,
    length_align: usize,
    /// Written by rescan, read by every channel.
    size_bytes: AtomicU64,
    /// Cleared by the first channel that the file system tells it cannot zero a range.
    zero_range: AtomicBool,
    /// Zeros to write where that is so. Never written, so it takes no memory.
    zeros: Memory,
    timeout: Option<Duration>,
    timed_out: AtomicU64,
}

impl Disk {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }
}

impl FileBdev {
    /// Opens the file and makes the disk.
    pub fn create(params: FileParams) -> Result<Arc<FileBdev>, BlockError> {
        let opened = open::open(&params)?;
        let product_name = match params.product {
            FileProduct::Aio => "AIO disk",
            FileProduct::Uring => "URING bdev",
        };
        let identity = limits::identity(params.name, product_name, params.uuid)?;
        let block_size = opened.block_size;
        let max_zero_blocks = limits::blocks_in(MAX_ZERO_BYTES, block_size);
        let geometry = Geometry {
            block_size,
            num_blocks: opened.size_bytes / u64::from(block_size),
            physical_block_size: opened.physical_block_size,
            optimal_io_size: 0,
            max_io_size: u32::MAX,
            max_discard_blocks: if opened.discard { max_zero_blocks } else { 0 },
            max_write_zeroes_blocks: if params.read_only { 0 } else { max_zero_blocks },
            compare: true,
            read_only: params.read_only,
            write_cache: true,
        };
        let zeros = Memory::allocate(BOUNCE_BYTES, None).map_err(|error| BlockError::Io {
            what: "allocate memory for",
            path: identity.name.clone(),
            source: std::io::Error::other(error),
        })?;
        let disk = Disk {
            file: opened.file,
            path: params.path,
            read_only: params.read_only,
            memory_align: opened.memory_align,
            length_align: opened.length_align,
            size_bytes: AtomicU64::new(opened.size_bytes),
            zero_range: AtomicBool::new(true),
            zeros,
            timeout: params.timeout,
            timed_out: AtomicU64::new(0),
        };
        Ok(Arc::new(FileBdev { identity, geometry, engine: params.engine, disk: Arc::new(disk) }))
    }

    /// Whether the page cache is bypassed.
    pub fn is_direct(&self) -> bool {
        self.disk.length_align > 1
    }
}

impl Bdev for FileBdev {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn geometry(&self) -> Geometry {
        Geometry { num_blocks: self.disk.size_bytes() / u64::from(self.geometry.block_size), ..self.geometry }
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        let path = || self.disk.path.display().to_string();
        if self.engine == FileEngine::Auto {
            match UringChannel::open(self.disk.clone()) {
                Ok(channel) => return Ok(Box::new(channel)),
                Err(error) if is_unavailable(&error) => tell_once(&error),
                Err(source) => return Err(BlockError::Io { what: "io_uring setup for", path: path(), source }),
            }
        }
        match ThreadsChannel::open(self.disk.clone()) {
            Ok(channel) => Ok(Box::new(channel)),
            Err(source) => Err(BlockError::Io { what: "start threads for", path: path(), source }),
        }
    }

    fn rescan(&self) -> Result<bool, BlockError> {
        let size_bytes = open::size(&self.disk.file, &self.disk.path, self.geometry.block_size)?;
        Ok(self.disk.size_bytes.swap(size_bytes, Ordering::Relaxed) != size_bytes)
    }

    fn timed_out(&self) -> u64 {
        self.disk.timed_out.load(Ordering::Relaxed)
    }
}

/// The kernel has no io_uring or one from before 5.19, or a sandbox or the sysctl `io_uring_disabled` keeps us from it.
fn is_unavailable(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EINVAL))
}

fn tell_once(error: &std::io::Error) {
    static TOLD: Once = Once::new();
    TOLD.call_once(
        || tracing::warn!(%error, "io_uring cannot be used: files are served by threads, at more CPU per request"),
    );
}

#[cfg(test)]
mod tests;
