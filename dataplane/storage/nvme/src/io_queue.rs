//! The I/O queues of a controller, as its supervisor and its channels see them.

use crate::channel::IoLink;
use crate::event::EventSink;
use clock::Cycles;
use initiator::{EventCounter, Fence, HoldPolicy, HoldPolicyCell, QueueHandoff, SupervisorWake};
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Errors and retries over all channels of a controller.
#[derive(Debug, Default)]
pub(crate) struct EventCounters {
    pub(crate) retried: EventCounter,
    pub(crate) fenced: EventCounter,
    pub(crate) lost: EventCounter,
    pub(crate) digest_errors: EventCounter,
    pub(crate) timeouts: EventCounter,
}

/// Errors and retries over all channels of a controller: for metrics.
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

/// The state that all channels of a controller share with its supervisor.
pub(crate) struct IoQueues {
    /// Which associations have let go of what was in flight.
    pub(crate) fence: Fence,
    policy: HoldPolicyCell,
    /// An I/O command was answered since the supervisor last looked.
    traffic: AtomicBool,
    /// The QID that was given out last.
    last_qid: AtomicU16,
    pub(crate) queues: Mutex<Vec<Arc<IoQueue>>>,
    pub(crate) sink: EventSink,
    pub(crate) counters: EventCounters,
    pub(crate) wake: Arc<SupervisorWake>,
}

impl fmt::Debug for IoQueues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoQueues").field("fence", &self.fence).field("policy", &self.policy()).finish_non_exhaustive()
    }
}

impl IoQueues {
    pub(crate) fn new(sink: EventSink, wake: Arc<SupervisorWake>) -> IoQueues {
        IoQueues {
            fence: Fence::default(),
            policy: HoldPolicyCell::default(),
            traffic: AtomicBool::new(false),
            last_qid: AtomicU16::new(0),
            queues: Mutex::new(Vec::new()),
            sink,
            counters: EventCounters::default(),
            wake,
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        let EventCounters { retried, fenced, lost, digest_errors, timeouts } = &self.counters;
        Counters {
            retried: retried.get(),
            fenced: fenced.get(),
            lost: lost.get(),
            digest_errors: digest_errors.get(),
            timeouts: timeouts.get(),
        }
    }

    pub(crate) fn policy(&self) -> HoldPolicy {
        self.policy.get()
    }

    pub(crate) fn set_policy(&self, policy: HoldPolicy) {
        if self.policy.set(policy) {
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

    pub(crate) fn wake_channels(&self) {
        self.queues.lock().iter().for_each(|queue| queue.handoff.wake_channel());
    }

    /// Requests that wait in all channels, and when the oldest of them was submitted.
    pub(crate) fn held(&self) -> (u64, Cycles) {
        let queues = self.queues.lock();
        let held = queues.iter().map(|queue| queue.handoff.held());
        held.fold((0, Cycles::NEVER), |(sum, oldest), (held, since)| (sum + held, oldest.min(since)))
    }

    /// Takes a free I/O queue of `granted`: the one that was free the longest, as the target needs time to let go of the last
    /// user's. `None` where all are in use.
    pub(crate) fn open(&self, granted: u16, with_wake: bool) -> io::Result<Option<Arc<IoQueue>>> {
        let mut queues = self.queues.lock();
        let last = self.last_qid.load(Ordering::Relaxed);
        let mut in_turn = (0..granted).map(|ahead| (last + ahead) % granted + 1);
        let Some(qid) = in_turn.find(|&qid| queues.iter().all(|queue| queue.qid != qid)) else { return Ok(None) };
        let queue = Arc::new(IoQueue::new(qid, with_wake)?);
        queues.push(queue.clone());
        self.last_qid.store(qid, Ordering::Relaxed);
        Ok(Some(queue))
    }
}

/// One channel's I/O queue: connected by the supervisor under each association, used by the channel.
#[derive(Debug)]
pub(crate) struct IoQueue {
    pub(crate) qid: u16,
    /// To the channel: a connected queue and its association. Back: a lost queue, to be freed off the poll core.
    pub(crate) handoff: QueueHandoff<(u64, IoLink), IoLink>,
    /// The association whose queue the channel has lost.
    lost: AtomicU64,
    /// A command to abort: its CID and a bit above it, 0 for none.
    abort: AtomicU32,
    /// The association that must be reset: an abort was of no use.
    reset: AtomicU64,
}

impl IoQueue {
    fn new(qid: u16, with_wake: bool) -> io::Result<IoQueue> {
        Ok(IoQueue {
            qid,
            handoff: QueueHandoff::new(with_wake)?,
            lost: AtomicU64::new(0),
            abort: AtomicU32::new(0),
            reset: AtomicU64::new(0),
        })
    }

    // The supervisor's side.

    /// Hands over a connected queue of `association`.
    pub(crate) fn deliver(&self, association: u64, link: IoLink) {
        let fd = link.stream().fd();
        self.handoff.deliver((association, link), fd);
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

    // The channel's side.

    /// The queue of `association` is lost; it is freed elsewhere.
    pub(crate) fn give_back(&self, association: u64, link: IoLink) {
        self.handoff.give_back(link);
        self.lost.store(association, Ordering::Release);
    }

    /// Asks for an abort of `cid`. Whether it was taken: one at a time.
    pub(crate) fn request_abort(&self, cid: u16) -> bool {
        let request = u32::from(cid) | 1 << 16;
        self.abort.compare_exchange(0, request, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn request_reset(&self, association: u64) {
        self.reset.store(association, Ordering::Release);
    }
}
