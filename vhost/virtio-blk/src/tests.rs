//! The path from ring to disk and back, driven by a driver in this process.

use crate::{DeviceEventKind, DeviceFault, Quarantine, stand_alone};
use block::{Bdev, BlockChannel, BlockError, BlockRequest, Completions, Geometry, Identity, Op, Status};
use clock::Cycles;
use crossbeam::channel::Receiver;
use engine::Source;
use guest_memory::{GuestAddress, GuestMemory};
use parking_lot::Mutex;
use std::sync::Arc;
use virtio_spec::blk::{Header, Range, SECTOR_SIZE, request, status};
use virtio_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use virtqueue::driver::{Buffer, Driver};

const RING: GuestAddress = GuestAddress(0x10_0000);
const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x8000;
const MEMORY: usize = 0x20_0000;
const SECTORS: u64 = 64;

/// The plainest disk there is: what every request does, done at once.
struct PlainDisk {
    identity: Identity,
    geometry: Geometry,
    data: Arc<Mutex<Vec<u8>>>,
}

fn plain_disk() -> PlainDisk {
    let identity = Identity { name: "plain".into(), product_name: "Plain disk", uuid: uuid::Uuid::nil() };
    let geometry = Geometry {
        block_size: 512,
        num_blocks: SECTORS,
        physical_block_size: 512,
        optimal_io_size: 0,
        max_io_size: u32::MAX,
        max_discard_blocks: 16,
        max_write_zeroes_blocks: 16,
        compare: false,
        read_only: false,
        write_cache: true,
    };
    PlainDisk { identity, geometry, data: Arc::new(Mutex::new(vec![0; (SECTORS * SECTOR_SIZE) as usize])) }
}

impl Bdev for PlainDisk {
    fn identity(&self) -> &Identity {
        &self.identity
    }
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        Ok(Box::new(PlainChannel(self.data.clone())))
    }
}

struct PlainChannel(Arc<Mutex<Vec<u8>>>);

impl BlockChannel for PlainChannel {
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        let mut data = self.0.lock();
        let range = request.offset as usize..(request.offset + request.len) as usize;
        match request.op {
            Op::Read => request.buffers.write(0, &data[range]).unwrap(),
            Op::Write => request.buffers.read(0, &mut data[range]).unwrap(),
            Op::Discard | Op::WriteZeroes { .. } => data[range].fill(0),
            Op::Flush => {}
            Op::Compare => unreachable!("no guest asks for it"),
        }
        request.complete(done, Status::Ok);
    }
    fn poll(&mut self, _: Cycles, _: &mut Completions) -> usize {
        0
    }
    fn outstanding(&self) -> usize {
        0
    }
}

/// A guest with one queue of a plain disk.
struct Guest {
    memory: Arc<GuestMemory>,
    driver: Driver,
    source: Box<dyn Source>,
    events: Receiver<crate::DeviceEvent>,
    data: Arc<Mutex<Vec<u8>>>,
}

impl Guest {
    fn with(features: u64, disk: PlainDisk) -> Guest {
        let memory = Arc::new(GuestMemory::anonymous(MEMORY).unwrap());
        let driver = Driver::new(&memory, RING, 64, features);
        let (source, events) = stand_alone(&disk, &memory, &[driver.setup()]).unwrap();
        Guest { memory, driver, source, events, data: disk.data }
    }

    fn new() -> Guest {
        Guest::with(0, plain_disk())
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(GuestAddress(at), bytes).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestAddress(at), &mut bytes).unwrap();
        bytes
    }

    /// Makes a chain available, polls once, and returns the bytes used, or `None` when nothing came back.
    fn run(&mut self, chain: &[(u64, u32, bool)]) -> Option<u32> {
        let chain: Vec<Buffer> = chain.iter().map(|&(at, len, write)| (GuestAddress(at), len, write)).collect();
        self.driver.add(&chain).unwrap();
        self.source.poll(Cycles::now());
        self.driver.take_used().map(|(_, len)| len)
    }

    fn header(&self, kind: u32, sector: u64) {
        self.put(HEADER, &Header { kind, sector }.to_bytes());
        self.put(STATUS, &[0xff]);
    }

    /// A whole request in the usual three descriptors. Returns status and bytes used.
    fn request(&mut self, kind: u32, sector: u64, len: u32) -> (u8, u32) {
        self.header(kind, sector);
        let writes = matches!(kind, request::IN | request::GET_ID);
        let used = match len {
            0 => self.run(&[(HEADER, 16, false), (STATUS, 1, true)]),
            _ => self.run(&[(HEADER, 16, false), (DATA, len, writes), (STATUS, 1, true)]),
        };
        (self.get(STATUS, 1)[0], used.expect("an answer"))
    }

    fn fault(&mut self, chain: &[(u64, u32, bool)]) -> DeviceFault {
        assert_eq!(self.run(chain), None);
        let DeviceEventKind::Quarantined(Quarantine { queue: 0, fault }) = self.events.try_recv().unwrap().kind else {
            panic!()
        };
        fault
    }
}

#[test]
fn what_is_written_is_read_back_in_every_layout() {
    for features in [0, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER, RING_EVENT_IDX | RING_INDIRECT_DESC] {
        let mut guest = Guest::with(features, plain_disk());
        for round in 0..200_u64 {
            let pattern = vec![round as u8 + 1; 1024];
            let sector = round % (SECTORS - 1);
            guest.put(DATA, &pattern);
            assert_eq!(guest.request(request::OUT, sector, 1024), (status::OK, 1));
            guest.put(DATA, &[0; 1024]);
            assert_eq!(guest.request(request::IN, sector, 1024), (status::OK, 1025));
            assert_eq!(guest.get(DATA, 1024), pattern);
        }
    }
}

#[test]
fn a_header_may_be_cut_anywhere_and_the_status_may_follow_the_data() {
    let mut guest = Guest::new();
    guest.data.lock()[512..1024].fill(7);
    for cut in 1..16 {
        guest.header(request::IN, 1);
        let (cut, rest) = (cut, 16 - cut);
        let chain = [(HEADER, cut, false), (HEADER + u64::from(cut), rest, false), (DATA, 513, true)];
        assert_eq!(guest.run(&chain), Some(513));
        assert_eq!(guest.get(DATA, 513), [&[7; 512][..], &[status::OK]].concat());
    }
    // Header and data of a write in one descriptor.
    guest.put(DATA, &Header { kind: request::OUT, sector: 2 }.to_bytes());
    guest.put(DATA + 16, &[9; 512]);
    assert_eq!(guest.run(&[(DATA, 528, false), (STATUS, 1, true)]), Some(1));
    assert_eq!(guest.data.lock()[1024..1536], [9; 512]);
}

#[test]
fn a_range_off_the_disk_or_not_in_blocks_is_an_io_error() {
    let mut guest = Guest::new();
    for (kind, sector, len) in [
        (request::IN, SECTORS, 512),
        (request::IN, SECTORS - 1, 1024),
        (request::OUT, u64::MAX, 512),
        (request::OUT, u64::MAX / 512 + 1, 512),
        (request::IN, 0, 511),
        (request::IN, 0, 0),
        (request::OUT, 0, 513),
    ] {
        assert_eq!(guest.request(kind, sector, len).0, status::IOERR, "{kind} {sector} {len}");
    }
}

#[test]
fn discard_and_write_zeroes_take_one_range() {
    let mut guest = Guest::new();
    guest.data.lock().fill(1);
    let range = |sector, sectors, flags| Range { sector, sectors, flags }.to_bytes();
    let mut run = |kind, bytes: &[u8]| {
        guest.put(DATA, bytes);
        guest.request(kind, 0, bytes.len() as u32).0
    };
    assert_eq!(run(request::DISCARD, &range(0, 2, 0)), status::OK);
    assert_eq!(run(request::WRITE_ZEROES, &range(2, 2, 1)), status::OK);
    assert_eq!(run(request::DISCARD, &range(4, 2, 1)), status::UNSUPP);
    assert_eq!(run(request::WRITE_ZEROES, &range(4, 2, 2)), status::UNSUPP);
    assert_eq!(run(request::WRITE_ZEROES, &range(4, 17, 0)), status::IOERR);
    assert_eq!(run(request::DISCARD, &range(SECTORS - 1, 2, 0)), status::IOERR);
    assert_eq!(run(request::DISCARD, &range(0, 0, 0)), status::IOERR);
    assert_eq!(run(request::DISCARD, &[range(0, 1, 0), range(1, 1, 0)].concat()), status::IOERR);
    assert_eq!(run(request::DISCARD, &[0; 15]), status::IOERR);
    let data = guest.data.lock();
    assert_eq!(data.iter().filter(|b| **b == 0).count(), 4 * 512);
    assert_eq!(data[..4 * 512].iter().max(), Some(&0));
}

#[test]
fn the_id_is_given_in_as_many_bytes_as_there_is_room_for() {
    let mut guest = Guest::new();
    assert_eq!(guest.request(request::GET_ID, 0, 20), (status::OK, 21));
    assert_eq!(guest.get(DATA, 20), [b'i'; 20]);
    assert_eq!(guest.request(request::GET_ID, 0, 5), (status::OK, 6));
    assert_eq!(guest.request(request::GET_ID, 0, 100), (status::OK, 21));
}

#[test]
fn an_unknown_request_is_unsupported_and_a_write_to_a_read_only_disk_fails() {
    assert_eq!(Guest::new().request(77, 0, 512).0, status::UNSUPP);
    let mut disk = plain_disk();
    disk.geometry.read_only = true;
    let mut guest = Guest::with(0, disk);
    for kind in [request::OUT, request::DISCARD, request::WRITE_ZEROES] {
        assert_eq!(guest.request(kind, 0, 512).0, status::IOERR);
    }
    assert_eq!(guest.request(request::IN, 0, 512).0, status::OK);
}

#[test]
fn a_chain_without_room_for_an_answer_quarantines_the_device() {
    for chain in [&[(HEADER, 16, false)][..], &[(HEADER, 16, false), (STATUS, 0, true)]] {
        let mut guest = Guest::new();
        guest.header(request::FLUSH, 0);
        assert_eq!(guest.fault(chain), DeviceFault::Chain("a status byte"));
    }
}

#[test]
fn a_runt_header_quarantines_the_device() {
    for chain in [&[(HEADER, 15, false), (STATUS, 1, true)][..], &[(STATUS, 1, true)]] {
        assert_eq!(Guest::new().fault(chain), DeviceFault::Chain("a whole header"));
    }
}

#[test]
fn a_buffer_outside_memory_quarantines_the_device() {
    for chain in [
        &[(u64::MAX - 8, 16, false), (STATUS, 1, true)][..],
        &[(HEADER, 16, false), (MEMORY as u64 - 100, 512, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (u64::MAX - 100, 512, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (DATA, u32::MAX, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (DATA, 512, true), (MEMORY as u64, 1, true)],
    ] {
        let mut guest = Guest::new();
        guest.header(request::IN, 0);
        assert!(matches!(guest.run(chain), None | Some(_)));
        assert!(matches!(
            guest.events.try_recv().unwrap().kind,
            DeviceEventKind::Quarantined(Quarantine { fault: DeviceFault::Access(_), .. })
        ));
    }
}

#[test]
fn a_quarantined_device_takes_nothing_more() {
    let mut guest = Guest::new();
    guest.header(request::FLUSH, 0);
    guest.fault(&[(HEADER, 16, false)]);
    assert_eq!(guest.run(&[(HEADER, 16, false), (STATUS, 1, true)]), None);
    assert_eq!(guest.get(STATUS, 1), [0xff]);
    assert!(guest.events.try_recv().is_err(), "told once");
}

#[test]
fn a_descriptor_changed_after_it_was_taken_changes_nothing() {
    // The double fetch: header and descriptors are rewritten between pop and completion. With a disk that completes at once
    // the window is inside one poll, so the driver rewrites from another thread while requests run.
    let mut guest = Guest::new();
    let memory = guest.memory.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = stop.clone();
    let rewriter = std::thread::spawn(move || {
        let lens = [512_u32, 0x4000_0000, 511, 0];
        for round in 0_usize.. {
            if flag.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
            for index in 0..64_u64 {
                let at = GuestAddress(RING.0 + index * 16 + 8);
                memory.write(at, &lens[round % 4].to_le_bytes()).unwrap();
            }
        }
    });
    for _ in 0..20_000 {
        guest.header(request::IN, 0);
        let chain =
            [(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)].map(|(a, l, w)| (GuestAddress(a), l, w));
        if guest.driver.add(&chain).is_none() {
            break;
        }
        guest.source.poll(Cycles::now());
        if guest.driver.take_used().is_none() {
            // Quarantined, for one of the reasons that a copy can show.
            let DeviceEventKind::Quarantined(Quarantine { fault, .. }) = guest.events.try_recv().unwrap().kind;
            assert!(matches!(fault, DeviceFault::Access(_) | DeviceFault::Chain(_)), "{fault}");
            guest.put(RING.0 + 64 * 16, &[0; 0x1000]);
            guest.driver = Driver::new(&guest.memory, RING, 64, 0);
            (guest.source, guest.events) = stand_alone(&plain_disk(), &guest.memory, &[guest.driver.setup()]).unwrap();
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    rewriter.join().unwrap();
}

mod any_guest {
    use crate::fuzz::{fuzz_requests_race, run};
    use proptest::prelude::*;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_answered_or_quarantined(data in proptest::collection::vec(any::<u8>(), 0..1000)) {
            run(&data);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn may_rewrite_its_requests_at_any_time(data in proptest::collection::vec(any::<u8>(), 4..500)) {
            fuzz_requests_race(&data);
        }
    }

    #[test]
    fn sees_all_ways_in_which_a_request_ends() {
        let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut data = vec![0; 4000];
        let mut total = [0; 4];
        for _ in 0..100 {
            rng.fill_bytes(&mut data);
            let seen = run(&data);
            let [ok, error, unsupported] = seen.answers;
            let counts = [ok, error, unsupported, seen.quarantines];
            total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        }
        assert!(total.iter().all(|&count| count > 500), "OK, IOERR, UNSUPP, quarantined: {total:?}");
    }
}
