//! Every limit of the switch, in one place.

use std::time::Duration;

/// Ports, and the largest number of one.
pub const PORTS: usize = 4095;
/// Bridges.
pub const BRIDGES: usize = 1024;
/// Most stations that a bridge can be told to remember.
pub const STATIONS: usize = 1 << 20;
/// Flows in the caches, over all ports.
pub const FLOWS: usize = 200_000;
/// How many of those packets of one port may make.
pub const FLOWS_OF_A_PORT: usize = FLOWS / 2;
/// Flows of operators.
pub const OPERATOR_FLOWS: usize = 1 << 20;
/// A flow that nothing has hit for so long is removed.
pub const FLOW_IDLE: Duration = Duration::from_secs(10);
/// A flow that sees so many packets between two looks is offered to the hardware.
pub const OFFLOAD_PACKETS: u64 = 16;
/// Time between two looks at what the flows have seen.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Messages that wait for one worker.
pub(crate) const MESSAGES: usize = 256;

/// The cache of one worker. It has room for what operators put in besides.
pub(crate) fn cache() -> flow::Config {
    flow::Config { flow_limit: FLOWS + OPERATOR_FLOWS, ..flow::Config::default() }
}
