//! The process dies after each instruction that changed shared memory, one after the other: nothing is left to chance.
//!
//! A forked child takes, completes and publishes chains on a ring in shared memory, while the parent steps it and keeps every
//! state that the memory went through. A device that starts from each of these states must finish the work.

use guest_memory::{GuestAddress, GuestMemory, Mapping, Region, UserAddress, Window};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use virtio_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_PACKED};
use virtqueue::driver::{Driver, ring_len};
use virtqueue::{ChainToken, RingSetup, Virtqueue};

const REGION: u64 = 0x4000;
const MEMORY: usize = 0x8000;

/// A ring with its inflight region in one piece of shared memory.
struct World {
    memory: Arc<GuestMemory>,
    driver: Driver,
    /// What the driver has made available and not got back, by id: the address names the chain.
    posted: BTreeMap<u16, u64>,
    next_chain: u64,
    place: bool,
}

/// One history: layout, ring size, chains served before, how the child then completes what it takes.
#[derive(Clone, Copy, Debug)]
struct History {
    features: u64,
    size: u16,
    /// Chains that came and went before the child starts: decides where in the ring it works.
    served: u16,
    /// Descriptors a chain.
    len: u16,
    /// Completed last first.
    reversed: bool,
    /// The region has the place in the ring, and no chains.
    place: bool,
}

impl World {
    fn new(History { features, size, place, .. }: History) -> World {
        let file = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, MEMORY as u64).unwrap();
        let mapping = Mapping::shared(file.as_fd(), 0, MEMORY as u64).unwrap();
        let region = Arc::new(Region::new(GuestAddress(0), UserAddress(0), mapping).unwrap());
        let memory = Arc::new(GuestMemory::new(vec![region]).unwrap());
        assert!(ring_len(size) < REGION as usize);
        let driver = Driver::new(&memory, GuestAddress(0), size, features);
        World { memory, driver, posted: BTreeMap::new(), next_chain: 0x10_0000, place }
    }

    fn setup(&self) -> RingSetup {
        let setup = self.driver.setup();
        let len = virtqueue::inflight::region_len(setup.packed(), setup.size);
        let window: Window = self.memory.user_window(UserAddress(REGION), len, 64).unwrap();
        RingSetup { inflight: Some(window), ..setup }
    }

    fn device(&self) -> Virtqueue {
        let mut setup = self.setup();
        let region = setup.inflight.take_if(|_| self.place);
        let mut queue = Virtqueue::new(self.memory.clone(), &setup).unwrap();
        region.into_iter().for_each(|region| queue.persist_ring_position(region).unwrap());
        queue
    }

    /// Makes chains of `len` descriptors available until the ring is full.
    fn fill(&mut self, len: u16) {
        loop {
            let chain = self.next_chain;
            let buffers: Vec<_> = (0..u64::from(len)).map(|i| (GuestAddress(chain + i), 1, false)).collect();
            let Some(id) = self.driver.add(&buffers) else { return };
            assert_eq!(self.posted.insert(id, chain), None, "the driver gave an id twice");
            self.next_chain += 0x100;
        }
    }

    /// Takes back what was used. The driver itself asserts that nothing comes twice.
    fn reap(&mut self) {
        while let Some((id, written)) = self.driver.take_used() {
            let chain = self.posted.remove(&id).expect("a used chain was posted");
            assert_eq!(u64::from(written), chain, "another chain's length");
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY];
        self.memory.read(GuestAddress(0), &mut bytes).unwrap();
        bytes
    }
}

/// Takes up to `limit` chains, completes and publishes them.
fn serve(
    queue: &mut Virtqueue,
    chain: &mut virtqueue::DescriptorChain,
    open: &mut Vec<(ChainToken, u32)>,
    limit: u16,
    reversed: bool,
) {
    for _ in 0..limit {
        if !queue.pop(chain).unwrap() {
            break;
        }
        open.push((chain.token(), chain.readable()[0].address.0 as u32));
    }
    if reversed {
        open.reverse();
    }
    open.drain(..).for_each(|(token, written)| queue.complete(token, written));
    queue.flush();
}

/// The world at the moment the child starts. The same each time it is called.
fn at_fork(history: History) -> (World, Virtqueue) {
    let mut world = World::new(history);
    let mut queue = world.device();
    let (mut chain, mut open) = (Virtqueue::chain(history.size), Vec::new());
    for _ in 0..history.served {
        world.fill(history.len);
        serve(&mut queue, &mut chain, &mut open, 1, false);
        world.reap();
    }
    world.fill(history.len);
    (world, queue)
}

/// Every state that the shared memory goes through while the child works. Given the state that another process died in, the child
/// first recovers from it.
fn states(history: History, died_in: Option<&[u8]>) -> Vec<Vec<u8>> {
    let (world, mut queue) = at_fork(history);
    if let Some(state) = died_in {
        world.memory.write(GuestAddress(0), state).unwrap();
    }
    let (mut chain, mut open) = (Virtqueue::chain(history.size), Vec::with_capacity(usize::from(history.size)));
    let mut states = vec![world.bytes()];
    // SAFETY: the child does nothing but work on its ring, and leaves by `_exit`. It takes no lock that another thread may
    // hold; glibc keeps its allocator sound in a forked child.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        // SAFETY: plain system calls.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        if died_in.is_some() {
            queue = world.device();
        }
        // Two chains in one batch, then all the rest.
        serve(&mut queue, &mut chain, &mut open, 2, history.reversed);
        serve(&mut queue, &mut chain, &mut open, history.size, history.reversed);
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    loop {
        let mut status = 0;
        // SAFETY: `child` is ours and traced; `status` lives across the call.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child, "waitpid");
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0);
            return states;
        }
        assert!(libc::WIFSTOPPED(status), "the child died: {status:#x}");
        let bytes = world.bytes();
        if states.last() != Some(&bytes) {
            states.push(bytes);
        }
        // SAFETY: as above.
        let stepped = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0) };
        assert_eq!(stepped, 0, "ptrace: {}", std::io::Error::last_os_error());
    }
}

/// Starts a device from `state`; the driver takes and posts before that, or only afterwards.
fn finish(history: History, state: &[u8], driver_goes_on: bool) {
    let (mut world, queue) = at_fork(history);
    drop(queue);
    world.memory.write(GuestAddress(0), state).unwrap();
    if driver_goes_on {
        world.reap();
        world.fill(history.len);
    }
    let mut queue = world.device();
    let (mut chain, mut open) = (Virtqueue::chain(history.size), Vec::new());
    for round in 0..3 {
        serve(&mut queue, &mut chain, &mut open, history.size, history.reversed);
        world.reap();
        assert!(world.posted.is_empty(), "round {round}: lost {:?}", world.posted);
        world.fill(history.len);
    }
}

/// A device starts from each of the states. Says which one it was that it could not finish from.
fn finish_each(history: History, states: &[Vec<u8>]) {
    for (at, state) in states.iter().enumerate() {
        for driver_goes_on in [false, true] {
            let run = || finish(history, state, driver_goes_on);
            if let Err(panic) = std::panic::catch_unwind(run) {
                eprintln!("{history:?}, state {at} of {}, driver_goes_on {driver_goes_on}", states.len());
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Returns how many states were tried.
fn all_histories(features: u64, place: bool) -> usize {
    let mut count = 0;
    for (size, len) in [(4, 1), (4, 3), (8, 2)] {
        for served in [0, 1, 3] {
            // The place says nothing of chains that are used out of order.
            let orders: &[bool] = if place && features & IN_ORDER == 0 { &[false] } else { &[false, true] };
            for &reversed in orders {
                let history = History { features, size, served, len, reversed, place };
                let states = states(history, None);
                finish_each(history, &states);
                count += states.len();
            }
        }
    }
    count
}

/// The process that recovers dies as well.
fn twice(features: u64, place: bool) -> usize {
    let history = History { features, size: 4, served: 1, len: 1, reversed: true, place };
    let mut count = 0;
    for died_in in states(history, None).iter().step_by(5) {
        let states = states(history, Some(died_in));
        finish_each(history, &states);
        count += states.len();
    }
    count
}

#[test]
fn a_split_ring_survives_death_after_any_store() {
    assert!(all_histories(0, false) > 300);
}

#[test]
fn a_split_ring_in_order_survives_death_after_any_store() {
    assert!(all_histories(IN_ORDER | RING_EVENT_IDX, false) > 300);
}

#[test]
fn a_packed_ring_survives_death_after_any_store() {
    assert!(all_histories(RING_PACKED, false) > 500);
}

#[test]
fn a_packed_ring_in_order_survives_death_after_any_store() {
    assert!(all_histories(RING_PACKED | IN_ORDER, false) > 500);
}

#[test]
fn a_packed_ring_that_keeps_its_position_survives_death_after_any_store() {
    assert!(all_histories(RING_PACKED, true) > 60);
    assert!(all_histories(RING_PACKED | IN_ORDER, true) > 120);
}

#[test]
fn a_ring_survives_death_during_recovery() {
    assert!(twice(0, false) > 50);
    assert!(twice(RING_PACKED, false) > 100);
    assert!(twice(RING_PACKED | IN_ORDER, true) > 20);
}
