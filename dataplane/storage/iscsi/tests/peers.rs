//! The initiator against targets of other makers. Skipped, with a word, where they are not installed.

use block::{Bdev, Op, Status};
use hwtests::iscsi_peers::{self as peers, OUTGOING, Peer, Setup, USER};
use initiator::testing::{EventLog, Worker, exercise, pattern, request_with};
use iscsi::{Auth, Credentials, DigestPolicy, IscsiDisk, IscsiParams, Lun, no_events};
use std::time::Duration;

type Start = fn(Setup, u16, tempfile::TempDir) -> anyhow::Result<Peer>;

const INITIATOR: &str = "iqn.2026-01.org.sluice:host";

fn params(peer: &Peer, setup: Setup) -> IscsiParams {
    let mut params = IscsiParams::new("disk", INITIATOR, &peer.portal, peer.target, Lun::from_number(peer.lun));
    let digest = if setup.digests { DigestPolicy::Require } else { DigestPolicy::None };
    params.header_digest = digest;
    params.data_digest = digest;
    let credentials = |(name, secret): (&str, &str)| Credentials { name: name.into(), secret: secret.into() };
    params.auth.initiator = setup.chap.then(|| credentials(USER));
    params.auth.target = setup.mutual.then(|| credentials(OUTGOING));
    params.recovery.min_pause = Duration::from_millis(20);
    params.recovery.max_pause = Duration::from_millis(200);
    params
}

fn all_setups(start: Start) {
    for digests in [false, true] {
        for (chap, mutual) in [(false, false), (true, false), (true, true)] {
            let setup = Setup { digests, chap, mutual };
            let peer = start(setup, peers::free_port().unwrap(), tempfile::tempdir().unwrap()).unwrap();
            let log = EventLog::default();
            let disk = match IscsiDisk::attach(&params(&peer, setup), log.sink()) {
                Ok(disk) => disk,
                Err(error) => panic!("{setup:?}: {error}"),
            };
            assert_eq!(disk.geometry().size_bytes(), peers::LEN);
            exercise(&mut Worker::open(&*disk), peers::LEN / 4, 120, 11);
            assert!(!log.says("lost"), "{setup:?}: {:?}", log.lines());
        }
    }
}

/// Kills the target under I/O, twice, and starts it again after a while: every I/O ends well and reads back.
fn restarts(start: Start) {
    let (setup, port) = (Setup::default(), peers::free_port().unwrap());
    let mut peer = start(setup, port, tempfile::tempdir().unwrap()).unwrap();
    let log = EventLog::default();
    let disk = IscsiDisk::attach(&params(&peer, setup), log.sink()).unwrap();
    let mut worker = Worker::open(&*disk);
    for round in 0..2u64 {
        let mut submitted = 0;
        let mut write = |worker: &mut Worker, at: u64| {
            worker.submit(request_with(Op::Write, at * 8192, &pattern(round << 32 | at, 8192)));
            submitted += 1;
        };
        (0..32).for_each(|at| write(&mut worker, at));
        let mut early = worker.poll();
        let dir = peer.kill().unwrap();
        (32..64).for_each(|at| write(&mut worker, at));
        early.extend(worker.poll_for(Duration::from_millis(700)));
        assert!(early.iter().all(|(_, status)| *status == Status::Ok));
        let ended = early.len();
        assert!(ended < 64, "something was held");
        peer = start(setup, port, dir).unwrap();
        for (request, status) in worker.wait(submitted - ended) {
            assert_eq!(status, Status::Ok, "{request:?}");
        }
        for at in 0..64 {
            let (bytes, status) = worker.read(at * 8192, 8192);
            assert_eq!(status, Status::Ok);
            assert!(bytes == pattern(round << 32 | at, 8192), "round {round}, place {at}");
        }
    }
    assert!(log.says("lost") && log.says("connected with attempt"), "{:?}", log.lines());
    drop(peer);
}

fn refusals(start: Start) {
    let setup = Setup { chap: true, ..Setup::default() };
    let peer = start(setup, peers::free_port().unwrap(), tempfile::tempdir().unwrap()).unwrap();
    let error = |change: fn(&mut IscsiParams)| {
        let mut params = params(&peer, setup);
        change(&mut params);
        IscsiDisk::attach(&params, no_events()).map(|_| ()).unwrap_err().to_string()
    };
    let wrong_secret = error(|p| p.auth.initiator.as_mut().unwrap().secret = "wrong-secret-12".into());
    assert!(wrong_secret.contains("refused the login") || wrong_secret.contains("closed"), "{wrong_secret}");
    let wrong_name = error(|p| p.target_iqn = "iqn.2026-01.org.sluice:absent".into());
    assert!(wrong_name.contains("refused the login") || wrong_name.contains("closed"), "{wrong_name}");
    let wrong_lun = error(|p| p.lun = Lun::from_number(9));
    assert!(wrong_lun.contains("no LUN 9"), "{wrong_lun}");
}

fn discovers(start: Start) {
    let peer = start(Setup::default(), peers::free_port().unwrap(), tempfile::tempdir().unwrap()).unwrap();
    let found = iscsi::discover(&peer.portal, INITIATOR, Auth::default(), Duration::from_secs(5)).unwrap();
    let target = found.iter().find(|t| t.iqn == peer.target).expect("listed");
    assert!(target.addresses.iter().any(|a| a.starts_with(&peer.portal)), "{target:?}");
}

macro_rules! against {
    ($peer:ident, $program:literal) => {
        mod $peer {
            use super::*;

            #[test]
            fn digests_and_chap_on_and_off() {
                if peers::installed($program) {
                    all_setups(peers::$peer);
                }
            }

            #[test]
            fn restarts_under_io_lose_nothing() {
                if peers::installed($program) {
                    restarts(peers::$peer);
                }
            }

            #[test]
            fn refusals_are_errors_with_a_reason() {
                if peers::installed($program) {
                    refusals(peers::$peer);
                }
            }

            #[test]
            fn discovery_lists_it() {
                if peers::installed($program) {
                    discovers(peers::$peer);
                }
            }
        }
    };
}

against!(tgt, "tgtd");
against!(istgt, "istgt");
