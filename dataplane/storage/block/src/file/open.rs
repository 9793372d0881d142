//! Opening the file: what it is, how large, and how it may be read.

use super::FileParams;
use crate::{BlockError, limits};
use invalid::Invalid;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a block of a file where none is asked for: what partition tables and firmware expect.
const FILE_BLOCK_SIZE: u32 = 512;
/// The alignment for `O_DIRECT` where the kernel does not report one: no device needs more.
const UNKNOWN_ALIGN: usize = 4096;

pub(super) struct Opened {
    pub(super) file: File,
    pub(super) size_bytes: u64,
    pub(super) block_size: u32,
    pub(super) physical_block_size: u32,
    pub(super) memory_align: usize,
    pub(super) length_align: usize,
    pub(super) discard: bool,
}

pub(super) fn open(params: &FileParams) -> Result<Opened, BlockError> {
    let path = params.path.as_path();
    let is_device = is_device(path)?;
    // Opened buffered first: whether O_DIRECT serves depends on the block size, and that on the device.
    let file = open_file(path, params.read_only, 0)?;
    let device_block_size = is_device.then(|| ask_device(&file, path, libc::BLKSSZGET)).transpose()?;
    let block_size = limits::block_size(params.block_size.or(device_block_size).unwrap_or(FILE_BLOCK_SIZE))?;
    if let Some(least) = device_block_size.filter(|&least| block_size < least) {
        let expected = format!("at least the device's block size, {least}");
        return Err(Invalid::new("block_size", block_size, expected).into());
    }
    let size_bytes = size(&file, path, block_size)?;
    let (file, memory_align, length_align) = match direct(params, &file, block_size) {
        Some((file, memory_align, length_align)) => (file, memory_align, length_align),
        None => (file, 1, 1),
    };
    let unit = if is_device { ask_device(&file, path, libc::BLKPBSZGET)? } else { file_system_block(&file) };
    let physical_block_size = block_size.max(length_align as u32).max(unit);
    let discard =
        !params.read_only && if is_device { device_discards(&file) } else { punches_holes(&file, size_bytes) };
    Ok(Opened { file, size_bytes, block_size, physical_block_size, memory_align, length_align, discard })
}

/// The disk's bytes now: a whole number of blocks, at least one.
pub(super) fn size(file: &File, path: &Path, block_size: u32) -> Result<u64, BlockError> {
    // Works for devices too. Only this function uses the descriptor's own position.
    let mut seeker = file;
    let bytes = seeker.seek(SeekFrom::End(0)).map_err(|source| io_error("find the size of", path, source))?;
    if bytes == 0 || !bytes.is_multiple_of(u64::from(block_size)) {
        let got = format!("{} of {bytes} bytes", path.display());
        let expected = format!("a multiple of the block size, {block_size}, and not empty");
        return Err(Invalid::new("filename", got, expected).into());
    }
    Ok(bytes)
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> BlockError {
    BlockError::Io { what, path: path.display().to_string(), source }
}

/// Whether the path is a block device; anything but that and a regular file is refused before it is opened, since opening a
/// FIFO waits for its other end.
fn is_device(path: &Path) -> Result<bool, BlockError> {
    let kind = std::fs::metadata(path).map_err(|source| io_error("open", path, source))?.file_type();
    let got = match kind {
        kind if kind.is_file() => return Ok(false),
        kind if kind.is_block_device() => return Ok(true),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() => "a character device",
        _ => "something else",
    };
    let got = format!("{}, {got}", path.display());
    Err(Invalid::new("filename", got, "a regular file or a block device").into())
}

fn open_file(path: &Path, read_only: bool, flags: i32) -> Result<File, BlockError> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only).custom_flags(flags);
    options.open(path).map_err(|source| io_error("open", path, source))
}

/// The same file for direct I/O, with the alignment of addresses and of lengths; `None` where blocks of this size cannot be
/// moved directly.
fn direct(params: &FileParams, file: &File, block_size: u32) -> Option<(File, usize, usize)> {
    if !params.direct {
        return None;
    }
    let (memory_align, length_align) = direct_alignment(file)?;
    if length_align > block_size as usize {
        tracing::info!(
            path = %params.path.display(),
            "blocks of {block_size} bytes are smaller than direct I/O allows, {length_align}: using the page cache"
        );
        return None;
    }
    match open_file(&params.path, params.read_only, libc::O_DIRECT) {
        Ok(file) => Some((file, memory_align, length_align)),
        Err(error) => {
            tracing::info!("no direct I/O, using the page cache: {error}");
            None
        }
    }
}

/// The alignments of addresses and lengths for direct I/O on the file (statx(2), STATX_DIOALIGN); `None` where it has none.
fn direct_alignment(file: &File) -> Option<(usize, usize)> {
    // SAFETY: a statx of zeros is a valid value, and the kernel fills it.
    let mut statx: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is empty and terminated; `statx` outlives the call.
    let failed = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut statx)
    };
    if failed != 0 || statx.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Some((UNKNOWN_ALIGN, UNKNOWN_ALIGN));
    }
    let (memory_align, length_align) = (statx.stx_dio_mem_align as usize, statx.stx_dio_offset_align as usize);
    (memory_align > 0 && length_align > 0).then_some((memory_align, length_align))
}

/// A block size of a device: `question` is BLKSSZGET (logical) or BLKPBSZGET (physical).
fn ask_device(file: &File, path: &Path, question: libc::Ioctl) -> Result<u32, BlockError> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both questions are answered with one int.
    if unsafe { libc::ioctl(file.as_raw_fd(), question, &raw mut bytes) } != 0 {
        return Err(io_error("find the block size of", path, io::Error::last_os_error()));
    }
    Ok(bytes as u32)
}

/// Whether a device can discard. A partition's queue is its disk's.
fn device_discards(file: &File) -> bool {
    let Ok(metadata) = file.metadata() else { return false };
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let most = ["queue", "../queue"].into_iter().find_map(|queue| {
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/discard_max_bytes")).ok()
    });
    most.is_some_and(|most| most.trim() != "0")
}

/// The unit in which the file system keeps a file, where that is a power of two: smaller writes are read, changed and written.
fn file_system_block(file: &File) -> u32 {
    let bytes = file.metadata().map_or(0, |metadata| metadata.blksize());
    if bytes.is_power_of_two() && bytes <= u64::from(limits::MAX_BLOCK_SIZE) { bytes as u32 } else { 0 }
}

/// Whether the file system can give back parts of a file: tried behind the end, where there is nothing to lose.
fn punches_holes(file: &File, size_bytes: u64) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let behind = size_bytes.next_multiple_of(UNKNOWN_ALIGN as u64);
    let Ok(behind) = libc::off_t::try_from(behind) else { return false };
    // SAFETY: no memory is passed.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, behind, UNKNOWN_ALIGN as libc::off_t) == 0 }
}
