//! What a disk may be, in one place, and the checks that say so.

use crate::{BlockError, Identity};
use invalid::Invalid;
use uuid::Uuid;

/// Bytes of a disk's name.
pub const MAX_NAME: usize = 255;
/// Bytes of the smallest logical block.
pub const MIN_BLOCK_SIZE: u32 = 512;
/// Bytes of the largest logical block.
pub const MAX_BLOCK_SIZE: u32 = 65_536;
/// Bytes of the largest disk: what a signed file offset can name.
pub const MAX_DISK_BYTES: u64 = i64::MAX as u64;

/// The identity of a new disk; its uuid is random where none is given.
pub(crate) fn identity(name: String, product_name: &'static str, uuid: Option<Uuid>) -> Result<Identity, BlockError> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let expected = format!("1 to {MAX_NAME} bytes without control characters");
        return Err(Invalid::new("name", format!("{name:?}"), expected).into());
    }
    Ok(Identity { name, product_name, uuid: uuid.unwrap_or_else(Uuid::new_v4) })
}

/// A logical block's bytes.
pub(crate) fn block_size(got: u32) -> Result<u32, BlockError> {
    if got.is_power_of_two() && (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&got) {
        return Ok(got);
    }
    let expected = format!("a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}");
    Err(Invalid::new("block_size", got, expected).into())
}

/// A physical block's bytes: the logical block's where none is given.
pub(crate) fn physical_block_size(got: Option<u32>, block_size: u32) -> Result<u32, BlockError> {
    match got {
        None => Ok(block_size),
        Some(got) if got.is_power_of_two() && got >= block_size => Ok(got),
        Some(got) => {
            let expected = format!("a power of two of at least the block size, {block_size}");
            Err(Invalid::new("physical_block_size", got, expected).into())
        }
    }
}

/// A number of blocks that makes a disk of a legal size.
pub(crate) fn num_blocks(got: u64, block_size: u32) -> Result<u64, BlockError> {
    let most = MAX_DISK_BYTES / u64::from(block_size);
    if (1..=most).contains(&got) {
        return Ok(got);
    }
    Err(Invalid::new("num_blocks", got, format!("1 to {most}")).into())
}

/// Blocks in one discard or write-zeroes that covers at most `bytes`.
pub(crate) fn blocks_in(bytes: u64, block_size: u32) -> u32 {
    u32::try_from(bytes / u64::from(block_size)).unwrap_or(u32::MAX)
}
