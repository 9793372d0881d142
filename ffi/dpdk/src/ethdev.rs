//! Ethernet devices: attach, configure, start, query, stop, remove.

mod attach;
mod start;

pub use attach::AttachError;
pub use start::{EthDevConfig, Queues, StartError};

use crate::{Errno, Mempool};
use attach::Device;
use dpdk_sys as sys;
use parking_lot::{Mutex, MutexGuard};
use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::sync::Arc;

/// An Ethernet device of DPDK. The drop stops and removes it, as soon as its queues are dropped too.
pub struct EthDev {
    port: Arc<Port>,
    /// DPDK wants one thread at a time to change a device.
    one_thread: PhantomData<Cell<()>>,
}

/// A port of DPDK, owned by its handle and, while it runs, by its queues.
pub(crate) struct Port {
    id: u16,
    name: String,
    running: bool,
    /// Pool that the running device receives into.
    pool: Option<Mempool>,
    /// Size of the flow queue, while no [`crate::flow::FlowQueue`] owns it.
    flow_queue: Mutex<Option<u32>>,
    /// Removed after its last port.
    device: Arc<Device>,
}

impl Port {
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Size of the port's flow queue, while no [`crate::flow::FlowQueue`] owns it.
    pub(crate) fn flow_queue(&self) -> MutexGuard<'_, Option<u32>> {
        self.flow_queue.lock()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if self.running {
            // SAFETY: lent-port; this is the last `Arc`, so no queue is in use. A device that is gone is refused.
            let _ = unsafe { sys::rte_eth_dev_stop(self.id) };
        }
        if !attach::give_back(self) {
            // SAFETY: lent-port; the port is stopped, and the last `Arc` to it goes.
            let _ = unsafe { sys::rte_eth_dev_close(self.id) };
        }
    }
}

/// The properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name on the bus: a PCI address, or the first part of `devargs`.
    pub name: String,
    /// Name of the driver.
    pub driver: String,
    /// NUMA node, where the device has one.
    pub numa_node: Option<u32>,
    /// Largest number of receive queues.
    pub max_rx_queues: u16,
    /// Largest number of send queues.
    pub max_tx_queues: u16,
    /// Smallest MTU.
    pub min_mtu: u16,
    /// Largest MTU.
    pub max_mtu: u16,
    /// Offloads on receive: `RTE_ETH_RX_OFFLOAD_*`.
    pub rx_offloads: u64,
    /// Offloads on send: `RTE_ETH_TX_OFFLOAD_*`.
    pub tx_offloads: u64,
}

/// The state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether the link is up.
    pub up: bool,
    /// Speed in Mbit/s, where it is known.
    pub speed: Option<u32>,
    /// Whether both directions work at once.
    pub full_duplex: bool,
}

/// Counters of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the device dropped, as they were not received in time.
    pub rx_missed: u64,
    /// Bad packets.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets not received as the pool was empty.
    pub rx_no_buffer: u64,
}

/// The reason why an operation on a device failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Queues are still with workers, or flow rules are in it.
    #[error("{device}: {what}: {users} of its queues and flow rules are in use: take them back first")]
    InUse {
        /// Name of the device.
        device: String,
        /// The operation.
        what: &'static str,
        /// Number of queues and rules in use.
        users: usize,
    },
    /// The driver does not support the operation.
    #[error("{device}: {what}: the driver does not support that")]
    Unsupported {
        /// Name of the device.
        device: String,
        /// The operation.
        what: &'static str,
    },
    /// The device is gone.
    #[error("{device}: {what}: the device is gone: remove the port")]
    Gone {
        /// Name of the device.
        device: String,
        /// The operation.
        what: &'static str,
    },
    /// The value is not accepted.
    #[error("{device}: {what}: got {got}, expected {expected}")]
    Invalid {
        /// Name of the device.
        device: String,
        /// The operation.
        what: &'static str,
        /// The value.
        got: String,
        /// The accepted values.
        expected: String,
    },
    /// Anything else.
    #[error("{device}: {what}: {errno}")]
    Failed {
        /// Name of the device.
        device: String,
        /// The operation.
        what: &'static str,
        /// DPDK's reason.
        errno: Errno,
    },
}

impl EthDev {
    fn new(id: u16, device: Arc<Device>) -> EthDev {
        let name = name(id);
        let port = Arc::new(Port { id, name, running: false, pool: None, flow_queue: Mutex::default(), device });
        EthDev { port, one_thread: PhantomData }
    }

    /// DPDK's number for it, which [`packet::Mbuf::port`] carries.
    pub fn port_id(&self) -> u16 {
        self.port.id
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Name of the device on its bus.
    pub fn name(&self) -> &str {
        &self.port.name
    }

    /// The properties of the device.
    pub fn info(&self) -> Result<DeviceInfo, DeviceError> {
        let raw = self.raw_info()?;
        // SAFETY: the device exists; without a node the answer is negative.
        let node = unsafe { sys::rte_eth_dev_socket_id(self.port.id) };
        Ok(DeviceInfo {
            name: self.port.name.clone(),
            // SAFETY: a C string of the driver, or null.
            driver: unsafe { text(raw.driver_name) },
            numa_node: u32::try_from(node).ok(),
            max_rx_queues: raw.max_rx_queues,
            max_tx_queues: raw.max_tx_queues,
            min_mtu: raw.min_mtu,
            max_mtu: raw.max_mtu,
            rx_offloads: raw.rx_offload_capa,
            tx_offloads: raw.tx_offload_capa,
        })
    }

    pub(crate) fn raw_info(&self) -> Result<sys::rte_eth_dev_info, DeviceError> {
        let mut raw = sys::rte_eth_dev_info::default();
        // SAFETY: lent-port; `raw` has room for the counters.
        self.check("read its information", unsafe { sys::rte_eth_dev_info_get(self.port.id, &raw mut raw) })?;
        Ok(raw)
    }

    /// MAC address of the device.
    pub fn mac(&self) -> Result<[u8; 6], DeviceError> {
        let mut mac = sys::rte_ether_addr::default();
        // SAFETY: lent-port; `mac` has room for an address.
        self.check("read its MAC address", unsafe { sys::rte_eth_macaddr_get(self.port.id, &raw mut mac) })?;
        Ok(mac.addr_bytes)
    }

    /// Gives it another MAC address.
    pub fn set_mac(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        let mut raw = sys::rte_ether_addr { addr_bytes: mac };
        // SAFETY: lent-port; `raw` is an address.
        match unsafe { sys::rte_eth_dev_default_mac_addr_set(self.port.id, &raw mut raw) } {
            failed if failed == -libc::EINVAL => {
                Err(self.invalid("set its MAC address", format!("{mac:02x?}"), "a unicast address that is not zero"))
            }
            returned => self.check("set its MAC address", returned),
        }
    }

    /// MTU of the device.
    pub fn mtu(&self) -> Result<u16, DeviceError> {
        let mut mtu = 0;
        // SAFETY: lent-port; `mtu` has room for a number.
        self.check("read its MTU", unsafe { sys::rte_eth_dev_get_mtu(self.port.id, &raw mut mtu) })?;
        Ok(mtu)
    }

    /// Sets its MTU. Some drivers want to be stopped for that.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        let info = self.raw_info()?;
        // SAFETY: lent-port.
        match unsafe { sys::rte_eth_dev_set_mtu(self.port.id, mtu) } {
            failed if failed == -libc::EINVAL => {
                let expected = format!("{} to {}", info.min_mtu, info.max_mtu);
                Err(self.invalid("set its MTU", mtu.to_string(), expected))
            }
            returned => self.check("set its MTU", returned),
        }
    }

    /// The link, without waiting for one that is coming up.
    pub fn link(&self) -> Result<Link, DeviceError> {
        let mut link = sys::rte_eth_link::default();
        // SAFETY: lent-port; `link` has room for the link.
        self.check("read its link", unsafe { sys::rte_eth_link_get_nowait(self.port.id, &raw mut link) })?;
        let known = ![0, sys::RTE_ETH_SPEED_NUM_UNKNOWN].contains(&link.link_speed);
        Ok(Link {
            up: u32::from(link.link_status()) == sys::RTE_ETH_LINK_UP,
            speed: known.then_some(link.link_speed),
            full_duplex: u32::from(link.link_duplex()) == sys::RTE_ETH_LINK_FULL_DUPLEX,
        })
    }

    /// Takes the link up or down.
    pub fn set_link(&mut self, up: bool) -> Result<(), DeviceError> {
        let set_link = if up { sys::rte_eth_dev_set_link_up } else { sys::rte_eth_dev_set_link_down };
        // SAFETY: lent-port.
        let returned = unsafe { set_link(self.port.id) };
        self.check("change its link", returned)
    }

    /// Receives what is for others, too, or not.
    pub fn set_promiscuous(&mut self, promiscuous: bool) -> Result<(), DeviceError> {
        let set = if promiscuous { sys::rte_eth_promiscuous_enable } else { sys::rte_eth_promiscuous_disable };
        // SAFETY: lent-port.
        let returned = unsafe { set(self.port.id) };
        self.check("change promiscuous mode", returned)
    }

    /// Counters of the device since it was attached or [reset](Self::reset_stats).
    pub fn stats(&self) -> Result<Stats, DeviceError> {
        let mut raw = sys::rte_eth_stats::default();
        // SAFETY: lent-port; `raw` has room for the counters.
        self.check("read its counters", unsafe { sys::rte_eth_stats_get(self.port.id, &raw mut raw) })?;
        Ok(Stats {
            rx_packets: raw.ipackets,
            rx_bytes: raw.ibytes,
            tx_packets: raw.opackets,
            tx_bytes: raw.obytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors,
            tx_errors: raw.oerrors,
            rx_no_buffer: raw.rx_nombuf,
        })
    }

    /// Counters by the driver's own names.
    pub fn extended_stats(&self) -> Result<Vec<(String, u64)>, DeviceError> {
        const WHAT: &str = "read its extended counters";
        let id = self.port.id;
        // SAFETY: lent-port; null with no room asks for the count alone.
        let count = unsafe { sys::rte_eth_xstats_get_names(id, std::ptr::null_mut(), 0) };
        self.check(WHAT, count)?;
        let mut names = vec![sys::rte_eth_xstat_name::default(); count as usize];
        let mut values = vec![sys::rte_eth_xstat::default(); count as usize];
        // SAFETY: lent-port; `names` has room for `count`, and more is reported but not written.
        let named = unsafe { sys::rte_eth_xstats_get_names(id, names.as_mut_ptr(), count as u32) };
        // SAFETY: lent-port; `values` has room for `count`, and more is reported but not written.
        let valued = unsafe { sys::rte_eth_xstats_get(id, values.as_mut_ptr(), count as u32) };
        self.check(WHAT, named)?;
        self.check(WHAT, valued)?;
        values.truncate(valued as usize);
        let name = |stat: &sys::rte_eth_xstat| names.get(stat.id as usize).map(|name| chars(&name.name));
        Ok(values.iter().filter_map(|stat| Some((name(stat)?, stat.value))).collect())
    }

    /// Sets its counters to zero.
    pub fn reset_stats(&mut self) -> Result<(), DeviceError> {
        // SAFETY: lent-port.
        self.check("reset its counters", unsafe { sys::rte_eth_stats_reset(self.port.id) })
    }

    /// Whether its hardware was taken away.
    pub fn is_gone(&self) -> bool {
        // SAFETY: lent-port.
        unsafe { sys::rte_eth_dev_is_removed(self.port.id) == 1 }
    }

    /// The result of a call that returned this number.
    fn check(&self, what: &'static str, returned: i32) -> Result<(), DeviceError> {
        let device = || self.port.name.clone();
        Errno::check(returned).map_err(|errno| match errno.0 {
            libc::ENOTSUP | libc::ENOSYS => DeviceError::Unsupported { device: device(), what },
            libc::ENODEV | libc::EIO => DeviceError::Gone { device: device(), what },
            _ => DeviceError::Failed { device: device(), what, errno },
        })
    }

    fn invalid(&self, what: &'static str, got: String, expected: impl Into<String>) -> DeviceError {
        DeviceError::Invalid { device: self.port.name.clone(), what, got, expected: expected.into() }
    }
}

impl std::fmt::Debug for EthDev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EthDev({}, port {})", self.port.name, self.port.id)
    }
}

/// A port's name.
fn name(id: u16) -> String {
    let mut name = [0; sys::RTE_ETH_NAME_MAX_LEN as usize];
    // SAFETY: `name` has the room that DPDK writes, and an unknown port is refused.
    if unsafe { sys::rte_eth_dev_get_name_by_port(id, name.as_mut_ptr()) } < 0 {
        return format!("port {id}");
    }
    chars(&name)
}

/// A C string in an array that is long enough.
fn chars(bytes: &[c_char]) -> String {
    bytes.iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte as u8)).collect()
}

/// A C string, or nothing.
///
/// # Safety
/// `pointer` is null or leads to a C string.
pub(crate) unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller passes a C string, and it is not null.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
