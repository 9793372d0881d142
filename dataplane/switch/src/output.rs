//! What a worker has of each port, and the way of a packet out.

use crate::handover::Handover;
use crate::limit::TokenBucket;
use crate::stats::PathCounters;
use crate::{Meter, PortNo};
use clock::Cycles;
use flow::{Action, Miniflow};
use packet::{Burst, Packet, Pool};
use port::PortShard;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A port's part on one worker.
pub(crate) struct PortSlot {
    /// Tells ports apart that have the same number, one after the other.
    pub(crate) instance: u32,
    pub(crate) shard: Box<dyn PortShard>,
    /// The upcalls that it may make.
    pub(crate) upcalls: Option<TokenBucket>,
    /// Flows of it that wait for the translation.
    pub(crate) parked: u32,
    pub(crate) counters: Arc<PathCounters>,
    /// A bit for each worker that has a queue to send by. Written when that changes, by the worker of the bit.
    pub(crate) senders: Arc<AtomicU64>,
    /// The bit of this worker is set.
    pub(crate) sends: bool,
    /// What goes out by it next.
    pub(crate) out: Burst,
}

/// The ports of one worker.
pub(crate) struct Outputs {
    worker: usize,
    /// By number.
    slots: Vec<Option<Box<PortSlot>>>,
    /// The numbers of those that are there.
    present: Vec<PortNo>,
    handover: Handover,
    meters: Vec<Option<(Arc<Meter>, u64)>>,
    pool: Pool,
    /// For what came in by a port that is gone since.
    orphans: Arc<PathCounters>,
}

impl Outputs {
    pub(crate) fn new(worker: usize, handover: Handover, pool: Pool) -> Outputs {
        Outputs {
            worker,
            slots: Vec::new(),
            present: Vec::new(),
            handover,
            meters: Vec::new(),
            pool,
            orphans: Arc::default(),
        }
    }

    pub(crate) fn slot(&mut self, port: PortNo) -> Option<&mut PortSlot> {
        self.slots.get_mut(port as usize)?.as_deref_mut()
    }

    pub(crate) fn add(&mut self, port: PortNo, slot: Box<PortSlot>) {
        let at = port as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = Some(slot);
        self.present.push(port);
        self.announce(port);
    }

    pub(crate) fn remove(&mut self, port: PortNo) -> Option<Box<PortSlot>> {
        let mut slot = self.slots.get_mut(port as usize)?.take()?;
        self.present.retain(|other| *other != port);
        slot.senders.fetch_and(!(1 << self.worker), Ordering::Relaxed);
        slot.out.clear();
        Some(slot)
    }

    pub(crate) fn set_meter(&mut self, id: u32, meter: Option<Arc<Meter>>) {
        let at = id as usize;
        if self.meters.len() <= at {
            self.meters.resize_with(at + 1, || None);
        }
        self.meters[at] = meter.map(|meter| (meter, 0));
    }

    /// How many ports there are to receive from.
    pub(crate) fn polled(&self) -> usize {
        self.present.len()
    }

    /// Receives from one of them. `None` when nothing came.
    #[inline]
    pub(crate) fn rx(&mut self, at: usize, burst: &mut Burst) -> Option<PortNo> {
        let port = self.present[at];
        let slot = self.slots[port as usize].as_deref_mut()?;
        (slot.shard.rx(burst) > 0).then_some(port)
    }

    /// Takes what other workers handed over. Returns how many packets.
    pub(crate) fn take_handed(&mut self) -> usize {
        let mut taken = 0;
        while let Some((port, instance, packet)) = self.handover.take() {
            taken += 1;
            let Some(slot) = self.slot(port).filter(|slot| slot.instance == instance) else {
                self.orphans.count(|c| &c.no_port);
                continue;
            };
            slot.out.push(packet);
            if slot.out.is_full() {
                slot.shard.tx(&mut slot.out);
            }
        }
        // Sent here even if the queue has left meanwhile: the port counts it. Packets are not handed on twice.
        for port in self.present.iter().filter(|_| taken > 0) {
            let Some(slot) = self.slots[*port as usize].as_deref_mut() else { continue };
            if !slot.out.is_empty() {
                slot.shard.tx(&mut slot.out);
            }
        }
        taken
    }

    /// Queues a packet for a port; `counters` are of the port that it came in by.
    #[inline]
    fn output(&mut self, port: PortNo, packet: Packet, from: PortNo) {
        match self.slots.get_mut(port as usize).and_then(Option::as_deref_mut) {
            Some(slot) => {
                slot.out.push(packet);
                if slot.out.is_full() {
                    self.send(port);
                }
            }
            None => self.counters(from).count(|c| &c.no_port),
        }
    }

    fn counters(&self, port: PortNo) -> &PathCounters {
        let slot = self.slots.get(port as usize).and_then(Option::as_deref);
        slot.map_or(&self.orphans, |slot| &slot.counters)
    }

    /// Sends what is queued for a port, or hands it to a worker that can.
    fn send(&mut self, port: PortNo) {
        let Some(slot) = self.slots[port as usize].as_deref_mut() else { return };
        let senders = slot.senders.load(Ordering::Relaxed) & !(1 << self.worker);
        if slot.shard.can_tx() || senders == 0 {
            slot.shard.tx(&mut slot.out);
            return;
        }
        let to = senders.trailing_zeros() as usize;
        for packet in slot.out.drain(..) {
            if !self.handover.give(to, (port, slot.instance, packet)) {
                slot.counters.count(|c| &c.handed_full);
            }
        }
    }

    /// Sends all that is queued, and publishes it. Once a turn with work in it.
    pub(crate) fn flush(&mut self) {
        for at in 0..self.present.len() {
            let port = self.present[at];
            let waiting = self.slots[port as usize].as_deref().is_some_and(|slot| !slot.out.is_empty());
            if waiting {
                self.send(port);
            }
            if let Some(slot) = self.slots[port as usize].as_deref_mut() {
                slot.shard.flush();
            }
        }
        self.handover.notify();
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.present.iter().fold(!self.handover.is_empty(), |ready, port| {
            self.slots[*port as usize].as_deref_mut().is_some_and(|slot| slot.shard.arm()) | ready
        })
    }

    pub(crate) fn disarm(&mut self) {
        for port in &self.present {
            self.slots[*port as usize].as_deref_mut().into_iter().for_each(|slot| slot.shard.disarm());
        }
    }

    pub(crate) fn quiesce(&mut self) {
        for at in 0..self.present.len() {
            let port = self.present[at];
            self.slots[port as usize].as_deref_mut().into_iter().for_each(|slot| slot.shard.quiesce());
            self.announce(port);
        }
    }

    /// Tells the other workers whether this one can send by the port.
    fn announce(&mut self, port: PortNo) {
        let worker = self.worker;
        let Some(slot) = self.slot(port) else { return };
        let sends = slot.shard.can_tx();
        if sends != slot.sends {
            slot.sends = sends;
            let bit = 1 << worker;
            if sends {
                slot.senders.fetch_or(bit, Ordering::Relaxed);
            } else {
                slot.senders.fetch_and(!bit, Ordering::Relaxed);
            }
        }
    }
}

impl Outputs {
    /// Carries the actions of a flow out on a packet that came in by `from`.
    #[inline]
    pub(crate) fn execute(&mut self, actions: &[Action], packet: Packet, _: &Miniflow, from: PortNo, now: Cycles) {
        // Most packets go out by one port as they are.
        if let [Action::Output(port)] = actions {
            return self.output(*port, packet, from);
        }
        self.execute_all(actions, packet, from, now);
    }

    fn execute_all(&mut self, actions: &[Action], packet: Packet, from: PortNo, now: Cycles) {
        let mut packet = Some(packet);
        for (i, action) in actions.iter().enumerate() {
            let Some(this) = &mut packet else { return };
            match action {
                Action::Output(port) => {
                    let last = i + 1 == actions.len();
                    let copy = if last { packet.take() } else { this.copy(&self.pool) };
                    match copy {
                        Some(copy) => self.output(*port, copy, from),
                        None => self.counters(from).count(|c| &c.no_buffer),
                    }
                }
                Action::Meter(id) => {
                    let meter = self.meters.get_mut(*id as usize).and_then(Option::as_mut);
                    if !meter.is_none_or(|(meter, credit)| meter.pass(credit, now)) {
                        return self.counters(from).count(|c| &c.metered);
                    }
                }
                Action::PopVlan => {
                    let data = this.data_mut();
                    if data.len() >= 18 {
                        data.copy_within(0..12, 4);
                        this.trim_front(4);
                    }
                }
                Action::PushVlan { tpid, tci } => {
                    if let Some(data) = this.prepend(4) {
                        data.copy_within(4..16, 0);
                        data[12..14].copy_from_slice(&tpid.to_be_bytes());
                        data[14..16].copy_from_slice(&(tci & 0xefff).to_be_bytes());
                    }
                }
                _ => return,
            }
        }
    }
}
