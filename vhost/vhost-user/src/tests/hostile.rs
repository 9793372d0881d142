//! Front-ends that break the protocol, over a real socket: none of them hangs us, leaks a descriptor or keeps the next one out.

use super::peer::{Peer, Served, wait_for};
use super::*;
use crate::Role;
use rustix::fs::fstat;
use rustix::io::dup;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Whether a descriptor of this process, other than `ours`, leads to the file of `ours`.
fn leaked(ours: &OwnedFd) -> bool {
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let file = identity(fstat(ours).unwrap());
    let mut open = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        if rustix::fs::stat(entry.path()).is_ok_and(|stat| identity(stat) == file) {
            open += 1;
        }
    }
    open > 1
}

/// The device still serves a well-behaved front-end.
fn still_serves(served: Served) {
    let memory = memfd(LEN);
    let mut peer = served.connect();
    peer.start_ring(&memory, SPLIT);
    assert_eq!(peer.ask(Request::GET_VRING_BASE, &words(&[0, 0])), words(&[0, 0]));
    drop(peer);
    served.until("the end of the session", |_, status| !status.connected);
    assert!(!leaked(&memory));
    served.stop();
}

#[test]
fn garbage_ends_the_session() {
    let served = Served::new(Role::Server);
    for bytes in [vec![0xff; 12], vec![0; 12], b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0x41; 100_000]] {
        let mut peer = served.connect();
        let _ = peer.raw(&bytes, &[]);
        peer.closed();
        served.until("the reason", |_, status| {
            status.last_error.as_ref().is_some_and(|error| error.starts_with("not a vhost-user message: "))
        });
    }
    still_serves(served);
}

#[test]
fn wrong_versions_replies_and_huge_sizes_end_the_session() {
    let served = Served::new(Role::Server);
    for (flags, size) in [(0, 0), (2, 0), (3, 0), (VERSION | 4, 0), (VERSION, 4097), (VERSION, u32::MAX)] {
        let mut peer = served.connect();
        peer.raw(&words(&[Request::GET_FEATURES.0, flags, size]), &[]).unwrap();
        peer.closed();
    }
    still_serves(served);
}

#[test]
fn a_connection_cut_at_any_byte_is_survived() {
    let served = Served::new(Role::Server);
    let memory = memfd(LEN);
    let whole = Peer::message(Request::SET_MEM_TABLE, VERSION, &table(&[[0, LEN, USER, 0]]));
    for cut in 0..whole.len() {
        let peer = served.connect();
        if cut > 0 {
            peer.raw(&whole[..cut], &[&memory]).unwrap();
        }
        drop(peer);
        served.until("the end of the session", |_, status| status.connections == cut as u64 + 1 && !status.connected);
        let error = served.control.status().last_error;
        assert_eq!(error.is_some(), cut > 0, "{error:?}");
        assert!(!leaked(&memory), "cut at {cut}");
    }
    still_serves(served);
}

#[test]
fn a_message_in_single_bytes_is_understood() {
    let served = Served::new(Role::Server);
    let mut peer = served.connect();
    let (memory, log) = (memfd(LEN), memfd(4096));
    peer.start_ring(&memory, SPLIT);
    // The descriptor comes in the middle of the payload.
    let message = Peer::message(Request::SET_LOG_BASE, VERSION, &quads(&[4096, 0]));
    for (at, byte) in message.chunks(1).enumerate() {
        let fds = if at == 20 { vec![&log] } else { vec![] };
        peer.raw(byte, &fds).unwrap();
    }
    assert_eq!(peer.reply(), quads(&[4096, 0]));
    drop(peer);
    still_serves(served);
}

#[test]
fn several_messages_in_one_write_are_taken_one_by_one() {
    let served = Served::new(Role::Server);
    let mut peer = served.connect();
    let one = Peer::message(Request::GET_FEATURES, VERSION, &[]);
    peer.raw(&one.repeat(100), &[]).unwrap();
    for _ in 0..100 {
        assert_eq!(peer.reply().len(), 8);
    }
    drop(peer);
    still_serves(served);
}

#[test]
fn stray_descriptors_are_closed() {
    let served = Served::new(Role::Server);
    let file = memfd(LEN);
    for count in [1, 2, 8, 32, 33, 150] {
        let mut peer = served.connect();
        let fds: Vec<&OwnedFd> = std::iter::repeat_n(&file, count).collect();
        peer.raw(&Peer::message(Request::SET_OWNER, VERSION, &[]), &fds).unwrap();
        peer.closed();
        served.until("the end of the session", |_, status| !status.connected);
        assert!(!leaked(&file), "{count} descriptors");
    }
    served.until("the reason", |_, status| {
        status.last_error.as_ref().is_some_and(|error| error.contains("more than 32 file descriptors"))
    });
    still_serves(served);
}

#[test]
fn descriptors_on_every_byte_end_the_session() {
    let served = Served::new(Role::Server);
    let file = memfd(LEN);
    let mut peer = served.connect();
    // Each write carries what one look can take: the sum is too much.
    let fds: Vec<&OwnedFd> = std::iter::repeat_n(&file, 8).collect();
    for byte in Peer::message(Request::SET_MEM_TABLE, VERSION, &table(&[[0, LEN, USER, 0]])).chunks(1) {
        if peer.raw(byte, &fds).is_err() {
            break;
        }
    }
    peer.closed();
    served.until("the end of the session", |_, status| !status.connected);
    assert!(!leaked(&file));
    still_serves(served);
}

#[test]
fn a_silent_front_end_does_not_delay_the_stop() {
    let served = Served::new(Role::Server);
    let _peer = served.connect();
    served.until("the connection", |_, status| status.connected);
    served.stop();
    // Without any connection.
    Served::new(Role::Server).stop();
    Served::new(Role::Client).stop();
}

#[test]
fn a_front_end_that_stops_inside_a_message_does_not_delay_the_stop() {
    let served = Served::new(Role::Server);
    let peer = served.connect();
    peer.raw(&words(&[Request::SET_MEM_TABLE.0, VERSION, 40])[..9], &[]).unwrap();
    served.until("the connection", |_, status| status.connected);
    served.stop();
}

#[test]
fn a_front_end_that_does_not_read_does_not_delay_the_stop() {
    let served = Served::new(Role::Server);
    let peer = served.connect();
    peer.0.set_nonblocking(true).unwrap();
    let one = Peer::message(Request::GET_FEATURES, VERSION, &[]);
    // Fill both directions.
    wait_for("the socket to be full", || {
        let full = || peer.raw(&one, &[]) == Err(rustix::io::Errno::AGAIN);
        full() && {
            std::thread::sleep(Duration::from_millis(20));
            full()
        }
    });
    served.stop();
}

#[test]
fn a_front_end_that_leaves_with_replies_unread_is_a_normal_end() {
    let served = Served::new(Role::Server);
    let memory = memfd(LEN);
    let mut peer = served.connect();
    peer.start_ring(&memory, SPLIT);
    for _ in 0..50 {
        peer.send(Request::GET_FEATURES, &[], &[]);
    }
    drop(peer);
    served.until("the ring to stop", |device, status| device.rings.is_empty() && !status.connected);
    still_serves(served);
}

#[test]
fn rings_stop_and_memory_goes_when_the_front_end_is_lost() {
    let served = Served::new(Role::Server);
    let memory = memfd(LEN);
    let mut peer = served.connect();
    peer.start_ring(&memory, SPLIT);
    served.until("the ring", |device, _| device.rings.len() == 1);
    assert_eq!(served.control.status().rings.len(), 1);
    drop(peer);
    served.until("the end", |device, status| device.rings.is_empty() && device.resets == 1 && !status.connected);
    assert!(!leaked(&memory));
    assert_eq!(served.control.status().memory_regions, 0);
    still_serves(served);
}

#[test]
fn memory_truncated_in_a_live_session_is_noticed() {
    let served = Served::new(Role::Server);
    let memory = memfd(LEN);
    let mut peer = served.connect();
    peer.start_ring(&memory, SPLIT);
    served.until("the ring", |device, _| device.rings.len() == 1);
    rustix::fs::ftruncate(&memory, 0).unwrap();
    let table = served.device.lock().rings[&0].start.memory.clone();
    table.read(guest_memory::GuestAddress(0), &mut [0; 8]).unwrap();
    drop(table);
    peer.closed();
    served.until("the reason", |_, status| status.last_error.as_ref().is_some_and(|e| e.contains("F_SEAL_SHRINK")));
    still_serves(served);
}

#[test]
fn a_back_end_channel_that_is_full_or_broken_costs_nothing() {
    let served = Served::new(Role::Server);
    let mut peer = served.connect();
    peer.ask(Request::GET_FEATURES, &[]);
    peer.send(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL]), &[]);
    // Full: the message is kept until there is room.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs: OwnedFd = theirs.into();
    ours.set_nonblocking(true).unwrap();
    let filler = Peer(UnixStream::from(dup(&theirs).unwrap()));
    filler.0.set_nonblocking(true).unwrap();
    while filler.raw(&[0; 4096], &[]).is_ok() {}
    while filler.raw(&[0], &[]).is_ok() {}
    peer.send(Request::SET_BACKEND_REQ_FD, &[], &[&theirs]);
    served.control.config_changed();
    peer.ask(Request::GET_QUEUE_NUM, &[]);
    // Broken: it is given up.
    drop((ours, filler, theirs));
    served.control.config_changed();
    peer.ask(Request::GET_QUEUE_NUM, &[]);
    served.control.config_changed();
    assert_eq!(peer.ask(Request::GET_QUEUE_NUM, &[]), quads(&[4]));
    drop(peer);
    still_serves(served);
}
