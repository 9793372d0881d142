//! Limits hold within two per cent, over virtual time.

use crate::support::{Ended, Frontend, simple};
use block::{Bdev, Null, NullParams, Op, Qos, QosLimits, Rate, Status};
use clock::Cycles;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;
/// A turn of the virtual workers.
const TURN: Duration = Duration::from_micros(37);

/// Channels of one limited disk and the virtual time that they share.
struct Bench {
    qos: Arc<Qos>,
    frontends: Vec<Frontend>,
    now: Cycles,
    /// Requests to use again.
    spare: Vec<Ended>,
}

impl Bench {
    fn new(channels: usize, limits: QosLimits) -> Bench {
        let qos = Qos::new(Null::create(NullParams::new("n", 512, 1 << 20)).unwrap());
        qos.set_limits(limits);
        let frontends = (0..channels).map(|_| Frontend::new(qos.as_ref())).collect();
        Bench { qos, frontends, now: Cycles::from(Duration::from_secs(1000)), spare: Vec::new() }
    }

    /// Keeps `depth` requests waiting on each channel for `span`, reads and writes in turn where `op` is none. Returns how
    /// many reads and writes were done.
    fn run(&mut self, span: Duration, depth: usize, op: Option<Op>, len: u64) -> [u64; 2] {
        let (end, mut count) = (self.now + span.into(), [0; 2]);
        let mut next = 0;
        while self.now < end {
            for frontend in &mut self.frontends {
                while frontend.outstanding() < depth {
                    next += 1;
                    let op = op.unwrap_or(if next % 2 == 0 { Op::Read } else { Op::Write });
                    let mut request = self.spare.pop().map_or_else(|| simple(op, 0, len), |ended| ended.request);
                    request.op = op;
                    request.len = len;
                    frontend.submit(request, self.now);
                    if frontend.outstanding() == 0 {
                        break; // nothing holds it back: one a turn is enough
                    }
                }
                frontend.poll(self.now);
                for ended in frontend.ended.drain(..) {
                    assert_eq!(ended.status, Status::Ok);
                    count[usize::from(ended.request.op == Op::Write)] += 1;
                    self.spare.push(ended);
                }
            }
            self.now = self.now + TURN.into();
        }
        count
    }

    fn idle(&mut self, span: Duration) {
        self.now = self.now + span.into();
    }
}

fn assert_near(what: &str, got: u64, expected: u64) {
    let off = (got as f64 / expected as f64 - 1.0).abs();
    assert!(off < 0.02, "{what}: {got} instead of {expected}");
}

const SECONDS: u64 = 2;
const SPAN: Duration = Duration::from_secs(SECONDS);

#[test]
fn requests_a_second_over_several_channels() {
    for (channels, rate) in [(1, 50), (1, 20_000), (2, 1000), (4, 50_000)] {
        let mut bench = Bench::new(channels, QosLimits { rw_ios: Rate::new(rate), ..Default::default() });
        let [reads, writes] = bench.run(SPAN, 32, None, BLOCK);
        let slack = rate / 100 + rate / 1000 * channels as u64 + 1; // what is always saved up and lent
        let done = reads + writes;
        assert!(done <= rate * SECONDS + slack + rate / 1000, "{done} of {rate} a second over {channels} channels");
        assert_near("requests", done, rate * SECONDS + slack);
    }
}

#[test]
fn bytes_a_second_also_where_a_request_is_more_than_a_burst() {
    for (rate, len) in [(100 << 20, BLOCK), (10 << 20, 1 << 20), (1 << 30, 128 << 10)] {
        let mut bench = Bench::new(2, QosLimits { rw_bytes: Rate::new(rate), ..Default::default() });
        bench.run(Duration::from_secs(1), 8, Some(Op::Read), len); // spends what was saved up
        let [reads, _] = bench.run(Duration::from_secs(10), 8, Some(Op::Read), len);
        assert_near("bytes", reads * len, rate * 10);
    }
}

#[test]
fn directions_are_limited_apart_and_the_total_binds_both() {
    let limits = QosLimits { r_ios: Rate::new(8000), w_ios: Rate::new(2000), ..Default::default() };
    let mut bench = Bench::new(1, limits);
    bench.run(SPAN, 32, Some(Op::Read), BLOCK);
    assert_near("reads alone", bench.run(SPAN, 32, Some(Op::Read), BLOCK)[0], 8000 * SECONDS);
    assert_near("writes alone", bench.run(SPAN, 32, Some(Op::Write), BLOCK)[1], 2000 * SECONDS + 20);

    let limits = QosLimits { rw_ios: Rate::new(3000), w_bytes: Rate::new(1000 * BLOCK), ..Default::default() };
    let mut bench = Bench::new(1, limits);
    bench.run(SPAN, 32, None, BLOCK);
    // In order, one write for each read: the writes' limit binds both.
    let [reads, writes] = bench.run(SPAN, 32, None, BLOCK);
    assert_near("writes", writes, 1000 * SECONDS);
    assert_near("reads", reads, 1000 * SECONDS);
    assert_near("reads alone", bench.run(SPAN, 32, Some(Op::Read), BLOCK)[0], 3000 * SECONDS);
}

#[test]
fn a_burst_is_saved_up_in_a_pause_and_no_more_than_that() {
    let burst = Rate { per_second: 1000, burst: 5000 };
    let mut bench = Bench::new(1, QosLimits { rw_ios: burst, ..Default::default() });
    bench.run(Duration::from_secs(8), 32, Some(Op::Read), BLOCK);
    assert_near("without a pause", bench.run(SPAN, 32, Some(Op::Read), BLOCK)[0], 1000 * SECONDS);
    bench.idle(Duration::from_secs(3600));
    // At once: as fast as the queue turns over.
    let quick = bench.run(Duration::from_millis(500), 64, Some(Op::Read), BLOCK)[0];
    assert_near("after a pause", quick, 5000 + 500);
}

#[test]
fn limits_change_and_are_lifted_while_requests_wait() {
    let mut bench = Bench::new(2, QosLimits { rw_ios: Rate::new(10), ..Default::default() });
    bench.run(SPAN, 32, Some(Op::Read), BLOCK);
    assert!(bench.frontends.iter().all(|frontend| frontend.outstanding() > 0));

    bench.qos.set_limits(QosLimits { rw_ios: Rate::new(5000), ..Default::default() });
    bench.run(Duration::from_millis(100), 32, Some(Op::Read), BLOCK);
    assert_near("after a change", bench.run(SPAN, 32, Some(Op::Read), BLOCK)[0], 5000 * SECONDS);

    bench.qos.set_limits(QosLimits::default());
    assert_eq!(bench.qos.limits(), QosLimits::default());
    for frontend in &mut bench.frontends {
        frontend.poll(bench.now);
        assert_eq!(frontend.outstanding(), 0, "nothing holds requests back");
    }
}

#[test]
fn a_channel_keeps_its_order_flushes_included() {
    let mut bench = Bench::new(1, QosLimits { w_ios: Rate::new(500), ..Default::default() });
    let frontend = &mut bench.frontends[0];
    for number in 0..300 {
        let op = [Op::Write, Op::Read, Op::Flush, Op::Discard, Op::WriteZeroes { unmap: true }][number % 5];
        frontend.submit(simple(op, 0, if op == Op::Flush { 0 } else { BLOCK }), bench.now);
    }
    bench.run(Duration::from_secs(1), 0, None, BLOCK);
    assert_eq!(bench.frontends[0].outstanding(), 0);

    let frontend = &mut bench.frontends[0];
    for _ in 0..100 {
        frontend.submit(simple(Op::Write, 0, BLOCK), bench.now);
        frontend.submit(simple(Op::Read, 0, BLOCK), bench.now);
    }
    while frontend.outstanding() > 0 {
        bench.now = bench.now + TURN.into();
        frontend.poll(bench.now);
    }
    let owners: Vec<_> = frontend.ended.iter().map(|ended| ended.request.owner).collect();
    assert!(owners.is_sorted(), "{owners:?}");
}

#[test]
fn the_deadline_tells_when_to_poll() {
    let mut bench = Bench::new(1, QosLimits { r_ios: Rate::new(125), ..Default::default() });
    let frontend = &mut bench.frontends[0];
    assert_eq!(frontend.channel.deadline(), Cycles::NEVER);
    for _ in 0..10 {
        frontend.submit(simple(Op::Read, 0, BLOCK), bench.now);
    }
    let mut polls = 0;
    let begin = bench.now;
    frontend.poll(bench.now);
    while frontend.outstanding() > 0 {
        let deadline = frontend.channel.deadline();
        assert!(deadline > bench.now && deadline <= bench.now + Duration::from_millis(10).into());
        bench.now = deadline;
        frontend.poll(bench.now);
        polls += 1;
    }
    // Eight milliseconds earn one; ten milliseconds' worth are saved up: two pass at once, and eight one by one.
    assert_eq!(polls, 8);
    let took = bench.now.since(begin).to_duration();
    assert!(took.abs_diff(Duration::from_millis(62)) < Duration::from_millis(1), "{took:?}");
    assert_eq!(frontend.channel.deadline(), Cycles::NEVER);
}

#[test]
fn resize_is_seen_through_it() {
    let null = Null::create(NullParams::new("n", 512, 8)).unwrap();
    let qos = Qos::new(null.clone());
    null.resize(16).unwrap();
    assert_eq!(qos.geometry().num_blocks, 16);
    assert_eq!(qos.identity(), null.identity());
}

/// Real threads on the real clock: how many pass is up to the machine, but never more than the limit lets.
#[test]
fn workers_that_race_for_tokens_get_no_more_than_there_are() {
    const RATE: u64 = 20_000;
    let qos = Qos::new(Null::create(NullParams::new("n", 512, 1 << 20)).unwrap());
    qos.set_limits(QosLimits { rw_ios: Rate::new(RATE), ..Default::default() });
    let begin = Instant::now();
    let (start, end) = (Barrier::new(3), begin + Duration::from_millis(400));
    let work = || {
        let mut frontend = Frontend::new(qos.as_ref());
        let (mut count, mut spare): (u64, Vec<Ended>) = (0, Vec::new());
        start.wait();
        while Instant::now() < end {
            while frontend.outstanding() < 16 {
                let request = spare.pop().map_or_else(|| simple(Op::Read, 0, BLOCK), |ended| ended.request);
                frontend.submit(request, Cycles::now());
            }
            frontend.poll(Cycles::now());
            count += frontend.ended.len() as u64;
            spare.append(&mut frontend.ended);
        }
        count
    };
    let passed: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    let earned = (begin.elapsed().as_secs_f64() * RATE as f64) as u64;
    let slack = RATE / 100 + 4 * RATE / 1000;
    assert!(passed <= earned + slack, "{passed} passed where {earned} were earned");
    assert!(passed > earned / 10, "{passed} passed where {earned} were earned");
}
