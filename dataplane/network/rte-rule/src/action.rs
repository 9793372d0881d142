//! Actions: what a rule does with the packets that match it.

use crate::FlowItem;

/// One action of a rule (`rte_flow_action`). A rule's actions apply in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowAction {
    /// Drops the packet.
    Drop,
    /// Counts packets and bytes, which [`FlowRule::query`](crate::FlowRule::query) returns.
    Count,
    /// Writes this mark into the mbuf.
    Mark(u32),
    /// Receives the packet by this queue.
    Queue(u16),
    /// Spreads packets over these queues by their hash.
    Rss(Vec<u16>),
    /// Sends the packet to the port that this one represents, or to this one itself.
    RepresentedPort(u16),
    /// Continues with the rules of this group.
    Jump(u32),
    /// Reports the rule by [`FlowDevice::aged`](crate::FlowDevice::aged) when nothing has matched it for a time.
    Age {
        /// The time without a match.
        seconds: u32,
        /// The value that identifies the rule in the report; not 0.
        context: u64,
    },
    /// Sets a header field.
    Set(SetField),
    /// Decrements the time to live or hop limit.
    DecTtl,
    /// Removes the outermost VLAN tag.
    PopVlan,
    /// Adds an empty VLAN tag of this type.
    PushVlan(u16),
    /// Prepends these headers, Ethernet to VXLAN.
    VxlanEncap(Vec<FlowItem>),
    /// Removes the headers up to and including VXLAN.
    VxlanDecap,
    /// Prepends these bytes.
    RawEncap(Vec<u8>),
    /// Removes as many bytes as these; their values are a hint.
    RawDecap(Vec<u8>),
}

/// A header field and its new value.
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
