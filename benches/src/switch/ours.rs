//! Our side: the switch on one worker, between the same two DPDK devices as the peer.

use super::traffic::Load;
use super::upcalls::rate_to;
use crate::measure::{Measurement, Plan, RealTime};
use anyhow::{Context, Result, ensure};
use clock::Cycles;
use dpdk::{Eal, EalConfig, Mempool};
use engine::{Engine, IdlePolicy, Source};
use flow::text::{FlowMatch, parse_actions};
use flow::{Action, FlowCache, Megaflow};
use l2::{BridgeConfig, BridgePort, PortConfig, Switch};
use packet::Burst;
use port::{Counters, EthdevParams, EthdevPort, Port, PortShard};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Buffers: the packets of the largest source, and as many on their way.
const BUFFERS: u32 = 262_144;
const SOURCE: u32 = 1;
const SINK: u32 = 2;

/// DPDK and a worker in this process.
pub(crate) struct Sluice {
    pub(super) eal: Eal,
    pool: Mempool,
    pub(super) engine: Engine,
}

/// What a load cost.
pub(crate) struct Cost {
    /// Cycles a packet, from each source to the sink.
    pub(crate) cycles: [Measurement; 2],
    /// Megaflows that a cache takes in a second.
    pub(crate) insertions: f64,
}

impl Sluice {
    pub(crate) fn start(plan: &Plan) -> Result<Sluice> {
        let eal = Eal::init(&EalConfig {
            control_cpus: vec![plan.client_cpu],
            // A few regions: virtio-user passes them all to its back-end.
            options: vec!["--single-file-segments".to_owned()],
            ..EalConfig::default()
        })?;
        let pool = Mempool::new(&eal, "packets", BUFFERS, None)?;
        let engine = Engine::start(&[plan.backend_cpu], IdlePolicy::POLL)?;
        Ok(Sluice { eal, pool, engine })
    }

    pub(super) fn open(&self, devargs: &str, pool: &Mempool) -> Result<Arc<EthdevPort>> {
        Ok(Arc::new(EthdevPort::open(&self.eal, &EthdevParams::new(devargs, pool, 1))?))
    }

    fn ports(&self, pcap: &Path) -> Result<[Arc<EthdevPort>; 2]> {
        let source = self.open(&format!("net_pcap0,rx_pcap={},infinite_rx=1", pcap.display()), &self.pool)?;
        Ok([source, self.open("net_null0,no-rx=1", &self.pool)?])
    }

    /// Cycles a packet of the devices alone: what is received is sent.
    pub(crate) fn floor(&self, plan: &Plan, pcap: &Path) -> Result<Measurement> {
        let [source, sink] = self.ports(pcap)?;
        let worker = &self.engine.workers()[0];
        let wire = Wire { from: source.open_shard(worker)?, to: sink.open_shard(worker)?, burst: Burst::new() };
        let id = worker.add("wire", Box::new(wire));
        let cycles = windows(plan, &sink);
        drop(worker.remove(id));
        cycles
    }

    /// Through the switch, from each of some sources, with the flows of `load`.
    pub(crate) fn measure(&self, plan: &Plan, pcaps: &[PathBuf; 2], load: &Load) -> Result<Cost> {
        let switch = Switch::start(self.engine.workers(), self.pool.packets().clone())?;
        let number = |number| PortConfig { number: Some(number), ..PortConfig::default() };
        let flows = load.flow_lines(&SOURCE.to_string(), &SINK.to_string());
        let flows: Vec<_> = flows.lines().map(parse).collect::<Result<_>>()?;
        let insertions = insertions(&flows)?;
        for (flow, actions) in flows {
            switch.add_flow(&flow.key, &flow.mask, actions)?;
        }
        let through = |pcap: &PathBuf| {
            let [source, sink] = self.ports(pcap)?;
            switch.add_port("sink", sink.clone(), &number(SINK))?;
            switch.add_port("source", source, &number(SOURCE))?;
            let cycles = windows(plan, &sink)?;
            let missed: u64 = switch.ports().iter().map(|port| port.path.upcalls).sum();
            ensure!(missed == 0, "{missed} packets missed");
            switch.remove_port("source")?;
            switch.remove_port("sink")?;
            Ok(cycles)
        };
        let [uniform, zipf] = pcaps.each_ref().map(through);
        Ok(Cost { cycles: [uniform?, zipf?], insertions })
    }

    /// Flows a second that a bridge decides for packets to so many unknown stations.
    pub(crate) fn upcalls(&self, pcap: &Path, stations: usize) -> Result<f64> {
        let switch = Switch::start(self.engine.workers(), self.pool.packets().clone())?;
        switch.create_bridge("bridge", BridgeConfig::default())?;
        let [source, sink] = self.ports(pcap)?;
        for (name, port) in [("sink", sink), ("source", source)] {
            switch.add_port(name, port, &PortConfig::default())?;
            switch.attach("bridge", name, BridgePort::default())?;
        }
        let _real_time = ["worker-0", "upcall-handler"].map(|thread| RealTime::of_threads(std::process::id(), thread));
        rate_to(stations, || Ok(switch.megaflows()))
    }
}

/// How many of the flows an empty cache takes in a second.
fn insertions(flows: &[(FlowMatch, Vec<Action>)]) -> Result<f64> {
    let mut cache = FlowCache::new(flow::Config::default());
    let megaflow = |(flow, actions): &(FlowMatch, Vec<Action>)| Megaflow::new(flow.key, flow.mask, actions.clone());
    let megaflows: Vec<_> = flows.iter().map(megaflow).collect();
    let start = Instant::now();
    for flow in megaflows {
        cache.insert(flow)?;
    }
    Ok(flows.len() as f64 / start.elapsed().as_secs_f64())
}

pub(super) fn parse(line: &str) -> Result<(FlowMatch, Vec<Action>)> {
    let (flow, actions) = line.split_once(' ').context("a flow and its actions")?;
    Ok((flow.parse()?, parse_actions(actions)?))
}

/// All cycles of the worker's core for each packet that the sink took.
fn windows(plan: &Plan, sink: &EthdevPort) -> Result<Measurement> {
    let sent = || sink.stats().iter().map(AsRef::as_ref).sum::<Counters>().tx_packets;
    let _real_time = RealTime::of_threads(std::process::id(), "worker-0")?;
    std::thread::sleep(plan.window);
    let mut figures = Vec::new();
    for _ in 0..plan.windows {
        let (packets, start) = (sent(), Cycles::now());
        std::thread::sleep(plan.window);
        let (packets, cycles) = (sent() - packets, Cycles::now().since(start));
        ensure!(packets > 0, "no packet reached the sink");
        figures.push(cycles.0 as f64 / packets as f64);
    }
    Ok(Measurement::new(figures))
}

/// The devices with nothing between them.
struct Wire {
    from: Box<dyn PortShard>,
    to: Box<dyn PortShard>,
    burst: Burst,
}

impl Source for Wire {
    fn poll(&mut self, _: Cycles) -> usize {
        let received = self.from.rx(&mut self.burst);
        self.to.tx(&mut self.burst);
        self.to.flush();
        received
    }
}
