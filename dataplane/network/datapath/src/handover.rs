//! Packets for a port whose send queue another worker has.

use crate::{PortNo, limits};
use engine::{Consumer, Producer, Waker, WorkerSet, spsc};
use packet::Packet;

/// A packet, with the number and the instance of the port that it goes out by.
pub(crate) type Handed = (PortNo, u32, Packet);

/// One worker's ends of the queues between workers. There is one queue a pair, so each has one writer and one reader.
pub(crate) struct Handover {
    /// By the worker that reads; empty for this one.
    to: Vec<Option<(WorkerSet, Producer<Handed>, Waker)>>,
    from: Vec<Consumer<Handed>>,
    /// The workers that were given packets in this turn.
    given: WorkerSet,
}

impl Handover {
    /// Connects each worker with each other one, given the waker of each.
    pub(crate) fn connect(wakers: &[(WorkerSet, Waker)]) -> Vec<Handover> {
        let end = |_| Handover { to: Vec::new(), from: Vec::new(), given: WorkerSet::EMPTY };
        let mut ends: Vec<Handover> = wakers.iter().map(end).collect();
        for from in 0..wakers.len() {
            for (to, (worker, waker)) in wakers.iter().enumerate() {
                let queue = (from != to).then(|| spsc(limits::HANDOVER));
                let (producer, consumer) = queue.unzip();
                ends[from].to.push(producer.map(|producer| (*worker, producer, waker.clone())));
                ends[to].from.extend(consumer);
            }
        }
        ends
    }

    /// Gives a packet to another worker, or back where there is no room.
    pub(crate) fn give(&mut self, to: usize, handed: Handed) -> Result<(), Handed> {
        let Some(Some((worker, queue, _))) = self.to.get_mut(to) else { return Err(handed) };
        self.given = self.given.union(*worker);
        queue.push(handed)
    }

    /// Wakes the workers that were given packets.
    pub(crate) fn notify(&mut self) {
        for worker in std::mem::take(&mut self.given) {
            if let Some((_, _, waker)) = &self.to[worker] {
                waker.wake();
            }
        }
    }

    /// The next packet that another worker gave.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Handed> {
        self.from.iter_mut().find_map(Consumer::pop)
    }

    pub(crate) fn is_empty(&mut self) -> bool {
        self.from.iter_mut().all(Consumer::is_empty)
    }
}
