//! One worker's way into the disk: a session of its own, and what happens to requests while it has none.

use crate::connection::{ConnectionError, Pending};
use crate::io::Pieces;
use crate::port::{Lost, Port, Shared, Verdict};
use crate::session::Link;
use block::{BlockChannel, BlockRequest, Completions, Status};
use clock::Cycles;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// An idle connection is looked at this often while the worker spins.
const IDLE_CHECK: Duration = Duration::from_micros(50);
/// A socket without room is tried again after this.
const BLOCKED_CHECK: Duration = Duration::from_micros(100);
/// Requests that wait before a queue grows.
const WAITING: usize = 1024;

/// A channel. Polled by one worker.
#[derive(Debug)]
pub(crate) struct IscsiChannel {
    port: Arc<Port>,
    shared: Arc<Shared>,
    link: Option<Box<Link>>,
    /// Requests without a session, oldest first.
    held: VecDeque<Pending>,
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
    pub(crate) fn new(port: Arc<Port>, shared: Arc<Shared>) -> IscsiChannel {
        IscsiChannel {
            port,
            shared,
            link: None,
            held: VecDeque::with_capacity(WAITING),
            pieces: Pieces::new(),
            now: Cycles(0),
            turned: Cycles(0),
            skipped: false,
            idle_check: IDLE_CHECK.into(),
            blocked_check: BLOCKED_CHECK.into(),
        }
    }

    /// Without a session: takes one that is ready, fails requests when that is the verdict, else holds them.
    #[cold]
    fn poll_without_link(&mut self, done: &mut Completions) -> usize {
        if let Some(mut link) = self.port.take_ready() {
            let count = self.held.len();
            self.held.drain(..).for_each(|pending| link.connection.submit(pending));
            self.link = Some(link);
            self.port.set_held(0, Cycles(0));
            return 1 + count + self.turn(done);
        }
        if self.port.verdict() == Verdict::Hold {
            return 0;
        }
        let count = self.held.len();
        self.held.drain(..).for_each(|pending| pending.request.complete(done, Status::IoError));
        self.port.set_held(0, Cycles(0));
        count
    }

    fn turn(&mut self, done: &mut Completions) -> usize {
        let Some(link) = &mut self.link else { return 0 };
        (self.turned, self.skipped) = (self.now, false);
        if self.shared.rescan_wanted.load(Ordering::Relaxed) && self.shared.rescan_wanted.swap(false, Ordering::AcqRel)
        {
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
        if news.capacity
            && let Some(info) = link.connection.info()
        {
            self.shared.num_blocks.store(info.geometry.num_blocks, Ordering::Release);
            self.shared.wake_supervisor();
        }
        if news.luns {
            self.shared.luns_changed.store(true, Ordering::Release);
            self.shared.wake_supervisor();
        }
    }

    /// The session has ended: keep its requests and give it back.
    #[cold]
    fn lose(&mut self, error: ConnectionError, done: &mut Completions) {
        let Some(mut link) = self.link.take() else { return };
        link.wire.reset();
        let writes = link.connection.take_requests(&mut self.held, done);
        let counters = link.connection.counters;
        self.port.aborts.fetch_add(counters.aborts, Ordering::Relaxed);
        self.port.retries.fetch_add(counters.retries + self.held.len() as u64, Ordering::Relaxed);
        self.note_held();
        self.port.give_back(Lost { link, error, writes }, &self.shared);
    }

    fn note_held(&self) {
        self.port.set_held(self.held.len(), self.held.front().map_or(Cycles(0), |pending| pending.since));
    }
}

impl BlockChannel for IscsiChannel {
    #[inline]
    fn submit(&mut self, request: BlockRequest, _done: &mut Completions) {
        let pending = Pending { request, since: self.now, done: 0 };
        match &mut self.link {
            Some(link) => link.connection.submit(pending),
            None => {
                self.held.push_back(pending);
                self.note_held();
            }
        }
    }

    #[inline]
    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        self.now = now;
        let Some(link) = &self.link else { return self.poll_without_link(done) };
        let idle = link.connection.outstanding() == 0 && !link.connection.wants_write();
        if idle && now.since(self.turned) < self.idle_check && now < link.connection.deadline() {
            self.skipped = true;
            return 0;
        }
        self.turn(done)
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.port.wake_fd()
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
        self.held.len() + self.link.as_ref().map_or(0, |link| link.connection.outstanding())
    }
}

impl Drop for IscsiChannel {
    fn drop(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        if let Some(link) = &mut self.link {
            // Nobody waits for the completions any more, but what is known to have ended is not abandoned.
            link.connection.take_requests(&mut held, &mut Completions::default());
        }
        for pending in held {
            pending.request.abandon();
        }
        self.port.closed.store(true, Ordering::Release);
        if let Some(link) = self.link.take() {
            self.port.give_back(Lost { link, error: ConnectionError::LoggedOut, writes: false }, &self.shared);
        } else {
            self.shared.wake_supervisor();
        }
    }
}
