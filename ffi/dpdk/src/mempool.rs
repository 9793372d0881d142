//! Packet buffers of DPDK.

use crate::{Eal, Errno, lcore, log};
use dpdk_sys as sys;
use packet::{Allocate, Burst, Mbuf, Packet};
use std::ffi::{CString, c_void};
use std::mem::ManuallyDrop;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Largest number of buffers in the cache of a thread.
const CACHE: u32 = 256;

/// Fewest buffers of a pool: DPDK wants more than its cache, half again.
const MIN_BUFFERS: u32 = CACHE * 3 / 2;

const _: () = assert!(packet::HEADROOM as u32 == sys::RTE_PKTMBUF_HEADROOM);

/// The reason why a pool could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MempoolError {
    /// The name is too long, empty, or has a NUL.
    #[error("mempool name {got:?}: expected 1 to {} bytes", sys::RTE_MEMPOOL_NAMESIZE - 1)]
    Name {
        /// The requested name.
        got: String,
    },
    /// A pool of this name exists.
    #[error("mempool {name:?} exists already: expected another name")]
    Exists {
        /// The requested name.
        name: String,
    },
    /// Too few buffers.
    #[error("mempool {name:?} of {got} buffers: expected at least {MIN_BUFFERS}")]
    Count {
        /// The requested name.
        name: String,
        /// The requested number of buffers.
        got: u32,
    },
    /// DPDK has no memory for the pool.
    #[error("mempool {name:?} of {buffers} buffers ({} MiB): {errno}: {said}. More hugepages or fewer buffers help", mebibytes(*buffers))]
    Memory {
        /// The requested name.
        name: String,
        /// The requested number of buffers.
        buffers: u32,
        /// DPDK's reason.
        errno: Errno,
        /// DPDK's log messages.
        said: String,
    },
}

/// Approximate size of a pool.
fn mebibytes(buffers: u32) -> u64 {
    let buffer = size_of::<Mbuf>() as u64 + u64::from(packet::HEADROOM + packet::DATA_ROOM) + 64;
    (u64::from(buffers) * buffer).div_ceil(1 << 20)
}

/// An `rte_mempool` of packet buffers. Clones are the same pool.
#[derive(Clone)]
pub struct Mempool {
    owned: Arc<Owned>,
    packets: packet::Pool,
}

impl Mempool {
    /// Makes a pool of `buffers` buffers, on NUMA node `node` where one is given. DPDK's tools show the name.
    pub fn new(eal: &Eal, name: &str, buffers: u32, node: Option<u32>) -> Result<Mempool, MempoolError> {
        let bad_name = || MempoolError::Name { got: name.to_owned() };
        let c_name = CString::new(name).map_err(|_| bad_name())?;
        if !(1..sys::RTE_MEMPOOL_NAMESIZE as usize).contains(&name.len()) {
            return Err(bad_name());
        }
        if buffers < MIN_BUFFERS {
            return Err(MempoolError::Count { name: name.to_owned(), got: buffers });
        }
        let node = node.map_or(sys::SOCKET_ID_ANY, |node| node as i32);
        let room = packet::HEADROOM + packet::DATA_ROOM;
        // SAFETY: the EAL is up: the caller has an `Eal`. The name is a C string.
        let (pool, said) =
            log::listen(|| unsafe { sys::rte_pktmbuf_pool_create(c_name.as_ptr(), buffers, CACHE, 0, room, node) });
        match NonNull::new(pool) {
            Some(pool) => {
                let owned = Arc::new(Owned { pool, eal: ManuallyDrop::new(eal.clone()) });
                // Before a device fills its first packet, for this says how packets are freed.
                let packets = packet::Pool::foreign(owned.clone(), free_segments);
                Ok(Mempool { owned, packets })
            }
            None if Errno::last() == Errno(libc::EEXIST) => Err(MempoolError::Exists { name: name.to_owned() }),
            None => Err(MempoolError::Memory { name: name.to_owned(), buffers, errno: Errno::last(), said }),
        }
    }

    /// The pool as the rest of the process takes packets from it.
    pub fn packets(&self) -> &packet::Pool {
        &self.packets
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.owned.pool.as_ptr()
    }
}

impl std::fmt::Debug for Mempool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mempool({} of {} free)", self.owned.free_count(), self.owned.capacity())
    }
}

/// The handles' hold on the pool. The last one frees it if every buffer is home; else it stays for ever, and the EAL with it,
/// for a packet somewhere still leads into it.
struct Owned {
    pool: NonNull<sys::rte_mempool>,
    eal: ManuallyDrop<Eal>,
}

// SAFETY: DPDK's pools may be used by any thread: each works on the cache of its own lcore, and the rest is a lock-free ring.
unsafe impl Send for Owned {}
// SAFETY: concurrent use is what `Send` allows: caches of different lcores and a lock-free ring.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        let away = self.capacity() - self.free_count();
        if away != 0 {
            tracing::warn!(away, "a DPDK packet pool stays: packets of it are still somewhere");
            return;
        }
        // SAFETY: live-pool; all buffers are in the pool, and the last handle goes.
        unsafe { sys::rte_mempool_free(self.pool.as_ptr()) };
        // SAFETY: dropped here alone, and not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.eal) };
    }
}

impl Allocate for Owned {
    #[inline]
    fn take(&self, burst: &mut Burst, count: usize) -> usize {
        let count = count.min(burst.remaining_capacity());
        let mut mbufs = [null_mut::<c_void>(); packet::BURST];
        // SAFETY: live-pool; `count` is at most a burst, and the lcore is the calling thread's.
        if !unsafe { get_bulk(self.pool.as_ptr(), lcore::current(), &mut mbufs[..count]) } {
            return 0;
        }
        for mbuf in &mbufs[..count] {
            // SAFETY: `get_bulk` gave us the buffer just now.
            burst.push(unsafe { reset(mbuf.cast()) });
        }
        count
    }

    fn free_count(&self) -> usize {
        let pool = self.pool.as_ptr();
        // SAFETY: live-pool.
        let ops = unsafe { ops(pool) };
        // SAFETY: live-pool; the function is the pool's own.
        let shared = ops.get_count.map_or(0, |get_count| unsafe { get_count(pool) });
        // SAFETY: live-pool; of the caches of other threads only the length is read.
        let caches = (0..sys::RTE_MAX_LCORE).filter_map(|lcore| unsafe { Cache::of(pool, lcore) });
        // Acquire: the thread that returned the last buffer is done with the pool.
        let cached: u32 = caches.map(|cache| cache.len().load(Ordering::Acquire)).sum();
        (shared + cached) as usize
    }

    fn capacity(&self) -> usize {
        // SAFETY: live-pool; the field does not change.
        unsafe { (*self.pool.as_ptr()).size as usize }
    }
}

/// Makes an empty packet of a free buffer, whose `refcnt`, `next` and `nb_segs` DPDK keeps ready.
///
/// # Safety
/// The caller owns `mbuf`, which came from a pool just now.
#[inline(always)]
unsafe fn reset(mbuf: *mut Mbuf) -> Packet {
    // SAFETY: the caller owns the buffer, whose header is initialised.
    let header = unsafe { &mut *mbuf };
    header.data_off = packet::HEADROOM;
    header.port = u16::MAX;
    header.ol_flags = 0;
    header.packet_type = 0;
    header.pkt_len = 0;
    header.data_len = 0;
    header.tx_offload = 0;
    // SAFETY: the caller gives the buffer away, which is a chain of one segment.
    unsafe { Packet::from_raw(NonNull::from(header)) }
}

/// The functions of the pool's driver.
///
/// # Safety
/// `pool` is alive.
#[inline(always)]
unsafe fn ops<'a>(pool: *mut sys::rte_mempool) -> &'a sys::rte_mempool_ops {
    // SAFETY: the caller has the pool alive; the field does not change.
    let index = unsafe { (*pool).ops_index } as usize;
    // SAFETY: takes the address of a static of C alone.
    let table = unsafe { &raw const sys::rte_mempool_ops_table.ops };
    // SAFETY: DPDK keeps the index of a pool within the table.
    let ops = unsafe { table.cast::<sys::rte_mempool_ops>().add(index) };
    // SAFETY: the entry was registered before the pool was made, and does not change.
    unsafe { &*ops }
}

/// One thread's cache of a pool.
#[derive(Clone, Copy)]
struct Cache(NonNull<sys::rte_mempool_cache>);

impl Cache {
    /// `lcore`'s cache of `pool`; `None` where the thread or the pool has none.
    ///
    /// # Safety
    /// `pool` is alive, and `lcore` is the calling thread.
    #[inline(always)]
    unsafe fn of(pool: *mut sys::rte_mempool, lcore: u32) -> Option<Cache> {
        // SAFETY: the caller has the pool alive; the field does not change.
        if lcore >= sys::RTE_MAX_LCORE || unsafe { (*pool).cache_size } == 0 {
            return None;
        }
        // SAFETY: the caller has the pool alive; the field does not change.
        let caches = unsafe { (*pool).local_cache };
        // SAFETY: a pool with a cache size has a cache for each lcore.
        let cache = unsafe { caches.add(lcore as usize) };
        // SAFETY: it leads into an array.
        Some(Cache(unsafe { NonNull::new_unchecked(cache) }))
    }

    /// Buffers in it. Written by its thread alone; reports read it.
    #[inline(always)]
    fn len(&self) -> &AtomicU32 {
        // SAFETY: the cache lives as long as its pool, which the maker of `self` has alive.
        let len = unsafe { &raw mut (*self.0.as_ptr()).len };
        // SAFETY: aligned and live; C writes it as a plain integer on the thread of the cache alone.
        unsafe { AtomicU32::from_ptr(len) }
    }

    /// Where buffer `index` is.
    #[inline(always)]
    fn at(&self, index: usize) -> *mut *mut c_void {
        // SAFETY: the cache lives as long as its pool, which the maker of `self` has alive.
        let objects = unsafe { &raw mut (*self.0.as_ptr()).objs };
        // SAFETY: the callers stay within the array: below twice the largest cache.
        unsafe { objects.cast::<*mut c_void>().add(index) }
    }
}

/// `rte_mempool_get_bulk`: fills `objects`, at most a burst, or takes none.
///
/// # Safety
/// `pool` is alive, and `lcore` is the calling thread.
#[inline]
unsafe fn get_bulk(pool: *mut sys::rte_mempool, lcore: u32, objects: &mut [*mut c_void]) -> bool {
    let dequeue = |to: *mut *mut c_void, count: usize| {
        // SAFETY: the caller has the pool alive.
        let ops = unsafe { ops(pool) };
        // SAFETY: the function is the pool's own, and `to` has room for `count` pointers.
        ops.dequeue.is_some_and(|dequeue| unsafe { dequeue(pool, to, count as u32) } == 0)
    };
    // SAFETY: the caller has the pool alive and passes its own lcore.
    let Some(cache) = (unsafe { Cache::of(pool, lcore) }) else {
        return dequeue(objects.as_mut_ptr(), objects.len());
    };
    let mut len = cache.len().load(Ordering::Relaxed) as usize;
    if len < objects.len() {
        // The cache has room for that: for twice the largest size, and both counts are less than a burst.
        // SAFETY: the cache lives as long as its pool; the field does not change.
        let refill = unsafe { (*cache.0.as_ptr()).size } as usize + objects.len() - len;
        if dequeue(cache.at(len), refill) {
            len += refill;
        } else if !dequeue(cache.at(len), objects.len() - len) {
            return false;
        } else {
            len = objects.len();
        }
    }
    len -= objects.len();
    // SAFETY: the cache has as many pointers behind `len`, which only this thread uses.
    objects.copy_from_slice(unsafe { std::slice::from_raw_parts(cache.at(len), objects.len()) });
    cache.len().store(len as u32, Ordering::Relaxed);
    true
}

/// `rte_mempool_put_bulk`.
///
/// # Safety
/// `pool` is alive, `lcore` is the calling thread, and the caller owns `objects`, at most a burst, which came from the pool.
#[inline]
unsafe fn put_bulk(pool: *mut sys::rte_mempool, lcore: u32, objects: &[*mut c_void]) {
    let count = objects.len() as u32;
    let enqueue = |from: *const *mut c_void, count: u32| {
        // SAFETY: the caller has the pool alive.
        let ops = unsafe { ops(pool) };
        if let Some(enqueue) = ops.enqueue {
            // SAFETY: the function is the pool's own; `from` has `count` objects of the pool, which has room for all of them.
            let _ = unsafe { enqueue(pool, from, count) };
        }
    };
    // SAFETY: the caller has the pool alive and passes its own lcore.
    let Some(cache) = (unsafe { Cache::of(pool, lcore) }) else {
        enqueue(objects.as_ptr(), count);
        return;
    };
    let mut len = cache.len().load(Ordering::Relaxed);
    // SAFETY: the cache lives as long as its pool; the field does not change.
    if len + count > unsafe { (*cache.0.as_ptr()).flushthresh } {
        enqueue(cache.at(0), len);
        len = 0;
    }
    // SAFETY: within the cache, whose room is above the threshold by more than a burst; only this thread uses it.
    unsafe { std::ptr::copy_nonoverlapping(objects.as_ptr(), cache.at(len as usize), objects.len()) };
    // Release: a report that sees the buffers home sees this thread done with the pool.
    cache.len().store(len + count, Ordering::Release);
}

/// `rte_pktmbuf_free_seg`, for segments of [`packet::Packet`]s.
///
/// # Safety
/// The caller owns the segments, at least one and at most a burst, and they came from one DPDK pool.
unsafe fn free_segments(segments: &[NonNull<Mbuf>]) {
    const ATTACHED: u64 = sys::RTE_MBUF_F_EXTERNAL | sys::RTE_MBUF_F_INDIRECT;
    let is_plain = |segment: &NonNull<Mbuf>| {
        // SAFETY: the caller owns the segments.
        let header = unsafe { segment.as_ref() };
        header.refcnt == 1 && header.ol_flags & ATTACHED == 0
    };
    if !segments.iter().all(is_plain) {
        for segment in segments {
            // SAFETY: the caller owns the segment, and gives it away.
            unsafe { sys::rte_pktmbuf_free_seg(segment.as_ptr().cast()) };
        }
        return;
    }
    for segment in segments {
        // What DPDK expects of a free buffer.
        // SAFETY: the caller owns the segments, each once.
        let header = unsafe { &mut *segment.as_ptr() };
        header.next = None;
        header.nb_segs = 1;
    }
    // SAFETY: the caller owns the segment, which is an `rte_mbuf`.
    let pool = unsafe { (*segments[0].as_ptr().cast::<sys::rte_mbuf>()).pool };
    // SAFETY: a `NonNull` is a pointer, and the slice outlives its view.
    let objects = unsafe { std::slice::from_raw_parts(segments.as_ptr().cast::<*mut c_void>(), segments.len()) };
    // SAFETY: packets keep their pool alive; the caller owns the segments, which came from it, and the lcore is this thread's.
    unsafe { put_bulk(pool, lcore::known(), objects) };
}
