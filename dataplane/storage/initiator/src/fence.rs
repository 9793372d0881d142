//! The fence between a lost connection and the next one.
//!
//! A write that was in flight when a connection died may still be executed by the target. A copy of it that is executed after a
//! newer write to the same place would destroy that one. So such a write is sent again, and a channel that lost one is followed
//! by another, only after the target has let go of the old connection. When that is, the protocol says: an NVMe controller
//! confirms a reset or its keep-alive time runs out; an iSCSI target ends the old session before it answers a login with the
//! same ISID. The supervisor then *releases* the connection.
//!
//! Connections are numbered upwards from 1, and released in that order.

use clock::Cycles;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The connections of which the target has let go, shared by a supervisor and its channels.
#[derive(Debug, Default)]
pub struct Fence {
    /// The target has let go of everything of connections up to this one (written by the supervisor).
    released: AtomicU64,
    /// The last connection whose writes in flight no channel waits for any more (written by channels as they are dropped).
    abandoned: AtomicU64,
}

impl Fence {
    /// The last connection of which the target has let go.
    #[inline]
    pub fn released(&self) -> u64 {
        self.released.load(Ordering::Acquire)
    }

    /// Supervisor: the target has let go of `connection` and of all before it.
    pub fn release(&self, connection: u64) {
        self.released.fetch_max(connection, Ordering::AcqRel);
    }

    /// Channel: it is dropped with writes in flight on `connection`. Until that is released no queue may be connected, as the
    /// writes of the next channel must come last.
    pub fn abandon(&self, connection: u64) {
        self.abandoned.fetch_max(connection, Ordering::AcqRel);
    }

    /// The last connection with writes in flight that a dropped channel left.
    pub fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Whether no new queue may be connected: the target may still execute writes of a channel that was dropped.
    pub fn blocks_new_queues(&self) -> bool {
        self.abandoned() > self.released()
    }
}

/// A lost connection of which the target may still execute commands.
#[derive(Debug)]
pub struct PendingFence {
    /// The connection.
    pub connection: u64,
    /// When the connection was cut.
    pub lost_at: Cycles,
    /// When the target must have let go of the connection.
    pub falls_at: Cycles,
    /// The target confirmed that it executes nothing any more; otherwise only time helps.
    pub confirmed: bool,
}

/// The supervisor's list of lost connections that are not released, oldest first.
#[derive(Debug, Default)]
pub struct PendingFences(VecDeque<PendingFence>);

impl PendingFences {
    /// Raises the fence of `connection`, which was cut at `now` and is released after `wait`.
    pub fn raise(&mut self, connection: u64, confirmed: bool, wait: Duration, now: Cycles) {
        let falls_at = now + Cycles::from(wait);
        self.0.push_back(PendingFence { connection, lost_at: now, falls_at, confirmed });
    }

    /// Releases the oldest connection if its time has come. Returns its fence.
    pub fn release_next(&mut self, fence: &Fence, now: Cycles) -> Option<PendingFence> {
        let fallen = self.0.pop_front_if(|pending| now >= pending.falls_at)?;
        fence.release(fallen.connection);
        Some(fallen)
    }

    /// When the next fence falls.
    pub fn deadline(&self) -> Cycles {
        self.0.front().map_or(Cycles::NEVER, |fence| fence.falls_at)
    }

    /// Whether the target has let go of all lost connections.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
