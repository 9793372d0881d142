//! The story of a disk, for the event log.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Something an operator wants to know. Sessions are counted from 0, one a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session is up.
    Connected {
        /// Which one.
        session: u16,
        /// Attempts since it was lost; 1 the first time.
        attempt: u32,
        /// Since it was lost, or since attach.
        after: Duration,
    },
    /// A session is lost.
    Lost {
        /// Which one.
        session: u16,
        /// Why.
        reason: String,
    },
    /// An attempt to log in failed.
    AttemptFailed {
        /// Which session.
        session: u16,
        /// Which attempt.
        attempt: u32,
        /// Why.
        reason: String,
        /// Until the next one.
        next: Duration,
        /// I/Os that wait.
        held: u64,
        /// Age of the oldest of them.
        oldest: Duration,
    },
    /// Held I/Os fail from now on (`fast_fail`).
    FailingFast {
        /// Of which session.
        session: u16,
    },
    /// A session is given up (`loss_timeout`): its I/O fails.
    GivenUp {
        /// Which one.
        session: u16,
    },
    /// The disk has another size.
    Resized {
        /// Blocks before.
        from: u64,
        /// Blocks now.
        to: u64,
    },
    /// The target has other units than before.
    LunsChanged,
}

/// Takes the events of a disk; called on its supervisor thread.
pub type EventSink = Arc<dyn Fn(&Event) + Send + Sync>;

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Connected { session, attempt, after } => {
                write!(f, "session {session} connected with attempt {attempt} after {after:.1?}")
            }
            Event::Lost { session, reason } => write!(f, "session {session} lost: {reason}"),
            Event::AttemptFailed { session, attempt, reason, next, held, oldest } => write!(
                f,
                "session {session}, attempt {attempt} failed: {reason}; next in {next:.1?}, {held} I/Os held, the oldest \
                 for {oldest:.1?}"
            ),
            Event::FailingFast { session } => write!(f, "held I/Os of session {session} fail from now on"),
            Event::GivenUp { session } => write!(f, "session {session} given up"),
            Event::Resized { from, to } => write!(f, "resized from {from} to {to} blocks"),
            Event::LunsChanged => f.write_str("the target's list of LUNs changed"),
        }
    }
}
