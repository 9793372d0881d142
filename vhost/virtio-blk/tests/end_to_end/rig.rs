//! An engine with controllers, and patience with a limit.

use crate::disk::Disk;
use crossbeam::channel::Receiver;
use engine::{Engine, IdlePolicy};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_blk::{BlkController, BlkParams, DeviceEvent, DeviceEventSink, Role};

pub(crate) const MIB: u64 = 1 << 20;

/// How long anything may take that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Controllers before the engine: they are dropped in this order.
pub(crate) struct Rig {
    pub(crate) controllers: Vec<BlkController>,
    pub(crate) engine: Engine,
    events: DeviceEventSink,
    pub(crate) heard: Receiver<DeviceEvent>,
    dir: tempfile::TempDir,
}

impl Rig {
    /// Workers on the first two cores.
    pub(crate) fn new() -> Rig {
        let (events, heard) = DeviceEventSink::new(64);
        let engine = Engine::start(&[0, 1], IdlePolicy::default()).unwrap();
        Rig { controllers: Vec::new(), engine, events, heard, dir: tempfile::tempdir().unwrap() }
    }

    /// One with a controller of one disk.
    pub(crate) fn with(disk: &Arc<Disk>, queues: u16) -> Rig {
        let mut rig = Rig::new();
        rig.serve(disk, queues);
        rig
    }

    /// Serves `disk` on the next socket.
    pub(crate) fn serve(&mut self, disk: &Arc<Disk>, queues: u16) {
        let params = BlkParams {
            name: format!("disk{}", self.controllers.len()),
            socket: self.socket(self.controllers.len()),
            role: Role::Server,
            socket_mode: 0o600,
            read_only: false,
            packed_ring: true,
            queues,
            workers: self.engine.workers().to_vec(),
        };
        self.controllers.push(BlkController::start(params, disk.clone(), self.events.clone()).unwrap());
    }

    pub(crate) fn socket(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("disk{index}.sock"))
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
