//! A worker that sends back what ports bring, and controllers on it.

use clock::Cycles;
use engine::{Engine, IdlePolicy, Source, SourceId, WorkerHandle};
use packet::{Burst, Pool};
use port::{Counters, Port, PortShard};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use virtio_net::{DeviceEventSink, NetController, NetParams, Role};

/// How long anything may take that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The MTU that a device is made with.
pub(crate) const MTU: u16 = 1500;

pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) pool: Pool,
    dir: tempfile::TempDir,
}

/// A controller whose packets go back to where they came from.
pub(crate) struct Device {
    pub(crate) controller: Option<NetController>,
    /// One on each worker.
    sources: Vec<(WorkerHandle, SourceId)>,
}

struct Echo(Box<dyn PortShard>);

impl Source for Echo {
    fn poll(&mut self, _: Cycles) -> usize {
        let mut burst = Burst::new();
        let count = self.0.rx(&mut burst);
        if count > 0 {
            self.0.tx(&mut burst);
            self.0.flush();
        }
        count
    }

    fn arm(&mut self) -> bool {
        self.0.arm()
    }

    fn disarm(&mut self) {
        self.0.disarm();
    }

    fn quiesce(&mut self) {
        self.0.quiesce();
    }
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::on(&[0]).unwrap()
    }

    /// One with a worker on each of `cpus`, if they are there.
    pub(crate) fn on(cpus: &[usize]) -> Option<Rig> {
        let engine = Engine::start(cpus, IdlePolicy::default()).ok()?;
        Some(Rig { engine, pool: Pool::new(512, None).unwrap(), dir: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn device(&self, name: &str, queue_pairs: u16) -> Device {
        let params = NetParams {
            name: name.into(),
            socket: self.socket(name),
            role: Role::Server,
            socket_mode: 0o600,
            queue_pairs,
            packed_ring: true,
            mrg_rxbuf: true,
            mtu: MTU,
            mac: None,
            workers: self.engine.workers().to_vec(),
            pool: self.pool.clone(),
        };
        let controller = NetController::start(params, DeviceEventSink::new(16).0).unwrap();
        let echo = |worker: &WorkerHandle| {
            let shard = controller.open_shard(worker).unwrap();
            (worker.clone(), worker.add(name, Box::new(Echo(shard))))
        };
        let sources = self.engine.workers().iter().map(echo).collect();
        Device { controller: Some(controller), sources }
    }

    /// All is over: no buffer is missing.
    pub(crate) fn end(self, device: Device) {
        drop(device);
        assert_eq!(self.pool.free_count(), self.pool.capacity(), "buffers were lost");
    }
}

impl Device {
    pub(crate) fn controller(&self) -> &NetController {
        self.controller.as_ref().expect("not dropped yet")
    }

    pub(crate) fn counters(&self) -> Counters {
        self.controller().stats().iter().map(AsRef::as_ref).sum()
    }

    pub(crate) fn info(&self) -> port::PortInfo {
        self.controller().info()
    }

    /// As a process that dies: nothing more is taken, given back or said.
    pub(crate) fn kill(self) {
        self.remove_sources();
    }

    fn remove_sources(&self) {
        self.sources.iter().for_each(|(worker, source)| drop(worker.remove(*source)));
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.controller = None;
        self.remove_sources();
    }
}

/// Waits for something that must come.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}
