//! A thread as SPDK means it: what runs whenever somebody polls it.

use spdk_sys as sys;
use std::ffi::CStr;
use std::ptr::{NonNull, null};

/// Made on any thread, polled by one at a time.
pub(crate) struct Thread(NonNull<sys::spdk_thread>);

// SAFETY: SPDK's threads are not bound to one of the system: what they are is passed to each call.
unsafe impl Send for Thread {}

impl Thread {
    /// A new one; `None` where memory is short.
    pub(crate) fn create(name: &CStr) -> Option<Thread> {
        // SAFETY: the name is copied; no processors are asked for.
        NonNull::new(unsafe { sys::spdk_thread_create(name.as_ptr(), null()) }).map(Thread)
    }

    /// Does something as this thread.
    #[inline]
    pub(crate) fn enter<R>(&self, what: impl FnOnce() -> R) -> R {
        // SAFETY: reads and writes a thread-local pointer; this thread lives as long as `self`.
        let before = unsafe {
            let before = sys::spdk_get_thread();
            sys::spdk_set_thread(self.0.as_ptr());
            before
        };
        let result = what();
        // SAFETY: as above; what was set before is set by a caller that still runs.
        unsafe { sys::spdk_set_thread(before) };
        result
    }

    /// Runs what waits: messages and pollers. Returns whether there was any.
    #[inline]
    pub(crate) fn poll(&self) -> bool {
        // SAFETY: the thread lives, and `&self` of a type that is not `Sync` is with one caller. 0 and 0 take the defaults.
        unsafe { sys::spdk_thread_poll(self.0.as_ptr(), 0, 0) > 0 }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: called from within, as it wants to be.
        self.enter(|| unsafe { sys::spdk_thread_exit(self.0.as_ptr()) });
        // SAFETY: the thread lives until it is destroyed, and nobody uses it after that.
        unsafe {
            while !sys::spdk_thread_is_exited(self.0.as_ptr()) {
                self.poll();
            }
            sys::spdk_thread_destroy(self.0.as_ptr());
        }
    }
}
