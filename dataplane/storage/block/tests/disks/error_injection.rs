//! Injected errors.

use crate::support::{Frontend, bytes, simple, write};
use block::{Bdev, BlockError, ErrorInjection, ErrorType, Injection, Malloc, MallocParams, Op, OpKind, Status};
use clock::Cycles;
use std::sync::Arc;

fn disk() -> (Arc<ErrorInjection>, Frontend) {
    let base = Malloc::create(MallocParams::new("m", 512, 64)).unwrap();
    let disk = ErrorInjection::create(base, None).unwrap();
    let frontend = Frontend::new(disk.as_ref());
    (disk, frontend)
}

fn injection(error_type: ErrorType, num: u32) -> Injection {
    Injection { error_type, num, ..Default::default() }
}

#[test]
fn it_is_named_after_its_base() {
    let (disk, _) = disk();
    assert_eq!((disk.identity().name.as_str(), disk.identity().product_name), ("EE_m", "Error Injection Disk"));
}

#[test]
fn as_many_requests_of_the_kind_fail_as_were_asked_for() {
    let (disk, mut frontend) = disk();
    disk.inject(Some(OpKind::Write), injection(ErrorType::Failure, 2)).unwrap();
    assert_eq!(frontend.perform(simple(Op::Read, 0, 512)).1, Status::Ok);
    let statuses = [1, 2, 3].map(|fill| frontend.perform(write(0, &[fill; 512])).1);
    assert_eq!(statuses, [Status::IoError, Status::IoError, Status::Ok]);
    assert_eq!(bytes(&frontend.perform(simple(Op::Read, 0, 512)).0)[0], 3);

    disk.inject(None, injection(ErrorType::Failure, 1)).unwrap();
    for op in [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes { unmap: true }] {
        assert_eq!(frontend.perform(simple(op, 0, 512)).1, Status::IoError, "{op:?}");
        assert_eq!(frontend.perform(simple(op, 0, 512)).1, Status::Ok, "{op:?}");
    }
}

#[test]
fn pending_requests_are_held_until_cleared_and_then_done() {
    let (disk, mut frontend) = disk();
    disk.inject(Some(OpKind::Write), injection(ErrorType::Pending, u32::MAX)).unwrap();
    frontend.submit(write(0, &[5; 512]), Cycles(10));
    for now in 10..1000 {
        frontend.poll(Cycles(now));
    }
    assert_eq!((frontend.outstanding(), frontend.ended.len()), (1, 0));
    assert_ne!(frontend.channel.deadline(), Cycles::NEVER, "a sleeping worker looks again");
    assert_eq!(frontend.channel.outstanding(), 1);

    disk.clear();
    assert_eq!(frontend.drain()[0].status, Status::Ok);
    assert_eq!(bytes(&frontend.perform(simple(Op::Read, 0, 512)).0), [5; 512]);
    assert_eq!(frontend.perform(write(0, &[6; 512])).1, Status::Ok, "nothing is planned any more");
}

#[test]
fn one_byte_of_a_read_or_a_write_is_corrupted() {
    let (disk, mut frontend) = disk();
    let corrupt = Injection { corrupt_offset: 100, corrupt_value: 0xff, ..injection(ErrorType::CorruptData, 1) };
    let read = |frontend: &mut Frontend| bytes(&frontend.perform(simple(Op::Read, 512, 512)).0);
    let mut wrong = [0x0f; 512];
    wrong[100] = 0xf0;
    assert_eq!(frontend.perform(write(512, &[0x0f; 512])).1, Status::Ok);

    disk.inject(Some(OpKind::Read), corrupt).unwrap();
    assert_eq!(read(&mut frontend), wrong);
    assert_eq!(read(&mut frontend), [0x0f; 512], "the disk itself is sound");

    disk.inject(Some(OpKind::Write), corrupt).unwrap();
    assert_eq!(frontend.perform(write(512, &[0x0f; 512])).1, Status::Ok);
    assert_eq!(read(&mut frontend), wrong, "the disk has the wrong byte");

    disk.inject(Some(OpKind::Read), Injection { corrupt_value: 0, ..corrupt }).unwrap_err();
    disk.inject(Some(OpKind::Flush), corrupt).unwrap();
    assert_eq!(frontend.perform(simple(Op::Flush, 0, 0)).1, Status::Ok);
}

#[test]
fn corruption_needs_a_value_that_changes_something() {
    let error = disk().0.inject(None, injection(ErrorType::CorruptData, 1)).unwrap_err();
    assert!(matches!(error, BlockError::Invalid(ref e) if e.field == "corrupt_value"), "{error}");
}

#[test]
fn errors_wait_for_their_queue_depth() {
    let (disk, mut frontend) = disk();
    // Two held writes make a depth of two: the third request fails.
    disk.inject(Some(OpKind::Write), injection(ErrorType::Pending, 2)).unwrap();
    disk.inject(Some(OpKind::Read), Injection { queue_depth: 2, ..injection(ErrorType::Failure, 9) }).unwrap();
    for expected in [Status::Ok, Status::Ok, Status::IoError] {
        frontend.submit(simple(Op::Read, 0, 512), Cycles(0));
        frontend.poll(Cycles(0));
        assert_eq!(frontend.ended.pop().unwrap().status, expected);
        frontend.submit(simple(Op::Write, 0, 512), Cycles(0));
    }
    disk.clear();
    frontend.drain();
}
