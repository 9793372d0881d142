//! The packet path of one worker.
//!
//! ```text
//! rx burst -> extract -> cache look-up -> actions -> a batch per output -> tx -> flush
//!                             |  miss
//!                             +--> pending, upcall --> pipeline --> megaflow, by mailbox --> released in order
//! ```

use crate::capture::Capture;
use crate::limit::{Meter, Policer};
use crate::output::{BurstSink, Outputs, PortSlot, Recirculated};
use crate::stats::WorkerCounters;
use crate::upcall::{Full, PendingUpcalls, Ticket, Upcall, Upcalls};
use crate::{PortNo, limits};
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

/// A message of the control side to a worker: with [`Upcall`]s in the other direction, all that they say to each other.
pub(crate) enum Message {
    /// Adds a port.
    AddPort(PortNo, Box<PortSlot>),
    /// Removes a port; the worker's part of it goes back to be destroyed.
    RemovePort(PortNo, channel::Sender<Option<Box<PortSlot>>>),
    /// The reply to an upcall: releases its packets and those like them.
    CompleteUpcall(UpcallReply),
    /// Installs a static flow, or gives a flow other actions.
    Install(Megaflow),
    /// Removes a flow.
    Remove(Key, Mask),
    /// Adds or removes a meter.
    SetMeter(u32, Option<Arc<Meter>>),
    /// Sets the rate limit of a port.
    SetPolicer(PortNo, Option<Policer>),
    /// Starts or stops the capture of a port.
    SetCapture(PortNo, Option<Arc<Capture>>),
    /// Sets the mark by which hardware tells the packets of a flow.
    SetMark(u32, Key, Mask),
    /// Asks for the statistics of all flows.
    Sweep(Sweep),
}

/// The reply to an upcall.
pub(crate) struct UpcallReply {
    pub(crate) ticket: Ticket,
    pub(crate) flow: Megaflow,
    /// Whether the flow is installed, or serves the waiting packets alone.
    pub(crate) install: bool,
    pub(crate) narrow: bool,
}

/// A request for the statistics of all flows.
pub(crate) struct Sweep {
    /// Has room for as many flows as the control side knows of; more are left out.
    pub(crate) seen: Vec<(u128, Stats)>,
    pub(crate) cursor: u32,
    pub(crate) reply: channel::Sender<Vec<(u128, Stats)>>,
}

/// The datapath of one worker (in OVS: a PMD thread): a source that its worker polls.
pub struct DatapathWorker {
    worker: usize,
    inbox: Mailbox<Message>,
    upcalls: Arc<Upcalls>,
    outputs: Outputs,
    cache: FlowCache,
    executor: Executor,
    pending: PendingUpcalls,
    counters: Arc<WorkerCounters>,
    /// Requests for statistics: one of the revalidator, and one of an operator's dump.
    sweeps: ArrayVec<Sweep, 2>,
    keys: Box<[Miniflow; BATCH]>,
    burst: Burst,
    /// The part of [`Executor::lost_copies`] that is counted already.
    lost_copies: u64,
    /// Whether an upcall was queued in this turn.
    upcall_queued: bool,
}

impl DatapathWorker {
    pub(crate) fn new(
        worker: usize,
        inbox: Mailbox<Message>,
        upcalls: Arc<Upcalls>,
        outputs: Outputs,
        pool: Pool,
        cache: flow::Config,
        counters: Arc<WorkerCounters>,
    ) -> DatapathWorker {
        DatapathWorker {
            worker,
            inbox,
            upcalls,
            outputs,
            cache: FlowCache::new(cache),
            executor: Executor::new(pool),
            pending: PendingUpcalls::new(),
            counters,
            sweeps: ArrayVec::new(),
            keys: Box::new(std::array::from_fn(|_| Miniflow::default())),
            burst: Burst::new(),
            lost_copies: 0,
            upcall_queued: false,
        }
    }

    /// Looks up and executes the packets of `self.burst`, which came in by `in_port`.
    fn process_burst(&mut self, in_port: PortNo, now: Cycles) {
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
            // Packets of one flow often come in a run.
            let to = (from + 1..count).find(|i| found[*i] != found[from]).unwrap_or(count);
            match found[from] {
                Some(id) => {
                    // A closure is inlined where `packets.by_ref()` is not.
                    let run = std::iter::from_fn(|| packets.next()).take(to - from);
                    self.process_same_flow_run(id, from..to, run, in_port, now);
                }
                None => (from..to).zip(packets.by_ref()).for_each(|(i, packet)| self.miss(i, in_port, packet, now)),
            }
            from = to;
        }
        self.finish_burst(in_port, now);
    }

    /// Looks up the packets whose bit is not set; of the others only length and TCP flags are extracted.
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

    /// Finds the flows of the packets that hardware has looked up. Returns a bit for each of these packets.
    fn find_marked(&mut self, in_port: PortNo, found: &mut [Option<FlowId>; BATCH]) -> u32 {
        let mut marks = [0; BATCH];
        let mut any = 0;
        for (mark, packet) in marks.iter_mut().zip(&mut self.burst) {
            *mark = packet.take_mark().unwrap_or(0);
            any |= *mark;
        }
        if any == 0 { 0 } else { self.cache.lookup_marked(in_port, &marks[..self.burst.len()], found) }
    }

    /// Executes successive packets of one flow, whose keys are `keys`.
    #[inline]
    fn process_same_flow_run(
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
        let mut sink = BurstSink { outputs: &mut self.outputs, from: in_port, now };
        self.executor.run_burst(packets, &Metadata { in_port, ..Metadata::default() }, actions, &mut sink);
    }

    /// Ends a burst: processes recirculated packets, and counts copies that were not made.
    fn finish_burst(&mut self, from: PortNo, now: Cycles) {
        for _ in 0..limits::RECIRCULATIONS {
            if self.outputs.recirculated.is_empty() {
                break;
            }
            for recirculated in std::mem::take(&mut self.outputs.recirculated) {
                self.process_recirculated(recirculated, from, now);
            }
        }
        while let Some(left) = self.outputs.recirculated.pop() {
            self.outputs.count_drop(from, &left.packet, DropReason::RecirculatedFull);
        }
        let lost = self.executor.lost_copies() - std::mem::replace(&mut self.lost_copies, self.executor.lost_copies());
        if lost > 0 {
            self.outputs.counters(from).add_drops(DropReason::NoBuffer, lost);
        }
    }

    fn process_recirculated(&mut self, recirculated: Recirculated, from: PortNo, now: Cycles) {
        let Recirculated { packet, in_port, recirc_id, packet_type, rest } = recirculated;
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
            self.executor.run(packet, &metadata, actions, &mut BurstSink { outputs: &mut self.outputs, from, now });
        }
    }

    /// Queues a packet that no megaflow matches, and makes an upcall if the packet is the first of its flow.
    #[cold]
    fn miss(&mut self, i: usize, in_port: PortNo, packet: Packet, now: Cycles) {
        let key = &self.keys[i];
        let Some(slot) = self.outputs.slot(in_port) else { return };
        if let Some(at) = self.pending.find(key) {
            if let Err(Full(packet)) = self.pending.append(at, packet) {
                self.outputs.count_drop(in_port, &packet, DropReason::PendingFull);
            }
            return;
        }
        if slot.pending >= limits::PENDING_UPCALLS_PER_PORT {
            return self.outputs.count_drop(in_port, &packet, DropReason::UpcallFull);
        }
        if !slot.upcalls.as_mut().is_none_or(|bucket| bucket.take(now)) {
            return self.outputs.count_drop(in_port, &packet, DropReason::UpcallLimited);
        }
        match self.pending.insert(key, in_port, packet) {
            Ok(ticket) => {
                slot.pending += 1;
                slot.counters.count(|c| &c.upcalls);
                let key = *key.key();
                self.send_upcall(ticket, key, false);
            }
            Err(Full(packet)) => self.outputs.count_drop(in_port, &packet, DropReason::UpcallFull),
        }
    }

    fn send_upcall(&mut self, ticket: Ticket, key: Key, narrow: bool) {
        let queued = self.upcalls.push(Upcall { worker: self.worker, ticket, key, narrow });
        debug_assert!(queued, "there is room for all pending upcalls");
        self.upcall_queued = true;
    }

    fn handle_message(&mut self, message: Message, now: Cycles) {
        match message {
            Message::AddPort(port, slot) => self.outputs.add(port, slot),
            Message::RemovePort(port, reply) => {
                while let Some((_, packets)) = self.pending.take_matching(|of, _| of == port) {
                    drop(packets);
                }
                let _ = reply.try_send(self.outputs.remove(port)); // the caller waits for it
            }
            Message::CompleteUpcall(reply) => self.complete_upcall(reply, now),
            Message::Install(flow) => {
                let (key, mask) = (flow.key, flow.mask);
                if self.install(flow).is_ok() {
                    self.execute_matching(&key, &mask, now);
                }
            }
            Message::Remove(key, mask) => {
                if let Some(id) = self.cache.find(&key, &mask) {
                    let _ = self.cache.remove(id); // the sweeps have told its statistics
                }
            }
            Message::SetMeter(id, meter) => self.outputs.set_meter(id, meter),
            Message::SetPolicer(port, policer) => {
                if let Some(slot) = self.outputs.slot(port) {
                    slot.policer = policer;
                }
            }
            Message::SetCapture(port, capture) => {
                if let Some(slot) = self.outputs.slot(port) {
                    slot.capture = capture;
                }
            }
            Message::SetMark(mark, key, mask) => {
                if let Some(id) = self.cache.find(&key, &mask) {
                    // Flows that do not match on a port take no mark: their packets are looked up.
                    self.cache.set_mark(mark, id);
                }
            }
            Message::Sweep(sweep) => {
                // Sweeps come now and then, as ranking should.
                self.cache.rank();
                let _ = self.sweeps.try_push(sweep); // a third request fails: its sender sees that
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

    /// Installs the flow of an upcall's reply, and executes the packets that waited for it.
    fn complete_upcall(&mut self, reply: UpcallReply, now: Cycles) {
        let Some(key) = self.pending.key(reply.ticket).copied() else { return };
        let Megaflow { mask, ref actions, .. } = reply.flow;
        let (masked, actions) = (reply.flow.key, actions.clone());
        let installed = reply.install.then(|| self.install(reply.flow));
        if let Some(Err(InsertError::TooManyMasks)) = installed
            && !reply.narrow
        {
            return self.send_upcall(reply.ticket, key, true);
        }
        if let Some((port, packets)) = self.pending.take(reply.ticket) {
            self.execute_pending(port, packets, &actions, now);
        }
        match installed {
            Some(Ok(())) => self.execute_matching(&masked, &mask, now),
            Some(Err(_)) => self.counters.count(|c| &c.not_installed),
            None => {}
        }
    }

    /// Executes packets of other pending upcalls that the new flow matches: they go before later packets, which hit the cache.
    fn execute_matching(&mut self, key: &Key, mask: &Mask, now: Cycles) {
        while let Some((port, packets)) = self.pending.take_matching(|_, waiting| waiting.matches(key, mask)) {
            let Some(actions) = self.cache.find(key, mask).and_then(|id| self.cache.actions(id)).cloned() else {
                continue;
            };
            self.execute_pending(port, packets, &actions, now);
        }
    }

    fn execute_pending(
        &mut self,
        port: PortNo,
        packets: impl IntoIterator<Item = Packet>,
        actions: &[Action],
        now: Cycles,
    ) {
        if let Some(slot) = self.outputs.slot(port) {
            slot.pending = slot.pending.saturating_sub(1);
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
            self.executor.run(
                packet,
                &metadata,
                actions,
                &mut BurstSink { outputs: &mut self.outputs, from: port, now },
            );
        }
        self.finish_burst(port, now);
    }

    /// Goes on with the oldest request for statistics.
    fn report_flow_stats(&mut self) {
        let Some(sweep) = self.sweeps.first_mut() else { return };
        let seen = &mut sweep.seen;
        let next = self.cache.sweep(sweep.cursor, limits::SWEEP_FLOWS, |ufid, stats| {
            if seen.len() < seen.capacity() {
                seen.push((ufid, *stats));
            }
        });
        match next {
            Some(next) => sweep.cursor = next,
            None => {
                let Sweep { seen, reply, .. } = self.sweeps.remove(0);
                let _ = reply.try_send(seen); // the sender may have ended
            }
        }
    }
}

impl Source for DatapathWorker {
    fn poll(&mut self, now: Cycles) -> usize {
        let mut work = 0;
        // Replies first: packets that wait go before those that come now.
        for _ in 0..limits::MESSAGES_PER_TURN {
            let Some(message) = self.inbox.take() else { break };
            self.handle_message(message, now);
            work += 1;
        }
        work += self.outputs.take_handed();
        let mut since = if work > 0 { Cycles::now() } else { now };
        for at in 0..self.outputs.port_count() {
            let Some(in_port) = self.outputs.receive(at, &mut self.burst, now) else { continue };
            // Receiving was work, even where no packet was admitted.
            work += self.burst.len().max(1);
            self.process_burst(in_port, now);
            let until = Cycles::now();
            self.outputs.add_cycles(in_port, until.since(since));
            since = until;
        }
        if work > 0 {
            self.outputs.flush();
        }
        if std::mem::take(&mut self.upcall_queued) {
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
        self.report_flow_stats();
        self.counters.publish(&self.cache, self.pending.len());
    }
}
