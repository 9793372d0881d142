//! This crate's and rust-vmm's device side of a split ring, step by step on two guests that do the same: the same chains, the same used
//! rings, the same notifications.

use guest_memory::{GuestAddress, GuestMemory, Mapping, Region, UserAddress};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use testkit::Rng;
use virtio_queue::{Queue, QueueT};
use virtio_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use virtqueue::driver::{Buffer, Driver};
use virtqueue::{ChainToken, Virtqueue};
use vm_memory::{FileOffset, GuestMemoryMmap};

const MEMORY: usize = 0x10_0000;
const TABLES: u64 = 0x1_0000;

/// A guest's memory, as we see it and as rust-vmm sees it, with a driver.
fn guest(features: u64, size: u16) -> (Arc<GuestMemory>, GuestMemoryMmap, Driver) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, MEMORY as u64).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 0, MEMORY as u64).unwrap();
    let region = Region::new(GuestAddress(0), UserAddress(0), mapping).unwrap();
    let ours = Arc::new(GuestMemory::new(vec![Arc::new(region)]).unwrap());
    let range = (vm_memory::GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
    let theirs = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
    let driver = Driver::new(&ours, GuestAddress(0), size, features);
    (ours, theirs, driver)
}

fn rust_vmm(driver: &Driver) -> Queue {
    let setup = driver.setup();
    let mut queue = Queue::new(setup.size).unwrap();
    queue.try_set_desc_table_address(vm_memory::GuestAddress(setup.addresses.descriptor.0)).unwrap();
    queue.try_set_avail_ring_address(vm_memory::GuestAddress(setup.addresses.driver.0)).unwrap();
    queue.try_set_used_ring_address(vm_memory::GuestAddress(setup.addresses.device.0)).unwrap();
    queue.set_event_idx(setup.features & RING_EVENT_IDX != 0);
    queue.set_ready(true);
    queue
}

fn bytes(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    memory.read(GuestAddress(0), &mut bytes).unwrap();
    bytes
}

/// Both devices and their guests.
struct Pair {
    a: Arc<GuestMemory>,
    b: Arc<GuestMemory>,
    b_as_theirs: GuestMemoryMmap,
    drivers: [Driver; 2],
    ours: Virtqueue,
    theirs: Queue,
    open: Vec<(ChainToken, u16)>,
    event_idx: bool,
    interrupts: bool,
}

impl Pair {
    fn new(features: u64, size: u16) -> Pair {
        let (a, _, driver_a) = guest(features, size);
        let (b, b_as_theirs, driver_b) = guest(features, size);
        let ours = Virtqueue::new(a.clone(), &driver_a.setup()).unwrap();
        let theirs = rust_vmm(&driver_b);
        assert!(theirs.is_valid(&b_as_theirs));
        Pair {
            a,
            b,
            b_as_theirs,
            drivers: [driver_a, driver_b],
            ours,
            theirs,
            open: Vec::new(),
            event_idx: features & RING_EVENT_IDX != 0,
            interrupts: true,
        }
    }

    fn post(&mut self, rng: &mut Rng, step: u64) {
        let readable = 1 + rng.below(3);
        let chain: Vec<Buffer> = (0..readable + rng.below(3))
            .map(|i| (GuestAddress(rng.below(MEMORY as u64)), rng.below(1 << 20) as u32, i >= readable))
            .collect();
        let table = (rng.below(3) == 0).then_some(GuestAddress(TABLES + step % 1000 * 0x100));
        let added = self.drivers.each_mut().map(|driver| match table {
            Some(table) => driver.add_indirect(table, &chain),
            None => driver.add(&chain),
        });
        assert_eq!(added[0], added[1]);
        let kicks = self.drivers.each_mut().map(Driver::kick);
        assert_eq!(kicks[0], kicks[1], "step {step}: one of the devices wants a kick");
    }

    fn pop(&mut self, chain: &mut virtqueue::DescriptorChain) -> bool {
        let theirs = self.theirs.pop_descriptor_chain(&self.b_as_theirs);
        let popped = self.ours.pop(chain).unwrap();
        assert_eq!(popped, theirs.is_some());
        let Some(theirs) = theirs else { return false };
        let head = theirs.head_index();
        let expected: Vec<_> = theirs.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
        let readable = chain.readable().iter().map(|d| (d.address.0, d.len, false));
        let found: Vec<_> = readable.chain(chain.writable().iter().map(|d| (d.address.0, d.len, true))).collect();
        assert_eq!(found, expected);
        self.open.push((chain.token(), head));
        true
    }

    /// Uses one of the chains that are open. The first answer of rust-vmm's queue is always yes, and without event idx all are:
    /// it does not look at VIRTQ_AVAIL_F_NO_INTERRUPT.
    fn complete(&mut self, rng: &mut Rng, first: bool) {
        let (token, head) = self.open.swap_remove(rng.below(self.open.len() as u64) as usize);
        let written = rng.below(1 << 32) as u32;
        self.ours.complete(token, written);
        self.theirs.add_used(&self.b_as_theirs, head, written).unwrap();
        let (ours, theirs) = (self.ours.flush(), self.theirs.needs_notification(&self.b_as_theirs).unwrap());
        let expected = theirs && (self.event_idx || self.interrupts);
        assert!(ours == expected || first, "ours {ours}, theirs {theirs}");
    }

    fn reap(&mut self, interrupts: bool) {
        loop {
            let used = self.drivers.each_mut().map(Driver::take_used);
            assert_eq!(used[0], used[1]);
            if used[0].is_none() {
                break;
            }
        }
        self.interrupts = interrupts;
        self.drivers.iter_mut().for_each(|driver| driver.set_interrupts(interrupts));
    }
}

fn in_step(features: u64, size: u16, seed: u64) {
    let mut pair = Pair::new(features, size);
    let (mut rng, mut chain) = (Rng::new(seed), Virtqueue::chain(size));
    let (mut chains, mut completions) = (0, 0);
    for step in 0..20_000 {
        match rng.below(10) {
            0..=2 => pair.post(&mut rng, step),
            3..=5 => chains += u64::from(pair.pop(&mut chain)),
            6..=7 if !pair.open.is_empty() => {
                pair.complete(&mut rng, completions == 0);
                completions += 1;
            }
            8 => pair.reap(step % 3 == 0),
            9 if step % 2 == 0 => {
                let more = pair.theirs.enable_notification(&pair.b_as_theirs).unwrap();
                assert_eq!(pair.ours.arm().unwrap(), more);
            }
            9 => {
                pair.theirs.disable_notification(&pair.b_as_theirs).unwrap();
                pair.ours.disarm();
            }
            _ => {}
        }
        assert_eq!(pair.ours.base(), u32::from(pair.theirs.next_avail()));
    }
    assert!(bytes(&pair.a) == bytes(&pair.b), "rings and all the rest are the same, byte by byte");
    assert!(chains > 2000 && completions > 2000, "{chains} {completions}");
}

#[test]
fn we_and_rust_vmm_do_the_same_with_flags() {
    (0..4).for_each(|seed| in_step(RING_INDIRECT_DESC, 8 << (2 * seed), seed));
}

#[test]
fn we_and_rust_vmm_do_the_same_with_event_idx() {
    (0..4).for_each(|seed| in_step(RING_INDIRECT_DESC | RING_EVENT_IDX, 8 << (2 * seed), seed));
}
