//! DPDK's virtio-user driver, unmodified, as the guest: `dpdk-testpmd` sends back what it receives. Every layout, one to four
//! queue pairs in both socket roles, and restarts of either side in the middle; each frame carries its flow, its place in it,
//! and a payload that follows from both.
//!
//! Needs Debian's package dpdk-dev; `cargo test -p virtio-net --test virtio_user -- --ignored --test-threads 1`.

use engine::{Engine, IdlePolicy};
use packet::{Burst, Packet, Pool};
use port::{Port, PortShard};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use virtio_net::{DeviceEventSink, NetController, NetParams, Role};

/// How long anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Frames under way at a time: less than any ring holds, so that none is lost.
const WINDOW: u64 = 96;
/// Flows, spread over the queues by their addresses.
const FLOWS: u64 = 16;
/// Ethernet, and where addresses and ports would be.
const HEADER: usize = 58;
/// How long nothing may come back before the next try, at first and at most.
const QUIET: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// One run's driver.
#[derive(Clone, Copy, Debug)]
struct Driver {
    packed: bool,
    in_order: bool,
    mrg_rxbuf: bool,
    vectorized: bool,
    queues: u16,
    /// The driver listens.
    server: bool,
}

const PLAIN: Driver =
    Driver { packed: false, in_order: false, mrg_rxbuf: true, vectorized: false, queues: 1, server: false };

struct Testpmd {
    child: Child,
    log: PathBuf,
}

impl Testpmd {
    fn start(socket: &Path, driver: Driver) -> Testpmd {
        let flag = u8::from;
        let vdev = format!(
            "net_virtio_user0,path={},queues={},queue_size=256,packed_vq={},in_order={},mrg_rxbuf={},vectorized={},server={}",
            socket.display(),
            driver.queues,
            flag(driver.packed),
            flag(driver.in_order),
            flag(driver.mrg_rxbuf),
            flag(driver.vectorized),
            flag(driver.server),
        );
        let queues = driver.queues.to_string();
        let log = socket.with_extension("log");
        let output = File::create(&log).expect("a file beside the socket");
        let mut child = Command::new("dpdk-testpmd")
            .args(["--no-pci", "--no-huge", "-m", "64", "--single-file-segments", "--no-telemetry"])
            .args(["--lcores", "0@0,1@1", "--vdev", &vdev, "--", "-i", "--forward-mode=io", "--port-topology=loop"])
            .args(["--total-num-mbufs=4096", "--no-flush-rx", "--rxq", &queues, "--txq", &queues])
            .stdin(Stdio::piped())
            .stderr(output.try_clone().expect("a second descriptor"))
            .stdout(output)
            .spawn()
            .expect("dpdk-testpmd of Debian's package dpdk-dev");
        let commands = child.stdin.as_mut().expect("a pipe");
        commands.write_all(b"start\n").expect("testpmd reads its commands");
        Testpmd { child, log }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("testpmd {:?}, its output:\n{log}", self.child.try_wait());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Our side: a controller whose shard this thread serves.
struct Device {
    shard: Box<dyn PortShard>,
    controller: NetController,
}

struct Rig {
    engine: Engine,
    pool: Pool,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
        Rig { engine, pool: Pool::new(4096, None).unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("net.sock")
    }

    fn device(&self, driver: Driver) -> Device {
        let params = NetParams {
            name: "virtio-user".into(),
            socket: self.socket(),
            role: if driver.server { Role::Client } else { Role::Server },
            socket_mode: 0o600,
            queue_pairs: driver.queues,
            packed_ring: true,
            mrg_rxbuf: true,
            mtu: 9000,
            mac: None,
            workers: self.engine.workers().to_vec(),
            pool: self.pool.clone(),
        };
        let controller = NetController::start(params, DeviceEventSink::new(16).0).unwrap();
        let shard = controller.open_shard(&self.engine.workers()[0]).unwrap();
        Device { shard, controller }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counters: port::Counters = self.controller.stats().iter().map(AsRef::as_ref).sum();
        write!(f, "{counters:?}, {:?}", self.controller.report().session)
    }
}

impl Device {
    /// Lets workers' messages in until the driver has enabled its queues.
    fn wait_for(&mut self, driver: Driver) {
        let end = Instant::now() + PATIENCE;
        while self.controller.info().tx_queues != driver.queues {
            assert!(Instant::now() < end, "{driver:?} does not come: {self:?}");
            self.shard.rx(&mut Burst::new());
            std::thread::yield_now();
        }
        self.shard.rx(&mut Burst::new());
    }
}

/// What was sent and what came back.
#[derive(Debug, Default)]
struct Traffic {
    /// Counts the times that everything under way was given up. What comes late is of an earlier life.
    life: u64,
    sent: [u64; FLOWS as usize],
    next: [u64; FLOWS as usize],
    /// Frames that later ones of their flow have overtaken.
    lost: u64,
}

impl Traffic {
    fn frame(life: u64, flow: u64, sequence: u64, packet: &mut Packet) {
        let len = HEADER + 16 + ((flow * 7919 + sequence * 104_729) % 1400) as usize;
        let bytes = packet.append(len).unwrap();
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (at as u64 ^ sequence ^ flow << 4) as u8;
        }
        bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
        // Where addresses and ports would be: the same for all of a flow.
        bytes[26..HEADER].fill(flow as u8);
        bytes[HEADER..HEADER + 8].copy_from_slice(&sequence.to_be_bytes());
        bytes[HEADER + 8..HEADER + 16].copy_from_slice(&life.to_be_bytes());
    }

    fn sent(&self) -> u64 {
        self.sent.iter().sum()
    }

    fn received(&self) -> u64 {
        self.next.iter().sum::<u64>() - self.lost
    }

    fn send(&mut self, pool: &Pool, shard: &mut dyn PortShard, most: u64) {
        let mut burst = Burst::new();
        while !burst.is_full() && self.sent() - self.received() < WINDOW && self.sent() < most {
            let flow = self.sent() % FLOWS;
            let mut packet = pool.take_one().expect("buffers for a window");
            Traffic::frame(self.life, flow, self.sent[flow as usize], &mut packet);
            self.sent[flow as usize] += 1;
            burst.push(packet);
        }
        shard.tx(&mut burst);
    }

    /// `false` when nothing came.
    fn receive(&mut self, pool: &Pool, shard: &mut dyn PortShard) -> bool {
        let mut burst = Burst::new();
        shard.rx(&mut burst);
        for packet in &burst {
            let mut got = vec![0; packet.len()];
            packet.copy_to(&mut got);
            assert_eq!(got[12..14], [0x88, 0xb5], "a frame of ours");
            let number = |at: usize| u64::from_be_bytes(*got[at..].first_chunk().unwrap());
            let (flow, sequence, life) = (u64::from(got[26]), number(HEADER), number(HEADER + 8));
            let mut expected = pool.take_one().unwrap();
            Traffic::frame(life, flow, sequence, &mut expected);
            assert!(got == expected.data(), "life {life}, flow {flow}, frame {sequence}: payload");
            if life == self.life {
                let next = &mut self.next[flow as usize];
                assert!(sequence >= *next, "life {life}, flow {flow}: {sequence} again, {next} was next");
                self.lost += sequence - *next;
                *next = sequence + 1;
            }
        }
        !burst.is_empty()
    }

    /// Exchanges frames until `count` were sent and all came back. `false` when nothing came for `quiet`.
    fn turns(&mut self, rig: &Rig, device: &mut Device, count: u64, quiet: Duration) -> bool {
        let mut last = Instant::now();
        while self.received() < count && last.elapsed() < quiet {
            self.send(&rig.pool, device.shard.as_mut(), count);
            if self.receive(&rig.pool, device.shard.as_mut()) {
                last = Instant::now();
            } else {
                std::thread::yield_now();
            }
            device.shard.flush();
        }
        self.received() >= count
    }

    /// Sends windows of frames until a whole one comes back: the driver has posted its buffers and forwards.
    fn settle(&mut self, rig: &Rig, device: &mut Device) {
        let (mut quiet, end) = (QUIET.0, Instant::now() + PATIENCE);
        self.give_up();
        while !self.turns(rig, device, WINDOW, quiet) {
            assert!(Instant::now() < end, "nothing comes back: {device:?}");
            self.give_up();
            quiet = (quiet * 2).min(QUIET.1);
        }
    }

    /// Exchanges `count` frames more: all of them come, once and in order, and a window of others is under way in the end.
    fn exchange(&mut self, rig: &Rig, device: &mut Device, count: u64) {
        let goal = self.received() + count;
        let came = self.turns(rig, device, goal, PATIENCE);
        assert!(came && self.lost == 0, "expected {goal} frames: {self:?}, {device:?}");
        self.send(&rig.pool, device.shard.as_mut(), goal + WINDOW);
        device.shard.flush();
    }

    /// The driver is gone: takes what it sent before.
    fn drain(&mut self, rig: &Rig, device: &mut Device) {
        let end = Instant::now() + PATIENCE;
        while device.controller.report().session.connected {
            self.receive(&rig.pool, device.shard.as_mut());
            assert!(Instant::now() < end, "the session does not end: {device:?}");
        }
        self.receive(&rig.pool, device.shard.as_mut());
    }

    /// What is under way does not come any more, or late.
    fn give_up(&mut self) {
        *self = Traffic { life: self.life + 1, ..Traffic::default() };
    }
}

/// Frames both ways, all of them, in order.
fn sweep(driver: Driver) {
    eprintln!("{driver:?}");
    let rig = Rig::new();
    let testpmd = driver.server.then(|| Testpmd::start(&rig.socket(), driver));
    let mut device = rig.device(driver);
    let testpmd = testpmd.unwrap_or_else(|| Testpmd::start(&rig.socket(), driver));
    let mut traffic = Traffic::default();
    device.wait_for(driver);
    traffic.settle(&rig, &mut device);
    traffic.exchange(&rig, &mut device, 10_000);
    assert!(device.controller.info().link_up);
    assert_eq!(device.controller.report().queues[0].packed, driver.packed);
    drop(testpmd);
    drop(device);
    assert_eq!(rig.pool.free_count(), rig.pool.capacity(), "buffers were lost");
}

#[test]
#[ignore = "needs dpdk-testpmd"]
fn every_layout() {
    for choice in 0..8 {
        let has = |bit: u32| choice >> bit & 1 == 1;
        sweep(Driver { packed: has(0), in_order: has(1), mrg_rxbuf: has(2), ..PLAIN });
    }
}

/// Where virtio-user has a vectorized path: elsewhere the word changes nothing.
#[test]
#[ignore = "needs dpdk-testpmd"]
fn vectorized_split_and_packed() {
    let vectorized = Driver { vectorized: true, mrg_rxbuf: false, ..PLAIN };
    sweep(vectorized);
    sweep(Driver { packed: true, in_order: true, ..vectorized });
    sweep(Driver { packed: true, in_order: true, mrg_rxbuf: true, ..vectorized });
}

/// The role and the number of queues do not know of each other: each layout has each number and each role.
#[test]
#[ignore = "needs dpdk-testpmd"]
fn one_to_four_queue_pairs_in_both_roles() {
    for queues in 1..=4 {
        for packed in [false, true] {
            sweep(Driver { queues, packed, server: packed == (queues % 2 == 1), ..PLAIN });
        }
    }
}

/// The driver is killed in the middle and another one comes: the controller serves it at once.
#[test]
#[ignore = "needs dpdk-testpmd"]
fn the_driver_restarts() {
    for (packed, server) in [(false, false), (true, false), (false, true), (true, true)] {
        let driver = Driver { packed, server, ..PLAIN };
        let rig = Rig::new();
        let mut device = rig.device(driver);
        let mut traffic = Traffic::default();
        for round in 0..2 {
            eprintln!("{driver:?}, {round}");
            if server {
                // A driver that listens does not take the socket of a dead one.
                let _there_may_be_none = std::fs::remove_file(rig.socket());
            }
            let testpmd = Testpmd::start(&rig.socket(), driver);
            device.wait_for(driver);
            traffic.settle(&rig, &mut device);
            traffic.exchange(&rig, &mut device, 5_000);
            drop(testpmd);
            traffic.drain(&rig, &mut device);
        }
        drop(device);
        assert_eq!(rig.pool.free_count(), rig.pool.capacity(), "buffers were lost");
    }
}

/// This side goes in the middle and comes again: traffic resumes without the driver doing anything but accept. (virtio-user
/// connects again only as server.)
#[test]
#[ignore = "needs dpdk-testpmd"]
fn the_device_restarts() {
    for packed in [false, true] {
        let driver = Driver { packed, server: true, ..PLAIN };
        let rig = Rig::new();
        let _testpmd = Testpmd::start(&rig.socket(), driver);
        let mut traffic = Traffic::default();
        let mut fastest = PATIENCE;
        for round in 0..5 {
            let start = Instant::now();
            let mut device = rig.device(driver);
            device.wait_for(driver);
            traffic.settle(&rig, &mut device);
            if round > 0 {
                fastest = fastest.min(start.elapsed());
            }
            eprintln!("{driver:?}, {round}: traffic after {:?}", start.elapsed());
            traffic.exchange(&rig, &mut device, 5_000);
        }
        assert!(fastest < Duration::from_secs(1), "traffic resumes in under a second: {fastest:?}");
        assert_eq!(rig.pool.free_count(), rig.pool.capacity(), "buffers were lost");
    }
}
