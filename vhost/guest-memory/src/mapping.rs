//! A shared mapping of a file descriptor, or private memory.

use crate::{AccessError, sigbus};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Memory that could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Size or offset do not fit the file.
    #[error("mmap of {len:#x} bytes at offset {offset:#x}: the file has {file_len:#x} bytes")]
    Size {
        /// Bytes asked for.
        len: u64,
        /// Where in the file.
        offset: u64,
        /// What the file has.
        file_len: u64,
    },
    /// The region's addresses wrap.
    #[error(transparent)]
    Range(#[from] AccessError),
    /// The system refused.
    #[error("{what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its reason.
        source: std::io::Error,
    },
}

/// Mapped memory. Unmapped on drop, which may take long for a large guest: never drop the last one on a worker.
#[derive(Debug)]
pub struct Mapping {
    /// Start of the mapped pages.
    base: *mut u8,
    /// Length of the mapped pages.
    mapped: usize,
    /// Where the caller's range starts behind `base`.
    skip: usize,
    /// The caller's range.
    len: usize,
    /// Watches for truncation; none for private memory.
    watch: Option<sigbus::Watch>,
}

// SAFETY: the mapping is plain shared memory; all access goes through raw copies and atomics.
unsafe impl Send for Mapping {}
// SAFETY: the mapping is plain shared memory; all access goes through raw copies and atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` at `offset`, shared, readable and writable. `offset` need not be page aligned.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Mapping, MapError> {
        let stat = fstat(fd)?;
        let page = if is_hugetlb(fd) { stat.st_blksize as u64 } else { page_size() };
        let file_len = stat.st_size as u64;
        let end = offset.checked_add(len).filter(|&end| len > 0 && end <= file_len);
        let Some(end) = end else { return Err(MapError::Size { len, offset, file_len }) };
        let start = offset - offset % page;
        let mapped = (end - start).next_multiple_of(page) as usize;
        let base = map(mapped, libc::MAP_SHARED | libc::MAP_NORESERVE, fd.as_raw_fd(), start)?;
        let watch = if may_fault(fd) { sigbus::watch(base as usize, mapped) } else { None };
        Ok(Mapping { base, mapped, skip: (offset - start) as usize, len: len as usize, watch })
    }

    /// Maps `len` bytes of zeroed private memory.
    pub fn anonymous(len: usize) -> Result<Mapping, MapError> {
        if len == 0 {
            return Err(MapError::Size { len: 0, offset: 0, file_len: 0 });
        }
        let mapped = len.next_multiple_of(page_size() as usize);
        let base = map(mapped, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        Ok(Mapping { base, mapped, skip: 0, len, watch: None })
    }

    /// Bytes of the caller's range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least a byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether the file was truncated while it was mapped.
    pub fn is_truncated(&self) -> bool {
        self.watch.as_ref().is_some_and(sigbus::Watch::hit)
    }

    /// The host pointer at `offset` of the caller's range. Good for as long as the mapping lives.
    #[inline(always)]
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len, "offset inside the mapping");
        // SAFETY: `skip + offset` lies inside the mapped pages, by construction and the assertion.
        unsafe { self.base.add(self.skip + offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: the range is what `map` returned, and every view of it holds a reference to its region, so none is left.
        unsafe { libc::munmap(self.base.cast(), self.mapped) };
    }
}

fn map(len: usize, flags: i32, fd: i32, offset: u64) -> Result<*mut u8, MapError> {
    // SAFETY: a fresh mapping at an address of the kernel's choice overlays nothing.
    let base = unsafe {
        libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset as libc::off_t)
    };
    if base == libc::MAP_FAILED {
        return Err(MapError::Os { what: "mmap", source: std::io::Error::last_os_error() });
    }
    Ok(base.cast())
}

fn fstat(fd: BorrowedFd<'_>) -> Result<libc::stat, MapError> {
    // SAFETY: a stat of zeros is a valid value, and the kernel fills it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` lives across the call and `fd` is open.
    if unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) } != 0 {
        return Err(MapError::Os { what: "fstat", source: std::io::Error::last_os_error() });
    }
    Ok(stat)
}

fn is_hugetlb(fd: BorrowedFd<'_>) -> bool {
    const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
    // SAFETY: a statfs of zeros is a valid value, and the kernel fills it.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `fs` lives across the call and `fd` is open.
    unsafe { libc::fstatfs(fd.as_raw_fd(), &mut fs) == 0 && fs.f_type as i64 == HUGETLBFS_MAGIC }
}

/// A memfd sealed against shrinking cannot be truncated while it is mapped; everything else can. Of huge pages, sealed or not,
/// there may be none left when a hole is touched.
fn may_fault(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: F_GET_SEALS reads a property of an open descriptor.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    seals < 0 || seals & libc::F_SEAL_SHRINK == 0 || is_hugetlb(fd)
}

fn page_size() -> u64 {
    // SAFETY: sysconf reads a constant of the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}
