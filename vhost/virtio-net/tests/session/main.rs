//! A controller with its socket, its session and a worker that sleeps, against rust-vmm's front-end and a driver of ours.

mod guest;
mod kicks;
mod restart;
mod rig;

use guest::{Guest, LAYOUTS, NET_SET_MTU, SEND_RARP, frame};
use port::{Port, QueueReport};
use rig::{MTU, Rig, wait_for};
use virtio_spec::net::feature as net;

#[test]
fn every_layout_is_woken_and_calls() {
    for layout in LAYOUTS {
        let rig = Rig::new();
        let device = rig.device("net", 1);
        let mut guest = Guest::boot(&rig.socket("net"), layout, 1);
        guest.exchange(0, 500);
        assert_eq!(device.counters().rx_packets, 500);
        rig.end(device);
    }
}

#[test]
fn a_driver_is_notified_once_after_the_start_then_on_request() {
    for layout in LAYOUTS {
        let rig = Rig::new();
        let device = rig.device("net", 1);
        let mut guest = Guest::boot(&rig.socket("net"), layout, 1);
        guest.rings.iter_mut().for_each(|ring| ring.set_interrupts(false));
        guest.rings.iter_mut().for_each(|ring| ring.wait_for_call());
        for sequence in 0..100 {
            guest.rings[0].refill();
            guest.rings[1].reclaim();
            assert!(guest.rings[1].send(&frame(sequence)));
            assert_eq!(guest.rings[0].poll(1), [frame(sequence)]);
        }
        assert!(guest.rings.iter_mut().all(|ring| !ring.was_called()));
        rig.end(device);
    }
}

#[test]
fn queue_pairs_come_and_go_at_run_time() {
    for layout in LAYOUTS {
        let rig = Rig::new();
        let device = rig.device("net", 2);
        let mut guest = Guest::boot(&rig.socket("net"), layout | net::MQ | net::CTRL_VQ, 2);
        assert_eq!((device.info().rx_queues, device.info().tx_queues), (1, 1));
        guest.exchange(0, 100);
        // A disabled pair: what the guest sends is thrown away, and given back.
        for sequence in 0..40 {
            assert!(guest.rings[3].send(&frame(sequence)));
        }
        let mut reclaimed = 0;
        wait_for("the chains of a disabled ring", || {
            reclaimed += guest.rings[3].reclaim();
            reclaimed == 40
        });
        guest.enable(1, true);
        assert_eq!((device.info().rx_queues, device.info().tx_queues), (2, 2));
        // Pair 0 goes: all comes back on pair 1.
        guest.enable(0, false);
        guest.exchange(1, 100);
        guest.enable(0, true);
        guest.enable(1, false);
        guest.exchange(0, 100);
        assert_eq!(device.counters().rx_packets, 300);
        rig.end(device);
    }
}

#[test]
fn a_pair_moves_between_workers_that_sleep() {
    for layout in LAYOUTS {
        let Some(rig) = Rig::on(&[0, 1]) else { return println!("skipped: needs two CPUs") };
        let device = rig.device("net", 2);
        let mut guest = Guest::boot(&rig.socket("net"), layout | net::MQ | net::CTRL_VQ, 2);
        let queues = || device.controller().rx_queues();
        assert_eq!(queues().iter().map(|queue| queue.worker).collect::<Vec<_>>(), [Some(0), Some(1)]);
        for (turn, worker) in [1, 0, 0, 1].into_iter().enumerate() {
            device.controller().move_rx_queue(0, &rig.engine.workers()[worker]).unwrap();
            guest.exchange(0, 100);
            assert_eq!(queues()[0], QueueReport { worker: Some(worker), packets: (turn as u64 + 1) * 100 });
        }
        assert_eq!(queues()[1], QueueReport { worker: Some(1), packets: 0 });
        let refused = device.controller().move_rx_queue(2, &rig.engine.workers()[0]).unwrap_err();
        assert_eq!(refused.to_string(), "queue: got 2, expected 0 to 1");
        rig.end(device);
    }
}

#[test]
fn a_rarp_is_sent_for_the_guest_after_migration() {
    let rig = Rig::new();
    let device = rig.device("net", 1);
    let mut guest = Guest::boot(&rig.socket("net"), 0, 1);
    guest.rings[0].refill();
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    let [a, b, c, d, e, f] = mac;
    guest.ask(SEND_RARP, [a, b, c, d, e, f, 0, 0]);
    // The other end of the switch is the guest itself.
    let rarp = guest.rings[0].poll(1).remove(0);
    assert_eq!((&rarp[..6], &rarp[6..12], &rarp[12..14]), (&[0xff; 6][..], &mac[..], &[0x80, 0x35][..]));
    assert_eq!(rarp[14..22], [0, 1, 8, 0, 6, 4, 0, 3], "request reverse");
    assert_eq!((&rarp[22..28], &rarp[32..38]), (&mac[..], &mac[..]));
    rig.end(device);
}

#[test]
fn the_front_end_sets_the_mtu_for_its_session() {
    let rig = Rig::new();
    let device = rig.device("net", 1);
    let mut guest = Guest::boot(&rig.socket("net"), 0, 1);
    guest.ask(NET_SET_MTU, 600_u64.to_ne_bytes());
    assert_eq!(device.info().mtu, 600);
    guest.rings[0].refill();
    let (long, longest) = (frame(600 + 22 + 1 - 60), frame(600 + 22 - 60));
    assert!(guest.rings[1].send(&long) && guest.rings[1].send(&longest));
    assert_eq!(guest.rings[0].poll(1), [longest]);
    assert_eq!(device.counters().rx_invalid, 1);
    guest.disconnect();
    wait_for("the MTU that it was made with", || device.info().mtu == MTU);
    rig.end(device);
}

#[test]
fn the_link_is_up_while_rings_run_both_ways() {
    let rig = Rig::new();
    let device = rig.device("net", 1);
    assert!(!device.info().link_up);
    let mut guest = Guest::boot(&rig.socket("net"), 0, 1);
    assert!(device.info().link_up);
    guest.enable(0, false);
    assert!(!device.info().link_up);
    guest.enable(0, true);
    guest.exchange(0, 10);
    guest.stop();
    assert!(!device.info().link_up);
    rig.end(device);
}

#[test]
fn frames_that_are_all_refused_go_back_to_the_driver() {
    for layout in LAYOUTS {
        let rig = Rig::new();
        let device = rig.device("net", 1);
        let mut guest = Guest::boot(&rig.socket("net"), layout, 1);
        assert!(guest.rings[1].send(&frame(usize::from(MTU) - 1)[..10]));
        wait_for("the runt's chain", || guest.rings[1].reclaim() == 1);
        assert_eq!(device.counters().rx_invalid, 1);
        rig.end(device);
    }
}
