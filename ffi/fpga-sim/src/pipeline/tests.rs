//! A packet's way, and what it looks like at its end.

use super::key::field;
use super::parse::{VXLAN_PORT, protocol};
use super::*;
use proptest::prelude::*;

/// A TCP or UDP packet of IPv4 or IPv6 with right checksums.
fn packet(version: u8, l4: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let l4_len = if l4 == protocol::TCP { 20 } else { 8 } + payload.len();
    if version == 4 {
        bytes.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, l4, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[16..18].copy_from_slice(&(20 + l4_len as u16).to_be_bytes());
    } else {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, l4_len as u8, l4, 64]);
        bytes.extend([
            0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
        ]);
    }
    bytes.extend([0x30, 0x39, 0, 80]);
    if l4 == protocol::TCP {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0]);
    } else {
        bytes.extend((l4_len as u16).to_be_bytes());
        bytes.extend([0, 0]);
    }
    bytes.extend(payload);
    complete(&mut bytes);
    bytes
}

fn ones_complement(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Computes all checksums anew, from nothing.
fn complete(bytes: &mut [u8]) {
    let headers = parse::parse(bytes).1;
    let ((version, l3), (l4, at)) = (headers.l3.unwrap(), headers.l4.unwrap());
    let addresses = if version == 4 { l3 + 12..l3 + 20 } else { l3 + 8..l3 + 40 };
    if version == 4 {
        bytes[l3 + 10..l3 + 12].fill(0);
        let sum = ones_complement(&[&bytes[l3..l3 + 20]]);
        bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let place = at + if l4 == protocol::TCP { 16 } else { 6 };
    bytes[place..place + 2].fill(0);
    let pseudo = [0, l4, 0, (bytes.len() - at) as u8];
    let mut sum = ones_complement(&[&bytes[addresses], &pseudo, &bytes[at..]]);
    if l4 == protocol::UDP && sum == 0 {
        sum = 0xffff;
    }
    bytes[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}

fn rule(actions: Vec<Action>) -> Rule {
    let pattern = Pattern::default();
    let actions = actions.into();
    Rule { owner: 0, domain: Domain::Transfer, group: 0, priority: 0, pattern, actions, counts: true, age: None }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a list of actions makes of a packet that then goes to port 1's other side.
fn acted(actions: &[Action], mut bytes: Vec<u8>) -> Vec<u8> {
    let mut pipeline = Pipeline::new(Limits::default());
    let actions = actions.iter().cloned().chain([Action::ToRepresented(1)]).collect();
    pipeline.insert(rule(actions), at(0)).unwrap();
    assert_eq!(pipeline.process(&mut bytes, Source::Represented(0), at(0)), Destination::Represented(1));
    bytes
}

const HOST_0: Destination = Destination::Host { port: 0, queue: 0, mark: None, hash: None, restore: None };

#[test]
fn unmatched_packets_go_to_the_host_and_back() {
    let mut pipeline = Pipeline::new(Limits::default());
    let mut bytes = packet(4, protocol::UDP, b"");
    assert_eq!(pipeline.process(&mut bytes, Source::Represented(0), at(0)), HOST_0);
    assert_eq!(pipeline.process(&mut bytes, Source::Representor(0), at(0)), Destination::Represented(0));
    pipeline.port_mode(0).isolated = true;
    assert_eq!(pipeline.process(&mut bytes, Source::Represented(0), at(0)), Destination::Nowhere);
}

#[test]
fn jumps_lead_on_and_the_lowest_priority_number_wins() {
    let mut pipeline = Pipeline::new(Limits::default());
    pipeline.insert(rule(vec![Action::Mark(7), Action::Jump(2)]), at(0)).unwrap();
    let in_group = |priority, actions| Rule { group: 2, priority, ..rule(actions) };
    let late = pipeline.insert(in_group(5, vec![Action::ToRepresented(1)]), at(0)).unwrap();
    let early = pipeline.insert(in_group(1, vec![Action::ToRepresentor(0)]), at(0)).unwrap();
    assert_eq!(pipeline.insert(in_group(1, vec![Action::Drop]), at(0)), Err(InsertError::Exists));
    let send =
        |pipeline: &mut Pipeline| pipeline.process(&mut packet(4, protocol::UDP, b""), Source::Represented(0), at(0));
    assert_eq!(send(&mut pipeline), Destination::Host { port: 0, queue: 0, mark: Some(7), hash: None, restore: None });
    assert!(pipeline.remove(early) && !pipeline.remove(early));
    assert_eq!(send(&mut pipeline), Destination::Represented(1));
    assert_eq!(pipeline.counters(late, at(0)), Some(Counters { packets: 1, bytes: 42 }));
    pipeline.reset();
    assert_eq!((send(&mut pipeline), pipeline.counters(late, at(0))), (HOST_0, None));
}

#[test]
fn tables_hold_as_many_rules_as_their_size() {
    let limits = Limits { exact: 2, masked: 1, ..Limits::default() };
    let mut pipeline = Pipeline::new(limits);
    let with_mask = |address: u8, mask: u8| {
        let mut rule = rule(vec![Action::Drop]);
        rule.pattern.want(Layer::Outer, key::field::IPV4_SRC, &[10, 0, 0, address], &[0xff, 0xff, 0xff, mask]);
        rule
    };
    let first = pipeline.insert(with_mask(1, 0xff), at(0)).unwrap();
    pipeline.insert(with_mask(2, 0xff), at(0)).unwrap();
    pipeline.insert(with_mask(3, 0xff), at(0)).unwrap();
    assert_eq!(pipeline.rule_counts(), (2, 1), "a rule that finds no room in the exact table goes to the other one");
    assert_eq!(pipeline.insert(with_mask(4, 0xff), at(0)), Err(InsertError::ExactFull));
    assert_eq!(pipeline.check(&with_mask(4, 0)), Err(InsertError::MaskedFull));
    pipeline.remove(first);
    pipeline.insert(with_mask(4, 0xff), at(0)).unwrap();
    assert_eq!(pipeline.rule_counts(), (2, 1));
}

#[test]
fn counters_lag_by_the_delay_and_rules_age() {
    let mut pipeline = Pipeline::new(Limits::default());
    pipeline.set_faults(Faults { counter_delay: at(10), ..Faults::default() });
    let age = Some(Age { timeout: at(5), context: Some(99) });
    let id = pipeline.insert(Rule { age, ..rule(vec![Action::Drop]) }, at(0)).unwrap();
    pipeline.process(&mut packet(4, protocol::TCP, b""), Source::Represented(0), at(3));
    assert_eq!(pipeline.counters(id, at(9)).unwrap().packets, 0);
    assert_eq!(pipeline.counters(id, at(10)).unwrap().packets, 1);
    assert_eq!(pipeline.aged(0, at(7)).count(), 0);
    assert_eq!(pipeline.aged(0, at(8)).collect::<Vec<_>>(), [(id, Some(99))]);
    assert_eq!(pipeline.idle(id, at(8)), Some((at(5), true)));
}

#[test]
fn an_aged_rule_is_listed_until_it_has_a_packet_or_is_gone() {
    let mut pipeline = Pipeline::new(Limits::default());
    let aging = |priority, timeout| {
        let age = Some(Age { timeout: at(timeout), context: None });
        Rule { age, priority, ..rule(vec![Action::Drop]) }
    };
    let hit = pipeline.insert(aging(0, 5), at(0)).unwrap();
    let idle = pipeline.insert(aging(1, 5), at(0)).unwrap();
    let gone = pipeline.insert(aging(2, 5), at(0)).unwrap();
    let aged = |pipeline: &mut Pipeline, now| pipeline.aged(0, at(now)).map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(pipeline.expire(at(4)), []);
    assert_eq!(pipeline.expire(at(6)), [0, 0, 0], "each is told of once");
    assert_eq!((pipeline.expire(at(7)), aged(&mut pipeline, 7)), (vec![], vec![hit, idle, gone]));
    pipeline.remove(gone);
    pipeline.process(&mut packet(4, protocol::TCP, b""), Source::Represented(0), at(8));
    assert_eq!(aged(&mut pipeline, 12), [idle]);
    assert_eq!(pipeline.expire(at(13)), [0]);
    assert_eq!(aged(&mut pipeline, 13), [hit, idle]);
}

#[test]
fn an_aborted_packet_arrives_unchanged_and_uncounted() {
    let mut pipeline = Pipeline::new(Limits::default());
    let push = Action::PushVlan { tpid: 0x8100 };
    let first = pipeline.insert(rule(vec![Action::Mark(7), push, Action::Jump(1)]), at(0)).unwrap();
    let second = Rule { group: 1, ..rule(vec![Action::SetMac(End::Source, [9; 6]), Action::ToRepresented(1)]) };
    let second = pipeline.insert(second, at(0)).unwrap();
    let received = packet(4, protocol::UDP, b"x");
    for actions in 0..5 {
        pipeline.set_faults(Faults { abort_after: Some(actions), ..Faults::default() });
        let mut bytes = received.clone();
        let restore = Some(Restore { group: 0, tunnel: None });
        let host = Destination::Host { port: 0, queue: 0, mark: None, hash: None, restore };
        assert_eq!(pipeline.process(&mut bytes, Source::Represented(0), at(0)), host);
        assert_eq!(bytes, received, "{actions}");
    }
    let counted = |pipeline: &mut Pipeline| [first, second].map(|id| pipeline.counters(id, at(0)).unwrap().packets);
    assert_eq!((counted(&mut pipeline), pipeline.totals().aborted), ([0, 0], 5));
    pipeline.process(&mut received.clone(), Source::Representor(0), at(0));
    assert_eq!(counted(&mut pipeline), [1, 1], "what the host sends is not aborted");
    pipeline.set_faults(Faults { abort_after: Some(5), ..Faults::default() });
    let sent = pipeline.process(&mut received.clone(), Source::Represented(0), at(0));
    assert_eq!((sent, counted(&mut pipeline)), (Destination::Represented(1), [2, 2]));
    pipeline.set_faults(Faults { full: true, ..Faults::default() });
    assert_eq!(pipeline.insert(Rule { priority: 5, ..rule(vec![Action::Drop]) }, at(0)), Err(InsertError::ExactFull));
}

#[test]
fn rules_share_counters_ages_and_queues() {
    let mut pipeline = Pipeline::new(Limits::default());
    let count = pipeline.share(0, Shared::Count(Tally::default()));
    let age = Age { timeout: at(5), context: Some(77) };
    let age = pipeline.share(0, Shared::Age { age, last_hit: at(0), aged: false });
    let queues = |queue| Arc::new(Rss { queues: vec![queue], key: toeplitz::DEFAULT_KEY, ports: false });
    let rss = pipeline.share(0, Shared::Rss(queues(3)));
    let sharing = |version: u8, actions: &[Action]| {
        let shared = [Action::Shared(SharedKind::Count, count), Action::Shared(SharedKind::Age, age)];
        let mut rule = rule([&shared[..], actions].concat());
        rule.pattern.want(Layer::Outer, field::L3, &[version], &[0xff]);
        rule
    };
    let to_queue = Rule { domain: Domain::Ingress(0), ..sharing(4, &[Action::Shared(SharedKind::Rss, rss)]) };
    let first = pipeline.insert(to_queue, at(0)).unwrap();
    let second = pipeline.insert(sharing(6, &[Action::Drop]), at(0)).unwrap();
    let host = |queue, hash| Destination::Host { port: 0, queue, mark: None, hash, restore: None };
    let send = |pipeline: &mut Pipeline, version, now| {
        pipeline.process(&mut packet(version, protocol::UDP, b""), Source::Represented(0), at(now))
    };
    let Destination::Host { queue: 3, hash, .. } = send(&mut pipeline, 4, 3) else { panic!("not to queue 3") };
    assert_eq!(send(&mut pipeline, 6, 4), Destination::Nowhere);
    assert!(pipeline.set_shared_rss(rss, queues(1)) && !pipeline.set_shared_rss(count, queues(1)));
    assert_eq!(send(&mut pipeline, 4, 4), host(1, hash));
    assert_eq!(pipeline.shared_counters(count, at(4), true), Some(Counters { packets: 3, bytes: 42 + 62 + 42 }));
    assert_eq!(pipeline.shared_counters(count, at(4), false), Some(Counters::default()));

    // It ages when both rules are idle.
    assert_eq!((pipeline.expire(at(8)), pipeline.expire(at(9))), (vec![], vec![0]));
    assert_eq!(pipeline.aged(0, at(9)).collect::<Vec<_>>(), [(age, Some(77))]);
    assert_eq!(pipeline.shared_idle(age, at(9)), Some((at(5), true)));
    assert!(pipeline.set_shared_age(age, Some(at(2)), true, at(9)));
    assert_eq!((pipeline.aged(0, at(9)).count(), pipeline.aged(0, at(20)).count()), (0, 1));

    assert_eq!(pipeline.unshare(age), Err(InUse));
    assert!(pipeline.remove(first) && pipeline.remove(second));
    assert_eq!(
        (pipeline.unshare(age), pipeline.unshare(age), pipeline.aged(0, at(30)).count()),
        (Ok(true), Ok(false), 0)
    );
    assert_eq!(pipeline.insert(sharing(4, &[Action::Drop]), at(30)), Err(InsertError::NotShared));
    let mistaken = rule(vec![Action::Shared(SharedKind::Age, count), Action::Drop]);
    assert_eq!(pipeline.insert(mistaken, at(30)), Err(InsertError::NotShared));
    pipeline.reset();
    assert_eq!(pipeline.unshare(count), Ok(false));
}

#[test]
fn a_template_table_holds_as_many_rules_as_its_size() {
    let mut pipeline = Pipeline::new(Limits::default());
    let mut pattern = Pattern::default();
    pattern.want(Layer::Outer, field::IPV4_DST, &[0; 4], &[0xff; 4]);
    let table = pipeline.open_table(7, (Domain::Transfer, 0, 3), &[pattern], 2);
    let template = pipeline.rule_template(table, 0).unwrap();
    assert!(pipeline.rule_template(table, 1).is_none());
    let filled = |address: u8| {
        let mut value = Key::default();
        value.set(Layer::Outer, field::IPV4_DST, &[10, 0, 0, address]);
        template.fill(value, [Action::ToRepresented(1)].into(), true, None)
    };
    let put = |pipeline: &mut Pipeline, id, mut entry: Box<Entry>| {
        pipeline.prepare(&mut entry);
        pipeline.insert_filled(id, entry, at(0))
    };
    let ids: Vec<RuleId> = pipeline.reserve_ids(4).collect();
    assert_eq!(put(&mut pipeline, ids[0], filled(2)), Ok(()));
    assert_eq!(put(&mut pipeline, ids[1], filled(2)), Err(InsertError::Exists));
    assert_eq!(put(&mut pipeline, ids[1], filled(3)), Ok(()));
    assert_eq!(put(&mut pipeline, ids[2], filled(4)), Err(InsertError::TableFull));
    let bytes = &mut packet(4, protocol::UDP, b"");
    assert_eq!(pipeline.process(bytes, Source::Represented(0), at(0)), Destination::Represented(1));
    assert!(!pipeline.close_table(table));
    pipeline.remove_of(7);
    assert_eq!(pipeline.rule_counts(), (0, 0));
    assert!(pipeline.close_table(table) && pipeline.rule_template(table, 0).is_none());
    assert_eq!(put(&mut pipeline, ids[3], filled(2)), Err(InsertError::TableFull), "the table is closed");
}

#[test]
fn vlan_tags_are_pushed_changed_and_popped() {
    let plain = packet(4, protocol::UDP, b"x");
    let tag = [Action::PushVlan { tpid: 0x8100 }, Action::SetVlanId(100), Action::SetVlanPriority(5)];
    let tagged = acted(&tag, plain.clone());
    assert_eq!(tagged[..12], plain[..12]);
    assert_eq!(tagged[12..16], [0x81, 0, 0xa0, 100]);
    assert_eq!(tagged[16..], plain[12..]);
    assert_eq!(acted(&[Action::PopVlan], tagged), plain);
    assert_eq!(acted(&[Action::PopVlan, Action::SetVlanId(1)], plain.clone()), plain);
}

#[test]
fn a_packet_on_its_last_hop_goes_to_the_host_untouched() {
    let mut pipeline = Pipeline::new(Limits::default());
    pipeline.insert(rule(vec![Action::DecrementTtl, Action::ToRepresented(1)]), at(0)).unwrap();
    let mut bytes = acted(&[Action::SetTtl(1)], packet(4, protocol::UDP, b""));
    let before = bytes.clone();
    assert_eq!(pipeline.process(&mut bytes, Source::Represented(0), at(0)), HOST_0);
    assert_eq!(bytes, before);
}

#[test]
fn packets_are_encapsulated_and_decapsulated() {
    let inner = packet(6, protocol::TCP, b"payload");
    let mut front = packet(4, protocol::UDP, b"");
    front[36..38].copy_from_slice(&VXLAN_PORT.to_be_bytes());
    front.extend([8, 0, 0, 0, 0, 0, 42, 0]);
    let outer = acted(&[Action::Encapsulate(front.into())], inner.clone());
    let mut expected = outer.clone();
    complete(&mut expected);
    assert_eq!(outer[..40], expected[..40], "the IPv4 checksum is right");
    assert_eq!(u16::from_be_bytes([outer[16], outer[17]]) as usize, outer.len() - 14);
    assert_eq!(u16::from_be_bytes([outer[38], outer[39]]) as usize, outer.len() - 34);
    let key = parse::parse(&outer).0;
    assert_eq!(key.get(Layer::Outer, field::VNI), [0, 0, 42]);
    assert_eq!(key.get(Layer::Inner, field::L4_DST), [0, 80]);
    assert_eq!(acted(&[Action::DecapsulateVxlan], outer.clone()), inner);
    assert_eq!(acted(&[Action::StripFront(50)], outer), inner);
}

#[test]
fn a_miss_in_a_later_group_has_restore_data() {
    let mut pipeline = Pipeline::new(Limits::default());
    let inner = packet(6, protocol::TCP, b"payload");
    let mut front = packet(4, protocol::UDP, b"");
    front[36..38].copy_from_slice(&VXLAN_PORT.to_be_bytes());
    front.extend([8, 0, 0, 0, 0, 0, 42, 0]);
    let outer = acted(&[Action::Encapsulate(front.into())], inner.clone());
    pipeline.insert(rule(vec![Action::DecapsulateVxlan, Action::Mark(5), Action::Jump(3)]), at(0)).unwrap();
    let tunnel = Tunnel {
        vni: 42,
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        ports: [12345, VXLAN_PORT],
        tos: 0,
        ttl: 64,
    };
    let restore = Some(Restore { group: 3, tunnel: Some(tunnel) });
    let mut bytes = outer.clone();
    let host = Destination::Host { port: 0, queue: 0, mark: Some(5), hash: None, restore };
    assert_eq!(pipeline.process(&mut bytes, Source::Represented(0), at(0)), host);
    assert_eq!(bytes, inner);

    // A rule for what has left a tunnel sees such packets alone.
    let mut pattern = Pattern::default();
    pattern.want(Layer::Outer, field::LEFT_TUNNEL, &[key::tunnel::VXLAN], &[0xff]);
    let left = Rule { group: 3, pattern, ..rule(vec![Action::ToRepresented(1)]) };
    pipeline.insert(left.clone(), at(0)).unwrap();
    pipeline.insert(Rule { group: 0, priority: 1, ..left }, at(0)).unwrap();
    assert_eq!(pipeline.process(&mut outer.clone(), Source::Represented(0), at(0)), Destination::Represented(1));
    pipeline.reset();
    assert_eq!(pipeline.process(&mut inner.clone(), Source::Represented(0), at(0)), HOST_0);
}

fn edits() -> impl Strategy<Value = Action> {
    let end = || prop::sample::select(vec![End::Source, End::Destination]);
    prop_oneof![
        (end(), any::<[u8; 4]>()).prop_map(|(end, address)| Action::SetIpv4(end, address)),
        (end(), any::<[u8; 16]>()).prop_map(|(end, address)| Action::SetIpv6(end, address)),
        (end(), any::<u16>()).prop_map(|(end, port)| Action::SetPort(end, port)),
        (end(), any::<[u8; 6]>()).prop_map(|(end, mac)| Action::SetMac(end, mac)),
        (2u8..).prop_map(Action::SetTtl),
        Just(Action::DecrementTtl),
    ]
}

proptest! {
    /// Whatever is rewritten, the checksums are what they are when computed from nothing.
    #[test]
    fn checksums_stay_right(
        version in prop::sample::select(vec![4u8, 6]),
        l4 in prop::sample::select(vec![protocol::TCP, protocol::UDP]),
        payload in prop::collection::vec(any::<u8>(), 0..64),
        edits in prop::collection::vec(edits(), 0..6),
    ) {
        let edited = acted(&edits, packet(version, l4, &payload));
        let mut expected = edited.clone();
        complete(&mut expected);
        prop_assert_eq!(edited, expected);
    }

    /// No bytes and no actions bring the pipeline down.
    #[test]
    fn any_bytes_are_parsed(
        mut bytes in prop::collection::vec(any::<u8>(), 0..128),
        ethertype in prop::sample::select(vec![[8u8, 0], [0x86, 0xdd], [0x81, 0]]),
        edits in prop::collection::vec(edits(), 0..6),
    ) {
        if let Some(place) = bytes.get_mut(12..14) {
            place.copy_from_slice(&ethertype);
        }
        let mut pipeline = Pipeline::new(Limits::default());
        let more = [Action::PopVlan, Action::PushVlan { tpid: 0x8100 }, Action::DecapsulateVxlan, Action::StripFront(20), Action::Drop];
        pipeline.insert(rule(edits.into_iter().chain(more).collect()), at(0)).unwrap();
        pipeline.process(&mut bytes, Source::Represented(0), at(0));
    }
}
