//! The calling thread's lcore of DPDK: the index of its cache in each pool.

use crate::Eal;
use dpdk_sys as sys;
use std::cell::Cell;

/// No lcore: such a thread uses no caches.
pub(crate) const ANY: u32 = sys::DPDK_LCORE_ID_ANY;
/// The thread has not registered yet.
const UNKNOWN: u32 = ANY - 1;

/// The thread's lcore, given back when the thread ends.
struct Registration(Cell<u32>);

thread_local! {
    static LCORE: Registration = const { Registration(Cell::new(UNKNOWN)) };
}

/// The calling thread's lcore, or [`ANY`]. The first call registers the thread; for threads that process packets.
#[inline]
pub(crate) fn current() -> u32 {
    LCORE.try_with(|lcore| if lcore.0.get() == UNKNOWN { register(lcore) } else { lcore.0.get() }).unwrap_or(ANY)
}

/// The calling thread's lcore, or a number that is none.
#[inline(always)]
pub(crate) fn known() -> u32 {
    LCORE.try_with(|lcore| lcore.0.get()).unwrap_or(ANY)
}

#[cold]
fn register(lcore: &Registration) -> u32 {
    // SAFETY: the EAL is up: the callers have a pool or a queue. A thread that gets no lcore works without.
    let is_registered = unsafe { sys::rte_thread_register() } == 0;
    // SAFETY: `dpdk_lcore_id` has no precondition: it reads a thread-local integer.
    let id = if is_registered { unsafe { sys::dpdk_lcore_id() } } else { ANY };
    if id == ANY {
        tracing::warn!("no DPDK lcore left for this thread: its packets come and go without a cache");
    }
    lcore.0.set(id);
    id
}

impl Drop for Registration {
    fn drop(&mut self) {
        let id = self.0.get();
        // Keep the EAL up meanwhile; where it has ended, there is nothing to give back.
        if id < sys::RTE_MAX_LCORE
            && let Some(_eal) = Eal::running()
        {
            // SAFETY: the EAL is up, and `flush` takes a pointer to an lcore number, which lives across the call.
            unsafe { sys::rte_mempool_walk(Some(flush), (&raw const id).cast_mut().cast()) };
            // SAFETY: the EAL is up, and `register` registered this thread.
            unsafe { sys::rte_thread_unregister() };
        }
    }
}

/// Empties one lcore's cache of a pool, so that its buffers do not wait for the next thread of that number.
unsafe extern "C" fn flush(pool: *mut sys::rte_mempool, id: *mut std::ffi::c_void) {
    // SAFETY: `Registration::drop` passes a pointer to an lcore number.
    let id = unsafe { *id.cast::<u32>() };
    // SAFETY: DPDK passes a pool that lives, and the number is below the number of lcores.
    let cache = unsafe { sys::rte_mempool_default_cache(pool, id) };
    // SAFETY: the cache is null or of that pool, and the calling thread's own.
    unsafe { sys::rte_mempool_cache_flush(cache, pool) };
}
