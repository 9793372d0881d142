//! Who has which queue.
//!
//! A queue is either with the worker that uses it or at rest in its slot. The control thread writes into the slot whose it is to
//! be; at its next quiescent point the worker that has it puts it down, and the one that is to have it picks it up. Nobody
//! waits for anybody, and a queue is never with two. What a worker took from a queue it has carried to its end before it puts the
//! queue down, so packets of a queue stay in order.

use crate::{PortError, QueueReport};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use engine::{Waker, WorkerHandle};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// No worker.
const NOBODY: usize = usize::MAX;

/// How queues are dealt to workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deal {
    /// All of them, in turn.
    InTurn,
    /// One to each, as far as they go.
    OneEach,
}

/// The queues of a port.
pub struct Assignment<Q> {
    slots: Box<[Slot<Q>]>,
    deal: Deal,
    /// Workers that have a shard, in the order of their coming.
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
        drop(resting.push(queue));
        Slot { owner: AtomicUsize::new(NOBODY), resting, packets: CachePadded::default() }
    }

    fn owner(&self) -> usize {
        self.owner.load(Ordering::Relaxed)
    }
}

impl<Q> Assignment<Q> {
    /// Queues that nobody has yet.
    pub fn new(queues: impl IntoIterator<Item = Q>, deal: Deal) -> Arc<Assignment<Q>> {
        let slots = queues.into_iter().map(Slot::new).collect();
        Arc::new(Assignment { slots, deal, workers: Mutex::default() })
    }

    /// How many queues there are.
    pub fn count(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Lets `worker` take part, and deals the queues anew.
    pub fn open(self: &Arc<Assignment<Q>>, worker: &WorkerHandle) -> Queues<Q> {
        let mut workers = self.workers.lock().expect("no panic under this lock");
        workers.push((worker.id(), worker.waker()));
        self.spread(&workers);
        Queues { held: Vec::with_capacity(self.slots.len()), worker: worker.id(), assignment: self.clone() }
    }

    fn close(&self, worker: usize) {
        let mut workers = self.workers.lock().expect("no panic under this lock");
        workers.retain(|(id, _)| *id != worker);
        self.spread(&workers);
    }

    fn spread(&self, workers: &[(usize, Waker)]) {
        for (index, slot) in self.slots.iter().enumerate() {
            let turn = if self.deal == Deal::InTurn { index % workers.len().max(1) } else { index };
            slot.owner.store(workers.get(turn).map_or(NOBODY, |(id, _)| *id), Ordering::Relaxed);
        }
        workers.iter().for_each(|(_, waker)| waker.wake());
    }

    /// Gives a queue to another worker, which has a shard.
    pub fn assign(&self, queue: u16, worker: usize) -> Result<(), PortError> {
        let invalid =
            |field, got: usize, expected: String| PortError::Invalid { field, got: got.to_string(), expected };
        let Some(slot) = self.slots.get(usize::from(queue)) else {
            return Err(invalid("queue", queue.into(), format!("0 to {}", self.slots.len() - 1)));
        };
        let workers = self.workers.lock().expect("no panic under this lock");
        if !workers.iter().any(|(id, _)| *id == worker) {
            let known: Vec<_> = workers.iter().map(|(id, _)| id).collect();
            return Err(invalid("worker", worker, format!("one that serves this port: {known:?}")));
        }
        slot.owner.store(worker, Ordering::Relaxed);
        workers.iter().for_each(|(_, waker)| waker.wake());
        Ok(())
    }

    /// Each queue at this moment.
    pub fn report(&self) -> Vec<QueueReport> {
        let report = |slot: &Slot<Q>| QueueReport {
            worker: Some(slot.owner()).filter(|&owner| owner != NOBODY),
            packets: slot.packets.load(Ordering::Relaxed),
        };
        self.slots.iter().map(report).collect()
    }
}

/// A queue that a worker has.
pub struct Held<Q> {
    /// The queue.
    pub queue: Q,
    index: usize,
}

/// The queues that one worker has.
pub struct Queues<Q> {
    /// Those.
    pub held: Vec<Held<Q>>,
    worker: usize,
    assignment: Arc<Assignment<Q>>,
}

impl<Q> Queues<Q> {
    /// Puts down what is another's now and picks up what is there for this worker. At quiescent points.
    pub fn settle(&mut self) {
        self.settle_with(|_| {}, |_| {});
    }

    /// As [`settle`](Queues::settle); `leaves` sees each queue that is put down, `comes` each that is picked up. Both the vector
    /// and the slots have room for every queue, so nothing allocates.
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

    /// Whether a queue of this worker is still with another, who will not wake it when it puts it down.
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
            drop(self.assignment.slots[index].resting.push(queue));
        }
        self.assignment.close(self.worker);
    }
}
