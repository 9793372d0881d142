//! A bounded queue from one worker to another.
//!
//! Each side counts in a cache line of its own and remembers how far it saw the other: it looks across only when the queue seems
//! full, or empty. Nothing waits, and no line is written by both sides.

use crate::sync::{Arc, AtomicUsize, Ordering, UnsafeCell};
use crossbeam::utils::CachePadded;
use std::mem::MaybeUninit;

#[derive(Debug)]
struct Shared<T> {
    /// Values put in, ever; the producer writes it.
    put: CachePadded<AtomicUsize>,
    /// Values taken out, ever; the consumer writes it.
    taken: CachePadded<AtomicUsize>,
    /// A power of two; value `n` lies in place `n` modulo the length. Those from `taken` to `put` are there.
    places: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a place is the producer's until `put` passes it, and then the consumer's until `taken` does.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: producer and consumer are one each, and a place belongs to one of them at a time (see `Send` of this type).
unsafe impl<T: Send> Sync for Shared<T> {}

/// The end that values are put in by.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    put: usize,
    taken_seen: usize,
}

/// The end that values are taken out by.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    taken: usize,
    put_seen: usize,
}

/// A queue of `capacity` values, rounded up to a power of two.
pub fn spsc<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let places = (0..capacity.max(1).next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let shared = Arc::new(Shared { put: counter(), taken: counter(), places });
    (Producer { shared: shared.clone(), put: 0, taken_seen: 0 }, Consumer { shared, taken: 0, put_seen: 0 })
}

fn counter() -> CachePadded<AtomicUsize> {
    CachePadded::new(AtomicUsize::new(0))
}

impl<T> Shared<T> {
    #[inline(always)]
    fn place(&self, n: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.places[n & (self.places.len() - 1)]
    }
}

impl<T> Producer<T> {
    /// Puts a value in; gives it back where there is no room.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        let shared = &*self.shared;
        if self.put.wrapping_sub(self.taken_seen) == shared.places.len() {
            self.taken_seen = shared.taken.load(Ordering::Acquire);
            if self.put.wrapping_sub(self.taken_seen) == shared.places.len() {
                return Err(value);
            }
        }
        // SAFETY: the place is ours: the consumer is done with what was there, and does not look before `put` passes it.
        shared.place(self.put).with_mut(|place| unsafe { (*place).write(value) });
        self.put = self.put.wrapping_add(1);
        shared.put.store(self.put, Ordering::Release);
        Ok(())
    }
}

impl<T> Consumer<T> {
    /// The oldest value, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let shared = &*self.shared;
        // SAFETY: the value is there, and is taken once: the producer does not come back before `taken` passes it.
        let value = shared.place(self.taken).with(|place| unsafe { (*place).assume_init_read() });
        self.taken = self.taken.wrapping_add(1);
        shared.taken.store(self.taken, Ordering::Release);
        Some(value)
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        if self.taken == self.put_seen {
            self.put_seen = self.shared.put.load(Ordering::Acquire);
        }
        self.taken == self.put_seen
    }
}

impl<T> Drop for Consumer<T> {
    /// Drops the values that are in the queue; the queue itself drops those that are put in later.
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let (taken, put) = (self.taken.load(Ordering::Relaxed), self.put.load(Ordering::Relaxed));
        for n in (0..put.wrapping_sub(taken)).map(|n| taken.wrapping_add(n)) {
            // SAFETY: both ends are gone, and the value was not taken.
            self.place(n).with_mut(|place| unsafe { (*place).assume_init_drop() });
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn values_come_in_order_and_within_bounds() {
        let (mut producer, mut consumer) = spsc(3);
        for round in 0..100 {
            assert!(consumer.is_empty() && consumer.pop().is_none());
            for n in 0..4 {
                assert_eq!(producer.push((round, n)), Ok(()));
            }
            assert_eq!(producer.push((round, 4)), Err((round, 4)));
            assert_eq!(consumer.pop(), Some((round, 0)));
            assert_eq!(producer.push((round, 5)), Ok(()));
            for n in [1, 2, 3, 5] {
                assert_eq!(consumer.pop(), Some((round, n)));
            }
        }
    }

    #[test]
    fn values_left_in_an_spsc_queue_are_dropped_once() {
        let value = Arc::new(());
        let (mut producer, mut consumer) = spsc(8);
        for _ in 0..5 {
            producer.push(value.clone()).unwrap();
        }
        drop(consumer.pop());
        drop(consumer);
        assert_eq!(Arc::strong_count(&value), 1);
        producer.push(value.clone()).unwrap();
        drop(producer);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn two_threads_lose_nothing() {
        let (mut producer, mut consumer) = spsc(64);
        let other = std::thread::spawn(move || {
            for n in 0..200_000_u64 {
                while producer.push(Box::new(n)).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        for expected in 0..200_000 {
            let value = std::iter::repeat_with(|| {
                consumer.pop().or_else(|| {
                    std::thread::yield_now();
                    None
                })
            });
            assert_eq!(*value.flatten().next().unwrap(), expected);
        }
        other.join().unwrap();
        assert!(consumer.is_empty());
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::idle::SleepFlag;
    use crate::sync::Mutex;
    use loom::alloc::Track;
    use loom::sync::Condvar;

    /// Each value passes once and in order, and neither side touches a place that is the other's. Loom finds the race when `put`
    /// or `taken` is stored or loaded relaxed, and the leak when an end drops less.
    #[test]
    fn no_place_is_touched_by_both() {
        loom::model(|| {
            let (mut producer, mut consumer) = spsc(2);
            let worker = loom::thread::spawn(move || {
                (0..4).filter(|n| producer.push(Track::new(*n)).is_ok()).collect::<Vec<_>>()
            });
            let mut taken: Vec<i32> = (0..2).filter_map(|_| consumer.pop()).map(Track::into_inner).collect();
            let put = worker.join().unwrap();
            taken.extend(std::iter::from_fn(|| consumer.pop()).map(Track::into_inner));
            assert_eq!(taken, put);
        });
    }

    /// An end that goes leaves nothing behind, whatever the other is doing.
    #[test]
    fn values_that_no_reader_takes_are_dropped() {
        loom::model(|| {
            let (mut producer, consumer) = spsc(2);
            let worker = loom::thread::spawn(move || {
                for n in 0..2 {
                    drop(producer.push(Track::new(n)));
                }
            });
            drop(consumer);
            worker.join().unwrap();
        });
    }

    /// Two workers give packets to a third, each of them several and then one call to wake it, as the switch does. The third
    /// sleeps only after an empty look at every queue, and sleeps through none. Loom finds the deadlock when it looks before it
    /// announces, and when a giver wakes before it gives.
    #[test]
    fn a_value_in_an_spsc_queue_wakes_its_reader() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new((SleepFlag::new(), Mutex::new(false), Condvar::new()));
            let giver = |count: u32| {
                let (mut producer, consumer) = spsc(2);
                let shared = shared.clone();
                let thread = loom::thread::spawn(move || {
                    (0..count).for_each(|n| producer.push(n).unwrap());
                    if shared.0.must_wake() {
                        *shared.1.lock().unwrap() = true;
                        shared.2.notify_one();
                    }
                });
                (thread, consumer)
            };
            let (first, second) = (giver(2), giver(1));
            let mut queues = [first.1, second.1];
            let mut taken = 0;
            while taken < 3 {
                taken += queues.iter_mut().map(|queue| std::iter::from_fn(|| queue.pop()).count()).sum::<usize>();
                shared.0.announce();
                if taken < 3 && queues.iter_mut().all(Consumer::is_empty) {
                    let mut rung = shared.1.lock().unwrap();
                    while !*rung {
                        rung = shared.2.wait(rung).unwrap();
                    }
                    *rung = false;
                }
                shared.0.awake();
            }
            first.0.join().unwrap();
            second.0.join().unwrap();
        });
    }
}
