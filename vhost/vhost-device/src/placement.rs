//! The session's end: which queue is where, and how to get at it.

use crate::{Command, Queue, Update};
use crossbeam::channel;
use engine::{Mailbox, Sender, WakeSet, WorkerHandle, mailbox};
use guest_memory::GuestMemory;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use vhost_user::{Change, Refusal};

/// Messages that a worker may have waiting.
const INBOX: usize = 64;
/// How often a wait for a worker looks whether the device is being torn down.
const LOOK: Duration = Duration::from_millis(50);

/// Which worker has which queue.
pub struct Placement<Q> {
    /// Held through a whole change, waits included: session and control do not change the same queue at a time.
    changing: Mutex<()>,
    /// Held for a look only.
    inner: Mutex<Inner<Q>>,
    /// The device is torn down without regard for what is in flight.
    abandoned: AtomicBool,
}

struct Inner<Q> {
    /// By worker.
    inboxes: Vec<(WorkerHandle, Sender<Command<Q>>)>,
    places: Vec<(Place, Home<Q>)>,
}

/// A queue at one moment.
#[derive(Clone)]
pub struct Place {
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
    /// Our own copy: what a worker's wake set watches must be open until the set has let go of it.
    kick: Option<Arc<OwnedFd>>,
}

/// Where a started queue is.
enum Home<Q> {
    /// On its worker, or not started.
    Worker,
    /// Here: its worker has not opened the device yet.
    Here(Box<Q>),
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
    /// The worker or the device is going away.
    #[error("queue {0}: the device is being removed")]
    Gone(u16),
    /// The other worker cannot poll the front-end's kicks.
    #[error("queue {0}: {1}")]
    Kick(u16, std::io::Error),
}

impl<Q: Queue> Placement<Q> {
    /// A place for each queue, in order; its worker.
    pub fn new(workers: impl Iterator<Item = WorkerHandle>) -> Placement<Q> {
        let place = |worker| Place { worker, started: false, enabled: false, size: 0, packed: false, kick: None };
        let places = workers.map(|worker| (place(worker), Home::Worker)).collect();
        let inner = Mutex::new(Inner { inboxes: Vec::new(), places });
        Placement { changing: Mutex::default(), inner, abandoned: AtomicBool::new(false) }
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().expect("no panic under this lock")
    }

    fn lock(&self) -> MutexGuard<'_, Inner<Q>> {
        self.inner.lock().expect("no panic under this lock")
    }

    /// The queues.
    pub fn places(&self) -> Vec<Place> {
        self.lock().places.iter().map(|(place, _)| place.clone()).collect()
    }

    /// Whether `worker` has opened the device.
    pub fn is_open(&self, worker: &WorkerHandle) -> bool {
        self.lock().inbox(worker).is_some()
    }

    /// Opens the device on `worker`: what comes by the mailbox is for its [`Queues`](crate::Queues). Queues that wait for the
    /// worker are the first.
    pub fn open(&self, worker: &WorkerHandle) -> Mailbox<Command<Q>> {
        let _change = self.change();
        let mut inner = self.lock();
        // As many messages at once as there are queues here: none of them waits for the worker.
        let (sender, inbox) = mailbox(worker.waker(), INBOX + inner.places.len());
        for (_, home) in inner.places.iter_mut().filter(|(place, _)| place.worker.id() == worker.id()) {
            if let Home::Here(queue) = std::mem::replace(home, Home::Worker) {
                drop(sender.send(Command::Add(queue)));
            }
        }
        inner.inboxes.retain(|(known, _)| known.id() != worker.id());
        inner.inboxes.push((worker.clone(), sender));
        inbox
    }

    /// Starts a queue.
    pub fn start(&self, queue: Box<Q>) -> Result<(), Refusal> {
        let _change = self.change();
        let vring = queue.vring();
        let (index, kick) = (vring.index, vring.copy_kick().map_err(Refusal::new)?.map(Arc::new));
        let worker = self.lock().places[usize::from(index)].0.worker.clone();
        watch(&worker.wake_set(), kick.as_deref())?;
        let (enabled, size, packed) = (vring.enabled, vring.size(), vring.is_packed());
        if let Err(gone) = self.put(index, queue) {
            unwatch(&worker.wake_set(), kick.as_deref());
            return Err(Refusal::new(gone));
        }
        // Last: whoever sees the ring started has it served in the worker's next turn.
        self.lock().places[usize::from(index)].0 = Place { worker, started: true, enabled, size, packed, kick };
        Ok(())
    }

    /// Puts a started queue where it belongs.
    fn put(&self, index: u16, queue: Box<Q>) -> Result<(), MoveError> {
        let mut inner = self.lock();
        let worker = inner.places[usize::from(index)].0.worker.clone();
        match inner.inbox(&worker) {
            Some(inbox) => {
                drop(inner);
                inbox.send(Command::Add(queue)).map_err(|_| MoveError::Gone(index))
            }
            None => {
                inner.places[usize::from(index)].1 = Home::Here(queue);
                Ok(())
            }
        }
    }

    /// Stops a queue, drained. `None` when its worker, or the device, goes away.
    pub fn stop(&self, index: u16) -> Option<Box<Q>> {
        let _change = self.change();
        let queue = self.take(index);
        let mut inner = self.lock();
        let place = &mut inner.places[usize::from(index)].0;
        (place.started, place.kick) = (false, None);
        queue
    }

    /// Whether any queue is started.
    pub fn any_started(&self) -> bool {
        self.lock().places.iter().any(|(place, _)| place.started)
    }

    fn take(&self, index: u16) -> Option<Box<Q>> {
        let (place, home) = {
            let mut inner = self.lock();
            let (place, home) = &mut inner.places[usize::from(index)];
            (place.clone(), std::mem::replace(home, Home::Worker))
        };
        unwatch(&place.worker.wake_set(), place.kick.as_deref());
        if let Home::Here(mut queue) = home {
            queue.vring_mut().flush();
            return Some(queue);
        }
        let (reply, answer) = channel::bounded(1);
        let inbox = self.lock().inbox(&place.worker)?;
        inbox.send(Command::Take(index, reply)).ok()?;
        self.wait(&answer)
    }

    /// Moves a queue to `worker`: drained on its old one, then served by the new one.
    pub fn move_queue(&self, index: u16, worker: &WorkerHandle) -> Result<(), MoveError> {
        let _change = self.change();
        let (last, place) = {
            let inner = self.lock();
            (inner.places.len() as u16 - 1, inner.places.get(usize::from(index)).map(|(place, _)| place.clone()))
        };
        let place = place.ok_or(MoveError::NoSuchQueue { got: index, last })?;
        if place.worker.id() == worker.id() {
            return Ok(());
        }
        let queue = if place.started { Some(self.take(index).ok_or(MoveError::Gone(index))?) } else { None };
        if let Some(kick) = place.kick {
            worker.wake_set().add(kick.as_raw_fd()).map_err(|error| MoveError::Kick(index, error))?;
        }
        self.lock().places[usize::from(index)].0.worker = worker.clone();
        queue.map_or(Ok(()), |queue| self.put(index, queue))
    }

    /// Applies a change of started queues. Hands back what is the device's own business.
    pub fn apply(&self, change: Change) -> Result<Option<Change>, Refusal> {
        let _change = self.change();
        match change {
            Change::EnableRing { index, enabled } => {
                self.update(index, Update::Enabled(enabled))?;
                // Once it is disabled the guest gets nothing more.
                self.barrier()?;
                self.lock().places[usize::from(index)].0.enabled = enabled;
            }
            Change::SetKick { index, fd } => self.set_kick(index, fd)?,
            Change::SetCall { index, fd } => self.replace(index, |old| Update::Call(fd.map(File::from), old))?,
            Change::SetErr { index, fd } => self.replace(index, |old| Update::Err(fd.map(File::from), old))?,
            Change::SetUsedLog { index, address } => self.update(index, Update::UsedLog(address))?,
            Change::SetMemory(memory) => self.set_memory(&memory)?,
            Change::SetLog(log) => {
                for index in self.started() {
                    self.update(index, Update::Log(log.clone()))?;
                }
                self.barrier()?;
            }
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// Nobody waits any more: the device goes, whatever its workers still do.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Closes the mailboxes, for good.
    pub fn close(&self) {
        self.lock().inboxes.clear();
    }

    /// Wakes every worker that has opened the device.
    pub fn wake(&self) {
        self.lock().inboxes.iter().for_each(|(worker, _)| worker.waker().wake());
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
    fn update(&self, index: u16, update: Update) -> Result<(), Refusal> {
        let inbox = {
            let mut inner = self.lock();
            let (place, home) = &mut inner.places[usize::from(index)];
            if let Home::Here(queue) = home {
                return update.apply(queue.as_mut()).map_err(Refusal::new);
            }
            let worker = place.worker.clone();
            inner.inbox(&worker)
        };
        let sent = inbox.is_some_and(|inbox| inbox.send(Command::Update(index, update)).is_ok());
        if sent { Ok(()) } else { Err(gone(index)) }
    }

    /// Sends an update that replaces a descriptor; the old one is closed here.
    fn replace(&self, index: u16, update: impl FnOnce(channel::Sender<Option<File>>) -> Update) -> Result<(), Refusal> {
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
        self.replace(index, |old| Update::Kick(fd.map(File::from), old))
    }

    fn set_memory(&self, memory: &Arc<GuestMemory>) -> Result<(), Refusal> {
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

    fn started(&self) -> Vec<u16> {
        let inner = self.lock();
        (0..).zip(&inner.places).filter(|(_, (place, _))| place.started).map(|(index, _)| index).collect()
    }

    /// Waits until every worker has done what was sent to it.
    fn barrier(&self) -> Result<(), Refusal> {
        let inboxes: Vec<_> = self.lock().inboxes.iter().map(|(_, inbox)| inbox.clone()).collect();
        for inbox in inboxes {
            let (reply, answer) = channel::bounded(1);
            // A worker that has closed the device has nothing left to do.
            if inbox.send(Command::Barrier(reply)).is_ok() && self.wait(&answer).is_none() {
                return Err(Refusal::new("the device is being removed"));
            }
        }
        Ok(())
    }
}

impl<Q> Inner<Q> {
    fn inbox(&self, worker: &WorkerHandle) -> Option<Sender<Command<Q>>> {
        self.inboxes.iter().find(|(known, _)| known.id() == worker.id()).map(|(_, inbox)| inbox.clone())
    }
}

fn gone(index: u16) -> Refusal {
    Refusal::new(MoveError::Gone(index))
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
        drop(set.remove(kick.as_raw_fd()));
    }
}
