//! The front-end's memory table and its epochs.
//!
//! A change makes a [`NextTable`] beside the current one; nothing is lost when it is refused. Once the device has moved,
//! [`MemoryTable::commit`] takes the new one and keeps the regions that left until nothing else holds them: a worker never unmaps.

use crate::error::Reason;
use crate::message::RegionDescription;
use guest_memory::{AccessError, GuestMemory, Mapping, Region};
use rustix::fs::fstat;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Regions that a table can have (GET_MAX_MEM_SLOTS). Descriptors are looked up by walking the table, so more is not better.
pub const MAX_MEM_SLOTS: usize = 256;
/// Bytes that a table can have: one front-end must not use up the address space of all.
pub const MAX_MEMORY: u64 = 8 << 40;

/// A region and what it was made from.
#[derive(Clone, Debug)]
struct Slot {
    description: RegionDescription,
    /// Device and inode of the file.
    file: (u64, u64),
    region: Arc<Region>,
}

/// A table that has been checked and mapped, and is not yet in force.
#[derive(Debug)]
pub(crate) struct NextTable {
    slots: Vec<Slot>,
    pub(crate) memory: Arc<GuestMemory>,
}

impl NextTable {
    fn new(slots: Vec<Slot>) -> Result<NextTable, Reason> {
        if slots.len() > MAX_MEM_SLOTS {
            return Err(Reason::value("regions", slots.len() as u32, format!("at most {MAX_MEM_SLOTS}")));
        }
        let total = slots.iter().try_fold(0_u64, |sum, slot| sum.checked_add(slot.region.len()));
        if total.is_none_or(|total| total > MAX_MEMORY) {
            let total = total.unwrap_or(u64::MAX);
            return Err(Reason::value("bytes of all regions", total, format!("at most {MAX_MEMORY:#x}")));
        }
        let mut by_user: Vec<_> = slots.iter().map(|s| (s.region.user_address().0, s.region.len())).collect();
        by_user.sort_unstable();
        if let Some(pair) = by_user.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            let source = AccessError { address: pair[1].0, len: pair[1].1 };
            return Err(Reason::Overlap { space: "user", source });
        }
        let regions = slots.iter().map(|s| s.region.clone()).collect();
        let memory = GuestMemory::new(regions).map_err(|source| Reason::Overlap { space: "guest", source })?;
        Ok(NextTable { slots, memory: Arc::new(memory) })
    }
}

/// The table in force.
#[derive(Debug, Default)]
pub(crate) struct MemoryTable {
    slots: Vec<Slot>,
    memory: Arc<GuestMemory>,
    retired: Retired,
}

impl MemoryTable {
    pub(crate) fn new(retired: Retired) -> MemoryTable {
        MemoryTable { retired, ..MemoryTable::default() }
    }

    /// The epoch in force.
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Whether `next` has the same regions as the table in force.
    pub(crate) fn is(&self, next: &NextTable) -> bool {
        let (old, new) = (self.memory.regions(), next.memory.regions());
        old.len() == new.len() && old.iter().zip(new).all(|(old, new)| Arc::ptr_eq(old, new))
    }

    /// SET_MEM_TABLE: `regions` and no other. One that is there already keeps its mapping and with it its page tables.
    pub(crate) fn replaced(&self, regions: Vec<(RegionDescription, OwnedFd)>) -> Result<NextTable, Reason> {
        NextTable::new(regions.into_iter().map(|(d, fd)| self.slot(d, fd)).collect::<Result<_, _>>()?)
    }

    /// ADD_MEM_REG.
    pub(crate) fn with(&self, description: RegionDescription, fd: OwnedFd) -> Result<NextTable, Reason> {
        let mut slots = self.slots.clone();
        slots.push(self.slot(description, fd)?);
        NextTable::new(slots)
    }

    /// REM_MEM_REG: "identified by its guest address, user address and size. The mmap offset is ignored."
    pub(crate) fn without(&self, gone: RegionDescription) -> Result<NextTable, Reason> {
        let same = |d: &RegionDescription| (d.guest, d.user, d.size) == (gone.guest, gone.user, gone.size);
        let index = self.slots.iter().position(|s| same(&s.description)).ok_or(Reason::NoRegion)?;
        let mut slots = self.slots.clone();
        slots.remove(index);
        NextTable::new(slots)
    }

    /// Puts `next` in force. The device no longer uses the old epoch.
    pub(crate) fn commit(&mut self, next: NextTable) {
        let old = std::mem::replace(&mut self.slots, next.slots);
        self.memory = next.memory;
        let stays = |old: &Slot| self.slots.iter().any(|new| Arc::ptr_eq(&new.region, &old.region));
        self.retired.0.extend(old.into_iter().filter(|slot| !stays(slot)).map(|slot| slot.region));
        self.retired.collect();
    }

    /// Unmaps the regions that are not in use any more. Returns whether some are left.
    pub(crate) fn collect(&mut self) -> bool {
        self.retired.collect()
    }

    /// Ends the table; the regions are left to be collected.
    pub(crate) fn close(mut self) -> Retired {
        drop(self.memory);
        self.retired.0.extend(self.slots.drain(..).map(|slot| slot.region));
        self.retired.collect();
        self.retired
    }

    fn slot(&self, description: RegionDescription, fd: OwnedFd) -> Result<Slot, Reason> {
        let stat = fstat(&fd).map_err(|e| Reason::Os { what: "fstat", source: e.into() })?;
        let file = (stat.st_dev, stat.st_ino);
        let same = |s: &&Slot| s.description == description && s.file == file && !s.region.is_truncated();
        if let Some(slot) = self.slots.iter().find(same) {
            return Ok(slot.clone());
        }
        let mapping = Mapping::shared(fd.as_fd(), description.mmap_offset, description.size)?;
        let region =
            Region::new(description.guest, description.user, mapping).map_err(guest_memory::MapError::Range)?;
        Ok(Slot { description, file, region: Arc::new(region) })
    }
}

/// Regions that have left a table and are perhaps still in use.
#[derive(Debug, Default)]
pub(crate) struct Retired(Vec<Arc<Region>>);

impl Retired {
    /// Unmaps the regions that only the session holds. Returns whether others are left.
    pub(crate) fn collect(&mut self) -> bool {
        self.0.retain(|region| Arc::strong_count(region) > 1);
        !self.0.is_empty()
    }
}
