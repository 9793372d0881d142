//! Against LIO, Linux's own target, of Debian's kernel in a QEMU guest. Skipped with a word on what is missing. Ignored by
//! default, as it boots a guest: `cargo test -p iscsi --test lio -- --ignored`.

use block::{Bdev, Op, Status};
use hwtests::iscsi_peers::{OUTGOING, USER};
use hwtests::{LinuxTarget, Protocol};
use initiator::testing::{EventLog, Worker, exercise, pattern, request_with};
use iscsi::{Auth, ChapAlgorithm, Credentials, DigestPolicy, IscsiDisk, IscsiEvent, IscsiParams, Lun, no_events};
use std::sync::Arc;
use std::time::{Duration, Instant};

const INITIATOR: &str = "iqn.2026-01.org.sluice:host";
const IQN: &str = "iqn.2024-01.org.sluice:linux";
const TPG: &str = "/sys/kernel/config/target/iscsi/iqn.2024-01.org.sluice:linux/tpgt_1";
const LEN: u64 = 64 << 20;

#[test]
#[ignore = "boots a guest"]
fn linux_lio() {
    let Some(mut linux) = LinuxTarget::start(Protocol::Iscsi).unwrap() else { return };
    mixed_io_with_every_digest(&linux);
    discovery(&linux);
    resize(&mut linux);
    portal_goes_away(&mut linux);
    path_goes_silent(&mut linux);
    refusals(&mut linux);
    chap(&mut linux);
}

fn params(linux: &LinuxTarget) -> IscsiParams {
    let mut params = IscsiParams::new("disk", INITIATOR, &linux.address().to_string(), IQN, Lun::from_number(0));
    params.recovery.min_pause = Duration::from_millis(20);
    params.recovery.max_pause = Duration::from_millis(200);
    params
}

fn attach(params: &IscsiParams) -> (Arc<IscsiDisk>, EventLog<IscsiEvent>) {
    let log = EventLog::default();
    let disk = IscsiDisk::attach(params, log.sink()).unwrap_or_else(|error| panic!("{error}"));
    (disk, log)
}

fn mixed_io_with_every_digest(linux: &LinuxTarget) {
    for digests in 0..4 {
        let digest = |on| if on { DigestPolicy::Require } else { DigestPolicy::None };
        let mut params = params(linux);
        params.header_digest = digest(digests & 1 != 0);
        params.data_digest = digest(digests & 2 != 0);
        let (disk, log) = attach(&params);
        assert_eq!(disk.geometry().size_bytes(), LEN);
        exercise(&mut Worker::open(&*disk), LEN / 16, 40, 11 + digests);
        assert!(!log.says("lost"), "digests {digests}: {:?}", log.lines());
    }
}

fn discovery(linux: &LinuxTarget) {
    let portal = linux.address().to_string();
    let found = iscsi::discover(&portal, INITIATOR, Auth::default(), Duration::from_secs(5)).unwrap();
    let target = found.iter().find(|target| target.iqn == IQN).expect("listed");
    // LIO names the address that it listens on in its own network.
    assert_eq!(target.addresses, ["10.0.2.15:3260,1"]);
}

/// LIO says nothing of a new size by itself: the disk is asked to look.
fn resize(linux: &mut LinuxTarget) {
    let (disk, log) = attach(&params(linux));
    let mut worker = Worker::open(&*disk);
    for len in [96 << 20, LEN] {
        linux.run(&format!("truncate -s {len} /tmp/disk && losetup -c /dev/loop0")).unwrap();
        disk.rescan().unwrap();
        let start = Instant::now();
        while disk.geometry().size_bytes() != len {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", log.lines());
            worker.poll();
        }
        let last = len - 4096;
        assert_eq!(worker.write(last, &pattern(len, 4096)), Status::Ok);
        assert!(worker.read(last, 4096).0 == pattern(len, 4096));
    }
    assert!(log.says("resized"), "{:?}", log.lines());
}

/// Sixty-four writes under way while `break_it` happens; after `mend` all end well, and read back.
fn writes_outlive(linux: &mut LinuxTarget, params: &IscsiParams, break_it: &str, mend: &str) -> EventLog<IscsiEvent> {
    let (disk, log) = attach(params);
    let mut worker = Worker::open(&*disk);
    let write = |worker: &mut Worker, at: u64| {
        worker.submit(request_with(Op::Write, at * 8192, &pattern(at + 1, 8192)));
    };
    (0..32).for_each(|at| write(&mut worker, at));
    linux.run(break_it).unwrap();
    (32..64).for_each(|at| write(&mut worker, at));
    let early = worker.poll_for(Duration::from_secs(3));
    assert!(early.iter().all(|(_, status)| *status == Status::Ok));
    assert!(early.len() < 64, "nothing was held");
    linux.run(mend).unwrap();
    for (request, status) in worker.wait(64 - early.len()) {
        assert_eq!(status, Status::Ok, "{request:?}");
    }
    for at in 0..64 {
        let (bytes, status) = worker.read(at * 8192, 8192);
        assert_eq!(status, Status::Ok);
        assert!(bytes == pattern(at + 1, 8192), "place {at}");
    }
    assert!(log.says("lost") && log.says("connected with attempt"), "{:?}", log.lines());
    log
}

/// The portal is shut and opened again: a target that restarts.
fn portal_goes_away(linux: &mut LinuxTarget) {
    let params = params(linux);
    let shut = format!("echo 0 >{TPG}/enable");
    let log = writes_outlive(linux, &params, &shut, &format!("echo 1 >{TPG}/enable"));
    assert!(log.says("failed: "), "{:?}", log.lines());
}

/// The network card goes down and comes back: the old connection would come back with it, had the new login not ended its session.
fn path_goes_silent(linux: &mut LinuxTarget) {
    let mut params = params(linux);
    params.io_timeout = Duration::from_secs(1);
    params.abort_timeout = Duration::from_secs(1);
    params.ping_interval = Duration::from_millis(500);
    params.ping_timeout = Duration::from_millis(500);
    params.connect_timeout = Duration::from_secs(1);
    let back = "ip link set eth0 up && ip route add default via 10.0.2.2";
    writes_outlive(linux, &params, "ip link set eth0 down", back);
}

fn refused(params: &IscsiParams) -> String {
    IscsiDisk::attach(params, no_events()).map(drop).expect_err("refused").to_string()
}

fn refusals(linux: &mut LinuxTarget) {
    let mut wrong = params(linux);
    wrong.target_iqn = "iqn.2024-01.org.sluice:absent".into();
    let error = refused(&wrong);
    assert!(error.contains("refused the login"), "{error}");
    let mut wrong = params(linux);
    wrong.lun = Lun::from_number(9);
    let error = refused(&wrong);
    assert!(error.contains("LUN 9"), "{error}");
}

fn chap(linux: &mut LinuxTarget) {
    let credentials = |(name, secret): (&str, &str)| Credentials { name: name.into(), secret: secret.into() };
    let (user, secret) = USER;
    linux.run(&format!("echo -n {user} >{TPG}/auth/userid && echo -n {secret} >{TPG}/auth/password")).unwrap();
    linux.run(&format!("echo 1 >{TPG}/attrib/authentication")).unwrap();
    // To a login without CHAP it hangs up, without a word.
    let error = refused(&params(linux));
    assert!(error.contains("closed the connection"), "{error}");

    let mut with = params(linux);
    with.auth.initiator = Some(credentials(USER));
    for algorithm in [ChapAlgorithm::Md5, ChapAlgorithm::Sha1, ChapAlgorithm::Sha256, ChapAlgorithm::Sha3_256] {
        with.auth.algorithms = vec![algorithm];
        exercise(&mut Worker::open(&*attach(&with).0), LEN / 64, 10, 3);
    }
    let mut wrong = with.clone();
    wrong.auth.initiator = Some(credentials((user, "wrong-secret-12")));
    let error = refused(&wrong);
    assert!(error.contains("refused the login"), "{error}");

    let (name, secret) = OUTGOING;
    linux
        .run(&format!("echo -n {name} >{TPG}/auth/userid_mutual && echo -n {secret} >{TPG}/auth/password_mutual"))
        .unwrap();
    with.auth.target = Some(credentials(OUTGOING));
    exercise(&mut Worker::open(&*attach(&with).0), LEN / 64, 10, 5);
    with.auth.target = Some(credentials((name, "wrong-secret-12")));
    let error = refused(&with);
    assert!(error.contains("authentication"), "{error}");
}
