//! Offload of megaflows to devices as `rte_flow` rules.
//!
//! [`Rule::of`] projects a megaflow on items and actions, or returns the clause that no rule can express ([`Refusal`]). A rule never
//! matches more than the flow: packets that it leaves out go to the workers. A `Table` keeps track of the offloaded flows: it
//! inserts those with most packets, evicts others for them when a device is full, adds the devices' counters to the flows'
//! statistics, and forgets what a reset took away. The [`Offloader`] is the thread that does this for the switch, by
//! [`rte_rule::FlowDevice`], the seam to devices: this crate knows no driver.
//!
//! *Partial offload.* A flow that a device does not take as a whole ([`Rule::of`] or the device refuse an action, or the flow leads
//! to a port of the workers) becomes a rule that marks the packets where their port receives them ([`Rule::marking`]): the mark names
//! the flow, and workers process such packets without a look-up, and count them. The counters of the rule tell its worth, a
//! quarter of a whole one. The refused clause stays in the flow's handle.
//!
//! *Pending operations.* Where a driver has templates, rules are inserted and removed by a queue, and completions tell the outcome: no
//! call waits for the device. A flow is offloaded from the completion on. After a second without a completion the flow stays with
//! the workers, its handle tells so, and the rule is removed in case the device has it.
//!
//! *Idle flows cost nothing.* An offloaded flow does not age in the switch, so it has to be given back when it is idle. Where the
//! device ages rules ([`IDLE`]), it reports the aged ones, and they are removed. Counters are read for statistics and rates alone,
//! and only of flows that moved at the last poll; a cursor passes over the others, a fixed number of steps a poll, and finds idle
//! ones where the device does not age rules. A poll therefore costs what the active flows cost, up to a bound, and not more for a
//! million idle ones. A dump polls all counters at once, and each rule's are read a last time at its removal.
//!
//! *Resets.* When a device reports a reset, or does not know a rule, all of its rules are queried. The switch is told at once, and
//! offers the lost flows again. Statistics stay, and a new rule starts at zero.
//!
//! *Errors.* No error stops traffic: the flow stays with the workers, and its [`datapath::OffloadHandle`] tells the reason.

#![deny(clippy::wildcard_enum_match_arm)]

mod counters;
mod flows;
mod nic;
mod offloader;
mod pattern;
mod rewrite;
mod rule;
mod table;
mod totals;

pub use offloader::{Config, Offloader};
pub use rule::{Refusal, Rule};
pub use totals::Totals;

use std::time::Duration;

/// Time without packets after which a rule is removed.
pub const IDLE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    mod projection;
    mod table;
}
