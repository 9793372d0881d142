//! The supervisor of a disk: makes its sessions, keeps those that no channel uses alive, and reports what happens.

use crate::connection::{ConnectionConfig, ConnectionError};
use crate::event::{Event, EventSink, IscsiEvent};
use crate::io::{ByteStream, Interest, Pieces, Socket};
use crate::session::{Link, Progress, Reconnector};
use crate::session_queue::{DiskState, LostLink, SessionQueue};
use block::Completions;
use clock::Cycles;
use initiator::{CommandQueue, ConnectionEvent, HoldPolicy, Outage, OutageLimit, Recovery};
use parking_lot::Mutex;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Time for a logout when the disk is deleted.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of one session.
#[derive(Clone, Debug, Default)]
pub struct SessionStatus {
    /// The number of the session.
    pub session: u16,
    /// A channel uses the session.
    pub in_use: bool,
    /// The session is up.
    pub connected: bool,
    /// Logins that succeeded after the first.
    pub reconnects: u64,
    /// Attempts that failed since the session was lost.
    pub failed_attempts: u32,
    /// Time until the next attempt, while one is planned.
    pub next_attempt: Option<Duration>,
    /// Time since the session was lost.
    pub lost_for: Option<Duration>,
    /// Why the session was lost, or why the last attempt failed.
    pub last_error: Option<String>,
    /// I/Os that wait for the session.
    pub held: u64,
    /// Age of the oldest of these I/Os.
    pub oldest: Duration,
    /// Commands aborted because they took too long.
    pub aborts: u64,
    /// Commands sent again.
    pub retries: u64,
}

/// A channel's queue, or the error of the first attempt to log in.
type Opened = Result<Arc<SessionQueue>, ConnectionError>;

/// A command to the supervisor.
#[derive(Debug)]
pub(crate) enum Command {
    /// Give the sender a session for a channel, as soon as there is one.
    Open(Sender<Opened>),
    /// Ask the target for the disk's size, on a session that no channel uses if there is one.
    Rescan,
    /// End all sessions.
    Stop,
}

/// One session.
pub(crate) struct Session {
    queue: Arc<SessionQueue>,
    reconnector: Reconnector,
    /// The session, while no channel has it.
    parked: Option<Box<Link>>,
    in_use: bool,
    given_up: bool,
    opener: Option<Sender<Opened>>,
    reconnects: u64,
    ever_up: bool,
    outage: Outage,
    last_error: Option<String>,
}

/// The state of the supervisor's thread.
pub(crate) struct Supervisor {
    pub(crate) template: ConnectionConfig,
    pub(crate) portal: String,
    pub(crate) recovery: Recovery,
    pub(crate) disk: Arc<DiskState>,
    pub(crate) sink: EventSink,
    pub(crate) commands: Arc<CommandQueue<Command>>,
    pub(crate) status: Arc<Mutex<Vec<SessionStatus>>>,
    pub(crate) seen_blocks: u64,
    pub(crate) sessions: Vec<Session>,
    /// Sessions being logged out, each until its deadline.
    pub(crate) leaving: Vec<(Box<Link>, Cycles)>,
    pub(crate) is_stopped: bool,
    pub(crate) pieces: Pieces,
}

impl initiator::Supervisor for Supervisor {
    fn turn(&mut self, now: Cycles) {
        while let Some(command) = self.commands.pop() {
            match command {
                Command::Open(opener) => self.open(opener, now),
                Command::Rescan => self.rescan(),
                Command::Stop => self.stop(now),
            }
        }
        for number in 0..self.sessions.len() {
            self.turn_session(number, now);
        }
        let pieces = &mut self.pieces;
        self.leaving.retain_mut(|(link, deadline)| {
            now < *deadline && link.turn(pieces, now, &mut Completions::default()).is_ok()
        });
        self.report_changes();
        self.publish_status(now);
    }

    fn deadline(&self) -> Cycles {
        let sessions = self.sessions.iter().map(|session| session.deadline(&self.recovery));
        let leaving = self.leaving.iter().map(|(link, until)| link.connection.deadline().min(*until));
        sessions.chain(leaving).min().unwrap_or(Cycles::NEVER)
    }

    fn interests(&self, list: &mut Vec<Interest>) {
        let parked = self.sessions.iter().filter_map(|session| session.parked.as_deref());
        let connecting = self.sessions.iter().filter_map(|session| session.reconnector.connecting());
        let leaving = self.leaving.iter().map(|(link, _)| &**link);
        list.extend(parked.chain(connecting).chain(leaving).filter_map(Link::interest));
    }

    fn is_finished(&self) -> bool {
        self.is_stopped && self.leaving.is_empty()
    }
}

impl Supervisor {
    /// Adds the disk's first session, already up.
    pub(crate) fn adopt(&mut self, reconnector: Reconnector, link: Box<Link>) -> std::io::Result<()> {
        let mut session = Session::new(reconnector, Cycles::now())?;
        session.parked = Some(link);
        session.ever_up = true;
        self.sessions.push(session);
        Ok(())
    }

    fn report(&self, number: usize, event: ConnectionEvent) {
        (self.sink)(&Event::Connection { session: Some(number as u16), event });
    }

    fn open(&mut self, opener: Sender<Opened>, now: Cycles) {
        // A channel that was dropped before this one is opened has left a session that is free.
        for number in 0..self.sessions.len() {
            self.reclaim(number, now);
        }
        let free = self.sessions.iter().position(|s| !s.in_use && !s.given_up);
        let index = match free.map_or_else(|| self.add_session(now), Ok) {
            Ok(index) => index,
            Err(error) => {
                let error = ConnectionError::Io(error.raw_os_error().unwrap_or(libc::EMFILE));
                let _ = opener.send(Err(error)); // an opener that is gone needs no answer
                return;
            }
        };
        let session = &mut self.sessions[index];
        session.in_use = true;
        session.queue.handoff.reopen();
        if let Some(link) = session.parked.take() {
            session.queue.deliver(link);
        } else if !session.ever_up {
            session.opener = Some(opener);
            return;
        }
        // A disk that is lost now is opened without a session and holds.
        session.answer(opener);
    }

    fn add_session(&mut self, now: Cycles) -> std::io::Result<usize> {
        let mut template = self.template.clone();
        let number = self.sessions.len() as u16;
        template.login.isid[4..].copy_from_slice(&number.to_be_bytes());
        template.known = self.sessions.iter().find_map(|s| s.reconnector.known());
        let seed = u64::from_be_bytes([&template.login.isid[..], &[0, 1]].concat().try_into().expect("8 bytes"));
        let reconnector = Reconnector::new(template, self.portal.clone(), &self.recovery, seed, now);
        self.sessions.push(Session::new(reconnector, now)?);
        Ok(self.sessions.len() - 1)
    }

    fn rescan(&mut self) {
        match self.sessions.iter_mut().find_map(|session| session.parked.as_mut()) {
            Some(link) => link.connection.ask_capacity(),
            None => self.disk.rescan_wanted.store(true, Ordering::Release),
        }
    }

    /// Takes back what a channel has given back or left behind.
    fn reclaim(&mut self, number: usize, now: Cycles) {
        let queue = self.sessions[number].queue.clone();
        // In this order: a channel gives its session back before it is closed.
        let is_closed = queue.handoff.is_closed();
        if let Some(lost) = queue.handoff.take_lost() {
            self.on_lost(number, lost, now);
        }
        let session = &mut self.sessions[number];
        if session.in_use && is_closed {
            session.in_use = false;
            // The channel may have gone before it took the session it was given.
            session.parked = session.parked.take().or_else(|| queue.handoff.take_incoming());
        }
    }

    fn turn_session(&mut self, number: usize, now: Cycles) {
        self.reclaim(number, now);
        let session = &mut self.sessions[number];
        if let Some(mut link) = session.parked.take() {
            match link.turn(&mut self.pieces, now, &mut Completions::default()) {
                Ok(_) => {
                    if link.connection.take_news().capacity {
                        self.disk.note_size(&link);
                    }
                    session.parked = Some(link);
                }
                Err(error) => self.on_lost(number, LostLink { link, error, writes: false }, now),
            }
        }
        if !self.sessions[number].given_up {
            self.reconnect(number, now);
            self.apply_timeouts(number, now);
        }
    }

    fn on_lost(&mut self, number: usize, lost: LostLink, now: Cycles) {
        let LostLink { link, error, writes } = lost;
        let session = &mut self.sessions[number];
        if error == ConnectionError::LoggedOut {
            // The channel was closed with its session up and idle: the session serves the next one.
            session.parked = Some(link);
            return;
        }
        link.stream.reset();
        session.reconnector.on_lost(&link.connection, writes, now);
        session.outage = Outage::new(now);
        session.last_error = Some(error.to_string());
        self.report(number, ConnectionEvent::Lost { reason: error.to_string() });
    }

    fn reconnect(&mut self, number: usize, now: Cycles) {
        let session = &mut self.sessions[number];
        let attempt = session.reconnector.failures() + 1;
        let event = match session.reconnector.turn(&mut self.pieces, now, &mut connect) {
            Progress::Nothing => return,
            Progress::Ready(link) => {
                self.disk.note_size(&link);
                session.reconnects += u64::from(session.ever_up);
                session.ever_up = true;
                session.last_error = None;
                if session.in_use {
                    session.queue.deliver(link);
                } else {
                    session.parked = Some(link);
                }
                if let Some(opener) = session.opener.take() {
                    session.answer(opener);
                }
                ConnectionEvent::Connected { attempt, after: session.outage.lasted(now) }
            }
            Progress::Failed(error, next) => {
                let (held, oldest) = session.queue.held(now);
                let reason = error.to_string();
                session.last_error = Some(reason.clone());
                if let Some(opener) = session.opener.take() {
                    // The opener gets the error; the session is kept for the next one.
                    session.in_use = false;
                    let _ = opener.send(Err(error)); // an opener that is gone needs no answer
                }
                ConnectionEvent::AttemptFailed { attempt, reason, next, held, oldest }
            }
        };
        self.report(number, event);
    }

    /// Fails held I/O, or gives the session up, when its time has come.
    fn apply_timeouts(&mut self, number: usize, now: Cycles) {
        let recovery = self.recovery;
        let session = &mut self.sessions[number];
        // The first attempt of a session that is being opened has a limit of its own.
        while session.opener.is_none()
            && session.reconnector.is_lost()
            && !session.given_up
            && let Some(limit) = session.outage.reached(&recovery, now)
        {
            session.queue.set_policy(HoldPolicy::Fail);
            session.given_up = limit == OutageLimit::Loss;
            let event = if session.given_up { ConnectionEvent::GivenUp } else { ConnectionEvent::FailingFast };
            (self.sink)(&Event::Connection { session: Some(number as u16), event });
        }
    }

    fn report_changes(&mut self) {
        let to = self.disk.num_blocks.load(Ordering::Acquire);
        let from = std::mem::replace(&mut self.seen_blocks, to);
        if from != to {
            (self.sink)(&IscsiEvent::Resized { from, to }.into());
        }
        if self.disk.luns_changed.swap(false, Ordering::AcqRel) {
            (self.sink)(&IscsiEvent::LunsChanged.into());
        }
    }

    fn publish_status(&self, now: Cycles) {
        let mut status = self.status.lock();
        status.clear();
        status.extend(self.sessions.iter().enumerate().map(|(number, session)| session.status(number as u16, now)));
    }

    /// Logs out of the sessions that no channel uses.
    fn stop(&mut self, now: Cycles) {
        self.is_stopped = true;
        for mut session in self.sessions.drain(..) {
            let parked = session.parked.take().or_else(|| session.queue.handoff.take_lost().map(|lost| lost.link));
            if let Some(mut link) = parked {
                link.connection.log_out("the disk is deleted", now);
                self.leaving.push((link, now + Cycles::from(LOGOUT_TIMEOUT)));
            }
        }
    }
}

impl Session {
    fn new(reconnector: Reconnector, now: Cycles) -> std::io::Result<Session> {
        Ok(Session {
            queue: Arc::new(SessionQueue::new(true)?),
            reconnector,
            parked: None,
            in_use: false,
            given_up: false,
            opener: None,
            reconnects: 0,
            ever_up: false,
            outage: Outage::new(now),
            last_error: None,
        })
    }

    /// Gives the session to its opener. One that is gone by now leaves it for the next.
    fn answer(&self, opener: Sender<Opened>) {
        if opener.send(Ok(self.queue.clone())).is_err() {
            self.queue.handoff.close();
        }
    }

    fn deadline(&self, recovery: &Recovery) -> Cycles {
        let parked = self.parked.as_ref().map_or(Cycles::NEVER, |link| link.connection.deadline());
        if self.given_up {
            return parked;
        }
        let is_limited = self.opener.is_none() && self.reconnector.is_lost();
        let limit = if is_limited { self.outage.deadline(recovery) } else { Cycles::NEVER };
        parked.min(self.reconnector.deadline()).min(limit)
    }

    fn status(&self, session: u16, now: Cycles) -> SessionStatus {
        let (held, oldest) = self.queue.held(now);
        let lost_for = self.reconnector.is_lost().then(|| self.outage.lasted(now));
        SessionStatus {
            session,
            in_use: self.in_use,
            connected: lost_for.is_none(),
            reconnects: self.reconnects,
            failed_attempts: self.reconnector.failures(),
            next_attempt: self.reconnector.next_attempt().map(|at| at.since(now).to_duration()),
            lost_for,
            last_error: self.last_error.clone(),
            held,
            oldest,
            aborts: self.queue.aborts.get(),
            retries: self.queue.retries.get(),
        }
    }
}

/// Resolves `host:port` and starts a connection. The name service may take its time; only this disk waits for it.
pub(crate) fn connect(address: &str) -> Result<Arc<dyn ByteStream>, ConnectionError> {
    let resolved = address.to_socket_addrs().map_err(|_| ConnectionError::UnknownHost(address.into()))?;
    let mut last = ConnectionError::UnknownHost(address.into());
    for address in resolved {
        match Socket::connect(address, None) {
            Ok(socket) => return Ok(Arc::new(socket)),
            Err(error) => last = ConnectionError::Io(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
    Err(last)
}
