//! Tuple-space explosion (CVE-2019-25076; Csikor and others, CoNEXT 2019) while others send: packets chosen so that each makes a
//! flow with a mask of its own. Work is counted, not timed: tables looked into and flows compared.

use flow::{Action, BATCH, Config, FlowCache, FlowId, InsertError, Key, Limits, Mask, Megaflow, Miniflow, field};

/// Caches before the classifier so small that hardly anything stays in them.
const CLASSIFIER_ONLY: Config = Config {
    emc_entries: 2,
    smc_entries: 2,
    flow_limit: 1 << 20,
    limits: Limits { merge_from: 2, subtables: 16, chain: 8 },
};
/// Different masks that the attack asks for.
const MASKS: u32 = 32 * 32 * 16;

fn tcp(port: u32, src: u32, dst: u32, tp_dst: u16) -> Key {
    let mut key = Key::EMPTY;
    let fields = [
        (field::IN_PORT, u64::from(port)),
        (field::ETH_TYPE, 0x0800),
        (field::NW_PROTO, 6),
        (field::IPV4_SRC, src.into()),
        (field::IPV4_DST, dst.into()),
        (field::TP_DST, tp_dst.into()),
    ];
    fields.into_iter().for_each(|(field, value)| key.set(field, value));
    key
}

/// Prefixes of the source's, the destination's and the port's bits.
fn mask(src: u32, dst: u32, tp_dst: u32) -> Mask {
    let mut mask = Mask::exact(&[field::IN_PORT, field::ETH_TYPE, field::NW_PROTO]);
    mask.0.set(field::IPV4_SRC, u64::from(u32::MAX << (32 - src)));
    mask.0.set(field::IPV4_DST, u64::from(u32::MAX << (32 - dst)));
    mask.0.set(field::TP_DST, u64::from(u16::MAX << (16 - tp_dst)));
    mask
}

/// What the others send by `port`: connections to services.
fn innocent(port: u32, count: u32) -> Vec<Megaflow> {
    let flow = |n| {
        Megaflow::new(tcp(port, 0x0a00_0000 + n, 0xc0a8_0000 + n % 251, 443), mask(32, 32, 16), [Action::Output(2)])
    };
    (0..count).map(flow).collect()
}

/// A rule allows one source, destination and port; a packet that first differs from each in some bit is told apart by as long a
/// prefix of each.
fn attack(n: u32) -> Megaflow {
    let (a, b, c) = (n % 32, n / 32 % 32, n / 1024 % 16);
    let key = tcp(1, 0x5555_5555 ^ 1 << a, 0x3333_3333 ^ 1 << b, 0x1111 ^ 1 << c);
    Megaflow::new(key, mask(32 - a, 32 - b, 16 - c), [])
}

fn lookup(cache: &mut FlowCache, flows: &[Megaflow]) -> Vec<Option<FlowId>> {
    let mut all = Vec::with_capacity(flows.len());
    for flows in flows.chunks(BATCH) {
        let mut packets: Vec<Miniflow> = flows.iter().map(|flow| Miniflow::from(&flow.key)).collect();
        let mut found = [None; BATCH];
        cache.lookup_batch(&mut packets, &mut found);
        all.extend(&found[..flows.len()]);
    }
    all
}

/// Sends a packet of each flow; what misses is installed, and narrowed where there is no room for its mask.
fn send(cache: &mut FlowCache, flows: &[Megaflow]) {
    let found = lookup(cache, flows);
    for flow in flows.iter().zip(found).filter(|(_, found)| found.is_none()).map(|(flow, _)| flow) {
        match cache.insert(flow.clone()) {
            Err(InsertError::TooManyMasks) => {
                cache.insert(flow.narrowed(&flow.key)).expect("there is always room for narrow flows");
            }
            inserted => drop(inserted.expect("a flow that no other overlaps")),
        }
    }
}

/// Tables looked into and flows compared, a packet, in all tiers.
fn cost(cache: &mut FlowCache, flows: &[Megaflow]) -> f64 {
    let (hits, work) = (cache.hits(), cache.work());
    assert!(lookup(cache, flows).iter().all(Option::is_some));
    let (hits_now, work_now) = (cache.hits(), cache.work());
    let exact = hits_now.exact - hits.exact;
    let beyond = flows.len() as u64 - exact;
    let classifier = work_now.probes - work.probes + work_now.compared - work.compared;
    (exact + 2 * beyond + classifier) as f64 / flows.len() as f64
}

/// Tables that the classifier looks into, a packet.
fn probes(cache: &mut FlowCache, flows: &[Megaflow]) -> f64 {
    let before = cache.work().probes;
    lookup(cache, flows);
    (cache.work().probes - before) as f64 / flows.len() as f64
}

/// What the innocent flows cost before the attack, and at worst while it goes on beside them. Half of them come only then.
fn under_attack(
    config: Config,
    innocent: &[Megaflow],
    cost: impl Fn(&mut FlowCache, &[Megaflow]) -> f64,
) -> (f64, f64) {
    let mut cache = FlowCache::new(config);
    let early = &innocent[..innocent.len() / 2];
    (0..4).for_each(|_| send(&mut cache, early));
    let before = cost(&mut cache, early);
    let mut worst = before;
    for round in 0..8 {
        // All masks, a few after some packets of everybody else's.
        let share = MASKS / 8 / 64;
        for (n, others) in innocent.chunks(innocent.len() / 64).enumerate() {
            (0..4).for_each(|_| send(&mut cache, others));
            let first = (round * 64 + n as u32) * share;
            let packets: Vec<Megaflow> = (first..first + share).map(|n| attack(n % MASKS)).collect();
            send(&mut cache, &packets);
        }
        worst = worst.max(cost(&mut cache, innocent));
    }
    assert!(cache.masks().1 <= config.limits.subtables, "{:?}", cache.masks());
    (before, worst)
}

#[test]
fn innocent_flows_keep_above_half() {
    // More connections than the exact-match tier has entries for.
    let (before, worst) = under_attack(Config::default(), &innocent(1, 24_576), cost);
    assert!(worst <= 2.0 * before, "{before} before, {worst} at worst");
}

#[test]
fn the_classifier_probes_few_more_subtables() {
    let (before, worst) = under_attack(CLASSIFIER_ONLY, &innocent(1, 512), probes);
    assert!(worst <= 2.0 * before, "{before} before, {worst} at worst");
}

#[test]
fn a_mask_explosion_does_not_slow_other_ports() {
    let mut cache = FlowCache::new(CLASSIFIER_ONLY);
    let innocent = innocent(2, 256);
    send(&mut cache, &innocent);
    let before = cost(&mut cache, &innocent);
    let all: Vec<Megaflow> = (0..MASKS).map(attack).collect();
    send(&mut cache, &all);
    assert_eq!(cost(&mut cache, &innocent), before);
}

/// A packet that no flow matches is looked for in every table. Without its bounds the classifier has one a mask, and the same
/// packets take it down: the attack is one.
#[test]
fn the_work_of_a_miss_is_bounded() {
    let misses = |limits| {
        let mut cache = FlowCache::new(Config { limits, ..CLASSIFIER_ONLY });
        let all: Vec<Megaflow> = (0..2048).map(attack).collect();
        send(&mut cache, &all);
        probes(&mut cache, &innocent(1, 32))
    };
    let unbounded = Limits { merge_from: usize::MAX, subtables: usize::MAX, chain: usize::MAX };
    assert_eq!(misses(unbounded), 2048.0);
    let bounded = misses(CLASSIFIER_ONLY.limits);
    assert!(bounded <= CLASSIFIER_ONLY.limits.subtables as f64, "{bounded}");
}
