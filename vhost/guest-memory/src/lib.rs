//! The only code that turns a guest address into bytes.
//!
//! A front-end shares its guest's memory as file descriptors. [`GuestMemory`] is one epoch of that table: immutable, shared, and
//! unmapped with the last reference to it (by the session, off the poll cores). Four views lead into it:
//!
//! - [`GuestMemory::read`] and [`write`](GuestMemory::write) copy small things (headers, status bytes);
//! - [`Span`] is a buffer that lies in one region, for a device that copies many: looked up once, fetched early;
//! - [`GuestMemory::append_buffers`] adds a range to an [`IoBuffers`], the scatter list of a payload, lent to a backend without a
//!   copy;
//! - [`Window`] is a ring area with a fixed place, checked once and then read and written with the right atomics.
//!
//! The guest writes this memory while the device reads it. So nothing here hands out a reference into it: bytes are copied once, and
//! only the copy is believed. An address outside the table is an [`AccessError`], never a fault; a file that is truncated
//! meanwhile is caught by [`sigbus`].

#![allow(unsafe_code)] // raw pointers into memory that another process shares and changes

mod copy;
mod dirty_log;
mod mapping;
pub mod sigbus;
mod span;
mod window;

pub use dirty_log::{DirtyLog, LOG_PAGE};
pub use mapping::{MapError, Mapping};
pub use span::Span;
pub use window::Window;

use copy::copy;
use memory::IoBuffers;
use std::sync::Arc;

/// A guest physical address, as descriptors carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestAddress(pub u64);

/// An address in the front-end's own address space, as SET_VRING_ADDR carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserAddress(pub u64);

/// A range that is not in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("range {address:#x}+{len:#x} is not in guest memory")]
pub struct AccessError {
    /// First address of the range.
    pub address: u64,
    /// Bytes of the range.
    pub len: u64,
}

/// One region of the table: a run of guest addresses with its mapping.
#[derive(Debug)]
pub struct Region {
    guest: u64,
    user: u64,
    len: u64,
    mapping: Mapping,
}

impl Region {
    /// A region of `mapping.len()` bytes at guest address `guest`, known to the front-end as `user`.
    /// Refused where an address would wrap.
    pub fn new(guest: GuestAddress, user: UserAddress, mapping: Mapping) -> Result<Region, AccessError> {
        let len = mapping.len() as u64;
        for address in [guest.0, user.0] {
            if len == 0 || address.checked_add(len).is_none() {
                return Err(AccessError { address, len });
            }
        }
        Ok(Region { guest: guest.0, user: user.0, len, mapping })
    }

    /// First guest address.
    pub fn guest_address(&self) -> GuestAddress {
        GuestAddress(self.guest)
    }

    /// First address in the front-end's space.
    pub fn user_address(&self) -> UserAddress {
        UserAddress(self.user)
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a region has at least a byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether the file behind the region was truncated while it was mapped.
    pub fn is_truncated(&self) -> bool {
        self.mapping.is_truncated()
    }
}

/// What a look-up needs of a region, beside that of the next one.
#[derive(Clone, Copy, Debug)]
struct Extent {
    guest: u64,
    len: u64,
    host: *mut u8,
}

// SAFETY: an address of a mapping, which the table keeps alive; all access goes through raw copies and atomics.
unsafe impl Send for Extent {}
// SAFETY: an address of a mapping, which the table keeps alive; all access goes through raw copies and atomics.
unsafe impl Sync for Extent {}

/// One epoch of a guest's memory table.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// Sorted by guest address, not overlapping.
    regions: Vec<Arc<Region>>,
    /// The same, in one place.
    extents: Box<[Extent]>,
}

impl GuestMemory {
    /// A table of `regions`, which must not overlap in guest addresses.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<GuestMemory, AccessError> {
        regions.sort_by_key(|r| r.guest);
        for pair in regions.windows(2) {
            if pair[0].guest + pair[0].len > pair[1].guest {
                return Err(AccessError { address: pair[1].guest, len: pair[1].len });
            }
        }
        let extent = |r: &Arc<Region>| Extent { guest: r.guest, len: r.len, host: r.mapping.at(0) };
        Ok(GuestMemory { extents: regions.iter().map(extent).collect(), regions })
    }

    /// Zeroed private memory of `len` bytes at guest address 0, whose front-end addresses equal its guest addresses: for
    /// tests.
    pub fn anonymous(len: usize) -> Result<GuestMemory, MapError> {
        let region = Region::new(GuestAddress(0), UserAddress(0), Mapping::anonymous(len)?).map_err(MapError::Range)?;
        GuestMemory::new(vec![Arc::new(region)]).map_err(MapError::Range)
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Whether the file behind any region was truncated while it was mapped.
    pub fn is_truncated(&self) -> bool {
        self.regions.iter().any(|r| r.is_truncated())
    }

    /// The host pointer at `address` and the bytes that follow it in the same region, at most `len`.
    #[inline(always)]
    fn span(&self, address: u64, len: u64) -> Result<(*mut u8, u64), AccessError> {
        for extent in &self.extents {
            let offset = address.wrapping_sub(extent.guest);
            if offset < extent.len {
                // SAFETY: `offset` is less than the length of the mapping at `host`.
                let host = unsafe { extent.host.add(offset as usize) };
                return Ok((host, len.min(extent.len - offset)));
            }
        }
        Err(AccessError { address, len })
    }

    /// Adds a range to `buffers`, whose owner this table is. A range may cross regions that touch. On an error nothing usable is
    /// added: reset the buffers or give up their request.
    #[inline(always)]
    pub fn append_buffers(
        self: &Arc<Self>,
        address: GuestAddress,
        len: u64,
        buffers: &mut IoBuffers,
    ) -> Result<(), AccessError> {
        assert!(buffers.is_owned_by(self), "buffers of this table");
        let mut done = 0;
        while done < len {
            let next = address.0.checked_add(done).ok_or(AccessError { address: address.0, len })?;
            let (host, run) = self.span(next, len - done)?;
            // SAFETY: `span` checked that `run` bytes at `host` are mapped, for as long as this table, which owns the buffers,
            // lives; nothing hands out a reference to them.
            unsafe { buffers.push(host, run as usize, next) };
            done += run;
        }
        Ok(())
    }

    /// The `len` bytes at `address`, if they lie in one region, as they nearly always do.
    #[inline(always)]
    pub fn in_one_region(&self, address: GuestAddress, len: usize) -> Option<Span<'_>> {
        let (host, run) = self.span(address.0, len as u64).ok()?;
        // SAFETY: `span` checked that `run` bytes at `host` are mapped, for as long as this table lives.
        (run == len as u64).then(|| unsafe { Span::new(host, len) })
    }

    /// Copies from the guest. A range may cross regions that touch.
    #[inline]
    pub fn read(&self, address: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        let to = bytes.as_mut_ptr();
        self.for_each_span(address, bytes.len(), |host, at, run| {
            // SAFETY: `span` checked that `run` bytes at `host` are mapped; `bytes` is a unique borrow and has `run` bytes
            // at `at`.
            unsafe { copy(host, to.add(at), run) }
        })
    }

    /// Copies to the guest. A range may cross regions that touch.
    #[inline]
    pub fn write(&self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        let from = bytes.as_ptr();
        self.for_each_span(address, bytes.len(), |host, at, run| {
            // SAFETY: `span` checked that `run` bytes at `host` are mapped; a guest that writes there
            // too spoils its own data only.
            unsafe { copy(from.add(at), host, run) }
        })
    }

    /// Calls `each(host, position, run)` for every run of the range that lies in one region: one, nearly always.
    #[inline(always)]
    fn for_each_span(
        &self,
        address: GuestAddress,
        len: usize,
        each: impl Fn(*mut u8, usize, usize),
    ) -> Result<(), AccessError> {
        match self.span(address.0, len as u64) {
            Ok((host, run)) if run == len as u64 => {
                each(host, 0, len);
                Ok(())
            }
            _ => self.for_each_of_many(address, len as u64, &each),
        }
    }

    #[cold]
    fn for_each_of_many(
        &self,
        address: GuestAddress,
        len: u64,
        each: &dyn Fn(*mut u8, usize, usize),
    ) -> Result<(), AccessError> {
        let error = AccessError { address: address.0, len };
        let mut done = 0;
        while done < len {
            let next = address.0.checked_add(done).ok_or(error)?;
            let (host, run) = self.span(next, len - done)?;
            each(host, done as usize, run as usize);
            done += run;
        }
        Ok(())
    }

    /// The guest address of a front-end address.
    pub fn guest_address(&self, address: UserAddress) -> Result<GuestAddress, AccessError> {
        let region = self.region_of(address).ok_or(AccessError { address: address.0, len: 1 })?;
        Ok(GuestAddress(region.guest + (address.0 - region.user)))
    }

    fn region_of(&self, address: UserAddress) -> Option<&Arc<Region>> {
        self.regions.iter().find(|r| address.0.wrapping_sub(r.user) < r.len)
    }

    /// A ring area of `len` bytes at a front-end address (SET_VRING_ADDR), aligned to `align`.
    pub fn user_window(
        self: &Arc<Self>,
        address: UserAddress,
        len: usize,
        align: usize,
    ) -> Result<Window, AccessError> {
        let error = AccessError { address: address.0, len: len as u64 };
        let region = self.region_of(address).ok_or(error)?;
        let offset = address.0 - region.user;
        self.window(region, offset, len, align).ok_or(error)
    }

    fn window(self: &Arc<Self>, region: &Arc<Region>, offset: u64, len: usize, align: usize) -> Option<Window> {
        let host = region.mapping.at(offset as usize);
        let fits = (len as u64) <= region.len - offset && (host as usize).is_multiple_of(align);
        // SAFETY: the range lies inside the region, whose mapping the window keeps alive.
        fits.then(|| unsafe { Window::new(host, len, region.clone()) })
    }
}

#[cfg(test)]
mod tests;
