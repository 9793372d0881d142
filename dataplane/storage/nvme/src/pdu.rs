//! PDUs of NVMe/TCP (TCP 3.6): the common header, each kind's own header, and their checks.
//!
//! A [`CommonHeader`] is enough to know how many bytes a PDU has; the kind's own fields are read once they are all there and,
//! with a header digest, verified.

use crate::spec::{Cqe, Sqe, le16, le32};

/// PDU-Type, byte 0 of the common header (TCP figure 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request.
    IcReq = 0x00,
    /// Initialize Connection Response.
    IcResp = 0x01,
    /// Host to controller terminate connection request.
    H2cTermReq = 0x02,
    /// Controller to host terminate connection request.
    C2hTermReq = 0x03,
    /// Command capsule.
    CapsuleCmd = 0x04,
    /// Response capsule.
    CapsuleResp = 0x05,
    /// Host to controller data.
    H2cData = 0x06,
    /// Controller to host data.
    C2hData = 0x07,
    /// Ready to transfer.
    R2t = 0x09,
}

impl PduType {
    fn from_byte(byte: u8) -> Option<PduType> {
        Some(match byte {
            0x00 => PduType::IcReq,
            0x01 => PduType::IcResp,
            0x02 => PduType::H2cTermReq,
            0x03 => PduType::C2hTermReq,
            0x04 => PduType::CapsuleCmd,
            0x05 => PduType::CapsuleResp,
            0x06 => PduType::H2cData,
            0x07 => PduType::C2hData,
            0x09 => PduType::R2t,
            _ => return None,
        })
    }

    /// HLEN: bytes of the header, without digest (TCP 3.6.2).
    #[inline]
    pub fn header_len(self) -> usize {
        match self {
            PduType::IcReq | PduType::IcResp => 128,
            PduType::CapsuleCmd => 72,
            _ => 24,
        }
    }

    /// Whether data may follow the header.
    #[inline]
    fn may_carry_data(self) -> bool {
        matches!(self, PduType::CapsuleCmd | PduType::H2cData | PduType::C2hData)
    }

    /// Whether digests apply: not while a connection is made, nor in terminate requests (TCP 3.3.1.1).
    #[inline]
    pub fn may_have_digest(self) -> bool {
        !matches!(self, PduType::IcReq | PduType::IcResp | PduType::H2cTermReq | PduType::C2hTermReq)
    }
}

/// Bits of FLAGS, byte 1 of the common header.
pub mod flags {
    /// A header digest follows the header.
    pub const HDGST: u8 = 1 << 0;
    /// A data digest follows the data.
    pub const DDGST: u8 = 1 << 1;
    /// Last data PDU of the transfer (H2CData: of its R2T).
    pub const LAST: u8 = 1 << 2;
    /// C2HData: the command succeeded, no response capsule follows.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Bytes of the common header.
pub const COMMON_LEN: usize = 8;
/// Bytes of a digest.
pub const DIGEST_LEN: usize = 4;
/// Bytes of the offending header that a terminate request quotes at most (TCP 3.6.2.5).
pub const MAX_TERM_DATA: usize = 128;

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// HDGST.
    pub header: bool,
    /// DDGST.
    pub data: bool,
}

impl Digests {
    /// The DGST byte of ICReq and ICResp (TCP figures 16 and 17: bit 0 HDGST, bit 1 DDGST).
    pub fn bits(self) -> u8 {
        u8::from(self.header) | u8::from(self.data) << 1
    }

    /// Reads the DGST byte.
    pub fn from_bits(bits: u8) -> Digests {
        Digests { header: bits & 1 != 0, data: bits & 2 != 0 }
    }

    /// FLAGS of a PDU with or without data.
    #[inline]
    fn flags(self, has_data: bool) -> u8 {
        (u8::from(self.header) * flags::HDGST) | (u8::from(self.data && has_data) * flags::DDGST)
    }
}

/// Why a PDU is refused; each is fatal to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A field of a header holds what it must not.
    #[error("PDU type {pdu:#04x}: field {field} at byte {offset} holds {got:#x}")]
    InvalidField {
        /// The PDU's type byte.
        pdu: u8,
        /// The field.
        field: &'static str,
        /// The place of the field in the header.
        offset: u8,
        /// The value of the field.
        got: u32,
    },
    /// A PDU that must not come now.
    #[error("PDU type {pdu:#04x} out of sequence: {why}")]
    Sequence {
        /// The PDU's type byte.
        pdu: u8,
        /// Why the PDU is wrong now.
        why: &'static str,
    },
    /// The header digest does not match.
    #[error("header digest of PDU type {pdu:#04x}: got {got:#010x}, expected {expected:#010x}")]
    HeaderDigest {
        /// The PDU's type byte.
        pdu: u8,
        /// As received.
        got: u32,
        /// As computed.
        expected: u32,
    },
    /// Data outside of what the command asked for.
    #[error("PDU type {pdu:#04x}: data {offset}+{len} where {expected} was expected")]
    DataOutOfRange {
        /// The PDU's type byte.
        pdu: u8,
        /// DATAO or R2TO.
        offset: u32,
        /// DATAL or R2TL.
        len: u32,
        /// The offset expected, or the command's length where that is exceeded.
        expected: u32,
    },
    /// More R2Ts outstanding than MAXR2T allows.
    #[error("{got} R2Ts outstanding on a command, at most {limit} were offered")]
    R2tLimit {
        /// Outstanding with this one.
        got: u8,
        /// As ICReq offered.
        limit: u8,
    },
    /// The peer asks for what we do not do.
    #[error("unsupported parameter {field}: got {got}, expected {expected}")]
    Unsupported {
        /// The parameter.
        field: &'static str,
        /// As received.
        got: u32,
        /// As accepted.
        expected: &'static str,
    },
    /// The peer ended the connection with a terminate request.
    #[error("the peer terminates the connection: FES {fes:#x}, FEI {fei:#x}")]
    Terminated {
        /// Fatal Error Status.
        fes: u16,
        /// Fatal Error Information.
        fei: u32,
    },
}

impl ProtocolError {
    /// FES and FEI of the terminate request that is sent to the peer (TCP figures 18 and 19); `None` when the peer sent one.
    pub fn term_fields(&self) -> Option<(u16, u32)> {
        Some(match *self {
            ProtocolError::InvalidField { offset, .. } => (0x01, u32::from(offset)),
            ProtocolError::Sequence { .. } => (0x02, 0),
            ProtocolError::HeaderDigest { got, .. } => (0x03, got),
            ProtocolError::DataOutOfRange { .. } => (0x04, 0),
            ProtocolError::R2tLimit { .. } => (0x05, 0),
            ProtocolError::Unsupported { .. } => (0x06, 0),
            ProtocolError::Terminated { .. } => return None,
        })
    }
}

/// The common header of a PDU, checked (TCP figure 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonHeader {
    /// PDU-Type.
    pub kind: PduType,
    /// FLAGS.
    pub flags: u8,
    /// PDO: where data starts; 0 without data.
    pub data_offset: usize,
    /// PLEN: bytes of the whole PDU.
    pub len: usize,
}

impl CommonHeader {
    /// Reads and checks the first [`COMMON_LEN`] bytes. `max_len` bounds PLEN before anything is kept for it.
    #[inline]
    pub fn parse(bytes: &[u8], digests: Digests, max_len: usize) -> Result<CommonHeader, ProtocolError> {
        let pdu = bytes[0];
        let invalid = |field, offset, got| ProtocolError::InvalidField { pdu, field, offset, got };
        let kind = PduType::from_byte(pdu).ok_or(invalid("PDU-Type", 0, u32::from(pdu)))?;
        let header =
            CommonHeader { kind, flags: bytes[1], data_offset: usize::from(bytes[3]), len: le32(bytes, 4) as usize };
        if usize::from(bytes[2]) != kind.header_len() {
            return Err(invalid("HLEN", 2, u32::from(bytes[2])));
        }
        let expect_header_digest = digests.header && kind.may_have_digest();
        if (header.flags & flags::HDGST != 0) != expect_header_digest {
            return Err(invalid("FLAGS.HDGSTF", 1, u32::from(header.flags)));
        }
        header.check_data(bytes, digests, max_len)?;
        Ok(header)
    }

    fn check_data(&self, bytes: &[u8], digests: Digests, max_len: usize) -> Result<(), ProtocolError> {
        let invalid = |field, offset, got| ProtocolError::InvalidField { pdu: bytes[0], field, offset, got };
        let prefix = self.prefix_len();
        let term = matches!(self.kind, PduType::H2cTermReq | PduType::C2hTermReq);
        let limit = if term { prefix + MAX_TERM_DATA } else { max_len };
        if self.len < prefix || self.len > limit {
            return Err(invalid("PLEN", 4, self.len as u32));
        }
        let has_data = self.kind.may_carry_data() && self.len > prefix;
        if !has_data {
            return if term || self.len == prefix { Ok(()) } else { Err(invalid("PLEN", 4, self.len as u32)) };
        }
        if (self.flags & flags::DDGST != 0) != digests.data {
            return Err(invalid("FLAGS.DDGSTF", 1, u32::from(self.flags)));
        }
        // "PDO shall be a multiple of dwords" and lies after the header and its digest (TCP 3.6.1).
        if self.data_offset < prefix
            || !self.data_offset.is_multiple_of(4)
            || self.data_offset + self.tail_len() >= self.len
        {
            return Err(invalid("PDO", 3, self.data_offset as u32));
        }
        Ok(())
    }

    /// Bytes of the header with its digest.
    #[inline]
    pub fn prefix_len(&self) -> usize {
        self.kind.header_len() + if self.flags & flags::HDGST != 0 { DIGEST_LEN } else { 0 }
    }

    /// Whether data follows.
    #[inline]
    pub fn has_data(&self) -> bool {
        self.kind.may_carry_data() && self.len > self.prefix_len()
    }

    /// Bytes before the data, padding included, or of the whole PDU where there is none.
    #[inline]
    pub fn head_len(&self) -> usize {
        if self.has_data() { self.data_offset } else { self.len }
    }

    fn tail_len(&self) -> usize {
        if self.flags & flags::DDGST != 0 { DIGEST_LEN } else { 0 }
    }

    /// Bytes of data, without the digest.
    #[inline]
    pub fn data_len(&self) -> usize {
        if self.has_data() { self.len - self.data_offset - self.tail_len() } else { 0 }
    }

    /// Verifies the header digest of `bytes`, which hold at least the prefix. "The CRC covers HLEN bytes" (TCP 3.3.1.1).
    #[inline]
    pub fn verify(&self, bytes: &[u8]) -> Result<(), ProtocolError> {
        if self.flags & flags::HDGST == 0 {
            return Ok(());
        }
        let len = self.kind.header_len();
        let (got, expected) = (le32(bytes, len), crate::digest::crc32c(&bytes[..len]));
        if got == expected { Ok(()) } else { Err(ProtocolError::HeaderDigest { pdu: bytes[0], got, expected }) }
    }
}

/// Bytes from one PDU's start to its data: header, digest, and padding to `alignment` (PDA + 1 dwords; TCP 3.6.1).
#[inline]
pub fn padded_prefix(kind: PduType, digests: Digests, alignment: usize) -> usize {
    let prefix = kind.header_len() + if digests.header { DIGEST_LEN } else { 0 };
    prefix.next_multiple_of(alignment)
}

/// Writes the header of a PDU at the start of `out`: common header, `body` after it, digest and padding. Returns the bytes
/// written; data of `data_len` bytes and its digest are to follow. `alignment` is that of data, in bytes.
#[inline]
pub fn put_header(
    out: &mut [u8],
    kind: PduType,
    extra_flags: u8,
    body: &[u8],
    data_len: usize,
    digests: Digests,
    alignment: usize,
) -> usize {
    let digests = if kind.may_have_digest() { digests } else { Digests::default() };
    let (hlen, has_data) = (kind.header_len(), data_len > 0);
    let head = if has_data { padded_prefix(kind, digests, alignment) } else { padded_prefix(kind, digests, 4) };
    let tail = if has_data && digests.data { DIGEST_LEN } else { 0 };
    out[..head].fill(0);
    out[0] = kind as u8;
    out[1] = extra_flags | digests.flags(has_data);
    out[2] = hlen as u8;
    out[3] = if has_data { head as u8 } else { 0 };
    out[4..8].copy_from_slice(&((head + data_len + tail) as u32).to_le_bytes());
    out[8..8 + body.len()].copy_from_slice(body);
    if digests.header {
        let crc = crate::digest::crc32c(&out[..hlen]);
        out[hlen..hlen + DIGEST_LEN].copy_from_slice(&crc.to_le_bytes());
    }
    head
}

/// ICReq (TCP figure 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcReq {
    /// PFV, 09:08: 0 is the only version.
    pub version: u16,
    /// HPDA, 10: alignment of C2HData in dwords, zero-based.
    pub hpda: u8,
    /// DGST, 11: digests asked for.
    pub digests: Digests,
    /// MAXR2T, 15:12: R2Ts outstanding on a command at most, zero-based.
    pub max_r2t: u32,
}

impl IcReq {
    /// Reads the fields.
    pub fn parse(bytes: &[u8]) -> IcReq {
        IcReq {
            version: le16(bytes, 8),
            hpda: bytes[10],
            digests: Digests::from_bits(bytes[11]),
            max_r2t: le32(bytes, 12),
        }
    }

    /// Writes the PDU.
    pub fn put(&self, out: &mut [u8]) -> usize {
        let mut body = [0; 8];
        body[..2].copy_from_slice(&self.version.to_le_bytes());
        body[2] = self.hpda;
        body[3] = self.digests.bits();
        body[4..].copy_from_slice(&self.max_r2t.to_le_bytes());
        put_header(out, PduType::IcReq, 0, &body, 0, Digests::default(), 4)
    }
}

/// ICResp (TCP figure 17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcResp {
    /// PFV, 09:08.
    pub version: u16,
    /// CPDA, 10: alignment of our data in dwords, zero-based, 0 to 31.
    pub cpda: u8,
    /// DGST, 11: digests in use.
    pub digests: Digests,
    /// MAXH2CDATA, 15:12: data bytes of an H2CData PDU at most.
    pub max_h2c_data: u32,
}

impl IcResp {
    /// Reads the fields.
    pub fn parse(bytes: &[u8]) -> IcResp {
        IcResp {
            version: le16(bytes, 8),
            cpda: bytes[10],
            digests: Digests::from_bits(bytes[11]),
            max_h2c_data: le32(bytes, 12),
        }
    }

    /// Writes the PDU.
    pub fn put(&self, out: &mut [u8]) -> usize {
        let mut body = [0; 8];
        body[..2].copy_from_slice(&self.version.to_le_bytes());
        body[2] = self.cpda;
        body[3] = self.digests.bits();
        body[4..].copy_from_slice(&self.max_h2c_data.to_le_bytes());
        put_header(out, PduType::IcResp, 0, &body, 0, Digests::default(), 4)
    }
}

/// The own fields of H2CData and C2HData (TCP figures 22 and 23), and of R2T (figure 24), which has the same layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// CCCID, 09:08: the command.
    pub cid: u16,
    /// TTAG, 11:10: the target's tag of an R2T, echoed by its H2CData; 0 in C2HData.
    pub tag: u16,
    /// DATAO or R2TO, 15:12.
    pub offset: u32,
    /// DATAL or R2TL, 19:16.
    pub len: u32,
}

impl Transfer {
    /// Reads the fields.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Transfer {
        Transfer { cid: le16(bytes, 8), tag: le16(bytes, 10), offset: le32(bytes, 12), len: le32(bytes, 16) }
    }

    /// Writes a PDU of `kind` with these fields.
    #[inline]
    pub fn put(&self, out: &mut [u8], kind: PduType, extra_flags: u8, digests: Digests, alignment: usize) -> usize {
        let mut body = [0; 16];
        body[..2].copy_from_slice(&self.cid.to_le_bytes());
        body[2..4].copy_from_slice(&self.tag.to_le_bytes());
        body[4..8].copy_from_slice(&self.offset.to_le_bytes());
        body[8..12].copy_from_slice(&self.len.to_le_bytes());
        let data_len = if kind == PduType::R2t { 0 } else { self.len as usize };
        put_header(out, kind, extra_flags, &body, data_len, digests, alignment)
    }
}

/// Writes a command capsule's header (TCP figure 20); `data_len` bytes of in-capsule data follow.
#[inline]
pub fn put_capsule_cmd(out: &mut [u8], sqe: &Sqe, data_len: usize, digests: Digests, alignment: usize) -> usize {
    put_header(out, PduType::CapsuleCmd, 0, &sqe.0, data_len, digests, alignment)
}

/// The command of a command capsule.
pub fn capsule_sqe(bytes: &[u8]) -> Sqe {
    Sqe(bytes[8..72].try_into().expect("64 bytes"))
}

/// Writes a response capsule (TCP figure 21).
pub fn put_capsule_resp(out: &mut [u8], cqe: &Cqe, digests: Digests) -> usize {
    put_header(out, PduType::CapsuleResp, 0, &cqe.0, 0, digests, 4)
}

/// The completion of a response capsule.
#[inline]
pub fn capsule_cqe(bytes: &[u8]) -> Cqe {
    Cqe(bytes[8..24].try_into().expect("16 bytes"))
}

/// FES and FEI of a terminate request (TCP figures 18 and 19).
pub fn term_fields(bytes: &[u8]) -> (u16, u32) {
    (le16(bytes, 8), le32(bytes, 10))
}

/// Writes a terminate request of `kind` that quotes the offending `header`. Returns its bytes.
pub fn put_term_req(out: &mut [u8], kind: PduType, fes: u16, fei: u32, header: &[u8]) -> usize {
    let quoted = &header[..header.len().min(MAX_TERM_DATA)];
    let mut body = [0; 16];
    body[..2].copy_from_slice(&fes.to_le_bytes());
    body[2..6].copy_from_slice(&fei.to_le_bytes());
    let head = put_header(out, kind, 0, &body, 0, Digests::default(), 4);
    let len = head + quoted.len();
    out[head..len].copy_from_slice(quoted);
    out[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Digests = Digests { header: true, data: true };

    #[test]
    fn pdo_is_padded_after_the_header_digest_for_every_alignment() {
        let mut out = [0xEE; 512];
        for pda in 0..32usize {
            let alignment = (pda + 1) * 4;
            for digests in [Digests::default(), BOTH] {
                let transfer = Transfer { cid: 1, tag: 2, offset: 0, len: 512 };
                let head = transfer.put(&mut out, PduType::H2cData, flags::LAST, digests, alignment);
                assert_eq!(head % alignment, 0);
                assert!(head >= 24 + if digests.header { 4 } else { 0 });
                let common = CommonHeader::parse(&out, digests, 1 << 20).unwrap();
                assert_eq!((common.data_offset, common.data_len()), (head, 512));
                common.verify(&out).unwrap();
                assert_eq!(Transfer::parse(&out), transfer);
            }
        }
    }

    #[test]
    fn header_digest_covers_hlen_bytes_and_not_the_padding() {
        let mut out = [0; 256];
        let head = put_capsule_cmd(&mut out, &Sqe::new(1, 1), 512, BOTH, 128);
        let common = CommonHeader::parse(&out, BOTH, 1 << 20).unwrap();
        out[head - 1] = 0xFF;
        common.verify(&out).unwrap();
        out[71] ^= 1;
        assert!(matches!(common.verify(&out), Err(ProtocolError::HeaderDigest { .. })));
    }

    #[test]
    fn plen_is_bounded_before_anything_is_kept() {
        let mut out = [0; 128];
        Transfer { cid: 0, tag: 0, offset: 0, len: 4096 }.put(&mut out, PduType::C2hData, 0, Digests::default(), 4);
        for len in [0u32, 7, 23, 1 << 20 | 1, u32::MAX] {
            out[4..8].copy_from_slice(&len.to_le_bytes());
            assert!(CommonHeader::parse(&out, Digests::default(), 1 << 20).is_err(), "{len}");
        }
    }

    #[test]
    fn terminate_requests_carry_no_digest() {
        let mut out = [0; 256];
        let len = put_term_req(&mut out, PduType::H2cTermReq, 3, 0xABCD, &[9; 24]);
        let common = CommonHeader::parse(&out, BOTH, 1 << 20).unwrap();
        assert_eq!((common.flags, common.len, term_fields(&out)), (0, len, (3, 0xABCD)));
    }

    #[test]
    fn connection_pdus_round_trip() {
        let mut out = [0; 128];
        let request = IcReq { version: 0, hpda: 0, digests: BOTH, max_r2t: 3 };
        assert_eq!(request.put(&mut out), 128);
        assert_eq!(IcReq::parse(&out), request);
        let response = IcResp { version: 0, cpda: 31, digests: BOTH, max_h2c_data: 131_072 };
        assert_eq!(response.put(&mut out), 128);
        assert_eq!(IcResp::parse(&out), response);
    }
}
