//! Which queue is where, and how to get at it.

use crate::{DeviceQueue, QueueCommand, QueueUpdate, VhostDevice, WorkerQueues};
use crossbeam::channel;
use engine::{Sender, SourceId, WakeSet, WorkerHandle, mailbox};
use guest_memory::GuestMemory;
use parking_lot::{Mutex, MutexGuard};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use vhost_user::{Change, Refusal, RingStart};

/// Messages that a worker may have waiting.
const INBOX: usize = 64;
/// How often a wait for a worker looks whether the device is being torn down.
const LOOK: Duration = Duration::from_millis(50);

/// A device, and which worker has which of its queues.
pub(crate) struct Placement<D: VhostDevice> {
    device: D,
    /// Held through a whole change, waits included: session and control do not change the same queue at a time.
    changing: Mutex<()>,
    /// Held for a look only.
    inner: Mutex<Inner<D::DeviceQueue>>,
    /// The device is torn down without regard for what is in flight.
    abandoned: AtomicBool,
}

struct Inner<Q> {
    opened: Vec<Opened<Q>>,
    places: Vec<(QueuePlace, QueueLocation<Q>)>,
}

/// A worker that serves the device.
struct Opened<Q> {
    worker: WorkerHandle,
    inbox: Sender<QueueCommand<Q>>,
    in_flight: Arc<AtomicU32>,
    /// The source that the placement added to the worker; `None` where the device was opened from outside.
    source: Option<SourceId>,
}

/// A queue at one moment.
#[derive(Clone)]
pub struct QueuePlace {
    /// The worker that serves it, or will when it starts.
    pub worker: WorkerHandle,
    /// The front-end has started it.
    pub started: bool,
    /// The front-end has enabled it.
    pub enabled: bool,
    /// Entries; 0 before the first start.
    pub size: u16,
    /// Packed layout.
    pub packed: bool,
    /// A copy of the kick: what a worker's wake set watches must be open until the set has let go of it.
    kick: Option<Arc<OwnedFd>>,
}

/// Where a started queue is.
enum QueueLocation<Q> {
    /// On its worker, or not started.
    OnWorker,
    /// Here, until its worker opens the device.
    Parked(Box<Q>),
}

/// A queue that could not be moved. It stays where it was.
#[derive(Debug, thiserror::Error)]
pub enum MoveQueueError {
    /// No such queue.
    #[error("queue: got {got}, expected 0 to {last}")]
    NoSuchQueue {
        /// The index asked for.
        got: u16,
        /// The highest index.
        last: u16,
    },
    /// The worker or the device is going away.
    #[error("queue {0}: the device is being removed")]
    Gone(u16),
    /// The device cannot be served on the other worker, or the front-end's kicks cannot wake it.
    #[error("queue {0}: {1}")]
    Refused(u16, Refusal),
}

impl<D: VhostDevice> Placement<D> {
    /// A device with its queues assigned to `workers`, at least one, round-robin.
    pub(crate) fn new(device: D, workers: &[WorkerHandle]) -> Placement<D> {
        let place = |worker: &WorkerHandle| QueuePlace {
            worker: worker.clone(),
            started: false,
            enabled: false,
            size: 0,
            packed: false,
            kick: None,
        };
        let assigned = workers.iter().cycle().take(usize::from(device.properties().queues));
        let places = assigned.map(|worker| (place(worker), QueueLocation::OnWorker)).collect();
        let inner = Mutex::new(Inner { opened: Vec::new(), places });
        Placement { device, changing: Mutex::default(), inner, abandoned: AtomicBool::new(false) }
    }

    pub(crate) fn device(&self) -> &D {
        &self.device
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Inner<D::DeviceQueue>> {
        self.inner.lock()
    }

    pub(crate) fn places(&self) -> Vec<QueuePlace> {
        self.lock().places.iter().map(|(place, _)| place.clone()).collect()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.lock().opened.iter().map(|opened| opened.in_flight.load(Ordering::Relaxed)).sum()
    }

    /// Opens the device on `worker`. Queues that wait for the worker are the first.
    pub(crate) fn open(&self, worker: &WorkerHandle) -> WorkerQueues<D::DeviceQueue> {
        let _change = self.change();
        let mut inner = self.lock();
        let (opened, queues) = inner.queues_on(worker);
        for (_, location) in inner.places.iter_mut().filter(|(place, _)| place.worker.id() == worker.id()) {
            if let QueueLocation::Parked(queue) = std::mem::replace(location, QueueLocation::OnWorker) {
                let _ = opened.inbox.send(QueueCommand::Add(queue)); // `queues`, the other end, is open.
            }
        }
        inner.opened.retain(|known| known.worker.id() != worker.id());
        inner.opened.push(opened);
        queues
    }

    /// Opens the device on `worker` if it opens itself and is not open there. A queue may go there then.
    fn open_if_needed(&self, worker: &WorkerHandle) -> Result<(), Refusal> {
        let (mut opened, queues) = {
            let inner = self.lock();
            if inner.inbox(worker).is_some() {
                return Ok(());
            }
            inner.queues_on(worker)
        };
        if let Some(source) = self.device.source(worker, queues)? {
            opened.source = Some(worker.add(self.device.health().name(), source));
            self.lock().opened.push(opened);
        }
        Ok(())
    }

    fn start(&self, start: RingStart) -> Result<(), Refusal> {
        let queue = Box::new(self.device.queue(start).map_err(Refusal::new)?);
        let vring = queue.vring();
        let (index, kick) = (vring.index, vring.copy_kick().map_err(Refusal::new)?.map(Arc::new));
        let worker = self.lock().places[usize::from(index)].0.worker.clone();
        self.open_if_needed(&worker)?;
        watch(&worker.wake_set(), kick.as_deref())?;
        let (enabled, size, packed) = (vring.enabled, vring.size(), vring.is_packed());
        if let Err(gone) = self.put(index, queue) {
            unwatch(&worker.wake_set(), kick.as_deref());
            return Err(Refusal::new(gone));
        }
        // Last: a ring that is reported as started is served in the worker's next turn.
        self.lock().places[usize::from(index)].0 = QueuePlace { worker, started: true, enabled, size, packed, kick };
        Ok(())
    }

    /// Puts a started queue where it belongs.
    fn put(&self, index: u16, queue: Box<D::DeviceQueue>) -> Result<(), MoveQueueError> {
        let mut inner = self.lock();
        let worker = inner.places[usize::from(index)].0.worker.clone();
        match inner.inbox(&worker) {
            Some(inbox) => {
                drop(inner);
                inbox.send(QueueCommand::Add(queue)).map_err(|_| MoveQueueError::Gone(index))
            }
            None => {
                inner.places[usize::from(index)].1 = QueueLocation::Parked(queue);
                Ok(())
            }
        }
    }

    /// Stops a queue, drained. Returns its base, or that its worker, or the device, goes away.
    pub(crate) fn stop(&self, index: u16) -> Result<u32, Refusal> {
        let _change = self.change();
        let queue = self.take(index);
        let mut inner = self.lock();
        let place = &mut inner.places[usize::from(index)].0;
        place.started = false;
        place.kick = None;
        if !inner.places.iter().any(|(place, _)| place.started) {
            self.device.health().recover();
        }
        queue.map(|queue| queue.vring().ring.base()).ok_or_else(|| gone(index))
    }

    fn take(&self, index: u16) -> Option<Box<D::DeviceQueue>> {
        let (place, location) = {
            let mut inner = self.lock();
            let (place, location) = &mut inner.places[usize::from(index)];
            (place.clone(), std::mem::replace(location, QueueLocation::OnWorker))
        };
        unwatch(&place.worker.wake_set(), place.kick.as_deref());
        if let QueueLocation::Parked(mut queue) = location {
            queue.vring_mut().flush();
            return Some(queue);
        }
        let (reply, answer) = channel::bounded(1);
        let inbox = self.lock().inbox(&place.worker)?;
        inbox.send(QueueCommand::Take(index, reply)).ok()?;
        self.wait(&answer)
    }

    /// Moves a queue to `worker`: drained on its old one, then served by the new one.
    pub(crate) fn move_queue(&self, index: u16, worker: &WorkerHandle) -> Result<(), MoveQueueError> {
        let _change = self.change();
        let (last, place) = {
            let inner = self.lock();
            (inner.places.len() as u16 - 1, inner.places.get(usize::from(index)).map(|(place, _)| place.clone()))
        };
        let place = place.ok_or(MoveQueueError::NoSuchQueue { got: index, last })?;
        if place.worker.id() == worker.id() {
            return Ok(());
        }
        if !place.started {
            self.lock().places[usize::from(index)].0.worker = worker.clone();
            return Ok(());
        }
        // All that can fail comes before the queue is taken. Until it comes, its kicks wake the new worker in vain.
        let refused = |refusal| MoveQueueError::Refused(index, refusal);
        self.open_if_needed(worker).map_err(refused)?;
        watch(&worker.wake_set(), place.kick.as_deref()).map_err(refused)?;
        let Some(queue) = self.take(index) else {
            unwatch(&worker.wake_set(), place.kick.as_deref());
            return Err(MoveQueueError::Gone(index));
        };
        self.lock().places[usize::from(index)].0.worker = worker.clone();
        self.put(index, queue)
    }

    /// Applies a change, of started queues or of the device.
    pub(crate) fn apply(&self, change: Change) -> Result<(), Refusal> {
        let _change = self.change();
        match change {
            Change::StartRing(start) => self.start(start)?,
            Change::EnableRing { index, enabled } => {
                self.update(index, QueueUpdate::Enabled(enabled))?;
                // Once it is disabled the guest gets nothing more.
                self.barrier()?;
                self.lock().places[usize::from(index)].0.enabled = enabled;
            }
            Change::SetKick { index, fd } => self.set_kick(index, fd)?,
            Change::SetCall { index, fd } => self.replace(index, |old| QueueUpdate::Call(fd.map(File::from), old))?,
            Change::SetErr { index, fd } => self.replace(index, |old| QueueUpdate::Err(fd.map(File::from), old))?,
            Change::SetUsedLog { index, address } => self.update(index, QueueUpdate::UsedLog(address))?,
            Change::SetMemory(memory) => self.set_memory(&memory)?,
            Change::SetLog(log) => {
                for index in self.started() {
                    self.update(index, QueueUpdate::Log(log.clone()))?;
                }
                self.barrier()?;
            }
            Change::Reset => {
                self.device.health().recover();
                self.device.apply(Change::Reset)?;
            }
            other => {
                self.device.apply(other)?;
                self.wake();
            }
        }
        Ok(())
    }

    /// Ends all waiting: the device goes, whatever its workers still do.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Closes the mailboxes, for good, and takes the device's sources off the workers. Dropping those waits for backends that still
    /// use guest memory; what an inflight region still names is served by the next process.
    pub(crate) fn close(&self) {
        let opened = std::mem::take(&mut self.lock().opened);
        for Opened { worker, source, .. } in opened {
            if let Some(source) = source {
                drop(worker.remove(source));
            }
        }
    }

    /// Wakes every worker that has opened the device.
    pub(crate) fn wake(&self) {
        self.lock().opened.iter().for_each(|opened| opened.worker.waker().wake());
    }

    /// Waits for a worker's answer; `None` when it will not come.
    fn wait<T>(&self, answer: &channel::Receiver<T>) -> Option<T> {
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(value) => return Some(value),
                Err(channel::RecvTimeoutError::Disconnected) => return None,
                Err(channel::RecvTimeoutError::Timeout) if self.abandoned.load(Ordering::Relaxed) => return None,
                Err(channel::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Changes a started queue, wherever it is.
    fn update(&self, index: u16, update: QueueUpdate) -> Result<(), Refusal> {
        let inbox = {
            let mut inner = self.lock();
            let (place, location) = &mut inner.places[usize::from(index)];
            if let QueueLocation::Parked(queue) = location {
                return update.apply(queue.as_mut()).map_err(Refusal::new);
            }
            let worker = place.worker.clone();
            inner.inbox(&worker)
        };
        let sent = inbox.is_some_and(|inbox| inbox.send(QueueCommand::Update(index, update)).is_ok());
        if sent { Ok(()) } else { Err(gone(index)) }
    }

    /// Sends an update that replaces a descriptor; the old one is closed here.
    fn replace(
        &self,
        index: u16,
        update: impl FnOnce(channel::Sender<Option<File>>) -> QueueUpdate,
    ) -> Result<(), Refusal> {
        let (reply, answer) = channel::bounded(1);
        self.update(index, update(reply))?;
        self.wait(&answer).map(drop).ok_or_else(|| gone(index))
    }

    fn set_kick(&self, index: u16, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        let new = fd.as_ref().map(OwnedFd::try_clone).transpose().map_err(Refusal::new)?.map(Arc::new);
        let (worker, old) = {
            let mut inner = self.lock();
            let place = &mut inner.places[usize::from(index)].0;
            watch(&place.worker.wake_set(), new.as_deref())?;
            (place.worker.clone(), std::mem::replace(&mut place.kick, new))
        };
        unwatch(&worker.wake_set(), old.as_deref());
        self.replace(index, |old| QueueUpdate::Kick(fd.map(File::from), old))
    }

    fn set_memory(&self, memory: &Arc<GuestMemory>) -> Result<(), Refusal> {
        let mut answers = Vec::new();
        for index in self.started() {
            let (reply, answer) = channel::bounded(1);
            self.update(index, QueueUpdate::Memory(memory.clone(), reply))?;
            answers.push((index, answer));
        }
        // Only now wait: all workers move on at the same time.
        for (index, answer) in answers {
            self.wait(&answer)
                .ok_or_else(|| Refusal::new(format!("queue {index} does not lie in the new memory table")))?;
        }
        Ok(())
    }

    fn started(&self) -> Vec<u16> {
        let inner = self.lock();
        (0..).zip(&inner.places).filter(|(_, (place, _))| place.started).map(|(index, _)| index).collect()
    }

    /// Waits until every worker has done what was sent to it.
    fn barrier(&self) -> Result<(), Refusal> {
        let inboxes: Vec<_> = self.lock().opened.iter().map(|opened| opened.inbox.clone()).collect();
        for inbox in inboxes {
            let (reply, answer) = channel::bounded(1);
            // A worker that has closed the device has nothing left to do.
            if inbox.send(QueueCommand::Barrier(reply)).is_ok() && self.wait(&answer).is_none() {
                return Err(Refusal::new("the device is being removed"));
            }
        }
        Ok(())
    }
}

impl<Q: DeviceQueue> Inner<Q> {
    fn inbox(&self, worker: &WorkerHandle) -> Option<Sender<QueueCommand<Q>>> {
        self.opened.iter().find(|opened| opened.worker.id() == worker.id()).map(|opened| opened.inbox.clone())
    }

    /// Both ends of what leads to `worker`.
    fn queues_on(&self, worker: &WorkerHandle) -> (Opened<Q>, WorkerQueues<Q>) {
        // As many messages at once as there are queues here: none of them waits for the worker.
        let (sender, inbox) = mailbox(worker.waker(), INBOX + self.places.len());
        let in_flight = Arc::<AtomicU32>::default();
        let opened = Opened { worker: worker.clone(), inbox: sender, in_flight: in_flight.clone(), source: None };
        (opened, WorkerQueues::new(inbox, in_flight, self.places.len()))
    }
}

fn gone(index: u16) -> Refusal {
    Refusal::new(MoveQueueError::Gone(index))
}

/// Has a kick wake the worker.
fn watch(set: &WakeSet, kick: Option<&OwnedFd>) -> Result<(), Refusal> {
    let Some(kick) = kick else { return Ok(()) };
    let refusal = |e| Refusal::new(format!("kick: cannot be polled ({e}); expected an eventfd"));
    set.add(kick.as_raw_fd()).map_err(refusal)
}

/// A kick wakes the worker no more.
fn unwatch(set: &WakeSet, kick: Option<&OwnedFd>) {
    if let Some(kick) = kick {
        let _ = set.remove(kick.as_raw_fd()); // The set may have let go of it already.
    }
}
