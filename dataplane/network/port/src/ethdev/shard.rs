//! A worker's part of an Ethernet device.

use crate::{Held, PortShard, PortStats, Queues};
use dpdk::{RxQueue, TxCapabilities, TxQueue};
use packet::{Burst, L4Checksum, Packet, Pool};
use std::sync::Arc;

/// An Ethernet header.
const ETHERNET_LEN: usize = 14;
/// An Ethernet header with two VLAN tags.
const TAGGED_LEN: usize = ETHERNET_LEN + 8;

pub(super) struct Shard {
    rx: Queues<RxQueue>,
    tx: Queues<TxQueue>,
    pool: Pool,
    stats: Arc<PortStats>,
    max_frame: usize,
    /// The receive queue that is asked first, in turn.
    first: usize,
}

impl Shard {
    pub(super) fn new(rx: Queues<RxQueue>, tx: Queues<TxQueue>, pool: Pool, stats: Arc<PortStats>, mtu: u16) -> Shard {
        let mut shard = Shard { rx, tx, pool, stats, max_frame: usize::from(mtu) + TAGGED_LEN, first: 0 };
        shard.quiesce();
        shard
    }
}

impl PortShard for Shard {
    fn rx(&mut self, burst: &mut Burst) -> usize {
        let (before, count) = (burst.len(), self.rx.held.len());
        for turn in 0..count {
            let (at, held) = ((self.first + turn) % count, burst.len());
            self.rx.held[at].queue.receive(burst);
            if burst.len() > held {
                self.rx.count(at, burst.len() - held);
            }
            if burst.is_full() {
                break;
            }
        }
        if count > 1 {
            self.first = (self.first + 1) % count;
        }
        if burst.len() == before {
            return 0;
        }
        drop_runts(burst, before, &self.stats);
        PortStats::add(&self.stats.rx_packets, (burst.len() - before) as u64);
        PortStats::add(&self.stats.rx_bytes, bytes(&burst[before..]));
        burst.len() - before
    }

    fn tx(&mut self, burst: &mut Burst) {
        let Some(Held { queue, .. }) = self.tx.held.first_mut() else {
            PortStats::add(&self.stats.tx_down, burst.len() as u64);
            return burst.clear();
        };
        let mut sender = Sender { queue, pool: &self.pool, stats: &self.stats, max_frame: self.max_frame };
        if burst.iter().all(|packet| sender.is_plain(packet)) {
            sender.send_ready(burst);
        } else if burst.iter().all(|packet| sender.takes(packet)) {
            sender.send(burst);
        } else {
            sender.adapt_and_send(burst);
        }
    }

    fn can_tx(&self) -> bool {
        !self.tx.held.is_empty()
    }

    fn arm(&mut self) -> bool {
        // Nothing will wake the worker for a packet.
        !self.rx.held.is_empty() || self.rx.is_waiting() || self.tx.is_waiting()
    }

    fn quiesce(&mut self) {
        self.rx.settle();
        self.tx.settle();
    }
}

fn bytes(packets: &[Packet]) -> u64 {
    packets.iter().map(|packet| packet.len() as u64).sum()
}

/// Drops, from `start` on, what is too short to be a frame.
fn drop_runts(burst: &mut Burst, start: usize, stats: &PortStats) {
    if burst[start..].iter().all(|packet| packet.data().len() >= ETHERNET_LEN) {
        return;
    }
    let (before, mut index) = (burst.len(), 0);
    burst.retain(|packet| {
        index += 1;
        index <= start || packet.data().len() >= ETHERNET_LEN
    });
    PortStats::add(&stats.rx_invalid, (before - burst.len()) as u64);
}

/// Sends on one queue, and does in software what the device does not.
struct Sender<'a> {
    queue: &'a mut TxQueue,
    pool: &'a Pool,
    stats: &'a PortStats,
    max_frame: usize,
}

impl Sender<'_> {
    /// Whether any device sends the packet as it is.
    #[inline(always)]
    fn is_plain(&self, packet: &Packet) -> bool {
        packet.segment_count() == 1
            && packet.is_foreign()
            && !dpdk::leaves_work(packet)
            && packet.len() <= self.max_frame
    }

    /// Whether the device sends the packet as it is.
    #[inline]
    fn takes(&self, packet: &Packet) -> bool {
        let can = self.queue.capabilities();
        if !packet.is_foreign() || packet.segment_count() > 1 && !can.chains {
            return false;
        }
        let offload = packet.offload();
        if offload.is_none() {
            return packet.len() <= self.max_frame;
        }
        let segments = offload.segment_size != 0;
        let checksum = completes(can, offload.checksum);
        checksum && if segments { segmentation(can, offload.checksum) } else { packet.len() <= self.max_frame }
    }

    /// Sends all; what finds no room is dropped.
    fn send(&mut self, burst: &mut Burst) {
        loop {
            let ready = self.queue.prepare(burst);
            if ready == burst.len() {
                return self.send_ready(burst);
            }
            // The device cannot send the packet behind those.
            let mut rest: Burst = burst.drain(ready..).skip(1).collect();
            PortStats::add(&self.stats.tx_invalid, 1);
            self.send_ready(burst);
            std::mem::swap(burst, &mut rest);
        }
    }

    #[inline]
    fn send_ready(&mut self, burst: &mut Burst) {
        let (packets, all) = (burst.len() as u64, bytes(burst));
        self.queue.send(burst);
        let full = burst.len() as u64;
        PortStats::add(&self.stats.tx_packets, packets - full);
        PortStats::add(&self.stats.tx_bytes, all - bytes(burst));
        PortStats::add(&self.stats.tx_full, full);
        packet::free(burst);
    }

    /// Sends all, each as the device takes it.
    #[cold]
    fn adapt_and_send(&mut self, burst: &mut Burst) {
        let mut ready = Burst::new();
        for packet in burst.drain(..) {
            let offload = packet.offload();
            if offload.segment_size == 0 || segmentation(self.queue.capabilities(), offload.checksum) {
                self.push(packet, &mut ready);
                continue;
            }
            let Some(mut segments) = packet.segmented(self.pool) else {
                PortStats::add(&self.stats.tx_invalid, 1);
                continue;
            };
            for segment in &mut segments {
                self.push(segment, &mut ready);
            }
            PortStats::add(&self.stats.tx_full, segments.left() as u64);
        }
        self.send(&mut ready);
    }

    /// Readies one packet, and sends when there are many.
    fn push(&mut self, mut packet: Packet, ready: &mut Burst) {
        if !completes(self.queue.capabilities(), packet.offload().checksum) {
            packet.complete_checksum();
        }
        if !packet.is_foreign() {
            match packet.copy(self.pool) {
                Some(copy) => packet = copy,
                None => return PortStats::add(&self.stats.tx_no_buffer, 1),
            }
        }
        if packet.segment_count() > 1 && !self.queue.capabilities().chains {
            match flatten(&packet, self.pool) {
                Some(flat) => packet = flat,
                None => return PortStats::add(&self.stats.tx_invalid, 1),
            }
        }
        if !self.takes(&packet) {
            return PortStats::add(&self.stats.tx_invalid, 1);
        }
        ready.push(packet);
        if ready.is_full() {
            self.send(ready);
        }
    }
}

/// Whether the device completes such a checksum, or there is none to complete.
#[inline(always)]
fn completes(can: TxCapabilities, checksum: Option<L4Checksum>) -> bool {
    match checksum {
        None => true,
        Some(L4Checksum::Tcp) => can.tcp_checksum,
        Some(L4Checksum::Udp) => can.udp_checksum,
        Some(L4Checksum::Sctp) => can.sctp_checksum,
    }
}

/// Whether the device segments packets with such a checksum.
#[inline(always)]
fn segmentation(can: TxCapabilities, checksum: Option<L4Checksum>) -> bool {
    match checksum {
        Some(L4Checksum::Udp) => can.udp_segmentation,
        _ => can.tcp_segmentation,
    }
}

/// A copy in one buffer; `None` when it does not fit one or there is none.
fn flatten(packet: &Packet, pool: &Pool) -> Option<Packet> {
    let mut flat = pool.take_one()?;
    packet.copy_to(flat.append(packet.len())?);
    flat.set_offload(&packet.offload());
    Some(flat)
}
