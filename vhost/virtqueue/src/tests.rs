use crate::driver::{Buffer, Driver, ring_len};
use crate::*;
use guest_memory::{DirtyLog, GuestAddress, GuestMemory, Mapping, Region, UserAddress, Window};
use std::collections::VecDeque;
use std::sync::Arc;
use testkit::Rng;
use virtio_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use virtio_spec::ring::{DESC_LEN, desc};

mod singles;

const RING: GuestAddress = GuestAddress(0x10_0000);
const TABLES: u64 = 0x20_0000;

fn memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::anonymous(0x40_0000).unwrap())
}

fn region(packed: bool, size: u16) -> Window {
    let len = inflight::region_len(packed, size);
    let region = Region::new(GuestAddress(0), UserAddress(0), Mapping::anonymous(len).unwrap()).unwrap();
    Arc::new(GuestMemory::new(vec![Arc::new(region)]).unwrap()).user_window(UserAddress(0), len, 64).unwrap()
}

/// Every combination of layout and features.
fn layouts() -> impl Iterator<Item = u64> {
    let bits = [RING_PACKED, IN_ORDER, RING_EVENT_IDX];
    (0..8_u32).map(move |n| (0..3).filter(|i| n >> i & 1 == 1).fold(RING_INDIRECT_DESC, |f, i| f | bits[i]))
}

fn setup(driver: &Driver, inflight: Option<Window>) -> RingSetup {
    RingSetup { inflight, ..driver.setup() }
}

fn buffers(rng: &mut Rng, tag: u64) -> Vec<Buffer> {
    let (readable, writable) = (1 + rng.below(3), rng.below(3));
    (0..readable + writable).map(|i| (GuestAddress(tag * 64 + i), 1 + i as u32, i >= readable)).collect()
}

fn same(chain: &DescriptorChain, expected: &[Buffer]) -> bool {
    let found = chain.readable().iter().map(|d| (d.address, d.len, false));
    found.chain(chain.writable().iter().map(|d| (d.address, d.len, true))).eq(expected.iter().copied())
}

/// Random traffic with completion out of order and, with a region, death of the device at random moments between two calls:
/// every chain comes back exactly once and unchanged.
fn soak(features: u64, size: u16, with_inflight: bool, seed: u64) {
    let memory = memory();
    let mut driver = Driver::new(&memory, RING, size, features);
    let area = with_inflight.then(|| region(features & RING_PACKED != 0, size));
    let mut queue = Virtqueue::new(memory.clone(), &setup(&driver, area.clone())).unwrap();
    let mut chain = Virtqueue::chain(size);
    let mut rng = Rng::new(seed);
    let mut expected: Vec<Vec<Buffer>> = vec![Vec::new(); size.into()];
    let mut open: VecDeque<ChainToken> = VecDeque::new();
    let (mut added, mut used) = (0, 0);
    for step in 0..3000_u64 {
        match rng.below(if with_inflight { 40 } else { 39 }) {
            0..=12 => {
                let buffers = buffers(&mut rng, step % 1000);
                let table = GuestAddress(TABLES + step * 0x100);
                let id = if rng.below(4) == 0 { driver.add_indirect(table, &buffers) } else { driver.add(&buffers) };
                if let Some(id) = id {
                    expected[usize::from(id)] = buffers;
                    added += 1;
                }
            }
            13..=24 => {
                if queue.pop(&mut chain).unwrap() {
                    assert!(same(&chain, &expected[usize::from(chain.token().id())]), "step {step}: {chain:?}");
                    open.push_back(chain.token());
                }
            }
            25..=34 => {
                if !open.is_empty() {
                    let at = rng.below(open.len() as u64) as usize;
                    let token = open.remove(at).unwrap();
                    queue.complete(token, u32::from(token.id()) + 1);
                }
            }
            35..=38 => {
                queue.flush();
                while let Some((id, len)) = driver.take_used() {
                    assert_eq!(len, u32::from(id) + 1);
                    used += 1;
                }
            }
            _ => {
                // The process dies here; what it completed and did not flush is done again.
                queue = Virtqueue::new(memory.clone(), &setup(&driver, area.clone())).unwrap();
                open.clear();
            }
        }
    }
    loop {
        while queue.pop(&mut chain).unwrap() {
            open.push_back(chain.token());
        }
        open.drain(..).for_each(|token| queue.complete(token, u32::from(token.id()) + 1));
        queue.flush();
        let before = used;
        while driver.take_used().is_some() {
            used += 1;
        }
        if used == before {
            break;
        }
    }
    assert_eq!((added, queue.in_flight()), (used, 0), "{features:#x} size {size}");
    assert!(added > 300, "{added}");
}

#[test]
fn every_chain_comes_back_once_in_every_layout() {
    for features in layouts() {
        for (seed, size) in [(1, 8), (2, 64), (3, 256)] {
            soak(features, size, false, seed);
        }
    }
    soak(RING_PACKED | RING_INDIRECT_DESC, 100, false, 4);
}

#[test]
fn every_chain_comes_back_once_although_the_device_dies() {
    for features in layouts() {
        for seed in 0..20 {
            soak(features, 16, true, seed);
            soak(features, 128, true, seed + 100);
        }
    }
}

#[test]
fn a_ring_of_one_entry_works() {
    for features in layouts() {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, 1, features);
        let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
        let mut chain = Virtqueue::chain(1);
        for _ in 0..5 {
            driver.add(&[(GuestAddress(0), 1, false)]).unwrap();
            assert!(queue.pop(&mut chain).unwrap());
            assert!(!queue.pop(&mut chain).unwrap());
            queue.complete(chain.token(), 0);
            queue.flush();
            driver.take_used().unwrap();
        }
    }
}

#[test]
fn notifications_are_given_when_asked_for_and_only_then() {
    for features in layouts() {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, 16, features);
        let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
        let mut chain = Virtqueue::chain(16);
        for round in 0..100 {
            let wanted = round % 3 == 0;
            driver.set_interrupts(wanted);
            for _ in 0..2 {
                driver.add(&[(GuestAddress(0), 1, true)]).unwrap();
                assert!(queue.pop(&mut chain).unwrap());
                queue.complete(chain.token(), 1);
            }
            assert_eq!(queue.flush(), wanted, "{features:#x} round {round}");
            while driver.take_used().is_some() {}
            assert!(!queue.flush(), "nothing new");
        }
    }
}

#[test]
fn an_armed_ring_is_kicked_and_a_disarmed_one_is_not() {
    for features in layouts() {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, 16, features);
        let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
        let mut chain = Virtqueue::chain(16);
        for round in 0..50 {
            assert!(!queue.arm().unwrap());
            driver.add(&[(GuestAddress(0), 1, true)]).unwrap();
            assert!(driver.kick(), "{features:#x} round {round}");
            assert!(queue.arm().unwrap(), "the second look finds it");
            queue.disarm();
            assert!(queue.pop(&mut chain).unwrap());
            queue.complete(chain.token(), 0);
            driver.add(&[(GuestAddress(0), 1, true)]).unwrap();
            assert!(!driver.kick(), "{features:#x} round {round}: nobody asked");
            assert!(queue.pop(&mut chain).unwrap());
            queue.complete(chain.token(), 0);
            queue.flush();
            while driver.take_used().is_some() {}
        }
    }
}

#[test]
fn sizes_are_checked() {
    let memory = memory();
    let sizes = |features, size| {
        let driver = Driver::new(&memory, RING, 8, features);
        Virtqueue::new(memory.clone(), &RingSetup { size, ..driver.setup() }).err()
    };
    for size in [0, 3, 100, 40000] {
        assert!(matches!(sizes(0, size), Some(QueueError::Size { .. })), "{size}");
    }
    for size in [0, 40000] {
        assert!(matches!(sizes(RING_PACKED, size), Some(QueueError::Size { .. })), "{size}");
    }
    assert_eq!(sizes(RING_PACKED, 100), None);
}

#[test]
fn ring_areas_outside_memory_are_refused() {
    let memory = memory();
    for features in [0, RING_PACKED] {
        for area in 0..3 {
            let mut setup = Driver::new(&memory, RING, 8, features).setup();
            let at = [&mut setup.addresses.descriptor, &mut setup.addresses.driver, &mut setup.addresses.device];
            *at[area] = if area == 0 { UserAddress(0x3f_fff0) } else { UserAddress(!15) };
            assert!(matches!(Virtqueue::new(memory.clone(), &setup), Err(QueueError::Access { .. })));
        }
    }
}

/// Writes raw descriptors into the ring that `driver` set up and pops.
fn pop_raw(features: u64, size: u16, entries: &[(u64, u32, u16, u16)]) -> Result<bool, QueueError> {
    let memory = memory();
    let driver = Driver::new(&memory, RING, size, features);
    let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
    for (index, &(address, len, flags, next)) in entries.iter().enumerate() {
        let packed = features & RING_PACKED != 0;
        let (a, b) = if packed { (7, flags | desc::AVAIL) } else { (flags, next) };
        let mut bytes = [0; DESC_LEN];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&a.to_le_bytes());
        bytes[14..].copy_from_slice(&b.to_le_bytes());
        memory.write(GuestAddress(RING.0 + (index * DESC_LEN) as u64), &bytes).unwrap();
    }
    let avail = RING.0 + u64::from(size) * DESC_LEN as u64;
    if features & RING_PACKED == 0 {
        memory.write(GuestAddress(avail + 2), &1_u16.to_le_bytes()).unwrap();
    }
    queue.pop(&mut Virtqueue::chain(size))
}

#[test]
fn a_chain_that_loops_is_an_error() {
    let next = desc::NEXT;
    assert!(matches!(pop_raw(0, 4, &[(0, 1, next, 1), (0, 1, next, 0)]), Err(QueueError::ChainLoop { .. })));
    let all = [(0, 1, next, 0); 4];
    assert!(matches!(pop_raw(RING_PACKED, 4, &all), Err(QueueError::ChainLoop { .. })));
}

#[test]
fn a_next_index_outside_the_table_is_an_error() {
    let entry = [(0, 1, desc::NEXT, 4)];
    assert_eq!(pop_raw(0, 4, &entry), Err(QueueError::DescriptorIndex { index: 4, size: 4 }));
}

#[test]
fn an_available_index_too_far_ahead_is_an_error() {
    let memory = memory();
    let driver = Driver::new(&memory, RING, 4, 0);
    let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
    memory.write(GuestAddress(RING.0 + 4 * DESC_LEN as u64 + 2), &5_u16.to_le_bytes()).unwrap();
    let error = queue.pop(&mut Virtqueue::chain(4)).unwrap_err();
    assert_eq!(error, QueueError::AvailIndex { index: 5, next: 0, size: 4 });
}

#[test]
fn a_head_outside_the_table_is_an_error() {
    let memory = memory();
    let driver = Driver::new(&memory, RING, 4, 0);
    let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
    let avail = RING.0 + 4 * DESC_LEN as u64;
    memory.write(GuestAddress(avail + 2), &[1, 0, 4, 0]).unwrap();
    assert!(matches!(queue.pop(&mut Virtqueue::chain(4)), Err(QueueError::DescriptorIndex { index: 4, .. })));
}

#[test]
fn readable_after_writable_is_an_error() {
    let chain = [(0, 1, desc::NEXT | desc::WRITE, 1), (0, 1, 0, 0)];
    for features in [0, RING_PACKED] {
        assert_eq!(pop_raw(features, 4, &chain), Err(QueueError::Order));
    }
}

#[test]
fn indirect_tables_of_bad_length_or_place_are_errors() {
    for features in [RING_INDIRECT_DESC, RING_INDIRECT_DESC | RING_PACKED] {
        for len in [0, 1, 15, 17, 129 * 16, u32::MAX] {
            let result = pop_raw(features, 4, &[(TABLES, len, desc::INDIRECT, 0)]);
            assert!(matches!(result, Err(QueueError::IndirectLength { .. })), "{len}: {result:?}");
        }
        let outside = pop_raw(features, 4, &[(0x3f_fff8, 16, desc::INDIRECT, 0)]);
        assert!(matches!(outside, Err(QueueError::Access { .. })));
        let in_chain = pop_raw(features, 4, &[(0, 1, desc::NEXT, 1), (TABLES, 16, desc::INDIRECT | desc::NEXT, 0)]);
        assert!(matches!(in_chain, Err(QueueError::Indirect(_))));
        let without = pop_raw(features & !RING_INDIRECT_DESC, 4, &[(TABLES, 16, desc::INDIRECT, 0)]);
        assert!(matches!(without, Err(QueueError::Indirect(_))));
    }
}

#[test]
fn an_indirect_table_inside_another_is_an_error() {
    for features in [RING_INDIRECT_DESC, RING_INDIRECT_DESC | RING_PACKED] {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, 4, features);
        let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
        driver.add_indirect(GuestAddress(TABLES), &[(GuestAddress(0), 1, false)]).unwrap();
        let flags_at = if features & RING_PACKED != 0 { 14 } else { 12 };
        memory.write(GuestAddress(TABLES + flags_at), &desc::INDIRECT.to_le_bytes()).unwrap();
        assert!(matches!(queue.pop(&mut Virtqueue::chain(4)), Err(QueueError::Indirect(_))));
    }
}

#[test]
fn the_upper_half_of_a_packed_base_is_not_needed() {
    let memory = memory();
    let driver = Driver::new(&memory, RING, 8, RING_PACKED);
    let half = RingSetup { base: 0x0000_8003, ..driver.setup() };
    assert_eq!(Virtqueue::new(memory.clone(), &half).unwrap().base(), 0x8003_8003);
    let outside = RingSetup { base: 0x8009, ..driver.setup() };
    assert!(Virtqueue::new(memory.clone(), &outside).is_err());
}

#[test]
fn a_split_ring_goes_on_from_the_used_index_that_the_driver_saw() {
    let memory = memory();
    let mut driver = Driver::new(&memory, RING, 4, 0);
    let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
    let mut chain = Virtqueue::chain(4);
    for _ in 0..3 {
        driver.add(&[(GuestAddress(0), 1, false)]).unwrap();
        assert!(queue.pop(&mut chain).unwrap());
        queue.complete(chain.token(), 0);
        queue.flush();
    }
    let mut queue = Virtqueue::new(memory.clone(), &RingSetup { base: queue.base(), ..driver.setup() }).unwrap();
    driver.add(&[(GuestAddress(0), 1, false)]).unwrap();
    assert!(queue.pop(&mut chain).unwrap());
    queue.complete(chain.token(), 0);
    queue.flush();
    assert_eq!(std::iter::from_fn(|| driver.take_used()).count(), 4);
}

#[test]
fn used_ring_writes_are_logged_only_where_asked() {
    for features in [0, RING_PACKED] {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, 8, features);
        let setup = driver.setup();
        let log_at = GuestAddress(setup.addresses.device.0);
        for used_log in [None, Some(log_at)] {
            let bits = Arc::new(GuestMemory::anonymous(4096).unwrap());
            let log = DirtyLog::over(bits.user_window(UserAddress(0), 4096, 8).unwrap());
            let addresses = RingAddresses { used_log, ..setup.addresses };
            let base = if used_log.is_none() { setup.base } else { 1 | setup.base };
            let mut queue = Virtqueue::new(memory.clone(), &RingSetup { addresses, base, ..setup.clone() }).unwrap();
            queue.set_log(Some(log));
            driver.add(&[(GuestAddress(0), 1, true)]).unwrap();
            let mut chain = Virtqueue::chain(8);
            assert!(queue.pop(&mut chain).unwrap());
            queue.complete(chain.token(), 1);
            queue.flush();
            driver.take_used().unwrap();
            let mut byte = [0];
            let page = if features == 0 { log_at.0 } else { RING.0 } / 4096;
            bits.read(GuestAddress(page / 8), &mut byte).unwrap();
            assert_eq!(byte[0], if used_log.is_some() { 1 << (page % 8) } else { 0 });
        }
    }
}

#[test]
fn a_relocated_ring_goes_on_in_the_new_table() {
    for features in [0, RING_PACKED] {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, 4, features);
        let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
        driver.add(&[(GuestAddress(0), 1, false)]).unwrap();
        let same = Arc::new(GuestMemory::new(memory.regions().to_vec()).unwrap());
        queue.relocate(same.clone()).unwrap();
        assert!(Arc::ptr_eq(queue.memory(), &same));
        assert!(queue.pop(&mut Virtqueue::chain(4)).unwrap());
        let without = Arc::new(GuestMemory::anonymous(4096).unwrap());
        assert!(matches!(queue.relocate(without), Err(QueueError::Access { .. })));
    }
}

#[test]
fn an_inflight_region_too_small_is_refused_and_garbage_in_it_is_survived() {
    for packed in [false, true] {
        let features = if packed { RING_PACKED } else { 0 };
        let memory = memory();
        let driver = Driver::new(&memory, RING, 64, features);
        let small = setup(&driver, Some(region(packed, 4)));
        assert!(matches!(Virtqueue::new(memory.clone(), &small), Err(QueueError::Inflight { .. })));
        let noted = Virtqueue::new(memory.clone(), &driver.setup()).unwrap().persist_ring_position(region(packed, 4));
        assert_eq!(matches!(noted, Err(QueueError::Inflight { .. })), packed, "a split ring needs none");
        let mut rng = Rng::new(7);
        for round in 0..200 {
            let area = region(packed, 64);
            (0..area.len()).for_each(|at| area.store_u8(at, rng.below(3) as u8, std::sync::atomic::Ordering::Relaxed));
            area.store_u16(8, 1, std::sync::atomic::Ordering::Relaxed);
            area.store_u16(10, 64, std::sync::atomic::Ordering::Relaxed);
            let marks = (round % 2 == 0).then(|| area.clone());
            let notes = marks.is_none();
            let Ok(mut queue) = Virtqueue::new(memory.clone(), &setup(&driver, marks)) else { continue };
            if notes {
                queue.persist_ring_position(area).unwrap();
            }
            let mut chain = Virtqueue::chain(64);
            for _ in 0..200 {
                match queue.pop(&mut chain) {
                    Ok(true) => queue.complete(chain.token(), 0),
                    _ => break,
                }
                queue.flush();
            }
        }
    }
}

#[test]
fn ring_len_covers_all_areas() {
    assert!(ring_len(8) >= 8 * 16 + 22 + 70);
}

mod hostile_driver {
    use crate::fuzz::{race, run};
    use proptest::prelude::*;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn may_write_anything_anywhere(data in proptest::collection::vec(any::<u8>(), 0..1000)) {
            run(&data);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn may_write_while_the_device_reads(data in proptest::collection::vec(any::<u8>(), 0..1000)) {
            race(&data);
        }
    }

    #[test]
    fn gets_far_enough_to_matter() {
        let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut data = vec![0; 4000];
        // A race goes as the machine has it.
        for (harness, least) in [(run as fn(&[u8]) -> _, 50), (race, 0)] {
            let mut total = [0; 6];
            for _ in 0..100 {
                rng.fill_bytes(&mut data);
                let seen = harness(&data);
                let counts = [seen.chains, seen.errors, seen.used, seen.restarts, seen.singles, seen.together];
                total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
            }
            let names = "chains, errors, used, restarts, singles, batches of four";
            assert!(total.iter().all(|&count| count > least), "{names}: {total:?}");
        }
    }
}

/// A ring of single descriptors tells at any time where its device stands; a batch cut before it was published is made good.
#[test]
fn a_packed_ring_tells_where_its_device_died() {
    for (size, seed) in [(1, 1), (2, 2), (3, 3), (8, 4), (64, 5)] {
        let memory = memory();
        let mut driver = Driver::new(&memory, RING, size, RING_PACKED | RING_INDIRECT_DESC);
        let (setup, mut chain, mut rng) = (driver.setup(), Virtqueue::chain(size), Rng::new(seed));
        let mut queue = Virtqueue::new(memory.clone(), &setup).unwrap();
        let ring = memory.user_window(setup.addresses.descriptor, DESC_LEN * usize::from(size), 16).unwrap();
        let (mut added, mut returned) = (0, 0);
        for _ in 0..2000 {
            for _ in 0..rng.below(u64::from(size) + 1) {
                let table = GuestAddress(TABLES + rng.below(64) * 64);
                let chains = [(GuestAddress(64), 1, false), (GuestAddress(128), 1, true)];
                added += u64::from(driver.add_indirect(table, &chains).is_some());
            }
            let start = queue.base() >> 16;
            let mut batch = 0;
            while rng.below(4) > 0 && queue.pop(&mut chain).unwrap() {
                queue.complete(chain.token(), 1);
                batch += 1;
            }
            queue.flush();
            if batch > 1 && rng.below(3) == 0 {
                let flags = if start >> 15 == 1 { desc::AVAIL } else { desc::USED };
                ring.store_u16((start as usize & 0x7fff) * DESC_LEN + 14, flags, std::sync::atomic::Ordering::Release);
            }
            assert_eq!(packed_base(&memory, &setup).unwrap(), Some(queue.base()), "size {size}, {added} added");
            while rng.below(8) > 0 && driver.take_used().is_some() {
                returned += 1;
            }
        }
        while driver.take_used().is_some() {
            returned += 1;
        }
        while queue.pop(&mut chain).unwrap() {
            returned += 1;
        }
        assert_eq!(added, returned, "size {size}");
    }
}

#[test]
fn a_packed_ring_of_longer_chains_gives_no_base_after_a_crash() {
    let memory = memory();
    let mut driver = Driver::new(&memory, RING, 8, RING_PACKED);
    assert_eq!(packed_base(&memory, &driver.setup()).unwrap(), None);
    let in_order = Driver::new(&memory, RING, 8, RING_PACKED | RING_INDIRECT_DESC | IN_ORDER);
    assert_eq!(packed_base(&memory, &in_order.setup()).unwrap(), None);
    driver = Driver::new(&memory, RING, 8, RING_PACKED | RING_INDIRECT_DESC);
    let mut queue = Virtqueue::new(memory.clone(), &driver.setup()).unwrap();
    let mut chain = Virtqueue::chain(8);
    // A chain of two, then a single one.
    for buffers in [&[(GuestAddress(64), 1, false), (GuestAddress(128), 1, true)][..], &[(GuestAddress(64), 1, false)]]
    {
        driver.add(buffers).unwrap();
        assert!(queue.pop(&mut chain).unwrap());
        queue.complete(chain.token(), 1);
        queue.flush();
        driver.take_used().unwrap();
    }
    driver.add(&[(GuestAddress(64), 1, false)]).unwrap();
    let base = packed_base(&memory, &driver.setup()).unwrap();
    assert!(base.is_none_or(|base| base == queue.base()), "{base:x?}");
}
