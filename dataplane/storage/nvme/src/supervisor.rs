//! One controller's life, on a thread of its own: association after association, I/O queues for the channels, and the fence
//! between the dead and the living.
//!
//! ```text
//!            +-----------------------------------------------+
//!            v                                               |
//! Down --> Starting --> Up --(admin queue lost)----------> Down
//!                        |                                   ^
//!                        +--(I/O queue lost, timeout)--> Stopping
//! ```
//!
//! **The fence.** When an association is lost, the supervisor first cuts every connection of it with a reset, so that nothing
//! still in our send queues can arrive later. If the admin queue still works, the controller is reset through it before that
//! (`Stopping`): CSTS.RDY = 0 says that it processes no command any more, and the fence falls after its quiesce time CQT.
//! Otherwise nothing but time helps: the controller hears nothing from us any more, so its keep-alive timer ends the
//! association; see [`ControllerFacts::quiesce_time`] for the bound. Fences fall in the order of associations.
//!
//! Nothing here blocks: [`Supervisor::turn`] runs under virtual time as well.

use crate::channel::{IoCommand, IoLink};
use crate::controller::{
    Controller, ControllerError, ControllerEvent, ControllerFacts, NamespaceInfo, io_connect_data,
};
use crate::event::Event;
use crate::io::{Interest, Wire};
use crate::link::Link;
use crate::namespace::Namespace;
use crate::params::Settings;
use crate::port::{Port, Shared, Verdict, lock};
use crate::queue_pair::{Completion, Data, Outcome, QueueConfig, QueuePair};
use crate::spec::{Sqe, connect_error};
use clock::Cycles;
use memory::IoBuffers;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The first pause before a new attempt; it doubles.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// Time for a lost controller to confirm a reset.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at the namespaces, for targets that send no events.
const RESCAN_PERIOD: Duration = Duration::from_secs(30);

/// Makes connections to the target, without waiting for them.
pub(crate) trait Dial: Send {
    /// Starts a connection.
    fn dial(&mut self) -> io::Result<Arc<dyn Wire>>;
}

/// What the outside may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Look at the namespaces.
    Rescan,
    /// Reset the controller and connect again.
    Reset,
    /// Shut down for good.
    Stop,
}

/// Where a controller is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// First attempt.
    Connecting,
    /// Up.
    Up,
    /// Lost; attempts go on.
    Reconnecting,
    /// Given up or stopped; it never comes back.
    Dead,
}

/// What the outside sees.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where it is in its life.
    pub phase: Phase,
    /// What the controller said of itself, last time it was up.
    pub facts: ControllerFacts,
    /// Failed attempts since it was lost.
    pub attempts: u32,
    /// When the next attempt starts.
    pub next_attempt: Cycles,
    /// Since when it is lost, or attached.
    pub since: Cycles,
    /// Why it was lost, or why the last attempt failed.
    pub last_error: Option<ControllerError>,
    /// Associations that were up.
    pub associations: u64,
    /// Looks at the namespaces that were completed.
    pub(crate) scans: u64,
}

/// What supervisor and the outside share, besides what channels see.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) status: Mutex<Status>,
    pub(crate) changed: std::sync::Condvar,
    pub(crate) namespaces: Mutex<BTreeMap<u32, Arc<Namespace>>>,
    pub(crate) asks: Mutex<VecDeque<Ask>>,
}

impl Board {
    pub(crate) fn new(now: Cycles) -> Board {
        let status = Status {
            phase: Phase::Connecting,
            facts: ControllerFacts::default(),
            attempts: 0,
            next_attempt: now,
            since: now,
            last_error: None,
            associations: 0,
            scans: 0,
        };
        Board {
            status: Mutex::new(status),
            changed: std::sync::Condvar::new(),
            namespaces: Mutex::new(BTreeMap::new()),
            asks: Mutex::new(VecDeque::new()),
        }
    }
}

/// An I/O queue that is being connected for a channel.
#[derive(Debug)]
struct Connecting {
    port: Arc<Port>,
    link: IoLink,
    deadline: Cycles,
}

/// One association: the admin queue and all I/O queues made under it.
#[derive(Debug)]
struct Association {
    number: u64,
    controller: Controller,
    connecting: Vec<Connecting>,
    /// I/O queues that have a connection, or are being given one, by QID; to be cut with the association.
    served: Vec<(u16, Arc<dyn Wire>)>,
    /// Its namespaces were looked at: they are the disks that they were, or are gone.
    scanned: bool,
    next_scan: Cycles,
}

#[derive(Debug)]
enum State {
    Down { retry_at: Cycles },
    Starting(Association),
    Up(Association),
    Stopping(Association),
    Dead,
}

/// An association that may still execute what was in flight.
#[derive(Debug)]
struct Fence {
    association: u64,
    lost_at: Cycles,
    falls_at: Cycles,
    confirmed: bool,
}

/// The life of one controller.
pub(crate) struct Supervisor {
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    board: Arc<Board>,
    dialer: Box<dyn Dial>,
    state: State,
    fences: VecDeque<Fence>,
    next_association: u64,
    attempts: u32,
    lost_since: Cycles,
    was_up: bool,
    stop_wanted: bool,
    rng: u64,
}

impl Supervisor {
    pub(crate) fn new(
        settings: Arc<Settings>,
        shared: Arc<Shared>,
        board: Arc<Board>,
        dialer: Box<dyn Dial>,
        seed: u64,
        now: Cycles,
    ) -> Supervisor {
        Supervisor {
            settings,
            shared,
            board,
            dialer,
            state: State::Down { retry_at: now },
            fences: VecDeque::new(),
            next_association: 1,
            attempts: 0,
            lost_since: now,
            was_up: false,
            stop_wanted: false,
            rng: seed | 1,
        }
    }

    /// Does what is to be done now. Call again at [`deadline`](Supervisor::deadline) or when one of
    /// [`interests`](Supervisor::interests) wakes.
    pub(crate) fn turn(&mut self, now: Cycles) {
        self.hear(now);
        self.drop_fences(now);
        let state = std::mem::replace(&mut self.state, State::Dead);
        self.state = match state {
            State::Down { retry_at } if now >= retry_at => self.start(now),
            State::Starting(association) => self.turn_starting(association, now),
            State::Up(association) => self.turn_up(association, now),
            State::Stopping(association) => self.turn_stopping(association, now),
            other => other,
        };
        self.apply_timeouts(now);
        self.clean_ports();
    }

    /// Whether all is over: nothing will ever change again.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.state, State::Dead) && self.fences.is_empty()
    }

    pub(crate) fn deadline(&self) -> Cycles {
        let state = match &self.state {
            State::Down { retry_at } => *retry_at,
            State::Dead => Cycles::NEVER,
            State::Starting(a) | State::Stopping(a) => a.controller.deadline(),
            State::Up(a) => {
                let connecting = a.connecting.iter().map(|c| c.deadline).min().unwrap_or(Cycles::NEVER);
                a.controller.deadline().min(connecting).min(a.next_scan)
            }
        };
        let fence = self.fences.front().map_or(Cycles::NEVER, |fence| fence.falls_at);
        let recovery = &self.settings.recovery;
        let is_down = !matches!(self.state, State::Up(_) | State::Dead);
        let limits = [recovery.fast_fail, recovery.loss_timeout].into_iter().flatten();
        let limit = limits.map(|limit| self.lost_since + Cycles::from(limit)).min();
        let limit = limit.filter(|_| is_down && self.shared.verdict() == Verdict::Hold).unwrap_or(Cycles::NEVER);
        state.min(fence).min(limit)
    }

    /// The descriptors to sleep on.
    pub(crate) fn interests(&self, list: &mut Vec<Interest>) {
        let (State::Starting(association) | State::Up(association) | State::Stopping(association)) = &self.state else {
            return;
        };
        let admin = &association.controller.link;
        list.extend(admin.wire().fd().map(|fd| Interest { fd, writable: admin.queue.wants_to_send() }));
        for Connecting { link, .. } in &association.connecting {
            list.extend(link.wire().fd().map(|fd| Interest { fd, writable: link.queue.wants_to_send() }));
        }
    }

    fn hear(&mut self, now: Cycles) {
        loop {
            let Some(ask) = lock(&self.board.asks).pop_front() else { return };
            let state = std::mem::replace(&mut self.state, State::Dead);
            self.state = match (ask, state) {
                (Ask::Rescan, State::Up(mut association)) => {
                    association.controller.rescan(now);
                    State::Up(association)
                }
                (Ask::Reset, State::Up(association)) => self.reset(association, "reset on demand", now),
                (Ask::Stop, State::Up(mut association)) => {
                    self.stop_wanted = true;
                    self.shared.set_verdict(Verdict::Fail);
                    association.controller.stop(false, STOP_TIMEOUT, now);
                    State::Stopping(association)
                }
                (Ask::Stop, state) => {
                    self.stop_wanted = true;
                    self.bury(state, now);
                    State::Dead
                }
                (_, state) => state,
            };
        }
    }

    /// Cuts whatever is left of an association when the controller is stopped.
    fn bury(&mut self, state: State, now: Cycles) {
        self.shared.set_verdict(Verdict::Fail);
        if let State::Starting(association) | State::Up(association) | State::Stopping(association) = state {
            self.cut(association, false, now);
        }
        self.set_phase(Phase::Dead);
    }

    fn start(&mut self, now: Cycles) -> State {
        let wire = match self.dialer.dial() {
            Ok(wire) => wire,
            Err(error) => return self.attempt_failed(crate::link::LinkError::Io(error.kind()).into(), now),
        };
        let number = self.next_association;
        self.next_association += 1;
        State::Starting(Association {
            number,
            controller: Controller::new(self.settings.clone(), wire, now),
            connecting: Vec::new(),
            served: Vec::new(),
            scanned: false,
            next_scan: now + Cycles::from(RESCAN_PERIOD),
        })
    }

    fn turn_starting(&mut self, mut association: Association, now: Cycles) -> State {
        if let Err(error) = association.controller.turn(now, false) {
            association.controller.link.wire().reset();
            return self.attempt_failed(error, now);
        }
        if !association.controller.is_ready() {
            return State::Starting(association);
        }
        (self.shared.sink)(&Event::Connected {
            attempt: self.attempts + 1,
            after: now.since(self.lost_since).to_duration(),
        });
        (self.attempts, self.was_up) = (0, true);
        {
            let mut status = lock(&self.board.status);
            status.facts = association.controller.facts().clone();
            (status.attempts, status.last_error, status.since) = (0, None, now);
            status.associations += 1;
        }
        self.shared.set_verdict(Verdict::Hold);
        self.turn_up(association, now)
    }

    fn turn_up(&mut self, mut association: Association, now: Cycles) -> State {
        if now >= association.next_scan {
            association.next_scan = now + Cycles::from(RESCAN_PERIOD);
            association.controller.rescan(now);
        }
        self.hear_ports(&mut association, now);
        if let Err(error) = association.controller.turn(now, self.shared.take_traffic()) {
            return self.lost(association, error, false, now);
        }
        while let Some(event) = association.controller.pop_event() {
            if let ControllerEvent::Namespaces(found) = event {
                self.on_namespaces(&found, &association.controller);
                association.scanned = true;
            }
        }
        if let Some(reason) = self.doomed(&association) {
            return self.reset(association, reason, now);
        }
        match self.turn_connecting(&mut association, now) {
            Ok(()) => State::Up(association),
            Err(error) => {
                let reason = error.to_string();
                lock(&self.board.status).last_error = Some(error);
                self.reset(association, &reason, now)
            }
        }
    }

    /// Aborts that channels ask for.
    fn hear_ports(&self, association: &mut Association, now: Cycles) {
        for port in lock(&self.shared.ports).iter() {
            if let Some(cid) = port.take_abort() {
                (self.shared.sink)(&Event::CommandTimeout { queue: port.queue });
                association.controller.abort(port.queue, cid, now);
            }
        }
    }

    /// Why an association must be given up although its admin queue works.
    fn doomed(&self, association: &Association) -> Option<&'static str> {
        if self.shared.abandoned() == association.number {
            return Some("a channel was dropped with writes in flight");
        }
        for port in lock(&self.shared.ports).iter() {
            if port.reset_association() == association.number {
                return Some("a command was not answered, nor could it be aborted");
            }
            if port.lost_association() == association.number && !port.is_closed() {
                return Some("the connection of an I/O queue failed");
            }
        }
        None
    }

    /// Connects an I/O queue for each channel that has none under this association, once it is certain where its requests go.
    fn turn_connecting(&mut self, association: &mut Association, now: Cycles) -> Result<(), ControllerError> {
        if !association.scanned {
            return Ok(());
        }
        let ports: Vec<Arc<Port>> = lock(&self.shared.ports).clone();
        // After the look at the ports: the one of the next channel comes with the news of the dropped one.
        if self.shared.abandoned() > self.shared.released() {
            return Ok(());
        }
        for port in ports {
            if !port.is_closed() && association.served.iter().all(|(queue, _)| *queue != port.queue) {
                self.begin_connect(association, port, now)?;
            }
        }
        let mut at = 0;
        while at < association.connecting.len() {
            if turn_connect(&mut association.connecting[at], &self.settings, now)? {
                let Connecting { port, mut link, .. } = association.connecting.swap_remove(at);
                link.queue.set_in_capsule_len(association.controller.facts().in_capsule_len());
                port.deliver(association.number, link);
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    fn begin_connect(
        &mut self,
        association: &mut Association,
        port: Arc<Port>,
        now: Cycles,
    ) -> Result<(), ControllerError> {
        let facts = association.controller.facts();
        let wire = self.dialer.dial().map_err(|error| crate::link::LinkError::Io(error.kind()))?;
        let entries = self.settings.io_entries.min(facts.max_entries).max(2);
        // Connect's data goes in the capsule on every queue (Base 6.3); what else may, Identify said.
        let config = QueueConfig { entries, digests: self.settings.digests, in_capsule_len: 8192 };
        let data = io_connect_data(&self.settings, facts.controller_id).bytes();
        let buffers = IoBuffers::anonymous(data.len()).expect("a page of private memory");
        buffers.write(0, &data).expect("made to measure");
        let mut queue = QueuePair::new(config);
        let command = Data::Buffers { offset: 0, len: data.len() as u32 };
        let sqe = Sqe::connect(port.queue, entries, 0);
        queue.submit(sqe, command, IoCommand::Connect(buffers), now).expect("the queue is empty");
        association.served.push((port.queue, wire.clone()));
        let deadline = now + Cycles::from(self.settings.connect_timeout);
        association.connecting.push(Connecting { port, link: Link::new(queue, wire), deadline });
        Ok(())
    }

    /// Ends an association through its admin queue, which still works.
    fn reset(&mut self, mut association: Association, reason: &str, now: Cycles) -> State {
        self.note_lost(reason, now);
        association.served.iter().for_each(|(_, wire)| wire.reset());
        association.controller.stop(true, STOP_TIMEOUT, now);
        // Bytes move at once: the sooner the controller stops, the sooner held writes go on.
        self.turn_stopping(association, now)
    }

    fn turn_stopping(&mut self, mut association: Association, now: Cycles) -> State {
        let outcome = association.controller.turn(now, false);
        while let Some(event) = association.controller.pop_event() {
            if matches!(event, ControllerEvent::Stopped) {
                self.cut(association, true, now);
                return self.go_down(now);
            }
        }
        match outcome {
            Ok(()) => State::Stopping(association),
            Err(_) => {
                self.cut(association, false, now);
                self.go_down(now)
            }
        }
    }

    /// The admin queue is lost: nobody can be asked.
    fn lost(&mut self, association: Association, error: ControllerError, confirmed: bool, now: Cycles) -> State {
        self.note_lost(&error.to_string(), now);
        lock(&self.board.status).last_error = Some(error);
        self.cut(association, confirmed, now);
        self.go_down(now)
    }

    fn note_lost(&mut self, reason: &str, now: Cycles) {
        (self.shared.sink)(&Event::Lost { reason: reason.to_owned() });
        self.lost_since = now;
        let mut status = lock(&self.board.status);
        (status.phase, status.since) = (Phase::Reconnecting, now);
    }

    /// Cuts all connections of an association and raises its fence.
    fn cut(&mut self, association: Association, confirmed: bool, now: Cycles) {
        association.served.iter().for_each(|(_, wire)| wire.reset());
        association.controller.link.wire().reset();
        let facts = association.controller.facts();
        let wait = if confirmed { facts.quiesce_after_reset() } else { facts.quiesce_time(self.settings.keep_alive) };
        let fence =
            Fence { association: association.number, lost_at: now, falls_at: now + Cycles::from(wait), confirmed };
        self.fences.push_back(fence);
    }

    fn go_down(&mut self, now: Cycles) -> State {
        if self.stop_wanted {
            self.set_phase(Phase::Dead);
            return State::Dead;
        }
        State::Down { retry_at: now + Cycles::from(self.jitter(MIN_PAUSE)) }
    }

    fn attempt_failed(&mut self, error: ControllerError, now: Cycles) -> State {
        self.attempts += 1;
        let pause = MIN_PAUSE * 2u32.saturating_pow(self.attempts.min(16));
        let next = self.jitter(pause.min(self.settings.recovery.max_pause));
        let (held, oldest) = self.shared.held();
        (self.shared.sink)(&Event::AttemptFailed {
            attempt: self.attempts,
            reason: error.to_string(),
            next,
            held,
            oldest: now.since(oldest).to_duration(),
        });
        let retry_at = now + Cycles::from(next);
        {
            let mut status = lock(&self.board.status);
            (status.attempts, status.next_attempt) = (self.attempts, retry_at);
            status.last_error = Some(error);
        }
        if !self.was_up {
            // Attach reports it; nothing holds on to a controller that never was.
            self.set_phase(Phase::Dead);
            return State::Dead;
        }
        self.board.changed.notify_all();
        State::Down { retry_at }
    }

    /// `pause`, a quarter more or less: hosts that lost the same target do not come back at the same instant.
    fn jitter(&mut self, pause: Duration) -> Duration {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        let permille = 750 + (self.rng % 501) as u32;
        pause * permille / 1000
    }

    fn drop_fences(&mut self, now: Cycles) {
        while let Some(fence) = self.fences.front().filter(|fence| now >= fence.falls_at) {
            (self.shared.sink)(&Event::FenceReleased {
                association: fence.association,
                confirmed: fence.confirmed,
                after: now.since(fence.lost_at).to_duration(),
            });
            self.shared.release(fence.association);
            self.fences.pop_front();
        }
    }

    /// fast_io_fail_timeout_sec and ctrlr_loss_timeout_sec.
    fn apply_timeouts(&mut self, now: Cycles) {
        if matches!(self.state, State::Up(_) | State::Dead) || !self.was_up {
            return;
        }
        let recovery = self.settings.recovery;
        let lost_for = now.since(self.lost_since);
        let passed = |limit: Option<Duration>| limit.is_some_and(|limit| lost_for >= Cycles::from(limit));
        if passed(recovery.loss_timeout) {
            (self.shared.sink)(&Event::GivenUp);
            let state = std::mem::replace(&mut self.state, State::Dead);
            self.bury(state, now);
        } else if passed(recovery.fast_fail) && self.shared.verdict() == Verdict::Hold {
            (self.shared.sink)(&Event::FailingFast);
            self.shared.set_verdict(Verdict::Fail);
        }
    }

    /// Forgets channels that are gone, and their connections.
    fn clean_ports(&mut self) {
        let mut ports = lock(&self.shared.ports);
        ports.retain(|port| {
            port.bury();
            if port.is_closed()
                && let State::Up(association) = &mut self.state
            {
                association.connecting.retain(|connecting| connecting.port.queue != port.queue);
                association.served.retain(|(queue, _)| *queue != port.queue);
            }
            !port.is_closed()
        });
    }

    fn set_phase(&self, phase: Phase) {
        lock(&self.board.status).phase = phase;
        self.board.changed.notify_all();
    }

    /// Takes over what the controller has now: namespaces come, go and change. Whoever hears of it may look at them at once.
    fn on_namespaces(&self, found: &[NamespaceInfo], controller: &Controller) {
        for event in self.take_namespaces(found, controller.facts()) {
            (self.shared.sink)(&event);
        }
        let mut status = lock(&self.board.status);
        status.scans += 1;
        status.phase = Phase::Up;
        self.board.changed.notify_all();
    }

    fn take_namespaces(&self, found: &[NamespaceInfo], facts: &ControllerFacts) -> Vec<Event> {
        let subnqn = &self.settings.connect.subnqn;
        let mut events = Vec::new();
        let mut namespaces = lock(&self.board.namespaces);
        namespaces.retain(|&nsid, namespace| {
            let stays = found.iter().find(|info| info.nsid == nsid).is_some_and(|info| {
                match namespace.update(subnqn, info, facts) {
                    Ok(None) => true,
                    Ok(Some(from)) => {
                        events.push(Event::NamespaceResized { nsid, from, to: info.identify.blocks });
                        true
                    }
                    Err(()) => false,
                }
            });
            if !stays {
                namespace.remove();
                events.push(Event::NamespaceRemoved { nsid });
            }
            stays
        });
        for info in found {
            let nsid = info.nsid;
            if namespaces.contains_key(&nsid) {
                continue;
            }
            let namespace = Namespace::new(&self.settings.name, subnqn, info, facts).and_then(|namespace| {
                match namespaces.values().find(|other| other.identity.uuid == namespace.identity.uuid) {
                    Some(twin) => {
                        Err(format!("it has the identity of namespace {}: {}", twin.nsid, twin.identity.uuid))
                    }
                    None => Ok(namespace),
                }
            });
            match namespace {
                Ok(namespace) => {
                    namespaces.insert(nsid, Arc::new(namespace));
                    events.push(Event::NamespaceAdded { nsid });
                }
                Err(reason) => events.push(Event::NamespaceRefused { nsid, reason }),
            }
        }
        events
    }
}

/// Moves an I/O queue's Connect on. Whether the queue is open.
fn turn_connect(connecting: &mut Connecting, settings: &Settings, now: Cycles) -> Result<bool, ControllerError> {
    let link = &mut connecting.link;
    link.transmit()?;
    link.receive()?;
    link.transmit()?;
    if let Some(Completion { outcome, .. }) = link.queue.pop_completion() {
        return match outcome {
            Outcome::Answered(cqe) if cqe.status().is_success() => Ok(true),
            Outcome::Answered(cqe) => {
                Err(ControllerError::Refused { command: "Connect of an I/O queue", reason: connect_error(&cqe) })
            }
            Outcome::DataDigestError => Ok(false),
        };
    }
    if now >= connecting.deadline {
        return Err(ControllerError::Timeout { command: "Connect of an I/O queue", after: settings.connect_timeout });
    }
    Ok(false)
}
