//! The command as a user runs it.

use nvme::{AttachParams, NvmeController};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

const DISK: u64 = 4 << 20;

struct Running {
    child: Child,
    name: String,
    address: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process is gone either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(protocol: &str, file: &Path, extra: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-target"));
    command.args([protocol, "--listen", "127.0.0.1:0"]).args(extra).arg(file).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["serving", served, "as", name, "at", address] = words[..] else { panic!("{line}") };
    assert_eq!(Path::new(served), file);
    Running { child, name: name.to_owned(), address: address.to_owned() }
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice-target")).args(args).output().unwrap()
}

fn disk(dir: &Path) -> PathBuf {
    let file = dir.join("disk");
    std::fs::File::create(&file).unwrap().set_len(DISK).unwrap();
    file
}

#[test]
fn the_printed_target_answers_under_the_printed_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk(dir.path());
    for extra in [&[][..], &["--subnqn", "nqn.2024-01.io.sluice:own", "--read-only"]] {
        let target = start("nvme", &file, extra);
        let params = AttachParams::new("a", target.address.parse().unwrap(), &target.name);
        let controller = NvmeController::attach(&params, Arc::new(|_| {})).unwrap();
        let namespaces = controller.namespaces();
        let geometry = namespaces[0].1.geometry();
        assert_eq!((namespaces.len(), geometry.size_bytes(), geometry.read_only), (1, DISK, !extra.is_empty()));
        controller.detach();
    }
    let target = start("iscsi", &file, &["--iqn", "iqn.2024-01.io.sluice:own"]);
    let auth = iscsi::Auth::default();
    let found = iscsi::discover(&target.address, "iqn.2024-01.io.sluice:host", auth, Duration::from_secs(10)).unwrap();
    assert_eq!(
        (found[0].iqn.as_str(), target.name.as_str()),
        ("iqn.2024-01.io.sluice:own", "iqn.2024-01.io.sluice:own")
    );
}

#[test]
fn a_target_that_cannot_serve_says_why() {
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let dir = tempfile::tempdir().unwrap();
    let file = disk(dir.path());
    for protocol in ["nvme", "iscsi"] {
        let missing = run(&[protocol, "/nonexistent/disk"]);
        assert_eq!(missing.status.code(), Some(2));
        assert!(said(&missing).contains("/nonexistent/disk: No such file"), "{}", said(&missing));
        let target = start(protocol, &file, &[]);
        let taken = run(&[protocol, file.to_str().unwrap(), "--listen", &target.address]);
        assert_eq!(taken.status.code(), Some(2));
        assert!(said(&taken).contains(&format!("{}: Address already in use", target.address)), "{}", said(&taken));
    }
}
