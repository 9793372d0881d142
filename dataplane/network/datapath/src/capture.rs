//! Copies of a port's packets for somebody who looks: taken by workers, never waited for.
//!
//! A worker copies the start of a packet into the capture's own buffers and puts it into a bounded queue; where there is no room
//! it counts and goes on. Whoever looks takes them out again on a thread of its own. A port that nobody looks at pays one branch a
//! burst.

use clock::Cycles;
use crossbeam::queue::ArrayQueue;
use flow::DropReason;
use packet::{DATA_ROOM, Packet, Pool, PoolError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What happened to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It came in by the port. What is dropped afterwards is seen twice.
    Received,
    /// It goes out by the port.
    Sent,
    /// It came in by the port, and the switch dropped it.
    Dropped(DropReason),
}

/// A packet that was seen.
#[derive(Debug)]
pub struct Captured {
    /// Its first bytes.
    pub packet: Packet,
    /// How many it had.
    pub len: usize,
    /// When.
    pub time: Cycles,
    /// What happened to it.
    pub observed: Observed,
}

/// The way of packets from workers to whoever looks.
pub struct Capture {
    queue: ArrayQueue<Captured>,
    pool: Pool,
    snap_len: usize,
    lost: AtomicU64,
}

impl Capture {
    /// A capture of the first `snap_len` bytes of each packet, of which `packets` may wait to be taken.
    pub fn new(packets: usize, snap_len: usize) -> Result<Arc<Capture>, PoolError> {
        let buffers = packets * snap_len.div_ceil(DATA_ROOM.into()).max(1);
        let (queue, pool) = (ArrayQueue::new(packets), Pool::new(buffers, None)?);
        Ok(Arc::new(Capture { queue, pool, snap_len, lost: AtomicU64::new(0) }))
    }

    /// Takes the oldest.
    pub fn take(&self) -> Option<Captured> {
        self.queue.pop()
    }

    /// Packets for which there was no room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes a copy, if there is room.
    #[cold]
    pub(crate) fn offer(&self, packet: &Packet, observed: Observed, time: Cycles) {
        let captured = self.copy(packet).map(|copy| Captured { packet: copy, len: packet.len(), time, observed });
        if captured.and_then(|captured| self.queue.push(captured).ok()).is_none() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn copy(&self, packet: &Packet) -> Option<Packet> {
        let (mut copy, mut room) = (self.pool.take_one()?, self.snap_len);
        for segment in packet.segments() {
            let part = &segment[..segment.len().min(room)];
            room -= part.len();
            if !copy.extend_from_slice(part, &self.pool) {
                return None;
            }
        }
        Some(copy)
    }
}
