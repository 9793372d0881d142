//! Pools of packet buffers.

use crate::mbuf::Mbuf;
use crate::slot::{self, SLOTS};
use crate::{Burst, Packet};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use memory::{Memory, MemoryError};
use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Bytes in front of a packet's data for headers to come.
pub const HEADROOM: u16 = 128;
/// Bytes of data that a buffer holds behind its headroom.
pub const DATA_ROOM: u16 = 2048;

/// Buffers that a thread keeps at most, and how many move at a time when it has too many or too few.
const CACHE: usize = 256;
const MOVE: usize = 64;
const _: () = assert!(MOVE >= crate::BURST && CACHE >= MOVE + crate::BURST);

/// Bytes of a buffer with its header.
const STRIDE: usize = size_of::<Mbuf>() + HEADROOM as usize + DATA_ROOM as usize;

/// Marks [`Mbuf::pool`] as ours; DPDK's pools are aligned to cache lines.
const OURS: usize = 1;

/// The reason why a pool could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Too few or too many buffers.
    #[error("packet buffers: got {got}, expected {MIN_BUFFERS} to {MAX_BUFFERS}")]
    Count {
        /// Buffers asked for.
        got: usize,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Fewest buffers of a pool: one burst.
pub const MIN_BUFFERS: usize = crate::BURST;
/// Most buffers of a pool: 16 Mi, about 36 GiB.
pub const MAX_BUFFERS: usize = 1 << 24;

/// A pool of another maker: DPDK's.
pub trait Allocate: Send + Sync {
    /// Appends up to `count` packets, each empty with [`HEADROOM`] in front, and returns how many. All or none is fine.
    fn take(&self, burst: &mut Burst, count: usize) -> usize;
    /// Buffers that are not in use.
    fn free_count(&self) -> usize;
    /// All its buffers.
    fn capacity(&self) -> usize;
}

/// Frees segments of a foreign pool. Set by [`Pool::foreign`].
static FREE_FOREIGN: AtomicPtr<()> = AtomicPtr::new(null_mut());

/// Frees segments, at least one and at most a burst, into the pool that their headers name: the same for all.
pub type FreeSegments = unsafe fn(&[NonNull<Mbuf>]);

/// A pool of packet buffers. Clones are the same pool.
#[derive(Clone)]
pub struct Pool(Kind);

#[derive(Clone)]
enum Kind {
    Native(Arc<Owner>),
    Foreign(Arc<dyn Allocate>),
}

impl Pool {
    /// `buffers` buffers of [`DATA_ROOM`] bytes, on NUMA node `node` where one is given.
    pub fn new(buffers: usize, node: Option<u32>) -> Result<Pool, PoolError> {
        Ok(Pool(Kind::Native(Arc::new(Owner(ManuallyDrop::new(Native::new(buffers, node)?))))))
    }

    /// A pool of another maker. `free` gives segments back to the pool their headers name.
    pub fn foreign(pool: Arc<dyn Allocate>, free: FreeSegments) -> Pool {
        FREE_FOREIGN.store(free as *mut (), Ordering::Release);
        Pool(Kind::Foreign(pool))
    }

    /// Appends up to `count` packets, as many as the burst has room for and the pool has, and returns how many. Each is empty,
    /// with [`HEADROOM`] bytes in front.
    #[inline]
    pub fn take(&self, burst: &mut Burst, count: usize) -> usize {
        let count = count.min(burst.remaining_capacity());
        match &self.0 {
            Kind::Native(native) => {
                (0..count).take_while(|_| native.0.take().map(|packet| burst.push(packet)).is_some()).count()
            }
            Kind::Foreign(pool) => pool.take(burst, count),
        }
    }

    /// One packet.
    #[inline]
    pub fn take_one(&self) -> Option<Packet> {
        match &self.0 {
            Kind::Native(native) => native.0.take(),
            Kind::Foreign(pool) => {
                let mut one = Burst::new();
                pool.take(&mut one, 1);
                one.pop()
            }
        }
    }

    /// Buffers that are in no packet. Exact when no thread is taking or giving.
    pub fn free_count(&self) -> usize {
        match &self.0 {
            Kind::Native(native) => native.0.free_count(),
            Kind::Foreign(pool) => pool.free_count(),
        }
    }

    /// All buffers.
    pub fn capacity(&self) -> usize {
        match &self.0 {
            Kind::Native(native) => native.0.shared.capacity(),
            Kind::Foreign(pool) => pool.capacity(),
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} of {} free)", self.free_count(), self.capacity())
    }
}

/// The handles' hold on the pool. The last one frees the memory if every buffer is home; else it stays for ever, for a packet
/// somewhere still leads into it.
struct Owner(ManuallyDrop<Box<Native>>);

impl Drop for Owner {
    fn drop(&mut self) {
        // No thread takes buffers any more: they move only back to the pool. They are popped rather than counted, since a thread is
        // done with a buffer that pops. The caches are counted last, as buffers move from them to the shared queue.
        let shared = std::iter::from_fn(|| self.0.shared.pop()).count();
        if shared + self.0.cached_count() == self.0.shared.capacity() {
            // SAFETY: dropped once, here; all buffers are in the pool, so no packet leads into it and no thread returns one.
            unsafe { ManuallyDrop::drop(&mut self.0) }
        }
    }
}

/// Buffers of ours.
struct Native {
    /// Buffers in no thread's cache.
    shared: ArrayQueue<NonNull<Mbuf>>,
    caches: Box<[CachePadded<Cache>]>,
    memory: Memory,
}

/// One thread's buffers, used by the owner of its slot only.
struct Cache {
    /// Written by the owner with plain stores, read by reports.
    len: AtomicU32,
    buffers: UnsafeCell<[*mut Mbuf; CACHE]>,
}

// SAFETY: the owner of a pointer to a buffer owns that raw memory, on any thread.
unsafe impl Send for Native {}
// SAFETY: a cache is used by the thread of its slot alone, and the rest is a lock-free queue.
unsafe impl Sync for Native {}

impl Native {
    fn new(buffers: usize, node: Option<u32>) -> Result<Box<Native>, PoolError> {
        if !(MIN_BUFFERS..=MAX_BUFFERS).contains(&buffers) {
            return Err(PoolError::Count { got: buffers });
        }
        let memory = Memory::allocate(buffers * STRIDE, node)?;
        let cache =
            || CachePadded::new(Cache { len: AtomicU32::new(0), buffers: UnsafeCell::new([null_mut(); CACHE]) });
        let caches = (0..SLOTS).map(|_| cache()).collect();
        let native = Box::new(Native { shared: ArrayQueue::new(buffers), caches, memory });
        let pool = (&raw const *native).cast::<u8>().cast_mut().wrapping_add(OURS);
        for index in 0..buffers {
            // SAFETY: the buffer lies inside the allocation, which is zeroed and aligned to a page; it has no other user yet.
            let mbuf = unsafe { &mut *native.memory.as_ptr().add(index * STRIDE).cast::<Mbuf>() };
            mbuf.buf_addr = (&raw mut *mbuf).wrapping_add(1).cast();
            mbuf.buf_len = HEADROOM + DATA_ROOM;
            mbuf.pool = pool;
            native.shared.push(NonNull::from(mbuf)).expect("room for all");
        }
        Ok(native)
    }

    #[inline]
    fn take(&self) -> Option<Packet> {
        let mbuf = match slot::current() {
            Some(slot) => self.caches[slot].pop(&self.shared)?,
            None => self.shared.pop()?,
        };
        // SAFETY: a free buffer of ours, which no one else uses; `new` initialised the header.
        let header = unsafe { &mut *mbuf.as_ptr() };
        header.data_off = HEADROOM;
        header.refcnt = 1;
        header.nb_segs = 1;
        header.ol_flags = 0;
        header.packet_type = 0;
        header.pkt_len = 0;
        header.data_len = 0;
        header.next = None;
        header.tx_offload = 0;
        // SAFETY: a chain of one segment, which has this owner alone.
        Some(unsafe { Packet::from_raw(mbuf) })
    }

    #[inline]
    fn give(&self, mbufs: &[NonNull<Mbuf>]) {
        match slot::current() {
            Some(slot) => self.caches[slot].push(mbufs, &self.shared),
            None => mbufs.iter().for_each(|&mbuf| self.shared.push(mbuf).expect("room for all")),
        }
    }

    fn free_count(&self) -> usize {
        self.shared.len() + self.cached_count()
    }

    fn cached_count(&self) -> usize {
        // Acquire: the thread that returned the last buffer is done with the pool.
        self.caches.iter().map(|cache| cache.len.load(Ordering::Acquire) as usize).sum()
    }
}

impl Cache {
    #[inline]
    fn pop(&self, shared: &ArrayQueue<NonNull<Mbuf>>) -> Option<NonNull<Mbuf>> {
        // SAFETY: the calling thread owns the slot, and nothing below calls back.
        let buffers = unsafe { &mut *self.buffers.get() };
        let mut len = self.len.load(Ordering::Relaxed) as usize;
        if len == 0 {
            for (place, mbuf) in buffers.iter_mut().zip(std::iter::from_fn(|| shared.pop()).take(MOVE)) {
                *place = mbuf.as_ptr();
                len += 1;
            }
        }
        len = len.checked_sub(1)?;
        self.len.store(len as u32, Ordering::Release);
        NonNull::new(buffers[len])
    }

    #[inline]
    fn push(&self, mbufs: &[NonNull<Mbuf>], shared: &ArrayQueue<NonNull<Mbuf>>) {
        // SAFETY: the calling thread owns the slot, and nothing below calls back.
        let buffers = unsafe { &mut *self.buffers.get() };
        let mut len = self.len.load(Ordering::Relaxed) as usize;
        if len + mbufs.len() > CACHE {
            // First, so that no buffer is ever counted twice.
            let kept = len - MOVE;
            self.len.store(kept as u32, Ordering::Release);
            for &full in &buffers[kept..len] {
                shared.push(NonNull::new(full).expect("a full cache")).expect("room for all");
            }
            len = kept;
        }
        buffers[len..].iter_mut().zip(mbufs).for_each(|(place, mbuf)| *place = mbuf.as_ptr());
        self.len.store((len + mbufs.len()) as u32, Ordering::Release);
    }
}

/// Drops all packets of a burst: at once, where all are of one segment and of one pool.
#[inline]
pub fn free(burst: &mut Burst) {
    let Some(pool) = burst.first().map(|packet| packet.mbuf().pool) else { return };
    if !burst.iter().all(|packet| packet.segment_count() == 1 && packet.mbuf().pool == pool) {
        return burst.clear();
    }
    // SAFETY: a packet is a pointer to its first segment, and `set_len` leaves the array as it is.
    let segments = unsafe { std::slice::from_raw_parts(burst.as_ptr().cast::<NonNull<Mbuf>>(), burst.len()) };
    // SAFETY: 0 is below the capacity; the packets are given away below.
    unsafe { burst.set_len(0) };
    // SAFETY: the packets owned the segments, one each, which came from one pool.
    unsafe { free_segments(segments) };
}

/// Gives segments back to their pool, the same for all.
///
/// # Safety
/// The caller owns the segments, at least one and at most a burst, and they came from a [`Pool`].
#[inline]
pub(crate) unsafe fn free_segments(segments: &[NonNull<Mbuf>]) {
    // SAFETY: the caller owns the segments.
    let pool = unsafe { (*segments[0].as_ptr()).pool };
    if pool.addr() & OURS != 0 {
        // SAFETY: the pool lives for as long as one of its buffers is in a packet.
        let native = unsafe { &*pool.wrapping_sub(OURS).cast::<Native>() };
        native.give(segments);
    } else {
        // SAFETY: `Pool::foreign` stored a `FreeSegments` before a foreign pool gave its first packet.
        let free: FreeSegments = unsafe { std::mem::transmute(FREE_FOREIGN.load(Ordering::Relaxed)) };
        // SAFETY: the caller owns the segments, which came from a foreign pool.
        unsafe { free(segments) };
    }
}
