//! What goes through the NIC's tables comes out, and is counted, as what goes through the workers: while flows come, change and go
//! between packets, whatever trouble the NIC is in. Needs root.

mod support;

use flow::text::{FlowMatch, parse_actions};
use offload::Totals;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use support::{Counters, Net, PORTS, frame, ipv4, is_root, mac};
use testkit::Rng;

/// Flows of an operator that come, change and go.
const FLOWS: [(&str, [&str; 2]); 4] = [
    ("in_port(1),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst=1001)", ["set(ipv4(dst=10.9.9.9)),2", "3"]),
    ("in_port(2),eth(),eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=1000)", ["drop", "1"]),
    ("in_port(3),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst=1000)", ["push_vlan(vid=5,pcp=3),1", "drop"]),
    (
        "in_port(1),eth(),eth_type(0x0800),ipv4(proto=17,ttl=64,frag=no),udp(dst=1000)",
        ["set(eth(src=02:00:00:00:00:aa,dst=02:00:00:00:00:bb)),dec_ttl(le_1(drop)),3", "1,2"],
    ),
];
/// Who sends what to whom: from, to, protocol, port.
const TALKS: [(u8, u8, u8, u16); 6] =
    [(0, 1, 17, 1000), (1, 0, 6, 1000), (0, 2, 17, 1001), (2, 0, 17, 1000), (3, 2, 6, 1001), (1, 3, 17, 1001)];
const STEPS: usize = 120;
const SEEDS: [u64; 3] = [7, 1_000_003, 0x5eed_5eed];
/// The most packets that a step sends, with those that end it.
const STEP_PACKETS: u64 = 40 + PORTS as u64;

/// What is done to a net, the same with hardware and without.
struct Run {
    net: Net,
    random: Rng,
    number: u32,
    /// The port of each station.
    places: [usize; 4],
    /// Which of its actions each of the operator's flows has, where it is there.
    installed: [Option<usize>; FLOWS.len()],
}

/// What comes out by each port.
type Outputs = Vec<Vec<Vec<u8>>>;

impl Run {
    fn new(seed: u64, arguments: &str, offload: bool) -> Run {
        let net = Net::new(arguments, offload);
        Run { net, random: Rng::new(seed), number: 0, places: [0, 1, 2, 1], installed: [None; FLOWS.len()] }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random.below(below as u64) as usize
    }

    /// One thing happens. Returns what came out.
    fn step(&mut self) -> Outputs {
        match self.random(36) {
            0..20 => self.talk(),
            20..30 => self.net.sweep(),
            30..32 => {
                let station = self.random(4);
                self.places[station] = self.random(PORTS);
                self.net.send(self.places[station], &frame(mac(station as u8), [0xff; 6], 0x88b6, &[0; 46]));
            }
            32..35 => self.operate(),
            _ => drop(self.net.switch.flush("br", None).unwrap()),
        }
        self.net.take()
    }

    fn talk(&mut self) {
        let (from, to, protocol, port) = TALKS[self.random(TALKS.len())];
        for _ in 0..[5, 40][self.random(2)] {
            self.number += 1;
            self.net.send(self.places[usize::from(from)], &ipv4(from, to, protocol, port, self.number));
        }
    }

    /// A flow of the operator comes, does something else from now on, or goes.
    fn operate(&mut self) {
        let n = self.random(FLOWS.len());
        let (text, actions) = FLOWS[n];
        let FlowMatch { key, mask } = text.parse().unwrap();
        self.installed[n] = match self.installed[n] {
            None => Some(0),
            Some(0) => Some(1),
            Some(_) => None,
        };
        match self.installed[n] {
            Some(which) => self.net.switch.add_flow(&key, &mask, parse_actions(actions[which]).unwrap()).unwrap(),
            None => drop(self.net.switch.delete_flow(&key, &mask).unwrap()),
        }
    }
}

/// The outputs of each step, and the counters at the end.
type Done = Arc<(Vec<Outputs>, Counters)>;

/// What the workers alone do. It is the same whatever NIC is below.
fn by_workers(seed: u64) -> Done {
    static DONE: Mutex<Option<HashMap<u64, Done>>> = Mutex::new(None);
    let mut done = DONE.lock();
    let run = || {
        let mut run = Run::new(seed, "", false);
        let outputs = (0..STEPS).map(|_| run.step()).collect();
        Arc::new((outputs, run.net.counters()))
    };
    done.get_or_insert_default().entry(seed).or_insert_with(run).clone()
}

/// The same steps with hardware, and the counters of the workers and its own.
struct Compared {
    totals: Totals,
    workers: Counters,
    hardware: Counters,
}

/// Takes the steps with such a NIC, and fails where other packets come out. Between steps its counters have time to settle.
fn with_nic(seed: u64, arguments: &str, settle: Duration) -> Compared {
    let expected = by_workers(seed);
    let mut run = Run::new(seed, arguments, true);
    for (step, expected) in expected.0.iter().enumerate() {
        assert_eq!(&run.step(), expected, "{arguments:?}, seed {seed}, step {step}");
        std::thread::sleep(settle);
    }
    let hardware = run.net.counters();
    let totals = run.net.totals();
    println!("{arguments:?}, seed {seed}: {totals:?}");
    Compared { totals, workers: expected.1.clone(), hardware }
}

/// As [`with_nic`], and fails where other counters come out.
fn same_with_nic(seed: u64, arguments: &str) -> Totals {
    let Compared { totals, workers, hardware } = with_nic(seed, arguments, Duration::ZERO);
    assert_eq!(workers, hardware, "{arguments:?}, seed {seed}: {totals:?}");
    totals
}

#[test]
fn offloaded_flows_act_as_in_the_workers() {
    if !is_root() {
        return;
    }
    for seed in SEEDS {
        let totals = same_with_nic(seed, "");
        assert!(totals.packets > 20, "seed {seed}: {totals:?}");
    }
}

#[test]
fn a_full_or_slow_nic_changes_no_packet() {
    if !is_root() {
        return;
    }
    let mut full = 0;
    for (seed, room) in SEEDS.iter().zip([",exact=2,masked=2", ",exact=1,masked=1", ",exact=0,masked=3"]) {
        full += same_with_nic(*seed, room).full;
    }
    assert!(full > 0, "there was room for all");
    let totals = same_with_nic(SEEDS[1], ",insert-delay-us=2000");
    assert!(totals.packets > 20, "{totals:?}");
}

#[test]
fn late_counters_are_right_in_the_end() {
    if !is_root() {
        return;
    }
    for seed in [SEEDS[0], SEEDS[2]] {
        let arguments = ",counter-delay-ms=5";
        let Compared { totals, workers, hardware } = with_nic(seed, arguments, Duration::from_millis(10));
        assert!(totals.packets > 20, "seed {seed}: {totals:?}");
        assert_eq!(workers, hardware, "seed {seed}: {totals:?}");
    }
}

#[test]
fn refused_flows_stay_with_the_workers() {
    if !is_root() {
        return;
    }
    let refusals = [",refuse=udp", ",refuse-create=ipv4", ",refuse-create=represented_port"];
    for (seed, arguments) in SEEDS.into_iter().zip(refusals) {
        let totals = same_with_nic(seed, arguments);
        assert!(totals.refused["device"] > 0, "{arguments:?}: {totals:?}");
    }
}

#[test]
fn packets_aborted_by_the_nic_go_to_the_workers() {
    if !is_root() {
        return;
    }
    for (seed, arguments) in [(SEEDS[0], ",abort-after=1"), (SEEDS[2], ",abort-after=2")] {
        let totals = same_with_nic(seed, arguments);
        assert!(totals.packets > 20, "{arguments:?}: {totals:?}");
    }
}

#[test]
fn lost_completions_cost_only_speed() {
    if !is_root() {
        return;
    }
    let totals = same_with_nic(SEEDS[2], ",lose-completion=9");
    assert!(totals.lost_completions > 0 && totals.packets > 20, "{totals:?}");
}

#[test]
fn a_reset_loses_no_packet_and_counts_none_twice() {
    if !is_root() {
        return;
    }
    let mut lost = 0;
    for (seed, after) in SEEDS.into_iter().zip([600, 250, 900]) {
        let Compared { totals, workers, hardware } = with_nic(seed, &format!(",reset-after={after}"), Duration::ZERO);
        assert!(totals.packets > 20, "seed {seed}: {totals:?}");
        lost += totals.lost;
        // What the NIC had counted since the last look is gone with it, and that was in this step.
        let sum = |counters: &Counters| counters.values().map(|(packets, _)| packets).sum::<u64>();
        assert!(sum(&workers) - sum(&hardware) <= STEP_PACKETS, "seed {seed}: {totals:?}");
        for (flow, counted) in &hardware {
            assert!(workers[flow] >= *counted, "{flow}: {counted:?} of {:?}", workers[flow]);
        }
    }
    assert!(lost > 0, "no NIC was reset while it had rules");
}
