//! Both ends without a front-end: how queues leave, move, and tell of lost memory.

use crate::placement::Placement;
use crate::{
    DeviceEvent, DeviceEventKind, DeviceEventSink, DeviceFault, DeviceHealth, DeviceQueue, MoveQueueError, Quarantine,
    QueueCommand, QueueUpdate, VhostDevice, Vring, WorkerQueues,
};
use clock::Cycles;
use crossbeam::channel::{Receiver, bounded};
use engine::{Engine, IdlePolicy, Sender, Source, Waker, WorkerHandle, mailbox};
use guest_memory::{GuestAddress, GuestMemory, Mapping, Region, UserAddress};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vhost_user::{Change, Properties, Refusal, RingStart};
use virtio_spec::feature::RING_PACKED;
use virtqueue::driver::Driver;

const RING: GuestAddress = GuestAddress(0);
const MEMORY: usize = 0x10000;
const SIZE: u16 = 16;

/// A queue that has as much in flight as the test says.
struct Plain {
    vring: Vring,
    in_flight: Arc<AtomicUsize>,
}

impl DeviceQueue for Plain {
    fn vring(&self) -> &Vring {
        &self.vring
    }
    fn vring_mut(&mut self) -> &mut Vring {
        &mut self.vring
    }
    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }
}

fn kick() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn ring_start(index: u16, memory: &Arc<GuestMemory>) -> RingStart {
    let setup = Driver::new(memory, RING, SIZE, RING_PACKED).setup();
    let memory = memory.clone();
    RingStart { index, setup, memory, log: None, enabled: true, kick: Some(kick()), call: None, err: None }
}

/// A worker's end with queue 0, its mailbox, and its device's events.
struct Lone {
    queues: WorkerQueues<Plain>,
    inbox: Sender<QueueCommand<Plain>>,
    health: DeviceHealth,
    events: Receiver<DeviceEvent>,
    in_flight: Arc<AtomicUsize>,
}

impl Lone {
    fn new(memory: &Arc<GuestMemory>) -> Lone {
        let (sender, inbox) = mailbox(Waker::new().unwrap(), 4);
        let in_flight = Arc::<AtomicUsize>::default();
        let vring = Vring::new(ring_start(0, memory)).unwrap();
        let (events, heard) = DeviceEventSink::new(4);
        let mut lone = Lone {
            queues: WorkerQueues::new(inbox, Arc::default(), 1),
            inbox: sender,
            health: DeviceHealth::new("lone".into(), events),
            events: heard,
            in_flight: in_flight.clone(),
        };
        lone.send(QueueCommand::Add(Box::new(Plain { vring, in_flight })));
        lone
    }

    fn send(&mut self, command: QueueCommand<Plain>) {
        assert!(self.inbox.send(command).is_ok());
        self.queues.take_commands(&self.health);
    }

    fn take(&mut self) -> Receiver<Box<Plain>> {
        let (reply, queue) = bounded(1);
        self.send(QueueCommand::Take(0, reply));
        queue
    }
}

/// A queue in memory that its owner has truncated, and that was not touched since.
fn with_truncated_memory() -> Lone {
    let file = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY as u64).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 0, MEMORY as u64).unwrap();
    let region = Region::new(GuestAddress(0), UserAddress(0), mapping).unwrap();
    let mut lone = Lone::new(&Arc::new(GuestMemory::new(vec![Arc::new(region)]).unwrap()));
    assert!(!lone.queues.serving()[0].vring.arm(), "nothing to do");
    file.set_len(0).unwrap();
    lone
}

const LOST: DeviceEventKind = DeviceEventKind::Quarantined(Quarantine { queue: 0, fault: DeviceFault::Truncated });

#[test]
fn lost_memory_found_while_arming_keeps_the_worker_awake() {
    let mut lone = with_truncated_memory();
    assert!(lone.queues.serving()[0].vring.arm(), "must not sleep on it");
    lone.queues.quiesce(&lone.health);
    assert_eq!(lone.events.try_recv().unwrap().kind, LOST);
    assert!(lone.health.is_quarantined());
}

#[test]
fn a_queue_taken_from_lost_memory_quarantines_its_device() {
    let mut lone = with_truncated_memory();
    lone.queues.serving()[0].vring.ring.disarm(); // Touches the memory.
    assert!(lone.take().try_recv().is_ok());
    assert_eq!(lone.events.try_recv().unwrap().kind, LOST);
}

#[test]
fn a_leaving_queue_drains_and_takes_changes_meanwhile() {
    let mut lone = Lone::new(&Arc::new(GuestMemory::anonymous(MEMORY).unwrap()));
    lone.in_flight.store(2, Ordering::SeqCst);
    let queue = lone.take();
    lone.queues.release();
    assert!(queue.try_recv().is_err(), "in flight");
    assert_eq!((lone.queues.serving().len(), lone.queues.all().count()), (0, 1));
    lone.send(QueueCommand::Update(0, QueueUpdate::Enabled(false)));
    assert!(!lone.queues.find(0).unwrap().vring.enabled);
    lone.in_flight.store(0, Ordering::SeqCst);
    lone.queues.release();
    assert_eq!(queue.try_recv().unwrap().vring.index, 0);
    assert_eq!(lone.queues.all().count(), 0);
}

/// A device that opens itself, on worker 0 only.
struct Half {
    health: Arc<DeviceHealth>,
    polled: Arc<AtomicUsize>,
}

struct Poll {
    queues: WorkerQueues<Plain>,
    health: Arc<DeviceHealth>,
    polled: Arc<AtomicUsize>,
}

impl Source for Poll {
    fn poll(&mut self, _: Cycles) -> usize {
        self.queues.take_commands(&self.health);
        self.polled.fetch_add(self.queues.serving().len(), Ordering::SeqCst);
        self.queues.release();
        0
    }
}

impl VhostDevice for Half {
    type DeviceQueue = Plain;
    fn health(&self) -> &DeviceHealth {
        &self.health
    }
    fn properties(&self) -> Properties {
        Properties { features: 0, protocol_features: 0, queues: 2, max_queue_size: SIZE }
    }
    fn queue(&self, start: RingStart) -> Result<Plain, DeviceFault> {
        Ok(Plain { vring: Vring::new(start)?, in_flight: Arc::default() })
    }
    fn source(&self, worker: &WorkerHandle, queues: WorkerQueues<Plain>) -> Result<Option<Box<dyn Source>>, Refusal> {
        match worker.id() {
            0 => Ok(Some(Box::new(Poll { queues, health: self.health.clone(), polled: self.polled.clone() }))),
            _ => Err(Refusal::new("no way into it from there")),
        }
    }
    fn apply(&self, _: Change) -> Result<(), Refusal> {
        Ok(())
    }
}

fn is_polled(polled: &AtomicUsize) -> bool {
    let (before, deadline) = (polled.load(Ordering::SeqCst), Instant::now() + Duration::from_secs(10));
    while polled.load(Ordering::SeqCst) == before {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn a_queue_that_cannot_be_served_elsewhere_stays_where_it_is() {
    let engine = Engine::start(&[0, 1], IdlePolicy::POLL).unwrap();
    let (to, polled) = (&engine.workers()[1], Arc::<AtomicUsize>::default());
    let health = Arc::new(DeviceHealth::new("half".into(), DeviceEventSink::new(1).0));
    let placement = Placement::new(Half { health, polled: polled.clone() }, &engine.workers()[..1]);
    let memory = Arc::new(GuestMemory::anonymous(MEMORY).unwrap());
    placement.apply(Change::StartRing(ring_start(0, &memory))).unwrap();
    assert!(is_polled(&polled));
    assert!(matches!(placement.move_queue(2, to), Err(MoveQueueError::NoSuchQueue { got: 2, last: 1 })));
    let error = placement.move_queue(0, to).unwrap_err();
    assert_eq!(error.to_string(), "queue 0: no way into it from there");
    let place = &placement.places()[0];
    assert!(place.started && place.worker.id() == 0);
    assert!(is_polled(&polled));
    // A queue that is not started may go: it fails when it starts.
    placement.move_queue(1, to).unwrap();
    let refusal = placement.apply(Change::StartRing(ring_start(1, &memory))).unwrap_err();
    assert_eq!(refusal.to_string(), "no way into it from there");
    assert!(!placement.places()[1].started);
    assert!(placement.stop(0).is_ok());
    placement.close();
    assert!(engine.workers()[0].report().sources.is_empty());
}
