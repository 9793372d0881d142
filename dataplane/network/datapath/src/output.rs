//! The ports of one worker, and the output of packets.

use crate::PortNo;
use crate::capture::{Capture, Observed};
use crate::handover::Handover;
use crate::limit::{Meter, Policer, TokenBucket};
use crate::stats::{LoadCounters, PathCounters};
use arrayvec::ArrayVec;
use clock::Cycles;
use engine::{AtomicWorkerSet, WorkerSet};
use flow::action::Userspace;
use flow::execute::Sink;
use flow::{DropReason, Key, Metadata};
use packet::{BURST, Burst, Packet};
use port::PortShard;
use std::sync::Arc;

/// A port's part on one worker.
pub(crate) struct PortSlot {
    /// Tells apart ports that have the same number one after the other.
    pub(crate) instance: u32,
    pub(crate) shard: Box<dyn PortShard>,
    /// The upcall rate limit.
    pub(crate) upcalls: Option<TokenBucket>,
    /// The rate limit of packets that come in by the port.
    pub(crate) policer: Option<Policer>,
    /// The capture of the port.
    pub(crate) capture: Option<Arc<Capture>>,
    /// Pending upcalls of the port.
    pub(crate) pending: u32,
    pub(crate) counters: Arc<PathCounters>,
    pub(crate) load: Arc<LoadCounters>,
    /// The workers that have a send queue of the port. Each worker adds and removes itself.
    pub(crate) senders: Arc<AtomicWorkerSet>,
    /// Whether this worker is one of the senders.
    pub(crate) sends: bool,
    /// Packets that go out by the port next.
    pub(crate) out: Burst,
}

impl PortSlot {
    /// Sends the packets that wait.
    fn transmit(&mut self) {
        if let Some(capture) = &self.capture {
            let now = Cycles::now();
            self.out.iter().for_each(|packet| capture.offer(packet, Observed::Sent, now));
        }
        self.shard.tx(&mut self.out);
    }

    /// Shows packets that just came in to the capture, and drops those beyond the rate limit.
    #[cold]
    fn inspect(&mut self, burst: &mut Burst, now: Cycles) {
        if let Some(capture) = &self.capture {
            burst.iter().for_each(|packet| capture.offer(packet, Observed::Received, now));
        }
        let Some(policer) = &mut self.policer else { return };
        let (capture, counters) = (&self.capture, &self.counters);
        burst.retain(|packet| {
            let admitted = policer.admits(packet.len(), now);
            if !admitted {
                drop_packet(capture.as_deref(), counters, packet, DropReason::RateLimited, now);
            }
            admitted
        });
    }
}

fn drop_packet(capture: Option<&Capture>, counters: &PathCounters, packet: &Packet, reason: DropReason, now: Cycles) {
    counters.add_drops(reason, 1);
    if let Some(capture) = capture {
        capture.offer(packet, Observed::Dropped(reason), now);
    }
}

/// The ports of one worker.
pub(crate) struct Outputs {
    /// The set of this worker alone.
    worker: WorkerSet,
    /// By number.
    slots: Vec<Option<Box<PortSlot>>>,
    /// The numbers of those that are there.
    present: Vec<PortNo>,
    handover: Handover,
    meters: Vec<Option<(Arc<Meter>, u64)>>,
    /// Packets to be looked up again.
    pub(crate) recirculated: ArrayVec<Recirculated, BURST>,
    /// Counts packets whose ingress port is gone.
    unattributed: Arc<PathCounters>,
}

impl Outputs {
    pub(crate) fn new(worker: WorkerSet, handover: Handover) -> Outputs {
        Outputs {
            worker,
            slots: Vec::new(),
            present: Vec::new(),
            handover,
            meters: Vec::new(),
            recirculated: ArrayVec::new(),
            unattributed: Arc::default(),
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
        self.publish_sender(port);
    }

    pub(crate) fn remove(&mut self, port: PortNo) -> Option<Box<PortSlot>> {
        let mut slot = self.slots.get_mut(port as usize)?.take()?;
        self.present.retain(|other| *other != port);
        slot.senders.remove(self.worker);
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

    /// The number of ports to receive from.
    pub(crate) fn port_count(&self) -> usize {
        self.present.len()
    }

    /// Receives a burst from one of the ports. Returns the port; `None` when nothing came.
    #[inline]
    pub(crate) fn receive(&mut self, at: usize, burst: &mut Burst, now: Cycles) -> Option<PortNo> {
        let port = self.present[at];
        let slot = self.slots[port as usize].as_deref_mut()?;
        if slot.shard.rx(burst) == 0 {
            return None;
        }
        if slot.policer.is_some() || slot.capture.is_some() {
            slot.inspect(burst, now);
        }
        Some(port)
    }

    /// Takes packets that other workers handed over. Returns how many.
    pub(crate) fn take_handed(&mut self) -> usize {
        let mut taken = 0;
        while taken < 2 * BURST
            && let Some((port, instance, packet)) = self.handover.take()
        {
            taken += 1;
            let Some(slot) = self.slot(port).filter(|slot| slot.instance == instance) else {
                self.unattributed.add_drops(DropReason::NoPort, 1);
                continue;
            };
            slot.load.count(|c| &c.handed);
            slot.out.push(packet);
            if slot.out.is_full() {
                slot.transmit();
            }
        }
        // Sent here even if the queue has left meanwhile: the port counts it. Packets are not handed on twice.
        for port in self.present.iter().filter(|_| taken > 0) {
            let Some(slot) = self.slots[*port as usize].as_deref_mut() else { continue };
            if !slot.out.is_empty() {
                slot.transmit();
            }
        }
        taken
    }

    /// Queues a packet that came in by `from` for a port.
    #[inline]
    fn output(&mut self, port: PortNo, packet: Packet, from: PortNo) {
        match self.slots.get_mut(port as usize).and_then(Option::as_deref_mut) {
            Some(slot) => {
                slot.out.push(packet);
                if slot.out.is_full() {
                    self.send(port);
                }
            }
            None => self.count_drop(from, &packet, DropReason::NoPort),
        }
    }

    /// Adds to the cycles that a port costs this worker.
    #[inline]
    pub(crate) fn add_cycles(&mut self, port: PortNo, cycles: Cycles) {
        if let Some(slot) = self.slot(port) {
            slot.load.add(|c| &c.cycles, cycles.0);
        }
    }

    pub(crate) fn counters(&self, port: PortNo) -> &PathCounters {
        let slot = self.slots.get(port as usize).and_then(Option::as_deref);
        slot.map_or(&self.unattributed, |slot| &slot.counters)
    }

    /// Counts a dropped packet that came in by `from`, and shows it to the capture.
    #[cold]
    pub(crate) fn count_drop(&self, from: PortNo, packet: &Packet, reason: DropReason) {
        let slot = self.slots.get(from as usize).and_then(Option::as_deref);
        drop_packet(slot.and_then(|slot| slot.capture.as_deref()), self.counters(from), packet, reason, Cycles::now());
    }

    /// Sends the packets queued for a port, or hands them to a worker that can.
    fn send(&mut self, port: PortNo) {
        let Some(slot) = self.slots[port as usize].as_deref_mut() else { return };
        let others = slot.senders.load().difference(self.worker);
        let Some(to) = others.first().filter(|_| !slot.shard.can_tx()) else { return slot.transmit() };
        for packet in slot.out.drain(..) {
            if let Err((_, _, packet)) = self.handover.give(to, (port, slot.instance, packet)) {
                drop_packet(slot.capture.as_deref(), &slot.counters, &packet, DropReason::HandedFull, Cycles::now());
            }
        }
    }

    /// Sends and publishes all queued packets; called once in a turn with work in it.
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
            if let Some(slot) = self.slots[*port as usize].as_deref_mut() {
                slot.shard.disarm();
            }
        }
    }

    pub(crate) fn quiesce(&mut self) {
        for at in 0..self.present.len() {
            let port = self.present[at];
            if let Some(slot) = self.slots[port as usize].as_deref_mut() {
                slot.shard.quiesce();
            }
            self.publish_sender(port);
        }
    }

    /// Tells the other workers whether this one can send by the port.
    fn publish_sender(&mut self, port: PortNo) {
        let worker = self.worker;
        let Some(slot) = self.slot(port) else { return };
        let sends = slot.shard.can_tx();
        if sends != slot.sends {
            slot.sends = sends;
            if sends {
                slot.senders.insert(worker);
            } else {
                slot.senders.remove(worker);
            }
        }
    }
}

/// A packet to be looked up again.
pub(crate) struct Recirculated {
    pub(crate) packet: Packet,
    pub(crate) in_port: PortNo,
    pub(crate) recirc_id: u32,
    pub(crate) packet_type: Option<u16>,
    pub(crate) rest: Option<Key>,
}

/// Takes the packets that actions produce from one burst.
pub(crate) struct BurstSink<'a> {
    pub(crate) outputs: &'a mut Outputs,
    pub(crate) from: PortNo,
    pub(crate) now: Cycles,
}

impl Sink for BurstSink<'_> {
    #[inline]
    fn output(&mut self, packet: Packet, port: PortNo) {
        self.outputs.output(port, packet, self.from);
    }

    fn userspace(&mut self, packet: Packet, _: &Userspace) {
        self.outputs.count_drop(self.from, &packet, DropReason::NoListener);
    }

    fn recirculate(&mut self, packet: Packet, metadata: &Metadata<'_>) {
        let Metadata { in_port, recirc_id, packet_type, rest, .. } = *metadata;
        let recirculated = Recirculated { packet, in_port, recirc_id, packet_type, rest: rest.copied() };
        if let Err(full) = self.outputs.recirculated.try_push(recirculated) {
            self.outputs.count_drop(self.from, &full.element().packet, DropReason::RecirculatedFull);
        }
    }

    fn meter(&mut self, _: &Packet, meter: u32) -> bool {
        let meter = self.outputs.meters.get_mut(meter as usize).and_then(Option::as_mut);
        meter.is_none_or(|(meter, credit)| meter.pass(1, credit, self.now))
    }

    fn dropped(&mut self, packet: Packet, reason: DropReason) {
        self.outputs.count_drop(self.from, &packet, reason);
    }
}
