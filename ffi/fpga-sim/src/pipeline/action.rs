//! Actions of rules.

use super::shared::SharedKind;
use super::table::RuleId;
use std::sync::Arc;

/// Which of two: source or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

/// Spreading over queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// The queues, chosen by the hash modulo their number.
    pub queues: Vec<u16>,
    /// The key of the Toeplitz hash.
    pub key: [u8; super::toeplitz::KEY_LEN],
    /// Whether ports are hashed as well as addresses.
    pub ports: bool,
}

/// An action. One of them, the fate, says where the packet goes; it stands last in a rule's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A number for the host, in the packet's mark.
    Mark(u32),
    /// A VLAN tag in front of all others, with the VLAN of the one that was in front.
    PushVlan {
        /// TPID of the tag.
        tpid: u16,
    },
    /// Takes the front tag away.
    PopVlan,
    /// The front tag's VLAN.
    SetVlanId(u16),
    /// The front tag's priority.
    SetVlanPriority(u8),
    /// A MAC address.
    SetMac(End, [u8; 6]),
    /// An IPv4 address.
    SetIpv4(End, [u8; 4]),
    /// An IPv6 address.
    SetIpv6(End, [u8; 16]),
    /// A port of TCP or UDP.
    SetPort(End, u16),
    /// Time to live, or hop limit.
    SetTtl(u8),
    /// One hop less. A packet that would end here goes to the host untouched.
    DecrementTtl,
    /// Headers in front. Their lengths and IPv4 checksum are set for each packet.
    Encapsulate(Box<[u8]>),
    /// The packet out of its VXLAN tunnel.
    DecapsulateVxlan,
    /// Bytes away from the front.
    StripFront(usize),
    /// Fate: the packet is dropped.
    Drop,
    /// Fate: a port's other side, the wire or a guest function.
    ToRepresented(u16),
    /// Fate: the host, through a port.
    ToRepresentor(u16),
    /// Fate: a receive queue of the port.
    Queue(u16),
    /// Fate: one of several receive queues of the port.
    Spread(Arc<Rss>),
    /// Fate: the rules of another group.
    Jump(u32),
    /// A shared action with its number: a counter, an age, a meter, a connection or, as fate, queues to spread over.
    Shared(SharedKind, RuleId),
}

impl Action {
    /// Whether it says where the packet goes.
    pub fn is_fate(&self) -> bool {
        use Action::{Drop, Jump, Queue, Spread, ToRepresented, ToRepresentor};
        let spreads = matches!(self, Spread(_) | Action::Shared(SharedKind::Rss, _));
        spreads || matches!(self, Drop | ToRepresented(_) | ToRepresentor(_) | Queue(_) | Jump(_))
    }

    /// Kind and number of a shared action.
    pub(super) fn shared(&self) -> Option<(SharedKind, RuleId)> {
        if let Action::Shared(kind, id) = self { Some((*kind, *id)) } else { None }
    }
}
