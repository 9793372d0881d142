//! A port without a device: its other end is a [`MemoryPeer`] that a test, a benchmark or another part of the process holds.

use crate::{Port, PortError, PortInfo, PortKind, PortShard, PortStats};
use crossbeam::queue::ArrayQueue;
use engine::{Waker, WorkerHandle};
use packet::{Burst, Packet};
use parking_lot::Mutex;
use std::sync::Arc;

/// A port in memory. One worker receives; any may send.
pub struct MemoryPort {
    peer: Arc<MemoryPeer>,
    stats: Mutex<Vec<Arc<PortStats>>>,
}

/// The other end of a [`MemoryPort`].
pub struct MemoryPeer {
    to_switch: ArrayQueue<Packet>,
    from_switch: ArrayQueue<Packet>,
    wakers: Mutex<Vec<Waker>>,
}

impl MemoryPort {
    /// A port and its other end, which holds up to `depth` packets each way.
    pub fn new(depth: usize) -> (MemoryPort, Arc<MemoryPeer>) {
        let queue = || ArrayQueue::new(depth.max(1));
        let peer = Arc::new(MemoryPeer { to_switch: queue(), from_switch: queue(), wakers: Mutex::default() });
        (MemoryPort { peer: peer.clone(), stats: Mutex::default() }, peer)
    }
}

impl MemoryPeer {
    /// Sends a packet to the switch; returns it when the queue is full.
    pub fn send(&self, packet: Packet) -> Result<(), Packet> {
        self.to_switch.push(packet)?;
        self.wakers.lock().iter().for_each(Waker::wake);
        Ok(())
    }

    /// The next packet that the switch sent.
    pub fn receive(&self) -> Option<Packet> {
        self.from_switch.pop()
    }
}

impl Port for MemoryPort {
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        let stats = Arc::<PortStats>::default();
        self.stats.lock().push(stats.clone());
        self.peer.wakers.lock().push(worker.waker());
        Ok(Box::new(Shard { peer: self.peer.clone(), stats }))
    }

    fn info(&self) -> PortInfo {
        PortInfo { kind: PortKind::Memory, mac: [0; 6], mtu: 9000, link_up: true, rx_queues: 1, tx_queues: 1 }
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        self.stats.lock().clone()
    }
}

struct Shard {
    peer: Arc<MemoryPeer>,
    stats: Arc<PortStats>,
}

impl PortShard for Shard {
    fn rx(&mut self, burst: &mut Burst) -> usize {
        let (before, mut bytes) = (burst.len(), 0);
        while !burst.is_full()
            && let Some(packet) = self.peer.to_switch.pop()
        {
            bytes += packet.len() as u64;
            burst.push(packet);
        }
        let received = burst.len() - before;
        PortStats::add(&self.stats.rx_packets, received as u64);
        PortStats::add(&self.stats.rx_bytes, bytes);
        received
    }

    fn tx(&mut self, burst: &mut Burst) {
        for packet in burst.drain(..) {
            let len = packet.len() as u64;
            match self.peer.from_switch.push(packet) {
                Ok(()) => {
                    PortStats::add(&self.stats.tx_packets, 1);
                    PortStats::add(&self.stats.tx_bytes, len);
                }
                Err(_no_room) => PortStats::add(&self.stats.tx_full, 1),
            }
        }
    }

    fn arm(&mut self) -> bool {
        !self.peer.to_switch.is_empty()
    }
}
