//! The switch on memory ports, driven by hand: no thread runs, so every test sees the same order of things.

mod bad_input;
mod learning;
mod marks;
mod observe;
mod offload;
mod reference;
mod static_flows;
mod workers;

use crate::pipeline::L2Pipeline;
use crate::{BridgeConfig, BridgePort, Mac, PortConfig, PortNo, PortReport, Switch, VlanMode};
use clock::Cycles;
use datapath::{Datapath, DatapathState, DatapathWorker, StaticFlows};
use engine::{Engine, IdlePolicy, Source, Waker};
use packet::{Packet, Pool};
use parking_lot::MutexGuard;
use port::{MemoryPeer, MemoryPort};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A switch with a wire at each port.
pub(crate) struct Net {
    pub(crate) switch: Arc<Switch>,
    pub(crate) workers: Vec<DatapathWorker>,
    pub(crate) wires: Vec<Arc<MemoryPeer>>,
    pub(crate) pool: Pool,
    pub(crate) now: Instant,
    turns: usize,
    /// The workers of the engine sleep: the test polls those of the datapath.
    _engine: Engine,
}

pub(crate) const BUFFERS: usize = 4096;

impl Net {
    /// A switch with one worker and a bridge `br` that has these ports, named by their numbers from 1.
    pub(crate) fn new(ports: &[BridgePort]) -> Net {
        Net::with_workers(1, ports)
    }

    pub(crate) fn with_workers(workers: usize, ports: &[BridgePort]) -> Net {
        let cpu = std::iter::from_fn({
            let mut cpus = 0..1024;
            move || cpus.find(|cpu| Engine::start(&[*cpu], IdlePolicy::default()).is_ok())
        });
        let cpu = { cpu }.next().unwrap();
        let engine = Engine::start(&[cpu], IdlePolicy::default()).unwrap();
        let pool = Pool::new(BUFFERS, None).unwrap();
        let wakers: Vec<Waker> = (0..workers).map(|_| Waker::new().unwrap()).collect();
        let small = flow::Config { emc_entries: 256, smc_entries: 1024, ..flow::Config::default() };
        let handles = vec![engine.workers()[0].clone(); workers];
        let parts = Datapath::assemble(StaticFlows::default(), &handles, wakers, pool.clone(), small);
        let (datapath, workers) = parts.unwrap();
        let switch = Arc::new(Switch { datapath });
        let mut net = Net { switch, workers, wires: Vec::new(), pool, now: Instant::now(), turns: 0, _engine: engine };
        net.switch.create_bridge("br", BridgeConfig::default()).unwrap();
        for config in ports {
            net.add_port(config.clone());
        }
        net
    }

    /// Adds a port to the bridge. Returns its number.
    pub(crate) fn add_port(&mut self, config: BridgePort) -> PortNo {
        let (port, wire) = MemoryPort::new(256);
        self.add(Arc::new(port), config, wire)
    }

    pub(crate) fn add(&mut self, port: Arc<dyn port::Port>, config: BridgePort, wire: Arc<MemoryPeer>) -> PortNo {
        let name = (self.wires.len() + 1).to_string();
        self.wires.push(wire);
        self.plug(&name, port);
        self.switch.attach("br", &name, config).unwrap();
        self.settle();
        self.wires.len() as PortNo
    }

    /// Puts a port, named by its number, into the bridge.
    pub(crate) fn plug(&mut self, name: &str, port: Arc<dyn port::Port>) {
        self.plug_with(name, port, &PortConfig { number: name.parse().ok(), upcall_pps: None });
    }

    pub(crate) fn plug_with(&mut self, name: &str, port: Arc<dyn port::Port>, config: &PortConfig) {
        self.switch.add_port(name, port, config).unwrap();
        self.switch.attach("br", name, BridgePort::default()).unwrap();
        self.settle();
    }

    /// Removes a port, while its workers go on.
    pub(crate) fn remove_port(&mut self, name: &str) {
        let (switch, name) = (self.switch.clone(), name.to_owned());
        let removing = std::thread::spawn(move || drop(switch.remove_port(&name).unwrap()));
        while !removing.is_finished() {
            self.poll();
        }
        removing.join().unwrap();
    }

    pub(crate) fn send(&self, port: PortNo, frame: &[u8]) {
        self.send_marked(port, frame, None);
    }

    /// Sends a frame that hardware has marked.
    pub(crate) fn send_marked(&self, port: PortNo, frame: &[u8], mark: Option<u32>) {
        let mut packet = self.pool.take_one().unwrap();
        assert!(packet.extend_from_slice(frame, &self.pool));
        if let Some(mark) = mark {
            packet.set_mark(mark);
        }
        self.wires[port as usize - 1].send(packet).unwrap();
    }

    /// One turn of every worker; each time another one is first.
    pub(crate) fn poll(&mut self) -> usize {
        self.turns += 1;
        let (first, count) = (self.turns, self.workers.len());
        (0..count).map(|n| self.workers[(first + n) % count].poll(Cycles::now())).sum()
    }

    /// Runs until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        while self.poll() + self.handle_upcalls() > 0 {}
        self.workers.iter_mut().for_each(|worker| worker.quiesce());
    }

    /// Answers a batch of upcalls. Returns how many.
    pub(crate) fn handle_upcalls(&self) -> usize {
        self.switch.datapath.handler().handle_upcalls(self.now)
    }

    /// What came out by a port.
    pub(crate) fn received(&self, port: PortNo) -> Vec<Vec<u8>> {
        let bytes = |packet: Packet| packet.segments().flatten().copied().collect();
        std::iter::from_fn(|| self.wires[port as usize - 1].receive()).map(bytes).collect()
    }

    /// Sends a frame and tells which ports it came out by.
    pub(crate) fn reaches(&mut self, port: PortNo, frame: &[u8]) -> Vec<PortNo> {
        self.send(port, frame);
        self.settle();
        (1..=self.wires.len() as PortNo).filter(|port| !self.received(*port).is_empty()).collect()
    }

    /// Time goes by, and the switch takes note of the statistics of its flows.
    pub(crate) fn sweep_after(&mut self, time: Duration) {
        self.now += time;
        let answers = self.switch.datapath.handler().request_stats();
        self.settle();
        let reported: Vec<_> = answers.into_iter().map(|answer| answer.try_recv().unwrap()).collect();
        self.switch.datapath.handler().apply_stats(reported, self.now, Cycles::now());
        self.settle();
    }

    /// The switch takes note that a flow has seen nothing for longer than idle flows stay. Returns whether the flow is still there.
    pub(crate) fn sweep_idle(&self, ufid: u128) -> bool {
        let later = Cycles::now() + datapath::limits::FLOW_IDLE.into() + Duration::from_secs(1).into();
        let unused = vec![(ufid, flow::Stats::default())];
        self.switch.datapath.handler().apply_stats([unused], self.now, later);
        self.state().flow_reports().iter().any(|report| report.flow.ufid == ufid)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, DatapathState<StaticFlows<L2Pipeline>>> {
        self.switch.datapath.lock()
    }

    pub(crate) fn port(&self, number: PortNo) -> PortReport {
        self.switch.ports().into_iter().find(|report| report.number == number).unwrap()
    }

    /// The number of upcalls, over all ports.
    pub(crate) fn upcalls(&self) -> u64 {
        self.switch.ports().iter().map(|port| port.path.upcalls).sum()
    }
}

pub(crate) fn access(vlan: u16) -> BridgePort {
    BridgePort { vlan: VlanMode::Access { vlan }, ..BridgePort::default() }
}

pub(crate) fn trunk(vlans: &[u16], native: Option<u16>) -> BridgePort {
    BridgePort { vlan: VlanMode::Trunk { vlans: vlans.to_vec(), native }, ..BridgePort::default() }
}

pub(crate) fn any() -> BridgePort {
    BridgePort::default()
}

pub(crate) fn mac(n: u8) -> Mac {
    Mac::from([2, 0, 0, 0, 0, n])
}

pub(crate) const BROADCAST: Mac = Mac::new(0xffff_ffff_ffff);

/// A frame of no protocol, with a tag where one is given.
pub(crate) fn frame(source: Mac, destination: Mac, tag: Option<u16>) -> Vec<u8> {
    frame_of(source, destination, tag, 0x88b5, &[7; 46])
}

pub(crate) fn frame_of(source: Mac, destination: Mac, tag: Option<u16>, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&destination.bits().to_be_bytes()[2..]);
    frame.extend_from_slice(&source.bits().to_be_bytes()[2..]);
    if let Some(tci) = tag {
        frame.extend_from_slice(&0x8100_u16.to_be_bytes());
        frame.extend_from_slice(&tci.to_be_bytes());
    }
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}
