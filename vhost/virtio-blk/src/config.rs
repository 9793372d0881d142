//! Features and configuration space of a disk.

use crate::SEG_MAX;
use block::Geometry;
use virtio_spec::blk::{self, Config, SECTOR_SIZE};
use virtio_spec::feature as ring;

/// Bytes of configuration space that a front-end may read: what lies behind the last field reads as zero.
pub(crate) const CONFIG_SPACE: usize = 256;

/// The feature bits of a disk with this geometry.
pub(crate) fn features(geometry: &Geometry, queues: u16, packed: bool) -> u64 {
    let mut bits = ring::VERSION_1
        | ring::ANY_LAYOUT
        | ring::RING_INDIRECT_DESC
        | ring::RING_EVENT_IDX
        | ring::IN_ORDER
        | blk::feature::SEG_MAX
        | blk::feature::BLK_SIZE
        | blk::feature::TOPOLOGY;
    let optional = [
        (packed, ring::RING_PACKED),
        (queues > 1, blk::feature::MQ),
        (geometry.max_io_size < u32::MAX, blk::feature::SIZE_MAX),
        (geometry.read_only, blk::feature::RO),
        (geometry.write_cache, blk::feature::FLUSH),
        (geometry.max_discard_blocks > 0 && !geometry.read_only, blk::feature::DISCARD),
        (geometry.max_write_zeroes_blocks > 0 && !geometry.read_only, blk::feature::WRITE_ZEROES),
    ];
    optional.iter().filter(|(has, _)| *has).for_each(|(_, bit)| bits |= bit);
    bits
}

/// The configuration space of a disk with this geometry.
pub(crate) fn space(geometry: &Geometry, queues: u16) -> [u8; CONFIG_SPACE] {
    let sectors_a_block = geometry.block_size / SECTOR_SIZE as u32;
    let physical = (geometry.physical_block_size / geometry.block_size).max(1);
    let blocks = |bytes: u32| bytes / geometry.block_size;
    let config = Config {
        capacity: geometry.size_bytes() / SECTOR_SIZE,
        // A request of SEG_MAX segments may then not be longer than the backend takes.
        size_max: (geometry.max_io_size / SEG_MAX).max(geometry.block_size),
        seg_max: SEG_MAX,
        blk_size: geometry.block_size,
        physical_block_exp: physical.ilog2() as u8,
        alignment_offset: 0,
        min_io_size: physical as u16,
        opt_io_size: blocks(geometry.optimal_io_size),
        writeback: u8::from(geometry.write_cache),
        num_queues: queues,
        max_discard_sectors: geometry.max_discard_blocks.saturating_mul(sectors_a_block),
        max_discard_seg: 1,
        discard_sector_alignment: physical * sectors_a_block,
        max_write_zeroes_sectors: geometry.max_write_zeroes_blocks.saturating_mul(sectors_a_block),
        max_write_zeroes_seg: 1,
        write_zeroes_may_unmap: u8::from(geometry.max_discard_blocks > 0),
    };
    let mut space = [0; CONFIG_SPACE];
    space[..blk::CONFIG_LEN].copy_from_slice(&config.to_bytes());
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            block_size: 4096,
            num_blocks: 100,
            physical_block_size: 4096,
            optimal_io_size: 0,
            max_io_size: u32::MAX,
            max_discard_blocks: 8,
            max_write_zeroes_blocks: 8,
            compare: false,
            read_only: false,
            write_cache: true,
        }
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let bits = features(&Geometry { read_only: true, ..geometry() }, 1, false);
        assert_ne!(bits & blk::feature::RO, 0);
        assert_eq!(
            bits & (blk::feature::DISCARD | blk::feature::WRITE_ZEROES | blk::feature::MQ | ring::RING_PACKED),
            0
        );
    }

    #[test]
    fn limits_are_in_sectors_of_512_bytes() {
        let space = space(&geometry(), 4);
        assert_eq!(space[..8], 800_u64.to_le_bytes());
        assert_eq!(space[36..40], 64_u32.to_le_bytes());
        assert_eq!(space[34..36], 4_u16.to_le_bytes());
    }
}
