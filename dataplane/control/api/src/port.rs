//! Ports of the switch: kernel taps, DPDK devices, vhost-user devices of guests.

use crate::vhost::{QueueInfo, SocketRole};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The number of a port in flows.
pub type PortNo = u32;

methods! {
    PortGet: "port_get" -> Vec<PortInfo>;
    PortDelete: "port_delete" -> bool;
    PortSetRateLimit: "port_set_rate_limit" -> bool;
    PortMoveQueue: "port_move_queue" -> bool;
    CreateTap: "port_create_tap" -> PortNo;
    CreateDpdk: "port_create_dpdk" -> PortNo;
    CreateVhostUser: "port_create_vhost_user" -> PortNo;
    CreateNetController: "vhost_create_net_controller" -> PortNo;
    GetNetControllers: "vhost_get_net_controllers" -> Vec<NetControllerInfo>;
    MoveQueuePair: "vhost_net_controller_move_queue_pair" -> bool;
}

/// Lists the ports with their counters.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortGet {
    /// List only this port.
    pub name: Option<String>,
}

/// A port of the switch.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PortInfo {
    /// Name of the port.
    pub name: String,
    /// Number of the port in flows.
    pub port_no: PortNo,
    /// The kind of port: vhost-user, tap, dpdk.
    pub kind: String,
    /// The bridge that the port is in.
    pub bridge: Option<String>,
    /// MAC address.
    pub mac: String,
    /// MTU in bytes.
    pub mtu: u16,
    /// Whether the link is up.
    pub link_up: bool,
    /// Number of receive queues.
    pub rx_queues: u16,
    /// The worker of each receive queue, where queues can be moved.
    pub rx_workers: Vec<Option<usize>>,
    /// Number of transmit queues.
    pub tx_queues: u16,
    /// The ingress rate limits that are set, by parameter of `port_set_rate_limit`.
    pub rate_limit: BTreeMap<String, u64>,
    /// Counters of the port: packets, bytes, errors and drops by reason.
    pub stats: BTreeMap<String, u64>,
    /// Counters of the switch for packets received by the port: drops by reason, upcalls.
    pub switch: BTreeMap<String, u64>,
    /// The device of a vhost-user port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<VhostUserInfo>,
}

/// The device of a vhost-user port.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VhostUserInfo {
    /// Path of the socket.
    pub socket: String,
    /// The daemon's role on the socket.
    pub socket_role: SocketRole,
    /// Whether a front-end is connected.
    pub connected: bool,
    /// Why the device is quarantined, until the front-end resets it.
    pub quarantined: Option<String>,
    /// The last refused message of the front-end, or why the last session ended.
    pub last_error: Option<String>,
    /// The queues that a front-end has started: receive and transmit of pair 0, of pair 1, and so on.
    pub queues: Vec<QueueInfo>,
}

/// Deletes a port. It is removed from its bridge first; packets in flight are dropped.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PortDelete {
    /// Name of the port.
    pub name: String,
}

/// Sets the ingress rate limits of a port, over all its queues. Excess packets are dropped and counted. A limit that is not given
/// is removed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortSetRateLimit {
    /// Name of the port.
    pub name: String,
    /// Packets per second.
    pub packets_per_second: Option<u64>,
    /// Burst in packets, at least 32; a tenth of a second's by default.
    pub burst_packets: Option<u64>,
    /// Bits per second, Ethernet headers included.
    pub bits_per_second: Option<u64>,
    /// Burst in bytes, at least 131072; a tenth of a second's by default.
    pub burst_bytes: Option<u64>,
}

/// Moves a receive queue of a port, or a queue pair of a vhost-user port, to another worker without loss. The queue is pinned
/// there until the method is called without a worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortMoveQueue {
    /// Name of the port.
    pub name: String,
    /// Number of the queue, from 0.
    pub queue: u16,
    /// Number of the worker, from 0; without it the queue is unpinned, and the scheduler may move it.
    pub worker: Option<usize>,
}

/// Creates a tap port: a network interface of the host, up, which may be moved into a namespace. It is deleted with the port. The
/// daemon needs CAP_NET_ADMIN.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CreateTap {
    /// Name of the port.
    pub name: String,
    /// Name of the interface, up to 15 bytes; the port's name by default.
    pub ifname: Option<String>,
    /// Number of queues, 1 to 256; 1 by default. Queues are assigned to workers round-robin.
    pub queues: Option<u16>,
    /// MTU of the interface in bytes, 68 to 65521; 1500 by default.
    pub mtu: Option<u16>,
    /// Number of the port in flows; the next free one by default.
    pub port_no: Option<PortNo>,
    /// Upcall rate limit per worker, packets per second; unlimited by default.
    pub upcall_pps: Option<u64>,
}

/// Creates a port of an Ethernet device of DPDK: a NIC, or a virtual device (af_packet, af_xdp, pcap, memif, tap, null). The first
/// one starts DPDK with the daemon's --eal options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CreateDpdk {
    /// Name of the port.
    pub name: String,
    /// The device in DPDK's notation: 0000:03:00.0, or `net_af_packet0,iface=eth1`.
    pub devargs: String,
    /// Number of queues in each direction; by default one for each worker, as far as the device has them. Queues are assigned to
    /// workers round-robin.
    pub queues: Option<u16>,
    /// MTU to set, in bytes; the device's by default.
    pub mtu: Option<u16>,
    /// Number of the port in flows; the next free one by default.
    pub port_no: Option<PortNo>,
    /// Upcall rate limit per worker, packets per second; unlimited by default.
    pub upcall_pps: Option<u64>,
}

/// Creates a vhost-user port: a virtio-net device for a guest, with a socket in the daemon's vhost directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CreateVhostUser {
    /// Name of the port and of the socket.
    pub name: String,
    /// Maximum number of queue pairs, 1 to 64; 1 by default. Queues are assigned to workers round-robin.
    pub num_queue_pairs: Option<u16>,
    /// MAC address of the guest, for reports; the front-end sets the guest's own.
    pub mac: Option<String>,
    /// MTU in bytes; 1500 by default.
    pub mtu: Option<u16>,
    /// Offer packed rings (VIRTIO_F_RING_PACKED); true by default.
    pub packed_ring: Option<bool>,
    /// Offer mergeable receive buffers (VIRTIO_NET_F_MRG_RXBUF); true by default.
    pub mrg_rxbuf: Option<bool>,
    /// Who listens on the socket: server (this daemon, the default) or client (the front-end; this daemon connects and reconnects).
    pub socket_role: Option<SocketRole>,
    /// Number of the port in flows; the next free one by default.
    pub port_no: Option<PortNo>,
    /// Upcall rate limit per worker, packets per second; unlimited by default.
    pub upcall_pps: Option<u64>,
}

/// Deprecated: use port_create_vhost_user. Creates a vhost-user port.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-sluice-deprecated" = "port_create_vhost_user"))]
pub struct CreateNetController {
    /// Name of the controller, of the port and of the socket.
    pub ctrlr: String,
    /// Maximum number of queue pairs, 1 to 64; 1 by default. Queues are assigned to workers round-robin.
    pub num_queue_pairs: Option<u16>,
    /// MAC address of the guest, for reports; the front-end sets the guest's own.
    pub mac: Option<String>,
    /// MTU in bytes; 1500 by default.
    pub mtu: Option<u16>,
    /// Do not offer packed rings (VIRTIO_F_RING_PACKED).
    #[serde(default)]
    pub no_packed_ring: bool,
    /// Do not offer mergeable receive buffers (VIRTIO_NET_F_MRG_RXBUF).
    #[serde(default)]
    pub no_mrg_rxbuf: bool,
    /// Who listens on the socket: server (this daemon, the default) or client (the front-end; this daemon connects and reconnects).
    pub socket_role: Option<SocketRole>,
    /// Number of the port in flows; the next free one by default.
    pub port_no: Option<PortNo>,
    /// Upcall rate limit per worker, packets per second; unlimited by default.
    pub upcall_pps: Option<u64>,
}

/// Deprecated: use port_get. Lists the vhost-user ports.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-sluice-deprecated" = "port_get"))]
pub struct GetNetControllers {
    /// List only this controller.
    pub name: Option<String>,
}

/// A vhost-user port.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetControllerInfo {
    /// Name of the controller.
    pub ctrlr: String,
    /// Path of the socket.
    pub socket: String,
    /// Whether a front-end is connected.
    pub connected: bool,
    /// Whether the device is quarantined until the front-end resets it; port_get has the reason.
    pub quarantined: bool,
    /// The last refused message of the front-end, or why the last session ended.
    pub last_error: Option<String>,
    /// The rings that a front-end has started: receive and transmit of pair 0, of pair 1, and so on.
    pub rings: Vec<QueueInfo>,
}

/// Deprecated: use port_move_queue. Moves a queue pair of a vhost-user port to another worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-sluice-deprecated" = "port_move_queue"))]
pub struct MoveQueuePair {
    /// Name of the controller.
    pub ctrlr: String,
    /// Number of the queue pair, from 0.
    pub pair: u16,
    /// Number of the worker, from 0; without it the pair is unpinned, and the scheduler may move it.
    pub worker: Option<usize>,
}
