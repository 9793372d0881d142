//! The initiator against the in-tree target, over real sockets.

use block::{Bdev, Op, Status};
use initiator::testing::{EventLog, TIMEOUT, Worker, exercise, pattern, request, request_with, wait_for};
use iscsi::target::{Faults, MemoryStore, Server, Store, Target, TargetConfig, Unit, WrongR2t};
use iscsi::{
    AttachError, Auth, ChapAlgorithm, ConnectionError, Credentials, DigestPolicy, IscsiDisk, IscsiEvent, IscsiParams,
    Lun, no_events,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const INITIATOR: &str = "iqn.2026-01.org.sluice:host";
const TARGET: &str = "iqn.2026-01.org.sluice:disk";
const LEN: usize = 4 << 20;

fn server(config: TargetConfig, faults: Faults) -> (Server, Arc<Unit>, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new(LEN));
    let unit = Arc::new(Unit::new(store.clone(), 512, false, 1));
    let target = Target::new(config);
    target.insert_unit(Lun::from_number(0), unit.clone());
    target.set_faults(faults);
    (Server::start(Arc::new(target), "127.0.0.1:0").unwrap(), unit, store)
}

fn params(server: &Server) -> IscsiParams {
    let mut params = IscsiParams::new("disk", INITIATOR, &server.address().to_string(), TARGET, Lun::from_number(0));
    params.connect_timeout = Duration::from_secs(2);
    params.io_timeout = Duration::from_millis(500);
    params.abort_timeout = Duration::from_millis(500);
    params.recovery.min_pause = Duration::from_millis(10);
    params.recovery.max_pause = Duration::from_millis(50);
    params
}

fn attach(params: &IscsiParams) -> (Arc<IscsiDisk>, EventLog<IscsiEvent>) {
    let log = EventLog::default();
    (IscsiDisk::attach(params, log.sink()).expect("attach"), log)
}

fn connection_error(params: &IscsiParams) -> ConnectionError {
    match IscsiDisk::attach(params, no_events()) {
        Err(AttachError::Target { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn credentials(name: &str, secret: &str) -> Option<Credentials> {
    Some(Credentials { name: name.into(), secret: secret.into() })
}

#[test]
fn a_disk_reads_what_was_written() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults::default());
    let (disk, _) = attach(&params(&server));
    assert_eq!(disk.geometry().size_bytes(), LEN as u64);
    let mut worker = Worker::open(&*disk);
    exercise(&mut worker, LEN as u64, 300, 1);
    let bytes = pattern(9, 8192);
    assert_eq!(worker.write(4096, &bytes), Status::Ok);
    assert_eq!(worker.range(Op::Discard, 4096, 4096), Status::Ok);
    assert_eq!(worker.read(4096, 8192), ([vec![0; 4096], bytes[4096..].to_vec()].concat(), Status::Ok));
}

#[test]
fn every_way_of_sending_data_works() {
    for initial_r2t in [true, false] {
        for immediate_data in [true, false] {
            for digests in [DigestPolicy::None, DigestPolicy::Require] {
                let mut config = TargetConfig::new(TARGET);
                config.initial_r2t = initial_r2t;
                config.immediate_data = immediate_data;
                config.first_burst = 8192;
                config.max_burst = 16_384;
                config.recv_segment = 4096;
                config.collapse_status = immediate_data;
                let (server, ..) = server(config, Faults::default());
                let mut params = params(&server);
                params.header_digest = digests;
                params.data_digest = digests;
                let (disk, log) = attach(&params);
                exercise(&mut Worker::open(&*disk), LEN as u64, 60, 2);
                assert!(!log.says("lost"), "{:?}", log.lines());
            }
        }
    }
}

#[test]
fn a_target_that_sends_byte_by_byte_is_understood() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults { chunk: 1, ..Faults::default() });
    let mut params = params(&server);
    params.header_digest = DigestPolicy::Require;
    params.data_digest = DigestPolicy::Require;
    let (disk, log) = attach(&params);
    let mut worker = Worker::open(&*disk);
    let bytes = pattern(3, 4096);
    assert_eq!(worker.write(8192, &bytes), Status::Ok);
    assert_eq!(worker.read(8192, 4096), (bytes, Status::Ok));
    assert!(!log.says("lost"), "{:?}", log.lines());
}

#[test]
fn chap_works_with_every_algorithm_and_both_ways() {
    for algorithm in ChapAlgorithm::ALL {
        for mutual in [false, true] {
            let auth = Auth {
                initiator: credentials("host", "initiator secret"),
                target: if mutual { credentials("disk", "target secret") } else { None },
                algorithms: vec![algorithm],
            };
            let mut config = TargetConfig::new(TARGET);
            config.auth = auth.clone();
            let (server, ..) = server(config, Faults::default());
            let mut params = params(&server);
            params.auth = Auth { algorithms: Vec::new(), ..auth };
            let (disk, _) = attach(&params);
            assert_eq!(Worker::open(&*disk).read(0, 512).1, Status::Ok, "{algorithm:?} mutual {mutual}");
        }
    }
}

#[test]
fn wrong_secrets_are_named() {
    let mut config = TargetConfig::new(TARGET);
    config.auth.initiator = credentials("host", "initiator secret");
    config.auth.target = credentials("disk", "target secret");
    let (server, ..) = server(config, Faults::default());
    let mut params = params(&server);
    let none = connection_error(&params).to_string();
    assert!(none.contains("check the CHAP name and secret"), "{none}");
    params.auth.initiator = credentials("host", "guessed");
    let wrong = connection_error(&params).to_string();
    assert!(wrong.contains("check the CHAP name and secret"), "{wrong}");
    params.auth.initiator = credentials("host", "initiator secret");
    params.auth.target = credentials("disk", "another secret");
    assert_eq!(connection_error(&params).to_string(), "authentication: the target does not know its secret");
    params.auth.target = credentials("impostor", "target secret");
    assert_eq!(connection_error(&params).to_string(), "authentication: the target has another CHAP name than expected");
    server.target().set_faults(Faults { reflect_chap: true, ..Faults::default() });
    params.auth.target = credentials("disk", "target secret");
    assert_eq!(connection_error(&params).to_string(), "authentication: the target reflected our own secret");
}

#[test]
fn a_target_that_need_not_prove_itself_must_when_asked() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults::default());
    let mut params = params(&server);
    params.auth.initiator = credentials("host", "initiator secret");
    assert!(IscsiDisk::attach(&params, no_events()).is_ok(), "CHAP is offered, not forced");
    params.auth.target = credentials("disk", "target secret");
    assert!(matches!(connection_error(&params), ConnectionError::Login(_)));
}

#[test]
fn bad_addresses_names_and_luns_are_named() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults::default());
    let good = params(&server);
    let mut bad = good.clone();
    bad.target_iqn = "iqn.2026-01.org.sluice:nodisk".into();
    assert!(connection_error(&bad).to_string().contains("no such target: check the target's IQN"));
    let mut bad = good.clone();
    bad.lun = Lun::from_number(7);
    assert_eq!(connection_error(&bad).to_string(), "the target has no LUN 7; it has LUN 0");
    let mut bad = good.clone();
    bad.portal = "127.0.0.1:1".into();
    assert_eq!(connection_error(&bad), ConnectionError::Io(libc::ECONNREFUSED));
    let mut bad = good.clone();
    bad.portal = "no-such-host.invalid:3260".into();
    assert!(connection_error(&bad).to_string().contains("cannot be resolved"));
    let mut bad = good;
    bad.initiator_iqn = "host".into();
    assert!(matches!(IscsiDisk::attach(&bad, no_events()), Err(AttachError::Invalid(_))));
}

#[test]
fn an_initiator_off_the_access_list_gets_the_reason() {
    let mut config = TargetConfig::new(TARGET);
    config.initiators = vec!["iqn.2026-01.org.sluice:another".into()];
    let (server, ..) = server(config, Faults::default());
    assert!(connection_error(&params(&server)).to_string().contains("check its access list"));
    server.target().set_faults(Faults { login_status: Some(0x0301), ..Faults::default() });
    assert!(connection_error(&params(&server)).to_string().contains("service unavailable at this time (status 0301)"));
}

#[test]
fn silence_and_garbage_in_any_state_end_in_an_error_in_time() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults::default());
    let mut params = params(&server);
    params.connect_timeout = Duration::from_millis(300);
    let mut states = 0;
    loop {
        server.target().set_faults(Faults { silent_after: Some(states), ..Faults::default() });
        let start = Instant::now();
        match IscsiDisk::attach(&params, no_events()) {
            Ok(_) => break,
            Err(AttachError::Target { source, .. }) => {
                assert!(matches!(source, ConnectionError::Timeout(_)), "{source}")
            }
            Err(other) => panic!("{other}"),
        }
        assert!(start.elapsed() < TIMEOUT);
        server.target().set_faults(Faults { garbage_after: Some(states), ..Faults::default() });
        let error = connection_error(&params);
        assert!(!matches!(error, ConnectionError::Io(_)), "garbage after {states}: {error}");
        assert!(start.elapsed() < TIMEOUT);
        states += 1;
    }
    assert!((8..30).contains(&states), "login and every question were cut short: {states}");
}

#[test]
fn redirects_are_followed_but_not_in_circles() {
    let (home, ..) = server(TargetConfig::new(TARGET), Faults::default());
    for permanent in [false, true] {
        let redirect = Some((home.address().to_string(), permanent));
        let (front, ..) = server(TargetConfig::new(TARGET), Faults { redirect, ..Faults::default() });
        let (disk, _) = attach(&params(&front));
        assert_eq!(Worker::open(&*disk).read(0, 512).1, Status::Ok);
    }
    let (circle, ..) = server(TargetConfig::new(TARGET), Faults::default());
    circle.target().set_faults(Faults { redirect: Some((circle.address().to_string(), false)), ..Faults::default() });
    assert!(matches!(connection_error(&params(&circle)), ConnectionError::Redirected { .. }));
}

#[test]
fn discovery_finds_the_target() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults::default());
    let portal = server.address().to_string();
    let found = iscsi::discover(&portal, INITIATOR, Auth::default(), Duration::from_secs(2)).unwrap();
    assert_eq!(found.iter().map(|t| t.iqn.as_str()).collect::<Vec<_>>(), [TARGET]);
    drop(server);
    assert!(iscsi::discover(&portal, INITIATOR, Auth::default(), Duration::from_secs(2)).is_err());
}

#[test]
fn a_resize_is_noticed_while_io_runs() {
    let (server, unit, _) = server(TargetConfig::new(TARGET), Faults::default());
    let (disk, log) = attach(&params(&server));
    let mut worker = Worker::open(&*disk);
    assert_eq!(worker.read(0, 512).1, Status::Ok);
    unit.resize(2 * LEN as u64).unwrap();
    assert_eq!(worker.read(0, 512).1, Status::Ok, "the unit attention is not an error");
    // Reported before it shrinks, or both changes may be reported as one.
    wait_for("growth", || {
        assert_eq!(worker.read(0, 512).1, Status::Ok);
        log.says("resized from 8192 to 16384 blocks")
    });
    assert_eq!(disk.geometry().size_bytes(), 2 * LEN as u64);
    assert_eq!(worker.write(LEN as u64, &pattern(1, 512)), Status::Ok);
    // A disk that shrinks: what is left works, what is gone fails, and nothing else happens.
    unit.resize(LEN as u64 / 2).unwrap();
    wait_for("shrinking", || {
        assert_eq!(worker.read(0, 512).1, Status::Ok);
        log.says("to 4096 blocks")
    });
    assert_eq!(disk.geometry().size_bytes(), LEN as u64 / 2);
    assert_eq!(worker.write(LEN as u64, &pattern(1, 512)), Status::IoError);
    assert_eq!(worker.read(0, 512).1, Status::Ok);
    assert!(!log.says("lost"));
}

#[test]
fn an_idle_disk_learns_of_a_resize_by_rescan() {
    let (server, unit, _) = server(TargetConfig::new(TARGET), Faults::default());
    let (disk, _) = attach(&params(&server));
    assert!(!disk.rescan().unwrap());
    unit.resize(2 * LEN as u64).unwrap();
    assert!(disk.rescan().unwrap());
    assert_eq!(disk.geometry().size_bytes(), 2 * LEN as u64);
}

#[test]
fn a_target_that_is_gone_holds_io_and_gives_it_back_whole() {
    let (server, _, store) = server(TargetConfig::new(TARGET), Faults::default());
    let (disk, log) = attach(&params(&server));
    let mut worker = Worker::open(&*disk);
    let before = pattern(1, 65_536);
    assert_eq!(worker.write(0, &before), Status::Ok);
    let (address, target) = (server.address(), server.target().clone());
    drop(server);
    worker.submit(request_with(Op::Write, 65_536, &pattern(2, 4096)));
    let gone = Instant::now();
    wait_for("three failed attempts", || {
        assert!(worker.poll().is_empty(), "no error while the target is away");
        gone.elapsed() > Duration::from_millis(400) && disk.status()[0].failed_attempts > 2
    });
    let status = disk.status().remove(0);
    assert!(!status.connected && status.held == 1 && status.failed_attempts > 2, "{status:?}");
    assert!(status.oldest > Duration::from_millis(300) && status.last_error.is_some(), "{status:?}");
    let server = Server::start(target, address).unwrap();
    assert_eq!(worker.wait(1).pop().unwrap().1, Status::Ok);
    let mut bytes = vec![0; 4096];
    store.read(65_536, &mut bytes).unwrap();
    assert!(bytes == pattern(2, 4096));
    assert_eq!(worker.read(0, 65_536), (before, Status::Ok));
    assert!(log.says("lost") && log.says("1 I/Os held") && log.says("connected with attempt"));
    assert_eq!(disk.status()[0].reconnects, 1);
    drop(server);
}

#[test]
fn another_disk_at_the_lun_is_not_written_to() {
    let (server, unit, _) = server(TargetConfig::new(TARGET), Faults::default());
    let (disk, log) = attach(&params(&server));
    let mut worker = Worker::open(&*disk);
    let other = Arc::new(MemoryStore::new(LEN));
    server.target().insert_unit(Lun::from_number(0), Arc::new(Unit::new(other.clone(), 512, false, 2)));
    server.cut_all();
    worker.submit(request_with(Op::Write, 0, &pattern(1, 512)));
    wait_for("the refusal of the other disk", || {
        assert!(worker.poll().is_empty(), "held");
        log.says("another disk answers at this LUN")
    });
    let mut bytes = vec![1; 512];
    other.read(0, &mut bytes).unwrap();
    assert!(bytes == [0; 512], "the other disk is untouched");
    server.target().insert_unit(Lun::from_number(0), unit);
    assert_eq!(worker.wait(1).pop().unwrap().1, Status::Ok);
}

#[test]
fn fast_io_fail_and_loss_limits_are_kept() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults::default());
    let mut params = params(&server);
    params.recovery.fast_io_fail = Some(Duration::from_millis(100));
    params.recovery.loss_timeout = Some(Duration::from_millis(400));
    let (disk, log) = attach(&params);
    let mut worker = Worker::open(&*disk);
    drop(server);
    let lost = Instant::now();
    assert_eq!(worker.read(0, 512).1, Status::IoError);
    assert!(lost.elapsed() > Duration::from_millis(90), "{:?}", lost.elapsed());
    assert_eq!(worker.read(0, 512).1, Status::IoError);
    wait_for("the loss limit", || log.says("given up"));
    assert!(log.says("fail from now on"), "{:?}", log.lines());
}

#[test]
fn channels_have_sessions_of_their_own_and_reuse_them() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults::default());
    let (disk, _) = attach(&params(&server));
    let mut workers: Vec<Worker> = (0..3).map(|_| Worker::open(&*disk)).collect();
    for (i, worker) in workers.iter_mut().enumerate() {
        assert_eq!(worker.write(i as u64 * 4096, &pattern(i as u64, 4096)), Status::Ok);
    }
    for i in 0..3 {
        let (bytes, status) = workers[2 - i].read(i as u64 * 4096, 4096);
        assert_eq!((bytes, status), (pattern(i as u64, 4096), Status::Ok));
    }
    assert_eq!(server.target().connections(), 3);
    drop(workers);
    let mut again: Vec<Worker> = (0..3).map(|_| Worker::open(&*disk)).collect();
    assert!(again.iter_mut().all(|w| w.read(0, 512).1 == Status::Ok));
    assert_eq!(server.target().connections(), 3, "no session is made twice");
}

/// Everything a target can do wrong under I/O: it costs a session at most, never data and never an error.
#[test]
fn a_misbehaving_target_costs_sessions_not_data() {
    let honest = Faults::default();
    let cases = [
        ("digest", Faults { flip_data_digest_every: 7, ..honest.clone() }),
        ("digest", Faults { flip_header_digest_every: 60, ..honest.clone() }),
        ("R2T", Faults { wrong_r2t: Some(WrongR2t::Offset), ..honest.clone() }),
        ("R2T", Faults { wrong_r2t: Some(WrongR2t::TooMuch), ..honest.clone() }),
        ("R2T", Faults { wrong_r2t: Some(WrongR2t::Empty), ..honest.clone() }),
        ("R2T", Faults { wrong_r2t: Some(WrongR2t::Number), ..honest.clone() }),
        ("R2T", Faults { wrong_r2t: Some(WrongR2t::ForRead), ..honest.clone() }),
        ("did not move", Faults { short_data_every: 5, ..honest.clone() }),
        ("closed", Faults { cut_after_bytes: Some(100_001), ..honest.clone() }),
        ("lost", Faults { garbage_after: Some(80), ..honest.clone() }),
    ];
    for (reason, faults) in cases {
        let mut config = TargetConfig::new(TARGET);
        config.initial_r2t = true;
        config.first_burst = 4096;
        config.max_burst = 32_768;
        let (server, ..) = server(config, honest.clone());
        let mut params = params(&server);
        params.header_digest = DigestPolicy::Require;
        params.data_digest = DigestPolicy::Require;
        let (disk, log) = attach(&params);
        let mut worker = Worker::open(&*disk);
        // The first session is honest; the next one is not, until it is lost; then honesty again.
        server.target().set_faults(faults.clone());
        server.cut_all();
        let start = Instant::now();
        let bytes = pattern(5, 200_000 / 512 * 512);
        let mut round = 0;
        while !log.says(reason) {
            worker.submit(request_with(Op::Write, 0, &bytes));
            worker.submit(request(Op::Read, 1 << 20, 65_536));
            let mut ended = 0;
            while ended < 2 {
                ended +=
                    worker.poll().iter().inspect(|(_, status)| assert_eq!(*status, Status::Ok, "{faults:?}")).count();
                if log.says(reason) {
                    server.target().set_faults(honest.clone());
                }
                assert!(start.elapsed() < Duration::from_secs(10), "{faults:?}: {:?}", log.lines());
            }
            round += 1;
        }
        server.target().set_faults(honest.clone());
        assert!(round > 0);
        assert_eq!(worker.read(0, bytes.len()), (bytes, Status::Ok), "{faults:?}");
    }
}

#[test]
fn a_busy_target_and_one_that_forgets_commands_only_cost_time() {
    for faults in [Faults { busy_every: 3, ..Faults::default() }, Faults { swallow_every: 40, ..Faults::default() }] {
        let (server, ..) = server(TargetConfig::new(TARGET), faults);
        let mut params = params(&server);
        // A command that is only slow is aborted as well, and sent again; only an abort that is not answered costs a session.
        params.io_timeout = Duration::from_millis(200);
        params.abort_timeout = TIMEOUT;
        let (disk, log) = attach(&params);
        exercise(&mut Worker::open(&*disk), 1 << 20, 25, 7);
        assert!(!log.says("lost"), "an abort is enough: {:?}", log.lines());
    }
}

#[test]
fn pings_keep_an_idle_session_and_find_a_dead_one() {
    let (server, ..) = server(TargetConfig::new(TARGET), Faults::default());
    let mut params = params(&server);
    params.ping_interval = Duration::from_millis(50);
    params.ping_timeout = TIMEOUT;
    let (disk, log) = attach(&params);
    std::thread::sleep(Duration::from_millis(400));
    assert!(!log.says("lost"), "{:?}", log.lines());
    drop(disk);
    params.ping_timeout = Duration::from_secs(1);
    let (_disk, log) = attach(&params);
    server.target().set_faults(Faults { silent_after: Some(14), ..Faults::default() });
    server.cut_all();
    wait_for("the ping's timeout", || log.says("does not answer a ping"));
}
