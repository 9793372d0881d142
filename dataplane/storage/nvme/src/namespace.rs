//! A namespace as a disk: who it is, what it looks like now.

use crate::controller::{ControllerFacts, NamespaceInfo};
use crate::queue_pair::MAX_TRANSFER;
use crate::spec::IdentifyController;
use block::{Geometry, Identity};
use initiator::{DiskIdentity, DiskReplaced};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use uuid::Uuid;

/// The product name of these disks, in SPDK's words.
const PRODUCT_NAME: &str = "NVMe disk";
/// Largest transfer that is offered: larger ones only wait longer.
const MAX_IO: u32 = 1 << 20;

/// A namespace. Its supervisor keeps it up to date; channels look at the atomics.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) nsid: u32,
    pub(crate) identity: Identity,
    pub(crate) block_shift: u32,
    size_bytes: AtomicU64,
    max_io_size: AtomicU32,
    read_only: AtomicBool,
    gone: AtomicBool,
    geometry: Mutex<Geometry>,
}

impl Namespace {
    /// A namespace that can be used, or why not.
    pub(crate) fn new(
        controller: &str,
        subnqn: &str,
        info: &NamespaceInfo,
        facts: &ControllerFacts,
    ) -> Result<Namespace, String> {
        let identify = &info.identify;
        if !(9..=16).contains(&identify.block_shift) {
            return Err(format!(
                "LBADS: got {}, expected 9 to 16 (blocks of 512 to 65,536 bytes)",
                identify.block_shift
            ));
        }
        if identify.metadata_bytes != 0 {
            return Err(format!("MS: got {}, expected 0 (no metadata)", identify.metadata_bytes));
        }
        if info.ids.csi != 0 {
            return Err(format!("CSI: got {}, expected 0 (the NVM command set)", info.ids.csi));
        }
        if identify
            .blocks
            .checked_shl(identify.block_shift.into())
            .is_none_or(|bytes| bytes >> identify.block_shift != identify.blocks)
        {
            return Err(format!("NSZE: got {} blocks, expected less than 2^64 bytes", identify.blocks));
        }
        let geometry = geometry(info, facts);
        let name = format!("{controller}n{}", info.nsid);
        Ok(Namespace {
            nsid: info.nsid,
            identity: Identity { name, product_name: PRODUCT_NAME, uuid: identity_of(subnqn, info) },
            block_shift: identify.block_shift.into(),
            size_bytes: AtomicU64::new(geometry.size_bytes()),
            max_io_size: AtomicU32::new(geometry.max_io_size),
            read_only: AtomicBool::new(geometry.read_only),
            gone: AtomicBool::new(false),
            geometry: Mutex::new(geometry),
        })
    }

    /// Takes over what the controller says now. Returns the number of blocks before, where it changed.
    pub(crate) fn update(
        &self,
        subnqn: &str,
        info: &NamespaceInfo,
        facts: &ControllerFacts,
    ) -> Result<Option<u64>, DiskReplaced> {
        let disk = |uuid: Uuid, shift: u32| DiskIdentity { id: uuid.as_bytes().to_vec(), block_size: 1 << shift };
        let found = disk(identity_of(subnqn, info), info.identify.block_shift.min(31).into());
        disk(self.identity.uuid, self.block_shift).check(&found)?;
        if self.is_gone() {
            return Err(DiskReplaced);
        }
        let new = geometry(info, facts);
        let mut current = self.geometry.lock();
        let before = current.num_blocks;
        *current = new;
        self.size_bytes.store(new.size_bytes(), Ordering::Release);
        self.max_io_size.store(new.max_io_size, Ordering::Release);
        self.read_only.store(new.read_only, Ordering::Release);
        Ok((before != new.num_blocks).then_some(before))
    }

    pub(crate) fn geometry(&self) -> Geometry {
        *self.geometry.lock()
    }

    /// Marks the namespace as removed: its requests fail from now on.
    pub(crate) fn remove(&self) {
        self.gone.store(true, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Bytes of one command at most.
    pub(crate) fn max_io_size(&self) -> u32 {
        self.max_io_size.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }
}

fn geometry(info: &NamespaceInfo, facts: &ControllerFacts) -> Geometry {
    let identify = &info.identify;
    let block_size = 1u32 << identify.block_shift;
    let supports = |bit| facts.identify.optional_commands & bit != 0;
    let hint = |blocks: u16| if blocks > 0 { (u32::from(blocks) + 1) * block_size } else { 0 };
    let granularity = hint(identify.write_granularity).max(block_size);
    Geometry {
        block_size,
        num_blocks: identify.blocks,
        physical_block_size: if granularity.is_power_of_two() { granularity } else { block_size },
        optimal_io_size: hint(identify.optimal_write),
        max_io_size: facts.max_transfer().min(MAX_IO).max(block_size).min(MAX_TRANSFER),
        max_discard_blocks: if supports(IdentifyController::DATASET_MANAGEMENT) { u32::MAX } else { 0 },
        max_write_zeroes_blocks: if supports(IdentifyController::WRITE_ZEROES) { u32::MAX } else { 0 },
        compare: supports(IdentifyController::COMPARE),
        read_only: identify.write_protected,
        write_cache: facts.identify.write_cache & 1 != 0,
    }
}

/// The strongest identity the namespace has: UUID, NGUID, EUI64; else one made of subsystem and NSID (FNV-1a, so that it is
/// the same each time).
fn identity_of(subnqn: &str, info: &NamespaceInfo) -> Uuid {
    let nguid = info.ids.nguid.unwrap_or(info.identify.nguid);
    let eui64 = info.ids.eui64.unwrap_or(info.identify.eui64);
    if let Some(uuid) = info.ids.uuid.filter(|uuid| !uuid.is_nil()) {
        return uuid;
    }
    if nguid != [0; 16] {
        return Uuid::from_bytes(nguid);
    }
    if eui64 != [0; 8] {
        return Uuid::from_u64_pair(u64::from_be_bytes(eui64), 0);
    }
    let fnv =
        |hash: u128, byte: &u8| (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B);
    let hash =
        subnqn.as_bytes().iter().chain(&info.nsid.to_le_bytes()).fold(0x6C62_272E_07BB_0142_62B8_2175_6295_C58D, fnv);
    Uuid::from_u128(hash)
}
