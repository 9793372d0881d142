//! A control plane in this process, and the command run against it.
#![allow(dead_code)] // each test binary uses a part of it

use control::{Control, Log, Server, Settings};
use engine::{Engine, IdlePolicy};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A control plane with one worker; it lives as long as the test's process.
pub(crate) struct Served {
    dir: TempDir,
}

impl Served {
    pub(crate) fn start() -> Served {
        Served::start_in(tempfile::tempdir().unwrap(), None)
    }

    /// One that restores, and keeps, the state in `state_dir`.
    pub(crate) fn start_in(dir: TempDir, state_dir: Option<PathBuf>) -> Served {
        let (ready, started) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(&path.join("rpc"), 0o600, Vec::new()).unwrap();
                let engine = Engine::start(&[first_cpu()], IdlePolicy::default()).unwrap();
                let settings = Settings {
                    state_dir,
                    vhost_dir: path,
                    vhost_socket_mode: 0o600,
                    packet_buffers: Control::DEFAULT_PACKET_BUFFERS,
                    offload_rules_per_port: None,
                    eal: None,
                    idle: IdlePolicy::default(),
                };
                let control = Control::new(engine, Log::silent(), settings).unwrap();
                control.restore().unwrap();
                tokio::spawn(control.clone().keep_applying());
                control.restored().await;
                ready.send(()).unwrap();
                server.serve(control).await
            });
        });
        started.recv().unwrap();
        Served { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        run(&self.dir.path().join("rpc"), args)
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

fn first_cpu() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    engine::CpuSet::parse_list(list.trim()).unwrap().as_slice()[0]
}

pub(crate) fn run(socket: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluicectl")).env("SLUICE_SOCKET", socket).args(args).output().unwrap()
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
