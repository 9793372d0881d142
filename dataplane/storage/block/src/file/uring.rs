//! A channel over an io_uring of its own.
//!
//! COOP_TASKRUN and not DEFER_TASKRUN: deferred completions do not make the ring's descriptor readable, so a sleeping worker would
//! miss them, and they can be collected by one thread alone, while a channel is dropped by another than polled it. Neither mode
//! was measurably cheaper than the other. Guest memory is not registered as fixed buffers: that would pin all of it for under a
//! tenth of the CPU of a 4 KiB read.

use super::transfer::{Bounce, Step, Transfer};
use super::{BOUNCE_BUFFERS, BOUNCE_BYTES, DEPTH, Disk};
use crate::{BlockChannel, BlockRequest, Completions, RequestQueue};
use clock::Cycles;
use io_uring::squeue::{Entry, SubmissionQueue};
use io_uring::{IoUring, opcode, types};
use memory::{Buffer, Pool};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The file's place in the ring's table of registered files.
const FILE: types::Fixed = types::Fixed(0);
/// User data of a cancellation, whose result is ignored.
const CANCELLATION: u64 = u64::MAX;

pub(super) struct UringChannel {
    ring: IoUring,
    slots: Slots,
    /// Requests that wait for a slot or a bounce buffer.
    backlog: RequestQueue,
    /// The time of the last poll.
    now: Cycles,
    /// `None`: requests may take for ever.
    timeout: Option<Cycles>,
    /// When the oldest request in flight may be late; means nothing while there is none.
    next_check: Cycles,
}

impl UringChannel {
    pub(super) fn open(disk: Arc<Disk>) -> io::Result<UringChannel> {
        // Twice the depth: as many cancellations as requests may wait to be sent.
        let ring = IoUring::builder().dontfork().setup_coop_taskrun().setup_taskrun_flag().build(2 * DEPTH as u32)?;
        ring.submitter().register_files(&[disk.fd()])?;
        let timeout = disk.timeout.map(Cycles::from);
        let slots = Slots::new(disk)?;
        let backlog = RequestQueue::new();
        Ok(UringChannel { ring, slots, backlog, now: Cycles(0), timeout, next_check: Cycles(0) })
    }

    /// Sends what is queued and lets the kernel post what it has finished.
    #[inline]
    fn enter(&mut self) {
        let queue = self.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if !idle {
            // Refused (EBUSY, EAGAIN, EINTR): the entries stay queued for the next poll.
            let _ = self.ring.submit();
        }
    }

    /// Takes what the kernel has finished.
    #[inline]
    pub(super) fn reap(&mut self, done: &mut Completions) -> usize {
        let (_, mut submission, completion) = self.ring.split();
        let mut events = 0;
        for entry in completion {
            events += 1;
            if entry.user_data() != CANCELLATION {
                self.slots.finish(entry.user_data() as usize, entry.result(), &mut submission, done);
            }
        }
        events
    }

    /// Starts requests that had to wait.
    #[cold]
    fn start_backlog(&mut self, done: &mut Completions) {
        let mut submission = self.ring.submission();
        while let Some(request) = self.backlog.pop() {
            if let Err(request) = self.slots.start(request, self.now, &mut submission, done) {
                self.backlog.push_front(request);
                break;
            }
        }
    }

    /// Counts and cancels requests that the kernel has for too long.
    #[cold]
    fn cancel_late(&mut self, timeout: Cycles) {
        let mut submission = self.ring.submission();
        // Requests that are yet to come cannot be late before that.
        self.next_check = self.now + timeout;
        for index in 0..self.slots.all.len() {
            let slot = &mut self.slots.all[index];
            if slot.request.is_none() || slot.cancelled {
                continue;
            }
            let late = slot.started + timeout;
            if self.now < late || submission.len() >= DEPTH {
                self.next_check = self.next_check.min(late);
                continue;
            }
            slot.cancelled = true;
            self.slots.disk.timed_out.fetch_add(1, Ordering::Relaxed);
            // Entries are taken in order: should the request end first, this cannot hit the next one in its slot.
            push(&mut submission, &opcode::AsyncCancel::new(index as u64).build().user_data(CANCELLATION));
        }
    }
}

impl BlockChannel for UringChannel {
    #[inline]
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        if !self.backlog.is_empty() {
            return self.backlog.push(request);
        }
        if self.slots.in_flight() == 0 {
            self.next_check = Cycles(0);
        }
        let started = request.submitted.max(self.now);
        if let Err(request) = self.slots.start(request, started, &mut self.ring.submission(), done) {
            self.backlog.push(request);
        }
    }

    #[inline]
    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        self.now = now;
        if self.slots.in_flight() == 0 {
            return 0;
        }
        self.enter();
        let events = self.reap(done);
        if !self.backlog.is_empty() {
            self.start_backlog(done);
        }
        if let Some(timeout) = self.timeout
            && now >= self.next_check
        {
            self.cancel_late(timeout);
        }
        events
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }

    fn deadline(&self) -> Cycles {
        if self.slots.in_flight() == 0 {
            return Cycles::NEVER;
        }
        // SAFETY: this thread owns the channel, so no other one pushes at the same time.
        let unsent = unsafe { !self.ring.submission_shared().is_empty() };
        match self.timeout {
            _ if unsent => self.now,
            Some(_) => self.next_check,
            None => Cycles::NEVER,
        }
    }

    fn outstanding(&self) -> usize {
        self.slots.in_flight() + self.backlog.len()
    }
}

impl Drop for UringChannel {
    /// The kernel writes into the buffers until it has said that it is done: waits for that, and abandons the requests.
    fn drop(&mut self) {
        let mut done = Completions::with_capacity(DEPTH);
        for index in 0..self.slots.all.len() {
            self.slots.all[index].cancelled = true;
        }
        let cancel_all = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build().user_data(CANCELLATION);
        if self.slots.in_flight() > 0 {
            push(&mut self.ring.submission(), &cancel_all);
        }
        while self.slots.in_flight() > 0 {
            let _ = self.ring.submit_and_wait(1);
            self.reap(&mut done);
        }
    }
}

/// The requests that the kernel has. An entry's user data is the index of its slot.
struct Slots {
    disk: Arc<Disk>,
    all: Vec<Slot>,
    free: Vec<u32>,
    bounce: Pool,
}

struct Slot {
    request: Option<BlockRequest>,
    transfer: Transfer,
    bounce: Option<Buffer>,
    started: Cycles,
    /// Too late, or the channel ends: takes no further step.
    cancelled: bool,
}

impl Slots {
    fn new(disk: Arc<Disk>) -> io::Result<Slots> {
        let bounce = Pool::new(BOUNCE_BYTES, BOUNCE_BUFFERS, None).map_err(io::Error::other)?;
        let slot =
            |_| Slot { request: None, transfer: Transfer::IDLE, bounce: None, started: Cycles(0), cancelled: false };
        let all = (0..DEPTH).map(slot).collect();
        Ok(Slots { disk, all, free: (0..DEPTH as u32).rev().collect(), bounce })
    }

    #[inline(always)]
    fn in_flight(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// Queues a request's first step. Gives the request back when it has to wait for a slot or a bounce buffer.
    #[inline]
    fn start(
        &mut self,
        request: BlockRequest,
        started: Cycles,
        submission: &mut SubmissionQueue<'_>,
        done: &mut Completions,
    ) -> Result<(), BlockRequest> {
        let transfer = match Transfer::begin(&self.disk, &request) {
            Ok(transfer) => transfer,
            Err(status) => {
                request.complete(done, status);
                return Ok(());
            }
        };
        let Some(&index) = self.free.last() else { return Err(request) };
        let bounce = if transfer.needs_bounce() { self.bounce.take() } else { None };
        if transfer.needs_bounce() && bounce.is_none() {
            return Err(request);
        }
        self.free.pop();
        let slot = &mut self.all[index as usize];
        slot.transfer = transfer;
        slot.bounce = bounce;
        slot.started = started;
        slot.cancelled = false;
        slot.request = Some(request);
        self.step(index as usize, submission);
        Ok(())
    }

    /// Queues the next step of the request in a slot.
    #[inline]
    fn step(&self, index: usize, submission: &mut SubmissionQueue<'_>) {
        let slot = &self.all[index];
        let request = slot.request.as_ref().expect("a slot in use");
        let step = slot.transfer.step(&self.disk, request, self.bounce_of(slot));
        push(submission, &entry(step).user_data(index as u64));
    }

    #[inline]
    fn bounce_of(&self, slot: &Slot) -> Option<Bounce> {
        slot.bounce.as_ref().map(|buffer| self.bounce.address(buffer))
    }

    /// Takes a step's result: the request ends, or its next step is queued.
    #[inline]
    fn finish(&mut self, index: usize, result: i32, submission: &mut SubmissionQueue<'_>, done: &mut Completions) {
        let bounce = self.bounce_of(&self.all[index]);
        let slot = &mut self.all[index];
        let request = slot.request.take().expect("a slot in use");
        let status = match slot.transfer.advance(&self.disk, &request, bounce, result) {
            None if slot.cancelled => crate::Status::IoError,
            None => {
                slot.request = Some(request);
                return self.step(index, submission);
            }
            Some(status) => status,
        };
        if let Some(buffer) = slot.bounce.take() {
            self.bounce.give(buffer);
        }
        self.free.push(index as u32);
        request.complete(done, status);
    }
}

/// Each request has at most one entry in the queue, and cancellations leave room for all of them.
#[inline]
fn push(submission: &mut SubmissionQueue<'_>, entry: &Entry) {
    // SAFETY: what the entry points to (the request's buffers, bounce memory, the disk's zeros) stays in place until its
    // completion has been seen: the request is boxed and rests in its slot until then, also when the channel is dropped.
    unsafe { submission.push(entry) }.expect("the queue has room for every slot");
}

#[inline]
fn entry(step: Step) -> Entry {
    match step {
        Step::One { write: false, address, len, offset } => {
            opcode::Read::new(FILE, address, len).offset(offset).build()
        }
        Step::One { write: true, address, len, offset } => {
            opcode::Write::new(FILE, address, len).offset(offset).build()
        }
        Step::Many { write: false, iovecs, count, offset } => {
            opcode::Readv::new(FILE, iovecs, count).offset(offset).build()
        }
        Step::Many { write: true, iovecs, count, offset } => {
            opcode::Writev::new(FILE, iovecs, count).offset(offset).build()
        }
        Step::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Step::Allocate { mode, offset, len } => opcode::Fallocate::new(FILE, len).offset(offset).mode(mode).build(),
    }
}
