//! A scripted front-end for the session without a socket, and what all tests need.

mod features;
mod hostile;
mod memory;
mod peer;
mod property;
mod rings;
mod rust_vmm;
mod socket;

use crate::error::SessionError;
use crate::fake::FakeDevice;
use crate::memory_table::Retired;
use crate::message::{Frame, Header, Outgoing};
use crate::protocol_feature as pf;
use crate::request::Request;
use crate::session::Session;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use virtio_spec::feature;

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;
/// Guest memory of the tests: 1 MiB at guest address 0, known to the front-end as this.
const USER: u64 = 0x7f00_0000_0000;
const LEN: u64 = 0x10_0000;
const ALL_PROTOCOL: u64 = pf::OF_SESSION | pf::OF_DEVICE;
const SPLIT: u64 = feature::VERSION_1 | feature::VHOST_USER_PROTOCOL_FEATURES;
const PACKED: u64 = SPLIT | feature::RING_PACKED;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn quads(quads: &[u64]) -> Vec<u8> {
    quads.iter().flat_map(|quad| quad.to_ne_bytes()).collect()
}

fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create("vhost-user-test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// A SET_MEM_TABLE payload of `(guest, size, user, offset)`.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut payload = words(&[regions.len() as u32, 0]);
    regions.iter().for_each(|region| payload.extend(quads(region)));
    payload
}

/// A SET_VRING_ADDR payload for ring `index`: areas 64 KiB apart from the next ring's.
fn addresses(index: u32, log: Option<u64>) -> Vec<u8> {
    let at = USER + u64::from(index) * 0x1_0000;
    let mut payload = words(&[index, u32::from(log.is_some())]);
    payload.extend(quads(&[at, at + 0xc000, at + 0x8000, log.unwrap_or(0)]));
    payload
}

/// A front-end's side of a session.
struct Script {
    session: Session,
    device: FakeDevice,
}

impl Script {
    fn new() -> Script {
        Script::with(FakeDevice::default())
    }

    fn with(device: FakeDevice) -> Script {
        Script { session: Session::new(device.properties, Retired::default()), device }
    }

    /// With every protocol feature, and these virtio features.
    fn negotiated(features: u64) -> Script {
        let mut script = Script::new();
        script.ok(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL]), vec![]);
        script.ok(Request::SET_FEATURES, &quads(&[features]), vec![]);
        script
    }

    /// With memory as well.
    fn with_memory(features: u64) -> Script {
        let mut script = Script::negotiated(features);
        script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![memfd(LEN)]);
        script
    }

    /// With ring 0 running.
    fn running(features: u64) -> Script {
        let mut script = Script::with_memory(features);
        script.start_ring(0, 256, 0);
        script
    }

    fn start_ring(&mut self, index: u32, size: u32, base: u32) {
        self.ok(Request::SET_VRING_NUM, &words(&[index, size]), vec![]);
        self.ok(Request::SET_VRING_BASE, &words(&[index, base]), vec![]);
        self.ok(Request::SET_VRING_ADDR, &addresses(index, None), vec![]);
        self.ok(Request::SET_VRING_KICK, &quads(&[index.into()]), vec![event()]);
        self.ok(Request::SET_VRING_CALL, &quads(&[index.into()]), vec![event()]);
        self.ok(Request::SET_VRING_ENABLE, &words(&[index, 1]), vec![]);
        assert!(self.device.rings[&(index as u16)].start.enabled);
    }

    fn frame(request: Request, flags: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Frame {
        let header = words(&[request.0, flags, payload.len() as u32]);
        let header = Header::parse(header.first_chunk().unwrap()).unwrap();
        Frame { header, payload: payload.to_vec(), fds }
    }

    /// Sends without the need_reply flag.
    fn tell(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Option<Outgoing>, SessionError> {
        self.session.handle(Script::frame(request, VERSION, payload, fds), &mut self.device)
    }

    /// Sends with need_reply and takes the reply's payload.
    fn ask(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) -> Vec<u8> {
        self.answer(request, payload, fds).bytes[Header::LEN..].to_vec()
    }

    fn answer(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) -> Outgoing {
        let frame = Script::frame(request, VERSION | NEED_REPLY, payload, fds);
        let answer = self.session.handle(frame, &mut self.device);
        let reply = answer.unwrap_or_else(|e| panic!("{request} ended the session: {e}"));
        let reply = reply.unwrap_or_else(|| panic!("{request} was not answered"));
        assert_eq!(reply.bytes[..8], words(&[request.0, 0b101]), "request, version and reply flag");
        assert_eq!(reply.bytes[8..12], words(&[reply.bytes.len() as u32 - 12]), "size");
        reply
    }

    fn ok(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) {
        let reply = self.ask(request, payload, fds);
        assert_eq!(reply, quads(&[0]), "{request}: {:?}", self.last_refusal());
    }

    /// Expects a refusal and returns its reason.
    fn refused(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) -> String {
        let reply = self.ask(request, payload, fds);
        assert_eq!(reply, quads(&[1]), "{request} must be refused");
        self.last_refusal().unwrap()
    }

    fn last_refusal(&self) -> Option<String> {
        let mut status = crate::SessionStatus::default();
        self.session.describe(&mut status);
        status.last_error
    }

    fn u64(&mut self, request: Request) -> u64 {
        u64::from_ne_bytes(self.ask(request, &[], vec![]).try_into().unwrap())
    }

    /// GET_VRING_BASE.
    fn stop_ring(&mut self, index: u32) -> u32 {
        let reply = self.ask(Request::GET_VRING_BASE, &words(&[index, 0]), vec![]);
        assert_eq!(reply[..4], words(&[index]));
        u32::from_ne_bytes(reply[4..].try_into().unwrap())
    }
}
