//! The disk that the rest of the data plane sees, and discovery.

use crate::channel::IscsiChannel;
use crate::connection::{ConnectionConfig, ConnectionError, Timeouts};
use crate::event::EventSink;
use crate::io::{Pieces, sleep_on};
use crate::login::{Auth, LoginConfig};
use crate::lun::LunInfo;
use crate::params::{IscsiParams, portal};
use crate::pdu::{Isid, Lun};
use crate::session::{Link, Progress, Reconnector};
use crate::session_queue::DiskState;
use crate::supervisor::{Command, SessionStatus, Supervisor, connect};
use crate::text;
use block::{Bdev, BlockChannel, BlockError, Completions, Geometry, Identity};
use clock::Cycles;
use digest::Digest;
use initiator::{CommandQueue, SupervisorWake};
use invalid::Invalid;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

/// Why a disk could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A parameter cannot be used.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The target, or the way to it.
    #[error("{portal}, {target}: {source}")]
    Target {
        /// The portal's address.
        portal: String,
        /// The target's name.
        target: String,
        /// The cause.
        source: ConnectionError,
    },
    /// The system refused a thread or a descriptor.
    #[error("system: {0}")]
    System(#[from] std::io::Error),
}

/// A disk at an iSCSI target, with one session a channel.
#[derive(Debug)]
pub struct IscsiDisk {
    identity: Identity,
    geometry: Geometry,
    state: Arc<DiskState>,
    status: Arc<Mutex<Vec<SessionStatus>>>,
    commands: Arc<CommandQueue<Command>>,
    known_blocks: Mutex<u64>,
    open_timeout: Duration,
    portal: String,
    supervisor: Option<JoinHandle<()>>,
}

impl IscsiDisk {
    /// Logs in, looks at the unit, and keeps the session for the first channel. Blocks until that is done or has failed, at
    /// most `connect_timeout`. One attempt: the error says why it failed.
    pub fn attach(params: &IscsiParams, sink: EventSink) -> Result<Arc<IscsiDisk>, AttachError> {
        params.check()?;
        let template = connection_config(params);
        let portal = portal(&params.portal)?;
        let seed = u64::from_be_bytes([&template.login.isid[..], &[0, 1]].concat().try_into().expect("8 bytes"));
        let mut first = Reconnector::new(template.clone(), portal.clone(), &params.recovery, seed, Cycles::now());
        let link = bring_up(&mut first).map_err(|source| AttachError::Target {
            portal: portal.clone(),
            target: params.target_iqn.clone(),
            source,
        })?;
        let info = link.connection.info().expect("known once ready").clone();
        let wake = SupervisorWake::new()?;
        let state = Arc::new(DiskState::new(info.geometry.num_blocks, wake.clone()));
        let commands = Arc::new(CommandQueue::new(wake.clone()));
        let status = Arc::new(Mutex::new(Vec::new()));
        let mut supervisor = Supervisor {
            template,
            portal: portal.clone(),
            recovery: params.recovery,
            disk: state.clone(),
            sink,
            commands: commands.clone(),
            status: status.clone(),
            seen_blocks: info.geometry.num_blocks,
            sessions: Vec::new(),
            leaving: Vec::new(),
            is_stopped: false,
            pieces: Pieces::new(),
        };
        supervisor.adopt(first, link)?;
        let thread = initiator::spawn("iscsi-disk".into(), supervisor, wake)?;
        Ok(Arc::new(IscsiDisk {
            identity: identity(params, &info),
            geometry: info.geometry,
            known_blocks: Mutex::new(info.geometry.num_blocks),
            state,
            status,
            commands,
            open_timeout: params.connect_timeout + Duration::from_secs(1),
            portal,
            supervisor: Some(thread),
        }))
    }

    /// The state of the disk's sessions.
    pub fn status(&self) -> Vec<SessionStatus> {
        self.status.lock().clone()
    }

    /// Where the target listens.
    pub fn portal(&self) -> &str {
        &self.portal
    }
}

impl Bdev for IscsiDisk {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn geometry(&self) -> Geometry {
        Geometry { num_blocks: self.state.num_blocks.load(Ordering::Acquire), ..self.geometry }
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        let failed = |kind: std::io::ErrorKind, reason: String| BlockError::Io {
            what: "open a session at",
            path: self.portal.clone(),
            source: std::io::Error::new(kind, reason),
        };
        let (opener, opened) = channel();
        self.commands.send(Command::Open(opener));
        match opened.recv_timeout(self.open_timeout) {
            Ok(Ok(session)) => Ok(Box::new(IscsiChannel::new(session, self.state.clone()))),
            Ok(Err(error)) => Err(failed(std::io::ErrorKind::ConnectionRefused, error.to_string())),
            Err(_) => Err(failed(std::io::ErrorKind::TimedOut, "no session in time".into())),
        }
    }

    /// Asks the target for the size. It answers in its own time: a change since the last call is reported, and one that the
    /// target tells later comes as an event.
    fn rescan(&self) -> Result<bool, BlockError> {
        self.commands.send(Command::Rescan);
        let mut known = self.known_blocks.lock();
        for _ in 0..20 {
            let now = self.state.num_blocks.load(Ordering::Acquire);
            if *known != now {
                *known = now;
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(false)
    }
}

impl Drop for IscsiDisk {
    fn drop(&mut self) {
        self.commands.send(Command::Stop);
        if let Some(thread) = self.supervisor.take() {
            let _ = thread.join(); // a thread that panicked has said so
        }
    }
}

/// Drives one attempt to its end.
fn bring_up(reconnector: &mut Reconnector) -> Result<Box<Link>, ConnectionError> {
    let mut pieces = Pieces::new();
    loop {
        let now = Cycles::now();
        match reconnector.turn(&mut pieces, now, &mut connect) {
            Progress::Ready(link) => return Ok(link),
            Progress::Failed(error, _) => return Err(error),
            Progress::Nothing => {}
        }
        if let Some(link) = reconnector.connecting() {
            wait_for(link, now);
        }
    }
}

fn wait_for(link: &Link, now: Cycles) {
    sleep_on(link.interest().as_slice(), link.connection.deadline().since(now).to_duration());
}

/// A target that discovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// The target's name.
    pub iqn: String,
    /// The addresses that the target reports: `host:port,group`. Empty where it reports none: the portal that was asked.
    pub addresses: Vec<String>,
}

/// Asks a portal for its targets (SendTargets=All, RFC 7143 appendix C). Blocks for at most `timeout`.
pub fn discover(
    portal_address: &str,
    initiator_iqn: &str,
    auth: Auth,
    timeout: Duration,
) -> Result<Vec<DiscoveredTarget>, AttachError> {
    let mut params = IscsiParams::new("discovery", initiator_iqn, portal_address, "iqn.discovery", Lun(0));
    params.auth = auth;
    params.connect_timeout = timeout;
    params.check()?;
    let portal = portal(portal_address)?;
    let text = discover_text(&params, &portal).map_err(|source| AttachError::Target {
        portal: portal.clone(),
        target: "discovery".into(),
        source,
    })?;
    Ok(parse_targets(&text))
}

fn discover_text(params: &IscsiParams, portal: &str) -> Result<Vec<u8>, ConnectionError> {
    let mut config = connection_config(params);
    config.login.target_iqn = None;
    let mut link = bring_up(&mut Reconnector::new(config, portal.to_owned(), &params.recovery, 1, Cycles::now()))?;
    let text = link.connection.discovered().unwrap_or_default().to_vec();
    // The answer is here already: one attempt to log out is enough.
    let _ = link.turn(&mut Pieces::new(), Cycles::now(), &mut Completions::default());
    Ok(text)
}

/// The targets in a SendTargets answer: `TargetName`, then its `TargetAddress`es.
pub(crate) fn parse_targets(text: &[u8]) -> Vec<DiscoveredTarget> {
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    for (key, value) in text::parse(text).flatten() {
        match (key, targets.last_mut()) {
            ("TargetName", _) => targets.push(DiscoveredTarget { iqn: value.into(), addresses: Vec::new() }),
            ("TargetAddress", Some(target)) => target.addresses.push(value.into()),
            _ => {}
        }
    }
    targets
}

/// The configuration that every connection of a disk has.
pub(crate) fn connection_config(params: &IscsiParams) -> ConnectionConfig {
    let cycles = |span: Duration| Cycles::from(span);
    ConnectionConfig {
        login: LoginConfig {
            initiator_iqn: params.initiator_iqn.clone(),
            target_iqn: Some(params.target_iqn.clone()),
            isid: isid(params),
            auth: params.auth.clone(),
            header_digest: params.header_digest,
            data_digest: params.data_digest,
            challenge: [0; 33],
            segment_limit: 8192,
        },
        lun: params.lun,
        depth: params.queue_depth,
        timeouts: Timeouts {
            bring_up: cycles(params.connect_timeout),
            task: cycles(params.io_timeout),
            abort: cycles(params.abort_timeout),
            ping_interval: cycles(params.ping_interval),
            ping: cycles(params.ping_timeout),
            retry: cycles(Duration::from_millis(50)),
        },
        known: None,
        fence: None,
    }
}

/// The ISID of a disk's first session: of type "random" (RFC 7143 11.12.5), but made from names, so that a process that starts
/// again ends the sessions that its predecessor left behind. The last two bytes count the sessions.
fn isid(params: &IscsiParams) -> Isid {
    let names = [&params.initiator_iqn, &params.name, &params.target_iqn].map(String::as_str).join("\n");
    let hash = sha2::Sha256::digest(names);
    [0x80, hash[0], hash[1], hash[2], 0, 0]
}

fn identity(params: &IscsiParams, info: &LunInfo) -> Identity {
    // A unit without a name of its own is named by where it is.
    let place = format!("{}/{}", params.target_iqn, params.lun);
    let name = if info.designator.is_empty() { place.as_bytes() } else { &info.designator };
    let hash = sha1::Sha1::digest(name);
    let uuid = uuid::Builder::from_sha1_bytes(hash[..16].try_into().expect("16 bytes")).into_uuid();
    Identity { name: params.name.clone(), product_name: "iSCSI LUN", uuid }
}
