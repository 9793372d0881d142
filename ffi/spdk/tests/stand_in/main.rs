//! Disks over a stand-in for SPDK: no test of SPDK, but of what this crate does with requests, errors, removal and its own end.

mod library;

use block::{Bdev, BlockChannel, BlockError, BlockRequest, Completed, Completions, Op, Request, Status};
use clock::Cycles;
use library::{STATE, State, run};
use memory::IoBuffers;
use spdk::{EalOwner, Spdk, SpdkBdev, SpdkConfig};
use std::sync::Arc;

fn config() -> SpdkConfig {
    SpdkConfig { json: "{}".into(), cpu: 0, eal: EalOwner::Spdk }
}

fn state<R>(change: impl FnOnce(&mut State) -> R) -> R {
    change(&mut STATE.lock())
}

fn disk(spdk: &Arc<Spdk>) -> Arc<SpdkBdev> {
    SpdkBdev::open(spdk, library::NAME, false).unwrap()
}

fn request(op: Op, offset: u64, len: usize) -> Box<Request> {
    let moves = matches!(op, Op::Read | Op::Write);
    let mut request = Request::new(IoBuffers::anonymous(if moves { len } else { 1 }).unwrap());
    (request.op, request.offset, request.len) = (op, offset, len as u64);
    request
}

fn finish(channel: &mut dyn BlockChannel, done: &mut Completions) -> Vec<Completed> {
    while channel.outstanding() > 0 {
        channel.poll(Cycles::now(), done);
    }
    done.drain().collect()
}

fn perform(channel: &mut dyn BlockChannel, request: Box<Request>) -> Completed {
    let mut done = Completions::default();
    channel.submit(BlockRequest::new(request), &mut done);
    finish(channel, &mut done).pop().unwrap()
}

fn status(channel: &mut dyn BlockChannel, op: Op) -> Status {
    perform(channel, request(op, 0, if op == Op::Flush { 0 } else { 4096 })).status
}

#[test]
fn data_passes_through_all_pieces() {
    run(|| {
        let spdk = Spdk::start(config()).unwrap();
        let disk = disk(&spdk);
        let geometry = disk.geometry();
        assert_eq!((geometry.block_size, geometry.num_blocks, geometry.write_cache), (512, 8192, true));
        assert_eq!(disk.identity().uuid.as_bytes(), &[7; 16]);
        let mut channel = disk.open_channel().unwrap();
        let pattern: Vec<u8> = (0..200_704).map(|n| (n % 251) as u8).collect();
        let write = request(Op::Write, 4096, pattern.len());
        write.buffers.write(0, &pattern).unwrap();
        assert_eq!(perform(&mut *channel, write).status, Status::Ok);
        assert!(state(|state| state.data[4096..][..pattern.len()] == pattern));
        let read = perform(&mut *channel, request(Op::Read, 4096, pattern.len()));
        let mut bytes = vec![0; pattern.len()];
        read.request.buffers.read(0, &mut bytes).unwrap();
        assert!(read.status == Status::Ok && bytes == pattern);
        assert_eq!(status(&mut *channel, Op::Flush), Status::Ok);
        for op in [Op::Discard, Op::WriteZeroes { unmap: false }] {
            let cleared = perform(&mut *channel, request(op, 8192, 4096));
            assert_eq!(cleared.status, Status::Ok);
        }
        assert!(state(|state| state.calls == ["writev", "readv", "flush", "unmap", "zeroes"] && state.data[8192] == 0));
        let beyond = perform(&mut *channel, request(Op::Read, geometry.size_bytes() - 512, 1024));
        assert_eq!(beyond.status, Status::IoError);
    });
}

#[test]
fn requests_without_room_wait() {
    run(|| {
        let spdk = Spdk::start(config()).unwrap();
        let (mut channel, mut done) = (disk(&spdk).open_channel().unwrap(), Completions::default());
        // More than there are slots, and more than there is memory for.
        for n in 0..200 {
            let len = if n % 2 == 0 { 1 << 20 } else { 512 };
            channel.submit(BlockRequest::new(request(Op::Read, 0, len)), &mut done);
        }
        assert_eq!((channel.outstanding(), done.len()), (200, 0));
        let ended = finish(&mut *channel, &mut done);
        assert!(ended.len() == 200 && ended.iter().all(|completed| completed.status == Status::Ok));
        // SPDK itself is short of memory, twice.
        state(|state| state.refuse = vec![libc::ENOMEM, libc::ENOMEM]);
        assert_eq!(status(&mut *channel, Op::Write), Status::Ok);
        assert!(state(|state| state.refuse.is_empty()));
    });
}

#[test]
fn an_error_fails_only_its_request() {
    run(|| {
        let spdk = Spdk::start(config()).unwrap();
        let mut channel = disk(&spdk).open_channel().unwrap();
        state(|state| state.refuse = vec![libc::ENOTSUP]);
        assert_eq!(status(&mut *channel, Op::Discard), Status::Unsupported);
        state(|state| state.refuse = vec![libc::EINVAL]);
        assert_eq!(status(&mut *channel, Op::Write), Status::IoError);
        state(|state| state.fail = true);
        assert_eq!(status(&mut *channel, Op::Read), Status::IoError);
        state(|state| state.fail = false);
        assert_eq!(status(&mut *channel, Op::Read), Status::Ok);
    });
}

#[test]
fn a_removed_device_is_closed() {
    run(|| {
        let spdk = Spdk::start(config()).unwrap();
        let disk = disk(&spdk);
        let (mut channel, mut done) = (disk.open_channel().unwrap(), Completions::default());
        channel.submit(BlockRequest::new(request(Op::Write, 0, 512)), &mut done);
        library::remove();
        assert_eq!(finish(&mut *channel, &mut done)[0].status, Status::Ok);
        channel.poll(Cycles::now(), &mut done);
        assert!(state(|state| state.opened.is_empty()));
        assert_eq!(status(&mut *channel, Op::Read), Status::IoError);
        assert_eq!(disk.rescan().unwrap_err().hint(), Some("the device is not there: check that it is attached"));
    });
}

#[test]
fn a_channel_ends_after_its_requests() {
    run(|| {
        let spdk = Spdk::start(config()).unwrap();
        let (mut channel, mut done) = (disk(&spdk).open_channel().unwrap(), Completions::default());
        for _ in 0..100 {
            channel.submit(BlockRequest::new(request(Op::Write, 0, 4096)), &mut done);
        }
        state(|state| state.hold_polls = 10);
        drop(spdk); // the channel has it
        std::thread::spawn(move || drop(channel)).join().unwrap();
        assert!(done.is_empty());
    });
}

#[test]
fn a_resize_is_seen() {
    run(|| {
        let spdk = Spdk::start(config()).unwrap();
        let disk = disk(&spdk);
        assert!(!disk.rescan().unwrap());
        state(|state| state.data.resize(5 << 20, 0));
        assert!(disk.rescan().unwrap());
        assert_eq!(disk.geometry().size_bytes(), 5 << 20);
    });
}

#[test]
fn unsupported_devices_are_refused() {
    run(|| {
        state(|state| state.no_subsystems = true);
        let error = Spdk::start(config()).unwrap_err().to_string();
        assert!(error.starts_with("SPDK: subsystems: "), "{error}");
        state(|state| state.no_subsystems = false);
        let spdk = Spdk::start(config()).unwrap();
        assert!(matches!(SpdkBdev::open(&spdk, "other", false), Err(BlockError::Io { .. })));
        assert!(matches!(SpdkBdev::open(&spdk, "a\0b", false), Err(BlockError::Invalid(e)) if e.field == "name"));
        state(|state| state.metadata = 8);
        assert!(matches!(
            SpdkBdev::open(&spdk, library::NAME, false),
            Err(BlockError::Invalid(e)) if e.field == "blocks"
        ));
    });
}
