//! What goes over the RPC socket, byte by byte.

mod daemon;

use daemon::Daemon;
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const GET: &str = r#"{"jsonrpc":"2.0","id":1,"method":"spdk_get_version"}"#;

fn code(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("an error: {answer}"))
}

#[test]
fn requests_back_to_back_are_answered_in_order() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    let requests: String =
        (0..500).map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "log_get_level"}).to_string()).collect();
    client.send(requests.as_bytes());
    for id in 0..500 {
        assert_eq!(client.receive().unwrap(), json!({"jsonrpc": "2.0", "id": id, "result": "NOTICE"}));
    }
}

#[test]
fn a_request_split_at_each_byte_is_one_request() {
    let daemon = Daemon::start();
    let request = r#"{"jsonrpc":"2.0","id":"a}\"{","method":"bdev_get_bdevs","params":{"name":"näme"}}"#.as_bytes();
    for at in 0..=request.len() {
        let mut client = daemon.client();
        client.send(&request[..at]);
        // The daemon must have seen the first part alone: another client's answer takes longer than its arrival.
        if at % 8 == 0 {
            daemon.ok("spdk_get_version", json!({}));
        }
        client.send(&request[at..]);
        let answer = client.receive().unwrap();
        assert_eq!((code(&answer), &answer["id"]), (-19, &json!("a}\"{")), "split at {at}");
    }
}

#[test]
fn a_client_that_stops_mid_request_does_not_disturb_others() {
    let daemon = Daemon::start();
    let mut halves: Vec<_> = (0..20).map(|_| daemon.client()).collect();
    halves.iter_mut().for_each(|client| client.send(b"{\"id\":1,\"meth"));
    daemon.ok("spdk_get_version", json!({}));
    drop(halves);
    daemon.ok("spdk_get_version", json!({}));
}

#[test]
fn notifications_get_no_answer() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    client.send(
        br#"{"jsonrpc":"2.0","method":"bdev_null_create","params":{"name":"n","block_size":512,"num_blocks":8}}"#,
    );
    client.send(GET.as_bytes());
    assert_eq!(client.receive().unwrap()["id"], 1);
    assert_eq!(daemon.disks(), ["n"]);
}

#[test]
fn batches_are_answered_as_batches() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    client.send(
        json!([{"id": 1, "method": "log_get_level"}, 7, {"method": "log_get_level"}, {"id": 2, "method": "no"}])
            .to_string()
            .as_bytes(),
    );
    let answers = client.receive().unwrap();
    let ids: Vec<&Value> = answers.as_array().unwrap().iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [&json!(1), &json!(null), &json!(2)]);
    assert_eq!((code(&answers[1]), code(&answers[2])), (-32600, -32601));
    client.send(b"[]");
    assert_eq!(code(&client.receive().unwrap()), -32600);
    // A batch of notifications alone: the next answer is of the next request.
    client.send(br#"[{"method":"log_get_level"}]"#);
    client.send(GET.as_bytes());
    assert_eq!(client.receive().unwrap()["id"], 1);
}

#[test]
fn invalid_requests_are_refused_and_the_connection_stays() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    let not_requests = [
        r#"{"id":1}"#,
        r#"{"id":1,"method":7}"#,
        r#"{"id":{},"method":"spdk_get_version"}"#,
        r#"{"id":1,"method":"spdk_get_version","jsonrpc":"1.0"}"#,
        r#"{"id":1,"method":"spdk_get_version","params":7}"#,
        r#"{"id":1,"method":"spdk_get_version","extra":7}"#,
    ];
    for text in not_requests {
        client.send(text.as_bytes());
        assert_eq!(code(&client.receive().unwrap()), -32600, "{text}");
    }
    client.send(br#"{"id":1,"method":spdk_get_version}"#);
    assert_eq!(code(&client.receive().unwrap()), -32700);
    client.send(GET.as_bytes());
    assert!(client.receive().unwrap()["result"].is_object());
}

#[test]
fn invalid_json_is_refused_and_ends_the_connection() {
    let daemon = Daemon::start();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x00\xff", b"}"] {
        let mut client = daemon.client();
        client.send(garbage);
        assert_eq!(code(&client.receive().unwrap()), -32700);
        assert!(client.receive().is_none());
    }
    daemon.ok("spdk_get_version", json!({}));
}

#[test]
fn a_request_that_never_ends_is_refused_at_the_limit() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    client.send(b"{\"id\":\"");
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..control::limits::REQUEST_BYTES / chunk.len() {
        client.send(&chunk);
    }
    let answer = client.receive().unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("limit reached"), "{answer}");
    assert!(client.receive().is_none());
}

#[test]
fn deep_nesting_is_refused() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    client.send(["[".repeat(10_000), "]".repeat(10_000)].concat().as_bytes());
    assert_eq!(code(&client.receive().unwrap()), -32700);
}

#[test]
fn clients_beyond_the_limit_are_refused() {
    let daemon = Daemon::start();
    let mut clients: Vec<_> = (0..control::limits::CLIENTS).map(|_| daemon.client()).collect();
    for client in &mut clients {
        client.send(GET.as_bytes());
        assert!(client.receive().unwrap()["result"].is_object());
    }
    let answer = daemon.client().receive().unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("128 clients"), "{answer}");
    clients.pop();
    // The daemon notices the end of a connection by and by.
    let served = || {
        let mut client = daemon.client();
        client.send(GET.as_bytes());
        client.receive().is_some_and(|answer| answer["result"].is_object())
    };
    let wait = || std::thread::sleep(Duration::from_millis(5));
    assert!((0..200).any(|_| served() || {
        wait();
        false
    }));
}

#[test]
fn a_waiting_call_does_not_delay_other_clients() {
    let daemon = Daemon::start();
    let mut patient = daemon.client();
    patient.send(br#"{"id":1,"method":"bdev_get_bdevs","params":{"name":"late","timeout":10000}}"#);
    for _ in 0..10 {
        let start = Instant::now();
        daemon.ok("spdk_get_version", json!({}));
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    }
    daemon.ok("bdev_null_create", json!({"name": "late", "block_size": 512, "num_blocks": 8}));
    assert_eq!(patient.receive().unwrap()["result"][0]["name"], "late");
}

#[test]
fn a_client_that_reads_nothing_blocks_only_itself() {
    let daemon = Daemon::start();
    let mut deaf = daemon.client();
    let writer = std::thread::spawn(move || {
        let request = json!({"id": 1, "method": "rpc.discover"}).to_string();
        for _ in 0..200 {
            deaf.send(request.as_bytes());
        }
        deaf
    });
    for _ in 0..20 {
        daemon.ok("spdk_get_version", json!({}));
    }
    drop(writer.join().unwrap());
}

/// Another user is refused, even where the permissions of the socket let him in.
#[test]
fn strangers_are_refused() {
    if !nobody_exists() {
        println!("skipped: needs root, setpriv and python3");
        return;
    }
    let daemon = Daemon::start_with(&["--rpc-socket-mode", "666"]);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(daemon.dir(), open).unwrap();
    assert!(ask_as_nobody(&daemon).contains("may not use this socket"));
    let friendly = Daemon::start_with(&["--rpc-socket-mode", "666", "--rpc-allowed-uids", "65534"]);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(friendly.dir(), open).unwrap();
    assert!(ask_as_nobody(&friendly).contains("Sluice v"));
}

fn nobody_exists() -> bool {
    as_nobody("pass").is_ok_and(|output| output.status.success())
}

fn as_nobody(script: &str) -> std::io::Result<std::process::Output> {
    let ids = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    Command::new("setpriv").args(ids).args(["/usr/bin/python3", "-c", script]).output()
}

fn ask_as_nobody(daemon: &Daemon) -> String {
    let socket = daemon.socket();
    let script = format!(
        "import socket; s=socket.socket(socket.AF_UNIX); s.connect({socket:?}); s.sendall(b'{GET}'); print(s.recv(65536).decode())"
    );
    let output = as_nobody(&script).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
