//! One connection, which is one session: from the login to the last byte ([RFC 7143]; error recovery level 0).
//!
//! Sans-IO: a [`ByteStream`] gives and takes bytes, `now` is an argument. The owner calls [`Connection::turn`] until it
//! fails, and then takes the requests back with [`Connection::take_requests`].
//!
//! [RFC 7143]: https://www.rfc-editor.org/rfc/rfc7143

mod command;
mod disposition;
mod inbound;
mod receive;
mod tasks;
#[cfg(test)]
mod tests;
mod timers;
mod transmit;

pub(crate) use disposition::News;

use crate::digest::Crc32c;
use crate::io::{ByteStream, Gather, Pieces};
use crate::login::{LoginConfig, LoginError, LoginMachine, Operational, Step};
use crate::lun::{LunError, LunInfo, Probe};
use crate::pdu::{Bhs, Lun};
use block::{BlockRequest, Completions, Op, Status};
use clock::Cycles;
use inbound::Inbound;
use initiator::HeldRequest;
use receive::{Malformed, Receive};
use std::collections::VecDeque;
use std::io::ErrorKind;
use tasks::{Outcome, Owner, Tasks};
use transmit::Transmit;

/// How long each thing may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// Login and the questions to the unit, together.
    pub(crate) bring_up: Cycles,
    /// A command, until it is aborted.
    pub(crate) task: Cycles,
    /// The answer to an abort, to a reset, to a logout: then the connection is given up.
    pub(crate) abort: Cycles,
    /// Silence after which the target is asked for a sign of life.
    pub(crate) ping_interval: Cycles,
    /// How long it has for that.
    pub(crate) ping: Cycles,
    /// Pause before a command that met a busy target is sent again.
    pub(crate) retry: Cycles,
}

/// The purpose and the parameters of a connection.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionConfig {
    pub(crate) login: LoginConfig,
    pub(crate) lun: Lun,
    /// Commands under way at most.
    pub(crate) depth: u16,
    pub(crate) timeouts: Timeouts,
    /// The unit as it was before: it must still be that disk.
    pub(crate) known: Option<Box<LunInfo>>,
    /// Set when writes of an earlier session wait to be sent again: the portal group that session was with.
    pub(crate) fence: Option<Option<u32>>,
}

/// A request of the disk's user, from the moment the channel took it.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) request: BlockRequest,
    pub(crate) since: Cycles,
    /// Bytes of it that earlier commands have moved.
    pub(crate) done: u64,
}

impl HeldRequest for Pending {
    fn submitted(&self) -> Cycles {
        self.since
    }

    fn changes_medium(&self) -> bool {
        self.request.op != Op::Read
    }
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The login failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The unit cannot be used.
    #[error(transparent)]
    Lun(#[from] LunError),
    /// The target wants us elsewhere.
    #[error("the target redirects to {address}")]
    Redirected {
        /// `host:port`.
        address: String,
        /// For good, not for this once.
        permanent: bool,
    },
    /// The target broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// A header arrived damaged.
    #[error("a header digest does not match")]
    HeaderDigest,
    /// Data arrived damaged.
    #[error("a data digest does not match")]
    DataDigest,
    /// The target rejected a PDU.
    #[error("the target rejected a PDU, reason {0:#04x}")]
    Rejected(u8),
    /// Something took too long.
    #[error("{0}")]
    Timeout(&'static str),
    /// The unit is gone from this session.
    #[error("the LUN is not there any more")]
    LunGone,
    /// The target asked us to leave, or drops the session.
    #[error("the target ends the session: {0}")]
    Ended(&'static str),
    /// We logged out.
    #[error("logged out")]
    LoggedOut,
    /// The session's channel was dropped, and the session ended with what was under way.
    #[error("a channel was dropped with requests in flight")]
    Abandoned,
    /// The target closed the connection.
    #[error("the target closed the connection")]
    Closed,
    /// The network failed.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Io(i32),
    /// The portal's name has no address.
    #[error("{0:?} cannot be resolved: check the portal's name")]
    UnknownHost(String),
    /// The memory of a request is gone.
    #[error("the memory of a request cannot be reached")]
    Memory,
}

impl From<Malformed> for ConnectionError {
    fn from(malformed: Malformed) -> ConnectionError {
        match malformed {
            Malformed::HeaderDigest => ConnectionError::HeaderDigest,
            Malformed::DataDigest => ConnectionError::DataDigest,
            Malformed::TooLong => ConnectionError::Protocol("a data segment longer than we take"),
        }
    }
}

/// Where a connection stands.
#[derive(Debug)]
enum Phase {
    Login(Box<LoginMachine>),
    /// A discovery session: text is being collected.
    Discovery(Vec<u8>),
    /// The unit is reset, because the session that had writes under way was with another portal group.
    Fencing,
    Probing,
    Ready,
    /// No new commands; logout when those under way have ended, or at the deadline.
    Draining(Cycles),
    LoggingOut,
}

/// Data-Out owed: for an R2T, or unsolicited.
#[derive(Clone, Copy, Debug)]
struct Burst {
    slot: u16,
    generation: u16,
    ttt: u32,
    offset: u32,
    len: u32,
    data_sn: u32,
}

/// One connection and the session on it.
#[derive(Debug)]
pub(crate) struct Connection {
    config: ConnectionConfig,
    phase: Phase,
    negotiated: Operational,
    receive: Receive,
    inbound: Inbound,
    /// Digest of the payload under way.
    crc: Crc32c,
    transmit: Transmit,
    tasks: Tasks,
    /// The last look at the network found all that was there, and nothing was sent since.
    dry: bool,
    /// Requests that wait for the window, a slot, or room.
    waiting: VecDeque<Pending>,
    /// Requests that met a busy target, with the time to try again.
    resting: VecDeque<(Cycles, Pending)>,
    bursts: VecDeque<Burst>,
    /// Questions to the unit under way.
    probe: Option<Probe>,
    probe_answer: Vec<u8>,
    probe_at: Cycles,
    probe_asked: bool,
    info: Option<Box<LunInfo>>,
    news: News,
    cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    timers: timers::Timers,
    discovered: Option<Vec<u8>>,
    logout_wanted: Option<&'static str>,
    /// Set where a PDU's handler cannot return an error: the turn ends with it.
    broken: Option<ConnectionError>,
    pub(crate) counters: Counters,
}

/// Counters of a connection, for its owner to add up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) aborts: u64,
    pub(crate) retries: u64,
}

impl Connection {
    /// A connection about to log in. The first request waits to be sent.
    pub(crate) fn new(config: ConnectionConfig, now: Cycles) -> Connection {
        let mut login = Box::new(LoginMachine::new(config.login.clone()));
        let first = login.start();
        let mut connection = Connection {
            phase: Phase::Login(login),
            negotiated: Operational::default(),
            receive: Receive::new(),
            inbound: Inbound::Header,
            crc: Crc32c::new(),
            transmit: Transmit::new(),
            tasks: Tasks::new(config.depth),
            dry: false,
            waiting: VecDeque::with_capacity(1024),
            resting: VecDeque::with_capacity(64),
            bursts: VecDeque::with_capacity(256),
            probe: None,
            probe_answer: Vec::with_capacity(4096),
            probe_at: Cycles(0),
            probe_asked: false,
            info: None,
            news: News::default(),
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_cmd_sn: 1,
            timers: timers::Timers::new(&config.timeouts, now),
            discovered: None,
            logout_wanted: None,
            broken: None,
            counters: Counters::default(),
            config,
        };
        connection.take_login_step(first).expect("the first step sends a request");
        connection
    }

    /// Whether what the connection is for can be had: the disk, or the text of a discovery.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready) || self.discovered.is_some()
    }

    /// The unit, once the connection is ready. Changes when the unit is resized.
    pub(crate) fn info(&self) -> Option<&LunInfo> {
        self.info.as_deref()
    }

    /// The portal group of this session.
    pub(crate) fn portal_group(&self) -> Option<u32> {
        self.negotiated.portal_group
    }

    /// News of the unit since the last call; `capacity` once the new one is known.
    pub(crate) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// The text of a discovery session, when it is complete.
    pub(crate) fn discovered(&self) -> Option<&[u8]> {
        self.discovered.as_deref()
    }

    /// Requests taken and not ended.
    pub(crate) fn outstanding(&self) -> usize {
        self.tasks.in_use() + self.waiting.len() + self.resting.len() - usize::from(self.probe_asked)
    }

    /// When [`turn`](Self::turn) has something to do although no byte arrives.
    pub(crate) fn deadline(&self) -> Cycles {
        self.timers.next
    }

    /// Whether bytes wait for room in the socket.
    pub(crate) fn wants_write(&self) -> bool {
        !self.transmit.is_empty()
    }

    /// Takes a request. It is sent by the next [`turn`](Self::turn).
    #[inline]
    pub(crate) fn submit(&mut self, pending: Pending) {
        self.waiting.push_back(pending);
    }

    /// Ends the session in an orderly way: nothing new is sent, what is under way may end until the deadline.
    pub(crate) fn log_out(&mut self, why: &'static str, now: Cycles) {
        if self.logout_wanted.is_none() {
            self.logout_wanted = Some(why);
            self.phase = Phase::Draining(now + self.config.timeouts.abort);
            self.timers.next = now;
        }
    }

    /// Receives, answers, sends, and looks at the clock. Returns the number of PDUs and writes: 0 when idle.
    pub(crate) fn turn(
        &mut self,
        stream: &dyn ByteStream,
        pieces: &mut Pieces,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<usize, ConnectionError> {
        // What can go out now does so before the next look, which would hardly find more.
        let skips = self.can_start() && std::mem::take(&mut self.dry);
        let mut events = if skips { 1 } else { self.receive_all(stream, pieces, now, done)? };
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        if now >= self.timers.next {
            self.tick(now)?;
        }
        self.fill(now, done)?;
        if !self.transmit.is_empty() {
            events += self.send_all(stream, pieces, now, done)?;
        }
        Ok(events)
    }

    /// Only sends: what was submitted goes out at once.
    fn send_all(
        &mut self,
        stream: &dyn ByteStream,
        pieces: &mut Pieces,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<usize, ConnectionError> {
        let mut events = 0;
        while !self.transmit.is_empty() {
            let (listed, result) = {
                let mut list = Gather::new(pieces);
                let tasks = &self.tasks;
                self.transmit.gather(&mut list, |slot| match &tasks.get(slot).owner {
                    Owner::Request(pending) => &pending.request.buffers,
                    _ => unreachable!("only requests queue payload"),
                });
                (list.len(), stream.send(&list))
            };
            let sent = match result {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(self.io_failure(&error)),
            };
            events += 1;
            self.on_sent(sent, now, done);
            if sent < listed {
                break;
            }
            self.fill(now, done)?;
        }
        Ok(events)
    }

    fn on_sent(&mut self, sent: usize, now: Cycles, done: &mut Completions) {
        let (tasks, mut ended) = (&mut self.tasks, false);
        self.transmit.advance(sent, |slot| {
            let task = tasks.get_mut(slot);
            task.queued -= 1;
            ended |= task.queued == 0 && task.outcome.is_some();
        });
        if ended {
            self.close_ended(now, done);
        }
    }

    /// Closes the tasks that ended while their memory was still queued: rare, so a walk will do.
    fn close_ended(&mut self, now: Cycles, done: &mut Completions) {
        for slot in 0..self.config.depth {
            let task = self.tasks.get(slot);
            if let (Some(outcome), 0) = (task.outcome, task.queued) {
                self.close(slot, outcome, now, done);
            }
        }
    }

    fn io_failure(&mut self, error: &std::io::Error) -> ConnectionError {
        match error.raw_os_error() {
            // The kernel could not reach a request's memory: its device is going away.
            Some(libc::EFAULT) => ConnectionError::Memory,
            Some(errno) => ConnectionError::Io(errno),
            None => ConnectionError::Closed,
        }
    }

    /// Takes every request back from a connection that has ended, in the order in which they were submitted, each with whether
    /// its command was under way: the target may still execute it, until it has let go of this session. Requests whose end was
    /// already known are completed.
    pub(crate) fn take_requests(&mut self, done: &mut Completions) -> Vec<(Pending, bool)> {
        let mut taken: Vec<(Pending, bool)> = Vec::with_capacity(self.outstanding());
        for slot in 0..self.config.depth {
            let task = self.tasks.get(slot);
            if matches!(task.owner, Owner::Free) {
                continue;
            }
            let (outcome, len) = (task.outcome, task.len);
            let Owner::Request(pending) = self.tasks.release(slot) else { continue };
            match outcome {
                Some(Outcome::Good) if pending.done + u64::from(len) >= pending.request.len => {
                    pending.request.complete(done, Status::Ok);
                }
                _ => taken.push((pending, true)),
            }
        }
        taken.extend(self.resting.drain(..).map(|(_, pending)| (pending, false)));
        taken.extend(self.waiting.drain(..).map(|pending| (pending, false)));
        taken.sort_by_key(|(pending, _)| pending.since);
        self.transmit = Transmit::new();
        self.bursts.clear();
        taken
    }

    fn take_login_step(&mut self, step: Step) -> Result<(), ConnectionError> {
        match step {
            Step::Send(bhs, segment) => {
                self.send_login(bhs, &segment);
                Ok(())
            }
            Step::Redirect { address, permanent } => Err(ConnectionError::Redirected { address, permanent }),
            Step::Done(operational) => {
                self.begin_full_feature(operational);
                Ok(())
            }
        }
    }

    fn send_login(&mut self, bhs: Bhs, segment: &[u8]) {
        self.transmit.push(bhs.with_command_numbers(self.cmd_sn, self.exp_stat_sn), segment);
    }

    fn begin_full_feature(&mut self, operational: Operational) {
        self.receive.header_digest = operational.header_digest;
        self.receive.data_digest = operational.data_digest;
        self.transmit.header_digest = operational.header_digest;
        self.transmit.data_digest = operational.data_digest;
        let other_portal_group = self.config.fence.is_some_and(|group| group != operational.portal_group);
        self.negotiated = operational;
        if self.config.login.target_iqn.is_none() {
            self.phase = Phase::Discovery(Vec::new());
            self.send_text(crate::pdu::NO_TAG, b"SendTargets=All\0");
        } else if other_portal_group {
            // The new session is another I_T nexus than the old one: logging in did not end the old one's tasks, but a reset
            // of the unit does (SAM-5 7.7).
            self.phase = Phase::Fencing;
            self.send_unit_reset();
        } else {
            self.begin_probing();
        }
    }

    fn begin_probing(&mut self) {
        self.phase = Phase::Probing;
        self.probe = Some(Probe::new(self.config.lun, self.config.known.clone()));
    }
}
