//! Where a packed ring stands, read from the ring alone: for a device that died and whose front-end keeps no account of it.
//!
//! It can be told where each chain takes one descriptor of the ring, as those of indirect tables do: then the ring holds, from the
//! device's place on, what is available, and after that only what was used in the lap before (virtio 1.3, 2.8.1). One place at
//! most fits. A longer chain, and a batch in order, leave behind descriptors that are neither; then the front-end must know.

use crate::inflight::{PackedDesc, Position};
use crate::{QueueError, RingSetup};
use guest_memory::{GuestMemory, Window};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use virtio_spec::feature;
use virtio_spec::ring::{self, DESC_LEN, desc};

/// The base at which a packed ring goes on: after what its device used last. `None` when the ring does not tell. A batch of used
/// descriptors whose first one, which publishes it, the device did not live to write is published, the first one as empty.
pub fn packed_base(memory: &Arc<GuestMemory>, setup: &RingSetup) -> Result<Option<u32>, QueueError> {
    let size = setup.size;
    if size == 0 || size > ring::MAX_SIZE {
        return Err(QueueError::Size { size, expected: "1 to 32768" });
    }
    if setup.features & (feature::RING_INDIRECT_DESC | feature::IN_ORDER) != feature::RING_INDIRECT_DESC {
        return Ok(None);
    }
    let len = DESC_LEN * usize::from(size);
    let window =
        memory.user_window(setup.addresses.descriptor, len, 16).map_err(QueueError::access("descriptor ring"))?;
    let ring = DescriptorRing { window, size };
    let start = ring.start();
    let batch = ring.unpublished(start);
    let end = start.advanced(batch, size);
    if !ring.is_plain(end, size - batch) {
        return Ok(None);
    }
    if batch > 0 {
        ring.publish(start);
    }
    let bits = u32::from(end.to_bits());
    Ok(Some(bits | bits << 16))
}

struct DescriptorRing {
    window: Window,
    size: u16,
}

impl DescriptorRing {
    fn load(&self, index: u16) -> PackedDesc {
        let (addr, rest) = self.window.load_u64_pair(usize::from(index) * DESC_LEN, Acquire);
        PackedDesc { addr, len: rest as u32, id: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
    }

    fn is_available(&self, at: Position) -> bool {
        self.load(at.index).is_available(at)
    }

    /// Used in the lap of `at`.
    fn is_used(&self, at: Position) -> bool {
        let flags = self.load(at.index).flags;
        (flags & desc::AVAIL != 0) == at.wrap && (flags & desc::USED != 0) == at.wrap
    }

    /// The first descriptor that the device has not used.
    fn start(&self) -> Position {
        // The lap in which the driver, or the device after it, was at the first descriptor last.
        let wrap = self.load(0).flags & desc::AVAIL != 0;
        let of_lap = |wrap| (0..self.size).map(move |index| Position { index, wrap });
        // What is available since the lap before comes first.
        let before = of_lap(!wrap).find(|at| self.is_available(*at));
        let place = before.or_else(|| of_lap(wrap).find(|at| !self.is_used(*at)));
        place.unwrap_or(Position { index: 0, wrap: !wrap })
    }

    /// Descriptors of a batch that begins at `start` and of which all but the first are written.
    fn unpublished(&self, start: Position) -> u16 {
        let after = (1..self.size).map(|count| start.advanced(count, self.size));
        let written = after.take_while(|at| self.is_used(*at)).count() as u16;
        if written > 0 && self.is_available(start) { written + 1 } else { 0 }
    }

    /// From `start` on there is what is available, then what was used in the lap before, and nothing else for `count` descriptors.
    fn is_plain(&self, start: Position, count: u16) -> bool {
        let all = (0..count).map(|count| start.advanced(count, self.size));
        let before = |at: Position| Position { wrap: !at.wrap, ..at };
        all.skip_while(|at| self.is_available(*at)).all(|at| self.is_used(before(at)))
    }

    fn publish(&self, at: Position) {
        let flags = if at.wrap { desc::AVAIL | desc::USED } else { 0 };
        let rest = u64::from(self.load(at.index).id) << 32 | u64::from(flags) << 48;
        self.window.store_u64(usize::from(at.index) * DESC_LEN + 8, rest, Release);
    }
}
