//! Who has which queue.
//!
//! A queue is either with the worker that uses it or at rest in its slot. The control thread writes into the slot whose it is to
//! be; at its next quiescent point the worker that has it puts it down, and the one that is to have it picks it up. Nobody
//! waits for anybody, and a queue is never with two.

use crate::PortError;
use crossbeam::queue::ArrayQueue;
use dpdk::{Queues, RxQueue, TxQueue};
use engine::{Waker, WorkerHandle};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// No worker.
const NOBODY: usize = usize::MAX;

/// The queues of a port.
pub(super) struct Assignment {
    rx: Box<[Slot<RxQueue>]>,
    tx: Box<[Slot<TxQueue>]>,
    /// Workers that have a shard, in the order of their coming.
    workers: Mutex<Vec<(usize, Waker)>>,
}

struct Slot<Q> {
    /// Written by control threads, read by workers.
    owner: AtomicUsize,
    resting: ArrayQueue<Q>,
}

impl<Q> Slot<Q> {
    fn new(queue: Q) -> Slot<Q> {
        let resting = ArrayQueue::new(1);
        drop(resting.push(queue));
        Slot { owner: AtomicUsize::new(NOBODY), resting }
    }

    fn owner(&self) -> usize {
        self.owner.load(Ordering::Relaxed)
    }
}

impl Assignment {
    pub(super) fn new(queues: Queues) -> Assignment {
        Assignment {
            rx: queues.rx.into_iter().map(Slot::new).collect(),
            tx: queues.tx.into_iter().map(Slot::new).collect(),
            workers: Mutex::default(),
        }
    }

    pub(super) fn rx_count(&self) -> u16 {
        self.rx.len() as u16
    }

    pub(super) fn tx_count(&self) -> u16 {
        self.tx.len() as u16
    }

    /// Lets `worker` take part, and spreads the queues anew.
    pub(super) fn open(self: &Arc<Assignment>, worker: &WorkerHandle) -> ShardQueues {
        let mut workers = self.workers.lock().expect("no panic under this lock");
        workers.push((worker.id(), worker.waker()));
        self.spread(&workers);
        ShardQueues {
            worker: worker.id(),
            rx: Vec::with_capacity(self.rx.len()),
            tx: Vec::with_capacity(self.tx.len()),
            assignment: self.clone(),
        }
    }

    fn close(&self, worker: usize) {
        let mut workers = self.workers.lock().expect("no panic under this lock");
        workers.retain(|(id, _)| *id != worker);
        self.spread(&workers);
    }

    /// Receive queues go round; of the send queues, one to each worker.
    fn spread(&self, workers: &[(usize, Waker)]) {
        let id = |index: usize| workers.get(index).map_or(NOBODY, |(id, _)| *id);
        for (index, slot) in self.rx.iter().enumerate() {
            slot.owner.store(id(index % workers.len().max(1)), Ordering::Relaxed);
        }
        for (index, slot) in self.tx.iter().enumerate() {
            slot.owner.store(id(index), Ordering::Relaxed);
        }
        workers.iter().for_each(|(_, waker)| waker.wake());
    }

    pub(super) fn move_rx(&self, queue: u16, worker: usize) -> Result<(), PortError> {
        let invalid =
            |field, got: usize, expected: String| PortError::Invalid { field, got: got.to_string(), expected };
        let Some(slot) = self.rx.get(usize::from(queue)) else {
            return Err(invalid("queue", queue.into(), format!("0 to {}", self.rx.len() - 1)));
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

    pub(super) fn rx_places(&self) -> Vec<Option<usize>> {
        self.rx.iter().map(|slot| Some(slot.owner()).filter(|&owner| owner != NOBODY)).collect()
    }
}

/// The queues that one worker has.
pub(super) struct ShardQueues {
    pub(super) rx: Vec<RxQueue>,
    pub(super) tx: Vec<TxQueue>,
    worker: usize,
    assignment: Arc<Assignment>,
}

impl ShardQueues {
    /// Puts down what is another's now and picks up what is there for this worker.
    pub(super) fn settle(&mut self) {
        settle(&mut self.rx, &self.assignment.rx, self.worker, RxQueue::id);
        settle(&mut self.tx, &self.assignment.tx, self.worker, TxQueue::id);
    }

    /// Whether a queue of this worker is still with another, who will not wake it when it puts it down.
    pub(super) fn is_waiting(&self) -> bool {
        let Assignment { rx, tx, .. } = &*self.assignment;
        owned(rx, self.worker) > self.rx.len() || owned(tx, self.worker) > self.tx.len()
    }
}

impl Drop for ShardQueues {
    fn drop(&mut self) {
        let assignment = &self.assignment;
        self.rx.drain(..).for_each(|queue| drop(assignment.rx[usize::from(queue.id())].resting.push(queue)));
        self.tx.drain(..).for_each(|queue| drop(assignment.tx[usize::from(queue.id())].resting.push(queue)));
        assignment.close(self.worker);
    }
}

fn owned<Q>(slots: &[Slot<Q>], worker: usize) -> usize {
    slots.iter().filter(|slot| slot.owner() == worker).count()
}

/// Both vectors and slots have room for every queue, so nothing allocates.
fn settle<Q>(mine: &mut Vec<Q>, slots: &[Slot<Q>], worker: usize, id: impl Fn(&Q) -> u16) {
    for queue in mine.extract_if(.., |queue| slots[usize::from(id(queue))].owner() != worker) {
        let slot = usize::from(id(&queue));
        assert!(slots[slot].resting.push(queue).is_ok(), "a queue is in one place");
    }
    let picked = slots.iter().filter(|slot| slot.owner() == worker).filter_map(|slot| slot.resting.pop());
    mine.extend(picked);
}
