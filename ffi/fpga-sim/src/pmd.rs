//! What DPDK sees: the driver registered when the library is loaded, a device's ports from probe to remove.

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
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use template::Engine;

/// The DPDK whose driver interface `abi` has.
const VERSION: (u32, u32) = (22, 11);
/// Ports of a device: the physical one and the representors.
const MAX_PORTS: usize = 17;

static LOG_TYPE: AtomicI32 = AtomicI32::new(0);

/// The dynamic loader calls it.
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER: extern "C" fn() = register;

extern "C" fn register() {
    // SAFETY: a C string; integers. The list of drivers is ready before any constructor runs, and the driver stays for ever.
    unsafe {
        LOG_TYPE.store(sys::rte_log_register(c"pmd.net.fpgasim".as_ptr()), Ordering::Relaxed);
        if (sys::rte_version_year(), sys::rte_version_month()) != VERSION {
            return log(sys::RTE_LOG_ERR, "net_fpgasim is for DPDK 22.11 and not registered in this version");
        }
        abi::rte_vdev_register(Box::leak(Box::new(VdevDriver {
            link: Link::NONE,
            driver: Driver { link: Link::NONE, name: c"net_fpgasim".as_ptr(), alias: std::ptr::null() },
            probe: Some(probe),
            remove: Some(remove),
            dma_map: None,
            dma_unmap: None,
            flags: 0,
        })));
        telemetry::register();
    }
}

/// A line in DPDK's log.
fn log(level: u32, line: &str) {
    let line = CString::new(format!("net_fpgasim: {}", line.replace('\0', ""))).unwrap_or_default();
    // SAFETY: a format with one C string.
    unsafe { sys::rte_log(level, LOG_TYPE.load(Ordering::Relaxed) as u32, c"%s\n".as_ptr(), line.as_ptr()) };
}

/// A port of ours.
struct Port {
    device: Arc<Device>,
    index: usize,
    mac: sys::rte_ether_addr,
    engine: Mutex<Engine>,
}

impl Port {
    /// Its queues and templates. Who holds them may lock the device, and not the other way round.
    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The port behind DPDK's structure.
///
/// # Safety
/// `dev` is a port of ours that is not closed.
unsafe fn port<'a>(dev: *mut EthDev) -> &'a Port {
    // SAFETY: as the caller promises; `add_port` has put it there.
    unsafe { &*(*(*dev).data).dev_private.cast::<Port>() }
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
    // SAFETY: DPDK lends a device with a name, and arguments if it has any.
    let (name, args) = unsafe {
        let device = &(*vdev).device;
        let args = device.devargs.as_ref().map_or(std::ptr::null(), |devargs| devargs.__bindgen_anon_1.args);
        let args = if args.is_null() { c"" } else { CStr::from_ptr(args) };
        (CStr::from_ptr(device.name).to_string_lossy().into_owned(), args.to_string_lossy().into_owned())
    };
    // SAFETY: plain integers.
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
    // SAFETY: `vdev` is DPDK's, and stays until it is removed.
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
            // SAFETY: as above; what was made is taken back.
            unsafe { remove(vdev) };
            -libc::ENODEV
        }
    }
}

/// Makes the ports, and then what they are over, so that the application's numbers are in a row.
///
/// # Safety
/// `vdev` is DPDK's and lives until its ports are closed.
unsafe fn create(vdev: *mut VdevDevice, name: &str, config: &Config) -> Result<(), String> {
    let names: Vec<CString> = (0..=config.functions.len()).map(|index| port_name(name, index)).collect();
    let mut domain = 0;
    // SAFETY: fills `domain`.
    if unsafe { abi::rte_eth_switch_domain_alloc(&raw mut domain) } != 0 {
        return Err("no switch domain is left".to_owned());
    }
    let device = Arc::new(Device::new(names, domain, config));
    telemetry::add(&device);
    let mut devs = Vec::new();
    for index in 0..device.names.len() {
        // SAFETY: as the caller promises.
        devs.push(unsafe { add_port(vdev, &device, index)? });
    }
    let mut owner = sys::rte_eth_dev_owner::default();
    // SAFETY: fills `id`.
    unsafe { sys::rte_eth_dev_owner_new(&raw mut owner.id) };
    owner.name.iter_mut().zip(name.bytes().take(63)).for_each(|(place, byte)| *place = byte as _);
    let backends = std::iter::once(config.wire.as_ref()).chain(config.functions.iter().map(Some));
    for (index, backend) in backends.enumerate() {
        let backend = backend.map(|backend| backend::Backend::attach(backend, &owner)).transpose()?;
        device.lock().ports[index].backend = backend;
    }
    for dev in devs {
        // SAFETY: the port is complete.
        unsafe { abi::rte_eth_dev_probing_finish(dev) };
    }
    Ok(())
}

/// # Safety
/// As for [`create`].
unsafe fn add_port(vdev: *mut VdevDevice, device: &Arc<Device>, index: usize) -> Result<*mut EthDev, String> {
    // SAFETY: a C string; what is returned is a fresh port that nobody else sees before it is complete.
    unsafe {
        let dev = abi::rte_eth_dev_allocate(device.names[index].as_ptr());
        if dev.is_null() {
            return Err(format!("no port is left for {}", device.names[index].to_string_lossy()));
        }
        let data = &mut *(*dev).data;
        let [high, low] = data.port_id.to_be_bytes();
        let mac = sys::rte_ether_addr { addr_bytes: [0x02, b'F', b'P', b'G', high, low] };
        let port = Port { device: device.clone(), index, mac, engine: Mutex::default() };
        let port = Box::into_raw(Box::new(port));
        data.dev_private = port.cast();
        data.mac_addrs = &raw mut (*port).mac;
        data.numa_node = (*vdev).device.numa_node;
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
        (*dev).device = &raw mut (*vdev).device;
        (*dev).dev_ops = &raw const ethdev::OPS;
        (*dev).rx_pkt_burst = Some(ethdev::rx_burst);
        (*dev).tx_pkt_burst = Some(ethdev::tx_burst);
        Ok(dev)
    }
}

unsafe extern "C" fn remove(vdev: *mut VdevDevice) -> c_int {
    // SAFETY: DPDK lends a device with a name.
    let name = unsafe { CStr::from_ptr((*vdev).device.name) }.to_string_lossy().into_owned();
    for index in (0..MAX_PORTS).rev() {
        let name = port_name(&name, index);
        // SAFETY: a C string; a port of this device is ours.
        unsafe {
            let dev = abi::rte_eth_dev_allocated(name.as_ptr());
            if !dev.is_null() && (*dev).device == &raw mut (*vdev).device {
                ethdev::close(dev);
                abi::rte_eth_dev_release_port(dev);
            }
        }
    }
    0
}

/// Tells the application of an event of a port.
fn tell(name: &CStr, event: u32) {
    // SAFETY: a C string; the callbacks run without any lock of ours.
    unsafe {
        let dev = abi::rte_eth_dev_allocated(name.as_ptr());
        if !dev.is_null() {
            abi::rte_eth_dev_callback_process(dev, event, null_mut::<c_void>());
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: plain integers; the ports are closed.
        unsafe { abi::rte_eth_switch_domain_free(self.switch_domain) };
    }
}
