//! What is taken, what it matches, and what is said of the rest.

use super::*;
use crate::pipeline::parse::parse;
use crate::pipeline::{Action, End, Layer, Pattern, key::field};
use proptest::prelude::*;
use std::ptr::from_ref;

const PORTS: [u16; 2] = [3, 4];

fn attributes(set: impl Fn(&mut sys::rte_flow_attr)) -> sys::rte_flow_attr {
    let mut attributes = sys::rte_flow_attr::default();
    set(&mut attributes);
    attributes
}

fn ingress() -> sys::rte_flow_attr {
    attributes(|attributes| attributes.set_ingress(1))
}

fn transfer() -> sys::rte_flow_attr {
    attributes(|attributes| attributes.set_transfer(1))
}

fn item<T>(kind: sys::rte_flow_item_type, spec: Option<&T>, mask: Option<&T>) -> sys::rte_flow_item {
    let pointer = |value: Option<&T>| value.map_or(null(), |value| from_ref(value).cast::<c_void>());
    sys::rte_flow_item { type_: kind, spec: pointer(spec), last: null(), mask: pointer(mask) }
}

fn bare(kind: sys::rte_flow_item_type) -> sys::rte_flow_item {
    item::<u8>(kind, None, None)
}

fn action<T>(kind: sys::rte_flow_action_type, conf: &T) -> sys::rte_flow_action {
    sys::rte_flow_action { type_: kind, conf: from_ref(conf).cast() }
}

fn plain(kind: sys::rte_flow_action_type) -> sys::rte_flow_action {
    sys::rte_flow_action { type_: kind, conf: null() }
}

/// Translates for port 3 of ports 3 and 4, with four receive queues; items and actions get their ends.
fn translated(
    attributes: &sys::rte_flow_attr,
    items: &[sys::rte_flow_item],
    actions: &[sys::rte_flow_action],
    refuse: &[String],
) -> Result<Rule, Refusal> {
    let items = [items, &[bare(sys::RTE_FLOW_ITEM_TYPE_END)]].concat();
    let actions = [actions, &[plain(sys::RTE_FLOW_ACTION_TYPE_END)]].concat();
    let limits = Limits::default();
    let refuse: &[&[String]] = &[refuse];
    let context = Context { refuse, ..context_of(&PORTS, &limits) };
    // SAFETY: both lists end, and what they lead to lives in the caller.
    unsafe { rule(&context, attributes, items.as_ptr(), actions.as_ptr()) }
}

/// What [`translated`] depends on, with nothing refused.
fn context_of<'a>(ports: &'a [u16], limits: &'a Limits) -> Context<'a> {
    Context { port: 3, ports, rx_queues: 4, rss: None, limits, shared: None, meters: None, refuse: &[] }
}

fn dropping(items: &[sys::rte_flow_item]) -> Result<Rule, Refusal> {
    translated(&ingress(), items, &[plain(sys::RTE_FLOW_ACTION_TYPE_DROP)], &[])
}

fn matches(pattern: &Pattern, packet: &[u8]) -> bool {
    parse(packet).0.masked(pattern.mask()) == *pattern.value()
}

/// An Ethernet header with this type and the bytes behind it.
fn frame(ethertype: u16, rest: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ethertype.to_be_bytes()[..], rest].concat()
}

const IPV4: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];

#[test]
fn a_header_after_eth_is_untagged() {
    let (eth, ipv4) = (bare(sys::RTE_FLOW_ITEM_TYPE_ETH), bare(sys::RTE_FLOW_ITEM_TYPE_IPV4));
    let vlan = bare(sys::RTE_FLOW_ITEM_TYPE_VLAN);
    let untagged = frame(0x0800, &IPV4);
    let tagged = frame(0x8100, &[&[0, 5, 8, 0], &IPV4[..]].concat());
    let pattern = |items: &[sys::rte_flow_item]| dropping(items).unwrap().pattern;
    let both = |pattern: Pattern| (matches(&pattern, &untagged), matches(&pattern, &tagged));
    assert_eq!(both(pattern(&[eth, ipv4])), (true, false));
    assert_eq!(both(pattern(&[eth, vlan, ipv4])), (false, true));
    assert_eq!(both(pattern(&[ipv4])), (true, true));
    assert_eq!(both(pattern(&[eth])), (true, true));
}

#[test]
fn items_without_mask_use_the_default_of_rte_flow() {
    let mut spec = sys::rte_flow_item_ipv4::default();
    spec.hdr.dst_addr = u32::from_ne_bytes([10, 0, 0, 2]);
    spec.hdr.src_addr = u32::from_ne_bytes([10, 0, 0, 1]);
    spec.hdr.time_to_live = 9;
    let rule = dropping(&[item(sys::RTE_FLOW_ITEM_TYPE_IPV4, Some(&spec), None)]).unwrap();
    assert!(matches(&rule.pattern, &frame(0x0800, &IPV4)), "the time to live is not matched");
    assert!(rule.pattern.is_whole());
    let mut other = IPV4;
    other[19] = 3;
    assert!(!matches(&rule.pattern, &frame(0x0800, &other)));
}

#[test]
fn ports_and_directions_select_the_source() {
    let source = |attributes: &sys::rte_flow_attr, items: &[sys::rte_flow_item]| {
        let rule = translated(attributes, items, &[plain(sys::RTE_FLOW_ACTION_TYPE_DROP)], &[]).unwrap();
        let value = |field| rule.pattern.value().get(Layer::Outer, field).to_vec();
        (value(field::SOURCE)[0], value(field::SOURCE_PORT))
    };
    let port = sys::rte_flow_item_ethdev { port_id: 4 };
    let represented = item(sys::RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT, Some(&port), None);
    let representor = item(sys::RTE_FLOW_ITEM_TYPE_PORT_REPRESENTOR, Some(&port), None);
    assert_eq!(source(&transfer(), &[represented]), (1, vec![0, 4]));
    assert_eq!(source(&transfer(), &[representor]), (2, vec![0, 4]));
    assert_eq!(source(&transfer(), &[bare(sys::RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT)]), (1, vec![0, 0]));
    assert_eq!(source(&transfer(), &[]), (1, vec![0, 3]));
    let mut sent = transfer();
    sent.set_egress(1);
    assert_eq!(source(&sent, &[]), (2, vec![0, 3]));
}

#[test]
fn a_port_has_an_old_and_a_new_name() {
    let (mut old, new) = (sys::rte_flow_action_port_id::default(), sys::rte_flow_action_ethdev { port_id: 4 });
    old.id = 4;
    let done = |action| translated(&transfer(), &[], &[action], &[]).map(|rule| rule.actions);
    let new = done(action(sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT, &new)).unwrap();
    assert_eq!(done(action(sys::RTE_FLOW_ACTION_TYPE_PORT_ID, &old)).unwrap(), new);
    old.id = 0x1_0004;
    assert_eq!(done(action(sys::RTE_FLOW_ACTION_TYPE_PORT_ID, &old)).unwrap_err().errno, libc::EINVAL);
}

#[test]
fn actions_are_translated_in_order() {
    let (queue, mark) = (sys::rte_flow_action_queue { index: 3 }, sys::rte_flow_action_mark { id: 77 });
    let address = sys::rte_flow_action_set_ipv4 { ipv4_addr: u32::from_ne_bytes([1, 2, 3, 4]) };
    let actions = [
        action(sys::RTE_FLOW_ACTION_TYPE_QUEUE, &queue),
        plain(sys::RTE_FLOW_ACTION_TYPE_COUNT),
        action(sys::RTE_FLOW_ACTION_TYPE_MARK, &mark),
    ];
    let rule = translated(&ingress(), &[], &actions, &[]).unwrap();
    assert_eq!((&rule.actions[..], rule.counts), (&[Action::Mark(77), Action::Queue(3)][..], true));
    let actions = [
        action(sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST, &address),
        plain(sys::RTE_FLOW_ACTION_TYPE_DEC_TTL),
        plain(sys::RTE_FLOW_ACTION_TYPE_DROP),
    ];
    let rule = translated(&ingress(), &[bare(sys::RTE_FLOW_ITEM_TYPE_IPV4)], &actions, &[]).unwrap();
    let set = Action::SetIpv4(End::Destination, [1, 2, 3, 4]);
    assert_eq!(rule.actions[..], [set, Action::DecrementTtl, Action::Drop]);
}

#[test]
fn a_refusal_names_the_clause() {
    let check = |result: Result<Rule, Refusal>, kind, cause: *const c_void, word: &str| {
        let refusal = result.map(|_| ()).unwrap_err();
        let message = refusal.message.to_str().unwrap();
        assert!(message.contains(word), "{message}");
        assert_eq!((refusal.kind, refusal.cause), (kind, cause), "{message}");
    };
    let mut mask = sys::rte_flow_item_tcp::default();
    mask.hdr.sent_seq = u32::MAX;
    let tcp = item(sys::RTE_FLOW_ITEM_TYPE_TCP, Some(&mask), Some(&mask));
    check(dropping(&[tcp]), sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, from_ref(&mask).cast(), "TCP: ports and flags");
    let last = sys::rte_flow_item { last: from_ref(&mask).cast(), mask: null(), ..tcp };
    check(dropping(&[last]), sys::RTE_FLOW_ERROR_TYPE_ITEM_LAST, last.last, "ranges");

    let drop = [plain(sys::RTE_FLOW_ACTION_TYPE_DROP), plain(sys::RTE_FLOW_ACTION_TYPE_END)];
    let (limits, refuse) = (Limits::default(), [vec!["GENEVE".to_owned(), "MARK".to_owned()]]);
    let refuse = [&refuse[0][..]];
    let context = Context { refuse: &refuse, ..context_of(&PORTS, &limits) };
    let end = bare(sys::RTE_FLOW_ITEM_TYPE_END);
    for (items, word) in [
        ([bare(sys::RTE_FLOW_ITEM_TYPE_MPLS), end], "does not know this item"),
        ([bare(sys::RTE_FLOW_ITEM_TYPE_GENEVE), end], "on demand"),
        ([bare(sys::RTE_FLOW_ITEM_TYPE_PORT_ID), end], "use REPRESENTED_PORT"),
        ([bare(sys::RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT), end], "transfer"),
    ] {
        // SAFETY: both lists end; their items lead nowhere.
        let result = unsafe { rule(&context, &ingress(), items.as_ptr(), drop.as_ptr()) };
        check(result, sys::RTE_FLOW_ERROR_TYPE_ITEM, items.as_ptr().cast(), word);
    }
    let (queue, port) = (sys::rte_flow_action_queue { index: 4 }, sys::rte_flow_action_ethdev { port_id: 9 });
    let jump = sys::rte_flow_action_jump { group: 0 };
    let conf = sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF;
    for (attributes, action, word) in [
        (ingress(), action(sys::RTE_FLOW_ACTION_TYPE_QUEUE, &queue), "QUEUE: the port has no such"),
        (transfer(), action(sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT, &port), "not one of this device"),
        (transfer(), action(sys::RTE_FLOW_ACTION_TYPE_JUMP, &jump), "JUMP: to a group of a higher number"),
    ] {
        check(translated(&attributes, &[], &[action], &[]), conf, action.conf, word);
    }
    for (kind, word) in [
        (sys::RTE_FLOW_ACTION_TYPE_SET_TTL, "must have IPV4 or IPV6"),
        (sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN, "no tag is sure"),
        (sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP, "must have VXLAN"),
        (sys::RTE_FLOW_ACTION_TYPE_CONNTRACK, "by a handle alone"),
        (sys::RTE_FLOW_ACTION_TYPE_SAMPLE, "does not know this action"),
    ] {
        let refusal = translated(&ingress(), &[], &[plain(kind)], &[]).map(|_| ()).unwrap_err();
        assert_eq!((refusal.errno, refusal.kind), (libc::ENOTSUP, sys::RTE_FLOW_ERROR_TYPE_ACTION));
        assert!(refusal.message.to_str().unwrap().contains(word), "{refusal:?}");
    }
}

/// A connection of which every field says something.
fn connection() -> sys::rte_flow_action_conntrack {
    let end = |scale, first| {
        let mut end = sys::rte_flow_tcp_dir_param {
            sent_end: first,
            reply_end: first + 1,
            max_win: first + 2,
            max_ack: first + 3,
            ..Default::default()
        };
        end.set_scale(scale);
        end.set_close_initiated(1);
        end.set_last_ack_seen(u32::from(scale == 7));
        end.set_data_unacked(u32::from(scale != 7));
        end
    };
    let mut connection = sys::rte_flow_action_conntrack {
        peer_port: 4,
        state: sys::RTE_FLOW_CONNTRACK_STATE_LAST_ACK,
        max_ack_window: 14,
        retransmission_limit: 5,
        original_dir: end(7, 100),
        reply_dir: end(0xf, 200),
        last_window: 300,
        last_index: sys::RTE_FLOW_CONNTRACK_FLAG_RST,
        last_seq: 301,
        last_ack: 302,
        last_end: 303,
        ..Default::default()
    };
    connection.set_enable(1);
    connection.set_last_direction(1);
    connection.set_selective_ack(1);
    connection
}

#[test]
fn connections_round_trip_and_invalid_ones_are_refused() {
    let limits = Limits::default();
    let context = context_of(&PORTS, &limits);
    let read = |conf: &sys::rte_flow_action_conntrack| super::connection(&context, Some(conf));
    let bytes = |shown: &sys::rte_flow_action_conntrack| {
        let fields = [
            shown.is_original_dir(),
            shown.enable(),
            shown.live_connection(),
            shown.selective_ack(),
            shown.challenge_ack_passed(),
            shown.last_direction(),
            shown.liberal_mode(),
            shown.peer_port.into(),
            shown.state,
            shown.max_ack_window.into(),
            shown.retransmission_limit.into(),
            shown.last_window.into(),
            shown.last_index,
            shown.last_seq,
            shown.last_ack,
            shown.last_end,
        ];
        let end = |end: &sys::rte_flow_tcp_dir_param| {
            let flags = [end.scale(), end.close_initiated(), end.last_ack_seen(), end.data_unacked()];
            [flags, [end.sent_end, end.reply_end, end.max_win, end.max_ack]].concat()
        };
        [&fields[..], &end(&shown.original_dir), &end(&shown.reply_dir)].concat()
    };
    let mut other = connection();
    other.set_is_original_dir(1);
    other.set_enable(0);
    other.set_live_connection(1);
    other.set_challenge_ack_passed(1);
    other.set_last_direction(0);
    other.set_liberal_mode(1);
    for conf in [connection(), other] {
        assert_eq!(bytes(&show_connection(&read(&conf).unwrap())), bytes(&conf));
    }
    let mut wide = connection();
    wide.reply_dir.max_win = u32::MAX;
    for (conf, word) in [
        (sys::rte_flow_action_conntrack { peer_port: 9, ..connection() }, "peer_port"),
        (sys::rte_flow_action_conntrack { state: 6, ..connection() }, "no such state"),
        (sys::rte_flow_action_conntrack { last_index: 3, ..connection() }, "last_index"),
        (sys::rte_flow_action_conntrack { max_ack_window: 15, ..connection() }, "max_ack_window"),
        (wide, "max_win"),
    ] {
        let refusal = read(&conf).map(|_| ()).unwrap_err();
        assert_eq!((refusal.kind, refusal.cause), (sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, from_ref(&conf).cast()));
        assert!(refusal.message.to_str().unwrap().contains(word), "{refusal:?}");
    }
}

#[test]
fn conntrack_items_are_for_later_groups_only() {
    let flags = |flags| sys::rte_flow_item_conntrack { flags };
    let (valid, all, two) = (flags(1), flags(u32::MAX), flags(3));
    let drop = [plain(sys::RTE_FLOW_ACTION_TYPE_DROP)];
    let in_group = |group, items: &[sys::rte_flow_item]| {
        translated(&sys::rte_flow_attr { group, ..transfer() }, items, &drop, &[])
    };
    let said = |spec: &sys::rte_flow_item_conntrack, mask: Option<&sys::rte_flow_item_conntrack>| {
        item(sys::RTE_FLOW_ITEM_TYPE_CONNTRACK, Some(spec), mask)
    };
    let wanted = |item| {
        let pattern = in_group(1, &[bare(sys::RTE_FLOW_ITEM_TYPE_TCP), item]).unwrap().pattern;
        (pattern.value().byte(Layer::Outer, field::CONNTRACK), pattern.mask().byte(Layer::Outer, field::CONNTRACK))
    };
    assert_eq!(wanted(said(&valid, None)), (1, 0xff));
    assert_eq!(wanted(said(&valid, Some(&all))), (1, 0xff));
    assert_eq!(wanted(said(&two, Some(&valid))), (1, 1));
    assert_eq!(wanted(said(&two, Some(&flags(0x1f)))), (3, 0xff));
    assert_eq!(wanted(said(&flags(0), None)), (0, 0xff));
    let refused = |group, items: &[sys::rte_flow_item], word: &str| {
        let refusal = in_group(group, items).map(|_| ()).unwrap_err();
        assert!(refusal.message.to_str().unwrap().contains(word), "{refusal:?}");
        (refusal.kind, refusal.cause)
    };
    for nonsense in [2, 5, 32, 24] {
        let spec = flags(nonsense);
        let place = (sys::RTE_FLOW_ERROR_TYPE_ITEM_SPEC, from_ref(&spec).cast());
        assert_eq!(refused(1, &[said(&spec, None)], "no packet has these flags"), place);
    }
    let items = [bare(sys::RTE_FLOW_ITEM_TYPE_ETH), said(&valid, None), said(&valid, None)];
    assert_eq!(refused(1, &items, "one CONNTRACK").0, sys::RTE_FLOW_ERROR_TYPE_ITEM);
    assert_eq!(refused(0, &items[..2], "before group 0").0, sys::RTE_FLOW_ERROR_TYPE_ITEM);
    refused(1, &[bare(sys::RTE_FLOW_ITEM_TYPE_VXLAN), items[1]], "before the tunnel");
    refused(1, &[bare(sys::RTE_FLOW_ITEM_TYPE_CONNTRACK)], "with flags");
    let last = sys::rte_flow_item { last: from_ref(&two).cast(), ..items[1] };
    refused(1, &[last], "ranges");
}

#[test]
fn a_rule_has_a_connection_once_and_by_its_handle() {
    let mut pipeline = crate::pipeline::Pipeline::new(Limits::default());
    let limits = Limits::default();
    let connection = super::connection(&context_of(&PORTS, &limits), Some(&connection())).unwrap();
    let id = pipeline.share(3, crate::pipeline::Shared::Conntrack(Box::new(connection)));
    let context = Context { shared: Some(pipeline.shared()), ..context_of(&PORTS, &limits) };
    let handle = sys::rte_flow_action {
        type_: sys::RTE_FLOW_ACTION_TYPE_INDIRECT,
        conf: std::ptr::without_provenance(id as usize),
    };
    let end = bare(sys::RTE_FLOW_ITEM_TYPE_END);
    let drop = plain(sys::RTE_FLOW_ACTION_TYPE_DROP);
    let done = |actions: &[sys::rte_flow_action]| {
        let actions = [actions, &[plain(sys::RTE_FLOW_ACTION_TYPE_END)]].concat();
        // SAFETY: both lists end; the handle leads nowhere.
        unsafe { rule(&context, &transfer(), &raw const end, actions.as_ptr()) }
    };
    let judge = Action::Shared(crate::pipeline::SharedKind::Conntrack, id);
    for actions in [[handle, drop], [drop, handle]] {
        assert_eq!(done(&actions).unwrap().actions[..], [judge.clone(), Action::Drop]);
    }
    let refusal = done(&[handle, handle, drop]).map(|_| ()).unwrap_err();
    assert!(refusal.message.to_str().unwrap().contains("once in a rule"), "{refusal:?}");
}

#[test]
fn attributes_are_checked_and_a_rule_has_one_fate() {
    let kind = |attributes: sys::rte_flow_attr, actions: &[sys::rte_flow_action]| {
        translated(&attributes, &[], actions, &[]).map(|_| ()).unwrap_err().kind
    };
    let drop = plain(sys::RTE_FLOW_ACTION_TYPE_DROP);
    assert_eq!(kind(attributes(|_| ()), &[drop]), sys::RTE_FLOW_ERROR_TYPE_ATTR);
    let far = sys::rte_flow_attr { group: 64, ..transfer() };
    assert_eq!(kind(far, &[drop]), sys::RTE_FLOW_ERROR_TYPE_ATTR_GROUP);
    let low = sys::rte_flow_attr { priority: 16, ..transfer() };
    assert_eq!(kind(low, &[drop]), sys::RTE_FLOW_ERROR_TYPE_ATTR_PRIORITY);
    assert_eq!(kind(ingress(), &[]), sys::RTE_FLOW_ERROR_TYPE_ACTION_NUM);
    assert_eq!(kind(ingress(), &[drop, drop]), sys::RTE_FLOW_ERROR_TYPE_ACTION);
    assert_eq!(kind(ingress(), &[plain(sys::RTE_FLOW_ACTION_TYPE_MARK), drop]), sys::RTE_FLOW_ERROR_TYPE_ACTION);
}

#[test]
fn tunnel_descriptions_become_headers() {
    let (mut eth, mut ipv6) = (sys::rte_flow_item_eth::default(), sys::rte_flow_item_ipv6::default());
    let (udp, mut vxlan) = (sys::rte_flow_item_udp::default(), [0u8; 8]);
    eth.__bindgen_anon_1.hdr.dst_addr.addr_bytes = [2; 6];
    ipv6.hdr.dst_addr = [0xfd; 16];
    vxlan[6] = 42;
    let items = [
        item(sys::RTE_FLOW_ITEM_TYPE_ETH, Some(&eth), None),
        item(sys::RTE_FLOW_ITEM_TYPE_IPV6, Some(&ipv6), None),
        item(sys::RTE_FLOW_ITEM_TYPE_UDP, Some(&udp), None),
        item(sys::RTE_FLOW_ITEM_TYPE_VXLAN, Some(&vxlan), None),
        bare(sys::RTE_FLOW_ITEM_TYPE_END),
    ];
    let encap = |definition: &[sys::rte_flow_item]| {
        let conf = sys::rte_flow_action_vxlan_encap { definition: definition.as_ptr().cast_mut() };
        let actions = [action(sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP, &conf), plain(sys::RTE_FLOW_ACTION_TYPE_DROP)];
        translated(&ingress(), &[], &actions, &[])
    };
    let rule = encap(&items).unwrap();
    let Action::Encapsulate(front) = &rule.actions[0] else { panic!("{:?}", rule.actions) };
    let (key, headers) = parse(front);
    assert_eq!((front.len(), headers.l3, headers.l4), (70, Some((6, 14)), Some((17, 54))));
    assert_eq!(key.get(Layer::Outer, field::VNI), [0, 0, 42]);
    assert_eq!(key.byte(Layer::Outer, field::TUNNEL_FLAGS), 8);
    assert_eq!(encap(&items[1..]).map(|_| ()).unwrap_err().kind, sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF);
}

/// A header whose item has its bytes as they are on the wire: its item, Ethernet type, length, and the bytes that can be matched.
#[derive(Clone, Debug)]
struct Wire {
    kind: sys::rte_flow_item_type,
    before: Vec<u8>,
    ethertype: u16,
    len: usize,
    matched: Vec<usize>,
    /// Bytes that make it this header.
    fixed: &'static [(usize, u8)],
}

fn wires() -> Vec<Wire> {
    let ip = |l4: u8| {
        let mut ip = IPV4.to_vec();
        ip[9] = l4;
        ip
    };
    vec![
        Wire {
            kind: sys::RTE_FLOW_ITEM_TYPE_IPV4,
            before: vec![],
            ethertype: 0x0800,
            len: 20,
            matched: [1, 6, 7, 8, 9].into_iter().chain(12..20).collect(),
            fixed: &[(0, 0x45)],
        },
        Wire {
            kind: sys::RTE_FLOW_ITEM_TYPE_IPV6,
            before: vec![],
            ethertype: 0x86dd,
            len: 40,
            matched: [0, 1, 2, 3, 6, 7].into_iter().chain(8..40).collect(),
            fixed: &[(0, 0x60)],
        },
        Wire {
            kind: sys::RTE_FLOW_ITEM_TYPE_TCP,
            before: ip(6),
            ethertype: 0x0800,
            len: 20,
            matched: vec![0, 1, 2, 3, 13],
            fixed: &[],
        },
        Wire {
            kind: sys::RTE_FLOW_ITEM_TYPE_SCTP,
            before: ip(132),
            ethertype: 0x0800,
            len: 12,
            matched: (0..8).collect(),
            fixed: &[],
        },
        Wire {
            kind: sys::RTE_FLOW_ITEM_TYPE_ICMP,
            before: ip(1),
            ethertype: 0x0800,
            len: 8,
            matched: vec![0, 1, 4, 5, 6, 7],
            fixed: &[],
        },
    ]
}

proptest! {
    /// A rule matches a header if, and only if, the bytes are equal under the mask.
    #[test]
    fn items_match_the_bytes_that_they_name(
        wire in prop::sample::select(wires()),
        mut header in prop::array::uniform::<_, 44>(prop::sample::select(vec![0u8, 1, 0xff])),
        differing in prop::option::of((0usize..40, 1u8..)),
        mut mask in prop::array::uniform::<_, 44>(prop::sample::select(vec![0u8, 0x0f, 0xff])),
    ) {
        wire.fixed.iter().for_each(|&(at, byte)| header[at] = byte);
        (0..44).filter(|at| !wire.matched.contains(at)).for_each(|at| mask[at] = 0);
        let mut spec = header;
        if let Some((at, bits)) = differing {
            spec[at] ^= bits;
        }
        let rule = dropping(&[item(wire.kind, Some(&spec), Some(&mask))]).unwrap();
        let packet = frame(wire.ethertype, &[&wire.before[..], &header[..wire.len], &[0; 8]].concat());
        let equal = (0..wire.len).all(|at| (spec[at] ^ header[at]) & mask[at] == 0);
        prop_assert_eq!(matches(&rule.pattern, &packet), equal);
    }
}
