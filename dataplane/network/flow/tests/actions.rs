//! Actions carried out on packets, checked from outside: by extraction, and by checksums computed anew.

use flow::execute::{Executor, Sink};
use flow::text::parse_actions;
use flow::{DropReason, Key, Metadata, PortNo, field, reference};
use packet::{L4Checksum, Offload, Packet, Pool};
use proptest::prelude::*;

/// What became of the packets.
#[derive(Default)]
struct Seen {
    output: Vec<(Packet, PortNo)>,
    userspace: Vec<Packet>,
    recirculated: Vec<(Packet, u32, Key)>,
    dropped: Vec<DropReason>,
}

impl Sink for Seen {
    fn output(&mut self, packet: Packet, port: PortNo) {
        self.output.push((packet, port));
    }
    fn userspace(&mut self, packet: Packet, _: &flow::action::Userspace) {
        self.userspace.push(packet);
    }
    fn recirculate(&mut self, packet: Packet, metadata: &Metadata<'_>) {
        let key = reference::extract(packet.data(), metadata);
        self.recirculated.push((packet, metadata.recirc_id, key));
    }
    fn meter(&mut self, _: &Packet, meter: u32) -> bool {
        meter != 0
    }
    fn dropped(&mut self, _: Packet, reason: DropReason) {
        self.dropped.push(reason);
    }
}

fn pool() -> Pool {
    Pool::new(packet::MIN_BUFFERS, None).expect("a pool")
}

fn packet(pool: &Pool, bytes: &[u8]) -> Packet {
    let mut packet = pool.take_one().expect("a buffer");
    packet.append(bytes.len()).expect("room").copy_from_slice(bytes);
    packet
}

fn run(pool: &Pool, bytes: &[u8], actions: &str) -> Seen {
    let mut seen = Seen::default();
    let actions = parse_actions(actions).expect("actions");
    flow::execute::supported(&actions).expect("supported actions");
    Executor::new(pool.clone()).run_burst([packet(pool, bytes)], &Metadata::default(), &actions, &mut seen);
    seen
}

/// The bytes that left by port 1.
fn sent(seen: &Seen) -> &[u8] {
    let [(packet, 1)] = &seen.output[..] else { panic!("{} packets left, {:?}", seen.output.len(), seen.dropped) };
    packet.data()
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte))).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Addresses, protocol and length, as they go into transport checksums.
fn pseudo_header(ip: &[u8], header: usize) -> u32 {
    let (protocol, addresses) = if ip[0] >> 4 == 4 { (ip[9], &ip[12..20]) } else { (ip[6], &ip[8..40]) };
    sum(addresses) + u32::from(protocol) + (ip.len() - header) as u32
}

fn header_len(ip: &[u8]) -> usize {
    if ip[0] >> 4 == 4 { 20 } else { 40 }
}

fn checksum_offset(ip: &[u8]) -> usize {
    header_len(ip)
        + match if ip[0] >> 4 == 4 { ip[9] } else { ip[6] } {
            6 => 16,
            17 => 6,
            _ => 2,
        }
}

/// Completes the checksums of an IP packet.
fn with_checksums(mut ip: Vec<u8>) -> Vec<u8> {
    let (header, at) = (header_len(&ip), checksum_offset(&ip));
    let total = ip.len() as u16;
    if header == 20 {
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[10..12].fill(0);
        let checksum = !folded(sum(&ip[..20]));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        ip[4..6].copy_from_slice(&(total - 40).to_be_bytes());
    }
    ip[at..at + 2].fill(0);
    let is_icmp4 = header == 20 && ip[9] == 1;
    let pseudo = if is_icmp4 { 0 } else { pseudo_header(&ip, header) };
    let checksum = !folded(pseudo + sum(&ip[header..]));
    let is_udp = at == header + 6;
    let checksum = if is_udp && checksum == 0 { 0xffff } else { checksum };
    ip[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    ip
}

fn assert_checksums(ip: &[u8]) {
    let header = header_len(ip);
    let is_icmp4 = header == 20 && ip[9] == 1;
    let pseudo = if is_icmp4 { 0 } else { pseudo_header(ip, header) };
    assert_eq!(folded(pseudo + sum(&ip[header..])), 0xffff, "transport checksum of {ip:02x?}");
    if header == 20 {
        assert_eq!(folded(sum(&ip[..20])), 0xffff, "header checksum of {ip:02x?}");
    }
}

fn ethernet(eth_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(eth_type.to_be_bytes());
    frame.extend(payload);
    frame
}

fn udp4() -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip.extend([0, 53, 4, 0, 0, 12, 0, 0, 1, 2, 3, 4]);
    ethernet(0x0800, &with_checksums(ip))
}

fn ip_packet() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 24..60);
    (any::<bool>(), 0usize..3, any::<[u8; 40]>(), body).prop_map(|(is_ipv6, kind, mut header, mut body)| {
        body[12] = 0x50;
        let mut ip = if is_ipv6 {
            header[0] = 0x60;
            header[6] = [6, 17, 58][kind];
            header.to_vec()
        } else {
            header[0] = 0x45;
            header[6..8].fill(0);
            header[9] = [6, 17, 1][kind];
            header[..20].to_vec()
        };
        if kind == 2 {
            body[0] = 129;
        }
        ip.extend(&body);
        with_checksums(ip)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is set, just that changes, and all checksums stay right.
    #[test]
    fn set_changes_the_field_and_the_checksums(ip in ip_packet(), value in any::<u128>(), mask in any::<u128>(), which in 0usize..8) {
        let is_ipv6 = ip[0] >> 4 == 6;
        let frame = ethernet(if is_ipv6 { 0x86dd } else { 0x0800 }, &ip);
        let (v, m) = (value as u16, mask as u16);
        let ipv4 = |bits: u128| std::net::Ipv4Addr::from(bits as u32);
        let ipv6 = |bits: u128| std::net::Ipv6Addr::from(bits);
        let protocol = if is_ipv6 { ip[6] } else { ip[9] };
        let transport = match protocol { 6 => "tcp", 17 => "udp", 1 => "icmp", _ => "icmpv6" };
        let is_icmp = transport.starts_with("icmp");
        let set = match (which, is_ipv6) {
            (0, false) => format!("ipv4(src={}/{})", ipv4(value), ipv4(mask)),
            (1, false) => format!("ipv4(dst={})", ipv4(value)),
            (2, false) => format!("ipv4(tos={:#x}/{:#x},ttl={})", v & 255, m & 255, value as u8),
            (0, true) => format!("ipv6(src={}/{})", ipv6(value), ipv6(mask)),
            (1, true) => format!("ipv6(dst={})", ipv6(value)),
            (2, true) => format!("ipv6(tclass={:#x}/{:#x},label={:#x},hlimit={})", v & 255, m & 255, value as u32 & 0xf_ffff, value as u8),
            (3..5, _) if is_icmp => format!("{transport}(type=129,code={})", value as u8),
            (3, _) => format!("{transport}(src={v}/{m:#x})"),
            (4, _) => format!("{transport}(src={v},dst={m})"),
            _ => format!("eth(src=02:00:00:00:{:02x}:{:02x}/ff:ff:ff:ff:0f:f0)", value as u8, mask as u8),
        };
        let pool = pool();
        let seen = run(&pool, &frame, &format!("set({set}),1"));
        let out = sent(&seen);
        assert_checksums(&out[14..]);
        // What changed, seen by extraction, is what was asked for.
        let actions = parse_actions(&format!("set({set})")).expect("an action");
        let flow::Action::Set(set) = &actions[0] else { panic!("not a set action") };
        let before = reference::extract(&frame, &Metadata::default());
        let after = reference::extract(out, &Metadata::default());
        for i in 0..flow::key::WORDS {
            let expected = before.words()[i] & !set.mask.words()[i] | set.key.words()[i] & set.mask.words()[i];
            prop_assert_eq!(after.words()[i], expected, "word {}", i);
        }
    }

    /// Any actions on any bytes: nothing panics and no buffer is lost.
    #[test]
    fn any_packet_survives_any_action(frame in proptest::collection::vec(any::<u8>(), 0..120), ip in ip_packet(), cut in 0usize..100, chosen in proptest::collection::vec(0usize..22, 1..6)) {
        const ACTIONS: [&str; 22] = [
            "1", "push_vlan(vid=5,pcp=1)", "pop_vlan", "push_mpls(label=1,tc=0,ttl=9,bos=1,eth_type=0x8847)",
            "pop_mpls(eth_type=0x800)", "push_eth(src=00:00:00:00:00:01,dst=00:00:00:00:00:02)", "pop_eth", "recirc(0x1)",
            "hash(l4(0))", "sample(sample=50.0%,actions(2))", "trunc(20)", "clone(pop_vlan,3)", "check_pkt_len(size=64,gt(4),le(5))",
            "dec_ttl(le_1(userspace(pid=1)))", "meter(1)", "set(ipv4(src=1.2.3.4,ttl=3))", "set(tcp(src=4))", "set(udp(dst=4))",
            "set(sctp(dst=4))", "set(nd(target=::1,sll=00:00:00:00:00:09))", "set(arp(op=2,sip=1.1.1.1))", "set(mpls(label=3,tc=1,ttl=2,bos=0))",
        ];
        let pool = pool();
        let before = pool.free_count();
        let mut bytes = ethernet(if ip[0] >> 4 == 6 { 0x86dd } else { 0x0800 }, &ip);
        bytes.truncate(bytes.len().saturating_sub(cut));
        let actions: Vec<&str> = chosen.iter().map(|i| ACTIONS[*i]).collect();
        for bytes in [&frame, &bytes] {
            drop(run(&pool, bytes, &actions.join(",")));
        }
        prop_assert_eq!(pool.free_count(), before);
    }
}

#[test]
fn a_packet_that_is_sent_twice_is_copied_once() {
    let pool = pool();
    let free = pool.free_count();
    let seen = run(&pool, &udp4(), "2,set(eth(dst=02:00:00:00:00:99)),1");
    assert_eq!(seen.output.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(free - pool.free_count(), 2);
    assert_eq!(seen.output[0].0.data(), udp4());
    assert_eq!(seen.output[1].0.data()[..6], [2, 0, 0, 0, 0, 0x99]);
}

#[test]
fn vlan_tags_are_added_and_removed() {
    let pool = pool();
    let seen = run(&pool, &udp4(), "push_vlan(vid=7,pcp=3),push_vlan(tpid=0x88a8,vid=9,pcp=0),1");
    let out = sent(&seen);
    assert_eq!(out[12..22], [0x88, 0xa8, 0, 9, 0x81, 0, 0x60, 7, 8, 0]);
    let again = run(&pool, out, "set(vlan(vid=8)),pop_vlan,pop_vlan,1");
    assert_eq!(sent(&again), udp4());
}

#[test]
fn mpls_labels_are_added_and_removed() {
    let pool = pool();
    let seen = run(&pool, &udp4(), "push_mpls(label=100,tc=1,ttl=64,bos=1,eth_type=0x8847),1");
    let out = sent(&seen);
    assert_eq!(out[12..18], [0x88, 0x47, 0, 6, 0x43, 64]);
    let again = run(&pool, out, "pop_mpls(eth_type=0x800),1");
    assert_eq!(sent(&again), udp4());
}

#[test]
fn ethernet_headers_are_removed_and_added() {
    let pool = pool();
    let seen = run(&pool, &udp4(), "pop_eth,set(ipv4(ttl=9)),push_eth(src=02:00:00:00:00:02,dst=02:00:00:00:00:01),1");
    let mut expected = run(&pool, &udp4(), "set(ipv4(ttl=9)),1");
    assert_eq!(sent(&seen), expected.output.remove(0).0.data());
    let seen = run(&pool, &udp4(), "pop_eth,recirc(3)");
    let (packet, id, key) = &seen.recirculated[0];
    assert_eq!((packet.len(), *id), (udp4().len() - 14, 3));
    assert_eq!((key.get(field::PACKET_TYPE_NS), key.get(field::TP_SRC)), (1, 53));
}

#[test]
fn set_metadata_goes_with_a_recirculated_packet() {
    let pool = pool();
    let seen = run(&pool, &udp4(), "set(skb_mark(0x7)),clone(set(skb_mark(0x9)),recirc(2)),hash(sym_l4(0)),recirc(1)");
    let [(_, 2, inner), (_, 1, outer)] = &seen.recirculated[..] else { panic!("{} packets", seen.recirculated.len()) };
    assert_eq!((inner.get(field::SKB_MARK), outer.get(field::SKB_MARK)), (9, 7));
    assert_eq!(inner.get(field::DP_HASH), 0);
    assert_ne!(outer.get(field::DP_HASH), 0);
}

#[test]
fn trunc_applies_to_the_next_output_alone() {
    let pool = pool();
    let seen = run(&pool, &udp4(), "trunc(20),2,1");
    assert_eq!(seen.output.iter().map(|(packet, _)| packet.len()).collect::<Vec<_>>(), [20, udp4().len()]);
}

#[test]
fn check_pkt_len_chooses_by_length() {
    let pool = pool();
    let ports = |actions| run(&pool, &udp4(), actions).output.iter().map(|(_, port)| *port).collect::<Vec<_>>();
    assert_eq!(ports("check_pkt_len(size=46,gt(4),le(5)),1"), [5, 1]);
    assert_eq!(ports("check_pkt_len(size=45,gt(4),le(5)),1"), [4, 1]);
}

#[test]
fn every_dropped_packet_has_a_reason() {
    let pool = pool();
    let reasons = |actions| run(&pool, &udp4(), actions).dropped;
    assert_eq!(reasons("drop"), [DropReason::FlowDrop]);
    assert_eq!(reasons("set(eth(src=02:00:00:00:00:09))"), [DropReason::FlowDrop]);
    assert_eq!(reasons("meter(0),1"), [DropReason::Metered]);
    assert_eq!(reasons("pop_vlan,1"), [DropReason::NoHeader]);
    assert_eq!(reasons("set(tcp(src=1)),1"), [DropReason::NoHeader]);
    assert_eq!(reasons("set(ipv4(ttl=1)),dec_ttl(le_1(drop)),1"), [DropReason::TtlExceeded]);
    let pushes = vec!["push_vlan(vid=1,pcp=0)"; usize::from(packet::HEADROOM / 4) + 1].join(",");
    assert_eq!(run(&pool, &udp4(), &format!("{pushes},1")).dropped, [DropReason::NoHeadroom]);
}

#[test]
fn an_empty_pool_loses_only_the_copy() {
    let pool = pool();
    let only = packet(&pool, &udp4());
    let rest: Vec<Packet> = std::iter::from_fn(|| pool.take_one()).collect();
    let mut executor = Executor::new(pool.clone());
    let mut seen = Seen::default();
    executor.run(only, &Metadata::default(), &parse_actions("2,clone(3),1").expect("actions"), &mut seen);
    assert_eq!(seen.output.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [1]);
    assert_eq!(executor.lost_copies(), 2);
    drop(rest);
}

#[test]
fn a_partial_checksum_keeps_its_pseudo_header_sum() {
    let pool = pool();
    let mut bytes = udp4();
    let partial = |ip: &[u8]| folded(pseudo_header(ip, 20));
    let before = partial(&bytes[14..]);
    bytes[40..42].copy_from_slice(&before.to_be_bytes());
    let mut packet = packet(&pool, &bytes);
    packet.set_offload(&Offload { checksum: Some(L4Checksum::Udp), l2_len: 14, l3_len: 20, ..Offload::default() });
    let mut seen = Seen::default();
    let actions = "set(ipv4(src=192.168.77.1)),set(udp(src=99)),push_vlan(vid=1,pcp=0),1";
    Executor::new(pool.clone()).run(packet, &Metadata::default(), &parse_actions(actions).expect("actions"), &mut seen);
    let out = sent(&seen);
    assert_eq!(out[44..46], partial(&out[18..]).to_be_bytes());
    assert_eq!(seen.output[0].0.offload().l2_len, 18);
}

#[test]
fn a_checksum_of_sctp_is_left_to_the_sender() {
    let pool = pool();
    let mut bytes = udp4();
    bytes[23] = 132;
    let seen = run(&pool, &bytes, "set(sctp(dst=7)),1");
    let offload = seen.output[0].0.offload();
    assert_eq!((offload.checksum, offload.l2_len, offload.l3_len), (Some(L4Checksum::Sctp), 14, 20));
}
