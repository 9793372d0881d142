//! The transport's difficult cases, against answers written by hand.

use super::*;
use crate::digest::crc32c;
use crate::io::Pieces;
use crate::pdu::{self, CommonHeader, PduType, Transfer, flags};
use crate::spec::{NvmeStatus, admin, nvm};

#[derive(Debug)]
struct Buffers(Option<IoBuffers>);

impl Payload for Buffers {
    fn buffers(&self) -> Option<&IoBuffers> {
        self.0.as_ref()
    }
}

const NONE: Digests = Digests { header: false, data: false };
const BOTH: Digests = Digests { header: true, data: true };
const NOW: Cycles = Cycles(1000);

/// A queue and the hand that answers it.
struct Bench {
    queue: QueuePair<Buffers>,
    pieces: Pieces,
    digests: Digests,
    sent: Vec<u8>,
}

/// A PDU that the queue sent.
struct Sent {
    common: CommonHeader,
    bytes: Vec<u8>,
}

impl Sent {
    fn data(&self) -> &[u8] {
        &self.bytes[self.common.data_offset..self.common.data_offset + self.common.data_len()]
    }
}

impl Bench {
    fn new(digests: Digests, in_capsule_len: u32) -> Bench {
        Bench::greeted(digests, in_capsule_len, IcResp { version: 0, cpda: 0, digests, max_h2c_data: 8192 })
    }

    fn greeted(digests: Digests, in_capsule_len: u32, response: IcResp) -> Bench {
        let mut bench = Bench::raw(digests, in_capsule_len);
        bench.receive(&ic_resp(response)).unwrap();
        bench
    }

    /// After ICReq, before ICResp.
    fn raw(digests: Digests, in_capsule_len: u32) -> Bench {
        let queue = QueuePair::new(QueueConfig { entries: 9, digests, in_capsule_len });
        let mut bench = Bench { queue, pieces: Pieces::new(), digests, sent: Vec::new() };
        bench.send_all();
        assert_eq!(bench.sent[0], PduType::IcReq as u8);
        bench.sent.clear();
        bench
    }

    fn submit(&mut self, opcode: u8, len: usize) -> u16 {
        let blocks = (len / 512).max(1) as u32;
        let sqe = if opcode == nvm::FLUSH { Sqe::new(opcode, 1) } else { Sqe::io(opcode, 1, 0, blocks) };
        let buffers = (len > 0).then(|| IoBuffers::anonymous(len).unwrap());
        if let Some(buffers) = &buffers {
            buffers.write(0, &content(len)).unwrap();
        }
        let data = if len > 0 { Data::Buffers { offset: 0, len: len as u32 } } else { Data::None };
        self.queue.submit(sqe, data, Buffers(buffers), NOW).unwrap()
    }

    /// Lists without sending.
    fn list(&mut self) -> usize {
        self.queue.gather(&mut self.pieces).len()
    }

    fn send_all(&mut self) {
        while self.queue.wants_to_send() {
            let taken = self.queue.gather(&mut self.pieces).copy_to(&mut self.sent, usize::MAX >> 1);
            if taken == 0 {
                break;
            }
            self.queue.sent(taken);
        }
    }

    /// The PDUs sent since last asked, digests verified.
    fn pdus(&mut self) -> Vec<Sent> {
        self.send_all();
        let mut rest = self.sent.as_slice();
        let mut pdus = Vec::new();
        while !rest.is_empty() {
            let common = CommonHeader::parse(rest, self.digests, 1 << 24).unwrap();
            common.verify(rest).unwrap();
            let sent = Sent { common, bytes: rest[..common.len].to_vec() };
            if self.digests.data && common.has_data() {
                assert_eq!(sent.bytes[common.len - 4..], crc32c(sent.data()).to_le_bytes());
            }
            pdus.push(sent);
            rest = &rest[common.len..];
        }
        self.sent.clear();
        pdus
    }

    fn receive(&mut self, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        while !bytes.is_empty() {
            let taken = self.queue.scatter(&mut self.pieces).copy_from(bytes);
            self.queue.received(taken)?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn respond(&mut self, cid: u16, status: NvmeStatus) -> Result<(), ProtocolError> {
        let pdu = response(self.digests, cid, status);
        self.receive(&pdu)
    }

    fn r2t(&mut self, cid: u16, tag: u16, offset: u32, len: u32) -> Result<(), ProtocolError> {
        let mut out = [0; 64];
        let head = Transfer { cid, tag, offset, len }.put(&mut out, PduType::R2t, 0, self.digests, 4);
        self.receive(&out[..head])
    }

    fn outcome(&mut self) -> Option<Outcome> {
        self.queue.pop_completion().map(|completion| completion.outcome)
    }

    fn succeeded(&mut self) -> bool {
        matches!(self.outcome(), Some(Outcome::Answered(cqe)) if cqe.status().is_success())
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 256) as u8).collect()
}

fn ic_resp(response: IcResp) -> Vec<u8> {
    let mut out = [0; 128];
    let len = response.put(&mut out);
    out[..len].to_vec()
}

fn response(digests: Digests, cid: u16, status: NvmeStatus) -> Vec<u8> {
    let mut out = [0; 64];
    let len = pdu::put_capsule_resp(&mut out, &Cqe::new(cid, status, 0, 0), digests);
    out[..len].to_vec()
}

fn c2h(digests: Digests, cid: u16, offset: u32, data: &[u8], bits: u8, alignment: usize) -> Vec<u8> {
    let mut out = vec![0; 512];
    let transfer = Transfer { cid, tag: 0, offset, len: data.len() as u32 };
    let head = transfer.put(&mut out, PduType::C2hData, bits, digests, alignment);
    out.truncate(head);
    out.extend_from_slice(data);
    if digests.data {
        out.extend_from_slice(&crc32c(data).to_le_bytes());
    }
    out
}

const LAST: u8 = flags::LAST;
const LAST_SUCCESS: u8 = flags::LAST | flags::SUCCESS;

#[test]
fn in_capsule_data_uses_an_offset_sgl_and_other_data_a_transport_sgl() {
    let mut bench = Bench::new(NONE, 4096);
    bench.submit(nvm::WRITE, 4096);
    bench.submit(nvm::WRITE, 4608);
    bench.submit(nvm::READ, 512);
    bench.submit(nvm::FLUSH, 0);
    let pdus = bench.pdus();
    let pointers: Vec<DataPointer> = pdus.iter().map(|pdu| pdu::capsule_sqe(&pdu.bytes).data()).collect();
    let expected = [
        DataPointer::InCapsule { offset: 0, len: 4096 },
        DataPointer::Transport { len: 4608 },
        DataPointer::Transport { len: 512 },
        DataPointer::Transport { len: 0 },
    ];
    assert_eq!(pointers, expected);
    assert_eq!(pdus[0].data(), content(4096));
    assert!(pdus[1..].iter().all(|pdu| !pdu.common.has_data() && pdu.common.len == 72));
}

#[test]
fn pdo_follows_cpda_and_digests_cover_header_and_data() {
    for cpda in 0..32 {
        let response = IcResp { version: 0, cpda, digests: BOTH, max_h2c_data: 4096 };
        let mut bench = Bench::greeted(BOTH, 512, response);
        bench.submit(nvm::WRITE, 512);
        let pdus = bench.pdus();
        assert_eq!(pdus[0].common.data_offset % ((usize::from(cpda) + 1) * 4), 0, "CPDA {cpda}");
        assert_eq!(pdus[0].data(), content(512));
    }
}

#[test]
fn padding_of_the_target_is_skipped() {
    for alignment in [4, 32, 128] {
        let mut bench = Bench::new(BOTH, 0);
        let cid = bench.submit(nvm::READ, 512);
        bench.send_all();
        bench.receive(&c2h(BOTH, cid, 0, &[7; 512], LAST_SUCCESS, alignment)).unwrap();
        assert!(bench.succeeded());
    }
}

#[test]
fn an_r2t_is_split_by_maxh2cdata_with_last_on_the_final_pdu_only() {
    let mut bench = Bench::new(NONE, 0);
    let cid = bench.submit(nvm::WRITE, 20_480);
    bench.pdus();
    bench.r2t(cid, 5, 0, 20_480).unwrap();
    let pdus = bench.pdus();
    let shape: Vec<(usize, bool)> =
        pdus.iter().map(|pdu| (pdu.common.data_len(), pdu.common.flags & flags::LAST != 0)).collect();
    assert_eq!(shape, [(8192, false), (8192, false), (4096, true)]);
    let data: Vec<u8> = pdus.iter().flat_map(|pdu| pdu.data().to_vec()).collect();
    assert_eq!(data, content(20_480));
}

/// Linux' target computes the data digest over the whole command: it accepts one PDU an R2T only.
#[test]
fn with_a_data_digest_an_r2t_is_one_pdu_where_maxh2cdata_allows() {
    let response = IcResp { version: 0, cpda: 0, digests: BOTH, max_h2c_data: 4 << 20 };
    let mut bench = Bench::greeted(BOTH, 0, response);
    for len in [131_072, 1 << 20] {
        let cid = bench.submit(nvm::WRITE, len);
        bench.pdus();
        bench.r2t(cid, 5, 0, len as u32).unwrap();
        let pdus = bench.pdus();
        assert_eq!((pdus.len(), pdus[0].common.flags & flags::LAST), (1, flags::LAST));
        assert!(pdus[0].data() == content(len));
    }
}

#[test]
fn a_maxh2cdata_below_4096_is_refused() {
    for max_h2c_data in [0, 4092, 4098] {
        let mut bench = Bench::raw(NONE, 0);
        let error = bench.receive(&ic_resp(IcResp { version: 0, cpda: 0, digests: NONE, max_h2c_data })).unwrap_err();
        assert!(matches!(error, ProtocolError::Unsupported { field: "MAXH2CDATA", .. }), "{error}");
    }
}

#[test]
fn each_wrong_r2t_is_refused() {
    let start = || {
        let mut bench = Bench::new(NONE, 0);
        let cid = bench.submit(nvm::WRITE, 8192);
        bench.pdus();
        (bench, cid)
    };
    let (mut bench, cid) = start();
    assert!(matches!(bench.r2t(cid, 1, 4, 512), Err(ProtocolError::DataOutOfRange { expected: 0, .. })));
    let (mut bench, cid) = start();
    assert!(matches!(bench.r2t(cid, 1, 0, 0), Err(ProtocolError::InvalidField { field: "R2TL", .. })));
    let (mut bench, cid) = start();
    assert!(matches!(bench.r2t(cid, 1, 0, 8196), Err(ProtocolError::DataOutOfRange { expected: 8192, .. })));
    let (mut bench, _) = start();
    let read = bench.submit(nvm::READ, 512);
    bench.pdus();
    assert!(matches!(bench.r2t(read, 1, 0, 512), Err(ProtocolError::Sequence { .. })));
    let (mut bench, cid) = start();
    assert!(matches!(bench.r2t(cid ^ 1, 1, 0, 512), Err(ProtocolError::Sequence { .. })));
}

#[test]
fn several_r2ts_are_served_in_order_with_their_tags() {
    let mut bench = Bench::new(NONE, 0);
    let cid = bench.submit(nvm::WRITE, 4096);
    bench.pdus();
    for i in 0..4 {
        bench.r2t(cid, 100 + i, u32::from(i) * 1024, 1024).unwrap();
    }
    let transfers: Vec<Transfer> = bench.pdus().iter().map(|pdu| Transfer::parse(&pdu.bytes)).collect();
    let expected: Vec<Transfer> =
        (0..4).map(|i| Transfer { cid, tag: 100 + i, offset: u32::from(i) * 1024, len: 1024 }).collect();
    assert_eq!(transfers, expected);
    bench.respond(cid, NvmeStatus::SUCCESS).unwrap();
    assert!(bench.succeeded());
}

#[test]
fn more_r2ts_than_maxr2t_are_refused() {
    let mut bench = Bench::new(NONE, 0);
    let cid = bench.submit(nvm::WRITE, 8192);
    bench.pdus();
    for i in 0..MAX_R2T as u32 {
        bench.r2t(cid, 0, i * 512, 512).unwrap();
    }
    let error = bench.r2t(cid, 0, MAX_R2T as u32 * 512, 512).unwrap_err();
    assert_eq!(error, ProtocolError::R2tLimit { got: 5, limit: 4 });
}

#[test]
fn success_needs_last_and_no_response_follows_it() {
    let mut bench = Bench::new(NONE, 0);
    let cid = bench.submit(nvm::READ, 512);
    bench.pdus();
    let error = bench.receive(&c2h(NONE, cid, 0, &[1; 512], flags::SUCCESS, 4)).unwrap_err();
    assert!(matches!(error, ProtocolError::Sequence { why: "SUCCESS without LAST", .. }));

    let mut bench = Bench::new(NONE, 0);
    let cid = bench.submit(nvm::READ, 512);
    bench.pdus();
    bench.receive(&c2h(NONE, cid, 0, &[1; 512], LAST_SUCCESS, 4)).unwrap();
    assert!(bench.succeeded());
    assert!(matches!(bench.respond(cid, NvmeStatus::SUCCESS), Err(ProtocolError::Sequence { .. })));
}

#[test]
fn data_comes_in_sequence_and_whole() {
    let start = || {
        let mut bench = Bench::new(NONE, 0);
        let cid = bench.submit(nvm::READ, 1024);
        bench.pdus();
        bench.receive(&c2h(NONE, cid, 0, &[1; 512], 0, 4)).unwrap();
        (bench, cid)
    };
    let (mut bench, cid) = start();
    assert!(matches!(bench.receive(&c2h(NONE, cid, 0, &[1; 512], LAST, 4)), Err(ProtocolError::DataOutOfRange { .. })));
    let (mut bench, cid) = start();
    assert!(matches!(
        bench.receive(&c2h(NONE, cid, 512, &[1; 516], LAST, 4)),
        Err(ProtocolError::DataOutOfRange { .. })
    ));
    let (mut bench, cid) = start();
    assert!(matches!(bench.respond(cid, NvmeStatus::SUCCESS), Err(ProtocolError::Sequence { .. })), "short read");
    let (mut bench, cid) = start();
    bench.respond(cid, NvmeStatus::INTERNAL_ERROR).unwrap();
    assert!(matches!(bench.outcome(), Some(Outcome::Answered(cqe)) if cqe.status().is(NvmeStatus::INTERNAL_ERROR)));
    let (mut bench, cid) = start();
    bench.receive(&c2h(NONE, cid, 512, &[2; 512], LAST, 4)).unwrap();
    assert!(bench.outcome().is_none(), "the response is still to come");
    assert!(matches!(bench.receive(&c2h(NONE, cid, 1024, &[2; 4], LAST, 4)), Err(ProtocolError::Sequence { .. })));
}

#[test]
fn a_response_before_our_send_completion_keeps_the_buffers() {
    let mut bench = Bench::new(NONE, 4096);
    let cid = bench.submit(nvm::WRITE, 4096);
    let listed = bench.list();
    assert!(listed > 4096);
    bench.respond(cid, NvmeStatus::SUCCESS).unwrap();
    assert!(bench.outcome().is_none(), "the buffers are still listed to be sent");
    bench.queue.sent(listed - 1);
    assert!(bench.outcome().is_none(), "one byte is still listed");
    bench.queue.sent(1);
    assert!(bench.succeeded());
}

#[test]
fn an_early_failure_drops_queued_data_at_a_pdu_boundary() {
    let mut bench = Bench::new(NONE, 0);
    let cid = bench.submit(nvm::WRITE, 1 << 20);
    bench.pdus();
    bench.r2t(cid, 9, 0, 1 << 20).unwrap();
    // Some PDUs are listed and the first is half sent when the failure comes.
    let listed = bench.list();
    let mut first = Vec::new();
    bench.queue.gather(&mut bench.pieces).copy_to(&mut first, 100);
    bench.queue.sent(100);
    bench.respond(cid, NvmeStatus::INTERNAL_ERROR).unwrap();
    bench.sent = first;
    let pdus = bench.pdus();
    assert!(pdus.len() < 128 && pdus.iter().all(|pdu| pdu.common.kind == PduType::H2cData), "whole PDUs, not all");
    assert!(pdus.iter().map(|pdu| pdu.bytes.len()).sum::<usize>() <= listed);
    assert!(matches!(bench.outcome(), Some(Outcome::Answered(_))));
}

#[test]
fn success_before_all_data_was_fetched_is_refused() {
    let mut bench = Bench::new(NONE, 0);
    let cid = bench.submit(nvm::WRITE, 8192);
    bench.pdus();
    assert!(matches!(bench.respond(cid, NvmeStatus::SUCCESS), Err(ProtocolError::Sequence { .. })));
}

#[test]
fn a_cid_is_not_reused_while_it_may_still_be_answered() {
    let mut bench = Bench::new(NONE, 0);
    let mut last = None;
    for _ in 0..200 {
        let cid = bench.submit(nvm::FLUSH, 0);
        assert_ne!(Some(cid), last, "generations tell commands of one slot apart");
        bench.pdus();
        bench.respond(cid, NvmeStatus::SUCCESS).unwrap();
        assert!(bench.succeeded());
        last = Some(cid);
    }
    let stale = last.unwrap();
    bench.submit(nvm::FLUSH, 0);
    bench.pdus();
    assert!(bench.respond(stale, NvmeStatus::SUCCESS).is_err(), "the answer to the old command meets no new one");
}

#[test]
fn a_data_digest_error_fails_its_command_and_no_other() {
    let mut bench = Bench::new(BOTH, 0);
    let (first, second) = (bench.submit(nvm::READ, 512), bench.submit(nvm::READ, 512));
    bench.pdus();
    let mut bad = c2h(BOTH, first, 0, &[1; 512], LAST_SUCCESS, 4);
    let at = bad.len() - 100;
    bad[at] ^= 1;
    bench.receive(&bad).unwrap();
    assert_eq!(bench.outcome(), Some(Outcome::DataDigestError));
    bench.receive(&c2h(BOTH, second, 0, &[1; 512], LAST_SUCCESS, 4)).unwrap();
    assert!(bench.succeeded());
}

#[test]
fn a_header_digest_error_ends_the_connection_with_a_terminate_request() {
    let mut bench = Bench::new(BOTH, 0);
    let cid = bench.submit(nvm::READ, 512);
    bench.pdus();
    let mut bad = response(BOTH, cid, NvmeStatus::SUCCESS);
    bad[10] ^= 1;
    let error = bench.receive(&bad).unwrap_err();
    assert!(matches!(error, ProtocolError::HeaderDigest { .. }));
    bench.queue.fail(&error);
    let pdus = bench.pdus();
    assert_eq!((pdus[0].common.kind, pdus[0].common.flags), (PduType::H2cTermReq, 0));
    assert_eq!(pdu::term_fields(&pdus[0].bytes).0, 3);
    assert_eq!(pdus[0].bytes[24..32], bad[..8], "it quotes the header");
}

#[test]
fn a_huge_plen_is_refused_at_the_common_header() {
    let mut bench = Bench::new(NONE, 0);
    bench.submit(nvm::READ, 512);
    bench.pdus();
    let error = bench.receive(&[PduType::C2hData as u8, LAST, 24, 24, 0xFF, 0xFF, 0xFF, 0xFF]).unwrap_err();
    assert!(matches!(error, ProtocolError::InvalidField { field: "PLEN", .. }));
}

#[test]
fn the_event_request_has_a_slot_of_its_own_and_no_timeout() {
    let mut bench = Bench::new(NONE, 0);
    let event = bench.queue.submit_event_request(Sqe::new(admin::ASYNC_EVENT, 0), Buffers(None)).unwrap();
    let cids: Vec<u16> = (0..8).map(|_| bench.submit(nvm::FLUSH, 0)).collect();
    assert!(!bench.queue.has_room() && !cids.contains(&event));
    assert!(bench.queue.submit_event_request(Sqe::new(admin::ASYNC_EVENT, 0), Buffers(None)).is_err());
    bench.pdus();
    for cid in cids {
        assert_eq!(bench.queue.overdue(Cycles::NEVER), Some(cid));
        bench.respond(cid, NvmeStatus::SUCCESS).unwrap();
    }
    assert_eq!(bench.queue.overdue(Cycles::NEVER), None);
    bench.respond(event, NvmeStatus::SUCCESS).unwrap();
}

#[test]
fn ic_resp_comes_first_once_and_says_what_we_can() {
    let refuse = |response: IcResp, field| {
        let error = Bench::raw(BOTH, 0).receive(&ic_resp(response)).unwrap_err();
        assert!(matches!(error, ProtocolError::Unsupported { field: got, .. } if got == field), "{error}");
    };
    let good = IcResp { version: 0, cpda: 31, digests: BOTH, max_h2c_data: 4096 };
    refuse(IcResp { version: 1, ..good }, "PFV");
    refuse(IcResp { cpda: 32, ..good }, "CPDA");
    refuse(IcResp { digests: NONE, ..good }, "DGST");
    let mut bench = Bench::raw(NONE, 0);
    assert!(matches!(bench.respond(0, NvmeStatus::SUCCESS), Err(ProtocolError::Sequence { .. })));
    let mut bench = Bench::greeted(BOTH, 0, good);
    assert!(matches!(bench.receive(&ic_resp(good)), Err(ProtocolError::Sequence { .. })));
}

#[test]
fn commands_wait_for_ic_resp() {
    let mut bench = Bench::raw(NONE, 0);
    bench.submit(nvm::FLUSH, 0);
    assert!(bench.pdus().is_empty());
    bench.receive(&ic_resp(IcResp { version: 0, cpda: 0, digests: NONE, max_h2c_data: 4096 })).unwrap();
    assert_eq!(bench.pdus().len(), 1);
}

#[test]
fn answers_split_at_every_byte_are_understood() {
    for digests in [NONE, BOTH] {
        let data = content(4096);
        for split in 1..300 {
            let mut bench = Bench::new(digests, 0);
            let cid = bench.submit(nvm::READ, 4096);
            bench.pdus();
            let mut stream = c2h(digests, cid, 0, &data[..1024], 0, 4);
            stream.extend(c2h(digests, cid, 1024, &data[1024..], LAST, 128));
            stream.extend(response(digests, cid, NvmeStatus::SUCCESS));
            stream.chunks(split).for_each(|piece| bench.receive(piece).unwrap());
            let completion = bench.queue.pop_completion().unwrap();
            assert!(matches!(completion.outcome, Outcome::Answered(_)), "split {split}");
            let mut got = vec![0; 4096];
            completion.payload.0.unwrap().read(0, &mut got).unwrap();
            assert!(got == data, "split {split}");
        }
    }
}

#[test]
fn large_reads_go_straight_into_the_buffers() {
    let mut bench = Bench::new(NONE, 0);
    let len = 64 << 10;
    let cid = bench.submit(nvm::READ, len);
    bench.pdus();
    let pdu = c2h(NONE, cid, 0, &content(len), LAST_SUCCESS, 4);
    let room = bench.queue.scatter(&mut bench.pieces).len();
    assert!(room < 4096, "the header is read alone, not with its payload: {room}");
    bench.receive(&pdu[..24]).unwrap();
    let room = bench.queue.scatter(&mut bench.pieces).len();
    assert!(room > len, "payload and read-ahead in one call: {room}");
    bench.receive(&pdu[24..]).unwrap();
    assert!(bench.succeeded());
}

/// Windows reads what it does not want into one page again and again: what the buffers hold at the end is not what came.
#[test]
fn a_digest_covers_the_received_bytes_also_where_buffers_overlap() {
    let memory = std::sync::Arc::new(memory::Memory::allocate(16 << 10, None).unwrap());
    let mut buffers = IoBuffers::new(memory.clone(), 2);
    (0..2).for_each(|_| memory.append_buffers(0, 16 << 10, &mut buffers));
    let (mut bench, len) = (Bench::new(BOTH, 0), 32 << 10);
    let data = Data::Buffers { offset: 0, len: len as u32 };
    let cid = bench.queue.submit(Sqe::io(nvm::READ, 1, 0, 64), data, Buffers(Some(buffers)), NOW).unwrap();
    bench.pdus();
    let pdu = c2h(BOTH, cid, 0, &content(len), LAST_SUCCESS, 4);
    bench.receive(&pdu[..28]).unwrap();
    bench.receive(&pdu[28..]).unwrap();
    assert!(bench.succeeded());
}

#[test]
fn commands_of_a_lost_queue_say_whether_they_were_started() {
    let mut bench = Bench::new(NONE, 0);
    bench.submit(nvm::WRITE, 512);
    bench.pdus();
    bench.submit(nvm::WRITE, 512);
    let mut taken: Vec<Taken<Buffers>> = (0..bench.queue.slots()).filter_map(|slot| bench.queue.take(slot)).collect();
    taken.sort_by_key(|taken| taken.sequence);
    assert_eq!(taken.iter().map(|taken| taken.started).collect::<Vec<_>>(), [true, false]);
    assert!(!bench.queue.has_room());
}

proptest::proptest! {
    /// Bytes of any kind, in pieces of any size, never panic and never complete a command twice.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600), split in 1usize..100) {
        crate::fuzz::initiator_receives(&bytes, split);
    }

    /// PDUs that are well formed but for one byte.
    #[test]
    fn one_wrong_byte_is_survived(at in 0usize..1200, value in 0u8..=255, split in 1usize..100, digests in 0u8..4) {
        crate::fuzz::initiator_meets_one_wrong_byte(at, value, split, Digests::from_bits(digests));
    }

    /// The target survives whatever an initiator sends.
    #[test]
    fn the_target_survives_any_bytes(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600), split in 1usize..100) {
        crate::fuzz::target_receives(&bytes, split);
    }
}
