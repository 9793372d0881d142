//! Events for the operator: what happens to a connection is the same for every protocol, the rest is the protocol's own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A change that an operator wants to know of; `P` has those of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<P> {
    /// A connection to the target changed.
    Connection {
        /// The session, for protocols with one a channel.
        session: Option<u16>,
        /// The change.
        event: ConnectionEvent,
    },
    /// The protocol reports something of its own.
    Protocol(P),
}

/// A change of a connection to the target: of an NVMe association, of an iSCSI session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// The connection is up.
    Connected {
        /// Attempts since the connection was lost; 1 the first time.
        attempt: u32,
        /// Time since the connection was lost, or since attach.
        after: Duration,
    },
    /// The connection is lost.
    Lost {
        /// The cause.
        reason: String,
    },
    /// An attempt to connect failed.
    AttemptFailed {
        /// The number of the attempt.
        attempt: u32,
        /// The cause.
        reason: String,
        /// Time until the next attempt.
        next: Duration,
        /// Requests that wait.
        held: u64,
        /// Age of the oldest of these requests.
        oldest: Duration,
    },
    /// The target executes nothing of a lost connection any more: its writes are sent again.
    FenceReleased {
        /// The number of the connection (NVMe: the association).
        association: u64,
        /// The target confirmed it; otherwise its time was up.
        confirmed: bool,
        /// Time since the connection was lost.
        after: Duration,
    },
    /// Held requests fail from now on (`fast_io_fail_timeout_sec`).
    FailingFast,
    /// The connection is given up (`ctrlr_loss_timeout_sec`): its requests fail.
    GivenUp,
}

/// Receives the events of an initiator; called on its supervisor thread.
pub type EventSink<P> = Arc<dyn Fn(&Event<P>) + Send + Sync>;

/// A sink that ignores all events.
pub fn no_events<P>() -> EventSink<P> {
    Arc::new(|_: &Event<P>| {})
}

impl<P> From<ConnectionEvent> for Event<P> {
    fn from(event: ConnectionEvent) -> Event<P> {
        Event::Connection { session: None, event }
    }
}

impl<P: fmt::Display> fmt::Display for Event<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Connection { session: Some(session), event } => write!(f, "session {session}: {event}"),
            Event::Connection { session: None, event } => event.fmt(f),
            Event::Protocol(event) => event.fmt(f),
        }
    }
}

impl fmt::Display for ConnectionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionEvent::Connected { attempt, after } => {
                write!(f, "connected with attempt {attempt} after {after:.1?}")
            }
            ConnectionEvent::Lost { reason } => write!(f, "lost: {reason}"),
            ConnectionEvent::AttemptFailed { attempt, reason, next, held, oldest } => write!(
                f,
                "attempt {attempt} failed: {reason}; next in {next:.1?}, {held} I/Os held, the oldest for {oldest:.1?}"
            ),
            ConnectionEvent::FenceReleased { association, confirmed, after } => {
                let how =
                    if *confirmed { "the old controller confirmed its reset" } else { "its quiesce time is over" };
                write!(f, "writes of association {association} are sent again after {after:.1?}: {how}")
            }
            ConnectionEvent::FailingFast => f.write_str("held I/Os fail from now on"),
            ConnectionEvent::GivenUp => f.write_str("given up"),
        }
    }
}
