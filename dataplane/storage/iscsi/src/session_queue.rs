//! Where a channel and the disk's supervisor meet: one for each session.

use crate::connection::ConnectionError;
use crate::session::Link;
use clock::Cycles;
use initiator::{EventCounter, Fence, HoldPolicy, HoldPolicyCell, QueueHandoff, SupervisorWake};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A session that ended, on its way back to the supervisor.
#[derive(Debug)]
pub(crate) struct LostLink {
    pub(crate) link: Box<Link>,
    pub(crate) error: ConnectionError,
    /// Writes wait to be sent again.
    pub(crate) writes: bool,
}

/// The state that all channels of a disk share with its supervisor.
#[derive(Debug)]
pub(crate) struct DiskState {
    /// Blocks of the disk, as last reported by the target.
    pub(crate) num_blocks: AtomicU64,
    /// The list of units changed.
    pub(crate) luns_changed: AtomicBool,
    /// A worker is to ask the target for the size.
    pub(crate) rescan_wanted: AtomicBool,
    pub(crate) wake: Arc<SupervisorWake>,
}

impl DiskState {
    pub(crate) fn new(num_blocks: u64, wake: Arc<SupervisorWake>) -> DiskState {
        DiskState {
            num_blocks: AtomicU64::new(num_blocks),
            luns_changed: AtomicBool::new(false),
            rescan_wanted: AtomicBool::new(false),
            wake,
        }
    }

    /// Takes over the size that the target reported on `link`.
    pub(crate) fn note_size(&self, link: &Link) {
        if let Some(info) = link.connection.info() {
            self.num_blocks.store(info.geometry.num_blocks, Ordering::Release);
        }
    }
}

/// One channel's session: made by the supervisor again and again, used by the channel.
#[derive(Debug)]
pub(crate) struct SessionQueue {
    pub(crate) handoff: QueueHandoff<Box<Link>, LostLink>,
    /// Which incarnations of the session the target has ended.
    pub(crate) fence: Fence,
    policy: HoldPolicyCell,
    pub(crate) aborts: EventCounter,
    pub(crate) retries: EventCounter,
}

impl SessionQueue {
    /// A queue with descriptors to sleep on, or without, under virtual time.
    pub(crate) fn new(with_wake: bool) -> io::Result<SessionQueue> {
        Ok(SessionQueue {
            handoff: QueueHandoff::new(with_wake)?,
            fence: Fence::default(),
            policy: HoldPolicyCell::default(),
            aborts: EventCounter::default(),
            retries: EventCounter::default(),
        })
    }

    /// Hands over a session. Its login ended the incarnations before it (RFC 7143 section 6.3.5): their fences fall.
    pub(crate) fn deliver(&self, link: Box<Link>) {
        self.fence.release(link.incarnation - 1);
        self.policy.set(HoldPolicy::Hold);
        let fd = link.stream.fd();
        self.handoff.deliver(link, fd);
    }

    pub(crate) fn set_policy(&self, policy: HoldPolicy) {
        if self.policy.set(policy) {
            self.handoff.wake_channel();
        }
    }

    pub(crate) fn policy(&self) -> HoldPolicy {
        self.policy.get()
    }

    /// Requests held, and the age of the oldest.
    pub(crate) fn held(&self, now: Cycles) -> (u64, Duration) {
        let (held, oldest) = self.handoff.held();
        (held, now.since(oldest).to_duration())
    }
}
