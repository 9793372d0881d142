//! Flow rules in the words of `rte_flow`, as plain Rust types, and the seam to devices that take them.
//!
//! A rule is a place ([`FlowAttr`]), a pattern of [`FlowItem`]s and a list of [`FlowAction`]s. A [`FlowDevice`] is a port of a NIC
//! that takes rules; `dpdk` implements it over `rte_flow`, tests implement it in memory. The capabilities of a device are found
//! out by [`FlowDevice::validate`], never by the name of its driver.
//!
//! Names and meanings are those of DPDK's [flow API].
//!
//! [flow API]: https://doc.dpdk.org/guides/prog_guide/rte_flow.html

#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]

mod action;
mod device;
mod error;
mod item;

pub use action::{FlowAction, SetField};
pub use device::{
    Completion, DeviceInfo, FlowCount, FlowDevice, FlowEvent, FlowEvents, FlowQueue, FlowRule, Operation, RuleId,
};
pub use error::{Clause, FlowError};
pub use item::{Eth, FlowItem, Icmp, Ipv4, Ipv6, L4Ports, Match, Tcp, Vlan};

/// The traffic that a rule applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Packets that the rule's port receives.
    #[default]
    Ingress,
    /// Packets that the rule's port sends.
    Egress,
    /// Packets that pass the device's embedded switch, from whatever port.
    Transfer,
}

/// The place of a rule in its device (`rte_flow_attr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowAttr {
    /// The group; packets start in group 0.
    pub group: u32,
    /// The priority in the group; 0 is the highest.
    pub priority: u32,
    /// The traffic that the rule applies to.
    pub direction: Direction,
}
