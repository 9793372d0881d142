//! The story of a controller, for the event log.

use std::fmt;
use std::time::Duration;

/// Something an operator wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The controller is up.
    Connected {
        /// Attempts since it was lost; 1 the first time.
        attempt: u32,
        /// Since it was lost, or since attach.
        after: Duration,
    },
    /// The controller is lost.
    Lost {
        /// Why.
        reason: String,
    },
    /// An attempt to reconnect failed.
    AttemptFailed {
        /// Which one.
        attempt: u32,
        /// Why.
        reason: String,
        /// Until the next one.
        next: Duration,
        /// Requests that wait.
        held: u64,
        /// Age of the oldest of them.
        oldest: Duration,
    },
    /// The old controller has let go of what was in flight: held writes are sent again.
    FenceReleased {
        /// Which association.
        association: u64,
        /// The old controller confirmed it (CSTS.RDY = 0); else its time was up.
        confirmed: bool,
        /// Since the association was lost.
        after: Duration,
    },
    /// Held requests fail from now on (fast_io_fail_timeout_sec).
    FailingFast,
    /// The controller is given up (ctrlr_loss_timeout_sec).
    GivenUp,
    /// A command got no answer in time and is aborted.
    CommandTimeout {
        /// The I/O queue.
        queue: u16,
    },
    /// A namespace came.
    NamespaceAdded {
        /// NSID.
        nsid: u32,
    },
    /// A namespace went.
    NamespaceRemoved {
        /// NSID.
        nsid: u32,
    },
    /// A namespace has another size.
    NamespaceResized {
        /// NSID.
        nsid: u32,
        /// Blocks before.
        from: u64,
        /// Blocks now.
        to: u64,
    },
    /// A namespace cannot be used.
    NamespaceRefused {
        /// NSID.
        nsid: u32,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Connected { attempt, after } => write!(f, "connected with attempt {attempt} after {after:.1?}"),
            Event::Lost { reason } => write!(f, "lost: {reason}"),
            Event::AttemptFailed { attempt, reason, next, held, oldest } => write!(
                f,
                "attempt {attempt} failed: {reason}; next in {next:.1?}, {held} I/Os held, the oldest for {oldest:.1?}"
            ),
            Event::FenceReleased { association, confirmed, after } => {
                let how =
                    if *confirmed { "the old controller confirmed its reset" } else { "its quiesce time is over" };
                write!(f, "writes of association {association} are sent again after {after:.1?}: {how}")
            }
            Event::FailingFast => f.write_str("held I/Os fail from now on"),
            Event::GivenUp => f.write_str("given up"),
            Event::CommandTimeout { queue } => write!(f, "a command on I/O queue {queue} timed out"),
            Event::NamespaceAdded { nsid } => write!(f, "namespace {nsid} added"),
            Event::NamespaceRemoved { nsid } => write!(f, "namespace {nsid} removed"),
            Event::NamespaceResized { nsid, from, to } => {
                write!(f, "namespace {nsid} resized from {from} to {to} blocks")
            }
            Event::NamespaceRefused { nsid, reason } => write!(f, "namespace {nsid} cannot be used: {reason}"),
        }
    }
}
