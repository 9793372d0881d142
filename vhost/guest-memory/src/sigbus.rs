//! A peer may truncate the file behind its memory while it is mapped here; the kernel then raises SIGBUS on an access.
//!
//! The handler looks the address up in a fixed table of watched ranges. If a range has it, the handler marks the range as hit and puts zeroed
//! private memory in the place of the lost pages: the access that faulted goes on, the device that owns the range is found
//! broken at its next check and is quarantined alone. Any other SIGBUS is the process's own bug and ends it as by default.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Ranges that can be watched at a time: regions of all devices together.
pub const MAX_WATCHED: usize = 4096;

struct WatchSlot {
    /// Start address; 0 when free, 1 while being set up.
    start: AtomicUsize,
    len: AtomicUsize,
    hit: AtomicBool,
}

impl WatchSlot {
    /// The watched range, if it has `address`.
    fn holds(&self, address: usize) -> Option<(&WatchSlot, usize, usize)> {
        let start = self.start.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Acquire);
        // The second look: another thread may have given the slot to another range in between.
        let holds = start > TAKEN && address.wrapping_sub(start) < len && self.start.load(Ordering::Acquire) == start;
        holds.then_some((self, start, len))
    }
}

static SLOTS: [WatchSlot; MAX_WATCHED] =
    [const { WatchSlot { start: AtomicUsize::new(0), len: AtomicUsize::new(0), hit: AtomicBool::new(false) } };
        MAX_WATCHED];
static INSTALL: Once = Once::new();

const FREE: usize = 0;
const TAKEN: usize = 1;

/// A watched range. Drop it before the range is unmapped.
#[derive(Debug)]
pub struct Watch(usize);

impl Watch {
    /// Whether a page of the range was lost.
    pub fn hit(&self) -> bool {
        SLOTS[self.0].hit.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        SLOTS[self.0].start.store(FREE, Ordering::Release);
    }
}

/// Watches `len` bytes of mapped memory at `start`. `None` when the table is full: the range then is not protected.
pub(crate) fn watch(start: usize, len: usize) -> Option<Watch> {
    INSTALL.call_once(install);
    let free =
        |slot: &&WatchSlot| slot.start.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok();
    let index = SLOTS.iter().position(|slot| free(&slot))?;
    SLOTS[index].hit.store(false, Ordering::Relaxed);
    SLOTS[index].len.store(len, Ordering::Release);
    SLOTS[index].start.store(start, Ordering::Release);
    Some(Watch(index))
}

fn install() {
    // SAFETY: a sigaction of zeros is a valid value; the handler below uses only async-signal-safe calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let address = unsafe { (*info).si_addr() } as usize;
    if let Some((slot, start, len)) = SLOTS.iter().find_map(|slot| slot.holds(address)) {
        // The mark first: a thread that reads one of the zeros then sees the mark.
        slot.hit.store(true, Ordering::SeqCst);
        if overlay(start, len) {
            return;
        }
    }
    // Not of a watched range: back to the default, and the access faults again.
    // SAFETY: sets a signal's default disposition.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Replaces a whole watched range by zeroed private memory: the device is lost anyway, and huge pages need no care.
fn overlay(start: usize, len: usize) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the range is a live mapping of this process, since its watch is dropped before it is unmapped; `MAP_FIXED` replaces
    // nothing else.
    let got = unsafe { libc::mmap(start as *mut _, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    got != libc::MAP_FAILED
}
