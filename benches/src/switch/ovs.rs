//! The peer: Debian's OVS-DPDK, from a pcap source to a null sink on one core.

use super::traffic::Load;
use super::upcalls::rate_to;
use crate::measure::{Measurement, Plan, RealTime};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

/// The datapath's numbers of the ports: the next ones after the bridge's own, in the order that they come.
const SINK: u32 = 2;
const SOURCE: u32 = 3;
const PURGE_TIMEOUT: Duration = Duration::from_secs(60);
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

/// A running OVS-DPDK.
pub(crate) struct Ovs(hwtests::Ovs);

impl Ovs {
    pub(crate) fn start(plan: &Plan) -> Result<Ovs> {
        let ovs = hwtests::Ovs::start(&[
            &format!("pmd-cpu-mask={:#x}", 1_u64 << plan.backend_cpu),
            &format!("dpdk-lcore-mask={:#x}", 1_u64 << plan.client_cpu),
            "dpdk-socket-mem=1024",
            "max-idle=10000000",
            "flow-limit=2000000",
            "dpdk-extra=--no-pci --in-memory",
        ])?;
        Ok(Ovs(ovs))
    }

    /// Cycles a packet from the source to the sink, all included, by OVS's own count: with either cache.
    pub(crate) fn measure(&self, plan: &Plan, pcap: &Path, load: &Load) -> Result<[Measurement; 2]> {
        // Flows before packets, and no revalidator that would replace them by what the bridge says.
        self.0.appctl(&["revalidator/pause"])?;
        self.0.appctl(&["dpctl/del-flows"])?;
        self.0.add_port("sink", SINK_DEVICE)?;
        let [source, sink] = [SOURCE, SINK].map(|port| port.to_string());
        let file = self.0.file("flows.txt");
        std::fs::write(&file, load.flow_lines(&source, &sink))?;
        self.0.appctl(&["dpctl/add-flows", &file.display().to_string()])?;
        self.0.add_port("source", &source_device(pcap))?;
        let figures = [Cache::Emc, Cache::Megaflow].map(|cache| self.windows(plan, cache));
        let held = self.0.appctl(&["dpctl/show"])?;
        self.0.appctl(&["dpctl/del-flows"])?;
        self.0.appctl(&["revalidator/resume"])?;
        self.0.vsctl(&["del-port", "source", "--", "del-port", "sink"])?;
        ensure!(held.contains(&format!("port {SOURCE}: source ")), "the source is not port {SOURCE} in:\n{held}");
        let [emc, megaflow] = figures;
        Ok([emc?, megaflow?])
    }

    /// Flows a second that the bridge decides for packets to so many unknown stations.
    pub(crate) fn upcalls(&self, pcap: &Path, stations: usize) -> Result<f64> {
        self.0.ofctl("add-flow", &["actions=NORMAL"])?;
        self.0.appctl(&["revalidator/purge"])?;
        let deadline = Instant::now() + PURGE_TIMEOUT;
        while self.installed()? > 0 {
            ensure!(Instant::now() < deadline, "flows do not go");
        }
        self.0.add_port("sink", SINK_DEVICE)?;
        self.0.add_port("source", &source_device(pcap))?;
        let real_time = RealTime::of_threads(self.0.process().id(), "pmd-")?;
        let rate = rate_to(stations, || self.installed());
        drop(real_time);
        self.0.vsctl(&["del-port", "source", "--", "del-port", "sink"])?;
        rate
    }

    /// Megaflows, as of the last tenth of a second.
    fn installed(&self) -> Result<usize> {
        let shown = self.0.appctl(&["upcall/show"])?;
        let flows = shown.split("(current ").nth(1).and_then(|rest| rest.split(')').next()?.parse().ok());
        flows.with_context(|| format!("no count of flows in:\n{shown}"))
    }

    fn windows(&self, plan: &Plan, cache: Cache) -> Result<Measurement> {
        let probability = if cache == Cache::Emc { "100" } else { "0" };
        self.0.vsctl(&["set", "Open_vSwitch", ".", &format!("other_config:emc-insert-inv-prob={probability}")])?;
        let _real_time = RealTime::of_threads(self.0.process().id(), "pmd-")?;
        std::thread::sleep(Duration::from_secs(1));
        let mut figures = Vec::new();
        for _ in 0..plan.windows {
            self.0.appctl(&["dpif-netdev/pmd-stats-clear"])?;
            std::thread::sleep(plan.window * 2);
            let stats = self.0.appctl(&["dpif-netdev/pmd-stats-show"])?;
            let count = |name: &str| stats.lines().find_map(|line| line.trim().strip_prefix(name));
            let missed = ["miss with success upcall: ", "miss with failed upcall: "].map(count);
            ensure!(missed.iter().all(|&count| count == Some("0")), "packets that missed:\n{stats}");
            let line = stats.lines().find(|line| line.contains("avg processing cycles per packet"));
            let figure = line.and_then(|line| line.split(": ").nth(1)?.split(' ').next()?.parse::<f64>().ok());
            figures.push(figure.with_context(|| format!("no cycles a packet in:\n{stats}"))?);
        }
        Ok(Measurement::new(figures))
    }
}
