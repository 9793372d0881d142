//! Entry points of the fuzz targets; the property tests below run the same code. None may panic, and no request may be lost.

use crate::connection::{Connection, ConnectionConfig, ConnectionError, Pending, Timeouts};
use crate::disk::parse_targets;
use crate::io::{MemoryStream, Pieces};
use crate::login::{Auth, DigestPolicy, LoginConfig};
use crate::lun::Probe;
use crate::pdu::{self, Bhs, Lun};
use crate::scsi::{self, Sense};
use crate::target::{Faults, MemoryStore, ServerConnection, Target, TargetConfig, TargetConnection, Unit};
use crate::text;
use block::{BlockRequest, Completions, Op, Request};
use clock::Cycles;
use memory::IoBuffers;
use std::sync::Arc;

/// Every parser, on the same bytes.
pub fn fuzz_parsers(bytes: &[u8]) {
    if let Some(bhs) = Bhs::from_slice(bytes) {
        let _ = pdu::Login::decode(&bhs).map(|login| login.encode_response());
        let _ = (pdu::ScsiCommand::decode(&bhs).encode(), pdu::ScsiResponse::decode(&bhs).encode());
        let _ = (pdu::DataIn::decode(&bhs).encode(), pdu::DataOut::decode(&bhs).encode());
        let _ = (pdu::R2t::decode(&bhs), pdu::Nop::decode(&bhs), pdu::AsyncMessage::decode(&bhs));
    }
    text::parse(bytes).flatten().for_each(|(_, value)| drop((text::number(value), text::binary(value))));
    let _ = (parse_targets(bytes), scsi::decode_luns(bytes), scsi::best_designator(bytes));
    let _ = (Sense::decode(bytes), Sense::from_segment(bytes), scsi::BlockLimits::decode(bytes));
    let mut probe = Probe::new(Lun(0), None);
    for answer in bytes.split(|b| *b == 0xa5) {
        let answer = if answer.len() == 3 { Err(Sense::decode(answer)) } else { Ok(answer) };
        if probe.on_answer(answer).is_err() {
            break;
        }
    }
}

/// A target under any bytes.
pub fn fuzz_target(bytes: &[u8]) {
    let mut connection = TargetConnection::new(disk(), Faults::default(), 1);
    for piece in bytes.chunks(97) {
        connection.receive(piece, Cycles(1));
        take_output(&mut connection);
    }
}

/// A whole session: an honest target whose answers are tampered with, as `bytes` say. The first byte of each triple says how
/// far the stream runs before the next tampering; the others are where in the next piece and what is put there.
pub fn fuzz_session(bytes: &[u8]) {
    let (Some(&mode), tampering) = (bytes.first(), bytes.get(1..).unwrap_or(&[])) else { return };
    let (stream, mut pieces, mut done) = (MemoryStream::default(), Pieces::new(), Completions::default());
    let mut connection = Connection::new(config(mode), Cycles(1));
    let mut target = TargetConnection::new(disk(), Faults::default(), 1);
    let mut submitted = 0;
    for (step, triple) in tampering.chunks_exact(3).enumerate() {
        for quiet in 0..=usize::from(triple[0] % 8) {
            let now = Cycles(2 + step as u64 * 8 + quiet as u64);
            if connection.is_ready() && submitted < 40 {
                let op = [Op::Read, Op::Write, Op::Flush, Op::Discard][submitted % 4];
                connection.submit(Pending { request: request(op), since: now, done: 0 });
                submitted += 1;
            }
            if end(connection.turn(&stream, &mut pieces, now, &mut done)) {
                return finish(connection, done, submitted);
            }
            target.receive(&stream.take_sent(), now);
            let mut answer = take_output(&mut target);
            if quiet == usize::from(triple[0] % 8) && !answer.is_empty() {
                let at = usize::from(triple[1]) % answer.len();
                answer[at] ^= triple[2];
            }
            stream.push(&answer);
        }
    }
    finish(connection, done, submitted);
}

fn end(result: Result<usize, ConnectionError>) -> bool {
    result.is_err()
}

/// Every request is either done or taken back.
fn finish(mut connection: Connection, mut done: Completions, submitted: usize) {
    let requests = connection.take_requests(&mut done);
    assert_eq!(done.drain().count() + requests.len(), submitted, "a request is lost");
    for (pending, _) in requests {
        pending.request.abandon();
    }
}

fn take_output(target: &mut TargetConnection) -> Vec<u8> {
    let bytes = target.output().to_vec();
    target.consume(bytes.len());
    bytes
}

fn disk() -> Arc<Target> {
    let target = Target::new(TargetConfig::new("iqn.t"));
    let store = Arc::new(MemoryStore::new(65_536));
    target.insert_unit(Lun(0), Arc::new(Unit::new(store, 512, false, 1)));
    Arc::new(target)
}

fn request(op: Op) -> BlockRequest {
    let mut request = Request::new(IoBuffers::anonymous(8192).expect("memory"));
    request.op = op;
    request.len = if op == Op::Flush { 0 } else { 8192 };
    BlockRequest::new(request)
}

fn config(mode: u8) -> ConnectionConfig {
    let policy = |on| if on { DigestPolicy::Prefer } else { DigestPolicy::None };
    let long = Cycles(1 << 40);
    ConnectionConfig {
        login: LoginConfig {
            initiator_iqn: "iqn.i".into(),
            target_iqn: (mode & 4 == 0).then(|| "iqn.t".into()),
            isid: [0x80, 0, 0, 0, 0, 0],
            auth: Auth::default(),
            header_digest: policy(mode & 1 != 0),
            data_digest: policy(mode & 2 != 0),
            challenge: [0; 33],
            segment_limit: 8192,
        },
        lun: Lun(0),
        depth: 4,
        timeouts: Timeouts {
            bring_up: long,
            task: Cycles(1000),
            abort: Cycles(1000),
            ping_interval: Cycles(100),
            ping: Cycles(1000),
            retry: Cycles(1),
        },
        known: None,
        fence: None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_parser_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::fuzz_parsers(&bytes);
        }

        #[test]
        fn no_bytes_upset_the_target(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            super::fuzz_target(&bytes);
        }

        #[test]
        fn no_tampering_loses_a_request(bytes in proptest::collection::vec(any::<u8>(), 100..400)) {
            super::fuzz_session(&bytes);
        }
    }
}
