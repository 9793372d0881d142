//! Items: where the fields of each stand in rte_flow's structures, and which of them the device can match.

use super::{Context, Refusal, copy};
use crate::pipeline::key::{Field, field, present, source, tunnel};
use crate::pipeline::parse::protocol;
use crate::pipeline::{Layer, Pattern};
use dpdk_sys as sys;
use std::ffi::CStr;

/// An item of rte_flow.
pub(super) struct Shape {
    kind: sys::rte_flow_item_type,
    name: &'static str,
    /// Bytes of its structure.
    len: usize,
    /// Items stand in this order.
    level: Level,
    parts: &'static [Part],
    /// Bits that say that a header is there: the byte, the bit there and ours.
    bits: &'static [(usize, u8, u8)],
    /// What is said if anything else is wanted.
    rest: &'static CStr,
}

/// A field in the structure.
struct Part {
    at: usize,
    field: Field,
    /// The mask if the rule has none; nothing for zeros.
    default: &'static [u8],
}

const fn part(at: usize, field: Field, default: &'static [u8]) -> Part {
    Part { at, field, default }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Start,
    Eth,
    Vlan,
    L3(u8),
    Fragment,
    L4(u8),
    Tunnel(u8),
}

/// Bytes of `rte_flow_item_eth` between its header and its bits.
const ETH_PADDING: std::ops::Range<usize> = 14..16;

static SHAPES: [Shape; 12] = [
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_ETH,
        name: "ETH",
        len: size_of::<sys::rte_flow_item_eth>(),
        level: Level::Eth,
        parts: &[
            part(0, field::ETH_DST, &[0xff; 6]),
            part(6, field::ETH_SRC, &[0xff; 6]),
            part(12, field::ETH_TYPE, &[]),
        ],
        bits: &[(16, 1, present::VLAN)],
        rest: c"ETH: addresses, type and has_vlan can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_VLAN,
        name: "VLAN",
        len: size_of::<sys::rte_flow_item_vlan>(),
        level: Level::Vlan,
        parts: &[part(0, field::VLAN[0].0, &[0x0f, 0xff]), part(2, field::VLAN[0].1, &[])],
        bits: &[(4, 1, present::SECOND_VLAN)],
        rest: c"VLAN: tci, inner_type and has_more_vlan can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_IPV4,
        name: "IPV4",
        len: size_of::<sys::rte_flow_item_ipv4>(),
        level: Level::L3(4),
        parts: &[
            part(1, field::IPV4_TOS, &[]),
            part(6, field::IP_FRAGMENT, &[]),
            part(8, field::IP_TTL, &[]),
            part(9, field::IP_PROTOCOL, &[]),
            part(12, field::IPV4_SRC, &[0xff; 4]),
            part(16, field::IPV4_DST, &[0xff; 4]),
        ],
        bits: &[],
        rest: c"IPV4: addresses, type_of_service, fragment_offset, time_to_live and next_proto_id can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_IPV6,
        name: "IPV6",
        len: size_of::<sys::rte_flow_item_ipv6>(),
        level: Level::L3(6),
        parts: &[
            part(0, field::IP_CLASS, &[]),
            part(6, field::IP_PROTOCOL, &[]),
            part(7, field::IP_TTL, &[]),
            part(8, field::IPV6_SRC, &[0xff; 16]),
            part(24, field::IPV6_DST, &[0xff; 16]),
        ],
        bits: &[(40, 4, present::IPV6_FRAGMENT)],
        rest: c"IPV6: addresses, vtc_flow, proto, hop_limits and has_frag_ext can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_IPV6_FRAG_EXT,
        name: "IPV6_FRAG_EXT",
        len: size_of::<sys::rte_flow_item_ipv6_frag_ext>(),
        level: Level::Fragment,
        parts: &[part(0, field::FRAGMENT_NEXT, &[0xff]), part(2, field::IP_FRAGMENT, &[])],
        bits: &[],
        rest: c"IPV6_FRAG_EXT: next_header and frag_data can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_TCP,
        name: "TCP",
        len: size_of::<sys::rte_flow_item_tcp>(),
        level: Level::L4(protocol::TCP),
        parts: &[
            part(0, field::L4_SRC, &[0xff; 2]),
            part(2, field::L4_DST, &[0xff; 2]),
            part(13, field::TCP_FLAGS, &[]),
        ],
        bits: &[],
        rest: c"TCP: ports and flags can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_UDP,
        name: "UDP",
        len: size_of::<sys::rte_flow_item_udp>(),
        level: Level::L4(protocol::UDP),
        parts: &[part(0, field::L4_SRC, &[0xff; 2]), part(2, field::L4_DST, &[0xff; 2])],
        bits: &[],
        rest: c"UDP: ports can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_SCTP,
        name: "SCTP",
        len: size_of::<sys::rte_flow_item_sctp>(),
        level: Level::L4(protocol::SCTP),
        parts: &[part(0, field::L4_SRC, &[0xff; 2]), part(2, field::L4_DST, &[0xff; 2]), part(4, field::SCTP_TAG, &[])],
        bits: &[],
        rest: c"SCTP: ports and tag can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_ICMP,
        name: "ICMP",
        len: size_of::<sys::rte_flow_item_icmp>(),
        level: Level::L4(protocol::ICMP),
        parts: &[
            part(0, field::ICMP_TYPE, &[0xff]),
            part(1, field::ICMP_CODE, &[0xff]),
            part(4, field::ICMP_IDENT, &[]),
            part(6, field::ICMP_SEQUENCE, &[]),
        ],
        bits: &[],
        rest: c"ICMP: type, code, ident and seq_nb can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_ICMP6,
        name: "ICMP6",
        len: size_of::<sys::rte_flow_item_icmp6>(),
        level: Level::L4(protocol::ICMP6),
        parts: &[part(0, field::ICMP_TYPE, &[0xff]), part(1, field::ICMP_CODE, &[0xff])],
        bits: &[],
        rest: c"ICMP6: type and code can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_VXLAN,
        name: "VXLAN",
        len: size_of::<sys::rte_flow_item_vxlan>(),
        level: Level::Tunnel(tunnel::VXLAN),
        parts: &[part(0, field::TUNNEL_FLAGS, &[]), part(4, field::VNI, &[0xff; 3])],
        bits: &[],
        rest: c"VXLAN: flags and vni can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_GENEVE,
        name: "GENEVE",
        len: size_of::<sys::rte_flow_item_geneve>(),
        level: Level::Tunnel(tunnel::GENEVE),
        parts: &[
            part(0, field::TUNNEL_OPTIONS, &[]),
            part(2, field::TUNNEL_PROTOCOL, &[]),
            part(4, field::VNI, &[0xff; 3]),
        ],
        bits: &[],
        rest: c"GENEVE: ver_opt_len_o_c_rsvd0, protocol and vni can be matched",
    },
];

/// Headers of the outer layer that a pattern makes sure of.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    pub vlan: bool,
    pub ipv4: bool,
    pub ipv6: bool,
    pub ports: bool,
    pub vxlan: bool,
}

pub(super) struct Matched {
    pub pattern: Pattern,
    pub seen: Seen,
}

/// A pattern as it is read.
struct Reader<'a> {
    context: &'a Context<'a>,
    pattern: Pattern,
    seen: Seen,
    layer: Layer,
    level: Level,
    /// Tags and whether the Ethernet header was named in this layer.
    vlans: usize,
    eth: bool,
    source: bool,
}

/// Translates the items.
///
/// # Safety
/// As for [`rule`](super::rule).
pub(super) unsafe fn pattern(
    context: &Context,
    attributes: &sys::rte_flow_attr,
    items: &[sys::rte_flow_item],
) -> Result<Matched, Refusal> {
    let mut reader = Reader {
        context,
        pattern: Pattern::default(),
        seen: Seen::default(),
        layer: Layer::Outer,
        level: Level::Start,
        vlans: 0,
        eth: false,
        source: false,
    };
    for item in items {
        // SAFETY: as the caller promises.
        unsafe { reader.read(attributes, item)? };
    }
    // Without a source: what comes to this port from its other side, or with egress what the host sends through it.
    if attributes.transfer() != 0 && !reader.source {
        let kind = if attributes.egress() != 0 { source::REPRESENTOR } else { source::REPRESENTED };
        reader.want_source(kind, Some(context.port));
    }
    Ok(Matched { pattern: reader.pattern, seen: reader.seen })
}

impl Reader<'_> {
    /// # Safety
    /// As for [`rule`](super::rule).
    unsafe fn read(&mut self, attributes: &sys::rte_flow_attr, item: &sys::rte_flow_item) -> Result<(), Refusal> {
        let refused = |message| Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM, item, message));
        match item.type_ {
            sys::RTE_FLOW_ITEM_TYPE_VOID => return Ok(()),
            sys::RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT => {
                // SAFETY: as the caller promises.
                return unsafe { self.read_source(attributes, item, source::REPRESENTED, "REPRESENTED_PORT") };
            }
            sys::RTE_FLOW_ITEM_TYPE_PORT_REPRESENTOR => {
                // SAFETY: as the caller promises.
                return unsafe { self.read_source(attributes, item, source::REPRESENTOR, "PORT_REPRESENTOR") };
            }
            sys::RTE_FLOW_ITEM_TYPE_PORT_ID => return refused(c"PORT_ID: use REPRESENTED_PORT or PORT_REPRESENTOR"),
            _ => {}
        }
        let Some(shape) = SHAPES.iter().find(|shape| shape.kind == item.type_) else {
            return refused(c"the device does not know this item");
        };
        if self.context.refuses(shape.name) {
            return refused(c"this item is refused on demand (argument refuse or refuse-create)");
        }
        // SAFETY: as the caller promises; `shape` is that of the item.
        let values = unsafe { values(item, shape)? };
        self.enter(item, shape)?;
        let Some((spec, mask)) = values else { return Ok(()) };
        self.want(item, shape, &spec, mask)
    }

    /// Takes note of an item's place among the others, and of what its being there says.
    fn enter(&mut self, item: &sys::rte_flow_item, shape: &Shape) -> Result<(), Refusal> {
        let out_of_order =
            |message| Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM, std::ptr::from_ref(item), message));
        if matches!(self.level, Level::Tunnel(_)) {
            if self.layer == Layer::Inner {
                return out_of_order(c"one tunnel in another is not known to the device");
            }
            (self.layer, self.level, self.vlans, self.eth) = (Layer::Inner, Level::Start, 0, false);
        }
        let second_vlan = shape.level == Level::Vlan && self.level == Level::Vlan && self.vlans < 2;
        let same_layer =
            matches!((shape.level, self.level), (Level::L3(_), Level::L3(_)) | (Level::L4(_), Level::L4(_)));
        if same_layer || shape.level <= self.level && !second_vlan {
            return out_of_order(c"items stand in the order of headers: ETH, VLAN, IP, fragment, L4, tunnel");
        }
        self.level = shape.level;
        let outer = self.layer == Layer::Outer;
        match shape.level {
            Level::Start => {}
            Level::Eth => self.eth = true,
            Level::Vlan => {
                self.vlans += 1;
                self.seen.vlan |= outer;
                let bit = if self.vlans == 1 { present::VLAN } else { present::SECOND_VLAN };
                self.pattern.want_present(self.layer, bit, true);
            }
            Level::L3(version) => {
                self.seen.ipv4 |= outer && version == 4;
                self.seen.ipv6 |= outer && version == 6;
                self.pattern.want(self.layer, field::L3, &[version], &[0xff]);
                match self.vlans {
                    // `eth / ipv4` is IPv4 right behind Ethernet; `ipv4` alone is IPv4 behind any tags.
                    0 if self.eth => self.pattern.want_present(self.layer, present::VLAN, false),
                    1 => self.pattern.want_present(self.layer, present::SECOND_VLAN, false),
                    _ => {}
                }
            }
            Level::Fragment => self.pattern.want_present(self.layer, present::IPV6_FRAGMENT, true),
            Level::L4(protocol) => {
                self.seen.ports |= outer && matches!(protocol, protocol::TCP | protocol::UDP);
                self.pattern.want(self.layer, field::L4, &[protocol], &[0xff]);
            }
            Level::Tunnel(kind) => {
                self.seen.vxlan |= outer && kind == tunnel::VXLAN;
                self.pattern.want(Layer::Outer, field::TUNNEL, &[kind], &[0xff]);
            }
        }
        Ok(())
    }

    fn want(
        &mut self,
        item: &sys::rte_flow_item,
        shape: &Shape,
        spec: &[u8],
        mut mask: Vec<u8>,
    ) -> Result<(), Refusal> {
        for part in shape.parts {
            let place = part.at..part.at + part.field.len();
            let field = match shape.level {
                Level::Vlan => {
                    let (tci, inner_type) = field::VLAN[self.vlans - 1];
                    if part.at == 0 { tci } else { inner_type }
                }
                _ => part.field,
            };
            if mask[place.clone()].iter().any(|&byte| byte != 0) {
                self.pattern.want(self.layer, field, &spec[place.clone()], &mask[place.clone()]);
            }
            mask[place].fill(0);
        }
        for &(at, bit, ours) in shape.bits {
            if mask[at] & bit != 0 {
                let there = spec[at] & bit != 0;
                if shape.level == Level::Vlan && self.vlans == 2 && there {
                    let message = c"VLAN: the device sees two tags";
                    return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_SPEC, item.spec, message));
                }
                if shape.level != Level::Vlan || self.vlans == 1 {
                    self.pattern.want_present(self.layer, ours, there);
                }
            }
            mask[at] &= !bit;
        }
        if shape.level == Level::Eth {
            mask[ETH_PADDING].fill(0);
        }
        if mask.iter().any(|&byte| byte != 0) {
            return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, item.mask, shape.rest));
        }
        Ok(())
    }

    /// # Safety
    /// As for [`rule`](super::rule).
    unsafe fn read_source(
        &mut self,
        attributes: &sys::rte_flow_attr,
        item: &sys::rte_flow_item,
        kind: u8,
        name: &str,
    ) -> Result<(), Refusal> {
        let refused =
            |message| Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM, std::ptr::from_ref(item), message));
        if self.context.refuses(name) {
            return refused(c"this item is refused on demand (argument refuse or refuse-create)");
        }
        if attributes.transfer() == 0 {
            return refused(c"REPRESENTED_PORT and PORT_REPRESENTOR are for transfer rules");
        }
        if self.source || self.level != Level::Start || self.layer == Layer::Inner {
            return refused(c"one REPRESENTED_PORT or PORT_REPRESENTOR stands before the headers");
        }
        let len = size_of::<sys::rte_flow_item_ethdev>();
        if !item.last.is_null() {
            return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_LAST, item.last, RANGES));
        }
        // SAFETY: as the caller promises.
        let (spec, mask) = unsafe { (copy(item.spec, len), copy(item.mask, len)) };
        let port = match (spec, mask.unwrap_or_else(|| vec![0xff; len])[..] == [0xff, 0xff]) {
            (Some(spec), true) => Some(u16::from_ne_bytes([spec[0], spec[1]])),
            (None, _) => None,
            (Some(_), false) => {
                let message = c"a port is matched whole";
                return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, item.mask, message));
            }
        };
        if port.is_some_and(|port| !self.context.ports.contains(&port)) {
            let message = c"the port is not one of this device";
            return Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM_SPEC, item.spec, message));
        }
        self.want_source(kind, port);
        Ok(())
    }

    fn want_source(&mut self, kind: u8, port: Option<u16>) {
        self.source = true;
        self.pattern.want(Layer::Outer, field::SOURCE, &[kind], &[0xff]);
        if let Some(port) = port {
            self.pattern.want(Layer::Outer, field::SOURCE_PORT, &port.to_be_bytes(), &[0xff; 2]);
        }
    }
}

const RANGES: &CStr = c"ranges (last) are not matched by the device";

/// A value and its mask.
type Values = (Vec<u8>, Vec<u8>);

/// An item's value and mask; nothing for one that says only that its header is there.
///
/// # Safety
/// As for [`rule`](super::rule), and `shape` is that of the item.
unsafe fn values(item: &sys::rte_flow_item, shape: &Shape) -> Result<Option<Values>, Refusal> {
    if !item.last.is_null() {
        return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_LAST, item.last, RANGES));
    }
    // SAFETY: as the caller promises.
    let (spec, mask) = unsafe { (copy(item.spec, shape.len), copy(item.mask, shape.len)) };
    match (spec, mask) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            let message = c"a mask without a value";
            Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, item.mask, message))
        }
        (Some(spec), Some(mask)) => Ok(Some((spec, mask))),
        (Some(spec), None) => {
            let mut mask = vec![0; shape.len];
            for part in shape.parts {
                mask[part.at..part.at + part.default.len()].copy_from_slice(part.default);
            }
            Ok(Some((spec, mask)))
        }
    }
}
