//! Every limit of the datapath, in one place. The smallest rates that can be set are at [`crate::RateLimit`], and the number of
//! workers is limited by [`engine::MAX_WORKERS`].

use std::time::Duration;

/// Ports, and the largest number of a port.
pub const PORTS: usize = 4095;
/// Megaflows in the caches, over all ports.
pub const FLOWS: usize = 200_000;
/// Megaflows that packets of one port may make.
pub const FLOWS_PER_PORT: usize = FLOWS / 2;
/// Static flows.
pub const STATIC_FLOWS: usize = 1 << 20;
/// A flow without packets for so long is removed.
pub const FLOW_IDLE: Duration = Duration::from_secs(10);
/// A flow with so many packets between two sweeps is offered to hardware.
pub const OFFLOAD_PACKETS: u64 = 16;
/// Pending upcalls of one worker.
pub const PENDING_UPCALLS: usize = 256;
/// Pending upcalls of one port on one worker: a port that is flooded leaves room for the others.
pub const PENDING_UPCALLS_PER_PORT: u32 = 64;
/// Packets that may wait for the reply to one upcall.
pub const PENDING_PACKETS: usize = 64;
/// Upcalls that the handler answers under one lock.
pub(crate) const UPCALL_BATCH: usize = 64;
/// Time between two sweeps over the statistics of flows.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Flows whose statistics a worker reports at one quiescent point.
pub(crate) const SWEEP_FLOWS: usize = 512;
/// Flows that may come while a sweep runs; the statistics of more are left to the next sweep.
pub(crate) const SWEEP_SLACK: usize = 1024;
/// Messages that may wait for one worker.
pub(crate) const MESSAGES: usize = 256;
/// Messages that a worker takes a turn.
pub(crate) const MESSAGES_PER_TURN: usize = 64;
/// Packets that may wait between two workers.
pub(crate) const HANDOVER: usize = 1024;
/// Recirculations of one burst.
pub(crate) const RECIRCULATIONS: usize = 8;
/// Marks are given in turn up to this one: 8 million others come before one is given again, and devices that keep 24 bits of a mark
/// take them all.
pub(crate) const LAST_MARK: u32 = (1 << 23) - 1;
/// Marks in use at a time: with a place free in eight, the next one is near.
pub(crate) const MARKS: usize = flow::MARK_PLACES as usize / 8 * 7;

/// The cache of one worker. It has room for static flows besides.
pub(crate) fn cache() -> flow::Config {
    flow::Config { flow_limit: FLOWS + STATIC_FLOWS, ..flow::Config::default() }
}
