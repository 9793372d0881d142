//! One harness for property tests and fuzzing: any bytes become a driver that writes what it likes, where it likes, while the
//! device works. Nothing panics, no chain is longer than its limit, and the device writes nowhere but where a device may.

use crate::driver::ring_len;
use crate::{Access, ChainToken, DescriptorChain, RingAddresses, RingSetup, SingleBufferChain, Virtqueue, inflight};
use guest_memory::{DirtyLog, GuestAddress, GuestMemory, UserAddress};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use virtio_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use virtio_spec::ring::{self, DESC_LEN, desc};

const DESCRIPTORS: u64 = 0x1000;
const DRIVER_AREA: u64 = 0x2000;
const DEVICE_AREA: u64 = 0x3000;
const INFLIGHT: u64 = 0x4000;
const LOG: u64 = 0x5000;
const TABLES: u64 = 0x6000;
const MEMORY: u64 = 0x8000;
const MAX_SIZE: u16 = 64;

/// How far a run came: a harness that never gets anywhere finds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) chains: usize,
    pub(crate) indirect: usize,
    pub(crate) errors: usize,
    pub(crate) used: usize,
    pub(crate) restarts: usize,
    pub(crate) singles: usize,
    /// Batches of as many as are looked at together.
    pub(crate) together: usize,
}

/// Bytes to take decisions from. Zeros when they have run out.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        bytes
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }
}

/// A ring and a hostile driver's view of its memory.
#[derive(Clone)]
struct World {
    memory: Arc<GuestMemory>,
    setup: RingSetup,
    /// Where the device will take the next chain. A driver that knows makes the rare thing likely: a chain that is taken.
    next: Arc<AtomicU32>,
}

/// One thing that the driver does.
#[derive(Clone, Copy, Debug)]
enum Write {
    Anything { at: u64, bytes: [u8; 4] },
    Descriptor { at: u64, address: u64, len: u32, words: [u16; 2] },
    Available { head: u16, ahead: u16 },
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        let choice = input.u16();
        let bits = [RING_PACKED, IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC];
        let features = (0..4).filter(|i| choice >> i & 1 == 1).fold(0, |features, i| features | bits[i]);
        let packed = features & RING_PACKED != 0;
        let size = if packed { 1 + (choice >> 8) % MAX_SIZE } else { 1 << ((choice >> 8) % 7) };
        let memory = Arc::new(GuestMemory::anonymous(MEMORY as usize).expect("memory"));
        let addresses = RingAddresses {
            descriptor: UserAddress(DESCRIPTORS),
            driver: UserAddress(DRIVER_AREA),
            device: UserAddress(DEVICE_AREA),
            used_log: (choice >> 4 & 1 == 1).then_some(GuestAddress(DEVICE_AREA)),
        };
        let region = || memory.user_window(UserAddress(INFLIGHT), inflight::region_len(packed, size), 64);
        let inflight = (choice >> 5 & 1 == 1).then(|| region().expect("the region lies in memory"));
        let base = if packed { 0x8000 } else { 0 };
        let setup = RingSetup { size, features, addresses, base, inflight };
        World { memory, setup, next: Arc::new(AtomicU32::new(base)) }
    }

    /// What the driver does next, most often something that looks like a request.
    fn write(&self, input: &mut Input<'_>) -> Write {
        let size = self.setup.size;
        match input.u8() % 32 {
            0 => Write::Anything { at: DESCRIPTORS + u64::from(input.u16()) % 0x3000, bytes: input.bytes() },
            1 => Write::Anything { at: INFLIGHT + u64::from(input.u16()) % 0x900, bytes: input.bytes() },
            kind @ 2..=15 => {
                let table = if kind < 6 { TABLES } else { DESCRIPTORS };
                let at = table + u64::from(input.u16() % size) * DESC_LEN as u64;
                let choice = input.u8();
                let mut flags = if choice & 0xc0 == 0 { desc::NEXT } else { 0 } | u16::from(choice) & desc::WRITE;
                if choice & 0x38 == 0 && kind >= 6 {
                    flags |= desc::INDIRECT;
                }
                let indirect = flags & desc::INDIRECT != 0;
                let address = if indirect { TABLES } else { input.u16().into() };
                let len = if indirect { u32::from(input.u8() % 130) * DESC_LEN as u32 } else { input.u16().into() };
                let words = match self.setup.packed() {
                    true => [input.u16() % size, flags | self.next_wrap()],
                    false => [flags, input.u16() % size],
                };
                Write::Descriptor { at, address, len, words }
            }
            kind => Write::Available { head: input.u16() % size, ahead: u16::from(kind) % 8 },
        }
    }

    /// The flags that make a descriptor at the device's place available.
    fn next_wrap(&self) -> u16 {
        if self.next.load(Ordering::Relaxed) >> 15 & 1 == 1 { desc::AVAIL } else { desc::USED }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(GuestAddress(at), bytes).expect("inside memory");
    }

    fn apply(&self, write: Write) {
        match write {
            Write::Anything { at, bytes } => self.put(at, &bytes),
            Write::Descriptor { at, address, len, words } => {
                self.put(at, &address.to_le_bytes());
                self.put(at + 8, &len.to_le_bytes());
                self.put(at + 12, &words[0].to_le_bytes());
                self.put(at + 14, &words[1].to_le_bytes());
            }
            Write::Available { head, ahead } if self.setup.packed() => {
                let next = self.next.load(Ordering::Relaxed) as u16 & 0x7fff;
                for index in (next..self.setup.size).take(usize::from(ahead.max(1))) {
                    let at = DESCRIPTORS + u64::from(index) * DESC_LEN as u64;
                    self.put(at + 12, &head.to_le_bytes());
                    self.put(at + 14, &self.next_wrap().to_le_bytes());
                }
            }
            Write::Available { head, ahead } => {
                let (next, size) = (self.next.load(Ordering::Relaxed) as u16, self.setup.size);
                for n in 0..ahead.max(1) {
                    let slot = u64::from(next.wrapping_add(n) % size);
                    self.put(DRIVER_AREA + 4 + 2 * slot, &((head + n) % size).to_le_bytes());
                }
                self.put(DRIVER_AREA + 2, &next.wrapping_add(ahead).to_le_bytes());
            }
        }
    }

    /// Where the device may write, and the log.
    fn of_device(&self) -> [Range<u64>; 4] {
        let size = self.setup.size;
        let region = INFLIGHT..INFLIGHT + inflight::region_len(self.setup.packed(), size) as u64;
        let used = if self.setup.packed() {
            [DESCRIPTORS..DESCRIPTORS + 16 * u64::from(size), DEVICE_AREA..DEVICE_AREA + 4]
        } else {
            [DEVICE_AREA..DEVICE_AREA + ring::used_len(size) as u64, DEVICE_AREA..DEVICE_AREA]
        };
        let [a, b] = used;
        [a, b, region, LOG..TABLES]
    }

    /// All memory but what the device may write.
    fn of_driver(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.memory.read(GuestAddress(0), &mut bytes).expect("inside memory");
        for range in self.of_device() {
            bytes[range.start as usize..range.end as usize].fill(0);
        }
        bytes
    }
}

/// The device's side: what is taken and not given back.
struct Device {
    /// Whether the driver writes between our steps only, so that looking twice shows the same.
    quiet: bool,
    queue: Virtqueue,
    chain: DescriptorChain,
    open: Vec<ChainToken>,
    seen: Seen,
}

impl Device {
    fn new(world: &World, quiet: bool) -> Option<Device> {
        let queue = Virtqueue::new(world.memory.clone(), &world.setup).ok()?;
        let chain = Virtqueue::chain(world.setup.size);
        Some(Device { quiet, queue, chain, open: Vec::new(), seen: Seen::default() })
    }

    /// One step, of those that a device takes.
    fn step(&mut self, world: &World, choice: u8) {
        match choice % 8 {
            0..=2 => self.pop(world),
            3..=4 if !self.open.is_empty() => {
                let token = self.open.swap_remove(usize::from(choice >> 3) % self.open.len());
                self.queue.complete(token, u32::from(choice));
                self.seen.used += 1;
            }
            5 if choice >> 3 & 1 == 1 => self.pop_singles(world, choice >> 4),
            5 => {
                self.queue.flush();
            }
            6 => {
                let _error_shows_at_the_next_pop = self.queue.arm();
                self.queue.disarm();
            }
            7 if choice >> 3 < 4 => self.queue.relocate(world.memory.clone()).expect("the ring still lies in memory"),
            7 if choice >> 3 < 12 => {
                let bits = world.memory.user_window(UserAddress(LOG), (TABLES - LOG) as usize, 8).expect("in memory");
                self.queue.set_log((choice >> 3 < 8).then(|| DirtyLog::over(bits)));
            }
            7 if choice >> 3 == 31 => {
                self.restart(world);
                self.seen.restarts += 1;
            }
            _ => {}
        }
        assert!(usize::from(self.queue.in_flight()) >= self.open.len(), "in order holds some back");
    }

    fn pop(&mut self, world: &World) {
        let size = world.setup.size;
        match self.queue.pop(&mut self.chain) {
            Ok(true) => {
                let len = self.chain.readable().len() + self.chain.writable().len();
                assert!(len <= usize::from(size.max(128)), "{len} descriptors");
                assert!(self.queue.in_flight() <= size);
                self.open.push(self.chain.token());
                self.seen.chains += 1;
                self.seen.indirect += usize::from(len > usize::from(size));
            }
            Ok(false) => {}
            Err(_) => {
                self.seen.errors += 1;
                // The front-end sets the ring up again.
                world.put(DESCRIPTORS, &[0; (INFLIGHT - DESCRIPTORS) as usize]);
                self.restart(world);
            }
        }
        world.next.store(self.queue.base(), Ordering::Relaxed);
    }

    /// Takes a batch, and gives it back at once or later.
    fn pop_singles(&mut self, world: &World, choice: u8) {
        let mut singles = [SingleBufferChain::default(); 8];
        let access = if choice & 1 == 0 { Access::Read } else { Access::Write };
        let asked = 1 + usize::from(choice >> 1 & 7);
        let count = self.queue.pop_singles(access, &mut singles[..asked]);
        assert!(self.queue.in_flight() <= world.setup.size);
        if self.quiet {
            self.check_batch(access, &singles[..count]);
            if count < asked && !self.may_end_batch(world, count) && !self.check_end(world, access) {
                return;
            }
        }
        match choice >> 3 & 1 {
            0 => self.open.extend(singles[..count].iter().map(|single| single.token)),
            _ => self.queue.complete_read(&singles[..count]),
        }
        self.seen.singles += count;
        self.seen.together += usize::from(count >= 4);
        world.next.store(self.queue.base(), Ordering::Relaxed);
    }

    /// What a batch is: what `pop` gives one by one.
    fn check_batch(&mut self, access: Access, singles: &[SingleBufferChain]) {
        singles.iter().rev().for_each(|single| self.queue.unpop(single.token));
        for single in singles {
            assert!(self.queue.pop(&mut self.chain).expect("no error is in a batch"));
            let buffers = [self.chain.readable(), self.chain.writable()];
            let single_buffer = std::slice::from_ref(&single.buffer);
            assert_eq!(buffers, if access == Access::Read { [single_buffer, &[]] } else { [&[], single_buffer] });
            assert_eq!(self.chain.token(), single.token);
        }
    }

    /// Whether a batch of `count` may end where the queue is, whatever comes: at the end of the ring, and where the driver's index
    /// was no good before the batch. A table of one buffer is no single.
    fn may_end_batch(&self, world: &World, count: usize) -> bool {
        let RingSetup { size, features, ref inflight, .. } = world.setup;
        let place = self.queue.base() as u16;
        let mut index = [0; 2];
        world.memory.read(GuestAddress(DRIVER_AREA + 2), &mut index).expect("inside memory");
        let ahead = u16::from_le_bytes(index).wrapping_sub(place.wrapping_sub(count as u16));
        let bad_index = !world.setup.packed() && ahead > size;
        let no_batches = inflight.is_some() || features & RING_INDIRECT_DESC != 0;
        no_batches || bad_index || (place & 0x7fff).is_multiple_of(size) || self.queue.in_flight() == size
    }

    /// What comes behind a batch is not of it. Put back, unless it is an error: then the ring starts anew.
    fn check_end(&mut self, world: &World, access: Access) -> bool {
        let (open, errors) = (self.open.len(), self.seen.errors);
        self.pop(world);
        if self.open.len() > open {
            let chain = [self.chain.readable().len(), self.chain.writable().len()];
            assert_ne!(chain, if access == Access::Read { [1, 0] } else { [0, 1] }, "left out of a batch");
            self.queue.unpop(self.open.pop().expect("one more than before"));
        }
        self.seen.errors == errors
    }

    /// The process dies and another goes on.
    fn restart(&mut self, world: &World) {
        if let Ok(queue) = Virtqueue::new(world.memory.clone(), &world.setup) {
            self.queue = queue;
            self.open.clear();
        }
    }
}

/// Runs a device against a driver that writes between its steps.
pub fn fuzz_ring(data: &[u8]) {
    run(data);
}

pub(crate) fn run(data: &[u8]) -> Seen {
    assert!(ring_len(MAX_SIZE) < 0x1000);
    let mut input = Input(data);
    let world = World::new(&mut input);
    let Some(mut device) = Device::new(&world, true) else { return Seen::default() };
    while !input.0.is_empty() {
        match input.u8() {
            choice if choice & 1 == 0 => world.apply(world.write(&mut input)),
            choice => {
                let (before, errors) = (world.of_driver(), device.seen.errors);
                device.step(&world, choice >> 1 | input.u8() << 7);
                assert!(
                    world.of_driver() == before || device.seen.errors > errors,
                    "the device wrote what is the driver's"
                );
            }
        }
    }
    device.seen
}

/// Runs a device against a driver that writes at the same time, from another thread.
pub fn fuzz_ring_race(data: &[u8]) {
    race(data);
}

pub(crate) fn race(data: &[u8]) -> Seen {
    let mut input = Input(data);
    let world = World::new(&mut input);
    let Some(mut device) = Device::new(&world, false) else { return Seen::default() };
    let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (driver, started_driver, stop_driver) = (world.clone(), &started, &stop);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !stop_driver.load(Ordering::Relaxed) {
                let mut input = Input(&data[data.len().min(2)..]);
                while !input.0.is_empty() {
                    driver.apply(driver.write(&mut input));
                }
                started_driver.store(true, Ordering::Relaxed);
            }
        });
        while !started.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let choices = data.iter().chain(&[0, 3, 5, 6]).cycle();
        choices.take(1000).for_each(|&choice| device.step(&world, choice));
        stop.store(true, Ordering::Relaxed);
    });
    device.seen
}
