//! Where received bytes go: a staging buffer for headers and small things, the requests' own memory for large payloads.

use crate::digest::crc32c;
use crate::pdu::{BHS_LEN, Bhs, DIGEST_LEN, padding};
use std::ops::Range;

/// Bytes of the staging buffer: 32 answers of 4 KiB in one read.
const STAGING: usize = 144 * 1024;
/// Longest data segment, apart from Data-In, that is taken. Nothing a target has to say is longer.
pub(crate) const MAX_SEGMENT: usize = 32 * 1024;
/// Payloads from this length are read straight into the request's memory.
const DIRECT: usize = 16 * 1024;
/// Bytes staged at once while payloads go straight: the next header, and little of the payload behind it.
const HEADER_WINDOW: usize = 512;

/// A PDU's header and where its data is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) bhs: Bhs,
    /// Bytes of padding and digest behind the data.
    pub(crate) tail: usize,
}

/// Why received bytes are no PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    HeaderDigest,
    DataDigest,
    /// A data segment longer than we declared that we take (13.12).
    TooLong,
}

/// The staging buffer and the way through it.
#[derive(Debug)]
pub(crate) struct Receive {
    staging: Box<[u8]>,
    /// Bytes that are received and not yet consumed.
    filled: Range<usize>,
    /// The last payload went straight, and so probably will the next.
    straight: bool,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
}

impl Receive {
    pub(crate) fn new() -> Receive {
        Receive {
            staging: vec![0; STAGING].into(),
            filled: 0..0,
            straight: false,
            header_digest: false,
            data_digest: false,
        }
    }

    pub(crate) fn available(&self) -> usize {
        self.filled.len()
    }

    /// Room for the next bytes, behind those that wait.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.filled.end == STAGING || self.filled.start >= STAGING / 2 {
            self.staging.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let window = if self.straight && self.filled.is_empty() { HEADER_WINDOW } else { STAGING };
        let end = (self.filled.end + window).min(STAGING);
        &mut self.staging[self.filled.end..end]
    }

    /// Counts bytes that were put into [`room`](Self::room).
    pub(crate) fn filled(&mut self, count: usize) {
        self.filled.end += count;
        debug_assert!(self.filled.end <= STAGING);
    }

    /// Takes a whole header out, if there is one. `max_data` bounds the data segment of a Data-In.
    #[inline]
    pub(crate) fn header(&mut self, max_data: usize) -> Result<Option<Header>, Malformed> {
        let waiting = &self.staging[self.filled.clone()];
        let Some(bhs) = Bhs::from_slice(waiting) else { return Ok(None) };
        let covered = BHS_LEN + bhs.ahs_len();
        let len = covered + if self.header_digest { DIGEST_LEN } else { 0 };
        if waiting.len() < len {
            return Ok(None);
        }
        // "The header digest covers the BHS and all AHSs" (11.2.4).
        if self.header_digest && waiting[covered..len] != crc32c(&waiting[..covered]).to_le_bytes() {
            return Err(Malformed::HeaderDigest);
        }
        let data_len = bhs.data_len();
        let is_data_in = bhs.opcode() == crate::pdu::opcode::DATA_IN;
        if data_len > if is_data_in { max_data } else { MAX_SEGMENT } {
            return Err(Malformed::TooLong);
        }
        self.filled.start += len;
        self.straight = data_len >= DIRECT && !self.data_digest;
        let digest = if self.data_digest && data_len > 0 { DIGEST_LEN } else { 0 };
        Ok(Some(Header { bhs, tail: padding(data_len) + digest }))
    }

    /// Whether the payload under way should be read straight into its memory: nothing of it waits here, and no digest has to be
    /// computed over memory that a guest may be writing.
    pub(crate) fn goes_straight(&self, remaining: usize) -> bool {
        self.filled.is_empty() && remaining >= DIRECT && !self.data_digest
    }

    /// Looks at up to `len` bytes that wait.
    pub(crate) fn peek(&self, len: usize) -> &[u8] {
        &self.staging[self.filled.start..self.filled.end.min(self.filled.start + len)]
    }

    /// Lets go of `len` bytes.
    pub(crate) fn consume(&mut self, len: usize) {
        debug_assert!(len <= self.filled.len());
        self.filled.start += len;
    }

    /// Takes out a whole data segment with its tail, if it is all there; checks its digest.
    pub(crate) fn segment(&mut self, header: &Header) -> Result<Option<Range<usize>>, Malformed> {
        let len = header.bhs.data_len();
        let whole = len + header.tail;
        if self.filled.len() < whole {
            return Ok(None);
        }
        let start = self.filled.start;
        if self.data_digest && len > 0 {
            let (covered, digest) = self.staging[start..start + whole].split_at(whole - DIGEST_LEN);
            if crc32c(covered).to_le_bytes() != digest {
                return Err(Malformed::DataDigest);
            }
        }
        self.filled.start += whole;
        Ok(Some(start..start + len))
    }

    /// The bytes of a segment that [`segment`](Self::segment) took out.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.staging[range]
    }
}
