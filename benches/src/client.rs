//! A vhost-user-blk client without a guest: the protocol by rust-vmm's `vhost`, the ring by our driver twin.
//!
//! One queue; it kicks when the device asks for it. It polls and asks for no interrupts, or sleeps until there is one. A closed
//! loop: each answer is followed by the next request.

use crate::request::{BLOCK, Kind, MAX_DEPTH, Requests, SLOTS_LEN};
use anyhow::{Context, Result, bail, ensure};
use clock::Cycles;
use guest_memory::{GuestAddress, GuestMemory, Mapping, Region, UserAddress};
use hdrhistogram::Histogram;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::Rng;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_spec::feature::{RING_EVENT_IDX, RING_PACKED, VERSION_1, VHOST_USER_PROTOCOL_FEATURES};
use virtqueue::driver::{Driver, ring_len};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Entries of the ring: room for 128 requests of three descriptors.
const SIZE: u16 = 512;
/// Where the memory lies, for the device and for us.
const BASE: u64 = 0x1000_0000;
/// An answer that takes longer will not come.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a window of load brought.
pub(crate) struct Load {
    pub(crate) elapsed: Duration,
    /// From submission to answer, in cycles.
    pub(crate) latency: Histogram<u64>,
}

pub(crate) struct Client {
    requests: Requests,
    /// Of the disk.
    blocks: u64,
    random: Rng,
    /// By slot: when its request was made available.
    submitted: Vec<Cycles>,
    kick: EventFd,
    /// Wakes a client that sleeps for want of answers; `None`: it spins.
    bell: Option<Epoll>,
    call: EventFd,
    /// These are held for the connection and what was sent over it.
    _frontend: Frontend,
    _memory: OwnedFd,
}

impl Client {
    /// Connects and starts queue 0, packed if asked for. `None` when the backend does not offer packed rings.
    pub(crate) fn connect(socket: &Path, packed: bool) -> Result<Option<Client>> {
        let what = || format!("vhost-user-blk at {}", socket.display());
        let mut frontend = connect(socket).with_context(what)?;
        let Some((features, capacity)) = negotiate(&mut frontend, packed).with_context(what)? else { return Ok(None) };
        let len = (SLOTS_LEN + ring_len(SIZE)).next_multiple_of(2 << 20) as u64;
        let (memory, fd) = memory(len)?;
        let mut driver = Driver::new(&memory, GuestAddress(BASE + SLOTS_LEN as u64), SIZE, features);
        driver.set_interrupts(false);
        let (kick, call) = (EventFd::new(0)?, EventFd::new(0)?);
        start(&mut frontend, &driver, &fd, len, &kick, &call).with_context(what)?;
        Ok(Some(Client {
            requests: Requests::new(memory, driver, GuestAddress(BASE)),
            blocks: capacity / BLOCK as u64,
            random: Rng::new(1),
            submitted: vec![Cycles(0); MAX_DEPTH],
            kick,
            bell: None,
            call,
            _frontend: frontend,
            _memory: fd,
        }))
    }

    /// From now on asks for interrupts and sleeps when there is no answer: its core is free for the kernel.
    pub(crate) fn sleep_when_idle(&mut self) -> Result<()> {
        let bell = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        bell.ctl(ControlOperation::Add, self.call.as_raw_fd(), event)?;
        self.bell = Some(bell);
        Ok(())
    }

    /// Keeps `depth` requests at random places in flight for `span`, then waits for the last.
    pub(crate) fn load(&mut self, kind: Kind, depth: usize, span: Duration) -> Result<Load> {
        let end = Cycles::now() + Cycles::from(span);
        let (blocks, mut random) = (self.blocks, std::mem::replace(&mut self.random, Rng::new(1)));
        let load = self.run(kind, depth, |now| (now < end).then(|| random.below(blocks)));
        self.random = random;
        load
    }

    /// Writes every block, so that what stores them is there.
    pub(crate) fn fill(&mut self) -> Result<()> {
        let mut blocks = 0..self.blocks;
        self.run(Kind::Write, MAX_DEPTH, |_| blocks.next()).map(drop)
    }

    /// One read, with nothing else in flight: the time until its answer.
    pub(crate) fn once(&mut self) -> Result<Cycles> {
        let mut block = Some(0);
        let load = self.run(Kind::Read, 1, |_| block.take())?;
        Ok(Cycles(load.latency.max()))
    }

    /// A closed loop: as long as `next` gives a block each answer is followed by a request.
    fn run(&mut self, kind: Kind, depth: usize, mut next: impl FnMut(Cycles) -> Option<u64>) -> Result<Load> {
        let mut latency = Histogram::new_with_bounds(1, 1 << 40, 3)?;
        let mut free: Vec<usize> = (0..depth).collect();
        let mut answered = Vec::with_capacity(depth);
        let (start, mut now) = (Instant::now(), Cycles::now());
        let (mut last, mut looked) = (now, false);
        loop {
            let before = free.len();
            while let Some(&slot) = free.last()
                && let Some(block) = next(now)
            {
                free.pop();
                self.requests.submit(slot, kind, block)?;
                self.submitted[slot] = now;
            }
            if free.len() < before && self.requests.driver.kick() {
                self.kick.write(1)?;
            }
            if free.len() == depth {
                break;
            }
            while let Some(slot) = self.requests.take()? {
                answered.push(slot);
            }
            now = Cycles::now();
            if answered.is_empty() {
                ensure!(now.since(last) < Cycles::from(ANSWER_TIMEOUT), "no answer in {ANSWER_TIMEOUT:?}");
                looked = self.pause(looked);
                continue;
            }
            (last, looked) = (now, false);
            for slot in answered.drain(..) {
                latency.saturating_record(now.since(self.submitted[slot]).0);
                free.push(slot);
            }
        }
        Ok(Load { elapsed: start.elapsed(), latency })
    }

    /// There is no answer. A client that sleeps asks for an interrupt, looks once more, and then sleeps. Returns whether the next
    /// look is the one before sleep.
    fn pause(&mut self, looked: bool) -> bool {
        match &self.bell {
            None => std::hint::spin_loop(),
            Some(_) if !looked => self.requests.driver.set_interrupts(true),
            Some(bell) => drop(bell.wait(100, &mut [EpollEvent::default()])),
        }
        self.bell.is_some() && !looked
    }
}

fn connect(socket: &Path) -> Result<Frontend> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        match Frontend::connect(socket, 1) {
            Ok(frontend) => return Ok(frontend),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Agrees on features. Returns them and the disk's size in bytes.
fn negotiate(frontend: &mut Frontend, packed: bool) -> Result<Option<(u64, u64)>> {
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    let required = VERSION_1 | VHOST_USER_PROTOCOL_FEATURES;
    ensure!(offered & required == required, "features {offered:#x}, expected at least {required:#x}");
    let layout = if packed { RING_PACKED } else { 0 };
    if offered & layout != layout {
        return Ok(None);
    }
    let features = offered & (required | RING_EVENT_IDX) | layout;
    let protocol = frontend.get_protocol_features()? & VhostUserProtocolFeatures::CONFIG;
    ensure!(protocol == VhostUserProtocolFeatures::CONFIG, "the backend does not offer CONFIG");
    frontend.set_protocol_features(protocol)?;
    frontend.set_features(features)?;
    // Capacity is the first field of the configuration space, in sectors (virtio 1.3, 5.2.4).
    let (_, bytes) = frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])?;
    let Some(sectors) = bytes.first_chunk() else { bail!("{} bytes of configuration, expected 8", bytes.len()) };
    Ok(Some((features, u64::from_le_bytes(*sectors) * virtio_spec::blk::SECTOR_SIZE)))
}

/// Memory that can be shared, at the same address for device and driver.
fn memory(len: u64) -> Result<(Arc<GuestMemory>, OwnedFd)> {
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, len)?;
    let region = Region::new(GuestAddress(BASE), UserAddress(BASE), Mapping::shared(fd.as_fd(), 0, len)?)?;
    Ok((Arc::new(GuestMemory::new(vec![Arc::new(region)])?), fd))
}

fn start(
    frontend: &mut Frontend,
    driver: &Driver,
    memory: &OwnedFd,
    len: u64,
    kick: &EventFd,
    call: &EventFd,
) -> Result<()> {
    frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: BASE,
        memory_size: len,
        userspace_addr: BASE,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    }])?;
    let setup = driver.setup();
    let addresses = VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: setup.addresses.descriptor.0,
        avail_ring_addr: setup.addresses.driver.0,
        used_ring_addr: setup.addresses.device.0,
        log_addr: None,
    };
    frontend.set_vring_num(0, SIZE)?;
    frontend.set_vring_base(0, setup.base as u16)?;
    frontend.set_vring_addr(0, &addresses)?;
    frontend.set_vring_call(0, call)?;
    frontend.set_vring_kick(0, kick)?;
    Ok(frontend.set_vring_enable(0, true)?)
}
