//! One worker's way into the disk: a session of its own, and the requests that wait while it has none.

use crate::connection::{ConnectionError, Pending};
use crate::io::Pieces;
use crate::session::Link;
use crate::session_queue::{DiskState, LostLink, SessionQueue};
use block::{BlockChannel, BlockRequest, Completions, Status};
use clock::Cycles;
use initiator::{HeldRequests, HoldPolicy};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// An idle connection is looked at this often while the worker spins.
const IDLE_CHECK: Duration = Duration::from_micros(50);
/// A socket without room is tried again after this.
const BLOCKED_CHECK: Duration = Duration::from_micros(100);

/// A channel. Polled by one worker.
#[derive(Debug)]
pub(crate) struct IscsiChannel {
    session: Arc<SessionQueue>,
    disk: Arc<DiskState>,
    link: Option<Box<Link>>,
    /// Requests without a session.
    held: HeldRequests<Pending>,
    pieces: Pieces,
    now: Cycles,
    /// The last turn of the link.
    turned: Cycles,
    /// The link was not looked at since then, though this channel was polled.
    skipped: bool,
    idle_check: Cycles,
    blocked_check: Cycles,
}

impl IscsiChannel {
    pub(crate) fn new(session: Arc<SessionQueue>, disk: Arc<DiskState>) -> IscsiChannel {
        IscsiChannel {
            session,
            disk,
            link: None,
            held: HeldRequests::new(),
            pieces: Pieces::new(),
            now: Cycles(0),
            turned: Cycles(0),
            skipped: false,
            idle_check: IDLE_CHECK.into(),
            blocked_check: BLOCKED_CHECK.into(),
        }
    }

    /// Without a session: takes one that is ready, fails requests when that is the policy, else holds them.
    #[cold]
    fn poll_without_link(&mut self, done: &mut Completions) -> usize {
        let count = self.held.count();
        if let Some(mut link) = self.session.handoff.take_incoming() {
            // The session was delivered after the fence of the one before had fallen.
            self.held.lift(&self.session.fence);
            while let Some(pending) = self.held.pop() {
                link.connection.submit(pending);
            }
            self.link = Some(link);
            self.report_held();
            return 1 + count + self.turn(done);
        }
        if self.session.policy() == HoldPolicy::Hold {
            return 0;
        }
        // Without an answer of the target no time is known after which it executes nothing any more: a fenced write fails as
        // well, and its connection stays fenced for the next session.
        for pending in self.held.take_all(&self.session.fence) {
            pending.request.complete(done, Status::IoError);
        }
        self.report_held();
        count
    }

    fn turn(&mut self, done: &mut Completions) -> usize {
        let Some(link) = &mut self.link else { return 0 };
        self.turned = self.now;
        self.skipped = false;
        if self.disk.rescan_wanted.load(Ordering::Relaxed) && self.disk.rescan_wanted.swap(false, Ordering::AcqRel) {
            link.connection.ask_capacity();
        }
        match link.turn(&mut self.pieces, self.now, done) {
            Ok(events) => {
                if events > 0 {
                    self.publish();
                }
                events
            }
            Err(error) => {
                self.lose(error, done);
                1
            }
        }
    }

    /// Passes on what the connection learnt, if anything.
    #[inline]
    fn publish(&mut self) {
        let Some(link) = &mut self.link else { return };
        let news = link.connection.take_news();
        if news.capacity {
            self.disk.note_size(link);
            self.disk.wake.wake();
        }
        if news.luns {
            self.disk.luns_changed.store(true, Ordering::Release);
            self.disk.wake.wake();
        }
    }

    /// The session has ended: keeps its requests and gives it back.
    #[cold]
    fn lose(&mut self, error: ConnectionError, done: &mut Completions) {
        let Some(mut link) = self.link.take() else { return };
        link.stream.reset();
        for (pending, started) in link.connection.take_requests(done).into_iter().rev() {
            self.held.take_back(link.incarnation, started, pending);
        }
        let counters = link.connection.counters;
        self.session.aborts.add(counters.aborts);
        self.session.retries.add(counters.retries + self.held.count() as u64);
        self.report_held();
        self.session.handoff.give_back(LostLink { link, error, writes: self.held.fenced() > 0 });
        self.disk.wake.wake();
    }

    fn report_held(&self) {
        self.session.handoff.report_held(self.held.count(), self.held.oldest());
    }
}

impl BlockChannel for IscsiChannel {
    #[inline]
    fn submit(&mut self, request: BlockRequest, _done: &mut Completions) {
        let pending = Pending { request, since: self.now, done: 0 };
        match &mut self.link {
            Some(link) => link.connection.submit(pending),
            None => {
                self.held.push(pending);
                self.report_held();
            }
        }
    }

    #[inline]
    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        self.now = now;
        // First: whatever the supervisor does after this wakes the channel again.
        self.session.handoff.clear_wake();
        let Some(link) = &self.link else { return self.poll_without_link(done) };
        let idle = link.connection.outstanding() == 0 && !link.connection.wants_write();
        if idle && now.since(self.turned) < self.idle_check && now < link.connection.deadline() {
            self.skipped = true;
            return 0;
        }
        self.turn(done)
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.session.handoff.fd()
    }

    fn deadline(&self) -> Cycles {
        let Some(link) = &self.link else { return Cycles::NEVER };
        let mut deadline = link.connection.deadline();
        if self.skipped {
            deadline = deadline.min(self.turned + self.idle_check);
        }
        if link.connection.wants_write() {
            deadline = deadline.min(self.turned + self.blocked_check);
        }
        deadline
    }

    fn outstanding(&self) -> usize {
        self.held.count() + self.link.as_ref().map_or(0, |link| link.connection.outstanding())
    }
}

impl Drop for IscsiChannel {
    /// Requests that are left go unanswered. A session with some under way is ended: its writes must not come after those of
    /// the next channel. An idle one serves the next channel.
    fn drop(&mut self) {
        let mut done = Completions::default(); // what is known to have ended is not abandoned
        match &self.link {
            Some(link) if link.connection.outstanding() > 0 || link.connection.wants_write() => {
                self.lose(ConnectionError::Abandoned, &mut done);
            }
            _ => {}
        }
        for pending in self.held.take_all(&self.session.fence) {
            pending.request.abandon();
        }
        if let Some(link) = self.link.take() {
            let error = ConnectionError::LoggedOut;
            self.session.handoff.give_back(LostLink { link, error, writes: false });
        }
        // Last: the supervisor looks at what was given back after it has seen that the channel is closed.
        self.session.handoff.close();
        self.disk.wake.wake();
    }
}
