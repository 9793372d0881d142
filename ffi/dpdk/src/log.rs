//! DPDK's log: into `tracing`, and the errors of a call into that call's error.

use dpdk_sys as sys;
use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

/// Largest number of bytes of DPDK's messages in an error.
const SAID_LIMIT: usize = 1024;

thread_local! {
    /// DPDK's complaints on this thread, while [`listen`] runs.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `call` and returns what DPDK logged as a warning or worse meanwhile on this thread, in one line.
pub(crate) fn listen<T>(call: impl FnOnce() -> T) -> (T, String) {
    SAID.set(Some(String::new()));
    let result = call();
    (result, SAID.take().unwrap_or_default())
}

/// Sends DPDK's log to us. Called once, before the EAL starts.
pub(crate) fn redirect() {
    let functions = sys::cookie_io_functions_t { write: Some(write), ..Default::default() };
    // SAFETY: `write` does not use the cookie, and the mode is a C string.
    let stream = unsafe { sys::fopencookie(null_mut(), c"w".as_ptr(), functions) };
    if !stream.is_null() {
        // SAFETY: the stream is open, and is never closed.
        let _ = unsafe { sys::rte_openlog_stream(stream) };
    }
}

/// stdio's write function: whole messages, as DPDK flushes after each.
unsafe extern "C" fn write(_cookie: *mut c_void, bytes: *const c_char, len: usize) -> sys::__ssize_t {
    // SAFETY: stdio passes `len` readable bytes, for the time of the call.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) };
    // SAFETY: `rte_log_cur_msg_loglevel` has no precondition: it reads a thread-local integer.
    let level = unsafe { sys::rte_log_cur_msg_loglevel() } as u32;
    // A panic must not cross into C; a subscriber that panics loses a line.
    let _ = std::panic::catch_unwind(|| {
        String::from_utf8_lossy(bytes).lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| {
            emit(level, line);
            if level <= sys::RTE_LOG_WARNING {
                remember(line);
            }
        });
    });
    len as sys::__ssize_t
}

fn emit(level: u32, line: &str) {
    match level {
        ..=sys::RTE_LOG_ERR => tracing::error!(target: "dpdk", "{line}"),
        sys::RTE_LOG_WARNING => tracing::warn!(target: "dpdk", "{line}"),
        sys::RTE_LOG_NOTICE | sys::RTE_LOG_INFO => tracing::debug!(target: "dpdk", "{line}"),
        _ => tracing::trace!(target: "dpdk", "{line}"),
    }
}

fn remember(line: &str) {
    SAID.with_borrow_mut(|said| {
        let Some(said) = said else { return };
        if said.len() + line.len() < SAID_LIMIT {
            if !said.is_empty() {
                said.push_str("; ");
            }
            said.push_str(line);
        }
    });
}
