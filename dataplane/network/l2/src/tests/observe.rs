//! Limits of what comes in by a port, and captures.

use super::{BROADCAST, Net, any, frame, mac};
use crate::{Capture, Captured, DropReason, Observed, RateLimit, SwitchError};
use std::sync::Arc;

impl Net {
    fn limit(&mut self, port: &str, limit: RateLimit) {
        self.switch.limit_port(port, limit).unwrap();
        self.settle();
    }

    fn capture(&mut self, port: &str, packets: usize, snap_len: usize) -> Arc<Capture> {
        let capture = Capture::new(packets, snap_len).unwrap();
        self.switch.start_capture(port, &capture).unwrap();
        self.settle();
        capture
    }
}

fn all(capture: &Capture) -> Vec<Captured> {
    std::iter::from_fn(|| capture.take()).collect()
}

fn observed(capture: &Capture) -> Vec<Observed> {
    all(capture).iter().map(|captured| captured.observed).collect()
}

#[test]
fn packets_beyond_a_ports_limit_are_dropped_and_counted() {
    let mut net = Net::with_workers(2, &[any(), any()]);
    // In the time that the test takes nothing is added to the burst.
    net.limit("1", RateLimit { packets_per_second: Some(1), ..RateLimit::default() });
    (0..100).for_each(|_| net.send(1, &frame(mac(1), BROADCAST, None)));
    net.settle();
    assert_eq!(net.received(2).len(), 32);
    net.send(2, &frame(mac(2), BROADCAST, None));
    net.settle();
    assert_eq!(net.received(1).len(), 1, "the other port is not limited");
    let report = net.switch.ports().remove(0);
    assert_eq!((report.path.rate_limited, report.limit.packets_per_second), (68, Some(1)));

    let burst_bytes = Some(RateLimit::MIN_BURST_BYTES);
    net.limit("1", RateLimit { bits_per_second: Some(8), burst_bytes, ..RateLimit::default() });
    let mut turn = || {
        (0..100).for_each(|_| net.send(1, &frame(mac(1), BROADCAST, None)));
        net.settle();
        net.received(2).len()
    };
    let passed: usize = (0..100).map(|_| turn()).sum();
    assert_eq!(passed, 128 * 1024 / 60);

    net.limit("1", RateLimit::default());
    assert_eq!(net.reaches(1, &frame(mac(1), BROADCAST, None)), [2]);
    let tiny = RateLimit { bits_per_second: Some(1000), burst_bytes: Some(1500), ..RateLimit::default() };
    let refused = net.switch.limit_port("1", tiny);
    assert!(matches!(refused, Err(SwitchError::Invalid(error)) if error.field == "burst_bytes"));
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}

#[test]
fn a_capture_sees_received_sent_and_dropped_packets() {
    let mut net = Net::new(&[any(), any(), any()]);
    let capture = net.capture("1", 64, 20);
    let sent = frame(mac(1), BROADCAST, None);
    net.reaches(1, &sent);
    net.reaches(2, &frame(mac(2), mac(1), None));
    net.reaches(2, &frame(mac(2), mac(3), None));
    let seen = all(&capture);
    assert_eq!(
        seen.iter().map(|one| one.observed).collect::<Vec<_>>(),
        [Observed::Received, Observed::Sent, Observed::Sent]
    );
    assert_eq!((seen[0].packet.data(), seen[0].len), (&sent[..20], sent.len()));
    assert!(seen[0].time <= seen[1].time);

    // A frame to its own sender goes nowhere.
    net.reaches(1, &frame(mac(1), mac(1), None));
    assert_eq!(observed(&capture), [Observed::Received, Observed::Dropped(DropReason::FlowDrop)]);
    net.limit("1", RateLimit { packets_per_second: Some(1), ..RateLimit::default() });
    (0..40).for_each(|_| net.send(1, &sent));
    net.settle();
    let limited = observed(&capture).iter().filter(|one| **one == Observed::Dropped(DropReason::RateLimited)).count();
    assert_eq!((limited, capture.lost()), (8, 0));

    let busy = net.switch.start_capture("1", &capture);
    assert!(matches!(busy, Err(SwitchError::Busy { .. })));
    net.switch.stop_capture("1").unwrap();
    net.settle();
    assert_eq!(Arc::strong_count(&capture), 1, "the worker has let go of it");
    net.reaches(2, &frame(mac(2), mac(1), None));
    assert!(capture.take().is_none());
}

#[test]
fn a_capture_without_a_reader_loses_only_its_own_copies() {
    let mut net = Net::new(&[any(), any()]);
    let capture = net.capture("1", 32, 65535);
    for _ in 0..10 {
        (0..10).for_each(|_| net.send(1, &frame(mac(1), BROADCAST, None)));
        net.settle();
    }
    assert_eq!(net.received(2).len(), 100);
    assert_eq!((all(&capture).len(), capture.lost()), (32, 68));
    net.remove_port("1");
    assert_eq!(Arc::strong_count(&capture), 1);
}
