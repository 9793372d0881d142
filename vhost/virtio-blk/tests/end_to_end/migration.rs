//! The dirty log holds what was written, all of it and nothing else.

use crate::disk::Disk;
use crate::guest::{GuestQueue, LAYOUTS, MEMORY, Shared, Vmm, ring_addresses};
use crate::rig::{MIB, Rig, wait_for};
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use testkit::Rng;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use virtio_spec::blk::{request, status};
use virtio_spec::feature;

const DISK: u64 = 8 * MIB;
const PAGE: u64 = 4096;

struct Log(Shared);

impl Log {
    fn new(vmm: &Vmm) -> Log {
        let log = Shared::new("log", 0, MEMORY / PAGE / 8);
        let region = VhostUserDirtyLogRegion { mmap_size: log.len, mmap_offset: 0, mmap_handle: log.file.as_raw_fd() };
        vmm.frontend.set_log_base(0, Some(region)).unwrap();
        Log(log)
    }

    /// The pages that are marked; the log is empty afterwards.
    fn take(&self) -> BTreeSet<u64> {
        let mut bits = vec![0; self.0.len as usize];
        self.0.file.read_exact_at(&mut bits, 0).unwrap();
        self.0.file.write_all_at(&vec![0; bits.len()], 0).unwrap();
        (0..bits.len() as u64 * 8).filter(|page| bits[(page / 8) as usize] >> (page % 8) & 1 == 1).collect()
    }
}

/// Switches logging on live rings, as QEMU does: the rings' own log addresses, then the feature.
fn switch(vmm: &Vmm, on: bool) {
    for (index, ring) in vmm.rings.iter().enumerate() {
        let used_ring = on.then_some(ring.setup.addresses.device.0);
        vmm.frontend.set_vring_addr(index, &ring_addresses(&ring.setup, used_ring)).unwrap();
    }
    let log_all = if on { feature::VHOST_LOG_ALL } else { 0 };
    vmm.frontend.set_features(vmm.features | feature::VHOST_USER_PROTOCOL_FEATURES | log_all).unwrap();
}

/// Pages that a request of `len` bytes dirties when it completes.
fn dirtied(queue: &GuestQueue, slot: usize, kind: u32, len: u64) -> BTreeSet<u64> {
    let mut pages = BTreeSet::from([queue.status(slot).0 / PAGE]);
    if kind == request::IN {
        let at = queue.buffer(slot).0;
        pages.extend(at / PAGE..=(at + len - 1) / PAGE);
    }
    pages
}

#[test]
fn the_dirty_log_is_exact_while_it_is_switched_on_live_rings() {
    for features in LAYOUTS {
        let disk = Disk::new(DISK);
        let rig = Rig::with(&disk, 1);
        let (vmm, mut queues) = Vmm::boot(&rig.socket(0), features, 1, 64);
        let queue = &mut queues[0];
        let log = Log::new(&vmm);
        let mut rng = Rng::new(features + 3);
        let ring_page = vmm.rings[0].setup.addresses.descriptor.0 / PAGE;
        let ring_areas = [vmm.rings[0].setup.addresses.driver.0, vmm.rings[0].setup.addresses.device.0 + 6 + 64 * 8];
        assert!(ring_areas.iter().all(|at| at / PAGE == ring_page), "a ring of 64 lies in one page");
        for round in 0..60 {
            let on = round % 3 != 2;
            let mut expected = BTreeSet::new();
            // Half of the requests are in flight when the log is switched.
            disk.hold_from(0);
            for slot in 0..16 {
                let (kind, sectors) = ([request::IN, request::OUT, request::FLUSH][slot % 3], 1 + rng.below(24));
                let len = if kind == request::FLUSH { 0 } else { sectors * 512 };
                let sector = rng.below(DISK / 512 - sectors);
                queue.request(slot, kind, if len == 0 { 0 } else { sector }, len as u32);
                expected.append(&mut dirtied(queue, slot, kind, len));
                if slot == 8 {
                    wait_for("the disk to have the first ones", || disk.taken() == 9);
                    switch(&vmm, on);
                    log.take(); // What the ring wrote until now.
                }
            }
            disk.release();
            let mut done = 0;
            while done < 16 {
                done += queue.wait().into_iter().inspect(|&(_, code, _)| assert_eq!(code, status::OK)).count();
            }
            // Behind the last call the worker may still ask for kicks in the ring, which is logged as well.
            expected.insert(ring_page);
            let found = log.take();
            assert_eq!(found, if on { expected } else { BTreeSet::new() }, "round {round}, features {features:#x}");
        }
        assert!(rig.heard.is_empty());
    }
}

#[test]
fn an_answer_of_our_own_is_logged_too() {
    let disk = Disk::new(DISK);
    let rig = Rig::with(&disk, 1);
    let (vmm, mut queues) = Vmm::boot(&rig.socket(0), 0, 1, 64);
    let log = Log::new(&vmm);
    switch(&vmm, true);
    let queue = &mut queues[0];
    let ring_page = vmm.rings[0].setup.addresses.device.0 / PAGE;
    let pages = |queue: &GuestQueue, buffer: bool| {
        let mut pages = BTreeSet::from([ring_page, queue.status(0).0 / PAGE]);
        pages.extend(buffer.then_some(queue.buffer(0).0 / PAGE));
        pages
    };
    for (kind, code, buffer) in [
        (request::GET_ID, status::OK, true),
        (99, status::UNSUPP, false),
        (request::IN, status::IOERR, false), // 20 bytes are no sector: not even tried
    ] {
        log.take();
        assert_eq!(queue.run(kind, 0, 20), code);
        assert_eq!(log.take(), pages(queue, buffer), "request {kind}");
    }
}
