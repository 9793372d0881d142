//! A thread as SPDK has it: messages and pollers that run when the thread is polled.

use spdk_sys as sys;
use std::ffi::CStr;
use std::ptr::{NonNull, null};

/// An SPDK thread (live-thread, see the crate).
pub(crate) struct Thread(NonNull<sys::spdk_thread>);

// SAFETY: an SPDK thread is not bound to a thread of the system.
unsafe impl Send for Thread {}

impl Thread {
    /// Makes a thread; `None` where memory is short.
    pub(crate) fn create(name: &CStr) -> Option<Thread> {
        // SAFETY: the name is a C string, which is copied; null asks for no processors.
        NonNull::new(unsafe { sys::spdk_thread_create(name.as_ptr(), null()) }).map(Thread)
    }

    /// Runs a function within this thread.
    #[inline]
    pub(crate) fn enter<R>(&self, what: impl FnOnce() -> R) -> R {
        // SAFETY: `spdk_get_thread` has no precondition: it reads a thread-local pointer.
        let before = unsafe { sys::spdk_get_thread() };
        // SAFETY: live-thread.
        unsafe { sys::spdk_set_thread(self.0.as_ptr()) };
        let result = what();
        // SAFETY: null, or the thread of a caller of `enter`, which still runs and so has its thread alive.
        unsafe { sys::spdk_set_thread(before) };
        result
    }

    /// Runs waiting messages and pollers. Returns whether there were any.
    #[inline]
    pub(crate) fn poll(&self) -> bool {
        // SAFETY: live-thread; 0 and 0 take the defaults.
        unsafe { sys::spdk_thread_poll(self.0.as_ptr(), 0, 0) > 0 }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: live-thread; the call is within the thread, as it has to be.
        self.enter(|| unsafe { sys::spdk_thread_exit(self.0.as_ptr()) });
        // SAFETY: live-thread.
        while !unsafe { sys::spdk_thread_is_exited(self.0.as_ptr()) } {
            self.poll();
        }
        // SAFETY: live-thread; the thread has exited, and its last owner drops it.
        unsafe { sys::spdk_thread_destroy(self.0.as_ptr()) };
    }
}
