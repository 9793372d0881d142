//! A session across its incarnations: when to connect again, as whom, and what must be certain before old writes are repeated.
//!
//! Sans-IO: the caller connects and says what time it is.
//!
//! # Why writes may be sent again
//!
//! A write that was under way when a connection died may still be carried out by the target, now or later. Sending it again and
//! letting newer writes follow would be unsound while that can happen: the old one could land on top of a newer one. So every
//! incarnation of a session logs in with the same ISID and TSIH 0. That is a session reinstatement ([RFC 7143 § 6.3.5]): the target
//! must end the old session and all its tasks before it answers the login. Only after that answer is any request sent again. And
//! the bytes of the old connection cannot arrive later either: it is cut with a reset, and the target has let go of it.
//!
//! Session reinstatement is between the same two ports. If the target sends us to another portal group, the old session is not
//! ended by the login; then the unit is reset first (SAM-5 7.7), which ends the tasks of every session.
//!
//! [RFC 7143 § 6.3.5]: https://www.rfc-editor.org/rfc/rfc7143#section-6.3.5

use crate::chap::ChapAlgorithm;
use crate::connection::{Connection, ConnectionConfig, ConnectionError};
use crate::io::{ByteStream, Interest, Pieces};
use crate::login::LoginError;
use crate::lun::LunInfo;
use block::Completions;
use clock::Cycles;
use initiator::{Backoff, Recovery};
use std::sync::Arc;
use std::time::Duration;

/// A connection and its byte stream.
#[derive(Debug)]
pub(crate) struct Link {
    /// The number of the login, from 1: the fence is between two of them.
    pub(crate) incarnation: u64,
    pub(crate) connection: Connection,
    pub(crate) stream: Arc<dyn ByteStream>,
}

impl Link {
    pub(crate) fn turn(
        &mut self,
        pieces: &mut Pieces,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<usize, ConnectionError> {
        self.connection.turn(&*self.stream, pieces, now, done)
    }

    /// The descriptor to sleep on while the link is turned by a control thread.
    pub(crate) fn interest(&self) -> Option<Interest> {
        self.stream.fd().map(|fd| Interest { fd, writable: self.connection.wants_write() })
    }
}

/// Starts a connection to `host:port` without waiting for it.
pub(crate) type Connect<'a> = &'a mut dyn FnMut(&str) -> Result<Arc<dyn ByteStream>, ConnectionError>;

/// Redirects in a row that are followed.
const MAX_REDIRECTS: u32 = 8;

#[derive(Debug)]
enum State {
    /// The link is in use elsewhere.
    Away,
    Waiting(Cycles),
    Connecting(Box<Link>),
}

/// Makes one session's connections, again and again.
#[derive(Debug)]
pub(crate) struct Reconnector {
    template: ConnectionConfig,
    /// Where to connect: the portal, or where a permanent redirect led.
    portal: String,
    /// Where a temporary redirect leads, for one attempt.
    redirect: Option<String>,
    redirects: u32,
    backoff: Backoff,
    state: State,
    incarnations: u64,
}

/// The outcome of a turn.
#[derive(Debug)]
pub(crate) enum Progress {
    Nothing,
    /// A session is ready for I/O.
    Ready(Box<Link>),
    /// An attempt failed; the next one is due after so long.
    Failed(ConnectionError, Duration),
}

impl Reconnector {
    /// A session that is to be made at once.
    pub(crate) fn new(
        template: ConnectionConfig,
        portal: String,
        recovery: &Recovery,
        seed: u64,
        now: Cycles,
    ) -> Reconnector {
        Reconnector {
            template,
            portal,
            redirect: None,
            redirects: 0,
            backoff: Backoff::new(recovery, seed),
            state: State::Waiting(now),
            incarnations: 0,
        }
    }

    /// The unit as it was last seen.
    pub(crate) fn known(&self) -> Option<Box<LunInfo>> {
        self.template.known.clone()
    }

    /// Attempts that failed since the last session.
    pub(crate) fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Whether there is no session.
    pub(crate) fn is_lost(&self) -> bool {
        !matches!(self.state, State::Away)
    }

    /// When the next attempt is due.
    pub(crate) fn next_attempt(&self) -> Option<Cycles> {
        match self.state {
            State::Waiting(at) => Some(at),
            _ => None,
        }
    }

    /// The session's link has died; `writes` tells whether writes wait to be sent again.
    pub(crate) fn on_lost(&mut self, dead: &Connection, writes: bool, now: Cycles) {
        if writes && self.template.fence.is_none() {
            self.template.fence = Some(dead.portal_group());
        }
        if let Some(info) = dead.info() {
            self.template.known = Some(Box::new(info.clone()));
        }
        self.backoff.reset();
        self.redirects = 0;
        self.state = State::Waiting(now);
    }

    /// The link under construction, to sleep on.
    pub(crate) fn connecting(&self) -> Option<&Link> {
        match &self.state {
            State::Connecting(link) => Some(link),
            _ => None,
        }
    }

    /// When [`turn`](Self::turn) has something to do although nothing arrives.
    pub(crate) fn deadline(&self) -> Cycles {
        match &self.state {
            State::Away => Cycles::NEVER,
            State::Waiting(at) => *at,
            State::Connecting(link) => link.connection.deadline(),
        }
    }

    /// Goes on. `connect` starts a connection to `host:port` without waiting for it.
    pub(crate) fn turn(&mut self, pieces: &mut Pieces, now: Cycles, connect: Connect<'_>) -> Progress {
        match &mut self.state {
            State::Away => return Progress::Nothing,
            State::Waiting(at) if now < *at => return Progress::Nothing,
            State::Waiting(_) => {
                let address = self.redirect.take().unwrap_or_else(|| self.portal.clone());
                match connect(&address) {
                    Ok(stream) => {
                        self.template.login.challenge = self.challenge();
                        let connection = Connection::new(self.template.clone(), now);
                        self.incarnations += 1;
                        let incarnation = self.incarnations;
                        self.state = State::Connecting(Box::new(Link { incarnation, connection, stream }));
                    }
                    Err(error) => return self.fail(error, now),
                }
            }
            State::Connecting(_) => {}
        }
        let State::Connecting(link) = &mut self.state else { return Progress::Nothing };
        // No request is on this link yet, so none can complete.
        match link.turn(pieces, now, &mut Completions::default()) {
            Ok(_) if link.connection.is_ready() => self.hand_over(),
            Ok(_) => Progress::Nothing,
            Err(ConnectionError::Redirected { address, permanent }) if self.redirects < MAX_REDIRECTS => {
                link.stream.reset();
                self.redirects += 1;
                if permanent {
                    self.portal = address;
                } else {
                    self.redirect = Some(address);
                }
                self.state = State::Waiting(now);
                Progress::Nothing
            }
            // tgt refuses a list that begins with an algorithm it does not know, although MD5 is in it. Where the operator left
            // the choice to us, the one that every target must have (RFC 7143 12.1.3) gets a try of its own.
            Err(ConnectionError::Login(LoginError::AlgorithmsRefused { .. }))
                if self.template.login.auth.algorithms.is_empty() =>
            {
                link.stream.reset();
                self.template.login.auth.algorithms = vec![ChapAlgorithm::Md5];
                self.state = State::Waiting(now);
                Progress::Nothing
            }
            Err(error) => {
                link.stream.reset();
                self.fail(error, now)
            }
        }
    }

    fn hand_over(&mut self) -> Progress {
        let State::Connecting(link) = std::mem::replace(&mut self.state, State::Away) else {
            unreachable!("the caller saw it");
        };
        self.backoff.reset();
        self.redirects = 0;
        // The old session is over: its writes cannot land any more.
        self.template.fence = None;
        self.template.known = link.connection.info().map(|info| Box::new(info.clone()));
        Progress::Ready(link)
    }

    fn fail(&mut self, error: ConnectionError, now: Cycles) -> Progress {
        self.redirects = 0;
        let pause = self.backoff.fail();
        self.state = State::Waiting(now + Cycles::from(pause));
        Progress::Failed(error, pause)
    }

    fn challenge(&mut self) -> [u8; 33] {
        let mut challenge = [0; 33];
        if getrandom::fill(&mut challenge).is_err() {
            // Without randomness from the kernel a challenge must still not repeat.
            challenge[..8].copy_from_slice(&self.backoff.random().to_be_bytes());
        }
        challenge
    }
}
