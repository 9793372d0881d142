//! Attaching devices by `devargs` and removing them again.

use super::EthDev;
use crate::{Eal, Errno, log};
use dpdk_sys as sys;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

/// Why a device could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Not a device name that a bus or a virtual driver knows.
    #[error(
        "devargs {devargs:?}: no bus and no virtual driver knows such a name: expected NAME[,KEY=VALUE...], like 0000:03:00.0 or net_tap0,iface=tap0"
    )]
    Syntax {
        /// What was given.
        devargs: String,
    },
    /// It is there already.
    #[error("devargs {devargs:?}: the device is attached already: expected another name, like net_tap1")]
    Exists {
        /// What was given.
        devargs: String,
    },
    /// No bus or no driver knows it.
    #[error("devargs {devargs:?}: no such device, or no driver for it: {said}. A PCI device must be bound to vfio-pci")]
    NoDevice {
        /// What was given.
        devargs: String,
        /// What DPDK logged.
        said: String,
    },
    /// The driver refused.
    #[error("devargs {devargs:?}: {errno}: {said}")]
    Refused {
        /// What was given.
        devargs: String,
        /// The driver's reason.
        errno: Errno,
        /// What DPDK logged.
        said: String,
    },
    /// It is a device of another kind.
    #[error("devargs {devargs:?}: not an Ethernet device: expected one with a net driver")]
    NotEthernet {
        /// What was given.
        devargs: String,
    },
}

/// Between the look whether a device is there and its probe, nobody else may attach.
static ATTACHING: Mutex<()> = Mutex::new(());

/// A device on its bus. Removed when its last port goes.
pub(super) struct Device {
    args: DevArgs,
    _eal: Eal,
}

impl Drop for Device {
    fn drop(&mut self) {
        let (removed, said) = log::listen(|| self.args.remove());
        if let Err(errno) = removed {
            tracing::warn!(device = ?self.args.text, %errno, said, "DPDK did not remove a device: its name stays taken");
        }
    }
}

impl EthDev {
    /// Attaches what `devargs` name: one port mostly, several where the device has several or representors are asked for.
    pub fn attach(eal: &Eal, devargs: &str) -> Result<Vec<EthDev>, AttachError> {
        let owned = || devargs.to_owned();
        let parsed =
            CString::new(devargs).ok().and_then(DevArgs::parse).ok_or(AttachError::Syntax { devargs: owned() })?;
        let _one_at_a_time = ATTACHING.lock().expect("no panic under this lock");
        // DPDK would take a second probe for a change of the first, and both would own the device.
        if !parsed.ports().is_empty() {
            return Err(AttachError::Exists { devargs: owned() });
        }
        // SAFETY: a C string.
        let (returned, said) = log::listen(|| unsafe { sys::rte_dev_probe(parsed.text.as_ptr()) });
        match returned {
            0.. => (),
            n if n == -libc::ENODEV => return Err(AttachError::NoDevice { devargs: owned(), said }),
            n => return Err(AttachError::Refused { devargs: owned(), errno: Errno(-n), said }),
        }
        let ports = parsed.ports();
        let device = Arc::new(Device { args: parsed, _eal: eal.clone() });
        if ports.is_empty() {
            return Err(AttachError::NotEthernet { devargs: owned() });
        }
        Ok(ports.into_iter().map(|port| EthDev::new(port, device.clone())).collect())
    }
}

/// `devargs` whose bus is known.
struct DevArgs {
    text: CString,
    raw: sys::rte_devargs,
}

impl DevArgs {
    fn parse(text: CString) -> Option<DevArgs> {
        let mut raw = sys::rte_devargs::default();
        // SAFETY: a C string; `raw` is zeroed, as DPDK wants it.
        let (returned, _said) = log::listen(|| unsafe { sys::rte_devargs_parse(&raw mut raw, text.as_ptr()) });
        (returned == 0).then_some(DevArgs { text, raw })
    }

    /// The Ethernet ports that the device has.
    fn ports(&self) -> Vec<u16> {
        let mut ports = Vec::new();
        let mut iterator = sys::rte_dev_iterator::default();
        // SAFETY: a C string that lives on; the iterator is used to its end, which frees what it holds.
        unsafe {
            if sys::rte_eth_iterator_init(&raw mut iterator, self.text.as_ptr()) != 0 {
                return ports;
            }
            loop {
                let port = sys::rte_eth_iterator_next(&raw mut iterator);
                if u32::from(port) >= sys::RTE_MAX_ETHPORTS {
                    return ports;
                }
                ports.push(port);
            }
        }
    }

    /// Takes the device off its bus. By name: DPDK's own record of it may have moved.
    fn remove(&self) -> Result<(), Errno> {
        // SAFETY: the bus is set where parsing succeeded, and both names are C strings.
        Errno::check(unsafe { sys::rte_eal_hotplug_remove(sys::rte_bus_name(self.raw.bus), self.raw.name.as_ptr()) })
    }
}

// SAFETY: what DPDK allocated for it is its own.
unsafe impl Send for DevArgs {}
// SAFETY: as above, and nothing changes it.
unsafe impl Sync for DevArgs {}

impl Drop for DevArgs {
    fn drop(&mut self) {
        // SAFETY: parsed by DPDK, which allocated parts.
        unsafe { sys::rte_devargs_reset(&raw mut self.raw) };
    }
}
