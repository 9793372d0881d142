//! Discovery: which subsystems a discovery controller knows, and which other discovery controllers it refers to.

use crate::attach::AttachError;
use crate::controller::{Controller, ControllerError, ControllerEvent};
use crate::io::{Interest, Socket, sleep_on};
use crate::params::{AttachParams, Settings};
use crate::spec::{DISCOVERY_NQN, DiscoveryEntry, DiscoveryHeader, LogPage, SubsystemType};
use clock::Cycles;
use invalid::Invalid;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Entries read at most: of one controller, and over all referrals.
pub(crate) const MAX_ENTRIES: u64 = 1024;
/// Discovery controllers asked at most: the first one and those it refers to.
pub(crate) const MAX_CONTROLLERS: usize = 16;
/// Tries to read a log that changes while it is read.
const MAX_TRIES: u32 = 4;
/// Entries read with one command.
const ENTRIES_A_READ: u64 = 64;

/// Asks the discovery controller at `params`' address, and those it refers to. `subnqn` of `params` is not looked at.
/// Blocks: not for a poll core. A referral that cannot be reached is left out; the first controller must answer.
pub fn discover(params: &AttachParams) -> Result<Vec<DiscoveryEntry>, AttachError> {
    let mut params = params.clone();
    params.subnqn = DISCOVERY_NQN.to_owned();
    let first = Arc::new(params.validate()?);
    let failed = |reason| AttachError::Failed {
        traddr: first.target,
        subnqn: DISCOVERY_NQN.to_owned(),
        reason: Box::new(reason),
    };
    let mut asked = HashSet::from([first.target]);
    let mut found = read(first.clone()).map_err(failed)?;
    let mut at = 0;
    while at < found.len() && asked.len() < MAX_CONTROLLERS && found.len() < MAX_ENTRIES as usize {
        let referral = (found[at].subtype == SubsystemType::Referral).then(|| address_of(&found[at])).flatten();
        at += 1;
        let Some(target) = referral.filter(|target| asked.insert(*target)) else { continue };
        let settings = Settings { target, source: None, ..(*first).clone() };
        found.extend(read(Arc::new(settings)).unwrap_or_default());
    }
    let mut seen = HashSet::new();
    found.retain(|entry| seen.insert((entry.subnqn.clone(), entry.traddr.clone(), entry.trsvcid.clone())));
    Ok(found)
}

fn address_of(entry: &DiscoveryEntry) -> Option<SocketAddr> {
    let tcp = entry.transport == DiscoveryEntry::TCP;
    let (ip, port) = (entry.traddr.parse().ok()?, entry.trsvcid.parse().ok()?);
    tcp.then(|| SocketAddr::new(ip, port))
}

/// Reads the log of one discovery controller: head, entries, head again, until it did not change meanwhile (Base 5.16.1.23).
fn read(settings: Arc<Settings>) -> Result<Vec<DiscoveryEntry>, ControllerError> {
    clock::hz();
    let stream =
        Socket::connect(settings.target, settings.source).map_err(|error| crate::link::LinkError::Io(error.kind()))?;
    let mut controller = Controller::new(settings, Arc::new(stream), Cycles::now());
    wait(&mut controller, |event| matches!(event, ControllerEvent::Ready))?;
    for _ in 0..MAX_TRIES {
        let head = read_head(&mut controller)?;
        let records = head.records.min(MAX_ENTRIES);
        let mut entries = Vec::new();
        while (entries.len() as u64) < records {
            let count = (records - entries.len() as u64).min(ENTRIES_A_READ);
            let offset = (entries.len() as u64 + 1) * DiscoveryHeader::LEN as u64;
            let bytes = read_log(&mut controller, offset, count as u32 * DiscoveryHeader::LEN as u32)?;
            entries.extend(bytes.as_chunks().0.iter().map(DiscoveryEntry::parse));
        }
        if read_head(&mut controller)?.generation == head.generation {
            controller.stop(false, Duration::from_secs(1), Cycles::now());
            let _ = wait(&mut controller, |event| matches!(event, ControllerEvent::Stopped));
            return Ok(entries);
        }
    }
    let got = format!("another value each of {MAX_TRIES} times");
    Err(Invalid::new("GENCTR", got, "a log that stays while it is read").into())
}

fn read_head(controller: &mut Controller) -> Result<DiscoveryHeader, ControllerError> {
    let bytes = read_log(controller, 0, DiscoveryHeader::LEN as u32)?;
    Ok(DiscoveryHeader::parse(bytes.first_chunk().expect("asked for this many")))
}

fn read_log(controller: &mut Controller, offset: u64, len: u32) -> Result<Vec<u8>, ControllerError> {
    controller.read_log(LogPage::Discovery, offset, len, Cycles::now());
    match wait(controller, |event| matches!(event, ControllerEvent::LogPage(_)))? {
        ControllerEvent::LogPage(bytes) => Ok(bytes),
        _ => Ok(Vec::new()),
    }
}

/// Lets the controller work until the event that is waited for; its own deadlines end the wait.
fn wait(
    controller: &mut Controller,
    wanted: impl Fn(&ControllerEvent) -> bool,
) -> Result<ControllerEvent, ControllerError> {
    loop {
        controller.turn(Cycles::now(), false)?;
        while let Some(event) = controller.pop_event() {
            if wanted(&event) {
                return Ok(event);
            }
        }
        let link = &controller.link;
        let interest = link.stream().fd().map(|fd| Interest { fd, writable: link.queue.wants_to_send() });
        sleep_on(interest.as_slice(), controller.deadline().since(Cycles::now()).to_duration());
    }
}
