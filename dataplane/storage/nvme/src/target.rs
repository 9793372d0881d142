//! An NVMe/TCP target: serves disks, and misbehaves on demand.
//!
//! It is the peer of our tests and the embedded cloud disk of the demo. Like the initiator it is sans-IO at its core:
//! [`Connection`] takes bytes and the time and gives bytes, so it runs under virtual time as well; the [`Server`] puts it
//! behind sockets on one thread. A [`Target`] is the subsystem behind all connections.
//!
//! [`Faults`] says how it departs from an honest target, and when.

mod admin;
mod connection;
mod faults;
mod subsystem;

pub use connection::Connection;
pub use faults::{Faults, Misbehaviour};
pub use initiator::target::{FileStore, MemoryStore, ServerConnection, Store};
pub use subsystem::{Access, Namespace, Target, TargetConfig};

/// A target behind sockets.
pub type Server = initiator::target::Server<Target>;
