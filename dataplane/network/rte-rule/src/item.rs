//! Pattern items: the headers and fields that a rule matches.

/// The values and the mask of a pattern item. A mask of zeros matches every packet that has the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match<T> {
    /// The values.
    pub spec: T,
    /// The bits that count.
    pub mask: T,
}

/// One item of a pattern (`rte_flow_item`). A pattern lists its items from the outermost header inwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowItem {
    /// Ethernet.
    Eth(Match<Eth>),
    /// A VLAN tag.
    Vlan(Match<Vlan>),
    /// IPv4.
    Ipv4(Match<Ipv4>),
    /// IPv6.
    Ipv6(Match<Ipv6>),
    /// TCP.
    Tcp(Match<Tcp>),
    /// UDP.
    Udp(Match<L4Ports>),
    /// SCTP.
    Sctp(Match<L4Ports>),
    /// ICMP.
    Icmp(Match<Icmp>),
    /// ICMPv6.
    Icmp6(Match<Icmp>),
    /// VXLAN, by its network identifier of 24 bits.
    Vxlan(Match<u32>),
    /// Packets from the port that this one represents, or from this one itself.
    RepresentedPort(u16),
}

/// Ethernet's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Eth {
    /// Destination.
    pub dst: [u8; 6],
    /// Source.
    pub src: [u8; 6],
    /// EtherType or protocol of the header that follows.
    pub ether_type: u16,
    /// A VLAN tag follows, of whatever type.
    pub has_vlan: bool,
}

/// A VLAN tag's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vlan {
    /// Priority, DEI and identifier.
    pub tci: u16,
    /// EtherType or protocol of the header that follows.
    pub inner_type: u16,
}

/// IPv4's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source.
    pub src: [u8; 4],
    /// Destination.
    pub dst: [u8; 4],
    /// EtherType or protocol of the header that follows.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Flags and offset of a fragment.
    pub fragment: u16,
}

/// IPv6's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source.
    pub src: [u8; 16],
    /// Destination.
    pub dst: [u8; 16],
    /// EtherType or protocol of the header that follows.
    pub proto: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, of 20 bits.
    pub flow_label: u32,
    /// Whether the packet has a fragment extension header.
    pub has_fragment: bool,
}

/// TCP's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// Flags, FIN the lowest.
    pub flags: u8,
}

/// The ports of UDP and SCTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L4Ports {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
}

/// The fields of ICMP and ICMPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
}
