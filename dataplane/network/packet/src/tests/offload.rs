//! Work that a sender left to do is done as a NIC does it, and what a sender claims is checked against the packet.

use crate::{Headers, InvalidOffload, L4Checksum, Offload, Packet, Pool, internet_checksum};
use proptest::prelude::*;
use virtio_spec::net::{Header, flag, gso};

/// A frame of TCP or UDP with arbitrary addresses, its checksum holding the pseudo header's sum.
#[derive(Clone, Debug)]
struct Frame {
    ipv6: bool,
    tcp: bool,
    vlans: usize,
    options: usize,
    seed: u8,
    payload: Vec<u8>,
}

impl Frame {
    fn l2_len(&self) -> usize {
        14 + 4 * self.vlans
    }

    fn l3_len(&self) -> usize {
        if self.ipv6 { 40 } else { 20 + self.options }
    }

    fn l4_len(&self) -> usize {
        if self.tcp { 20 + self.options } else { 8 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..12).map(|at| self.seed ^ at).collect();
        (0..self.vlans).for_each(|tag| bytes.extend([0x81, 0, 0, tag as u8]));
        let (l4_len, protocol) = (self.l4_len() + self.payload.len(), if self.tcp { 6 } else { 17 });
        let mut ip = vec![self.seed; self.l3_len()];
        if self.ipv6 {
            bytes.extend([0x86, 0xdd]);
            ip[..8].copy_from_slice(&[0x60, 0, 0, 0, (l4_len >> 8) as u8, l4_len as u8, protocol, 64]);
        } else {
            bytes.extend([8, 0]);
            let len = self.l3_len() + l4_len;
            let ihl = 0x40 | (self.l3_len() / 4) as u8;
            ip[..12].copy_from_slice(&[ihl, 0, (len >> 8) as u8, len as u8, 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0]);
        }
        let addresses = if self.ipv6 { &ip[8..40] } else { &ip[12..20] };
        let pseudo = naive_sum(&[addresses, &[0, protocol], &(l4_len as u32).to_be_bytes()].concat());
        bytes.extend(&ip);
        let mut l4 = vec![self.seed.wrapping_add(1); self.l4_len()];
        if self.tcp {
            (l4[12], l4[13]) = ((self.l4_len() as u8 / 4) << 4, 0x99);
            l4[4..8].copy_from_slice(&[0xff, 0xff, 0xff, 0]);
        } else {
            l4[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
        }
        let at = if self.tcp { 16 } else { 6 };
        l4[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        bytes.extend(&l4);
        bytes.extend(&self.payload);
        bytes
    }

    fn packet(&self, pool: &Pool) -> Packet {
        let mut packet = pool.take_one().unwrap();
        assert!(packet.extend_from_slice(&self.bytes(), pool));
        packet
    }

    fn header(&self, segment_size: u16) -> Header {
        let gso_type = match (segment_size, self.tcp, self.ipv6) {
            (0, ..) => gso::NONE,
            (_, false, _) => gso::UDP_L4,
            (_, true, false) => gso::TCPV4,
            (_, true, true) => gso::TCPV6,
        };
        Header {
            flags: flag::NEEDS_CSUM,
            gso_type,
            hdr_len: 0,
            gso_size: segment_size,
            csum_start: (self.l2_len() + self.l3_len()) as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
            num_buffers: 0,
        }
    }
}

fn naive_sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    words.fold(0, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    }) as u16
}

fn bytes_of(packet: &Packet) -> Vec<u8> {
    let mut bytes = vec![0; packet.len()];
    packet.copy_to(&mut bytes);
    bytes
}

fn frame() -> impl Strategy<Value = Frame> {
    let payload =
        prop_oneof![prop::collection::vec(any::<u8>(), 0..200), prop::collection::vec(any::<u8>(), 1400..9000)];
    (any::<bool>(), any::<bool>(), 0_usize..3, 0_usize..4, any::<u8>(), payload).prop_map(
        |(ipv6, tcp, vlans, options, seed, payload)| Frame { ipv6, tcp, vlans, options: options * 4, seed, payload },
    )
}

proptest! {
    #[test]
    fn internet_checksum_follows_rfc_1071(bytes in prop::collection::vec(any::<u8>(), 0..3000), start in any::<u16>()) {
        let expected = naive_sum(&[&start.to_be_bytes(), bytes.as_slice()].concat());
        // Zero has two forms.
        prop_assert_eq!(internet_checksum(start.into(), &bytes) % 0xffff, expected % 0xffff);
    }

    #[test]
    fn a_completed_checksum_verifies(frame in frame()) {
        let pool = Pool::new(64, None).unwrap();
        {
            let mut packet = frame.packet(&pool);
            prop_assert_eq!(packet.set_vnet_header(&frame.header(0)), Ok(()));
            let found = Headers::parse(packet.data()).unwrap();
            prop_assert_eq!((found.l2_len, found.l3_len, found.ipv6), (frame.l2_len(), frame.l3_len(), frame.ipv6));
            prop_assert_eq!(packet.vnet_header(), frame.header(0));
            packet.complete_checksum();
            prop_assert!(packet.offload().is_none());
            prop_assert_eq!(packet.verify_checksum(), Some(true));
        }
        prop_assert_eq!(pool.free_count(), pool.capacity());
    }

    #[test]
    fn segments_carry_the_whole_payload_in_order(frame in frame(), size in 48_u16..3000) {
        let pool = Pool::new(512, None).unwrap();
        {
            let mut packet = frame.packet(&pool);
            prop_assert_eq!(packet.set_vnet_header(&frame.header(size)), Ok(()));
            let headers = frame.l2_len() + frame.l3_len() + frame.l4_len();
            let cut = frame.payload.len() > usize::from(size);
            prop_assert_eq!(packet.offload().segment_size, if cut { size } else { 0 });
            let Some(mut segments) = packet.segmented(&pool) else {
                prop_assert!(!cut);
                return Ok(());
            };
            let count = segments.left();
            let (mut payload, mut made) = (Vec::<u8>::new(), 0);
            for mut segment in &mut segments {
                prop_assert_eq!(segment.offload().segment_size, 0);
                segment.complete_checksum();
                prop_assert_eq!(segment.verify_checksum(), Some(true));
                let bytes = bytes_of(&segment);
                check_headers(&frame, &bytes, made, payload.len(), made + 1 == count)?;
                payload.extend(&bytes[headers..]);
                made += 1;
            }
            prop_assert_eq!((made, segments.left()), (count, 0));
            prop_assert_eq!(&payload, &frame.payload);
        }
        prop_assert_eq!(pool.free_count(), pool.capacity());
    }

    #[test]
    fn lengths_in_headers_do_not_exceed_the_packet(
        bytes in prop::collection::vec(any::<u8>(), 14..200),
        header in any::<[u8; 12]>(),
        frame in frame(),
        real in any::<bool>(),
    ) {
        let pool = Pool::new(512, None).unwrap();
        {
            let mut header = Header::parse(&header);
            let mut packet = pool.take_one().unwrap();
            let bytes = if real { frame.bytes() } else { bytes };
            prop_assert!(packet.extend_from_slice(&bytes, &pool));
            if real {
                (header.csum_start, header.csum_offset) = (frame.header(0).csum_start, frame.header(0).csum_offset);
            }
            if packet.set_vnet_header(&header).is_ok() {
                let offload = packet.offload();
                let headers = usize::from(offload.l2_len) + usize::from(offload.l3_len) + usize::from(offload.l4_len);
                prop_assert!(headers <= packet.data().len());
                for mut segment in packet.segmented(&pool).into_iter().flatten() {
                    segment.complete_checksum();
                }
                packet.complete_checksum();
            }
        }
        prop_assert_eq!(pool.free_count(), pool.capacity());
    }
}

fn check_headers(frame: &Frame, bytes: &[u8], index: usize, offset: usize, last: bool) -> Result<(), TestCaseError> {
    let (ip, l4) = (&bytes[frame.l2_len()..], &bytes[frame.l2_len() + frame.l3_len()..]);
    let be16 = |bytes: &[u8], at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    if frame.ipv6 {
        prop_assert_eq!(be16(ip, 4), l4.len());
    } else {
        prop_assert_eq!(be16(ip, 2), frame.l3_len() + l4.len());
        prop_assert_eq!(be16(ip, 4), (0xfffe + index) & 0xffff);
        prop_assert_eq!(naive_sum(&ip[..frame.l3_len()]), 0xffff);
    }
    if frame.tcp {
        let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
        prop_assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(offset as u32));
        // FIN and PSH in the last one only, CWR in the first one only, ACK in all.
        prop_assert_eq!(l4[13], 0x10 | if last { 0x09 } else { 0 } | if index == 0 { 0x80 } else { 0 });
    } else {
        prop_assert_eq!(be16(l4, 4), l4.len());
    }
    Ok(())
}

fn tcp(payload: usize) -> Frame {
    Frame { ipv6: false, tcp: true, vlans: 0, options: 0, seed: 3, payload: vec![9; payload] }
}

#[test]
fn invalid_virtio_net_headers_are_refused() {
    let pool = Pool::new(64, None).unwrap();
    let set = |header: Header| tcp(4000).packet(&pool).set_vnet_header(&header);
    let good = tcp(4000).header(1448);
    assert_eq!(set(good), Ok(()));
    assert_eq!(set(Header { gso_size: 0, ..good }), Err(InvalidOffload::Size(0)));
    assert_eq!(set(Header { gso_size: 1, ..good }), Err(InvalidOffload::Size(1)));
    assert_eq!(set(Header { flags: 0, ..good }), Err(InvalidOffload::Kind(gso::TCPV4)));
    assert_eq!(set(Header { gso_type: gso::TCPV6, ..good }), Err(InvalidOffload::Kind(gso::TCPV6)));
    assert_eq!(set(Header { gso_type: gso::UDP_L4, ..good }), Err(InvalidOffload::Kind(gso::UDP_L4)));
    assert_eq!(set(Header { gso_type: 0x7f, ..good }), Err(InvalidOffload::Kind(0x7f)));
    assert_eq!(set(Header { csum_start: 0, ..good }), Err(InvalidOffload::Kind(gso::TCPV4)));
    let outside = Header { csum_start: u16::MAX, csum_offset: u16::MAX, ..good };
    assert_eq!(set(outside), Err(InvalidOffload::Checksum { start: u16::MAX, offset: u16::MAX }));
    assert_eq!(pool.free_count(), pool.capacity());
}

#[test]
fn a_checksum_that_cannot_be_expressed_is_completed_at_once() {
    let pool = Pool::new(64, None).unwrap();
    let mut packet = pool.take_one().unwrap();
    packet.append(64).unwrap().copy_from_slice(&std::array::from_fn::<u8, 64, _>(|at| at as u8));
    let header = Header { flags: flag::NEEDS_CSUM, csum_start: 20, csum_offset: 2, ..Header::default() };
    assert_eq!(packet.set_vnet_header(&header), Ok(()));
    assert!(packet.offload().is_none());
    let expected: Vec<u8> = (20..64).collect();
    assert_eq!(packet.data()[22..24], (!naive_sum(&expected)).to_be_bytes());
}

#[test]
fn segmentation_stops_where_the_pool_is_empty() {
    let pool = Pool::new(32, None).unwrap();
    let mut packet = tcp(60_000).packet(&pool);
    packet.set_vnet_header(&tcp(60_000).header(1000)).unwrap();
    let mut segments = packet.segmented(&pool).unwrap();
    let made: Vec<_> = segments.by_ref().collect();
    assert!(!made.is_empty() && made.len() < 60);
    assert_eq!(segments.left(), 60 - made.len());
    drop((made, packet));
    assert_eq!(pool.free_count(), pool.capacity());
}

#[test]
fn sctp_gets_its_crc() {
    let pool = Pool::new(32, None).unwrap();
    let mut packet = pool.take_one().unwrap();
    packet.append(14 + 20 + 12 + 9).unwrap().fill(0);
    packet.data_mut()[46..].copy_from_slice(b"123456789");
    packet.set_offload(&Offload { checksum: Some(L4Checksum::Sctp), l2_len: 14, l3_len: 20, ..Offload::default() });
    packet.complete_checksum();
    let mut crc = !0_u32;
    for byte in [&[0; 12][..], b"123456789"].concat() {
        crc = (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 });
    }
    assert_eq!(packet.data()[42..46], (!crc).to_le_bytes());
}
