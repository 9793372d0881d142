//! `librte_net_fpgasim.so`: a driver for DPDK 22.11 that is a model of an FPGA network card with a switch in it. Any DPDK program
//! loads it:
//!
//! ```text
//! dpdk-testpmd -d librte_net_fpgasim.so --vdev 'net_fpgasim0,wire=(net_pcap0,iface=veth0),function=(net_vhost0,iface=/run/g.sock)'
//! ```
//!
//! **It is a model of a device's function, not of its speed.** Packets move when the application polls any of the device's ports,
//! under one lock, on the application's core; a rate measured through it says nothing about hardware. What it models is what an
//! application can see: which rules are taken and which clause of one is refused, tables that fill up, where packets go, what
//! they look like there, what is counted, and what happens when the device misbehaves.
//!
//! - [`pipeline`]: tables, matches, actions, counters and ages. Bytes in, bytes out; safe code, no DPDK.
//! - [`config`]: the device's arguments, sizes and troubles.
//! - `translate` (feature `dpdk`): a pattern and actions of rte_flow to a rule, or the clause that is refused, and why.
//! - `pmd` (feature `dpdk`): what DPDK calls: registration, ports, queues, flow operations.
//!
//! # Ports
//! The device has a physical port, `net_fpgasim0`, over the Ethernet device that `wire` names, and a representor,
//! `net_fpgasim0_representor_N`, for each `function`. Those devices are made, or taken over where they are there already, and
//! hidden from the application. A port must be started for its wire or function to run.
//!
//! A transfer rule without REPRESENTED_PORT or PORT_REPRESENTOR in its pattern sees what comes to its own port from the wire or the
//! function, as mlx5 has it and Open vSwitch 3.1 expects; with the attribute egress, what the host sends through the port.
//! REPRESENTED_PORT without a value means all of them. VLAN-less `eth / ipv4` is untagged; tunnels are known by the ports 4789 and 6081.
//!
//! # Lifecycle and errors
//! The driver registers itself when the library is loaded, and refuses to in a DPDK of another version. A device is there from
//! `probe` until its last port is closed. What `rte_flow` is asked for and the device does not do is refused, by
//! `rte_flow_validate` as by `rte_flow_create`, with the clause and the reason; nothing is taken and ignored.

pub mod config;
pub mod pipeline;
#[cfg(feature = "dpdk")]
#[allow(unsafe_code)] // is called by DPDK and calls it
mod pmd;
#[cfg(feature = "dpdk")]
#[allow(unsafe_code)] // reads the structures that applications hand to rte_flow
mod translate;
