//! What NVMe adds to the events of an initiator.

use std::fmt;

/// A change of a controller: of its association, or one of NVMe's own.
pub type Event = initiator::Event<NvmeEvent>;

/// Receives the events of a controller; called on its supervisor thread.
pub type EventSink = initiator::EventSink<NvmeEvent>;

/// A change that only NVMe has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NvmeEvent {
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
        /// The cause.
        reason: String,
    },
}

impl From<NvmeEvent> for Event {
    fn from(event: NvmeEvent) -> Event {
        Event::Protocol(event)
    }
}

impl fmt::Display for NvmeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NvmeEvent::CommandTimeout { queue } => write!(f, "a command on I/O queue {queue} timed out"),
            NvmeEvent::NamespaceAdded { nsid } => write!(f, "namespace {nsid} added"),
            NvmeEvent::NamespaceRemoved { nsid } => write!(f, "namespace {nsid} removed"),
            NvmeEvent::NamespaceResized { nsid, from, to } => {
                write!(f, "namespace {nsid} resized from {from} to {to} blocks")
            }
            NvmeEvent::NamespaceRefused { nsid, reason } => write!(f, "namespace {nsid} cannot be used: {reason}"),
        }
    }
}
