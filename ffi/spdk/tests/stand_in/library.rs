//! The functions of SPDK that the crate calls, over a disk in memory. What they promise is what SPDK's documentation says of them.

#![allow(unsafe_code)] // the other side of a C library

use parking_lot::Mutex;
use spdk_sys::*;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

pub(crate) const NAME: &str = "Stand0";
const BLOCK: usize = 512;
static UUID: spdk_uuid = spdk_uuid { u: spdk_uuid__bindgen_ty_1 { raw: [7; 16] } };

pub(crate) struct State {
    pub(crate) data: Vec<u8>,
    pub(crate) metadata: u32,
    pub(crate) no_subsystems: bool,
    /// What the next submissions are refused with.
    pub(crate) refuse: Vec<c_int>,
    /// Requests fail.
    pub(crate) fail: bool,
    /// So many polls do nothing.
    pub(crate) hold_polls: u32,
    pub(crate) calls: Vec<&'static str>,
    /// Descriptors.
    pub(crate) opened: Vec<usize>,
    /// Channels, threads, environments and pieces of memory.
    others: isize,
    messages: Vec<Message>,
    removed: bool,
}

/// What a thread does at its next poll.
struct Message {
    thread: usize,
    run: Box<dyn FnOnce()>,
}

// SAFETY: a message runs on the thread of the system that polls the SPDK thread.
unsafe impl Send for Message {}

pub(crate) static STATE: Mutex<State> = Mutex::new(State::new());

impl State {
    const fn new() -> State {
        State {
            data: Vec::new(),
            metadata: 0,
            no_subsystems: false,
            refuse: Vec::new(),
            fail: false,
            hold_polls: 0,
            calls: Vec::new(),
            opened: Vec::new(),
            others: 0,
            messages: Vec::new(),
            removed: false,
        }
    }
}

fn state<R>(change: impl FnOnce(&mut State) -> R) -> R {
    change(&mut STATE.lock())
}

/// Runs a test: one at a time, from a new disk of 4 MiB to a library of which nothing is left.
pub(crate) fn run(test: impl FnOnce()) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    state(|state| *state = State { data: vec![0; 4 << 20], ..State::new() });
    test();
    assert_eq!(state(|state| (state.opened.len(), state.others)), (0, 0));
}

thread_local! {
    static CURRENT: Cell<*mut spdk_thread> = const { Cell::new(null_mut()) };
}

fn post(thread: usize, run: impl FnOnce() + 'static) {
    state(|state| state.messages.push(Message { thread, run: Box::new(run) }));
}

/// Removes the disk, and reports the removal to its descriptors.
pub(crate) fn remove() {
    let opened = state(|state| {
        state.removed = true;
        state.opened.clone()
    });
    for descriptor in opened {
        // SAFETY: open, and so made by `spdk_bdev_open_ext`.
        let Descriptor { thread, event, context } = unsafe { *(descriptor as *const Descriptor) };
        // SAFETY: as SPDK would.
        post(thread, move || unsafe { event(SPDK_BDEV_EVENT_REMOVE, bdev(), context) });
    }
}

#[derive(Clone, Copy)]
struct Descriptor {
    thread: usize,
    event: unsafe extern "C" fn(spdk_bdev_event_type, *mut spdk_bdev, *mut c_void),
    context: *mut c_void,
}

fn bdev() -> *mut spdk_bdev {
    std::ptr::dangling_mut()
}

fn allocate(size: usize) -> *mut c_void {
    state(|state| state.others += 1);
    // SAFETY: any size may be asked for.
    unsafe { libc::malloc(size) }
}

fn free(memory: *mut c_void) {
    state(|state| state.others -= 1);
    // SAFETY: from `allocate`.
    unsafe { libc::free(memory) };
}

#[unsafe(no_mangle)]
extern "C" fn spdk_env_opts_init(_: *mut spdk_env_opts) {}

#[unsafe(no_mangle)]
extern "C" fn spdk_env_init(_: *const spdk_env_opts) -> c_int {
    state(|state| state.others += 1);
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_env_fini() {
    state(|state| state.others -= 1);
}

#[unsafe(no_mangle)]
extern "C" fn spdk_env_dpdk_post_init(_: bool) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_env_dpdk_post_fini() {}

#[unsafe(no_mangle)]
extern "C" fn spdk_dma_malloc(size: usize, _: usize, _: *mut u64) -> *mut c_void {
    allocate(size)
}

#[unsafe(no_mangle)]
extern "C" fn spdk_dma_free(memory: *mut c_void) {
    free(memory);
}

#[unsafe(no_mangle)]
extern "C" fn spdk_subsystem_init(callback: spdk_subsystem_init_fn, context: *mut c_void) {
    let result = if state(|state| state.no_subsystems) { -libc::ENODEV } else { 0 };
    // SAFETY: as SPDK would.
    post(CURRENT.get() as usize, move || unsafe { callback.unwrap()(result, context) });
}

#[unsafe(no_mangle)]
extern "C" fn spdk_subsystem_load_config(
    json: *mut c_void,
    size: isize,
    callback: spdk_subsystem_init_fn,
    context: *mut c_void,
    _: bool,
) {
    // SAFETY: the text that the caller lent.
    assert_eq!(unsafe { std::slice::from_raw_parts(json.cast::<u8>(), size as usize) }, b"{}");
    spdk_subsystem_init(callback, context);
}

#[unsafe(no_mangle)]
extern "C" fn spdk_subsystem_fini(callback: spdk_subsystem_fini_fn, context: *mut c_void) {
    // SAFETY: as SPDK would.
    post(CURRENT.get() as usize, move || unsafe { callback.unwrap()(context) });
}

#[unsafe(no_mangle)]
extern "C" fn spdk_thread_lib_init(_: spdk_new_thread_fn, _: usize) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_thread_lib_fini() {}

#[unsafe(no_mangle)]
extern "C" fn spdk_thread_create(_: *const c_char, _: *const spdk_cpuset) -> *mut spdk_thread {
    allocate(1).cast()
}

#[unsafe(no_mangle)]
extern "C" fn spdk_get_thread() -> *mut spdk_thread {
    CURRENT.get()
}

#[unsafe(no_mangle)]
extern "C" fn spdk_set_thread(thread: *mut spdk_thread) {
    CURRENT.set(thread);
}

#[unsafe(no_mangle)]
extern "C" fn spdk_thread_poll(thread: *mut spdk_thread, _: u32, _: u64) -> c_int {
    let before = CURRENT.replace(thread);
    let own: Vec<Message> = state(|state| {
        let holds = state.hold_polls > 0;
        state.hold_polls = state.hold_polls.saturating_sub(1);
        state.messages.extract_if(.., |message| !holds && message.thread == thread as usize).collect()
    });
    let count = own.len();
    for message in own {
        (message.run)();
    }
    CURRENT.set(before);
    count.min(1) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn spdk_thread_exit(thread: *mut spdk_thread) -> c_int {
    assert_eq!(thread, CURRENT.get());
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_thread_is_exited(thread: *mut spdk_thread) -> bool {
    state(|state| state.messages.iter().all(|message| message.thread != thread as usize))
}

#[unsafe(no_mangle)]
extern "C" fn spdk_thread_destroy(thread: *mut spdk_thread) {
    free(thread.cast());
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_open_ext(
    name: *const c_char,
    _: bool,
    event: spdk_bdev_event_cb_t,
    context: *mut c_void,
    opened: *mut *mut spdk_bdev_desc,
) -> c_int {
    // SAFETY: the string that the caller lent.
    if unsafe { CStr::from_ptr(name) }.to_bytes() != NAME.as_bytes() || state(|state| state.removed) {
        return -libc::ENODEV;
    }
    let descriptor = Descriptor { thread: CURRENT.get() as usize, event: event.unwrap(), context };
    let descriptor = Box::into_raw(Box::new(descriptor));
    state(|state| state.opened.push(descriptor as usize));
    // SAFETY: the caller's place for it.
    unsafe { *opened = descriptor.cast() };
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_close(descriptor: *mut spdk_bdev_desc) {
    state(|state| state.opened.retain(|opened| *opened != descriptor as usize));
    // SAFETY: made by `spdk_bdev_open_ext`, closed once.
    let descriptor = unsafe { Box::from_raw(descriptor.cast::<Descriptor>()) };
    assert_eq!(descriptor.thread, CURRENT.get() as usize);
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_desc_get_bdev(_: *mut spdk_bdev_desc) -> *mut spdk_bdev {
    bdev()
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_get_io_channel(_: *mut spdk_bdev_desc) -> *mut spdk_io_channel {
    allocate(1).cast()
}

#[unsafe(no_mangle)]
extern "C" fn spdk_put_io_channel(channel: *mut spdk_io_channel) {
    assert!(!CURRENT.get().is_null());
    free(channel.cast());
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_io_type_supported(_: *mut spdk_bdev, _: spdk_bdev_io_type) -> bool {
    true
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_has_write_cache(_: *const spdk_bdev) -> bool {
    true
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_get_block_size(_: *const spdk_bdev) -> u32 {
    BLOCK as u32
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_get_physical_block_size(_: *const spdk_bdev) -> u32 {
    4096
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_get_md_size(_: *const spdk_bdev) -> u32 {
    state(|state| state.metadata)
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_get_write_unit_size(_: *const spdk_bdev) -> u32 {
    1
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_get_num_blocks(_: *const spdk_bdev) -> u64 {
    state(|state| state.data.len() / BLOCK) as u64
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_get_uuid(_: *const spdk_bdev) -> *const spdk_uuid {
    &raw const UUID
}

/// Takes a request: `perform` gets its range of the disk when the thread is polled.
fn submit(
    call: &'static str,
    (first, blocks): (u64, u64),
    callback: spdk_bdev_io_completion_cb,
    context: *mut c_void,
    perform: impl FnOnce(&mut [u8]) + 'static,
) -> c_int {
    if let Some(errno) = state(|state| state.refuse.pop()) {
        return -errno;
    }
    post(CURRENT.get() as usize, move || {
        let success = state(|state| {
            state.calls.push(call);
            perform(&mut state.data[first as usize * BLOCK..][..blocks as usize * BLOCK]);
            !state.fail
        });
        // SAFETY: as SPDK would.
        unsafe { callback.unwrap()(allocate(1).cast(), success, context) };
    });
    0
}

/// The bytes of pieces that the caller keeps until its callback.
///
/// # Safety
/// `pieces` leads to `count` pieces, which lead to memory that nothing else uses before the callback.
unsafe fn bytes<'a>(pieces: *mut iovec, count: c_int) -> impl Iterator<Item = &'a mut [u8]> {
    // SAFETY: the caller has `count` pieces there.
    let pieces = unsafe { std::slice::from_raw_parts(pieces, count as usize) };
    // SAFETY: the caller leaves the memory of the pieces to the disk.
    pieces.iter().map(|piece| unsafe { std::slice::from_raw_parts_mut(piece.iov_base.cast(), piece.iov_len) })
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_readv_blocks(
    _: *mut spdk_bdev_desc,
    _: *mut spdk_io_channel,
    pieces: *mut iovec,
    count: c_int,
    first: u64,
    blocks: u64,
    callback: spdk_bdev_io_completion_cb,
    context: *mut c_void,
) -> c_int {
    submit("readv", (first, blocks), callback, context, move |mut disk| {
        // SAFETY: they are kept until the callback.
        for piece in unsafe { bytes(pieces, count) } {
            let (from, rest) = disk.split_at_mut(piece.len());
            piece.copy_from_slice(from);
            disk = rest;
        }
        assert!(disk.is_empty());
    })
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_writev_blocks(
    _: *mut spdk_bdev_desc,
    _: *mut spdk_io_channel,
    pieces: *mut iovec,
    count: c_int,
    first: u64,
    blocks: u64,
    callback: spdk_bdev_io_completion_cb,
    context: *mut c_void,
) -> c_int {
    submit("writev", (first, blocks), callback, context, move |mut disk| {
        // SAFETY: they are kept until the callback.
        for piece in unsafe { bytes(pieces, count) } {
            let (to, rest) = disk.split_at_mut(piece.len());
            to.copy_from_slice(piece);
            disk = rest;
        }
        assert!(disk.is_empty());
    })
}

macro_rules! without_data {
    ($($function:ident $call:literal $byte:expr,)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $function(
            _: *mut spdk_bdev_desc,
            _: *mut spdk_io_channel,
            first: u64,
            blocks: u64,
            callback: spdk_bdev_io_completion_cb,
            context: *mut c_void,
        ) -> c_int {
            submit($call, (first, blocks), callback, context, |disk| {
                let byte: Option<u8> = $byte;
                if let Some(byte) = byte {
                    disk.fill(byte);
                }
            })
        }
    )*};
}

without_data! {
    spdk_bdev_flush_blocks "flush" None,
    spdk_bdev_unmap_blocks "unmap" Some(0),
    spdk_bdev_write_zeroes_blocks "zeroes" Some(0),
}

#[unsafe(no_mangle)]
extern "C" fn spdk_bdev_free_io(io: *mut spdk_bdev_io) {
    free(io.cast());
}
