//! Any sequence of messages, by the harness that fuzzing uses, and any bytes over a real socket.

use super::peer::{Served, wait_for};
use crate::Role;
use crate::fuzz::fuzz_session;
use proptest::prelude::*;
use rustix::fs::fstat;
use std::os::fd::OwnedFd;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_messages_is_survived(data in proptest::collection::vec(any::<u8>(), 0..4000)) {
        fuzz_session(&data);
    }
}

#[test]
fn the_harness_reaches_what_it_is_meant_to_test() {
    use proptest::test_runner::{RngAlgorithm, TestRng};
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut data = vec![0; 4000];
    let mut counts = [0; 7];
    for _ in 0..300 {
        rng.fill_bytes(&mut data);
        let seen = crate::fuzz::run(&data);
        let met = [
            seen.messages > 50,
            seen.refused > 5,
            seen.started,
            seen.packed,
            seen.tracked,
            seen.logged,
            seen.memory_changed,
        ];
        counts.iter_mut().zip(met).for_each(|(count, met)| *count += usize::from(met));
    }
    println!("long, refused, started, packed, tracked, logged, memory changed: {counts:?} of 300");
    assert!(counts.iter().all(|&count| count >= 10), "{counts:?}");
}

/// Bytes in pieces, some with descriptors, then silence, a hang-up, or half a message.
fn pieces() -> impl Strategy<Value = Vec<(Vec<u8>, usize)>> {
    let header = (0_u32..48, prop_oneof![9 => Just(1_u32), 9 => Just(9), 1 => any::<u32>()], 0_u32..300)
        .prop_map(|(request, flags, size)| [request, flags, size].iter().flat_map(|w| w.to_ne_bytes()).collect());
    let bytes = prop_oneof![3 => header, 1 => proptest::collection::vec(any::<u8>(), 1..300)];
    proptest::collection::vec((bytes, prop_oneof![3 => Just(0_usize), 1 => 0_usize..40]), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_over_a_socket_are_survived(pieces in pieces()) {
        let served = Served::new(Role::Server);
        let file = super::memfd(4096);
        let peer = served.connect();
        peer.0.set_nonblocking(true).unwrap();
        for (bytes, fds) in &pieces {
            let fds: Vec<&OwnedFd> = std::iter::repeat_n(&file, *fds).collect();
            if peer.raw(bytes, &fds).is_err() {
                break;
            }
        }
        drop(peer);
        wait_for("the end of the session", || {
            let status = served.control.status();
            status.connections == 1 && !status.connected
        });
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let ours = identity(fstat(&file).unwrap());
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let open = descriptors.filter(|fd| rustix::fs::stat(fd.path()).is_ok_and(|stat| identity(stat) == ours)).count();
        prop_assert_eq!(open, 1);
        served.stop();
    }
}
