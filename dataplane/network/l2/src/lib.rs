//! The L2 switch: bridges over ports, as a [`Pipeline`](datapath::Pipeline) of the datapath.
//!
//! A bridge (IEEE 802.1Q, without spanning tree) decides for one packet: VLAN, port security, learning, look-up. The caches in front
//! only remember its decisions; a switch without them would do the same, which is what the property tests check. A decision rests on
//! the ports and settings of the bridge and on the FDB entries of source and destination, and is revalidated when one of them changes.
//!
//! [`Switch`] is the face for the control plane: a datapath whose pipeline is these bridges, with static flows before them.
//!
//! Errors: a [`SwitchError`] refuses a change, and nothing has changed.

mod bridge;
pub mod limits;
mod mac;
mod mac_table;
mod pipeline;
mod security;
mod switch;
mod vlan;

pub use bridge::BridgePort;
pub use datapath::{
    Capture, Captured, DropReason, FlowReport, Observed, Offer, Offload, OffloadHandle, OffloadState, PathStats,
    PortConfig, PortLoad, PortNo, PortReport, RateLimit, SwitchError, WorkerStats,
};
pub use mac::{IpPrefix, Mac, ParseError};
pub use mac_table::{FdbKey, MacEntry};
pub use security::Security;
pub use switch::{BridgeConfig, BridgeReport, Switch, Trace};
pub use vlan::{MAX_VLAN, VlanMode};

#[cfg(test)]
mod tests;
