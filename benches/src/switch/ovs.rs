//! The peer: Debian's OVS-DPDK, from a pcap source to a null sink on one core.

use super::traffic::Load;
use super::upcalls::rate_to;
use crate::measure::{Measurement, Plan, RealTime};
use anyhow::{Context, Result, bail, ensure};
use hwtests::Process;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// The datapath's numbers of the ports: the next ones after the bridge's own, in the order that they come.
const SINK: u32 = 2;
const SOURCE: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);
const SINK_DEVICE: &str = "net_null0,no-rx=1";

fn source_device(pcap: &Path) -> String {
    format!("net_pcap0,rx_pcap={},infinite_rx=1", pcap.display())
}

/// How packets find their flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    /// As delivered: exact match with insertion of one packet in a hundred.
    Emc,
    /// The megaflow classifier for every packet.
    Megaflow,
}

/// A running OVS-DPDK with its database, in a directory of its own.
pub(crate) struct Ovs {
    directory: tempfile::TempDir,
    _database: Process,
    switch: Process,
}

impl Ovs {
    /// `None` with a word when the package is not there.
    pub(crate) fn start(plan: &Plan) -> Result<Ovs> {
        ensure!(Path::new(DAEMON).exists(), "{DAEMON} is missing: scripts/install brings it");
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        run(Command::new("ovsdb-tool").arg("create").arg(path("conf.db")).arg(schema))?;
        let mut database = Command::new("ovsdb-server");
        database.arg(path("conf.db")).arg(format!("--remote=punix:{}", path("db.sock").display()));
        database.arg(format!("--unixctl={}", path("db.ctl").display()));
        let database = Process::spawn("ovsdb-server", environment(&mut database, directory.path()))?;
        wait_for(&path("db.sock"))?;
        let mut ovs = Starting { directory, database };
        ovs.vsctl(&["--no-wait", "init"])?;
        ovs.vsctl(&[
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            &format!("other_config:pmd-cpu-mask={:#x}", 1_u64 << plan.backend_cpu),
            &format!("other_config:dpdk-lcore-mask={:#x}", 1_u64 << plan.client_cpu),
            "other_config:dpdk-socket-mem=1024",
            "other_config:max-idle=10000000",
            "other_config:flow-limit=2000000",
            "other_config:dpdk-extra=--no-pci --in-memory",
        ])?;
        let mut switch = Command::new(DAEMON);
        switch.arg(format!("unix:{}", ovs.path("db.sock").display()));
        switch.arg(format!("--unixctl={}", ovs.path("vsw.ctl").display()));
        let switch = Process::spawn("ovs-vswitchd", environment(&mut switch, ovs.directory.path()))?;
        wait_for(&ovs.path("vsw.ctl"))?;
        ovs.vsctl(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail-mode=secure"])?;
        let Starting { directory, database } = ovs;
        Ok(Ovs { directory, _database: database, switch })
    }

    /// Cycles a packet from the source to the sink, all included, by OVS's own count: with either cache.
    pub(crate) fn measure(&self, plan: &Plan, pcap: &Path, load: &Load) -> Result<[Measurement; 2]> {
        // Flows before packets, and nobody who would replace them by what the bridge says.
        self.appctl(&["revalidator/pause"])?;
        self.appctl(&["dpctl/del-flows"])?;
        self.add_port("sink", SINK_DEVICE)?;
        let [source, sink] = [SOURCE, SINK].map(|port| port.to_string());
        let file = self.path("flows.txt");
        std::fs::write(&file, load.flow_lines(&source, &sink))?;
        self.appctl(&["dpctl/add-flows", &file.display().to_string()])?;
        self.add_port("source", &source_device(pcap))?;
        let figures = [Cache::Emc, Cache::Megaflow].map(|cache| self.windows(plan, cache));
        let held = self.appctl(&["dpctl/show"])?;
        self.appctl(&["dpctl/del-flows"])?;
        self.appctl(&["revalidator/resume"])?;
        self.vsctl(&["del-port", "source", "--", "del-port", "sink"])?;
        ensure!(held.contains(&format!("port {SOURCE}: source ")), "the source is not port {SOURCE} in:\n{held}");
        let [emc, megaflow] = figures;
        Ok([emc?, megaflow?])
    }

    /// Flows a second that the bridge decides for packets to so many stations that nobody has seen.
    pub(crate) fn upcalls(&self, pcap: &Path, stations: usize) -> Result<f64> {
        run(Command::new("ovs-ofctl").arg("add-flow").arg(self.path("br0.mgmt")).arg("actions=NORMAL"))?;
        self.appctl(&["revalidator/purge"])?;
        let deadline = Instant::now() + PATIENCE;
        while self.installed()? > 0 {
            ensure!(Instant::now() < deadline, "flows do not go");
        }
        self.add_port("sink", SINK_DEVICE)?;
        self.add_port("source", &source_device(pcap))?;
        let real_time = RealTime::of_threads(self.switch.id(), "pmd-")?;
        let rate = rate_to(stations, || self.installed());
        drop(real_time);
        self.vsctl(&["del-port", "source", "--", "del-port", "sink"])?;
        rate
    }

    /// Megaflows, as of the last tenth of a second.
    fn installed(&self) -> Result<usize> {
        let shown = self.appctl(&["upcall/show"])?;
        let flows = shown.split("(current ").nth(1).and_then(|rest| rest.split(')').next()?.parse().ok());
        flows.with_context(|| format!("no count of flows in:\n{shown}"))
    }

    fn windows(&self, plan: &Plan, cache: Cache) -> Result<Measurement> {
        let probability = if cache == Cache::Emc { "100" } else { "0" };
        self.vsctl(&["set", "Open_vSwitch", ".", &format!("other_config:emc-insert-inv-prob={probability}")])?;
        let _real_time = RealTime::of_threads(self.switch.id(), "pmd-")?;
        std::thread::sleep(Duration::from_secs(1));
        let mut figures = Vec::new();
        for _ in 0..plan.windows {
            self.appctl(&["dpif-netdev/pmd-stats-clear"])?;
            std::thread::sleep(plan.window * 2);
            let stats = self.appctl(&["dpif-netdev/pmd-stats-show"])?;
            let count = |name: &str| stats.lines().find_map(|line| line.trim().strip_prefix(name));
            let missed = ["miss with success upcall: ", "miss with failed upcall: "].map(count);
            ensure!(missed.iter().all(|&count| count == Some("0")), "packets that missed:\n{stats}");
            let line = stats.lines().find(|line| line.contains("avg processing cycles per packet"));
            let figure = line.and_then(|line| line.split(": ").nth(1)?.split(' ').next()?.parse::<f64>().ok());
            figures.push(figure.with_context(|| format!("no cycles a packet in:\n{stats}"))?);
        }
        Ok(Measurement::new(figures))
    }

    fn add_port(&self, name: &str, devargs: &str) -> Result<()> {
        let options = format!("options:dpdk-devargs=\"{devargs}\"");
        self.vsctl(&["add-port", "br0", name, "--", "set", "Interface", name, "type=dpdk", &options])?;
        let error = self.vsctl(&["get", "Interface", name, "error"])?;
        ensure!(error.trim() == "[]", "port {name}: {error}");
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn vsctl(&self, arguments: &[&str]) -> Result<String> {
        vsctl(&self.path("db.sock"), arguments)
    }

    fn appctl(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("ovs-appctl").arg("-t").arg(self.path("vsw.ctl")).args(arguments))
    }
}

/// The database runs, the switch does not yet.
struct Starting {
    directory: tempfile::TempDir,
    database: Process,
}

impl Starting {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn vsctl(&mut self, arguments: &[&str]) -> Result<String> {
        vsctl(&self.path("db.sock"), arguments)
    }
}

fn vsctl(socket: &Path, arguments: &[&str]) -> Result<String> {
    run(Command::new("ovs-vsctl").arg(format!("--db=unix:{}", socket.display())).arg("--timeout=60").args(arguments))
}

fn environment<'a>(command: &'a mut Command, directory: &Path) -> &'a Command {
    for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(name, directory);
    }
    command
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn wait_for(path: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        ensure!(Instant::now() < deadline, "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
