//! Captures: copies of a port's packets, made by workers, which never wait for the reader.
//!
//! A worker copies the start of a packet into the capture's own buffers and puts the copy into a bounded queue; where there is no
//! room it counts and goes on. The reader takes copies out on a thread of its own. A port without a capture pays one branch a burst.

use clock::Cycles;
use crossbeam::queue::ArrayQueue;
use flow::DropReason;
use packet::{DATA_ROOM, Packet, Pool, PoolError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What happened to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The packet came in by the port. One that is dropped afterwards is seen twice.
    Received,
    /// The packet goes out by the port.
    Sent,
    /// The packet came in by the port, and was dropped.
    Dropped(DropReason),
}

/// A packet that was seen.
#[derive(Debug)]
pub struct Captured {
    /// Its first bytes.
    pub packet: Packet,
    /// The length of the whole packet.
    pub len: usize,
    /// When the packet was seen.
    pub time: Cycles,
    /// What happened to it.
    pub observed: Observed,
}

/// The queue of copies from workers to the reader.
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

    /// Takes the oldest copy.
    pub fn take(&self) -> Option<Captured> {
        self.queue.pop()
    }

    /// Packets that were not copied, as there was no room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Copies a packet, if there is room.
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
