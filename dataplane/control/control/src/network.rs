//! Packets: the switch, its ports, captures of them, and DPDK.

pub(crate) mod captures;
#[cfg(feature = "dpdk")]
pub(crate) mod eal;
pub(crate) mod switching;
