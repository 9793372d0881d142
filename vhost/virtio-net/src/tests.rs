//! The path without socket and engine: every layout carries every frame, and whatever a guest puts into its rings hurts only itself.

mod hostile;
mod offload;

use crate::guest::{Guest, LAYOUTS, SIZE};
use packet::Burst;
use proptest::prelude::*;
use virtio_spec::feature;
use virtio_spec::net::{Header, feature as net};

/// A frame that names its place in the order: not of IP, so that its payload is not parsed.
fn frame(sequence: usize, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7 + sequence) as u8).collect();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// Features of a driver: ring layout, and how it receives.
fn features() -> impl Strategy<Value = u64> {
    let receives = prop::sample::select(vec![0, feature::VERSION_1, feature::VERSION_1 | net::MRG_RXBUF]);
    (prop::sample::select(LAYOUTS.to_vec()), receives).prop_map(|(layout, receives)| layout | receives)
}

/// Frame lengths with places to cut them at, and whether by an indirect table.
fn frames(most: usize) -> impl Strategy<Value = Vec<(usize, Vec<usize>, bool)>> {
    let cuts = prop::collection::vec(1_usize..2000, 0..6);
    prop::collection::vec((14_usize..most, cuts, any::<bool>()), 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_guest_sends_every_frame_once_and_in_order(features in features(), frames in frames(1522)) {
        let mut guest = Guest::new(features, 256);
        let (mut got, mut sent, mut reclaimed) = (Vec::new(), Vec::new(), 0);
        for (sequence, (len, cuts, indirect)) in frames.iter().enumerate() {
            sent.push(frame(sequence, *len));
            while !guest.send(&Header::default(), &sent[sequence], cuts, *indirect) {
                guest.device_receives(&mut got);
                reclaimed += guest.reclaim();
            }
        }
        for _ in 0..SIZE {
            guest.device_receives(&mut got);
        }
        reclaimed += guest.reclaim();
        prop_assert_eq!(reclaimed, sent.len());
        prop_assert_eq!(guest.counters().rx_packets as usize, sent.len());
        prop_assert_eq!(guest.counters().rx_bytes as usize, sent.iter().map(Vec::len).sum::<usize>());
        prop_assert_eq!(got, sent);
        guest.end();
    }

    #[test]
    fn the_guest_receives_every_frame_once_and_in_order(
        features in features(),
        frames in frames(1522),
        buffers in prop::collection::vec((300_usize..2000, prop::collection::vec(1_usize..2000, 0..4), any::<bool>()), 1..10),
    ) {
        let mut guest = Guest::new(features, 256);
        let least = if features & net::MRG_RXBUF != 0 { 0 } else { 1522 + guest.header_len };
        let mut buffers = buffers.iter().cycle();
        let (mut got, mut sent) = (Vec::new(), Vec::new());
        for (sequence, (len, ..)) in frames.iter().enumerate() {
            for _ in 0..8 {
                let (len, cuts, indirect) = buffers.next().unwrap();
                guest.post_rx((*len).max(least), cuts, *indirect);
            }
            let frame = frame(sequence, *len);
            let dropped = guest.counters().tx_full;
            guest.device_sends(std::slice::from_ref(&frame));
            if guest.counters().tx_full == dropped {
                sent.push(frame);
            }
            got.extend(guest.received().into_iter().map(|(header, frame)| {
                assert_eq!((header.flags, header.gso_type), (0, 0));
                frame
            }));
        }
        prop_assert_eq!(got.len(), guest.counters().tx_packets as usize);
        prop_assert!(sent.len() * 2 >= frames.len(), "there was room for most");
        prop_assert_eq!(got, sent);
        guest.end();
    }
}

/// A burst at a time, of frames and buffers of which some are not for the fast path: too long, in two pieces, too small.
#[test]
fn odd_frames_and_buffers_in_the_middle_of_a_burst_keep_the_order() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout | feature::VERSION_1 | net::MRG_RXBUF | net::HOST_TSO4 | net::CSUM, 256);
        let frames: Vec<_> = (0..32).map(|at| frame(at, 60 + at)).collect();
        for (at, frame) in frames.iter().enumerate() {
            let cuts: &[usize] = if at % 5 == 3 { &[12] } else { &[] };
            assert!(guest.send(&Header::default(), frame, cuts, at % 10 == 3));
            assert!(guest.post_rx(if at % 7 == 2 { 40 } else { 200 }, cuts, at % 10 == 3));
        }
        (0..8).for_each(|_| assert!(guest.post_rx(200, &[], false)));
        let mut got = Vec::new();
        guest.device_receives(&mut got);
        assert_eq!(got, frames);
        assert_eq!(guest.reclaim(), 32);
        guest.device_sends(&got);
        assert_eq!(guest.received().into_iter().map(|(_, frame)| frame).collect::<Vec<_>>(), frames);
        let counters = guest.counters();
        let bytes = frames.iter().map(Vec::len).sum::<usize>() as u64;
        assert_eq!(
            (counters.rx_packets, counters.rx_bytes, counters.tx_packets, counters.tx_bytes),
            (32, bytes, 32, bytes)
        );
        guest.end();
    }
}

#[test]
fn a_pool_that_empties_in_the_middle_of_a_burst_leaves_the_rest_in_the_ring() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout | feature::VERSION_1, 32);
        let held: Vec<_> = std::iter::from_fn(|| guest.pool.take_one()).take(27).collect();
        let frames: Vec<_> = (0..20).map(|at| frame(at, 100)).collect();
        frames.iter().for_each(|frame| assert!(guest.send(&Header::default(), frame, &[], false)));
        let mut burst = Burst::new();
        guest.shard.rx(&mut burst);
        guest.shard.flush();
        assert_eq!((burst.len(), guest.reclaim(), guest.counters().rx_no_buffer), (5, 5, 1));
        drop(held);
        let mut got: Vec<_> = burst.drain(..).map(|packet| crate::guest::bytes_of(&packet)).collect();
        guest.device_receives(&mut got);
        assert_eq!((&got, guest.reclaim()), (&frames, 15));
        guest.end();
    }
}

#[test]
fn a_frame_without_enough_buffers_leaves_the_ring_as_it_was() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout | feature::VERSION_1 | net::MRG_RXBUF, 64);
        (0..3).for_each(|_| assert!(guest.post_rx(400, &[], false)));
        guest.device_sends(&[frame(0, 1500)]);
        assert_eq!(guest.counters().tx_full, 1);
        assert_eq!(guest.received(), []);
        assert!(guest.post_rx(400, &[], false));
        guest.device_sends(&[frame(1, 1500), frame(2, 100)]);
        assert_eq!(guest.received(), [(Header { num_buffers: 4, ..Header::default() }, frame(1, 1500))]);
        assert_eq!(guest.counters().tx_full, 2);
        guest.end();
    }
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_dropped() {
    let mut guest = Guest::new(feature::VERSION_1, 64);
    assert!(guest.post_rx(1000, &[12], false));
    guest.device_sends(&[frame(0, 1500), frame(1, 900)]);
    assert_eq!(guest.received(), [(Header { num_buffers: 1, ..Header::default() }, frame(1, 900))]);
    assert_eq!(guest.counters().tx_invalid, 1);
    guest.end();
}

#[test]
fn frames_beyond_the_mtu_are_dropped_both_ways() {
    let mut guest = Guest::new(feature::VERSION_1 | net::MRG_RXBUF, 64);
    assert!(guest.post_rx(4000, &[], false));
    assert!(guest.send(&Header::default(), &frame(0, 1523), &[], false));
    assert!(guest.send(&Header::default(), &frame(1, 1522), &[], false));
    let mut got = Vec::new();
    guest.device_receives(&mut got);
    assert_eq!(got, [frame(1, 1522)]);
    guest.device_sends(&[frame(2, 1523), frame(3, 1522)]);
    assert_eq!(guest.received()[0].1, frame(3, 1522));
    assert_eq!((guest.counters().rx_invalid, guest.counters().tx_invalid), (1, 1));
    guest.end();
}

#[test]
fn an_empty_pool_leaves_packets_in_the_ring() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout | feature::VERSION_1, 32);
        let held: Vec<_> = std::iter::from_fn(|| guest.pool.take_one()).collect();
        assert!(guest.send(&Header::default(), &frame(0, 100), &[], false));
        let mut got = Vec::new();
        guest.device_receives(&mut got);
        assert_eq!((got.len(), guest.reclaim(), guest.counters().rx_no_buffer), (0, 0, 1));
        drop(held);
        guest.device_receives(&mut got);
        assert_eq!((&got, guest.reclaim()), (&vec![frame(0, 100)], 1));
        guest.end();
    }
}

#[test]
fn a_port_without_a_guest_drops_and_counts() {
    let mut guest = Guest::new(feature::VERSION_1, 64);
    guest.shard = crate::stand_alone(&guest.memory, &[], guest.pool.clone(), 1500).unwrap().0;
    let mut burst = Burst::new();
    burst.push(guest.pool.take_one().unwrap());
    assert!(!guest.shard.can_tx());
    guest.shard.tx(&mut burst);
    assert!(burst.is_empty());
    guest.end();
}
