//! Megaflows as `rte_flow` rules: what the hardware does instead of the workers.
//!
//! [`Rule::of`] projects a megaflow on items and actions, or says which clause of it no rule can express ([`Refusal`]). It never
//! says more than the flow does: every packet that the rule matches, the flow matches too, and whatever the rule leaves out goes to
//! the workers. A `Table` keeps track of which flows are in a device: it takes in those that see most, takes out others for them
//! when the device is full, counts what the device counts, and forgets what a reset took away. The [`Offloader`] is the thread that
//! does this for the switch.
//!
//! *Errors.* No error stops traffic: the flow stays with the workers, and its [`switch::HardwareShare`] says why.

mod offloader;
mod pattern;
mod rewrite;
mod rule;
mod table;

pub use offloader::Offloader;
pub use rule::{Refusal, Rule};
pub use table::Totals;

#[cfg(test)]
mod tests {
    mod projection;
    mod table;
}
