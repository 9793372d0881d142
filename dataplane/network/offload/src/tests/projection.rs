//! Rules beside the flows that they come from.

use crate::{Refusal, Rule};
use flow::text::{FlowMatch, parse_actions};
use flow::{Key, Mask, Metadata, Miniflow, extract, field};
use proptest::prelude::*;
use rte_rule::{Direction, FlowAction, FlowItem, SetField};

/// Ports 1 to 3 of the switch are 11 to 13 of the device.
fn device_port(port: u32) -> Option<u16> {
    (1..=3).contains(&port).then_some(port as u16 + 10)
}

fn rule(flow: &str, actions: &str) -> Result<Rule, Refusal> {
    let flow: FlowMatch = flow.parse().unwrap();
    Rule::of(&flow.key, &flow.mask, &parse_actions(actions).unwrap(), device_port)
}

fn refusal(flow: &str, actions: &str) -> String {
    rule(flow, actions).unwrap_err().to_string()
}

const IPV4: &str = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(frag=no)";

#[test]
fn a_bridge_flow_becomes_a_transfer_rule() {
    let Rule { pattern, actions, direction } = rule(IPV4, "2").unwrap();
    assert_eq!(direction, Direction::Transfer);
    assert_eq!(pattern[0], FlowItem::RepresentedPort(11));
    let FlowItem::Eth(eth) = &pattern[1] else { panic!("{pattern:?}") };
    assert_eq!((eth.spec.src, eth.mask.src), ([2, 0, 0, 0, 0, 1], [0xff; 6]));
    assert_eq!((eth.spec.ether_type, eth.mask.ether_type), (0x0800, 0xffff));
    let FlowItem::Ipv4(ip) = &pattern[2] else { panic!("{pattern:?}") };
    assert_eq!((ip.spec.fragment, ip.mask.fragment, ip.mask.proto), (0, 0x3fff, 0));
    assert_eq!(pattern.len(), 3);
    assert_eq!(actions, [FlowAction::Count, FlowAction::RepresentedPort(12)]);
    assert_eq!(rule(IPV4, "drop").unwrap().actions, [FlowAction::Count, FlowAction::Drop]);
}

#[test]
fn a_marking_rule_matches_the_same_at_ingress() {
    let FlowMatch { key, mask } = IPV4.parse().unwrap();
    let whole = rule(IPV4, "2").unwrap();
    let Rule { pattern, actions, direction } = Rule::marking(&key, &mask, 77, 3).unwrap();
    assert_eq!((&pattern[..], direction), (&whole.pattern[1..], Direction::Ingress));
    assert_eq!(actions, [FlowAction::Count, FlowAction::Mark(77), FlowAction::Rss(vec![0, 1, 2])]);
    let FlowMatch { key, mask } = "in_port(1),eth_type(0x0806),arp(sip=10.0.0.1)".parse().unwrap();
    assert!(matches!(Rule::marking(&key, &mask, 77, 3), Err(Refusal::Match(_))));
}

#[test]
fn headers_are_rewritten_in_order() {
    let routed = "set(eth(src=02:00:00:00:00:09,dst=02:00:00:00:00:0a)),dec_ttl(le_1()),push_vlan(vid=7,pcp=3),3";
    let flow = "in_port(1),eth_type(0x0800),ipv4(proto=6,ttl=64,frag=no),tcp(dst=80)";
    let set = FlowAction::Set;
    assert_eq!(
        rule(flow, routed).unwrap().actions,
        [
            FlowAction::Count,
            set(SetField::MacSrc([2, 0, 0, 0, 0, 9])),
            set(SetField::MacDst([2, 0, 0, 0, 0, 10])),
            FlowAction::DecTtl,
            FlowAction::PushVlan(0x8100),
            set(SetField::VlanVid(7)),
            set(SetField::VlanPcp(3)),
            FlowAction::RepresentedPort(13),
        ]
    );
    let actions = rule(flow, "set(ipv4(src=10.0.0.1)),set(tcp(dst=8080)),2").unwrap().actions;
    assert_eq!(actions[1..3], [set(SetField::Ipv4Src([10, 0, 0, 1])), set(SetField::TpDst(8080))]);
}

#[test]
fn inexpressible_flows_are_refused_by_clause() {
    let arp = refusal("in_port(1),eth_type(0x0806),arp(sip=10.0.0.1)", "2");
    assert_eq!(arp, "match eth(),eth_type(0x0806),arp(sip=10.0.0.1): has no rte_flow item");
    let later = "in_port(1),eth_type(0x0800),ipv4(frag=later)";
    assert!(refusal(later, "2").contains("frag=later"), "{}", refusal(later, "2"));
    assert!(refusal("recirc_id(0x5),in_port(1),eth_type(0x0800)", "2").contains("recirc_id(0x5)"));
    assert!(refusal("ct_state(+est),in_port(1),eth_type(0x0800)", "2").contains("ct_state(+est)"));
    assert_eq!(refusal("in_port(9),eth_type(0x0800)", "2"), "port 9 is not in this device's switch domain");
    assert_eq!(refusal(IPV4, "8"), "port 8 is not in this device's switch domain");
    assert_eq!(refusal(IPV4, "2,3"), "action 2: a rule of rte_flow has one output");
    assert_eq!(refusal(IPV4, "meter(1),2"), "action meter(1): has no rte_flow equivalent");
    assert_eq!(
        refusal(IPV4, "dec_ttl(le_1(drop)),2"),
        "action dec_ttl(le_1(drop)): the flow does not say that the TTL is above 1"
    );
    assert_eq!(refusal(IPV4, "pop_vlan,2"), "action pop_vlan: the flow does not say that there is a tag");
    let partly = refusal(IPV4, "set(ipv4(src=10.0.0.0/255.0.0.0)),2");
    assert!(partly.ends_with("rte_flow sets only whole fields, and not every field"), "{partly}");
    assert!(refusal(IPV4, "set(tcp(dst=80)),2").ends_with("the flow does not say that it has this header"));
}

/// Frames of few values, so that one often matches what was made for another.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let tag = (prop::sample::select(vec![0x8100u16, 0x88a8]), prop::sample::select(vec![1u16, 2, 0x6001]));
    let tags = prop::collection::vec(tag, 0..3);
    let payload =
        prop_oneof![4 => ipv4(), 2 => ipv6(), 1 => Just((0x0806, vec![0; 28])), 1 => Just((0x88cc, vec![1; 9]))];
    (0..2u8, 0..2u8, tags, payload).prop_map(|(dst, src, tags, (kind, payload))| {
        let mut frame = vec![2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 1, src];
        for (tpid, tci) in tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(u16::to_be_bytes(kind));
        frame.extend(payload);
        frame
    })
}

fn layer_4() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let header = |(protocol, src, dst, flags): (u8, u8, u8, u8)| {
        let mut header = vec![0; 20];
        (header[1], header[3], header[12], header[13]) = (src, dst, 0x50, flags);
        if protocol == 1 || protocol == 58 {
            (header[0], header[1]) = (src, dst);
        }
        if protocol == 17 {
            (header[4], header[5]) = (0, 20);
        }
        (protocol, header)
    };
    (prop::sample::select(vec![1, 6, 17, 58, 132, 50]), 0..2u8, 0..2u8, 0..3u8).prop_map(header)
}

fn ipv4() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let fragment = prop::sample::select(vec![0u16, 0, 0x4000, 0x2000, 0x2001, 5]);
    (layer_4(), fragment, 1..3u8, 0..2u8, 0..2u8).prop_map(|((protocol, rest), fragment, ttl, src, dst)| {
        let mut header = vec![0x45, 0, 0, 40, 0, 0, 0, 0, ttl, protocol, 0, 0, 10, 0, 0, src, 10, 0, 1, dst];
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header.extend(rest);
        (0x0800, header)
    })
}

fn ipv6() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let fragment = prop::sample::select(vec![None, None, Some(0u16), Some(1), Some(8)]);
    (layer_4(), fragment, 1..3u8, 0..2u8, 0..2u8).prop_map(|((protocol, rest), fragment, hops, class, src)| {
        let extension = fragment.map(|offset| [protocol, 0, (offset >> 8) as u8, offset as u8, 0, 0, 0, 7]);
        let length = rest.len() + extension.map_or(0, |extension| extension.len());
        let mut header =
            vec![0x60, class << 4, 0, 0, 0, length as u8, if fragment.is_some() { 44 } else { protocol }, hops];
        header.extend([0x20; 15].into_iter().chain([src]).chain([0x21; 16]));
        header.extend(extension.into_iter().flatten());
        header.extend(rest);
        (0x86dd, header)
    })
}

/// Fields, each as a whole or a part of it.
fn mask() -> impl Strategy<Value = Mask> {
    let narrow = [
        field::ETH_DST,
        field::ETH_SRC,
        field::VLAN_TCI[0],
        field::VLAN_TPID[0],
        field::VLAN_TCI[1],
        field::VLAN_TPID[1],
        field::NW_PROTO,
        field::NW_TOS,
        field::NW_TTL,
        field::IPV4_SRC,
        field::IPV4_DST,
        field::IPV6_LABEL,
        field::TP_SRC,
        field::TP_DST,
        field::TCP_FLAGS,
    ];
    let part = prop_oneof![Just(0), Just(u64::MAX), any::<u64>()];
    let whole = prop_oneof![1 => Just(0), 4 => Just(u64::MAX)];
    (prop::collection::vec(part, narrow.len()), whole.clone(), whole, 0..4u64, any::<bool>()).prop_map(
        move |(parts, eth_type, in_port, fragment, ipv6)| {
            let mut mask = Mask::EMPTY;
            narrow.iter().zip(parts).for_each(|(field, part)| mask.0.set(*field, part));
            mask.0.set(field::ETH_TYPE, eth_type);
            mask.0.set(field::IN_PORT, in_port);
            mask.0.set(field::NW_FRAG, if fragment == 3 { u64::MAX } else { fragment });
            if ipv6 {
                mask.set_exact_wide(field::IPV6_SRC);
            }
            mask
        },
    )
}

fn key(frame: &[u8]) -> Key {
    let mut out = Miniflow::default();
    extract(frame, &Metadata { in_port: 1, ..Metadata::default() }, &mut out);
    *out.key()
}

/// The action of a device, by rte_flow's documentation, on a frame from the port that 11 represents.
fn matches(pattern: &[FlowItem], frame: &[u8]) -> bool {
    let be16 = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let bytes = |at: usize, spec: &[u8], mask: &[u8]| {
        spec.iter().zip(mask).enumerate().all(|(i, (spec, mask))| (frame[at + i] ^ spec) & mask == 0)
    };
    let number = |value: u16, spec: u16, mask: u16| (value ^ spec) & mask == 0;
    // Where the next header is, and its type, as the last one said it.
    let (mut at, mut next) = (0, 0);
    pattern.iter().all(|item| match item {
        FlowItem::RepresentedPort(port) => *port == 11,
        FlowItem::Eth(eth) => {
            (at, next) = (14, be16(12));
            let tagged = matches!(next, 0x8100 | 0x88a8);
            bytes(0, &eth.spec.dst, &eth.mask.dst)
                && bytes(6, &eth.spec.src, &eth.mask.src)
                && number(next, eth.spec.ether_type, eth.mask.ether_type)
                && (!eth.mask.has_vlan || eth.spec.has_vlan == tagged)
        }
        FlowItem::Vlan(vlan) => {
            let (is_tag, tci) = (matches!(next, 0x8100 | 0x88a8), if at + 2 <= frame.len() { be16(at) } else { 0 });
            if !is_tag {
                return false;
            }
            next = be16(at + 2);
            at += 4;
            number(tci, vlan.spec.tci, vlan.mask.tci) && number(next, vlan.spec.inner_type, vlan.mask.inner_type)
        }
        FlowItem::Ipv4(ip) => {
            if next != 0x0800 {
                return false;
            }
            let start = at;
            (at, next) = (at + 20, frame[at + 9].into());
            number(frame[start + 1].into(), ip.spec.tos.into(), ip.mask.tos.into())
                && number(be16(start + 6), ip.spec.fragment, ip.mask.fragment)
                && number(frame[start + 8].into(), ip.spec.ttl.into(), ip.mask.ttl.into())
                && number(next, ip.spec.proto.into(), ip.mask.proto.into())
                && bytes(start + 12, &ip.spec.src, &ip.mask.src)
                && bytes(start + 16, &ip.spec.dst, &ip.mask.dst)
        }
        FlowItem::Ipv6(ip) => {
            if next != 0x86dd {
                return false;
            }
            let start = at;
            (at, next) = (at + 40, frame[at + 6].into());
            let class = be16(start) >> 4 & 0xff;
            number(class, ip.spec.traffic_class.into(), ip.mask.traffic_class.into())
                && number(next, ip.spec.proto.into(), ip.mask.proto.into())
                && number(frame[start + 7].into(), ip.spec.hop_limit.into(), ip.mask.hop_limit.into())
                && bytes(start + 8, &ip.spec.src, &ip.mask.src)
                && (!ip.mask.has_fragment || ip.spec.has_fragment == (next == 44))
                && ip.mask.dst == [0; 16]
        }
        FlowItem::Tcp(tcp) => {
            next == 6
                && number(be16(at), tcp.spec.src, tcp.mask.src)
                && number(be16(at + 2), tcp.spec.dst, tcp.mask.dst)
                && number(frame[at + 13].into(), tcp.spec.flags.into(), tcp.mask.flags.into())
        }
        FlowItem::Udp(ports) | FlowItem::Sctp(ports) => {
            next == if matches!(item, FlowItem::Udp(_)) { 17 } else { 132 }
                && number(be16(at), ports.spec.src, ports.mask.src)
                && number(be16(at + 2), ports.spec.dst, ports.mask.dst)
        }
        FlowItem::Icmp(icmp) | FlowItem::Icmp6(icmp) => {
            next == if matches!(item, FlowItem::Icmp(_)) { 1 } else { 58 }
                && number(frame[at].into(), icmp.spec.kind.into(), icmp.mask.kind.into())
                && number(frame[at + 1].into(), icmp.spec.code.into(), icmp.mask.code.into())
        }
        FlowItem::Vxlan(_) => panic!("no flow here has a tunnel"),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// A rule takes no packet that is not the flow's. It may leave some to the workers, but none that is plain.
    #[test]
    fn a_rule_matches_what_its_flow_matches(first in frame(), other in frame(), mask in mask()) {
        let flow = key(&first).masked(&mask);
        if let Ok(rule) = Rule::of(&flow, &mask, &[], device_port) {
            prop_assert!(!matches(&rule.pattern, &other) || key(&other).matches(&flow, &mask), "{rule:?} takes {other:02x?}");
            let is_plain = key(&first).get(field::VLAN_TCI[0]) == 0 && !(first[12] == 0x86 && first[20] == 44);
            prop_assert!(!is_plain || matches(&rule.pattern, &first), "{rule:?} leaves {first:02x?}");
        }
    }
}
