//! A disk as a vhost-user device.

use crate::queue::BlkQueue;
use crate::shard::{BlkDeviceState, Shard};
use crate::{DeviceEventSink, DeviceFault, MAX_QUEUE_SIZE, config};
use block::{Bdev, BlockError, Geometry, IoStats};
use engine::{Snapshot, Source, WorkerHandle};
use parking_lot::Mutex;
use std::sync::Arc;
use vhost_device::{DeviceHealth, VhostDevice, Vring, WorkerQueues};
use vhost_user::{Change, Properties, Refusal, RingStart, protocol_feature};
use virtio_spec::blk::ID_LEN;

/// A disk, with what is offered of it.
pub(crate) struct BlkDevice {
    bdev: Arc<dyn Bdev>,
    state: Arc<BlkDeviceState>,
    read_only: bool,
    packed: bool,
    queues: u16,
    geometry: Snapshot<Geometry>,
    /// Statistics of each worker that served the disk.
    stats: Mutex<Vec<Arc<IoStats>>>,
}

impl BlkDevice {
    pub(crate) fn new(
        name: String,
        events: DeviceEventSink,
        bdev: Arc<dyn Bdev>,
        (read_only, packed, queues): (bool, bool, u16),
    ) -> BlkDevice {
        let state =
            BlkDeviceState { health: DeviceHealth::new(name.into(), events), id: id_string(&bdev.identity().name) };
        let geometry = Snapshot::new(with_read_only(bdev.geometry(), read_only));
        BlkDevice { bdev, state: Arc::new(state), read_only, packed, queues, geometry, stats: Mutex::default() }
    }

    fn geometry(&self) -> Geometry {
        with_read_only(self.bdev.geometry(), self.read_only)
    }

    /// Shows the disk's new geometry to the workers.
    pub(crate) fn publish_geometry(&self) {
        self.geometry.publish(self.geometry());
    }

    pub(crate) fn stats(&self) -> Vec<Arc<IoStats>> {
        self.stats.lock().clone()
    }
}

impl VhostDevice for BlkDevice {
    type DeviceQueue = BlkQueue;

    fn health(&self) -> &DeviceHealth {
        &self.state.health
    }

    fn properties(&self) -> Properties {
        Properties {
            features: config::features(&self.geometry(), self.queues, self.packed),
            protocol_features: protocol_feature::CONFIG | protocol_feature::INFLIGHT_SHMFD,
            queues: self.queues,
            max_queue_size: MAX_QUEUE_SIZE,
        }
    }

    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> Result<(), Refusal> {
        let space = config::space(&self.geometry(), self.queues);
        let start = offset as usize;
        let range = start.checked_add(bytes.len()).and_then(|end| space.get(start..end));
        bytes.copy_from_slice(range.ok_or_else(|| {
            Refusal::new(format!(
                "config: offset {offset}, size {}; expected a range in {} bytes",
                bytes.len(),
                space.len()
            ))
        })?);
        Ok(())
    }

    fn queue(&self, start: RingStart) -> Result<BlkQueue, DeviceFault> {
        Ok(BlkQueue::new(Vring::new(start)?))
    }

    /// One channel into the disk a worker.
    fn source(
        &self,
        worker: &WorkerHandle,
        queues: WorkerQueues<BlkQueue>,
    ) -> Result<Option<Box<dyn Source>>, Refusal> {
        let channel = self.bdev.open_channel().map_err(Refusal::new)?;
        if let Some(fd) = channel.wake_fd() {
            let path = &self.bdev.identity().name;
            let io = |source| BlockError::Io { what: "epoll on the channel of", path: path.clone(), source };
            worker.wake_set().add(fd).map_err(io).map_err(Refusal::new)?;
        }
        let stats = Arc::<IoStats>::default();
        self.stats.lock().push(stats.clone());
        Ok(Some(Box::new(Shard::new(self.state.clone(), self.geometry.reader(), channel, queues, stats))))
    }

    fn apply(&self, change: Change) -> Result<(), Refusal> {
        match change {
            Change::Reset => Ok(()),
            other => Err(Refusal::new(format!("not a disk's: {other:?}"))),
        }
    }
}

fn with_read_only(geometry: Geometry, read_only: bool) -> Geometry {
    Geometry { read_only: geometry.read_only || read_only, ..geometry }
}

/// The device id string: the disk's name, cut to 20 bytes (virtio 1.3, 5.2.6).
fn id_string(name: &str) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    let len = name.len().min(ID_LEN);
    id[..len].copy_from_slice(&name.as_bytes()[..len]);
    id
}
