//! The switch: bridges over ports, with a flow cache in front of every decision.
//!
//! A [`Switch`] has a datapath on each worker and one thread that translates. A packet's way on its worker, from the queue it
//! came in by to the queues it leaves by:
//!
//! ```text
//! rx burst -> extract -> cache look-up -> actions -> a batch per output -> tx -> flush          worker, each turn
//!                             |  miss                       \-> another worker, if that has the port's queue
//!                             +--> parked, upcall ------.
//!                                                       v
//!          megaflow, by mailbox <-- bridge: VLAN, port security, learning, look-up               translator
//! ```
//!
//! What a bridge decides it decides for one packet, reading its key through a `Tracked`: what was read becomes the megaflow's
//! mask. The caches only remember; a switch without them would do the same, which is what the property tests check. A decision
//! is recorded with what it rests on (stations, the bridge's ports, flows of operators), and is taken back when that changes.
//!
//! Flows of operators go before the bridges. No packet matches two flows: operators' flows must not overlap, and megaflows look
//! at what tells them apart from operators' flows.
//!
//! Workers share nothing that is written for each packet: each has its own cache, its own parked packets and its own half of
//! every queue between two workers. Counters are plain stores to the worker's own lines.
//!
//! Errors: a [`SwitchError`] refuses a change, and nothing has changed. On the packet path nothing fails: what cannot go on is
//! dropped and counted, with the reason, at the port that it came in by.

mod bridge;
mod capture;
mod datapath;
mod handover;
mod limit;
pub mod limits;
mod mac;
mod mac_table;
mod marks;
mod megaflows;
mod offload;
mod operators;
mod output;
mod security;
mod state;
mod stats;
mod switch;
mod topology;
mod tracked;
mod upcall;
mod vlan;

pub use bridge::BridgePort;
pub use capture::{Capture, Captured, Observed};
pub use flow::{DropReason, PortNo};
pub use limit::RateLimit;
pub use mac::{IpPrefix, Mac, ParseError};
pub use mac_table::{MacEntry, Station};
pub use marks::Marks;
pub use offload::{HardwareShare, Offer, Offload, Placed};
pub use security::Security;
pub use stats::{PathStats, PortLoad, WorkerStats};
pub use switch::{BridgeConfig, BridgeReport, FlowReport, PortConfig, PortReport, Switch, SwitchError, Trace};
pub use upcall::{PARKED_FLOWS, PARKED_FLOWS_OF_A_PORT, PARKED_PACKETS};
pub use vlan::{MAX_VLAN, VlanMode};

/// Names a bridge inside the switch.
pub(crate) type BridgeId = u32;

#[cfg(test)]
mod tests;
