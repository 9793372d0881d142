//! Items: where the fields of each stand in rte_flow's structures, and which of them the device can match.

use super::lent::{LentItem, item_len, list_of};
use super::{Context, Refusal};
use crate::pipeline::key::{Field, field, present, source, tunnel};
use crate::pipeline::parse::protocol;
use crate::pipeline::{Key, Layer, Pattern, judged};
use dpdk_sys as sys;
use std::ffi::{CStr, c_void};
use std::ptr::null;

/// The driver's own item, which `rte_flow_tunnel_match` gives: the packet was taken out of a tunnel.
pub(crate) const LEFT_TUNNEL: sys::rte_flow_item_type = 0x8000_0001;

/// An item of rte_flow.
pub(super) struct Shape {
    kind: sys::rte_flow_item_type,
    name: &'static str,
    /// Items stand in this order.
    level: Level,
    parts: &'static [Part],
    /// Bits that say that a header is there: the byte, the bit there and ours.
    bits: &'static [(usize, u8, u8)],
    /// Refusal of a mask with other fields.
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
        level: Level::Vlan,
        parts: &[part(0, field::VLAN[0].0, &[0x0f, 0xff]), part(2, field::VLAN[0].1, &[])],
        bits: &[(4, 1, present::SECOND_VLAN)],
        rest: c"VLAN: tci, inner_type and has_more_vlan can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_IPV4,
        name: "IPV4",
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
        level: Level::Fragment,
        parts: &[part(0, field::FRAGMENT_NEXT, &[0xff]), part(2, field::IP_FRAGMENT, &[])],
        bits: &[],
        rest: c"IPV6_FRAG_EXT: next_header and frag_data can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_TCP,
        name: "TCP",
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
        level: Level::L4(protocol::UDP),
        parts: &[part(0, field::L4_SRC, &[0xff; 2]), part(2, field::L4_DST, &[0xff; 2])],
        bits: &[],
        rest: c"UDP: ports can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_SCTP,
        name: "SCTP",
        level: Level::L4(protocol::SCTP),
        parts: &[part(0, field::L4_SRC, &[0xff; 2]), part(2, field::L4_DST, &[0xff; 2]), part(4, field::SCTP_TAG, &[])],
        bits: &[],
        rest: c"SCTP: ports and tag can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_ICMP,
        name: "ICMP",
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
        level: Level::L4(protocol::ICMP6),
        parts: &[part(0, field::ICMP_TYPE, &[0xff]), part(1, field::ICMP_CODE, &[0xff])],
        bits: &[],
        rest: c"ICMP6: type and code can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_VXLAN,
        name: "VXLAN",
        level: Level::Tunnel(tunnel::VXLAN),
        parts: &[part(0, field::TUNNEL_FLAGS, &[]), part(4, field::VNI, &[0xff; 3])],
        bits: &[],
        rest: c"VXLAN: flags and vni can be matched",
    },
    Shape {
        kind: sys::RTE_FLOW_ITEM_TYPE_GENEVE,
        name: "GENEVE",
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

/// How the items of a pattern say what they match.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// With a value, under a mask or rte_flow's default for it.
    Rule,
    /// With a mask; values come with each rule. If relaxed, an item without one matches nothing.
    Template { relaxed: bool },
}

/// A pattern without its values, and where they stand in the items of a rule.
#[derive(Clone)]
pub(crate) struct PatternTemplate {
    /// The items, END among them.
    kinds: Vec<sys::rte_flow_item_type>,
    /// The mask, and the values that every rule has.
    fixed: Pattern,
    steps: Vec<Step>,
    pub(super) seen: Seen,
    /// An item says where packets come from.
    pub(super) source: bool,
    /// An item says what a connection said of them.
    judged: bool,
}

/// A value in an item's structure.
#[derive(Clone, Copy)]
struct Step {
    item: usize,
    at: usize,
    what: Value,
}

/// The use of a value.
#[derive(Clone, Copy)]
enum Value {
    /// So many bytes of the key from there on.
    Bytes { to: usize, len: usize },
    /// A bit of [`field::PRESENT`].
    Present { bit: u8, to: usize, ours: u8 },
    /// A bit that the device can match as zero only.
    Zero { bit: u8 },
    /// A port of the device.
    Port { to: usize },
    /// The result of a connection, under a mask.
    Judged { mask: u32, to: usize },
}

/// A pattern as it is read.
struct Reader<'a> {
    context: &'a Context<'a>,
    mode: Mode,
    transfer: bool,
    template: PatternTemplate,
    layer: Layer,
    level: Level,
    /// Tags in this layer, and whether they and the Ethernet header are matched.
    vlans: usize,
    tagged: bool,
    eth: bool,
}

/// Translates the items, all but their values.
pub(super) fn pattern(
    context: &Context,
    transfer: bool,
    items: &[LentItem],
    mode: Mode,
) -> Result<PatternTemplate, Refusal> {
    let kinds = items.iter().map(|item| item.type_).chain([sys::RTE_FLOW_ITEM_TYPE_END]).collect();
    let (fixed, steps, seen) = (Pattern::default(), Vec::new(), Seen::default());
    let template = PatternTemplate { kinds, fixed, steps, seen, source: false, judged: false };
    let (layer, level) = (Layer::Outer, Level::Start);
    let mut reader = Reader { context, mode, transfer, template, layer, level, vlans: 0, tagged: false, eth: false };
    for (index, item) in items.iter().enumerate() {
        reader.read(index, item)?;
    }
    Ok(reader.template)
}

impl PatternTemplate {
    /// The names of its items.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().filter_map(|&kind| match kind {
            sys::RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT => Some("REPRESENTED_PORT"),
            sys::RTE_FLOW_ITEM_TYPE_PORT_REPRESENTOR => Some("PORT_REPRESENTOR"),
            sys::RTE_FLOW_ITEM_TYPE_CONNTRACK => Some("CONNTRACK"),
            _ => SHAPES.iter().find(|shape| shape.kind == kind).map(|shape| shape.name),
        })
    }

    /// The mask and the values of all rules of a domain. Without a source a transfer rule sees what comes to this port from its
    /// other side, or with egress what the host sends through it.
    pub(super) fn fixed(&self, port: u16, attributes: &sys::rte_flow_attr) -> Pattern {
        let mut fixed = self.fixed;
        if attributes.transfer() != 0 && !self.source {
            let kind = if attributes.egress() != 0 { source::REPRESENTOR } else { source::REPRESENTED };
            fixed.want(Layer::Outer, field::SOURCE, &[kind], &[0xff]);
            fixed.want(Layer::Outer, field::SOURCE_PORT, &port.to_be_bytes(), &[0xff; 2]);
        }
        fixed
    }

    /// Whether rules of a group can have it; `items` is the application's list, if it is at hand.
    pub(super) fn check_group(&self, group: u32, items: Option<&[LentItem]>) -> Result<(), Refusal> {
        if !self.judged || group > 0 {
            return Ok(());
        }
        let item = items.and_then(|items| items.iter().find(|item| item.type_ == sys::RTE_FLOW_ITEM_TYPE_CONNTRACK));
        let message = c"CONNTRACK: no connection has judged packets before group 0";
        Err(Refusal::unsupported(
            sys::RTE_FLOW_ERROR_TYPE_ITEM,
            item.map_or(null(), std::ptr::from_ref::<LentItem>),
            message,
        ))
    }

    /// The lent items of a rule, which have to be those of the template.
    ///
    /// # Safety
    /// `items` is null or leads to a list that ends in an END, for whose items lent-rule holds (see [`lent`](super::lent)).
    pub(super) unsafe fn lent<'a>(&self, items: *const sys::rte_flow_item) -> Result<&'a [LentItem], Refusal> {
        if items.is_null() {
            return Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM_NUM, items, c"no pattern"));
        }
        // SAFETY: not null, so the caller passes a list with an END, and promises lent-rule.
        unsafe { list_of(items, &self.kinds) }.map_err(|item: &LentItem| {
            let message = c"the template has another item at this place";
            Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM, item, message)
        })
    }

    /// The values of a rule: those of the template, and those in the rule's items.
    pub(super) fn values(&self, fixed: &Pattern, ports: &[u16], items: &[LentItem]) -> Result<Key, Refusal> {
        let mut key = *fixed.value();
        let bytes = key.bytes_mut();
        for step in &self.steps {
            let item = &items[step.item];
            let Some(spec) = item.spec() else {
                let message = c"the item has no value";
                return Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM_SPEC, item, message));
            };
            step.take(&spec[step.at..], bytes, ports, item.spec)?;
        }
        Ok(key.masked(fixed.mask()))
    }
}

impl Step {
    /// Copies the value at the front of `from` into the key; refusals name `spec`.
    fn take(self, from: &[u8], key: &mut [u8], ports: &[u16], spec: *const c_void) -> Result<(), Refusal> {
        let invalid = |message| Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM_SPEC, spec, message));
        match self.what {
            Value::Bytes { to, len } => key[to..to + len].copy_from_slice(&from[..len]),
            Value::Present { bit, to, ours } if from[0] & bit != 0 => key[to] |= ours,
            Value::Present { .. } => {}
            Value::Zero { bit } if from[0] & bit != 0 => return invalid(c"VLAN: the device sees two tags"),
            Value::Zero { .. } => {}
            Value::Port { to } => {
                let port = u16::from_ne_bytes([from[0], from[1]]);
                if !ports.contains(&port) {
                    return invalid(c"the port is not one of this device");
                }
                key[to..to + 2].copy_from_slice(&port.to_be_bytes());
            }
            Value::Judged { mask, to } => {
                let flags = u32::from_ne_bytes([from[0], from[1], from[2], from[3]]) & mask;
                match judged::ALL.iter().find(|&&said| u32::from(said) & mask == flags) {
                    Some(&said) => key[to] = said,
                    None => return invalid(c"CONNTRACK: no packet has these flags"),
                }
            }
        }
        Ok(())
    }
}

impl Reader<'_> {
    fn read(&mut self, index: usize, item: &LentItem) -> Result<(), Refusal> {
        let refused = |message| Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM, item, message));
        match item.type_ {
            sys::RTE_FLOW_ITEM_TYPE_VOID => return Ok(()),
            sys::RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT => {
                return self.read_source(index, item, source::REPRESENTED, "REPRESENTED_PORT");
            }
            sys::RTE_FLOW_ITEM_TYPE_PORT_REPRESENTOR => {
                return self.read_source(index, item, source::REPRESENTOR, "PORT_REPRESENTOR");
            }
            sys::RTE_FLOW_ITEM_TYPE_CONNTRACK => {
                return self.read_judged(index, item);
            }
            LEFT_TUNNEL if self.level == Level::Start && self.layer == Layer::Outer => {
                self.template.fixed.want(Layer::Outer, field::LEFT_TUNNEL, &[tunnel::VXLAN], &[0xff]);
                return Ok(());
            }
            LEFT_TUNNEL => return refused(c"what rte_flow_tunnel_match gives stands before the headers"),
            sys::RTE_FLOW_ITEM_TYPE_PORT_ID => return refused(c"PORT_ID: use REPRESENTED_PORT or PORT_REPRESENTOR"),
            _ => {}
        }
        let Some(shape) = SHAPES.iter().find(|shape| shape.kind == item.type_) else {
            return refused(c"the device does not know this item");
        };
        if self.context.refuses(shape.name) {
            return refused(c"this item is refused on demand (argument refuse or refuse-create)");
        }
        let mask = self.mask(item, shape)?;
        self.order(item, shape)?;
        match mask {
            None if self.mode == Mode::Template { relaxed: true } => Ok(()),
            None => {
                self.enter(shape);
                Ok(())
            }
            Some(mask) => {
                self.enter(shape);
                self.want(index, item, shape, mask)
            }
        }
    }

    /// The mask of an item; `None` for one that matches the presence of its header alone.
    fn mask(&self, item: &LentItem, shape: &Shape) -> Result<Option<Vec<u8>>, Refusal> {
        if !item.last.is_null() {
            return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_LAST, item.last, RANGES));
        }
        let mask = item.mask().map(<[u8]>::to_vec);
        match (self.mode, item.spec.is_null(), mask) {
            (Mode::Template { .. }, _, mask) => Ok(mask),
            (Mode::Rule, true, None) => Ok(None),
            (Mode::Rule, true, Some(_)) => {
                let message = c"a mask without a value";
                Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, item.mask, message))
            }
            (Mode::Rule, false, Some(mask)) => Ok(Some(mask)),
            (Mode::Rule, false, None) => {
                let mut mask = vec![0; item_len(shape.kind)];
                for part in shape.parts {
                    mask[part.at..part.at + part.default.len()].copy_from_slice(part.default);
                }
                Ok(Some(mask))
            }
        }
    }

    /// Takes note of an item's place among the others.
    fn order(&mut self, item: &LentItem, shape: &Shape) -> Result<(), Refusal> {
        let out_of_order =
            |message| Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM, std::ptr::from_ref(item), message));
        if matches!(self.level, Level::Tunnel(_)) {
            if self.layer == Layer::Inner {
                return out_of_order(c"one tunnel in another is not known to the device");
            }
            (self.layer, self.level) = (Layer::Inner, Level::Start);
            (self.vlans, self.tagged, self.eth) = (0, false, false);
        }
        let second_vlan = shape.level == Level::Vlan && self.level == Level::Vlan && self.vlans < 2;
        let same_layer =
            matches!((shape.level, self.level), (Level::L3(_), Level::L3(_)) | (Level::L4(_), Level::L4(_)));
        if same_layer || shape.level <= self.level && !second_vlan {
            return out_of_order(c"items stand in the order of headers: ETH, VLAN, IP, fragment, L4, tunnel");
        }
        self.level = shape.level;
        self.vlans += usize::from(shape.level == Level::Vlan);
        Ok(())
    }

    /// Takes note of what an item's being there says.
    fn enter(&mut self, shape: &Shape) {
        let outer = self.layer == Layer::Outer;
        let PatternTemplate { fixed, seen, .. } = &mut self.template;
        match shape.level {
            Level::Start => {}
            Level::Eth => self.eth = true,
            Level::Vlan => {
                self.tagged = true;
                seen.vlan |= outer;
                let bit = if self.vlans == 1 { present::VLAN } else { present::SECOND_VLAN };
                fixed.want_present(self.layer, bit, true);
            }
            Level::L3(version) => {
                seen.ipv4 |= outer && version == 4;
                seen.ipv6 |= outer && version == 6;
                fixed.want(self.layer, field::L3, &[version], &[0xff]);
                match self.vlans {
                    // `eth / ipv4` is IPv4 right behind Ethernet; `ipv4` alone is IPv4 behind any tags.
                    0 if self.eth => fixed.want_present(self.layer, present::VLAN, false),
                    1 if self.tagged => fixed.want_present(self.layer, present::SECOND_VLAN, false),
                    _ => {}
                }
            }
            Level::Fragment => fixed.want_present(self.layer, present::IPV6_FRAGMENT, true),
            Level::L4(protocol) => {
                seen.ports |= outer && matches!(protocol, protocol::TCP | protocol::UDP);
                fixed.want(self.layer, field::L4, &[protocol], &[0xff]);
            }
            Level::Tunnel(kind) => {
                seen.vxlan |= outer && kind == tunnel::VXLAN;
                fixed.want(Layer::Outer, field::TUNNEL, &[kind], &[0xff]);
            }
        }
    }

    fn want(&mut self, index: usize, item: &LentItem, shape: &Shape, mut mask: Vec<u8>) -> Result<(), Refusal> {
        let PatternTemplate { fixed, steps, .. } = &mut self.template;
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
                fixed.want(self.layer, field, &vec![0; field.len()], &mask[place.clone()]);
                let what = Value::Bytes { to: field.range(self.layer).start, len: field.len() };
                steps.push(Step { item: index, at: part.at, what });
            }
            mask[place].fill(0);
        }
        for &(at, bit, ours) in shape.bits {
            if mask[at] & bit != 0 {
                let third_vlan = shape.level == Level::Vlan && self.vlans == 2;
                let to = field::PRESENT.range(self.layer).start;
                let what = if third_vlan { Value::Zero { bit } } else { Value::Present { bit, to, ours } };
                if !third_vlan {
                    fixed.want_present(self.layer, ours, false);
                }
                steps.push(Step { item: index, at, what });
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

    fn read_source(&mut self, index: usize, item: &LentItem, kind: u8, name: &str) -> Result<(), Refusal> {
        let refused =
            |message| Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM, std::ptr::from_ref(item), message));
        if self.context.refuses(name) {
            return refused(c"this item is refused on demand (argument refuse or refuse-create)");
        }
        if !self.transfer {
            return refused(c"REPRESENTED_PORT and PORT_REPRESENTOR are for transfer rules");
        }
        if self.template.source || self.level != Level::Start || self.layer == Layer::Inner {
            return refused(c"one REPRESENTED_PORT or PORT_REPRESENTOR stands before the headers");
        }
        if !item.last.is_null() {
            return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_LAST, item.last, RANGES));
        }
        // Without a value, or a mask in a template, it is any port.
        let of_port = match (self.mode, item.spec.is_null(), item.mask()) {
            (Mode::Rule, true, _) | (Mode::Template { .. }, _, None) => false,
            (Mode::Rule, false, None) | (_, _, Some([0xff, 0xff])) => true,
            (_, _, Some(_)) => {
                let message = c"a port is matched whole";
                return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, item.mask, message));
            }
        };
        let PatternTemplate { fixed, steps, source, .. } = &mut self.template;
        *source = true;
        fixed.want(Layer::Outer, field::SOURCE, &[kind], &[0xff]);
        if of_port {
            fixed.want(Layer::Outer, field::SOURCE_PORT, &[0; 2], &[0xff; 2]);
            let to = field::SOURCE_PORT.range(Layer::Outer).start;
            steps.push(Step { item: index, at: 0, what: Value::Port { to } });
        }
        Ok(())
    }

    fn read_judged(&mut self, index: usize, item: &LentItem) -> Result<(), Refusal> {
        let refused =
            |message| Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM, std::ptr::from_ref(item), message));
        if self.context.refuses("CONNTRACK") {
            return refused(c"this item is refused on demand (argument refuse or refuse-create)");
        }
        if self.template.judged || self.layer == Layer::Inner || matches!(self.level, Level::Tunnel(_)) {
            return refused(c"one CONNTRACK stands before the tunnel");
        }
        if !item.last.is_null() {
            return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM_LAST, item.last, RANGES));
        }
        let mask = item.mask().map(|mask| u32::from_ne_bytes([mask[0], mask[1], mask[2], mask[3]]));
        let mask = match (self.mode, item.spec.is_null(), mask) {
            (Mode::Template { relaxed: true }, _, None) => return Ok(()),
            (Mode::Template { relaxed: false }, _, None) => return refused(c"CONNTRACK: its mask says which flags"),
            (Mode::Rule, true, _) => return refused(c"CONNTRACK: with flags"),
            (Mode::Rule, false, None) => u32::MAX,
            (_, _, Some(mask)) => mask,
        };
        // Where all that can be said is wanted, it is wanted whole.
        let all = judged::ALL.iter().fold(0, |all, said| all | said);
        let ours = if mask & u32::from(all) == u32::from(all) { 0xff } else { mask as u8 & all };
        let PatternTemplate { fixed, steps, judged, .. } = &mut self.template;
        *judged = true;
        fixed.want(Layer::Outer, field::CONNTRACK, &[0], &[ours]);
        let to = field::CONNTRACK.range(Layer::Outer).start;
        steps.push(Step { item: index, at: 0, what: Value::Judged { mask, to } });
        Ok(())
    }
}

const RANGES: &CStr = c"ranges (last) are not matched by the device";
