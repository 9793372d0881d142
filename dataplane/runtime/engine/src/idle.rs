//! When a worker without work stops spinning, and how it is woken without a lost wake-up.

use crate::sync::{AtomicBool, Ordering, fence};
use clock::Cycles;
use std::time::Duration;

/// One setting from lowest latency to lowest CPU: how long a worker spins without work before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdlePolicy {
    /// Spin for this long after the last work; [`Cycles::NEVER`] never sleeps.
    pub spin: Cycles,
}

impl IdlePolicy {
    /// Never sleep.
    pub const POLL: IdlePolicy = IdlePolicy { spin: Cycles::NEVER };

    /// Spin for `span` after the last work, then sleep.
    pub fn spin_for(span: Duration) -> IdlePolicy {
        IdlePolicy { spin: span.into() }
    }
}

impl Default for IdlePolicy {
    /// 50 us: longer than a busy guest's pause between requests, shorter than anyone notices on a bill.
    fn default() -> IdlePolicy {
        IdlePolicy::spin_for(Duration::from_micros(50))
    }
}

/// The promise between a worker that goes to sleep and those who bring it work.
///
/// The worker: `announce`, look at every inbox, sleep only if all are empty. The sender: put work in, then `must_wake`. Both
/// sides put a full fence between their write and their read, so at least one sees the other (Dekker).
#[derive(Debug)]
pub(crate) struct SleepFlag(AtomicBool);

impl SleepFlag {
    pub(crate) fn new() -> SleepFlag {
        SleepFlag(AtomicBool::new(false))
    }

    /// Worker: says that it is about to sleep. Look at the inboxes after this.
    pub(crate) fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Worker: is awake.
    pub(crate) fn awake(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Sender: whether the worker needs a wake-up call for what was just put in.
    pub(crate) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::sync::{Arc, AtomicU64, Mutex};
    use loom::sync::Condvar;

    /// A worker that sleeps only after an empty look never sleeps through a message, whatever the interleaving. Loom finds the
    /// deadlock without the fence of `announce` or of `must_wake`.
    #[test]
    fn no_wakeup_is_lost() {
        loom::model(|| {
            let flag = Arc::new(SleepFlag::new());
            let inbox = Arc::new(AtomicBool::new(false));
            let eventfd = Arc::new((Mutex::new(false), Condvar::new()));
            let sender = {
                let (flag, inbox, eventfd) = (flag.clone(), inbox.clone(), eventfd.clone());
                loom::thread::spawn(move || {
                    inbox.store(true, Ordering::Relaxed);
                    if flag.must_wake() {
                        *eventfd.0.lock().unwrap() = true;
                        eventfd.1.notify_one();
                    }
                })
            };
            flag.announce();
            if !inbox.load(Ordering::Relaxed) {
                let mut rung = eventfd.0.lock().unwrap();
                while !*rung {
                    rung = eventfd.1.wait(rung).unwrap(); // deadlock here is a lost wake-up
                }
            }
            flag.awake();
            sender.join().unwrap();
            assert!(inbox.load(Ordering::Relaxed));
        });
    }
    /// What wakes one worker: an epoll set.
    #[derive(Default)]
    struct WakeSet {
        rung: Mutex<bool>,
        changed: Condvar,
    }

    impl WakeSet {
        fn ring(&self) {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }

        /// Sleeps until rung; loom reports a deadlock when that never comes.
        fn sleep(&self) {
            let mut rung = self.rung.lock().unwrap();
            while !*rung {
                rung = self.changed.wait(rung).unwrap();
            }
            *rung = false;
        }
    }

    /// A worker's inbox with the protocol of `Sender::send` and `Worker::sleep`.
    struct Worker {
        inbox: Mutex<Option<Command>>,
        flag: SleepFlag,
        set: WakeSet,
    }

    enum Command {
        Add(Queue),
        Take,
    }

    impl Worker {
        fn new() -> Arc<Worker> {
            Arc::new(Worker { inbox: Mutex::new(None), flag: SleepFlag::new(), set: WakeSet::default() })
        }

        fn send(&self, command: Command) {
            *self.inbox.lock().unwrap() = Some(command);
            if self.flag.must_wake() {
                self.set.ring();
            }
        }

        fn take(&self) -> Option<Command> {
            self.inbox.lock().unwrap().take()
        }

        fn sleep(&self, arm: impl FnOnce() -> bool) {
            self.flag.announce();
            let ready = self.inbox.lock().unwrap().is_some() | arm();
            if !ready {
                self.set.sleep();
            }
            self.flag.awake();
        }
    }

    /// A ring as two sides share it, and the driver's kick: an eventfd, readable from the first kick on, that wakes the thread that
    /// watches it.
    struct Ring {
        available: AtomicU64,
        kicks_wanted: AtomicBool,
        kick: Mutex<(bool, Option<Arc<Worker>>)>,
    }

    /// The device's side of the ring: it is where it was moved to.
    struct Queue {
        ring: Arc<Ring>,
        taken: u64,
    }

    impl Queue {
        fn poll(&mut self) {
            if self.ring.available.load(Ordering::Acquire) > self.taken {
                self.taken += 1;
            }
        }

        /// As `Virtqueue::arm`.
        fn arm(&self) -> bool {
            self.ring.kicks_wanted.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.ring.available.load(Ordering::Relaxed) > self.taken
        }

        fn disarm(&self) {
            self.ring.kicks_wanted.store(false, Ordering::Relaxed);
        }
    }

    impl Ring {
        /// The driver makes a chain available.
        fn post(&self) {
            self.available.store(1, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.kicks_wanted.load(Ordering::Relaxed) {
                let mut kick = self.kick.lock().unwrap();
                kick.0 = true;
                if let Some(worker) = &kick.1 {
                    worker.set.ring();
                }
            }
        }

        /// EPOLL_CTL_ADD: an eventfd that is readable already wakes at once.
        fn watch(&self, worker: Option<Arc<Worker>>) {
            let mut kick = self.kick.lock().unwrap();
            if let (true, Some(worker)) = (kick.0, &worker) {
                worker.set.ring();
            }
            kick.1 = worker;
        }
    }

    /// A queue is moved while its driver makes a chain available and both workers would rather sleep: the chain is taken once,
    /// by one of them. Loom finds the deadlock without the fence of `arm` or of `post`, when `arm` does not look again, and when
    /// a worker does not look at its inbox before it sleeps.
    #[test]
    fn a_ring_that_moves_loses_no_kick() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let (from, to) = (Worker::new(), Worker::new());
            let kick = Mutex::new((false, Some(from.clone())));
            let ring = Arc::new(Ring { available: AtomicU64::new(0), kicks_wanted: AtomicBool::new(false), kick });
            let driver = {
                let ring = ring.clone();
                loom::thread::spawn(move || ring.post())
            };
            let old = {
                let (from, mut queue) = (from.clone(), Queue { ring: ring.clone(), taken: 0 });
                loom::thread::spawn(move || {
                    while from.take().is_none() {
                        queue.poll();
                        from.sleep(|| queue.arm());
                        queue.disarm();
                    }
                    queue
                })
            };
            let new = {
                let to = to.clone();
                loom::thread::spawn(move || {
                    let mut queue = None;
                    loop {
                        if let Some(Command::Add(added)) = to.take() {
                            queue = Some(added);
                        }
                        queue.iter_mut().for_each(Queue::poll);
                        if let Some(queue) = &queue
                            && queue.taken > 0
                        {
                            return queue.taken;
                        }
                        to.sleep(|| queue.as_ref().is_some_and(Queue::arm));
                        queue.iter().for_each(Queue::disarm);
                    }
                })
            };
            // As `Placement::move_queue`: the kick wakes the new worker already while the old one still has the queue.
            ring.watch(Some(to.clone()));
            from.send(Command::Take);
            let queue = old.join().unwrap();
            to.send(Command::Add(queue));
            assert_eq!(new.join().unwrap(), 1);
            driver.join().unwrap();
            ring.watch(None);
        });
    }
}
