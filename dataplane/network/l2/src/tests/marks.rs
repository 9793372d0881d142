//! Hardware that marks packets: what comes out and what is counted is the same as without it.

use super::{BROADCAST, Net, any, frame, mac, trunk};
use crate::{Offer, Offload, OffloadState, PortNo, WorkerStats};
use flow::text::{FlowMatch, parse_actions};
use flow::{Key, Mask, Metadata, Miniflow, Stats, extract, field};
use parking_lot::Mutex;
use port::Port;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// A rule that marks.
#[derive(Clone)]
struct Rule {
    mark: u32,
    key: Key,
    mask: Mask,
}

/// Hardware that does no flow, but marks the packets of all that it is offered.
#[derive(Default)]
struct Marker {
    rules: Mutex<HashMap<u128, (Rule, Offer)>>,
    /// Rules that are there no more: packets that they have marked are on their way for long.
    gone: Mutex<Vec<Rule>>,
}

impl Offload for Marker {
    fn add_port(&self, _number: PortNo, _port: &dyn Port) -> bool {
        true
    }

    fn remove_port(&self, _number: PortNo) {}

    fn offer(&self, offer: Offer) {
        let mark = offer.handle.mark().expect("there are enough");
        offer.handle.refuse("it marks and no more".to_owned());
        offer.handle.set_state(OffloadState::Partial);
        let rule = Rule { mark, key: offer.flow.key, mask: offer.flow.mask };
        self.rules.lock().insert(offer.flow.ufid, (rule, offer));
    }

    fn withdraw(&self, ufid: u128) {
        if let Some((rule, offer)) = self.rules.lock().remove(&ufid) {
            offer.handle.set_state(OffloadState::No);
            self.gone.lock().push(rule);
        }
    }
}

impl Marker {
    /// The marks of all rules that match a frame, those that are there before those that were.
    fn marks(&self, port: PortNo, frame: &[u8]) -> Vec<u32> {
        let mut packet = Miniflow::default();
        extract(frame, &Metadata { in_port: port, ..Metadata::default() }, &mut packet);
        let (rules, gone) = (self.rules.lock(), self.gone.lock());
        let all = rules.values().map(|(rule, _)| rule).chain(&*gone);
        all.filter(|rule| packet.key().matches(&rule.key, &rule.mask)).map(|rule| rule.mark).collect()
    }
}

fn net(workers: usize, ports: usize) -> (Net, Arc<Marker>) {
    let net = Net::with_workers(workers, &vec![any(); ports]);
    let marker = Arc::<Marker>::default();
    net.switch.set_offload(marker.clone());
    (net, marker)
}

impl Net {
    /// Offers all flows to the hardware, however little they saw, and tells the workers about marks.
    fn offer_all(&mut self) {
        let mut state = self.state();
        for report in state.flow_reports() {
            state.offer(report.flow.ufid, 1);
        }
        drop(state);
        self.sweep_after(Duration::ZERO);
    }

    /// What each flow has seen, but for when.
    fn seen(&mut self) -> BTreeMap<String, (u64, u64, u16)> {
        self.sweep_after(Duration::ZERO);
        let reports = self.state().flow_reports();
        let text = reports.iter().map(|report| FlowMatch { key: report.flow.key, mask: report.flow.mask }.to_string());
        let seen = reports.iter().map(|report| report.flow.stats);
        text.zip(seen.map(|Stats { packets, bytes, tcp_flags, .. }| (packets, bytes, tcp_flags))).collect()
    }

    fn worker_stats(&self) -> WorkerStats {
        self.switch.worker_stats().into_iter().fold(WorkerStats::default(), |sum, one| sum + one)
    }
}

/// Stations 1 and 2 behind ports 1 and 2 that know each other, with a flow each way that is marked.
fn pair() -> (Net, Arc<Marker>) {
    let (mut net, marker) = net(1, 3);
    net.reaches(1, &frame(mac(1), BROADCAST, None));
    net.reaches(2, &frame(mac(2), mac(1), None));
    net.reaches(1, &frame(mac(1), mac(2), None));
    net.offer_all();
    (net, marker)
}

#[test]
fn a_marked_packet_is_not_looked_up() {
    let (mut net, marker) = pair();
    let forth = frame(mac(1), mac(2), None);
    let [mark] = marker.marks(1, &forth)[..] else { panic!("one rule for the packet") };
    let before = net.worker_stats();
    for _ in 0..5 {
        net.send_marked(1, &forth, Some(mark));
    }
    net.settle();
    assert_eq!(net.received(2).len(), 5);
    assert_eq!(net.worker_stats(), WorkerStats { hits_mark: before.hits_mark + 5, ..before });
    let reports = net.state().flow_reports();
    assert!(reports.iter().any(|report| report.offloaded == OffloadState::Partial && report.refused.is_some()));
}

#[test]
fn marks_of_other_ports_and_unknown_marks_are_ignored() {
    let (mut net, marker) = pair();
    let [mark] = marker.marks(1, &frame(mac(1), mac(2), None))[..] else { panic!("one rule for the packet") };
    let back = frame(mac(2), mac(1), None);
    for wrong in [mark, mark + flow::MARK_PLACES, 0, u32::MAX] {
        let before = net.worker_stats().hits_mark;
        net.send_marked(2, &back, Some(wrong));
        net.settle();
        assert_eq!((net.received(1), net.worker_stats().hits_mark), (vec![back.clone()], before), "mark {wrong}");
    }
}

#[test]
fn a_changed_flow_keeps_its_mark_and_a_removed_flow_loses_it() {
    let (mut net, marker) = pair();
    let forth = frame(mac(1), mac(2), None);
    let [mark] = marker.marks(1, &forth)[..] else { panic!("one rule for the packet") };
    // Its station moves: the mark leads to where it is now.
    net.reaches(3, &frame(mac(2), mac(1), None));
    net.send_marked(1, &forth, Some(mark));
    net.settle();
    assert_eq!((net.received(2).len(), net.received(3).len()), (0, 1));
    // An operator's flow takes its place. Packets on their way still have the mark.
    let FlowMatch { key, mask } = "in_port(1),eth()".parse().unwrap();
    net.switch.add_flow(&key, &mask, parse_actions("2").unwrap()).unwrap();
    net.send_marked(1, &forth, Some(mark));
    net.settle();
    assert_eq!((net.received(2).len(), net.received(3).len()), (1, 0));
    // The new flow has a mark of its own.
    net.offer_all();
    let marks = marker.marks(1, &forth);
    assert!(marks[0] != mark && marks[1..].contains(&mark));
}

#[test]
fn a_worker_that_installs_a_flow_later_learns_its_mark() {
    let (mut net, marker) = net(2, 2);
    net.reaches(1, &frame(mac(1), BROADCAST, None));
    net.reaches(2, &frame(mac(2), BROADCAST, None));
    let forth = frame(mac(1), mac(2), None);
    // The ports are polled by both workers in turn: each sees the flow at last.
    for _ in 0..4 {
        net.reaches(1, &forth);
        net.offer_all();
    }
    let [mark] = marker.marks(1, &forth)[..] else { panic!("one rule for the packet") };
    let before = net.worker_stats();
    for _ in 0..6 {
        net.send_marked(1, &forth, Some(mark));
        net.settle();
    }
    assert_eq!(net.worker_stats(), WorkerStats { hits_mark: before.hits_mark + 6, ..before });
}

/// Something that happens, the same with marks and without.
#[derive(Clone, Debug)]
enum Step {
    /// Frames that come in at a time, each with what its mark may be chosen by.
    Burst(Vec<(PortNo, Vec<u8>, u8)>),
    /// All flows go to the hardware.
    Offer,
    /// A port's VLANs change.
    Vlans(PortNo, bool),
    /// An operator's flow comes or goes.
    Flow(usize),
    /// All stations are forgotten.
    Flush,
}

const FLOWS: [(&str, &str); 3] = [
    ("in_port(1),eth(),eth_type(0x0800),ipv4(proto=6,frag=no),tcp()", "3"),
    ("in_port(2),eth(),eth_type(0x0800),ipv4(frag=no)", "set(ipv4(dst=10.9.9.9)),1,3"),
    ("eth(),eth_type(0x88b5)", "drop"),
];

fn ipv4(protocol: u8, flags: u8) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    bytes.extend([0; 26]);
    bytes[32..34].copy_from_slice(&[0x50, flags]);
    bytes
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        3 => prop::num::u8::ANY.prop_map(|flags| (0x0800, ipv4(6, flags))),
        1 => Just((0x0800, ipv4(17, 0))),
        1 => Just((0x88b5, vec![7; 46])),
        1 => prop::collection::vec(prop::num::u8::ANY, 46..100).prop_map(|bytes| (0x86dd, bytes)),
    ];
    let tag = prop_oneof![3 => Just(None), 1 => Just(Some(10))];
    (1_u8..4, prop_oneof![4 => 1_u8..4, 1 => Just(0xff)], tag, payload).prop_map(
        |(from, to, tag, (eth_type, payload))| {
            let to = if to == 0xff { BROADCAST } else { mac(to) };
            super::frame_of(mac(from), to, tag, eth_type, &payload)
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Stations are mostly behind the port of their number.
    let port = prop_oneof![30 => Just(None), 1 => (1_u32..4).prop_map(Some)];
    let frame = (port, frames(), prop::num::u8::ANY);
    let frame = frame.prop_map(|(port, frame, choice)| (port.unwrap_or(frame[11].into()), frame, choice));
    let burst = prop::collection::vec(frame, 1..20);
    let step = prop_oneof![
        10 => burst.prop_map(Step::Burst),
        4 => Just(Step::Offer),
        1 => (1_u32..4, prop::bool::ANY).prop_map(|(port, tagged)| Step::Vlans(port, tagged)),
        1 => (0..FLOWS.len()).prop_map(Step::Flow),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..40)
}

/// One of two nets that the same happens to.
struct Run {
    net: Net,
    marker: Arc<Marker>,
    marks: bool,
    installed: [bool; FLOWS.len()],
}

impl Run {
    fn new(workers: usize, marks: bool) -> Run {
        let (net, marker) = net(workers, 3);
        Run { net, marker, marks, installed: [false; FLOWS.len()] }
    }

    /// The mark that hardware may give the frame: by a rule that is or was there, an unknown mark, or the mark of another port.
    fn mark(&self, port: PortNo, frame: &[u8], choice: u8) -> Option<u32> {
        let good = self.marker.marks(port, frame);
        let others = self.marker.rules.lock();
        let of_others = others
            .values()
            .find(|(rule, _)| rule.mask.get(field::IN_PORT) != 0 && rule.key.get(field::IN_PORT) != port.into());
        match choice % 8 {
            0 => None,
            1 => Some(u32::from(choice) << 24 | 1),
            2 => of_others.map(|(rule, _)| rule.mark),
            _ => good.get(usize::from(choice / 8) % good.len().max(1)).copied(),
        }
    }

    /// Returns what came out by each port, in order.
    fn step(&mut self, n: usize, step: &Step) -> Vec<Vec<Vec<u8>>> {
        // The same worker is first in both nets, however many turns they took for the steps before.
        self.net.turns = n;
        match step {
            Step::Burst(frames) => {
                for (port, frame, choice) in frames {
                    let mark = if self.marks { self.mark(*port, frame, *choice) } else { None };
                    self.net.send_marked(*port, frame, mark);
                }
            }
            Step::Offer if self.marks => self.net.offer_all(),
            Step::Offer => self.net.sweep_after(Duration::ZERO),
            Step::Vlans(port, tagged) => {
                let config = if *tagged { trunk(&[0, 10], None) } else { any() };
                self.net.switch.attach("br", &port.to_string(), config).unwrap();
            }
            Step::Flow(n) => {
                let (FlowMatch { key, mask }, mut state) = (FLOWS[*n].0.parse().unwrap(), self.net.state());
                self.installed[*n] = !self.installed[*n];
                match !self.installed[*n] {
                    true => drop(state.delete_flow(&key, &mask).unwrap()),
                    false => state.add_flow(&key, &mask, parse_actions(FLOWS[*n].1).unwrap()).unwrap(),
                }
            }
            Step::Flush => drop(self.net.switch.flush("br", None).unwrap()),
        }
        self.net.settle();
        (1..=3).map(|port| self.net.received(port)).collect()
    }
}

#[test]
fn marks_change_neither_output_nor_counters() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let marked = std::cell::Cell::new(0);
    runner
        .run(&(1_usize..3, steps()), |(workers, steps)| {
            let mut runs = [Run::new(workers, false), Run::new(workers, true)];
            for (n, step) in steps.iter().enumerate() {
                let [without, with] = runs.each_mut().map(|run| run.step(n, step));
                prop_assert_eq!(without, with, "{:?}", step);
            }
            let [without, with] = runs.each_mut().map(|run| run.net.seen());
            prop_assert_eq!(without, with);
            let [without, with] = runs.each_mut().map(|run| {
                let paths: Vec<_> = run.net.switch.ports().iter().map(|port| port.path).collect();
                (paths, run.net.worker_stats())
            });
            prop_assert_eq!(without.0, with.0);
            prop_assert_eq!(without.1.misses, with.1.misses);
            marked.set(marked.get() + with.1.hits_mark);
            Ok(())
        })
        .expect("the same with marks and without");
    assert!(marked.get() > 1000, "only {} packets by a mark: the test shows little", marked.get());
}
