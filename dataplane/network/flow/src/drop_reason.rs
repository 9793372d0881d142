//! Why packets are dropped: one list for metrics, captures and the RPC.

/// Why a packet, or a copy of one, was dropped or not sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DropReason {
    /// The pipeline: the port is in no bridge, and no static flow takes the packet.
    NoBridge,
    /// The pipeline: the port does not carry the VLAN.
    Vlan,
    /// The pipeline: the source address is a group address or zero.
    BadSource,
    /// The pipeline: port security does not allow the source.
    Spoofed,
    /// The pipeline: bridges do not forward this destination (IEEE 802.1Q, table 8-1).
    LinkLocal,
    /// The pipeline: the destination is behind the ingress port, or behind a port that does not carry the VLAN.
    NoEgress,
    /// More packets or bytes came in than the rate limit of the port allows.
    RateLimited,
    /// The port has used up its upcall rate limit.
    UpcallLimited,
    /// Too many upcalls are pending.
    UpcallFull,
    /// Too many packets wait for the same pending upcall.
    PendingFull,
    /// The port that the packet was to leave by is gone.
    NoPort,
    /// The flow drops the packet, or has no action that sends it anywhere.
    FlowDrop,
    /// A meter is exceeded.
    Metered,
    /// The packet has no room in front for the header that an action adds.
    NoHeadroom,
    /// The packet does not have the header that an action changes or removes.
    NoHeader,
    /// The TTL is spent, and the flow has no action for that.
    TtlExceeded,
    /// No flow matches the recirculated packet.
    RecirculatedMiss,
    /// The packet was recirculated too often, or too many packets are recirculated at a time.
    RecirculatedFull,
    /// The packet is meant for the control plane, which does not listen.
    NoListener,
    /// The queue to the worker that has the send queue of the port is full.
    HandedFull,
    /// A copy was not made: the packet pool is empty.
    NoBuffer,
}

impl DropReason {
    /// The reasons that a pipeline gives. Workers count the packets of such flows as [`DropReason::FlowDrop`].
    pub const OF_PIPELINE: [DropReason; 6] = [
        DropReason::NoBridge,
        DropReason::Vlan,
        DropReason::BadSource,
        DropReason::Spoofed,
        DropReason::LinkLocal,
        DropReason::NoEgress,
    ];

    /// The name of the reason in metrics, captures and the RPC.
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::NoBridge => "no_bridge",
            DropReason::Vlan => "vlan",
            DropReason::BadSource => "bad_source",
            DropReason::Spoofed => "spoofed",
            DropReason::LinkLocal => "link_local",
            DropReason::NoEgress => "no_egress",
            DropReason::RateLimited => "rate_limited",
            DropReason::UpcallLimited => "upcall_limited",
            DropReason::UpcallFull => "upcall_full",
            DropReason::PendingFull => "parked_full",
            DropReason::NoPort => "no_port",
            DropReason::FlowDrop => "flow_drop",
            DropReason::Metered => "metered",
            DropReason::NoHeadroom | DropReason::NoHeader => "not_changed",
            DropReason::TtlExceeded => "ttl_exceeded",
            DropReason::RecirculatedMiss => "recirculated_miss",
            DropReason::RecirculatedFull => "recirculated_full",
            DropReason::NoListener => "no_listener",
            DropReason::HandedFull => "handed_full",
            DropReason::NoBuffer => "no_buffer",
        }
    }
}
