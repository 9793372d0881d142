//! SCSI: the commands a disk is driven with, their answers, and sense data (SPC-6, SBC-4).

use crate::pdu::Lun;

/// A command descriptor block, padded to the 16 bytes that iSCSI carries.
pub(crate) type Cdb = [u8; 16];

/// Operation codes, and service actions where a code has them.
pub(crate) mod op {
    pub(crate) const TEST_UNIT_READY: u8 = 0x00;
    pub(crate) const INQUIRY: u8 = 0x12;
    pub(crate) const MODE_SENSE_6: u8 = 0x1a;
    pub(crate) const READ_CAPACITY_10: u8 = 0x25;
    pub(crate) const READ_10: u8 = 0x28;
    pub(crate) const WRITE_10: u8 = 0x2a;
    pub(crate) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub(crate) const UNMAP: u8 = 0x42;
    pub(crate) const READ_16: u8 = 0x88;
    pub(crate) const WRITE_16: u8 = 0x8a;
    pub(crate) const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub(crate) const WRITE_SAME_16: u8 = 0x93;
    pub(crate) const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub(crate) const READ_CAPACITY_16: u8 = 0x10;
    pub(crate) const REPORT_LUNS: u8 = 0xa0;
}

/// Statuses (SAM-5 5.3.1).
pub(crate) mod status {
    pub(crate) const GOOD: u8 = 0x00;
    pub(crate) const CHECK_CONDITION: u8 = 0x02;
    pub(crate) const BUSY: u8 = 0x08;
    pub(crate) const TASK_SET_FULL: u8 = 0x28;
    pub(crate) const TASK_ABORTED: u8 = 0x40;
}

/// Vital product data pages.
pub(crate) mod vpd {
    pub(crate) const SUPPORTED_PAGES: u8 = 0x00;
    pub(crate) const SERIAL_NUMBER: u8 = 0x80;
    pub(crate) const DEVICE_IDENTIFICATION: u8 = 0x83;
    pub(crate) const BLOCK_LIMITS: u8 = 0xb0;
    pub(crate) const PROVISIONING: u8 = 0xb2;
}

/// Mode page of the write cache (SBC-4 6.5.5).
pub(crate) const CACHING_PAGE: u8 = 0x08;

fn cdb<const N: usize>(bytes: [u8; N]) -> Cdb {
    let mut cdb = [0; 16];
    cdb[..N].copy_from_slice(&bytes);
    cdb
}

/// TEST UNIT READY (SPC-6 6.48).
pub(crate) fn test_unit_ready() -> Cdb {
    cdb([op::TEST_UNIT_READY])
}

/// INQUIRY, the standard data or one VPD page (SPC-6 6.7).
pub(crate) fn inquiry(page: Option<u8>, len: u16) -> Cdb {
    let [high, low] = len.to_be_bytes();
    cdb([op::INQUIRY, u8::from(page.is_some()), page.unwrap_or(0), high, low, 0])
}

/// MODE SENSE(6) of one page (SPC-6 6.13).
pub(crate) fn mode_sense(page: u8, len: u8) -> Cdb {
    cdb([op::MODE_SENSE_6, 0x08, page, 0, len, 0])
}

/// READ CAPACITY(10) (SBC-4 5.20): the last block is 0xffffffff where the disk needs the 16-byte form.
pub(crate) fn read_capacity_10() -> Cdb {
    cdb([op::READ_CAPACITY_10])
}

/// READ CAPACITY(16) (SBC-4 5.21).
pub(crate) fn read_capacity_16(len: u32) -> Cdb {
    let mut cdb = cdb([op::SERVICE_ACTION_IN_16, op::READ_CAPACITY_16]);
    cdb[10..14].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// REPORT LUNS (SPC-6 6.33).
pub(crate) fn report_luns(len: u32) -> Cdb {
    let mut cdb = cdb([op::REPORT_LUNS]);
    cdb[6..10].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// A command with a 64-bit block address and a 32-bit count: READ(16), WRITE(16), SYNCHRONIZE CACHE(16), WRITE SAME(16).
#[inline]
fn block_command_16(code: u8, flags: u8, block: u64, count: u32) -> Cdb {
    let mut cdb = cdb([code, flags]);
    cdb[2..10].copy_from_slice(&block.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

/// READ or WRITE: the 10-byte form where it reaches, because every target has it, else the 16-byte form (SBC-4 5.16-5.42).
#[inline]
pub(crate) fn transfer(write: bool, block: u64, count: u32) -> Cdb {
    let (Ok(block_32), Ok(count_16)) = (u32::try_from(block), u16::try_from(count)) else {
        return block_command_16(if write { op::WRITE_16 } else { op::READ_16 }, 0, block, count);
    };
    let mut cdb = cdb([if write { op::WRITE_10 } else { op::READ_10 }]);
    cdb[2..6].copy_from_slice(&block_32.to_be_bytes());
    cdb[7..9].copy_from_slice(&count_16.to_be_bytes());
    cdb
}

/// SYNCHRONIZE CACHE(16) of the whole disk (SBC-4 5.31).
pub(crate) fn synchronize_cache() -> Cdb {
    block_command_16(op::SYNCHRONIZE_CACHE_16, 0, 0, 0)
}

/// WRITE SAME(16): one block of data for `count` blocks; with `unmap` they may be deallocated (SBC-4 5.55).
pub(crate) fn write_same(unmap: bool, block: u64, count: u32) -> Cdb {
    block_command_16(op::WRITE_SAME_16, u8::from(unmap) << 3, block, count)
}

/// Bytes of an UNMAP parameter list with one descriptor.
pub(crate) const UNMAP_LIST_LEN: usize = 24;

/// UNMAP of one descriptor (SBC-4 5.35).
pub(crate) fn unmap() -> Cdb {
    cdb([op::UNMAP, 0, 0, 0, 0, 0, 0, 0, UNMAP_LIST_LEN as u8])
}

/// The parameter list of [`unmap`].
pub(crate) fn unmap_list(block: u64, count: u32) -> [u8; UNMAP_LIST_LEN] {
    let mut list = [0; UNMAP_LIST_LEN];
    list[1] = UNMAP_LIST_LEN as u8 - 2;
    list[3] = UNMAP_LIST_LEN as u8 - 8;
    list[8..16].copy_from_slice(&block.to_be_bytes());
    list[16..20].copy_from_slice(&count.to_be_bytes());
    list
}

/// Sense data: what went wrong (SPC-6 4.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sense {
    pub(crate) key: u8,
    /// Additional sense code and its qualifier.
    pub(crate) asc: u8,
    pub(crate) ascq: u8,
}

/// Sense keys (SPC-6 table 49).
pub(crate) mod sense_key {
    pub(crate) const NO_SENSE: u8 = 0x0;
    pub(crate) const RECOVERED_ERROR: u8 = 0x1;
    pub(crate) const NOT_READY: u8 = 0x2;
    pub(crate) const MEDIUM_ERROR: u8 = 0x3;
    pub(crate) const ILLEGAL_REQUEST: u8 = 0x5;
    pub(crate) const UNIT_ATTENTION: u8 = 0x6;
    pub(crate) const DATA_PROTECT: u8 = 0x7;
    pub(crate) const ABORTED_COMMAND: u8 = 0xb;
}

impl Sense {
    /// From sense data in fixed (0x70, 0x71) or descriptor format (0x72, 0x73). Short data reads as zero.
    pub(crate) fn decode(bytes: &[u8]) -> Sense {
        let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
        match at(0) & 0x7f {
            0x72 | 0x73 => Sense { key: at(1) & 0xf, asc: at(2), ascq: at(3) },
            0x70 | 0x71 => Sense { key: at(2) & 0xf, asc: at(12), ascq: at(13) },
            _ => Sense::default(),
        }
    }

    /// From the data segment of a SCSI Response: two bytes of length, then the sense data (RFC 7143 11.4.7.2).
    pub(crate) fn from_segment(segment: &[u8]) -> Sense {
        match segment {
            [high, low, rest @ ..] => Sense::decode(&rest[..rest.len().min(u16::from_be_bytes([*high, *low]).into())]),
            _ => Sense::default(),
        }
    }

    /// Fixed format with its length in front, as a data segment.
    pub(crate) fn to_segment(self) -> [u8; 20] {
        let mut segment = [0; 20];
        segment[1] = 18;
        segment[2] = 0x70;
        segment[4] = self.key;
        segment[9] = 10;
        segment[14] = self.asc;
        segment[15] = self.ascq;
        segment
    }
}

impl std::fmt::Display for Sense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.key {
            sense_key::NOT_READY => "not ready",
            sense_key::MEDIUM_ERROR => "medium error",
            0x4 => "hardware error",
            sense_key::ILLEGAL_REQUEST => "illegal request",
            sense_key::UNIT_ATTENTION => "unit attention",
            sense_key::DATA_PROTECT => "data protect",
            sense_key::ABORTED_COMMAND => "aborted command",
            _ => "sense",
        };
        write!(f, "{name} {:x}/{:02x}/{:02x}", self.key, self.asc, self.ascq)
    }
}

/// Answer of READ CAPACITY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) num_blocks: u64,
    pub(crate) block_size: u32,
    pub(crate) physical_block_size: u32,
    /// LBPME: the disk is thin, UNMAP may mean something.
    pub(crate) thin: bool,
}

impl Capacity {
    pub(crate) fn decode_16(bytes: &[u8]) -> Option<Capacity> {
        let last = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        let block_size = u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?);
        let exponent = bytes.get(13).copied().unwrap_or(0) & 0xf;
        Some(Capacity {
            num_blocks: last.checked_add(1)?,
            block_size,
            physical_block_size: block_size.checked_shl(exponent.into()).unwrap_or(block_size),
            thin: bytes.get(14).is_some_and(|b| b & 0x80 != 0),
        })
    }

    pub(crate) fn decode_10(bytes: &[u8]) -> Option<Capacity> {
        let last = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
        let block_size = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
        Some(Capacity { num_blocks: u64::from(last) + 1, block_size, physical_block_size: block_size, thin: false })
    }
}

/// The limits of VPD page 0xB0 that we obey (SBC-4 6.6.4). Zero means "not reported".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockLimits {
    pub(crate) max_transfer_blocks: u32,
    pub(crate) optimal_transfer_blocks: u32,
    pub(crate) max_unmap_blocks: u32,
    pub(crate) max_write_same_blocks: u64,
}

impl BlockLimits {
    pub(crate) fn decode(page: &[u8]) -> BlockLimits {
        let u32_at = |at: usize| page.get(at..at + 4).map_or(0, |b| u32::from_be_bytes(b.try_into().expect("4 bytes")));
        BlockLimits {
            max_transfer_blocks: u32_at(8),
            optimal_transfer_blocks: u32_at(12),
            max_unmap_blocks: u32_at(20),
            max_write_same_blocks: u64::from(u32_at(36)) << 32 | u64::from(u32_at(40)),
        }
    }
}

/// Logical block provisioning: VPD page 0xB2 (SBC-4 6.6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Provisioning {
    /// LBPU: UNMAP works.
    pub(crate) unmap: bool,
    /// LBPWS: WRITE SAME(16) with its UNMAP bit works.
    pub(crate) write_same_unmap: bool,
}

impl Provisioning {
    pub(crate) fn decode(page: &[u8]) -> Provisioning {
        let flags = page.get(5).copied().unwrap_or(0);
        Provisioning { unmap: flags & 0x80 != 0, write_same_unmap: flags & 0x40 != 0 }
    }
}

/// The designator of VPD page 0x83 that names the logical unit best: NAA before EUI-64 before T10 vendor (SPC-6 7.7.6).
/// With its type in front, so that designators of two kinds never compare equal.
pub(crate) fn best_designator(page: &[u8]) -> Option<Vec<u8>> {
    let declared = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let mut rest = &page[4..page.len().min(4 + declared)];
    let mut best: Option<(u8, &[u8])> = None;
    while let [_, association, _, len, ..] = *rest {
        let Some(designator) = rest.get(4..4 + usize::from(len)) else { break };
        let rank = match (association >> 4 & 3, association & 0xf) {
            (0, 3) => 3,
            (0, 2) => 2,
            (0, 1) => 1,
            _ => 0,
        };
        if rank > best.map_or(0, |(rank, _)| rank) && designator.iter().any(|b| *b != 0) {
            best = Some((rank, designator));
        }
        rest = &rest[4 + usize::from(len)..];
    }
    best.map(|(rank, designator)| [&[rank], designator].concat())
}

/// The logical units of a REPORT LUNS answer.
pub(crate) fn decode_luns(bytes: &[u8]) -> Vec<Lun> {
    let Some(declared) = bytes.first_chunk().map(|b| u32::from_be_bytes(*b) as usize) else { return Vec::new() };
    let list = bytes.get(8..).unwrap_or(&[]);
    let list = &list[..list.len().min(declared)];
    list.chunks_exact(8).map(|b| Lun(u64::from_be_bytes(b.try_into().expect("8 bytes")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_take_the_short_form_where_it_reaches() {
        assert_eq!(transfer(false, 0x0102_0304, 0x0506)[..10], [0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]);
        assert_eq!(transfer(true, 1 << 32, 1)[..14], [0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(transfer(false, 0, 65_536)[0], 0x88);
    }

    #[test]
    fn unmap_lists_carry_their_lengths() {
        let list = unmap_list(0x10, 0x20);
        assert_eq!(list[..8], [0, 22, 0, 16, 0, 0, 0, 0]);
        assert_eq!((list[15], list[19]), (0x10, 0x20));
        assert_eq!(unmap()[8], 24);
    }

    #[test]
    fn sense_is_read_in_both_formats() {
        let sense = Sense { key: 6, asc: 0x2a, ascq: 9 };
        assert_eq!(Sense::from_segment(&sense.to_segment()), sense);
        assert_eq!(Sense::decode(&[0x72, 6, 0x2a, 9, 0, 0, 0, 0]), sense);
        assert_eq!(Sense::from_segment(&[0]), Sense::default());
        assert_eq!(sense.to_string(), "unit attention 6/2a/09");
    }

    #[test]
    fn the_naa_designator_wins() {
        let t10 = [2, 1, 0, 4, b'a', b'b', b'c', b'd'];
        let naa = [1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7];
        let page = [&[0, 0x83, 0, 20][..], &t10, &naa].concat();
        assert_eq!(best_designator(&page), Some(vec![3, 0x60, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(
            best_designator(&page[..14]),
            Some(vec![1, b'a', b'b', b'c', b'd']),
            "a cut page keeps what is whole"
        );
        assert_eq!(best_designator(&[0, 0x83]), None);
    }

    #[test]
    fn capacities_of_hostile_targets_are_refused() {
        let mut bytes = [0xff; 32];
        assert_eq!(Capacity::decode_16(&bytes), None, "2^64 blocks");
        bytes[..8].copy_from_slice(&99u64.to_be_bytes());
        bytes[8..12].copy_from_slice(&512u32.to_be_bytes());
        bytes[13] = 3;
        bytes[14] = 0x80;
        let capacity = Capacity { num_blocks: 100, block_size: 512, physical_block_size: 4096, thin: true };
        assert_eq!(Capacity::decode_16(&bytes), Some(capacity));
        assert_eq!(Capacity::decode_16(&bytes[..11]), None);
    }
}
