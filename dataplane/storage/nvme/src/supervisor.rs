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
//! Otherwise nothing but time helps: the controller receives nothing from us any more, so its keep-alive timer ends the
//! association; see [`ControllerFacts::quiesce_time`] for the bound. Fences fall in the order of associations.
//!
//! Nothing here blocks: [`Supervisor::turn`] runs under virtual time as well.

use crate::channel::{IoCommand, IoLink};
use crate::controller::{
    Controller, ControllerError, ControllerEvent, ControllerFacts, NamespaceInfo, io_connect_data,
};
use crate::event::{Event, NvmeEvent};
use crate::io::{ByteStream, Interest};
use crate::io_queue::{IoQueue, IoQueues};
use crate::link::Link;
use crate::namespace::Namespace;
use crate::params::Settings;
use crate::queue_pair::{Completion, Data, Outcome, QueueConfig, QueuePair};
use crate::spec::{Sqe, connect_error};
use clock::Cycles;
use initiator::{Backoff, CommandQueue, ConnectionEvent, DiskReplaced, HoldPolicy, Outage, OutageLimit, PendingFences};
use memory::IoBuffers;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Time for a lost controller to confirm a reset.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at the namespaces, for targets that send no events.
const RESCAN_PERIOD: Duration = Duration::from_secs(30);

/// Makes connections to the target, without waiting for them.
pub(crate) trait Dial: Send {
    /// Starts a connection.
    fn dial(&mut self) -> io::Result<Arc<dyn ByteStream>>;
}

/// A command to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
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

/// The status of a controller.
#[derive(Clone, Debug)]
pub struct Status {
    /// The phase of the controller's life.
    pub phase: Phase,
    /// The facts that the controller reported, last time it was up.
    pub facts: ControllerFacts,
    /// Failed attempts since it was lost.
    pub attempts: u32,
    /// When the next attempt starts.
    pub next_attempt: Cycles,
    /// When the controller was lost, or attached.
    pub since: Cycles,
    /// Why it was lost, or why the last attempt failed.
    pub last_error: Option<ControllerError>,
    /// Associations that were up.
    pub associations: u64,
    /// Looks at the namespaces that were completed.
    pub(crate) scans: u64,
}

/// The state that the supervisor and the owner of a controller share.
#[derive(Debug)]
pub(crate) struct SharedStatus {
    pub(crate) current: Mutex<Status>,
    /// The phase changed, or the namespaces were looked at.
    pub(crate) changed: Condvar,
    pub(crate) namespaces: Mutex<BTreeMap<u32, Arc<Namespace>>>,
    pub(crate) commands: CommandQueue<Command>,
}

impl SharedStatus {
    pub(crate) fn new(commands: CommandQueue<Command>, now: Cycles) -> SharedStatus {
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
        let namespaces = Mutex::new(BTreeMap::new());
        SharedStatus { current: Mutex::new(status), changed: Condvar::new(), namespaces, commands }
    }
}

/// An I/O queue that is being connected for a channel.
#[derive(Debug)]
struct Connecting {
    queue: Arc<IoQueue>,
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
    served: Vec<(u16, Arc<dyn ByteStream>)>,
    /// The namespaces were looked at: each is the disk that it was, or is gone.
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

/// The life of one controller.
pub(crate) struct Supervisor {
    settings: Arc<Settings>,
    io_queues: Arc<IoQueues>,
    shared_status: Arc<SharedStatus>,
    dialer: Box<dyn Dial>,
    state: State,
    fences: PendingFences,
    next_association: u64,
    backoff: Backoff,
    outage: Outage,
    was_up: bool,
    stop_wanted: bool,
}

impl Supervisor {
    pub(crate) fn new(
        settings: Arc<Settings>,
        io_queues: Arc<IoQueues>,
        shared_status: Arc<SharedStatus>,
        dialer: Box<dyn Dial>,
        seed: u64,
        now: Cycles,
    ) -> Supervisor {
        Supervisor {
            backoff: Backoff::new(&settings.recovery, seed),
            settings,
            io_queues,
            shared_status,
            dialer,
            state: State::Down { retry_at: now },
            fences: PendingFences::default(),
            next_association: 1,
            outage: Outage::new(now),
            was_up: false,
            stop_wanted: false,
        }
    }
}

impl initiator::Supervisor for Supervisor {
    fn turn(&mut self, now: Cycles) {
        self.process_commands(now);
        self.release_fences(now);
        let state = std::mem::replace(&mut self.state, State::Dead);
        self.state = match state {
            State::Down { retry_at } if now >= retry_at => self.start(now),
            State::Starting(association) => self.turn_starting(association, now),
            State::Up(association) => self.turn_up(association, now),
            State::Stopping(association) => self.turn_stopping(association, now),
            other => other,
        };
        self.apply_timeouts(now);
        self.forget_closed_queues();
    }

    fn is_finished(&self) -> bool {
        matches!(self.state, State::Dead) && self.fences.is_empty()
    }

    fn deadline(&self) -> Cycles {
        let state = match &self.state {
            State::Down { retry_at } => *retry_at,
            State::Dead => Cycles::NEVER,
            State::Starting(a) | State::Stopping(a) => a.controller.deadline(),
            State::Up(a) => {
                let connecting = a.connecting.iter().map(|c| c.deadline).min().unwrap_or(Cycles::NEVER);
                a.controller.deadline().min(connecting).min(a.next_scan)
            }
        };
        let limit = if self.is_down() { self.outage.deadline(&self.settings.recovery) } else { Cycles::NEVER };
        state.min(self.fences.deadline()).min(limit)
    }

    fn interests(&self, list: &mut Vec<Interest>) {
        let (State::Starting(association) | State::Up(association) | State::Stopping(association)) = &self.state else {
            return;
        };
        let admin = &association.controller.link;
        list.extend(admin.stream().fd().map(|fd| Interest { fd, writable: admin.queue.wants_to_send() }));
        for Connecting { link, .. } in &association.connecting {
            list.extend(link.stream().fd().map(|fd| Interest { fd, writable: link.queue.wants_to_send() }));
        }
    }
}

impl Supervisor {
    /// Whether a controller that was up is lost, and neither given up nor stopped.
    fn is_down(&self) -> bool {
        self.was_up && !self.stop_wanted && !matches!(self.state, State::Up(_) | State::Dead)
    }

    fn report(&self, event: impl Into<Event>) {
        (self.io_queues.sink)(&event.into());
    }

    fn process_commands(&mut self, now: Cycles) {
        while let Some(command) = self.shared_status.commands.pop() {
            let state = std::mem::replace(&mut self.state, State::Dead);
            self.state = match (command, state) {
                (Command::Rescan, State::Up(mut association)) => {
                    association.controller.rescan(now);
                    State::Up(association)
                }
                (Command::Reset, State::Up(association)) => self.reset(association, "reset on demand", now),
                (Command::Stop, State::Up(mut association)) => {
                    self.stop_wanted = true;
                    self.io_queues.set_policy(HoldPolicy::Fail);
                    association.controller.stop(false, STOP_TIMEOUT, now);
                    State::Stopping(association)
                }
                (Command::Stop, state) => {
                    self.stop_wanted = true;
                    self.tear_down(state, now);
                    State::Dead
                }
                (_, state) => state,
            };
        }
    }

    /// Cuts whatever is left of an association when the controller is stopped.
    fn tear_down(&mut self, state: State, now: Cycles) {
        self.io_queues.set_policy(HoldPolicy::Fail);
        if let State::Starting(association) | State::Up(association) | State::Stopping(association) = state {
            self.cut(association, false, now);
        }
        self.set_phase(Phase::Dead);
    }

    fn start(&mut self, now: Cycles) -> State {
        let stream = match self.dialer.dial() {
            Ok(stream) => stream,
            Err(error) => return self.attempt_failed(crate::link::LinkError::Io(error.kind()).into(), now),
        };
        let number = self.next_association;
        self.next_association += 1;
        State::Starting(Association {
            number,
            controller: Controller::new(self.settings.clone(), stream, now),
            connecting: Vec::new(),
            served: Vec::new(),
            scanned: false,
            next_scan: now + Cycles::from(RESCAN_PERIOD),
        })
    }

    fn turn_starting(&mut self, mut association: Association, now: Cycles) -> State {
        if let Err(error) = association.controller.turn(now, false) {
            association.controller.link.stream().reset();
            return self.attempt_failed(error, now);
        }
        if !association.controller.is_ready() {
            return State::Starting(association);
        }
        self.report(ConnectionEvent::Connected {
            attempt: self.backoff.failures() + 1,
            after: self.outage.lasted(now),
        });
        self.backoff.reset();
        self.was_up = true;
        {
            let mut status = self.shared_status.current.lock();
            status.facts = association.controller.facts().clone();
            status.attempts = 0;
            status.last_error = None;
            status.since = now;
            status.associations += 1;
        }
        self.io_queues.set_policy(HoldPolicy::Hold);
        self.turn_up(association, now)
    }

    fn turn_up(&mut self, mut association: Association, now: Cycles) -> State {
        if now >= association.next_scan {
            association.next_scan = now + Cycles::from(RESCAN_PERIOD);
            association.controller.rescan(now);
        }
        self.serve_aborts(&mut association, now);
        if let Err(error) = association.controller.turn(now, self.io_queues.take_traffic()) {
            return self.lost(association, error, false, now);
        }
        while let Some(event) = association.controller.pop_event() {
            if let ControllerEvent::Namespaces(found) = event {
                self.on_namespaces(&found, &association.controller);
                association.scanned = true;
            }
        }
        if let Some(reason) = self.reset_reason(&association) {
            return self.reset(association, reason, now);
        }
        match self.turn_connecting(&mut association, now) {
            Ok(()) => State::Up(association),
            Err(error) => {
                let reason = error.to_string();
                self.shared_status.current.lock().last_error = Some(error);
                self.reset(association, &reason, now)
            }
        }
    }

    /// Sends the aborts that channels ask for.
    fn serve_aborts(&self, association: &mut Association, now: Cycles) {
        for queue in self.io_queues.queues.lock().iter() {
            if let Some(cid) = queue.take_abort() {
                self.report(NvmeEvent::CommandTimeout { queue: queue.qid });
                association.controller.abort(queue.qid, cid, now);
            }
        }
    }

    /// The reason for which an association must be reset although its admin queue works.
    fn reset_reason(&self, association: &Association) -> Option<&'static str> {
        if self.io_queues.fence.abandoned() == association.number {
            return Some("a channel was dropped with writes in flight");
        }
        for queue in self.io_queues.queues.lock().iter() {
            if queue.reset_association() == association.number {
                return Some("a command was not answered, nor could it be aborted");
            }
            if queue.lost_association() == association.number && !queue.handoff.is_closed() {
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
        let queues: Vec<Arc<IoQueue>> = self.io_queues.queues.lock().clone();
        // After the look at the queues: that of the next channel comes with the news of the dropped one.
        if self.io_queues.fence.blocks_new_queues() {
            return Ok(());
        }
        for queue in queues {
            if !queue.handoff.is_closed() && association.served.iter().all(|(qid, _)| *qid != queue.qid) {
                self.begin_connect(association, queue, now)?;
            }
        }
        let mut at = 0;
        while at < association.connecting.len() {
            if turn_connect(&mut association.connecting[at], &self.settings, now)? {
                let Connecting { queue, mut link, .. } = association.connecting.swap_remove(at);
                link.queue.set_in_capsule_len(association.controller.facts().in_capsule_len());
                queue.deliver(association.number, link);
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    fn begin_connect(
        &mut self,
        association: &mut Association,
        io_queue: Arc<IoQueue>,
        now: Cycles,
    ) -> Result<(), ControllerError> {
        let facts = association.controller.facts();
        let stream = self.dialer.dial().map_err(|error| crate::link::LinkError::Io(error.kind()))?;
        let entries = self.settings.io_entries.min(facts.max_entries).max(2);
        // Connect's data goes in the capsule on every queue (Base 6.3); what else may, Identify said.
        let config = QueueConfig { entries, digests: self.settings.digests, in_capsule_len: 8192 };
        let data = io_connect_data(&self.settings, facts.controller_id).bytes();
        let buffers = IoBuffers::anonymous(data.len()).expect("a page of private memory");
        buffers.write(0, &data).expect("made to measure");
        let mut queue = QueuePair::new(config);
        let command = Data::Buffers { offset: 0, len: data.len() as u32 };
        let sqe = Sqe::connect(io_queue.qid, entries, 0);
        queue.submit(sqe, command, IoCommand::Connect(buffers), now).expect("the queue is empty");
        association.served.push((io_queue.qid, stream.clone()));
        let deadline = now + Cycles::from(self.settings.connect_timeout);
        association.connecting.push(Connecting { queue: io_queue, link: Link::new(queue, stream), deadline });
        Ok(())
    }

    /// Ends an association through its admin queue, which still works.
    fn reset(&mut self, mut association: Association, reason: &str, now: Cycles) -> State {
        self.note_lost(reason, now);
        association.served.iter().for_each(|(_, stream)| stream.reset());
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

    /// The admin queue is lost: the controller cannot be asked to stop.
    fn lost(&mut self, association: Association, error: ControllerError, confirmed: bool, now: Cycles) -> State {
        self.note_lost(&error.to_string(), now);
        self.shared_status.current.lock().last_error = Some(error);
        self.cut(association, confirmed, now);
        self.go_down(now)
    }

    fn note_lost(&mut self, reason: &str, now: Cycles) {
        self.report(ConnectionEvent::Lost { reason: reason.to_owned() });
        self.outage = Outage::new(now);
        let mut status = self.shared_status.current.lock();
        status.phase = Phase::Reconnecting;
        status.since = now;
    }

    /// Cuts all connections of an association and raises its fence.
    fn cut(&mut self, association: Association, confirmed: bool, now: Cycles) {
        association.served.iter().for_each(|(_, stream)| stream.reset());
        association.controller.link.stream().reset();
        let facts = association.controller.facts();
        let wait = if confirmed { facts.quiesce_after_reset() } else { facts.quiesce_time(self.settings.keep_alive) };
        self.fences.raise(association.number, confirmed, wait, now);
    }

    fn go_down(&mut self, now: Cycles) -> State {
        if self.stop_wanted {
            self.set_phase(Phase::Dead);
            return State::Dead;
        }
        State::Down { retry_at: now + Cycles::from(self.backoff.first_pause()) }
    }

    fn attempt_failed(&mut self, error: ControllerError, now: Cycles) -> State {
        let next = self.backoff.fail();
        let (held, oldest) = self.io_queues.held();
        self.report(ConnectionEvent::AttemptFailed {
            attempt: self.backoff.failures(),
            reason: error.to_string(),
            next,
            held,
            oldest: now.since(oldest).to_duration(),
        });
        let retry_at = now + Cycles::from(next);
        {
            let mut status = self.shared_status.current.lock();
            status.attempts = self.backoff.failures();
            status.next_attempt = retry_at;
            status.last_error = Some(error);
        }
        if !self.was_up {
            // Attach reports the error; a controller that never was up is not recovered.
            self.set_phase(Phase::Dead);
            return State::Dead;
        }
        self.shared_status.changed.notify_all();
        State::Down { retry_at }
    }

    fn release_fences(&mut self, now: Cycles) {
        while let Some(fallen) = self.fences.release_next(&self.io_queues.fence, now) {
            self.report(ConnectionEvent::FenceReleased {
                association: fallen.connection,
                confirmed: fallen.confirmed,
                after: now.since(fallen.lost_at).to_duration(),
            });
            self.io_queues.wake_channels();
        }
    }

    /// fast_io_fail_timeout_sec and ctrlr_loss_timeout_sec.
    fn apply_timeouts(&mut self, now: Cycles) {
        while self.is_down()
            && let Some(limit) = self.outage.reached(&self.settings.recovery, now)
        {
            match limit {
                OutageLimit::FastIoFail => {
                    self.report(ConnectionEvent::FailingFast);
                    self.io_queues.set_policy(HoldPolicy::Fail);
                }
                OutageLimit::Loss => {
                    self.report(ConnectionEvent::GivenUp);
                    let state = std::mem::replace(&mut self.state, State::Dead);
                    self.tear_down(state, now);
                }
            }
        }
    }

    /// Frees lost queues, and forgets those whose channels were dropped, with their connections.
    fn forget_closed_queues(&mut self) {
        let mut queues = self.io_queues.queues.lock();
        queues.retain(|queue| {
            let _ = queue.handoff.take_lost(); // freed here, off the poll core
            let closed = queue.handoff.is_closed();
            if closed && let State::Up(association) = &mut self.state {
                association.connecting.retain(|connecting| connecting.queue.qid != queue.qid);
                association.served.retain(|(qid, _)| *qid != queue.qid);
            }
            !closed
        });
    }

    fn set_phase(&self, phase: Phase) {
        self.shared_status.current.lock().phase = phase;
        self.shared_status.changed.notify_all();
    }

    /// Takes over what the controller has now: namespaces come, go and change. Events are sent when the list is up to date.
    fn on_namespaces(&self, found: &[NamespaceInfo], controller: &Controller) {
        for event in self.take_namespaces(found, controller.facts()) {
            self.report(event);
        }
        let mut status = self.shared_status.current.lock();
        status.scans += 1;
        status.phase = Phase::Up;
        self.shared_status.changed.notify_all();
    }

    fn take_namespaces(&self, found: &[NamespaceInfo], facts: &ControllerFacts) -> Vec<NvmeEvent> {
        let subnqn = &self.settings.connect.subnqn;
        let mut events = Vec::new();
        let mut namespaces = self.shared_status.namespaces.lock();
        namespaces.retain(|&nsid, namespace| {
            let stays = found.iter().find(|info| info.nsid == nsid).is_some_and(|info| {
                match namespace.update(subnqn, info, facts) {
                    Ok(None) => true,
                    Ok(Some(from)) => {
                        events.push(NvmeEvent::NamespaceResized { nsid, from, to: info.identify.blocks });
                        true
                    }
                    Err(DiskReplaced) => false,
                }
            });
            if !stays {
                namespace.remove();
                events.push(NvmeEvent::NamespaceRemoved { nsid });
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
                    Some(twin) => Err(format!("same identity as namespace {}: {}", twin.nsid, twin.identity.uuid)),
                    None => Ok(namespace),
                }
            });
            match namespace {
                Ok(namespace) => {
                    namespaces.insert(nsid, Arc::new(namespace));
                    events.push(NvmeEvent::NamespaceAdded { nsid });
                }
                Err(reason) => events.push(NvmeEvent::NamespaceRefused { nsid, reason }),
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
