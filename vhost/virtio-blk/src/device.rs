//! The device as its session and its controller see it: which queue is where, and how to get at it.

use crate::queue::BlkQueue;
use crate::shard::{Command, DeviceState, Shard, Update};
use crate::{MAX_QUEUE_SIZE, config};
use block::{Bdev, BlockError, Completions, Geometry, IoStats};
use crossbeam::channel;
use engine::{Sender, Snapshot, SourceId, WakeSet, WorkerHandle, mailbox};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use vhost_user::{Backend, Change, Properties, Refusal, RingStart, protocol_feature};

/// Messages that a shard may have waiting.
const INBOX: usize = 64;
/// Completions that a turn may bring without growth: all queues of a device, full.
const COMPLETIONS: usize = 4096;
/// How often a wait for a worker looks whether the controller is being torn down.
const LOOK: Duration = Duration::from_millis(50);

/// What session and controller share.
pub(crate) struct Device {
    pub(crate) bdev: Arc<dyn Bdev>,
    pub(crate) state: Arc<DeviceState>,
    read_only: bool,
    packed: bool,
    queues: u16,
    geometry: Snapshot<Geometry>,
    /// Held through a whole change, waits included: session and control do not change the same queue at a time.
    changing: Mutex<()>,
    /// Held for a look only.
    places: Mutex<Places>,
    /// The controller is torn down without regard for requests in flight.
    pub(crate) abandon: AtomicBool,
}

/// Where the queues are.
pub(crate) struct Places {
    shards: Vec<ShardHandle>,
    queues: Vec<Place>,
}

#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) worker: WorkerHandle,
    pub(crate) started: bool,
    pub(crate) enabled: bool,
    pub(crate) size: u16,
    pub(crate) packed: bool,
    kick: Option<RawFd>,
}

struct ShardHandle {
    worker: WorkerHandle,
    source: SourceId,
    commands: Sender<Command>,
    stats: Arc<IoStats>,
    in_flight: Arc<AtomicU32>,
}

/// Why a queue could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// No such queue.
    #[error("queue: got {got}, expected 0 to {last}")]
    NoSuchQueue {
        /// The index asked for.
        got: u16,
        /// The highest index.
        last: u16,
    },
    /// The other worker could not open the disk.
    #[error(transparent)]
    Channel(#[from] BlockError),
    /// The worker or the device is going away.
    #[error("queue {0}: the device is being removed")]
    Gone(u16),
}

impl Device {
    pub(crate) fn new(
        bdev: Arc<dyn Bdev>,
        state: Arc<DeviceState>,
        (read_only, packed, queues): (bool, bool, u16),
        workers: Vec<WorkerHandle>,
    ) -> Device {
        let place = |worker: &WorkerHandle| Place {
            worker: worker.clone(),
            started: false,
            enabled: false,
            size: 0,
            packed: false,
            kick: None,
        };
        let places = workers.iter().cycle().take(usize::from(queues)).map(place).collect();
        let geometry = Snapshot::new(with_read_only(bdev.geometry(), read_only));
        let places = Mutex::new(Places { shards: Vec::new(), queues: places });
        let abandon = AtomicBool::new(false);
        Device { bdev, state, read_only, packed, queues, geometry, changing: Mutex::default(), places, abandon }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        with_read_only(self.bdev.geometry(), self.read_only)
    }

    /// Shows the disk's new geometry to the workers.
    pub(crate) fn publish_geometry(&self) {
        self.geometry.publish(self.geometry());
        self.lock().shards.iter().for_each(|shard| shard.worker.waker().wake());
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        self.lock().queues.clone()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.lock().shards.iter().map(|shard| shard.in_flight.load(Ordering::Relaxed)).sum()
    }

    /// Statistics of every worker that served the disk.
    pub(crate) fn stats(&self) -> Vec<Arc<IoStats>> {
        self.lock().shards.iter().map(|shard| shard.stats.clone()).collect()
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().expect("no panic under this lock")
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().expect("no panic under this lock")
    }

    /// Moves a queue to `worker`: drained on its old one, then started on the new one.
    pub(crate) fn move_queue(&self, index: u16, worker: &WorkerHandle) -> Result<(), MoveError> {
        let _change = self.change();
        let last = self.queues - 1;
        let place = self.lock().queues.get(usize::from(index)).cloned();
        let place = place.ok_or(MoveError::NoSuchQueue { got: index, last })?;
        if place.worker.id() == worker.id() {
            return Ok(());
        }
        if place.started {
            let to = self.shard_on(worker)?;
            let queue = self.take(index).ok_or(MoveError::Gone(index))?;
            if let Some(kick) = place.kick {
                // The descriptor was pollable on the old worker, so it is on this one.
                drop(worker.wake_set().add(kick));
            }
            to.send(Command::Add(queue)).map_err(|_| MoveError::Gone(index))?;
        }
        self.lock().queues[usize::from(index)].worker = worker.clone();
        Ok(())
    }

    /// The mailbox of the shard on `worker`, made if there is none yet.
    fn shard_on(&self, worker: &WorkerHandle) -> Result<Sender<Command>, BlockError> {
        if let Some(shard) = self.lock().shards.iter().find(|shard| shard.worker.id() == worker.id()) {
            return Ok(shard.commands.clone());
        }
        let (commands, inbox) = mailbox(worker.waker(), INBOX);
        let channel = self.bdev.open_channel()?;
        if let Some(fd) = channel.wake_fd() {
            worker.wake_set().add(fd).map_err(|source| BlockError::Io {
                what: "epoll on the channel of",
                path: self.bdev.identity().name.clone(),
                source,
            })?;
        }
        let (stats, in_flight) = (Arc::new(IoStats::default()), Arc::new(AtomicU32::new(0)));
        let shard = Shard {
            state: self.state.clone(),
            geometry: self.geometry.reader(),
            inbox,
            channel,
            queues: Vec::with_capacity(usize::from(self.queues)),
            done: Completions::with_capacity(COMPLETIONS),
            stats: stats.clone(),
            in_flight: in_flight.clone(),
        };
        let source = worker.add(&self.state.name, Box::new(shard));
        let handle = ShardHandle { worker: worker.clone(), source, commands: commands.clone(), stats, in_flight };
        self.lock().shards.push(handle);
        Ok(commands)
    }

    /// The mailbox of the shard that has a queue.
    fn commands(&self, index: u16) -> Option<Sender<Command>> {
        let places = self.lock();
        let worker = places.queues[usize::from(index)].worker.id();
        places.shards.iter().find(|shard| shard.worker.id() == worker).map(|shard| shard.commands.clone())
    }

    /// Takes a queue off its worker, drained. `None` when it is not there, or when the device is torn down meanwhile.
    fn take(&self, index: u16) -> Option<Box<BlkQueue>> {
        let (reply, answer) = channel::bounded(1);
        self.commands(index)?.send(Command::Take(index, reply)).ok()?;
        let queue = self.wait(&answer)?;
        let place = &self.lock().queues[usize::from(index)];
        if let Some(kick) = place.kick {
            drop(place.worker.wake_set().remove(kick));
        }
        Some(queue)
    }

    /// Waits for a worker's answer; `None` when it will not come.
    fn wait<T>(&self, answer: &channel::Receiver<T>) -> Option<T> {
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(value) => return Some(value),
                Err(channel::RecvTimeoutError::Disconnected) => return None,
                Err(channel::RecvTimeoutError::Timeout) if self.abandon.load(Ordering::Relaxed) => return None,
                Err(channel::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Takes the shards off their workers. Dropping them closes the channels, which waits for the kernel to let go of guest
    /// memory; what the inflight region still names is served by whoever comes next.
    pub(crate) fn tear_down(&self) {
        let shards = std::mem::take(&mut self.lock().shards);
        for shard in shards {
            drop(shard.worker.remove(shard.source));
        }
    }

    /// Sends `update` to a started queue.
    fn update(&self, index: u16, update: Update) -> Result<(), Refusal> {
        let commands = self.commands(index).ok_or_else(|| gone(index))?;
        commands.send(Command::Update(index, update)).map_err(|_| gone(index))
    }

    /// Sends an update that replaces a descriptor; the old one is closed here.
    fn replace(&self, index: u16, update: impl FnOnce(channel::Sender<Option<File>>) -> Update) -> Result<(), Refusal> {
        let (reply, answer) = channel::bounded(1);
        self.update(index, update(reply))?;
        self.wait(&answer).map(drop).ok_or_else(|| gone(index))
    }

    fn started(&self) -> Vec<u16> {
        let places = self.lock();
        (0..self.queues).filter(|&index| places.queues[usize::from(index)].started).collect()
    }

    /// Waits until the worker of every started queue has done what was sent to it.
    fn barrier(&self) -> Result<(), Refusal> {
        for index in self.started() {
            let (reply, answer) = channel::bounded(1);
            let sent = self.commands(index).map(|commands| commands.send(Command::Barrier(reply)).is_ok());
            if sent != Some(true) || self.wait(&answer).is_none() {
                return Err(gone(index));
            }
        }
        Ok(())
    }

    fn start(&self, start: RingStart) -> Result<(), Refusal> {
        let RingStart { index, setup, memory, log, enabled, kick, call, err } = start;
        let mut queue = BlkQueue::new(index, memory, &setup).map_err(Refusal::new)?;
        queue.set_log(log);
        queue.enabled = enabled;
        (queue.kick, queue.call, queue.err) = (kick.map(File::from), call.map(File::from), err.map(File::from));
        let worker = self.lock().queues[usize::from(index)].worker.clone();
        let shard = self.shard_on(&worker).map_err(Refusal::new)?;
        let kick = queue.kick.as_ref().map(AsRawFd::as_raw_fd);
        watch(&worker.wake_set(), kick)?;
        let (size, packed) = (setup.size, setup.packed());
        self.lock().queues[usize::from(index)] = Place { worker, started: true, enabled, size, packed, kick };
        shard.send(Command::Add(Box::new(queue))).map_err(|_| gone(index))
    }

    fn set_kick(&self, index: u16, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        let file = fd.map(File::from);
        let new = file.as_ref().map(AsRawFd::as_raw_fd);
        let (worker, old) = {
            let mut places = self.lock();
            let place = &mut places.queues[usize::from(index)];
            watch(&place.worker.wake_set(), new)?;
            (place.worker.clone(), std::mem::replace(&mut place.kick, new))
        };
        if let Some(old) = old {
            drop(worker.wake_set().remove(old));
        }
        self.replace(index, |reply| Update::Kick(file, reply))
    }

    fn set_memory(&self, memory: &Arc<guest_memory::GuestMemory>) -> Result<(), Refusal> {
        let mut answers = Vec::new();
        for index in self.started() {
            let (reply, answer) = channel::bounded(1);
            self.update(index, Update::Memory(memory.clone(), reply))?;
            answers.push((index, answer));
        }
        // Only now wait: all workers move on at the same time.
        for (index, answer) in answers {
            self.wait(&answer)
                .ok_or_else(|| Refusal::new(format!("queue {index} does not lie in the new memory table")))?;
        }
        Ok(())
    }
}

/// The session's hold on the device.
pub(crate) struct Session(pub(crate) Arc<Device>);

impl Backend for Session {
    fn properties(&self) -> Properties {
        let Device { queues, packed, .. } = *self.0;
        Properties {
            features: config::features(&self.0.geometry(), queues, packed),
            protocol_features: protocol_feature::CONFIG | protocol_feature::INFLIGHT_SHMFD,
            queues,
            max_queue_size: MAX_QUEUE_SIZE,
        }
    }

    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> Result<(), Refusal> {
        let space = config::space(&self.0.geometry(), self.0.queues);
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

    fn write_config(&mut self, offset: u32, _: &[u8], _: u32) -> Result<(), Refusal> {
        Err(Refusal::new(format!("config: offset {offset} is read-only; CONFIG_WCE is not offered")))
    }

    fn apply(&mut self, change: Change) -> Result<(), Refusal> {
        let device = &*self.0;
        let _change = device.change();
        match change {
            Change::StartRing(start) => device.start(start),
            Change::EnableRing { index, enabled } => {
                device.lock().queues[usize::from(index)].enabled = enabled;
                device.update(index, Update::Enabled(enabled))?;
                // A front-end that is told so may rely on it: a disabled ring takes nothing more.
                if enabled { Ok(()) } else { device.barrier() }
            }
            Change::SetKick { index, fd } => device.set_kick(index, fd),
            Change::SetCall { index, fd } => device.replace(index, |reply| Update::Call(fd.map(File::from), reply)),
            Change::SetErr { index, fd } => device.replace(index, |reply| Update::Err(fd.map(File::from), reply)),
            Change::SetUsedLog { index, address } => device.update(index, Update::UsedLog(address)),
            Change::SetMemory(memory) => device.set_memory(&memory),
            Change::SetLog(log) => {
                for index in device.started() {
                    device.update(index, Update::Log(log.clone()))?;
                }
                device.barrier()
            }
            Change::Reset => {
                device.state.quarantined.store(false, Ordering::Relaxed);
                Ok(())
            }
            Change::SendRarp { .. } | Change::SetMtu(_) => Err(Refusal::new("a disk has no network")),
        }
    }

    fn stop_ring(&mut self, index: u16) -> Result<u32, Refusal> {
        let device = &*self.0;
        let _change = device.change();
        let queue = device.take(index);
        let mut places = device.lock();
        places.queues[usize::from(index)].started = false;
        places.queues[usize::from(index)].kick = None;
        if !places.queues.iter().any(|place| place.started) {
            device.state.quarantined.store(false, Ordering::Relaxed);
        }
        queue.map(|queue| queue.base()).ok_or_else(|| gone(index))
    }
}

fn with_read_only(geometry: Geometry, read_only: bool) -> Geometry {
    Geometry { read_only: geometry.read_only || read_only, ..geometry }
}

fn gone(index: u16) -> Refusal {
    Refusal::new(MoveError::Gone(index))
}

/// Has a kick wake the worker.
fn watch(set: &WakeSet, kick: Option<RawFd>) -> Result<(), Refusal> {
    let Some(fd) = kick else { return Ok(()) };
    set.add(fd).map_err(|e| Refusal::new(format!("kick: cannot be polled ({e}); expected an eventfd")))
}
