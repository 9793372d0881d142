//! Assignment of a port's queues to workers.
//!
//! A queue is either held by the worker that uses it or at rest in its slot. The control thread writes the queue's owner-to-be
//! into the slot; at its next quiescent point the worker that holds the queue puts it down, and the owner-to-be picks it up. No
//! thread waits for another, and no queue is held twice. A worker has processed what it received from a queue before it puts the
//! queue down, so packets of a queue stay in order.

use crate::{PortError, QueueReport};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use engine::{Waker, WorkerHandle};
use invalid::Invalid;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The owner of a queue that has none.
const NO_WORKER: usize = usize::MAX;

/// The order in which queues are assigned to workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deal {
    /// All queues, to workers round-robin.
    InTurn,
    /// One queue to each worker, as far as there are queues.
    OneEach,
}

/// The queues of a port.
pub struct Assignment<Q> {
    slots: Box<[Slot<Q>]>,
    deal: Deal,
    /// Workers that have a shard, in the order in which they opened it.
    workers: Mutex<Vec<(usize, Waker)>>,
}

struct Slot<Q> {
    /// Written by control threads, read by workers.
    owner: AtomicUsize,
    resting: ArrayQueue<Q>,
    /// Packets received, written by the worker that has the queue.
    packets: CachePadded<AtomicU64>,
}

impl<Q> Slot<Q> {
    fn new(queue: Q) -> Slot<Q> {
        let resting = ArrayQueue::new(1);
        let _ = resting.push(queue); // an empty queue of one place takes it
        Slot { owner: AtomicUsize::new(NO_WORKER), resting, packets: CachePadded::default() }
    }

    fn owner(&self) -> usize {
        self.owner.load(Ordering::Relaxed)
    }
}

impl<Q> Assignment<Q> {
    /// Assigns nothing yet: all queues are at rest.
    pub fn new(queues: impl IntoIterator<Item = Q>, deal: Deal) -> Arc<Assignment<Q>> {
        let slots = queues.into_iter().map(Slot::new).collect();
        Arc::new(Assignment { slots, deal, workers: Mutex::default() })
    }

    /// Number of queues.
    pub fn count(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Adds `worker` and assigns all queues again.
    pub fn open(self: &Arc<Assignment<Q>>, worker: &WorkerHandle) -> Queues<Q> {
        let mut workers = self.workers.lock();
        workers.push((worker.id(), worker.waker()));
        self.spread(&workers);
        Queues { held: Vec::with_capacity(self.slots.len()), worker: worker.id(), assignment: self.clone() }
    }

    fn close(&self, worker: usize) {
        let mut workers = self.workers.lock();
        workers.retain(|(id, _)| *id != worker);
        self.spread(&workers);
    }

    fn spread(&self, workers: &[(usize, Waker)]) {
        for (index, slot) in self.slots.iter().enumerate() {
            let turn = if self.deal == Deal::InTurn { index % workers.len().max(1) } else { index };
            slot.owner.store(workers.get(turn).map_or(NO_WORKER, |(id, _)| *id), Ordering::Relaxed);
        }
        workers.iter().for_each(|(_, waker)| waker.wake());
    }

    /// Assigns a queue to another worker, which has a shard.
    pub fn assign(&self, queue: u16, worker: usize) -> Result<(), PortError> {
        let Some(slot) = self.slots.get(usize::from(queue)) else {
            return Err(Invalid::new("queue", queue, format_args!("0 to {}", self.slots.len() - 1)).into());
        };
        let workers = self.workers.lock();
        if !workers.iter().any(|(id, _)| *id == worker) {
            let known: Vec<_> = workers.iter().map(|(id, _)| id).collect();
            return Err(Invalid::new("worker", worker, format_args!("one that serves this port: {known:?}")).into());
        }
        slot.owner.store(worker, Ordering::Relaxed);
        workers.iter().for_each(|(_, waker)| waker.wake());
        Ok(())
    }

    /// The state of each queue at this moment.
    pub fn report(&self) -> Vec<QueueReport> {
        let report = |slot: &Slot<Q>| QueueReport {
            worker: Some(slot.owner()).filter(|&owner| owner != NO_WORKER),
            packets: slot.packets.load(Ordering::Relaxed),
        };
        self.slots.iter().map(report).collect()
    }
}

/// A queue held by a worker.
pub struct Held<Q> {
    /// The queue.
    pub queue: Q,
    index: usize,
}

/// The queues of one worker.
pub struct Queues<Q> {
    /// The queues that the worker holds.
    pub held: Vec<Held<Q>>,
    worker: usize,
    assignment: Arc<Assignment<Q>>,
}

impl<Q> Queues<Q> {
    /// Puts down the queues that are assigned to another worker and picks up those assigned to this one. To be called at quiescent
    /// points.
    pub fn settle(&mut self) {
        self.settle_with(|_| {}, |_| {});
    }

    /// Does the same as [`settle`](Queues::settle), and calls `leaves` for each queue that is put down and `comes` for each that is
    /// picked up. The vector and the slots have room for every queue, so nothing allocates.
    pub fn settle_with(&mut self, mut leaves: impl FnMut(&Q), mut comes: impl FnMut(&Q)) {
        let (slots, worker) = (&self.assignment.slots, self.worker);
        for Held { queue, index } in self.held.extract_if(.., |held| slots[held.index].owner() != worker) {
            leaves(&queue);
            assert!(slots[index].resting.push(queue).is_ok(), "a queue is in one place");
        }
        let mine = slots.iter().enumerate().filter(|(_, slot)| slot.owner() == worker);
        for (index, queue) in mine.filter_map(|(index, slot)| Some((index, slot.resting.pop()?))) {
            comes(&queue);
            self.held.push(Held { queue, index });
        }
    }

    /// Whether another worker still holds a queue of this one, and will not wake this one when it puts the queue down.
    pub fn is_waiting(&self) -> bool {
        self.assignment.slots.iter().filter(|slot| slot.owner() == self.worker).count() > self.held.len()
    }

    /// Counts packets that came by the queue held at `at`.
    #[inline(always)]
    pub fn count(&self, at: usize, packets: usize) {
        let counter = &self.assignment.slots[self.held[at].index].packets;
        counter.store(counter.load(Ordering::Relaxed) + packets as u64, Ordering::Relaxed);
    }
}

impl<Q> Drop for Queues<Q> {
    fn drop(&mut self) {
        for Held { queue, index } in self.held.drain(..) {
            let _ = self.assignment.slots[index].resting.push(queue); // the slot of a held queue is empty
        }
        self.assignment.close(self.worker);
    }
}
