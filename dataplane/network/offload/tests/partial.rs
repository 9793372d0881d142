//! Packets of a NIC for a guest of the workers: the NIC marks them, the workers do them without a look-up, and what comes out and is
//! counted is what it is without a NIC that can. Needs root.

mod support;

use datapath::{OffloadState, PortConfig};
use l2::BridgePort;
use offload::Totals;
use port::{MemoryPeer, MemoryPort};
use std::sync::Arc;
use std::time::Instant;
use support::{Counters, MARKER, Net, PORTS, TRAFFIC_TIMEOUT, frame, ipv4, is_root, mac};

/// The guest's port, and the station behind it.
const GUEST: u32 = PORTS as u32 + 1;
const STATION: u8 = 9;

/// A NIC with a guest beside it.
struct Host {
    net: Net,
    wire: Arc<MemoryPeer>,
    /// What came to the guest, but for markers, and how many of these.
    got: Vec<Vec<u8>>,
    markers: usize,
    number: u32,
}

impl Host {
    fn new(arguments: &str, offload: bool) -> Host {
        let net = Net::new(arguments, offload);
        let (port, wire) = MemoryPort::new(4096);
        net.switch.add_port("guest", Arc::new(port), &PortConfig { number: Some(GUEST), upcall_pps: None }).unwrap();
        net.switch.attach("br", "guest", BridgePort::default()).unwrap();
        let mut host = Host { net, wire, got: Vec::new(), markers: 0, number: 0 };
        (0..PORTS).for_each(|port| host.net.send(port, &frame(mac(port as u8), [0xff; 6], 0x88b6, &[0; 46])));
        host.speak();
        host.take();
        host
    }

    /// The guest says where it is, and all hear it.
    fn speak(&mut self) {
        let pool = self.net.switch.pool();
        let (mut packet, hello) = (pool.take_one().unwrap(), frame(mac(STATION), [0xff; 6], 0x88b6, &[0; 46]));
        assert!(packet.extend_from_slice(&hello, pool) && self.wire.send(packet).is_ok());
        self.net.receive_until(|out| out.iter().all(|frames| frames.contains(&hello)));
    }

    /// So many packets from a station of the NIC's.
    fn send(&mut self, port: usize, to: u8, count: usize) {
        for _ in 0..count {
            self.number += 1;
            self.net.send(port, &ipv4(port as u8, to, [6, 17][port % 2], 1000, self.number));
        }
    }

    /// Takes what comes to the guest until `done`.
    fn receive_until(&mut self, done: impl Fn(&Host) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < TRAFFIC_TIMEOUT, "what was sent did not come out");
            while let Some(packet) = self.wire.receive() {
                match packet.data()[12..14] == MARKER.to_be_bytes() {
                    true => self.markers += 1,
                    false => self.got.push(packet.data().to_vec()),
                }
            }
        }
    }

    /// What came out by each port of the NIC in no order, and to the guest in order.
    fn take(&mut self) -> Vec<Vec<Vec<u8>>> {
        let awaited = self.markers + PORTS;
        let mut out = self.net.take();
        self.receive_until(|host| host.markers >= awaited);
        out.push(std::mem::take(&mut self.got));
        out
    }

    fn hits_mark(&self) -> u64 {
        self.net.switch.worker_stats().iter().map(|stats| stats.hits_mark).sum()
    }

    /// The flow to the guest from a port: how much of it the NIC does, and what it does not.
    fn placed(&self, port: u64) -> (OffloadState, Option<String>) {
        let reports = self.net.switch.dump();
        let report = reports.into_iter().find(|report| {
            report.flow.key.get(flow::field::IN_PORT) == port && *report.flow.actions == [flow::Action::Output(GUEST)]
        });
        report.map(|report| (report.offloaded, report.refused)).unwrap_or_default()
    }
}

#[test]
fn packets_for_a_guest_are_marked_and_not_looked_up() {
    if !is_root() {
        return;
    }
    let mut host = Host::new("", true);
    host.send(1, STATION, 50);
    assert_eq!(host.take()[PORTS].len(), 50);
    // The flow is offered, and then its workers are told its mark.
    (0..2).for_each(|_| host.net.sweep());
    assert_eq!(
        host.placed(2),
        (OffloadState::Partial, Some(format!("port {GUEST} is not in this device's switch domain")))
    );
    let before = (host.net.looked_up(), host.hits_mark());
    host.send(1, STATION, 500);
    host.receive_until(|host| host.got.len() == 500);
    // Published at the worker's next quiescent point.
    let began = Instant::now();
    while host.hits_mark() < before.1 + 500 && began.elapsed() < TRAFFIC_TIMEOUT {}
    assert_eq!((host.net.looked_up(), host.hits_mark()), (before.0, before.1 + 500));
    let numbers = host.got.iter().map(|frame| u32::from_be_bytes(frame[64..68].try_into().unwrap()));
    assert!(numbers.eq(51..551), "in order, each once");
    let seen: Vec<_> = host.net.counters().into_values().filter(|(packets, _)| *packets > 1).collect();
    assert_eq!(seen, [(550, 550 * 74)]);
    let Totals { flows, partial, packets, .. } = host.net.totals();
    assert_eq!((flows, partial, packets), (0, 1, 0), "the workers count them");
}

/// What comes out by each port, after each half of a round; what is counted; what the NIC did; hits by mark.
type Ran = (Vec<Vec<Vec<Vec<u8>>>>, Counters, Totals, u64);

/// What comes out and is counted while flows for the guest and for others come, change and go, and what the NIC did.
fn run(arguments: &str, offload: bool) -> Ran {
    let mut host = Host::new(arguments, offload);
    let mut outputs = Vec::new();
    for round in 0..16 {
        host.send(round % PORTS, STATION, 40);
        host.send((round + 1) % PORTS, (round % PORTS) as u8, 20);
        outputs.push(host.take());
        host.net.sweep();
        match round % 8 {
            // The guest moves behind the NIC, and back.
            5 => host.net.send(0, &frame(mac(STATION), [0xff; 6], 0x88b6, &[0; 46])),
            7 => host.speak(),
            _ => {}
        }
        outputs.push(host.take());
    }
    (outputs, host.net.counters(), host.net.totals(), host.hits_mark())
}

#[test]
fn marks_change_only_the_look_up() {
    if !is_root() {
        return;
    }
    let (outputs, counters, ..) = run("", false);
    for arguments in ["", ",refuse=mark", ",refuse=rss", ",exact=3,masked=3", ",reset-after=700"] {
        let (with, counted, totals, hits) = run(arguments, true);
        let differs = with.iter().zip(&outputs).position(|(with, without)| with != without);
        assert_eq!(differs, None, "{arguments:?}: what came out, by half a round");
        assert_eq!(counted.len(), counters.len(), "{arguments:?}");
        if !arguments.contains("reset") {
            assert_eq!(counted, counters, "{arguments:?}: {totals:?}");
        }
        match arguments {
            ",refuse=mark" | ",refuse=rss" => assert_eq!((hits, totals.partial), (0, 0), "{arguments:?}: {totals:?}"),
            // Flows take turns in so small a table: of which packets come while they are there, nothing is sure.
            ",exact=3,masked=3" => assert!(totals.full > 0, "{totals:?}"),
            _ => assert!(hits > 0 && totals.packets > 0, "{arguments:?}: {hits} hits, {totals:?}"),
        }
        assert!(totals.refused["port"] > 0, "{arguments:?}: {totals:?}");
    }
}
