//! A small number for each thread that touches a pool, so that it finds its own cache.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Threads that have a cache at a time. Others work on what is shared.
pub(crate) const SLOTS: usize = 64;

/// One bit a slot: taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Gives the slot back when its thread ends.
struct Slot(Cell<Option<usize>>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(index) = self.0.get() {
            // What this thread left in its caches is visible to the next owner of the slot.
            TAKEN.fetch_and(!(1 << index), Ordering::Release);
        }
    }
}

thread_local! {
    static SLOT: Slot = const { Slot(Cell::new(None)) };
}

/// The calling thread's slot; `None` where all are taken, or at the thread's very end.
#[inline]
pub(crate) fn current() -> Option<usize> {
    SLOT.try_with(|slot| slot.0.get().or_else(|| take(slot))).ok().flatten()
}

#[cold]
fn take(slot: &Slot) -> Option<usize> {
    let taken = TAKEN.fetch_update(Ordering::Acquire, Ordering::Relaxed, |taken| {
        (taken != u64::MAX).then(|| taken | 1 << taken.trailing_ones())
    });
    let index = taken.ok()?.trailing_ones() as usize;
    slot.0.set(Some(index));
    Some(index)
}
