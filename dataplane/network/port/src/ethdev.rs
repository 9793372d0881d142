//! Any Ethernet device of DPDK as a port: NICs, af_xdp, af_packet, pcap, memif, tap, null.
//!
//! The device's queues belong to workers, not to threads of DPDK: see [`Assignment`]. Most drivers have no notification that
//! a sleeping worker could wait for, so a worker that has a receive queue of such a port polls.
//!
//! DPDK takes packets from its own pools as they are. One from a pool of ours is copied into the port's pool when it is sent.

mod shard;

use crate::{Assignment, Deal, Port, PortError, PortInfo, PortKind, PortShard, PortStats, QueueReport};
use dpdk::flow::FlowPort;
use dpdk::{Eal, EthDev, EthDevConfig, Link, Mempool, RxQueue, Stats, TxQueue};
use engine::WorkerHandle;
use parking_lot::Mutex;
use rte_rule::FlowDevice;
use shard::Shard;
use std::sync::Arc;

/// The parameters of an Ethernet device.
#[derive(Clone, Debug)]
pub struct EthdevParams {
    /// The device, as DPDK names it: `0000:03:00.0`, `net_af_packet0,iface=eth1`. For a further port of a device, such as a
    /// representor: the name of that port.
    pub devargs: String,
    /// Pool that packets are received into.
    pub pool: Mempool,
    /// Number of receive queues; 0: one for each worker, as far as the device has them.
    pub rx_queues: u16,
    /// Number of send queues; 0: one for each worker, as far as the device has them. A worker without a send queue hands its packets
    /// to one that has.
    pub tx_queues: u16,
    /// Number of workers.
    pub workers: u16,
    /// Number of descriptors of each queue.
    pub descriptors: u16,
    /// New MTU; `None` leaves it.
    pub mtu: Option<u16>,
    /// New MAC address; `None` leaves it.
    pub mac: Option<[u8; 6]>,
}

impl EthdevParams {
    /// Opens a device with its own MTU and MAC address, for `workers` workers.
    pub fn new(devargs: &str, pool: &Mempool, workers: u16) -> EthdevParams {
        EthdevParams {
            devargs: devargs.to_owned(),
            pool: pool.clone(),
            rx_queues: 0,
            tx_queues: 0,
            workers,
            descriptors: 1024,
            mtu: None,
            mac: None,
        }
    }
}

/// A port on an Ethernet device of DPDK. The device goes with the port and the last of its shards.
pub struct EthdevPort {
    dev: Mutex<EthDev>,
    rx: Arc<Assignment<RxQueue>>,
    /// A worker without one hands its packets to one that has.
    tx: Arc<Assignment<TxQueue>>,
    pool: packet::Pool,
    stats: Mutex<Vec<Arc<PortStats>>>,
    mac: [u8; 6],
    mtu: u16,
}

impl EthdevPort {
    /// Attaches and starts the device.
    pub fn open(eal: &Eal, params: &EthdevParams) -> Result<EthdevPort, PortError> {
        let mut dev = EthDev::attach(eal, &params.devargs).map_err(other("attach"))?;
        if let Some(mac) = params.mac {
            dev.set_mac(mac).map_err(other("open"))?;
        }
        let info = dev.info().map_err(other("open"))?;
        let queues = |asked: u16, most: u16| if asked == 0 { params.workers.clamp(1, most.max(1)) } else { asked };
        let config = EthDevConfig {
            rx_queues: queues(params.rx_queues, info.max_rx_queues),
            tx_queues: queues(params.tx_queues, info.max_tx_queues),
            rx_descriptors: params.descriptors,
            tx_descriptors: params.descriptors,
            mtu: params.mtu,
            ..EthDevConfig::new(&params.pool)
        };
        let queues = dev.start(&config).map_err(other("start"))?;
        Ok(EthdevPort {
            mac: dev.mac().map_err(other("open"))?,
            mtu: dev.mtu().map_err(other("open"))?,
            dev: Mutex::new(dev),
            rx: Assignment::new(queues.rx, Deal::InTurn),
            tx: Assignment::new(queues.tx, Deal::OneEach),
            pool: params.pool.packets().clone(),
            stats: Mutex::default(),
        })
    }

    /// The device's own counters.
    pub fn device_stats(&self) -> Result<Stats, PortError> {
        self.dev.lock().stats().map_err(other("counters"))
    }

    /// The port as one that takes flow rules; `None` where DPDK does not know the device any more.
    pub fn flow_port(&self) -> Option<FlowPort> {
        self.dev.lock().flow_port().ok()
    }

    fn link(&self) -> Option<Link> {
        let dev = self.dev.lock();
        dev.link().ok().filter(|_| !dev.is_gone())
    }
}

impl Port for EthdevPort {
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        let stats = Arc::<PortStats>::default();
        self.stats.lock().push(stats.clone());
        let (rx, tx) = (self.rx.open(worker), self.tx.open(worker));
        Ok(Box::new(Shard::new(rx, tx, self.pool.clone(), stats, self.mtu)))
    }

    fn info(&self) -> PortInfo {
        PortInfo {
            kind: PortKind::Dpdk,
            mac: self.mac,
            mtu: self.mtu,
            link_up: self.link().is_some_and(|link| link.up),
            rx_queues: self.rx.count(),
            tx_queues: self.tx.count(),
        }
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        self.stats.lock().clone()
    }

    fn move_rx_queue(&self, queue: u16, worker: &WorkerHandle) -> Result<(), PortError> {
        self.rx.assign(queue, worker.id())
    }

    fn flow_device(&self) -> Option<Arc<dyn FlowDevice>> {
        self.flow_port().map(|port| Arc::new(port) as _)
    }

    fn rx_queues(&self) -> Vec<QueueReport> {
        self.rx.report()
    }
}

fn other<E: std::error::Error + Send + Sync + 'static>(what: &str) -> impl FnOnce(E) -> PortError {
    let what = what.to_owned();
    |source| PortError::Other { what, source: Box::new(source) }
}
