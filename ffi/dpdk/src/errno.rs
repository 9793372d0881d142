//! Error numbers: the system's and DPDK's own.

use dpdk_sys as sys;
use std::fmt;

/// An error number, positive, as DPDK returns it or leaves it in `rte_errno`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The error number of the calling thread's last failed call.
    pub(crate) fn last() -> Errno {
        // SAFETY: `dpdk_errno` has no precondition: it reads a thread-local integer.
        Errno(unsafe { sys::dpdk_errno() })
    }

    /// The error number of a call that returns it negated.
    pub(crate) fn check(returned: i32) -> Result<(), Errno> {
        if returned < 0 { Err(Errno(-returned)) } else { Ok(()) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 as u32 {
            sys::E_RTE_SECONDARY => f.write_str("not allowed in a secondary process"),
            sys::E_RTE_NO_CONFIG => f.write_str("no EAL configuration"),
            _ => std::io::Error::from_raw_os_error(self.0).fmt(f),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
