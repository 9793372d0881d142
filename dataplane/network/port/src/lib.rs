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
pub use memory::{MemoryPort, Wire};
pub use stats::{Counters, PortStats};
pub use tap::{MAX_TAP_QUEUES, TapParams, TapPort};

use engine::WorkerHandle;
use packet::Burst;
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

    /// As [`engine::Source::arm`]: asks to be woken, then looks. Returns whether something is there already.
    fn arm(&mut self) -> bool {
        false
    }

    /// As [`engine::Source::disarm`].
    fn disarm(&mut self) {}

    /// As [`engine::Source::quiesce`].
    fn quiesce(&mut self) {}
}

/// Something that packets come from and go to.
pub trait Port: Send + Sync {
    /// The part of the port for `worker`, which has none yet.
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError>;

    /// What it is now.
    fn info(&self) -> PortInfo;

    /// The counters of each shard there was.
    fn stats(&self) -> Vec<Arc<PortStats>>;

    /// Moves a receive queue, or a queue pair, to another worker, which has a shard of this port, while it receives. May wait for
    /// the worker that has it.
    fn move_rx_queue(&self, _queue: u16, _worker: &WorkerHandle) -> Result<(), PortError> {
        let (got, expected) = (format!("a {} port", self.info().kind), "one whose queues can be moved".to_owned());
        Err(PortError::Invalid { field: "name", got, expected })
    }

    /// Where rules are put into the device that it is on, if it is on one that may have some.
    #[cfg(feature = "dpdk")]
    fn flow_port(&self) -> Option<dpdk::flow::FlowPort> {
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

/// A port at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// As operators name the kind: `vhost-user`, `tap`, `dpdk`, `memory`.
    pub kind: &'static str,
    /// Its address; zero where it has none of its own.
    pub mac: [u8; 6],
    /// Most bytes of a frame's payload, VLAN tags not counted.
    pub mtu: u16,
    /// Packets can come and go.
    pub link_up: bool,
    /// Receive queues in use.
    pub rx_queues: u16,
    /// Send queues in use.
    pub tx_queues: u16,
}

/// Why a port could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A parameter is wrong.
    #[error("{field}: got {got}, expected {expected}")]
    Invalid {
        /// The parameter.
        field: &'static str,
        /// What was given.
        got: String,
        /// What is accepted, with a hint.
        expected: String,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried, with its object.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another layer refused: DPDK, vhost-user.
    #[error("{what}: {source}")]
    Other {
        /// What was tried.
        what: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
