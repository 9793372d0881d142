//! The thread that puts rules into devices.

use crate::Totals;
use crate::card::{Card, CardPort};
use crate::table::{PATIENCE, Table};
use clock::Cycles;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use dpdk::flow::{FlowEvent, FlowPort};
use flow::PortNo;
use port::Port;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use switch::{Offer, Offload};

/// Time between two looks at the counters of devices.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time between two looks for completions, while some are awaited.
const TURN_EVERY: Duration = Duration::from_micros(100);
/// Messages that are taken at a time: offers among them in order of what they have seen.
const MESSAGES: usize = 1024;

/// The limits of offloading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Rules for flows from one port: no port takes all the room of its device.
    pub rules_of_a_port: u32,
    /// Offers that wait, for the thread or for room in a device. The rest are dropped, and offered again by the switch.
    pub waiting: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { rules_of_a_port: 1 << 17, waiting: 1 << 14 }
    }
}

/// Hardware behind the ports of the switch. A thread of its own talks to the devices, since a device may take its time.
pub struct Offloader {
    config: Config,
    /// Devices that tell of themselves have weak ones.
    messages: Option<Arc<Sender<Message>>>,
    /// Offers among them of flows that are not in hardware.
    offers: Arc<AtomicUsize>,
    totals: Arc<Mutex<Totals>>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    AddPort(PortNo, Box<CardPort>, u16),
    RemovePort(PortNo, Sender<()>),
    /// With whether it counts among those that wait.
    Offer(Box<Offer>, bool),
    Withdraw(u128),
    Settle(Sender<()>),
    Event(u16, FlowEvent),
    OnLoss(Box<dyn Fn() + Send>),
}

impl Offloader {
    /// Begins without ports, with the limits that are usual.
    pub fn start() -> std::io::Result<Offloader> {
        Offloader::start_with(Config::default())
    }

    /// Begins without ports.
    pub fn start_with(config: Config) -> std::io::Result<Offloader> {
        let (messages, inbox) = channel::unbounded();
        let (totals, offers) = (Arc::<Mutex<Totals>>::default(), Arc::<AtomicUsize>::default());
        let thread = Thread {
            inbox,
            table: Table::new(config),
            offers: offers.clone(),
            totals: totals.clone(),
            settling: Vec::new(),
            on_loss: None,
        };
        let thread = std::thread::Builder::new().name("offload".to_owned()).spawn(move || thread.run())?;
        Ok(Offloader { config, messages: Some(Arc::new(messages)), offers, totals, thread: Some(thread) })
    }

    /// What was done so far.
    pub fn totals(&self) -> Totals {
        self.totals.lock().expect("no panic under this lock").clone()
    }

    /// Waits until all that was said before is done, or took too long, and reads all counters.
    pub fn settle(&self) {
        self.ask(Message::Settle);
    }

    /// Says something and waits until it is done.
    fn ask(&self, message: impl FnOnce(Sender<()>) -> Message) {
        let (reply, answer) = channel::bounded(1);
        self.tell(message(reply));
        // The thread answers by dropping its end.
        answer.into_iter().for_each(|()| ());
    }

    fn tell(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // The thread ends only after the sender.
            drop(messages.send(message));
        }
    }
}

/// What the thread has.
struct Thread {
    inbox: Receiver<Message>,
    table: Table<Card>,
    offers: Arc<AtomicUsize>,
    totals: Arc<Mutex<Totals>>,
    /// Who waits until nothing is on its way, and for how long.
    settling: Vec<(Sender<()>, Instant)>,
    on_loss: Option<Box<dyn Fn() + Send>>,
}

impl Thread {
    fn run(mut self) {
        let mut next_look = Instant::now() + LOOK_EVERY;
        loop {
            let first = match (self.table.is_busy(), self.table.is_empty() && self.settling.is_empty()) {
                (true, _) => self.inbox.recv_timeout(TURN_EVERY),
                (false, true) => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                (false, false) => self.inbox.recv_deadline(next_look),
            };
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            self.take_messages(first.ok());
            self.table.turn(Cycles::now());
            let now = Instant::now();
            if !self.settling.is_empty() && (!self.table.is_busy() || self.settling.iter().any(|(_, at)| now > *at)) {
                self.table.look_at_all(Cycles::now());
            } else if now >= next_look {
                next_look = now + LOOK_EVERY;
                self.table.look(Cycles::now());
            }
            if std::mem::take(&mut self.table.has_lost) {
                self.on_loss.iter().for_each(|tell| tell());
            }
            *self.totals.lock().expect("no panic under this lock") = self.table.totals();
            let table = &self.table;
            self.settling.retain(|(_, at)| table.is_busy() && now <= *at);
        }
    }

    fn take_messages(&mut self, first: Option<Message>) {
        // The latest word on a flow counts.
        let mut offers: HashMap<u128, Box<Offer>> = HashMap::new();
        let messages: Vec<Message> = first.into_iter().chain(self.inbox.try_iter().take(MESSAGES)).collect();
        for message in messages {
            match message {
                Message::AddPort(number, port, domain) => {
                    let device_number = port.port.port_id();
                    self.table.add_port(number, *port, domain, device_number);
                }
                Message::RemovePort(number, _reply) => self.remove_port(number),
                Message::Offer(offer, is_new) => {
                    self.offers.fetch_sub(is_new.into(), Ordering::Relaxed);
                    offers.insert(offer.flow.ufid, offer);
                }
                Message::Withdraw(ufid) => {
                    offers.remove(&ufid);
                    self.table.withdraw(ufid, Cycles::now());
                }
                Message::Settle(reply) => self.settling.push((reply, Instant::now() + 2 * PATIENCE)),
                Message::Event(domain, event) => self.table.event(domain, event, Cycles::now()),
                Message::OnLoss(tell) => self.on_loss = Some(tell),
            }
        }
        if !offers.is_empty() {
            self.table.offer(offers.into_values().collect(), Cycles::now());
        }
    }

    /// Waits for the device to let go of the port's rules, for a time.
    fn remove_port(&mut self, number: PortNo) {
        let deadline = Instant::now() + PATIENCE;
        while !self.table.remove_port(number, Cycles::now()) && Instant::now() < deadline {
            self.table.turn(Cycles::now());
            std::thread::yield_now();
        }
        self.table.detach(number);
    }
}

impl Offload for Offloader {
    fn add_port(&self, number: PortNo, port: &dyn Port) -> bool {
        let Some((domain, port)) = port.flow_port().and_then(|port| Some((port.switch_domain()?, port))) else {
            return false;
        };
        let events = self.listen(&port, domain);
        self.tell(Message::AddPort(number, Box::new(CardPort { port, _events: events }), domain));
        true
    }

    fn remove_port(&self, number: PortNo) {
        self.ask(|reply| Message::RemovePort(number, reply));
    }

    fn offer(&self, offer: Offer) {
        // A flow that is in hardware and does something else by now is never passed over.
        let is_new = !offer.share.is_placed();
        if is_new && self.offers.load(Ordering::Relaxed) >= self.config.waiting {
            return;
        }
        self.offers.fetch_add(is_new.into(), Ordering::Relaxed);
        self.tell(Message::Offer(Box::new(offer), is_new));
    }

    fn withdraw(&self, ufid: u128) {
        self.tell(Message::Withdraw(ufid));
    }

    fn refresh(&self) {
        self.settle();
    }

    fn on_loss(&self, listener: Box<dyn Fn() + Send>) {
        self.tell(Message::OnLoss(listener));
    }
}

impl Offloader {
    /// Hears what the device tells of itself.
    fn listen(&self, port: &FlowPort, domain: u16) -> Option<dpdk::flow::FlowEvents> {
        let messages = Arc::downgrade(self.messages.as_ref()?);
        let tell = move |event| drop(messages.upgrade().map(|messages| messages.send(Message::Event(domain, event))));
        port.listen(tell).ok()
    }
}

impl Drop for Offloader {
    fn drop(&mut self) {
        self.messages = None;
        // The thread itself may be the last to hold this, while it tells of a loss.
        let other = |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(other) {
            drop(thread.join());
        }
    }
}
