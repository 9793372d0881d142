//! Queues of a running device: what a poll loop holds.

use crate::ethdev::Port;
use crate::lcore;
use dpdk_sys as sys;
use packet::{Burst, Packet, offload_flag as flag};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What a sender may leave to the device.
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

/// What a device does to packets that it sends.
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

// SAFETY: DPDK wants one thread at a time at a queue, not always the same; `&mut` and no `Sync` see to it.
unsafe impl Send for RxQueue {}
// SAFETY: as above.
unsafe impl Send for TxQueue {}

/// The device's entry points, which DPDK exchanges when the device stops or goes.
fn ops(port: u16) -> *const sys::rte_eth_fp_ops {
    // SAFETY: a port number is in bounds of the table.
    unsafe { (&raw const sys::rte_eth_fp_ops).cast::<sys::rte_eth_fp_ops>().add(usize::from(port)) }
}

/// The callbacks that somebody, `dpdk-pdump` for one, put on a queue.
///
/// # Safety
/// The device runs and has the queue.
#[inline(always)]
unsafe fn callbacks(queues: sys::rte_ethdev_qdata, queue: usize) -> *mut c_void {
    // SAFETY: as the caller promises; another thread may be writing.
    unsafe { AtomicPtr::from_ptr(queues.clbk.add(queue)).load(Ordering::Relaxed) }
}

impl RxQueue {
    pub(crate) fn new(port: Arc<Port>, id: u16) -> RxQueue {
        let ops = ops(port.id());
        RxQueue { port, id, ops }
    }

    /// Its number in the device.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Receives: appends at most what `burst` has room for. Returns how many.
    #[inline]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        lcore::current();
        let (len, room) = (burst.len(), burst.remaining_capacity() as u16);
        let queue = usize::from(self.id);
        // SAFETY: the device runs, so the queue's data is there. It writes at most `room` packets, each owned by us from then
        // on, behind those that are in the burst; a packet is a pointer to its first segment.
        unsafe {
            let packets = burst.as_mut_ptr().add(len).cast::<*mut sys::rte_mbuf>();
            let Some(rx_pkt_burst) = (*self.ops).rx_pkt_burst else { return 0 };
            let mut received = rx_pkt_burst(*(*self.ops).rxq.data.add(queue), packets, room);
            let callbacks = callbacks((*self.ops).rxq, queue);
            if !callbacks.is_null() {
                received = sys::rte_eth_call_rx_callbacks(self.port.id(), self.id, packets, received, room, callbacks);
            }
            burst.set_len(len + usize::from(received));
            usize::from(received)
        }
    }
}

impl TxQueue {
    pub(crate) fn new(port: Arc<Port>, id: u16, capabilities: TxCapabilities) -> TxQueue {
        let ops = ops(port.id());
        TxQueue { port, id, ops, capabilities }
    }

    /// What its device does to packets.
    pub fn capabilities(&self) -> TxCapabilities {
        self.capabilities
    }

    /// Its number in the device.
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
        // SAFETY: the device runs, so the queue's data is there. What a callback keeps and what the device says it sent belong
        // to them, and are forgotten.
        let sent = unsafe {
            let callbacks = callbacks((*self.ops).txq, queue);
            if !callbacks.is_null() {
                count = sys::rte_eth_call_tx_callbacks(self.port.id(), self.id, packets, count, callbacks);
                burst.set_len(usize::from(count));
            }
            let Some(tx_pkt_burst) = (*self.ops).tx_pkt_burst else { return 0 };
            usize::from(tx_pkt_burst(*(*self.ops).txq.data.add(queue), packets, count))
        };
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
        // SAFETY: as in `send`, but the packets stay ours: the device writes checksum fields in them.
        unsafe {
            let Some(tx_pkt_prepare) = (*self.ops).tx_pkt_prepare else { return burst.len() };
            usize::from(tx_pkt_prepare(*(*self.ops).txq.data.add(usize::from(self.id)), packets, burst.len() as u16))
        }
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
    // SAFETY: the rest moves to the front, within the burst; what it overwrites or leaves behind has another owner.
    unsafe {
        burst.set_len(left);
        let packets = burst.as_mut_ptr();
        std::ptr::copy(packets.add(count), packets, left);
    }
}
