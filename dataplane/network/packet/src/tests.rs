//! Pools give each buffer once, take it back from any thread, and are empty without harm.

mod offload;

use crate::{Burst, DATA_ROOM, HEADROOM, L4Checksum, Offload, Pool, free};
use proptest::prelude::*;

#[test]
fn a_pool_hands_out_each_buffer_once() {
    let pool = Pool::new(300, None).unwrap();
    let mut packets: Vec<_> = std::iter::from_fn(|| pool.take_one()).collect();
    assert_eq!(packets.len(), 300);
    assert_eq!(pool.free_count(), 0);
    assert!(pool.take_one().is_none());
    let mut addresses: Vec<_> = packets.iter().map(|p| p.data().as_ptr()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 300);
    packets.truncate(10);
    assert_eq!(pool.free_count(), 290);
    let mut burst = Burst::new();
    assert_eq!(pool.take(&mut burst, 100), 32);
    assert_eq!(pool.take(&mut burst, 1), 0, "the burst is full");
}

#[test]
fn a_burst_is_freed_whatever_its_packets() {
    let (pool, other) = (Pool::new(300, None).unwrap(), Pool::new(300, None).unwrap());
    for round in 0..50 {
        // More than a cache holds, so that buffers move to what is shared.
        let mut bursts = [const { Burst::new_const() }; 9];
        assert!(bursts.iter_mut().all(|burst| pool.take(burst, 32) == 32));
        bursts.iter_mut().for_each(free);
        assert!(bursts.iter().all(|burst| burst.is_empty()));
        let mut mixed = Burst::new();
        pool.take(&mut mixed, 3 + round % 3);
        if round % 2 == 0 {
            assert!(mixed[1].extend_from_slice(&[1; 5000], &pool));
        } else {
            other.take(&mut mixed, 5);
        }
        free(&mut mixed);
        assert_eq!((pool.free_count(), other.free_count()), (300, 300), "round {round}");
    }
    free(&mut Burst::new());
}

#[test]
fn buffers_return_from_other_threads() {
    let pool = Pool::new(1024, None).unwrap();
    let (send, receive) = crossbeam::channel::bounded(64);
    std::thread::scope(|scope| {
        scope.spawn(|| receive.iter().for_each(drop));
        for _ in 0..20_000 {
            pool.take_one().into_iter().for_each(|packet| send.send(packet).unwrap());
        }
        drop(send);
    });
    assert_eq!(pool.free_count(), 1024);
}

#[test]
fn a_packet_outlives_the_last_handle_of_its_pool() {
    let pool = Pool::new(64, None).unwrap();
    let mut packet = pool.take_one().unwrap();
    drop(pool);
    packet.append(4).unwrap().copy_from_slice(b"live");
    assert_eq!(packet.data(), b"live");
}

#[test]
fn headroom_and_tailroom_are_bounded() {
    let pool = Pool::new(32, None).unwrap();
    let mut packet = pool.take_one().unwrap();
    assert_eq!((packet.headroom(), packet.tailroom()), (usize::from(HEADROOM), usize::from(DATA_ROOM)));
    assert!(packet.append(usize::from(DATA_ROOM) + 1).is_none());
    packet.append(100).unwrap().fill(7);
    assert!(packet.prepend(usize::from(HEADROOM) + 1).is_none());
    packet.prepend(14).unwrap()[..14].fill(1);
    assert_eq!(packet.len(), 114);
    assert!(!packet.trim_front(115));
    assert!(packet.trim_front(14));
    assert_eq!(packet.data(), [7; 100]);
}

#[test]
fn offload_requests_are_stored_as_in_dpdk() {
    let pool = Pool::new(32, None).unwrap();
    let mut packet = pool.take_one().unwrap();
    assert!(packet.offload().is_none());
    for checksum in [L4Checksum::Tcp, L4Checksum::Udp, L4Checksum::Sctp] {
        let wanted =
            Offload { checksum: Some(checksum), segment_size: 1448, ipv6: true, l2_len: 18, l3_len: 40, l4_len: 32 };
        packet.set_offload(&wanted);
        assert_eq!(packet.offload(), wanted);
        assert_eq!(packet.copy(&pool).unwrap().offload(), wanted);
    }
    packet.set_offload(&Offload::default());
    assert!(packet.offload().is_none() && packet.flags() == 0);
}

#[test]
fn a_mark_is_read_once_and_cleared_with_the_buffer() {
    let pool = Pool::new(32, None).unwrap();
    let all = |pool: &Pool| -> Vec<_> { std::iter::from_fn(|| pool.take_one()).collect() };
    let mut packets = all(&pool);
    assert!(packets.iter_mut().all(|packet| packet.take_mark().is_none()));
    packets.iter_mut().for_each(|packet| packet.set_mark(77));
    assert_eq!((packets[0].take_mark(), packets[0].take_mark()), (Some(77), None));
    drop(packets);
    assert!(all(&pool).iter_mut().all(|packet| packet.take_mark().is_none()));
}

proptest! {
    #[test]
    fn bytes_survive_in_several_segments(bytes in prop::collection::vec(any::<u8>(), 0..9000), cut in 0_usize..9000) {
        let pool = Pool::new(64, None).unwrap();
        {
            let mut packet = pool.take_one().unwrap();
            prop_assert!(packet.extend_from_slice(&bytes, &pool));
            let mut copy = packet.copy(&pool).unwrap();
            copy.truncate(cut);
            let kept = &bytes[..cut.min(bytes.len())];
            let mut got = vec![0; copy.len()];
            copy.copy_to(&mut got);
            prop_assert_eq!(&got, kept);
            prop_assert_eq!(copy.segments().count(), copy.segment_count());
            prop_assert_eq!(copy.segments().map(<[u8]>::len).sum::<usize>(), copy.len());
        }
        prop_assert_eq!(pool.free_count(), pool.capacity());
    }
}
