//! One test a class of attack that other back-ends had a CVE for.

use crate::DeviceFault;
use crate::guest::{BUFFERS, Guest, LAYOUTS, MEMORY, SIZE};
use crate::tests::frame;
use guest_memory::GuestAddress;
use virtio_spec::feature;
use virtio_spec::net::{Header, feature as net, flag, gso};
use virtqueue::QueueError;
use virtqueue::driver::Buffer;

fn guest(layout: u64) -> Guest {
    Guest::new(layout | feature::VERSION_1 | net::MRG_RXBUF | net::CSUM | net::HOST_TSO4 | net::HOST_USO, 128)
}

/// A device that refused `before` packets still carries the next one.
fn works(mut guest: Guest, invalid: u64) {
    let mut got = Vec::new();
    guest.device_receives(&mut got);
    got.clear();
    assert_eq!(guest.counters().rx_invalid, invalid);
    guest.reclaim();
    assert!(guest.send(&Header::default(), &frame(1, 200), &[], false));
    guest.device_receives(&mut got);
    assert_eq!((got, guest.reclaim()), (vec![frame(1, 200)], 1));
    assert!(guest.events.is_empty());
    guest.end();
}

#[test]
fn runts_are_dropped() {
    for layout in LAYOUTS {
        let mut guest = guest(layout);
        let at = GuestAddress(BUFFERS);
        for len in [1, 11, 12, 13, 25] {
            assert!(guest.post_tx(&[(at, len, false)], false));
        }
        assert!(guest.post_tx(&[(at, 12, false), (at, 13, false)], true));
        works(guest, 6);
    }
}

#[test]
fn a_chain_without_readable_buffers_is_dropped() {
    for layout in LAYOUTS {
        let mut guest = guest(layout);
        assert!(guest.post_tx(&[(GuestAddress(BUFFERS), 100, true)], false));
        works(guest, 1);
    }
}

#[test]
fn oversized_chains_are_dropped() {
    let mut guest = guest(0);
    let at = GuestAddress(BUFFERS);
    assert!(guest.post_tx(&[(at, u32::MAX, false)], false));
    assert!(guest.post_tx(&[(at, u32::MAX, false); 20], true));
    assert!(guest.post_tx(&[(at, 65535 + 22 + 13, false)], false));
    works(guest, 3);
}

#[test]
fn buffers_outside_memory_are_dropped() {
    for layout in LAYOUTS {
        let mut guest = guest(layout);
        for at in [MEMORY, MEMORY - 50, u64::MAX, u64::MAX - 50] {
            assert!(guest.post_tx(&[(GuestAddress(at), 100, false)], false));
            assert!(guest.post_tx(&[(GuestAddress(BUFFERS), 12, false), (GuestAddress(at), 88, false)], false));
        }
        works(guest, 8);
    }
}

#[test]
fn receive_buffers_outside_memory_are_given_back_empty() {
    for layout in LAYOUTS {
        let mut guest = guest(layout);
        let bad = GuestAddress(MEMORY - 50);
        let mut chains: Vec<Vec<Buffer>> = vec![vec![(bad, 2000, true)]];
        // The second buffer of a packet, the second half of a header.
        chains.push(vec![(GuestAddress(BUFFERS), 100, true)]);
        chains.push(vec![(bad, 2000, true)]);
        chains.push(vec![(GuestAddress(MEMORY - 6), 12, true), (GuestAddress(BUFFERS), 2000, true)]);
        chains.into_iter().for_each(|chain| assert!(guest.post_rx_chain(chain, false)));
        assert!(guest.post_rx(2000, &[], false));
        guest.device_sends(&[frame(0, 1000), frame(1, 1000), frame(2, 1000), frame(3, 1000)]);
        assert_eq!((guest.counters().tx_invalid, guest.counters().tx_packets), (3, 1));
        let mut used = Vec::new();
        used.extend(std::iter::from_fn(|| guest.rx.take_used()).map(|(_, written)| written));
        assert_eq!(used, [0, 0, 0, 0, 1012]);
        guest.end();
    }
}

#[test]
fn receive_chains_without_writable_buffers_end() {
    for layout in LAYOUTS {
        let mut guest = guest(layout);
        while guest.post_rx_chain(vec![(GuestAddress(BUFFERS), 100, false)], false) {}
        guest.device_sends(&[frame(0, 1000)]);
        assert_eq!(guest.counters().tx_full, 1);
        guest.end();
    }
}

#[test]
fn a_header_may_span_descriptors() {
    for layout in LAYOUTS {
        let mut guest = guest(layout);
        assert!(guest.send(&Header::default(), &frame(0, 300), &[1, 5, 11, 13, 26], false));
        assert!(guest.send(&Header::default(), &frame(1, 300), &[3, 12], true));
        let mut got = Vec::new();
        guest.device_receives(&mut got);
        assert_eq!(got, [frame(0, 300), frame(1, 300)]);
        assert!(guest.post_rx(2000, &[1, 5, 11, 13, 26], false));
        assert!(guest.post_rx(2000, &[3, 7], true));
        guest.device_sends(&got);
        assert_eq!(guest.received().into_iter().map(|(_, frame)| frame).collect::<Vec<_>>(), got);
        guest.end();
    }
}

#[test]
fn offload_fields_that_lie_are_dropped() {
    let good = Header {
        flags: flag::NEEDS_CSUM,
        gso_type: gso::UDP_L4,
        gso_size: 500,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    let lies = [
        Header { csum_start: u16::MAX, csum_offset: u16::MAX, ..good },
        Header { csum_start: 399, csum_offset: 0, ..good },
        Header { gso_size: 0, ..good },
        Header { gso_size: 1, ..good },
        Header { flags: 0, ..good },
        // Of another protocol than the packet, not negotiated, not known.
        Header { gso_type: gso::TCPV4, ..good },
        Header { gso_type: gso::TCPV6, ..good },
        Header { gso_type: gso::UDP_L4 | 0x80, ..good },
        Header { gso_type: 3, ..good },
        Header { gso_type: 77, ..good },
    ];
    for layout in LAYOUTS {
        let mut guest = guest(layout);
        lies.iter().for_each(|lie| assert!(guest.send(lie, &frame(0, 400), &[], false)));
        works(guest, lies.len() as u64);
    }
}

/// What breaks the ring itself takes the device, and only it, out of service.
fn quarantines(mut guest: Guest, is: impl Fn(QueueError) -> bool) {
    let mut got = Vec::new();
    guest.device_receives(&mut got);
    let event = guest.events.try_recv().expect("an event says why");
    let crate::DeviceEventKind::Quarantined(crate::Quarantine { queue: 1, fault: DeviceFault::Ring(error) }) =
        event.kind
    else {
        panic!("{event:?}");
    };
    assert!(is(error), "{error}");
    assert!(!guest.shard.can_tx() && !guest.shard.arm());
    guest.device_receives(&mut got);
    assert!(guest.events.is_empty(), "said once");
    guest.end();
}

#[test]
fn a_loop_of_descriptors_quarantines() {
    let mut guest = guest(0);
    assert!(guest.post_tx(&[(GuestAddress(BUFFERS), 100, false); 2], false));
    // The second descriptor leads to the first one again.
    let table = guest.tx.setup().addresses.descriptor;
    guest.memory.write(GuestAddress(table.0 + 16 + 12), &[1, 0, 0, 0]).unwrap();
    quarantines(guest, |error| matches!(error, QueueError::ChainLoop { .. }));
}

#[test]
fn an_indirect_table_of_a_wrong_length_quarantines() {
    for layout in LAYOUTS {
        for len in [0_u32, 8, 17, !15] {
            let mut guest = guest(layout);
            assert!(guest.post_tx(&[(GuestAddress(BUFFERS), 100, false)], true));
            let table = guest.tx.setup().addresses.descriptor;
            guest.memory.write(GuestAddress(table.0 + 8), &len.to_le_bytes()).unwrap();
            quarantines(guest, |error| matches!(error, QueueError::IndirectLength { .. }));
        }
    }
}

#[test]
fn an_available_index_too_far_ahead_quarantines() {
    let guest = guest(0);
    let avail = guest.tx.setup().addresses.driver;
    guest.memory.write(GuestAddress(avail.0 + 2), &(SIZE + 1).to_le_bytes()).unwrap();
    quarantines(guest, |error| matches!(error, QueueError::AvailIndex { .. }));
}

#[test]
fn a_head_outside_the_table_quarantines() {
    let mut guest = guest(0);
    assert!(guest.post_tx(&[(GuestAddress(BUFFERS), 100, false)], false));
    let avail = guest.tx.setup().addresses.driver;
    guest.memory.write(GuestAddress(avail.0 + 4), &SIZE.to_le_bytes()).unwrap();
    quarantines(guest, |error| matches!(error, QueueError::DescriptorIndex { .. }));
}

#[test]
fn a_readable_descriptor_behind_a_writable_one_quarantines() {
    for layout in LAYOUTS {
        let mut guest = guest(layout);
        assert!(guest.post_tx(&[(GuestAddress(BUFFERS), 100, true), (GuestAddress(BUFFERS), 100, false)], false));
        quarantines(guest, |error| matches!(error, QueueError::Order));
    }
}
