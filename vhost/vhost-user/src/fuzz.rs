//! One harness for property tests and fuzzing: any bytes become a front-end's messages, with descriptors.
//!
//! The fake device panics when the session breaks its contract. What the harness itself checks: a session takes any sequence
//! without a panic, answers as the protocol demands, and at its end has closed every descriptor and unmapped every file.

use crate::error::SessionError;
use crate::fake::FakeDevice;
use crate::memory_table::Retired;
use crate::message::{Frame, Header, Outgoing};
use crate::protocol_feature as pf;
use crate::request::Request;
use crate::session::Session;
use crate::status::SessionStatus;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, fstat, ftruncate, memfd_create, open};
use rustix::io::dup;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;
/// Front-end address of guest address 0.
const USER: u64 = 0x7f00_0000_0000;
const LEN: u64 = 0x4_0000;

/// Runs one session on the messages that `data` stands for.
pub fn fuzz_session(data: &[u8]) {
    let before = descriptors();
    run(data);
    if cfg!(fuzzing) {
        assert_eq!(descriptors(), before, "descriptors leaked");
    }
}

/// How far a session came: a harness that never gets anywhere finds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) messages: usize,
    pub(crate) refused: usize,
    pub(crate) started: bool,
    pub(crate) packed: bool,
    pub(crate) tracked: bool,
    pub(crate) logged: bool,
    pub(crate) memory_changed: bool,
}

pub(crate) fn run(data: &[u8]) -> Seen {
    let mut input = Input(data);
    let files = Files::new();
    let mut seen = Seen::default();
    let mut device = FakeDevice { config: vec![0; 60], ..FakeDevice::default() };
    let mut session = Session::new(device.properties, Retired::default());
    let mut prelude = prelude(input.u8(), &files).into_iter();
    while !input.0.is_empty() {
        let frame = prelude.next().unwrap_or_else(|| input.frame(&files));
        let asked = frame.header.needs_reply();
        let request = frame.header.request;
        device.refuses = input.u8() == 1;
        device.holds_memory = input.u8() == 1;
        match session.handle(frame, &mut device) {
            Ok(reply) => check_reply(request, reply, asked),
            Err(SessionError::Refused { .. }) => break,
            Err(error) => panic!("a session takes whole frames: {error}"),
        }
        session.tick().expect("no file was truncated");
        device.held = None;
        seen.messages += 1;
        for ring in device.rings.values().map(|ring| &ring.start) {
            seen.started = true;
            seen.packed |= ring.setup.packed();
            seen.tracked |= ring.setup.inflight.is_some();
            seen.logged |= ring.log.is_some();
        }
    }
    let mut status = SessionStatus::default();
    session.describe(&mut status);
    seen.refused = status.refused as usize;
    seen.memory_changed = device.memory_changes > 0;
    device.refuses = false;
    let mut retired = session.close(&mut device);
    assert!(!retired.collect(), "no region is held any more");
    drop((device, prelude));
    files.check_released();
    seen
}

/// What a sound front-end says first. How much of it, `choice` decides: random bytes alone would hardly ever start a ring.
fn prelude(choice: u8, files: &Files) -> Vec<Frame> {
    let features = if choice & 1 == 0 { SPLIT } else { PACKED };
    let mut region = vec![1, 0, 0, 0, 0, 0, 0, 0];
    region.extend([0, LEN, USER, 0].iter().flat_map(|quad| quad.to_ne_bytes()));
    let all = (pf::OF_SESSION | pf::OF_DEVICE).to_ne_bytes().to_vec();
    let areas = [USER, USER + 0xc000, USER + 0x8000, 0].iter().flat_map(|quad| quad.to_ne_bytes()).collect();
    let mut frames = vec![
        frame(Request::SET_PROTOCOL_FEATURES, VERSION, all, vec![]),
        frame(Request::SET_FEATURES, VERSION, features.to_ne_bytes().to_vec(), vec![]),
        frame(Request::SET_MEM_TABLE, VERSION, region, vec![files.copy(0)]),
        frame(Request::SET_VRING_NUM, VERSION, pair(0, 256), vec![]),
        frame(Request::SET_VRING_BASE, VERSION, pair(0, 0x8000), vec![]),
        frame(Request::SET_VRING_ADDR, VERSION, [pair(0, 0), areas].concat(), vec![]),
        frame(Request::SET_VRING_KICK, VERSION, vec![0; 8], vec![files.copy(EVENT)]),
    ];
    frames.truncate(usize::from(choice >> 1) % 8);
    frames
}

fn frame(request: Request, flags: u32, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Frame {
    let header = [request.0, flags, payload.len() as u32];
    let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let header = Header::parse(header.first_chunk().expect("12 bytes")).expect("a sound header");
    Frame { header, payload, fds }
}

fn check_reply(request: Request, reply: Option<Outgoing>, asked: bool) {
    let Some(Outgoing { bytes, fd }) = reply else { return };
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4)), (request.0, VERSION | 4), "the request again, with version and reply flag");
    assert_eq!(word(8) as usize, bytes.len() - Header::LEN, "its size");
    assert_eq!(fd.is_some(), request == Request::GET_INFLIGHT_FD, "the only reply with a descriptor");
    let speaks_anyway = request.name().is_some_and(|name| name.starts_with("GET_"))
        || [Request::SET_LOG_BASE, Request::IOTLB_MSG, Request::POSTCOPY_END].contains(&request);
    assert!(asked || speaks_anyway, "{request} was answered unasked");
}

/// The files whose descriptors go along with messages.
struct Files {
    memory: [OwnedFd; 3],
    event: OwnedFd,
    pipe: (std::io::PipeReader, OwnedFd),
    sockets: (OwnedFd, OwnedFd),
    directory: OwnedFd,
}

/// Name of our memory files.
const MEMFD: &str = "vhost-user-fuzz";
/// The kind of an eventfd.
const EVENT: u8 = 15;

impl Files {
    fn new() -> Files {
        let memfd = |len| {
            let fd = memfd_create(MEMFD, MemfdFlags::CLOEXEC).expect("memfd");
            ftruncate(&fd, len).expect("its size");
            fd
        };
        let (read, write) = std::io::pipe().expect("pipe");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Files {
            memory: [memfd(LEN), memfd(LEN / 4), memfd(0)],
            event: eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"),
            pipe: (read, write.into()),
            sockets: socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("sockets"),
            directory: open("/", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("directory"),
        }
    }

    fn copy(&self, kind: u8) -> OwnedFd {
        let fd = match kind % 8 {
            0..=2 => &self.memory[0],
            3 => &self.memory[1],
            4 => &self.memory[2],
            5 => &self.pipe.1,
            6 => &self.sockets.1,
            7 if kind & 8 == 0 => &self.directory,
            _ => &self.event,
        };
        dup(fd).expect("dup")
    }

    /// No descriptor but ours, and no mapping, leads to one of the files.
    fn check_released(&self) {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let ours = maps.lines().filter(|line| line.contains(MEMFD));
        let mapped: Vec<&str> = ours.filter_map(|line| line.split_whitespace().nth(4)).collect();
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let descriptors = std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
        let open: Vec<_> = descriptors.filter_map(|fd| rustix::fs::stat(fd.path()).ok()).map(identity).collect();
        for file in [&self.memory[0], &self.memory[1], &self.memory[2], &self.pipe.1, &self.sockets.1] {
            let file_id = identity(fstat(file).expect("fstat"));
            assert!(!mapped.contains(&file_id.1.to_string().as_str()), "still mapped");
            // Both ends of a pipe are one file.
            let ours = 1 + usize::from(std::ptr::eq(file, &self.pipe.1));
            assert_eq!(open.iter().filter(|&&id| id == file_id).count(), ours, "descriptors leaked");
        }
    }
}

/// Descriptors of this process. Fuzzing has no other thread that opens any.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("descriptors").count()
}

/// What makes sessions eventful.
const OFTEN: [Request; 12] = [
    Request::SET_VRING_NUM,
    Request::SET_VRING_BASE,
    Request::SET_VRING_ADDR,
    Request::SET_VRING_KICK,
    Request::SET_VRING_ENABLE,
    Request::SET_MEM_TABLE,
    Request::ADD_MEM_REG,
    Request::REM_MEM_REG,
    Request::SET_LOG_BASE,
    Request::SET_INFLIGHT_FD,
    Request::SET_FEATURES,
    Request::GET_VRING_BASE,
];

/// Bytes that decide; behind their end everything is 0.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// A number that is likely to mean something: small, near a border, or anything.
    fn number(&mut self, likely: &[u64]) -> u64 {
        let choice = self.u8();
        match choice {
            0..=235 => likely[usize::from(choice) % likely.len()],
            236..=243 => u64::from(self.u8()),
            244..=251 => likely[usize::from(self.u8()) % likely.len()].wrapping_add(self.u8().into()).wrapping_sub(128),
            _ => self.u64(),
        }
    }

    fn frame(&mut self, files: &Files) -> Frame {
        let choice = self.u8();
        let request = match choice {
            0..48 => Request(choice.into()),
            _ => OFTEN[usize::from(choice) % OFTEN.len()],
        };
        let (mut payload, mut fds) = self.sensible(request, files);
        let spoil = self.u8();
        match spoil {
            0..=3 => payload.truncate(payload.len().saturating_sub(usize::from(spoil) + 1)),
            4..=7 => payload.resize(payload.len() + usize::from(spoil), self.u8()),
            8..=11 => fds.push(files.copy(self.u8())),
            12..=15 => drop(fds.pop()),
            16..=23 if !payload.is_empty() => {
                let at = usize::from(self.u8()) % payload.len();
                payload[at] ^= self.u8();
            }
            _ => {}
        }
        let flags = if self.u8() < 4 { VERSION } else { VERSION | NEED_REPLY };
        frame(request, flags, payload, fds)
    }

    /// A message that is mostly right.
    fn sensible(&mut self, request: Request, files: &Files) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut fds = Vec::new();
        let index = self.number(&[0, 0, 0, 1, 2, 3]) as u32;
        let features = [SPLIT, PACKED, SPLIT | 1 << 26, PACKED | 1 << 26, 1 << 32];
        let payload = match request {
            Request::SET_FEATURES => self.number(&features).to_ne_bytes().to_vec(),
            Request::SET_PROTOCOL_FEATURES => {
                let all = pf::OF_SESSION | pf::OF_DEVICE;
                self.number(&[all, all, all, all, pf::REPLY_ACK]).to_ne_bytes().to_vec()
            }
            Request::SET_MEM_TABLE => {
                let regions = self.number(&[1, 1, 2, 3]).min(9);
                let mut payload = vec![regions as u8, 0, 0, 0, 0, 0, 0, 0];
                for n in 0..regions {
                    payload.extend(self.region(n));
                    fds.push(files.copy(self.u8()));
                }
                payload
            }
            Request::ADD_MEM_REG | Request::REM_MEM_REG => {
                if request == Request::ADD_MEM_REG {
                    fds.push(files.copy(self.u8()));
                }
                let n = u64::from(self.u8() % 4);
                [vec![0; 8], self.region(n)].concat()
            }
            Request::SET_VRING_NUM => pair(index, self.number(&[256, 64, 1, 100, 1024]) as u32),
            Request::SET_VRING_BASE => pair(index, self.number(&[0, 0x8000, 0x8000_8000, 5, 0xffff]) as u32),
            Request::SET_VRING_ENABLE => pair(index, self.number(&[0, 1, 1, 1]) as u32),
            Request::GET_VRING_BASE => pair(index, 0),
            Request::SET_VRING_ADDR => self.addresses(index),
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => {
                let (payload, fd) = self.notification(request, index, files);
                fds.extend(fd);
                payload
            }
            Request::SET_LOG_BASE => {
                fds.push(files.copy(self.u8() & 3));
                [self.number(&[4096, 64, LEN]).to_ne_bytes(), self.number(&[0, 4096]).to_ne_bytes()].concat()
            }
            Request::GET_INFLIGHT_FD => self.inflight(),
            Request::SET_INFLIGHT_FD => {
                fds.push(files.copy(self.u8() & 3));
                self.inflight()
            }
            Request::GET_CONFIG | Request::SET_CONFIG => self.config(),
            Request::SET_STATUS => self.number(&[0, 1, 3, 11, 15]).to_ne_bytes().to_vec(),
            Request::NET_SET_MTU | Request::SEND_RARP => self.number(&[1500, 9000]).to_ne_bytes().to_vec(),
            Request::SET_BACKEND_REQ_FD => {
                fds.push(files.copy(6));
                Vec::new()
            }
            Request::SET_LOG_FD => {
                fds.push(files.copy(5));
                Vec::new()
            }
            _ => Vec::new(),
        };
        (payload, fds)
    }

    fn notification(&mut self, request: Request, index: u32, files: &Files) -> (Vec<u8>, Option<OwnedFd>) {
        let nofd = self.u8() < 40;
        let kick = request == Request::SET_VRING_KICK;
        let kind = match self.u8() {
            0..10 => 7,
            choice if kick || choice & 1 == 0 => EVENT,
            choice => 5 + (choice >> 1 & 1),
        };
        let payload = u64::from(index) | u64::from(nofd) << 8;
        (payload.to_ne_bytes().to_vec(), (!nofd).then(|| files.copy(kind)))
    }

    fn inflight(&mut self) -> Vec<u8> {
        let queues = self.number(&[4, 4, 2]) as u16;
        let size = self.number(&[256, 1024, 64]) as u16;
        let area = [self.number(&[LEN, LEN / 4, 4096]), self.number(&[0, 0, 64, 4096])];
        let area = area.iter().flat_map(|quad| quad.to_ne_bytes());
        area.chain(queues.to_ne_bytes()).chain(size.to_ne_bytes()).chain([0; 4]).collect()
    }

    fn config(&mut self) -> Vec<u8> {
        let size = self.number(&[60, 8, 1, 0]).min(300) as u32;
        let head = [self.number(&[0, 0, 32]) as u32, size, self.u8().into()];
        let head = head.iter().flat_map(|word| word.to_ne_bytes());
        head.chain(std::iter::repeat_n(7, size as usize)).collect()
    }

    /// Region `n` of four that lie behind each other.
    fn region(&mut self, n: u64) -> Vec<u8> {
        let guest = self.number(&[n * LEN]);
        let size = self.number(&[LEN, LEN, LEN / 4, 4096]);
        let user = self.number(&[USER + n * LEN]);
        let offset = self.number(&[0, 0, 0, 4096]);
        [guest, size, user, offset].iter().flat_map(|quad| quad.to_ne_bytes()).collect()
    }

    fn addresses(&mut self, index: u32) -> Vec<u8> {
        let at = USER + u64::from(index % 4) * 0x1_0000;
        let flags = self.number(&[0, 0, 1]) as u32;
        let areas =
            [self.number(&[at]), self.number(&[at + 0xc000]), self.number(&[at + 0x8000]), self.number(&[0, LEN])];
        [pair(index, flags), areas.iter().flat_map(|quad| quad.to_ne_bytes()).collect()].concat()
    }
}

const SPLIT: u64 = 1 << 32 | 1 << 30;
const PACKED: u64 = SPLIT | 1 << 34;

fn pair(a: u32, b: u32) -> Vec<u8> {
    [a.to_ne_bytes(), b.to_ne_bytes()].concat()
}
