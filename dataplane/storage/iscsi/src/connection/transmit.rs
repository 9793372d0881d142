//! What waits to be written: headers, padding and digests in one buffer, payload as pieces of the requests' own memory.

use crate::digest::crc32c;
use crate::io::Gather;
use crate::pdu::{BHS_LEN, Bhs, padding};
use memory::IoBuffers;
use std::collections::VecDeque;

/// Bytes that may wait inline before commands and data hold back.
const INLINE_ROOM: usize = 128 * 1024;
/// Pieces that may wait before commands and data hold back.
const SEGMENT_ROOM: usize = 256;
/// Bytes that may wait before the target counts as one that asks for answers without reading them.
const INLINE_LIMIT: usize = 4 << 20;

/// A run of bytes to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Segment {
    /// The next bytes of the inline buffer.
    Inline { len: u32 },
    /// Memory of the request in a slot.
    Payload { slot: u16, offset: u32, len: u32 },
}

/// The transmit queue.
#[derive(Debug)]
pub(crate) struct Transmit {
    inline: Vec<u8>,
    /// Bytes of `inline` that are written.
    written: usize,
    segments: VecDeque<Segment>,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
}

impl Transmit {
    pub(crate) fn new() -> Transmit {
        Transmit {
            inline: Vec::with_capacity(INLINE_ROOM),
            written: 0,
            segments: VecDeque::with_capacity(2 * SEGMENT_ROOM),
            header_digest: false,
            data_digest: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether commands and data may be added.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.inline.len() < INLINE_ROOM && self.segments.len() < SEGMENT_ROOM
    }

    /// Whether answers pile up that the target does not read.
    pub(crate) fn is_flooded(&self) -> bool {
        self.inline.len() > INLINE_LIMIT
    }

    fn push_inline(&mut self, bytes: &[u8]) {
        self.inline.extend_from_slice(bytes);
        self.grow_inline(bytes.len());
    }

    /// Counts `len` more inline bytes, in the last segment where that is inline too.
    fn grow_inline(&mut self, len: usize) {
        match self.segments.back_mut() {
            Some(Segment::Inline { len: last }) => *last += len as u32,
            _ => self.segments.push_back(Segment::Inline { len: len as u32 }),
        }
    }

    #[inline]
    fn push_header(&mut self, bhs: &Bhs) {
        if self.header_digest {
            let mut with_digest = [0; BHS_LEN + 4];
            with_digest[..BHS_LEN].copy_from_slice(&bhs.0);
            with_digest[BHS_LEN..].copy_from_slice(&crc32c(&bhs.0).to_le_bytes());
            self.push_inline(&with_digest);
        } else {
            self.push_inline(&bhs.0);
        }
    }

    /// A PDU whose data, if any, is copied. Its length field is set here.
    pub(crate) fn push(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs.set_data_len(data.len());
        self.push_header(&bhs);
        if data.is_empty() {
            return;
        }
        let start = self.inline.len();
        self.push_inline(data);
        self.pad_and_digest(start);
    }

    /// A PDU whose data is `len` zeros.
    pub(crate) fn push_zeroes(&mut self, mut bhs: Bhs, len: usize) {
        bhs.set_data_len(len);
        self.push_header(&bhs);
        let start = self.inline.len();
        self.inline.resize(start + len, 0);
        self.grow_inline(len);
        self.pad_and_digest(start);
    }

    /// A PDU whose data is `len` bytes at `offset` of the request in `slot`. Returns whether the request's memory is still to be
    /// read: with a data digest it is copied now, because what the checksum covers must not change until it is sent, and a guest
    /// may write to a page that is under write-back.
    pub(crate) fn push_payload(&mut self, mut bhs: Bhs, slot: u16, buffers: &IoBuffers, offset: u32, len: u32) -> bool {
        bhs.set_data_len(len as usize);
        self.push_header(&bhs);
        if self.data_digest {
            let start = self.inline.len();
            self.inline.resize(start + len as usize, 0);
            buffers.read(offset.into(), &mut self.inline[start..]).expect("a command moves what its request holds");
            self.grow_inline(len as usize);
            self.pad_and_digest(start);
            return false;
        }
        self.segments.push_back(Segment::Payload { slot, offset, len });
        let pad = padding(len as usize);
        if pad > 0 {
            self.push_inline(&[0; 3][..pad]);
        }
        true
    }

    /// Padding "MUST be sent as 0" (11.2.3) and lies inside the digest (11.2.4).
    fn pad_and_digest(&mut self, start: usize) {
        let pad = padding(self.inline.len() - start);
        self.push_inline(&[0; 3][..pad]);
        if self.data_digest {
            let digest = crc32c(&self.inline[start..]);
            self.push_inline(&digest.to_le_bytes());
        }
    }

    /// Lists what waits, for one `writev`. `buffers_of` gives the memory of a slot's request.
    pub(crate) fn gather<'a>(&'a self, list: &mut Gather<'a>, buffers_of: impl Fn(u16) -> &'a IoBuffers) {
        let mut inline = &self.inline[self.written..];
        for segment in &self.segments {
            let (want, taken) = match *segment {
                Segment::Inline { len } => {
                    let (piece, rest) = inline.split_at(len as usize);
                    inline = rest;
                    (len as usize, list.push(piece))
                }
                Segment::Payload { slot, offset, len } => {
                    (len as usize, list.push_buffers(buffers_of(slot), offset.into(), len as usize))
                }
            };
            if taken < want {
                break;
            }
        }
    }

    /// Takes `count` written bytes off the queue. `sent(slot)` is called for every piece of payload that is done.
    pub(crate) fn advance(&mut self, mut count: usize, mut sent: impl FnMut(u16)) {
        while count > 0 {
            let front = self.segments.front_mut().expect("no more is written than was listed");
            let (len, is_inline) = match front {
                Segment::Inline { len } => (len, true),
                Segment::Payload { len, .. } => (len, false),
            };
            let step = count.min(*len as usize);
            *len -= step as u32;
            let done = *len == 0;
            count -= step;
            if is_inline {
                self.written += step;
            }
            if let Segment::Payload { slot, offset, .. } = front {
                *offset += step as u32;
                if done {
                    sent(*slot);
                }
            }
            if done {
                self.segments.pop_front();
            }
        }
        if self.segments.is_empty() {
            self.inline.clear();
            self.written = 0;
        }
    }
}
