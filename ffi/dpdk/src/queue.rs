//! Queues of a running device, for a poll loop.

use crate::ethdev::Port;
use crate::lcore;
use dpdk_sys as sys;
use packet::{Burst, Packet, offload_flag as flag};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Flags of the work that a sender may leave to the device.
const OFFLOADS: u64 = flag::TX_L4_MASK | flag::TX_TCP_SEG | flag::TX_UDP_SEG | flag::TX_IP_CKSUM;

/// Whether a packet leaves work to the device that sends it.
#[inline(always)]
pub fn leaves_work(packet: &Packet) -> bool {
    packet.flags() & OFFLOADS != 0
}

/// A receive queue. It belongs to one thread at a time, and its device runs for as long as it lives.
pub struct RxQueue {
    port: Arc<Port>,
    id: u16,
    ops: *const sys::rte_eth_fp_ops,
}

/// A send queue. It belongs to one thread at a time, and its device runs for as long as it lives.
pub struct TxQueue {
    port: Arc<Port>,
    id: u16,
    ops: *const sys::rte_eth_fp_ops,
    capabilities: TxCapabilities,
}

/// The offloads of a device on send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxCapabilities {
    /// Completes TCP checksums.
    pub tcp_checksum: bool,
    /// Completes UDP checksums.
    pub udp_checksum: bool,
    /// Completes SCTP checksums.
    pub sctp_checksum: bool,
    /// Cuts TCP packets into segments.
    pub tcp_segmentation: bool,
    /// Cuts UDP packets into datagrams.
    pub udp_segmentation: bool,
    /// Takes packets of several buffers.
    pub chains: bool,
}

impl TxCapabilities {
    /// From `RTE_ETH_TX_OFFLOAD_*`.
    pub(crate) fn new(offloads: u64) -> TxCapabilities {
        let has = |offload: u32| offloads & u64::from(offload) != 0;
        TxCapabilities {
            tcp_checksum: has(sys::RTE_ETH_TX_OFFLOAD_TCP_CKSUM),
            udp_checksum: has(sys::RTE_ETH_TX_OFFLOAD_UDP_CKSUM),
            sctp_checksum: has(sys::RTE_ETH_TX_OFFLOAD_SCTP_CKSUM),
            tcp_segmentation: has(sys::RTE_ETH_TX_OFFLOAD_TCP_TSO),
            udp_segmentation: has(sys::RTE_ETH_TX_OFFLOAD_UDP_TSO),
            chains: has(sys::RTE_ETH_TX_OFFLOAD_MULTI_SEGS),
        }
    }
}

// SAFETY: DPDK wants one thread at a time at a queue, not always the same one: `&mut` and no `Sync` see to it.
unsafe impl Send for RxQueue {}
// SAFETY: DPDK wants one thread at a time at a queue, not always the same one: `&mut` and no `Sync` see to it.
unsafe impl Send for TxQueue {}

/// The device's entry points, which DPDK exchanges when the device stops or goes.
fn ops(port: u16) -> *const sys::rte_eth_fp_ops {
    let table = &raw const sys::rte_eth_fp_ops;
    // SAFETY: the table has an entry for each port.
    unsafe { table.cast::<sys::rte_eth_fp_ops>().add(usize::from(port)) }
}

/// The callbacks of a queue, which another program may have added, such as `dpdk-pdump`.
///
/// # Safety
/// running-queue holds for `queue`.
#[inline(always)]
unsafe fn callbacks(queues: sys::rte_ethdev_qdata, queue: usize) -> *mut c_void {
    // SAFETY: the caller's running-queue: the device has a pointer to callbacks for each queue.
    let place = unsafe { queues.clbk.add(queue) };
    // SAFETY: aligned and live; another thread may write it, as an atomic.
    unsafe { AtomicPtr::from_ptr(place) }.load(Ordering::Relaxed)
}

/// The data of a queue.
///
/// # Safety
/// running-queue holds for `queue`.
#[inline(always)]
unsafe fn data(queues: sys::rte_ethdev_qdata, queue: usize) -> *mut c_void {
    // SAFETY: the caller's running-queue: the device has a pointer to data for each queue.
    let place = unsafe { queues.data.add(queue) };
    // SAFETY: written before the device started, and not changed while it runs.
    unsafe { *place }
}

impl RxQueue {
    pub(crate) fn new(port: Arc<Port>, id: u16) -> RxQueue {
        let ops = ops(port.id());
        RxQueue { port, id, ops }
    }

    /// Number of the queue in the device.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Receives: appends at most what `burst` has room for. Returns how many.
    #[inline]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        lcore::current();
        let (len, room) = (burst.len(), burst.remaining_capacity() as u16);
        let queue = usize::from(self.id);
        // SAFETY: `len` is the length of the burst, so this is within its array.
        let packets = unsafe { burst.as_mut_ptr().add(len) }.cast::<*mut sys::rte_mbuf>();
        // SAFETY: running-queue; the entry changes only when the device stops.
        let ops = unsafe { &*self.ops };
        let Some(rx_pkt_burst) = ops.rx_pkt_burst else { return 0 };
        // SAFETY: running-queue.
        let data = unsafe { data(ops.rxq, queue) };
        // SAFETY: running-queue; the burst has room for `room` packets, which are pointers to their first segments.
        let mut received = unsafe { rx_pkt_burst(data, packets, room) };
        // SAFETY: running-queue.
        let callbacks = unsafe { callbacks(ops.rxq, queue) };
        if !callbacks.is_null() {
            let (port, id) = (self.port.id(), self.id);
            // SAFETY: running-queue; `packets` has `received` packets and room for `room`, and the callbacks are of this queue.
            received = unsafe { sys::rte_eth_call_rx_callbacks(port, id, packets, received, room, callbacks) };
        }
        // SAFETY: the driver wrote `received` packets, at most `room`, behind the burst's own, and gave them to us.
        unsafe { burst.set_len(len + usize::from(received)) };
        usize::from(received)
    }
}

impl TxQueue {
    pub(crate) fn new(port: Arc<Port>, id: u16, capabilities: TxCapabilities) -> TxQueue {
        let ops = ops(port.id());
        TxQueue { port, id, ops, capabilities }
    }

    /// The offloads of the device.
    pub fn capabilities(&self) -> TxCapabilities {
        self.capabilities
    }

    /// Number of the queue in the device.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Sends from the front of `burst` and takes what was sent out of it. Returns how many. What is left found no room; or its
    /// first packet is one that the device cannot send ([`prepare`](Self::prepare) tells).
    #[inline]
    pub fn send(&mut self, burst: &mut Burst) -> usize {
        let queue = usize::from(self.id);
        let packets = burst.as_mut_ptr().cast::<*mut sys::rte_mbuf>();
        let mut count = burst.len() as u16;
        // SAFETY: running-queue; the entry changes only when the device stops.
        let ops = unsafe { &*self.ops };
        // SAFETY: running-queue.
        let callbacks = unsafe { callbacks(ops.txq, queue) };
        if !callbacks.is_null() {
            // SAFETY: running-queue; `packets` has `count` packets, and the callbacks are of this queue.
            count = unsafe { sys::rte_eth_call_tx_callbacks(self.port.id(), self.id, packets, count, callbacks) };
            // SAFETY: the callbacks left `count` packets at the front, and own the others.
            unsafe { burst.set_len(usize::from(count)) };
        }
        let Some(tx_pkt_burst) = ops.tx_pkt_burst else { return 0 };
        // SAFETY: running-queue.
        let data = unsafe { data(ops.txq, queue) };
        // SAFETY: running-queue; `packets` has `count` packets, of which the device owns those that it sends.
        let sent = usize::from(unsafe { tx_pkt_burst(data, packets, count) });
        forget_front(burst, sent);
        sent
    }

    /// Readies packets that leave work to the device, and returns how many from the front it will take; all, mostly. The next
    /// one, if there is one, asks for what the device does not do.
    #[inline]
    pub fn prepare(&mut self, burst: &mut Burst) -> usize {
        if !burst.iter().any(leaves_work) {
            return burst.len();
        }
        let packets = burst.as_mut_ptr().cast::<*mut sys::rte_mbuf>();
        // SAFETY: running-queue; the entry changes only when the device stops.
        let ops = unsafe { &*self.ops };
        let Some(tx_pkt_prepare) = ops.tx_pkt_prepare else { return burst.len() };
        // SAFETY: running-queue.
        let data = unsafe { data(ops.txq, usize::from(self.id)) };
        // SAFETY: running-queue; `packets` has the packets of the burst, which stay ours: the device writes checksum fields.
        usize::from(unsafe { tx_pkt_prepare(data, packets, burst.len() as u16) })
    }
}

impl std::fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RxQueue({} of {})", self.id, self.port.name())
    }
}

impl std::fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TxQueue({} of {})", self.id, self.port.name())
    }
}

/// Takes the first `count` packets out without freeing them.
#[inline(always)]
fn forget_front(burst: &mut Burst, count: usize) {
    let left = burst.len() - count;
    // SAFETY: `left` is at most the length; the packets in front have another owner.
    unsafe { burst.set_len(left) };
    let packets = burst.as_mut_ptr();
    // SAFETY: `count` is at most the length of before, so this is within the burst's array.
    let rest = unsafe { packets.add(count) };
    // SAFETY: both ranges are within the array; what is overwritten has another owner.
    unsafe { std::ptr::copy(rest, packets, left) };
}
