//! A switch on a NIC with `rte_flow`: the model of an FPGA, over veth pairs whose other ends the test has. Needs root.

#![allow(unsafe_code)] // a network namespace of the test's own, and rules removed by another program
#![allow(dead_code, reason = "each test takes what it needs")]

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool, Queues};
use engine::{Engine, IdlePolicy};
use flow::text::FlowMatch;
use l2::{BridgeConfig, BridgePort, PortConfig, Switch};
use offload::{Offloader, Totals};
use packet::Burst;
use parking_lot::{Mutex, MutexGuard};
use port::{EthdevParams, EthdevPort};
use rte_net_fpgasim as _;
use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// DPDK is once in a process, and so for all these tests, of which each has two cores to itself.
static EAL: LazyLock<(Eal, Mempool, Mutex<usize>)> = LazyLock::new(|| {
    let memory = EalMemory::NoHuge { mib: 256 };
    let eal = Eal::init(&EalConfig { memory, ..EalConfig::default() }).expect("DPDK starts");
    let pool = Mempool::new(&eal, "packets", 32768, None).expect("memory for packets");
    (eal, pool, Mutex::new(0))
});

/// The NIC's wire is port 1, its two functions are ports 2 and 3.
pub(crate) const PORTS: usize = 3;
pub(crate) const TRAFFIC_TIMEOUT: Duration = Duration::from_secs(30);
/// Of frames that only say that those before them have passed.
pub(crate) const MARKER: u16 = 0x88b5;

/// The other end of a port's cable.
struct Peer {
    queues: Queues,
    _dev: EthDev,
}

pub(crate) struct Net {
    pub(crate) switch: Switch,
    offloader: Option<Arc<Offloader>>,
    peers: Vec<Peer>,
    /// Frames that came out by each port and were not asked for yet.
    pub(crate) out: Vec<Vec<Vec<u8>>>,
    nic: String,
    markers: u32,
    _engine: Engine,
    _alone: MutexGuard<'static, usize>,
}

pub(crate) fn is_root() -> bool {
    // SAFETY: `geteuid` has no precondition.
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
    /// A bridge of the NIC's ports. The NIC has these arguments besides.
    pub(crate) fn new(arguments: &str, offload: bool) -> Net {
        let (eal, pool, devices) = &*EAL;
        let mut alone = devices.lock();
        *alone += 1;
        let device = *alone;
        // SAFETY: `unshare` with a flag has no precondition; it moves this thread to a new network namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        // The kernel is to say nothing of its own.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"); // a kernel without IPv6 sends nothing either
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
        if let Some(offloader) = &offloader {
            switch.set_offload(offloader.clone());
        }
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
        Net {
            switch,
            offloader,
            peers,
            out,
            nic: format!("net_fpgasim{device}"),
            markers: 0,
            _engine: engine,
            _alone: alone,
        }
    }

    pub(crate) fn send(&mut self, port: usize, frame: &[u8]) {
        let (_, pool, _) = &*EAL;
        let mut burst = Burst::new();
        pool.packets().take(&mut burst, 1);
        assert!(burst[0].extend_from_slice(frame, pool.packets()));
        let tx = &mut self.peers[port].queues.tx[0];
        let began = Instant::now();
        while tx.send(&mut burst) == 0 {
            assert!(began.elapsed() < TRAFFIC_TIMEOUT, "the cable takes nothing");
        }
    }

    /// Takes in what comes out by each port until `done`.
    pub(crate) fn receive_until(&mut self, mut done: impl FnMut(&mut Vec<Vec<Vec<u8>>>) -> bool) {
        let began = Instant::now();
        let mut burst = Burst::new();
        while !done(&mut self.out) {
            assert!(began.elapsed() < TRAFFIC_TIMEOUT, "what was sent did not come out");
            for (peer, out) in self.peers.iter_mut().zip(&mut self.out) {
                peer.queues.rx[0].receive(&mut burst);
                out.extend(burst.drain(..).map(|packet| packet.data().to_vec()));
            }
        }
    }

    /// Waits until all sent frames have passed: an unknown station sends a frame at each port, which comes after the frames that were
    /// sent there before, also where those were upcalls.
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
        if let Some(offloader) = &self.offloader {
            offloader.settle();
        }
    }

    /// What came out by each port, in no order.
    pub(crate) fn take(&mut self) -> Vec<Vec<Vec<u8>>> {
        self.pass();
        let mut out = std::mem::replace(&mut self.out, vec![Vec::new(); PORTS]);
        out.iter_mut().for_each(|frames| frames.sort());
        out
    }

    /// The switch looks at what its flows have seen, and busy ones go to the NIC.
    pub(crate) fn sweep(&self) {
        if let Some(offloader) = &self.offloader {
            offloader.settle();
        }
        drop(self.switch.dump());
        if let Some(offloader) = &self.offloader {
            offloader.settle();
        }
    }

    /// What each flow has seen, but for markers.
    pub(crate) fn counters(&self) -> Counters {
        self.sweep();
        let flows = self.switch.dump().into_iter().map(|report| report.flow);
        let text = flows.map(|flow| (FlowMatch { key: flow.key, mask: flow.mask }.to_string(), flow.stats));
        text.filter(|(text, _)| !text.contains("0x88b5"))
            .map(|(text, seen)| (text, (seen.packets, seen.bytes)))
            .collect()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.offloader.as_ref().map(|offloader| offloader.totals()).unwrap_or_default()
    }

    /// Removes all rules from the NIC, as another program does.
    pub(crate) fn flush_rules(&self) {
        let name = CString::new(self.nic.as_str()).unwrap();
        let (mut port, mut error) = (0, dpdk_sys::rte_flow_error::default());
        // SAFETY: a C string; `port` has room for a number.
        assert_eq!(unsafe { dpdk_sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut port) }, 0);
        // SAFETY: the port of the name; `error` has room for an error.
        assert_eq!(unsafe { dpdk_sys::rte_flow_flush(port, &raw mut error) }, 0);
    }

    /// Packets that the workers looked up, as they last told: they do ten times a second.
    pub(crate) fn looked_up(&self) -> u64 {
        self.switch.worker_stats().iter().map(|s| s.hits_exact + s.hits_signature + s.hits_megaflow + s.misses).sum()
    }

    /// Packets that the workers received: those that the NIC left to them.
    pub(crate) fn received(&self) -> u64 {
        let stats = self.switch.ports().into_iter().flat_map(|report| report.port.stats());
        stats.map(|stats| stats.rx_packets.load(Ordering::Relaxed)).sum()
    }
}

pub(crate) fn frame(source: [u8; 6], destination: [u8; 6], eth_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &eth_type.to_be_bytes(), payload].concat()
}

pub(crate) fn mac(station: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, station]
}

/// IPv4 with UDP or TCP, whose checksums are right.
pub(crate) fn ipv4(from: u8, to: u8, protocol: u8, port: u16, number: u32) -> Vec<u8> {
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

/// Packets and bytes of each flow.
pub(crate) type Counters = BTreeMap<String, (u64, u64)>;
