//! Every backend and decorator against a plain array of bytes: random requests, in odd pieces, over several channels at once.

use crate::support::{Frontend, Layout, bytes, request, whole_memory};
use block::{
    Bdev, Delay, DelayParams, ErrorInjection, ErrorType, FileBdev, FileEngine, FileParams, Injection, Malloc,
    MallocParams, Null, NullParams, Op, Qos, QosLimits, Rate, Status,
};
use clock::Cycles;
use proptest::prelude::*;
use proptest::sample::select;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: u64 = 512;
const BLOCKS: u64 = 1024;
const CANARY: u8 = 0xc5;

/// One request of a batch.
#[derive(Clone, Debug)]
struct Act {
    channel: usize,
    op: Op,
    /// In blocks.
    first: u64,
    blocks: u64,
    /// Bytes before each piece, and lengths of pieces; the last piece takes the rest.
    gaps: Vec<u64>,
    pieces: Vec<u64>,
    fill: u8,
}

impl Act {
    fn range(&self) -> Range<u64> {
        self.first * BLOCK..(self.first + self.blocks) * BLOCK
    }

    fn layout(&self) -> Layout {
        let (mut layout, mut address, mut rest) = (Layout::new(), 0, self.blocks * BLOCK);
        for (at, &gap) in self.gaps.iter().enumerate() {
            let last = at + 1 == self.gaps.len();
            let len = if last { rest } else { self.pieces[at].min(rest) };
            address += gap;
            if len > 0 {
                layout.push((address, len));
            }
            address += len;
            rest -= len;
        }
        layout
    }

    fn content(&self) -> Vec<u8> {
        (0..self.blocks * BLOCK).map(|at| self.fill.wrapping_add((at / 7) as u8)).collect()
    }

    /// What a compare brings: what the disk holds, or the same but for one byte.
    fn guess(&self, disk: &[u8]) -> Vec<u8> {
        let mut bytes = disk[self.range().start as usize..self.range().end as usize].to_vec();
        if self.guesses_wrong() {
            let at = usize::from(self.fill) * 7919 % bytes.len();
            bytes[at] ^= 0x40;
        }
        bytes
    }

    fn guesses_wrong(&self) -> bool {
        self.fill % 2 == 1
    }

    fn expected(&self, has_content: bool) -> Status {
        match self.op {
            Op::Compare if !has_content => Status::Unsupported,
            Op::Compare if self.guesses_wrong() => Status::Miscompare,
            _ => Status::Ok,
        }
    }
}

fn act() -> impl Strategy<Value = Act> {
    let op = select(vec![
        Op::Read,
        Op::Read,
        Op::Write,
        Op::Write,
        Op::Write,
        Op::Compare,
        Op::Flush,
        Op::Discard,
        Op::WriteZeroes { unmap: false },
        Op::WriteZeroes { unmap: true },
    ]);
    // Long ones need more than one bounce buffer.
    let blocks = prop_oneof![8 => 1..=24_u64, 1 => 200..=400_u64];
    // Half of the requests are aligned for direct I/O, half are cut anywhere.
    let cut = prop_oneof![
        (
            prop::collection::vec((0..4_u64).prop_map(|n| n * 4096), 4),
            prop::collection::vec((1..6_u64).prop_map(|n| n * BLOCK), 3)
        ),
        (prop::collection::vec(0..1000_u64, 4), prop::collection::vec(1..3000_u64, 3)),
    ];
    (0..3_usize, op, 0..BLOCKS, blocks, cut, any::<u8>()).prop_map(
        |(channel, op, first, blocks, (gaps, pieces), fill)| Act {
            channel,
            op,
            first,
            blocks: blocks.min(BLOCKS - first),
            gaps,
            pieces,
            fill,
        },
    )
}

/// Batches of requests that do not touch each other's blocks when one of them changes them.
fn batches() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let disjoint = |acts: Vec<Act>| {
        let mut batch: Vec<Act> = Vec::new();
        for act in acts {
            let meets = |other: &Act| act.range().start < other.range().end && other.range().start < act.range().end;
            if !batch.iter().any(|other| meets(other) && (act.op != Op::Read || other.op != Op::Read)) {
                batch.push(act);
            }
        }
        batch
    };
    prop::collection::vec(prop::collection::vec(act(), 1..24).prop_map(disjoint), 1..8)
}

/// Runs the batches over three channels of the disk and over an array, and compares all that can be seen.
fn conforms(bdev: &dyn Bdev, batches: &[Vec<Act>], has_content: bool) {
    let mut model = vec![0_u8; (BLOCKS * BLOCK) as usize];
    let mut frontends: Vec<_> = (0..3).map(|_| Frontend::new(bdev)).collect();
    for batch in batches {
        for act in batch {
            let layout = if act.op.has_buffers() { act.layout() } else { Layout::new() };
            let request = request(act.op, act.range().start, act.blocks * BLOCK, &layout, CANARY);
            match act.op {
                Op::Write => request.buffers.write(0, &act.content()).unwrap(),
                // Nothing of the same batch changes what is compared.
                Op::Compare => request.buffers.write(0, &act.guess(&model)).unwrap(),
                _ => {}
            }
            frontends[act.channel].submit(request, Cycles::now());
            frontends[act.channel].poll(Cycles::now());
        }
        for (index, frontend) in frontends.iter_mut().enumerate() {
            let mut ended = frontend.drain();
            // Requests of one batch may overtake each other; each channel numbers its own in order.
            ended.sort_by_key(|ended| ended.request.owner);
            let acts: Vec<_> = batch.iter().filter(|act| act.channel == index).collect();
            assert_eq!(ended.len(), acts.len());
            for (act, ended) in acts.into_iter().zip(ended) {
                assert_eq!(ended.status, act.expected(has_content), "{act:?}");
                let disk = &mut model[act.range().start as usize..act.range().end as usize];
                match act.op {
                    Op::Read if has_content => assert!(bytes(&ended.request) == disk, "content differs: {act:?}"),
                    Op::Read | Op::Compare | Op::Flush => {}
                    Op::Write => disk.copy_from_slice(&act.content()),
                    Op::Discard | Op::WriteZeroes { .. } => disk.fill(0),
                }
                if act.op == Op::Write {
                    assert!(bytes(&ended.request) == act.content(), "a write changed its buffers: {act:?}");
                }
                assert_canaries(act, &ended.request);
            }
        }
    }
    if has_content {
        let len = BLOCKS * BLOCK;
        let (read, status) = frontends[0].perform(request(Op::Read, 0, len, &vec![(0, len)], CANARY));
        assert_eq!(status, Status::Ok);
        assert!(bytes(&read) == model, "the disk differs at the end");
    }
}

/// What lies between the pieces was not touched.
fn assert_canaries(act: &Act, request: &block::Request) {
    let (all, mut address) = (whole_memory(request), 0);
    for (start, len) in if act.op.has_buffers() { act.layout() } else { Layout::new() } {
        let gap = &all[address as usize..start as usize];
        assert!(gap.iter().all(|&byte| byte == CANARY), "bytes before {start} were touched: {act:?}");
        address = start + len;
    }
}

fn malloc() -> Arc<dyn Bdev> {
    Malloc::create(MallocParams::new("m", BLOCK as u32, BLOCKS)).unwrap()
}

fn file(directory: &Path, change: impl Fn(&mut FileParams)) -> Arc<FileBdev> {
    let file = tempfile::NamedTempFile::new_in(directory).unwrap();
    file.as_file().set_len(BLOCKS * BLOCK).unwrap();
    let mut params = FileParams::new("f", file.path());
    params.block_size = Some(BLOCK as u32);
    change(&mut params);
    // The disk keeps the file open; its name may go.
    FileBdev::create(params).unwrap()
}

fn delayed(base: Arc<dyn Bdev>) -> Arc<dyn Bdev> {
    let latencies = [100, 300, 200, 400].map(Duration::from_micros);
    Delay::create(DelayParams { name: "d".into(), base, uuid: None, latencies }).unwrap()
}

fn limited(base: Arc<dyn Bdev>) -> Arc<dyn Bdev> {
    let qos = Qos::new(base);
    let rw_bytes = Rate::new(400 << 20);
    qos.set_limits(QosLimits { rw_ios: Rate::new(50_000), rw_bytes, w_ios: Rate::new(40_000), ..Default::default() });
    qos
}

fn short_of_memory(base: Arc<dyn Bdev>) -> Arc<dyn Bdev> {
    let disk = ErrorInjection::create(base, None).unwrap();
    disk.inject(None, Injection { error_type: ErrorType::NoMem, num: 20, ..Default::default() }).unwrap();
    disk
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn malloc_disk(batches in batches()) {
        conforms(malloc().as_ref(), &batches, true);
    }

    #[test]
    fn null_disk(batches in batches()) {
        let null = Null::create(NullParams::new("n", BLOCK as u32, BLOCKS)).unwrap();
        conforms(null.as_ref(), &batches, false);
    }

    #[test]
    fn file_through_io_uring(batches in batches()) {
        conforms(file(&std::env::temp_dir(), |_| {}).as_ref(), &batches, true);
    }

    #[test]
    fn file_through_io_uring_and_page_cache(batches in batches()) {
        let disk = file(&std::env::temp_dir(), |params| params.direct = false);
        prop_assert!(!disk.is_direct());
        conforms(disk.as_ref(), &batches, true);
    }

    #[test]
    fn file_through_threads(batches in batches()) {
        conforms(file(&std::env::temp_dir(), |params| params.engine = FileEngine::Threads).as_ref(), &batches, true);
    }

    /// tmpfs cannot zero a range: zeros are written.
    #[test]
    fn file_on_tmpfs(batches in batches()) {
        let tmpfs = Path::new("/dev/shm");
        if tmpfs.is_dir() {
            conforms(file(tmpfs, |_| {}).as_ref(), &batches, true);
        } else {
            eprintln!("skipped: there is no tmpfs at {}", tmpfs.display());
        }
    }

    #[test]
    fn qos_without_limits(batches in batches()) {
        conforms(Qos::new(malloc()).as_ref(), &batches, true);
    }

    #[test]
    fn qos_with_limits(batches in batches()) {
        conforms(limited(malloc()).as_ref(), &batches, true);
    }

    #[test]
    fn delay(batches in batches()) {
        conforms(delayed(malloc()).as_ref(), &batches, true);
    }

    #[test]
    fn error_injection_that_asks_for_patience(batches in batches()) {
        conforms(short_of_memory(malloc()).as_ref(), &batches, true);
    }

    #[test]
    fn all_decorators_over_a_file(batches in batches()) {
        let disk = limited(delayed(short_of_memory(file(&std::env::temp_dir(), |_| {}))));
        conforms(disk.as_ref(), &batches, true);
    }
}
