//! A disk that fails on demand: SPDK's `Error Injection Disk`, named after the disk under it with `EE_` in front.

use crate::{
    Bdev, BlockChannel, BlockError, BlockRequest, Completed, Completions, Geometry, Identity, OpKind, Request,
    RequestQueue, Status, limits,
};
use clock::Cycles;
use invalid::Invalid;
use parking_lot::Mutex;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// A sleeping worker that holds requests looks this often whether they may go.
const RECHECK: Duration = Duration::from_millis(10);
/// Completions that a channel has room for before it has to grow.
const COMPLETIONS: usize = 256;

/// The error that a request meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorType {
    /// The request ends with an I/O error and never reaches the disk.
    #[default]
    Failure,
    /// The request is held until [`ErrorInjection::clear`], then goes to the disk.
    Pending,
    /// One byte of what it reads or writes is changed. Other requests than reads and writes are left alone.
    CorruptData,
    /// The request is refused for lack of memory, which means that it is submitted again at the next poll.
    NoMem,
}

/// An injection into the next requests of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// The error that these requests meet.
    pub error_type: ErrorType,
    /// To how many of them.
    pub num: u32,
    /// Only while the channel has at least this many requests outstanding.
    pub queue_depth: u64,
    /// The byte to change, counted from the begin of the request; later than its end: nothing is changed.
    pub corrupt_offset: u64,
    /// The value to XOR the byte with; not 0.
    pub corrupt_value: u8,
}

/// The state that all channels share: for each kind of request an injection and how often it is still to be done.
#[derive(Debug, Default)]
struct Plan {
    /// Written by control.
    injections: Mutex<[Injection; OpKind::ALL.len()]>,
    /// Raised by control after `injections` changed; looked at by channels when something is left to do.
    generation: AtomicU64,
    /// Raised by control to let held requests go.
    cleared: AtomicU64,
    /// By [`OpKind`]. Set by control, counted down by channels.
    left: [AtomicU32; OpKind::ALL.len()],
}

/// A disk that fails on demand.
pub struct ErrorInjection {
    identity: Identity,
    base: Arc<dyn Bdev>,
    plan: Arc<Plan>,
}

impl ErrorInjection {
    /// Puts a disk that does nothing wrong yet over `base`. Without a uuid it gets a random one.
    pub fn create(base: Arc<dyn Bdev>, uuid: Option<Uuid>) -> Result<Arc<ErrorInjection>, BlockError> {
        let name = format!("EE_{}", base.identity().name);
        let identity = limits::identity(name, "Error Injection Disk", uuid)?;
        Ok(Arc::new(ErrorInjection { identity, base, plan: Arc::default() }))
    }

    /// Plans errors for requests of a kind, or of all; what was planned for them before is forgotten.
    pub fn inject(&self, kind: Option<OpKind>, injection: Injection) -> Result<(), BlockError> {
        if injection.error_type == ErrorType::CorruptData && injection.corrupt_value == 0 {
            return Err(Invalid::new("corrupt_value", 0, "1 to 255, to change the byte by XOR").into());
        }
        let kinds = || OpKind::ALL.into_iter().filter(|&each| kind.is_none_or(|kind| kind == each));
        let mut injections = self.plan.injections.lock();
        for each in kinds() {
            injections[each as usize] = injection;
        }
        self.plan.generation.fetch_add(1, Ordering::Relaxed);
        // Last: a channel that sees the number sees the generation, and takes over the injection first.
        for each in kinds() {
            self.plan.left[each as usize].store(injection.num, Ordering::Release);
        }
        Ok(())
    }

    /// Forgets all plans and lets held requests go to the disk, within ten milliseconds.
    pub fn clear(&self) {
        for left in &self.plan.left {
            left.store(0, Ordering::Relaxed);
        }
        self.plan.cleared.fetch_add(1, Ordering::Release);
    }
}

impl Bdev for ErrorInjection {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        Ok(Box::new(ErrorChannel {
            base: self.base.open_channel()?,
            plan: self.plan.clone(),
            generation: 0,
            injections: [Injection::default(); OpKind::ALL.len()],
            cleared: self.plan.cleared.load(Ordering::Relaxed),
            completed: Completions::with_capacity(COMPLETIONS),
            pending: RequestQueue::new(),
            retry: RequestQueue::new(),
            now: Cycles(0),
        }))
    }

    fn rescan(&self) -> Result<bool, BlockError> {
        self.base.rescan()
    }

    fn timed_out(&self) -> u64 {
        self.base.timed_out()
    }
}

struct ErrorChannel {
    base: Box<dyn BlockChannel>,
    plan: Arc<Plan>,
    generation: u64,
    /// This channel's copy of the plan's.
    injections: [Injection; OpKind::ALL.len()],
    cleared: u64,
    /// Completions of the base that were not looked at yet.
    completed: Completions,
    /// Held until cleared.
    pending: RequestQueue,
    /// Refused for lack of memory: submitted again at the next poll.
    retry: RequestQueue,
    now: Cycles,
}

impl ErrorChannel {
    /// The injection for a request, if there is one left for it. `early`: it is on its way to the disk, not back.
    fn draw(&mut self, request: &Request, early: bool) -> Option<Injection> {
        let kind = OpKind::from(request.op);
        if self.plan.left[kind as usize].load(Ordering::Acquire) == 0 || !self.adopt_plan() {
            return None;
        }
        let injection = self.injections[kind as usize];
        let corrupts = injection.error_type == ErrorType::CorruptData;
        let applies = match kind {
            OpKind::Read => corrupts != early,
            OpKind::Write => early,
            _ => early && !corrupts,
        };
        if !applies || early && (self.outstanding() as u64) < injection.queue_depth {
            return None;
        }
        let one_less = |left: u32| left.checked_sub(1);
        let left = &self.plan.left[kind as usize];
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok().then_some(injection)
    }

    /// Takes over a changed plan. False while control is changing it.
    fn adopt_plan(&mut self) -> bool {
        let generation = self.plan.generation.load(Ordering::Relaxed);
        if generation == self.generation {
            return true;
        }
        // Control holds this lock for a copy of a few words, and a worker comes here once a change.
        let Some(injections) = self.plan.injections.try_lock() else { return false };
        self.injections = *injections;
        self.generation = generation;
        true
    }

    /// Gives back what the base has given back; a read may be corrupted on the way.
    fn pass_up(&mut self, done: &mut Completions) -> usize {
        let mut completed = std::mem::take(&mut self.completed);
        let events = completed.len();
        for Completed { request, status } in completed.drain() {
            if status == Status::Ok
                && let Some(injection) = self.draw(&request, false)
            {
                corrupt(&request, injection);
            }
            BlockRequest::new(request).complete(done, status);
        }
        self.completed = completed;
        events
    }
}

/// Changes one byte of a request's buffers.
fn corrupt(request: &Request, injection: Injection) {
    let mut byte = [0];
    if request.buffers.read(injection.corrupt_offset, &mut byte).is_ok() {
        byte[0] ^= injection.corrupt_value;
        request.buffers.write(injection.corrupt_offset, &byte).expect("read a moment ago");
    }
}

impl BlockChannel for ErrorChannel {
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        let injection = self.draw(&request, true);
        match injection.map(|injection| injection.error_type) {
            Some(ErrorType::Failure) => return request.complete(done, Status::IoError),
            Some(ErrorType::Pending) => return self.pending.push(request),
            Some(ErrorType::NoMem) => return self.retry.push(request),
            Some(ErrorType::CorruptData) => corrupt(&request, injection.unwrap_or_default()),
            None => {}
        }
        self.base.submit(request, &mut self.completed);
    }

    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        self.now = now;
        let cleared = self.plan.cleared.load(Ordering::Acquire);
        if cleared != self.cleared {
            self.cleared = cleared;
            while let Some(request) = self.pending.pop() {
                self.base.submit(request, &mut self.completed);
            }
        }
        for _ in 0..self.retry.len() {
            if let Some(request) = self.retry.pop() {
                self.submit(request, done);
            }
        }
        let events = self.base.poll(now, &mut self.completed);
        events + self.pass_up(done)
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.base.wake_fd()
    }

    fn deadline(&self) -> Cycles {
        if !self.completed.is_empty() || !self.retry.is_empty() {
            return Cycles(0);
        }
        let recheck = if self.pending.is_empty() { Cycles::NEVER } else { self.now + RECHECK.into() };
        self.base.deadline().min(recheck)
    }

    fn outstanding(&self) -> usize {
        self.base.outstanding() + self.completed.len() + self.pending.len() + self.retry.len()
    }
}
