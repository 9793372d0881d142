//! Where a channel and its supervisor meet: atomics and two mailboxes of one place. The worker's side never waits.

use crate::channel::IoLink;
use crate::event::Event;
use crate::io::{Epoll, EventFd};
use clock::Cycles;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Locks for control threads; a panic elsewhere leaves the data usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// What channels are to do with requests that cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// Hold them.
    Hold = 0,
    /// Fail them, as soon as that is safe.
    Fail = 1,
}

/// Takes the events of a controller; called on its supervisor thread.
pub type EventSink = Arc<dyn Fn(&Event) + Send + Sync>;

/// A count that workers raise on their slow paths.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What went wrong so far, over all channels of a controller.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) retried: Count,
    pub(crate) fenced: Count,
    pub(crate) lost: Count,
    pub(crate) digest_errors: Count,
    pub(crate) timeouts: Count,
}

/// What went wrong so far, over all channels of a controller: for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands sent again, after an error or a lost connection.
    pub retried: u64,
    /// Writes that were fenced.
    pub fenced: u64,
    /// I/O connections lost.
    pub lost: u64,
    /// Reads whose data digest did not match.
    pub digest_errors: u64,
    /// Commands that were aborted because they took too long.
    pub timeouts: u64,
}

/// What all channels of a controller share with its supervisor.
pub(crate) struct Shared {
    /// Associations up to this one have let go of everything (written by the supervisor).
    released: AtomicU64,
    /// The last association whose writes in flight nobody waits for any more (written by channels as they are dropped). Until
    /// it is released no queue is connected: what it may still execute must not come after the writes of the next channel.
    abandoned: AtomicU64,
    verdict: AtomicU8,
    /// An I/O command was answered since the supervisor last looked.
    traffic: AtomicBool,
    /// The QID that was given out last.
    last_queue: AtomicU16,
    pub(crate) ports: Mutex<Vec<Arc<Port>>>,
    pub(crate) sink: EventSink,
    pub(crate) counters: Counts,
    /// Wakes the supervisor; absent under virtual time.
    wake: Option<EventFd>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("released", &self.released)
            .field("verdict", &self.verdict())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(sink: EventSink, wake: Option<EventFd>) -> Shared {
        Shared {
            released: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            verdict: AtomicU8::new(Verdict::Hold as u8),
            traffic: AtomicBool::new(false),
            last_queue: AtomicU16::new(0),
            ports: Mutex::new(Vec::new()),
            sink,
            counters: Counts::default(),
            wake,
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        let Counts { retried, fenced, lost, digest_errors, timeouts } = &self.counters;
        Counters {
            retried: retried.get(),
            fenced: fenced.get(),
            lost: lost.get(),
            digest_errors: digest_errors.get(),
            timeouts: timeouts.get(),
        }
    }

    #[inline]
    pub(crate) fn released(&self) -> u64 {
        self.released.load(Ordering::Acquire)
    }

    pub(crate) fn release(&self, association: u64) {
        self.released.fetch_max(association, Ordering::AcqRel);
        self.wake_channels();
    }

    pub(crate) fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Acquire)
    }

    pub(crate) fn abandon(&self, association: u64) {
        self.abandoned.fetch_max(association, Ordering::AcqRel);
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.verdict.load(Ordering::Acquire) == Verdict::Hold as u8 { Verdict::Hold } else { Verdict::Fail }
    }

    pub(crate) fn set_verdict(&self, verdict: Verdict) {
        if self.verdict.swap(verdict as u8, Ordering::AcqRel) != verdict as u8 {
            self.wake_channels();
        }
    }

    #[inline]
    pub(crate) fn note_traffic(&self) {
        // A load first: a store each time would move the line between cores.
        if !self.traffic.load(Ordering::Relaxed) {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn take_traffic(&self) -> bool {
        self.traffic.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn last_queue(&self) -> u16 {
        self.last_queue.load(Ordering::Relaxed)
    }

    pub(crate) fn set_last_queue(&self, queue: u16) {
        self.last_queue.store(queue, Ordering::Relaxed);
    }

    pub(crate) fn wake_supervisor(&self) {
        if let Some(wake) = &self.wake {
            wake.signal();
        }
    }

    pub(crate) fn wake_fd(&self) -> Option<&EventFd> {
        self.wake.as_ref()
    }

    fn wake_channels(&self) {
        lock(&self.ports).iter().for_each(|port| port.wake_channel());
    }

    /// Requests that wait in all channels, and when the oldest of them was submitted.
    pub(crate) fn held(&self) -> (u64, Cycles) {
        let ports = lock(&self.ports);
        let held = ports.iter().map(|port| u64::from(port.held.load(Ordering::Relaxed))).sum();
        let oldest = ports.iter().map(|port| port.oldest.load(Ordering::Relaxed)).min();
        (held, Cycles(oldest.unwrap_or(u64::MAX)))
    }
}

/// How a channel sleeps: one descriptor for its connection and for what the supervisor has to say.
#[derive(Debug)]
struct Wake {
    set: Epoll,
    signal: EventFd,
}

/// One channel, as its supervisor sees it.
#[derive(Debug)]
pub(crate) struct Port {
    /// QID.
    pub(crate) queue: u16,
    /// A connected queue for the channel.
    incoming: Mutex<Option<(u64, IoLink)>>,
    has_incoming: AtomicBool,
    /// A lost queue, to be freed off the poll core.
    retired: Mutex<Option<IoLink>>,
    /// The association whose queue the channel has lost.
    lost: AtomicU64,
    /// A command to abort: its CID and a bit above it, 0 for none.
    abort: AtomicU32,
    /// The association that must be reset: an abort was of no use.
    reset: AtomicU64,
    /// The channel is gone.
    closed: AtomicBool,
    /// Requests that wait for a connection or for a fence (written by the channel).
    held: AtomicU32,
    /// When the oldest of them was submitted.
    oldest: AtomicU64,
    signalled: AtomicBool,
    wake: Option<Wake>,
}

impl Port {
    /// A port for I/O queue `queue`; with descriptors to sleep on unless time is virtual.
    pub(crate) fn new(queue: u16, with_wake: bool) -> io::Result<Port> {
        let wake = if with_wake {
            let (set, signal) = (Epoll::new()?, EventFd::new()?);
            set.add(signal.as_raw_fd())?;
            Some(Wake { set, signal })
        } else {
            None
        };
        Ok(Port {
            queue,
            incoming: Mutex::new(None),
            has_incoming: AtomicBool::new(false),
            retired: Mutex::new(None),
            lost: AtomicU64::new(0),
            abort: AtomicU32::new(0),
            reset: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            held: AtomicU32::new(0),
            oldest: AtomicU64::new(u64::MAX),
            signalled: AtomicBool::new(false),
            wake,
        })
    }

    // The supervisor's side.

    /// Hands over a connected queue of `association`.
    pub(crate) fn deliver(&self, association: u64, link: IoLink) {
        if let (Some(wake), Some(fd)) = (&self.wake, link.wire().fd()) {
            // Where this fails the channel still polls; it only cannot sleep on the connection.
            let _ = wake.set.add(fd);
        }
        *lock(&self.incoming) = Some((association, link));
        self.has_incoming.store(true, Ordering::Release);
        self.wake_channel();
    }

    /// Frees what the channel gave back.
    pub(crate) fn bury(&self) {
        let retired = lock(&self.retired).take();
        drop(retired);
    }

    pub(crate) fn lost_association(&self) -> u64 {
        self.lost.load(Ordering::Acquire)
    }

    pub(crate) fn take_abort(&self) -> Option<u16> {
        let abort = self.abort.swap(0, Ordering::AcqRel);
        (abort != 0).then_some(abort as u16)
    }

    pub(crate) fn reset_association(&self) -> u64 {
        self.reset.load(Ordering::Acquire)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn wake_channel(&self) {
        if let Some(wake) = &self.wake {
            self.signalled.store(true, Ordering::Release);
            wake.signal.signal();
        }
    }

    // The channel's side.

    /// A connected queue, if one came.
    #[inline]
    pub(crate) fn take_incoming(&self) -> Option<(u64, IoLink)> {
        if !self.has_incoming.load(Ordering::Acquire) {
            return None;
        }
        let mut incoming = self.incoming.try_lock().ok()?;
        self.has_incoming.store(false, Ordering::Release);
        incoming.take()
    }

    /// The queue of `association` is lost; it is freed elsewhere.
    pub(crate) fn retire(&self, association: u64, link: IoLink) {
        if let Ok(mut retired) = self.retired.try_lock() {
            *retired = Some(link);
        }
        self.lost.store(association, Ordering::Release);
    }

    /// Asks for an abort of `cid`. Whether it was taken: one at a time.
    pub(crate) fn ask_abort(&self, cid: u16) -> bool {
        let ask = u32::from(cid) | 1 << 16;
        self.abort.compare_exchange(0, ask, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn ask_reset(&self, association: u64) {
        self.reset.store(association, Ordering::Release);
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn report_held(&self, held: usize, oldest: Cycles) {
        self.held.store(held as u32, Ordering::Relaxed);
        self.oldest.store(oldest.0, Ordering::Relaxed);
    }

    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.wake.as_ref().map(|wake| wake.set.as_raw_fd())
    }

    #[inline]
    pub(crate) fn clear_wake(&self) {
        if self.signalled.load(Ordering::Acquire)
            && let Some(wake) = &self.wake
        {
            self.signalled.store(false, Ordering::Release);
            wake.signal.clear();
        }
    }
}
