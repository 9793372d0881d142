//! Ports: the seam between the switch and what carries packets.
//!
//! A [`Port`] is made and destroyed by a control thread. Each worker that serves it holds one [`PortShard`]: the port's queues
//! on that worker, both directions. Queues move between workers by the port's own messages to its shards, or through an
//! [`Assignment`]; the switch does not notice.
//!
//! The loop of a worker, each turn: [`rx`](PortShard::rx) a burst from each shard, carry it to its end, [`tx`](PortShard::tx)
//! what goes out, and [`flush`](PortShard::flush) once a turn. A shard never blocks, allocates or logs. What it cannot send it
//! drops and counts, with the reason ([`PortStats`]).
//!
//! Descriptors that wake a sleeping worker are registered by the port with the worker's [`engine::WakeSet`].

mod assignment;
#[cfg(feature = "dpdk")]
mod ethdev;
mod memory;
mod stats;
mod tap;

pub use assignment::{Assignment, Deal, Held, Queues};
#[cfg(feature = "dpdk")]
pub use ethdev::{EthdevParams, EthdevPort};
pub use memory::{MemoryPeer, MemoryPort};
pub use stats::{Counters, PortStats};
pub use tap::{MAX_TAP_QUEUES, TapParams, TapPort};

use engine::WorkerHandle;
use invalid::Invalid;
use packet::Burst;
use rte_rule::FlowDevice;
use std::sync::Arc;

/// A port's queues on one worker.
pub trait PortShard: Send {
    /// Receives: appends at most what `burst` has room for. Returns how many.
    fn rx(&mut self, burst: &mut Burst) -> usize;

    /// Sends all of `burst` and leaves it empty; what finds no room is dropped and counted.
    fn tx(&mut self, burst: &mut Burst);

    /// Whether this worker has a queue to send by now. If not, the switch hands packets for the port to a worker that has.
    fn can_tx(&self) -> bool {
        true
    }

    /// Publishes what was sent and notifies the other side if it wants that. Once a turn.
    fn flush(&mut self) {}

    /// Asks to be woken, then looks for packets, as [`engine::Source::arm`] does. Returns whether there are some already.
    fn arm(&mut self) -> bool {
        false
    }

    /// Ends the request to be woken, as [`engine::Source::disarm`] does.
    fn disarm(&mut self) {}

    /// Settles between two turns, as [`engine::Source::quiesce`] does.
    fn quiesce(&mut self) {}
}

/// A port of a switch: packets come from it and go to it.
pub trait Port: Send + Sync {
    /// The part of the port for `worker`, which has none yet.
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError>;

    /// The port's properties at this moment.
    fn info(&self) -> PortInfo;

    /// The counters of each shard that was ever opened.
    fn stats(&self) -> Vec<Arc<PortStats>>;

    /// Moves a receive queue, or a queue pair, to another worker, which has a shard of this port, while it receives. May wait for
    /// the worker that has it.
    fn move_rx_queue(&self, _queue: u16, _worker: &WorkerHandle) -> Result<(), PortError> {
        let got = format!("a {} port", self.info().kind);
        Err(Invalid::new("name", got, "one whose queues can be moved").into())
    }

    /// The port as one that takes flow rules; `None` where its device is none that has an `rte_flow` driver.
    fn flow_device(&self) -> Option<Arc<dyn FlowDevice>> {
        None
    }

    /// Each receive queue, or queue pair, where they can be moved.
    fn rx_queues(&self) -> Vec<QueueReport> {
        Vec::new()
    }
}

/// A receive queue at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueReport {
    /// The worker that has it, or will when it has settled.
    pub worker: Option<usize>,
    /// Packets that came by it.
    pub packets: u64,
}

/// The kind of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A guest's network device over vhost-user.
    VhostUser,
    /// A tap device of the kernel.
    Tap,
    /// An Ethernet device of DPDK.
    Dpdk,
    /// A port in memory: [`MemoryPort`].
    Memory,
}

impl PortKind {
    /// The kind as operators name it.
    pub fn as_str(self) -> &'static str {
        match self {
            PortKind::VhostUser => "vhost-user",
            PortKind::Tap => "tap",
            PortKind::Dpdk => "dpdk",
            PortKind::Memory => "memory",
        }
    }
}

impl std::fmt::Display for PortKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The properties of a port at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// The kind of the port.
    pub kind: PortKind,
    /// MAC address of the port; zero where it has none of its own.
    pub mac: [u8; 6],
    /// Largest payload of a frame in bytes, VLAN tags not counted.
    pub mtu: u16,
    /// Whether the link is up.
    pub link_up: bool,
    /// Receive queues in use.
    pub rx_queues: u16,
    /// Send queues in use.
    pub tx_queues: u16,
}

/// The reason why a port could not be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A parameter has a value that is not accepted.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The system refused.
    #[error("{what}: {source}")]
    Os {
        /// The attempted operation, with its object.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another layer refused: DPDK, vhost-user.
    #[error("{what}: {source}")]
    Other {
        /// The attempted operation.
        what: String,
        /// The reason of the other layer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
