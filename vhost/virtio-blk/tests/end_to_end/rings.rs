//! Rings that stop, start and move while they work.

use crate::disk::Disk;
use crate::guest::{GuestQueue, LAYOUTS, SLOTS, Vmm, connect};
use crate::rig::{MIB, Rig, wait_for};
use crate::traffic::Traffic;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use testkit::Rng;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight};
use virtio_spec::blk::{request, status};
use virtio_spec::feature;

const DISK: u64 = 8 * MIB;

/// Runs verified traffic on every queue while `meanwhile` does something; it is called again and again, 0.. , until it returns
/// false. Then everything is checked.
fn under_load(disk: &Disk, queues: &mut [GuestQueue], depth: usize, mut meanwhile: impl FnMut(u64) -> bool) {
    let stop = AtomicBool::new(false);
    let completed = AtomicU64::new(0);
    let mut model = disk.read(0, DISK as usize);
    let part = model.len() / queues.len() / 512 * 512;
    std::thread::scope(|scope| {
        for (queue, model) in queues.iter_mut().zip(model.chunks_mut(part)) {
            let (stop, completed) = (&stop, &completed);
            scope.spawn(move || {
                let base = (queue.index * part) as u64;
                let mut last = 0;
                Traffic::new(queue.index as u64, depth, base, model).run(queue, |now| {
                    completed.fetch_add(now - last, Ordering::Relaxed);
                    last = now;
                    !stop.load(Ordering::Relaxed)
                });
            });
        }
        for round in 0.. {
            let before = completed.load(Ordering::Relaxed);
            if !meanwhile(round) {
                break;
            }
            wait_for("requests to go on", || completed.load(Ordering::Relaxed) > before + 20);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(disk.read(0, DISK as usize) == model);
}

#[test]
fn a_stopped_ring_is_drained_and_then_silent() {
    for features in LAYOUTS {
        let disk = Disk::new(DISK);
        let rig = Rig::with(&disk, 1);
        let (mut vmm, mut queues) = Vmm::boot(&rig.socket(0), features, 1, 64);
        let queue = &mut queues[0];
        disk.hold_from(0);
        for slot in 0..8 {
            queue.request(slot, request::IN, slot as u64, 512);
        }
        wait_for("the disk to have them", || disk.taken() == 8);
        let (stopped, base) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                base.store(vmm.stop(0).into(), Ordering::SeqCst);
                stopped.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(30));
            assert!(!stopped.load(Ordering::SeqCst), "the reply means that nothing is in flight");
            disk.release();
        });
        let used = queue.used();
        assert_eq!(used.len(), 8, "all were used before the reply");
        assert!(used.iter().all(|&(_, code, written)| (code, written) == (status::OK, 513)));
        let wrap = if features & feature::RING_PACKED == 0 { 0 } else { 1 << 15 };
        let descriptors = if wrap == 0 { 8 } else { 3 * 8 };
        assert_eq!(base.load(Ordering::SeqCst), descriptors | wrap);
        // Silent: what comes now is not even looked at, and no driver is notified.
        while queue.call.read().is_ok() {}
        queue.request(8, request::IN, 8, 512);
        std::thread::sleep(Duration::from_millis(20));
        assert!(queue.used().is_empty() && disk.taken() == 0);
        assert_eq!(queue.call.read().map_err(|e| e.raw_os_error()), Err(Some(libc::EAGAIN)));
        // And it goes on where it was, without another kick.
        vmm.start(0, base.load(Ordering::SeqCst) as u16);
        assert_eq!(queue.wait(), [(8, status::OK, 513)]);
    }
}

#[test]
fn rings_stop_and_start_under_load() {
    for features in LAYOUTS {
        let disk = Disk::new(DISK);
        let rig = Rig::with(&disk, 2);
        let (mut vmm, mut queues) = Vmm::boot(&rig.socket(0), features, 2, 128);
        let mut rng = Rng::new(features);
        under_load(&disk, &mut queues, 16, |round| {
            std::thread::sleep(Duration::from_micros(rng.below(300)));
            let index = round as usize % 2;
            let base = vmm.stop(index);
            vmm.start(index, base);
            round < 60
        });
        assert!(rig.heard.is_empty(), "{:?}", rig.heard.try_recv());
    }
}

#[test]
fn a_disabled_ring_takes_nothing_until_it_is_enabled() {
    let disk = Disk::new(DISK);
    let rig = Rig::with(&disk, 1);
    let (mut vmm, mut queues) = Vmm::boot(&rig.socket(0), 0, 1, 64);
    assert_eq!(queues[0].run(request::FLUSH, 0, 0), status::OK);
    vmm.frontend.set_vring_enable(0, false).unwrap();
    queues[0].request(1, request::FLUSH, 0, 0);
    std::thread::sleep(Duration::from_millis(20));
    assert!(queues[0].used().is_empty());
    vmm.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(queues[0].wait(), [(1, status::OK, 1)]);
}

#[test]
fn rings_are_disabled_and_enabled_under_load() {
    for features in LAYOUTS {
        let disk = Disk::new(DISK);
        let rig = Rig::with(&disk, 2);
        let (mut vmm, mut queues) = Vmm::boot(&rig.socket(0), features, 2, 64);
        under_load(&disk, &mut queues, 8, |round| {
            vmm.frontend.set_vring_enable(round as usize % 2, false).unwrap();
            vmm.frontend.set_vring_enable(round as usize % 2, true).unwrap();
            round < 60
        });
    }
}

#[test]
fn queues_move_between_workers_under_load() {
    for features in LAYOUTS {
        let disk = Disk::new(DISK);
        let rig = Rig::with(&disk, 3);
        let (_vmm, mut queues) = Vmm::boot(&rig.socket(0), features, 3, 128);
        let (controller, workers) = (&rig.controllers[0], rig.engine.workers());
        let mut rng = Rng::new(features + 1);
        under_load(&disk, &mut queues, 16, |round| {
            let (queue, worker) = (rng.below(3) as u16, rng.below(2) as usize);
            controller.move_queue(queue, &workers[worker]).unwrap();
            assert_eq!(controller.report().queues[usize::from(queue)].worker.id(), worker);
            round < 100
        });
        assert!(rig.heard.is_empty(), "{:?}", rig.heard.try_recv());
    }
}

#[test]
fn a_queue_that_moves_is_drained_first_and_others_go_on() {
    let disk = Disk::new(DISK);
    let rig = Rig::with(&disk, 2);
    let (_vmm, mut queues) = Vmm::boot(&rig.socket(0), 0, 2, 64);
    disk.hold_from(DISK / 2);
    queues[0].request(0, request::IN, DISK / 2 / 512, 512);
    wait_for("the disk to have it", || disk.taken() == 1);
    let moved = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rig.controllers[0].move_queue(0, &rig.engine.workers()[1]).unwrap();
            moved.store(true, Ordering::SeqCst);
        });
        for _ in 0..200 {
            assert_eq!(queues[1].run(request::IN, 0, 512), status::OK);
        }
        assert!(!moved.load(Ordering::SeqCst), "a request is in flight on the old worker");
        disk.release();
    });
    assert_eq!(queues[0].wait(), [(0, status::OK, 513)]);
}

#[test]
fn a_resized_disk_is_announced_to_the_front_end_and_usable() {
    let disk = Disk::new(DISK);
    let rig = Rig::with(&disk, 1);
    let (mut vmm, mut queues) = Vmm::boot(&rig.socket(0), 0, 1, 64);
    let (ours, theirs) = UnixStream::pair().unwrap();
    vmm.frontend.set_backend_request_fd(&theirs).unwrap();
    let capacity = |vmm: &mut Vmm| {
        let (_, bytes) = vmm.frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap()) * 512
    };
    assert_eq!(capacity(&mut vmm), DISK);
    assert_eq!(queues[0].run(request::IN, DISK / 512, 512), status::IOERR);
    disk.resize(2 * DISK);
    rig.controllers[0].resized();
    let mut message = [0; 12];
    ours.set_read_timeout(Some(crate::rig::PATIENCE)).unwrap();
    std::io::Read::read_exact(&mut &ours, &mut message).unwrap();
    // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, no payload.
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(capacity(&mut vmm), 2 * DISK);
    wait_for("the worker to see it", || queues[0].run(request::IN, DISK / 512, 512) == status::OK);
}

#[test]
fn an_error_of_the_disk_reaches_the_guest_and_harms_nothing_else() {
    let disk = Disk::new(DISK);
    let rig = Rig::with(&disk, 1);
    let (_vmm, mut queues) = Vmm::boot(&rig.socket(0), 0, 1, 64);
    disk.break_it(true);
    for kind in [request::IN, request::OUT] {
        assert_eq!(queues[0].run(kind, 0, 4096), status::IOERR);
    }
    assert_eq!(queues[0].run(request::GET_ID, 0, 20), status::OK);
    let mut id = [0; 20];
    queues[0].memory.read(queues[0].buffer(0), &mut id).unwrap();
    assert_eq!(&id, b"held-disk\0\0\0\0\0\0\0\0\0\0\0");
    disk.break_it(false);
    assert_eq!(queues[0].run(request::OUT, 0, 4096), status::OK);
}

#[test]
fn requests_in_flight_survive_a_broken_session() {
    for features in LAYOUTS {
        let disk = Disk::new(DISK);
        let rig = Rig::with(&disk, 1);
        let (mut vmm, mut queues) = Vmm::new(connect(&rig.socket(0)), features, 1, 64);
        let queue = &mut queues[0];
        vmm.negotiate();
        let asked = VhostUserInflight { num_queues: 1, queue_size: 64, ..VhostUserInflight::default() };
        let (inflight, region) = vmm.frontend.get_inflight_fd(&asked).unwrap();
        let mut rng = Rng::new(features + 9);
        for session in 0..8 {
            if session > 0 {
                vmm.frontend = connect(&rig.socket(0));
                vmm.negotiate();
            }
            vmm.share_memory();
            vmm.frontend.set_inflight_fd(&inflight, region.as_raw_fd()).unwrap();
            vmm.start_new(0); // what the base says does not matter: the region knows better
            if session > 0 {
                let mut done = Vec::new();
                while done.len() < 16 {
                    done.extend(queue.wait().into_iter().map(|(slot, ..)| slot));
                }
                done.sort_unstable();
                assert_eq!(done, (0..16).collect::<Vec<_>>(), "each once, session {session}");
            }
            disk.hold_from(DISK / 2);
            for slot in 0..16 {
                let sector = if rng.below(2) == 0 { DISK / 1024 } else { 0 } + slot as u64;
                queue.request(slot, request::IN, sector, 512);
            }
            std::thread::sleep(Duration::from_micros(rng.below(2000)));
            // The connection breaks with some done, some in flight and perhaps some not yet taken.
            drop(std::mem::replace(&mut vmm.frontend, vhost_nowhere()));
            disk.release();
        }
        assert!(SLOTS >= 16 && rig.heard.is_empty());
    }
}

/// A front-end that is connected to nothing.
fn vhost_nowhere() -> vhost::vhost_user::Frontend {
    vhost::vhost_user::Frontend::from_stream(UnixStream::pair().unwrap().0, 1)
}
