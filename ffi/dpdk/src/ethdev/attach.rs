//! Attaching devices by `devargs` and removing them again.

use super::{EthDev, Port, name};
use crate::{Eal, Errno, log};
use dpdk_sys as sys;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::{Arc, Weak};

/// The reason why a device could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Not a device name that a bus or a virtual driver knows.
    #[error(
        "devargs {devargs:?}: no bus and no virtual driver knows such a name: expected NAME[,KEY=VALUE...], like 0000:03:00.0 or net_tap0,iface=tap0"
    )]
    Syntax {
        /// The devargs.
        devargs: String,
    },
    /// The device is attached already.
    #[error("devargs {devargs:?}: the device is attached already: expected another name, like net_tap1")]
    Exists {
        /// The devargs.
        devargs: String,
    },
    /// No bus or no driver knows the device.
    #[error("devargs {devargs:?}: no such device, or no driver for it: {said}. A PCI device must be bound to vfio-pci")]
    NoDevice {
        /// The devargs.
        devargs: String,
        /// DPDK's log messages.
        said: String,
    },
    /// The driver refused.
    #[error("devargs {devargs:?}: {errno}: {said}")]
    Refused {
        /// The devargs.
        devargs: String,
        /// The driver's reason.
        errno: Errno,
        /// DPDK's log messages.
        said: String,
    },
    /// The device is no Ethernet device.
    #[error("devargs {devargs:?}: not an Ethernet device: expected one with a net driver")]
    NotEthernet {
        /// The devargs.
        devargs: String,
    },
}

/// Ports that came with the first port of their device and are not attached yet, by name. The lock is held while a device is
/// attached, so that no other call attaches the device between the check for it and its probe.
static UNCLAIMED: Mutex<BTreeMap<String, Unclaimed>> = Mutex::new(BTreeMap::new());

struct Unclaimed {
    port: u16,
    /// Gone with the last attached port of the device.
    device: Weak<Device>,
}

/// Keeps a stopped port to be attached again by its name, while another port of its device is attached. Returns false for the last
/// port, which goes with the device.
pub(super) fn give_back(port: &Port) -> bool {
    let mut unclaimed = UNCLAIMED.lock();
    let is_shared = Arc::strong_count(&port.device) > 1;
    if is_shared {
        unclaimed.insert(port.name.clone(), Unclaimed { port: port.id, device: Arc::downgrade(&port.device) });
    }
    is_shared
}

/// A device on its bus. Removed when its last port goes.
pub(super) struct Device {
    args: DevArgs,
    _eal: Eal,
}

impl Drop for Device {
    fn drop(&mut self) {
        let this: *const Device = self;
        UNCLAIMED.lock().retain(|_, found| found.device.as_ptr() != this);
        let (removed, said) = log::listen(|| self.args.remove());
        if let Err(errno) = removed {
            tracing::warn!(device = ?self.args.text, %errno, said, "DPDK did not remove a device: its name stays taken");
        }
    }
}

impl EthDev {
    /// Attaches the device that `devargs` name. A device may have several ports, as one with representors has: the first is returned.
    /// Each further one is attached by its own name ([`siblings`](Self::siblings)), while a port of the device is attached.
    pub fn attach(eal: &Eal, devargs: &str) -> Result<EthDev, AttachError> {
        let owned = || devargs.to_owned();
        let mut unclaimed = UNCLAIMED.lock();
        if let Some(device) = unclaimed.get(devargs).and_then(|found| found.device.upgrade())
            && let Some(found) = unclaimed.remove(devargs)
        {
            return Ok(EthDev::new(found.port, device));
        }
        let parsed =
            CString::new(devargs).ok().and_then(DevArgs::parse).ok_or(AttachError::Syntax { devargs: owned() })?;
        // DPDK would take a second probe for a change of the first, and both would own the device.
        if !parsed.ports().is_empty() {
            return Err(AttachError::Exists { devargs: owned() });
        }
        // SAFETY: `text` is a C string, and the EAL is up: the caller has an `Eal`.
        let (returned, said) = log::listen(|| unsafe { sys::rte_dev_probe(parsed.text.as_ptr()) });
        match returned {
            0.. => (),
            n if n == -libc::ENODEV => return Err(AttachError::NoDevice { devargs: owned(), said }),
            n => return Err(AttachError::Refused { devargs: owned(), errno: Errno(-n), said }),
        }
        let ports = parsed.ports();
        let device = Arc::new(Device { args: parsed, _eal: eal.clone() });
        let Some(first) = ports.first().copied() else {
            // The device goes, which looks at the ports that came with it.
            drop(unclaimed);
            return Err(AttachError::NotEthernet { devargs: owned() });
        };
        for port in siblings(first).filter(|port| *port != first) {
            unclaimed.insert(name(port), Unclaimed { port, device: Arc::downgrade(&device) });
        }
        Ok(EthDev::new(first, device))
    }

    /// The names of the device's ports that are not attached.
    pub fn siblings(&self) -> Vec<String> {
        let unclaimed = UNCLAIMED.lock();
        let of_device = |found: &&Unclaimed| found.device.as_ptr() == Arc::as_ptr(&self.port().device);
        unclaimed.iter().filter(|(_, found)| of_device(found)).map(|(name, _)| name.clone()).collect()
    }
}

/// All ports of a port's device. Devargs name representors only where they ask for them.
fn siblings(of: u16) -> impl Iterator<Item = u16> {
    // SAFETY: the caller has port `of` attached, and any number may be given to start from.
    let next = move |start| unsafe { sys::rte_eth_find_next_sibling(start, of) };
    let first = next(0);
    let is_port = |port: &u16| u32::from(*port) < sys::RTE_MAX_ETHPORTS;
    std::iter::successors(Some(first), move |port| Some(next(port + 1))).take_while(is_port)
}

/// `devargs` whose bus is known.
struct DevArgs {
    text: CString,
    raw: sys::rte_devargs,
}

impl DevArgs {
    fn parse(text: CString) -> Option<DevArgs> {
        let mut raw = sys::rte_devargs::default();
        // SAFETY: `text` is a C string, and `raw` is zeroed, as DPDK wants it.
        let (returned, _said) = log::listen(|| unsafe { sys::rte_devargs_parse(&raw mut raw, text.as_ptr()) });
        (returned == 0).then_some(DevArgs { text, raw })
    }

    /// The Ethernet ports that the device has.
    fn ports(&self) -> Vec<u16> {
        let mut ports = Vec::new();
        let mut iterator = sys::rte_dev_iterator::default();
        // SAFETY: `iterator` is zeroed, and `text` is a C string that outlives it.
        if unsafe { sys::rte_eth_iterator_init(&raw mut iterator, self.text.as_ptr()) } != 0 {
            return ports;
        }
        loop {
            // SAFETY: the iterator is initialised; the call that returns no port frees what it holds, and is the last.
            let port = unsafe { sys::rte_eth_iterator_next(&raw mut iterator) };
            if u32::from(port) >= sys::RTE_MAX_ETHPORTS {
                return ports;
            }
            ports.push(port);
        }
    }

    /// Takes the device off its bus. By name: DPDK's own record of it may have moved.
    fn remove(&self) -> Result<(), Errno> {
        // SAFETY: `parse` succeeded, so `bus` leads to a bus, which is never freed.
        let bus = unsafe { sys::rte_bus_name(self.raw.bus) };
        // SAFETY: both names are C strings.
        Errno::check(unsafe { sys::rte_eal_hotplug_remove(bus, self.raw.name.as_ptr()) })
    }
}

// SAFETY: what DPDK allocated for it has no other user and no thread of its own.
unsafe impl Send for DevArgs {}
// SAFETY: shared use reads alone: only the drop changes it.
unsafe impl Sync for DevArgs {}

impl Drop for DevArgs {
    fn drop(&mut self) {
        // SAFETY: `parse` succeeded, so DPDK allocated the parts that this frees; nothing uses them afterwards.
        unsafe { sys::rte_devargs_reset(&raw mut self.raw) };
    }
}
