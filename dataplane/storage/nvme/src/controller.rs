//! The admin queue of one association: brings a controller up, keeps it alive, takes its events, and stops it.
//!
//! Sans-IO: the owner moves the bytes of [`Controller::link`], calls [`turn`](Controller::turn), and takes the
//! [`ControllerEvent`]s. One command of the way up is outstanding at a time; keep-alive, events and aborts stand beside it.

use crate::io::ByteStream;
use crate::link::{Link, LinkError};
use crate::params::Settings;
use crate::queue_pair::{Completion, Data, MAX_TRANSFER, Outcome, Payload, QueueConfig, QueuePair};
use crate::spec::{
    AsyncEvent, ConnectData, Cqe, DISCOVERY_NQN, IDENTIFY_LEN, IdentifyController, IdentifyNamespace, LogPage,
    NamespaceIds, Property, Sqe, active_namespaces, admin, cc, connect_error, csts, enable_configuration, feature,
};
use clock::Cycles;
use invalid::Invalid;
use memory::IoBuffers;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Entries of the admin queue.
const ADMIN_ENTRIES: u16 = 32;
/// Bytes of in-capsule data on the admin queue: "at least 8,192" for Fabrics and admin commands (TCP 3.5).
const ADMIN_IN_CAPSULE: u32 = 8192;
/// Between two looks at CSTS.
const STATUS_POLL: Duration = Duration::from_millis(10);
/// A controller that says it needs longer than CAP.TO allows is not waited for.
const DEFAULT_READY: Duration = Duration::from_secs(10);
/// Namespaces of a controller at most: one list.
const MAX_NAMESPACES: usize = 1024;
/// Pages of MDTS: 4 KiB, as CC says.
const PAGE_SHIFT: u32 = 12;

/// The purpose of an admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Connect,
    Capabilities,
    Enable,
    AwaitReady,
    IdentifyController,
    Queues,
    EventConfiguration,
    ActiveNamespaces,
    Namespace(u32),
    NamespaceIds(u32),
    ChangedNamespaces,
    KeepAlive,
    Event,
    Abort,
    Stop,
    AwaitStopped,
    LogPage,
}

impl Purpose {
    /// In the words of the specification, for errors.
    fn name(self) -> &'static str {
        match self {
            Purpose::Connect => "Connect",
            Purpose::Capabilities => "Property Get CAP",
            Purpose::Enable | Purpose::Stop => "Property Set CC",
            Purpose::AwaitReady | Purpose::AwaitStopped => "Property Get CSTS",
            Purpose::IdentifyController => "Identify Controller",
            Purpose::Queues => "Set Features Number of Queues",
            Purpose::EventConfiguration => "Set Features Asynchronous Event Configuration",
            Purpose::ActiveNamespaces => "Identify Active Namespaces",
            Purpose::Namespace(_) => "Identify Namespace",
            Purpose::NamespaceIds(_) => "Identify Namespace Identifiers",
            Purpose::ChangedNamespaces | Purpose::LogPage => "Get Log Page",
            Purpose::KeepAlive => "Keep Alive",
            Purpose::Event => "Asynchronous Event Request",
            Purpose::Abort => "Abort",
        }
    }
}

/// An admin command under way.
#[derive(Debug)]
pub(crate) struct AdminCommand {
    purpose: Purpose,
    buffers: Option<IoBuffers>,
}

impl Payload for AdminCommand {
    fn buffers(&self) -> Option<&IoBuffers> {
        self.buffers.as_ref()
    }
}

/// A namespace as the controller describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamespaceInfo {
    /// NSID.
    pub nsid: u32,
    /// Size and format.
    pub identify: IdentifyNamespace,
    /// Identifiers.
    pub ids: NamespaceIds,
}

/// The facts that a controller reports, known once it is ready.
#[derive(Clone, Debug, Default)]
pub struct ControllerFacts {
    /// CNTLID of this association.
    pub controller_id: u16,
    /// Identify Controller.
    pub identify: IdentifyController,
    /// I/O queues granted.
    pub io_queues: u16,
    /// Entries of an I/O queue at most (CAP.MQES).
    pub max_entries: u16,
}

impl ControllerFacts {
    /// Bytes that one command may move: MDTS in pages (Base figure 275), and our own limit.
    pub fn max_transfer(&self) -> u32 {
        match u32::from(self.identify.mdts) {
            0 => MAX_TRANSFER,
            mdts => 1u32.checked_shl(mdts + PAGE_SHIFT).unwrap_or(MAX_TRANSFER).clamp(4096, MAX_TRANSFER),
        }
    }

    /// Bytes of data in an I/O command capsule: IOCCSZ without the SQE (Base figure 275); nothing where data does not start
    /// right after it.
    pub fn in_capsule_len(&self) -> u32 {
        if self.identify.in_capsule_offset_units != 0 {
            return 0;
        }
        self.identify.io_capsule_units.saturating_mul(16).saturating_sub(64).min(64 << 10)
    }

    /// How long a controller that lost us may still execute what we sent, counted from the moment nothing of ours can reach
    /// it any more.
    ///
    /// A controller without a host notices within its keep-alive timeout, rounded up to its granularity KAS. With traffic
    /// based keep-alive a command that came in one period counts for the next as well, so it is two timeouts (Base 3.9.4).
    /// Then it may take CQT to stop commands (Base 2.1, 9.6). A second more covers packets that were in the network when we
    /// cut the connection.
    pub fn quiesce_time(&self, keep_alive: Duration) -> Duration {
        let unit = u64::from(self.identify.kas.millis().max(1));
        let timeout = (keep_alive.as_millis() as u64).next_multiple_of(unit);
        let periods = if self.identify.attributes & IdentifyController::TBKAS != 0 { 2 } else { 1 };
        Duration::from_millis(timeout * periods + u64::from(self.identify.command_quiesce_ms)) + Duration::from_secs(1)
    }

    /// How long after CSTS.RDY became 0 commands may still be on their way to the medium.
    pub fn quiesce_after_reset(&self) -> Duration {
        Duration::from_millis(self.identify.command_quiesce_ms.into())
    }
}

/// An event of the admin queue.
#[derive(Debug)]
pub(crate) enum ControllerEvent {
    /// The controller is up: I/O queues may be connected.
    Ready,
    /// All namespaces, after each look at them.
    Namespaces(Vec<NamespaceInfo>),
    /// The controller has stopped: CSTS.RDY is 0, or shutdown is complete.
    Stopped,
    /// A log page was read.
    LogPage(Vec<u8>),
    /// The log of a discovery controller changed.
    DiscoveryLogChanged,
}

/// Why an association could not be made, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// The connection.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The target refused a command.
    #[error("{command}: the target refuses: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The status of the command, in words.
        reason: String,
    },
    /// No answer in time.
    #[error("{command}: no answer within {after:?}")]
    Timeout {
        /// The command, or `connection` before the first one.
        command: &'static str,
        /// The time it was given.
        after: Duration,
    },
    /// The target answers what cannot be used.
    #[error(transparent)]
    Unusable(#[from] Invalid),
}

/// The admin queue of an association.
#[derive(Debug)]
pub(crate) struct Controller {
    /// The queue and its connection; the owner moves its bytes.
    pub(crate) link: Link<AdminCommand>,
    settings: Arc<Settings>,
    facts: ControllerFacts,
    events: VecDeque<ControllerEvent>,
    /// The step of the way up, of a look at the namespaces or of the way down, and when it must be answered.
    step: Option<(Purpose, Cycles)>,
    /// Look at CSTS again at this time.
    status_poll: Option<(Purpose, Cycles)>,
    /// CSTS must be as wanted at this time.
    status_deadline: Cycles,
    ready_timeout: Duration,
    is_ready: bool,
    stopping: bool,
    rescan_wanted: bool,
    scan: VecDeque<u32>,
    found: Vec<NamespaceInfo>,
    half_found: IdentifyNamespace,
    next_keep_alive: Cycles,
    keep_alive_deadline: Option<Cycles>,
    /// An I/O command was answered since keep-alive was looked at.
    traffic: bool,
    abort_deadline: Option<Cycles>,
}

impl Controller {
    /// An association that begins on `stream`.
    pub(crate) fn new(settings: Arc<Settings>, stream: Arc<dyn ByteStream>, now: Cycles) -> Controller {
        let config =
            QueueConfig { entries: ADMIN_ENTRIES, digests: settings.digests, in_capsule_len: ADMIN_IN_CAPSULE };
        let mut controller = Controller {
            link: Link::new(QueuePair::new(config), stream),
            facts: ControllerFacts::default(),
            events: VecDeque::new(),
            step: None,
            status_poll: None,
            status_deadline: Cycles::NEVER,
            ready_timeout: DEFAULT_READY,
            is_ready: false,
            stopping: false,
            rescan_wanted: false,
            scan: VecDeque::new(),
            found: Vec::new(),
            half_found: IdentifyNamespace::default(),
            next_keep_alive: Cycles::NEVER,
            keep_alive_deadline: None,
            traffic: false,
            abort_deadline: None,
            settings,
        };
        let settings = controller.settings.clone();
        let connect = Sqe::connect(0, ADMIN_ENTRIES, settings.keep_alive.as_millis() as u32);
        controller.send(connect, Purpose::Connect, Some(&settings.connect.bytes()), 0, now);
        controller.step = Some((Purpose::Connect, now + Cycles::from(settings.connect_timeout)));
        controller
    }

    /// The facts that the controller reported.
    pub(crate) fn facts(&self) -> &ControllerFacts {
        &self.facts
    }

    /// Whether the controller is up.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// The next event.
    pub(crate) fn pop_event(&mut self) -> Option<ControllerEvent> {
        self.events.pop_front()
    }

    /// Moves bytes, reacts to answers and to the time. `traffic` says that an I/O command was answered since the last turn.
    pub(crate) fn turn(&mut self, now: Cycles, traffic: bool) -> Result<(), ControllerError> {
        self.link.receive()?;
        while let Some(Completion { payload, outcome }) = self.link.queue.pop_completion() {
            let Outcome::Answered(cqe) = outcome else {
                let reason = "data digest error".to_owned();
                return Err(ControllerError::Refused { command: payload.purpose.name(), reason });
            };
            self.on_answer(payload, cqe, now)?;
        }
        self.traffic |= traffic;
        self.on_time(now)?;
        self.link.transmit()?;
        Ok(())
    }

    /// When [`turn`](Controller::turn) must be called although no byte came.
    pub(crate) fn deadline(&self) -> Cycles {
        let step = self.step.map_or(Cycles::NEVER, |(_, at)| at);
        let poll = self.status_poll.map_or(Cycles::NEVER, |(_, at)| at);
        let others = [self.keep_alive_deadline, self.abort_deadline].into_iter().flatten();
        others.fold(step.min(poll).min(self.next_keep_alive), Ord::min)
    }

    /// Looks at the namespaces again as soon as possible.
    pub(crate) fn rescan(&mut self, now: Cycles) {
        self.rescan_wanted = true;
        self.start_scan(now);
    }

    /// Asks the controller to abort a command of an I/O queue; one Abort at a time.
    pub(crate) fn abort(&mut self, queue: u16, cid: u16, now: Cycles) {
        if self.abort_deadline.is_some() || !self.is_ready {
            return;
        }
        let mut sqe = Sqe::new(admin::ABORT, 0);
        sqe.set_cdw(10, u32::from(queue) | u32::from(cid) << 16);
        self.send(sqe, Purpose::Abort, None, 0, now);
        self.abort_deadline = Some(now + Cycles::from(self.settings.admin_timeout));
    }

    /// Stops the controller: by reset (CC.EN to 0) or by normal shutdown. [`ControllerEvent::Stopped`] says when it has let go.
    pub(crate) fn stop(&mut self, reset: bool, timeout: Duration, now: Cycles) {
        let value = if reset { enable_configuration() & !cc::EN } else { enable_configuration() | cc::SHN_NORMAL };
        self.stopping = true;
        self.is_ready = false;
        self.status_deadline = now + Cycles::from(timeout);
        self.status_poll = None;
        self.next_keep_alive = Cycles::NEVER;
        self.begin(Sqe::property_set(Property::Cc, value.into()), Purpose::Stop, 0, now);
    }

    /// Reads `len` bytes of a log page from `offset`.
    pub(crate) fn read_log(&mut self, page: LogPage, offset: u64, len: u32, now: Cycles) {
        self.begin(Sqe::get_log_page(page, offset, len), Purpose::LogPage, len, now);
    }

    fn is_discovery(&self) -> bool {
        self.settings.connect.subnqn == DISCOVERY_NQN
    }

    fn begin(&mut self, sqe: Sqe, purpose: Purpose, data_in: u32, now: Cycles) {
        self.send(sqe, purpose, None, data_in, now);
        self.step = Some((purpose, now + Cycles::from(self.settings.admin_timeout)));
    }

    /// Hands a command to the queue, with data to send or room for `data_in` bytes.
    fn send(&mut self, sqe: Sqe, purpose: Purpose, data_out: Option<&[u8]>, data_in: u32, now: Cycles) {
        let len = data_out.map_or(data_in, |bytes| bytes.len() as u32);
        let buffers = (len > 0).then(|| IoBuffers::anonymous(len as usize).expect("a page of private memory"));
        if let (Some(bytes), Some(buffers)) = (data_out, &buffers) {
            buffers.write(0, bytes).expect("made to measure");
        }
        let data = if len > 0 { Data::Buffers { offset: 0, len } } else { Data::None };
        let command = AdminCommand { purpose, buffers };
        let refused = if purpose == Purpose::Event {
            self.link.queue.submit_event_request(sqe, command).is_err()
        } else {
            self.link.queue.submit(sqe, data, command, now).is_err()
        };
        debug_assert!(!refused, "the admin queue is never full: {purpose:?}");
    }

    fn on_answer(&mut self, command: AdminCommand, cqe: Cqe, now: Cycles) -> Result<(), ControllerError> {
        let AdminCommand { purpose, buffers } = command;
        let status = cqe.status();
        if matches!(self.step, Some((step, _)) if step == purpose) {
            self.step = None;
        }
        match purpose {
            Purpose::KeepAlive => self.keep_alive_deadline = None,
            Purpose::Abort => {
                // Whether or not it found the command: that one's own completion is waited for, or the reset that follows.
                self.abort_deadline = None;
                return Ok(());
            }
            // A namespace may go away while we look; a controller may know no descriptors or events.
            Purpose::Namespace(_)
            | Purpose::NamespaceIds(_)
            | Purpose::EventConfiguration
            | Purpose::ChangedNamespaces => {}
            Purpose::Event if !status.is_success() => return Ok(()),
            _ if !status.is_success() => {
                let reason = if purpose == Purpose::Connect { connect_error(&cqe) } else { status.to_string() };
                return Err(ControllerError::Refused { command: purpose.name(), reason });
            }
            _ => {}
        }
        let mut data = vec![0; buffers.as_ref().map_or(0, |b| b.len() as usize)];
        if let Some(buffers) = &buffers {
            buffers.read(0, &mut data).expect("made to measure");
        }
        if self.stopping && !matches!(purpose, Purpose::Stop | Purpose::AwaitStopped) {
            return Ok(());
        }
        self.next_step(purpose, cqe, &data, now)
    }

    /// The way up, one answer after the other; then the namespaces, again and again; then the way down.
    fn next_step(&mut self, done: Purpose, cqe: Cqe, data: &[u8], now: Cycles) -> Result<(), ControllerError> {
        match done {
            Purpose::Connect => {
                // "AUTHREQ: bits 18 and 17 of DW0" (Base figure 385).
                if cqe.dw0() >> 16 & 0b110 != 0 {
                    let reason = "the controller requires DH-HMAC-CHAP, which is not supported".to_owned();
                    return Err(ControllerError::Refused { command: "Connect", reason });
                }
                self.facts.controller_id = cqe.dw0() as u16;
                self.begin(Sqe::property_get(Property::Cap), Purpose::Capabilities, 0, now);
            }
            Purpose::Capabilities => self.on_capabilities(cqe.result(), now),
            Purpose::Enable | Purpose::Stop => {
                let next = if done == Purpose::Enable { Purpose::AwaitReady } else { Purpose::AwaitStopped };
                self.begin(Sqe::property_get(Property::Csts), next, 0, now);
            }
            Purpose::AwaitReady | Purpose::AwaitStopped => self.on_status(done, cqe.dw0(), now)?,
            Purpose::IdentifyController => self.on_identify(data, now)?,
            Purpose::Queues => {
                let granted = (cqe.dw0() & 0xFFFF).min(cqe.dw0() >> 16) + 1;
                self.facts.io_queues = granted.min(u32::from(self.settings.io_queues)) as u16;
                self.configure_events(now);
            }
            Purpose::EventConfiguration => {
                self.send(Sqe::new(admin::ASYNC_EVENT, 0), Purpose::Event, None, 0, now);
                self.next_keep_alive = now + Cycles::from(self.settings.keep_alive / 2);
                self.is_ready = true;
                self.rescan_wanted = !self.is_discovery();
                self.events.push_back(ControllerEvent::Ready);
                self.start_scan(now);
            }
            Purpose::ActiveNamespaces => {
                self.scan = active_namespaces(data).take(MAX_NAMESPACES).collect();
                self.found.clear();
                self.scan_next(now);
            }
            Purpose::Namespace(nsid) => {
                self.half_found = data.try_into().map(IdentifyNamespace::parse).unwrap_or_default();
                if !cqe.status().is_success() || self.half_found.blocks == 0 {
                    self.scan_next(now);
                } else {
                    self.begin(Sqe::identify(3, nsid), Purpose::NamespaceIds(nsid), IDENTIFY_LEN as u32, now);
                }
            }
            Purpose::NamespaceIds(nsid) => {
                let ids = if cqe.status().is_success() { NamespaceIds::parse(data) } else { NamespaceIds::default() };
                self.found.push(NamespaceInfo { nsid, identify: self.half_found, ids });
                self.scan_next(now);
            }
            Purpose::ChangedNamespaces => self.rescan(now),
            Purpose::Event => self.on_event(cqe.dw0(), now),
            Purpose::LogPage => self.events.push_back(ControllerEvent::LogPage(data.to_vec())),
            Purpose::KeepAlive | Purpose::Abort => {}
        }
        Ok(())
    }

    fn on_capabilities(&mut self, cap: u64, now: Cycles) {
        // CAP: MQES 15:00 zero-based, TO 31:24 in 500 ms (Base figure 36).
        self.facts.max_entries = (cap as u16).saturating_add(1);
        let units = (cap >> 24 & 0xFF) as u32;
        self.ready_timeout = Duration::from_millis(500) * units.max(1);
        self.status_deadline = now + Cycles::from(self.ready_timeout);
        self.begin(Sqe::property_set(Property::Cc, enable_configuration().into()), Purpose::Enable, 0, now);
    }

    fn on_status(&mut self, wait: Purpose, status: u32, now: Cycles) -> Result<(), ControllerError> {
        if wait == Purpose::AwaitReady && status & csts::CFS != 0 {
            let got = format!("{status:#x}");
            return Err(Invalid::new("CSTS", got, "no fatal status (CFS)").into());
        }
        let stopped = status & csts::RDY == 0 || status & csts::SHST == csts::SHUTDOWN_COMPLETE;
        if wait == Purpose::AwaitStopped && stopped {
            self.events.push_back(ControllerEvent::Stopped);
        } else if wait == Purpose::AwaitReady && status & csts::RDY != 0 {
            self.begin(Sqe::identify(1, 0), Purpose::IdentifyController, IDENTIFY_LEN as u32, now);
        } else {
            self.status_poll = Some((wait, now + Cycles::from(STATUS_POLL)));
        }
        Ok(())
    }

    fn on_identify(&mut self, data: &[u8], now: Cycles) -> Result<(), ControllerError> {
        let identify: &[u8; IDENTIFY_LEN] = data.try_into().expect("asked for this many");
        self.facts.identify = IdentifyController::parse(identify);
        if self.is_discovery() {
            self.configure_events(now);
            return Ok(());
        }
        // "IOCCSZ: minimum 4" (Base figure 275): one SQE.
        if self.facts.identify.io_capsule_units < 4 {
            let got = self.facts.identify.io_capsule_units.to_string();
            return Err(Invalid::new("IOCCSZ", got, "at least 4").into());
        }
        let wanted = u32::from(self.settings.io_queues) - 1;
        let mut sqe = Sqe::new(admin::SET_FEATURES, 0);
        sqe.set_cdw(10, feature::NUMBER_OF_QUEUES.into());
        sqe.set_cdw(11, wanted | wanted << 16);
        self.begin(sqe, Purpose::Queues, 0, now);
        Ok(())
    }

    fn configure_events(&mut self, now: Cycles) {
        let mut sqe = Sqe::new(admin::SET_FEATURES, 0);
        sqe.set_cdw(10, feature::ASYNC_EVENT_CONFIGURATION.into());
        let offered = feature::NAMESPACE_NOTICES | feature::DISCOVERY_NOTICES;
        sqe.set_cdw(11, self.facts.identify.async_events & offered);
        self.begin(sqe, Purpose::EventConfiguration, 0, now);
    }

    fn on_event(&mut self, dw0: u32, now: Cycles) {
        self.send(Sqe::new(admin::ASYNC_EVENT, 0), Purpose::Event, None, 0, now);
        match AsyncEvent::from_dw0(dw0) {
            // Reading the log clears the event; what changed we see for ourselves.
            AsyncEvent::NamespaceAttributeChanged => {
                let sqe = Sqe::get_log_page(LogPage::ChangedNamespaces, 0, IDENTIFY_LEN as u32);
                self.send(sqe, Purpose::ChangedNamespaces, None, IDENTIFY_LEN as u32, now);
            }
            AsyncEvent::DiscoveryLogChanged => self.events.push_back(ControllerEvent::DiscoveryLogChanged),
            AsyncEvent::Other(_) => {}
        }
    }

    fn start_scan(&mut self, now: Cycles) {
        if self.rescan_wanted && self.is_ready && self.step.is_none() {
            self.rescan_wanted = false;
            self.begin(Sqe::identify(2, 0), Purpose::ActiveNamespaces, IDENTIFY_LEN as u32, now);
        }
    }

    fn scan_next(&mut self, now: Cycles) {
        match self.scan.pop_front() {
            Some(nsid) => self.begin(Sqe::identify(0, nsid), Purpose::Namespace(nsid), IDENTIFY_LEN as u32, now),
            None => {
                self.events.push_back(ControllerEvent::Namespaces(std::mem::take(&mut self.found)));
                self.start_scan(now);
            }
        }
    }

    fn on_time(&mut self, now: Cycles) -> Result<(), ControllerError> {
        let timeout = |command, after| Err(ControllerError::Timeout { command, after });
        if let Some((step, deadline)) = self.step
            && now >= deadline
        {
            return match step {
                Purpose::Connect => timeout(
                    if self.link.queue.is_connected() { "Connect" } else { "connection" },
                    self.settings.connect_timeout,
                ),
                step => timeout(step.name(), self.settings.admin_timeout),
            };
        }
        if let Some((wait, at)) = self.status_poll
            && now >= at
        {
            if now >= self.status_deadline {
                return timeout("CSTS.RDY", self.ready_timeout);
            }
            self.status_poll = None;
            self.begin(Sqe::property_get(Property::Csts), wait, 0, now);
        }
        if self.abort_deadline.is_some_and(|at| now >= at) {
            return timeout("Abort", self.settings.admin_timeout);
        }
        if self.keep_alive_deadline.is_some_and(|at| now >= at) {
            return timeout("Keep Alive", self.settings.keep_alive);
        }
        if now >= self.next_keep_alive {
            self.keep_alive(now);
        }
        Ok(())
    }

    /// Keep Alive at half of its timeout. With traffic based keep-alive (Base 3.9.4) an I/O command does as well; then it is
    /// looked at again after a quarter, as the command may be old already.
    fn keep_alive(&mut self, now: Cycles) {
        let timeout = self.settings.keep_alive;
        let traffic_counts = self.facts.identify.attributes & IdentifyController::TBKAS != 0;
        if std::mem::take(&mut self.traffic) && traffic_counts {
            self.next_keep_alive = now + Cycles::from(timeout / 4);
            return;
        }
        self.next_keep_alive = now + Cycles::from(timeout / 2);
        if self.keep_alive_deadline.is_none() {
            self.send(Sqe::new(admin::KEEP_ALIVE, 0), Purpose::KeepAlive, None, 0, now);
            self.keep_alive_deadline = Some(now + Cycles::from(timeout));
        }
    }
}

/// Connect's data for an I/O queue of `controller_id`.
pub(crate) fn io_connect_data(settings: &Settings, controller_id: u16) -> ConnectData {
    ConnectData { controller_id, ..settings.connect.clone() }
}
