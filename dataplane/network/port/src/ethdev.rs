//! Any Ethernet device of DPDK as a port: NICs, af_xdp, af_packet, pcap, memif, tap, null.
//!
//! The device's queues belong to workers, not to threads of DPDK: see [`Assignment`]. Most drivers have no notification that
//! a sleeping worker could wait for, so a worker that has a receive queue of such a port polls.
//!
//! DPDK takes packets from its own pools as they are. One from a pool of ours is copied into the port's pool when it is sent.

mod shard;

use crate::{Assignment, Deal, Port, PortError, PortInfo, PortShard, PortStats, QueueReport};
use dpdk::flow::FlowPort;
use dpdk::{Eal, EthDev, EthDevConfig, Link, Mempool, RxQueue, Stats, TxQueue};
use engine::WorkerHandle;
use shard::Shard;
use std::sync::{Arc, Mutex};

/// What an Ethernet device is opened with.
#[derive(Clone, Debug)]
pub struct EthdevParams {
    /// The device, as DPDK names it: `0000:03:00.0`, `net_af_packet0,iface=eth1`. Where another port came with a device, as its
    /// representors do: that port's name.
    pub devargs: String,
    /// What it receives into.
    pub pool: Mempool,
    /// Receive queues; 0: one a worker, as far as the device has them.
    pub rx_queues: u16,
    /// Send queues; 0: one a worker, as far as the device has them. A worker without one hands its packets to one that has.
    pub tx_queues: u16,
    /// Workers that there are.
    pub workers: u16,
    /// Descriptors of each queue.
    pub descriptors: u16,
    /// The MTU, where it is to change.
    pub mtu: Option<u16>,
    /// The MAC address, where it is to change.
    pub mac: Option<[u8; 6]>,
}

impl EthdevParams {
    /// A device as it is, for `workers` workers.
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
        self.dev.lock().expect("no panic under this lock").stats().map_err(other("counters"))
    }

    fn link(&self) -> Option<Link> {
        let dev = self.dev.lock().expect("no panic under this lock");
        dev.link().ok().filter(|_| !dev.is_gone())
    }
}

impl Port for EthdevPort {
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        let stats = Arc::<PortStats>::default();
        self.stats.lock().expect("no panic under this lock").push(stats.clone());
        let (rx, tx) = (self.rx.open(worker), self.tx.open(worker));
        Ok(Box::new(Shard::new(rx, tx, self.pool.clone(), stats, self.mtu)))
    }

    fn info(&self) -> PortInfo {
        PortInfo {
            kind: "dpdk",
            mac: self.mac,
            mtu: self.mtu,
            link_up: self.link().is_some_and(|link| link.up),
            rx_queues: self.rx.count(),
            tx_queues: self.tx.count(),
        }
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        self.stats.lock().expect("no panic under this lock").clone()
    }

    fn move_rx_queue(&self, queue: u16, worker: &WorkerHandle) -> Result<(), PortError> {
        self.rx.assign(queue, worker.id())
    }

    fn flow_port(&self) -> Option<FlowPort> {
        self.dev.lock().expect("no panic under this lock").flow_port().ok()
    }

    fn rx_queues(&self) -> Vec<QueueReport> {
        self.rx.report()
    }
}

fn other<E: std::error::Error + Send + Sync + 'static>(what: &str) -> impl FnOnce(E) -> PortError {
    let what = what.to_owned();
    |source| PortError::Other { what, source: Box::new(source) }
}
