//! Waiting that a stop always ends.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A stop was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

/// A flag to stop and an eventfd that ends any wait.
#[derive(Debug)]
pub(crate) struct Waiter {
    stop: AtomicBool,
    wake: OwnedFd,
}

impl Waiter {
    pub(crate) fn new() -> io::Result<Waiter> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waiter { stop: AtomicBool::new(false), wake })
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Ends the current or the next wait.
    pub(crate) fn wake(&self) {
        // It fails only when the counter is full, and then the wait ends anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits until `fd` is readable; other wake-ups are ignored.
    pub(crate) fn readable(&self, fd: impl AsFd) -> Result<(), Stopped> {
        while self.wait(&[(fd.as_fd(), PollFlags::IN)], None)? == 0 {}
        Ok(())
    }

    /// Waits until `fd` is writable; other wake-ups are ignored.
    pub(crate) fn writable(&self, fd: impl AsFd) -> Result<(), Stopped> {
        while self.wait(&[(fd.as_fd(), PollFlags::OUT)], None)? == 0 {}
        Ok(())
    }

    /// Sleeps.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Stopped> {
        let end = Instant::now() + time;
        while let Some(rest) = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            self.wait(&[], Some(rest))?;
        }
        Ok(())
    }

    /// Waits for one of the descriptors, a wake-up or the time. Returns a bit for each descriptor that is ready or broken.
    pub(crate) fn wait(
        &self,
        wanted: &[(BorrowedFd<'_>, PollFlags)],
        timeout: Option<Duration>,
    ) -> Result<u32, Stopped> {
        // The wake-up of a stop may have been taken by an earlier wait.
        if self.is_stopped() {
            return Err(Stopped);
        }
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        let mut fds: Vec<PollFd<'_>> =
            wanted.iter().map(|&(fd, events)| PollFd::from_borrowed_fd(fd, events)).collect();
        fds.push(PollFd::new(&self.wake, PollFlags::IN));
        if let Err(error) = poll(&mut fds, timeout.as_ref())
            && error != Errno::INTR
        {
            // Short of memory: look again a little later.
            std::thread::sleep(Duration::from_millis(1));
        }
        if fds.pop().is_some_and(|wake| !wake.revents().is_empty()) {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        if self.is_stopped() {
            return Err(Stopped);
        }
        let bits = fds.iter().enumerate().map(|(i, fd)| u32::from(!fd.revents().is_empty()) << i);
        Ok(bits.sum())
    }
}
