//! What iSCSI adds to the events of an initiator.

use std::fmt;

/// A change of a disk: of one of its sessions (numbered from 0, one a channel), or one of iSCSI's own.
pub type Event = initiator::Event<IscsiEvent>;

/// Receives the events of a disk; called on its supervisor thread.
pub type EventSink = initiator::EventSink<IscsiEvent>;

/// A change that only iSCSI has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IscsiEvent {
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

impl From<IscsiEvent> for Event {
    fn from(event: IscsiEvent) -> Event {
        Event::Protocol(event)
    }
}

impl fmt::Display for IscsiEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IscsiEvent::Resized { from, to } => write!(f, "resized from {from} to {to} blocks"),
            IscsiEvent::LunsChanged => f.write_str("the target's list of LUNs changed"),
        }
    }
}
