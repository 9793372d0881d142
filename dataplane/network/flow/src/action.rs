//! The actions of the datapath, as in OVS's `odp-execute`.

use crate::key::{Key, Mask};

/// Number of a port in the datapath.
pub type PortNo = u32;

/// One action. Lists of them are run in order; an empty list drops.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// A copy of the packet goes out by the port.
    Output(PortNo),
    /// A copy goes to the control plane.
    Userspace(Userspace),
    /// Overwrites the fields of one header, or the bits of them that the mask has.
    Set(Box<SetField>),
    /// Adds or removes a header.
    Header(HeaderEdit),
    /// Adds a label, at layer 2 or 3 (`add_mpls`).
    AddMpls {
        /// Label, traffic class, bottom bit and TTL.
        lse: u32,
        /// 0x8847 or 0x8848.
        eth_type: u16,
    },
    /// Looks the packet up again, as it is now, under this identifier.
    Recirc(u32),
    /// Computes `dp_hash`.
    Hash {
        /// The fields that are hashed.
        algorithm: HashAlgorithm,
        /// Start value.
        basis: u32,
    },
    /// Runs the actions on a copy of some packets.
    Sample {
        /// The share of packets, in units of 1 / (2^32 - 1).
        probability: u32,
        /// The actions on the copy.
        actions: Vec<Action>,
    },
    /// The next output takes this many bytes at most.
    Trunc(u32),
    /// Runs the actions on a copy.
    Clone(Vec<Action>),
    /// Runs one list or the other on a copy, by the length of the packet.
    CheckPktLen {
        /// The length.
        size: u16,
        /// For longer packets.
        greater: Vec<Action>,
        /// For others.
        less_equal: Vec<Action>,
    },
    /// Lowers the TTL by one.
    DecTtl {
        /// The actions instead, where the TTL is 1 or 0.
        exceeded: Vec<Action>,
    },
    /// Drops the packet if the meter says so.
    Meter(u32),
    /// Drops the packet.
    Drop,
    /// Connection tracking.
    Ct(Box<Ct>),
    /// Clears the connection tracking state of the packet.
    CtClear,
    /// Puts a tunnel's headers around the packet.
    TnlPush(Box<TnlPush>),
    /// Removes a tunnel's headers.
    TnlPop(PortNo),
    /// Goes out by the member of a bond that `dp_hash` chooses.
    LbOutput(u32),
}

/// An action that adds or removes one header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HeaderEdit {
    /// Adds a VLAN tag, outermost.
    PushVlan {
        /// 0x8100 or 0x88a8.
        tpid: u16,
        /// With [`crate::key::VLAN_PRESENT`] set.
        tci: u16,
    },
    /// Removes the outermost VLAN tag.
    PopVlan,
    /// Adds a label, outermost.
    PushMpls {
        /// Label, traffic class, bottom bit and TTL.
        lse: u32,
        /// 0x8847 or 0x8848.
        eth_type: u16,
    },
    /// Removes the outermost label.
    PopMpls {
        /// Ethertype of what is behind it.
        eth_type: u16,
    },
    /// Adds an Ethernet header.
    PushEth {
        /// Source.
        src: u64,
        /// Destination.
        dst: u64,
    },
    /// Removes the Ethernet header.
    PopEth,
}

/// The fields that the `hash` action hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HashAlgorithm {
    /// Addresses, protocol and ports.
    L4,
    /// The same for both directions.
    SymL4,
}

/// Header that a `set` action changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Header {
    /// Ethernet addresses.
    Eth,
    /// Ethertype.
    EthType,
    /// Outermost VLAN tag.
    Vlan,
    /// Label stack.
    Mpls,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// TCP ports.
    Tcp,
    /// UDP ports.
    Udp,
    /// SCTP ports.
    Sctp,
    /// ICMP.
    Icmp,
    /// ICMPv6.
    Icmpv6,
    /// ARP.
    Arp,
    /// Neighbour message.
    Nd,
    /// Reserved word and options of a neighbour message.
    NdExt,
    /// Network service header.
    Nsh,
    /// Tunnel for the next output.
    Tunnel,
    /// Port that the packet came in by.
    InPort,
    /// Priority inside the host.
    SkbPriority,
    /// Mark inside the host.
    SkbMark,
    /// `dp_hash`.
    DpHash,
}

/// Values for the fields of one header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SetField {
    /// The header.
    pub header: Header,
    /// The values.
    pub key: Key,
    /// The bits that are changed.
    pub mask: Mask,
}

/// A copy for the control plane.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Userspace {
    /// The netlink port of the receiver.
    pub pid: u32,
    /// Data for the receiver.
    pub userdata: Option<UserData>,
    /// Whether the flow's actions go with it.
    pub actions: bool,
    /// Port of the tunnel that it left by.
    pub tunnel_out_port: Option<PortNo>,
}

/// What goes with a copy for the control plane.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum UserData {
    /// A sample for sFlow.
    SFlow {
        /// VLAN.
        vid: u16,
        /// Its priority.
        pcp: u8,
        /// Output.
        output: u32,
    },
    /// The flow is handled by the control plane; bits say why.
    SlowPath(u32),
    /// A sample for IPFIX by an OpenFlow action.
    FlowSample {
        /// How many of 65535.
        probability: u16,
        /// Collectors.
        collector_set_id: u32,
        /// Domain.
        obs_domain_id: u32,
        /// Point.
        obs_point_id: u32,
        /// Output.
        output_port: PortNo,
        /// `ingress` or `egress`, where it was said.
        egress: Option<bool>,
    },
    /// A sample for IPFIX.
    Ipfix {
        /// Output.
        output_port: PortNo,
    },
    /// For an OpenFlow controller.
    Controller {
        /// Reason.
        reason: u16,
        /// Not sent after all.
        dont_send: bool,
        /// The controller resumes it.
        continuation: bool,
        /// The recirculation identifier at which the packet goes on.
        recirc_id: u32,
        /// The rule's cookie.
        rule_cookie: u64,
        /// The controller.
        controller_id: u16,
        /// Bytes that are sent at most.
        max_len: u16,
    },
    /// Anything else.
    Bytes(Vec<u8>),
}

/// Connection tracking.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ct {
    /// Remembers the connection.
    pub commit: bool,
    /// Remembers it in this direction, whatever was there.
    pub force_commit: bool,
    /// Zone.
    pub zone: u16,
    /// Mark, and which bits of it are set.
    pub mark: Option<(u32, u32)>,
    /// Label, and which bits of it are set.
    pub label: Option<(u128, u128)>,
    /// Application layer gateway.
    pub helper: Option<String>,
    /// Policy of time-outs.
    pub timeout: Option<String>,
    /// Address translation.
    pub nat: Option<Nat>,
}

/// Address translation.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Nat {
    /// Which address; none for what the connection already has.
    pub kind: Option<NatKind>,
    /// First and last address.
    pub addresses: Option<(std::net::IpAddr, std::net::IpAddr)>,
    /// First and last port; 0 for none.
    pub ports: (u16, u16),
    /// Chooses the same for the same peer.
    pub persistent: bool,
    /// Chooses a port by hash.
    pub hash: bool,
    /// Chooses a port at random.
    pub random: bool,
}

/// Which address is translated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NatKind {
    /// The source.
    Src,
    /// The destination.
    Dst,
}

/// Headers that are put around a packet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TnlPush {
    /// The tunnel's port.
    pub tnl_port: PortNo,
    /// The port that the result goes out by.
    pub out_port: PortNo,
    /// Number of the kind of tunnel.
    pub tnl_type: u32,
    /// The headers' bytes.
    pub header: Vec<u8>,
}
