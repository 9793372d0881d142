//! The thread that puts rules into devices.

use crate::Totals;
use crate::table::Table;
use clock::Cycles;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use dpdk::flow::FlowPort;
use flow::PortNo;
use port::Port;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use switch::{Offer, Offload};

/// Time between two looks at the counters of devices.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Messages that are taken at a time: offers among them in order of what they have seen.
const MESSAGES: usize = 1024;

/// Hardware behind the ports of the switch. A thread of its own talks to the devices, since a device may take its time.
pub struct Offloader {
    messages: Option<Sender<Message>>,
    totals: Arc<Mutex<Totals>>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    AddPort(PortNo, FlowPort, u16),
    RemovePort(PortNo, Sender<()>),
    Offer(Box<Offer>),
    Withdraw(u128),
    Settle(Sender<()>),
}

impl Offloader {
    /// Begins without ports.
    pub fn start() -> std::io::Result<Offloader> {
        let (messages, inbox) = channel::unbounded();
        let totals = Arc::<Mutex<Totals>>::default();
        let shared = totals.clone();
        let thread = std::thread::Builder::new().name("offload".to_owned()).spawn(move || run(&inbox, &shared))?;
        Ok(Offloader { messages: Some(messages), totals, thread: Some(thread) })
    }

    /// What was done so far.
    pub fn totals(&self) -> Totals {
        self.totals.lock().expect("no panic under this lock").clone()
    }

    /// Waits until all that was said before is done, and looks at the counters once more.
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

fn run(inbox: &Receiver<Message>, totals: &Mutex<Totals>) {
    let mut table = Table::default();
    let mut next_look = Instant::now() + LOOK_EVERY;
    loop {
        let first = match table.is_empty() {
            true => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => inbox.recv_deadline(next_look),
        };
        if matches!(first, Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        let mut settled = Vec::new();
        // The latest word on a flow counts.
        let mut offers = HashMap::new();
        for message in first.into_iter().chain(inbox.try_iter().take(MESSAGES)) {
            match message {
                Message::AddPort(number, port, switch_domain) => table.add_port(number, port, switch_domain),
                Message::RemovePort(number, _reply) => table.remove_port(number),
                Message::Offer(offer) => drop(offers.insert(offer.flow.ufid, *offer)),
                Message::Withdraw(ufid) => {
                    offers.remove(&ufid);
                    table.withdraw(ufid, Cycles::now());
                }
                Message::Settle(reply) => settled.push(reply),
            }
        }
        table.offer(offers.into_values().collect(), Cycles::now());
        if Instant::now() >= next_look || !settled.is_empty() {
            table.look(Cycles::now());
            next_look = Instant::now() + LOOK_EVERY;
        }
        *totals.lock().expect("no panic under this lock") = table.totals();
        drop(settled);
    }
}

impl Offload for Offloader {
    fn add_port(&self, number: PortNo, port: &dyn Port) -> bool {
        let port = port.flow_port().and_then(|port| Some((port.switch_domain()?, port)));
        let has_switch = port.is_some();
        port.into_iter().for_each(|(domain, port)| self.tell(Message::AddPort(number, port, domain)));
        has_switch
    }

    fn remove_port(&self, number: PortNo) {
        self.ask(|reply| Message::RemovePort(number, reply));
    }

    fn offer(&self, offer: Offer) {
        self.tell(Message::Offer(Box::new(offer)));
    }

    fn withdraw(&self, ufid: u128) {
        self.tell(Message::Withdraw(ufid));
    }
}

impl Drop for Offloader {
    fn drop(&mut self) {
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
