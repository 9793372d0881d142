//! `sluiced` under test: started with its own RPC socket and state directory, killed and started again.

use crate::guest_image;
use crate::json_socket::JsonSocket;
use crate::process::Process;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `sluiced` with an RPC socket, a state directory and a socket directory of its own.
pub struct Daemon {
    dir: TempDir,
    options: Vec<String>,
    process: Process,
}

impl Daemon {
    /// Starts the daemon built beside this test (or `$SLUICED`) on the CPUs `workers` and waits until it answers.
    pub fn start(workers: &str) -> Result<Daemon> {
        Daemon::start_with(workers, &[])
    }

    /// As [`start`](Self::start), with further options.
    pub fn start_with(workers: &str, options: &[&str]) -> Result<Daemon> {
        let options: Vec<String> = ["--workers", workers].iter().chain(options).map(|&o| o.to_owned()).collect();
        let dir = tempfile::tempdir()?;
        let process = spawn(dir.path(), &options)?;
        let daemon = Daemon { dir, options, process };
        daemon.rpc("spdk_get_version", json!({}))?;
        Ok(daemon)
    }

    /// The RPC socket.
    pub fn rpc_socket(&self) -> PathBuf {
        self.dir.path().join("rpc")
    }

    /// The vhost-user socket of the controller `ctrlr`.
    pub fn vhost_socket(&self, ctrlr: &str) -> PathBuf {
        self.dir.path().join(ctrlr)
    }

    /// A path for a test's own file, removed with the daemon.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Calls `method` over a new connection and returns its result.
    pub fn rpc(&self, method: &str, params: Value) -> Result<Value> {
        let connect = || JsonSocket::connect(&self.rpc_socket(), Duration::from_secs(5));
        let mut socket = connect().with_context(|| format!("daemon's output:\n{}", self.process.output()))?;
        let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        if params.as_object().is_some_and(|fields| !fields.is_empty()) {
            request["params"] = params;
        }
        socket.send(&request)?;
        let mut response = socket.receive().with_context(|| format!("answer to {request}"))?;
        if let Some(error) = response.get("error") {
            bail!("{method} {}: {error}", request["params"]);
        }
        ensure!(response["id"] == 1 && response.get("result").is_some(), "{method}: odd response {response}");
        Ok(response["result"].take())
    }

    /// Makes the disk `name` from `file` and serves it as the controller of the same name.
    /// `options` are further parameters of `vhost_create_blk_controller`.
    pub fn serve_file(&self, name: &str, file: &Path, options: Value) -> Result<()> {
        self.rpc("bdev_aio_create", json!({"name": name, "filename": file, "block_size": 512}))?;
        self.serve(name, options)
    }

    /// Serves the guest image, read-only so that guests share it, as the controller `name`.
    pub fn serve_guest_image(&self, name: &str, options: Value) -> Result<()> {
        let params = json!({"name": name, "filename": guest_image()?, "block_size": 512, "readonly": true});
        self.rpc("bdev_aio_create", params)?;
        self.serve(name, options)
    }

    /// Serves the existing disk `name` as the controller of the same name.
    fn serve(&self, name: &str, options: Value) -> Result<()> {
        let mut params = json!({"ctrlr": name, "dev_name": name});
        if let Value::Object(options) = options {
            params.as_object_mut().expect("an object").extend(options);
        }
        self.rpc("vhost_create_blk_controller", params).map(drop)
    }

    /// Reads and writes that the disk `name` has served since the daemon started.
    pub fn io_count(&self, name: &str) -> Result<u64> {
        let stat = self.rpc("bdev_get_iostat", json!({"name": name}))?;
        let disk = &stat["bdevs"][0];
        match (disk["num_read_ops"].as_u64(), disk["num_write_ops"].as_u64()) {
            (Some(reads), Some(writes)) => Ok(reads + writes),
            _ => bail!("bdev_get_iostat {name}: no num_read_ops and num_write_ops in {stat}"),
        }
    }

    /// Waits until the disk `name` has served `count` reads and writes since the daemon started.
    pub fn wait_for_io(&self, name: &str, count: u64, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.io_count(name)? < count {
            ensure!(Instant::now() < deadline, "{name} has not served {count} requests in {timeout:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// SIGKILL, then a new process over the same state; returns when it answers.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process = spawn(self.dir.path(), &self.options)?;
        self.rpc("spdk_get_version", json!({})).map(drop)
    }
}

fn spawn(dir: &Path, options: &[String]) -> Result<Process> {
    let binary = binary()?;
    let mut command = Command::new(&binary);
    command.args(options);
    // Where the drivers are that were built with it.
    command.env("LD_LIBRARY_PATH", binary.with_file_name("deps"));
    command.arg("--rpc-socket").arg(dir.join("rpc"));
    command.arg("--state-dir").arg(dir.join("state"));
    command.arg("--vhost-dir").arg(dir);
    Process::spawn("sluiced", &command)
}

/// `$SLUICED`, else the binary of the same build as this test: target/PROFILE/deps/TEST is beside target/PROFILE/sluiced.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICED") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let path = test.parent().and_then(Path::parent).context("test binary outside target/")?.join("sluiced");
    ensure!(path.exists(), "{} is missing: cargo build -p sluiced, or set SLUICED", path.display());
    Ok(path)
}
