//! The daemon as a process: how it starts, how it ends, and what it says.

mod daemon;

use daemon::{Daemon, run_to_end};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

fn complaint(args: &[&str]) -> String {
    let output = run_to_end(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let daemon = Daemon::start();
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    daemon.ok("bdev_null_create", json!({"name": "n", "block_size": 512, "num_blocks": 8}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n"}));
    for path in [daemon.dir().join("c"), daemon.state_file()] {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
}

#[test]
fn a_socket_left_by_a_dead_process_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(dir.path().join("rpc")).unwrap());
    let daemon = Daemon::start_in(dir, &[]);
    daemon.ok("spdk_get_version", json!({}));
}

#[test]
fn a_socket_that_cannot_be_created_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rpc");
    let socket = path.to_str().unwrap();
    let live = UnixListener::bind(&path).unwrap();
    assert!(complaint(&["--rpc-socket", socket]).contains("another process serves it"));
    drop(live);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(complaint(&["--rpc-socket", socket]).contains("not a socket"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let long = dir.path().join("x".repeat(120));
    assert!(complaint(&["--rpc-socket", long.to_str().unwrap()]).contains("at most 107 are possible"));
    let nowhere = dir.path().join("missing/rpc");
    assert!(complaint(&["--rpc-socket", nowhere.to_str().unwrap()]).contains("No such file"));
}

#[test]
fn a_state_directory_is_used_by_one_daemon() {
    let daemon = Daemon::start();
    let (dir, socket) = (daemon.dir().join("state"), daemon.dir().join("other"));
    let said = complaint(&["--rpc-socket", socket.to_str().unwrap(), "--state-dir", dir.to_str().unwrap()]);
    assert!(said.contains("another daemon uses this directory"), "{said}");
    assert!(!socket.exists(), "the socket goes with the process");
}

#[test]
fn bad_options_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("rpc");
    let with = |args: &[&str]| complaint(&[&["--rpc-socket", socket.to_str().unwrap()], args].concat());
    assert!(with(&["--workers", "zero"]).contains("expected CPUs such as 2,4-7"));
    assert!(with(&["--workers", "127"]).contains("CPU 127 is not available"));
    assert!(with(&["--workers", "0,0"]).contains("named twice"));
    assert!(with(&["--rpc-socket-mode", "999"]).contains("octal"));
    assert!(with(&["--config", "/nonexistent.toml"]).contains("/nonexistent.toml"));
    let usage = run_to_end(&["--log-level", "loud"]);
    assert_eq!(usage.status.code(), Some(2));
    let file = dir.path().join("sluice.toml");
    std::fs::write(&file, "workers = \"0\"\nidle_spin_us = \"often\"\n").unwrap();
    assert!(with(&["--config", file.to_str().unwrap()]).contains("line 2"));
    std::fs::write(&file, "worker = \"0\"\n").unwrap();
    let said = with(&["--config", file.to_str().unwrap()]);
    assert!(said.contains("unknown field `worker`") && said.contains("workers"), "{said}");
}

#[test]
fn options_come_from_a_file_and_the_command_line_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sluice.toml");
    std::fs::write(&file, "log_level = \"debug\"\nidle_spin_us = \"never\"\nlog_format = \"json\"\n").unwrap();
    let daemon = Daemon::start_in(dir, &["--config", file.to_str().unwrap(), "--log-level", "notice"]);
    assert_eq!(daemon.ok("log_get_level", json!({})), "NOTICE");
    assert_eq!(daemon.ok("framework_get_reactors", json!({}))["reactors"][0]["in_interrupt"], false);
    assert!(daemon.log().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", daemon.log());
}

#[test]
fn the_log_level_changes_at_run_time() {
    let daemon = Daemon::start();
    daemon.ok("bdev_get_bdevs", json!({}));
    assert!(!daemon.log().contains("bdev_get_bdevs"));
    daemon.ok("log_set_level", json!({"level": "INFO"}));
    daemon.ok("bdev_get_bdevs", json!({}));
    assert!(daemon.log().contains("bdev_get_bdevs"), "{}", daemon.log());
    let error = daemon.err("log_set_level", json!({"level": "LOUD"}));
    assert!(error["message"].as_str().unwrap().contains("NOTICE"), "{error}");
}

#[test]
fn sigterm_stops_the_daemon_cleanly() {
    let mut daemon = Daemon::start();
    daemon.ok("bdev_null_create", json!({"name": "n", "block_size": 512, "num_blocks": 8}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n"}));
    assert!(daemon.terminate().success(), "{}", daemon.log());
    assert!(!daemon.socket().exists());
    assert!(!daemon.dir().join("c").exists());
}

#[test]
fn sigterm_does_not_wait_for_a_silent_target() {
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = target.local_addr().unwrap().port().to_string();
    let mut daemon = Daemon::start();
    let params = json!({"name": "cloud", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port,
        "subnqn": "nqn.2024-01.io.example:disk"});
    let request = json!({"id": 1, "method": "bdev_nvme_attach_controller", "params": params});
    daemon.client().send(request.to_string().as_bytes());
    target.accept().unwrap();
    let start = Instant::now();
    assert!(daemon.terminate().success());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_service_manager_is_notified_when_ready() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let socket = dir.path().join("rpc");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sluiced"));
    command.arg("--rpc-socket").arg(&socket).env("NOTIFY_SOCKET", &path);
    let mut child = command.spawn().unwrap();
    let mut message = [0; 256];
    let said = manager.recv(&mut message).map(|n| String::from_utf8_lossy(&message[..n]).into_owned());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(said.unwrap().trim(), "READY=1");
}

#[test]
fn metrics_are_openmetrics_over_http() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let daemon = Daemon::start_with(&["--metrics", &address]);
    daemon.ok("bdev_null_create", json!({"name": "n", "block_size": 512, "num_blocks": 8}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n"}));
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("application/openmetrics-text"), "{page}");
    assert!(page.trim_end().ends_with("# EOF"));
    for line in [
        "sluice_disk_requests_total{disk=\"n\",op=\"read\"} 0",
        "sluice_disk_latency_seconds_bucket{le=\"+Inf\",disk=\"n\",op=\"write\"} 0",
        "sluice_controller_connected{controller=\"c\"} 0",
        "sluice_config_pending 0",
        "sluice_worker_busy_seconds_total{worker=\"0\"",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    assert_eq!(
        daemon.ok("metrics_get", json!({})).as_str().unwrap().lines().count(),
        page.lines().count() - header_lines(&page)
    );
    let said = complaint(&["--rpc-socket", daemon.dir().join("s2").to_str().unwrap(), "--metrics", &address]);
    assert!(said.contains(&address), "{said}");
}

fn header_lines(page: &str) -> usize {
    page.split("\r\n\r\n").next().unwrap().lines().count() + 1
}

/// An idle daemon with 16 disks uses under 1 % of a core and under 64 MiB.
#[test]
fn an_idle_daemon_sleeps_and_is_small() {
    let daemon = Daemon::start();
    for i in 0..16 {
        daemon.ok("bdev_null_create", json!({"name": format!("n{i}"), "block_size": 512, "num_blocks": 8}));
        daemon.ok("vhost_create_blk_controller", json!({"ctrlr": format!("c{i}"), "dev_name": format!("n{i}")}));
    }
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        // Fields 14 and 15 of proc_pid_stat(5), counted after the name in parentheses, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = cpu();
    std::thread::sleep(Duration::from_secs(3));
    // 1 % of a core for three seconds.
    assert!(cpu() - before <= 3, "{} ticks in 3 s", cpu() - before);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    println!("resident: {kib} KiB");
    assert!(kib < 64 << 10, "{kib} KiB");
}
