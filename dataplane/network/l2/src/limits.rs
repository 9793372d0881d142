//! Every limit of the L2 switch, in one place; those of its datapath are in [`datapath::limits`].

/// Bridges.
pub const BRIDGES: usize = 1024;
/// The largest size that can be set for the FDB of a bridge.
pub const FDB_ENTRIES: usize = 1 << 20;
