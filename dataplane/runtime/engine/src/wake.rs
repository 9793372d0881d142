//! What wakes a sleeping worker: an epoll set with an eventfd for mailboxes.

use crate::idle::SleepFlag;
use clock::Cycles;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Shared {
    epoll: OwnedFd,
    eventfd: OwnedFd,
    pub(crate) sleep: SleepFlag,
}

/// Wakes a worker for what was just put where it looks.
#[derive(Clone, Debug)]
pub struct Waker(pub(crate) Arc<Shared>);

/// The descriptors that wake a worker. Any thread may change the set.
#[derive(Clone, Debug)]
pub struct WakeSet(Arc<Shared>);

impl Waker {
    /// A waker of its own, for a loop that is not a worker of the engine.
    pub fn new() -> io::Result<Waker> {
        // SAFETY: `epoll_create1` creates a descriptor that no other owner has, or fails with -1, as `owned` requires.
        let epoll = unsafe { owned(libc::epoll_create1(libc::EPOLL_CLOEXEC))? };
        // SAFETY: `eventfd` creates a descriptor that no other owner has, or fails with -1, as `owned` requires.
        let eventfd = unsafe { owned(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))? };
        let shared = Arc::new(Shared { epoll, eventfd, sleep: SleepFlag::new() });
        let waker = Waker(shared);
        waker.wake_set().add(waker.0.eventfd.as_raw_fd())?;
        Ok(waker)
    }

    /// Wakes the worker if it sleeps.
    pub fn wake(&self) {
        if self.0.sleep.must_wake() {
            let one = 1_u64.to_ne_bytes();
            // SAFETY: writes 8 bytes of ours to our eventfd. It can only fail when its count is full, and then it is readable.
            unsafe { libc::write(self.0.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// The set of the same worker.
    pub fn wake_set(&self) -> WakeSet {
        WakeSet(self.0.clone())
    }
}

impl WakeSet {
    /// From now on `fd` wakes the worker whenever it becomes readable (edge triggered: no thread has to read it).
    pub fn add(&self, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: fd as u64 };
        self.control(libc::EPOLL_CTL_ADD, fd, &mut event)
    }

    /// `fd` no longer wakes the worker. Closing a descriptor of which there is no duplicate does the same.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())
    }

    fn control(&self, op: i32, fd: RawFd, event: *mut libc::epoll_event) -> io::Result<()> {
        // SAFETY: `event` is null or points to a live event; a bad `fd` is an error, not undefined.
        match unsafe { libc::epoll_ctl(self.0.epoll.as_raw_fd(), op, fd, event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Shared {
    /// Sleeps until something wakes the worker or `span` is over.
    pub(crate) fn sleep(&self, span: Cycles) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let span = if span == Cycles::NEVER { Duration::from_secs(3600) } else { span.to_duration() };
        let timeout = libc::timespec { tv_sec: span.as_secs() as i64, tv_nsec: i64::from(span.subsec_nanos()) };
        // SAFETY: all pointers live across the call; no signal mask is given. Which events came does not matter: every source
        // is polled after a sleep. A signal ends the sleep early, which is harmless.
        unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len(),
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            );
        }
    }
}

/// # Safety
/// `fd` is a descriptor without another owner, or negative after a failed call.
unsafe fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is open and has no other owner: the caller guarantees it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
