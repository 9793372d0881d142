//! The inflight region (vhost-user, "Inflight I/O tracking"): memory that outlives this process, in which rings note what they serve.

use crate::error::Reason;
use crate::message::InflightDescription;
use guest_memory::{GuestAddress, GuestMemory, MapError, Mapping, Region, UserAddress, Window};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use virtqueue::inflight::region_len;

/// The region that the front-end gave with SET_INFLIGHT_FD.
#[derive(Debug)]
pub(crate) struct Inflight {
    queues: u16,
    queue_size: u16,
    len: u64,
    memory: Arc<GuestMemory>,
}

/// GET_INFLIGHT_FD: a new region, zeroed, for `queues` rings of `queue_size` entries.
///
/// It is made for the larger of the two layouts: firmware and kernel may use different ones on one region.
pub(crate) fn allocate(asked: InflightDescription) -> Result<(InflightDescription, OwnedFd), Reason> {
    let mmap_size = u64::from(asked.queues) * largest_len(asked.queue_size) as u64;
    let os = |what| move |e: rustix::io::Errno| Reason::Os { what, source: e.into() };
    let fd = memfd_create("vhost-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(os("memfd_create for the inflight region"))?;
    ftruncate(&fd, mmap_size).map_err(os("ftruncate of the inflight region"))?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(os("sealing the inflight region"))?;
    Ok((InflightDescription { mmap_size, mmap_offset: 0, ..asked }, fd))
}

/// Bytes of a ring's part in the layout that needs more.
fn largest_len(queue_size: u16) -> usize {
    region_len(false, queue_size).max(region_len(true, queue_size))
}

impl Inflight {
    /// SET_INFLIGHT_FD: maps a region of this process, or of the one before.
    pub(crate) fn map(given: InflightDescription, fd: OwnedFd) -> Result<Inflight, Reason> {
        let mapping = Mapping::shared(fd.as_fd(), given.mmap_offset, given.mmap_size)?;
        let region = Region::new(GuestAddress(0), UserAddress(0), mapping).map_err(MapError::Range)?;
        let memory = GuestMemory::new(vec![Arc::new(region)]).map_err(MapError::Range)?;
        let (queues, queue_size) = (given.queues, given.queue_size);
        Ok(Inflight { queues, queue_size, len: given.mmap_size, memory: Arc::new(memory) })
    }

    /// The part of ring `index`. Each ring's part has the length of the front-end's `queue size`, whatever the ring's own.
    pub(crate) fn window(&self, index: u16, packed: bool, size: u16) -> Result<Window, Reason> {
        if index >= self.queues {
            return Err(Reason::value(
                "inflight num queues",
                self.queues,
                format!("more than the ring's index {index}"),
            ));
        }
        if size > self.queue_size {
            return Err(Reason::value("inflight queue size", self.queue_size, format!("the ring's {size} or more")));
        }
        let len = region_len(packed, self.queue_size);
        let offset = u64::from(index) * len as u64;
        let error = || Reason::value("inflight mmap size", self.len, format!("{:#x} or more", offset + len as u64));
        self.memory.user_window(UserAddress(offset), len, 64).map_err(|_| error())
    }

    /// Forgets all that is noted: the rings' layout changed after they were drained, and the old notes would be misread.
    pub(crate) fn clear(&self) {
        let used = usize::from(self.queues) * largest_len(self.queue_size);
        let len = used.min(self.len as usize) & !7;
        if let Ok(window) = self.memory.user_window(UserAddress(0), len, 8) {
            (0..len).step_by(8).for_each(|offset| window.store_u64(offset, 0, Relaxed));
        }
    }

    /// Whether the front-end truncated the file.
    pub(crate) fn is_truncated(&self) -> bool {
        self.memory.is_truncated()
    }
}
