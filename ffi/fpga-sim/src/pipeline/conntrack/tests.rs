//! What connections say of packets.

use super::super::{
    Action, Domain, Layer, Limits, Pattern, Pipeline, Rule, Shared, SharedKind, Source, key::field, parse::protocol,
};
use super::Direction::{Original, Reply};
use super::*;
use control::{ACK, FIN, RST, SYN, URG};
use judged::{BAD, CHANGED, DISABLED, INVALID, VALID};
use proptest::prelude::*;
use std::time::Duration;

/// A segment: control bits, sequence number, acknowledgment, window, options and length of the payload.
#[derive(Clone, Copy, Debug)]
struct Tcp {
    control: u8,
    seq: u32,
    ack: u32,
    window: u16,
    options: &'static [u8],
    payload: usize,
}

fn tcp(control: u8, seq: u32, ack: u32, payload: usize) -> Tcp {
    Tcp { control, seq, ack, window: 1000, options: &[], payload }
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)));
    (words.sum::<u64>() % 0xffff) as u16
}

impl Tcp {
    /// Its packet of IPv4 or IPv6.
    fn over(self, version: u8) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let len = (header_len + self.payload) as u16;
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let addresses = if version == 4 {
            bytes.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol::TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            bytes[16..18].copy_from_slice(&(20 + len).to_be_bytes());
            let checksum = !sum(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
            bytes[26..34].to_vec()
        } else {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol::TCP, 64]);
            bytes[18..20].copy_from_slice(&len.to_be_bytes());
            bytes.extend([0xfd; 32]);
            vec![0xfd; 32]
        };
        let start = bytes.len();
        bytes.extend([0x30, 0x39, 0, 80]);
        bytes.extend([self.seq.to_be_bytes(), self.ack.to_be_bytes()].concat());
        bytes.extend([(header_len as u8 / 4) << 4, self.control]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.options);
        bytes.extend(vec![0x55; self.payload]);
        let pseudo = [&addresses[..], &[0, protocol::TCP], &len.to_be_bytes(), &bytes[start..]].concat();
        let checksum = !sum(&pseudo);
        bytes[start + 16..start + 18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

fn sender(sent_end: u32, reply_end: u32) -> Sender {
    Sender { sent_end, reply_end, max_win: 1000, ..Sender::default() }
}

/// A connection whose SYN had number 99 and its answer 499; both offer 1000 bytes.
fn answered() -> Connection {
    Connection {
        peer_port: 0,
        direction: Original,
        enabled: true,
        live: false,
        selective_ack: false,
        challenge_ack_passed: false,
        liberal: false,
        state: State::SynRecv,
        max_ack_window: 0,
        retransmission_limit: 2,
        original: Sender { last_ack_seen: true, ..sender(100, 1100) },
        reply: Sender { data_unacked: true, max_ack: 100, ..sender(500, 1500) },
        last: Last::default(),
        retransmissions: 0,
    }
}

/// The same when both have sent 100 bytes.
fn established() -> Connection {
    let mut connection = answered();
    for (direction, segment) in
        [(Original, tcp(ACK, 100, 500, 100)), (Reply, tcp(ACK, 500, 200, 100)), (Original, tcp(ACK, 200, 600, 0))]
    {
        assert_eq!(judge(&mut connection, direction, segment) & VALID, VALID);
    }
    assert_eq!((connection.state, connection.live), (State::Established, true));
    connection
}

fn judge(connection: &mut Connection, direction: Direction, segment: Tcp) -> u8 {
    connection.judge(direction, &segment.over(4))
}

#[test]
fn a_connection_opens_carries_data_both_ways_and_closes() {
    let mut connection = answered();
    for (direction, segment, said, state) in [
        // The handshake comes again before it is over.
        (Original, tcp(SYN, 99, 0, 0), VALID, State::SynRecv),
        (Reply, tcp(SYN | ACK, 499, 100, 0), VALID, State::SynRecv),
        (Original, tcp(ACK, 100, 500, 0), VALID | CHANGED, State::Established),
        (Reply, tcp(SYN | ACK, 499, 100, 0), VALID, State::Established),
        (Original, tcp(ACK, 100, 500, 100), VALID, State::Established),
        (Reply, tcp(ACK, 500, 200, 300), VALID, State::Established),
        // A first FIN; what it does not wait for is no answer to it.
        (Original, tcp(FIN | ACK, 200, 800, 10), VALID | CHANGED, State::FinWait),
        (Reply, tcp(ACK, 800, 210, 5), VALID, State::FinWait),
        (Reply, tcp(ACK, 805, 211, 5), VALID | CHANGED, State::CloseWait),
        (Original, tcp(ACK, 211, 810, 0), VALID, State::CloseWait),
        (Reply, tcp(FIN | ACK, 810, 211, 0), VALID | CHANGED, State::LastAck),
        (Original, tcp(ACK, 211, 810, 0), VALID, State::LastAck),
        (Original, tcp(ACK, 211, 811, 0), VALID | CHANGED, State::TimeWait),
        (Reply, tcp(FIN | ACK, 810, 211, 0), VALID, State::TimeWait),
        (Original, tcp(SYN, 300, 0, 0), INVALID, State::TimeWait),
    ] {
        assert_eq!((judge(&mut connection, direction, segment), connection.state), (said, state), "{segment:?}");
    }
    let Connection { original, reply, last, live, .. } = &connection;
    assert_eq!((original.sent_end, original.max_ack, reply.sent_end, reply.max_ack), (211, 811, 811, 211));
    assert!(
        *live && original.close_initiated && reply.close_initiated && original.last_ack_seen && reply.last_ack_seen
    );
    assert!(!original.data_unacked && !reply.data_unacked);
    let fin = Last { direction: Reply, kind: Some(Kind::Fin), window: 1000, seq: 810, ack: 211, end: 811 };
    assert_eq!(*last, fin);
}

#[test]
fn both_ends_may_close_at_once() {
    let mut connection = established();
    assert_eq!(judge(&mut connection, Reply, tcp(FIN | ACK, 600, 200, 0)), VALID | CHANGED);
    assert_eq!(judge(&mut connection, Original, tcp(FIN | ACK, 200, 600, 0)), VALID | CHANGED);
    assert_eq!(connection.state, State::LastAck);
    assert_eq!(judge(&mut connection, Reply, tcp(ACK, 601, 201, 0)), VALID, "the other FIN is not acknowledged");
    assert_eq!(judge(&mut connection, Original, tcp(ACK, 201, 601, 0)), VALID | CHANGED);
    assert_eq!(connection.state, State::TimeWait);

    let mut connection = established();
    judge(&mut connection, Original, tcp(FIN | ACK, 200, 600, 0));
    judge(&mut connection, Reply, tcp(FIN | ACK, 600, 201, 0));
    assert_eq!(connection.state, State::LastAck);
    assert_eq!(judge(&mut connection, Original, tcp(ACK, 201, 601, 0)), VALID | CHANGED);
    assert_eq!(connection.state, State::TimeWait);
}

#[test]
fn segments_out_of_window_are_invalid_and_change_nothing() {
    // Original has sent up to 200 and may up to 1200; reply has sent up to 600, and both take 1000 bytes.
    for (inside, outside) in [
        (tcp(ACK, 1200, 600, 10), tcp(ACK, 1201, 600, 10)),
        (tcp(ACK, 200u32.wrapping_sub(1010), 600, 10), tcp(ACK, 200u32.wrapping_sub(1011), 600, 10)),
        (tcp(ACK, 200, 600, 10), tcp(ACK, 200, 601, 10)),
        (tcp(ACK, 200, 600u32.wrapping_sub(0xffff), 10), tcp(ACK, 200, 600u32.wrapping_sub(0x1_0000), 10)),
    ] {
        let mut connection = established();
        let before = connection.clone();
        assert_eq!(judge(&mut connection, Original, outside), INVALID, "{outside:?}");
        assert_eq!(connection, before);
        assert_eq!(judge(&mut connection, Original, inside), VALID, "{inside:?}");
        // Whatever the numbers are, if only the state is followed.
        connection.liberal = true;
        assert_eq!(judge(&mut connection, Original, outside), VALID);
    }
    let mut connection = established();
    connection.max_ack_window = 1;
    let late = tcp(ACK, 200, 600u32.wrapping_sub(0x1_fffe), 10);
    assert_eq!(judge(&mut connection, Original, late), VALID);
    assert_eq!(judge(&mut connection, Original, Tcp { ack: late.ack - 1, ..late }), INVALID);
}

#[test]
fn windows_are_scaled_open_with_acks_and_close() {
    let mut connection = established();
    connection.reply.scale = Some(3);
    assert_eq!(judge(&mut connection, Reply, Tcp { window: 500, ..tcp(ACK, 600, 200, 0) }), VALID);
    assert_eq!((connection.original.reply_end, connection.reply.max_win), (200 + 4000, 4000));
    assert_eq!(judge(&mut connection, Original, tcp(ACK, 4200, 600, 0)), VALID);
    assert_eq!(judge(&mut connection, Original, tcp(ACK, 4201, 600, 0)), INVALID);
    // A handshake's end that comes again offers what it says.
    assert_eq!(judge(&mut connection, Reply, Tcp { window: 60000, ..tcp(SYN | ACK, 599, 200, 0) }), VALID);
    assert_eq!(connection.reply.max_win, 60000);

    // A closed window lets one byte through that asks.
    let mut connection = established();
    connection.original.reply_end = 200;
    assert_eq!(judge(&mut connection, Reply, Tcp { window: 0, ..tcp(ACK, 600, 200, 0) }), VALID);
    assert_eq!(connection.original.reply_end, 201);
}

#[test]
fn sequence_numbers_wrap() {
    let mut connection = established();
    connection.original = Sender { max_ack: 600, ..sender(u32::MAX - 9, 990) };
    connection.reply.max_ack = u32::MAX - 9;
    assert_eq!(judge(&mut connection, Original, tcp(ACK, u32::MAX - 9, 600, 100)), VALID);
    assert_eq!(judge(&mut connection, Reply, tcp(ACK, 600, 90, 0)), VALID);
    assert_eq!((connection.original.sent_end, connection.reply.max_ack), (90, 90));
    assert_eq!(connection.original.reply_end, 1090);
}

#[test]
fn selective_acknowledgments_count_if_they_are_on() {
    const OF_700: &[u8] = &[1, 1, 5, 10, 0, 0, 2, 0x8a, 0, 0, 2, 0xbc, 0, 0, 0, 0];
    let segment = Tcp { options: OF_700, ..tcp(ACK, 200, 600, 0) };
    let mut connection = established();
    assert_eq!(judge(&mut connection, Original, segment), VALID, "they are not looked at");
    connection.selective_ack = true;
    assert_eq!(judge(&mut connection, Original, segment), INVALID, "700 was never sent");
    assert_eq!(judge(&mut connection, Reply, tcp(ACK, 650, 200, 50)), VALID);
    assert_eq!(judge(&mut connection, Original, segment), VALID);
    assert_eq!((connection.reply.reply_end, connection.original.max_win), (1700, 1100));
    const CUT: &[u8] = &[5, 40, 0, 0];
    assert_eq!(judge(&mut connection, Original, Tcp { options: CUT, ..tcp(ACK, 200, 600, 0) }), VALID);
}

#[test]
fn a_reset_ends_a_connection_where_the_receiver_waits() {
    // Reply has acknowledged 200, and original sends on up to 300, which is not acknowledged.
    let sending = || {
        let mut connection = established();
        judge(&mut connection, Reply, tcp(ACK, 600, 200, 0));
        judge(&mut connection, Original, tcp(ACK, 200, 600, 100));
        judge(&mut connection, Reply, tcp(ACK, 600, 200, 10));
        connection
    };
    let mut connection = sending();
    assert_eq!(judge(&mut connection, Original, tcp(RST, 199, 0, 0)), INVALID, "was received already");
    assert_eq!(judge(&mut connection, Original, tcp(RST, 200, 0, 0)), VALID | CHANGED);
    assert_eq!((connection.state, connection.last.kind), (State::TimeWait, Some(Kind::Rst)));
    assert_eq!(judge(&mut sending(), Original, tcp(RST | ACK, 200, 0, 0)), VALID | CHANGED, "it acknowledges nothing");

    // Another one has the receiver ask whether it is meant, as RFC 5961 says.
    let mut connection = sending();
    assert_eq!(judge(&mut connection, Original, tcp(RST, 250, 0, 0)), VALID);
    assert_eq!((connection.state, connection.challenge_ack_passed), (State::Established, false));
    assert_eq!(judge(&mut connection, Reply, tcp(ACK, 610, 200, 0)), VALID);
    assert!(connection.challenge_ack_passed);
    assert_eq!(judge(&mut connection, Original, tcp(RST, 200, 0, 0)), VALID | CHANGED);

    // One that follows what its sender has just sent is meant.
    let mut connection = sending();
    judge(&mut connection, Original, tcp(ACK, 300, 610, 50));
    assert_eq!(judge(&mut connection, Original, tcp(RST, 350, 0, 0)), VALID | CHANGED);
    let mut connection = Connection { liberal: true, ..sending() };
    assert_eq!(judge(&mut connection, Original, tcp(RST, 1_000_000, 0, 0)), VALID | CHANGED);
}

#[test]
fn retransmissions_are_limited_and_acks_are_not() {
    let mut connection = established();
    let data = tcp(ACK, 200, 600, 10);
    let said: Vec<u8> = (0..4).map(|_| judge(&mut connection, Original, data)).collect();
    assert_eq!(said, [VALID, VALID, VALID, INVALID], "it is valid, and may come again twice");
    assert_eq!(judge(&mut connection, Reply, tcp(ACK, 600, 200, 0)), VALID);
    assert_eq!(judge(&mut connection, Original, data), VALID, "something else was between");
    assert!((0..10).all(|_| judge(&mut connection, Reply, tcp(ACK, 600, 200, 0)) == VALID));
    connection.liberal = true;
    assert!((0..10).all(|_| judge(&mut connection, Original, data) == VALID));
}

#[test]
fn incomplete_segments_are_bad() {
    let good = tcp(ACK, 200, 600, 10);
    let bad = |change: &dyn Fn(&mut Vec<u8>)| {
        [4, 6].map(|version| {
            let (mut connection, mut bytes) = (established(), good.over(version));
            change(&mut bytes);
            connection.judge(Original, &bytes)
        })
    };
    assert_eq!(bad(&|_| ()), [VALID; 2]);
    assert_eq!(bad(&|bytes| bytes.extend([0; 20])), [VALID; 2], "padding is not of the segment");
    assert_eq!(bad(&|bytes| *bytes.last_mut().unwrap() ^= 1), [BAD; 2], "the checksum is wrong");
    assert_eq!(bad(&|bytes| bytes.truncate(bytes.len() - 1)), [BAD; 2], "it is not whole");
    let offset = |len: u8| {
        move |bytes: &mut Vec<u8>| {
            let at = bytes.len() - 30 + 12;
            bytes[at] = len << 4;
        }
    };
    assert_eq!((bad(&offset(4)), bad(&offset(15))), ([BAD; 2], [BAD; 2]));
    for control in [0, SYN | FIN, SYN | RST, FIN, FIN | RST, URG, RST | URG, SYN | ACK | URG] {
        assert_eq!(judge(&mut established(), Original, Tcp { control, ..good }), BAD, "{control:#x}");
    }
    let over = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = good.over(4);
        change(&mut bytes);
        bytes[24..26].fill(0);
        let checksum = !sum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        established().judge(Original, &bytes)
    };
    assert_eq!(over(&|_| ()), VALID);
    assert_eq!(over(&|bytes| bytes[20] = 0x20), BAD, "the first of several fragments");
    assert_eq!(over(&|bytes| bytes[23] = protocol::UDP), BAD, "not TCP");
    assert_eq!(over(&|bytes| bytes[17] = 30), BAD, "no room for a header");
    let mut bytes = good.over(4);
    bytes[22] -= 1;
    assert_eq!(established().judge(Original, &bytes), BAD, "the checksum of IPv4 is wrong");

    let mut off = Connection { enabled: false, ..established() };
    let before = off.clone();
    assert_eq!((off.judge(Original, &good.over(4)), off.judge(Original, &Vec::new())), (DISABLED, DISABLED));
    assert_eq!(off, before);
}

#[test]
fn later_groups_match_the_conntrack_state() {
    let mut pipeline = Pipeline::new(Limits::default());
    let id = pipeline.share(0, Shared::Conntrack(Box::new(established())));
    let rule = |group, priority, pattern, actions: &[Action]| {
        let (owner, domain, actions) = (0, Domain::Transfer, actions.into());
        Rule { owner, domain, group, priority, pattern, actions, counts: true, age: None }
    };
    let judging = [Action::Shared(SharedKind::Conntrack, id), Action::Jump(1)];
    let mut from_original = Pattern::default();
    from_original.want(Layer::Outer, field::L3, &[4], &[0xff]);
    let original = pipeline.insert(rule(0, 0, from_original, &judging), Duration::ZERO).unwrap();
    pipeline.connection(id).unwrap().direction = Reply;
    let mut from_reply = Pattern::default();
    from_reply.want(Layer::Outer, field::L3, &[6], &[0xff]);
    pipeline.insert(rule(0, 0, from_reply, &judging), Duration::ZERO).unwrap();
    let counts: Vec<_> = [0, VALID, INVALID, VALID | CHANGED]
        .into_iter()
        .map(|said| {
            let mut pattern = Pattern::default();
            pattern.want(Layer::Outer, field::CONNTRACK, &[said], &[0xff]);
            pipeline.insert(rule(1, 0, pattern, &[Action::Drop]), Duration::ZERO).unwrap()
        })
        .collect();
    let mut send = |segment: Tcp, version| {
        pipeline.process(&mut segment.over(version), Source::Represented(0), Duration::ZERO);
        let packets =
            |id: &u64| pipeline.rules.get(*id).unwrap().tally.clone().show(Duration::ZERO, Duration::ZERO).packets;
        counts.iter().map(packets).collect::<Vec<_>>()
    };
    assert_eq!(send(tcp(ACK, 200, 600, 10), 4), [0, 1, 0, 0]);
    assert_eq!(send(tcp(ACK, 600, 210, 10), 6), [0, 2, 0, 0], "each rule has the direction of when it was made");
    assert_eq!(send(tcp(ACK, 210, 700, 10), 4), [0, 2, 1, 0]);
    assert_eq!(send(tcp(FIN | ACK, 210, 610, 0), 4), [0, 2, 1, 1]);
    assert!(pipeline.unshare(id).is_err());
    assert_eq!(pipeline.connection(id).unwrap().state, State::FinWait);
    let seen = pipeline.connection(id).unwrap().clone();
    assert_eq!((seen.original.sent_end, seen.reply.sent_end), (211, 610));
    pipeline.connection(id).unwrap().set_state(Connection { direction: Original, ..established() });
    assert_eq!(pipeline.connection(id).unwrap().direction, seen.direction, "that is changed by itself");
    assert!(pipeline.remove(original));
    pipeline.reset();
    assert!(pipeline.connection(id).is_none());
}

proptest! {
    /// Whatever comes, and wherever the connection is, nothing overflows, and what is not valid changes nothing.
    #[test]
    fn only_valid_packets_change_a_connection(
        ends in any::<[[u32; 4]; 2]>(),
        scale in prop::option::of(0u8..15),
        segments in prop::collection::vec(
            (any::<bool>(), prop::sample::select(vec![SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, 0]), any::<u32>(), any::<u32>(), any::<u16>()),
            1..20,
        ),
        liberal in any::<bool>(),
    ) {
        let end = |[sent_end, reply_end, max_win, max_ack]: [u32; 4]| {
            Sender { scale, sent_end, reply_end, max_win: max_win.min(MAX_WINDOW), max_ack, ..Sender::default() }
        };
        let mut connection = Connection { liberal, original: end(ends[0]), reply: end(ends[1]), ..answered() };
        for (original, control, seq, ack, window) in segments {
            let before = connection.clone();
            let direction = if original { Original } else { Reply };
            let said = judge(&mut connection, direction, Tcp { window, ..tcp(control, seq, ack, 10) });
            prop_assert!(judged::ALL[1..].contains(&said));
            prop_assert_eq!(said & CHANGED != 0, connection.state != before.state);
            if said & VALID == 0 {
                prop_assert_eq!(connection, before.clone());
                connection = before;
            }
        }
    }
}
