//! What guest and device leave to each other: checksums and segmentation.

use crate::guest::{Guest, LAYOUTS};
use packet::{Burst, Packet};
use virtio_spec::feature;
use virtio_spec::net::{Header, feature as net, flag, gso};

const HEADERS: usize = 14 + 20 + 20;

/// TCP over IPv4 with the sum of the pseudo header where the checksum goes.
fn tcp(payload: usize) -> Vec<u8> {
    let len = (40 + payload) as u16;
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let mut ip = [0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = !packet::internet_checksum(0, &ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    let mut l4 = [0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0];
    let pseudo = packet::internet_checksum(6 + 20 + payload as u32, &ip[12..]);
    l4[16..18].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend(l4);
    frame.extend((0..payload).map(|at| (at / 3) as u8));
    frame
}

const CSUM: Header = Header {
    flags: flag::NEEDS_CSUM,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};
const TSO: Header = Header { gso_type: gso::TCPV4, gso_size: 1448, hdr_len: HEADERS as u16, ..CSUM };

const HOST: u64 = net::CSUM | net::HOST_TSO4 | net::HOST_TSO6;
const GUEST: u64 = net::GUEST_CSUM | net::GUEST_TSO4 | net::GUEST_TSO6;

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
    for layout in LAYOUTS {
        let mut guest = Guest::new(layout | feature::VERSION_1 | net::MRG_RXBUF | HOST | GUEST, 256);
        (0..40).for_each(|_| assert!(guest.post_rx(2048, &[], false)));
        let mut burst = Burst::new();
        burst.push(sent(&mut guest, &CSUM, &tcp(100)));
        burst.push(sent(&mut guest, &TSO, &tcp(60_000)));
        guest.device_sends_burst(burst);
        let got = guest.received();
        assert_eq!(got[0], (Header { num_buffers: 1, ..CSUM }, tcp(100)));
        assert_eq!(got[1], (Header { num_buffers: 30, ..TSO }, tcp(60_000)));
        guest.end();
    }
}

#[test]
fn a_guest_that_takes_none_gets_complete_segments() {
    let mut guest = Guest::new(feature::VERSION_1 | HOST, 256);
    (0..40).for_each(|_| assert!(guest.post_rx(2048, &[12], true)));
    let mut burst = Burst::new();
    burst.push(sent(&mut guest, &CSUM, &tcp(100)));
    burst.push(sent(&mut guest, &TSO, &tcp(40_000)));
    guest.device_sends_burst(burst);
    let got = guest.received();
    assert_eq!(got.len(), 1 + 40_000_usize.div_ceil(1448));
    let mut payload = Vec::<u8>::new();
    for (header, frame) in &got {
        assert_eq!(*header, Header { num_buffers: 1, ..Header::default() });
        let mut packet = guest.pool.take_one().unwrap();
        assert!(packet.extend_from_slice(frame, &guest.pool));
        assert_eq!(packet.verify_checksum(), Some(true));
        payload.extend(&frame[HEADERS..]);
    }
    assert_eq!(payload, [&tcp(100)[HEADERS..], &tcp(40_000)[HEADERS..]].concat());
    guest.end();
}

#[test]
fn a_guest_with_checksums_only_gets_segments_to_complete() {
    let mut guest = Guest::new(feature::VERSION_1 | HOST | net::GUEST_CSUM, 256);
    (0..8).for_each(|_| assert!(guest.post_rx(2048, &[], false)));
    let mut burst = Burst::new();
    burst.push(sent(&mut guest, &TSO, &tcp(2000)));
    guest.device_sends_burst(burst);
    let got = guest.received();
    assert_eq!(got.len(), 2);
    assert!(got.iter().all(|(header, _)| *header == Header { num_buffers: 1, ..CSUM }));
    guest.end();
}

#[test]
fn segmentation_that_was_not_negotiated_is_refused() {
    let mut guest = Guest::new(feature::VERSION_1 | net::CSUM, 256);
    assert!(guest.send(&TSO, &tcp(2000), &[], false));
    guest.device_receives(&mut Vec::new());
    assert_eq!((guest.counters().rx_packets, guest.counters().rx_invalid, guest.reclaim()), (0, 1, 1));
    guest.end();
}
