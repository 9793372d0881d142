//! Fault injection while a device runs, by DPDK's telemetry socket:
//!
//! ```text
//! /fpgasim/trouble,net_fpgasim0
//! /fpgasim/trouble,net_fpgasim0,table-full=1,insert-delay-us=50
//! /fpgasim/trouble,net_fpgasim0,reset=1
//! ```
//!
//! The answer has all faults as they are then, or an `error`.

use super::abi;
use super::device::Device;
use parking_lot::Mutex;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Arc, Weak};

static DEVICES: Mutex<Vec<Weak<Device>>> = Mutex::new(Vec::new());

/// Has DPDK call for the commands.
pub(super) fn register() {
    let help = c"Faults of a device. Parameters: its name, and what is to change, as table-full=1";
    // SAFETY: two constant C strings, and a callback that stays.
    let _ = unsafe { abi::rte_telemetry_register_cmd(c"/fpgasim/trouble".as_ptr(), inject, help.as_ptr()) };
}

/// Makes a device known, until it is gone.
pub(super) fn add(device: &Arc<Device>) {
    let mut devices = DEVICES.lock();
    devices.retain(|device| device.strong_count() > 0);
    devices.push(Arc::downgrade(device));
}

fn find(name: &str) -> Option<Arc<Device>> {
    let devices = DEVICES.lock();
    devices.iter().filter_map(Weak::upgrade).find(|device| device.names[0].as_bytes() == name.as_bytes())
}

fn answer(parameters: &str) -> Vec<(&'static str, String)> {
    let (name, changes) = parameters.split_once(',').unwrap_or((parameters, ""));
    let Some(device) = find(name) else { return vec![("error", format!("no device {name}"))] };
    match device.inject_faults(changes) {
        Ok(faults) => faults.shown().into(),
        Err(error) => vec![("error", error.to_string())],
    }
}

unsafe extern "C" fn inject(_command: *const c_char, parameters: *const c_char, data: *mut c_void) -> c_int {
    // SAFETY: DPDK passes null or a C string.
    let parameters = if parameters.is_null() { c"" } else { unsafe { CStr::from_ptr(parameters) } };
    // SAFETY: DPDK passes an answer to fill.
    let _ = unsafe { abi::rte_tel_data_start_dict(data) };
    for (key, value) in answer(&parameters.to_string_lossy()) {
        // DPDK takes letters, digits, underscores and slashes.
        let key = CString::new(key.replace('-', "_")).unwrap_or_default();
        let value = CString::new(value).unwrap_or_default();
        // SAFETY: DPDK passes an answer to fill, which is a dictionary by now; the strings are copied.
        let _ = unsafe { abi::rte_tel_data_add_dict_string(data, key.as_ptr(), value.as_ptr()) };
    }
    0
}
