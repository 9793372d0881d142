//! DPDK's virtio-user driver, unmodified, as the guest: `dpdk-testpmd` sends back what it receives. Every layout, both socket
//! roles, one to four queue pairs, and restarts of either side in the middle; each frame carries its flow, its place in it, and a
//! payload that follows from both.
//!
//! Needs Debian's package dpdk-dev; `cargo test -p virtio-net --test virtio_user -- --ignored --test-threads 1`.

use engine::{Engine, IdlePolicy};
use packet::{Burst, Packet, Pool};
use port::{Port, PortShard};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use virtio_net::{EventSink, NetController, NetParams, Role};

/// How long anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Frames under way at a time: less than any ring holds, so that none is lost.
const WINDOW: u64 = 96;
/// Flows, spread over the queues by their addresses.
const FLOWS: u64 = 8;
const HEADER: usize = 58;

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

struct Testpmd(Child);

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
        let mut child = Command::new("dpdk-testpmd")
            .args([
                "--no-pci",
                "--no-huge",
                "-m",
                "256",
                "--single-file-segments",
                "--no-telemetry",
                "--lcores",
                "0@0,1@1",
            ])
            .args(["--vdev", &vdev, "--", "-i", "--forward-mode=io", "--port-topology=loop"])
            .args(["--total-num-mbufs=8192", "--no-flush-rx", "--rxq", &queues, "--txq", &queues])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("dpdk-testpmd of Debian's package dpdk-dev");
        let commands = child.stdin.as_mut().expect("a pipe");
        commands.write_all(b"start\n").expect("testpmd reads its commands");
        Testpmd(child)
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
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
        let controller = NetController::start(params, EventSink::new(16).0).unwrap();
        let shard = controller.open_shard(&self.engine.workers()[0]).unwrap();
        Device { shard, controller }
    }
}

/// What was sent and what came back.
#[derive(Default)]
struct Traffic {
    sent: [u64; FLOWS as usize],
    next: [u64; FLOWS as usize],
    received: u64,
    /// Missing between frames that came back.
    missing: u64,
    /// Not sent by us, or given up.
    dropped: u64,
}

impl Traffic {
    fn frame(flow: u64, sequence: u64, packet: &mut Packet) {
        let len = HEADER + 16 + ((flow * 7919 + sequence * 104_729) % 1400) as usize;
        let bytes = packet.append(len).unwrap();
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (at as u64 ^ sequence ^ flow << 4) as u8;
        }
        bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
        // Where addresses and ports would be: the same for all of a flow.
        bytes[26..HEADER].fill(flow as u8);
        bytes[HEADER..HEADER + 8].copy_from_slice(&sequence.to_be_bytes());
    }

    fn outstanding(&self) -> u64 {
        self.sent.iter().sum::<u64>() - self.received - self.dropped
    }

    fn send(&mut self, pool: &Pool, device: &mut Device) {
        let before = counters(device).tx_full;
        let mut burst = Burst::new();
        while !burst.is_full() && self.outstanding() < WINDOW {
            let flow = self.sent.iter().sum::<u64>() % FLOWS;
            let mut packet = pool.take_one().expect("buffers for a window");
            Traffic::frame(flow, self.sent[flow as usize], &mut packet);
            self.sent[flow as usize] += 1;
            burst.push(packet);
        }
        device.shard.tx(&mut burst);
        // Before the driver has posted its buffers.
        self.dropped += counters(device).tx_full - before;
    }

    /// `false` when nothing came.
    fn receive(&mut self, pool: &Pool, shard: &mut dyn PortShard) -> bool {
        let mut burst = Burst::new();
        shard.rx(&mut burst);
        for packet in &burst {
            let mut got = vec![0; packet.len()];
            packet.copy_to(&mut got);
            assert_eq!(got[12..14], [0x88, 0xb5], "a frame of ours");
            let flow = u64::from(got[26]);
            let sequence = u64::from_be_bytes(*got[HEADER..].first_chunk().unwrap());
            let mut expected = pool.take_one().unwrap();
            Traffic::frame(flow, sequence, &mut expected);
            assert!(got == expected.data(), "flow {flow}, {sequence}: payload");
            let next = &mut self.next[flow as usize];
            assert!(sequence >= *next, "flow {flow}: {sequence} again, {next} was next");
            self.missing += sequence - *next;
            *next = sequence + 1;
            self.received += 1;
        }
        !burst.is_empty()
    }

    /// Exchanges frames until `count` more came back.
    fn exchange(&mut self, rig: &Rig, device: &mut Device, count: u64) {
        let (goal, end) = (self.received + count, Instant::now() + PATIENCE);
        while self.received < goal {
            if device.shard.can_tx() {
                self.send(&rig.pool, device);
            }
            let idle = !self.receive(&rig.pool, device.shard.as_mut());
            device.shard.flush();
            if idle {
                std::thread::yield_now();
                assert!(
                    Instant::now() < end,
                    "{} of {goal}: {:?}, {:?}",
                    self.received,
                    counters(device),
                    device.controller.report().session
                );
            }
        }
    }

    /// Exchanges frames until some came back and then nothing is under way. What a driver that starts has thrown away is given
    /// up.
    fn settle(&mut self, rig: &Rig, device: &mut Device) {
        let (goal, end) = (self.received + 500, Instant::now() + PATIENCE);
        let mut quiet = Instant::now();
        while self.received < goal || self.outstanding() > 0 {
            assert!(Instant::now() < end, "{:?}, {:?}", counters(device), device.controller.report().session);
            if device.shard.can_tx() && self.received < goal {
                self.send(&rig.pool, device);
            }
            if self.receive(&rig.pool, device.shard.as_mut()) {
                quiet = Instant::now();
            }
            device.shard.flush();
            if quiet.elapsed() > Duration::from_millis(500) {
                self.give_up();
                quiet = Instant::now();
            }
            std::thread::yield_now();
        }
    }

    /// The driver is gone: takes what it sent before.
    fn drain(&mut self, rig: &Rig, device: &mut Device) {
        let end = Instant::now() + PATIENCE;
        while device.controller.report().session.connected {
            self.receive(&rig.pool, device.shard.as_mut());
            assert!(Instant::now() < end, "the session does not end");
        }
        self.receive(&rig.pool, device.shard.as_mut());
        self.give_up();
    }

    /// What is under way does not come any more.
    fn give_up(&mut self) {
        self.dropped = self.sent.iter().sum::<u64>() - self.received;
        self.next = self.sent;
    }
}

fn counters(device: &Device) -> port::Counters {
    device.controller.stats().iter().map(std::convert::AsRef::as_ref).sum()
}

/// Frames both ways, all of them, in order.
fn sweep(driver: Driver) {
    let rig = Rig::new();
    let testpmd = driver.server.then(|| Testpmd::start(&rig.socket(), driver));
    let mut device = rig.device(driver);
    let testpmd = testpmd.unwrap_or_else(|| Testpmd::start(&rig.socket(), driver));
    let mut traffic = Traffic::default();
    traffic.settle(&rig, &mut device);
    let (missing, full) = (traffic.missing, counters(&device).tx_full);
    traffic.exchange(&rig, &mut device, 20_000);
    assert_eq!((traffic.missing, counters(&device).tx_full), (missing, full), "{driver:?}: {:?}", counters(&device));
    let info = device.controller.info();
    assert_eq!((info.rx_queues, info.tx_queues, info.link_up), (driver.queues, driver.queues, true));
    let packed = device.controller.report().rings[0].packed;
    assert_eq!(packed, driver.packed);
    drop(testpmd);
    drop(device);
    assert_eq!(rig.pool.free_count(), rig.pool.capacity(), "buffers were lost");
}

#[test]
#[ignore = "needs dpdk-testpmd and two idle cores"]
fn every_layout_in_both_roles() {
    for server in [false, true] {
        for packed in [false, true] {
            for in_order in [false, true] {
                for mrg_rxbuf in [false, true] {
                    for vectorized in [false, true] {
                        let driver = Driver { packed, in_order, mrg_rxbuf, vectorized, queues: 1, server };
                        eprintln!("{driver:?}");
                        sweep(driver);
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs dpdk-testpmd and two idle cores"]
fn one_to_four_queue_pairs() {
    for queues in 1..=4 {
        for packed in [false, true] {
            for server in [false, true] {
                let driver = Driver { queues, packed, server, ..PLAIN };
                eprintln!("{driver:?}");
                sweep(driver);
            }
        }
    }
}

/// The driver is killed and another one comes: the controller serves it at once.
#[test]
#[ignore = "needs dpdk-testpmd and two idle cores"]
fn the_driver_restarts() {
    for (packed, server) in [(false, false), (true, false), (false, true), (true, true)] {
        let driver = Driver { packed, server, ..PLAIN };
        let rig = Rig::new();
        let mut device = rig.device(driver);
        let mut traffic = Traffic::default();
        for round in 0..3 {
            eprintln!("{driver:?}, {round}");
            if server {
                // A driver that listens does not take the socket of a dead one.
                let _there_may_be_none = std::fs::remove_file(rig.socket());
            }
            let testpmd = Testpmd::start(&rig.socket(), driver);
            traffic.settle(&rig, &mut device);
            traffic.exchange(&rig, &mut device, 5_000);
            drop(testpmd);
            traffic.drain(&rig, &mut device);
        }
        drop(device);
        assert_eq!(rig.pool.free_count(), rig.pool.capacity(), "buffers were lost");
    }
}

/// This side goes and comes again: traffic resumes without the driver doing anything but accept. (virtio-user connects again
/// only as server.)
#[test]
#[ignore = "needs dpdk-testpmd and two idle cores"]
fn the_device_restarts() {
    for packed in [false, true] {
        let driver = Driver { packed, server: true, ..PLAIN };
        let rig = Rig::new();
        let _testpmd = Testpmd::start(&rig.socket(), driver);
        let mut traffic = Traffic::default();
        for round in 0..5 {
            let mut device = rig.device(driver);
            traffic.settle(&rig, &mut device);
            traffic.exchange(&rig, &mut device, 5_000);
            eprintln!("{driver:?}, {round}");
            drop(device);
            traffic.give_up();
        }
        assert_eq!(rig.pool.free_count(), rig.pool.capacity(), "buffers were lost");
    }
}
