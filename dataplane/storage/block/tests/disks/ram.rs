//! Malloc and null disks: what conformance does not cover.

use crate::support::{Frontend, bytes, simple, write};
use block::{Bdev, BlockError, Malloc, MallocParams, Null, NullParams, Op, Status};
use invalid::Invalid;
use std::sync::Barrier;
use uuid::Uuid;

#[test]
fn parameters_out_of_range_name_the_field_and_what_is_accepted() {
    let cases = [
        ("name", MallocParams::new("", 512, 8)),
        ("name", MallocParams::new(&"n".repeat(256), 512, 8)),
        ("name", MallocParams::new("a\nb", 512, 8)),
        ("block_size", MallocParams::new("m", 0, 8)),
        ("block_size", MallocParams::new("m", 256, 8)),
        ("block_size", MallocParams::new("m", 520, 8)),
        ("block_size", MallocParams::new("m", 131_072, 8)),
        ("num_blocks", MallocParams::new("m", 512, 0)),
        ("num_blocks", MallocParams::new("m", 4096, u64::MAX)),
        ("physical_block_size", MallocParams { physical_block_size: Some(512), ..MallocParams::new("m", 4096, 8) }),
        ("numa_id", MallocParams { numa_node: Some(63), ..MallocParams::new("m", 512, 8) }),
    ];
    for (wrong, params) in cases {
        let text = format!("{params:?}");
        match Malloc::create(params) {
            Err(BlockError::Invalid(Invalid { field, got, expected })) => {
                assert_eq!(field, wrong, "{text}");
                assert!(!got.is_empty() && !expected.is_empty(), "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_disk_larger_than_memory_is_an_error_with_a_hint() {
    let error = Malloc::create(MallocParams::new("huge", 512, 1 << 40)).unwrap_err();
    assert!(matches!(&error, BlockError::Io { path, .. } if path == "huge"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("smaller")), "{error}");
}

#[test]
fn identity_is_kept_and_uuids_differ() {
    let uuid = Uuid::from_u128(7);
    let one = Malloc::create(MallocParams { uuid: Some(uuid), ..MallocParams::new("one", 4096, 8) }).unwrap();
    assert_eq!((one.identity().uuid, one.identity().product_name), (uuid, "Malloc disk"));
    let [two, three] = ["two", "three"].map(|name| Null::create(NullParams::new(name, 512, 8)).unwrap());
    assert_ne!(two.identity().uuid, three.identity().uuid);
    assert_eq!(two.identity().product_name, "Null disk");
}

#[test]
fn ranges_behind_the_end_and_buffers_of_another_length_are_refused() {
    let malloc = Malloc::create(MallocParams::new("m", 512, 16)).unwrap();
    let null = Null::create(NullParams::new("n", 512, 16)).unwrap();
    for disk in [malloc.as_ref() as &dyn Bdev, null.as_ref()] {
        let mut frontend = Frontend::new(disk);
        let size = disk.geometry().size_bytes();
        for op in [Op::Read, Op::Write, Op::Discard, Op::WriteZeroes { unmap: false }] {
            for offset in [size, size - 512, u64::MAX - 511] {
                assert_eq!(frontend.perform(simple(op, offset, 1024)).1, Status::IoError, "{op:?} at {offset}");
            }
            assert_eq!(frontend.perform(simple(op, size - 1024, 1024)).1, Status::Ok, "{op:?}");
        }
        let mut short = simple(Op::Read, 0, 512);
        short.len = 1024;
        assert_eq!(frontend.perform(short).1, Status::IoError);
    }
}

#[test]
fn null_grows_and_shrinks_under_its_channels() {
    let null = Null::create(NullParams::new("n", 512, 16)).unwrap();
    let mut frontend = Frontend::new(null.as_ref());
    null.resize(32).unwrap();
    assert_eq!(null.geometry().num_blocks, 32);
    assert_eq!(frontend.perform(simple(Op::Read, 31 * 512, 512)).1, Status::Ok);
    null.resize(8).unwrap();
    assert_eq!(frontend.perform(simple(Op::Read, 8 * 512, 512)).1, Status::IoError);
    assert!(matches!(null.resize(0), Err(BlockError::Invalid(e)) if e.field == "num_blocks"));
    assert_eq!(null.geometry().num_blocks, 8);
}

#[test]
fn null_reads_leave_buffers_alone() {
    let null = Null::create(NullParams::new("n", 512, 16)).unwrap();
    let read = simple(Op::Read, 0, 512);
    read.buffers.write(0, &[9; 512]).unwrap();
    assert!(bytes(&Frontend::new(null.as_ref()).perform(read).0).iter().all(|&byte| byte == 9));
}

/// Four workers write and read their own quarters through their own channels, neighbours sharing pages.
#[test]
fn channels_on_several_threads_do_not_disturb_each_other() {
    const BLOCKS: u64 = 61;
    let malloc = Malloc::create(MallocParams::new("m", 512, 4 * BLOCKS)).unwrap();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for worker in 0..4_u8 {
            let (malloc, start) = (&malloc, &start);
            scope.spawn(move || {
                let mut frontend = Frontend::new(malloc.as_ref());
                let offset = u64::from(worker) * BLOCKS * 512;
                start.wait();
                for round in 0..200 {
                    let content = vec![worker ^ round; (BLOCKS * 512) as usize];
                    assert_eq!(frontend.perform(write(offset, &content)).1, Status::Ok);
                    let (read, status) = frontend.perform(simple(Op::Read, offset, BLOCKS * 512));
                    assert_eq!((bytes(&read) == content, status), (true, Status::Ok), "worker {worker} round {round}");
                }
            });
        }
    });
}
