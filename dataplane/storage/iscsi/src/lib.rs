//! iSCSI (RFC 7143): a sans-IO initiator, its worker transport, and a target for tests and demos.
//!
//! [`IscsiDisk::attach`] logs in and looks at the unit, off the poll cores. The disk is a [`block::Bdev`]: each channel opened on
//! it is a session of its own, polled by one worker. While the target cannot be reached, a channel holds its requests; the
//! disk's supervisor thread connects again, and [`Event`]s and [`IscsiDisk::status`] tell the story.
//!
//! ```text
//! control:    attach -> supervisor thread: Reconnector -> Link (ready) --Port--> channel
//! worker:     submit -> poll -> Connection (sans-IO) -> one sendmsg, readv into the guest's memory -> Completions
//! on failure: channel keeps its requests --Port--> supervisor: same ISID, log in again
//! ```

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
mod port;
mod scsi;
mod session;
#[cfg(test)]
mod simulation;
mod supervisor;
pub mod target;
mod text;

pub use chap::{ChapAlgorithm, Credentials};
pub use connection::ConnectionError;
pub use disk::{AttachError, DiscoveredTarget, IscsiDisk, discover};
pub use event::{Event, EventSink};
pub use login::{Auth, DigestPolicy, LoginError};
pub use lun::LunError;
pub use params::{DEFAULT_PORT, InvalidParam, IscsiParams, Recovery};
pub use pdu::Lun;
pub use supervisor::SessionStatus;
pub use text::TextError;
