//! The receiving side: a header is read whole into the staging area, checked, and says what follows.
//!
//! Small payloads come through the staging area, many PDUs to a system call; large ones go straight into the command's
//! buffers, with the next header behind them. With a data digest all come through the staging area: what is checked must be
//! what came, and buffers may overlap each other or be written to by the guest.

use super::slots::{R2t, Slots};
use super::{Data, MAX_R2T, MAX_TRANSFER, Outcome, Payload, QueuePair, State};
use crate::digest::Crc32c;
use crate::io::Scatter;
use crate::pdu::{self, COMMON_LEN, CommonHeader, DIGEST_LEN, IcResp, PduType, ProtocolError, Transfer, flags};
use crate::spec::{Cqe, Direction, NvmeStatus, le32};

/// Bytes of the staging area: 32 answers of 4 KiB in one call.
const STAGING_LEN: usize = 144 << 10;
/// Bytes of a PDU before its data at most: PDO is one byte.
const MAX_HEAD: usize = 256;
/// PLEN at most: of a C2HData PDU.
const MAX_PDU: usize = MAX_HEAD + MAX_TRANSFER as usize + DIGEST_LEN;
/// Payload from which on reading straight into the buffers pays.
const DIRECT_MIN: u32 = 8 << 10;
/// Read ahead behind a large payload: the next header and no more.
const READ_AHEAD: usize = 512;
/// Payload that is digested and copied at a time: it stays in the first-level cache in between.
const DIGEST_BLOCK: usize = 4 << 10;

/// Data of a C2HData PDU that is on its way in.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    slot: u16,
    /// Next byte, from the start of the command's data.
    at: u32,
    /// Bytes left in the PDU.
    left: u32,
    flags: u8,
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    /// The head of a PDU.
    Head,
    /// Data.
    Data(Incoming),
    /// The digest after the data.
    Digest(Incoming),
}

/// Bytes that came and are not yet parsed.
#[derive(Debug)]
pub(super) struct Receive {
    staging: Box<[u8]>,
    head: usize,
    tail: usize,
    expect: Expect,
    /// The digest of the data under way, where data has one.
    crc: Option<Crc32c>,
    /// Bytes that the last list put into the buffers of a command, before the staging area.
    direct: usize,
}

impl Receive {
    pub(super) fn new(data_digest: bool) -> Receive {
        Receive {
            staging: vec![0; STAGING_LEN].into_boxed_slice(),
            head: 0,
            tail: 0,
            expect: Expect::Head,
            crc: data_digest.then(Crc32c::new),
            direct: 0,
        }
    }

    #[inline]
    pub(super) fn list<'a, P: Payload>(
        &'a mut self,
        slots: &'a Slots<P>,
        expect_large: bool,
        scatter: &mut Scatter<'a>,
    ) {
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        } else if self.head > 0 {
            self.staging.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
        }
        self.direct = 0;
        let mut read_ahead = if expect_large { READ_AHEAD } else { STAGING_LEN };
        if let Expect::Data(incoming) = self.expect
            && self.tail == 0
            && self.crc.is_none()
            && (expect_large || incoming.left >= DIRECT_MIN)
        {
            let slot = &slots[incoming.slot];
            if let Some(buffers) = slot.payload.as_ref().and_then(P::buffers) {
                let offset = slot.base() + u64::from(incoming.at);
                self.direct = scatter.push_buffers(buffers, offset, incoming.left as usize);
                // Bytes of the staging area come after all of the payload, or not at all.
                read_ahead = if self.direct == incoming.left as usize { read_ahead } else { 0 };
            }
        }
        let end = (self.tail + read_ahead).min(STAGING_LEN);
        if end > self.tail {
            scatter.push(&mut self.staging[self.tail..end]);
        }
    }

    /// The header that was refused: what is at the front of the staging area.
    pub(super) fn offending_header(&self) -> &[u8] {
        let bytes = &self.staging[self.head..self.tail];
        &bytes[..bytes.len().min(24)]
    }
}

impl<P: Payload> QueuePair<P> {
    /// `count` bytes came into what [`scatter`](QueuePair::scatter) listed. On an error call [`fail`](QueuePair::fail).
    pub fn received(&mut self, count: usize) -> Result<(), ProtocolError> {
        let direct = count.min(self.rx.direct);
        self.rx.direct = 0;
        self.rx.tail += count - direct;
        if direct > 0
            && let Expect::Data(incoming) = self.rx.expect
        {
            self.advance(incoming, direct as u32)?;
        }
        while self.step()? {}
        Ok(())
    }

    /// Understands the next part of what is staged; `false` when more bytes are needed.
    #[inline]
    fn step(&mut self) -> Result<bool, ProtocolError> {
        let available = self.rx.tail - self.rx.head;
        match self.rx.expect {
            Expect::Head => self.on_head(available),
            Expect::Data(incoming) => {
                let mut run = available.min(incoming.left as usize);
                if run == 0 {
                    return Ok(false);
                }
                if let Some(crc) = &mut self.rx.crc {
                    run = run.min(DIGEST_BLOCK);
                    crc.update(&self.rx.staging[self.rx.head..self.rx.head + run]);
                }
                let bytes = &self.rx.staging[self.rx.head..self.rx.head + run];
                let slot = &self.slots[incoming.slot];
                let buffers = slot.payload.as_ref().and_then(P::buffers).expect("a read has buffers");
                buffers
                    .write(slot.base() + u64::from(incoming.at), bytes)
                    .expect("checked against the command's length");
                self.rx.head += run;
                self.advance(incoming, run as u32)?;
                Ok(true)
            }
            Expect::Digest(incoming) => {
                if available < DIGEST_LEN {
                    return Ok(false);
                }
                let got = le32(&self.rx.staging, self.rx.head);
                self.rx.head += DIGEST_LEN;
                let expected = self.rx.crc.as_ref().map(Crc32c::finish);
                self.slots[incoming.slot].digest_failed |= expected != Some(got);
                self.end_data(incoming)?;
                Ok(true)
            }
        }
    }

    /// `count` bytes of data are in place.
    #[inline]
    fn advance(&mut self, mut incoming: Incoming, count: u32) -> Result<(), ProtocolError> {
        incoming.at += count;
        incoming.left -= count;
        self.rx.expect = match incoming.left {
            0 if self.rx.crc.is_some() => Expect::Digest(incoming),
            0 => return self.end_data(incoming),
            _ => Expect::Data(incoming),
        };
        Ok(())
    }

    /// A C2HData PDU is whole.
    #[inline]
    fn end_data(&mut self, incoming: Incoming) -> Result<(), ProtocolError> {
        self.rx.expect = Expect::Head;
        let slot = &mut self.slots[incoming.slot];
        slot.received = incoming.at;
        slot.last_seen |= incoming.flags & flags::LAST != 0;
        // "SUCCESS: the command completed successfully and no response capsule follows" (TCP 3.6.2.10); SQHD is not updated.
        if incoming.flags & flags::SUCCESS != 0 {
            let cqe = Cqe::new(slot.sqe.cid(), NvmeStatus::SUCCESS, 0, 0);
            return self.on_answer(incoming.slot, cqe, PduType::C2hData);
        }
        Ok(())
    }

    #[inline]
    fn on_head(&mut self, available: usize) -> Result<bool, ProtocolError> {
        if available < COMMON_LEN {
            return Ok(false);
        }
        let start = self.rx.head;
        let common = CommonHeader::parse(&self.rx.staging[start..self.rx.tail], self.config.digests, MAX_PDU)?;
        if available < common.head_len() {
            return Ok(false);
        }
        let bytes = &self.rx.staging[start..start + common.head_len()];
        common.verify(bytes)?;
        self.check_sequence(common.kind)?;
        match common.kind {
            PduType::CapsuleResp => {
                let cqe = pdu::capsule_cqe(bytes);
                let index = self.find(cqe.cid(), common.kind)?;
                self.on_answer(index, cqe, common.kind)?;
            }
            PduType::C2hData => {
                let transfer = Transfer::parse(bytes);
                self.on_data_head(common, transfer)?;
            }
            PduType::R2t => {
                let transfer = Transfer::parse(bytes);
                self.on_r2t(transfer)?;
            }
            PduType::IcResp => {
                let response = IcResp::parse(bytes);
                self.on_ic_resp(response)?;
            }
            _ => {
                let (fes, fei) = pdu::term_fields(bytes);
                return Err(ProtocolError::Terminated { fes, fei });
            }
        }
        self.rx.head = start + common.head_len();
        Ok(true)
    }

    /// Which PDUs may come when: ICResp first and once, then all a controller may send.
    fn check_sequence(&self, kind: PduType) -> Result<(), ProtocolError> {
        let why = match (self.state, kind) {
            (_, PduType::C2hTermReq) | (State::AwaitIcResp, PduType::IcResp) => return Ok(()),
            (State::AwaitIcResp, _) => "ICResp comes first",
            (_, PduType::IcResp) => "ICResp comes once",
            (State::Connected, PduType::CapsuleResp | PduType::C2hData | PduType::R2t) => return Ok(()),
            _ => "a controller does not send this",
        };
        Err(ProtocolError::Sequence { pdu: kind as u8, why })
    }

    #[inline]
    fn find(&self, cid: u16, kind: PduType) -> Result<u16, ProtocolError> {
        self.slots.find(cid).ok_or(ProtocolError::Sequence { pdu: kind as u8, why: "no such command is outstanding" })
    }

    #[inline]
    fn on_data_head(&mut self, common: CommonHeader, transfer: Transfer) -> Result<(), ProtocolError> {
        let pdu = PduType::C2hData as u8;
        let sequence = |why| Err(ProtocolError::Sequence { pdu, why });
        let index = self.find(transfer.cid, PduType::C2hData)?;
        let slot = &self.slots[index];
        if slot.direction != Direction::In {
            return sequence("the command reads nothing");
        }
        if slot.last_seen {
            return sequence("data after the last");
        }
        if common.flags & flags::SUCCESS != 0 && common.flags & flags::LAST == 0 {
            return sequence("SUCCESS without LAST");
        }
        if common.data_len() != transfer.len as usize || transfer.len == 0 {
            return Err(ProtocolError::InvalidField { pdu, field: "DATAL", offset: 16, got: transfer.len });
        }
        let (offset, len) = (transfer.offset, transfer.len);
        if offset != slot.received {
            return Err(ProtocolError::DataOutOfRange { pdu, offset, len, expected: slot.received });
        }
        if len > slot.data.len() - slot.received {
            return Err(ProtocolError::DataOutOfRange { pdu, offset, len, expected: slot.data.len() });
        }
        if let Some(crc) = &mut self.rx.crc {
            crc.reset();
        }
        self.rx.expect = Expect::Data(Incoming { slot: index, at: offset, left: len, flags: common.flags });
        Ok(())
    }

    fn on_r2t(&mut self, r2t: Transfer) -> Result<(), ProtocolError> {
        let pdu = PduType::R2t as u8;
        let index = self.find(r2t.cid, PduType::R2t)?;
        let slot = &mut self.slots[index];
        if slot.direction != Direction::Out || slot.in_capsule || slot.data == Data::None {
            return Err(ProtocolError::Sequence { pdu, why: "the command has no data to transfer" });
        }
        if r2t.len == 0 {
            return Err(ProtocolError::InvalidField { pdu, field: "R2TL", offset: 16, got: 0 });
        }
        let (offset, len) = (r2t.offset, r2t.len);
        if offset != slot.requested {
            return Err(ProtocolError::DataOutOfRange { pdu, offset, len, expected: slot.requested });
        }
        if len > slot.data.len() - slot.requested {
            return Err(ProtocolError::DataOutOfRange { pdu, offset, len, expected: slot.data.len() });
        }
        let idle = slot.r2ts.is_empty();
        slot.r2ts
            .push(R2t { tag: r2t.tag, offset, left: len })
            .map_err(|got| ProtocolError::R2tLimit { got, limit: MAX_R2T as u8 })?;
        slot.requested += len;
        if idle {
            self.work.push_back(index);
        }
        Ok(())
    }

    /// The controller answered a command: success needs all of its data moved.
    #[inline]
    fn on_answer(&mut self, index: u16, cqe: Cqe, kind: PduType) -> Result<(), ProtocolError> {
        let slot = &self.slots[index];
        let len = slot.data.len();
        if cqe.status().is_success() {
            let short = match slot.direction {
                Direction::In => slot.received != len,
                // H2CData still to be made means that the controller cannot have all data.
                Direction::Out => slot.requested != len || !slot.r2ts.is_empty(),
                Direction::None => false,
            };
            // Identify and log pages may move less only with an error; "a read that completes short is a protocol error".
            if short {
                return Err(ProtocolError::Sequence {
                    pdu: kind as u8,
                    why: "success before all data was transferred",
                });
            }
        }
        let failed = slot.digest_failed;
        self.complete(index, if failed { Outcome::DataDigestError } else { Outcome::Answered(cqe) });
        Ok(())
    }
}
