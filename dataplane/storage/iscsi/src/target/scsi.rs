//! The disk that a target shows: commands to answers.

use super::Store;
use crate::scsi::{CACHING_PAGE, Cdb, Sense, op, sense_key, status, vpd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A logical unit.
#[derive(Debug)]
pub struct Unit {
    pub(super) store: Arc<dyn Store>,
    pub(super) block_size: u32,
    pub(super) read_only: bool,
    /// NAA designator, 16 bytes in hex of the unit's identity.
    naa: [u8; 16],
    /// Counts changes of the capacity: a nexus that has not seen the last one gets a unit attention.
    pub(super) capacity_changes: AtomicU64,
    /// Counts resets: what was queued before the last one is not carried out.
    pub(super) resets: AtomicU64,
}

/// A command that failed: status and sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed(pub(super) u8, pub(super) Sense);

/// CHECK CONDITION.
pub(super) fn check(key: u8, asc: u8, ascq: u8) -> Failed {
    Failed(status::CHECK_CONDITION, Sense { key, asc, ascq })
}

fn invalid_field() -> Failed {
    check(sense_key::ILLEGAL_REQUEST, 0x24, 0)
}

/// A change of the disk, checked and ready to be carried out.
#[derive(Debug)]
pub(super) enum Change {
    Write {
        offset: u64,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    /// Nothing to do: an empty range.
    Nothing,
}

impl Unit {
    /// A unit of blocks of `block_size` bytes over `store`, with an identity made from `seed`.
    pub fn new(store: Arc<dyn Store>, block_size: u32, read_only: bool, seed: u64) -> Unit {
        let mut naa = [0; 16];
        naa[..8].copy_from_slice(&0x6000_0000_0000_0000u64.to_be_bytes());
        naa[8..].copy_from_slice(&seed.to_be_bytes());
        let (capacity_changes, resets) = (AtomicU64::new(0), AtomicU64::new(0));
        Unit { store, block_size, read_only, naa, capacity_changes, resets }
    }

    /// Makes it longer or shorter, and tells every initiator.
    pub fn resize(&self, len: u64) -> std::io::Result<()> {
        self.store.resize(len)?;
        self.capacity_changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn num_blocks(&self) -> u64 {
        self.store.len() / u64::from(self.block_size)
    }

    fn range(&self, block: u64, count: u64) -> Result<(u64, u64), Failed> {
        match block.checked_add(count) {
            Some(end) if end <= self.num_blocks() => {
                Ok((block * u64::from(self.block_size), count * u64::from(self.block_size)))
            }
            // 21/00: logical block address out of range.
            _ => Err(check(sense_key::ILLEGAL_REQUEST, 0x21, 0)),
        }
    }

    /// Data that the initiator sends along with `cdb`, in bytes: what a well-formed command expects.
    pub(super) fn answer(&self, cdb: &Cdb) -> Result<Vec<u8>, Failed> {
        match cdb[0] {
            op::TEST_UNIT_READY | op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
                if cdb[0] != op::TEST_UNIT_READY {
                    self.store.flush().map_err(|_| check(sense_key::MEDIUM_ERROR, 0x0c, 0))?;
                }
                Ok(Vec::new())
            }
            op::INQUIRY => self.inquiry(cdb),
            op::MODE_SENSE_6 => Ok(self.mode_sense(cdb)),
            op::READ_CAPACITY_10 => {
                let last = u32::try_from(self.num_blocks().saturating_sub(1)).unwrap_or(u32::MAX);
                Ok([last.to_be_bytes(), self.block_size.to_be_bytes()].concat())
            }
            op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == op::READ_CAPACITY_16 => {
                let mut bytes = vec![0; 32];
                bytes[..8].copy_from_slice(&self.num_blocks().saturating_sub(1).to_be_bytes());
                bytes[8..12].copy_from_slice(&self.block_size.to_be_bytes());
                bytes[14] = 0xc0; // LBPME, LBPRZ
                Ok(cut(bytes, u32_at(cdb, 10) as usize))
            }
            op::READ_10 => self.read(u32_at(cdb, 2).into(), u16_at(cdb, 7).into()),
            op::READ_16 => self.read(u64_at(cdb, 2), u32_at(cdb, 10).into()),
            _ => Err(check(sense_key::ILLEGAL_REQUEST, 0x20, 0)),
        }
    }

    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>, Failed> {
        let (offset, len) = self.range(block, count)?;
        let mut bytes = vec![0; len as usize];
        self.store.read(offset, &mut bytes).map_err(|_| check(sense_key::MEDIUM_ERROR, 0x11, 0))?;
        Ok(bytes)
    }

    /// The change that a command with data to the disk makes, if it may: `None` for other commands.
    pub(super) fn change(&self, cdb: &Cdb, data: &[u8]) -> Option<Result<Change, Failed>> {
        let checked = match cdb[0] {
            op::WRITE_10 => self.write(u32_at(cdb, 2).into(), u16_at(cdb, 7).into(), data),
            op::WRITE_16 => self.write(u64_at(cdb, 2), u32_at(cdb, 10).into(), data),
            op::WRITE_SAME_16 => self.write_same(u64_at(cdb, 2), u32_at(cdb, 10).into(), data),
            op::UNMAP => self.unmap(data),
            _ => return None,
        };
        Some(if self.read_only { Err(check(sense_key::DATA_PROTECT, 0x27, 0)) } else { checked })
    }

    fn write(&self, block: u64, count: u64, data: &[u8]) -> Result<Change, Failed> {
        let (offset, len) = self.range(block, count)?;
        if data.len() as u64 != len {
            return Err(invalid_field());
        }
        Ok(Change::Write { offset })
    }

    fn write_same(&self, block: u64, count: u64, data: &[u8]) -> Result<Change, Failed> {
        let (offset, len) = self.range(block, count)?;
        if data.iter().any(|b| *b != 0) || data.len() != self.block_size as usize {
            return Err(invalid_field());
        }
        Ok(Change::Zero { offset, len })
    }

    fn unmap(&self, list: &[u8]) -> Result<Change, Failed> {
        let Some(descriptor) = list.get(8..24) else { return Ok(Change::Nothing) };
        let block = u64::from_be_bytes(descriptor[..8].try_into().expect("8 bytes"));
        let count = u32::from_be_bytes(descriptor[8..12].try_into().expect("4 bytes"));
        let (offset, len) = self.range(block, count.into())?;
        Ok(Change::Zero { offset, len })
    }

    /// Carries a change out.
    pub(super) fn carry_out(&self, change: &Change, data: &[u8]) -> Result<(), Failed> {
        let result = match *change {
            Change::Write { offset } => self.store.write(offset, data),
            Change::Zero { offset, len } => self.zero(offset, len),
            Change::Nothing => Ok(()),
        };
        result.map_err(|_| check(sense_key::MEDIUM_ERROR, 0x0c, 0))
    }

    fn zero(&self, mut offset: u64, mut len: u64) -> std::io::Result<()> {
        static ZEROS: [u8; 65_536] = [0; 65_536];
        while len > 0 {
            let step = len.min(ZEROS.len() as u64);
            self.store.write(offset, &ZEROS[..step as usize])?;
            offset += step;
            len -= step;
        }
        Ok(())
    }

    fn inquiry(&self, cdb: &Cdb) -> Result<Vec<u8>, Failed> {
        let bytes = if cdb[1] & 1 == 0 { standard_inquiry() } else { self.vital_product_data(cdb[2])? };
        Ok(cut(bytes, u16_at(cdb, 3).into()))
    }

    fn vital_product_data(&self, page: u8) -> Result<Vec<u8>, Failed> {
        let body = match page {
            vpd::SUPPORTED_PAGES => vec![
                vpd::SUPPORTED_PAGES,
                vpd::SERIAL_NUMBER,
                vpd::DEVICE_IDENTIFICATION,
                vpd::BLOCK_LIMITS,
                vpd::PROVISIONING,
            ],
            vpd::SERIAL_NUMBER => self.naa.iter().map(|b| format!("{b:02x}")).collect::<String>().into_bytes(),
            vpd::DEVICE_IDENTIFICATION => [&[1, 3, 0, 16][..], &self.naa].concat(),
            vpd::BLOCK_LIMITS => {
                let mut limits = vec![0; 60];
                limits[4..8].copy_from_slice(&(8u32 << 20 >> 9).to_be_bytes());
                limits[16..20].copy_from_slice(&(1u32 << 20).to_be_bytes());
                limits[20..24].copy_from_slice(&1u32.to_be_bytes());
                limits[32..40].copy_from_slice(&(1u64 << 20).to_be_bytes());
                limits
            }
            vpd::PROVISIONING => vec![0, 0xc4, 2, 0],
            _ => return Err(invalid_field()),
        };
        let len = (body.len() as u16).to_be_bytes();
        Ok([&[0, page, len[0], len[1]][..], &body].concat())
    }

    fn mode_sense(&self, cdb: &Cdb) -> Vec<u8> {
        let mut bytes = vec![0, 0, u8::from(self.read_only) << 7, 0];
        if matches!(cdb[2] & 0x3f, CACHING_PAGE | 0x3f) {
            bytes.extend([CACHING_PAGE, 0x12, 0x04]);
            bytes.resize(4 + 20, 0);
        }
        bytes[0] = bytes.len() as u8 - 1;
        cut(bytes, cdb[4].into())
    }
}

fn standard_inquiry() -> Vec<u8> {
    let mut bytes = vec![0, 0, 6, 0x12, 31, 0, 0, 2];
    bytes.extend(b"SLUICE  DISK            1   ");
    bytes
}

fn cut(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.truncate(len);
    bytes
}

fn u16_at(cdb: &Cdb, at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

fn u32_at(cdb: &Cdb, at: usize) -> u32 {
    u32::from_be_bytes(cdb[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(cdb: &Cdb, at: usize) -> u64 {
    u64::from_be_bytes(cdb[at..at + 8].try_into().expect("8 bytes"))
}
