//! A guest in this process: rust-vmm's `Frontend` as its machine monitor, which follows a script, and a driver on each queue.

use crate::rig::PATIENCE;
use crate::traffic::{Asked, Queue, SLOT};
use guest_memory::{GuestAddress, GuestMemory, Mapping, Region, UserAddress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_spec::blk::{Header, Range, request, status};
use virtio_spec::feature;
use virtqueue::RingSetup;
use virtqueue::driver::{Buffer, Driver};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of the guest's memory at address 0: rings, then headers, then buffers.
pub(crate) const MEMORY: u64 = 8 << 20;
const RING_STRIDE: u64 = 0x1_0000;
const HEADERS: u64 = 0x8_0000;
const HEADER_STRIDE: u64 = 0x40;
const BUFFERS: u64 = 0x10_0000;
/// Requests that a queue may have at a time.
pub(crate) const SLOTS: usize = 64;

/// All layouts that a driver may choose.
pub(crate) const LAYOUTS: [u64; 4] = [
    0,
    feature::IN_ORDER | feature::RING_EVENT_IDX,
    feature::RING_PACKED | feature::RING_EVENT_IDX,
    feature::RING_PACKED | feature::IN_ORDER,
];

/// A piece of guest memory that can be shared.
pub(crate) struct Shared {
    pub(crate) file: File,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

impl Shared {
    pub(crate) fn new(name: &str, at: u64, len: u64) -> Shared {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        Shared { file, at, len }
    }

    /// Our own view of it. Its addresses in the front-end equal its guest addresses.
    pub(crate) fn map(&self) -> Arc<Region> {
        let mapping = Mapping::shared(self.file.as_fd(), 0, self.len).unwrap();
        Arc::new(Region::new(GuestAddress(self.at), UserAddress(self.at), mapping).unwrap())
    }

    pub(crate) fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.at,
            memory_size: self.len,
            userspace_addr: self.at,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }
}

/// The machine monitor.
pub(crate) struct Vmm {
    pub(crate) frontend: Frontend,
    pub(crate) ram: Shared,
    pub(crate) memory: Arc<GuestMemory>,
    /// Negotiated virtio features but the transport's own.
    pub(crate) features: u64,
    pub(crate) rings: Vec<Ring>,
}

/// What the monitor knows of a ring.
pub(crate) struct Ring {
    pub(crate) setup: RingSetup,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) err: EventFd,
}

impl Vmm {
    /// A machine with its rings, not connected yet to anything but `stream`'s other end. Nothing is sent.
    pub(crate) fn new(frontend: Frontend, features: u64, queues: u16, size: u16) -> (Vmm, Vec<GuestQueue>) {
        let ram = Shared::new("ram", 0, MEMORY);
        let memory = Arc::new(GuestMemory::new(vec![ram.map()]).unwrap());
        let mut vmm = Vmm { frontend, ram, memory, features: features | feature::VERSION_1, rings: Vec::new() };
        let queues = (0..queues).map(|index| vmm.add_queue(index, size)).collect();
        (vmm, queues)
    }

    /// Connects, negotiates, shares memory and starts all rings.
    pub(crate) fn boot(socket: &Path, features: u64, queues: u16, size: u16) -> (Vmm, Vec<GuestQueue>) {
        let (mut vmm, queues) = Vmm::new(connect(socket), features, queues, size);
        vmm.negotiate();
        vmm.share_memory();
        (0..vmm.rings.len()).for_each(|index| vmm.start_new(index));
        (vmm, queues)
    }

    fn add_queue(&mut self, index: u16, size: u16) -> GuestQueue {
        let driver = Driver::new(&self.memory, GuestAddress(u64::from(index) * RING_STRIDE), size, self.features);
        let [kick, call, err] = [(); 3].map(|()| EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let queue = GuestQueue {
            index: usize::from(index),
            driver,
            memory: self.memory.clone(),
            kick: kick.try_clone().unwrap(),
            call: call.try_clone().unwrap(),
            open: BTreeMap::new(),
        };
        self.rings.push(Ring { setup: queue.driver.setup(), kick, call, err });
        queue
    }

    pub(crate) fn negotiate(&mut self) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_eq!(offered & self.features, self.features, "all that is wanted is offered");
        frontend.set_features(self.features | feature::VHOST_USER_PROTOCOL_FEATURES).unwrap();
        let wanted = Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::CONFIG
            | Protocol::INFLIGHT_SHMFD
            | Protocol::LOG_SHMFD
            | Protocol::BACKEND_REQ
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::RESET_DEVICE;
        assert!(frontend.get_protocol_features().unwrap().contains(wanted));
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    pub(crate) fn share_memory(&mut self) {
        self.frontend.set_mem_table(&[self.ram.info()]).unwrap();
    }

    /// Starts a ring that was never started.
    pub(crate) fn start_new(&mut self, index: usize) {
        let base = self.rings[index].setup.base as u16;
        self.start(index, base);
    }

    pub(crate) fn start(&mut self, index: usize, base: u16) {
        let (frontend, ring) = (&mut self.frontend, &self.rings[index]);
        frontend.set_vring_num(index, ring.setup.size).unwrap();
        frontend.set_vring_base(index, base).unwrap();
        frontend.set_vring_addr(index, &ring_addresses(&ring.setup, None)).unwrap();
        frontend.set_vring_err(index, &ring.err).unwrap();
        frontend.set_vring_call(index, &ring.call).unwrap();
        frontend.set_vring_kick(index, &ring.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    /// Stops a ring and returns where to go on.
    pub(crate) fn stop(&mut self, index: usize) -> u16 {
        self.frontend.get_vring_base(index).unwrap() as u16
    }
}

pub(crate) fn connect(socket: &Path) -> Frontend {
    Frontend::from_stream(UnixStream::connect(socket).unwrap(), 8)
}

/// What SET_VRING_ADDR says of a ring.
pub(crate) fn ring_addresses(setup: &RingSetup, log_addr: Option<u64>) -> VringConfigData {
    VringConfigData {
        queue_max_size: setup.size,
        queue_size: setup.size,
        flags: u32::from(log_addr.is_some()),
        desc_table_addr: setup.addresses.descriptor.0,
        used_ring_addr: setup.addresses.device.0,
        avail_ring_addr: setup.addresses.driver.0,
        log_addr,
    }
}

/// A queue, as its driver in the guest sees it.
pub(crate) struct GuestQueue {
    pub(crate) index: usize,
    pub(crate) driver: Driver,
    pub(crate) memory: Arc<GuestMemory>,
    kick: EventFd,
    pub(crate) call: EventFd,
    /// The slots of requests under way, by chain.
    open: BTreeMap<u16, usize>,
}

impl GuestQueue {
    /// Where a slot's buffer is.
    pub(crate) fn buffer(&self, slot: usize) -> GuestAddress {
        GuestAddress(BUFFERS + ((self.index * SLOTS + slot) as u64) * SLOT)
    }

    /// Where a slot's header is.
    pub(crate) fn header(&self, slot: usize) -> GuestAddress {
        GuestAddress(HEADERS + ((self.index * SLOTS + slot) as u64) * HEADER_STRIDE)
    }

    /// Where a slot's status is.
    pub(crate) fn status(&self, slot: usize) -> GuestAddress {
        GuestAddress(self.header(slot).0 + 16)
    }

    /// Makes a request available, in three descriptors or two, and kicks if the device wants it.
    pub(crate) fn request(&mut self, slot: usize, kind: u32, sector: u64, len: u32) {
        self.request_at(slot, kind, sector, (self.buffer(slot), len));
    }

    /// The same with its data elsewhere.
    pub(crate) fn request_at(&mut self, slot: usize, kind: u32, sector: u64, data: (GuestAddress, u32)) {
        self.memory.write(self.header(slot), &Header { kind, sector }.to_bytes()).unwrap();
        self.memory.write(self.status(slot), &[0xff]).unwrap();
        let device_writes = matches!(kind, request::IN | request::GET_ID);
        let mut chain =
            vec![(self.header(slot), 16, false), (data.0, data.1, device_writes), (self.status(slot), 1, true)];
        chain.retain(|&(_, len, _)| len > 0);
        self.post(slot, &chain);
    }

    /// Makes any chain available.
    pub(crate) fn post(&mut self, slot: usize, chain: &[Buffer]) {
        let id = self.driver.add(chain).expect("room in the ring");
        assert_eq!(self.open.insert(id, slot), None, "a chain in flight twice");
        if self.driver.kick() {
            self.kick.write(1).unwrap();
        }
    }

    /// What was used by now: slot, status, bytes written.
    pub(crate) fn used(&mut self) -> Vec<(usize, u8, u32)> {
        let mut used = Vec::new();
        while let Some((id, written)) = self.driver.take_used() {
            let slot = self.open.remove(&id).expect("used what was posted");
            let mut status = [0];
            self.memory.read(self.status(slot), &mut status).unwrap();
            used.push((slot, status[0], written));
        }
        used
    }

    /// Waits for a call until something was used.
    pub(crate) fn wait(&mut self) -> Vec<(usize, u8, u32)> {
        loop {
            self.driver.set_interrupts(true);
            let used = self.used();
            if !used.is_empty() {
                return used;
            }
            assert!(readable(self.call_fd(), PATIENCE.as_secs()), "no call for queue {}", self.index);
            self.call.read().unwrap();
        }
    }

    fn call_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) }
    }

    /// One request from start to end: its status.
    pub(crate) fn run(&mut self, kind: u32, sector: u64, len: u32) -> u8 {
        assert!(self.open.is_empty());
        self.request(0, kind, sector, len);
        self.wait()[0].1
    }
}

impl Queue for GuestQueue {
    fn submit(&mut self, asked: Asked, offset: u64, len: usize, slot: usize) {
        let (sector, buffer) = (offset / 512, self.buffer(slot));
        let (kind, sector, len) = match asked {
            Asked::Read => (request::IN, sector, len),
            Asked::Write => (request::OUT, sector, len),
            Asked::Flush => (request::FLUSH, 0, 0),
            Asked::Zero => {
                let range = Range { sector, sectors: (len / 512) as u32, flags: 0 };
                self.memory.write(buffer, &range.to_bytes()).unwrap();
                (if sector % 2 == 0 { request::DISCARD } else { request::WRITE_ZEROES }, 0, 16)
            }
        };
        self.request(slot, kind, sector, len as u32);
    }

    fn completed(&mut self) -> Vec<usize> {
        let used = self.wait();
        let failed = used.iter().find(|(_, code, _)| *code != status::OK);
        assert_eq!(failed, None, "queue {}", self.index);
        used.into_iter().map(|(slot, ..)| slot).collect()
    }

    fn put(&mut self, slot: usize, bytes: &[u8]) {
        self.memory.write(self.buffer(slot), bytes).unwrap();
    }

    fn get(&mut self, slot: usize, bytes: &mut [u8]) {
        self.memory.read(self.buffer(slot), bytes).unwrap();
    }
}

/// Whether `fd` becomes readable in time.
pub(crate) fn readable(fd: BorrowedFd<'_>, seconds: u64) -> bool {
    let timeout = Timespec { tv_sec: seconds as i64, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}
