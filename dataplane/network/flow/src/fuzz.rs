//! Entry points of the fuzz targets; the property tests run the same code.

use crate::action::Action;
use crate::cache::{BATCH, Config, FlowCache, FlowId, InsertError, Megaflow};
use crate::classifier::Limits;
use crate::extract::{Metadata, extract, extract_counted};
use crate::key::{Key, Mask, Miniflow, field};
use crate::marks::MARK_PLACES;
use crate::reference::{self, LinearClassifier};
use crate::text::{Actions, FlowMatch, parse_actions};
use clock::Cycles;

/// Takes bytes from the front, 0 where there are none left.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
}

/// Any bytes as a packet: the fast extraction finds what the slow one finds, whatever packet was in the miniflow before.
pub fn fuzz_extract(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut miniflow = Miniflow::default();
    let mut rest = Key::EMPTY;
    rest.set(field::CT_MARK, 7);
    rest.set(field::TUN_ID, 9);
    while !input.0.is_empty() {
        let control = input.byte();
        let len = usize::from(input.byte()).min(input.0.len());
        let (frame, others) = input.0.split_at(len);
        input.0 = others;
        let metadata = Metadata {
            in_port: control.into(),
            recirc_id: u32::from(control >> 1 & 1),
            packet_len: if control & 4 != 0 { frame.len() as u32 + 1000 } else { 0 },
            packet_type: (control & 0x18 == 0x18).then_some(if control & 1 == 0 { 0x0800 } else { 0x86dd }),
            rest: (control & 0x20 != 0).then_some(&rest),
        };
        let expected = reference::extract(frame, &metadata);
        extract_counted(frame, &metadata, &mut miniflow);
        let counted = (miniflow.packet_len(), miniflow.tcp_flags());
        assert_eq!(u64::from(counted.1), expected.get(field::TCP_FLAGS), "{frame:02x?} {metadata:?}");
        extract(frame, &metadata, &mut miniflow);
        assert_eq!(counted.0, miniflow.packet_len());
        assert_eq!(miniflow.key(), &expected, "{frame:02x?} {metadata:?}");
        assert_eq!(expected.bitmap() & !miniflow.bitmap(), 0, "a word that is not in the bitmap");
    }
}

/// Fields that the classifier's fuzzer puts into masks.
const MATCHED: [crate::key::Field; 8] = [
    field::IN_PORT,
    field::ETH_DST,
    field::ETH_TYPE,
    field::IPV4_SRC,
    field::TP_DST,
    field::NW_PROTO,
    field::CT_MARK,
    field::TUN_ID,
];

/// A key of small numbers, so that flows and packets meet.
fn small_key(input: &mut Input<'_>) -> Key {
    let mut key = Key::EMPTY;
    for field in MATCHED {
        let bits = input.byte();
        key.set(field, u64::from(bits & 3) << (field.max().count_ones() - 4));
    }
    key.set_wide(field::IPV6_DST, u128::from(input.byte() & 3));
    key
}

fn small_mask(input: &mut Input<'_>) -> Mask {
    let mut mask = Mask::EMPTY;
    let (chosen, prefixes) = (input.byte(), input.byte());
    for (i, field) in MATCHED.iter().enumerate().filter(|(i, _)| chosen >> i & 1 == 1) {
        let top = field.max().count_ones() - 3;
        mask.0.set(*field, if prefixes >> i & 1 == 1 { field.max() } else { field.max() >> top << top });
    }
    if input.byte() & 1 == 1 {
        mask.set_exact_wide(field::IPV6_DST);
    }
    mask
}

/// Marks that were given, each with the match that hardware gives it by, and is late in forgetting.
type Given = Vec<(u32, Key, Mask)>;

/// Marks packets of a port as hardware does, and makes each match the flow of its mark; some marks belong to no flow.
fn mark(input: &mut Input<'_>, given: &Given, port: u64, packets: &mut [Miniflow]) -> Vec<u32> {
    let mark = |packet: &mut Miniflow| {
        packet.key.set(field::IN_PORT, port);
        let (choice, garbage) = (usize::from(input.byte()) % (2 * given.len() + 2), u32::from(input.byte()));
        match given.get(choice) {
            Some((mark, key, mask)) if key.get(field::IN_PORT) == port => {
                let words = packet.key.words.iter_mut().zip(mask.words.iter().zip(&key.words));
                words.for_each(|(word, (mask, value))| *word = *word & !mask | value & mask);
                *mark
            }
            // The mark of another port's flow: no hardware that is sane gives it here.
            Some((mark, ..)) => *mark,
            None if choice & 1 == 0 => 0,
            None => garbage | 1 << 31,
        }
    };
    let marks = packets.iter_mut().map(mark).collect();
    packets.iter_mut().for_each(|packet| *packet = Miniflow::from(&packet.key));
    marks
}

/// Any sequence of insertions, removals, renewals, marks and look-ups: the cache answers as a list of flows does. Returns how many
/// look-ups found a flow, and how many of those by a mark.
pub fn fuzz_cache(bytes: &[u8]) -> (usize, u64) {
    let mut input = Input(bytes);
    let limits = Limits { merge_from: 2, subtables: 6, chain: 3 };
    let config = Config { emc_entries: 4, smc_entries: 8, flow_limit: 64, limits };
    let mut cache = FlowCache::new(config);
    let mut linear: LinearClassifier<FlowId> = LinearClassifier::new();
    let mut flows: Vec<FlowId> = Vec::new();
    let mut given = Given::new();
    let mut hits = 0;
    while !input.0.is_empty() {
        match input.byte() % 10 {
            0..3 => {
                let (key, mask) = (small_key(&mut input), small_mask(&mut input));
                let overlap = linear.overlap(&key, &mask);
                let flow = Megaflow::new(key, mask, [Action::Output(input.byte().into())]);
                match cache.insert_checked(flow) {
                    Ok(id) => {
                        assert_eq!(overlap, None, "an overlap was let in");
                        linear.insert(key, mask, id);
                        flows.push(id);
                    }
                    Err(InsertError::Exists(_) | InsertError::Overlaps(_)) => assert!(overlap.is_some()),
                    Err(InsertError::TooManyFlows(count)) => assert_eq!(count, 64),
                    Err(InsertError::TooManyMasks) => assert_eq!(cache.masks().1, 6),
                    Err(InsertError::Unsupported(_)) => unreachable!("every action is supported"),
                }
            }
            3 if !flows.is_empty() => {
                let id = flows.swap_remove(usize::from(input.byte()) % flows.len());
                linear.remove(id);
                assert!(cache.remove(id).is_some(), "the flow was there");
                assert!(cache.remove(id).is_none(), "the flow is gone");
            }
            4 if input.byte() == 0 => {
                cache.invalidate();
                linear = LinearClassifier::new();
                flows.clear();
                cache.age(Cycles(1), Cycles(0), 64, |_| ());
            }
            5 => cache.rank(),
            6 if !flows.is_empty() => {
                let id = flows[usize::from(input.byte()) % flows.len()];
                // Few places, each of which has many marks one after the other.
                let mark = given.len() as u32 % 5 + 1 + given.len() as u32 * MARK_PLACES;
                let flow = cache.get(id).expect("the flow is there");
                if cache.set_mark(mark, id) {
                    given.push((mark, flow.key, flow.mask));
                }
            }
            _ => {
                let count = usize::from(input.byte()) % BATCH + 1;
                let mut packets: Vec<Miniflow> = (0..count).map(|_| Miniflow::from(&small_key(&mut input))).collect();
                let mut found = [None; BATCH];
                let port = u64::from(input.byte() & 3) << (field::IN_PORT.max().count_ones() - 4);
                let marks = mark(&mut input, &given, port, &mut packets);
                let marked = cache.lookup_marked(port as u32, &marks, &mut found);
                cache.lookup_unmarked(&mut packets, marked, &mut found);
                for (packet, found) in packets.iter().zip(found) {
                    assert_eq!(found, linear.lookup(packet.key()), "{packet:?}");
                    hits += usize::from(found.is_some());
                }
            }
        }
        assert_eq!(cache.len(), flows.len());
    }
    (hits, cache.hits().mark)
}

/// Any text: no parser panics, and what is read is printed in a form that reads as the same.
pub fn fuzz_text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(flow) = text.parse::<FlowMatch>() {
        let printed = flow.to_string();
        let again: FlowMatch = printed.parse().unwrap_or_else(|error| panic!("{printed}: {error}"));
        assert_eq!(again.to_string(), printed);
        let _ = format!("{flow:#}");
    }
    if let Ok(actions) = parse_actions(&text) {
        let printed = Actions(&actions).to_string();
        let again = parse_actions(&printed).unwrap_or_else(|error| panic!("{printed}: {error}"));
        assert_eq!(Actions(&again).to_string(), printed);
    }
    let _ = crate::text::parse_ufid(&text);
}
