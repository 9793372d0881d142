//! Packets for a port whose send queue another worker has.

use crate::PortNo;
use crossbeam::queue::ArrayQueue;
use engine::Waker;
use packet::Packet;
use std::sync::Arc;

/// Packets that may wait between two workers.
const DEPTH: usize = 1024;

/// A packet, with the number and the instance of the port that it goes out by.
pub(crate) type Handed = (PortNo, u32, Packet);

/// One worker's ends of the queues between workers. There is one queue a pair, so each has one writer and one reader.
pub(crate) struct Handover {
    /// By the worker that reads; empty for this one.
    to: Vec<Option<(Arc<ArrayQueue<Handed>>, Waker)>>,
    from: Vec<Arc<ArrayQueue<Handed>>>,
    /// A bit for each worker that was given something in this turn.
    given: u64,
}

impl Handover {
    /// The ends for workers that these wake.
    pub(crate) fn connect(wakers: &[Waker]) -> Vec<Handover> {
        let count = wakers.len();
        let queue = |from: usize, to: usize| (from != to).then(|| Arc::new(ArrayQueue::new(DEPTH)));
        let queues: Vec<Vec<_>> = (0..count).map(|from| (0..count).map(|to| queue(from, to)).collect()).collect();
        let ends = |worker: usize| Handover {
            to: queues[worker].iter().zip(wakers).map(|(queue, waker)| Some((queue.clone()?, waker.clone()))).collect(),
            from: queues.iter().filter_map(|row| row[worker].clone()).collect(),
            given: 0,
        };
        (0..count).map(ends).collect()
    }

    /// Gives a packet to another worker, or back where there is no room.
    pub(crate) fn give(&mut self, to: usize, handed: Handed) -> Result<(), Handed> {
        let Some(Some((queue, _))) = self.to.get(to) else { return Err(handed) };
        self.given |= 1 << to;
        queue.push(handed)
    }

    /// Wakes those that were given something.
    pub(crate) fn notify(&mut self) {
        while self.given != 0 {
            if let Some((_, waker)) = &self.to[self.given.trailing_zeros() as usize] {
                waker.wake();
            }
            self.given &= self.given - 1;
        }
    }

    /// The next packet that another worker gave.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Handed> {
        self.from.iter().find_map(|queue| queue.pop())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.from.iter().all(|queue| queue.is_empty())
    }
}
