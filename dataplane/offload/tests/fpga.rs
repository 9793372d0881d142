//! The switch on a card with `rte_flow`: the model of an FPGA, over veth pairs whose other ends the test has. What goes through the
//! card's tables comes out as what goes through the workers does. Needs root.

#![allow(unsafe_code)] // a network namespace of the test's own

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool, Queues};
use engine::{Engine, IdlePolicy};
use flow::text::{FlowMatch, parse_actions};
use offload::{Offloader, Totals};
use packet::Burst;
use port::{EthdevParams, EthdevPort};
use rte_net_fpgasim as _;
use std::collections::{BTreeMap, HashSet};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use switch::{BridgeConfig, BridgePort, PortConfig, Switch};

/// DPDK is once in a process, and so for all these tests, of which each has two cores to itself.
static EAL: LazyLock<(Eal, Mempool, Mutex<usize>)> = LazyLock::new(|| {
    let memory = EalMemory::NoHuge { mib: 256 };
    let eal = Eal::init(&EalConfig { memory, ..EalConfig::default() }).expect("DPDK starts");
    let pool = Mempool::new(&eal, "packets", 32768, None).expect("memory for packets");
    (eal, pool, Mutex::new(0))
});

/// The card's wire is port 1, its two functions are ports 2 and 3.
const PORTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);
/// Of frames that only say that those before them have passed.
const MARKER: u16 = 0x88b5;

/// The other end of a port's cable.
struct Peer {
    queues: Queues,
    _dev: EthDev,
}

struct Net {
    switch: Switch,
    offloader: Option<Arc<Offloader>>,
    peers: Vec<Peer>,
    /// Frames that came out by each port and were not asked for yet.
    out: Vec<Vec<Vec<u8>>>,
    markers: u32,
    _engine: Engine,
    _alone: MutexGuard<'static, usize>,
}

fn is_root() -> bool {
    // SAFETY: asks the kernel.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("not root: no interfaces to test with");
    }
    root
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

impl Net {
    /// A bridge of the card's ports. The card has these arguments besides.
    fn new(arguments: &str, offload: bool) -> Net {
        let (eal, pool, devices) = &*EAL;
        let mut alone = devices.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *alone += 1;
        let device = *alone;
        // SAFETY: what this thread starts from here on is in a network namespace of its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        // The kernel is to say nothing of its own.
        drop(std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"));
        let af_packet = |side: &str, n: usize| format!("net_af_packet{device}{side}{n},iface={side}{n}");
        for n in 0..PORTS {
            ip(&format!("link add a{n} type veth peer name b{n}"));
            ip(&format!("link set a{n} up"));
            ip(&format!("link set b{n} up"));
        }
        let [wire, first, second] = [0, 1, 2].map(|n| af_packet("a", n));
        let devargs = format!("net_fpgasim{device},wire=({wire}),function=({first}),function=({second}){arguments}");
        let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
        let switch = Switch::start(engine.workers(), pool.packets().clone()).unwrap();
        let offloader = offload.then(|| Arc::new(Offloader::start().unwrap()));
        offloader.iter().for_each(|offloader| switch.set_offload(offloader.clone()));
        switch.create_bridge("br", BridgeConfig::default()).unwrap();
        let representors = [0, 1].map(|n| format!("net_fpgasim{device}_representor_{n}"));
        for (n, devargs) in std::iter::once(&devargs).chain(&representors).enumerate() {
            let port = EthdevPort::open(eal, &EthdevParams::new(devargs, pool, 1)).unwrap();
            let (name, number) = (format!("p{}", n + 1), Some(n as u32 + 1));
            switch.add_port(&name, Arc::new(port), &PortConfig { number, upcall_pps: None }).unwrap();
            switch.attach("br", &name, BridgePort::default()).unwrap();
        }
        let peer = |n| {
            let mut dev = EthDev::attach(eal, &af_packet("b", n)).unwrap();
            Peer { queues: dev.start(&EthDevConfig::new(pool)).unwrap(), _dev: dev }
        };
        let (peers, out) = ((0..PORTS).map(peer).collect(), vec![Vec::new(); PORTS]);
        Net { switch, offloader, peers, out, markers: 0, _engine: engine, _alone: alone }
    }

    fn send(&mut self, port: usize, frame: &[u8]) {
        let (_, pool, _) = &*EAL;
        let mut burst = Burst::new();
        pool.packets().take(&mut burst, 1);
        assert!(burst[0].extend_from_slice(frame, pool.packets()));
        let tx = &mut self.peers[port].queues.tx[0];
        let began = Instant::now();
        while tx.send(&mut burst) == 0 {
            assert!(began.elapsed() < PATIENCE, "the cable takes nothing");
        }
    }

    /// Takes in what comes out by each port until `done`.
    fn receive_until(&mut self, mut done: impl FnMut(&mut Vec<Vec<Vec<u8>>>) -> bool) {
        let began = Instant::now();
        let mut burst = Burst::new();
        while !done(&mut self.out) {
            assert!(began.elapsed() < PATIENCE, "what was sent did not come out");
            for (peer, out) in self.peers.iter_mut().zip(&mut self.out) {
                peer.queues.rx[0].receive(&mut burst);
                out.extend(burst.drain(..).map(|packet| packet.data().to_vec()));
            }
        }
    }

    /// Waits until all that was sent has passed: a station that nobody knows says something at each port, and what it says comes
    /// behind what was sent there, also where the translation was asked.
    fn pass(&mut self) {
        let mut awaited = HashSet::new();
        for port in 0..PORTS {
            self.markers += 1;
            let [_, a, b, c] = self.markers.to_be_bytes();
            let marker = frame([2, 0x77, 0, a, b, c], [0xff; 6], MARKER, &[0; 46]);
            self.send(port, &marker);
            awaited.extend((0..PORTS).filter(|out| *out != port).map(|out| (out, marker.clone())));
        }
        self.receive_until(|out| {
            for (port, frames) in out.iter_mut().enumerate() {
                frames.retain(|frame| !awaited.remove(&(port, frame.clone())));
            }
            awaited.is_empty()
        });
        self.offloader.iter().for_each(|offloader| offloader.settle());
    }

    /// What came out by each port, in no order.
    fn take(&mut self) -> Vec<Vec<Vec<u8>>> {
        self.pass();
        let mut out = std::mem::replace(&mut self.out, vec![Vec::new(); PORTS]);
        out.iter_mut().for_each(|frames| frames.sort());
        out
    }

    /// The switch looks at what its flows have seen, and busy ones go to the card.
    fn sweep(&self) {
        self.offloader.iter().for_each(|offloader| offloader.settle());
        drop(self.switch.dump());
        self.offloader.iter().for_each(|offloader| offloader.settle());
    }

    /// What each flow has seen, but for markers.
    fn counters(&self) -> Counters {
        self.sweep();
        let flows = self.switch.dump().into_iter().map(|report| report.flow);
        let text = flows.map(|flow| (FlowMatch { key: flow.key, mask: flow.mask }.to_string(), flow.stats));
        text.filter(|(text, _)| !text.contains("0x88b5"))
            .map(|(text, seen)| (text, (seen.packets, seen.bytes)))
            .collect()
    }

    fn totals(&self) -> Totals {
        self.offloader.as_ref().map(|offloader| offloader.totals()).unwrap_or_default()
    }

    /// Packets that the workers looked up.
    fn looked_up(&self) -> u64 {
        self.switch.worker_stats().iter().map(|s| s.hits_exact + s.hits_signature + s.hits_megaflow + s.misses).sum()
    }
}

fn frame(source: [u8; 6], destination: [u8; 6], eth_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &eth_type.to_be_bytes(), payload].concat()
}

fn mac(station: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, station]
}

/// IPv4 with UDP or TCP, whose checksums are right.
fn ipv4(from: u8, to: u8, protocol: u8, port: u16, number: u32) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
    let mut l4 = vec![0; 40];
    l4[..4].copy_from_slice(&[0x10, 0, (port >> 8) as u8, port as u8]);
    l4[30..34].copy_from_slice(&number.to_be_bytes());
    match protocol {
        17 => l4[4..6].copy_from_slice(&[0, 40]),
        _ => l4[12..14].copy_from_slice(&[0x50, 0x10]),
    }
    let sum = !checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = [&ip[12..20], &[0, protocol, 0, 40]].concat();
    let sum = !checksum(&l4, checksum(&pseudo, 0).into());
    let at = if protocol == 17 { 6 } else { 16 };
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    frame(mac(from), mac(to), 0x0800, &[ip, l4].concat())
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = bytes.chunks(2).fold(start, |sum, pair| sum + u32::from(pair[0]) * 256 + u32::from(pair[1]));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn a_hot_flow_leaves_the_worker() {
    if !is_root() {
        return;
    }
    let mut net = Net::new("", true);
    (0..PORTS).for_each(|port| net.send(port, &frame(mac(port as u8), [0xff; 6], MARKER, &[0; 46])));
    net.take();
    let mut number = 0;
    let mut stream = |net: &mut Net, count: u32| {
        for _ in 0..count {
            net.send(1, &ipv4(1, 2, 17, 1000, number));
            number += 1;
        }
    };
    stream(&mut net, 50);
    assert_eq!(net.take()[2].len(), 50);
    net.sweep();
    assert_eq!(net.totals().flows, 1);
    let before = net.looked_up();
    stream(&mut net, 500);
    net.receive_until(|out| out[2].len() == 500);
    assert_eq!(net.looked_up(), before, "the worker saw packets of an offloaded flow");
    // In order, each once.
    let numbers = net.out[2].iter().map(|frame| u32::from_be_bytes(frame[64..68].try_into().unwrap()));
    assert!(numbers.eq(50..550));
    let seen: Vec<_> = net.counters().into_values().filter(|(packets, _)| *packets > 1).collect();
    assert_eq!(seen, [(550, 550 * 74)]);
    assert_eq!(net.totals().packets, 500);
}

/// Flows of an operator that come and go.
const FLOWS: [(&str, &str); 4] = [
    ("in_port(1),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst=1001)", "set(ipv4(dst=10.9.9.9)),2"),
    ("in_port(2),eth(),eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=1000)", "drop"),
    ("in_port(3),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst=1000)", "push_vlan(vid=5,pcp=3),1"),
    (
        "in_port(1),eth(),eth_type(0x0800),ipv4(proto=17,ttl=64,frag=no),udp(dst=1000)",
        "set(eth(src=02:00:00:00:00:aa,dst=02:00:00:00:00:bb)),dec_ttl(le_1(drop)),3",
    ),
];

/// What is done to a net, the same with hardware and without.
struct Run {
    net: Net,
    random: u64,
    number: u32,
    /// The port of each station.
    places: [usize; 4],
    installed: [bool; FLOWS.len()],
}

impl Run {
    fn new(arguments: &str, offload: bool) -> Run {
        Run { net: Net::new(arguments, offload), random: 7, number: 0, places: [0, 1, 2, 1], installed: [false; 4] }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as usize % below
    }

    /// One thing happens. Returns what came out.
    fn step(&mut self) -> Vec<Vec<Vec<u8>>> {
        match self.random(10) {
            0..6 => {
                let (from, to) = (self.random(4), self.random(4));
                let (protocol, port) = ([6, 17][self.random(2)], [1000, 1001][self.random(2)]);
                for _ in 0..[1, 40][self.random(2)] {
                    self.number += 1;
                    self.net.send(self.places[from], &ipv4(from as u8, to as u8, protocol, port, self.number));
                }
            }
            6..8 => self.net.sweep(),
            8 => {
                let station = self.random(4);
                self.places[station] = self.random(PORTS);
                self.net.send(self.places[station], &frame(mac(station as u8), [0xff; 6], 0x88b6, &[0; 46]));
            }
            _ => {
                let n = self.random(FLOWS.len());
                let FlowMatch { key, mask } = FLOWS[n].0.parse().unwrap();
                match self.installed[n] {
                    true => drop(self.net.switch.delete_flow(&key, &mask).unwrap()),
                    false => self.net.switch.add_flow(&key, &mask, parse_actions(FLOWS[n].1).unwrap()).unwrap(),
                }
                self.installed[n] = !self.installed[n];
            }
        }
        self.net.take()
    }
}

/// Packets and bytes of each flow.
type Counters = BTreeMap<String, (u64, u64)>;

const STEPS: usize = 80;

/// The same steps twice. Returns what the hardware did, and the counters without it and with it.
fn same_with_and_without(arguments: &str) -> (Totals, [Counters; 2]) {
    let mut software = Run::new(arguments, false);
    let expected: Vec<_> = (0..STEPS).map(|_| software.step()).collect();
    let counted = software.net.counters();
    drop(software);
    let mut hardware = Run::new(arguments, true);
    for (step, expected) in expected.iter().enumerate() {
        assert_eq!(&hardware.step(), expected, "{arguments:?}, step {step}");
    }
    let counters = hardware.net.counters();
    (hardware.net.totals(), [counted, counters])
}

#[test]
fn hardware_does_what_the_workers_do() {
    if !is_root() {
        return;
    }
    for arguments in ["", ",exact=2,masked=2", ",counter-delay-ms=1", ",insert-delay-us=2000"] {
        let (totals, [software, hardware]) = same_with_and_without(arguments);
        assert!(totals.packets > 20, "{arguments:?}: {totals:?}");
        if arguments != ",counter-delay-ms=1" {
            assert_eq!(software, hardware, "{arguments:?}: {totals:?}");
        }
    }
}

#[test]
fn what_the_card_refuses_stays_with_the_workers() {
    if !is_root() {
        return;
    }
    for arguments in [",refuse=udp", ",refuse-create=ipv4", ",refuse=represented_port"] {
        let (totals, [software, hardware]) = same_with_and_without(arguments);
        assert!(totals.refused["device"] > 0, "{arguments:?}: {totals:?}");
        assert_eq!(software, hardware, "{arguments:?}: {totals:?}");
    }
}

#[test]
fn a_reset_of_the_card_loses_no_packet_and_counts_none_twice() {
    if !is_root() {
        return;
    }
    let (totals, [software, hardware]) = same_with_and_without(",reset-after=600");
    assert!(totals.lost > 0 && totals.packets > 20, "{totals:?}");
    // What the card had counted since the last look is gone with it.
    for (flow, counted) in &hardware {
        assert!(software[flow] >= *counted, "{flow}: {counted:?} of {:?}", software[flow]);
    }
}
