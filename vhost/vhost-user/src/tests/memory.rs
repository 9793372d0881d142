//! Memory table, dirty log, inflight region (pitfalls 5 to 8).

use super::*;
use guest_memory::GuestAddress;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::dup;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// How often the file behind `fd` is mapped in this process.
fn mappings(fd: &OwnedFd) -> usize {
    let inode = fstat(fd).unwrap().st_ino.to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ours = maps.lines().filter(|line| line.contains("vhost-user-test"));
    ours.filter(|line| line.split_whitespace().nth(4) == Some(&inode)).count()
}

#[test]
fn a_live_table_change_moves_the_rings_and_unmaps_the_old_regions() {
    let mut script = Script::negotiated(SPLIT);
    let (old, new) = (memfd(LEN), memfd(LEN));
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![dup(&old).unwrap()]);
    assert_eq!(script.device.memory_changes, 0, "no ring, no change");
    script.start_ring(0, 256, 0);
    script.ok(Request::SET_MEM_TABLE, &table(&[[0x10_0000, LEN, USER, 0]]), vec![dup(&new).unwrap()]);
    assert_eq!(script.device.memory_changes, 1);
    let ring = &script.device.rings[&0].start;
    assert_eq!(ring.memory.regions()[0].guest_address(), GuestAddress(0x10_0000));
    assert_eq!((mappings(&old), mappings(&new)), (0, 1));
}

#[test]
fn a_region_that_is_still_used_is_unmapped_by_the_session_later() {
    let mut script = Script::negotiated(SPLIT);
    let (old, new) = (memfd(LEN), memfd(LEN));
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![dup(&old).unwrap()]);
    script.start_ring(0, 256, 0);
    script.device.holds_memory = true;
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![dup(&new).unwrap()]);
    script.session.tick().unwrap();
    assert_eq!(mappings(&old), 1);
    script.device.held = None;
    assert_eq!(mappings(&old), 1, "who lets go last does not unmap");
    script.session.tick().unwrap();
    assert_eq!(mappings(&old), 0);
}

#[test]
fn regions_left_at_the_end_of_a_session_are_unmapped_by_the_next() {
    let mut script = Script::negotiated(SPLIT);
    let file = memfd(LEN);
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![dup(&file).unwrap()]);
    script.start_ring(0, 256, 0);
    script.device.held = Some(script.device.rings[&0].start.memory.clone());
    let retired = script.session.close(&mut script.device);
    assert_eq!((script.device.resets, script.device.rings.len()), (1, 0));
    assert_eq!(mappings(&file), 1);
    script.device.held = None;
    let mut next = Session::new(script.device.properties, retired);
    next.tick().unwrap();
    assert_eq!(mappings(&file), 0);
}

#[test]
fn a_region_that_stays_keeps_its_mapping() {
    let mut script = Script::negotiated(SPLIT);
    let (low, high) = (memfd(LEN), memfd(LEN));
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![dup(&low).unwrap()]);
    script.start_ring(0, 256, 0);
    let region = script.device.rings[&0].start.memory.regions()[0].clone();
    let both = table(&[[0, LEN, USER, 0], [LEN, LEN, USER + LEN, 0]]);
    script.ok(Request::SET_MEM_TABLE, &both, vec![dup(&low).unwrap(), dup(&high).unwrap()]);
    let regions = script.device.rings[&0].start.memory.regions();
    assert_eq!(regions.len(), 2);
    assert!(Arc::ptr_eq(&regions[0], &region));
    // Another file at the same place is another region.
    script.ok(Request::SET_MEM_TABLE, &both, vec![dup(&high).unwrap(), dup(&low).unwrap()]);
    assert!(!Arc::ptr_eq(&script.device.rings[&0].start.memory.regions()[0], &region));
}

#[test]
fn a_table_without_a_live_ring_s_areas_is_refused() {
    let mut script = Script::running(SPLIT);
    let reason = script.refused(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER + LEN, 0]]), vec![memfd(LEN)]);
    assert!(reason.contains("ring 0: descriptor table at user address 0x7f0000000000, 0x1000 bytes"), "{reason}");
    script.refused(Request::SET_MEM_TABLE, &table(&[]), vec![]);
    script.refused(Request::REM_MEM_REG, &quads(&[0, 0, LEN, USER, 0]), vec![]);
    assert_eq!(script.device.memory_changes, 0);
    script.stop_ring(0);
    script.ok(Request::REM_MEM_REG, &quads(&[0, 0, LEN, USER, 0]), vec![]);
}

#[test]
fn a_refused_table_change_leaves_the_old_one_in_force() {
    let mut script = Script::running(SPLIT);
    script.device.refuses = true;
    let new = memfd(LEN);
    script.refused(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![dup(&new).unwrap()]);
    assert_eq!(mappings(&new), 0);
    script.device.refuses = false;
    assert_eq!(script.device.rings[&0].start.memory.regions().len(), 1);
}

#[test]
fn regions_come_and_go_one_by_one() {
    let mut script = Script::running(SPLIT);
    let file = memfd(2 * LEN);
    let region = |n: u64, offset: u64| quads(&[0, n * LEN, LEN, USER + n * LEN, offset]);
    script.ok(Request::ADD_MEM_REG, &region(1, LEN), vec![dup(&file).unwrap()]);
    assert_eq!(script.device.rings[&0].start.memory.regions().len(), 2);
    assert_eq!(mappings(&file), 1);
    // "The mmap offset is ignored", and a descriptor that comes along is closed.
    script.ok(Request::REM_MEM_REG, &region(1, 99), vec![dup(&file).unwrap()]);
    assert_eq!(script.device.rings[&0].start.memory.regions().len(), 1);
    assert_eq!(mappings(&file), 0);
    assert!(script.refused(Request::REM_MEM_REG, &region(1, LEN), vec![]).contains("no region"));
}

#[test]
fn a_table_has_no_more_regions_than_slots() {
    let mut script = Script::negotiated(SPLIT);
    let file = memfd(4096);
    for n in 0..crate::MAX_MEM_SLOTS as u64 {
        script.ok(Request::ADD_MEM_REG, &quads(&[0, n * 4096, 4096, USER + n * 4096, 0]), vec![dup(&file).unwrap()]);
    }
    let reason = script.refused(Request::ADD_MEM_REG, &quads(&[0, LEN * 9, 4096, USER + LEN * 9, 0]), vec![file]);
    assert!(reason.contains("at most 256"), "{reason}");
}

#[test]
fn no_front_end_takes_the_whole_address_space() {
    let mut script = Script::negotiated(SPLIT);
    let half = crate::MAX_MEMORY / 2;
    let file = memfd(half);
    let region = |n: u64| quads(&[0, n * half, half, USER + n * half, 0]);
    script.ok(Request::ADD_MEM_REG, &region(0), vec![dup(&file).unwrap()]);
    script.ok(Request::ADD_MEM_REG, &region(1), vec![dup(&file).unwrap()]);
    let reason = script.refused(Request::ADD_MEM_REG, &region(2), vec![dup(&file).unwrap()]);
    assert!(reason.contains("bytes of all regions is 0xc0000000000, expected at most 0x80000000000"), "{reason}");
    assert_eq!(mappings(&file), 2);
    let log = memfd(2 << 30);
    assert!(script.refused(Request::SET_LOG_BASE, &quads(&[2 << 30, 0]), vec![log]).contains("at most 0x40000000"));
}

#[test]
fn the_same_table_once_more_changes_nothing() {
    let mut script = Script::negotiated(SPLIT);
    let file = memfd(LEN);
    for _ in 0..2 {
        script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![dup(&file).unwrap()]);
        if script.device.rings.is_empty() {
            script.start_ring(0, 256, 0);
        }
    }
    assert_eq!((script.device.memory_changes, mappings(&file)), (0, 1));
}

#[test]
fn regions_are_checked_against_their_files_and_each_other() {
    let mut script = Script::negotiated(SPLIT);
    let directory = || std::fs::File::open("/").unwrap().into();
    let bad: [([u64; 4], OwnedFd, &str); 10] = [
        ([0, LEN + 1, USER, 0], memfd(LEN), "the file has 0x100000 bytes"),
        ([0, LEN, USER, 4096], memfd(LEN), "the file has 0x100000 bytes"),
        ([0, LEN, USER, u64::MAX], memfd(LEN), "the file has"),
        ([0, u64::MAX, USER, 0], memfd(LEN), "the file has"),
        ([0, 0, USER, 0], memfd(LEN), "mmap of 0x0 bytes"),
        ([u64::MAX - 4095, LEN, USER, 0], memfd(LEN), "is not in guest memory"),
        ([0, LEN, u64::MAX - 4095, 0], memfd(LEN), "is not in guest memory"),
        ([0, 4096, USER, 0], directory(), ""),
        ([0, 4096, USER, 0], event(), "the file has 0x0 bytes"),
        ([0, 4096, USER, 0], std::io::pipe().unwrap().0.into(), "the file has 0x0 bytes"),
    ];
    for (region, fd, expected) in bad {
        let reason = script.refused(Request::SET_MEM_TABLE, &table(&[region]), vec![fd]);
        assert!(reason.contains(expected), "{region:x?}: {reason}");
    }
    let guest = table(&[[0, LEN, USER, 0], [LEN - 1, LEN, USER + LEN, 0]]);
    assert!(script.refused(Request::SET_MEM_TABLE, &guest, vec![memfd(LEN), memfd(LEN)]).contains("guest addresses"));
    let user = table(&[[0, LEN, USER, 0], [LEN, LEN, USER + LEN - 1, 0]]);
    assert!(script.refused(Request::SET_MEM_TABLE, &user, vec![memfd(LEN), memfd(LEN)]).contains("user addresses"));
    // An offset need not be a multiple of a page.
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, 4096, USER, 100]]), vec![memfd(LEN)]);
}

#[test]
fn the_table_s_descriptors_match_its_regions() {
    let mut script = Script::negotiated(SPLIT);
    let fds = |n| (0..n).map(|_| memfd(LEN)).collect::<Vec<_>>();
    let one = table(&[[0, LEN, USER, 0]]);
    assert!(script.refused(Request::SET_MEM_TABLE, &one, fds(0)).contains("0 file descriptors, expected 1"));
    assert!(script.refused(Request::SET_MEM_TABLE, &one, fds(2)).contains("2 file descriptors, expected 1"));
    assert!(script.refused(Request::SET_MEM_TABLE, &one, fds(9)).contains("9 file descriptors, expected 0 to 8"));
    let mut liar = one.clone();
    liar[0] = 2;
    assert!(script.refused(Request::SET_MEM_TABLE, &liar, fds(2)).contains("payload of 40 bytes, expected 72"));
    liar[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(script.refused(Request::SET_MEM_TABLE, &liar, fds(1)).contains("num regions"));
    // User-mode Linux sends room for two regions and says one.
    let uml = [one, vec![0; 32]].concat();
    script.ok(Request::SET_MEM_TABLE, &uml, fds(1));
}

#[test]
fn log_all_toggles_on_live_rings() {
    let mut script = Script::running(SPLIT);
    let log = memfd(4096);
    let reply = script.ask(Request::SET_LOG_BASE, &quads(&[4096, 0]), vec![dup(&log).unwrap()]);
    assert_eq!(reply, quads(&[4096, 0]));
    assert_eq!(script.device.log_changes, 0, "not before VHOST_F_LOG_ALL");
    script.ok(Request::SET_FEATURES, &quads(&[SPLIT | feature::VHOST_LOG_ALL]), vec![]);
    assert_eq!(script.device.log_changes, 1);
    let mark = |script: &Script, page: u64| {
        script.device.rings[&0].start.log.as_ref().unwrap().mark(GuestAddress(page * 4096), 1);
    };
    mark(&script, 9);
    let mut bits = [0; 2];
    rustix::io::pread(&log, &mut bits, 0).unwrap();
    assert_eq!(bits, [0, 2]);
    // A larger one, as after memory hot-plug.
    let larger = memfd(8192);
    script.ask(Request::SET_LOG_BASE, &quads(&[4096, 4096]), vec![dup(&larger).unwrap()]);
    mark(&script, 0);
    rustix::io::pread(&larger, &mut bits, 4096).unwrap();
    assert_eq!((bits, mappings(&log)), ([1, 0], 0));
    // The features once more, as for each queue pair.
    script.ok(Request::SET_FEATURES, &quads(&[SPLIT | feature::VHOST_LOG_ALL]), vec![]);
    assert_eq!(script.device.log_changes, 2);
    script.ok(Request::SET_FEATURES, &quads(&[SPLIT]), vec![]);
    assert!(script.device.rings[&0].start.log.is_none());
    assert_eq!(script.device.rings[&0].start.setup.features, feature::VERSION_1);
}

#[test]
fn a_ring_that_starts_during_migration_logs_from_its_start() {
    let mut script = Script::with_memory(SPLIT | feature::VHOST_LOG_ALL);
    script.start_ring(0, 256, 0);
    assert!(script.device.rings[&0].start.log.is_none(), "no log given yet");
    script.ask(Request::SET_LOG_BASE, &quads(&[4096, 0]), vec![memfd(4096)]);
    assert!(script.device.rings[&0].start.log.is_some());
    script.start_ring(1, 256, 0);
    assert!(script.device.rings[&1].start.log.is_some());
}

#[test]
fn a_log_that_cannot_be_mapped_is_refused_and_the_old_one_stays() {
    let mut script = Script::running(SPLIT | feature::VHOST_LOG_ALL);
    script.ask(Request::SET_LOG_BASE, &quads(&[4096, 0]), vec![memfd(4096)]);
    for (size, offset, fd) in [(8192, 0, memfd(4096)), (0, 0, memfd(4096)), (1, u64::MAX, memfd(4096)), (8, 0, event())]
    {
        script.refused(Request::SET_LOG_BASE, &quads(&[size, offset]), vec![fd]);
    }
    script.refused(Request::SET_LOG_BASE, &quads(&[4096]), vec![]);
    script.refused(Request::SET_LOG_BASE, &quads(&[4096, 0]), vec![]);
    assert!(script.device.rings[&0].start.log.is_some());
    // QEMU does not look into the reply: without need_reply a refusal must end the session.
    assert!(script.tell(Request::SET_LOG_BASE, &quads(&[8192, 0]), vec![memfd(4096)]).is_err());
    assert!(script.tell(Request::SET_LOG_BASE, &quads(&[4096, 0]), vec![memfd(4096)]).unwrap().is_some());
}

#[test]
fn the_log_descriptor_is_signalled_while_the_log_is_in_force() {
    let mut script = Script::running(SPLIT);
    let fd = event();
    script.ok(Request::SET_LOG_FD, &[], vec![dup(&fd).unwrap()]);
    script.ask(Request::SET_LOG_BASE, &quads(&[4096, 0]), vec![memfd(4096)]);
    script.session.tick().unwrap();
    assert!(rustix::io::read(&fd, &mut [0; 8]).is_err());
    script.ok(Request::SET_FEATURES, &quads(&[SPLIT | feature::VHOST_LOG_ALL]), vec![]);
    script.session.tick().unwrap();
    assert_eq!(rustix::io::read(&fd, &mut [0; 8]), Ok(8));
    script.refused(Request::SET_LOG_FD, &[], vec![]);
}

fn inflight(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut payload = quads(&[size, offset]);
    payload.extend(queues.to_ne_bytes());
    payload.extend(queue_size.to_ne_bytes());
    payload
}

/// GET_INFLIGHT_FD: the description as the reply has it, and the descriptor.
fn get_inflight(script: &mut Script, queues: u16, queue_size: u16) -> (Vec<u8>, OwnedFd) {
    let reply = script.answer(Request::GET_INFLIGHT_FD, &inflight(0, 0, queues, queue_size), vec![]);
    (reply.bytes[Header::LEN..].to_vec(), reply.fd.unwrap())
}

#[test]
fn an_inflight_region_is_given_out_and_taken_back_by_the_next_process() {
    for (features, size) in [(SPLIT, 128), (PACKED, 100)] {
        let mut script = Script::with_memory(features);
        let (description, fd) = get_inflight(&mut script, 3, size as u16);
        let stat = fstat(&fd).unwrap();
        assert_eq!(description.len(), 24);
        assert_eq!(description[..16], quads(&[stat.st_size as u64, 0]));
        let needed = 3 * virtqueue::inflight::region_len(features & feature::RING_PACKED != 0, size as u16);
        assert!(stat.st_size as usize >= needed);
        assert!(fcntl_get_seals(&fd).unwrap().contains(SealFlags::SHRINK));
        script.ok(Request::SET_INFLIGHT_FD, &description, vec![dup(&fd).unwrap()]);
        for index in 0..3 {
            script.start_ring(index, size, 0);
            let window = script.device.rings[&(index as u16)].start.setup.inflight.clone().unwrap();
            window.store_u64(0, 100 + u64::from(index), Relaxed);
        }
        // The process dies; the next one gets the region from the front-end.
        let mut script = Script::with_memory(features);
        script.ok(Request::SET_INFLIGHT_FD, &description, vec![fd]);
        for index in 0..3 {
            script.start_ring(index, size, 0);
            let window = script.device.rings[&(index as u16)].start.setup.inflight.clone().unwrap();
            assert_eq!(window.load_u64(0, Relaxed), 100 + u64::from(index), "rings do not overlap");
        }
    }
}

#[test]
fn an_inflight_region_at_an_offset_is_found() {
    let mut script = Script::with_memory(SPLIT);
    let file = memfd(0x10_0000);
    rustix::io::pwrite(&file, &[0xab], 0x1000).unwrap();
    script.ok(Request::SET_INFLIGHT_FD, &inflight(0x8000, 0x1000, 2, 256), vec![file]);
    script.start_ring(0, 256, 0);
    let window = script.device.rings[&0].start.setup.inflight.clone().unwrap();
    assert_eq!(window.load_u8(0, Relaxed), 0xab);
}

#[test]
fn the_inflight_region_may_come_before_and_after_everything_else() {
    // DPDK crashed on the first.
    let mut script = Script::new();
    script.ok(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL]), vec![]);
    script.ok(Request::SET_INFLIGHT_FD, &inflight(0x8000, 0, 2, 256), vec![memfd(0x8000)]);
    script.ok(Request::SET_FEATURES, &quads(&[SPLIT]), vec![]);
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![memfd(LEN)]);
    script.start_ring(0, 256, 0);
    assert!(script.device.rings[&0].start.setup.inflight.is_some());
    let reason = script.refused(Request::SET_INFLIGHT_FD, &inflight(0x8000, 0, 2, 256), vec![memfd(0x8000)]);
    assert!(reason.contains("the inflight region cannot change while a ring is started"), "{reason}");
}

#[test]
fn an_inflight_region_that_does_not_fit_is_refused() {
    let mut script = Script::with_memory(SPLIT);
    let bad = [
        inflight(0x8001, 0, 2, 256),
        inflight(0, 0, 2, 256),
        inflight(8, u64::MAX, 2, 256),
        inflight(0x8000, 0, 0, 256),
        inflight(0x8000, 0, 5, 256),
        inflight(0x8000, 0, 2, 0),
        inflight(0x8000, 0, 2, 1025),
    ];
    for payload in bad {
        script.refused(Request::SET_INFLIGHT_FD, &payload, vec![memfd(0x8000)]);
    }
    for payload in [inflight(0, 0, 0, 256), inflight(0, 0, 5, 256), inflight(0, 0, 2, 0), inflight(0, 0, 2, 1025)] {
        assert!(script.tell(Request::GET_INFLIGHT_FD, &payload, vec![]).is_err());
    }
    let start = |script: &mut Script, region: Vec<u8>| {
        script.ok(Request::SET_INFLIGHT_FD, &region, vec![memfd(0x8000)]);
        script.ok(Request::SET_VRING_NUM, &words(&[1, 256]), vec![]);
        script.ok(Request::SET_VRING_BASE, &words(&[1, 0]), vec![]);
        script.ok(Request::SET_VRING_ADDR, &addresses(1, None), vec![]);
        script.refused(Request::SET_VRING_KICK, &quads(&[1]), vec![event()])
    };
    assert!(start(&mut Script::with_memory(SPLIT), inflight(0x1000, 0, 2, 256)).contains("inflight mmap size"));
    assert!(start(&mut Script::with_memory(SPLIT), inflight(0x8000, 0, 1, 256)).contains("inflight num queues"));
    assert!(start(&mut Script::with_memory(SPLIT), inflight(0x8000, 0, 2, 128)).contains("inflight queue size"));
}

#[test]
fn a_change_of_layout_clears_the_inflight_region() {
    let mut script = Script::with_memory(SPLIT);
    let (description, fd) = get_inflight(&mut script, 2, 256);
    script.ok(Request::SET_INFLIGHT_FD, &description, vec![fd]);
    script.start_ring(1, 256, 0);
    let window = script.device.rings[&1].start.setup.inflight.clone().unwrap();
    (0..window.len()).step_by(8).for_each(|at| window.store_u64(at, u64::MAX, Relaxed));
    script.stop_ring(1);
    script.ok(Request::SET_FEATURES, &quads(&[PACKED]), vec![]);
    script.start_ring(1, 100, 0);
    let window = script.device.rings[&1].start.setup.inflight.clone().unwrap();
    assert!((0..window.len()).step_by(8).all(|at| window.load_u64(at, Relaxed) == 0));
}

#[test]
fn memory_truncated_by_the_front_end_ends_its_session_alone() {
    let mut script = Script::negotiated(SPLIT);
    let file = memfd(LEN);
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![dup(&file).unwrap()]);
    script.start_ring(0, 256, 0);
    script.session.tick().unwrap();
    rustix::fs::ftruncate(&file, 0).unwrap();
    let memory = script.device.rings[&0].start.memory.clone();
    memory.read(GuestAddress(0), &mut [0; 8]).unwrap();
    let error = script.session.tick().unwrap_err();
    assert!(error.to_string().contains("F_SEAL_SHRINK"), "{error}");
}
