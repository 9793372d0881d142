//! A guest in this process: rust-vmm's `Frontend` as its machine monitor, and a driver on each ring.

use crate::rig::{PATIENCE, wait_for};
use guest_memory::{GuestAddress, GuestMemory, Mapping, Region, UserAddress};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_spec::feature;
use virtio_spec::net::{HEADER_LEN, feature as net};
use virtqueue::driver::Driver;
use vmm_sys_util::eventfd::EventFd;

/// Entries of each ring.
pub(crate) const SIZE: u16 = 64;
const MEMORY: u64 = 8 << 20;
const RING_STRIDE: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
/// Bytes of a buffer.
const SLOT: u64 = 2048;
/// SEND_RARP and NET_SET_MTU, which `Frontend` does not know.
pub(crate) const SEND_RARP: u32 = 19;
pub(crate) const NET_SET_MTU: u32 = 20;

/// All layouts that a driver may choose.
pub(crate) const LAYOUTS: [u64; 4] = [
    0,
    feature::IN_ORDER | feature::RING_EVENT_IDX,
    feature::RING_PACKED | feature::RING_EVENT_IDX,
    feature::RING_PACKED | feature::IN_ORDER,
];

/// The machine: its memory outlives the connection.
pub(crate) struct Guest {
    ram: File,
    features: u64,
    connection: Option<(Frontend, UnixStream)>,
    /// Outlives the connection, too.
    inflight: Option<(VhostUserInflight, File)>,
    /// Receive and transmit ring of pair 0, of pair 1, and so on.
    pub(crate) rings: Vec<Ring>,
}

/// A ring, as its driver sees it.
pub(crate) struct Ring {
    driver: Driver,
    memory: Arc<GuestMemory>,
    pub(crate) kick: EventFd,
    call: EventFd,
    /// Where its buffers are.
    buffers: u64,
    next: u64,
    /// The buffers under way, by chain.
    open: BTreeMap<u16, GuestAddress>,
}

impl Guest {
    /// A machine that is switched on: connected, its memory shared, all rings started, those of pair 0 enabled.
    pub(crate) fn boot(socket: &Path, features: u64, pairs: u16) -> Guest {
        let mut guest = Guest::build(features, pairs);
        guest.connect(socket);
        guest.start(&guest.bases());
        guest
    }

    /// The same, with an inflight region.
    pub(crate) fn boot_with_inflight(socket: &Path, features: u64, pairs: u16) -> Guest {
        let mut guest = Guest::build(features, pairs);
        guest.connect(socket);
        let asked = VhostUserInflight { num_queues: pairs * 2, queue_size: SIZE, ..VhostUserInflight::default() };
        let region = guest.frontend().get_inflight_fd(&asked).unwrap();
        guest.inflight = Some(region);
        guest.start(&guest.bases());
        guest
    }

    fn build(features: u64, pairs: u16) -> Guest {
        let ram = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
        ram.set_len(MEMORY).unwrap();
        let mapping = Mapping::shared(ram.as_fd(), 0, MEMORY).unwrap();
        let region = Region::new(GuestAddress(0), UserAddress(0), mapping).unwrap();
        let memory = Arc::new(GuestMemory::new(vec![Arc::new(region)]).unwrap());
        let features = features | feature::VERSION_1 | net::MRG_RXBUF;
        let rings = (0..u64::from(pairs) * 2).map(|index| Ring::new(&memory, index, features)).collect();
        Guest { ram, features, connection: None, inflight: None, rings }
    }

    /// Where rings start that were not used yet.
    pub(crate) fn bases(&self) -> Vec<u16> {
        self.rings.iter().map(|ring| ring.driver.setup().base as u16).collect()
    }

    pub(crate) fn frontend(&mut self) -> &mut Frontend {
        &mut self.connection.as_mut().expect("connected").0
    }

    /// Connects, negotiates and shares memory.
    pub(crate) fn connect(&mut self, socket: &Path) {
        let stream = UnixStream::connect(socket).unwrap();
        let frontend = Frontend::from_stream(stream.try_clone().unwrap(), self.rings.len() as u64);
        let (frontend, _) = self.connection.insert((frontend, stream));
        frontend.set_owner().unwrap();
        let wanted = self.features | net::STATUS | net::MTU | net::GUEST_ANNOUNCE;
        assert_eq!(frontend.get_features().unwrap() & wanted, wanted, "all that is wanted is offered");
        frontend.set_features(self.features | feature::VHOST_USER_PROTOCOL_FEATURES).unwrap();
        let wanted = Protocol::MQ | Protocol::REPLY_ACK | Protocol::RARP | Protocol::MTU | Protocol::INFLIGHT_SHMFD;
        assert!(frontend.get_protocol_features().unwrap().contains(wanted));
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: 0,
            mmap_offset: 0,
            mmap_handle: self.ram.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
    }

    /// Starts all rings, from these bases.
    pub(crate) fn start(&mut self, bases: &[u16]) {
        let (frontend, _) = self.connection.as_mut().expect("connected");
        if let Some((inflight, region)) = &self.inflight {
            frontend.set_inflight_fd(inflight, region.as_raw_fd()).unwrap();
        }
        for (index, (ring, &base)) in self.rings.iter().zip(bases).enumerate() {
            let setup = ring.driver.setup();
            let addresses = VringConfigData {
                queue_max_size: setup.size,
                queue_size: setup.size,
                flags: 0,
                desc_table_addr: setup.addresses.descriptor.0,
                used_ring_addr: setup.addresses.device.0,
                avail_ring_addr: setup.addresses.driver.0,
                log_addr: None,
            };
            frontend.set_vring_num(index, setup.size).unwrap();
            frontend.set_vring_base(index, base).unwrap();
            frontend.set_vring_addr(index, &addresses).unwrap();
            frontend.set_vring_call(index, &ring.call).unwrap();
            frontend.set_vring_kick(index, &ring.kick).unwrap();
        }
        self.enable(0, true);
    }

    /// Enables or disables a queue pair.
    pub(crate) fn enable(&mut self, pair: usize, enabled: bool) {
        for index in [pair * 2, pair * 2 + 1] {
            self.frontend().set_vring_enable(index, enabled).unwrap();
        }
    }

    /// Stops all rings. Returns where to go on.
    pub(crate) fn stop(&mut self) -> Vec<u16> {
        (0..self.rings.len()).map(|index| self.frontend().get_vring_base(index).unwrap() as u16).collect()
    }

    /// Leaves without a word.
    pub(crate) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// A request with eight bytes, acknowledged.
    pub(crate) fn ask(&mut self, request: u32, payload: [u8; 8]) {
        const VERSION_1_NEED_REPLY: u32 = 0b1001;
        let (_, stream) = self.connection.as_mut().expect("connected");
        let header: Vec<u8> = [request, VERSION_1_NEED_REPLY, 8].iter().flat_map(|word| word.to_ne_bytes()).collect();
        stream.write_all(&[header, payload.to_vec()].concat()).unwrap();
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..], [0; 8], "request {request} was refused");
    }

    /// Sends frames on `pair` until `count` came back on any ring, each as it was sent and in order; each wait is for a call.
    pub(crate) fn exchange(&mut self, pair: usize, count: usize) {
        let (mut sent, mut received) = (0, 0);
        while received < count {
            self.rings[pair * 2].refill();
            self.rings[pair * 2 + 1].reclaim();
            while sent < count && sent - received < usize::from(SIZE) / 2 && self.rings[pair * 2 + 1].send(&frame(sent))
            {
                sent += 1;
            }
            for got in self.rings[pair * 2].wait() {
                assert_eq!(got, frame(received), "frame {received}");
                received += 1;
            }
        }
    }
}

/// A frame that names its place.
pub(crate) fn frame(sequence: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..60 + sequence % 1400).map(|at| (at * 7 + sequence) as u8).collect();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

impl Ring {
    fn new(memory: &Arc<GuestMemory>, index: u64, features: u64) -> Ring {
        Ring {
            driver: Driver::new(memory, GuestAddress(index * RING_STRIDE), SIZE, features),
            memory: memory.clone(),
            kick: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            buffers: BUFFERS + index * u64::from(SIZE) * SLOT,
            next: 0,
            open: BTreeMap::new(),
        }
    }

    /// Makes a buffer available. `false` without room.
    fn post(&mut self, len: usize, write: bool) -> bool {
        let at = GuestAddress(self.buffers + self.next % u64::from(SIZE) * SLOT);
        let Some(id) = self.driver.add(&[(at, len as u32, write)]) else { return false };
        self.next += 1;
        assert_eq!(self.open.insert(id, at), None, "a chain in flight twice");
        true
    }

    /// Kicks if the device wants it.
    pub(crate) fn kick(&mut self) {
        if self.driver.kick() {
            self.kick.write(1).unwrap();
        }
    }

    /// Makes a frame available, without a kick. `false` without room.
    pub(crate) fn put(&mut self, frame: &[u8]) -> bool {
        let at = GuestAddress(self.buffers + self.next % u64::from(SIZE) * SLOT);
        if self.open.len() == usize::from(SIZE) {
            return false;
        }
        self.memory.write(at, &[&[0; HEADER_LEN], frame].concat()).unwrap();
        self.post(HEADER_LEN + frame.len(), false)
    }

    pub(crate) fn send(&mut self, frame: &[u8]) -> bool {
        let sent = self.put(frame);
        self.kick();
        sent
    }

    /// Makes receive buffers available as long as there is room.
    pub(crate) fn refill(&mut self) {
        while self.post(SLOT as usize, true) {}
        self.kick();
    }

    /// Takes what the device has sent. Returns how many.
    pub(crate) fn reclaim(&mut self) -> usize {
        std::iter::from_fn(|| self.driver.take_used()).map(|(id, _)| self.open.remove(&id).expect("used once")).count()
    }

    /// Takes what the device has sent. Returns whether nothing is under way any more.
    pub(crate) fn reclaim_all(&mut self) -> bool {
        self.reclaim();
        self.open.is_empty()
    }

    /// Takes what was received: the frames.
    pub(crate) fn take(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some((id, written)) = self.driver.take_used() {
            let at = self.open.remove(&id).expect("used once");
            let mut bytes = vec![0; written as usize];
            self.memory.read(at, &mut bytes).unwrap();
            frames.push(bytes.split_off(HEADER_LEN));
        }
        frames
    }

    pub(crate) fn set_interrupts(&mut self, on: bool) {
        self.driver.set_interrupts(on);
    }

    /// Waits for a call until something was received.
    pub(crate) fn wait(&mut self) -> Vec<Vec<u8>> {
        loop {
            self.set_interrupts(true);
            let frames = self.take();
            if !frames.is_empty() {
                return frames;
            }
            self.wait_for_call();
        }
    }

    /// Waits for a call, and takes it.
    pub(crate) fn wait_for_call(&mut self) {
        wait_for("a call", || self.was_called());
    }

    /// Takes a call, if there was one.
    pub(crate) fn was_called(&mut self) -> bool {
        self.call.read().is_ok()
    }

    /// Waits, looking, until `count` frames were received.
    pub(crate) fn poll(&mut self, count: usize) -> Vec<Vec<u8>> {
        let (mut frames, end) = (Vec::new(), Instant::now() + PATIENCE);
        while frames.len() < count {
            assert!(Instant::now() < end, "{} of {count} frames came", frames.len());
            frames.extend(self.take());
            std::thread::yield_now();
        }
        frames
    }
}
