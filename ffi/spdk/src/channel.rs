//! One worker's channel to a block device of SPDK.

use crate::descriptor::Descriptor;
use crate::library::{Spdk, errno};
use crate::thread::Thread;
use arrayvec::ArrayVec;
use block::{BlockChannel, BlockRequest, Completions, Op, RequestQueue, Status};
use clock::Cycles;
use spdk_sys as sys;
use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::Duration;

/// Largest number of requests in SPDK: a bit each.
const DEPTH: usize = u64::BITS as usize;
/// Bytes of a piece of memory that a device may reach.
const PIECE: usize = 64 << 10;
/// Number of pieces of a channel.
const PIECES: usize = 64;
/// Largest read or write in bytes.
pub(crate) const MAX_IO: usize = 1 << 20;
const PIECES_OF_ONE: usize = MAX_IO / PIECE;
/// Longest time between two runs of SPDK's pollers, on a sleeping worker too.
const IDLE_POLL: Duration = Duration::from_millis(10);

/// The results of SPDK's callbacks, all of which come from within the channel's own polls and submissions.
#[derive(Default)]
struct CallbackResults {
    /// Slots whose request has ended.
    ended: Cell<u64>,
    /// Slots among them whose request failed.
    failed: Cell<u64>,
    /// Whether the device was removed.
    removed: Cell<bool>,
}

/// A slot for a request in SPDK.
struct Slot {
    results: *const CallbackResults,
    bit: u64,
    request: Option<BlockRequest>,
    /// The pieces of the request; SPDK reads the list until the request has ended.
    pieces: ArrayVec<libc::iovec, PIECES_OF_ONE>,
}

/// The device, open within the channel's thread.
struct Device {
    channel: NonNull<sys::spdk_io_channel>,
    descriptor: Descriptor,
    block_size: u64,
    flushes: bool,
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: open-device; `Channel::close` drops the device within its thread, when no request is in SPDK.
        unsafe { sys::spdk_put_io_channel(self.channel.as_ptr()) };
    }
}

/// Memory that a device may reach.
struct Memory(NonNull<u8>);

impl Memory {
    fn allocate(len: usize) -> Option<Memory> {
        // SAFETY: the third argument is null, as it has to be.
        NonNull::new(unsafe { sys::spdk_dma_malloc(len, 4096, null_mut()) }.cast()).map(Memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `allocate` allocated it, and the channel drops it after its requests have ended.
        unsafe { sys::spdk_dma_free(self.0.as_ptr().cast()) };
    }
}

/// A channel: an SPDK thread with the device open in it. Fields are dropped in this order.
pub(crate) struct Channel {
    /// `None` after the removal of the device.
    device: Option<Device>,
    thread: Thread,
    /// Requests that wait for a slot, for memory or for SPDK.
    waiting: RequestQueue,
    slots: Box<[Slot]>,
    /// Slots whose requests are in SPDK.
    busy: u64,
    free_pieces: ArrayVec<NonNull<u8>, PIECES>,
    results: Box<CallbackResults>,
    polled: Cycles,
    _memory: Memory,
    _spdk: Arc<Spdk>,
}

// SAFETY: the pointers lead to what the channel owns, and SPDK's callbacks run only while the channel polls its thread or submits.
unsafe impl Send for Channel {}

impl Channel {
    pub(crate) fn open(spdk: &Arc<Spdk>, name: &CStr, write: bool) -> io::Result<Box<Channel>> {
        let no_memory = || errno(-libc::ENOMEM);
        let memory = Memory::allocate(PIECES * PIECE).ok_or_else(no_memory)?;
        // SAFETY: `piece` is below `PIECES`, so this is within the allocated memory.
        let free_pieces = (0..PIECES).map(|piece| unsafe { memory.0.add(piece * PIECE) }).collect();
        let results = Box::new(CallbackResults::default());
        let slot = |n| Slot { results: &raw const *results, bit: 1_u64 << n, request: None, pieces: ArrayVec::new() };
        let slots = (0..DEPTH).map(slot).collect();
        let thread = Thread::create(name).ok_or_else(no_memory)?;
        let context = (&raw const *results).cast_mut().cast();
        let device = thread.enter(|| {
            // SAFETY: within the channel's thread, as the drop; `context` is what `event` expects, and is dropped after the device.
            let descriptor = unsafe { Descriptor::open(name, write, event, context)? };
            // SAFETY: open-device.
            let channel = unsafe { sys::spdk_bdev_get_io_channel(descriptor.as_ptr()) };
            let channel = NonNull::new(channel).ok_or_else(no_memory)?;
            // SAFETY: open-device.
            let block_size = unsafe { sys::spdk_bdev_get_block_size(descriptor.bdev()) }.into();
            let flushes = write && descriptor.supports(sys::SPDK_BDEV_IO_TYPE_FLUSH);
            io::Result::Ok(Device { channel, descriptor, block_size, flushes })
        })?;
        Ok(Box::new(Channel {
            device: Some(device),
            thread,
            waiting: RequestQueue::new(),
            slots,
            busy: 0,
            free_pieces,
            results,
            polled: Cycles(0),
            _memory: memory,
            _spdk: spdk.clone(),
        }))
    }

    /// Submits waiting requests, as many as SPDK takes.
    fn submit_waiting(&mut self, done: &mut Completions) {
        while let Some(request) = self.waiting.pop() {
            if let Some(request) = self.start(request, done) {
                return self.waiting.push_front(request);
            }
        }
    }

    /// Starts a request, or ends it where that is not possible. Returns it where it has to wait.
    fn start(&mut self, request: BlockRequest, done: &mut Completions) -> Option<BlockRequest> {
        let Some(device) = self.device.as_ref().filter(|_| !self.results.removed.get()) else {
            request.complete(done, Status::IoError);
            return None;
        };
        let moves = matches!(request.op, Op::Read | Op::Write);
        let size_bytes = device.descriptor.num_blocks().saturating_mul(device.block_size);
        if !request.fits(size_bytes) || moves && request.len > MAX_IO as u64 {
            request.complete(done, Status::IoError);
            return None;
        }
        if request.op == Op::Flush && !device.flushes || request.op != Op::Flush && request.len == 0 {
            request.complete(done, Status::Ok);
            return None;
        }
        let pieces = if moves { (request.len as usize).div_ceil(PIECE) } else { 0 };
        if self.busy == u64::MAX || pieces > self.free_pieces.len() {
            return Some(request);
        }
        let slot = &mut self.slots[(!self.busy).trailing_zeros() as usize];
        let mut left = request.len as usize;
        for piece in self.free_pieces.drain(self.free_pieces.len() - pieces..) {
            let iov_len = left.min(PIECE);
            slot.pieces.push(libc::iovec { iov_base: piece.as_ptr().cast(), iov_len });
            left -= iov_len;
        }
        if request.op == Op::Write {
            slot.copy(&request);
        }
        let refused = match self.thread.enter(|| slot.submit(device, &request)) {
            0 => {
                self.busy |= slot.bit;
                slot.request = Some(request);
                return None;
            }
            returned => -returned,
        };
        slot.release(&mut self.free_pieces);
        match refused {
            libc::ENOMEM => return Some(request),
            libc::ENOTSUP => request.complete(done, Status::Unsupported),
            _ => request.complete(done, Status::IoError),
        }
        None
    }

    /// Completes the requests that have ended.
    fn complete_ended(&mut self, done: &mut Completions) -> usize {
        let (ended, failed) = (self.results.ended.take(), self.results.failed.take());
        self.busy &= !ended;
        let mut left = ended;
        while left != 0 {
            let slot = &mut self.slots[left.trailing_zeros() as usize];
            left &= left - 1;
            let Some(request) = slot.request.take() else { continue };
            let status = if failed & slot.bit == 0 { Status::Ok } else { Status::IoError };
            if request.op == Op::Read && status == Status::Ok {
                slot.copy(&request);
            }
            slot.release(&mut self.free_pieces);
            request.complete(done, status);
        }
        ended.count_ones() as usize
    }

    /// Closes the device; no request is in SPDK.
    #[cold]
    fn close(&mut self) {
        let device = self.device.take();
        self.thread.enter(|| drop(device));
    }
}

impl Slot {
    /// Submits the request to SPDK. Returns 0, or a negative errno of a request that SPDK did not take.
    #[inline]
    fn submit(&mut self, device: &Device, request: &BlockRequest) -> c_int {
        let context = (&raw mut *self).cast();
        let (first, blocks) = (request.offset / device.block_size, request.len / device.block_size);
        let (descriptor, channel) = (device.descriptor.as_ptr(), device.channel.as_ptr());
        let (pieces, count) = (self.pieces.as_mut_ptr().cast(), self.pieces.len() as c_int);
        let ended = Some(ended as unsafe extern "C" fn(_, _, _));
        match request.op {
            // SAFETY: open-device, within the channel's thread. Slot, pieces and their memory stay and are not used until `ended`.
            Op::Read => unsafe {
                sys::spdk_bdev_readv_blocks(descriptor, channel, pieces, count, first, blocks, ended, context)
            },
            // SAFETY: open-device, within the channel's thread. Slot, pieces and their memory stay and are not used until `ended`.
            Op::Write => unsafe {
                sys::spdk_bdev_writev_blocks(descriptor, channel, pieces, count, first, blocks, ended, context)
            },
            Op::Compare => -libc::ENOTSUP,
            Op::Flush => {
                let all = device.descriptor.num_blocks();
                // SAFETY: open-device, within the channel's thread. The slot stays until `ended`.
                unsafe { sys::spdk_bdev_flush_blocks(descriptor, channel, 0, all, ended, context) }
            }
            // SAFETY: open-device, within the channel's thread. The slot stays until `ended`.
            Op::Discard => unsafe { sys::spdk_bdev_unmap_blocks(descriptor, channel, first, blocks, ended, context) },
            // SAFETY: open-device, within the channel's thread. The slot stays until `ended`.
            Op::WriteZeroes { .. } => unsafe {
                sys::spdk_bdev_write_zeroes_blocks(descriptor, channel, first, blocks, ended, context)
            },
        }
    }

    /// Copies the data of a write to the slot's memory, or that of a read from there.
    fn copy(&self, request: &BlockRequest) {
        let mut offset = 0;
        for piece in &self.pieces {
            // SAFETY: a piece of this slot, which SPDK does not use now: the request is not submitted yet, or has ended.
            let bytes = unsafe { std::slice::from_raw_parts_mut(piece.iov_base.cast(), piece.iov_len) };
            let buffers = &request.buffers;
            let copied =
                if request.op == Op::Write { buffers.read(offset, bytes) } else { buffers.write(offset, bytes) };
            debug_assert!(copied.is_ok(), "the buffers have as many bytes as the request");
            offset += bytes.len() as u64;
        }
    }

    fn release(&mut self, free: &mut ArrayVec<NonNull<u8>, PIECES>) {
        free.extend(self.pieces.drain(..).filter_map(|piece| NonNull::new(piece.iov_base.cast())));
    }
}

/// The callback of a request.
unsafe extern "C" fn ended(io: *mut sys::spdk_bdev_io, success: bool, slot: *mut c_void) {
    let slot = slot.cast::<Slot>();
    // SAFETY: `Slot::submit` passed the slot, which its channel keeps until the request has ended.
    let bit = unsafe { (*slot).bit };
    // SAFETY: `Slot::submit` passed the slot, which its channel keeps until the request has ended.
    let results = unsafe { (*slot).results };
    // SAFETY: the channel drops the results after its slots' requests have ended.
    let results = unsafe { &*results };
    results.ended.set(results.ended.get() | bit);
    if !success {
        results.failed.set(results.failed.get() | bit);
    }
    // SAFETY: SPDK passes the I/O once, for the callback to free.
    unsafe { sys::spdk_bdev_free_io(io) };
}

/// The callback of an event of the device. A resize is seen with the next request, and by the control plane's rescan.
unsafe extern "C" fn event(event: sys::spdk_bdev_event_type, _: *mut sys::spdk_bdev, results: *mut c_void) {
    if event == sys::SPDK_BDEV_EVENT_REMOVE {
        // SAFETY: `Channel::open` passed the results, which the channel drops after the device.
        unsafe { &*results.cast::<CallbackResults>() }.removed.set(true);
    }
}

impl BlockChannel for Channel {
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        self.waiting.push(request);
        self.submit_waiting(done);
    }

    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        self.polled = now;
        self.thread.poll();
        let finished = self.complete_ended(done);
        if self.results.removed.get() && self.busy == 0 && self.device.is_some() {
            self.close();
        }
        if !self.waiting.is_empty() {
            self.submit_waiting(done);
        }
        finished
    }

    fn deadline(&self) -> Cycles {
        if self.outstanding() > 0 { self.polled } else { self.polled + IDLE_POLL.into() }
    }

    fn outstanding(&self) -> usize {
        self.busy.count_ones() as usize + self.waiting.len()
    }
}

impl Drop for Channel {
    /// Waits for the requests in SPDK, which use the channel's memory.
    fn drop(&mut self) {
        let mut done = Completions::with_capacity(DEPTH);
        while self.busy != 0 {
            self.thread.poll();
            self.complete_ended(&mut done);
        }
        self.close();
    }
}
