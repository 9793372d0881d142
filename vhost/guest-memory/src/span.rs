//! A buffer of the guest that lies in one region.

use crate::copy::copy;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// Bytes of guest memory, checked: mapped for as long as the table is borrowed. The guest may write them at any time.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    host: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a ()>,
}

impl Span<'_> {
    /// # Safety
    /// `len` bytes at `host` are mapped for as long as the span lives.
    #[inline(always)]
    pub(crate) unsafe fn new(host: *mut u8, len: usize) -> Self {
        // SAFETY: nothing is mapped at 0.
        Span { host: unsafe { NonNull::new_unchecked(host) }, len, memory: PhantomData }
    }

    /// Bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the span has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Has the CPU fetch the start, for a copy soon: two cache lines, for a header in front of a packet often ends the first.
    #[inline(always)]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let start = self.host.as_ptr().cast::<i8>();
            // SAFETY: hints, which read nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(start);
                _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(64));
            }
        }
    }

    /// Copies out, from `offset`. The span has as many bytes, else this panics.
    #[inline(always)]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        // SAFETY: inside the span by the assertion, so mapped (`new`); `bytes` is a unique borrow.
        unsafe { copy(self.host.add(offset).as_ptr(), bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies in, at `offset`. The span has as many bytes, else this panics.
    #[inline(always)]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: inside the span by the assertion, so mapped (`new`); a guest that writes there too spoils its own data only.
        unsafe { copy(bytes.as_ptr(), self.host.add(offset).as_ptr(), bytes.len()) }
    }

    #[inline(always)]
    fn check(&self, offset: usize, len: usize) {
        assert!(offset <= self.len && len <= self.len - offset, "inside the span");
    }
}
