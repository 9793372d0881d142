//! A value that one publishes and many workers read, retired by epoch.
//!
//! Readers hold a plain reference until their next quiescent point and never write a shared cache line but their own "seen"
//! mark. The publisher frees an old value once every reader has passed the epoch that replaced it: never on a worker.

use crate::sync::{Arc, AtomicPtr, AtomicU64, Mutex, Ordering};

/// The publisher's side.
#[derive(Debug)]
pub struct Snapshot<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    current: AtomicPtr<T>,
    epoch: AtomicU64,
    /// Publisher only.
    state: Mutex<PublisherState<T>>,
}

#[derive(Debug)]
struct PublisherState<T> {
    /// One mark a reader: the last epoch it has passed; `GONE` once it was dropped.
    seen: Vec<Arc<AtomicU64>>,
    /// Values that were replaced, with the epoch that replaced them.
    retired: Vec<(u64, *mut T)>,
}

const GONE: u64 = u64::MAX;

// SAFETY: values are shared by reference among readers and freed by the publisher.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: readers share values by reference, which `T: Sync` allows; the publisher's state is behind a mutex.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T: Send + Sync> Snapshot<T> {
    /// Publishes the first value.
    pub fn new(value: T) -> Snapshot<T> {
        let state = PublisherState { seen: Vec::new(), retired: Vec::new() };
        let current = AtomicPtr::new(Box::into_raw(Box::new(value)));
        Snapshot { shared: Arc::new(Shared { current, epoch: AtomicU64::new(1), state: Mutex::new(state) }) }
    }

    /// Publishes `value`. Readers see it from their next quiescent point on. Frees what no reader holds any more.
    pub fn publish(&self, value: T) {
        let mut state = self.shared.state.lock().expect("no panic under this lock");
        let old = self.shared.current.swap(Box::into_raw(Box::new(value)), Ordering::AcqRel);
        let epoch = self.shared.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        state.retired.push((epoch, old));
        state.reclaim();
    }

    /// Frees what no reader holds any more. Returns how many old values are still held.
    pub fn reclaim(&self) -> usize {
        let mut state = self.shared.state.lock().expect("no panic under this lock");
        state.reclaim();
        state.retired.len()
    }

    /// A new reader, for one worker.
    pub fn reader(&self) -> Reader<T> {
        let mut state = self.shared.state.lock().expect("no panic under this lock");
        let epoch = self.shared.epoch.load(Ordering::Acquire);
        let seen = Arc::new(AtomicU64::new(epoch));
        state.seen.push(seen.clone());
        let value = self.shared.current.load(Ordering::Acquire);
        Reader { shared: self.shared.clone(), seen, epoch, value }
    }
}

impl<T> PublisherState<T> {
    fn reclaim(&mut self) {
        self.seen.retain(|seen| seen.load(Ordering::Acquire) != GONE);
        let passed = self.seen.iter().map(|seen| seen.load(Ordering::Acquire)).min().unwrap_or(GONE);
        self.retired.retain(|&(epoch, value)| {
            let held = epoch > passed;
            if !held {
                // SAFETY: made by `Box::into_raw`; every reader has loaded a later value since it was replaced.
                drop(unsafe { Box::from_raw(value) });
            }
            held
        });
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let mut state = self.state.lock().expect("no panic under this lock");
        let retired = std::mem::take(&mut state.retired).into_iter().map(|(_, value)| value);
        for value in retired.chain([self.current.load(Ordering::Acquire)]) {
            // SAFETY: made by `Box::into_raw`; the last publisher and reader are gone.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}

/// One worker's view. Moves with the source that owns it.
#[derive(Debug)]
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    seen: Arc<AtomicU64>,
    epoch: u64,
    value: *mut T,
}

// SAFETY: a reader is a shared reference with a mark of its own.
unsafe impl<T: Send + Sync> Send for Reader<T> {}

impl<T> Reader<T> {
    /// The value as of the last quiescent point.
    #[inline(always)]
    pub fn get(&self) -> &T {
        // SAFETY: the publisher frees it only after `quiesce` has said that this reader moved on; `quiesce` takes `&mut self`.
        unsafe { &*self.value }
    }

    /// Moves on to the latest value. Returns whether it is another one.
    #[inline]
    pub fn quiesce(&mut self) -> bool {
        let epoch = self.shared.epoch.load(Ordering::Acquire);
        if epoch == self.epoch {
            return false;
        }
        self.value = self.shared.current.load(Ordering::Acquire);
        self.epoch = epoch;
        self.seen.store(epoch, Ordering::Release);
        true
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.seen.store(GONE, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Counted(u32, Arc<AtomicU64>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_value_lives_until_its_last_reader_moves_on() {
        let drops = Arc::new(AtomicU64::new(0));
        let snapshot = Snapshot::new(Counted(1, drops.clone()));
        let (mut a, b) = (snapshot.reader(), snapshot.reader());
        snapshot.publish(Counted(2, drops.clone()));
        assert_eq!((a.get().0, drops.load(Ordering::Relaxed)), (1, 0));
        assert!(a.quiesce());
        assert_eq!((a.get().0, b.get().0, snapshot.reclaim()), (2, 1, 1));
        drop(b);
        assert_eq!((snapshot.reclaim(), drops.load(Ordering::Relaxed)), (0, 1));
        assert!(!a.quiesce());
        drop(snapshot);
        assert_eq!(a.get().0, 2);
        drop(a);
        assert_eq!(drops.load(Ordering::Relaxed), 2);
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::cell::UnsafeCell;

    /// A value that loom watches: it is written when it is made and when it is dropped, and read in between.
    struct Watched(loom::alloc::Track<UnsafeCell<u32>>);

    // SAFETY: loom itself finds every access that races.
    unsafe impl Sync for Watched {}

    impl Watched {
        fn new(value: u32) -> Watched {
            Watched(loom::alloc::Track::new(UnsafeCell::new(value)))
        }

        fn read(&self) -> u32 {
            // SAFETY: the pointer is valid for the call; loom finds every access that races.
            self.0.get_ref().with(|value| unsafe { *value })
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            // SAFETY: the pointer is valid for the call; loom finds every access that races.
            self.0.get_ref().with_mut(|value| unsafe { *value = u32::MAX });
        }
    }

    /// A reader never looks at a value that is being made or freed, never goes back, and nothing leaks. Loom finds the race when
    /// `quiesce` loads epoch or value or stores its mark relaxed, when `reclaim` loads the mark relaxed, and when it frees what
    /// was replaced an epoch too early.
    #[test]
    fn no_reader_sees_a_freed_value() {
        loom::model(|| {
            let snapshot = Snapshot::new(Watched::new(0));
            let mut reader = snapshot.reader();
            let worker = loom::thread::spawn(move || {
                let mut last = 0;
                for _ in 0..2 {
                    let value = reader.get().read();
                    assert!(value >= last);
                    last = value;
                    reader.quiesce();
                }
                assert!(reader.get().read() >= last);
            });
            snapshot.publish(Watched::new(1));
            snapshot.publish(Watched::new(2));
            worker.join().unwrap();
            assert_eq!(snapshot.reclaim(), 0);
        });
    }
}
