//! The thread that offloads flows to devices.

use crate::Totals;
use crate::nic::NicPort;
use crate::table::{COMPLETION_TIMEOUT, Table};
use clock::Cycles;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use datapath::{Offer, Offload};
use flow::PortNo;
use parking_lot::Mutex;
use port::Port;
use rte_rule::{FlowDevice, FlowEvent, FlowEvents};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two polls of the devices' counters.
const COUNTERS_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two polls for completions, while operations are pending.
const COMPLETIONS_INTERVAL: Duration = Duration::from_micros(100);
/// Largest number of messages handled at a time; the offers among them are placed in order of their packets.
const MESSAGES_PER_TURN: usize = 1024;

/// The limits of offloading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Largest number of rules for flows from one port, so that no port takes all the room of its device.
    pub rules_of_a_port: u32,
    /// Largest number of offers that wait, for the thread or for room in a device. More are dropped, and offered again by the switch.
    pub waiting: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { rules_of_a_port: 1 << 17, waiting: 1 << 14 }
    }
}

/// Offloads the flows of a switch to the devices of its ports. The calls into devices are made by a thread of their own, since a
/// device may be slow.
pub struct Offloader {
    config: Config,
    /// Sender of messages to the thread; the event listeners of devices hold weak references.
    messages: Option<Arc<Sender<Message>>>,
    /// Number of queued offers of flows that are not offloaded.
    offers: Arc<AtomicUsize>,
    totals: Arc<Mutex<Totals>>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    AddPort(PortNo, Box<NicPort>, u16),
    RemovePort(PortNo, Sender<()>),
    /// An offer, and whether it counts in [`Offloader::offers`].
    Offer(Box<Offer>, bool),
    Withdraw(u128),
    Settle(Sender<()>),
    Event(u16, FlowEvent),
    OnRemoved(Box<dyn Fn() + Send>),
}

impl Offloader {
    /// Starts the thread without ports, with the default limits.
    pub fn start() -> std::io::Result<Offloader> {
        Offloader::start_with(Config::default())
    }

    /// Starts the thread without ports.
    pub fn start_with(config: Config) -> std::io::Result<Offloader> {
        let (messages, inbox) = channel::unbounded();
        let totals = Arc::<Mutex<Totals>>::default();
        let offers = Arc::<AtomicUsize>::default();
        let thread = Thread {
            inbox,
            table: Table::new(config),
            offers: offers.clone(),
            totals: totals.clone(),
            settling: Vec::new(),
            on_removed: None,
        };
        let thread = std::thread::Builder::new().name("offload".to_owned()).spawn(move || thread.run())?;
        Ok(Offloader { config, messages: Some(Arc::new(messages)), offers, totals, thread: Some(thread) })
    }

    /// The totals until now.
    pub fn totals(&self) -> Totals {
        self.totals.lock().clone()
    }

    /// Waits until all messages sent before are handled and their operations are complete or have timed out, and polls all counters.
    pub fn settle(&self) {
        self.call(Message::Settle);
    }

    /// Sends a message and waits until it is handled.
    fn call(&self, message: impl FnOnce(Sender<()>) -> Message) {
        let (reply, handled) = channel::bounded(1);
        self.send(message(reply));
        let _ = handled.recv(); // the thread replies by dropping its end
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            let _ = messages.send(message); // the thread ends only after the sender
        }
    }
}

/// The state of the thread.
struct Thread {
    inbox: Receiver<Message>,
    table: Table,
    offers: Arc<AtomicUsize>,
    totals: Arc<Mutex<Totals>>,
    /// Callers of [`Offloader::settle`], with their deadlines.
    settling: Vec<(Sender<()>, Instant)>,
    on_removed: Option<Box<dyn Fn() + Send>>,
}

impl Thread {
    fn run(mut self) {
        let mut next_poll = Instant::now() + COUNTERS_INTERVAL;
        loop {
            let first = match (self.table.is_busy(), self.table.is_empty() && self.settling.is_empty()) {
                (true, _) => self.inbox.recv_timeout(COMPLETIONS_INTERVAL),
                (false, true) => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                (false, false) => self.inbox.recv_deadline(next_poll),
            };
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            self.handle_messages(first.ok());
            self.table.poll(Cycles::now());
            let now = Instant::now();
            if !self.settling.is_empty() && (!self.table.is_busy() || self.settling.iter().any(|(_, at)| now > *at)) {
                self.table.poll_all_counters(Cycles::now());
            } else if now >= next_poll {
                next_poll = now + COUNTERS_INTERVAL;
                self.table.poll_counters(Cycles::now());
            }
            if std::mem::take(&mut self.table.has_lost)
                && let Some(on_removed) = &self.on_removed
            {
                on_removed();
            }
            *self.totals.lock() = self.table.totals();
            let table = &self.table;
            self.settling.retain(|(_, at)| table.is_busy() && now <= *at);
        }
    }

    fn handle_messages(&mut self, first: Option<Message>) {
        // The latest offer of a flow counts.
        let mut offers: HashMap<u128, Box<Offer>> = HashMap::new();
        let messages: Vec<Message> = first.into_iter().chain(self.inbox.try_iter().take(MESSAGES_PER_TURN)).collect();
        for message in messages {
            match message {
                Message::AddPort(number, port, domain) => self.table.add_port(number, *port, domain),
                Message::RemovePort(number, _reply) => self.remove_port(number),
                Message::Offer(offer, is_new) => {
                    self.offers.fetch_sub(is_new.into(), Ordering::Relaxed);
                    offers.insert(offer.flow.ufid, offer);
                }
                Message::Withdraw(ufid) => {
                    offers.remove(&ufid);
                    self.table.withdraw(ufid, Cycles::now());
                }
                Message::Settle(reply) => self.settling.push((reply, Instant::now() + 2 * COMPLETION_TIMEOUT)),
                Message::Event(domain, event) => self.table.handle_event(domain, event, Cycles::now()),
                Message::OnRemoved(listener) => self.on_removed = Some(listener),
            }
        }
        if !offers.is_empty() {
            self.table.offer(offers.into_values().collect(), Cycles::now());
        }
    }

    /// Removes a port, and waits up to [`COMPLETION_TIMEOUT`] until the device has removed the port's rules.
    fn remove_port(&mut self, number: PortNo) {
        let deadline = Instant::now() + COMPLETION_TIMEOUT;
        while !self.table.remove_port(number, Cycles::now()) && Instant::now() < deadline {
            self.table.poll(Cycles::now());
            std::thread::yield_now();
        }
        self.table.detach(number);
    }
}

impl Offload for Offloader {
    fn add_port(&self, number: PortNo, port: &dyn Port) -> bool {
        let Some(device) = port.flow_device() else { return false };
        let Some(domain) = device.info().switch_domain else { return false };
        let _events = self.listen(&*device, domain);
        self.send(Message::AddPort(number, Box::new(NicPort { device, _events }), domain));
        true
    }

    fn remove_port(&self, number: PortNo) {
        self.call(|reply| Message::RemovePort(number, reply));
    }

    fn offer(&self, offer: Offer) {
        // An offer of an offloaded flow, whose actions have changed, is never dropped here.
        let is_new = !offer.handle.is_offloaded();
        if is_new && self.offers.load(Ordering::Relaxed) >= self.config.waiting {
            return;
        }
        self.offers.fetch_add(is_new.into(), Ordering::Relaxed);
        self.send(Message::Offer(Box::new(offer), is_new));
    }

    fn withdraw(&self, ufid: u128) {
        self.send(Message::Withdraw(ufid));
    }

    fn refresh(&self) {
        self.settle();
    }

    fn on_removed(&self, listener: Box<dyn Fn() + Send>) {
        self.send(Message::OnRemoved(listener));
    }
}

impl Offloader {
    /// Subscribes to the events of a device, where its driver has some.
    fn listen(&self, device: &dyn FlowDevice, domain: u16) -> Option<FlowEvents> {
        let messages = Arc::downgrade(self.messages.as_ref()?);
        let forward = move |event| {
            if let Some(messages) = messages.upgrade() {
                let _ = messages.send(Message::Event(domain, event)); // the thread may have ended
            }
        };
        device.listen(Box::new(forward)).ok()
    }
}

impl Drop for Offloader {
    fn drop(&mut self) {
        self.messages = None;
        // The thread itself may drop the last reference, in the listener for losses.
        let is_other = |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(is_other) {
            let _ = thread.join(); // a panic of the thread was reported by the panic hook
        }
    }
}
