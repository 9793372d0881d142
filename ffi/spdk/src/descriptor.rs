//! An open block device.

use crate::library::errno;
use spdk_sys as sys;
use std::ffi::{CStr, c_void};
use std::io;
use std::ptr::{NonNull, null_mut};

/// An open block device (open-device, see the crate).
pub(crate) struct Descriptor(NonNull<sys::spdk_bdev_desc>);

impl Descriptor {
    /// Opens the device of this name.
    ///
    /// # Safety
    /// The call is within an SPDK thread, where the descriptor is dropped as well. `event` may be called with `context` as long as the
    /// descriptor lives.
    pub(crate) unsafe fn open(
        name: &CStr,
        write: bool,
        event: unsafe extern "C" fn(sys::spdk_bdev_event_type, *mut sys::spdk_bdev, *mut c_void),
        context: *mut c_void,
    ) -> io::Result<Descriptor> {
        let mut opened = null_mut();
        // SAFETY: the name is a C string, and `opened` a place to fill; the caller is within an SPDK thread and has `context` fit `event`.
        let returned = unsafe { sys::spdk_bdev_open_ext(name.as_ptr(), write, Some(event), context, &raw mut opened) };
        NonNull::new(opened).filter(|_| returned == 0).map(Descriptor).ok_or_else(|| errno(returned))
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::spdk_bdev_desc {
        self.0.as_ptr()
    }

    /// The device, which stays as long as this.
    pub(crate) fn bdev(&self) -> *mut sys::spdk_bdev {
        // SAFETY: open-device.
        unsafe { sys::spdk_bdev_desc_get_bdev(self.0.as_ptr()) }
    }

    pub(crate) fn num_blocks(&self) -> u64 {
        // SAFETY: open-device.
        unsafe { sys::spdk_bdev_get_num_blocks(self.bdev()) }
    }

    pub(crate) fn supports(&self, operation: sys::spdk_bdev_io_type) -> bool {
        // SAFETY: open-device.
        unsafe { sys::spdk_bdev_io_type_supported(self.bdev(), operation) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: open-device; the owner drops it within the thread that opened it.
        unsafe { sys::spdk_bdev_close(self.0.as_ptr()) };
    }
}
