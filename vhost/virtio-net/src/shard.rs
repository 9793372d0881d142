//! A device's part on one worker.

use crate::queue::NetQueue;
use crossbeam::utils::CachePadded;
use guest_memory::GuestMemory;
use packet::{Burst, Packet, Pool, offload_flag};
use port::{PortShard, PortStats};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use vhost_device::{DeviceEventSink, DeviceHealth, Vring, WorkerQueues};

/// What all shards of a device share; written by its session only, and rarely, but for the counters.
pub(crate) struct NetDeviceState {
    pub(crate) health: DeviceHealth,
    pub(crate) mtu: AtomicU16,
    /// Packets from the guest by queue pair, each written by the worker that has the pair.
    pub(crate) received: Box<[CachePadded<AtomicU64>]>,
    /// An address to announce, or 0.
    announce: AtomicU64,
}

/// Marks an address in [`NetDeviceState::announce`].
const ANNOUNCE: u64 = 1 << 63;

impl NetDeviceState {
    pub(crate) fn new(health: DeviceHealth, mtu: u16, pairs: u16) -> NetDeviceState {
        let received = (0..pairs).map(|_| CachePadded::default()).collect();
        NetDeviceState { health, mtu: AtomicU16::new(mtu), received, announce: AtomicU64::new(0) }
    }

    /// Has a RARP broadcast for `mac` received by the next shard that looks.
    pub(crate) fn announce(&self, mac: [u8; 6]) {
        let [a, b, c, d, e, f] = mac;
        self.announce.store(u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | ANNOUNCE, Ordering::Release);
    }

    fn take_announcement(&self) -> Option<[u8; 6]> {
        if self.announce.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let taken = self.announce.swap(0, Ordering::Acquire);
        let [_, _, mac @ ..] = taken.to_be_bytes();
        (taken & ANNOUNCE != 0).then_some(mac)
    }
}

/// The queues of a device that one worker serves.
pub(crate) struct Shard {
    pub(crate) state: Arc<NetDeviceState>,
    pub(crate) queues: WorkerQueues<NetQueue>,
    pub(crate) pool: Pool,
    pub(crate) stats: Arc<PortStats>,
    /// The queue that receives first in the next turn: none starves another.
    pub(crate) first: usize,
}

impl PortShard for Shard {
    fn rx(&mut self, burst: &mut Burst) -> usize {
        self.queues.take_commands(&self.state.health);
        if self.state.health.is_quarantined() {
            return 0;
        }
        let before = burst.len();
        if let Some(mac) = self.state.take_announcement() {
            self.receive_rarp(mac, burst);
        }
        let mtu = self.state.mtu.load(Ordering::Relaxed);
        let queues = self.queues.serving();
        let count = queues.len();
        for turn in 0..count {
            let queue = &mut queues[(self.first + turn) % count];
            if queue.is_guest_rx() || burst.is_full() {
                continue;
            }
            let held = burst.len();
            let result = if queue.vring.enabled {
                queue.poll_from_guest(&self.pool, mtu, burst, &self.stats)
            } else {
                queue.discard()
            };
            if let Err(fault) = result {
                self.state.health.quarantine(&mut queue.vring, fault);
            }
            if burst.len() > held {
                PortStats::add(&self.state.received[queue.pair()], (burst.len() - held) as u64);
            }
        }
        self.first = self.first.wrapping_add(1);
        burst.len() - before
    }

    fn tx(&mut self, burst: &mut Burst) {
        let down = self.state.health.is_quarantined();
        let mtu = self.state.mtu.load(Ordering::Relaxed);
        let queues = self.queues.serving();
        let ready = queues.iter().filter(|queue| is_ready(queue)).count();
        if down || ready == 0 {
            PortStats::add(&self.stats.tx_down, burst.len() as u64);
            burst.clear();
            return;
        }
        let queue_of = |packet: &Packet| if ready == 1 { 0 } else { flow_hash(packet) as usize % ready };
        let mut rest = &mut burst[..];
        while let [first, ..] = rest {
            let choice = queue_of(first);
            let same = if ready == 1 { rest.len() } else { rest.iter().take_while(|p| queue_of(p) == choice).count() };
            let (run, later) = rest.split_at_mut(same);
            rest = later;
            let Some(queue) = queues.iter_mut().filter(|queue| is_ready(queue)).nth(choice) else { continue };
            if let Err(fault) = queue.push_to_guest(run, mtu, &self.pool, &self.stats) {
                self.state.health.quarantine(&mut queue.vring, fault);
            }
        }
        packet::free(burst);
    }

    fn can_tx(&self) -> bool {
        self.queues.iter().any(is_ready) && !self.state.health.is_quarantined()
    }

    fn flush(&mut self) {
        for queue in self.queues.serving() {
            queue.vring.flush();
        }
    }

    fn arm(&mut self) -> bool {
        let quarantined = self.state.health.is_quarantined();
        let transmit = self.queues.serving().iter_mut().filter(|queue| !quarantined && !queue.is_guest_rx());
        let ready = transmit.fold(false, |ready, queue| queue.vring.arm() | ready);
        ready || !self.queues.is_quiet() || self.state.announce.load(Ordering::Relaxed) != 0
    }

    fn disarm(&mut self) {
        self.queues
            .serving()
            .iter_mut()
            .filter(|queue| !queue.is_guest_rx())
            .for_each(|queue| queue.vring.ring.disarm());
    }

    fn quiesce(&mut self) {
        for queue in self.queues.serving() {
            // A turn that moved no packet may have given back chains all the same, and a ring that starts owes a call.
            queue.vring.flush();
        }
        self.queues.quiesce(&self.state.health);
    }
}

impl Shard {
    /// A RARP request for the guest's own address, as if the guest had sent it: switches learn where it is now (RFC 903).
    #[cold]
    fn receive_rarp(&self, mac: [u8; 6], burst: &mut Burst) {
        const LEN: usize = 60;
        let Some(mut packet) = self.pool.take_one().filter(|_| !burst.is_full()) else {
            PortStats::add(&self.stats.rx_no_buffer, 1);
            return;
        };
        let frame = packet.append(LEN).expect("an empty buffer has room");
        frame.fill(0);
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&mac);
        // RARP; Ethernet, IPv4, their lengths, request reverse.
        frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        frame[22..28].copy_from_slice(&mac);
        frame[32..38].copy_from_slice(&mac);
        PortStats::add(&self.stats.rx_packets, 1);
        PortStats::add(&self.stats.rx_bytes, LEN as u64);
        burst.push(packet);
    }
}

/// Packets for the guest can go here.
#[inline(always)]
fn is_ready(queue: &NetQueue) -> bool {
    queue.is_guest_rx() && queue.vring.enabled
}

/// The same for all packets of a flow: the NIC's hash, else one over IP addresses and ports.
fn flow_hash(packet: &Packet) -> u32 {
    if packet.flags() & offload_flag::RX_RSS_HASH != 0 {
        return packet.mbuf().rss;
    }
    // From the last bytes of an IPv4 header, or the end of IPv6's source, to the ports.
    let fields = packet.data().get(26..58).or(packet.data().get(26..38)).unwrap_or_default();
    let words = fields.as_chunks::<4>().0.iter().take(if packet.data().get(12) == Some(&8) { 3 } else { 8 });
    let mixed =
        words.fold(0_u32, |hash, &word| (hash ^ u32::from_ne_bytes(word)).wrapping_mul(0x9e37_79b1).rotate_left(15));
    mixed ^ mixed >> 16
}

/// What [`stand_alone`] gives: the shard, its counters, and the events that it reports.
pub type StandAlone = (Box<dyn PortShard>, Arc<PortStats>, crossbeam::channel::Receiver<vhost_device::DeviceEvent>);

/// A port's shard on its own, without socket, session or engine: for tests and for benchmarks of the path alone. Its rings are
/// enabled and have no eventfds; `memory` is as [`guest_memory::GuestMemory::anonymous`] makes it.
pub fn stand_alone(
    memory: &Arc<GuestMemory>,
    setups: &[virtqueue::RingSetup],
    pool: Pool,
    mtu: u16,
) -> Result<StandAlone, Box<dyn std::error::Error>> {
    let (events, receiver) = DeviceEventSink::new(16);
    let state = Arc::new(NetDeviceState::new(
        DeviceHealth::new("stand-alone".into(), events),
        mtu,
        setups.len().div_ceil(2) as u16,
    ));
    let mut queues = Vec::new();
    for (index, setup) in setups.iter().enumerate() {
        let mut vring = Vring::without_descriptors(index as u16, memory.clone(), setup)?;
        vring.enabled = true;
        queues.push(NetQueue::around(vring, setup));
    }
    let (queues, stats) = (WorkerQueues::alone(queues)?, Arc::<PortStats>::default());
    let shard = Shard { state, queues, pool, stats: stats.clone(), first: 0 };
    Ok((Box::new(shard), stats, receiver))
}
