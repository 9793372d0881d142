//! The real daemon on a directory of its own, and a client of its socket.
#![allow(dead_code)] // each test binary uses a part of it

use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) struct Daemon {
    dir: TempDir,
    extra: Vec<String>,
    child: Child,
}

impl Daemon {
    pub(crate) fn start() -> Daemon {
        Daemon::start_with(&[])
    }

    /// Starts it with a state directory and further options.
    pub(crate) fn start_with(extra: &[&str]) -> Daemon {
        Daemon::start_in(tempfile::tempdir().unwrap(), extra)
    }

    pub(crate) fn start_in(dir: TempDir, extra: &[&str]) -> Daemon {
        let extra: Vec<String> = extra.iter().map(|&s| s.to_owned()).collect();
        let child = spawn(dir.path(), &extra);
        let daemon = Daemon { dir, extra, child };
        daemon.client();
        daemon
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("rpc")
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.dir.path().join("state/state.json")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// A new connection.
    pub(crate) fn client(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => return Client::over(stream),
                Err(error) => assert!(Instant::now() < deadline, "{error}; the daemon said: {}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A call that succeeds.
    pub(crate) fn ok(&self, method: &str, params: Value) -> Value {
        self.client().call(method, &params).unwrap_or_else(|error| panic!("{method} {params}: {error}"))
    }

    /// A call that fails.
    pub(crate) fn err(&self, method: &str, params: Value) -> Value {
        match self.client().call(method, &params) {
            Ok(result) => panic!("{method} {params} gave {result}"),
            Err(error) => error,
        }
    }

    /// The names of the disks.
    pub(crate) fn disks(&self) -> Vec<String> {
        let disks = self.ok("bdev_get_bdevs", json!({}));
        disks.as_array().unwrap().iter().map(|disk| disk["name"].as_str().unwrap().to_owned()).collect()
    }

    /// SIGKILL, whatever `between` does to its files, and a new process.
    pub(crate) fn kill_and_restart(mut self, between: impl FnOnce(&Path)) -> Daemon {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        between(self.dir.path());
        self.child = spawn(self.dir.path(), &self.extra);
        self.client();
        self
    }

    /// SIGTERM; returns how it ended.
    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(dir: &Path, extra: &[String]) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluiced"));
    command.arg("--rpc-socket").arg(dir.join("rpc")).arg("--state-dir").arg(dir.join("state"));
    command.arg("--vhost-dir").arg(dir).args(extra);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// A run of the daemon that is expected to end by itself.
pub(crate) fn run_to_end(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluiced")).args(args).stdin(Stdio::null()).output().unwrap()
}

pub(crate) struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Client {
    pub(crate) fn over(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client { stream, received: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next value; `None` at the end of the connection.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.received).into_iter::<Value>();
            if let Some(Ok(value)) = values.next() {
                let end = values.byte_offset();
                self.received.drain(..end);
                return Some(value);
            }
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("receive: {error}"),
            }
        }
    }

    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Result<Value, Value> {
        let mut request = json!({"jsonrpc": "2.0", "id": 7, "method": method});
        if *params != json!({}) {
            request["params"] = params.clone();
        }
        self.send(request.to_string().as_bytes());
        let mut answer = self.receive().expect("an answer");
        assert_eq!(answer["id"], 7, "{answer}");
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].take()),
        }
    }
}
