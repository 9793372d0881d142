//! iSCSI ([RFC 7143]): a sans-IO initiator, its worker transport, and a target for tests and demos.
//!
//! [`IscsiDisk::attach`] logs in and looks at the unit, off the poll cores. The disk is a [`block::Bdev`]: each channel opened on
//! it is a session of its own, polled by one worker. While the target cannot be reached, a channel holds its requests; the
//! disk's supervisor thread connects again; [`Event`]s and [`IscsiDisk::status`] report what happens. What has nothing to do with
//! iSCSI (recovery, hand-off, held requests, the fence) is in the crate [`initiator`].
//!
//! ```text
//! control:    attach -> supervisor thread: Reconnector -> Link (ready) --QueueHandoff--> channel
//! worker:     submit -> poll -> Connection (sans-IO) -> one sendmsg, readv into the guest's memory -> Completions
//! on failure: channel keeps its requests --QueueHandoff--> supervisor: same ISID, log in again
//! ```
//!
//! [RFC 7143]: https://www.rfc-editor.org/rfc/rfc7143

mod channel;
mod chap;
mod connection;
use transport::crc32c as digest;
mod disk;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub use transport::io;
mod login;
mod lun;
mod params;
mod pdu;
mod scsi;
mod session;
mod session_queue;
#[cfg(test)]
mod simulation;
mod supervisor;
pub mod target;
mod text;

pub use chap::{ChapAlgorithm, Credentials};
pub use connection::ConnectionError;
pub use disk::{AttachError, DiscoveredTarget, IscsiDisk, discover};
pub use event::{Event, EventSink, IscsiEvent};
pub use initiator::{ConnectionEvent, Recovery, RecoveryOptions, no_events};
pub use login::{Auth, DigestPolicy, LoginError};
pub use lun::LunError;
pub use params::{DEFAULT_PORT, IscsiParams};
pub use pdu::Lun;
pub use supervisor::SessionStatus;
pub use text::TextError;
