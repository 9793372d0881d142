//! The sending side: PDUs are made when there is room for them, headers into one buffer, payload by reference.
//!
//! With a data digest, payload is copied before its digest is computed: the guest may change its memory at any time, and a
//! digest that does not match costs the whole connection at some targets.

use super::slots::{R2t, Slot, Slots, Stage};
use super::{Data, Payload, QueuePair, State};
use crate::digest::crc32c;
use crate::io::Gather;
use crate::pdu::{self, Digests, PduType, Transfer, flags};
use std::collections::VecDeque;

/// Data of a PDU that is copied at most. With a data digest an R2T of this size still goes in one PDU where MAXH2CDATA lets it:
/// Linux' target computes the digest over the command's whole data, so a second PDU never matches there.
const MAX_COPY: u32 = 1 << 20;
/// Bytes of headers that wait to be sent at most, where payload is sent by reference.
const HEADERS_LEN: usize = 64 << 10;
/// Room that a PDU needs besides its copied payload.
const HEADER_ROOM: usize = 512;
/// Pieces that wait to be sent at most.
const MAX_SEGMENTS: usize = 128;

#[derive(Clone, Copy, Debug)]
enum Segment {
    /// Bytes of the buffer.
    Own { at: usize, len: usize },
    /// Payload of a slot, by reference: `offset` of its buffers.
    Payload { slot: u16, offset: u64, len: usize },
}

/// PDUs that are made and not yet sent.
#[derive(Debug)]
pub(super) struct Transmit {
    buffer: Box<[u8]>,
    tail: usize,
    /// Room that the largest PDU needs.
    pdu_room: usize,
    segments: VecDeque<Segment>,
}

impl Transmit {
    /// Room for headers, and for two of the largest copied payloads where there is a data digest.
    pub(super) fn new(digests: Digests) -> Transmit {
        let pdu_room = HEADER_ROOM + if digests.data { MAX_COPY as usize } else { 0 };
        let len = if digests.data { 2 * pdu_room } else { HEADERS_LEN };
        Transmit {
            buffer: vec![0; len].into_boxed_slice(),
            tail: 0,
            pdu_room,
            segments: VecDeque::with_capacity(MAX_SEGMENTS + 4),
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    #[inline]
    fn has_room(&self) -> bool {
        self.segments.len() < MAX_SEGMENTS && self.buffer.len() - self.tail >= self.pdu_room
    }

    /// Appends what `write` puts at the start of the free bytes; it returns how many.
    #[inline]
    pub(super) fn put(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        let len = write(&mut self.buffer[self.tail..]);
        match self.segments.back_mut() {
            Some(Segment::Own { at, len: before }) if *at + *before == self.tail => *before += len,
            _ => self.segments.push_back(Segment::Own { at: self.tail, len }),
        }
        self.tail += len;
    }

    /// Ends the stream with a terminate request after the PDUs that are already made.
    pub(super) fn put_term_req(&mut self, fes: u16, fei: u32, header: &[u8]) {
        if self.buffer.len() - self.tail > 256 {
            self.put(|out| pdu::put_term_req(out, PduType::H2cTermReq, fes, fei, header));
        }
    }

    pub(super) fn list<'a, P: Payload>(&'a self, slots: &'a Slots<P>, gather: &mut Gather<'a>) {
        for segment in &self.segments {
            let (taken, len) = match *segment {
                Segment::Own { at, len } => (gather.push(&self.buffer[at..at + len]), len),
                Segment::Payload { slot, offset, len } => {
                    let buffers = slots[slot].payload.as_ref().and_then(P::buffers).expect("kept until it is sent");
                    (gather.push_buffers(buffers, offset, len), len)
                }
            };
            if taken < len {
                break;
            }
        }
    }

    /// Takes up to `count` bytes off the front. Returns a slot whose piece was sent whole; call again until `None`.
    pub(super) fn advance(&mut self, count: &mut usize) -> Option<u16> {
        while let Some(front) = self.segments.front_mut() {
            let (Segment::Own { len, .. } | Segment::Payload { len, .. }) = *front;
            let step = len.min(*count);
            *count -= step;
            if step < len {
                match front {
                    Segment::Own { at, len } => (*at, *len) = (*at + step, *len - step),
                    Segment::Payload { offset, len, .. } => (*offset, *len) = (*offset + step as u64, *len - step),
                }
                return None;
            }
            let sent = self.segments.pop_front();
            if self.segments.is_empty() {
                self.tail = 0;
            }
            if let Some(Segment::Payload { slot, .. }) = sent {
                return Some(slot);
            }
        }
        None
    }
}

/// Appends `len` bytes of the command's data from `at`, and their digest: by reference or as a copy.
#[inline]
fn put_data<P: Payload>(tx: &mut Transmit, slot: &mut Slot<P>, index: u16, at: u32, len: u32, digests: Digests) {
    let offset = slot.base() + u64::from(at);
    if matches!(slot.data, Data::Buffers { .. }) && !digests.data {
        tx.segments.push_back(Segment::Payload { slot: index, offset, len: len as usize });
        slot.unsent_pieces += 1;
        return;
    }
    tx.put(|out| {
        let bytes = &mut out[..len as usize];
        match &slot.data {
            Data::Range(range) => bytes.copy_from_slice(&range[at as usize..(at + len) as usize]),
            _ => {
                let buffers = slot.payload.as_ref().and_then(P::buffers).expect("kept until it is sent");
                buffers.read(offset, bytes).expect("submit was given a range of the buffers");
            }
        }
        if !digests.data {
            return len as usize;
        }
        let digest = crc32c(bytes);
        out[len as usize..len as usize + pdu::DIGEST_LEN].copy_from_slice(&digest.to_le_bytes());
        len as usize + pdu::DIGEST_LEN
    });
}

impl<P: Payload> QueuePair<P> {
    /// Makes PDUs of the commands that wait, one a command and turn, while there is room.
    #[inline]
    pub(super) fn produce(&mut self) {
        if self.state != State::Connected {
            return;
        }
        while self.tx.has_room() {
            let Some(index) = self.work.pop_front() else { break };
            match self.slots[index].stage {
                Stage::Queued => self.produce_capsule(index),
                Stage::Started => self.produce_data(index),
                Stage::Free | Stage::Ended(_) => {}
            }
        }
    }

    #[inline]
    fn produce_capsule(&mut self, index: u16) {
        let (digests, alignment) = (self.config.digests, self.alignment);
        let slot = &mut self.slots[index];
        slot.stage = Stage::Started;
        let data_len = if slot.in_capsule { slot.data.len() } else { 0 };
        self.tx.put(|out| pdu::put_capsule_cmd(out, &slot.sqe, data_len as usize, digests, alignment));
        if data_len > 0 {
            slot.requested = data_len;
            put_data(&mut self.tx, slot, index, 0, data_len, digests);
        }
    }

    /// One H2CData PDU for the oldest R2T of a command: at most MAXH2CDATA bytes, LAST on the one that ends the R2T.
    fn produce_data(&mut self, index: u16) {
        let (digests, alignment) = (self.config.digests, self.alignment);
        let copied = digests.data || matches!(self.slots[index].data, Data::Range(_));
        let limit = if copied { self.max_h2c_data.min(MAX_COPY) } else { self.max_h2c_data };
        let slot = &mut self.slots[index];
        let cid = slot.sqe.cid();
        let Some(r2t) = slot.r2ts.first_mut() else { return };
        let R2t { tag, offset, left } = *r2t;
        let len = left.min(limit);
        r2t.offset = offset + len;
        r2t.left = left - len;
        let last = if r2t.left == 0 { flags::LAST } else { 0 };
        if r2t.left == 0 {
            slot.r2ts.pop();
        }
        let transfer = Transfer { cid, tag, offset, len };
        self.tx.put(|out| transfer.put(out, PduType::H2cData, last, digests, alignment));
        put_data(&mut self.tx, slot, index, offset, len, digests);
        if !slot.r2ts.is_empty() {
            self.work.push_back(index);
        }
    }
}
