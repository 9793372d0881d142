//! Traffic through the NIC: which flows are in it, and for how long. Needs root.

mod support;

use flow::text::{FlowMatch, parse_actions};
use std::time::{Duration, Instant};
use support::{MARKER, Net, PORTS, TRAFFIC_TIMEOUT, frame, ipv4, is_root, mac};
use testkit::Rng;

/// A stream of one flow, from the station behind the second port to the one behind the third.
struct Stream {
    net: Net,
    sent: u32,
}

impl Stream {
    /// The NIC has these arguments besides. The flow is in it.
    fn new(arguments: &str) -> Stream {
        let mut net = Net::new(arguments, true);
        (0..PORTS).for_each(|port| net.send(port, &frame(mac(port as u8), [0xff; 6], MARKER, &[0; 46])));
        net.take();
        let mut stream = Stream { net, sent: 0 };
        stream.send(50);
        assert_eq!(stream.net.take()[2].len(), 50);
        stream.net.sweep();
        assert_eq!(stream.net.totals().flows, 1);
        stream
    }

    fn send(&mut self, count: u32) {
        for _ in 0..count {
            self.net.send(1, &ipv4(1, 2, 17, 1000, self.sent));
            self.sent += 1;
        }
    }

    /// Sends, and fails unless each of them comes out, once and in order.
    fn pass(&mut self, count: u32) {
        let first = self.sent;
        self.send(count);
        self.net.receive_until(|out| out[2].len() >= count as usize);
        let numbers = self.net.out[2].drain(..).map(|frame| u32::from_be_bytes(frame[64..68].try_into().unwrap()));
        assert!(numbers.eq(first..first + count));
    }

    /// Sends a packet every third of a millisecond until it holds. It is told whether the worker has seen some of the latest.
    fn pass_until(&mut self, what: &str, holds: impl Fn(&Net, bool) -> bool) {
        let began = Instant::now();
        loop {
            let before = self.net.received();
            self.pass(16);
            let seen = self.net.received() != before;
            if holds(&self.net, seen) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
            assert!(began.elapsed() < TRAFFIC_TIMEOUT, "{what}: {:?}", self.net.totals());
        }
    }

    /// Packets that were counted, in the workers and in the NIC.
    fn counted(&self) -> u64 {
        self.net.counters().into_values().map(|(packets, _)| packets).filter(|packets| *packets > 1).sum()
    }
}

#[test]
fn a_busy_flow_is_offloaded() {
    if !is_root() {
        return;
    }
    let mut stream = Stream::new("");
    let before = stream.net.received();
    stream.pass(500);
    assert_eq!(stream.net.received(), before, "the worker saw packets of an offloaded flow");
    assert_eq!(stream.counted(), 550);
    assert_eq!(stream.net.totals().packets, 500);
}

#[test]
fn packets_aborted_by_the_nic_are_processed_by_the_worker() {
    if !is_root() {
        return;
    }
    // It does one action and no more: a packet that is to be changed comes as it was.
    let mut net = Net::new(",abort-after=1", true);
    let FlowMatch { key, mask } = "in_port(2),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),udp()".parse().unwrap();
    let actions = "set(eth(dst=02:00:00:00:00:99)),set(ipv4(ttl=9)),3";
    net.switch.add_flow(&key, &mask, parse_actions(actions).unwrap()).unwrap();
    for round in 1..=2 {
        let before = net.received();
        (0..50).for_each(|number| net.send(1, &ipv4(1, 2, 17, 1000, number)));
        net.receive_until(|out| out[2].len() == 50);
        assert!(net.out[2].drain(..).all(|frame| frame[5] == 0x99 && frame[22] == 9));
        assert!(net.received() >= before + 50);
        net.sweep();
        let totals = net.totals();
        assert!(totals.flows == 1 && totals.packets == 0, "{totals:?}");
        assert_eq!(net.counters().into_values().next(), Some((50 * round, 50 * 74 * round)));
    }
}

/// The one flow was lost, and all of its latest packets were done by the NIC.
fn is_back(net: &Net, seen: bool) -> bool {
    let totals = net.totals();
    !seen && totals.lost == 1 && totals.flows == 1
}

#[test]
fn rules_removed_by_another_program_are_inserted_again() {
    if !is_root() {
        return;
    }
    let mut stream = Stream::new("");
    stream.pass(100);
    stream.net.sweep();
    stream.net.flush_rules();
    stream.pass_until("the rule put in again", is_back);
    assert_eq!(stream.counted(), stream.sent.into());
}

/// Traffic through a NIC that is reset in the middle of it. Returns for how long the worker had it.
fn time_without_the_nic(reset_after: u32) -> Duration {
    let mut stream = Stream::new(&format!(",reset-after={reset_after}"));
    stream.pass_until("a reset", |net, seen| seen || net.totals().lost == 1);
    let lost = Instant::now();
    stream.pass_until("the flow in the NIC again", is_back);
    let without = lost.elapsed();
    // What the NIC counted between the last look and the reset is gone with it, and nothing is counted twice.
    let counted = stream.counted();
    assert!(counted <= stream.sent.into() && counted > 50, "{counted} of {}", stream.sent);
    without
}

#[test]
fn flows_are_offloaded_again_within_a_second_of_a_reset() {
    if !is_root() {
        return;
    }
    // On a machine that is busy with something else, one of three is in time.
    let times = [300, 500, 900].map(time_without_the_nic);
    println!("a flow was without the NIC for {times:?}");
    assert!(times.iter().min() < Some(&Duration::from_secs(1)), "{times:?}");
}

/// A popularity as of names or addresses: the n-th has a share of 1/n.
struct Zipf {
    net: Net,
    random: Rng,
}

const CROWD: usize = 200;
const ROOM: usize = CROWD / 10;
/// Packets of the most popular flow in a round.
const TOP: usize = 500;

impl Zipf {
    fn new() -> Zipf {
        let net = Net::new(&format!(",exact=0,masked={ROOM}"), true);
        for n in 0..CROWD {
            let text = format!("in_port(2),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst={})", 1000 + n);
            let FlowMatch { key, mask } = text.parse().unwrap();
            net.switch.add_flow(&key, &mask, parse_actions("3").unwrap()).unwrap();
        }
        Zipf { net, random: Rng::new(99) }
    }

    /// A round of traffic in which the flow `first` is the most popular, and one look at it. Returns the share of the packets that
    /// the NIC could have done at best which it did.
    fn round(&mut self, first: usize) -> f64 {
        let popularity = |rank: usize| (TOP / (rank + 1)).max(1);
        let mut packets: Vec<usize> =
            (0..CROWD).flat_map(|rank| std::iter::repeat_n((first + rank) % CROWD, popularity(rank))).collect();
        for i in (1..packets.len()).rev() {
            packets.swap(i, self.random.below(i as u64 + 1) as usize);
        }
        let before = self.net.totals().packets;
        for chunk in packets.chunks(200) {
            chunk.iter().for_each(|flow| self.net.send(1, &ipv4(1, 2, 17, 1000 + *flow as u16, 0)));
            self.net.receive_until(|out| out[2].len() >= chunk.len());
            assert_eq!(self.net.out[2].drain(..).count(), chunk.len());
        }
        self.net.sweep();
        let totals = self.net.totals();
        assert!(totals.flows as usize <= ROOM, "{totals:?}");
        let best: usize = (0..ROOM).map(popularity).sum();
        (totals.packets - before) as f64 / best as f64
    }

    /// The share over some rounds, after others in which the NIC finds out.
    fn share(&mut self, first: usize) -> f64 {
        const WARM_UP: usize = 4;
        const ROUNDS: usize = 8;
        let shares: Vec<f64> = (0..WARM_UP + ROUNDS).map(|_| self.round(first)).collect();
        shares[WARM_UP..].iter().sum::<f64>() / ROUNDS as f64
    }
}

/// A flow has to see twice what another sees to take its place, so that the NIC is not busy with changes. At worst, then, the NIC
/// has flows of half the popularity that they could have; here the few most popular have most packets, and are never in doubt.
#[test]
fn a_nic_ten_times_too_small_has_the_busiest_flows() {
    if !is_root() {
        return;
    }
    let mut zipf = Zipf::new();
    let first = zipf.share(0);
    let evictions = zipf.net.totals().evictions;
    let second = zipf.share(CROWD / 2);
    let totals = zipf.net.totals();
    println!(
        "the NIC did {:.1} % of what it could do at best, and {:.1} % of it when others were popular: {totals:?}",
        first * 100.0,
        second * 100.0
    );
    assert!(first >= 0.8, "{first}: {totals:?}");
    assert!(second >= 0.8, "{second}: {totals:?}");
    assert!(totals.evictions - evictions >= ROOM as u64 / 2, "{evictions}: {totals:?}");
}

#[test]
fn an_idle_offloaded_flow_ages() {
    if !is_root() {
        return;
    }
    let mut stream = Stream::new("");
    for number in 0..50 {
        stream.net.send(0, &ipv4(0, 2, 17, 1000, number));
    }
    stream.net.take();
    stream.net.sweep();
    assert_eq!(stream.net.totals().flows, 2);
    let began = Instant::now();
    let flows = |net: &Net| net.counters().into_values().filter(|(packets, _)| *packets > 1).count();
    while flows(&stream.net) > 1 {
        assert!(began.elapsed() < TRAFFIC_TIMEOUT, "{:?}", stream.net.totals());
        stream.pass(4);
        std::thread::sleep(Duration::from_millis(100));
    }
    // The other one is where it was, with all that it has seen.
    assert_eq!(stream.counted(), stream.sent.into());
    stream.net.sweep();
    assert_eq!(stream.net.totals().flows, 1, "{:?}", stream.net.totals());
    // And who comes back is served.
    stream.net.send(0, &ipv4(0, 2, 17, 1000, 50));
    assert_eq!(stream.net.take()[2].len(), 1);
}
