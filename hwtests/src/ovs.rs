//! Debian's OVS-DPDK: a switch to compare with, and a client of DPDK drivers.

use crate::process::{Process, run};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Debian's OVS-DPDK, with a database and a directory of its own, and the bridge `br0`, which does nothing by itself.
pub struct Ovs {
    directory: TempDir,
    _database: Process,
    switch: Process,
}

impl Ovs {
    /// Starts it with these `NAME=VALUE` of `other_config`. It finds drivers that were built with this test by their bare names.
    pub fn start(other_config: &[&str]) -> Result<Ovs> {
        ensure!(Path::new(DAEMON).exists(), "{DAEMON} is missing: scripts/install brings it");
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        run(Command::new("ovsdb-tool").arg("create").arg(path("conf.db")).arg(schema))?;
        let mut database = Command::new("ovsdb-server");
        database.arg(path("conf.db")).arg(format!("--remote=punix:{}", path("db.sock").display()));
        database.arg(format!("--unixctl={}", path("db.ctl").display()));
        let database = Process::spawn("ovsdb-server", environment(&mut database, directory.path())?)?;
        wait_for(&path("db.sock"))?;
        let socket = path("db.sock");
        vsctl(&socket, &["--no-wait", "init"])?;
        let configuration: Vec<String> =
            ["dpdk-init=true"].iter().chain(other_config).map(|one| format!("other_config:{one}")).collect();
        let set = ["--no-wait", "set", "Open_vSwitch", "."].into_iter().chain(configuration.iter().map(String::as_str));
        vsctl(&socket, &set.collect::<Vec<_>>())?;
        let mut switch = Command::new(DAEMON);
        switch.arg(format!("unix:{}", socket.display())).arg(format!("--unixctl={}", path("vsw.ctl").display()));
        let switch = Process::spawn("ovs-vswitchd", environment(&mut switch, directory.path())?)?;
        wait_for(&path("vsw.ctl")).with_context(|| switch.output())?;
        let ovs = Ovs { directory, _database: database, switch };
        ovs.vsctl(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail-mode=secure"])?;
        Ok(ovs)
    }

    /// The switch.
    pub fn process(&self) -> &Process {
        &self.switch
    }

    /// A path for a file of the test, removed with the switch.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Adds a port of DPDK to the bridge.
    pub fn add_port(&self, name: &str, devargs: &str) -> Result<()> {
        let options = format!("options:dpdk-devargs=\"{devargs}\"");
        self.vsctl(&["add-port", "br0", name, "--", "set", "Interface", name, "type=dpdk", &options])?;
        let error = self.vsctl(&["get", "Interface", name, "error"])?;
        ensure!(error.trim() == "[]", "port {name}: {error}\n{}", self.switch.output());
        Ok(())
    }

    /// Calls `ovs-vsctl`.
    pub fn vsctl(&self, arguments: &[&str]) -> Result<String> {
        vsctl(&self.file("db.sock"), arguments)
    }

    /// Calls `ovs-appctl` of the switch.
    pub fn appctl(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("ovs-appctl").arg("-t").arg(self.file("vsw.ctl")).args(arguments))
    }

    /// Calls `ovs-ofctl VERB br0 ...`.
    pub fn ofctl(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        let bridge = format!("unix:{}", self.file("br0.mgmt").display());
        run(Command::new("ovs-ofctl").arg(verb).arg(bridge).args(arguments))
    }

    /// An extended statistic of a port of DPDK, by DPDK's number for the port: DPDK's own telemetry tells it.
    pub fn xstat(&self, port: u16, name: &str) -> Result<u64> {
        let mut script = Command::new("sh");
        script.args(["-c", &format!("echo /ethdev/xstats,{port} | dpdk-telemetry.py")]);
        let said: serde_json::Value =
            serde_json::from_str(&run(script.env("RUNTIME_DIRECTORY", self.directory.path()))?)?;
        said["/ethdev/xstats"][name].as_u64().with_context(|| format!("no {name} in {said}"))
    }
}

fn vsctl(socket: &Path, arguments: &[&str]) -> Result<String> {
    run(Command::new("ovs-vsctl").arg(format!("--db=unix:{}", socket.display())).arg("--timeout=60").args(arguments))
}

fn environment<'a>(command: &'a mut Command, directory: &Path) -> Result<&'a Command> {
    for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR", "RUNTIME_DIRECTORY"] {
        command.env(name, directory);
    }
    // DPDK loads no driver by a path that leads through a directory which everybody may write to.
    let test = std::env::current_exe()?;
    Ok(command.env("LD_LIBRARY_PATH", test.parent().context("a test without a directory")?))
}

fn wait_for(path: &Path) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !path.exists() {
        ensure!(Instant::now() < deadline, "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
