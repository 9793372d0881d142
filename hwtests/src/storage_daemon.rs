//! QEMU's own vhost-user-blk backend.

use crate::process::Process;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// `qemu-storage-daemon` with one file behind one vhost-user-blk socket: a backend of another maker.
pub struct StorageDaemon {
    dir: TempDir,
    image: PathBuf,
    queues: u16,
    process: Process,
}

impl StorageDaemon {
    /// Serves `image` (raw, writable) with `queues` queues.
    pub fn start(image: &Path, queues: u16) -> Result<StorageDaemon> {
        let dir = tempfile::tempdir()?;
        let process = spawn(dir.path(), image, queues)?;
        Ok(StorageDaemon { dir, image: image.to_owned(), queues, process })
    }

    /// The vhost-user socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("blk")
    }

    /// SIGKILL, then a new process on the same socket.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process = spawn(self.dir.path(), &self.image, self.queues)?;
        Ok(())
    }
}

fn spawn(dir: &Path, image: &Path, queues: u16) -> Result<Process> {
    let socket = dir.join("blk");
    if socket.exists() {
        std::fs::remove_file(&socket)?;
    }
    let mut command = Command::new("qemu-storage-daemon");
    command
        .args(["--object", "iothread,id=io0"])
        .args(["--blockdev", &format!("driver=file,node-name=f0,filename={},locking=off", image.display())])
        .args(["--blockdev", "driver=raw,node-name=d0,file=f0"])
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=e0,node-name=d0,writable=on,addr.type=unix,addr.path={},num-queues={queues},iothread=io0",
            socket.display()
        ));
    Process::spawn("qemu-storage-daemon", &command)
}
