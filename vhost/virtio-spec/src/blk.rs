//! Block device (virtio 1.3, 5.2).

/// Feature bits (5.2.3).
pub mod feature {
    /// Maximum size of a segment is in `size_max`.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// Maximum number of segments is in `seg_max`.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Device is read-only.
    pub const RO: u64 = 1 << 5;
    /// Block size is in `blk_size`.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Cache flush command.
    pub const FLUSH: u64 = 1 << 9;
    /// Optimal I/O alignment is in `topology`.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// Cache mode is in `writeback`.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discard command.
    pub const DISCARD: u64 = 1 << 13;
    /// Write zeroes command.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (5.2.6).
pub mod request {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// Device id string.
    pub const GET_ID: u32 = 8;
    /// Discard.
    pub const DISCARD: u32 = 11;
    /// Write zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Request status (5.2.6).
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Error of device or driver.
    pub const IOERR: u8 = 1;
    /// Not supported.
    pub const UNSUPP: u8 = 2;
}

/// Bytes in a sector, the unit of addresses, whatever the block size (5.2.2).
pub const SECTOR_SIZE: u64 = 512;
/// Bytes of the device id string (5.2.6).
pub const ID_LEN: usize = 20;
/// Bytes of the request header: type, reserved, sector (5.2.6).
pub const HEADER_LEN: usize = 16;
/// Bytes of a discard or write zeroes segment: sector, num_sectors, flags (5.2.6).
pub const RANGE_LEN: usize = 16;
/// Flag of a write zeroes segment: the range may be deallocated (5.2.6).
pub const WRITE_ZEROES_UNMAP: u32 = 1;

/// The request header (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of [`request`].
    pub kind: u32,
    /// Where, in sectors.
    pub sector: u64,
}

impl Header {
    /// From its bytes.
    #[inline]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Header {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = *bytes;
        Header { kind: u32::from_le_bytes([k0, k1, k2, k3]), sector: u64::from_le_bytes(sector) }
    }

    /// To its bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sector.to_le_bytes());
        bytes
    }
}

/// A segment of discard or write zeroes (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where, in sectors.
    pub sector: u64,
    /// How many sectors.
    pub sectors: u32,
    /// [`WRITE_ZEROES_UNMAP`]; all other bits are reserved.
    pub flags: u32,
}

impl Range {
    /// From its bytes.
    pub fn parse(bytes: &[u8; RANGE_LEN]) -> Range {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *bytes;
        Range {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes(flags),
        }
    }

    /// To its bytes.
    pub fn to_bytes(self) -> [u8; RANGE_LEN] {
        let mut bytes = [0; RANGE_LEN];
        bytes[..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// Bytes of the configuration space up to the write zeroes limits (5.2.4).
pub const CONFIG_LEN: usize = 60;

/// The configuration space (5.2.4). Sizes in sectors of 512 bytes unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Size of the disk.
    pub capacity: u64,
    /// Bytes of a segment at most.
    pub size_max: u32,
    /// Segments of a request at most.
    pub seg_max: u32,
    /// Bytes of a logical block.
    pub blk_size: u32,
    /// Logical blocks of a physical one, as a power of two.
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block.
    pub alignment_offset: u8,
    /// Logical blocks of the smallest good I/O.
    pub min_io_size: u16,
    /// Logical blocks of the best I/O.
    pub opt_io_size: u32,
    /// 1: the disk has a volatile write cache.
    pub writeback: u8,
    /// Queues.
    pub num_queues: u16,
    /// Sectors of a discard segment at most.
    pub max_discard_sectors: u32,
    /// Segments of a discard at most.
    pub max_discard_seg: u32,
    /// Alignment of a discard.
    pub discard_sector_alignment: u32,
    /// Sectors of a write zeroes segment at most.
    pub max_write_zeroes_sectors: u32,
    /// Segments of a write zeroes at most.
    pub max_write_zeroes_seg: u32,
    /// 1: write zeroes may deallocate.
    pub write_zeroes_may_unmap: u8,
}

impl Config {
    /// To its bytes. The legacy geometry (cylinders, heads, sectors) stays 0: it is not offered.
    pub fn to_bytes(&self) -> [u8; CONFIG_LEN] {
        let mut bytes = [0; CONFIG_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.capacity.to_le_bytes());
        put(8, &self.size_max.to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &self.blk_size.to_le_bytes());
        put(24, &[self.physical_block_exp, self.alignment_offset]);
        put(26, &self.min_io_size.to_le_bytes());
        put(28, &self.opt_io_size.to_le_bytes());
        put(32, &[self.writeback]);
        put(34, &self.num_queues.to_le_bytes());
        put(36, &self.max_discard_sectors.to_le_bytes());
        put(40, &self.max_discard_seg.to_le_bytes());
        put(44, &self.discard_sector_alignment.to_le_bytes());
        put(48, &self.max_write_zeroes_sectors.to_le_bytes());
        put(52, &self.max_write_zeroes_seg.to_le_bytes());
        put(56, &[self.write_zeroes_may_unmap]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_range_round_trip() {
        let header = Header { kind: request::OUT, sector: 0x1122_3344_5566 };
        assert_eq!(Header::parse(&header.to_bytes()), header);
        let range = Range { sector: 77, sectors: 0x8000_0001, flags: WRITE_ZEROES_UNMAP };
        assert_eq!(Range::parse(&range.to_bytes()), range);
    }

    #[test]
    fn config_fields_lie_where_the_specification_puts_them() {
        let config = Config { capacity: 1, num_queues: 0x0302, max_write_zeroes_seg: 9, ..Config::default() };
        let bytes = config.to_bytes();
        assert_eq!((bytes[0], bytes[34], bytes[35], bytes[52]), (1, 2, 3, 9));
    }
}
