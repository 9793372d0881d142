//! What the front-end said about one ring.

use crate::error::Reason;
use guest_memory::{GuestMemory, UserAddress};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use virtio_spec::ring::{DESC_LEN, avail_len, desc, used_len};
use virtqueue::{RingAddresses, RingSetup};

/// S_IFMT.
const FILE_TYPE_MASK: u32 = 0o170_000;

/// A ring as the front-end has described it so far. Survives a stop, as the front-end need not repeat itself.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    pub(crate) size: Option<u16>,
    pub(crate) addresses: Option<RingAddresses>,
    pub(crate) base: Option<u32>,
    /// The last SET_VRING_ENABLE.
    pub(crate) enabled: bool,
    /// SET_VRING_KICK came since the last stop: with a descriptor, or without one to be polled.
    pub(crate) kick: Option<Option<OwnedFd>>,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) err: Option<OwnedFd>,
    pub(crate) started: bool,
}

impl Ring {
    /// Back to the beginning, but for the descriptors that belong to the front-end's side of the ring.
    pub(crate) fn reset(&mut self) {
        *self = Ring { call: self.call.take(), err: self.err.take(), ..Ring::default() };
    }
}

/// Name, place, length and alignment of a ring's areas (virtio 1.3, 2.7 and 2.8).
fn areas(setup: &RingSetup) -> [(&'static str, UserAddress, usize, usize); 3] {
    let RingAddresses { descriptor, driver, device, .. } = setup.addresses;
    let table = DESC_LEN * usize::from(setup.size);
    if setup.packed() {
        [
            ("descriptor ring", descriptor, table, 16),
            ("driver event suppression", driver, 4, 4),
            ("device event suppression", device, 4, 4),
        ]
    } else {
        [
            ("descriptor table", descriptor, table, 16),
            ("available ring", driver, avail_len(setup.size), 2),
            ("used ring", device, used_len(setup.size), 4),
        ]
    }
}

/// Whether the whole ring lies in `memory`.
pub(crate) fn check_areas(index: u16, setup: &RingSetup, memory: &Arc<GuestMemory>) -> Result<(), Reason> {
    for (area, address, len, align) in areas(setup) {
        memory.user_window(address, len, align).map_err(|source| Reason::Area { index, area, source })?;
    }
    Ok(())
}

/// The base to start from, of what SET_VRING_BASE said. The areas have been checked.
pub(crate) fn start_base(setup: &RingSetup, memory: &Arc<GuestMemory>) -> Result<u32, Reason> {
    // Front-ends know 16 bits of it: available index and its wrap counter. A ring that was stopped is drained (the session offers
    // neither GET_VRING_BASE_INFLIGHT nor GET_VRING_BASE_SKIP_DRAIN), so its used half equals the available half.
    let mut avail = setup.base & 0xffff;
    if !setup.packed() {
        return Ok(avail);
    }
    if avail & 0x7fff >= u32::from(setup.size) {
        return Err(Reason::value("base", setup.base, format!("an index below the ring's size {}", setup.size)));
    }
    // "The driver and device initialise their wrap counters to 1" (2.8.1), but some front-ends send 0 for a new ring.
    if avail == 0 && never_used(setup, memory) {
        avail = 1 << 15;
    }
    Ok(avail | avail << 16)
}

/// Whether no descriptor of a packed ring was ever used. When a ring is truly at index 0 with wrap counter 0, it has gone round
/// once with 1, and some descriptor carries that lap's USED bit or is available again with it.
fn never_used(setup: &RingSetup, memory: &Arc<GuestMemory>) -> bool {
    const FLAGS: usize = 14;
    let table = memory.user_window(setup.addresses.descriptor, DESC_LEN * usize::from(setup.size), 16);
    table.is_ok_and(|ring| {
        (0..ring.len()).step_by(DESC_LEN).all(|at| ring.load_u16(at + FLAGS, Relaxed) & desc::USED == 0)
    })
}

/// SET_VRING_NUM: not 0, not above the device's largest; split: a power of two. `packed` is `None` before SET_FEATURES.
pub(crate) fn check_size(num: u32, max: u16, packed: Option<bool>) -> Result<u16, Reason> {
    let size = u16::try_from(num).ok().filter(|size| (1..=max).contains(size));
    let size = size.ok_or_else(|| Reason::value("num", num, format!("1 to {max}")))?;
    if packed == Some(false) && !size.is_power_of_two() {
        return Err(Reason::value("num", num, "a power of two for a split ring"));
    }
    Ok(size)
}

/// The base of a ring that was never used.
pub(crate) fn initial_base(features: u64) -> u32 {
    if features & virtio_spec::feature::RING_PACKED != 0 { 0x8000_8000 } else { 0 }
}

/// Checks a kick descriptor: an eventfd. (Workers wait for kicks without reading them; a pipe would fill up.)
pub(crate) fn check_kick(fd: &OwnedFd) -> Result<(), Reason> {
    match file_type(fd)? {
        None => Ok(()),
        Some(other) => Err(Reason::value("file type", other.as_raw_mode(), "an eventfd")),
    }
}

/// Checks a descriptor that the device signals: an eventfd, or a pipe or socket (user-mode Linux gives one end of a pair). A full one
/// must not block a worker, and an eventfd's flags are the front-end's, which may want to block when it reads. So a pipe is
/// opened again, for this process alone, and a socket's end is made not to block.
pub(crate) fn signalled(fd: OwnedFd) -> Result<OwnedFd, Reason> {
    match file_type(&fd)? {
        None => Ok(fd),
        Some(FileType::Fifo) => {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(os("opening a pipe to signal"))
        }
        Some(FileType::Socket) => {
            let flags = fcntl_getfl(&fd).map_err(os("F_GETFL of a socket to signal"))?;
            fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(os("F_SETFL of a socket to signal"))?;
            Ok(fd)
        }
        Some(other) => Err(Reason::value("file type", other.as_raw_mode(), "an eventfd, a pipe or a socket")),
    }
}

/// The type of a descriptor's file. `None`: an anonymous inode, as eventfds are, has none at all.
fn file_type(fd: &OwnedFd) -> Result<Option<FileType>, Reason> {
    let mode = fstat(fd).map_err(os("fstat of a notification descriptor"))?.st_mode;
    Ok((mode & FILE_TYPE_MASK != 0).then(|| FileType::from_raw_mode(mode)))
}

fn os(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Reason {
    move |e| Reason::Os { what, source: e.into() }
}
