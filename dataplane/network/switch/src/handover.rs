//! Packets for a port whose send queue another worker has.

use crate::PortNo;
use engine::{Consumer, Producer, Waker, spsc};
use packet::Packet;

/// Packets that may wait between two workers.
const DEPTH: usize = 1024;

/// A packet, with the number and the instance of the port that it goes out by.
pub(crate) type Handed = (PortNo, u32, Packet);

/// One worker's ends of the queues between workers. There is one queue a pair, so each has one writer and one reader.
pub(crate) struct Handover {
    /// By the worker that reads; empty for this one.
    to: Vec<Option<(Producer<Handed>, Waker)>>,
    from: Vec<Consumer<Handed>>,
    /// A bit for each worker that was given something in this turn.
    given: u64,
}

impl Handover {
    /// The ends for workers that these wake.
    pub(crate) fn connect(wakers: &[Waker]) -> Vec<Handover> {
        let end = |_| Handover { to: Vec::new(), from: Vec::new(), given: 0 };
        let mut ends: Vec<Handover> = wakers.iter().map(end).collect();
        for from in 0..wakers.len() {
            for (to, waker) in wakers.iter().enumerate() {
                let queue = (from != to).then(|| spsc(DEPTH));
                let (producer, consumer) = queue.unzip();
                ends[from].to.push(producer.map(|producer| (producer, waker.clone())));
                ends[to].from.extend(consumer);
            }
        }
        ends
    }

    /// Gives a packet to another worker, or back where there is no room.
    pub(crate) fn give(&mut self, to: usize, handed: Handed) -> Result<(), Handed> {
        let Some(Some((queue, _))) = self.to.get_mut(to) else { return Err(handed) };
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
        self.from.iter_mut().find_map(Consumer::pop)
    }

    pub(crate) fn is_empty(&mut self) -> bool {
        self.from.iter_mut().all(Consumer::is_empty)
    }
}
