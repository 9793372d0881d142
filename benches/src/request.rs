//! 4 KiB requests as a driver's ring has them: a slot for each that may be in flight.

use anyhow::{Context, Result, ensure};
use guest_memory::{GuestAddress, GuestMemory};
use std::sync::Arc;
use virtio_spec::blk::{Header, SECTOR_SIZE, request, status};
use virtqueue::driver::Driver;

/// Bytes of a request.
pub(crate) const BLOCK: usize = 4096;
/// Slots.
pub(crate) const MAX_DEPTH: usize = 128;
/// Memory that the slots take: headers, then payload.
pub(crate) const SLOTS_LEN: usize = MAX_DEPTH * (HEADER_STRIDE + BLOCK);

/// A cache line holds the header and, as Linux has it, the status byte behind it.
const HEADER_STRIDE: usize = 64;
const STATUS: u64 = 16;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
        }
    }
}

/// The driver of one queue with its slots.
pub(crate) struct Requests {
    pub(crate) driver: Driver,
    memory: Arc<GuestMemory>,
    base: GuestAddress,
    /// By id of a chain: its slot.
    slots: Vec<usize>,
}

impl Requests {
    /// With slots in `memory` at `base`.
    pub(crate) fn new(memory: Arc<GuestMemory>, driver: Driver, base: GuestAddress) -> Requests {
        let slots = vec![0; usize::from(driver.setup().size)];
        Requests { driver, memory, base, slots }
    }

    /// Where the payload of a slot lies.
    pub(crate) fn data(base: GuestAddress, slot: usize) -> GuestAddress {
        GuestAddress(base.0 + (MAX_DEPTH * HEADER_STRIDE + slot * BLOCK) as u64)
    }

    /// Makes a request for a block available.
    pub(crate) fn submit(&mut self, slot: usize, kind: Kind, block: u64) -> Result<()> {
        let header = GuestAddress(self.base.0 + (slot * HEADER_STRIDE) as u64);
        let status_at = GuestAddress(header.0 + STATUS);
        let sector = block * (BLOCK as u64 / SECTOR_SIZE);
        let (ask, device_writes) = match kind {
            Kind::Read => (request::IN, true),
            Kind::Write => (request::OUT, false),
        };
        let mut bytes = [0xff; STATUS as usize + 1];
        bytes[..STATUS as usize].copy_from_slice(&Header { kind: ask, sector }.to_bytes());
        self.memory.write(header, &bytes)?;
        let data = Requests::data(self.base, slot);
        let chain = [(header, STATUS as u32, false), (data, BLOCK as u32, device_writes), (status_at, 1, true)];
        let id = self.driver.add(&chain).context("the ring is full")?;
        self.slots[usize::from(id)] = slot;
        Ok(())
    }

    /// The slot of the next request that was answered. One that failed is an error.
    pub(crate) fn take(&mut self) -> Result<Option<usize>> {
        let Some((id, _)) = self.driver.take_used() else { return Ok(None) };
        let slot = self.slots[usize::from(id)];
        let mut answer = [0xff];
        self.memory.read(GuestAddress(self.base.0 + (slot * HEADER_STRIDE) as u64 + STATUS), &mut answer)?;
        ensure!(answer == [status::OK], "a request failed with status {}", answer[0]);
        Ok(Some(slot))
    }
}
