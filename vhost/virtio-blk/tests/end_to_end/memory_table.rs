//! The guest's memory changes while requests are in flight.

use crate::disk::Disk;
use crate::guest::{GuestQueue, LAYOUTS, Shared, Vmm};
use crate::rig::{MIB, Rig, wait_for};
use crate::traffic::Traffic;
use guest_memory::{GuestAddress, GuestMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_blk::{DeviceEventKind, DeviceFault, Quarantine};
use virtio_spec::blk::{request, status};

const DISK: u64 = 8 * MIB;
/// Where memory is plugged in.
const DIMM: u64 = 1 << 32;

/// How often this process has the file called `name` mapped. Our own view is one; the device's is another.
fn mappings(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(&format!("/memfd:{name} "))).count()
}

/// Memory at [`DIMM`] with our own view of it.
fn dimm(name: &str) -> (Shared, Arc<GuestMemory>) {
    let shared = Shared::new(name, DIMM, MIB);
    let view = Arc::new(GuestMemory::new(vec![shared.map()]).unwrap());
    (shared, view)
}

fn read_into(queue: &mut GuestQueue, slot: usize, sector: u64) {
    queue.request_at(slot, request::IN, sector, (GuestAddress(DIMM + slot as u64 * 4096), 4096));
}

#[test]
fn unplugged_memory_survives_inflight_io() {
    for (layout, features) in LAYOUTS.into_iter().enumerate() {
        let name = format!("unplugged-{layout}");
        let disk = Disk::new(DISK);
        disk.write(DISK / 2, &[0x5a; 8 * 4096]);
        let rig = Rig::with(&disk, 2);
        let (mut vmm, mut queues) = Vmm::boot(&rig.socket(0), features, 2, 64);
        let (dimm, view) = dimm(&name);
        vmm.frontend.add_mem_region(&dimm.info()).unwrap();
        assert_eq!(mappings(&name), 2);
        disk.hold_from(DISK / 2);
        for slot in 0..8 {
            read_into(&mut queues[0], slot, DISK / 1024 + 8 * slot as u64);
        }
        wait_for("the disk to have them", || disk.taken() == 8);
        let gone = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                vmm.frontend.remove_mem_region(&dimm.info()).unwrap();
                gone.store(true, Ordering::SeqCst);
            });
            // The workers serve everything else meanwhile.
            for _ in 0..100 {
                assert_eq!(queues[1].run(request::IN, 0, 4096), status::OK);
            }
            assert!(!gone.load(Ordering::SeqCst), "the acknowledgement means that no write goes there any more");
            assert_eq!(mappings(&name), 2);
            disk.release();
        });
        let mut done = 0;
        while done < 8 {
            done += queues[0].wait().into_iter().inspect(|&(_, code, len)| assert_eq!((code, len), (0, 4097))).count();
        }
        let mut bytes = vec![0; 8 * 4096];
        view.read(GuestAddress(DIMM), &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == 0x5a), "all data arrived before the acknowledgement");
        wait_for("the device's mapping to go", || mappings(&name) == 1);
        // What is not there any more is not reached, and only this device suffers.
        assert!(rig.heard.is_empty());
        read_into(&mut queues[0], 0, 0);
        let event = rig.heard.recv_timeout(crate::rig::PATIENCE).unwrap();
        assert!(
            matches!(event.kind, DeviceEventKind::Quarantined(Quarantine { queue: 0, fault: DeviceFault::Access(_) })),
            "{event:?}"
        );
    }
}

#[test]
fn memory_comes_and_goes_under_load() {
    for features in LAYOUTS {
        let disk = Disk::new(DISK);
        let rig = Rig::with(&disk, 2);
        let (mut vmm, mut queues) = Vmm::boot(&rig.socket(0), features, 2, 64);
        let stop = AtomicBool::new(false);
        let mut model = vec![0; DISK as usize];
        std::thread::scope(|scope| {
            for (queue, model) in queues.iter_mut().zip(model.chunks_mut(DISK as usize / 2)) {
                let stop = &stop;
                scope.spawn(move || {
                    let base = queue.index as u64 * DISK / 2;
                    let mut traffic = Traffic::new(features, 16, base, model);
                    traffic.run(queue, |_| !stop.load(Ordering::Relaxed));
                });
            }
            for round in 0..50 {
                let (dimm, _) = dimm("plugged");
                vmm.frontend.add_mem_region(&dimm.info()).unwrap();
                vmm.frontend.remove_mem_region(&dimm.info()).unwrap();
                if round % 5 == 0 {
                    vmm.share_memory(); // The whole table anew, with the rings where they were.
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(disk.read(0, DISK as usize) == model);
        assert!(rig.heard.is_empty(), "{:?}", rig.heard.try_recv());
    }
}

#[test]
fn a_memory_table_without_the_rings_is_refused_and_io_continues() {
    let disk = Disk::new(DISK);
    let rig = Rig::with(&disk, 1);
    let (vmm, mut queues) = Vmm::boot(&rig.socket(0), 0, 1, 64);
    let (dimm, _) = dimm("alone");
    assert!(vmm.frontend.set_mem_table(&[dimm.info()]).is_err());
    assert_eq!(queues[0].run(request::IN, 0, 4096), status::OK);
    assert_eq!(rig.controllers[0].report().session.refused, 1);
}
