//! A guest that breaks its rings, and front-ends that take its memory away: one device suffers, the others do not notice.

use crate::disk::Disk;
use crate::guest::{GuestQueue, LAYOUTS, MEMORY, Vmm, readable};
use crate::rig::{MIB, PATIENCE, Rig, wait_for};
use guest_memory::GuestAddress;
use std::os::fd::{AsRawFd, BorrowedFd};
use virtio_blk::{DeviceEventKind, DeviceFault, Quarantine};
use virtio_spec::blk::{request, status};
use virtio_spec::feature;
use virtio_spec::ring::desc;
use virtqueue::QueueError;

const DISK: u64 = MIB;

/// Two devices on the same workers: the first has a guest that will break something, the second has an honest one.
struct Neighbours {
    rig: Rig,
    vmm: Vmm,
    guest: Vec<GuestQueue>,
    _honest: Vmm,
    honest: Vec<GuestQueue>,
}

impl Neighbours {
    fn new(features: u64) -> Neighbours {
        let disks = [Disk::new(DISK), Disk::new(DISK)];
        let mut rig = Rig::with(&disks[0], 2);
        rig.serve(&disks[1], 2);
        let (vmm, guest) = Vmm::boot(&rig.socket(0), features, 2, 64);
        let (_honest, honest) = Vmm::boot(&rig.socket(1), features, 2, 64);
        let mut all = Neighbours { rig, vmm, guest, _honest, honest };
        all.guest.iter_mut().for_each(|queue| assert_eq!(queue.run(request::IN, 0, 512), status::OK));
        all
    }

    /// Has the first guest's queue 0 looked at, and returns why its device was quarantined. Checks all that follows from it.
    fn fault(&mut self) -> DeviceFault {
        self.vmm.rings[0].kick.write(1).unwrap();
        let event = self.rig.heard.recv_timeout(PATIENCE).expect("an event");
        assert_eq!(&*event.controller, "disk0");
        let DeviceEventKind::Quarantined(Quarantine { queue: 0, fault }) = event.kind else { panic!("{event:?}") };
        let report = self.rig.controllers[0].report();
        assert_eq!(report.quarantine, Some(Quarantine { queue: 0, fault }));
        assert_eq!(self.rig.controllers[1].report().quarantine, None);
        // SAFETY: the eventfd lives as long as `self`.
        let err = unsafe { BorrowedFd::borrow_raw(self.vmm.rings[0].err.as_raw_fd()) };
        assert!(readable(err, PATIENCE.as_secs()), "the front-end is told");
        // The other worker may be in the middle of a turn: after two requests of the neighbour it has begun another.
        for _ in 0..2 {
            self.honest.iter_mut().for_each(|queue| assert_eq!(queue.run(request::IN, 0, 512), status::OK));
        }
        // The whole device stands still, its other queue too; the neighbour goes on.
        self.guest[1].request(1, request::FLUSH, 0, 0);
        for _ in 0..100 {
            self.honest.iter_mut().for_each(|queue| assert_eq!(queue.run(request::IN, 0, 512), status::OK));
        }
        assert!(self.guest[1].used().is_empty());
        assert!(self.rig.heard.is_empty(), "told once: {:?}", self.rig.heard.try_recv());
        fault
    }

    /// The front-end sets the device up again, as after a reset of the guest: it works.
    fn set_up_again(&mut self) {
        for index in 0..2 {
            self.vmm.stop(index);
        }
        assert_eq!(self.rig.controllers[0].report().quarantine, None);
        let features = self.vmm.features;
        self.vmm.memory.write(GuestAddress(0), &vec![0; 0x2_0000]).unwrap();
        let socket = self.rig.socket(0);
        let nowhere = std::os::unix::net::UnixStream::pair().unwrap().0;
        self.vmm.frontend = vhost::vhost_user::Frontend::from_stream(nowhere, 1);
        let (vmm, mut queues) = Vmm::boot(&socket, features, 2, 64);
        queues.iter_mut().for_each(|queue| assert_eq!(queue.run(request::IN, 0, 512), status::OK));
        (self.vmm, self.guest) = (vmm, queues);
    }

    /// Writes a descriptor where the driver's next ones belong: one request of three descriptors is behind us. Of a packed chain
    /// the first one comes last, for it makes the chain available.
    fn put_descriptor(&self, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let packed = self.vmm.features & feature::RING_PACKED != 0;
        let (a, b) = if packed { (0, flags | desc::AVAIL) } else { (flags, next) };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&a.to_le_bytes());
        bytes[14..].copy_from_slice(&b.to_le_bytes());
        let index = index + if packed { 3 } else { 0 };
        let at = self.ring().descriptor.0 + 16 * index;
        // The flags last: the device may look at any time.
        self.vmm.memory.write(GuestAddress(at), &bytes[..14]).unwrap();
        self.vmm.memory.write(GuestAddress(at + 14), &bytes[14..]).unwrap();
    }

    /// Split: makes the chain at `head` available.
    fn offer(&self, head: u16, avail_idx: u16) {
        if self.vmm.features & feature::RING_PACKED == 0 {
            let avail = self.ring().driver.0;
            self.vmm.memory.write(GuestAddress(avail + 4 + 2), &head.to_le_bytes()).unwrap();
            self.vmm.memory.write(GuestAddress(avail + 2), &avail_idx.to_le_bytes()).unwrap();
        }
    }

    fn ring(&self) -> virtqueue::RingAddresses {
        self.vmm.rings[0].setup.addresses
    }
}

/// Breaks the first device in a way that `break_it` knows, in every layout, and expects the fault.
fn in_each_layout(break_it: impl Fn(&mut Neighbours), expected: impl Fn(DeviceFault) -> bool) {
    for features in LAYOUTS {
        let mut neighbours = Neighbours::new(features);
        break_it(&mut neighbours);
        let fault = neighbours.fault();
        assert!(expected(fault), "{fault:?}, features {features:#x}");
        neighbours.set_up_again();
    }
}

#[test]
fn a_ring_index_too_far_ahead() {
    for features in [0, feature::IN_ORDER | feature::RING_EVENT_IDX] {
        let mut neighbours = Neighbours::new(features);
        neighbours.offer(0, 1 + 65);
        assert!(matches!(neighbours.fault(), DeviceFault::Ring(QueueError::AvailIndex { .. })));
        neighbours.set_up_again();
    }
}

#[test]
fn a_descriptor_outside_memory() {
    for (address, len) in [(MEMORY - 8, 16), (u64::MAX - 4, 16), (1 << 40, 16), (4096, u32::MAX)] {
        for outside in 0..3 {
            if outside == 0 && len == u32::MAX {
                continue; // A header may be longer than we need: its first 16 bytes are there.
            }
            let break_it = |n: &mut Neighbours| {
                let mut chain = [
                    (n.guest[0].header(0).0, 16, desc::NEXT),
                    (n.guest[0].buffer(0).0, 512, desc::NEXT | desc::WRITE),
                    (n.guest[0].status(0).0, 1, desc::WRITE),
                ];
                (chain[outside].0, chain[outside].1) = (address, len);
                for (index, (address, len, flags)) in chain.into_iter().enumerate().rev() {
                    n.put_descriptor(index as u64, address, len, flags, index as u16 + 1);
                }
                n.offer(0, 2);
            };
            let no_end = DeviceFault::Chain("a status byte"); // Its address would wrap.
            in_each_layout(break_it, |fault| {
                matches!(fault, DeviceFault::Access(_)) || (outside == 2 && fault == no_end)
            });
        }
    }
}

#[test]
fn a_chain_that_never_ends() {
    let break_it = |n: &mut Neighbours| {
        if n.vmm.features & feature::RING_PACKED != 0 {
            // The rest of the lap, which has turned.
            let at = n.ring().descriptor.0;
            let turned = (desc::NEXT | desc::USED).to_le_bytes();
            (0..3).for_each(|i| n.vmm.memory.write(GuestAddress(at + 16 * i + 14), &turned).unwrap());
        }
        (0..61).rev().for_each(|i| n.put_descriptor(i, 0x8_0000, 16, desc::NEXT, (i as u16 + 1) % 61));
        n.offer(0, 2);
    };
    in_each_layout(break_it, |fault| matches!(fault, DeviceFault::Ring(QueueError::ChainLoop { .. })));
}

#[test]
fn a_request_without_room_for_its_status() {
    let break_it = |n: &mut Neighbours| {
        n.put_descriptor(0, 0x8_0000, 16, 0, 0);
        n.offer(0, 2);
    };
    in_each_layout(break_it, |fault| fault == DeviceFault::Chain("a status byte"));
}

#[test]
fn a_head_outside_the_table() {
    let mut neighbours = Neighbours::new(0);
    neighbours.offer(64, 2);
    let expected = DeviceFault::Ring(QueueError::DescriptorIndex { index: 64, size: 64 });
    assert_eq!(neighbours.fault(), expected);
    neighbours.set_up_again();
}

#[test]
fn memory_that_its_owner_truncates() {
    for features in LAYOUTS {
        let mut neighbours = Neighbours::new(features);
        let connections = |n: &Neighbours| n.rig.controllers[0].report().session.connections;
        let before = connections(&neighbours);
        neighbours.vmm.ram.file.set_len(0).unwrap();
        neighbours.vmm.rings[0].kick.write(1).unwrap();
        let event = neighbours.rig.heard.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(event.kind, DeviceEventKind::Quarantined(_)), "{event:?}");
        for _ in 0..100 {
            neighbours.honest.iter_mut().for_each(|queue| assert_eq!(queue.run(request::IN, 0, 512), status::OK));
        }
        // The session is over: what it was told is not true any more. The next guest is served as ever.
        wait_for("the session to end", || !neighbours.rig.controllers[0].report().session.connected);
        let (_vmm, mut queues) = Vmm::boot(&neighbours.rig.socket(0), features, 1, 64);
        assert_eq!(queues[0].run(request::IN, 0, 512), status::OK);
        assert_eq!(connections(&neighbours), before + 1);
    }
}
