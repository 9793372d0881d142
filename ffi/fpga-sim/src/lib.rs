//! `librte_net_fpgasim.so`: a driver for DPDK 22.11 that is a model of an FPGA NIC with an embedded switch. Any DPDK program
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
//! - [`config`]: the device's arguments, sizes and injected faults.
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
//! # Rules by queues
//! A pattern template names items and masks, a relaxed one skips items without a mask; an item without a mask matches that its
//! header is there. An actions template leaves to each rule the values that its mask has zeros for. A table translates each pair
//! of them once. `rte_flow_async_create` refuses what cannot be at once, with the clause; what the tables say, full or the same rule
//! there, comes as the error of a completion. What is enqueued is done at the next push of its queue, in order, an operation
//! without `postpone` being a push too. An operation has its place in the queue until its completion is pulled. Rules are the same
//! to query, destroy, flush and age, whichever way they came. Queues have no aged rules of their own (no `STRICT_QUEUE`).
//!
//! COUNT, AGE and RSS can be shared by handles (INDIRECT), and CONNTRACK comes by a handle alone. METER names a meter of `rte_mtr`:
//! RFC 2697 in its color-blind mode, on bytes, with a policy that lets each color pass or drops it.
//!
//! # Connections
//! CONNTRACK judges the packets of a rule as of one direction of a TCP connection: the one that the connection had when the rule was
//! made. A CONNTRACK item in a later group of the same domain matches what it said. It drops and changes nothing itself, and a packet
//! that is not valid does not change it. Windows are checked as Linux does, sequence numbers of RST by RFC 5961. A segment with data
//! that comes again is valid `retransmission_limit` times in a row, an ACK however often; `max_ack_window` is the shift of 65535 that
//! an ACK may be behind. A connection that is reset is in TIME_WAIT, the last of the states.
//!
//! # Restore data
//! A packet that missed in a later group than 0, left a VXLAN tunnel before it missed, or was aborted in the middle has restore
//! data: the group, and the tunnel's headers. The device knows those of the last 65536 such packets.
//!
//! # Fault injection
//! By argument, and while the device runs by telemetry (`/fpgasim/trouble,net_fpgasim0,table-full=1,insert-delay-us=50`); 0 or
//! no name ends one: `table-full=1`; `insert-delay-us`, before `rte_flow_create` returns, or a completion comes; `refuse` and
//! `refuse-create` by names of items and actions; `counter-delay-ms`; `reset-after` packets, `reset=1` at once;
//! `lose-completion=N`, of N the last; `abort-after=N`: a packet for which transfer rules would do more than N actions comes to the
//! host as it was received, and none of the rules on its way has counted it.
//!
//! # What is not there
//! METER_MARK, MODIFY_FIELD, SAMPLE, tunnels in tunnels, Geneve decapsulation and flexible items are refused. A reset loses rules,
//! shared actions, connections among them, and meters; templates, tables and queues are the driver's and stay.
//!
//! # Lifecycle and errors
//! The driver registers itself when the library is loaded, and refuses to in a DPDK of another version. A device is there from
//! `probe` until its last port is closed. What `rte_flow` is asked for and the device does not do is refused, by
//! `rte_flow_validate` as by `rte_flow_create`, with the clause and the reason; nothing is taken and ignored.

pub mod config;
pub mod pipeline;
#[cfg(feature = "dpdk")]
#[allow(unsafe_code)] // is called by DPDK and calls it
#[deny(clippy::multiple_unsafe_ops_per_block)]
mod pmd;
#[cfg(feature = "dpdk")]
#[allow(unsafe_code)] // reads the structures that applications hand to rte_flow
#[deny(clippy::multiple_unsafe_ops_per_block)]
mod translate;
