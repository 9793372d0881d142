//! Totals of offloading.

use std::collections::HashMap;

/// Totals of offloading until now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Flows that are offloaded as a whole now.
    pub flows: u64,
    /// Flows whose packets a device marks now.
    pub partial: u64,
    /// Rules inserted.
    pub insertions: u64,
    /// Time from the request of each to its completion, in cycles.
    pub insertion_cycles: u64,
    /// Rules evicted for flows with more packets.
    pub evictions: u64,
    /// Rules removed after a time without packets.
    pub aged: u64,
    /// Rules that a device lost, by a reset or another program.
    pub lost: u64,
    /// Operations whose completion did not come.
    pub lost_completions: u64,
    /// Offers that found no room.
    pub full: u64,
    /// Offers dropped as too many waited; the switch repeats them.
    pub dropped: u64,
    /// Polls of the devices' counters.
    pub looks: u64,
    /// Time of these polls, in cycles.
    pub look_cycles: u64,
    /// Rules whose removal a device has refused so far.
    pub leaving: u64,
    /// Packets that devices forwarded or dropped.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// Refused flows, by kind of the reason.
    pub refused: HashMap<&'static str, u64>,
}

impl Totals {
    pub(crate) fn add(&mut self, (packets, bytes): (u64, u64)) {
        self.packets += packets;
        self.bytes += bytes;
    }
}
