//! Configuring and starting a device, which returns its queues; and stopping it, once they are dropped.

use super::{DeviceError, EthDev, Port};
use crate::{Errno, Mempool, RxQueue, TxCapabilities, TxQueue, flow, log};
use dpdk_sys as sys;
use std::ptr::null;
use std::sync::Arc;

/// The configuration of a device.
#[derive(Clone, Debug)]
pub struct EthDevConfig {
    /// Pool that packets are received into.
    pub pool: Mempool,
    /// Number of receive queues; RSS spreads packets over them.
    pub rx_queues: u16,
    /// Number of send queues.
    pub tx_queues: u16,
    /// Descriptors of each receive queue; the driver may take fewer or more.
    pub rx_descriptors: u16,
    /// Descriptors of each send queue.
    pub tx_descriptors: u16,
    /// New MTU; `None` leaves it.
    pub mtu: Option<u16>,
    /// Whether to receive packets to other addresses, too.
    pub promiscuous: bool,
}

impl EthDevConfig {
    /// One queue each way, in promiscuous mode, as a switch needs it.
    pub fn new(pool: &Mempool) -> EthDevConfig {
        EthDevConfig {
            pool: pool.clone(),
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: None,
            promiscuous: true,
        }
    }
}

/// The queues of a running device, for workers.
#[derive(Debug)]
pub struct Queues {
    /// Receive queues.
    pub rx: Vec<RxQueue>,
    /// Send queues.
    pub tx: Vec<TxQueue>,
}

/// The reason why a device did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device runs and its queues are in use, or it cannot be queried.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A step of the start failed.
    #[error("{device}: {step}: {errno}: {said}")]
    Step {
        /// Name of the device.
        device: String,
        /// The step, with its numbers.
        step: String,
        /// The driver's error number.
        errno: Errno,
        /// DPDK's log messages.
        said: String,
    },
}

/// The fields that RSS hashes.
const RSS: u64 = sys::RTE_ETH_RSS_IP as u64
    | sys::RTE_ETH_RSS_TCP as u64
    | sys::RTE_ETH_RSS_UDP as u64
    | sys::RTE_ETH_RSS_SCTP as u64;

/// Offloads to enable where the device has them. Not `MBUF_FAST_FREE`: packets come from several pools.
const RX_OFFLOADS: u64 = sys::RTE_ETH_RX_OFFLOAD_IPV4_CKSUM as u64
    | sys::RTE_ETH_RX_OFFLOAD_TCP_CKSUM as u64
    | sys::RTE_ETH_RX_OFFLOAD_UDP_CKSUM as u64
    | sys::RTE_ETH_RX_OFFLOAD_SCATTER as u64;
const TX_OFFLOADS: u64 = sys::RTE_ETH_TX_OFFLOAD_IPV4_CKSUM as u64
    | sys::RTE_ETH_TX_OFFLOAD_TCP_CKSUM as u64
    | sys::RTE_ETH_TX_OFFLOAD_UDP_CKSUM as u64
    | sys::RTE_ETH_TX_OFFLOAD_SCTP_CKSUM as u64
    | sys::RTE_ETH_TX_OFFLOAD_TCP_TSO as u64
    | sys::RTE_ETH_TX_OFFLOAD_UDP_TSO as u64
    | sys::RTE_ETH_TX_OFFLOAD_MULTI_SEGS as u64;

impl EthDev {
    /// Configures and starts the device, and returns its queues. A running device is stopped first, if its queues are dropped.
    pub fn start(&mut self, config: &EthDevConfig) -> Result<Queues, StartError> {
        self.stop()?;
        let info = self.raw_info()?;
        self.check_config(config, &info)?;
        self.configure(config, &info)?;
        *self.port.flow_queue() = flow::configure(self.port.id);
        let (mut rx, mut tx) = (config.rx_descriptors, config.tx_descriptors);
        let id = self.port.id;
        // SAFETY: lent-port; both pointers lead to locals.
        self.step("adjust descriptors", || unsafe {
            sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &raw mut rx, &raw mut tx)
        })?;
        // SAFETY: lent-port.
        let socket = unsafe { sys::rte_eth_dev_socket_id(id) } as u32;
        for queue in 0..config.rx_queues {
            // SAFETY: lent-port and live-pool: the port keeps the pool until it is stopped. Null means the driver's configuration.
            self.step(format!("set up receive queue {queue} of {rx} descriptors"), || unsafe {
                sys::rte_eth_rx_queue_setup(id, queue, rx, socket, null(), config.pool.as_ptr())
            })?;
        }
        for queue in 0..config.tx_queues {
            // SAFETY: lent-port; null means the driver's configuration.
            self.step(format!("set up send queue {queue} of {tx} descriptors"), || unsafe {
                sys::rte_eth_tx_queue_setup(id, queue, tx, socket, null())
            })?;
        }
        self.idle_port("start")?.pool = Some(config.pool.clone());
        // SAFETY: lent-port; an unconfigured device is refused.
        self.step("start", || unsafe { sys::rte_eth_dev_start(id) })?;
        self.idle_port("start")?.running = true;
        if let Err(error) = self.set_promiscuous(config.promiscuous) {
            tracing::debug!(%error, "promiscuous mode stays as it is");
        }
        let capabilities = TxCapabilities::new(TX_OFFLOADS & info.tx_offload_capa);
        Ok(Queues {
            rx: (0..config.rx_queues).map(|queue| RxQueue::new(self.port.clone(), queue)).collect(),
            tx: (0..config.tx_queues).map(|queue| TxQueue::new(self.port.clone(), queue, capabilities)).collect(),
        })
    }

    /// Stops the device, whose queues are dropped. Its packets return to their pool.
    pub fn stop(&mut self) -> Result<(), DeviceError> {
        let port = self.idle_port("stop")?;
        if port.running {
            // SAFETY: lent-port; `idle_port` found no queue in use, so no thread is in the device.
            let returned = unsafe { sys::rte_eth_dev_stop(port.id) };
            port.running = returned < 0;
            self.check("stop", returned)?;
        }
        Ok(())
    }

    /// The port, while it has no queue in use and no rule.
    fn idle_port(&mut self, what: &'static str) -> Result<&mut Port, DeviceError> {
        let (users, device) = (Arc::strong_count(&self.port) - 1, self.port.name.clone());
        Arc::get_mut(&mut self.port).ok_or(DeviceError::InUse { device, what, users })
    }

    fn check_config(&self, config: &EthDevConfig, info: &sys::rte_eth_dev_info) -> Result<(), DeviceError> {
        let range = |what, got: u16, min: u16, max: u16| match got {
            got if (min..=max).contains(&got) => Ok(()),
            got => Err(self.invalid(what, got.to_string(), format!("{min} to {max}"))),
        };
        range("receive queues", config.rx_queues, 1, info.max_rx_queues)?;
        range("send queues", config.tx_queues, 1, info.max_tx_queues)?;
        config.mtu.map_or(Ok(()), |mtu| range("MTU", mtu, info.min_mtu, info.max_mtu))
    }

    fn configure(&self, config: &EthDevConfig, info: &sys::rte_eth_dev_info) -> Result<(), StartError> {
        let mut conf = sys::rte_eth_conf::default();
        conf.rxmode.mtu = config.mtu.map_or(0, u32::from);
        conf.rxmode.offloads = RX_OFFLOADS & info.rx_offload_capa;
        conf.txmode.offloads = TX_OFFLOADS & info.tx_offload_capa;
        let hashes = RSS & info.flow_type_rss_offloads;
        if config.rx_queues > 1 && hashes != 0 {
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            conf.rxmode.offloads |= u64::from(sys::RTE_ETH_RX_OFFLOAD_RSS_HASH) & info.rx_offload_capa;
            conf.rx_adv_conf.rss_conf.rss_hf = hashes;
        }
        let step = format!("configure {} receive and {} send queues", config.rx_queues, config.tx_queues);
        // SAFETY: lent-port; `conf` outlives the call.
        self.step(step, || unsafe {
            sys::rte_eth_dev_configure(self.port.id, config.rx_queues, config.tx_queues, &raw const conf)
        })
    }

    fn step(&self, step: impl Into<String>, call: impl FnOnce() -> i32) -> Result<(), StartError> {
        let (returned, said) = log::listen(call);
        let device = || self.port.name.clone();
        Errno::check(returned).map_err(|errno| StartError::Step { device: device(), step: step.into(), errno, said })
    }
}
