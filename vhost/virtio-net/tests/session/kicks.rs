//! Front-ends that kick never, or all the time: they harm only themselves.

use crate::guest::{Guest, LAYOUTS, frame};
use crate::rig::Rig;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_guest_that_never_kicks_waits_alone() {
    for layout in LAYOUTS {
        let rig = Rig::new();
        let (silent, other) = (rig.device("silent", 1), rig.device("other", 1));
        let mut guest = Guest::boot(&rig.socket("silent"), layout, 1);
        let mut neighbour = Guest::boot(&rig.socket("other"), layout, 1);
        guest.rings[0].refill();
        (0..30).for_each(|sequence| assert!(guest.rings[1].put(&frame(sequence))));
        neighbour.exchange(0, 300);
        // One kick, ever, is enough for all.
        guest.rings[1].kick.write(1).unwrap();
        assert_eq!(guest.rings[0].poll(30), (0..30).map(frame).collect::<Vec<_>>());
        drop(other);
        rig.end(silent);
    }
}

#[test]
fn a_flood_of_kicks_does_not_starve_other_guests() {
    let rig = Rig::new();
    let (loud, other) = (rig.device("loud", 1), rig.device("other", 1));
    let guest = Guest::boot(&rig.socket("loud"), 0, 1);
    let mut neighbour = Guest::boot(&rig.socket("other"), 0, 1);
    // On the ring that is never kicked as well.
    let kicks: Vec<_> = guest.rings.iter().map(|ring| ring.kick.try_clone().unwrap()).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Now and then the counter is full.
                kicks.iter().for_each(|kick| drop(kick.write(1 << 40)));
            }
        });
        neighbour.exchange(0, 1000);
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!((loud.counters().rx_packets, other.counters().rx_packets), (0, 1000));
    drop(other);
    rig.end(loud);
}
