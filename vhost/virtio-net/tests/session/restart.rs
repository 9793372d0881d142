//! This process goes and comes again; the guest does nothing but what its machine monitor does.

use crate::guest::{Guest, frame};
use crate::rig::{PATIENCE, Rig, wait_for};
use std::time::{Duration, Instant};
use virtio_spec::feature;

/// The monitor does not know how far a process got that was killed: the rings do.
#[test]
fn traffic_resumes_by_itself_after_the_process_was_killed() {
    for layout in [0, feature::RING_EVENT_IDX, feature::IN_ORDER] {
        let rig = Rig::new();
        let mut device = rig.device("net", 1);
        let mut guest = Guest::boot(&rig.socket("net"), layout, 1);
        let mut fastest = PATIENCE;
        for _ in 0..3 {
            guest.exchange(0, 300);
            guest.rings[0].refill();
            guest.rings[1].reclaim();
            // Some are under way when it dies.
            (0..20).for_each(|sequence| assert!(guest.rings[1].send(&frame(sequence))));
            device.kill();
            guest.disconnect();
            // Some were sent while there was nobody: they may go lost, as the rings start before they are enabled.
            (20..40).for_each(|sequence| assert!(guest.rings[1].send(&frame(sequence))));
            let start = Instant::now();
            device = rig.device("net", 1);
            guest.connect(&rig.socket("net"));
            guest.start(&[0, 0]);
            assert!(guest.rings[1].send(&frame(40)));
            let mut returned = Vec::new();
            wait_for("the last frame", || {
                returned.extend(guest.rings[0].take());
                returned.last() == Some(&frame(40))
            });
            fastest = fastest.min(start.elapsed());
            // None twice, none out of order, none made up; all chains were given back.
            let mut all = (0..=40).map(frame);
            assert!(returned.iter().all(|got| all.any(|sent| sent == *got)), "{} frames", returned.len());
            let mut reclaimed = 0;
            wait_for("the chains", || {
                reclaimed += guest.rings[1].reclaim();
                reclaimed == 41
            });
        }
        assert!(fastest < Duration::from_secs(1), "took {fastest:?}");
        guest.exchange(0, 300);
        rig.end(device);
    }
}

/// A packed ring has no index that says how far it got: its monitor was told when it stopped the ring.
#[test]
fn a_packed_ring_goes_on_from_the_base_that_the_front_end_was_told() {
    for layout in [0, feature::RING_EVENT_IDX, feature::IN_ORDER] {
        let rig = Rig::new();
        let mut device = rig.device("net", 1);
        let mut guest = Guest::boot(&rig.socket("net"), layout | feature::RING_PACKED, 1);
        for count in [10, 77, 100] {
            guest.exchange(0, count);
            let bases = guest.stop();
            guest.disconnect();
            drop(device);
            device = rig.device("net", 1);
            guest.connect(&rig.socket("net"));
            guest.start(&bases);
        }
        guest.exchange(0, 300);
        rig.end(device);
    }
}
