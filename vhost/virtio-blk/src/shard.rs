//! A disk's part on one worker: some of its queues and one channel into the backend.

use crate::DeviceEventSink;
use crate::queue::{BlkQueue, DeviceView};
use block::{Bdev, BlockChannel, Completions, Geometry, IoStats};
use clock::Cycles;
use crossbeam::channel;
use engine::{Reader, Snapshot, Source};
use guest_memory::GuestMemory;
use std::sync::Arc;
use vhost_device::{DeviceEvent, DeviceHealth, Vring, WorkerQueues};
use virtio_spec::blk::ID_LEN;

/// Completions that a turn may bring without growth: all queues of a device, full.
const COMPLETIONS: usize = 4096;

/// What all shards of a device share.
pub(crate) struct BlkDeviceState {
    pub(crate) health: DeviceHealth,
    pub(crate) id: [u8; ID_LEN],
}

/// The source that a worker polls.
pub(crate) struct Shard {
    state: Arc<BlkDeviceState>,
    geometry: Reader<Geometry>,
    // Before the queues: a channel that is dropped first waits for the kernel to let go of the guest's buffers.
    channel: Box<dyn BlockChannel>,
    queues: WorkerQueues<BlkQueue>,
    done: Completions,
    stats: Arc<IoStats>,
}

impl Source for Shard {
    fn poll(&mut self, now: Cycles) -> usize {
        self.queues.take_commands(&self.state.health);
        let mut work = 0;
        if !self.state.health.is_quarantined() {
            let device = DeviceView { geometry: self.geometry.get(), id: &self.state.id };
            for queue in self.queues.serving().iter_mut().filter(|queue| queue.vring.enabled) {
                match queue.take(&device, self.channel.as_mut(), now, &mut self.done) {
                    Ok(taken) => work += taken,
                    Err(fault) => self.state.health.quarantine(&mut queue.vring, fault),
                }
            }
        }
        work += self.channel.poll(now, &mut self.done);
        work + self.finish()
    }

    fn arm(&mut self) -> bool {
        let quarantined = self.state.health.is_quarantined();
        let serving = self.queues.serving().iter_mut();
        let ready = serving.fold(false, |ready, queue| (!quarantined && queue.arm()) | ready);
        ready || !self.queues.is_quiet()
    }

    fn disarm(&mut self) {
        self.queues.serving().iter_mut().for_each(|queue| queue.disarm());
    }

    fn deadline(&self) -> Cycles {
        self.channel.deadline()
    }

    fn quiesce(&mut self) {
        self.geometry.quiesce();
        self.queues.quiesce(&self.state.health);
    }
}

impl Shard {
    pub(crate) fn new(
        state: Arc<BlkDeviceState>,
        geometry: Reader<Geometry>,
        channel: Box<dyn BlockChannel>,
        queues: WorkerQueues<BlkQueue>,
        stats: Arc<IoStats>,
    ) -> Shard {
        Shard { state, geometry, channel, queues, done: Completions::with_capacity(COMPLETIONS), stats }
    }

    /// Hands completions to their queues, publishes them, and lets drained queues go.
    #[inline]
    fn finish(&mut self) -> usize {
        let completed = self.done.len();
        let now = if completed > 0 { Cycles::now() } else { Cycles(0) };
        for completion in self.done.drain() {
            self.stats.record(&completion, now);
            let Some(queue) = self.queues.find(BlkQueue::of(&completion.request)) else {
                debug_assert!(false, "a queue leaves only when drained");
                continue;
            };
            if let Err(fault) = queue.complete(completion) {
                self.state.health.quarantine(&mut queue.vring, fault);
            }
        }
        self.queues.all().for_each(BlkQueue::flush);
        self.queues.release();
        completed
    }
}

/// What [`stand_alone`] gives: the source, and the events that it reports.
pub type StandAlone = (Box<dyn Source>, channel::Receiver<DeviceEvent>);

/// A disk's source on its own, without socket, session or engine: for tests and for benchmarks of the path alone. The queues
/// have no eventfds; `memory` is as [`guest_memory::GuestMemory::anonymous`] makes it. Also returns the receiver of events.
pub fn stand_alone(
    bdev: &dyn Bdev,
    memory: &Arc<GuestMemory>,
    setups: &[virtqueue::RingSetup],
) -> Result<StandAlone, Box<dyn std::error::Error>> {
    let (events, receiver) = DeviceEventSink::new(16);
    let state = BlkDeviceState { health: DeviceHealth::new("stand-alone".into(), events), id: [b'i'; ID_LEN] };
    let mut queues = Vec::new();
    for (index, setup) in setups.iter().enumerate() {
        let mut vring = Vring::without_descriptors(index as u16, memory.clone(), setup)?;
        vring.enabled = true;
        queues.push(BlkQueue::new(vring));
    }
    let (geometry, queues) = (Snapshot::new(bdev.geometry()).reader(), WorkerQueues::alone(queues)?);
    let shard = Shard::new(Arc::new(state), geometry, bdev.open_channel()?, queues, Arc::default());
    Ok((Box::new(shard), receiver))
}
