//! What guest and device leave to each other: checksums and segmentation.

use crate::guest::{Guest, LAYOUTS};
use packet::{Burst, Packet};
use virtio_spec::feature;
use virtio_spec::net::{Header, feature as net, flag, gso};

/// A protocol that may be segmented.
#[derive(Clone, Copy, Debug)]
struct Kind {
    ipv6: bool,
    udp: bool,
}

const KINDS: [Kind; 4] = [
    Kind { ipv6: false, udp: false },
    Kind { ipv6: true, udp: false },
    Kind { ipv6: false, udp: true },
    Kind { ipv6: true, udp: true },
];
const ETHERNET: usize = 14;
const SEGMENT: usize = 1408;

impl Kind {
    fn l4_start(self) -> usize {
        ETHERNET + if self.ipv6 { 40 } else { 20 }
    }

    fn headers(self) -> usize {
        self.l4_start() + if self.udp { 8 } else { 20 }
    }

    /// A frame with the sum of the pseudo header where the checksum goes.
    fn frame(self, payload: usize) -> Vec<u8> {
        let (protocol, l4_len) = (if self.udp { 17 } else { 6 }, self.headers() - self.l4_start() + payload);
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let addresses = if self.ipv6 {
            let [high, low] = (l4_len as u16).to_be_bytes();
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol, 64]);
            (1..=32).collect()
        } else {
            let [high, low] = (20 + l4_len as u16).to_be_bytes();
            let mut ip = [0x45, 0, high, low, 0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            let sum = !packet::internet_checksum(0, &ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(&ip[..12]);
            ip[12..].to_vec()
        };
        let [sum_high, sum_low] =
            packet::internet_checksum(u32::from(protocol) + l4_len as u32, &addresses).to_be_bytes();
        frame.extend(addresses);
        frame.extend([0x30, 0x39, 0, 80]);
        if self.udp {
            frame.extend((l4_len as u16).to_be_bytes());
            frame.extend([sum_high, sum_low]);
        } else {
            frame.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0xff, 0xff, sum_high, sum_low, 0, 0]);
        }
        frame.extend((0..payload).map(|at| (at / 3) as u8));
        frame
    }

    /// The header that leaves the checksum to the other side.
    fn checksum(self) -> Header {
        let (csum_start, csum_offset) = (self.l4_start() as u16, if self.udp { 6 } else { 16 });
        Header { flags: flag::NEEDS_CSUM, csum_start, csum_offset, ..Header::default() }
    }

    /// The header that leaves segmentation to the other side.
    fn segmentation(self) -> Header {
        let gso_type = match (self.udp, self.ipv6) {
            (true, _) => gso::UDP_L4,
            (false, true) => gso::TCPV6,
            (false, false) => gso::TCPV4,
        };
        Header { gso_type, gso_size: SEGMENT as u16, hdr_len: self.headers() as u16, ..self.checksum() }
    }
}

const HOST: u64 = net::CSUM | net::HOST_TSO4 | net::HOST_TSO6 | net::HOST_USO;
const GUEST: u64 = net::GUEST_CSUM | net::GUEST_TSO4 | net::GUEST_TSO6 | net::GUEST_USO4 | net::GUEST_USO6;

/// Sends one packet from a guest and returns it.
fn sent(guest: &mut Guest, header: &Header, frame: &[u8]) -> Packet {
    assert!(guest.send(header, frame, &[12], false));
    let mut burst = Burst::new();
    assert_eq!(guest.shard.rx(&mut burst), 1, "{:?}", guest.counters());
    guest.shard.flush();
    burst.pop().unwrap()
}

#[test]
fn a_guest_that_takes_offloads_gets_packets_as_the_other_one_left_them() {
    for (layout, kind) in LAYOUTS.into_iter().flat_map(|layout| KINDS.map(|kind| (layout, kind))) {
        let mut guest = Guest::new(layout | feature::VERSION_1 | net::MRG_RXBUF | HOST | GUEST, 256);
        (0..40).for_each(|_| assert!(guest.post_rx(2048, &[], false)));
        let mut burst = Burst::new();
        burst.push(sent(&mut guest, &kind.checksum(), &kind.frame(100)));
        burst.push(sent(&mut guest, &kind.segmentation(), &kind.frame(60_000)));
        guest.device_sends_burst(burst);
        let got = guest.received();
        assert_eq!(got[0], (Header { num_buffers: 1, ..kind.checksum() }, kind.frame(100)), "{kind:?}");
        assert_eq!(got[1], (Header { num_buffers: 30, ..kind.segmentation() }, kind.frame(60_000)), "{kind:?}");
        guest.end();
    }
}

#[test]
fn a_guest_that_takes_none_gets_complete_segments() {
    for kind in KINDS {
        let mut guest = Guest::new(feature::VERSION_1 | HOST, 256);
        (0..40).for_each(|_| assert!(guest.post_rx(2048, &[12], true)));
        let mut burst = Burst::new();
        burst.push(sent(&mut guest, &kind.checksum(), &kind.frame(100)));
        burst.push(sent(&mut guest, &kind.segmentation(), &kind.frame(40_000)));
        guest.device_sends_burst(burst);
        let got = guest.received();
        assert_eq!(got.len(), 1 + 40_000_usize.div_ceil(SEGMENT), "{kind:?}");
        let mut payload = Vec::<u8>::new();
        for (header, frame) in &got {
            assert_eq!(*header, Header { num_buffers: 1, ..Header::default() });
            let mut packet = guest.pool.take_one().unwrap();
            assert!(packet.extend_from_slice(frame, &guest.pool));
            assert_eq!(packet.verify_checksum(), Some(true), "{kind:?}");
            payload.extend(&frame[kind.headers()..]);
        }
        assert_eq!(payload, [&kind.frame(100)[kind.headers()..], &kind.frame(40_000)[kind.headers()..]].concat());
        guest.end();
    }
}

#[test]
fn a_guest_with_checksums_only_gets_segments_to_complete() {
    for kind in KINDS {
        let mut guest = Guest::new(feature::VERSION_1 | HOST | net::GUEST_CSUM, 256);
        (0..8).for_each(|_| assert!(guest.post_rx(2048, &[], false)));
        let mut burst = Burst::new();
        burst.push(sent(&mut guest, &kind.segmentation(), &kind.frame(2000)));
        guest.device_sends_burst(burst);
        let got = guest.received();
        assert_eq!(got.len(), 2);
        assert!(got.iter().all(|(header, _)| *header == Header { num_buffers: 1, ..kind.checksum() }), "{kind:?}");
        guest.end();
    }
}

#[test]
fn segments_that_find_no_buffer_are_counted() {
    let mut guest = Guest::new(feature::VERSION_1 | HOST, 32);
    (0..40).for_each(|_| assert!(guest.post_rx(2048, &[], false)));
    let mut burst = Burst::new();
    burst.push(sent(&mut guest, &KINDS[0].segmentation(), &KINDS[0].frame(SEGMENT * 10)));
    let held: Vec<_> = std::iter::from_fn(|| guest.pool.take_one()).collect();
    guest.device_sends_burst(burst);
    assert_eq!((guest.counters().tx_no_buffer, guest.counters().tx_packets, guest.received().len()), (10, 0, 0));
    drop(held);
    guest.end();
}

#[test]
fn segmentation_that_was_not_negotiated_is_refused() {
    for kind in KINDS {
        let mut guest = Guest::new(feature::VERSION_1 | net::CSUM, 256);
        assert!(guest.send(&kind.segmentation(), &kind.frame(2000), &[], false));
        guest.device_receives(&mut Vec::new());
        assert_eq!((guest.counters().rx_packets, guest.counters().rx_invalid, guest.reclaim()), (0, 1, 1));
        guest.end();
    }
}
