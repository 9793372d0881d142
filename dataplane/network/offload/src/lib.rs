//! Megaflows as `rte_flow` rules: what the hardware does instead of the workers.
//!
//! [`Rule::of`] projects a megaflow on items and actions, or says which clause of it no rule can express ([`Refusal`]). It never
//! says more than the flow does: every packet that the rule matches, the flow matches too, and whatever the rule leaves out goes to
//! the workers. A `Table` keeps track of which flows are in a device: it takes in those that see most, takes out others for them
//! when the device is full, counts what the device counts, and forgets what a reset took away. The [`Offloader`] is the thread that
//! does this for the switch.
//!
//! *Parts.* What a device does not do as a whole ([`Rule::of`] or the device refuse an action, or it leads to a port of the workers)
//! becomes a rule that marks the packets where their port receives them ([`Rule::marking`]): the mark names the flow, and workers do
//! such packets without looking them up. They count them, too; what the rule counts tells what it is worth, a quarter of one that does
//! all. The refused clause stays in the share.
//!
//! *Rules on their way.* Where a driver has templates, rules go in and out by a queue, and completions say what became of them: no
//! call waits for the device. A flow is the hardware's from the completion on. One that does not come within a second is given up:
//! the flow stays with the workers, its share says so, and the rule is taken out in case it is there.
//!
//! *Idle flows cost nothing.* A flow in hardware does not age in the switch, so somebody has to take it back when it has nothing to
//! do. Where the device ages rules ([`IDLE`]) it says which ones have, and they are taken out. Counters are read for the sake of
//! statistics and rates alone, and only of flows that moved when they were looked at last; the others get a hand that goes round
//! them, a fixed number of steps a look, which also finds idle ones where the device says nothing. A look therefore costs what the
//! active flows cost, up to a bound, and not more for a million idle ones. Who asks for a dump has all counters read at once, and
//! each is read a last time when its rule goes.
//!
//! *Resets.* A device that says that it was reset, or that does not know a rule, is asked for each of its rules. The lost ones are
//! offered again by the switch, which is told at once. What was counted stays counted, and a new rule starts at zero.
//!
//! *Errors.* No error stops traffic: the flow stays with the workers, and its [`switch::HardwareShare`] says why.

mod card;
mod device;
mod flows;
mod look;
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

/// A rule that has seen nothing for so long is taken out.
pub const IDLE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    mod projection;
    mod table;
}
