//! Independent drivers: the crates `virtio-driver` and `blkio`.

use crate::disk::Disk;
use crate::rig::{MIB, PATIENCE, Rig};
use crate::traffic::{Asked, Queue, SLOT, Traffic};
use blkio::{Blkio, Completion, ReqFlags};
use memmap2::MmapMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};
use virtio_spec::blk::feature;

const DISK: u64 = 8 * MIB;

/// Shared memory of this process, as a guest's.
struct Pages {
    file: std::os::fd::OwnedFd,
    map: MmapMut,
}

impl Pages {
    fn new(len: usize) -> Pages {
        let file = memfd_create("pages", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len as u64).unwrap();
        // SAFETY: the file is ours; the device writes only to buffers of requests that we do not look at meanwhile.
        let map = unsafe { MmapMut::map_mut(&file).unwrap() };
        Pages { file, map }
    }

    fn slot(&mut self, slot: usize) -> &mut [u8] {
        &mut self.map[slot * SLOT as usize..][..SLOT as usize]
    }
}

struct DriverQueue<'a> {
    transport: &'a VirtioBlkTransport,
    index: usize,
    queue: VirtioBlkQueue<'a, usize>,
    pages: Pages,
}

impl Queue for DriverQueue<'_> {
    fn submit(&mut self, asked: Asked, offset: u64, len: usize, slot: usize) {
        let buffer = self.pages.slot(slot).as_mut_ptr();
        // SAFETY: the buffer lives in `pages`, and is left alone until the request completes.
        let queued = unsafe {
            match asked {
                Asked::Read => self.queue.read_raw(offset, buffer, len, slot),
                Asked::Write => self.queue.write_raw(offset, buffer, len, slot),
                // A discard of this disk reads as zero as well.
                Asked::Zero if offset.is_multiple_of(1024) => self.queue.discard(offset, len as u64, slot),
                Asked::Zero => self.queue.write_zeroes(offset, len as u64, offset.is_multiple_of(1536), slot),
                Asked::Flush => self.queue.flush(slot),
            }
        };
        queued.unwrap();
        if self.queue.avail_notif_needed() {
            self.transport.get_submission_notifier(self.index).notify().unwrap();
        }
    }

    fn completed(&mut self) -> Vec<usize> {
        let fd = self.transport.get_completion_fd(self.index);
        loop {
            let done: Vec<_> = self.queue.completions().collect();
            if !done.is_empty() {
                return done.into_iter().inspect(|c| assert_eq!(c.ret, 0)).map(|c| c.context).collect();
            }
            let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&*fd, PollFlags::IN)], Some(&timeout)).unwrap();
            assert_eq!(ready, 1, "no call for queue {}", self.index);
            fd.read().unwrap();
        }
    }

    fn put(&mut self, slot: usize, bytes: &[u8]) {
        self.pages.slot(slot)[..bytes.len()].copy_from_slice(bytes);
    }

    fn get(&mut self, slot: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.pages.slot(slot)[..bytes.len()]);
    }
}

/// One session of the crate `virtio-driver`: each queue in a thread of its own.
fn drive(socket: &Path, features: VirtioFeatureFlags, queues: usize, size: u16, model: &mut [u8], seed: u64) {
    let wanted = (VirtioFeatureFlags::VERSION_1 | features).bits()
        | feature::MQ
        | feature::FLUSH
        | feature::DISCARD
        | feature::WRITE_ZEROES
        | feature::BLK_SIZE;
    let vhost = VhostUser::new(socket.to_str().unwrap(), wanted).unwrap();
    let mut transport = Box::new(vhost) as Box<VirtioBlkTransport>;
    assert_eq!(transport.get_features() & features.bits(), features.bits(), "all that was asked for is offered");
    let config = transport.get_config().unwrap();
    let (capacity, block): (u64, u32) = (config.capacity.into(), config.blk_size.into());
    assert_eq!((capacity * 512, block), (DISK, 512));
    let depth = usize::from(size) / 8;
    let mut pages: Vec<_> = (0..queues).map(|_| Pages::new(depth * SLOT as usize)).collect();
    for pages in &mut pages {
        let (at, len) = (pages.map.as_ptr() as usize, pages.map.len());
        transport.map_mem_region(at, len, pages.file.as_raw_fd(), 0).unwrap();
    }
    let rings = VirtioBlkQueue::setup_queues(&mut *transport, queues, size).unwrap();
    let transport = &*transport;
    let part = model.len() / queues;
    std::thread::scope(|scope| {
        let all = rings.into_iter().zip(pages).zip(model.chunks_mut(part)).enumerate();
        for (index, ((queue, pages), model)) in all {
            scope.spawn(move || {
                let mut queue = DriverQueue { transport, index, queue, pages };
                queue.queue.set_used_notif_enabled(true);
                let mut traffic = Traffic::new(seed + index as u64, depth, (index * part) as u64, model);
                traffic.run(&mut queue, |completed| completed < 1500);
            });
        }
    });
}

fn drive_virtio_driver(features: VirtioFeatureFlags) {
    let disk = Disk::new(DISK);
    let rig = Rig::with(&disk, 4);
    let mut model = vec![0; DISK as usize];
    // Session after session on the same disk, with one and several queues and other ring sizes.
    for (seed, (queues, size)) in [(1, 128), (4, 64), (2, 256), (1, 16)].into_iter().enumerate() {
        drive(&rig.socket(0), features, queues, size, &mut model, seed as u64);
        assert!(disk.read(0, DISK as usize) == model, "session {seed}");
    }
    assert!(rig.heard.is_empty(), "{:?}", rig.heard.try_recv());
    assert_eq!(rig.controllers[0].report().session.connections, 4);
}

#[test]
fn virtio_driver_with_split_rings() {
    drive_virtio_driver(VirtioFeatureFlags::empty());
}

#[test]
fn virtio_driver_with_split_rings_and_event_idx() {
    drive_virtio_driver(VirtioFeatureFlags::RING_EVENT_IDX);
}

#[test]
fn virtio_driver_with_packed_rings() {
    drive_virtio_driver(VirtioFeatureFlags::RING_PACKED);
}

#[test]
fn virtio_driver_with_packed_rings_and_event_idx() {
    drive_virtio_driver(VirtioFeatureFlags::RING_PACKED | VirtioFeatureFlags::RING_EVENT_IDX);
}

struct BlkioQueue {
    queue: blkio::Blkioq,
    region: blkio::MemoryRegion,
}

impl BlkioQueue {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        let at = (self.region.addr + slot * SLOT as usize) as *mut u8;
        // SAFETY: blkio's region is mapped while its queue lives, and the device leaves the buffer of a finished request alone.
        unsafe { std::slice::from_raw_parts_mut(at, SLOT as usize) }
    }
}

impl Queue for BlkioQueue {
    fn submit(&mut self, asked: Asked, offset: u64, len: usize, slot: usize) {
        let buffer = self.buffer(slot).as_mut_ptr();
        let (len_u64, none) = (len as u64, ReqFlags::empty());
        match asked {
            Asked::Read => self.queue.read(offset, buffer, len, slot, none),
            Asked::Write => self.queue.write(offset, buffer, len, slot, none),
            Asked::Zero if offset.is_multiple_of(1024) => self.queue.discard(offset, len_u64, slot, none),
            Asked::Zero => self.queue.write_zeroes(offset, len_u64, slot, none),
            Asked::Flush => self.queue.flush(slot, none),
        }
    }

    fn completed(&mut self) -> Vec<usize> {
        let mut done = [const { MaybeUninit::<Completion>::uninit() }; 64];
        let mut patience = PATIENCE;
        let count = self.queue.do_io(&mut done, 1, Some(&mut patience), None).expect("a completion in time");
        // SAFETY: `do_io` filled the first `count`.
        let done = done[..count].iter().map(|c| unsafe { c.assume_init_read() });
        done.inspect(|c| assert_eq!(c.ret, 0)).map(|c| c.user_data).collect()
    }

    fn put(&mut self, slot: usize, bytes: &[u8]) {
        self.buffer(slot)[..bytes.len()].copy_from_slice(bytes);
    }

    fn get(&mut self, slot: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.buffer(slot)[..bytes.len()]);
    }
}

#[test]
fn blkio_at_depth_1_to_64() {
    let disk = Disk::new(DISK);
    let rig = Rig::with(&disk, 2);
    let mut model = vec![0; DISK as usize];
    for (seed, depth) in [1, 2, 7, 32, 64].into_iter().enumerate() {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", rig.socket(0).to_str().unwrap()).unwrap();
        blkio.connect().unwrap();
        assert_eq!(blkio.get_u64("capacity").unwrap(), DISK);
        blkio.set_i32("num-queues", 2).unwrap();
        let queues = blkio.start().unwrap().queues;
        assert_eq!(queues.len(), 2);
        let part = model.len() / 2;
        for (index, (queue, model)) in queues.into_iter().zip(model.chunks_mut(part)).enumerate() {
            let region = blkio.alloc_mem_region(depth * SLOT as usize).unwrap();
            blkio.map_mem_region(&region).unwrap();
            let mut queue = BlkioQueue { queue, region };
            let mut traffic = Traffic::new(seed as u64, depth, (index * part) as u64, model);
            traffic.run(&mut queue, |completed| completed < 600);
        }
        assert!(disk.read(0, DISK as usize) == model, "depth {depth}");
    }
    assert!(rig.heard.is_empty(), "{:?}", rig.heard.try_recv());
}
