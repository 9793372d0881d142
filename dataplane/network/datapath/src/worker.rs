//! The packet path of one worker.
//!
//! ```text
//! rx burst -> extract -> cache look-up -> actions -> a batch per output -> tx -> flush
//!                             |  miss
//!                             +--> parked, upcall --> translation --> megaflow, by mailbox --> released in order
//! ```

use crate::capture::Capture;
use crate::limit::{Meter, Policer};
use crate::output::{Again, Outputs, PortSlot, Way};
use crate::stats::WorkerCounters;
use crate::upcall::{Parked, Parking, Ticket, Upcall, Upcalls};
use crate::{PARKED_FLOWS_OF_A_PORT, PortNo};
use arrayvec::ArrayVec;
use clock::Cycles;
use crossbeam::channel;
use engine::{Mailbox, Source};
use flow::execute::Executor;
use flow::{
    Action, BATCH, DropReason, FlowCache, FlowId, InsertError, Key, Mask, Megaflow, Metadata, Miniflow, Stats, extract,
    extract_counted,
};
use packet::{Burst, Packet, Pool};
use std::ops::Range;
use std::sync::Arc;

/// Messages that a worker takes a turn.
const MESSAGES: usize = 64;
/// Flows whose statistics a worker tells at one quiescent point.
const SWEEP: usize = 512;
/// How often a packet may be recirculated.
const RECIRCULATIONS: usize = 8;

/// What the control side tells a worker.
pub(crate) enum Message {
    /// A port is there.
    AddPort(PortNo, Box<PortSlot>),
    /// A port is gone; what the worker had of it goes back to be destroyed.
    RemovePort(PortNo, channel::Sender<Option<Box<PortSlot>>>),
    /// What becomes of the packets that wait for this answer, and of those like them.
    Resolve(Resolve),
    /// A flow of an operator, or another translation of a flow that is there.
    Install(Megaflow),
    /// A flow is no longer right.
    Remove(Key, Mask),
    /// A meter is there, or gone.
    SetMeter(u32, Option<Arc<Meter>>),
    /// A port's limits are others.
    SetPolicer(PortNo, Option<Policer>),
    /// Somebody looks at a port's packets, or no longer does.
    SetCapture(PortNo, Option<Arc<Capture>>),
    /// Hardware marks packets of this flow with this.
    SetMark(u32, Key, Mask),
    /// Statistics are wanted.
    Sweep(Sweep),
}

/// The answer to an upcall.
pub(crate) struct Resolve {
    pub(crate) ticket: Ticket,
    pub(crate) flow: Megaflow,
    /// Whether the flow is for later packets too, or for those that wait alone.
    pub(crate) install: bool,
    pub(crate) narrow: bool,
}

/// A request for the statistics of all flows.
pub(crate) struct Sweep {
    /// Has room for as many flows as the control side knows of; what is beyond is left out.
    pub(crate) seen: Vec<(u128, Stats)>,
    pub(crate) cursor: u32,
    pub(crate) reply: channel::Sender<Vec<(u128, Stats)>>,
}

/// The switch on one worker.
pub(crate) struct Datapath {
    worker: usize,
    inbox: Mailbox<Message>,
    upcalls: Arc<Upcalls>,
    outputs: Outputs,
    cache: FlowCache,
    executor: Executor,
    parking: Parking,
    counters: Arc<WorkerCounters>,
    /// Requests for statistics: that of the translator, and that of somebody who looks.
    sweeps: ArrayVec<Sweep, 2>,
    keys: Box<[Miniflow; BATCH]>,
    burst: Burst,
    /// Of [`Executor::lost_copies`], those that are counted already.
    lost_copies: u64,
    /// An upcall was queued in this turn.
    asked: bool,
}

impl Datapath {
    pub(crate) fn new(
        worker: usize,
        inbox: Mailbox<Message>,
        upcalls: Arc<Upcalls>,
        outputs: Outputs,
        pool: Pool,
        cache: flow::Config,
        counters: Arc<WorkerCounters>,
    ) -> Datapath {
        Datapath {
            worker,
            inbox,
            upcalls,
            outputs,
            cache: FlowCache::new(cache),
            executor: Executor::new(pool),
            parking: Parking::new(),
            counters,
            sweeps: ArrayVec::new(),
            keys: Box::new(std::array::from_fn(|_| Miniflow::default())),
            burst: Burst::new(),
            lost_copies: 0,
            asked: false,
        }
    }

    /// Carries the packets of `self.burst`, which came in by `in_port`, to their end.
    fn carry(&mut self, in_port: PortNo, now: Cycles) {
        let mut found = [None; BATCH];
        let count = self.burst.len();
        let marked = if self.cache.has_marks() { self.find_marked(in_port, &mut found) } else { 0 };
        if marked == 0 {
            for (packet, key) in self.burst.iter().zip(self.keys.iter_mut()) {
                let metadata = Metadata { in_port, packet_len: packet.len() as u32, ..Metadata::default() };
                extract(packet.data(), &metadata, key);
            }
            self.cache.lookup_batch(&mut self.keys[..count], &mut found);
        } else {
            self.look_up_unmarked(in_port, marked, &mut found);
        }
        let mut burst = std::mem::take(&mut self.burst);
        let mut packets = burst.drain(..);
        let mut from = 0;
        while from < count {
            // Packets of one flow come in trains.
            let to = (from + 1..count).find(|i| found[*i] != found[from]).unwrap_or(count);
            match found[from] {
                Some(id) => self.train(id, from..to, packets.by_ref().take(to - from), in_port, now),
                None => (from..to).zip(packets.by_ref()).for_each(|(i, packet)| self.miss(i, in_port, packet, now)),
            }
            from = to;
        }
        self.settle(in_port, now);
    }

    /// Looks up the packets whose bit is not set; of the others only what is counted is of interest.
    fn look_up_unmarked(&mut self, in_port: PortNo, marked: u32, found: &mut [Option<FlowId>; BATCH]) {
        for (i, (packet, key)) in self.burst.iter().zip(self.keys.iter_mut()).enumerate() {
            let metadata = Metadata { in_port, packet_len: packet.len() as u32, ..Metadata::default() };
            if marked >> i & 1 == 0 {
                extract(packet.data(), &metadata, key);
            } else {
                extract_counted(packet.data(), &metadata, key);
            }
        }
        self.cache.lookup_unmarked(&mut self.keys[..self.burst.len()], marked, found);
    }

    /// Finds the flows of those packets that hardware has looked up. Returns a bit for each of them.
    fn find_marked(&mut self, in_port: PortNo, found: &mut [Option<FlowId>; BATCH]) -> u32 {
        let mut marks = [0; BATCH];
        let mut any = 0;
        for (mark, packet) in marks.iter_mut().zip(&mut self.burst) {
            *mark = packet.take_mark().unwrap_or(0);
            any |= *mark;
        }
        if any == 0 { 0 } else { self.cache.lookup_marked(in_port, &marks[..self.burst.len()], found) }
    }

    /// Carries successive packets of one flow, whose keys are `keys`.
    #[inline]
    fn train(
        &mut self,
        id: FlowId,
        keys: Range<usize>,
        packets: impl Iterator<Item = Packet>,
        in_port: PortNo,
        now: Cycles,
    ) {
        let keys = &self.keys[keys];
        let bytes = keys.iter().map(|key| u64::from(key.packet_len())).sum();
        let tcp_flags = keys.iter().fold(0, |flags, key| flags | key.tcp_flags());
        self.cache.record(id, keys.len() as u64, bytes, tcp_flags, now);
        let actions = self.cache.actions(id).map_or(&[][..], |actions| actions);
        let mut way = Way { outputs: &mut self.outputs, from: in_port, now };
        self.executor.run_burst(packets, &Metadata { in_port, ..Metadata::default() }, actions, &mut way);
    }

    /// After the actions of a burst: looks up again what is to be, and counts copies that were not made.
    fn settle(&mut self, from: PortNo, now: Cycles) {
        for _ in 0..RECIRCULATIONS {
            if self.outputs.again.is_empty() {
                break;
            }
            for again in std::mem::take(&mut self.outputs.again) {
                self.carry_again(again, from, now);
            }
        }
        while let Some(left) = self.outputs.again.pop() {
            self.outputs.count_drop(from, &left.packet, DropReason::RecirculatedFull);
        }
        let lost = self.executor.lost_copies() - std::mem::replace(&mut self.lost_copies, self.executor.lost_copies());
        if lost > 0 {
            self.outputs.counters(from).add_drops(DropReason::NoBuffer, lost);
        }
    }

    fn carry_again(&mut self, again: Again, from: PortNo, now: Cycles) {
        let Again { packet, in_port, recirc_id, packet_type, rest } = again;
        let packet_len = packet.len() as u32;
        let metadata = Metadata { in_port, recirc_id, packet_len, packet_type, rest: rest.as_ref() };
        let key = &mut self.keys[..1];
        extract(packet.data(), &metadata, &mut key[0]);
        let mut found = [None; BATCH];
        self.cache.lookup_batch(key, &mut found);
        let Some(id) = found[0] else {
            return self.outputs.count_drop(from, &packet, DropReason::RecirculatedMiss);
        };
        self.cache.record(id, 1, packet_len.into(), key[0].tcp_flags(), now);
        if let Some(actions) = self.cache.actions(id) {
            self.executor.run(packet, &metadata, actions, &mut Way { outputs: &mut self.outputs, from, now });
        }
    }

    /// Parks a packet that no megaflow matches, and asks for one.
    #[cold]
    fn miss(&mut self, i: usize, in_port: PortNo, packet: Packet, now: Cycles) {
        let key = &self.keys[i];
        let Some(slot) = self.outputs.slot(in_port) else { return };
        if let Some(at) = self.parking.find(key) {
            if let Parked::Refused(packet) = self.parking.park_behind(at, packet) {
                self.outputs.count_drop(in_port, &packet, DropReason::PendingFull);
            }
            return;
        }
        if slot.parked >= PARKED_FLOWS_OF_A_PORT {
            return self.outputs.count_drop(in_port, &packet, DropReason::UpcallFull);
        }
        if !slot.upcalls.as_mut().is_none_or(|bucket| bucket.take(now)) {
            return self.outputs.count_drop(in_port, &packet, DropReason::UpcallLimited);
        }
        match self.parking.park(key, in_port, packet) {
            Parked::First(ticket) => {
                slot.parked += 1;
                slot.counters.count(|c| &c.upcalls);
                let key = *key.key();
                self.ask(ticket, key, false);
            }
            Parked::Refused(packet) => self.outputs.count_drop(in_port, &packet, DropReason::UpcallFull),
            Parked::Behind => {}
        }
    }

    fn ask(&mut self, ticket: Ticket, key: Key, narrow: bool) {
        let asked = self.upcalls.push(Upcall { worker: self.worker, ticket, key, narrow });
        debug_assert!(asked, "there is room for all that is parked");
        self.asked = true;
    }

    fn take(&mut self, message: Message, now: Cycles) {
        match message {
            Message::AddPort(port, slot) => self.outputs.add(port, slot),
            Message::RemovePort(port, reply) => {
                while let Some((_, packets)) = self.parking.release_where(|of, _| of == port) {
                    drop(packets);
                }
                drop(reply.try_send(self.outputs.remove(port)));
            }
            Message::Resolve(answer) => self.resolve(answer, now),
            Message::Install(flow) => {
                let (key, mask) = (flow.key, flow.mask);
                if self.install(flow).is_ok() {
                    self.release_like(&key, &mask, now);
                }
            }
            Message::Remove(key, mask) => {
                if let Some(id) = self.cache.find(&key, &mask) {
                    drop(self.cache.remove(id));
                }
            }
            Message::SetMeter(id, meter) => self.outputs.set_meter(id, meter),
            Message::SetPolicer(port, policer) => {
                self.outputs.slot(port).into_iter().for_each(|slot| slot.policer = policer.clone());
            }
            Message::SetCapture(port, capture) => {
                self.outputs.slot(port).into_iter().for_each(|slot| slot.capture = capture.clone());
            }
            Message::SetMark(mark, key, mask) => {
                if let Some(id) = self.cache.find(&key, &mask) {
                    // Flows of no certain port are looked up, whatever hardware says.
                    self.cache.set_mark(mark, id);
                }
            }
            Message::Sweep(sweep) => {
                // As good a time as any: it comes once in a while.
                self.cache.rank();
                // A third one goes unanswered: its sender sees that.
                drop(self.sweeps.try_push(sweep));
            }
        }
    }

    fn install(&mut self, flow: Megaflow) -> Result<(), InsertError> {
        let actions = flow.actions.clone();
        match self.cache.insert(flow) {
            Ok(_) => Ok(()),
            Err(InsertError::Exists(id)) => self.cache.modify(id, actions).map(|_| ()).map_err(InsertError::from),
            Err(error) => Err(error),
        }
    }

    /// An upcall is answered: the flow is installed, and the packets that waited go on.
    fn resolve(&mut self, answer: Resolve, now: Cycles) {
        let Some(key) = self.parking.key(answer.ticket).copied() else { return };
        let Megaflow { mask, ref actions, .. } = answer.flow;
        let (masked, actions) = (answer.flow.key, actions.clone());
        let installed = answer.install.then(|| self.install(answer.flow));
        if let Some(Err(InsertError::TooManyMasks)) = installed
            && !answer.narrow
        {
            return self.ask(answer.ticket, key, true);
        }
        if let Some((port, packets)) = self.parking.release(answer.ticket) {
            self.run(port, packets, &actions, now);
        }
        match installed {
            Some(Ok(())) => self.release_like(&masked, &mask, now),
            Some(Err(_)) => self.counters.count(|c| &c.not_installed),
            None => {}
        }
    }

    /// Later packets like these hit the cache: those that wait for another answer must go first.
    fn release_like(&mut self, key: &Key, mask: &Mask, now: Cycles) {
        while let Some((port, packets)) = self.parking.release_where(|_, waiting| waiting.matches(key, mask)) {
            let Some(actions) = self.cache.find(key, mask).and_then(|id| self.cache.actions(id)).cloned() else {
                continue;
            };
            self.run(port, packets, &actions, now);
        }
    }

    fn run(&mut self, port: PortNo, packets: impl IntoIterator<Item = Packet>, actions: &[Action], now: Cycles) {
        if let Some(slot) = self.outputs.slot(port) {
            slot.parked = slot.parked.saturating_sub(1);
        }
        for packet in packets {
            let metadata = Metadata { in_port: port, packet_len: packet.len() as u32, ..Metadata::default() };
            let keys = &mut self.keys[..1];
            extract(packet.data(), &metadata, &mut keys[0]);
            let mut found = [None; BATCH];
            self.cache.lookup_batch(keys, &mut found);
            if let Some(id) = found[0] {
                self.cache.record(id, 1, packet.len() as u64, keys[0].tcp_flags(), now);
            }
            let metadata = Metadata { in_port: port, ..Metadata::default() };
            self.executor.run(packet, &metadata, actions, &mut Way { outputs: &mut self.outputs, from: port, now });
        }
        self.settle(port, now);
    }

    /// Goes on with telling statistics.
    fn tell(&mut self) {
        let Some(sweep) = self.sweeps.first_mut() else { return };
        let seen = &mut sweep.seen;
        let next = self.cache.sweep(sweep.cursor, SWEEP, |ufid, stats| {
            if seen.len() < seen.capacity() {
                seen.push((ufid, *stats));
            }
        });
        match next {
            Some(next) => sweep.cursor = next,
            None => {
                let Sweep { seen, reply, .. } = self.sweeps.remove(0);
                drop(reply.try_send(seen));
            }
        }
    }
}

impl Source for Datapath {
    fn poll(&mut self, now: Cycles) -> usize {
        let mut work = 0;
        // First what was decided: packets that wait go before those that come now.
        for _ in 0..MESSAGES {
            let Some(message) = self.inbox.take() else { break };
            self.take(message, now);
            work += 1;
        }
        work += self.outputs.take_handed();
        let mut since = if work > 0 { Cycles::now() } else { now };
        for at in 0..self.outputs.polled() {
            let Some(in_port) = self.outputs.rx(at, &mut self.burst, now) else { continue };
            // It was work, too, where none was admitted.
            work += self.burst.len().max(1);
            self.carry(in_port, now);
            let until = Cycles::now();
            self.outputs.spend(in_port, until.since(since));
            since = until;
        }
        if work > 0 {
            self.outputs.flush();
        }
        if std::mem::take(&mut self.asked) {
            self.upcalls.notify();
        }
        work
    }

    fn arm(&mut self) -> bool {
        self.outputs.arm() | !self.inbox.is_empty() | !self.sweeps.is_empty()
    }

    fn disarm(&mut self) {
        self.outputs.disarm();
    }

    fn quiesce(&mut self) {
        self.outputs.quiesce();
        self.tell();
        self.counters.publish(&self.cache, self.parking.len());
    }
}
