//! User-mode Linux guests: native speed, and a front-end of their own kind.

use crate::process::Process;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// A user-mode Linux guest with vhost-user-blk disks, `/dev/vda` and on: native speed, and a front-end of its own kind that has
/// one split queue and does not connect again. Its root is this machine's own file system, read-only.
pub struct Uml {
    process: Process,
    _dir: TempDir,
}

impl Uml {
    /// Starts a guest with a disk of each of the vhost-user sockets; it runs the shell commands `script` as root and then
    /// powers off. What is written to its console can be read from `/dev/console`.
    pub fn start(sockets: &[PathBuf], script: &str) -> Result<Uml> {
        let dir = tempfile::tempdir()?;
        let init = dir.path().join("init");
        std::fs::write(&init, INIT)?;
        // A tmpfs hides /tmp from the guest's script: it comes in on a descriptor that is open before.
        std::fs::write(dir.path().join("run"), format!("set -e\n{script}"))?;
        let mut command = Command::new("linux.uml");
        command
            .args(["mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"])
            .args(["con=null", "con0=fd:0,fd:1", "ssl=null", "umid=guest"])
            .arg(format!("uml_dir={}", dir.path().display()))
            .args(sockets.iter().map(|socket| format!("virtio_uml.device={}:2", socket.display())))
            .args(["init=/bin/sh", "--"])
            .arg(&init);
        if std::fs::read_to_string("/proc/cpuinfo")?.contains(" amx_tile") {
            command.env("LD_PRELOAD", build_xstate_shim(dir.path())?);
        }
        Ok(Uml { process: Process::spawn("uml", &command)?, _dir: dir })
    }

    /// The guest's process: its output is the guest's console.
    pub fn console(&self) -> &Process {
        &self.process
    }

    /// As [`Uml::console`], to write to the guest's console.
    pub fn console_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until the script has ended well and the guest is off; returns all it wrote.
    pub fn finish(mut self, timeout: Duration) -> Result<String> {
        let line = self.process.wait_for("guest: exit", timeout)?;
        self.process.wait(Duration::from_secs(10))?;
        let output = self.process.output();
        ensure!(line.ends_with("exit 0"), "the guest's script failed: {line}\n{output}");
        Ok(output)
    }
}

const INIT: &str = r#"export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec 3<"${0%/*}/run"
for fs in proc:/proc sysfs:/sys tmpfs:/tmp tmpfs:/run; do mount -t "${fs%:*}" none "${fs#*:}"; done
insmod "/usr/lib/uml/modules/$(uname -r)/kernel/drivers/block/virtio_blk.ko"
echo "guest: up $(cut -d' ' -f1 /proc/uptime) $(uname -sr)"
cd /tmp && cat <&3 >run && sh ./run </dev/null
echo "guest: exit $?"
echo o >/proc/sysrq-trigger
sleep 60
"#;

fn build_xstate_shim(dir: &Path) -> Result<PathBuf> {
    let library = dir.join("xstate.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/uml_xstate.c");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-O1", source, "-ldl", "-o"]).arg(&library).status();
    ensure!(status.context("run cc")?.success(), "cc cannot build {source}");
    Ok(library)
}
