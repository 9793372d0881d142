//! The life of flows in a cache, and what look-ups cost.

use clock::Cycles;
use flow::{
    Action, BATCH, Config, FlowCache, FlowId, Hits, InsertError, Key, Limits, MARK_PLACES, Mask, Megaflow, Miniflow,
    Stats, field,
};
use std::sync::Arc;

/// Caches before the classifier so small that hardly anything stays in them.
const CLASSIFIER_ONLY: Config = Config {
    emc_entries: 2,
    smc_entries: 2,
    flow_limit: 1 << 20,
    limits: Limits { merge_from: 2, subtables: 16, chain: 8 },
};

fn key(port: u32, src: u32, dst: u32, tp_dst: u16) -> Key {
    let mut key = Key::EMPTY;
    key.set(field::IN_PORT, port.into());
    key.set(field::ETH_TYPE, 0x0800);
    key.set(field::NW_PROTO, 6);
    key.set(field::IPV4_SRC, src.into());
    key.set(field::IPV4_DST, dst.into());
    key.set(field::TP_DST, tp_dst.into());
    key
}

fn mask() -> Mask {
    Mask::exact(&[field::IN_PORT, field::ETH_TYPE, field::NW_PROTO, field::IPV4_DST])
}

fn flow(key: Key, mask: Mask) -> Megaflow {
    Megaflow::new(key, mask, [Action::Output(2)])
}

fn lookup(cache: &mut FlowCache, keys: &[Key]) -> Vec<Option<FlowId>> {
    let mut all = Vec::new();
    for keys in keys.chunks(BATCH) {
        let mut packets: Vec<Miniflow> = keys.iter().map(Miniflow::from).collect();
        let mut found = [None; BATCH];
        cache.lookup_batch(&mut packets, &mut found);
        all.extend(&found[..keys.len()]);
    }
    all
}

#[test]
fn each_tier_answers_in_its_turn() {
    let mut cache = FlowCache::new(Config::default());
    let id = cache.insert(flow(key(1, 0, 7, 0), mask())).expect("a flow");
    assert_eq!(lookup(&mut cache, &[key(1, 9, 7, 80), key(1, 9, 8, 80), key(2, 9, 7, 80)]), [Some(id), None, None]);
    assert_eq!((cache.hits().megaflow, cache.hits().miss), (1, 2));
    // Another connection of the same flow: the first tier knows it already, for no flow looks at ports.
    assert_eq!(lookup(&mut cache, &[key(1, 5, 7, 443)]), [Some(id)]);
    assert_eq!(cache.hits().exact, 1);
    // A word beyond the narrow ones that some flow looks at: the signature tier has it the second time.
    let mut marked = mask();
    marked.set_exact(field::CT_MARK);
    let mut key = key(1, 0, 9, 0);
    key.set(field::CT_MARK, 3);
    let id = cache.insert(flow(key, marked)).expect("a flow");
    assert_eq!(lookup(&mut cache, &[key]), [Some(id)]);
    assert_eq!(lookup(&mut cache, &[key]), [Some(id)]);
    assert_eq!((cache.hits().megaflow, cache.hits().signature), (2, 1));
}

#[test]
fn a_flow_counts_packets_ages_and_is_removed() {
    let mut cache = FlowCache::new(Config::default());
    let used = cache.insert(flow(key(1, 0, 1, 0), mask())).expect("a flow");
    let never = cache.insert(flow(key(1, 0, 2, 0), mask())).expect("a flow");
    cache.record(used, 3, 180, 0x12, Cycles(1000));
    cache.record(used, 1, 60, 0x01, Cycles(2000));
    let mut gone = Vec::new();
    cache.age(Cycles(2500), Cycles(600), 10, |flow| gone.push(flow));
    assert!(gone.is_empty());
    cache.age(Cycles(2601), Cycles(600), 10, |flow| gone.push(flow));
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].stats, Stats { packets: 4, bytes: 240, used: Cycles(2000), tcp_flags: 0x13 });
    assert!(cache.get(used).is_none() && cache.actions(used).is_none());
    assert_eq!(lookup(&mut cache, &[key(1, 0, 1, 0), key(1, 0, 2, 0)]), [None, Some(never)]);
    // One that was never hit is idle from when ageing first saw it.
    cache.age(Cycles(3101), Cycles(600), 10, |flow| gone.push(flow));
    assert_eq!((gone.len(), cache.len()), (2, 0));
    // The place is used again, the name is not.
    let again = cache.insert(flow(key(1, 0, 1, 0), mask())).expect("a flow");
    assert!(again != used && again != never);
    cache.record(used, 1, 1, 0, Cycles(1));
    assert_eq!(cache.get(again).expect("a flow").stats.packets, 0);
}

#[test]
fn a_new_epoch_hides_flows_until_they_are_renewed() {
    let mut cache = FlowCache::new(Config::default());
    let id = cache.insert(flow(key(1, 0, 1, 0), mask())).expect("a flow");
    let stale = cache.insert(flow(key(1, 0, 2, 0), mask())).expect("a flow");
    assert_eq!(lookup(&mut cache, &[key(1, 0, 1, 0)]), [Some(id)]);
    cache.record(id, 5, 300, 0, Cycles(10));
    cache.invalidate();
    assert_eq!(lookup(&mut cache, &[key(1, 0, 1, 0)]), [None]);
    let renewed = Megaflow::new(key(1, 0, 1, 0), mask(), [Action::Output(9)]);
    assert_eq!(cache.insert(renewed), Ok(id));
    assert_eq!(lookup(&mut cache, &[key(1, 0, 1, 0), key(1, 0, 2, 0)]), [Some(id), None]);
    let flow = cache.get(id).expect("a flow");
    assert_eq!((flow.stats.packets, &flow.actions[..]), (5, &[Action::Output(9)][..]));
    let mut gone = Vec::new();
    cache.age(Cycles(11), Cycles(1000), 10, |flow| gone.push(flow.ufid));
    assert_eq!((gone.len(), cache.get(stale).is_none()), (1, true));
}

#[test]
fn flows_that_do_the_same_share_their_actions() {
    let mut cache = FlowCache::new(Config::default());
    let ids = [1, 2, 3].map(|dst| cache.insert(flow(key(1, 0, dst, 0), mask())).expect("a flow"));
    let list = |cache: &FlowCache, id| cache.actions(id).expect("a flow").clone();
    let shared = list(&cache, ids[0]);
    assert!(ids.iter().all(|id| Arc::ptr_eq(&list(&cache, *id), &shared)));
    // Another list, and back again.
    assert_eq!(cache.modify(ids[1], [Action::Output(3)]), Ok(true));
    assert_eq!(list(&cache, ids[1])[..], [Action::Output(3)]);
    assert_eq!(cache.modify(ids[1], [Action::Output(2)]), Ok(true));
    assert!(Arc::ptr_eq(&list(&cache, ids[1]), &shared));
    // The last flow that has a list takes it along.
    ids.iter().for_each(|id| drop(cache.remove(*id)));
    assert_eq!(Arc::strong_count(&shared), 1);
}

#[test]
fn more_flows_than_signatures_are_found_by_the_classifier() {
    let mut cache = FlowCache::new(Config { emc_entries: 2, smc_entries: 64, ..Config::default() });
    let keys: Vec<Key> = (0..100).map(|dst| key(1, 0, dst, 0)).collect();
    let ids: Vec<_> = keys.iter().map(|key| cache.insert(flow(*key, mask())).ok()).collect();
    assert_eq!(lookup(&mut cache, &keys), ids);
    assert_eq!(lookup(&mut cache, &keys), ids);
    assert_eq!(cache.hits().signature, 0);
    // With a second table signatures save looking into both.
    let other = key(1, 7, 200, 0);
    let mask = Mask::exact(&[field::IN_PORT, field::IPV4_SRC]);
    let id = cache.insert(flow(other, mask)).expect("a flow");
    assert_eq!(lookup(&mut cache, &[other, other]), [Some(id); 2]);
    assert_eq!(lookup(&mut cache, &[other]), [Some(id)]);
    assert!(cache.hits().signature + cache.hits().exact > 0);
}

#[test]
fn a_refused_flow_says_why() {
    let mut cache = FlowCache::new(Config { flow_limit: 2, ..Config::default() });
    let id = cache.insert_checked(flow(key(1, 0, 1, 0), mask())).expect("a flow");
    assert_eq!(cache.insert_checked(flow(key(1, 5, 1, 5), mask())), Err(InsertError::Exists(id)));
    let wider = Mask::exact(&[field::IN_PORT]);
    let error = cache.insert_checked(flow(key(1, 0, 0, 0), wider)).expect_err("an overlap").to_string();
    assert!(error.contains("in_port(1),eth(),eth_type(0x0800),ipv4(dst=0.0.0.1,proto=6)"), "{error}");
    let any_port = Mask::exact(&[field::IPV4_DST]);
    assert!(matches!(cache.insert_checked(flow(key(0, 0, 1, 0), any_port)), Err(InsertError::Overlaps(_))));
    let everywhere = cache.insert_checked(flow(key(0, 0, 77, 0), any_port)).expect("a flow of every port");
    assert_eq!(lookup(&mut cache, &[key(4, 0, 77, 0), key(1, 0, 77, 0)]), [Some(everywhere); 2]);
    assert_eq!(cache.insert(flow(key(1, 0, 3, 0), mask())), Err(InsertError::TooManyFlows(2)));
    let unsupported = Megaflow::new(key(1, 0, 1, 0), mask(), [Action::Clone(vec![Action::CtClear])]);
    let error = cache.insert(unsupported).expect_err("not supported").to_string();
    assert_eq!(error, "the action `ct_clear` is not supported");
}

#[test]
fn a_flow_is_found_by_match_and_by_name() {
    let mut cache = FlowCache::new(Config::default());
    let text = "in_port(1),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(dst=10.0.0.1,proto=6,frag=no)";
    let wanted: flow::text::FlowMatch = text.parse().expect("a match");
    let id = cache.insert(flow(wanted.key, wanted.mask)).expect("a flow");
    assert_eq!(cache.find(&wanted.key, &wanted.mask), Some(id));
    let (_, dumped) = cache.dump().next().expect("a flow");
    assert_eq!(cache.find_ufid(dumped.ufid), Some(id));
    assert_eq!(flow::text::FlowMatch { key: dumped.key, mask: dumped.mask }.to_string(), text);
    assert_eq!(cache.modify(id, [Action::Output(5)]), Ok(true));
    assert_eq!(cache.get(id).map(|flow| flow.actions[..] == [Action::Output(5)]), Some(true));
    assert_eq!(cache.remove(id).map(|flow| flow.ufid), Some(dumped.ufid));
    assert_eq!(cache.modify(id, []), Ok(false));
}

/// Many masks, one table: prefixes of all lengths.
#[test]
fn a_lookup_does_not_grow_with_the_masks() {
    let mut cache = FlowCache::new(CLASSIFIER_ONLY);
    let mut keys = Vec::new();
    for i in 0..4096u32 {
        let key = key(1, i * 7919, i << 4, 80);
        let mut mask = mask();
        mask.0.set(field::IPV4_SRC, u64::from(u32::MAX << (i % 32)));
        cache.insert(flow(key, mask)).expect("a flow");
        keys.push(key);
    }
    assert!(lookup(&mut cache, &keys).iter().all(Option::is_some));
    let (masks, tables) = cache.masks();
    assert_eq!(masks, 32);
    assert!(tables <= CLASSIFIER_ONLY.limits.merge_from, "{tables} tables");
    let work = cache.work();
    assert!(work.compared <= work.lookups * 2, "{work:?}");
}

/// Tuple-space explosion (CVE-2019-25076): packets chosen so that each makes a flow with a mask of its own. Flows of others, on
/// the same port, must stay nearly as cheap, and every look-up is bounded.
#[test]
fn tuple_space_explosion_is_bounded() {
    let limits = CLASSIFIER_ONLY.limits;
    let mut cache = FlowCache::new(CLASSIFIER_ONLY);
    let innocent: Vec<Key> = (0..256).map(|i| key(1, 0x0a00_0000 + i, 0xc0a8_0000 + i, 443)).collect();
    let innocent_mask = mask().union(&Mask::exact(&[field::IPV4_SRC, field::TP_DST]));
    for key in &innocent {
        cache.insert(flow(*key, innocent_mask)).expect("a flow");
    }
    let cost = |cache: &mut FlowCache, keys: &[Key]| {
        let before = cache.work();
        assert!(lookup(cache, keys).iter().all(Option::is_some));
        let after = cache.work();
        let lookups = (after.lookups - before.lookups) as f64;
        ((after.probes - before.probes) as f64 / lookups, (after.compared - before.compared) as f64 / lookups)
    };
    let (before, _) = cost(&mut cache, &innocent);

    // A rule allows one source, destination and port; a packet that first differs from each in some bit has to be told apart by
    // as long a prefix of each: 32 * 32 * 16 masks.
    let (src, dst, port) = (0x5555_5555u32, 0x3333_3333u32, 0x1111u16);
    let mut attack = Vec::new();
    let mut narrowed = 0;
    for n in 0..32 * 32 * 16u32 {
        let (a, b, c) = (n % 32, n / 32 % 32, n / 1024);
        let packet = key(1, src ^ 1 << a, dst ^ 1 << b, port ^ 1 << c);
        let mut mask = mask();
        mask.0.set(field::IPV4_SRC, u64::from(u32::MAX << a));
        mask.0.set(field::IPV4_DST, u64::from(u32::MAX << b));
        mask.0.set(field::TP_DST, u64::from(u16::MAX << c));
        let flow = flow(packet, mask);
        match cache.insert(flow.clone()) {
            Ok(_) => {}
            Err(InsertError::TooManyMasks) => {
                cache.insert(flow.narrowed(&packet)).expect("there is always room for narrow flows");
                narrowed += 1;
            }
            Err(error) => panic!("{error}"),
        }
        attack.push(packet);
    }
    assert!(cache.masks().1 <= limits.subtables, "{:?}", cache.masks());

    let (probes, compared) = cost(&mut cache, &attack);
    assert!(
        probes <= limits.subtables as f64 && compared <= (limits.subtables * limits.chain) as f64,
        "{probes} {compared}"
    );
    for _ in 0..8 {
        cost(&mut cache, &innocent);
        cost(&mut cache, &attack[..64]);
        cache.rank();
    }
    let (probes, compared) = cost(&mut cache, &innocent);
    assert!(
        probes <= before * 2.0 && compared <= 4.0,
        "{before} before, {probes} and {compared} now, {narrowed} narrowed"
    );
}

/// What a packet with this mark, from this port, is found to be without a look at it.
fn marked(cache: &mut FlowCache, port: u32, mark: u32) -> Option<FlowId> {
    let mut found = [None; BATCH];
    let known = cache.lookup_marked(port, &[0, mark], &mut found);
    assert_eq!((known == 0b10, known), (found[1].is_some(), known & 0b10));
    found[1]
}

#[test]
fn a_mark_finds_its_flow_as_long_as_the_flow_lives() {
    let mut cache = FlowCache::new(Config::default());
    let id = cache.insert(flow(key(1, 0, 7, 0), mask())).expect("a flow");
    assert!(!cache.has_marks());
    assert!(cache.set_mark(5, id));
    assert_eq!(marked(&mut cache, 1, 5), Some(id));
    assert_eq!(marked(&mut cache, 2, 5), None, "of another port");
    assert_eq!(marked(&mut cache, 1, 5 + MARK_PLACES), None, "of another generation");
    assert_eq!(marked(&mut cache, 1, u32::MAX), None, "a mark of no flow");
    assert_eq!(cache.hits(), Hits { mark: 1, ..Hits::default() });
    // The flow goes, and another one has its place: the mark is of neither.
    cache.remove(id).expect("the flow");
    assert_eq!(marked(&mut cache, 1, 5), None);
    assert!(!cache.set_mark(6, id), "the flow is gone");
    let next = cache.insert(flow(key(1, 0, 8, 0), mask())).expect("a flow");
    assert_eq!(marked(&mut cache, 1, 5), None);
    // The next mark of this place is of the new flow, and the old one of no flow.
    assert!(cache.set_mark(5 + MARK_PLACES, next));
    assert_eq!((marked(&mut cache, 1, 5), marked(&mut cache, 1, 5 + MARK_PLACES)), (None, Some(next)));
    // Flows of an earlier epoch do not match, by whatever they are found.
    cache.invalidate();
    assert_eq!(marked(&mut cache, 1, 5 + MARK_PLACES), None);
}

#[test]
fn a_flow_of_all_ports_has_no_mark() {
    let mut cache = FlowCache::new(Config::default());
    let id = cache.insert(flow(Key::EMPTY, Mask::EMPTY)).expect("a flow");
    assert!(!cache.set_mark(5, id));
    assert_eq!(marked(&mut cache, 0, 5), None);
}
