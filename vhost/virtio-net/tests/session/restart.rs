//! This process goes and comes again; the guest does nothing but what its machine monitor does.

use crate::guest::{Guest, LAYOUTS, frame};
use crate::rig::{PATIENCE, Rig, wait_for};
use std::path::Path;
use std::time::{Duration, Instant};
use virtio_spec::feature;

/// Rings that tell how far a process got that was killed: their monitor does not know. Of the packed ones those whose chains take
/// one descriptor each, not in order.
const TELLING: [u64; 5] = [
    0,
    feature::RING_EVENT_IDX,
    feature::IN_ORDER,
    feature::RING_PACKED | feature::RING_INDIRECT_DESC,
    feature::RING_PACKED | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX,
];

#[test]
fn traffic_resumes_by_itself_after_the_process_was_killed() {
    traffic_resumes(&TELLING, Guest::boot);
}

/// The region tells of the rings that do not: packed ones in order, and with chains of several descriptors.
#[test]
fn traffic_resumes_on_every_ring_with_an_inflight_region() {
    traffic_resumes(&LAYOUTS, Guest::boot_with_inflight);
}

/// Traffic of a guest that `boot` switches on with each of `layouts`, while its device is killed.
fn traffic_resumes(layouts: &[u64], boot: impl Fn(&Path, u64, u16) -> Guest) {
    for &layout in layouts {
        let rig = Rig::new();
        let mut device = rig.device("net", 1);
        let mut guest = boot(&rig.socket("net"), layout, 1);
        let first_bases = guest.bases();
        let mut fastest = PATIENCE;
        for _ in 0..3 {
            guest.exchange(0, 300);
            guest.rings[0].refill();
            wait_for("the chains of the exchange", || guest.rings[1].reclaim_all());
            // Some are under way when it dies.
            (0..20).for_each(|sequence| assert!(guest.rings[1].send(&frame(sequence))));
            device.kill();
            guest.disconnect();
            // Some were sent while there was nobody: they may go lost, as the rings start before they are enabled.
            (20..40).for_each(|sequence| assert!(guest.rings[1].send(&frame(sequence))));
            let start = Instant::now();
            device = rig.device("net", 1);
            guest.connect(&rig.socket("net"));
            guest.start(&first_bases);
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
            wait_for("the chains", || guest.rings[1].reclaim_all());
        }
        assert!(fastest < Duration::from_secs(1), "took {fastest:?}");
        guest.exchange(0, 300);
        rig.end(device);
    }
}

/// A monitor that stopped the rings was told where to go on.
#[test]
fn rings_go_on_from_the_bases_that_the_front_end_was_told() {
    for layout in LAYOUTS {
        let rig = Rig::new();
        let mut device = rig.device("net", 1);
        let mut guest = Guest::boot(&rig.socket("net"), layout, 1);
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
