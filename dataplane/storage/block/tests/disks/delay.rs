//! Latencies, over virtual time.

use crate::support::{Frontend, simple};
use block::{
    Bdev, BlockError, Delay, DelayParams, ErrorInjection, Injection, LatencyType, Null, NullParams, Op, OpKind, Status,
};
use clock::Cycles;
use std::sync::Arc;
use std::time::Duration;

const MICROS: [u64; 4] = [1000, 5000, 2000, 9000];

fn null() -> Arc<dyn Bdev> {
    Null::create(NullParams::new("n", 512, 1 << 20)).unwrap()
}

fn delay(base: Arc<dyn Bdev>) -> Arc<Delay> {
    let latencies = MICROS.map(Duration::from_micros);
    Delay::create(DelayParams { name: "slow".into(), base, uuid: None, latencies }).unwrap()
}

/// Polls at each deadline until nothing is left.
fn drain(frontend: &mut Frontend, mut now: Cycles) {
    while frontend.outstanding() > 0 {
        now = now.max(frontend.channel.deadline());
        assert_ne!(now, Cycles::NEVER, "requests wait and no time is told");
        frontend.poll(now);
    }
    assert_eq!(frontend.channel.deadline(), Cycles::NEVER);
}

#[test]
fn one_in_a_hundred_is_slower() {
    for (op, average, p99) in [(Op::Read, MICROS[0], MICROS[1]), (Op::Write, MICROS[2], MICROS[3])] {
        let mut frontend = Frontend::new(delay(null()).as_ref());
        let start = Cycles::from(Duration::from_secs(5));
        for _ in 0..20_000 {
            frontend.submit(simple(op, 0, 512), start);
        }
        frontend.poll(start);
        assert!(frontend.ended.is_empty());
        drain(&mut frontend, start);
        let took = |us: u64| {
            let at = start + Duration::from_micros(us).into();
            frontend.ended.iter().filter(|ended| ended.at == at).count()
        };
        assert_eq!(took(average) + took(p99), 20_000, "{op:?}");
        // 200 are expected, with a standard deviation of 14.
        assert!((100..=300).contains(&took(p99)), "{} of 20000 are slow", took(p99));
    }
}

#[test]
fn flush_discard_and_failures_are_not_held_back() {
    let failing = ErrorInjection::create(null(), None).unwrap();
    failing.inject(Some(OpKind::Read), Injection { num: 1, ..Default::default() }).unwrap();
    let mut frontend = Frontend::new(delay(failing).as_ref());
    let now = Cycles(1 << 40);
    frontend.submit(simple(Op::Flush, 0, 0), now);
    frontend.submit(simple(Op::Discard, 0, 512), now);
    frontend.submit(simple(Op::Read, 0, 512), now);
    frontend.poll(now);
    frontend.ended.sort_by_key(|ended| ended.request.owner);
    let ended: Vec<_> = frontend.ended.iter().map(|ended| (ended.request.op, ended.status)).collect();
    assert_eq!(ended, [(Op::Flush, Status::Ok), (Op::Discard, Status::Ok), (Op::Read, Status::IoError)]);
}

#[test]
fn a_latency_can_be_changed() {
    let disk = delay(null());
    let mut frontend = Frontend::new(disk.as_ref());
    disk.update(LatencyType::AvgRead, Duration::ZERO);
    disk.update(LatencyType::P99Read, Duration::ZERO);
    disk.update(LatencyType::AvgWrite, Duration::from_millis(77));
    disk.update(LatencyType::P99Write, Duration::from_millis(77));
    let now = Cycles(1 << 40);
    frontend.submit(simple(Op::Read, 0, 512), now);
    frontend.submit(simple(Op::Write, 0, 512), now);
    frontend.poll(now);
    assert_eq!(frontend.outstanding(), 1);
    drain(&mut frontend, now);
    assert_eq!(frontend.ended[1].at, now + Duration::from_millis(77).into());
}

#[test]
fn a_percentile_below_its_average_is_refused() {
    for (wrong, latencies) in [("p99_read_latency", [2, 1, 0, 0]), ("p99_write_latency", [0, 0, 2, 1])] {
        let latencies = latencies.map(Duration::from_micros);
        match Delay::create(DelayParams { name: "d".into(), base: null(), uuid: None, latencies }).map(|_| ()) {
            Err(BlockError::Invalid(e)) => assert_eq!(e.field, wrong),
            other => panic!("{other:?}"),
        }
    }
}
