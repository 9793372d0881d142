//! Batches of single buffers: the fast twin of `pop` and `complete`.

use super::*;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

/// What was taken: its buffers.
type Taken = Vec<Buffer>;

fn buffers_of(chain: &DescriptorChain) -> Taken {
    let readable = chain.readable().iter().map(|d| (d.address, d.len, false));
    readable.chain(chain.writable().iter().map(|d| (d.address, d.len, true))).collect()
}

/// All that `pop` alone gives.
fn slowly(queue: &mut Virtqueue, chain: &mut DescriptorChain) -> Vec<Taken> {
    std::iter::from_fn(|| queue.pop(chain).unwrap().then(|| buffers_of(chain))).collect()
}

/// A driver that adds single buffers mostly, and a device that takes them in batches and gives them back in any order.
struct Fast {
    queue: Virtqueue,
    chain: DescriptorChain,
    rng: Rng,
    /// Batches, and chains of any kind each alone, that are not given back.
    open: Vec<(Option<Access>, Vec<SingleBufferChain>)>,
    batched: usize,
}

impl Fast {
    /// Takes a batch, or else a chain. Some of a batch are put back at times.
    fn take(&mut self, taken: &mut Vec<Taken>) -> bool {
        let access = if self.rng.below(2) == 0 { Access::Read } else { Access::Write };
        let mut singles = [SingleBufferChain::default(); 32];
        let count = self.queue.pop_singles(access, &mut singles[..1 + self.rng.below(32) as usize]);
        let kept = if self.rng.below(3) == 0 { self.rng.below(count as u64 + 1) as usize } else { count };
        singles[kept..count].iter().rev().for_each(|single| self.queue.unpop(single.token));
        let singles = &mut singles[..kept];
        for single in singles.iter_mut() {
            taken.push(vec![(single.buffer.address, single.buffer.len, access == Access::Write)]);
            single.written = if access == Access::Write { u32::from(single.token.id()) + 1 } else { 0 };
        }
        self.batched += kept;
        if kept > 0 {
            self.open.push((Some(access), singles.to_vec()));
        } else if count == 0 {
            if !self.queue.pop(&mut self.chain).unwrap() {
                return false;
            }
            taken.push(buffers_of(&self.chain));
            let token = self.chain.token();
            let single =
                SingleBufferChain { token, written: u32::from(token.id()) + 1, ..SingleBufferChain::default() };
            self.open.push((None, vec![single]));
        }
        true
    }

    /// Gives all back, in any order. Returns the bytes written by id.
    fn give_back(&mut self) -> HashMap<u16, u32> {
        let mut written = HashMap::new();
        while !self.open.is_empty() {
            let (access, singles) = self.open.swap_remove(self.rng.below(self.open.len() as u64) as usize);
            written.extend(singles.iter().map(|single| (single.token.id(), single.written)));
            match access {
                Some(Access::Read) => self.queue.complete_read(&singles),
                Some(Access::Write) => self.queue.complete_written(&singles),
                None => self.queue.complete(singles[0].token, singles[0].written),
            }
        }
        written
    }
}

fn twins(features: u64, size: u16, seed: u64) -> usize {
    let memory = memory();
    let mut driver = Driver::new(&memory, RING, size, features);
    let queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
    let mut fast = Fast { queue, chain: Virtqueue::chain(size), rng: Rng::new(seed), open: Vec::new(), batched: 0 };
    let mut chain = Virtqueue::chain(size);
    let mut table = 0;
    for round in 0..300 {
        for _ in 0..fast.rng.below(2 * u64::from(size)) {
            let at = GuestAddress(fast.rng.below(1000) * 64);
            match fast.rng.below(16) {
                0 => drop(driver.add(&buffers(&mut fast.rng, round))),
                1 => {
                    table = (table + 0x100) % 0x10_0000;
                    driver.add_indirect(GuestAddress(TABLES + table), &buffers(&mut fast.rng, round));
                }
                kind => drop(driver.add(&[(at, 1 + kind as u32, (round + kind / 12) % 2 == 0)])),
            }
        }
        let mut slow =
            Virtqueue::new(memory.clone(), &RingSetup { base: fast.queue.base(), ..driver.setup() }).unwrap();
        let mut taken = Vec::new();
        while fast.take(&mut taken) {}
        assert_eq!(taken, slowly(&mut slow, &mut chain), "{features:#x} size {size} round {round}");
        assert_eq!(fast.queue.base() & 0xffff, slow.base() & 0xffff);
        let mut written = fast.give_back();
        fast.queue.flush();
        assert_eq!(fast.queue.in_flight(), 0);
        for (id, len) in std::iter::from_fn(|| driver.take_used()) {
            assert_eq!(written.remove(&id), Some(len), "{features:#x} size {size} round {round}: chain {id}");
        }
        assert!(written.is_empty(), "{features:#x} size {size} round {round}: not given back: {written:?}");
    }
    fast.batched
}

#[test]
fn a_batch_is_what_pop_gives_one_by_one() {
    for features in layouts() {
        for (seed, size) in [(1, 1), (2, 8), (3, 64), (4, 256)] {
            let batched = twins(features, size, seed);
            assert!(batched > 30 * usize::from(size), "{features:#x} size {size}: {batched} in batches");
        }
    }
    twins(RING_PACKED | RING_INDIRECT_DESC, 100, 5);
}

#[test]
fn an_error_is_left_for_pop_behind_the_batch() {
    let memory = memory();
    let mut driver = Driver::new(&memory, RING, 8, 0);
    let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
    (0..3).for_each(|_| assert!(driver.add(&[(GuestAddress(0), 1, false)]).is_some()));
    // The third head is outside the table.
    let avail = driver.setup().addresses.driver.0;
    memory.write(GuestAddress(avail + 4 + 2 * 2), &[8, 0]).unwrap();
    let mut singles = [SingleBufferChain::default(); 8];
    assert_eq!(queue.pop_singles(Access::Read, &mut singles), 2);
    assert_eq!(queue.pop_singles(Access::Read, &mut singles), 0);
    let error = queue.pop(&mut Virtqueue::chain(8)).unwrap_err();
    assert!(matches!(error, QueueError::DescriptorIndex { index: 8, .. }), "{error}");
    // An index too far ahead.
    let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
    memory.write(GuestAddress(avail + 2), &[200, 0]).unwrap();
    assert_eq!(queue.pop_singles(Access::Read, &mut singles), 0);
    assert!(matches!(queue.pop(&mut Virtqueue::chain(8)), Err(QueueError::AvailIndex { index: 200, .. })));
}

#[test]
fn a_ring_with_an_inflight_region_gives_no_batches() {
    for packed in [0, RING_PACKED] {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, 8, packed);
        let mut queue = Virtqueue::new(memory.clone(), &setup(&driver, Some(region(packed != 0, 8)))).unwrap();
        driver.add(&[(GuestAddress(0), 1, false)]).unwrap();
        assert_eq!(queue.pop_singles(Access::Read, &mut [SingleBufferChain::default(); 4]), 0);
        assert!(queue.pop(&mut Virtqueue::chain(8)).unwrap());
    }
}

/// "2.7.9, 2.8.9: by only writing out a single used element".
#[test]
fn in_order_one_used_element_stands_for_a_batch_that_was_read() {
    for packed in [0, RING_PACKED] {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, 8, packed | IN_ORDER);
        let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
        let ids: Vec<_> = (0..5).map(|_| driver.add(&[(GuestAddress(0), 1, false)]).unwrap()).collect();
        let mut singles = [SingleBufferChain::default(); 8];
        assert_eq!(queue.pop_singles(Access::Read, &mut singles), 5);
        queue.complete_read(&singles[..5]);
        queue.flush();
        let addresses = driver.setup().addresses;
        let (ring, at, stride) = match packed {
            0 => (memory.user_window(addresses.device, 4 + 8 * 8, 4).unwrap(), 4, 8),
            _ => (memory.user_window(addresses.descriptor, 16 * 8, 16).unwrap(), 12, 16),
        };
        assert_eq!(ring.load_u16(at, Relaxed), ids[4], "the last one's");
        let untouched = |index: usize| match packed {
            0 => ring.load_u32(at + stride * index, Relaxed) == 0,
            _ => ring.load_u16(at + stride * index + 2, Relaxed) == desc::AVAIL,
        };
        assert!((1..5).all(untouched));
        assert_eq!(std::iter::from_fn(|| driver.take_used()).map(|(id, _)| id).collect::<Vec<_>>(), ids);
    }
}

#[test]
fn what_batches_write_to_the_used_ring_is_logged_and_nothing_else() {
    const SIZE: u16 = 512;
    for features in [0, RING_PACKED] {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, SIZE, features);
        let setup = driver.setup();
        let device = setup.addresses.device.0;
        let bits = Arc::new(GuestMemory::anonymous(4096).unwrap());
        let addresses = RingAddresses { used_log: Some(GuestAddress(device)), ..setup.addresses };
        let mut queue = Virtqueue::new(memory.clone(), &RingSetup { addresses, ..setup.clone() }).unwrap();
        queue.set_log(Some(DirtyLog::over(bits.user_window(UserAddress(0), 4096, 8).unwrap())));
        (0..SIZE).for_each(|_| assert!(driver.add(&[(GuestAddress(0), 1, true)]).is_some()));
        let mut singles = [SingleBufferChain::default(); 50];
        let mut given_back = 0;
        while given_back < usize::from(SIZE) {
            let count = queue.pop_singles(Access::Write, &mut singles);
            queue.complete_written(&singles[..count]);
            queue.flush();
            given_back += count;
        }
        // Of a split ring flags and the avail event are not written.
        let written = match features {
            0 => device + 2..device + 4 + 8 * u64::from(SIZE),
            _ => setup.addresses.descriptor.0..setup.addresses.descriptor.0 + 16 * u64::from(SIZE),
        };
        let mut log = [0; 4096];
        bits.read(GuestAddress(0), &mut log).unwrap();
        let logged = (0..4096 * 8).filter(|page| log[page / 8] >> (page % 8) & 1 == 1);
        let pages = written.start / 4096..=(written.end - 1) / 4096;
        assert!(logged.map(|page| page as u64).eq(pages), "{features:#x}");
    }
}
