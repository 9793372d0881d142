//! The fast twins held against the slow ones.

use flow::{BATCH, FlowCache, Metadata, Miniflow, fuzz, reference};
use proptest::prelude::*;

fn mac() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 12)
}

/// A transport header with what it needs before it, mostly right.
fn transport() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let bytes = |len: usize| proptest::collection::vec(any::<u8>(), len);
    prop_oneof![
        (bytes(40), 4u8..8).prop_map(|(mut tcp, offset)| {
            tcp[12] = offset << 4 | tcp[12] & 15;
            (6, tcp)
        }),
        bytes(12).prop_map(|udp| (17, udp)),
        bytes(14).prop_map(|sctp| (132, sctp)),
        bytes(8).prop_map(|icmp| (1, icmp)),
        (bytes(40), prop_oneof![Just(135u8), Just(136), any::<u8>()], 0u8..3, 0u8..3).prop_map(
            |(mut nd, kind, o1, o2)| {
                nd[0] = kind;
                nd[1] = 0;
                nd[24] = o1;
                nd[25] = 1;
                nd[32] = o2;
                nd[33] = o1;
                (58, nd)
            }
        ),
        (any::<u8>(), bytes(20)),
    ]
}

fn ipv4() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![4 => Just(0u16), 1 => Just(0x2000), 1 => any::<u16>()];
    let length_error = prop_oneof![6 => Just(0i32), 1 => -4i32..4, 1 => -60i32..60];
    (transport(), 5u8..7, fragment, length_error, any::<[u8; 12]>()).prop_map(
        |((protocol, payload), ihl, fragment, error, rest)| {
            let total = (i32::from(ihl) * 4 + payload.len() as i32 + error).max(0) as u16;
            let mut packet = vec![0x40 | ihl, rest[0]];
            packet.extend(total.to_be_bytes());
            packet.extend([rest[1], rest[2]]);
            packet.extend(fragment.to_be_bytes());
            packet.extend([rest[3], protocol, 0, 0]);
            packet.extend(&rest[4..]);
            packet.extend(std::iter::repeat_n(1, usize::from(ihl) * 4 - 20));
            packet.extend(payload);
            packet
        },
    )
}

fn ipv6() -> impl Strategy<Value = Vec<u8>> {
    let extension = prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60)];
    let extensions = proptest::collection::vec((extension, any::<[u8; 8]>(), 0u8..2), 0..4);
    (transport(), extensions, any::<[u8; 36]>(), prop_oneof![6 => Just(0i32), 1 => -9i32..9]).prop_map(
        |((protocol, payload), extensions, rest, error)| {
            let mut numbers: Vec<u8> = extensions.iter().map(|(number, ..)| *number).collect();
            numbers.push(protocol);
            let mut body = Vec::new();
            for ((number, mut bytes, length), next) in extensions.into_iter().zip(&numbers[1..]) {
                bytes[0] = *next;
                bytes[1] = length;
                if number == 44 {
                    bytes[2] &= length.wrapping_neg();
                }
                body.extend(bytes);
            }
            body.extend(payload);
            let mut packet = vec![0x60 | rest[0] & 15, rest[1], rest[2], rest[3]];
            packet.extend(((body.len() as i32 + error).max(0) as u16).to_be_bytes());
            packet.extend([numbers[0], 64]);
            packet.extend(&rest[4..]);
            packet.extend(body);
            packet
        },
    )
}

fn payload() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let bytes = |len| proptest::collection::vec(any::<u8>(), 0..len);
    prop_oneof![
        4 => ipv4().prop_map(|packet| (0x0800, packet)),
        3 => ipv6().prop_map(|packet| (0x86dd, packet)),
        1 => (any::<bool>(), any::<[u8; 21]>()).prop_map(|(is_long, rest)| {
            let mut arp = vec![0, 1, 8, 0, 6, 4, u8::from(is_long)];
            arp.extend(rest);
            (0x0806, arp)
        }),
        1 => bytes(20).prop_map(|labels| (0x8847, labels)),
        1 => (0u8..8, 1u8..3, bytes(30)).prop_map(|(length, kind, rest)| {
            let mut nsh = vec![0, length, kind, 3];
            nsh.extend(rest);
            (0x894f, nsh)
        }),
        1 => bytes(30).prop_map(|rest| (0x0050, [vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0], rest].concat())),
        1 => (any::<u16>(), bytes(30)),
    ]
}

/// A frame that is mostly right, cut off somewhere or not.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let tags = proptest::collection::vec((prop_oneof![Just(0x8100u16), Just(0x88a8)], any::<u16>()), 0..4);
    let cut = prop_oneof![2 => Just(usize::MAX), 1 => 0usize..120];
    (mac(), tags, payload(), cut).prop_map(|(mut frame, tags, (eth_type, payload), cut)| {
        for (tpid, tci) in tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(eth_type.to_be_bytes());
        frame.extend(payload);
        frame.truncate(cut);
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extraction_of_frames(frames in proptest::collection::vec(frame(), 1..4), len in prop_oneof![3 => Just(0u32), 1 => 0u32..200]) {
        let mut miniflow = Miniflow::default();
        for frame in frames {
            let packet_len = if len == 0 { 0 } else { frame.len() as u32 + len };
            let metadata = Metadata { in_port: 3, packet_len, ..Metadata::default() };
            flow::extract(&frame, &metadata, &mut miniflow);
            prop_assert_eq!(miniflow.key(), &reference::extract(&frame, &metadata));
        }
    }

    #[test]
    fn extraction_of_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz::fuzz_extract(&bytes);
    }

    #[test]
    fn text_of_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        fuzz::fuzz_text(&bytes);
    }
}

#[test]
fn the_cache_answers_as_a_list_of_flows() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let (hits, marked) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let bytes = proptest::collection::vec(any::<u8>(), 0..3000);
    runner
        .run(&bytes, |bytes| {
            let (all, by_mark) = fuzz::fuzz_cache(&bytes);
            hits.set(hits.get() + all);
            marked.set(marked.get() + by_mark);
            Ok(())
        })
        .expect("the cache and the list agree");
    assert!(marked.get() > 1000, "only {} by a mark: the test shows little", marked.get());
    assert!(hits.get() > 10_000, "only {} look-ups found a flow: the test shows little", hits.get());
}

#[test]
fn an_empty_batch_is_fine() {
    let mut found = [None; BATCH];
    FlowCache::new(flow::Config::default()).lookup_batch(&mut [], &mut found);
    assert_eq!(found, [None; BATCH]);
}
