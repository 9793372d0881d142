//! Endpoints: what is wrong with them is said before anything is served; server and client role; news of the configuration.

use super::peer::{Peer, Served};
use super::*;
use crate::{Endpoint, Role, Socket, SocketError};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

fn server(path: impl AsRef<Path>) -> Result<Socket, SocketError> {
    Socket::open(Endpoint { path: path.as_ref().to_owned(), role: Role::Server, mode: 0o600 })
}

#[test]
fn a_path_that_is_too_long_is_an_error_with_its_length() {
    let path = format!("/tmp/{}", "x".repeat(103));
    for role in [Role::Server, Role::Client] {
        let endpoint = Endpoint { path: path.clone().into(), role, mode: 0o600 };
        let error = Socket::open(endpoint).unwrap_err();
        assert!(matches!(error, SocketError::PathTooLong { len: 108, .. }), "{error}");
        assert!(error.to_string().contains("has 108 bytes, at most 107 are possible; use a shorter directory"));
    }
    let directory = tempfile::tempdir().unwrap();
    let fill = 107 - directory.path().as_os_str().len() - 1;
    assert!(server(directory.path().join("x".repeat(fill))).is_ok(), "107 bytes are possible");
}

#[test]
fn a_path_that_is_no_path_is_an_error() {
    for path in ["", "/tmp/a\0b"] {
        assert!(matches!(server(path), Err(SocketError::NotAPath { .. })));
    }
}

#[test]
fn a_missing_directory_is_an_error_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let error = server(directory.path().join("no/vhost.sock")).unwrap_err();
    assert!(matches!(&error, SocketError::NoDirectory { directory, .. } if directory.ends_with("no")));
    assert!(error.to_string().contains("create it first"));
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vhost.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(server(&path), Err(SocketError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let link = directory.path().join("link.sock");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(server(&link), Err(SocketError::NotASocket { .. })), "a link is not followed");
}

#[test]
fn a_socket_in_use_is_left_alone_and_a_stale_one_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vhost.sock");
    let live = UnixListener::bind(&path).unwrap();
    let error = server(&path).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }));
    assert!(error.to_string().contains("stop it or choose another path"));
    UnixStream::connect(&path).expect("the live socket is untouched");
    drop(live); // leaves the file behind, as a killed process does
    assert!(path.exists());
    let socket = server(&path).unwrap();
    assert!(matches!(server(&path), Err(SocketError::InUse { .. })), "ours is alive as well");
    let file = std::fs::metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    drop(socket);
    assert!(!path.exists(), "removed with the socket");
}

#[test]
fn a_socket_file_of_another_process_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vhost.sock");
    let ours = server(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(ours);
    assert!(path.exists());
}

#[test]
fn permissions_are_as_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vhost.sock");
    let _socket = Socket::open(Endpoint { path: path.clone(), role: Role::Server, mode: 0o666 }).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
}

#[test]
fn one_front_end_comes_after_the_other() {
    let served = Served::new(Role::Server);
    let memory = memfd(LEN);
    for n in 1..=3 {
        let mut peer = served.connect();
        peer.start_ring(&memory, if n == 2 { PACKED } else { SPLIT });
        served.until("the ring", |device, status| device.rings.len() == 1 && status.connections == n);
        let status = served.control.status();
        assert_eq!(status.peer.map(|peer| peer.pid), Some(std::process::id() as i32));
        assert_eq!(status.protocol_features, ALL_PROTOCOL);
        assert!(status.connected && status.rings[0].enabled);
    }
    // The second waits until the first has left.
    let (first, mut second) = (served.connect(), served.connect());
    second.send(Request::GET_FEATURES, &[], &[]);
    drop(first);
    assert_eq!(second.reply().len(), 8);
    served.stop();
}

#[test]
fn a_client_waits_for_its_front_end_and_reconnects() {
    let served = Served::new(Role::Client);
    let memory = memfd(LEN);
    std::thread::sleep(std::time::Duration::from_millis(30)); // some attempts fail
    for n in 1..=3 {
        let listener = UnixListener::bind(&served.path).unwrap();
        let mut peer = Peer(listener.accept().unwrap().0);
        peer.start_ring(&memory, SPLIT);
        served.until("the ring", |device, status| device.rings.len() == 1 && status.connections == n);
        drop(listener); // first, or it is connected to once more
        std::fs::remove_file(&served.path).unwrap();
        drop(peer);
        served.until("the end", |device, status| device.rings.is_empty() && !status.connected);
    }
    served.stop();
}

#[test]
fn a_client_that_is_stopped_does_not_connect_once_more() {
    let served = Served::new(Role::Client);
    let listener = UnixListener::bind(&served.path).unwrap();
    let mut peer = Peer(listener.accept().unwrap().0);
    peer.ask(Request::GET_FEATURES, &[]);
    served.stop();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn the_front_end_hears_of_a_new_configuration() {
    let served = Served::new(Role::Server);
    let mut peer = served.connect();
    peer.ask(Request::GET_FEATURES, &[]);
    peer.send(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL]), &[]);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    // Changed before there is a channel: told as soon as there is one.
    served.control.config_changed();
    peer.send(Request::SET_BACKEND_REQ_FD, &[], &[&theirs.into()]);
    ours.set_read_timeout(Some(super::peer::PATIENCE)).unwrap();
    for _ in 0..3 {
        let mut message = [0; 12];
        ours.read_exact(&mut message).unwrap();
        assert_eq!(message.to_vec(), words(&[2, VERSION, 0]), "CONFIG_CHANGE_MSG, no reply wanted");
        served.control.config_changed();
    }
    served.stop();
}
