//! What was done so far.

use std::collections::HashMap;

/// What was done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Flows that hardware does now.
    pub flows: u64,
    /// Flows whose packets it marks.
    pub partial: u64,
    /// Rules put in.
    pub insertions: u64,
    /// Time from asking for each to its completion, in cycles.
    pub insertion_cycles: u64,
    /// Rules taken out for flows that see more.
    pub evictions: u64,
    /// Rules taken out as they saw nothing any more.
    pub aged: u64,
    /// Rules that a device lost: it was reset, or somebody else took them out.
    pub lost: u64,
    /// Operations that a device said nothing of.
    pub lost_completions: u64,
    /// Offers that found no room.
    pub full: u64,
    /// Offers that were dropped, as too many waited. Their flows are offered again.
    pub dropped: u64,
    /// Looks at what devices have counted.
    pub looks: u64,
    /// Time that they took, in cycles.
    pub look_cycles: u64,
    /// Rules that are to go, and that a device has not let go of.
    pub leaving: u64,
    /// Packets that the hardware did.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Flows refused, by clause.
    pub refused: HashMap<&'static str, u64>,
}

impl Totals {
    pub(crate) fn add(&mut self, (packets, bytes): (u64, u64)) {
        self.packets += packets;
        self.bytes += bytes;
    }
}
