//! A ring area: a fixed range of shared memory, checked once.

use crate::Region;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A range of shared memory with a fixed place, for rings and for inflight and log areas.
///
/// Offsets come from the device's own indices, reduced by the ring's size, so one outside is a bug and panics. All access is
/// atomic in the width of the field; values are little endian, as virtio 1.x has them.
#[derive(Clone, Debug)]
pub struct Window {
    host: *mut u8,
    len: usize,
    /// Keeps the mapping.
    _region: Arc<Region>,
}

// SAFETY: a window is a view of shared memory that is only accessed through atomics.
unsafe impl Send for Window {}

macro_rules! field {
    ($load:ident, $store:ident, $int:ty, $atomic:ty) => {
        /// Loads a little-endian integer at `offset`, which must be aligned to it.
        #[inline(always)]
        pub fn $load(&self, offset: usize, order: Ordering) -> $int {
            <$int>::from_le(self.cell::<$atomic>(offset).load(order))
        }

        /// Stores a little-endian integer at `offset`, which must be aligned to it.
        #[inline(always)]
        pub fn $store(&self, offset: usize, value: $int, order: Ordering) {
            self.cell::<$atomic>(offset).store(value.to_le(), order)
        }
    };
}

impl Window {
    /// # Safety
    /// `len` bytes at `host` belong to `region`'s mapping.
    pub(crate) unsafe fn new(host: *mut u8, len: usize, region: Arc<Region>) -> Window {
        Window { host, len, _region: region }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    field!(load_u8, store_u8, u8, AtomicU8);
    field!(load_u16, store_u16, u16, AtomicU16);
    field!(load_u32, store_u32, u32, AtomicU32);
    field!(load_u64, store_u64, u64, AtomicU64);

    /// Sets bits of a byte.
    #[inline(always)]
    pub fn fetch_or_u8(&self, offset: usize, bits: u8, order: Ordering) -> u8 {
        self.cell::<AtomicU8>(offset).fetch_or(bits, order)
    }

    /// Loads two neighbours of 64 bits, the second one first and with `order`: a descriptor, whose second half says whether the
    /// first one counts.
    #[inline(always)]
    pub fn load_u64_pair(&self, offset: usize, order: Ordering) -> (u64, u64) {
        let pair = self.cells::<AtomicU64, 2>(offset);
        let second = u64::from_le(pair[1].load(order));
        (u64::from_le(pair[0].load(Ordering::Relaxed)), second)
    }

    /// As [`load_u64_pair`](Self::load_u64_pair), for `N` pairs one behind the other: all second ones first. Four are a cache line
    /// of descriptors.
    #[inline(always)]
    pub fn load_u64_pairs<const N: usize>(&self, offset: usize, order: Ordering) -> [(u64, u64); N] {
        let pairs = self.cells::<[AtomicU64; 2], N>(offset);
        let seconds = pairs.each_ref().map(|pair| u64::from_le(pair[1].load(order)));
        std::array::from_fn(|at| (u64::from_le(pairs[at][0].load(Ordering::Relaxed)), seconds[at]))
    }

    /// Loads `N` neighbours of 16 bits: heads in an available ring.
    #[inline(always)]
    pub fn load_u16s<const N: usize>(&self, offset: usize, order: Ordering) -> [u16; N] {
        self.cells::<AtomicU16, N>(offset).each_ref().map(|cell| u16::from_le(cell.load(order)))
    }

    /// Stores the second one of 64-bit pairs that stand one behind the other, in order: used descriptors.
    #[inline(always)]
    pub fn store_u64_seconds(&self, offset: usize, seconds: impl ExactSizeIterator<Item = u64>, order: Ordering) {
        let pairs = self.run::<[AtomicU64; 2]>(offset, seconds.len());
        pairs.iter().zip(seconds).for_each(|(pair, second)| pair[1].store(second.to_le(), order));
    }

    /// Stores 32-bit pairs that stand one behind the other: used elements.
    #[inline(always)]
    pub fn store_u32_pairs(&self, offset: usize, values: impl ExactSizeIterator<Item = (u32, u32)>) {
        for (pair, (first, second)) in self.run::<[AtomicU32; 2]>(offset, values.len()).iter().zip(values) {
            pair[0].store(first.to_le(), Ordering::Relaxed);
            pair[1].store(second.to_le(), Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn cell<T>(&self, offset: usize) -> &T {
        &self.cells::<T, 1>(offset)[0]
    }

    /// `N` neighbouring atomics.
    #[inline(always)]
    fn cells<T, const N: usize>(&self, offset: usize) -> &[T; N] {
        &self.run::<[T; N]>(offset, 1)[0]
    }

    /// `count` neighbours. Private: `T` is of the atomic integers, for which every byte pattern is a value.
    #[inline(always)]
    fn run<T>(&self, offset: usize, count: usize) -> &[T] {
        let size = std::mem::size_of::<T>().checked_mul(count);
        let end = size.and_then(|size| offset.checked_add(size));
        assert!(end.is_some_and(|end| end <= self.len), "field inside the window");
        // SAFETY: inside the mapping by the assertion, aligned by the next one; atomics tolerate the peer's writes.
        unsafe {
            let cells = self.host.add(offset).cast::<T>();
            assert!(cells.is_aligned(), "field aligned");
            std::slice::from_raw_parts(cells, count)
        }
    }
}
