//! A disk's part on one worker: some of its queues and one channel into the backend.

use crate::queue::{BlkQueue, DeviceView};
use crate::{EventKind, EventSink, Fault};
use block::{BlockChannel, Completions, Geometry, IoStats};
use clock::Cycles;
use crossbeam::channel;
use engine::{Mailbox, Reader, Source};
use guest_memory::{DirtyLog, GuestAddress, GuestMemory};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use virtio_spec::blk::ID_LEN;

/// What all shards of a device share.
pub(crate) struct DeviceState {
    pub(crate) name: Arc<str>,
    pub(crate) id: [u8; ID_LEN],
    /// Set by the shard that finds a fault, cleared by the session when all rings are stopped.
    pub(crate) quarantined: AtomicBool,
    pub(crate) events: EventSink,
}

/// A message to a shard.
pub(crate) enum Command {
    Add(Box<BlkQueue>),
    /// Drains a queue and gives it back.
    Take(u16, channel::Sender<Box<BlkQueue>>),
    Update(u16, Update),
    /// Answered when everything sent before has been done.
    Barrier(channel::Sender<()>),
}

/// A change of a queue. Descriptors that were replaced go back to be closed by the session.
pub(crate) enum Update {
    Enabled(bool),
    Kick(Option<File>, channel::Sender<Option<File>>),
    Call(Option<File>, channel::Sender<Option<File>>),
    Err(Option<File>, channel::Sender<Option<File>>),
    Memory(Arc<GuestMemory>, channel::Sender<()>),
    Log(Option<DirtyLog>),
    UsedLog(Option<GuestAddress>),
}

/// The source that a worker polls.
#[allow(clippy::vec_box)] // a queue moves to another worker as one pointer
pub(crate) struct Shard {
    pub(crate) state: Arc<DeviceState>,
    pub(crate) geometry: Reader<Geometry>,
    pub(crate) inbox: Mailbox<Command>,
    // Before the queues: a channel that is dropped first waits for the kernel to let go of the guest's buffers.
    pub(crate) channel: Box<dyn BlockChannel>,
    pub(crate) queues: Vec<Box<BlkQueue>>,
    pub(crate) done: Completions,
    pub(crate) stats: Arc<IoStats>,
    /// Chains in flight, for reports.
    pub(crate) in_flight: Arc<AtomicU32>,
}

impl Source for Shard {
    fn poll(&mut self, now: Cycles) -> usize {
        while let Some(command) = self.inbox.take() {
            self.command(command);
        }
        let mut work = 0;
        if !self.state.quarantined.load(Ordering::Relaxed) {
            let device = DeviceView { geometry: self.geometry.get(), id: &self.state.id };
            for queue in self.queues.iter_mut().filter(|q| q.enabled && q.leaving.is_none()) {
                match queue.take(&device, self.channel.as_mut(), now, &mut self.done) {
                    Ok(taken) => work += taken,
                    Err(fault) => quarantine(&self.state, queue, fault),
                }
            }
        }
        work += self.channel.poll(now, &mut self.done);
        work + self.finish()
    }

    fn arm(&mut self) -> bool {
        let quarantined = self.state.quarantined.load(Ordering::Relaxed);
        // Arming touches the rings: memory that is found lost here is reported at the next quiescent point, before any sleep.
        let ready = |queue: &mut BlkQueue| !quarantined && (queue.arm() | queue.memory_is_lost());
        self.queues.iter_mut().fold(false, |any, queue| ready(queue) | any) || !self.inbox.is_empty()
    }

    fn disarm(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.disarm());
    }

    fn deadline(&self) -> Cycles {
        self.channel.deadline()
    }

    fn quiesce(&mut self) {
        self.geometry.quiesce();
        let in_flight = self.queues.iter().map(|q| q.in_flight() as u32).sum();
        self.in_flight.store(in_flight, Ordering::Relaxed);
        self.queues.iter_mut().for_each(|queue| check_memory(&self.state, queue));
    }
}

impl Shard {
    /// Hands completions to their queues, publishes them, and lets drained queues go.
    #[inline]
    fn finish(&mut self) -> usize {
        let completed = self.done.len();
        let now = if completed > 0 { Cycles::now() } else { Cycles(0) };
        for completion in self.done.drain() {
            self.stats.record(&completion, now);
            let index = BlkQueue::of(&completion.request);
            let Some(queue) = self.queues.iter_mut().find(|q| q.index == index) else {
                debug_assert!(false, "a queue leaves only when drained");
                continue;
            };
            if let Err(fault) = queue.complete(completion) {
                quarantine(&self.state, queue, fault);
            }
        }
        let mut leaves = false;
        for queue in &mut self.queues {
            queue.flush();
            leaves |= queue.leaving.is_some() && queue.in_flight() == 0;
        }
        if leaves {
            self.let_go();
        }
        completed
    }

    #[cold]
    fn let_go(&mut self) {
        while let Some(at) = self.queues.iter().position(|q| q.leaving.is_some() && q.in_flight() == 0) {
            let mut queue = self.queues.swap_remove(at);
            if let Some(waiter) = queue.leaving.take() {
                drop(waiter.send(queue));
            }
        }
    }

    #[cold]
    fn command(&mut self, command: Command) {
        match command {
            Command::Add(queue) => self.queues.push(queue),
            Command::Take(index, waiter) => {
                let state = self.state.clone();
                if let Some(queue) = self.queue(index) {
                    // The session may have seen it first, and ends for that reason.
                    check_memory(&state, queue);
                    queue.leaving = Some(waiter);
                }
            }
            Command::Update(index, update) => {
                let state = self.state.clone();
                if let Some(queue) = self.queue(index)
                    && let Err(fault) = apply(queue, update)
                {
                    quarantine(&state, queue, fault);
                }
            }
            Command::Barrier(waiter) => {
                let _nobody_waits_any_more = waiter.send(());
            }
        }
    }

    fn queue(&mut self, index: u16) -> Option<&mut BlkQueue> {
        self.queues.iter_mut().find(|q| q.index == index).map(Box::as_mut)
    }
}

fn apply(queue: &mut BlkQueue, update: Update) -> Result<(), Fault> {
    match update {
        Update::Enabled(enabled) => queue.enabled = enabled,
        Update::Kick(kick, old) => drop(old.send(std::mem::replace(&mut queue.kick, kick))),
        Update::Call(call, old) => drop(old.send(queue.set_call(call))),
        Update::Err(err, old) => drop(old.send(std::mem::replace(&mut queue.err, err))),
        Update::Memory(memory, fresh) => queue.set_memory(memory, fresh)?,
        Update::Log(log) => queue.set_log(log),
        Update::UsedLog(address) => queue.set_used_log(address),
    }
    Ok(())
}

/// Quarantines the device if the memory of `queue` is lost.
fn check_memory(state: &DeviceState, queue: &mut BlkQueue) {
    if queue.memory_is_lost() {
        quarantine(state, queue, Fault::Truncated);
    }
}

/// Stops the device: it takes nothing more; what is in flight ends as usual.
#[cold]
fn quarantine(state: &DeviceState, queue: &mut BlkQueue, fault: Fault) {
    if !state.quarantined.swap(true, Ordering::Relaxed) {
        state.events.send(&state.name, EventKind::Quarantined { queue: queue.index, fault });
        queue.report_broken();
    }
}

/// What [`stand_alone`] gives: the source, and the events that it reports.
pub type StandAlone = (Box<dyn Source>, channel::Receiver<crate::Event>);

/// A disk's source on its own, without socket, session or engine: for tests and for benchmarks of the path alone. The queues
/// have no eventfds; `memory` is as [`guest_memory::GuestMemory::anonymous`] makes it. Also returns the receiver of events.
pub fn stand_alone(
    bdev: &dyn block::Bdev,
    memory: &Arc<GuestMemory>,
    setups: &[virtqueue::Setup],
) -> Result<StandAlone, Box<dyn std::error::Error>> {
    let (shard, _, events) = lone_shard(bdev, memory, setups)?;
    Ok((Box::new(shard), events))
}

/// A shard on its own, its mailbox, and its events.
pub(crate) type LoneShard = (Shard, engine::Sender<Command>, channel::Receiver<crate::Event>);

pub(crate) fn lone_shard(
    bdev: &dyn block::Bdev,
    memory: &Arc<GuestMemory>,
    setups: &[virtqueue::Setup],
) -> Result<LoneShard, Box<dyn std::error::Error>> {
    let (events, receiver) = EventSink::new(16);
    let state =
        DeviceState { name: "stand-alone".into(), id: [b'i'; ID_LEN], quarantined: AtomicBool::new(false), events };
    let mut queues = Vec::new();
    for (index, setup) in setups.iter().enumerate() {
        let mut queue = BlkQueue::new(index as u16, memory.clone(), setup)?;
        queue.enabled = true;
        queues.push(Box::new(queue));
    }
    let waker = engine::Waker::new()?;
    let (commands, inbox) = engine::mailbox(waker, 1);
    let shard = Shard {
        state: Arc::new(state),
        geometry: engine::Snapshot::new(bdev.geometry()).reader(),
        inbox,
        channel: bdev.open_channel()?,
        queues,
        done: Completions::with_capacity(4096),
        stats: Arc::default(),
        in_flight: Arc::default(),
    };
    Ok((shard, commands, receiver))
}
