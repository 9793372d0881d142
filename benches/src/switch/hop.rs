//! One hop over vhost-user, against testpmd: DPDK's virtio-user driver and the back-end on one core, packets going round.

use super::ours::Sluice;
use crate::measure::{Measurement, Plan, RealTime};
use anyhow::{Context, Result, ensure};
use clock::Cycles;
use crossbeam::channel::{Receiver, bounded};
use dpdk::Mempool;
use engine::Source;
use hwtests::Process;
use packet::{BURST, Burst, Pool};
use port::{Counters, Port, PortShard};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use virtio_net::{DeviceEventSink, NetController, NetParams, Role};

/// Bursts that go round, each way: as testpmd's `start tx_first 8`.
const BURSTS: usize = 8;
/// Buffers of either side.
pub(super) const BUFFERS: u32 = 16_384;
/// Bytes of testpmd's packets.
const FRAME: usize = 64;
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What the driver negotiates.
pub(super) const LAYOUTS: [(&str, &str); 6] = [
    ("split", "packed_vq=0,in_order=0,mrg_rxbuf=1"),
    ("split in order", "packed_vq=0,in_order=1,mrg_rxbuf=1"),
    ("split, not mergeable", "packed_vq=0,in_order=0,mrg_rxbuf=0"),
    ("packed", "packed_vq=1,in_order=0,mrg_rxbuf=1"),
    ("packed in order", "packed_vq=1,in_order=1,mrg_rxbuf=1"),
    ("packed, not mergeable", "packed_vq=1,in_order=0,mrg_rxbuf=0"),
];

fn driver(socket: &Path, layout: &str) -> String {
    format!("net_virtio_user0,path={},queues=1,queue_size=1024,{layout}", socket.display())
}

/// Cycles a hop, the driver's and the back-end's together, with ours as the back-end.
pub(super) fn ours(plan: &Plan, sluice: &Sluice, mempool: &Mempool, layout: &str) -> Result<Measurement> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("hop");
    let worker = &sluice.engine.workers()[0];
    let pool = mempool.packets().clone();
    let params = NetParams {
        name: "hop".to_owned(),
        socket: socket.clone(),
        role: Role::Server,
        socket_mode: 0o600,
        queue_pairs: 1,
        packed_ring: true,
        mrg_rxbuf: true,
        mtu: 1500,
        mac: None,
        workers: vec![worker.clone()],
        pool: pool.clone(),
    };
    let controller = NetController::start(params, DeviceEventSink::new(16).0)?;
    let (send, driver_comes) = bounded(1);
    let ring = Ring { guest: controller.open_shard(worker)?, driver: None, driver_comes, pool, burst: Burst::new() };
    let id = worker.add("hop", Box::new(ring));
    let port = sluice.open(&driver(&socket, layout), mempool)?;
    send.send(port.open_shard(worker)?).ok().context("the worker is gone")?;
    let hops = || {
        let counters: Counters = controller.stats().iter().map(AsRef::as_ref).sum();
        counters.rx_packets + counters.tx_packets
    };
    let figures = windows(plan, hops);
    drop(worker.remove(id));
    figures
}

fn windows(plan: &Plan, hops: impl Fn() -> u64) -> Result<Measurement> {
    let deadline = Instant::now() + START_TIMEOUT;
    while hops() < 10_000 {
        ensure!(Instant::now() < deadline, "no packets go round: {} so far", hops());
        std::thread::sleep(Duration::from_millis(10));
    }
    let _real_time = RealTime::of_threads(std::process::id(), "worker-0")?;
    let figure = || {
        let (before, start) = (hops(), Cycles::now());
        std::thread::sleep(plan.window);
        let (hops, cycles) = (hops() - before, Cycles::now().since(start));
        cycles.0 as f64 / hops as f64
    };
    Ok(Measurement::new((0..plan.windows).map(|_| figure())))
}

/// Both ends of the rings: what comes out of one goes into the other.
struct Ring {
    guest: Box<dyn PortShard>,
    driver: Option<Box<dyn PortShard>>,
    /// Connects only when the back-end is polled already.
    driver_comes: Receiver<Box<dyn PortShard>>,
    pool: Pool,
    burst: Burst,
}

impl Ring {
    /// Puts the packets in that go round.
    fn fill(&mut self, driver: &mut dyn PortShard) {
        for _ in 0..BURSTS {
            for to in [&mut *driver, &mut *self.guest] {
                self.pool.take(&mut self.burst, BURST);
                self.burst.iter_mut().filter_map(|packet| packet.append(FRAME)).for_each(|frame| frame.fill(0));
                to.tx(&mut self.burst);
            }
        }
    }
}

impl Source for Ring {
    fn poll(&mut self, _: Cycles) -> usize {
        let from_guest = self.guest.rx(&mut self.burst);
        let Some(driver) = &mut self.driver else { return from_guest };
        driver.tx(&mut self.burst);
        let from_driver = driver.rx(&mut self.burst);
        self.guest.tx(&mut self.burst);
        self.guest.flush();
        driver.flush();
        from_guest + from_driver
    }

    fn quiesce(&mut self) {
        self.guest.quiesce();
        if let Some(driver) = &mut self.driver {
            driver.quiesce();
        } else if let Ok(mut driver) = self.driver_comes.try_recv() {
            self.fill(driver.as_mut());
            self.driver = Some(driver);
        }
    }
}

/// The same with testpmd's back-end (`net_vhost`), by its own count.
pub(super) fn testpmd(plan: &Plan, layout: &str) -> Result<Measurement> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("hop");
    // What it prints is awaited line by line.
    let mut command = Command::new("stdbuf");
    command.args([
        "-oL",
        "dpdk-testpmd",
        "--no-pci",
        "--in-memory",
        "--single-file-segments",
        "--no-telemetry",
        "-m",
        "512",
    ]);
    command.args(["--lcores", &format!("0@{},1@{}", plan.client_cpu, plan.backend_cpu)]);
    command.arg("--vdev").arg(format!("net_vhost0,iface={},queues=1", socket.display()));
    command.args(["--", "-i", "--rxd=1024", "--txd=1024", &format!("--total-num-mbufs={BUFFERS}")]);
    let mut testpmd = Process::spawn("dpdk-testpmd", &command)?;
    testpmd.wait_for("Done", START_TIMEOUT)?;
    testpmd.write_line(&format!("port attach {}", driver(&socket, layout)))?;
    // What the driver does beside moving packets is the same on both sides.
    for offload in ["rx_offload udp_cksum", "rx_offload tcp_cksum", "tx_offload udp_cksum", "tx_offload tcp_cksum"] {
        testpmd.write_line(&format!("port config 1 {offload} on"))?;
    }
    for line in ["port start 1", "set fwd io", "start tx_first 8"] {
        testpmd.write_line(line)?;
    }
    testpmd.wait_for("io packet forwarding", START_TIMEOUT)?;
    let _real_time = RealTime::of_threads(testpmd.id(), "rte-worker")?;
    let hertz = Cycles::from(Duration::from_secs(1)).0 as f64;
    let mut rate = || {
        let shown = |testpmd: &Process| -> Vec<f64> {
            let output = testpmd.output();
            let rates = output.lines().filter_map(|line| line.trim().strip_prefix("Rx-pps:"));
            rates.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
        };
        let before = shown(&testpmd).len();
        std::thread::sleep(plan.window);
        testpmd.write_line("show port stats all")?;
        let deadline = Instant::now() + START_TIMEOUT;
        while shown(&testpmd).len() < before + 2 {
            ensure!(Instant::now() < deadline, "testpmd shows no statistics");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(shown(&testpmd)[before..].iter().sum::<f64>())
    };
    // The first is since the start.
    rate()?;
    let rates = (0..plan.windows).map(|_| rate()).collect::<Result<Vec<f64>>>()?;
    ensure!(rates.iter().all(|rate| *rate > 0.0), "no packets go round in testpmd");
    Ok(Measurement::new(rates.into_iter().map(|rate| hertz / rate)))
}
