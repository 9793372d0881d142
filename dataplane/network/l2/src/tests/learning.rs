//! What a bridge does with packets, seen from its ports.

use super::{BROADCAST, Net, access, any, frame, mac, trunk};
use crate::mac_table::FdbKey;
use std::time::Duration;

#[test]
fn unknown_destinations_are_flooded_until_learned() {
    let mut net = Net::new(&[any(), any(), any()]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2, 3]);
    assert_eq!(net.reaches(2, &frame(mac(2), mac(1), None)), [1]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2], "the flow that flooded is another now");
    assert_eq!(net.reaches(3, &frame(mac(3), BROADCAST, None)), [1, 2]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(1), None)), [0; 0], "it is behind the same port");
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}

#[test]
fn a_flow_makes_one_upcall() {
    let mut net = Net::new(&[any(), any()]);
    net.reaches(1, &frame(mac(1), BROADCAST, None));
    let asked = net.upcalls();
    for _ in 0..100 {
        assert_eq!(net.reaches(1, &frame(mac(1), BROADCAST, None)), [2]);
    }
    assert_eq!(net.upcalls(), asked);
}

#[test]
fn packets_of_pending_upcalls_leave_in_order() {
    let mut net = Net::new(&[any(), any()]);
    let numbered = |n: u8| {
        let mut frame = frame(mac(1), mac(2), None);
        frame[20] = n;
        frame
    };
    (0..10).for_each(|n| net.send(1, &numbered(n)));
    net.poll();
    assert!(net.received(2).is_empty());
    (10..16).for_each(|n| net.send(1, &numbered(n)));
    net.poll();
    net.handle_upcalls();
    (16..30).for_each(|n| net.send(1, &numbered(n)));
    net.settle();
    assert!(net.received(2).iter().map(|frame| frame[20]).eq(0..30));
}

#[test]
fn packets_of_one_burst_go_to_different_ports() {
    let mut net = Net::new(&[any(), any(), any()]);
    for station in [2, 3] {
        net.reaches(station, &frame(mac(station as u8), BROADCAST, None));
        assert_eq!(net.reaches(1, &frame(mac(1), mac(station as u8), None)), [station]);
    }
    // Trains of several lengths, and one packet in their midst that no flow matches yet.
    for to in [2, 3, 3, 2, 9, 2, 3, 2] {
        net.send(1, &frame(mac(1), mac(to), None));
    }
    net.settle();
    for (port, count) in [(2, 4), (3, 3)] {
        let mut received = net.received(port);
        let flooded = frame(mac(1), mac(9), None);
        assert!(received.contains(&flooded), "port {port}");
        received.retain(|packet| *packet != flooded);
        assert_eq!(received, vec![frame(mac(1), mac(port as u8), None); count], "port {port}");
    }
}

#[test]
fn a_station_that_moves_is_found_at_its_new_port_at_once() {
    let mut net = Net::new(&[any(), any(), any()]);
    net.reaches(2, &frame(mac(2), BROADCAST, None));
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2]);
    net.reaches(3, &frame(mac(2), BROADCAST, None));
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [3]);
    net.reaches(2, &frame(mac(2), BROADCAST, None));
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2], "and back, by a flow that was there before");
}

#[test]
fn stations_age_unless_their_flows_are_in_use() {
    let mut net = Net::new(&[any(), any(), any()]);
    net.reaches(2, &frame(mac(2), BROADCAST, None));
    net.reaches(3, &frame(mac(3), BROADCAST, None));
    for _ in 0..3 {
        net.reaches(2, &frame(mac(2), BROADCAST, None));
        net.sweep_after(Duration::from_secs(150));
    }
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(3), None)), [2, 3], "forgotten");
}

#[test]
fn vlans_are_isolated_and_tags_are_added_and_removed() {
    let mut net = Net::new(&[access(10), access(10), access(20), trunk(&[10, 20], None), trunk(&[20], Some(10))]);
    net.send(1, &frame(mac(1), BROADCAST, None));
    net.settle();
    assert_eq!(net.received(2), [frame(mac(1), BROADCAST, None)]);
    assert!(net.received(3).is_empty());
    assert_eq!(net.received(4), [frame(mac(1), BROADCAST, Some(10))]);
    assert_eq!(net.received(5), [frame(mac(1), BROADCAST, None)]);
    net.send(4, &frame(mac(4), mac(1), Some(10)));
    net.settle();
    assert_eq!(net.received(1), [frame(mac(4), mac(1), None)]);
    assert_eq!(net.reaches(4, &frame(mac(4), mac(1), Some(20))), [3, 5], "unknown in the other VLAN");
    assert_eq!(net.reaches(4, &frame(mac(4), mac(1), None)), [0; 0], "not of a VLAN that the trunk carries");
    assert_eq!(net.reaches(1, &frame(mac(1), BROADCAST, Some(10))), [0; 0], "an access port takes no tags");
}

#[test]
fn changed_port_settings_apply_to_existing_flows() {
    let mut net = Net::new(&[access(10), access(10), access(20)]);
    net.reaches(2, &frame(mac(2), BROADCAST, None));
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2]);
    net.switch.attach("br", "1", access(20)).unwrap();
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [3]);
    assert_eq!(net.reaches(3, &frame(mac(3), mac(1), None)), [1], "learned in its new VLAN");
    net.switch.detach("br", "3").unwrap();
    assert_eq!(net.reaches(3, &frame(mac(3), mac(1), None)), [0; 0]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(3), None)), [0; 0]);
}

#[test]
fn link_local_frames_are_not_forwarded() {
    let mut net = Net::new(&[any(), any()]);
    let bpdu = "01:80:c2:00:00:00".parse().unwrap();
    assert_eq!(net.reaches(1, &frame(mac(1), bpdu, None)), [0; 0]);
    assert_eq!(net.reaches(1, &frame(BROADCAST, mac(2), None)), [0; 0], "a group cannot send");
    assert_eq!(net.reaches(1, &frame(crate::Mac::new(0), mac(2), None)), [0; 0]);
}

#[test]
fn static_entries_survive_a_flush_and_learned_ones_do_not() {
    let mut net = Net::new(&[any(), any(), any()]);
    let station = FdbKey { vlan: 0, mac: mac(9) };
    net.switch.pin("br", station, "3").unwrap();
    net.reaches(2, &frame(mac(9), BROADCAST, None));
    assert_eq!(net.reaches(1, &frame(mac(1), mac(9), None)), [3], "what an operator said is not learned anew");
    assert_eq!(net.switch.flush("br", None).unwrap(), 1);
    assert_eq!(net.reaches(2, &frame(mac(2), mac(1), None)), [1, 3]);
    net.reaches(1, &frame(mac(1), mac(9), None));
    assert_eq!(net.reaches(2, &frame(mac(2), mac(1), None)), [1]);
}

#[test]
fn idle_flows_are_removed() {
    let mut net = Net::new(&[any(), any()]);
    net.reaches(1, &frame(mac(1), BROADCAST, None));
    assert_eq!(net.switch.megaflows(), 1);
    let ufid = net.state().flow_reports()[0].flow.ufid;
    assert!(!net.sweep_idle(ufid));
    assert_eq!(net.switch.megaflows(), 0);
    net.settle();
    let asked = net.upcalls();
    net.reaches(1, &frame(mac(1), BROADCAST, None));
    assert_eq!(net.upcalls(), asked + 1, "it is in no cache any more");
}

#[test]
fn flooding_is_rate_limited() {
    let limited = crate::BridgePort { flood_pps: Some(1), ..any() };
    let mut net = Net::new(&[limited, any()]);
    for _ in 0..200 {
        net.send(1, &frame(mac(1), BROADCAST, None));
        net.settle();
    }
    let flooded = net.received(2).len();
    assert!((32..=40).contains(&flooded), "{flooded}");
    net.reaches(2, &frame(mac(2), mac(1), None));
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2], "known stations are reached");
    assert_eq!(net.port(1).path.metered, 200 - flooded as u64);
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}
