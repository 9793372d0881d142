//! One harness for property tests and fuzzing: any bytes become requests of a guest, in chains of any shape. Each is answered or
//! quarantines the device, and nothing is written but what the guest said may be written.

use crate::{DeviceEvent, stand_alone};
use block::{Malloc, MallocParams};
use clock::Cycles;
use crossbeam::channel::Receiver;
use engine::Source;
use guest_memory::{GuestAddress, GuestMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virtio_spec::blk::{Header, Range, request, status};
use virtio_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use virtqueue::driver::{Buffer, Driver};

const RING: u64 = 0x1000;
const RING_END: u64 = 0x2000;
const TABLE: u64 = 0x2000;
const BUFFERS: u64 = 0x3000;
const MEMORY: u64 = 0x8000;
const BLOCKS: u64 = 64;
const SIZE: u16 = 16;

/// How far a run came: a harness that never gets anywhere finds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Answers: OK, IOERR, UNSUPP.
    pub(crate) answers: [usize; 3],
    pub(crate) quarantines: usize,
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u16(&mut self) -> u16 {
        let mut bytes = [0; 2];
        let len = self.0.len().min(2);
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        u16::from_le_bytes(bytes)
    }

    fn below(&mut self, n: u64) -> u64 {
        u64::from(self.u16()) % n
    }
}

struct Guest {
    memory: Arc<GuestMemory>,
    features: u64,
    disk: Arc<Malloc>,
    driver: Driver,
    source: Box<dyn Source>,
    events: Receiver<DeviceEvent>,
}

impl Guest {
    fn new(features: u64) -> Guest {
        let memory = Arc::new(GuestMemory::anonymous(MEMORY as usize).expect("memory"));
        let disk = Malloc::create(MallocParams::new("fuzz", 512, BLOCKS)).expect("a disk");
        let driver = Driver::new(&memory, GuestAddress(RING), SIZE, features);
        let (source, events) = stand_alone(&*disk, &memory, &[driver.setup()]).expect("a device");
        Guest { memory, features, disk, driver, source, events }
    }

    /// As after a reset of the guest.
    fn set_up_again(&mut self) {
        self.put(RING, &[0; (RING_END - RING) as usize]);
        self.driver = Driver::new(&self.memory, GuestAddress(RING), SIZE, self.features);
        (self.source, self.events) = stand_alone(&*self.disk, &self.memory, &[self.driver.setup()]).expect("a device");
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(GuestAddress(at), bytes).expect("inside memory");
    }

    /// All memory but the ring.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.memory.read(GuestAddress(0), &mut bytes).expect("inside memory");
        bytes[RING as usize..RING_END as usize].fill(0);
        bytes
    }
}

/// A request that is nearly right, in a chain that may be cut and bent in any way.
fn chain(guest: &Guest, input: &mut Input<'_>) -> Vec<Buffer> {
    const KINDS: [u32; 8] =
        [request::IN, request::OUT, request::FLUSH, request::GET_ID, request::DISCARD, request::WRITE_ZEROES, 3, 99];
    let (header, data, status) = (BUFFERS, BUFFERS + 0x100 + input.below(0x200), BUFFERS + 0x20);
    let kind = KINDS[input.below(8) as usize];
    let bytes = Header { kind, sector: input.below(BLOCKS + 4) }.to_bytes();
    guest.put(header, &bytes);
    let range =
        Range { sector: input.below(BLOCKS + 4), sectors: input.below(20) as u32, flags: input.below(4) as u32 };
    guest.put(data, &range.to_bytes());
    let is_range = matches!(kind, request::DISCARD | request::WRITE_ZEROES);
    let device_writes = matches!(kind, request::IN | request::GET_ID);
    let len = if is_range { 16 } else { 512 * input.below(5) as u32 };
    let mut chain = vec![
        (GuestAddress(header), 16, false),
        (GuestAddress(data), len, device_writes),
        (GuestAddress(status), 1, true),
    ];
    for _ in 0..input.below(4) {
        let at = input.below(chain.len() as u64) as usize;
        let (address, len, write) = chain[at];
        match input.below(8) {
            // Two descriptors in place of one.
            0..=2 if len > 0 => {
                let cut = input.below(u64::from(len) + 1) as u32;
                chain[at].1 = cut;
                chain.insert(at + 1, (GuestAddress(address.0.wrapping_add(cut.into())), len - cut, write));
            }
            3 => chain[at].1 = input.u16().into(),
            4 => chain[at].0 = GuestAddress((u64::from(input.u16()) << 48) | input.below(2 * MEMORY)),
            5 => chain[at].2 = !write,
            6 if chain.len() > 1 => drop(chain.remove(at)),
            _ => chain[at].1 = u32::MAX - input.below(1 << 14) as u32,
        }
    }
    chain
}

fn guest(input: &mut Input<'_>) -> Guest {
    let bits = [RING_PACKED, IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC];
    let choice = input.u16();
    Guest::new((0..4).filter(|i| choice >> i & 1 == 1).fold(0, |features, i| features | bits[i]))
}

/// Runs a device on the requests that `data` stands for.
pub fn fuzz_requests(data: &[u8]) {
    run(data);
}

pub(crate) fn run(data: &[u8]) -> Seen {
    let mut input = Input(data);
    let mut guest = guest(&mut input);
    let mut seen = Seen::default();
    while !input.0.is_empty() {
        let chain = chain(&guest, &mut input);
        let indirect = guest.features & RING_INDIRECT_DESC != 0 && input.below(2) == 0;
        let posted = match indirect {
            true => guest.driver.add_indirect(GuestAddress(TABLE), &chain),
            false => guest.driver.add(&chain),
        };
        let Some(id) = posted else { continue };
        let posted = guest.bytes();
        guest.source.poll(Cycles::now());
        check_writes(&posted, &guest.bytes(), &chain);
        let used = guest.driver.take_used();
        if guest.events.try_recv().is_ok() {
            guest.set_up_again();
            seen.quarantines += 1;
            continue;
        }
        let (used, written) = used.expect("an answer, or an event that says why there is none");
        let room: u64 = chain.iter().filter(|buffer| buffer.2).map(|buffer| u64::from(buffer.1)).sum();
        assert!(used == id && u64::from(written) <= room, "{used} of {id}, {written} of {room} bytes");
        let (address, len, _) = *chain.last().expect("an answered chain has a status");
        let mut code = [0xff];
        guest.memory.read(GuestAddress(address.0 + u64::from(len) - 1), &mut code).expect("in memory");
        assert!(code[0] <= status::UNSUPP, "status {}", code[0]);
        seen.answers[usize::from(code[0])] += 1;
    }
    seen
}

/// What differs between `posted` and `after` lies in a buffer that the device may write.
fn check_writes(posted: &[u8], after: &[u8], chain: &[Buffer]) {
    for at in (0..after.len()).filter(|&at| posted[at] != after[at]) {
        let inside = |&(address, len, write): &Buffer| {
            let offset = (at as u64).wrapping_sub(address.0);
            write && offset < u64::from(len)
        };
        assert!(chain.iter().any(inside), "{at:#x} was written, of {chain:x?}");
    }
}

/// Runs a device on the same requests while another thread rewrites headers, payload and descriptors all the time.
pub fn fuzz_requests_race(data: &[u8]) {
    let mut input = Input(data);
    let mut guest = guest(&mut input);
    let (memory, stop) = (guest.memory.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (at, bytes) in data.chunks_exact(4).cycle().enumerate() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (base, len) = if at % 2 == 0 { (RING, 16 * u64::from(SIZE)) } else { (BUFFERS, 0x40) };
                let offset = u64::from(u16::from_le_bytes([bytes[0], bytes[1]])) % (len - 1);
                memory.write(GuestAddress(base + offset), &bytes[2..]).expect("inside memory");
            }
        });
        while !input.0.is_empty() {
            let chain = chain(&guest, &mut input);
            guest.set_up_again();
            guest.driver.add(&chain);
            guest.source.poll(Cycles::now());
            guest.source.poll(Cycles::now());
        }
        stop.store(true, Ordering::Relaxed);
    });
}
