//! The two daemons that are compared: `sluiced`, and QEMU's `qemu-storage-daemon`.

use crate::measure::{Plan, pin_process};
use anyhow::{Context, Result};
use hwtests::{Daemon, Process};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of a disk.
pub(crate) const DISK_LEN: u64 = 256 << 20;

/// A disk that both daemons know how to make.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) name: String,
    pub(crate) kind: DiskKind,
}

#[derive(Clone, Debug)]
pub(crate) enum DiskKind {
    Null,
    /// In the memory of `sluiced`; for QEMU a file on tmpfs.
    Ram(PathBuf),
    /// A file on a real file system, past the page cache.
    File(PathBuf),
}

impl Disk {
    pub(crate) fn new(name: &str, kind: DiskKind) -> Disk {
        Disk { name: name.to_owned(), kind }
    }
}

/// A file of `DISK_LEN` random-looking bytes, gone when dropped.
pub(crate) fn disk_file(directory: &Path) -> Result<tempfile::NamedTempFile> {
    std::fs::create_dir_all(directory)?;
    let file = tempfile::Builder::new().prefix("bench-").suffix(".img").tempfile_in(directory)?;
    let mut random = testkit::Rng::new(1);
    let chunk: Vec<u8> = (0..1 << 20).map(|_| random.below(256) as u8).collect();
    for _ in 0..DISK_LEN / chunk.len() as u64 {
        std::io::Write::write_all(&mut file.as_file(), &chunk)?;
    }
    file.as_file().sync_all()?;
    Ok(file)
}

/// A running backend.
pub(crate) trait Backend {
    fn name(&self) -> &'static str;
    fn process(&self) -> u32;
    /// The vhost-user-blk socket of a disk.
    fn socket(&self, disk: &str) -> PathBuf;
    /// Time that its workers spent in turns that did work, where it tells.
    fn busy(&self) -> Result<Option<Duration>>;
}

/// `sluiced` with one worker.
pub(crate) struct Sluice(Daemon);

impl Sluice {
    pub(crate) fn start(plan: &Plan, disks: &[Disk]) -> Result<Sluice> {
        let daemon = Daemon::start(&plan.backend_cpu.to_string())?;
        pin_process(daemon.process().id(), plan.backend_cpu)?;
        let num_blocks = DISK_LEN / 512;
        for Disk { name, kind } in disks {
            let (method, params) = match kind {
                DiskKind::Null => {
                    ("bdev_null_create", json!({"name": name, "block_size": 512, "num_blocks": num_blocks}))
                }
                DiskKind::Ram(_) => {
                    ("bdev_malloc_create", json!({"name": name, "block_size": 512, "num_blocks": num_blocks}))
                }
                DiskKind::File(file) => {
                    ("bdev_uring_create", json!({"name": name, "filename": file, "block_size": 512}))
                }
            };
            daemon.rpc(method, params)?;
            let controller = json!({"ctrlr": name, "dev_name": name, "packed_ring": true});
            daemon.rpc("vhost_create_blk_controller", controller)?;
        }
        pin_process(daemon.process().id(), plan.backend_cpu)?;
        Ok(Sluice(daemon))
    }

    /// How long a worker without work spins before it sleeps.
    pub(crate) fn set_idle_spin(&self, microseconds: u64) -> Result<()> {
        self.0.rpc("framework_set_idle", json!({"spin_us": microseconds})).map(drop)
    }
}

impl Backend for Sluice {
    fn name(&self) -> &'static str {
        "sluiced"
    }

    fn process(&self) -> u32 {
        self.0.process().id()
    }

    fn socket(&self, disk: &str) -> PathBuf {
        self.0.vhost_socket(disk)
    }

    fn busy(&self) -> Result<Option<Duration>> {
        let answer = self.0.rpc("framework_get_reactors", json!({}))?;
        let reactor = &answer["reactors"][0];
        let (busy, rate) = (reactor["busy"].as_f64(), answer["tick_rate"].as_f64());
        let (busy, rate) =
            busy.zip(rate).with_context(|| format!("framework_get_reactors: busy and tick_rate in {answer}"))?;
        Ok(Some(Duration::from_secs_f64(busy / rate)))
    }
}

/// `qemu-storage-daemon` with one I/O thread.
pub(crate) struct StorageDaemon {
    process: Process,
    directory: TempDir,
}

impl StorageDaemon {
    pub(crate) fn start(plan: &Plan, disks: &[Disk]) -> Result<StorageDaemon> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new("taskset");
        command.args(["-c", &plan.backend_cpu.to_string(), "qemu-storage-daemon", "--object", "iothread,id=io0"]);
        for Disk { name, kind } in disks {
            let node = match kind {
                DiskKind::Null => format!("driver=null-co,node-name={name},size={DISK_LEN},read-zeroes=off"),
                DiskKind::Ram(file) => raw(name, file, "off"),
                DiskKind::File(file) => raw(name, file, "on"),
            };
            let socket = directory.path().join(name);
            command.args(["--blockdev", &node]).arg("--export").arg(format!(
                "type=vhost-user-blk,id=export-{name},node-name={name},writable=on,addr.type=unix,addr.path={},iothread=io0",
                socket.display()
            ));
        }
        Ok(StorageDaemon { process: Process::spawn("qemu-storage-daemon", &command)?, directory })
    }
}

fn raw(name: &str, file: &Path, direct: &str) -> String {
    format!(
        "driver=raw,node-name={name},file.driver=file,file.filename={},file.aio=io_uring,file.cache.direct={direct},\
         file.locking=off",
        file.display()
    )
}

impl Backend for StorageDaemon {
    fn name(&self) -> &'static str {
        "qemu-storage-daemon"
    }

    fn process(&self) -> u32 {
        self.process.id()
    }

    fn socket(&self, disk: &str) -> PathBuf {
        self.directory.path().join(disk)
    }

    fn busy(&self) -> Result<Option<Duration>> {
        Ok(None)
    }
}
