//! What a rule does.

use super::FlowItem;

/// One step of what happens to a packet that matches, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowAction {
    /// Drops it.
    Drop,
    /// Counts it: [`super::FlowRule::query`].
    Count,
    /// Marks it: [`packet::Mbuf::mark`].
    Mark(u32),
    /// Receives it in this queue.
    Queue(u16),
    /// Spreads it over these queues by its hash.
    Rss(Vec<u16>),
    /// Sends it to the port that this one represents, or to this one itself.
    RepresentedPort(u16),
    /// Goes on in another group.
    Jump(u32),
    /// Reports the rule when nothing matched for a time: [`super::FlowPort::aged`].
    Age {
        /// The time.
        seconds: u32,
        /// What it is reported by; not 0.
        context: u64,
    },
    /// Sets a field.
    Set(SetField),
    /// Takes one from the time to live or hop limit.
    DecTtl,
    /// Takes a VLAN tag off.
    PopVlan,
    /// Puts an empty VLAN tag of this type in front.
    PushVlan(u16),
    /// Puts these headers in front, Ethernet to VXLAN.
    VxlanEncap(Vec<FlowItem>),
    /// Takes all up to VXLAN off.
    VxlanDecap,
    /// Puts these bytes in front.
    RawEncap(Vec<u8>),
    /// Takes as many bytes off; their values are a hint.
    RawDecap(Vec<u8>),
}

/// A header field with its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetField {
    /// Ethernet's source.
    MacSrc([u8; 6]),
    /// Ethernet's destination.
    MacDst([u8; 6]),
    /// IPv4's source.
    Ipv4Src([u8; 4]),
    /// IPv4's destination.
    Ipv4Dst([u8; 4]),
    /// IPv6's source.
    Ipv6Src([u8; 16]),
    /// IPv6's destination.
    Ipv6Dst([u8; 16]),
    /// The source port of TCP or UDP.
    TpSrc(u16),
    /// The destination port of TCP or UDP.
    TpDst(u16),
    /// The time to live or hop limit.
    Ttl(u8),
    /// The VLAN tag's identifier.
    VlanVid(u16),
    /// The VLAN tag's priority.
    VlanPcp(u8),
}
