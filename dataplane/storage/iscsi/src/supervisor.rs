//! A disk's own thread: makes its sessions, keeps those that no channel uses alive, and tells the story.

use crate::connection::{ConnectionConfig, ConnectionError};
use crate::event::{Event, EventSink};
use crate::io::{Interest, Pieces, Socket, Wire, sleep_on};
use crate::params::Recovery;
use crate::port::{Lost, Port, Shared, Verdict};
use crate::session::{Backoff, Link, Progress, Reconnector};
use block::Completions;
use clock::Cycles;
use std::net::ToSocketAddrs;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Longest sleep: nothing depends on it, it bounds the harm of a wake-up that was missed.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Locks for control threads; a panic elsewhere leaves the data usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// How one session is.
#[derive(Clone, Debug, Default)]
pub struct SessionStatus {
    /// Which one.
    pub session: u16,
    /// A channel uses it.
    pub in_use: bool,
    /// It is up.
    pub connected: bool,
    /// Logins that succeeded after the first.
    pub reconnects: u64,
    /// Attempts that failed since it was lost.
    pub failed_attempts: u32,
    /// Until the next attempt, while one is planned.
    pub next_attempt: Option<Duration>,
    /// Since when it is lost.
    pub lost_for: Option<Duration>,
    /// Why it was lost, or why the last attempt failed.
    pub last_error: Option<String>,
    /// I/Os that wait for it.
    pub held: u64,
    /// Age of the oldest of them.
    pub oldest: Duration,
    /// Commands aborted because they took too long.
    pub aborts: u64,
    /// Commands sent again.
    pub retries: u64,
}

/// What the disk asks its supervisor.
pub(crate) enum Ask {
    /// A port with a session, as soon as there is one; or the error of the first attempt.
    Open(Sender<Result<Arc<Port>, ConnectionError>>),
    /// Ask the target for the disk's size, on a session that no channel uses if there is one.
    Rescan,
    /// End all sessions.
    Stop,
}

/// One session.
struct Session {
    port: Arc<Port>,
    reconnector: Reconnector,
    /// The session, while no channel has it.
    parked: Option<Box<Link>>,
    in_use: bool,
    given_up: bool,
    failing: bool,
    opener: Option<Sender<Result<Arc<Port>, ConnectionError>>>,
    reconnects: u64,
    ever_up: bool,
    lost_since: Cycles,
    last_error: Option<String>,
}

/// The thread's state.
pub(crate) struct Supervisor {
    pub(crate) template: ConnectionConfig,
    pub(crate) portal: String,
    pub(crate) recovery: Recovery,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sink: EventSink,
    pub(crate) asks: Receiver<Ask>,
    pub(crate) status: Arc<Mutex<Vec<SessionStatus>>>,
    pub(crate) seen_blocks: u64,
    sessions: Vec<Session>,
    /// Sessions being logged out.
    leaving: Vec<(Box<Link>, Cycles)>,
    pieces: Pieces,
}

impl Supervisor {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        template: ConnectionConfig,
        portal: String,
        recovery: Recovery,
        shared: Arc<Shared>,
        sink: EventSink,
        asks: Receiver<Ask>,
        status: Arc<Mutex<Vec<SessionStatus>>>,
    ) -> Supervisor {
        let (sessions, leaving, pieces) = (Vec::new(), Vec::new(), Pieces::new());
        Supervisor { template, portal, recovery, shared, sink, asks, status, seen_blocks: 0, sessions, leaving, pieces }
    }

    /// Adds the disk's first session, already up.
    pub(crate) fn adopt(&mut self, reconnector: Reconnector, link: Box<Link>) -> std::io::Result<()> {
        self.seen_blocks = link.connection.info().map_or(0, |info| info.geometry.num_blocks);
        let mut session = Session::new(reconnector)?;
        session.parked = Some(link);
        session.ever_up = true;
        self.sessions.push(session);
        Ok(())
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        loop {
            let now = Cycles::now();
            match self.asks.try_recv() {
                Ok(Ask::Open(opener)) => self.open(opener, now),
                Ok(Ask::Rescan) => self.rescan(),
                Ok(Ask::Stop) | Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => self.sleep(now),
            }
            self.turn(Cycles::now());
        }
        self.stop();
    }

    fn open(&mut self, opener: Sender<Result<Arc<Port>, ConnectionError>>, now: Cycles) {
        let free = self.sessions.iter().position(|s| !s.in_use && !s.given_up);
        let index = match free {
            Some(index) => index,
            None => match self.add_session(now) {
                Ok(index) => index,
                Err(error) => {
                    let _ = opener.send(Err(ConnectionError::Io(error.raw_os_error().unwrap_or(libc::EMFILE))));
                    return;
                }
            },
        };
        let session = &mut self.sessions[index];
        session.in_use = true;
        session.port.closed.store(false, Ordering::Release);
        match session.parked.take() {
            Some(link) => {
                session.port.hand_over(link);
                let _ = opener.send(Ok(session.port.clone()));
            }
            // A disk that is lost now is opened without a session and holds.
            None if session.ever_up => drop(opener.send(Ok(session.port.clone()))),
            None => session.opener = Some(opener),
        }
    }

    fn add_session(&mut self, now: Cycles) -> std::io::Result<usize> {
        let mut template = self.template.clone();
        let number = self.sessions.len() as u16;
        template.login.isid[4..].copy_from_slice(&number.to_be_bytes());
        template.known = self.sessions.iter().find_map(|s| s.reconnector.known());
        let seed = u64::from_be_bytes([&template.login.isid[..], &[0, 1]].concat().try_into().expect("8 bytes"));
        let backoff = backoff(&self.recovery);
        self.sessions.push(Session::new(Reconnector::new(template, self.portal.clone(), backoff, seed, now))?);
        Ok(self.sessions.len() - 1)
    }

    fn rescan(&mut self) {
        for session in &mut self.sessions {
            if let Some(link) = &mut session.parked {
                link.connection.ask_capacity();
                return;
            }
        }
        self.shared.rescan_wanted.store(true, Ordering::Release);
    }

    fn turn(&mut self, now: Cycles) {
        for number in 0..self.sessions.len() {
            self.turn_session(number, now);
        }
        let pieces = &mut self.pieces;
        self.leaving.retain_mut(|(link, deadline)| {
            now < *deadline && link.turn(pieces, now, &mut Completions::default()).is_ok()
        });
        self.tell_changes();
        self.publish_status(now);
    }

    fn turn_session(&mut self, number: usize, now: Cycles) {
        let session = &mut self.sessions[number];
        if let Some(lost) = session.port.take_lost() {
            self.on_lost(number, lost, now);
        }
        let session = &mut self.sessions[number];
        if session.in_use && session.port.closed.load(Ordering::Acquire) {
            // The channel went away before it took the session it was given.
            session.in_use = false;
            session.parked = session.port.take_ready();
        }
        if let Some(mut link) = session.parked.take() {
            match link.turn(&mut self.pieces, now, &mut Completions::default()) {
                Ok(_) => {
                    if link.connection.take_news().capacity
                        && let Some(info) = link.connection.info()
                    {
                        self.shared.num_blocks.store(info.geometry.num_blocks, Ordering::Release);
                    }
                    session.parked = Some(link);
                }
                Err(error) => self.on_lost(number, Lost { link, error, writes: false }, now),
            }
        }
        if !self.sessions[number].given_up {
            self.reconnect(number, now);
            self.check_patience(number, now);
        }
    }

    fn on_lost(&mut self, number: usize, lost: Lost, now: Cycles) {
        let Lost { mut link, error, writes } = lost;
        let session = &mut self.sessions[number];
        if error == ConnectionError::LoggedOut {
            // The channel was closed with its session up: the session serves the next one.
            session.in_use = false;
            match link.connection.outstanding() {
                0 => session.parked = Some(link),
                _ => {
                    link.connection.log_out("the disk is closed", now);
                    self.leaving.push((link, now + self.template.timeouts.abort));
                }
            }
            return;
        }
        link.wire.reset();
        session.reconnector.on_lost(&link.connection, writes, now);
        session.lost_since = now;
        session.last_error = Some(error.to_string());
        (self.sink)(&Event::Lost { session: number as u16, reason: error.to_string() });
    }

    fn reconnect(&mut self, number: usize, now: Cycles) {
        let session = &mut self.sessions[number];
        let attempt = session.reconnector.failures() + 1;
        match session.reconnector.turn(&mut self.pieces, now, &mut connect) {
            Progress::Nothing => {}
            Progress::Ready(link) => {
                if let Some(info) = link.connection.info() {
                    self.shared.num_blocks.store(info.geometry.num_blocks, Ordering::Release);
                }
                let after = now.since(session.lost_since).to_duration();
                session.reconnects += u64::from(session.ever_up);
                (session.ever_up, session.failing, session.last_error) = (true, false, None);
                (self.sink)(&Event::Connected { session: number as u16, attempt, after });
                if session.in_use {
                    session.port.hand_over(link);
                } else {
                    session.parked = Some(link);
                }
                if let Some(opener) = session.opener.take() {
                    let _ = opener.send(Ok(session.port.clone()));
                }
            }
            Progress::Failed(error, pause) => {
                let (held, oldest) = session.port.held(now);
                let reason = error.to_string();
                session.last_error = Some(reason.clone());
                let next = pause.to_duration();
                (self.sink)(&Event::AttemptFailed { session: number as u16, attempt, reason, next, held, oldest });
                if let Some(opener) = session.opener.take() {
                    // Whoever opens hears why; the session is kept for the next who tries.
                    session.in_use = false;
                    let _ = opener.send(Err(error));
                }
            }
        }
    }

    /// Fails held I/O, or gives the session up, when its time has come.
    fn check_patience(&mut self, number: usize, now: Cycles) {
        let session = &mut self.sessions[number];
        let Some(lost_at) = session.reconnector.lost_at() else { return };
        let lost_for = now.since(lost_at).to_duration();
        if self.recovery.fast_fail.is_some_and(|limit| lost_for >= limit) && !session.failing {
            session.failing = true;
            session.port.set_verdict(Verdict::Fail);
            (self.sink)(&Event::FailingFast { session: number as u16 });
        }
        if self.recovery.loss_timeout.is_some_and(|limit| lost_for >= limit) {
            session.given_up = true;
            session.port.set_verdict(Verdict::Fail);
            (self.sink)(&Event::GivenUp { session: number as u16 });
        }
    }

    fn tell_changes(&mut self) {
        let to = self.shared.num_blocks.load(Ordering::Acquire);
        let from = std::mem::replace(&mut self.seen_blocks, to);
        if from != to {
            (self.sink)(&Event::Resized { from, to });
        }
        if self.shared.luns_changed.swap(false, Ordering::AcqRel) {
            (self.sink)(&Event::LunsChanged);
        }
    }

    fn publish_status(&self, now: Cycles) {
        let mut status = lock(&self.status);
        status.clear();
        status.extend(self.sessions.iter().enumerate().map(|(number, session)| session.status(number as u16, now)));
    }

    /// Sleeps until a descriptor or a deadline wants attention.
    fn sleep(&self, now: Cycles) {
        let mut interests = Vec::with_capacity(2 * self.sessions.len() + 1);
        let mut deadline = now + MAX_SLEEP.into();
        interests.extend(self.shared.wake.as_ref().map(|wake| Interest { fd: wake.as_raw_fd(), writable: false }));
        let mut watch = |link: &Link, connecting: bool| {
            let writable = connecting && link.connection.wants_write();
            interests.extend(link.wire.fd().map(|fd| Interest { fd, writable }));
            link.connection.deadline()
        };
        for session in &self.sessions {
            if let Some(link) = &session.parked {
                deadline = deadline.min(watch(link, true));
            }
            if let Some(link) = session.reconnector.connecting() {
                deadline = deadline.min(watch(link, true));
            }
            if !session.given_up {
                deadline = deadline.min(session.reconnector.deadline()).min(session.patience(&self.recovery));
            }
        }
        for (link, until) in &self.leaving {
            deadline = deadline.min(watch(link, true)).min(*until);
        }
        sleep_on(&interests, deadline.since(now).to_duration());
        if let Some(wake) = &self.shared.wake {
            wake.clear();
        }
    }

    /// Logs out of what can be logged out of.
    fn stop(mut self) {
        let until = Cycles::now() + Duration::from_secs(1).into();
        for session in &mut self.sessions {
            let parked = session.parked.take().or_else(|| session.port.take_lost().map(|lost| lost.link));
            if let Some(mut link) = parked {
                link.connection.log_out("the disk is deleted", Cycles::now());
                self.leaving.push((link, until));
            }
        }
        while !self.leaving.is_empty() {
            let now = Cycles::now();
            let pieces = &mut self.pieces;
            self.leaving.retain_mut(|(link, deadline)| {
                now < *deadline && link.turn(pieces, now, &mut Completions::default()).is_ok()
            });
            let fds = self.leaving.iter().filter_map(|(link, _)| link.wire.fd());
            let interests: Vec<Interest> = fds.map(|fd| Interest { fd, writable: false }).collect();
            if !interests.is_empty() {
                sleep_on(&interests, Duration::from_millis(50));
            }
        }
    }
}

impl Session {
    fn new(reconnector: Reconnector) -> std::io::Result<Session> {
        Ok(Session {
            port: Arc::new(Port::new(true)?),
            reconnector,
            parked: None,
            in_use: false,
            given_up: false,
            failing: false,
            opener: None,
            reconnects: 0,
            ever_up: false,
            lost_since: Cycles::now(),
            last_error: None,
        })
    }

    /// When the next limit of patience is reached.
    fn patience(&self, recovery: &Recovery) -> Cycles {
        let Some(lost_at) = self.reconnector.lost_at() else { return Cycles::NEVER };
        let fast_fail = recovery.fast_fail.filter(|_| !self.failing);
        let limits = [fast_fail, recovery.loss_timeout].into_iter().flatten();
        limits.map(|limit| lost_at + limit.into()).min().unwrap_or(Cycles::NEVER)
    }

    fn status(&self, session: u16, now: Cycles) -> SessionStatus {
        let (held, oldest) = self.port.held(now);
        let lost_for = self.reconnector.lost_at().map(|at| now.since(at).to_duration());
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
            aborts: self.port.aborts.load(Ordering::Relaxed),
            retries: self.port.retries.load(Ordering::Relaxed),
        }
    }
}

/// The pauses of a policy.
pub(crate) fn backoff(recovery: &Recovery) -> Backoff {
    Backoff { min_pause: recovery.min_pause.into(), max_pause: recovery.max_pause.into() }
}

/// Resolves `host:port` and starts a connection. The name service may take its time; only this disk waits for it.
pub(crate) fn connect(address: &str) -> Result<Arc<dyn Wire>, ConnectionError> {
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
