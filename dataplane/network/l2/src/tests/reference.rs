//! The switch against a switch that decides over each packet alone, from its bytes, and remembers nothing but stations.

use super::{BROADCAST, Net, access, frame_of, mac, trunk};
use crate::{BridgePort, FdbKey, Mac, PortNo, Security, VlanMode};
use proptest::prelude::*;
use std::collections::HashMap;

/// What comes into a port, and what happens to the switch.
#[derive(Clone, Debug)]
enum Step {
    Packet(PortNo, Frame),
    Settings(PortNo, BridgePort),
    Flush,
    Pin(FdbKey, PortNo),
    Unpin(FdbKey),
}

#[derive(Clone, Debug)]
struct Frame {
    source: Mac,
    destination: Mac,
    tag: Option<u16>,
    payload: Payload,
}

#[derive(Clone, Debug)]
enum Payload {
    Other,
    Ipv4 { source: u8 },
    Arp { sender_mac: Mac, sender: u8 },
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let (ethertype, payload) = match &self.payload {
            Payload::Other => (0x88b5, vec![9; 50]),
            Payload::Ipv4 { source } => {
                let header = [0x45, 0, 0, 48, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, *source, 10, 0, 0, 9];
                (0x800, [&header[..], &[0, 9, 0, 9, 0, 28, 0, 0], &[0; 20]].concat())
            }
            Payload::Arp { sender_mac, sender } => {
                let head = [0, 1, 8, 0, 6, 4, 0, 1];
                (
                    0x806,
                    [&head[..], &sender_mac.octets(), &[10, 0, 0, *sender], &[0; 6], &[10, 0, 0, 9], &[0; 18]].concat(),
                )
            }
        };
        frame_of(self.source, self.destination, self.tag, ethertype, &payload)
    }
}

/// The plain switch.
struct Reference {
    ports: Vec<BridgePort>,
    stations: HashMap<(u16, Mac), (PortNo, bool)>,
}

impl Reference {
    fn port(&self, number: PortNo) -> &BridgePort {
        &self.ports[number as usize - 1]
    }

    fn carries(&self, port: PortNo, vlan: u16) -> bool {
        match &self.port(port).vlan {
            VlanMode::Access { vlan: own } => *own == vlan,
            VlanMode::Trunk { vlans, native } => {
                *native == Some(vlan) || (vlans.is_empty() || vlans.contains(&vlan)) && !(vlan == 0 && native.is_some())
            }
        }
    }

    fn vlan_of(&self, port: PortNo, frame: &Frame) -> Option<u16> {
        let vid = frame.tag.map_or(0, |tci| tci & 0xfff);
        match &self.port(port).vlan {
            VlanMode::Access { vlan } => (vid == 0).then_some(*vlan),
            _ if vid == 4095 => None,
            VlanMode::Trunk { native, .. } => {
                let vlan = if vid == 0 { native.unwrap_or(0) } else { vid };
                self.carries(port, vlan).then_some(vlan)
            }
        }
    }

    fn is_spoofed(&self, port: PortNo, frame: &Frame) -> bool {
        let Security { macs, ips } = &self.port(port).security;
        let allowed = |last: u8| ips.is_empty() || ips.iter().any(|ip| ip.to_string() == format!("10.0.0.{last}"));
        let secured = !macs.is_empty() || !ips.is_empty();
        !macs.is_empty() && !macs.contains(&frame.source)
            || match &frame.payload {
                Payload::Other => false,
                Payload::Ipv4 { source } => !allowed(*source),
                Payload::Arp { sender_mac, sender } => secured && (*sender_mac != frame.source || !allowed(*sender)),
            }
    }

    /// The frames that leave, each with its port.
    fn forward(&mut self, port: PortNo, frame: &Frame) -> Vec<(PortNo, Vec<u8>)> {
        let Some(vlan) = self.vlan_of(port, frame) else { return Vec::new() };
        if !frame.source.is_station() || self.is_spoofed(port, frame) {
            return Vec::new();
        }
        if frame.destination.octets()[..5] == [1, 0x80, 0xc2, 0, 0] && frame.destination.octets()[5] < 16 {
            return Vec::new();
        }
        let known = self.stations.entry((vlan, frame.source)).or_insert((port, false));
        if !known.1 {
            known.0 = port;
        }
        let all: Vec<PortNo> = (1..=self.ports.len() as PortNo).collect();
        let to = match self.stations.get(&(vlan, frame.destination)) {
            Some((only, _)) if !frame.destination.is_group() => vec![*only],
            _ => all,
        };
        let out = to.into_iter().filter(|to| *to != port && self.carries(*to, vlan));
        out.map(|to| (to, self.tagged(to, vlan, frame))).collect()
    }

    fn tagged(&self, port: PortNo, vlan: u16, frame: &Frame) -> Vec<u8> {
        let untagged = match &self.port(port).vlan {
            VlanMode::Access { .. } => true,
            VlanMode::Trunk { native, .. } => vlan == native.unwrap_or(0),
        };
        let vid = frame.tag.map_or(0, |tci| tci & 0xfff);
        let tag = match frame.tag {
            _ if untagged => None,
            Some(tci) if vid == vlan => Some(tci),
            tci => Some(tci.unwrap_or(0) & 0xe000 | vlan),
        };
        Frame { tag, ..frame.clone() }.bytes()
    }
}

const PORTS: PortNo = 4;

fn macs() -> impl Strategy<Value = Mac> {
    (1_u8..6).prop_map(mac)
}

fn destinations() -> impl Strategy<Value = Mac> {
    prop_oneof![
        8 => macs(),
        2 => Just(BROADCAST),
        1 => Just(Mac::from([1, 0, 0x5e, 0, 0, 1])),
        1 => Just(Mac::from([1, 0x80, 0xc2, 0, 0, 2])),
    ]
}

fn frames() -> impl Strategy<Value = Frame> {
    let tag = prop_oneof![
        4 => Just(None),
        3 => (prop_oneof![Just(0), Just(10), Just(20), Just(30), Just(4095)], 0_u16..8)
            .prop_map(|(vid, pcp): (u16, u16)| Some(pcp << 13 | vid)),
    ];
    let payload = prop_oneof![
        3 => Just(Payload::Other),
        2 => (1_u8..4).prop_map(|source| Payload::Ipv4 { source }),
        2 => (macs(), 1_u8..4).prop_map(|(sender_mac, sender)| Payload::Arp { sender_mac, sender }),
    ];
    let source = prop_oneof![20 => macs(), 1 => Just(BROADCAST), 1 => Just(Mac::new(0))];
    (source, destinations(), tag, payload).prop_map(|(source, destination, tag, payload)| Frame {
        source,
        destination,
        tag,
        payload,
    })
}

fn settings() -> impl Strategy<Value = BridgePort> {
    let vlan = prop_oneof![
        2 => Just(trunk(&[], None)),
        1 => Just(access(10)),
        1 => Just(access(20)),
        1 => Just(trunk(&[10, 20], None)),
        1 => Just(trunk(&[0, 10], None)),
        1 => Just(trunk(&[20], Some(10))),
        1 => Just(trunk(&[], Some(20))),
    ];
    let security = prop_oneof![
        3 => Just(Security::default()),
        1 => Just(Security { macs: vec![mac(1), mac(2)], ips: vec![] }),
        1 => Just(Security { macs: vec![], ips: vec!["10.0.0.1".parse().unwrap()] }),
        1 => Just(Security { macs: vec![mac(3)], ips: vec!["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()] }),
    ];
    (vlan, security).prop_map(|(port, security)| BridgePort { security, ..port })
}

fn stations() -> impl Strategy<Value = FdbKey> {
    (prop_oneof![Just(0_u16), Just(10), Just(20)], macs()).prop_map(|(vlan, mac)| FdbKey { vlan, mac })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => (1..=PORTS, frames()).prop_map(|(port, frame)| Step::Packet(port, frame)),
        2 => (1..=PORTS, settings()).prop_map(|(port, settings)| Step::Settings(port, settings)),
        1 => Just(Step::Flush),
        1 => (stations(), 1..=PORTS).prop_map(|(station, port)| Step::Pin(station, port)),
        1 => stations().prop_map(Step::Unpin),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_switch_forwards_as_a_switch_without_caches(
        workers in 1_usize..4,
        ports in prop::collection::vec(settings(), PORTS as usize),
        steps in steps(),
    ) {
        let mut net = Net::with_workers(workers, &ports);
        let mut reference = Reference { ports, stations: HashMap::new() };
        for step in steps {
            match step {
                Step::Packet(port, frame) => {
                    net.send(port, &frame.bytes());
                    net.settle();
                    let mut expected = reference.forward(port, &frame);
                    expected.sort();
                    let all = (1..=PORTS).flat_map(|port| net.received(port).into_iter().map(move |frame| (port, frame)));
                    prop_assert_eq!(all.collect::<Vec<_>>(), expected, "{:?} from port {}", frame, port);
                }
                Step::Settings(port, settings) => {
                    net.switch.attach("br", &port.to_string(), settings.clone()).unwrap();
                    reference.ports[port as usize - 1] = settings;
                }
                Step::Flush => {
                    net.switch.flush("br", None).unwrap();
                    reference.stations.retain(|_, (_, pinned)| *pinned);
                }
                Step::Pin(station, port) => {
                    if net.switch.pin("br", station, &port.to_string()).is_ok() {
                        reference.stations.insert((station.vlan, station.mac), (port, true));
                    }
                }
                Step::Unpin(station) => {
                    net.switch.unpin("br", station).ok();
                    reference.stations.remove(&(station.vlan, station.mac));
                }
            }
        }
        prop_assert_eq!(net.pool.free_count(), net.pool.capacity());
    }
}
