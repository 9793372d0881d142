//! What guests, peers and operators do wrong: the switch goes on, loses no buffer, and others do not notice.

use super::{BROADCAST, Net, any, frame, frame_of, mac};
use crate::{BridgePort, PortConfig, Security, SwitchError, VlanMode};
use datapath::limits::PENDING_UPCALLS_PER_PORT;
use packet::Packet;
use port::MemoryPort;
use proptest::prelude::*;
use std::sync::Arc;

proptest! {
    #[test]
    fn hostile_frames_leak_no_buffer_and_harm_no_port(frames in prop::collection::vec(prop::collection::vec(0_u8.., 0..120), 1..40)) {
        let secured = BridgePort {
            security: Security { macs: vec![mac(1)], ips: vec!["10.0.0.1".parse().unwrap()] },
            ..any()
        };
        let mut net = Net::new(&[any(), secured, any()]);
        for (n, frame) in frames.iter().enumerate() {
            net.send(n as u32 % 3 + 1, frame);
            if n % 3 == 0 {
                net.settle();
            }
        }
        net.settle();
        (1..=3).for_each(|port| drop(net.received(port)));
        prop_assert_eq!(net.reaches(1, &frame(mac(9), BROADCAST, None)), vec![2, 3]);
        prop_assert_eq!(net.pool.free_count(), net.pool.capacity());
    }
}

#[test]
fn truncated_headers_leak_no_buffer() {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac(1).octets(), &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]].concat();
    let ipv4 = [&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2][..], &[0; 8]].concat();
    let mut ipv6 = vec![0; 64];
    (ipv6[0], ipv6[5], ipv6[6]) = (0x60, 24, 58);
    let security = Security { macs: vec![mac(1)], ips: vec!["10.0.0.1".parse().unwrap()] };
    let mut net = Net::new(&[BridgePort { security, ..any() }, any()]);
    for (ethertype, payload) in [(0x806, arp), (0x800, ipv4), (0x86dd, ipv6), (0x8100, vec![0; 8])] {
        let whole = frame_of(mac(1), BROADCAST, None, ethertype, &payload);
        for len in 0..=whole.len() {
            let reached = net.reaches(1, &whole[..len]);
            let complete = len == whole.len() && matches!(ethertype, 0x806 | 0x800);
            assert!(!complete || reached == [2], "{ethertype:#x}");
            assert!(complete || ethertype == 0x8100 || len < 14 || reached.is_empty(), "{ethertype:#x} {len}");
        }
    }
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}

#[test]
fn ports_vanish_with_traffic_in_flight() {
    let mut net = Net::new(&[any(), any(), any()]);
    for round in 0..20 {
        net.reaches(2, &frame(mac(2), BROADCAST, None));
        for n in 0..50 {
            net.send(1, &frame(mac(1), mac(2), None));
            // Some wait for the translation, some are flooded.
            net.send(2, &frame(mac(100 + n), BROADCAST, None));
        }
        if round % 2 == 0 {
            net.poll();
        }
        net.remove_port("2");
        net.settle();
        let left: Vec<Packet> = std::iter::from_fn(|| net.wires[1].receive()).collect();
        drop(left);
        [1, 3].into_iter().for_each(|port| drop(net.received(port)));
        assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [3], "unknown again");
        // It comes back with the same number; what was on the old wire is gone with it.
        let (port, wire) = MemoryPort::new(256);
        net.wires[1] = wire;
        net.plug("2", Arc::new(port));
        assert_eq!(net.pool.free_count(), net.pool.capacity(), "round {round}");
    }
}

#[test]
fn an_empty_pool_costs_copies_and_nothing_else() {
    let mut net = Net::new(&[any(), any(), any()]);
    net.reaches(1, &frame(mac(1), BROADCAST, None));
    net.send(1, &frame(mac(1), BROADCAST, None));
    let hoard: Vec<Packet> = std::iter::from_fn(|| net.pool.take_one()).collect();
    net.settle();
    let reached: usize = (2..=3).map(|port| net.received(port).len()).sum();
    assert_eq!(reached, 1, "the last output takes the packet itself");
    assert_eq!(net.port(1).path.no_buffer, 1);
    drop(hoard);
    assert_eq!(net.reaches(1, &frame(mac(1), BROADCAST, None)), [2, 3]);
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}

#[test]
fn a_port_that_floods_upcalls_does_not_starve_others() {
    let mut net = Net::new(&[any(), any(), any()]);
    net.reaches(3, &frame(mac(3), BROADCAST, None));
    let hostile = |n: u32| {
        let mut frame = frame(mac(0), BROADCAST, None);
        // Nobody else's address.
        frame[7] = 1;
        frame[8..12].copy_from_slice(&n.to_be_bytes());
        frame
    };
    for round in 0..8 {
        (0..200).for_each(|n| net.send(1, &hostile(round * 200 + n)));
        net.send(2, &frame(mac(20 + round as u8), mac(3), None));
        for _ in 0..8 {
            net.poll();
        }
        assert!(net.port(1).path.upcall_full > 0);
        // One turn of the translation is enough for who asked once.
        let waiting = PENDING_UPCALLS_PER_PORT as usize + 1;
        let mut translated = 0;
        while translated < waiting {
            translated += net.handle_upcalls();
            net.poll();
        }
        net.poll();
        assert_eq!(net.received(3).iter().filter(|f| f[6..12] == mac(20 + round as u8).octets()).count(), 1);
        net.settle();
        (1..=3).for_each(|port| drop(net.received(port)));
    }
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}

#[test]
fn upcalls_of_a_port_are_rate_limited() {
    let mut net = Net::new(&[any()]);
    let (port, wire) = MemoryPort::new(256);
    net.wires.push(wire);
    net.plug_with("2", Arc::new(port), &PortConfig { number: Some(2), upcall_pps: Some(1) });
    for n in 0..100 {
        net.send(2, &frame(mac(n + 1), BROADCAST, None));
        net.settle();
    }
    let path = net.port(2).path;
    assert!((32..=40).contains(&path.upcalls), "{path:?}");
    assert_eq!(path.upcalls + path.upcall_limited, 100);
}

#[test]
fn spoofed_packets_never_make_a_flow_that_lets_them_pass() {
    let security = Security { macs: vec![mac(1)], ips: vec!["10.0.0.1".parse().unwrap()] };
    let mut net = Net::new(&[BridgePort { security, ..any() }, any()]);
    let ipv4 = |last: u8| {
        let header = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, last, 10, 0, 0, 9];
        [&header[..], &[0; 26]].concat()
    };
    for n in 1..40 {
        let (source, last) = (n % 3 + 1, n % 4 + 1);
        let reached = net.reaches(1, &frame_of(mac(source), BROADCAST, None, 0x800, &ipv4(last)));
        assert_eq!(!reached.is_empty(), (source, last) == (1, 1));
    }
    for flow in net.state().flow_reports().into_iter().map(|report| report.flow) {
        if flow.actions.is_empty() {
            continue;
        }
        let (mask, key) = (flow.mask, flow.key);
        assert_eq!((mask.get(flow::field::ETH_SRC), key.get(flow::field::ETH_SRC)), (0xffff_ffff_ffff, mac(1).bits()));
        assert_eq!((mask.get(flow::field::IPV4_SRC), key.get(flow::field::IPV4_SRC)), (0xffff_ffff, 0x0a00_0001));
    }
}

#[test]
fn bad_settings_are_refused_and_nothing_changes() {
    let net = Net::new(&[any(), any()]);
    let state = &net.switch;
    let bad_vlan = BridgePort { vlan: VlanMode::Access { vlan: 4095 }, ..any() };
    assert!(matches!(state.attach("br", "1", bad_vlan), Err(SwitchError::Invalid(error)) if error.field == "tag"));
    assert!(matches!(state.attach("br", "7", any()), Err(SwitchError::NoSuch { kind: "port", .. })));
    assert!(matches!(state.attach("no", "1", any()), Err(SwitchError::NoSuch { kind: "bridge", .. })));
    assert!(matches!(state.delete_bridge("br"), Err(SwitchError::Busy { .. })));
    assert!(matches!(state.create_bridge("br", Default::default()), Err(SwitchError::Exists { .. })));
    state.create_bridge("other", Default::default()).unwrap();
    assert!(matches!(state.attach("other", "1", any()), Err(SwitchError::Busy { .. })));
    assert_eq!(state.bridges()[0].ports.len(), 2);
}
