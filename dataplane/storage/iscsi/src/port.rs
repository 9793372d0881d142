//! Where a channel and its supervisor meet: atomics and two mailboxes of one place. The worker's side never waits.

use crate::connection::ConnectionError;
use crate::io::{Epoll, EventFd};
use crate::session::Link;
use clock::Cycles;
use crossbeam::queue::ArrayQueue;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// What a channel is to do with requests while it has no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// Hold them.
    Hold = 0,
    /// Fail them.
    Fail = 1,
}

/// A session that ended, on its way back to the supervisor.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) link: Box<Link>,
    pub(crate) error: ConnectionError,
    /// Writes wait to be sent again.
    pub(crate) writes: bool,
}

/// What all channels of a disk share with its supervisor.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Blocks of the disk, as last heard from the target.
    pub(crate) num_blocks: AtomicU64,
    /// The list of units changed.
    pub(crate) luns_changed: AtomicBool,
    /// A worker is to ask the target for the size.
    pub(crate) rescan_wanted: AtomicBool,
    /// Wakes the supervisor; absent under virtual time.
    pub(crate) wake: Option<EventFd>,
}

impl Shared {
    pub(crate) fn new(wake: Option<EventFd>) -> Shared {
        Shared {
            num_blocks: AtomicU64::new(0),
            luns_changed: AtomicBool::new(false),
            rescan_wanted: AtomicBool::new(false),
            wake,
        }
    }

    pub(crate) fn wake_supervisor(&self) {
        if let Some(wake) = &self.wake {
            wake.signal();
        }
    }
}

/// One channel's port.
#[derive(Debug)]
pub(crate) struct Port {
    /// To the worker: a session that is ready.
    ready: ArrayQueue<Box<Link>>,
    is_ready: AtomicBool,
    /// To the supervisor: a session that ended.
    lost: ArrayQueue<Lost>,
    verdict: AtomicU8,
    /// The channel was dropped: its session is to be logged out.
    pub(crate) closed: AtomicBool,
    /// Requests that wait for a session, and since when the oldest was taken; written by the worker.
    held: AtomicU32,
    oldest: AtomicU64,
    pub(crate) aborts: AtomicU64,
    pub(crate) retries: AtomicU64,
    wake: Option<(EventFd, Epoll)>,
}

impl Port {
    /// A port with descriptors to sleep on, or without, under virtual time.
    pub(crate) fn new(with_descriptors: bool) -> io::Result<Port> {
        let wake = if with_descriptors {
            let (event, epoll) = (EventFd::new()?, Epoll::new()?);
            epoll.add(event.as_raw_fd())?;
            Some((event, epoll))
        } else {
            None
        };
        Ok(Port {
            ready: ArrayQueue::new(1),
            is_ready: AtomicBool::new(false),
            lost: ArrayQueue::new(1),
            verdict: AtomicU8::new(Verdict::Hold as u8),
            closed: AtomicBool::new(false),
            held: AtomicU32::new(0),
            oldest: AtomicU64::new(0),
            aborts: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            wake,
        })
    }

    /// Supervisor: here is a session.
    pub(crate) fn hand_over(&self, link: Box<Link>) {
        if let (Some((_, epoll)), Some(fd)) = (&self.wake, link.wire.fd()) {
            // Without it the worker would not be woken by the target, but its deadlines still come.
            let _ = epoll.add(fd);
        }
        self.set_verdict(Verdict::Hold);
        self.ready.force_push(link);
        self.is_ready.store(true, Ordering::Release);
        self.wake_worker();
    }

    fn wake_worker(&self) {
        if let Some((event, _)) = &self.wake {
            event.signal();
        }
    }

    /// Worker: a session, if one came.
    #[inline]
    pub(crate) fn take_ready(&self) -> Option<Box<Link>> {
        if !self.is_ready.load(Ordering::Acquire) {
            return None;
        }
        self.is_ready.store(false, Ordering::Relaxed);
        self.clear_wake();
        self.ready.pop()
    }

    fn clear_wake(&self) {
        if let Some((event, _)) = &self.wake {
            event.clear();
        }
    }

    /// Worker: this session has ended. The supervisor takes it apart and makes another.
    pub(crate) fn give_back(&self, lost: Lost, shared: &Shared) {
        self.lost.force_push(lost);
        shared.wake_supervisor();
    }

    /// Supervisor: the session that ended, if one did.
    pub(crate) fn take_lost(&self) -> Option<Lost> {
        self.lost.pop()
    }

    pub(crate) fn set_verdict(&self, verdict: Verdict) {
        if self.verdict.swap(verdict as u8, Ordering::AcqRel) != verdict as u8 {
            self.wake_worker();
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.verdict.load(Ordering::Acquire) == Verdict::Fail as u8 { Verdict::Fail } else { Verdict::Hold }
    }

    pub(crate) fn set_held(&self, held: usize, oldest: Cycles) {
        self.held.store(held as u32, Ordering::Relaxed);
        self.oldest.store(oldest.0, Ordering::Relaxed);
    }

    /// Requests held, and the age of the oldest.
    pub(crate) fn held(&self, now: Cycles) -> (u64, Duration) {
        match self.held.load(Ordering::Relaxed) {
            0 => (0, Duration::ZERO),
            held => (held.into(), now.since(Cycles(self.oldest.load(Ordering::Relaxed))).to_duration()),
        }
    }

    pub(crate) fn wake_fd(&self) -> Option<RawFd> {
        self.wake.as_ref().map(|(_, epoll)| epoll.as_raw_fd())
    }
}
