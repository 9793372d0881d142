//! One worker's way into a namespace: an I/O queue of its own, and what happens to requests while it has none.
//!
//! A request is sent at once, or waits: for room in the queue, for a connection, or for a fence. When a connection dies, what
//! was in flight on it is taken back. Reads are sent again on the next connection. Writes (and whatever else changes the
//! medium) that the controller may have seen are *fenced*: the old controller might still execute them, and a copy that is
//! executed after a newer write to the same place would destroy that one. They are sent again only when the supervisor says
//! that the old association has let go.

use crate::io_queue::{IoQueue, IoQueues};
use crate::link::{Link, LinkError};
use crate::namespace::Namespace;
use crate::queue_pair::{Completion, Data, Outcome, Payload, Taken};
use crate::spec::{Cqe, DsmRange, NvmeStatus, Sqe, nvm};
use block::{BlockChannel, BlockRequest, Completions, Op, Status};
use clock::Cycles;
use initiator::{HeldRequest, HeldRequests, HoldPolicy};
use memory::IoBuffers;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

/// An idle connection is looked at this often.
const IDLE_CHECK: Duration = Duration::from_millis(10);
/// Pause before a command is sent again that the target could not take now.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Blocks of one read, write, compare or write zeroes at most: NLB has 16 bits (NVM figure 55).
const MAX_BLOCKS: u64 = 65_536;

/// A queue pair of block requests on its connection.
pub(crate) type IoLink = Link<IoCommand>;

/// A command of an I/O queue.
#[derive(Debug)]
pub(crate) enum IoCommand {
    /// The Connect that opens the queue, with its data.
    Connect(IoBuffers),
    /// A part of a request.
    Request(Io),
}

impl Payload for IoCommand {
    #[inline]
    fn buffers(&self) -> Option<&IoBuffers> {
        match self {
            IoCommand::Connect(data) => Some(data),
            IoCommand::Request(io) => Some(&io.request.buffers),
        }
    }
}

/// A request on its way through the channel.
#[derive(Debug)]
pub(crate) struct Io {
    request: BlockRequest,
    /// Bytes done by earlier commands: a request larger than one command goes in parts, one after the other.
    done: u64,
    retries: u8,
}

impl HeldRequest for Io {
    fn submitted(&self) -> Cycles {
        self.request.submitted
    }

    fn changes_medium(&self) -> bool {
        matches!(self.request.op, Op::Write | Op::Discard | Op::WriteZeroes { .. })
    }
}

/// Limits of a channel, fixed when it is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelLimits {
    pub(crate) io_timeout: Option<Duration>,
    pub(crate) retries: u8,
}

/// The channel.
#[derive(Debug)]
pub(crate) struct Channel {
    namespace: Arc<Namespace>,
    io_queues: Arc<IoQueues>,
    queue: Arc<IoQueue>,
    limits: ChannelLimits,
    max_io_size: u64,
    link: Option<IoLink>,
    /// The association that `link` belongs to, or the last one did.
    association: u64,
    held: HeldRequests<Io>,
    /// Scratch for taking commands back in order.
    taken: Vec<Taken<IoCommand>>,
    outstanding: usize,
    /// Nothing is sent before: the target could not take a command.
    resume_at: Cycles,
    next_check: Cycles,
    next_timeout_check: Cycles,
}

impl Channel {
    pub(crate) fn new(
        namespace: Arc<Namespace>,
        io_queues: Arc<IoQueues>,
        queue: Arc<IoQueue>,
        limits: ChannelLimits,
    ) -> Channel {
        Channel {
            max_io_size: namespace.max_io_size().into(),
            namespace,
            io_queues,
            queue,
            limits,
            link: None,
            association: 0,
            held: HeldRequests::new(),
            taken: Vec::with_capacity(crate::queue_pair::MAX_ENTRIES.into()),
            outstanding: 0,
            resume_at: Cycles(0),
            next_check: Cycles(0),
            next_timeout_check: Cycles(0),
        }
    }

    /// Whether a request can be sent at all, or how it ends right away.
    #[inline]
    fn check(&self, request: &BlockRequest) -> Result<(), Status> {
        let block_mask = (1u64 << self.namespace.block_shift) - 1;
        let ranged = !matches!(request.op, Op::Flush);
        if self.namespace.is_gone() {
            return Err(Status::IoError);
        }
        if !ranged {
            return Ok(());
        }
        let end = request.offset.checked_add(request.len);
        if (request.offset | request.len) & block_mask != 0 || end.is_none_or(|end| end > self.namespace.size_bytes()) {
            return Err(Status::IoError);
        }
        if request.op.has_buffers() && request.buffers.len() != request.len {
            return Err(Status::IoError);
        }
        if !matches!(request.op, Op::Read | Op::Compare) && self.namespace.is_read_only() {
            return Err(Status::IoError);
        }
        if request.len == 0 { Err(Status::Ok) } else { Ok(()) }
    }

    /// The next command of a request.
    #[inline]
    fn command(&self, io: &Io) -> (Sqe, Data) {
        let (nsid, shift) = (self.namespace.nsid, self.namespace.block_shift);
        let request = &io.request;
        let (offset, left) = (request.offset + io.done, request.len - io.done);
        let lba = offset >> shift;
        match request.op {
            Op::Flush => (Sqe::new(nvm::FLUSH, nsid), Data::None),
            op @ (Op::Read | Op::Write | Op::Compare) => {
                let opcode = match op {
                    Op::Read => nvm::READ,
                    Op::Write => nvm::WRITE,
                    _ => nvm::COMPARE,
                };
                let len = part_len(io, self.max_io_size, shift);
                let data = Data::Buffers { offset: io.done, len: len as u32 };
                (Sqe::io(opcode, nsid, lba, (len >> shift) as u32), data)
            }
            Op::WriteZeroes { unmap } => {
                let len = part_len(io, self.max_io_size, shift);
                let mut sqe = Sqe::io(nvm::WRITE_ZEROES, nsid, lba, (len >> shift) as u32);
                // "DEAC: the blocks may be deallocated" (NVM figure 71, CDW12 bit 25).
                sqe.set_cdw(12, sqe.cdw(12) | u32::from(unmap) << 25);
                (sqe, Data::None)
            }
            Op::Discard => {
                let blocks = (left >> shift).min(u32::MAX.into()) as u32;
                let mut sqe = Sqe::new(nvm::DATASET_MANAGEMENT, nsid);
                sqe.set_cdw(10, 0); // NR: one range, zero-based
                sqe.set_cdw(11, 1 << 2); // AD: deallocate
                (sqe, Data::Range(DsmRange { lba, blocks }.bytes()))
            }
        }
    }

    /// Moves waiting requests into the queue as far as it has room.
    #[inline]
    fn refill(&mut self, now: Cycles) {
        if now < self.resume_at {
            return;
        }
        while let Some(link) = &self.link
            && link.queue.has_room()
        {
            let Some(io) = self.held.pop() else { return };
            let (sqe, data) = self.command(&io);
            let Some(link) = &mut self.link else { return };
            if let Err(IoCommand::Request(io)) = link.queue.submit(sqe, data, IoCommand::Request(io), now) {
                self.held.push_front(io);
                return;
            }
        }
    }

    fn complete(&mut self, io: Io, status: Status, done: &mut Completions) {
        self.outstanding -= 1;
        io.request.complete(done, status);
    }

    /// A command ended: the request goes on with its next part, again, or is over.
    #[inline]
    fn finish(&mut self, mut io: Io, outcome: Outcome, now: Cycles, done: &mut Completions) {
        match outcome {
            Outcome::Answered(cqe) if cqe.status().is_success() => {
                io.done += part_len(&io, self.max_io_size, self.namespace.block_shift);
                if io.done < io.request.len {
                    self.held.push_front(io);
                } else {
                    self.complete(io, Status::Ok, done);
                }
            }
            Outcome::Answered(cqe) => self.fail(io, cqe, now, done),
            Outcome::DataDigestError => {
                self.io_queues.counters.digest_errors.add(1);
                self.retry(io, Status::IoError, done);
            }
        }
    }

    fn fail(&mut self, io: Io, cqe: Cqe, now: Cycles, done: &mut Completions) {
        let status = cqe.status();
        let is = |code| status.is(code);
        if is(NvmeStatus::COMPARE_FAILURE) {
            return self.complete(io, Status::Miscompare, done);
        }
        // Not the command but the moment is wrong: namespace not ready, queue going away, a path that is not usable now.
        let later = is(NvmeStatus::new(0, 0x82)) || is(NvmeStatus::ABORTED_SQ_DELETION) || status.code_type() == 3;
        if later && !status.do_not_retry() && self.io_queues.policy() == HoldPolicy::Hold {
            self.io_queues.counters.retried.add(1);
            self.resume_at = now + Cycles::from(RETRY_PAUSE);
            self.held.push_front(io);
            return;
        }
        let block_status = if is(NvmeStatus::INVALID_OPCODE) {
            Status::Unsupported
        } else if is(NvmeStatus::CAPACITY_EXCEEDED) {
            Status::NoSpace
        } else {
            Status::IoError
        };
        if status.do_not_retry() {
            self.complete(io, block_status, done);
        } else {
            self.retry(io, block_status, done);
        }
    }

    /// Sends a command again whose end is known, so nothing of it can come late; or gives up.
    fn retry(&mut self, mut io: Io, status: Status, done: &mut Completions) {
        if io.retries >= self.limits.retries {
            return self.complete(io, status, done);
        }
        io.retries += 1;
        self.io_queues.counters.retried.add(1);
        self.held.push_front(io);
    }

    /// The connection is of no more use: takes back what was in flight, in order.
    fn lose_link(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        link.stream().reset();
        let Channel { taken, held, io_queues, association, .. } = self;
        taken.extend((0..link.queue.slots()).filter_map(|slot| link.queue.take(slot)));
        while let Some(Completion { payload, .. }) = link.queue.pop_completion() {
            // Ended, but not looked at before the connection died: asking again is as good, and simpler.
            taken.push(Taken { payload, started: true, sequence: 0 });
        }
        // Latest first, as each goes to the front.
        taken.sort_unstable_by_key(|taken| std::cmp::Reverse(taken.sequence));
        for Taken { payload, started, .. } in taken.drain(..) {
            let IoCommand::Request(io) = payload else { continue };
            if held.take_back(*association, started, io) {
                io_queues.counters.fenced.add(1);
            } else {
                io_queues.counters.retried.add(started.into());
            }
        }
        self.queue.give_back(self.association, link);
        self.io_queues.wake.wake();
    }

    /// Without a connection: takes a new one if it came, or lets requests fail where they are not to be held.
    fn poll_detached(&mut self, now: Cycles, done: &mut Completions) {
        if let Some((association, link)) = self.queue.handoff.take_incoming() {
            self.association = association;
            self.link = Some(link);
            self.max_io_size = self.namespace.max_io_size().into();
            self.next_check = now;
        } else if self.io_queues.policy() == HoldPolicy::Fail {
            self.fail_waiting(done);
        }
        self.report_held();
    }

    fn fail_waiting(&mut self, done: &mut Completions) {
        while let Some(io) = self.held.pop() {
            self.complete(io, Status::IoError, done);
        }
    }

    fn report_held(&self) {
        let held = if self.link.is_none() { self.outstanding } else { self.held.fenced() };
        self.queue.handoff.report_held(held, self.held.oldest());
    }

    /// Moves bytes both ways and takes what completed. Returns the number of events.
    #[inline]
    fn poll_link(&mut self, now: Cycles, done: &mut Completions) -> Result<usize, LinkError> {
        self.refill(now);
        let Some(link) = &mut self.link else { return Ok(0) };
        let mut events = usize::from(link.transmit()? > 0);
        if events > 0 && link.take_dry() {
            return Ok(events);
        }
        let idle = link.queue.outstanding() == 0;
        if idle && now < self.next_check {
            return Ok(events);
        }
        if idle {
            self.next_check = now + Cycles::from(IDLE_CHECK);
        }
        let received = link.receive();
        let mut completed = 0;
        while let Some(Completion { payload, outcome }) =
            self.link.as_mut().and_then(|link| link.queue.pop_completion())
        {
            completed += 1;
            if let IoCommand::Request(io) = payload {
                self.finish(io, outcome, now, done);
            }
        }
        if completed > 0 {
            self.io_queues.note_traffic();
            if self.held.has_waiting() {
                self.refill(now);
            }
            events += completed;
        }
        received?;
        if let Some(link) = &mut self.link {
            link.transmit()?;
        }
        if now >= self.next_timeout_check {
            self.check_timeouts(now);
        }
        Ok(events)
    }

    /// The ladder: a command that is late is aborted; one that is late twice costs the controller a reset.
    fn check_timeouts(&mut self, now: Cycles) {
        let Some(timeout) = self.limits.io_timeout else {
            self.next_timeout_check = Cycles::NEVER;
            return;
        };
        self.next_timeout_check = now + Cycles::from(timeout / 8);
        let Some(link) = &self.link else { return };
        let late = |times: u32| Cycles(now.since(Cycles::from(timeout * times)).0);
        if link.queue.overdue(late(2)).is_some() {
            self.queue.request_reset(self.association);
            self.io_queues.wake.wake();
        } else if let Some(cid) = link.queue.overdue(late(1))
            && self.queue.request_abort(cid)
        {
            self.io_queues.counters.timeouts.add(1);
            self.io_queues.wake.wake();
        }
    }
}

/// Bytes that the next command of a request moves or covers.
#[inline]
fn part_len(io: &Io, max_io_size: u64, block_shift: u32) -> u64 {
    let left = io.request.len - io.done;
    match io.request.op {
        Op::Read | Op::Write | Op::Compare => left.min(max_io_size).min(MAX_BLOCKS << block_shift),
        Op::WriteZeroes { .. } => left.min(MAX_BLOCKS << block_shift),
        Op::Discard => left.min(u64::from(u32::MAX) << block_shift),
        Op::Flush => left,
    }
}

impl BlockChannel for Channel {
    #[inline]
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        match self.check(&request) {
            Ok(()) => {
                self.outstanding += 1;
                self.held.push(Io { request, done: 0, retries: 0 });
            }
            Err(status) => request.complete(done, status),
        }
    }

    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        // First: whatever the supervisor does after this wakes the channel again.
        self.queue.handoff.clear_wake();
        if self.held.fenced() > 0 {
            self.io_queues.counters.retried.add(self.held.lift(&self.io_queues.fence) as u64);
            self.report_held();
        }
        // Whatever has its NSID now is another disk.
        if self.namespace.is_gone() {
            self.fail_waiting(done);
        }
        if self.link.is_none() {
            self.poll_detached(now, done);
        }
        match self.poll_link(now, done) {
            Ok(events) => events,
            Err(_) => {
                self.io_queues.counters.lost.add(1);
                self.lose_link();
                self.poll_detached(now, done);
                1
            }
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.queue.handoff.fd()
    }

    fn deadline(&self) -> Cycles {
        if self.link.is_none() {
            return Cycles::NEVER;
        }
        let timeout = if self.outstanding > 0 { self.next_timeout_check } else { Cycles::NEVER };
        if self.held.has_waiting() { timeout.min(self.resume_at) } else { timeout }
    }

    fn outstanding(&self) -> usize {
        self.outstanding
    }
}

impl Drop for Channel {
    /// Requests that are left go unanswered. Writes among them that the controller may still execute must not come after those
    /// of the next channel: the supervisor resets the controller, and connects no queue until it has let go.
    fn drop(&mut self) {
        self.lose_link();
        for io in self.held.take_all(&self.io_queues.fence) {
            io.request.abandon();
        }
        self.queue.handoff.close();
        self.io_queues.wake.wake();
    }
}
