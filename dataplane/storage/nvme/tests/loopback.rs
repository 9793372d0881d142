//! Initiator and target over real sockets on loopback.

use block::{Bdev, Op, Status};
use initiator::testing::{EventLog, Worker, pattern, request_with, wait_for};
use nvme::target::{Access, Faults, MemoryStore, Misbehaviour, Namespace, Server, Store, Target, TargetConfig};
use nvme::{
    AttachError, AttachParams, ConnectionEvent, Event, NvmeController, NvmeEvent, Phase, RecoveryOptions, no_events,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const NQN: &str = "nqn.2024-01.org.sluice:test";
const DISK: usize = 8 << 20;

struct Bench {
    target: Arc<Target>,
    store: Arc<MemoryStore>,
    server: Option<Server>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(TargetConfig::new(NQN))
    }

    fn with(config: TargetConfig) -> Bench {
        let target = Target::new(config, 7);
        let store = Arc::new(MemoryStore::new(DISK));
        target.set_namespace(1, namespace(store.clone(), 1));
        let server = Some(Server::start(target.clone(), "127.0.0.1:0").unwrap());
        Bench { target, store, server }
    }

    fn params(&self) -> AttachParams {
        let mut params = AttachParams::new("Nvme0", self.server.as_ref().unwrap().address(), NQN);
        params.options.keep_alive_timeout_ms = 1000;
        params
    }
}

fn first_disk(controller: &NvmeController) -> Arc<dyn Bdev> {
    controller.namespaces()[0].1.clone()
}

fn namespace(store: Arc<MemoryStore>, id: u128) -> Namespace {
    Namespace { store, block_size: 512, access: Access::ReadWrite, uuid: Uuid::from_u128(id) }
}

#[test]
fn reads_back_what_was_written_with_every_digest_and_alignment() {
    let bench = Bench::new();
    for (digests, cpda) in [(0, 0), (1, 3), (2, 31), (3, 0), (3, 31)] {
        let faults = Faults { cpda, r2ts: 4, r2t_len: 20_000 / 4 * 4, max_h2c_data: 4096, ..Faults::default() };
        bench.target.set_faults(faults);
        let mut params = bench.params();
        params.hdgst = digests & 1 != 0;
        params.ddgst = digests & 2 != 0;
        let controller = NvmeController::attach(&params, no_events()).unwrap();
        let disk = first_disk(&controller);
        assert_eq!(disk.geometry().size_bytes(), DISK as u64);
        let mut worker = Worker::open(&*disk);
        for (i, len) in [512, 4096, 8192, 8704, 65536, 131_072, 1 << 20, 3 << 20].into_iter().enumerate() {
            let bytes = pattern(i as u64 + cpda as u64, len);
            assert_eq!(worker.write(512 * i as u64, &bytes), Status::Ok, "{len} digests {digests}");
            let (back, status) = worker.read(512 * i as u64, len);
            assert_eq!(status, Status::Ok);
            assert!(back == bytes, "{len} bytes differ, digests {digests}, CPDA {cpda}");
            let mut stored = vec![0; len];
            bench.store.read(512 * i as u64, &mut stored).unwrap();
            assert!(stored == bytes, "{len} bytes differ in the store");
        }
    }
}

#[test]
fn discard_write_zeroes_and_flush() {
    let bench = Bench::new();
    let controller = NvmeController::attach(&bench.params(), no_events()).unwrap();
    let mut worker = Worker::open(&*first_disk(&controller));
    let bytes = pattern(3, 1 << 20);
    assert_eq!(worker.write(0, &bytes), Status::Ok);
    assert_eq!(worker.range(Op::Flush, 0, 0), Status::Ok);
    assert_eq!(worker.range(Op::Discard, 4096, 8192), Status::Ok);
    assert_eq!(worker.range(Op::WriteZeroes { unmap: true }, 65_536, 512), Status::Ok);
    let mut expected = bytes;
    expected[4096..12_288].fill(0);
    expected[65_536..66_048].fill(0);
    let (back, status) = worker.read(0, 1 << 20);
    assert!(status == Status::Ok && back == expected);
}

/// In the capsule and by R2T, in one command and in several; a difference anywhere is found, and is no error of the disk.
#[test]
fn a_compare_finds_what_differs_with_every_digest() {
    let bench = Bench::new();
    for (digests, cpda) in [(0, 0), (1, 3), (2, 31), (3, 0)] {
        bench.target.set_faults(Faults { cpda, r2ts: 4, r2t_len: 20_000, max_h2c_data: 4096, ..Faults::default() });
        let mut params = bench.params();
        params.hdgst = digests & 1 != 0;
        params.ddgst = digests & 2 != 0;
        let controller = NvmeController::attach(&params, no_events()).unwrap();
        let disk = first_disk(&controller);
        assert!(disk.geometry().compare);
        let mut worker = Worker::open(&*disk);
        for len in [512, 8192, 65_536, 3 << 20] {
            let bytes = pattern(len as u64 + digests, len);
            bench.store.write(1024, &bytes).unwrap();
            assert_eq!(worker.compare(1024, &bytes), Status::Ok, "{len} digests {digests}");
            for at in [0, len / 2, len - 1] {
                let mut wrong = bytes.clone();
                wrong[at] ^= 1;
                assert_eq!(worker.compare(1024, &wrong), Status::Miscompare, "{at} of {len}");
            }
            assert_eq!(worker.compare(512, &bytes), Status::Miscompare);
            assert!(worker.read(1024, len).0 == bytes, "a compare changed the disk");
        }
        assert_eq!(worker.compare(DISK as u64, &[0; 512]), Status::IoError);
        assert_eq!(controller.counters().retried, 0, "what differs is not asked again");
    }
}

/// It reads, so a namespace that may not be written can be compared, and no fence holds it.
#[test]
fn a_compare_changes_nothing() {
    let bench = Bench::new();
    let protected = Namespace { access: Access::ReadOnly, ..namespace(bench.store.clone(), 1) };
    bench.target.set_namespace(1, protected);
    let controller = NvmeController::attach(&bench.params(), no_events()).unwrap();
    let mut worker = Worker::open(&*first_disk(&controller));
    assert_eq!(worker.compare(0, &[0; 4096]), Status::Ok);
    assert_eq!(worker.compare(0, &[1; 4096]), Status::Miscompare);
    let script = vec![(bench.target.io_commands(), Misbehaviour::Reset)];
    bench.target.set_faults(Faults { script, ..Faults::default() });
    assert_eq!(worker.compare(0, &[0; 4096]), Status::Ok);
    let counters = controller.counters();
    assert_eq!((counters.lost, counters.fenced), (1, 0));
}

#[test]
fn requests_beyond_the_disk_or_unaligned_fail_without_being_sent() {
    let bench = Bench::new();
    let controller = NvmeController::attach(&bench.params(), no_events()).unwrap();
    let mut worker = Worker::open(&*first_disk(&controller));
    for (offset, len) in [(DISK as u64, 512), (DISK as u64 - 512, 1024), (100, 512), (0, 100), (u64::MAX - 511, 512)] {
        assert_eq!(worker.read(offset, len).1, Status::IoError, "{offset}+{len}");
    }
    assert_eq!(bench.target.io_commands(), 0);
}

#[test]
fn wrong_parameters_have_distinct_errors() {
    let mut config = TargetConfig::new(NQN);
    config.allowed_hosts = vec!["nqn.2014-08.org.nvmexpress:uuid:friend".into()];
    let bench = Bench::with(config);
    let mut params = bench.params();
    params.hostnqn = Some("nqn.2014-08.org.nvmexpress:uuid:stranger".into());
    let error = NvmeController::attach(&params, no_events()).unwrap_err().to_string();
    assert!(error.contains("invalid host") && error.contains("check subnqn and hostnqn"), "{error}");
    params.hostnqn = Some("nqn.2014-08.org.nvmexpress:uuid:friend".into());
    params.subnqn = "nqn.2024-01.org.sluice:other".into();
    let error = NvmeController::attach(&params, no_events()).unwrap_err().to_string();
    assert!(error.contains("no such subsystem"), "{error}");
    params.subnqn = NQN.into();
    NvmeController::attach(&params, no_events()).unwrap();
    params.trsvcid = Some("1".into());
    let error = NvmeController::attach(&params, no_events()).unwrap_err().to_string();
    assert!(error.contains("connection refused") && error.contains("nothing listens there"), "{error}");
    params.traddr = "cloud".into();
    assert!(
        matches!(NvmeController::attach(&params, no_events()), Err(AttachError::Invalid(e)) if e.field == "traddr")
    );
}

#[test]
fn digests_that_the_target_refuses_are_an_error() {
    let bench = Bench::new();
    bench.target.set_faults(Faults { refuse_digests: true, ..Faults::default() });
    let mut params = bench.params();
    params.ddgst = true;
    let error = NvmeController::attach(&params, no_events()).unwrap_err().to_string();
    assert!(error.contains("DGST") && error.contains("change hdgst and ddgst"), "{error}");
}

#[test]
fn a_target_that_is_no_target_is_an_error_and_no_hang() {
    let answers: [&'static [u8]; 4] =
        [b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0xFF; 4096], &[], &[1, 0, 128, 0, 128, 0, 0, 0]];
    for answer in answers {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut params = AttachParams::new("Nvme0", listener.local_addr().unwrap(), NQN);
        params.fabrics_connect_timeout_us = 300_000;
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut stream, answer).unwrap();
            std::thread::sleep(Duration::from_millis(600));
        });
        let start = Instant::now();
        let error = NvmeController::attach(&params, no_events()).unwrap_err();
        assert!(matches!(error, AttachError::Failed { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?} for {error}", start.elapsed());
        thread.join().unwrap();
    }
}

#[test]
fn a_controller_that_never_becomes_ready_is_an_error() {
    let bench = Bench::new();
    bench.target.set_faults(Faults { never_ready: true, ..Faults::default() });
    let error = NvmeController::attach(&bench.params(), no_events()).unwrap_err().to_string();
    assert!(error.contains("CSTS.RDY"), "{error}");
}

#[test]
fn namespaces_come_go_grow_and_shrink() {
    let bench = Bench::new();
    let log = EventLog::default();
    let controller = NvmeController::attach(&bench.params(), log.sink()).unwrap();
    let disk = first_disk(&controller);
    let mut worker = Worker::open(&*disk);
    let has = |wanted: NvmeEvent| {
        let log = log.clone();
        move || log.any(|event| *event == wanted.clone().into())
    };

    bench.store.resize(2 * DISK as u64).unwrap();
    bench.target.namespace_resized();
    let blocks = DISK as u64 / 512;
    wait_for("growth", has(NvmeEvent::NamespaceResized { nsid: 1, from: blocks, to: 2 * blocks }));
    assert_eq!(worker.write(2 * DISK as u64 - 512, &[1; 512]), Status::Ok);

    bench.store.resize(DISK as u64 / 2).unwrap();
    bench.target.namespace_resized();
    wait_for("shrinking", has(NvmeEvent::NamespaceResized { nsid: 1, from: 2 * blocks, to: blocks / 2 }));
    assert_eq!(worker.write(DISK as u64 - 512, &[1; 512]), Status::IoError);
    assert_eq!(worker.write(0, &[1; 512]), Status::Ok);

    bench.target.set_namespace(2, namespace(Arc::new(MemoryStore::new(DISK)), 2));
    wait_for("a second namespace", has(NvmeEvent::NamespaceAdded { nsid: 2 }));
    bench.target.set_namespace(3, namespace(Arc::new(MemoryStore::new(DISK)), 2));
    wait_for("a twin is refused", || {
        log.any(|e| matches!(e, Event::Protocol(NvmeEvent::NamespaceRefused { nsid: 3, .. })))
    });
    assert_eq!(controller.namespaces().iter().map(|(nsid, _)| *nsid).collect::<Vec<_>>(), [1, 2]);

    bench.target.remove_namespace(1);
    wait_for("removal", has(NvmeEvent::NamespaceRemoved { nsid: 1 }));
    assert_eq!(worker.write(0, &[1; 512]), Status::IoError);
    assert!(!controller.namespaces()[0].1.rescan().unwrap());
}

#[test]
fn a_target_that_restarts_costs_a_pause_and_no_error() {
    let mut bench = Bench::new();
    let log = EventLog::default();
    let controller = NvmeController::attach(&bench.params(), log.sink()).unwrap();
    let mut worker = Worker::open(&*first_disk(&controller));
    let bytes = pattern(9, 65_536);
    assert_eq!(worker.write(0, &bytes), Status::Ok);

    // A write in flight: it is taken, and the target dies before it answers.
    let delay = Duration::from_secs(5)..Duration::from_secs(6);
    bench.target.set_faults(Faults { delay, ..Faults::default() });
    let newer = pattern(10, 65_536);
    worker.submit(request_with(Op::Write, 0, &newer));
    let seen = bench.target.io_commands();
    while bench.target.io_commands() == seen {
        assert!(worker.poll().is_empty());
    }
    let address = bench.server.as_ref().unwrap().address();
    bench.server = None;
    assert!(worker.poll_for(Duration::from_millis(500)).is_empty());
    bench.target.set_faults(Faults::default());
    bench.server = Some(Server::start(bench.target.clone(), address).unwrap());
    assert_eq!(worker.wait(1).pop().unwrap().1, Status::Ok);
    assert!(worker.read(0, 65_536).0 == newer);
    assert_eq!(controller.counters().fenced, 1);
    let any = |wanted: fn(&ConnectionEvent) -> bool| {
        log.any(|event| matches!(event, Event::Connection { event, .. } if wanted(event)))
    };
    assert!(any(|e| matches!(e, ConnectionEvent::Lost { .. })), "{log:?}");
    assert!(any(|e| matches!(e, ConnectionEvent::AttemptFailed { held: 1, .. })), "{log:?}");
    assert!(any(|e| matches!(e, ConnectionEvent::FenceReleased { confirmed: false, .. })), "{log:?}");
    assert_eq!(controller.status().phase, Phase::Up);
}

#[test]
fn fast_io_fail_and_ctrlr_loss_timeouts_are_kept() {
    let mut bench = Bench::new();
    let mut params = bench.params();
    params.recovery =
        RecoveryOptions { ctrlr_loss_timeout_sec: 3, reconnect_delay_sec: 1, fast_io_fail_timeout_sec: 1 };
    let controller = NvmeController::attach(&params, no_events()).unwrap();
    let mut worker = Worker::open(&*first_disk(&controller));
    assert_eq!(worker.write(0, &[7; 4096]), Status::Ok);
    bench.server = None;
    let start = Instant::now();
    assert_eq!(worker.read(0, 4096).1, Status::IoError);
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    wait_for("the controller is given up", || controller.status().phase == Phase::Dead);
    assert_eq!(worker.read(0, 4096).1, Status::IoError);
}

#[test]
fn each_misbehaviour_is_survived_with_data_intact() {
    for act in Misbehaviour::ALL {
        let bench = Bench::new();
        let mut params = bench.params();
        params.options.timeout_us = 400_000;
        params.hdgst = true;
        params.ddgst = true;
        let controller = NvmeController::attach(&params, no_events()).unwrap();
        let mut worker = Worker::open(&*first_disk(&controller));
        let bytes = pattern(1, 65_536);
        assert_eq!(worker.write(0, &bytes), Status::Ok);
        // A read and a write that needs R2Ts each meet it once.
        let at = bench.target.io_commands();
        bench.target.set_faults(Faults { script: vec![(at, act)], no_success_flag: true, ..Faults::default() });
        let (back, status) = worker.read(0, 65_536);
        let hopeless = act == Misbehaviour::MediaError;
        assert!(
            if hopeless { status == Status::IoError } else { status == Status::Ok && back == bytes },
            "{act:?} {status:?}"
        );
        let at = bench.target.io_commands();
        bench.target.set_faults(Faults { script: vec![(at, act)], r2ts: 4, ..Faults::default() });
        let newer = pattern(2, 65_536);
        let status = worker.write(0, &newer);
        assert_eq!(status, if hopeless { Status::IoError } else { Status::Ok }, "{act:?}");
        if !hopeless {
            assert!(worker.read(0, 65_536).0 == newer, "{act:?}");
        }
    }
}

#[test]
fn a_silent_admin_queue_is_noticed_by_keep_alive() {
    let bench = Bench::new();
    let log = EventLog::default();
    let _controller = NvmeController::attach(&bench.params(), log.sink()).unwrap();
    bench.target.set_faults(Faults { ignore_keep_alive: true, ..Faults::default() });
    wait_for("keep-alive", || log.lines().iter().any(|line| line.contains("lost") && line.contains("Keep Alive")));
}

#[test]
fn discovery_lists_subsystems_and_follows_referrals() {
    let second = Bench::with(TargetConfig::new("nqn.2024-01.org.sluice:second"));
    let address = second.server.as_ref().unwrap().address();
    let mut config = TargetConfig::new(NQN);
    config.referrals = vec![(address.ip().to_string(), address.port().to_string()), ("127.0.0.1".into(), "1".into())];
    let first = Bench::with(config);
    let found = nvme::discover(&first.params()).unwrap();
    let names: Vec<&str> = found.iter().map(|entry| entry.subnqn.as_str()).collect();
    assert!(names.contains(&NQN) && names.contains(&"nqn.2024-01.org.sluice:second"), "{names:?}");
    assert_eq!(found[0].trsvcid, first.server.as_ref().unwrap().address().port().to_string());
}

#[test]
fn more_channels_than_queues_are_refused_with_the_limit() {
    let mut config = TargetConfig::new(NQN);
    config.max_queues = 2;
    let bench = Bench::with(config);
    let controller = NvmeController::attach(&bench.params(), no_events()).unwrap();
    let disk = first_disk(&controller);
    let mut channels: Vec<_> = (0..2).map(|_| Worker::open(&*disk)).collect();
    let error = disk.open_channel().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("num_io_queues") && error.contains("at most 2"), "{error}");
    for worker in &mut channels {
        assert_eq!(worker.write(0, &[1; 512]), Status::Ok);
    }
    // A queue that is given back is used again, within the same association.
    drop(channels);
    for _ in 0..20 {
        let mut worker = None;
        wait_for("a free queue", || {
            worker = disk.open_channel().ok().map(Worker::new);
            worker.is_some()
        });
        assert_eq!(worker.unwrap().write(0, &[1; 512]), Status::Ok);
    }
}

#[test]
fn detach_stops_the_controller_and_fails_later_requests() {
    let bench = Bench::new();
    let controller = NvmeController::attach(&bench.params(), no_events()).unwrap();
    let mut worker = Worker::open(&*first_disk(&controller));
    assert_eq!(worker.write(0, &[1; 512]), Status::Ok);
    controller.detach();
    assert_eq!(controller.status().phase, Phase::Dead);
    assert_eq!(worker.read(0, 512).1, Status::IoError);
    wait_for("the target forgets the controller", || bench.target.controllers() == 0);
}

#[test]
fn writes_of_a_dropped_channel_do_not_come_after_those_of_the_next() {
    let bench = Bench::new();
    let controller = NvmeController::attach(&bench.params(), no_events()).unwrap();
    let disk = first_disk(&controller);
    let mut worker = Worker::open(&*disk);
    assert_eq!(worker.write(0, &[1; 4096]), Status::Ok);
    let delay = Duration::from_secs(5)..Duration::from_secs(6);
    bench.target.set_faults(Faults { delay, late_writes: true, ..Faults::default() });
    let seen = bench.target.io_commands();
    for i in 0..32 {
        worker.submit(request_with(Op::Write, i * 4096, &[2; 4096]));
    }
    while bench.target.io_commands() < seen + 32 {
        worker.poll();
    }
    drop(worker);
    bench.target.set_faults(Faults::default());
    let mut worker = Worker::open(&*disk);
    assert_eq!(worker.write(0, &[3; 32 * 4096]), Status::Ok);
    // Longer than the old controller could go on.
    std::thread::sleep(Duration::from_secs(3));
    assert!(worker.read(0, 32 * 4096).0 == [3; 32 * 4096]);
    assert_eq!(bench.target.late_applied(), 32, "the adversary was at work");
}
