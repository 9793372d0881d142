//! The driver as DPDK sees it: registered when the library is loaded, with a device's ports from probe to remove.
//!
//! # Invariant: lent-port
//!
//! ethdev calls an operation of a port only with a port that [`add_port`] made and that [`ethdev::close`] has not freed, and keeps
//! its structures meanwhile. A queue is polled by one thread at a time, and not while it is set up or released.
//!
//! # Invariant: lent-structure
//!
//! A pointer that an application passes to an operation is null where the API allows it. Otherwise it leads to a structure of its
//! type (a list: of the length beside it), initialised if the operation reads it, which nothing else uses during the call.

mod abi;
mod backend;
mod device;
mod ethdev;
mod flow;
mod indirect;
mod mbuf;
mod meter;
mod queue;
mod restore;
mod telemetry;
mod template;

use crate::config::Config;
use abi::{Driver, EthDev, Link, VdevDevice, VdevDriver};
use device::{Device, PortState};
use dpdk_sys as sys;
use parking_lot::{Mutex, MutexGuard};
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use template::Engine;

/// The DPDK whose driver interface `abi` has.
const VERSION: (u32, u32) = (22, 11);
/// Ports of a device: the physical one and the representors.
const MAX_PORTS: usize = 17;

static LOG_TYPE: AtomicI32 = AtomicI32::new(0);

/// The constructor that the dynamic loader calls.
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER: extern "C" fn() = register;

extern "C" fn register() {
    // SAFETY: a C string.
    let log_type = unsafe { sys::rte_log_register(c"pmd.net.fpgasim".as_ptr()) };
    LOG_TYPE.store(log_type, Ordering::Relaxed);
    // SAFETY: `rte_version_year` has no precondition.
    let year = unsafe { sys::rte_version_year() };
    // SAFETY: `rte_version_month` has no precondition.
    let month = unsafe { sys::rte_version_month() };
    if (year, month) != VERSION {
        return log(sys::RTE_LOG_ERR, "net_fpgasim is for DPDK 22.11 and not registered in this version");
    }
    let driver = Box::leak(Box::new(VdevDriver {
        link: Link::NONE,
        driver: Driver { link: Link::NONE, name: c"net_fpgasim".as_ptr(), alias: std::ptr::null() },
        probe: Some(probe),
        remove: Some(remove),
        dma_map: None,
        dma_unmap: None,
        flags: 0,
    }));
    // SAFETY: the list of drivers is ready before any constructor runs, and the driver is never freed.
    unsafe { abi::rte_vdev_register(driver) };
    telemetry::register();
}

/// A line in DPDK's log.
fn log(level: u32, line: &str) {
    let line = CString::new(format!("net_fpgasim: {}", line.replace('\0', ""))).unwrap_or_default();
    let log_type = LOG_TYPE.load(Ordering::Relaxed) as u32;
    // SAFETY: a format with one C string, and that string.
    let _ = unsafe { sys::rte_log(level, log_type, c"%s\n".as_ptr(), line.as_ptr()) };
}

/// A port of ours.
struct Port {
    device: Arc<Device>,
    index: usize,
    mac: sys::rte_ether_addr,
    engine: Mutex<Engine>,
}

impl Port {
    /// Queues and templates of the port. A thread may lock the device while it holds this lock, and not the other way round.
    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock()
    }
}

/// The port behind DPDK's structure.
///
/// # Safety
/// lent-port holds for `dev`.
unsafe fn port<'a>(dev: *mut EthDev) -> &'a Port {
    // SAFETY: lent-port: ethdev keeps the structure.
    let data = unsafe { (*dev).data };
    // SAFETY: lent-port: ethdev keeps the data of the port.
    let port = unsafe { (*data).dev_private };
    // SAFETY: lent-port: `add_port` made the `Port`, and `close` did not free it.
    unsafe { &*port.cast::<Port>() }
}

/// The port's name, the representor's behind the first.
fn port_name(device: &str, index: usize) -> CString {
    let name = match index {
        0 => device.to_owned(),
        index => format!("{device}_representor_{}", index - 1),
    };
    CString::new(name).unwrap_or_default()
}

unsafe extern "C" fn probe(vdev: *mut VdevDevice) -> c_int {
    // SAFETY: the bus passes a device, which it keeps until `remove`.
    let device = unsafe { &(*vdev).device };
    // SAFETY: a device of the bus has a name.
    let name = unsafe { CStr::from_ptr(device.name) }.to_string_lossy().into_owned();
    // SAFETY: null or arguments that the bus keeps as long as the device.
    let args = match unsafe { device.devargs.as_ref() } {
        // SAFETY: both fields of the union are pointers to C strings.
        Some(devargs) => unsafe { devargs.__bindgen_anon_1.args },
        None => std::ptr::null(),
    };
    // SAFETY: not null, so a C string of the arguments.
    let args = if args.is_null() { c"" } else { unsafe { CStr::from_ptr(args) } };
    let args = args.to_string_lossy().into_owned();
    // SAFETY: `rte_eal_process_type` has no precondition.
    if unsafe { sys::rte_eal_process_type() } != sys::RTE_PROC_PRIMARY {
        log(sys::RTE_LOG_ERR, &format!("{name}: not in a secondary process"));
        return -libc::ENOTSUP;
    }
    let config = match Config::parse(&args) {
        Ok(config) => config,
        Err(error) => {
            log(sys::RTE_LOG_ERR, &format!("{name}: argument {error}"));
            return -libc::EINVAL;
        }
    };
    // SAFETY: the bus keeps the device until `remove`.
    match unsafe { create(vdev, &name, &config) } {
        Ok(()) => {
            log(
                sys::RTE_LOG_NOTICE,
                &format!(
                    "{name}: a model of an FPGA network card's function, not of its speed; {} functions, {} exact and {} \
                     masked rules",
                    config.functions.len(),
                    config.limits.exact,
                    config.limits.masked
                ),
            );
            0
        }
        Err(error) => {
            log(sys::RTE_LOG_ERR, &format!("{name}: {error}"));
            // SAFETY: the bus keeps the device, whose ports are not in use yet.
            unsafe { remove(vdev) };
            -libc::ENODEV
        }
    }
}

/// Makes the ports, and then the devices below them, so that the numbers of the ports are consecutive.
///
/// # Safety
/// `vdev` is a device of the bus and lives until its ports are closed.
unsafe fn create(vdev: *mut VdevDevice, name: &str, config: &Config) -> Result<(), String> {
    let names: Vec<CString> = (0..=config.functions.len()).map(|index| port_name(name, index)).collect();
    let mut domain = 0;
    // SAFETY: `domain` has room for a number.
    if unsafe { abi::rte_eth_switch_domain_alloc(&raw mut domain) } != 0 {
        return Err("no switch domain is left".to_owned());
    }
    let device = Arc::new(Device::new(names, domain, config));
    telemetry::add(&device);
    let mut devs = Vec::new();
    for index in 0..device.names.len() {
        // SAFETY: the caller has the device of the bus alive until its ports are closed.
        devs.push(unsafe { add_port(vdev, &device, index)? });
    }
    let mut owner = sys::rte_eth_dev_owner::default();
    // SAFETY: `id` has room for a number.
    let _ = unsafe { sys::rte_eth_dev_owner_new(&raw mut owner.id) };
    owner.name.iter_mut().zip(name.bytes().take(63)).for_each(|(place, byte)| *place = byte as _);
    let backends = std::iter::once(config.wire.as_ref()).chain(config.functions.iter().map(Some));
    for (index, backend) in backends.enumerate() {
        let backend = backend.map(|backend| backend::Backend::attach(backend, &owner)).transpose()?;
        device.lock().ports[index].backend = backend;
    }
    for dev in devs {
        // SAFETY: `add_port` made the port, and the device below it is attached.
        unsafe { abi::rte_eth_dev_probing_finish(dev) };
    }
    Ok(())
}

/// Makes a port.
///
/// # Safety
/// `vdev` is a device of the bus and lives until its ports are closed.
unsafe fn add_port(vdev: *mut VdevDevice, device: &Arc<Device>, index: usize) -> Result<*mut EthDev, String> {
    // SAFETY: a C string.
    let raw = unsafe { abi::rte_eth_dev_allocate(device.names[index].as_ptr()) };
    // SAFETY: null or a fresh port, which nothing else uses before `rte_eth_dev_probing_finish`.
    let Some(dev) = (unsafe { raw.as_mut() }) else {
        return Err(format!("no port is left for {}", device.names[index].to_string_lossy()));
    };
    // SAFETY: a fresh port has data of its own, zeroed but for its number and name.
    let data = unsafe { &mut *dev.data };
    // SAFETY: the caller has the device of the bus alive; it keeps its address.
    let parent = unsafe { &raw mut (*vdev).device };
    let [high, low] = data.port_id.to_be_bytes();
    let mac = sys::rte_ether_addr { addr_bytes: [0x02, b'F', b'P', b'G', high, low] };
    let port = Box::leak(Box::new(Port { device: device.clone(), index, mac, engine: Mutex::default() }));
    data.mac_addrs = &raw mut port.mac;
    data.dev_private = std::ptr::from_mut(port).cast();
    // SAFETY: the caller has the device of the bus alive.
    data.numa_node = unsafe { (*parent).numa_node };
    data.dev_flags = sys::RTE_ETH_DEV_FLOW_OPS_THREAD_SAFE;
    let mut state = device.lock();
    state.ports.push(PortState::new(data.port_id));
    if index > 0 {
        data.dev_flags |= sys::RTE_ETH_DEV_REPRESENTOR;
        data.representor_id = (index - 1) as u16;
        data.backer_port_id = state.ports[0].id;
    }
    data.dev_link.link_speed = sys::RTE_ETH_SPEED_NUM_10G;
    data.dev_link.set_link_duplex(sys::RTE_ETH_LINK_FULL_DUPLEX as u16);
    dev.device = parent;
    dev.dev_ops = &raw const ethdev::OPS;
    dev.rx_pkt_burst = Some(ethdev::rx_burst);
    dev.tx_pkt_burst = Some(ethdev::tx_burst);
    Ok(raw)
}

unsafe extern "C" fn remove(vdev: *mut VdevDevice) -> c_int {
    // SAFETY: the bus passes a device, which it keeps during the call.
    let device = unsafe { &raw mut (*vdev).device };
    // SAFETY: the bus keeps the device.
    let name = unsafe { (*device).name };
    // SAFETY: a device of the bus has a name.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    for index in (0..MAX_PORTS).rev() {
        let name = port_name(&name, index);
        // SAFETY: a C string.
        let dev = unsafe { abi::rte_eth_dev_allocated(name.as_ptr()) };
        // SAFETY: not null, so a port that ethdev keeps.
        if !dev.is_null() && unsafe { (*dev).device } == device {
            // SAFETY: a port of this device is ours, and the application has stopped to use it.
            unsafe { ethdev::close(dev) };
            // SAFETY: the port is closed.
            let _ = unsafe { abi::rte_eth_dev_release_port(dev) };
        }
    }
    0
}

/// Reports an event of a port to the application.
fn tell(name: &CStr, event: u32) {
    // SAFETY: a C string.
    let dev = unsafe { abi::rte_eth_dev_allocated(name.as_ptr()) };
    if !dev.is_null() {
        // SAFETY: a port that ethdev keeps; the callers hold no lock that a callback could need.
        let _ = unsafe { abi::rte_eth_dev_callback_process(dev, event, null_mut::<c_void>()) };
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the domain is of this device, whose ports are closed.
        let _ = unsafe { abi::rte_eth_switch_domain_free(self.switch_domain) };
    }
}
