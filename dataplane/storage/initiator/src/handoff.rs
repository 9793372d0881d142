//! Where a channel and its supervisor meet: atomics and two mailboxes of one place. The worker's side never waits.

use clock::Cycles;
use crossbeam::queue::ArrayQueue;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use transport::io::{Epoll, EventFd};

/// The treatment of requests that cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HoldPolicy {
    /// Hold the requests.
    Hold = 0,
    /// Fail the requests, as soon as that is safe.
    Fail = 1,
}

/// The [`HoldPolicy`] that a supervisor sets and channels read.
#[derive(Debug, Default)]
pub struct HoldPolicyCell(AtomicU8);

impl HoldPolicyCell {
    /// The policy now.
    pub fn get(&self) -> HoldPolicy {
        if self.0.load(Ordering::Acquire) == HoldPolicy::Hold as u8 { HoldPolicy::Hold } else { HoldPolicy::Fail }
    }

    /// Sets the policy. Returns whether it changed: then channels are to be woken.
    pub fn set(&self, policy: HoldPolicy) -> bool {
        self.0.swap(policy as u8, Ordering::AcqRel) != policy as u8
    }
}

/// How a channel sleeps: one descriptor for its connection and for messages of the supervisor.
#[derive(Debug)]
struct Wake {
    set: Epoll,
    signal: EventFd,
}

/// One channel, as its supervisor sees it: carries a connected queue `Q` to the channel and a lost queue `L` back.
#[derive(Debug)]
pub struct QueueHandoff<Q, L> {
    incoming: ArrayQueue<Q>,
    has_incoming: AtomicBool,
    lost: ArrayQueue<L>,
    closed: AtomicBool,
    /// Requests that wait for a connection or for a fence (written by the channel).
    held: AtomicU32,
    /// When the oldest of these requests was submitted.
    oldest: AtomicU64,
    signalled: AtomicBool,
    wake: Option<Wake>,
}

impl<Q, L> QueueHandoff<Q, L> {
    /// A hand-off for one channel; with descriptors to sleep on unless time is virtual.
    pub fn new(with_wake: bool) -> io::Result<QueueHandoff<Q, L>> {
        let wake = if with_wake {
            let (set, signal) = (Epoll::new()?, EventFd::new()?);
            set.add(signal.as_raw_fd())?;
            Some(Wake { set, signal })
        } else {
            None
        };
        Ok(QueueHandoff {
            incoming: ArrayQueue::new(1),
            has_incoming: AtomicBool::new(false),
            lost: ArrayQueue::new(1),
            closed: AtomicBool::new(false),
            held: AtomicU32::new(0),
            oldest: AtomicU64::new(Cycles::NEVER.0),
            signalled: AtomicBool::new(false),
            wake,
        })
    }

    // The supervisor's side.

    /// Hands over a connected queue; `fd` is the descriptor of its connection.
    pub fn deliver(&self, queue: Q, fd: Option<RawFd>) {
        if let (Some(wake), Some(fd)) = (&self.wake, fd) {
            // Where this fails the channel still polls; it only cannot sleep on the connection.
            let _ = wake.set.add(fd);
        }
        self.incoming.force_push(queue);
        self.has_incoming.store(true, Ordering::Release);
        self.wake_channel();
    }

    /// Takes the queue that the channel lost, if it lost one.
    pub fn take_lost(&self) -> Option<L> {
        self.lost.pop()
    }

    /// Whether the channel was dropped.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Gives the hand-off to another channel after the last one was dropped.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// Makes the channel poll.
    pub fn wake_channel(&self) {
        if let Some(wake) = &self.wake {
            wake.signal.signal();
            // Last: a channel that sees the flag finds the signal to clear.
            self.signalled.store(true, Ordering::Release);
        }
    }

    /// Requests that wait in the channel, and when the oldest of them was submitted.
    pub fn held(&self) -> (u64, Cycles) {
        (self.held.load(Ordering::Relaxed).into(), Cycles(self.oldest.load(Ordering::Relaxed)))
    }

    // The channel's side.

    /// Takes a connected queue, if one came.
    #[inline]
    pub fn take_incoming(&self) -> Option<Q> {
        if !self.has_incoming.load(Ordering::Acquire) {
            return None;
        }
        self.has_incoming.store(false, Ordering::Release);
        self.incoming.pop()
    }

    /// Gives a lost queue back; the supervisor frees it off the poll core.
    pub fn give_back(&self, lost: L) {
        self.lost.force_push(lost);
    }

    /// Says that the channel is dropped.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Publishes how many requests wait, and when the oldest of them was submitted.
    pub fn report_held(&self, held: usize, oldest: Cycles) {
        self.held.store(held as u32, Ordering::Relaxed);
        self.oldest.store(oldest.0, Ordering::Relaxed);
    }

    /// The descriptor to sleep on.
    pub fn fd(&self) -> Option<RawFd> {
        self.wake.as_ref().map(|wake| wake.set.as_raw_fd())
    }

    /// Takes note of a wake-up.
    #[inline]
    pub fn clear_wake(&self) {
        if self.signalled.load(Ordering::Acquire)
            && let Some(wake) = &self.wake
        {
            self.signalled.store(false, Ordering::Release);
            wake.signal.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_go_to_the_channel_and_back() {
        let handoff: QueueHandoff<u32, &str> = QueueHandoff::new(true).unwrap();
        assert_eq!(handoff.take_incoming(), None);
        handoff.deliver(1, None);
        handoff.deliver(2, None);
        assert_eq!((handoff.take_incoming(), handoff.take_incoming()), (Some(2), None), "the newest counts");
        handoff.give_back("lost");
        assert_eq!((handoff.take_lost(), handoff.take_lost()), (Some("lost"), None));
        handoff.close();
        assert!(handoff.is_closed());
    }

    #[test]
    fn a_policy_tells_whether_it_changed() {
        let policy = HoldPolicyCell::default();
        assert_eq!((policy.get(), policy.set(HoldPolicy::Hold)), (HoldPolicy::Hold, false));
        assert!(policy.set(HoldPolicy::Fail) && policy.get() == HoldPolicy::Fail);
    }
}
