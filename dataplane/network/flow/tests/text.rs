//! The datapath's text. The forms here were put side by side with those of Open vSwitch 3.1.

use clock::Cycles;
use flow::text::{Actions, DumpLine, FlowMatch, Offloaded, parse_actions, parse_ufid};
use flow::{Action, Megaflow, Metadata, Miniflow, Stats, field, reference};
use proptest::prelude::*;

fn assert_same(text: &str) {
    let flow: FlowMatch = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(flow.to_string(), text);
}

#[test]
fn matches_round_trip() {
    for text in [
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(frag=no)",
        "recirc_id(0x2a),dp_hash(0x5/0xf),skb_priority(0x1),in_port(4/0xff),skb_mark(0x9),eth(),eth_type(0x86dd)",
        "in_port(1),eth(src=02:00:00:00:00:01,dst=01:00:00:00:00:00/01:00:00:00:00:00),eth_type(0/0xffff)",
        "in_port(2),packet_type(ns=1,id=0x800),eth_type(0x0800),ipv4(src=10.0.0.0/255.0.0.0,tos=0/0x3,ttl=64,frag=later)",
        "in_port(1),eth(),eth_type(0x8100),vlan(vid=7,pcp=0),encap(eth_type(0x88a8),vlan(vid=8/0xff,pcp=1/0x6),encap(eth_type(0x0806)))",
        "in_port(1),eth(),eth_type(0x0806),arp(sip=10.0.0.1,tip=10.0.0.2,op=1,sha=02:00:00:00:00:01,tha=00:00:00:00:00:00)",
        "in_port(1),eth(),eth_type(0x0800),ipv4(proto=6,frag=first),tcp(src=80,dst=1024/0xfc00),tcp_flags(+syn-ack)",
        "in_port(1),eth(),eth_type(0x0800),ipv4(proto=6,frag=no),tcp_flags(syn|ack)",
        "in_port(1),eth(),eth_type(0x0800),ipv4(proto=132,frag=no),sctp(dst=9)",
        "in_port(1),eth(),eth_type(0x0800),ipv4(proto=1,frag=no),icmp(type=8,code=0)",
        "in_port(1),eth(),eth_type(0x86dd),ipv6(src=2001:db8::/ffff:ffff::,dst=::10.0.0.1,label=0x12/0xff,proto=17,tclass=0x4,hlimit=3,frag=no),udp(dst=53)",
        "in_port(1),eth(),eth_type(0x86dd),ipv6(proto=58,frag=no),icmpv6(type=135,code=0),nd(target=fe80::1,sll=02:00:00:00:00:09)",
        "in_port(1),eth(),eth_type(0x8847),mpls(label=16,tc=0,ttl=63,bos=1)",
        "in_port(1),eth(),eth_type(0x8847),mpls(label=16/0xfffff,tc=0/0,ttl=0/0x0,bos=0/1,label=3/0xfffff,tc=0/0,ttl=0/0x0,bos=1/1)",
        "in_port(1),eth(),eth_type(0x894f),nsh(flags=0,ttl=63,mdtype=1,np=3,spi=0x123,si=255,c1=0x1,c4=0x4/0x0000000f)",
        "ct_state(+new-est+trk),ct_zone(0x5),ct_mark(0/0x1),ct_label(0x1/0xff),eth(),eth_type(0x0800)",
        "ct_state(est|trk),ct_tuple4(src=10.0.0.1,dst=10.0.0.2,proto=6,tp_src=1,tp_dst=2),eth(),eth_type(0x0800)",
        "tunnel(tun_id=0x5,src=10.0.0.1,dst=10.0.0.2,tos=0x8,ttl=64/0xf0,tp_dst=4789,vxlan(gbp(id=7,flags=0x8)),flags(-df+csum+key)),in_port(3),eth(),eth_type(0x0800)",
        "tunnel(tun_id=0x5,ipv6_src=fe80::1,ipv6_dst=fe80::2,geneve({class=0x102,type=0x80,len=4,0x30002/0x7fffffff}{class=0x1,type=0,len=0}),flags(key)),in_port(3),eth(),eth_type(0x0800)",
    ] {
        assert_same(text);
    }
}

#[test]
fn a_tag_that_is_not_named_is_not_there() {
    let flow: FlowMatch = "in_port(1),eth(),eth_type(0x0800)".parse().expect("a match");
    let matches = |frame: &[u8]| {
        let metadata = Metadata { in_port: 1, ..Metadata::default() };
        reference::extract(frame, &metadata).matches(&flow.key, &flow.mask)
    };
    let untagged = [[0; 12].as_slice(), &[8, 0], &[0; 46]].concat();
    let tagged = [[0; 12].as_slice(), &[0x81, 0, 0, 7, 8, 0], &[0; 46]].concat();
    assert!(matches(&untagged) && !matches(&tagged));
}

#[test]
fn prefixes_may_be_lengths() {
    let flow: FlowMatch = "in_port(1),eth(),eth_type(0x0800),ipv4(src=10.0.0.0/8)".parse().expect("a match");
    assert_eq!(flow.to_string(), "in_port(1),eth(),eth_type(0x0800),ipv4(src=10.0.0.0/255.0.0.0)");
}

#[test]
fn the_long_form_shows_what_is_wildcarded() {
    let flow: FlowMatch = "in_port(1),eth(),eth_type(0x0800),ipv4(frag=no)".parse().expect("a match");
    let text = format!("{flow:#}");
    assert!(
        text.starts_with("recirc_id(0/0),dp_hash(0/0),skb_priority(0/0),in_port(1),skb_mark(0/0),ct_state(0/0)"),
        "{text}"
    );
    assert!(
        text.ends_with("ipv4(src=0.0.0.0/0.0.0.0,dst=0.0.0.0/0.0.0.0,proto=0/0,tos=0/0,ttl=0/0,frag=no)"),
        "{text}"
    );
}

#[test]
fn actions_round_trip() {
    for text in [
        "drop",
        "1,2",
        "userspace(pid=1,sFlow(vid=9,pcp=7,output=10),actions,tunnel_out_port=10)",
        "userspace(pid=1,slow_path(lacp,stp))",
        "userspace(pid=1,userdata(0102ff))",
        "userspace(pid=1,flow_sample(probability=1,collector_set_id=2,obs_domain_id=3,obs_point_id=4,output_port=5,egress))",
        "userspace(pid=1,controller(reason=1,dont_send=0,continuation=1,recirc_id=4,rule_cookie=0x5,controller_id=0,max_len=65535))",
        "set(eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:00/ff:ff:ff:ff:ff:00)),set(ipv4(src=10.0.0.1,ttl=3)),set(tcp(dst=80))",
        "set(vlan(vid=3,pcp=5)),set(mpls(label=1,tc=2,ttl=3,bos=1)),set(arp(op=2)),set(skb_mark(0x7/0xff)),set(in_port(3))",
        "set(tunnel(tun_id=0x1,dst=10.0.0.1,ttl=64,flags(df|key)))",
        "push_vlan(vid=12,pcp=0),push_vlan(tpid=0x88a8,vid=13,pcp=5,cfi=0),pop_vlan",
        "push_mpls(label=16,tc=0,ttl=63,bos=1,eth_type=0x8847),pop_mpls(eth_type=0x800)",
        "push_eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),pop_eth",
        "hash(l4(5)),recirc(0x2a),hash(sym_l4(0))",
        "sample(sample=50.0%,actions(1,pop_vlan)),clone(clone(2),3),trunc(100),4,meter(7)",
        "check_pkt_len(size=200,gt(drop),le(5)),dec_ttl(le_1(userspace(pid=1)))",
        "ct(commit,zone=5,mark=0x1/0xff,label=0x1/0xf,helper=ftp,timeout=tp1,nat(src=10.0.0.1-10.0.0.9:1024-2048,random)),ct_clear,ct",
        "ct(nat(dst=[fe80::1]-[fe80::9]:255-4096,persistent,hash)),ct(force_commit,nat)",
        "tnl_pop(4),lb_output(1)",
        "tnl_push(tnl_port(6),header(size=50,type=4,eth(dst=02:00:00:00:00:01,src=02:00:00:00:00:02,dl_type=0x0800),ipv4(src=1.1.2.88,dst=1.1.2.92,proto=17,tos=0,ttl=64,frag=0x4000),udp(src=0,dst=4789,csum=0x0),vxlan(flags=0x8000000,vni=0x1c7)),out_port(1))",
    ] {
        let actions = parse_actions(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(Actions(&actions).to_string(), text);
    }
}

#[test]
fn parse_errors_point_at_the_place() {
    let of_match = |text: &str| text.parse::<FlowMatch>().expect_err("an error").to_string();
    assert_eq!(
        of_match("in_port(1),eth(scr=02:00:00:00:00:01)"),
        "at byte 15, before `scr=02:00:00:00:00:01)`: expected a field of this header or `)` (`src`?)"
    );
    assert_eq!(
        of_match("in_port(1),eth(),ipv4(src=10.0.0.1)"),
        "at byte 17, before `ipv4(src=10.0.0.1)`: expected `eth_type(0x0800)` before `ipv4` \
         (a header can only be matched where the one before says that it is there)"
    );
    assert_eq!(of_match("in_port(1),in_port(2)"), "at byte 11, before `in_port(2)`: expected no second `in_port`");
    assert_eq!(of_match("in_port(1"), "at byte 9, before ``: expected `)`");
    assert_eq!(
        of_match("eth(),eth_type(0x0800),ipv4(src=10.0.0.256)"),
        "at byte 32, before `10.0.0.256)`: expected an IPv4 address"
    );
    let of_actions = |text: &str| parse_actions(text).expect_err("an error").to_string();
    assert_eq!(
        of_actions("1,push_vlna(vid=1,pcp=0)"),
        "at byte 2, before `push_vlna(vid=1,pcp=0)`: expected a port number or the name of an action (`push_vlan`?)"
    );
    assert_eq!(of_actions(""), "at byte 0, before ``: expected an action (`drop` does nothing with the packet)");
    let deep = format!("{}1{}", "clone(".repeat(40), ")".repeat(40));
    assert!(of_actions(&deep).ends_with("expected no more than 16 lists of actions inside each other"));
}

#[test]
fn a_dump_line_has_statistics_and_name() {
    let wanted: FlowMatch = "in_port(1),eth(),eth_type(0x0800),ipv4(frag=no)".parse().expect("a match");
    let mut flow = Megaflow::new(wanted.key, wanted.mask, [Action::Output(2)]);
    let line = |flow: &Megaflow, now: Cycles| {
        DumpLine { flow, now, offloaded: Offloaded::Partial, dp: Some("ovs") }.to_string()
    };
    let head = "in_port(1),eth(),eth_type(0x0800),ipv4(frag=no)";
    assert_eq!(line(&flow, Cycles(5)), format!("{head}, packets:0, bytes:0, used:never, actions:2"));
    flow.stats = Stats { packets: 3, bytes: 180, used: Cycles(5), tcp_flags: 0x12 };
    assert_eq!(line(&flow, Cycles(5)), format!("{head}, packets:3, bytes:180, used:0.000s, flags:S., actions:2"));
    flow.ufid = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;
    let long =
        format!("{:#}", DumpLine { flow: &flow, now: Cycles(5), offloaded: Offloaded::Partial, dp: Some("ovs") });
    assert!(long.starts_with("ufid:01234567-89ab-cdef-0123-456789abcdef, recirc_id(0/0)"), "{long}");
    assert!(long.ends_with(", flags:S., offloaded:partial, dp:ovs, actions:2"), "{long}");
    assert_eq!(parse_ufid(&long).expect("a name").0, Some(flow.ufid));
    assert_eq!(parse_ufid("in_port(1)"), Ok((None, "in_port(1)")));
    assert!(parse_ufid("ufid:12").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    /// The exact match of any packet, printed and read, still matches it and prints the same.
    #[test]
    fn matches_of_packets_round_trip(kind in 0usize..4, mut bytes in proptest::collection::vec(any::<u8>(), 60..120), protocol in 0usize..6, masks in proptest::collection::vec(any::<u64>(), 12)) {
        let eth_type = [[8, 0], [0x86, 0xdd], [8, 6], [0x88, 0x47]][kind];
        bytes[12..14].copy_from_slice(&eth_type);
        let protocol = [6, 17, 1, 58, 132, 9][protocol];
        match kind {
            0 => {
                bytes[14] = 0x45;
                bytes[16..18].copy_from_slice(&[0, 40]);
                bytes[20..22].fill(0);
                bytes[23] = protocol;
            }
            1 => {
                bytes[14] = 0x60;
                bytes[18..20].copy_from_slice(&[0, 6]);
                bytes[20] = protocol;
            }
            2 => bytes[14..21].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0]),
            _ => {}
        }
        let mut packet = Miniflow::default();
        flow::extract(&bytes, &Metadata { in_port: 5, ..Metadata::default() }, &mut packet);
        let mut exact = flow::Mask::exact(&[field::IN_PORT, field::ETH_TYPE, field::NW_FRAG, field::NW_PROTO]);
        for tag in 0..2 {
            exact.set_exact(field::VLAN_TCI[tag]);
            exact.set_exact(field::VLAN_TPID[tag]);
        }
        let mut mask = exact;
        for (field, bits) in [field::ETH_SRC, field::ETH_DST, field::IPV4_SRC, field::IPV4_DST, field::NW_TOS, field::NW_TTL].iter().zip(&masks) {
            mask.0.set(*field, bits & field.max());
        }
        if packet.key().get(field::ETH_TYPE) == 0x86dd {
            mask.0.set_wide(field::IPV6_SRC, u128::from(masks[6]) << 40);
            mask.0.set(field::IPV6_LABEL, masks[7]);
        }
        mask.0.set(field::TP_SRC, masks[8] & 0xff);
        mask.0.set(field::TP_DST, masks[9] & 0xff);
        let flow = FlowMatch { key: packet.key().masked(&mask), mask };
        let text = flow.to_string();
        let read: FlowMatch = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        prop_assert_eq!(read.to_string(), text.clone());
        prop_assert!(packet.key().matches(&read.key, &read.mask), "{}", text);
    }
}
