//! What no real file does on demand: short and failing calls, calls that never end.

use super::transfer::{Step, Transfer};
use super::*;
use crate::{BlockRequest, Completions, Op, Request, Status};
use clock::Cycles;
use memory::IoBuffers;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;

const SIZE: u64 = 1 << 20;

fn disk(file: impl Into<OwnedFd>, timeout: Option<Duration>) -> Arc<Disk> {
    Arc::new(Disk {
        file: File::from(file.into()),
        path: "test".into(),
        read_only: false,
        memory_align: 512,
        length_align: 512,
        size_bytes: AtomicU64::new(SIZE),
        zero_range: AtomicBool::new(true),
        zeros: Memory::allocate(BOUNCE_BYTES, None).unwrap(),
        timeout,
        timed_out: AtomicU64::new(0),
    })
}

/// A disk whose file is never touched.
fn paper_disk() -> Arc<Disk> {
    disk(tempfile::tempfile().unwrap(), None)
}

fn request(op: Op, offset: u64, pieces: &[(u64, u64)]) -> Box<Request> {
    let memory = Arc::new(Memory::allocate(SIZE as usize, None).unwrap());
    let mut buffers = IoBuffers::new(memory.clone(), pieces.len());
    for &(address, len) in pieces {
        memory.append_buffers(address as usize, len as usize, &mut buffers);
    }
    let mut request = Request::new(buffers);
    request.op = op;
    request.offset = offset;
    request.len = request.buffers.len();
    request
}

/// Where in the first piece's memory an address lies.
fn at(request: &Request, address: *mut u8) -> usize {
    address as usize - request.buffers.iovecs()[0].iov_base as usize
}

#[test]
fn a_short_transfer_goes_on_where_it_stopped() {
    let disk = paper_disk();
    let request = request(Op::Read, 4096, &[(0, 1024), (8192, 512), (16384, 2560)]);
    let mut transfer = Transfer::begin(&disk, &request).unwrap();
    let iovecs = request.buffers.iovecs();
    let step = |transfer: &Transfer| transfer.step(&disk, &request, None);

    assert_eq!(step(&transfer), Step::Many { write: false, iovecs: iovecs.as_ptr(), count: 3, offset: 4096 });
    assert_eq!(transfer.advance(&disk, &request, None, 512), None);
    let Step::One { write: false, address, len: 512, offset: 4608 } = step(&transfer) else { panic!() };
    assert_eq!(at(&request, address), 512);
    assert_eq!(transfer.advance(&disk, &request, None, 512), None);
    assert_eq!(step(&transfer), Step::Many { write: false, iovecs: &raw const iovecs[1], count: 2, offset: 5120 });
    assert_eq!(transfer.advance(&disk, &request, None, 1024), None);
    let Step::One { write: false, address, len: 2048, offset: 6144 } = step(&transfer) else { panic!() };
    assert_eq!(at(&request, address), 16384 + 512);
    assert_eq!(transfer.advance(&disk, &request, None, 2048), Some(Status::Ok));
}

#[test]
fn interrupted_calls_are_made_again_and_nothing_is_skipped() {
    let disk = paper_disk();
    let request = request(Op::Write, 0, &[(0, 4096)]);
    let mut transfer = Transfer::begin(&disk, &request).unwrap();
    let first = transfer.step(&disk, &request, None);
    for errno in [libc::EINTR, libc::EAGAIN] {
        assert_eq!(transfer.advance(&disk, &request, None, -errno), None);
        assert_eq!(transfer.step(&disk, &request, None), first);
    }
    assert_eq!(transfer.advance(&disk, &request, None, 4096), Some(Status::Ok));
}

#[test]
fn errors_are_told_apart() {
    let disk = paper_disk();
    let cases = [
        (Op::Read, 0, Status::IoError),
        (Op::Write, 0, Status::IoError),
        (Op::Read, -libc::EIO, Status::IoError),
        (Op::Write, -libc::ENOSPC, Status::NoSpace),
        (Op::Write, -libc::EDQUOT, Status::NoSpace),
        (Op::Write, -libc::ECANCELED, Status::IoError),
        (Op::Discard, -libc::EOPNOTSUPP, Status::Unsupported),
        (Op::Flush, -libc::EIO, Status::IoError),
    ];
    for (op, result, status) in cases {
        let request = request(op, 0, &[(0, 4096)]);
        let mut transfer = Transfer::begin(&disk, &request).unwrap();
        assert_eq!(transfer.advance(&disk, &request, None, result), Some(status), "{op:?}: {result}");
    }
}

#[test]
fn zeroing_falls_back_from_hole_to_range_to_writing() {
    let disk = paper_disk();
    let request = request(Op::WriteZeroes { unmap: true }, 512, &[(0, 100 << 10)]);
    let mut transfer = Transfer::begin(&disk, &request).unwrap();
    for expected in [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE] {
        let Step::Allocate { mode, offset: 512, len: 102_400 } = transfer.step(&disk, &request, None) else { panic!() };
        assert_eq!(mode, expected | libc::FALLOC_FL_KEEP_SIZE);
        assert_eq!(transfer.advance(&disk, &request, None, -libc::EOPNOTSUPP), None);
    }
    let Step::One { write: true, len, offset: 512, .. } = transfer.step(&disk, &request, None) else { panic!() };
    assert_eq!(len as usize, BOUNCE_BYTES);
    assert_eq!(transfer.advance(&disk, &request, None, len as i32), None);
    let Step::One { write: true, len, offset: 66_048, .. } = transfer.step(&disk, &request, None) else { panic!() };
    assert_eq!(transfer.advance(&disk, &request, None, len as i32), Some(Status::Ok));

    let later = self::request(Op::WriteZeroes { unmap: false }, 0, &[(0, 4096)]);
    let transfer = Transfer::begin(&disk, &later).unwrap();
    assert!(matches!(transfer.step(&disk, &later, None), Step::One { .. }), "what failed once is not tried again");
}

#[test]
fn a_bounced_transfer_goes_through_its_buffer_piece_by_piece() {
    let disk = paper_disk();
    let len = BOUNCE_BYTES as u64 + 1024;
    let bounce = Memory::allocate(BOUNCE_BYTES, None).unwrap();
    let request = request(Op::Read, 0, &[(1, len)]);
    let mut transfer = Transfer::begin(&disk, &request).unwrap();
    assert!(transfer.needs_bounce());
    let mut results = [1024, BOUNCE_BYTES as i32].into_iter();
    for (fill, result) in results.by_ref().enumerate() {
        let Step::One { write: false, address, len, .. } = transfer.step(&disk, &request, Some(bounce.as_ptr())) else {
            panic!()
        };
        assert_eq!((address, len as usize), (bounce.as_ptr(), BOUNCE_BYTES));
        // SAFETY: this test's own memory, standing in for the kernel.
        unsafe { address.write_bytes(fill as u8 + 1, result as usize) };
        let end = transfer.advance(&disk, &request, Some(bounce.as_ptr()), result);
        assert_eq!(end, if fill == 0 { None } else { Some(Status::Ok) });
    }
    let mut bytes = vec![0; len as usize];
    request.buffers.read(0, &mut bytes).unwrap();
    assert!(bytes[..1024].iter().all(|&byte| byte == 1) && bytes[1024..].iter().all(|&byte| byte == 2));
}

/// A disk on the reading end of a pipe: reads end at a write to the other end.
fn pipe_disk(timeout: Option<Duration>) -> (Arc<Disk>, PipeWriter) {
    let (reader, writer): (PipeReader, PipeWriter) = std::io::pipe().unwrap();
    (disk(reader, timeout), writer)
}

fn submit(channel: &mut UringChannel, now: Cycles, done: &mut Completions) {
    let mut request = request(Op::Read, 0, &[(0, 512)]);
    request.submitted = now;
    channel.submit(BlockRequest::new(request), done);
}

/// Polls at a time that stands still until something comes back.
fn poll_until_back(channel: &mut UringChannel, now: Cycles, done: &mut Completions) -> Vec<Status> {
    let give_up = std::time::Instant::now() + Duration::from_secs(10);
    while done.is_empty() {
        channel.poll(now, done);
        assert!(std::time::Instant::now() < give_up, "nothing comes back");
    }
    done.drain().map(|completed| completed.status).collect()
}

#[test]
fn a_request_that_takes_too_long_is_counted_and_cancelled_and_others_live() {
    let timeout = Duration::from_secs(5);
    let (disk, mut writer) = pipe_disk(Some(timeout));
    let (mut channel, mut done) = (UringChannel::open(disk.clone()).unwrap(), Completions::default());
    let start = Cycles::from(Duration::from_secs(100));
    submit(&mut channel, start, &mut done);
    channel.poll(start, &mut done);
    submit(&mut channel, start + Duration::from_secs(3).into(), &mut done);
    channel.poll(start + Duration::from_secs(3).into(), &mut done);
    assert_eq!(channel.deadline(), start + timeout.into());
    channel.poll(start + Duration::from_millis(4999).into(), &mut done);
    assert_eq!((channel.outstanding(), disk.timed_out.load(Ordering::Relaxed)), (2, 0));

    let late = start + timeout.into();
    assert_eq!(poll_until_back(&mut channel, late, &mut done), [Status::IoError]);
    assert_eq!((channel.outstanding(), disk.timed_out.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(channel.deadline(), start + Duration::from_secs(8).into());

    writer.write_all(&[1; 512]).unwrap();
    assert_eq!(poll_until_back(&mut channel, late, &mut done), [Status::Ok]);
    assert_eq!((channel.outstanding(), channel.deadline()), (0, Cycles::NEVER));
}

#[test]
fn a_request_that_joins_a_late_one_has_its_own_time() {
    let timeout = Duration::from_secs(5);
    let (disk, _writer) = pipe_disk(Some(timeout));
    let (mut channel, mut done) = (UringChannel::open(disk.clone()).unwrap(), Completions::default());
    let start = Cycles::from(Duration::from_secs(100));
    submit(&mut channel, start, &mut done);
    channel.poll(start, &mut done);
    let late = start + timeout.into();
    channel.poll(late, &mut done); // queues the cancellation
    submit(&mut channel, late, &mut done);
    assert_eq!(poll_until_back(&mut channel, late, &mut done), [Status::IoError]);
    assert_eq!(poll_until_back(&mut channel, late + timeout.into(), &mut done), [Status::IoError]);
    assert_eq!(disk.timed_out.load(Ordering::Relaxed), 2);
}

#[test]
fn a_late_cancellation_does_not_hit_the_next_request_in_the_slot() {
    let (disk, mut writer) = pipe_disk(Some(Duration::from_secs(5)));
    let (mut channel, mut done) = (UringChannel::open(disk.clone()).unwrap(), Completions::default());
    let start = Cycles::from(Duration::from_secs(100));
    submit(&mut channel, start, &mut done);
    channel.poll(start, &mut done);
    // This poll queues the cancellation and the next sends it. Meanwhile the request ends and another takes its slot.
    let late = start + Duration::from_secs(5).into();
    channel.poll(late, &mut done);
    writer.write_all(&[1; 512]).unwrap();
    while channel.reap(&mut done) == 0 {}
    assert_eq!(done.drain().next().unwrap().status, Status::Ok);
    submit(&mut channel, late, &mut done);
    for _ in 0..100 {
        channel.poll(late, &mut done);
    }
    assert_eq!((channel.outstanding(), done.len()), (1, 0), "the second request waits for its own bytes");
    writer.write_all(&[2; 512]).unwrap();
    assert_eq!(poll_until_back(&mut channel, late, &mut done), [Status::Ok]);
}

#[test]
fn dropping_a_channel_takes_back_requests_that_would_never_end() {
    let (disk, _writer) = pipe_disk(None);
    let (mut channel, mut done) = (UringChannel::open(disk).unwrap(), Completions::default());
    for _ in 0..2 * DEPTH {
        submit(&mut channel, Cycles(1), &mut done);
    }
    channel.poll(Cycles(1), &mut done);
    assert_eq!(channel.deadline(), Cycles::NEVER);
    assert_eq!(channel.outstanding(), 2 * DEPTH);
    let elsewhere = std::thread::spawn(move || drop(channel));
    elsewhere.join().unwrap();
    assert!(done.is_empty());
}
