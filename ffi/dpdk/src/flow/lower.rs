//! Lowering: the types of `rte-rule` as DPDK's structures.

use dpdk_sys as sys;
use rte_rule::{Clause, Direction, FlowAction, FlowAttr, FlowItem, SetField};
use rte_rule::{Eth, Icmp, Ipv4, Ipv6, L4Ports, Match, Tcp, Vlan};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::null;

pub(super) fn attributes(from: &FlowAttr) -> sys::rte_flow_attr {
    let mut raw = sys::rte_flow_attr { group: from.group, priority: from.priority, ..Default::default() };
    match from.direction {
        Direction::Ingress => raw.set_ingress(1),
        Direction::Egress => raw.set_egress(1),
        Direction::Transfer => raw.set_transfer(1),
    }
    raw
}

/// A rule as lists of DPDK's structures, each ended by an END.
#[derive(Default)]
pub(super) struct Lowered {
    pub(super) items: Vec<sys::rte_flow_item>,
    pub(super) actions: Vec<sys::rte_flow_action>,
    kept: Kept,
}

// SAFETY: its pointers are null or lead to memory that it owns (ended-lists).
unsafe impl Send for Lowered {}

/// The structures that the lists lead to, each at an address of its own until [`clear`](Kept::clear). The memory is reused.
#[derive(Default)]
struct Kept {
    /// Written through pointers alone: their lengths stay 0.
    chunks: Vec<Vec<MaybeUninit<Word>>>,
    /// Words of the last chunk that are taken.
    used: usize,
}

/// The alignment of every place.
type Word = u128;

impl Kept {
    const CHUNK: usize = 128;

    /// Reserves room for `count` values.
    fn room<T: Copy>(&mut self, count: usize) -> *mut T {
        const { assert!(align_of::<T>() <= align_of::<Word>()) };
        let words = (count * size_of::<T>()).div_ceil(size_of::<Word>());
        if self.chunks.last().is_none_or(|chunk| chunk.capacity() - self.used < words) {
            self.chunks.push(Vec::with_capacity(words.max(Self::CHUNK)));
            self.used = 0;
        }
        let chunk = self.chunks.last_mut().expect("there is one by now");
        // SAFETY: `used + words` is at most the chunk's capacity, by the test above.
        let place = unsafe { chunk.as_mut_ptr().add(self.used) };
        self.used += words;
        place.cast()
    }

    /// Copies one value and returns its address.
    fn lend<T: Copy>(&mut self, value: T) -> *const c_void {
        self.list(&[value]).cast_const().cast()
    }

    /// Copies a list and returns the address of its first value.
    fn list<T: Copy>(&mut self, values: &[T]) -> *mut T {
        let place = self.room(values.len());
        // SAFETY: `room` returned uninitialised memory of ours, aligned and long enough for the values.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), place, values.len()) };
        place
    }

    fn clear(&mut self) {
        self.chunks.truncate(1);
        self.used = 0;
    }
}

impl Lowered {
    pub(super) fn new(pattern: &[FlowItem], actions: &[FlowAction]) -> Lowered {
        let mut lowered = Lowered::default();
        lowered.lower(pattern, actions);
        lowered
    }

    /// Replaces the lists by those of this rule, in the memory that is there.
    pub(super) fn lower(&mut self, pattern: &[FlowItem], actions: &[FlowAction]) {
        let Lowered { items, actions: lowered, kept } = self;
        items.clear();
        lowered.clear();
        kept.clear();
        items.extend(pattern.iter().map(|from| item(from, kept)));
        items.push(END);
        lowered.extend(actions.iter().map(|from| action(from, kept)));
        lowered.push(bare(sys::RTE_FLOW_ACTION_TYPE_END));
    }

    /// The clause of the rule that an error points to.
    pub(super) fn clause(&self, error: &sys::rte_flow_error) -> Clause {
        let cause = error.cause;
        let item = |item: &sys::rte_flow_item| {
            let own = (&raw const *item).cast::<c_void>();
            [own, item.spec, item.mask].iter().any(|&place| !place.is_null() && place == cause)
        };
        let action = |action: &sys::rte_flow_action| {
            let own = (&raw const *action).cast::<c_void>();
            [own, action.conf].iter().any(|&place| !place.is_null() && place == cause)
        };
        let found = self.items.iter().position(item).map(Clause::Item);
        match error.type_ {
            sys::RTE_FLOW_ERROR_TYPE_ATTR_GROUP..=sys::RTE_FLOW_ERROR_TYPE_ATTR => Clause::Attributes,
            _ => found.or_else(|| self.actions.iter().position(action).map(Clause::Action)).unwrap_or(Clause::Rule),
        }
    }
}

const END: sys::rte_flow_item =
    sys::rte_flow_item { type_: sys::RTE_FLOW_ITEM_TYPE_END, spec: null(), last: null(), mask: null() };

fn item(from: &FlowItem, kept: &mut Kept) -> sys::rte_flow_item {
    match from {
        FlowItem::Eth(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_ETH, fields, eth, kept),
        FlowItem::Vlan(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_VLAN, fields, vlan, kept),
        FlowItem::Ipv4(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_IPV4, fields, ipv4, kept),
        FlowItem::Ipv6(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_IPV6, fields, ipv6, kept),
        FlowItem::Tcp(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_TCP, fields, tcp, kept),
        FlowItem::Udp(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_UDP, fields, udp, kept),
        FlowItem::Sctp(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_SCTP, fields, sctp, kept),
        FlowItem::Icmp(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_ICMP, fields, icmp, kept),
        FlowItem::Icmp6(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_ICMP6, fields, icmp6, kept),
        FlowItem::Vxlan(fields) => matching(sys::RTE_FLOW_ITEM_TYPE_VXLAN, fields, vxlan, kept),
        FlowItem::RepresentedPort(port) => {
            let port = Match { spec: *port, mask: u16::MAX };
            let ethdev = |port_id: &u16| sys::rte_flow_item_ethdev { port_id: *port_id };
            matching(sys::RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT, &port, ethdev, kept)
        }
    }
}

fn matching<T, R: Copy>(
    type_: sys::rte_flow_item_type,
    fields: &Match<T>,
    raw: impl Fn(&T) -> R,
    kept: &mut Kept,
) -> sys::rte_flow_item {
    let (spec, mask) = (kept.lend(raw(&fields.spec)), kept.lend(raw(&fields.mask)));
    sys::rte_flow_item { type_, spec, last: null(), mask }
}

fn eth(from: &Eth) -> sys::rte_flow_item_eth {
    let mut raw = sys::rte_flow_item_eth::default();
    raw.__bindgen_anon_1.hdr = sys::rte_ether_hdr {
        dst_addr: sys::rte_ether_addr { addr_bytes: from.dst },
        src_addr: sys::rte_ether_addr { addr_bytes: from.src },
        ether_type: from.ether_type.to_be(),
    };
    raw.set_has_vlan(from.has_vlan.into());
    raw
}

fn vlan(from: &Vlan) -> sys::rte_flow_item_vlan {
    let mut raw = sys::rte_flow_item_vlan::default();
    raw.__bindgen_anon_1.hdr = sys::rte_vlan_hdr { vlan_tci: from.tci.to_be(), eth_proto: from.inner_type.to_be() };
    raw
}

fn ipv4(from: &Ipv4) -> sys::rte_flow_item_ipv4 {
    let mut raw = sys::rte_flow_item_ipv4::default();
    raw.hdr.src_addr = u32::from_ne_bytes(from.src);
    raw.hdr.dst_addr = u32::from_ne_bytes(from.dst);
    raw.hdr.next_proto_id = from.proto;
    raw.hdr.time_to_live = from.ttl;
    raw.hdr.type_of_service = from.tos;
    raw.hdr.fragment_offset = from.fragment.to_be();
    raw
}

fn ipv6(from: &Ipv6) -> sys::rte_flow_item_ipv6 {
    let mut raw = sys::rte_flow_item_ipv6::default();
    raw.hdr.src_addr = from.src;
    raw.hdr.dst_addr = from.dst;
    raw.hdr.proto = from.proto;
    raw.hdr.hop_limits = from.hop_limit;
    raw.hdr.vtc_flow = (u32::from(from.traffic_class) << 20 | from.flow_label & 0xf_ffff).to_be();
    raw.set_has_frag_ext(from.has_fragment.into());
    raw
}

fn tcp(from: &Tcp) -> sys::rte_flow_item_tcp {
    let mut raw = sys::rte_flow_item_tcp::default();
    raw.hdr.src_port = from.src.to_be();
    raw.hdr.dst_port = from.dst.to_be();
    raw.hdr.tcp_flags = from.flags;
    raw
}

fn udp(from: &L4Ports) -> sys::rte_flow_item_udp {
    let mut raw = sys::rte_flow_item_udp::default();
    raw.hdr.src_port = from.src.to_be();
    raw.hdr.dst_port = from.dst.to_be();
    raw
}

fn sctp(from: &L4Ports) -> sys::rte_flow_item_sctp {
    let mut raw = sys::rte_flow_item_sctp::default();
    raw.hdr.src_port = from.src.to_be();
    raw.hdr.dst_port = from.dst.to_be();
    raw
}

fn icmp(from: &Icmp) -> sys::rte_flow_item_icmp {
    let mut raw = sys::rte_flow_item_icmp::default();
    raw.hdr.icmp_type = from.kind;
    raw.hdr.icmp_code = from.code;
    raw
}

fn icmp6(from: &Icmp) -> sys::rte_flow_item_icmp6 {
    sys::rte_flow_item_icmp6 { type_: from.kind, code: from.code, checksum: 0 }
}

fn vxlan(vni: &u32) -> sys::rte_flow_item_vxlan {
    let mut raw = sys::rte_flow_item_vxlan::default();
    raw.__bindgen_anon_1.hdr.vx_vni = (vni << 8).to_be();
    raw
}

fn bare(type_: sys::rte_flow_action_type) -> sys::rte_flow_action {
    sys::rte_flow_action { type_, conf: null() }
}

fn action(from: &FlowAction, kept: &mut Kept) -> sys::rte_flow_action {
    let raw = |type_, conf: *const c_void| sys::rte_flow_action { type_, conf };
    match from {
        FlowAction::Drop => bare(sys::RTE_FLOW_ACTION_TYPE_DROP),
        FlowAction::DecTtl => bare(sys::RTE_FLOW_ACTION_TYPE_DEC_TTL),
        FlowAction::PopVlan => bare(sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN),
        FlowAction::VxlanDecap => bare(sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP),
        FlowAction::Count => raw(sys::RTE_FLOW_ACTION_TYPE_COUNT, kept.lend(sys::rte_flow_action_count::default())),
        FlowAction::Mark(id) => raw(sys::RTE_FLOW_ACTION_TYPE_MARK, kept.lend(sys::rte_flow_action_mark { id: *id })),
        FlowAction::Queue(index) => {
            raw(sys::RTE_FLOW_ACTION_TYPE_QUEUE, kept.lend(sys::rte_flow_action_queue { index: *index }))
        }
        FlowAction::Rss(queues) => raw(sys::RTE_FLOW_ACTION_TYPE_RSS, rss(queues, kept)),
        FlowAction::RepresentedPort(port_id) => {
            let conf = sys::rte_flow_action_ethdev { port_id: *port_id };
            raw(sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT, kept.lend(conf))
        }
        FlowAction::Jump(group) => {
            raw(sys::RTE_FLOW_ACTION_TYPE_JUMP, kept.lend(sys::rte_flow_action_jump { group: *group }))
        }
        FlowAction::Age { seconds, context } => {
            let context = std::ptr::without_provenance_mut(*context as usize);
            let mut conf = sys::rte_flow_action_age { context, ..Default::default() };
            conf.set_timeout((*seconds).min(0xff_ffff));
            raw(sys::RTE_FLOW_ACTION_TYPE_AGE, kept.lend(conf))
        }
        FlowAction::VxlanEncap(headers) => {
            let headers: Vec<_> = headers.iter().map(|from| item(from, kept)).chain([END]).collect();
            let definition = kept.list(&headers);
            raw(sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP, kept.lend(sys::rte_flow_action_vxlan_encap { definition }))
        }
        FlowAction::RawEncap(bytes) => {
            let (data, size) = (kept.list(bytes), bytes.len());
            let conf = sys::rte_flow_action_raw_encap { data, preserve: std::ptr::null_mut(), size };
            raw(sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP, kept.lend(conf))
        }
        FlowAction::RawDecap(bytes) => {
            let (data, size) = (kept.list(bytes), bytes.len());
            raw(sys::RTE_FLOW_ACTION_TYPE_RAW_DECAP, kept.lend(sys::rte_flow_action_raw_decap { data, size }))
        }
        FlowAction::PushVlan(ethertype) => {
            let conf = sys::rte_flow_action_of_push_vlan { ethertype: ethertype.to_be() };
            raw(sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN, kept.lend(conf))
        }
        FlowAction::Set(field) => set(field, kept),
    }
}

fn set(field: &SetField, kept: &mut Kept) -> sys::rte_flow_action {
    let mac = |mac_addr: &[u8; 6]| sys::rte_flow_action_set_mac { mac_addr: *mac_addr };
    let ipv4 = |address: &[u8; 4]| sys::rte_flow_action_set_ipv4 { ipv4_addr: u32::from_ne_bytes(*address) };
    let ipv6 = |ipv6_addr: &[u8; 16]| sys::rte_flow_action_set_ipv6 { ipv6_addr: *ipv6_addr };
    let tp = |port: &u16| sys::rte_flow_action_set_tp { port: port.to_be() };
    let (type_, conf) = match field {
        SetField::MacSrc(address) => (sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC, kept.lend(mac(address))),
        SetField::MacDst(address) => (sys::RTE_FLOW_ACTION_TYPE_SET_MAC_DST, kept.lend(mac(address))),
        SetField::Ipv4Src(address) => (sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC, kept.lend(ipv4(address))),
        SetField::Ipv4Dst(address) => (sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST, kept.lend(ipv4(address))),
        SetField::Ipv6Src(address) => (sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC, kept.lend(ipv6(address))),
        SetField::Ipv6Dst(address) => (sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST, kept.lend(ipv6(address))),
        SetField::TpSrc(port) => (sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC, kept.lend(tp(port))),
        SetField::TpDst(port) => (sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST, kept.lend(tp(port))),
        SetField::Ttl(ttl_value) => {
            let conf = sys::rte_flow_action_set_ttl { ttl_value: *ttl_value };
            (sys::RTE_FLOW_ACTION_TYPE_SET_TTL, kept.lend(conf))
        }
        SetField::VlanVid(vid) => {
            let conf = sys::rte_flow_action_of_set_vlan_vid { vlan_vid: vid.to_be() };
            (sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID, kept.lend(conf))
        }
        SetField::VlanPcp(vlan_pcp) => {
            let conf = sys::rte_flow_action_of_set_vlan_pcp { vlan_pcp: *vlan_pcp };
            (sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP, kept.lend(conf))
        }
    };
    sys::rte_flow_action { type_, conf }
}

/// Over `queues`, by the hash that the device has.
fn rss(queues: &[u16], kept: &mut Kept) -> *const c_void {
    let (queue, queue_num) = (kept.list(queues), queues.len() as u32);
    kept.lend(sys::rte_flow_action_rss { queue, queue_num, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that an item's or action's pointer leads to.
    fn bytes<const N: usize>(place: *const c_void) -> [u8; N] {
        // SAFETY: `place` leads to a structure of a `Lowered` that lives, of at least `N` bytes.
        unsafe { place.cast::<[u8; N]>().read_unaligned() }
    }

    #[test]
    fn items_are_lowered_to_network_byte_order() {
        let ports = |src, dst| L4Ports { src, dst };
        let pattern = [
            FlowItem::Eth(Match {
                spec: Eth { dst: [1; 6], src: [2; 6], ether_type: 0x8100, has_vlan: true },
                mask: Eth { dst: [0xff; 6], ..Eth::default() },
            }),
            FlowItem::Vlan(Match { spec: Vlan { tci: 0x2064, inner_type: 0x0800 }, mask: Vlan::default() }),
            FlowItem::Ipv4(Match {
                spec: Ipv4 { src: [10, 0, 0, 1], dst: [10, 0, 0, 2], proto: 17, ttl: 64, tos: 4, fragment: 0x2001 },
                mask: Ipv4::default(),
            }),
            FlowItem::Udp(Match { spec: ports(0x3039, 4789), mask: ports(0, 0xffff) }),
            FlowItem::Vxlan(Match { spec: 0x12_3456, mask: 0xff_ffff }),
        ];
        let lowered = Lowered::new(&pattern, &[]);
        let [eth, vlan, ip, udp, vxlan, end] = &lowered.items[..] else { panic!("five items and an end") };
        assert_eq!(bytes(eth.spec), [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x81, 0]);
        assert_eq!(bytes(eth.mask), [255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(vlan.spec), [0x20, 0x64, 8, 0]);
        assert_eq!(bytes(ip.spec), [0, 4, 0, 0, 0, 0, 0x20, 1, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(bytes(udp.spec), [0x30, 0x39, 0x12, 0xb5]);
        assert_eq!(bytes(udp.mask), [0, 0, 0xff, 0xff]);
        assert_eq!(bytes(vxlan.spec), [0, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(end.type_, sys::RTE_FLOW_ITEM_TYPE_END);
    }

    #[test]
    fn lowered_actions_keep_their_structures() {
        let headers = vec![FlowItem::Eth(Match::default()), FlowItem::Vxlan(Match { spec: 7, mask: 0 })];
        let actions = [
            FlowAction::Rss(vec![3, 1]),
            FlowAction::VxlanEncap(headers),
            FlowAction::RawEncap(vec![9; 50]),
            FlowAction::Set(SetField::TpDst(0x1234)),
            FlowAction::Count,
        ];
        let lowered = Lowered::new(&[], &actions);
        assert_eq!(lowered.actions.len(), 6);
        // SAFETY: the conf of an RSS action, kept by `lowered`.
        let rss = unsafe { &*lowered.actions[0].conf.cast::<sys::rte_flow_action_rss>() };
        // SAFETY: the list of that action, kept by `lowered`.
        assert_eq!(unsafe { std::slice::from_raw_parts(rss.queue, rss.queue_num as usize) }, [3, 1]);
        // SAFETY: the conf of a VXLAN_ENCAP action, kept by `lowered`.
        let encap = unsafe { &*lowered.actions[1].conf.cast::<sys::rte_flow_action_vxlan_encap>() };
        // SAFETY: two items and an END, kept by `lowered`.
        let headers = unsafe { std::slice::from_raw_parts(encap.definition, 3) };
        assert_eq!(bytes(headers[1].spec), [0, 0, 0, 0, 0, 0, 7, 0]);
        assert_eq!(headers[2].type_, sys::RTE_FLOW_ITEM_TYPE_END);
        // SAFETY: the conf of a RAW_ENCAP action, kept by `lowered`.
        let raw = unsafe { &*lowered.actions[2].conf.cast::<sys::rte_flow_action_raw_encap>() };
        // SAFETY: the bytes of that action, kept by `lowered`.
        assert_eq!(unsafe { std::slice::from_raw_parts(raw.data, raw.size) }, [9; 50]);
        assert_eq!(bytes(lowered.actions[3].conf), [0x12, 0x34]);
    }

    #[test]
    fn an_error_pointer_names_its_clause() {
        let lowered = Lowered::new(&[FlowItem::Eth(Match::default())], &[FlowAction::Count, FlowAction::Mark(1)]);
        let error = |type_, cause| sys::rte_flow_error { type_, cause, message: null() };
        let clause = |type_, cause| lowered.clause(&error(type_, cause));
        assert_eq!(clause(sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, lowered.items[0].mask), Clause::Item(0));
        assert_eq!(clause(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, lowered.actions[1].conf), Clause::Action(1));
        let place = (&raw const lowered.actions[0]).cast();
        assert_eq!(clause(sys::RTE_FLOW_ERROR_TYPE_ACTION, place), Clause::Action(0));
        assert_eq!(clause(sys::RTE_FLOW_ERROR_TYPE_ATTR_GROUP, null()), Clause::Attributes);
        assert_eq!(clause(sys::RTE_FLOW_ERROR_TYPE_UNSPECIFIED, null()), Clause::Rule);
    }
}
