//! A session across its incarnations: when to connect again, as whom, and what must be certain before old writes are repeated.
//!
//! Sans-IO: the caller connects and says what time it is.
//!
//! # Why writes may be sent again
//!
//! A write that was under way when a connection died may still be carried out by the target, now or later. Sending it again and
//! letting newer writes follow would be unsound while that can happen: the old one could land on top of a newer one. So every
//! incarnation of a session logs in with the same ISID and TSIH 0. That is a session reinstatement (RFC 7143 6.3.5): the target
//! must end the old session and all its tasks before it answers the login. Only after that answer is any request sent again. And
//! the bytes of the old connection cannot arrive later either: it is cut with a reset, and the target has let go of it.
//!
//! Session reinstatement is between the same two ports. If the target sends us to another portal group, the old session is not
//! ended by the login; then the unit is reset first (SAM-5 7.7), which ends the tasks of every session.

use crate::chap::ChapAlgorithm;
use crate::connection::{Connection, ConnectionConfig, ConnectionError};
use crate::io::{Pieces, Wire};
use crate::login::LoginError;
use crate::lun::LunInfo;
use block::Completions;
use clock::Cycles;
use std::sync::Arc;

/// A connection and its wire.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) wire: Arc<dyn Wire>,
}

impl Link {
    pub(crate) fn turn(
        &mut self,
        pieces: &mut Pieces,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<usize, ConnectionError> {
        self.connection.turn(&*self.wire, pieces, now, done)
    }
}

/// Starts a connection to `host:port` without waiting for it.
pub(crate) type Connect<'a> = &'a mut dyn FnMut(&str) -> Result<Arc<dyn Wire>, ConnectionError>;

/// Redirects in a row that are followed.
const MAX_REDIRECTS: u32 = 8;

/// Pauses between attempts, in cycles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) min_pause: Cycles,
    pub(crate) max_pause: Cycles,
}

impl Backoff {
    /// The pause after `failures` attempts that failed: none after the first loss, then doubling, with the upper half random so
    /// that many disks do not come back at once.
    fn pause(&self, failures: u32, random: u64) -> Cycles {
        let full = self.min_pause.0.saturating_mul(1 << (failures.saturating_sub(1)).min(32)).min(self.max_pause.0);
        Cycles(full / 2 + random % (full / 2 + 1))
    }
}

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
    detour: Option<String>,
    redirects: u32,
    backoff: Backoff,
    state: State,
    failures: u32,
    lost_at: Option<Cycles>,
    random: u64,
}

/// What became of a turn.
#[derive(Debug)]
pub(crate) enum Progress {
    Nothing,
    /// A session is ready for I/O.
    Ready(Box<Link>),
    /// An attempt failed; the next one is due after so long.
    Failed(ConnectionError, Cycles),
}

impl Reconnector {
    /// A session that is to be made at once.
    pub(crate) fn new(
        template: ConnectionConfig,
        portal: String,
        backoff: Backoff,
        seed: u64,
        now: Cycles,
    ) -> Reconnector {
        Reconnector {
            template,
            portal,
            detour: None,
            redirects: 0,
            backoff,
            state: State::Waiting(now),
            failures: 0,
            lost_at: Some(now),
            random: seed | 1,
        }
    }

    /// What the unit was when it was last seen.
    pub(crate) fn known(&self) -> Option<Box<LunInfo>> {
        self.template.known.clone()
    }

    /// Attempts that failed since the last session.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Since when there is no session.
    pub(crate) fn lost_at(&self) -> Option<Cycles> {
        self.lost_at
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
        self.lost_at = Some(now);
        self.failures = 0;
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
                let address = self.detour.take().unwrap_or_else(|| self.portal.clone());
                match connect(&address) {
                    Ok(wire) => {
                        self.template.login.challenge = self.challenge();
                        let connection = Connection::new(self.template.clone(), now);
                        self.state = State::Connecting(Box::new(Link { connection, wire }));
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
                link.wire.reset();
                self.redirects += 1;
                match permanent {
                    true => self.portal = address,
                    false => self.detour = Some(address),
                }
                self.state = State::Waiting(now);
                Progress::Nothing
            }
            // tgt refuses a list that begins with an algorithm it does not know, although MD5 is in it. Where the operator left
            // the choice to us, the one that every target must have (RFC 7143 12.1.3) gets a try of its own.
            Err(ConnectionError::Login(LoginError::AlgorithmsRefused { .. }))
                if self.template.login.auth.algorithms.is_empty() =>
            {
                link.wire.reset();
                self.template.login.auth.algorithms = vec![ChapAlgorithm::Md5];
                self.state = State::Waiting(now);
                Progress::Nothing
            }
            Err(error) => {
                link.wire.reset();
                self.fail(error, now)
            }
        }
    }

    fn hand_over(&mut self) -> Progress {
        let State::Connecting(link) = std::mem::replace(&mut self.state, State::Away) else {
            unreachable!("the caller saw it");
        };
        self.failures = 0;
        self.redirects = 0;
        self.lost_at = None;
        // The old session is over: its writes cannot land any more.
        self.template.fence = None;
        self.template.known = link.connection.info().map(|info| Box::new(info.clone()));
        Progress::Ready(link)
    }

    fn fail(&mut self, error: ConnectionError, now: Cycles) -> Progress {
        self.failures = self.failures.saturating_add(1);
        self.redirects = 0;
        let random = self.next_random();
        let pause = self.backoff.pause(self.failures, random);
        self.state = State::Waiting(now + pause);
        Progress::Failed(error, pause)
    }

    fn challenge(&mut self) -> [u8; 33] {
        let mut challenge = [0; 33];
        if getrandom::fill(&mut challenge).is_err() {
            // Without randomness from the kernel a challenge must still not repeat.
            challenge[..8].copy_from_slice(&self.next_random().to_be_bytes());
        }
        challenge
    }

    /// xorshift64: spreads attempts, keeps no secret.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
