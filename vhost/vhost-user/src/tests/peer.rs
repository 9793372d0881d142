//! A front-end that speaks bytes, and a served device to speak to.

use super::*;
use crate::{Backend, Change, Control, Endpoint, Properties, Refusal, Role, Socket, serve};
use parking_lot::{Mutex, MutexGuard};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than anything here takes; a hang is a failed test.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The fake, shared with the test.
struct Shared(Arc<Mutex<FakeDevice>>);

impl Shared {
    fn get(&self) -> MutexGuard<'_, FakeDevice> {
        self.0.lock()
    }
}

impl Backend for Shared {
    fn properties(&self) -> Properties {
        self.get().properties()
    }
    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> Result<(), Refusal> {
        self.get().read_config(offset, bytes)
    }
    fn write_config(&mut self, offset: u32, bytes: &[u8], flags: u32) -> Result<(), Refusal> {
        self.get().write_config(offset, bytes, flags)
    }
    fn apply(&mut self, change: Change) -> Result<(), Refusal> {
        self.get().apply(change)
    }
    fn stop_ring(&mut self, index: u16) -> Result<u32, Refusal> {
        self.get().stop_ring(index)
    }
}

/// A device being served on a thread of its own. Stopping it is part of every test.
pub(super) struct Served {
    pub(super) device: Arc<Mutex<FakeDevice>>,
    pub(super) control: Control,
    pub(super) path: PathBuf,
    thread: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Served {
    pub(super) fn new(role: Role) -> Served {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vhost.sock");
        let socket = Socket::open(Endpoint { path: path.clone(), role, mode: 0o600 }).unwrap();
        let control = Control::new().unwrap();
        let device = Arc::new(Mutex::new(FakeDevice::default()));
        let (mut shared, theirs) = (Shared(device.clone()), control.clone());
        let thread = std::thread::spawn(move || serve(&socket, &mut shared, &theirs));
        Served { device, control, path, thread: Some(thread), _directory: directory }
    }

    pub(super) fn connect(&self) -> Peer {
        Peer(UnixStream::connect(&self.path).unwrap())
    }

    /// Waits until the device or the session is as expected.
    pub(super) fn until(&self, what: &str, condition: impl Fn(&FakeDevice, &crate::SessionStatus) -> bool) {
        wait_for(what, || condition(&self.device.lock(), &self.control.status()));
    }

    pub(super) fn stop(mut self) {
        self.control.stop();
        let thread = self.thread.take().unwrap();
        wait_for("the session's thread to stop", || thread.is_finished());
        thread.join().unwrap();
    }
}

pub(super) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) struct Peer(pub(super) UnixStream);

impl Peer {
    pub(super) fn message(request: Request, flags: u32, payload: &[u8]) -> Vec<u8> {
        [words(&[request.0, flags, payload.len() as u32]), payload.to_vec()].concat()
    }

    /// Sends bytes with descriptors on the first. An error is the other side's hanging up.
    pub(super) fn raw(&self, bytes: &[u8], fds: &[&OwnedFd]) -> Result<usize, rustix::io::Errno> {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    }

    pub(super) fn send(&self, request: Request, payload: &[u8], fds: &[&OwnedFd]) {
        let bytes = Peer::message(request, VERSION, payload);
        assert_eq!(self.raw(&bytes, fds), Ok(bytes.len()));
    }

    /// The payload of the next reply.
    pub(super) fn reply(&mut self) -> Vec<u8> {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut header = [0; 12];
        self.0.read_exact(&mut header).unwrap();
        let mut payload = vec![0; u32::from_ne_bytes(header[8..].try_into().unwrap()) as usize];
        self.0.read_exact(&mut payload).unwrap();
        payload
    }

    pub(super) fn ask(&mut self, request: Request, payload: &[u8]) -> Vec<u8> {
        self.send(request, payload, &[]);
        self.reply()
    }

    /// Waits for the other side to hang up.
    pub(super) fn closed(&mut self) {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = [0; 4096];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("expected the end of the connection: {error}"),
                Ok(_) => {}
            }
        }
    }

    /// From the first message to a running ring 0, without acknowledgements, as QEMU does it.
    pub(super) fn start_ring(&mut self, memory: &OwnedFd, features: u64) {
        self.ask(Request::GET_FEATURES, &[]);
        self.ask(Request::GET_PROTOCOL_FEATURES, &[]);
        self.send(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL]), &[]);
        self.send(Request::SET_OWNER, &[], &[]);
        let (kick, call) = (event(), event());
        self.send(Request::SET_VRING_CALL, &quads(&[0]), &[&call]);
        self.send(Request::SET_FEATURES, &quads(&[features]), &[]);
        self.send(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), &[memory]);
        self.send(Request::SET_VRING_NUM, &words(&[0, 256]), &[]);
        self.send(Request::SET_VRING_BASE, &words(&[0, 0]), &[]);
        self.send(Request::SET_VRING_ADDR, &addresses(0, None), &[]);
        self.send(Request::SET_VRING_KICK, &quads(&[0]), &[&kick]);
        self.send(Request::SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    }
}
