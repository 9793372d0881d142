//! The packed layout ([virtio 1.3 § 2.8]).
//!
//! [virtio 1.3 § 2.8]: https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html

use crate::inflight::{PackedDesc, PackedInflight, Position};
use crate::ring::{Layout, RingCore};
use crate::{Access, ChainToken, Descriptor, DescriptorChain, QueueError, RingAddresses, RingSetup, SingleBufferChain};
use guest_memory::{GuestAddress, GuestMemory, Window};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use virtio_spec::ring::{self, DESC_LEN, desc, event};

const EVENT_LEN: usize = 4;
const EVENT_OFF_WRAP: usize = 0;
const EVENT_FLAGS: usize = 2;

#[derive(Debug)]
struct Areas {
    descriptors: Window,
    /// Of what the driver wants to be notified.
    driver_event: Window,
    /// Of what the device wants to be notified.
    device_event: Window,
    /// Guest address of the descriptor ring, for the log.
    descriptors_at: GuestAddress,
}

impl Areas {
    fn new(memory: &Arc<GuestMemory>, at: &RingAddresses, size: u16) -> Result<Areas, QueueError> {
        let area =
            |name, address, len, align| memory.user_window(address, len, align).map_err(QueueError::access(name));
        Ok(Areas {
            descriptors: area("descriptor ring", at.descriptor, DESC_LEN * usize::from(size), 16)?,
            driver_event: area("driver event suppression", at.driver, EVENT_LEN, 4)?,
            device_event: area("device event suppression", at.device, EVENT_LEN, 4)?,
            descriptors_at: memory.guest_address(at.descriptor).map_err(QueueError::access("descriptor ring"))?,
        })
    }

    /// Reads a descriptor, once.
    #[inline(always)]
    fn load(&self, index: u16) -> PackedDesc {
        let (addr, rest) = self.descriptors.load_u64_pair(usize::from(index) * DESC_LEN, Acquire);
        PackedDesc { addr, len: rest as u32, id: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
    }

    /// Writes a used descriptor: length, id and flags at once. The address stays.
    #[inline(always)]
    fn store_used(&self, at: Position, id: u16, written: u32) {
        self.descriptors.store_u64(usize::from(at.index) * DESC_LEN + 8, used(at.wrap, id, written), Release);
    }

    /// Writes a used descriptor for each of `chains`, from `at` on, as far as the ring goes.
    #[inline(always)]
    fn store_used_run(&self, at: Position, chains: &[SingleBufferChain]) {
        let seconds = chains.iter().map(|chain| used(at.wrap, chain.token.id(), chain.written));
        self.descriptors.store_u64_seconds(usize::from(at.index) * DESC_LEN, seconds, Release);
    }

    /// Takes back the flags of a used descriptor that was not published.
    fn set_available(&self, at: Position) {
        let flags = if at.wrap { desc::AVAIL } else { desc::USED };
        self.descriptors.store_u16(usize::from(at.index) * DESC_LEN + 14, flags, Release);
    }

    #[inline(always)]
    fn is_available(&self, at: Position) -> bool {
        self.load(at.index).is_available(at)
    }
}

/// What a used descriptor says behind its address.
#[inline(always)]
fn used(wrap: bool, id: u16, written: u32) -> u64 {
    let flags = if wrap { desc::AVAIL | desc::USED } else { 0 } | if written > 0 { desc::WRITE } else { 0 };
    u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48
}

/// The packed layout: one ring of descriptors, and two areas of event suppression.
#[derive(Debug)]
pub struct Packed {
    areas: Areas,
    /// Next descriptor to take.
    avail: Position,
    /// Where the next batch of used descriptors starts, and where it ends by now.
    used: Position,
    used_end: Position,
    /// What the batch's first descriptor will say, which publishes it: id and bytes written.
    first_used: Option<(u16, u32)>,
    inflight: Option<PackedInflight>,
    /// Where the position in the ring is kept, when chains are not.
    position: Option<PackedInflight>,
    /// Chains of the batch that is not published yet.
    unpublished: u16,
    /// The batch, and the bytes written; kept only for a region.
    batch: Vec<(ChainToken, u32)>,
    /// Staging for the ring's descriptors of one chain; kept only for the inflight region.
    copied: Vec<PackedDesc>,
}

impl Packed {
    /// Goes on from what `region` has of a process before this one. Returns the entries to process again, the next one last.
    fn recover(&mut self, region: Window, size: u16) -> Result<Vec<u16>, QueueError> {
        let (mut inflight, fresh) = PackedInflight::new(region, size, self.used)?;
        let mut resubmit = Vec::new();
        if !fresh {
            let recovery = inflight.recover(|at| self.areas.is_available(at), |at| self.areas.set_available(at));
            if let Some(used) = recovery.used {
                let held: u32 = recovery.entries.iter().map(|&e| u32::from(inflight.count(e))).sum();
                self.used = used;
                self.used_end = used;
                self.avail = used.advanced(held.min(u32::from(size)) as u16, size);
            }
            resubmit = recovery.entries;
            resubmit.reverse();
        }
        self.inflight = Some(inflight);
        Ok(resubmit)
    }

    /// Goes on from the position that `region` has, and keeps it there from now on.
    pub(crate) fn persist_ring_position(&mut self, core: &mut RingCore, region: Window) -> Result<(), QueueError> {
        let (position, fresh) = PackedInflight::new(region, core.size, self.used)?;
        if !fresh && let Some(used) = position.recover_ring_position(|at| self.areas.is_available(at)) {
            self.avail = used;
            self.used = used;
            self.used_end = used;
        }
        self.position = Some(position);
        core.tracked = true;
        Ok(())
    }

    #[inline(always)]
    fn push(&self, core: &RingCore, chain: &mut DescriptorChain, d: PackedDesc, first: bool) -> Result<(), QueueError> {
        if d.flags & desc::INDIRECT == 0 {
            return chain.push(d.addr, d.len, d.flags);
        }
        if !core.indirect || !first || d.flags & desc::NEXT != 0 {
            return Err(QueueError::Indirect("without the feature, or in a chain"));
        }
        chain.push_packed_table(&core.memory, d.addr, d.len)
    }

    /// Writes a used descriptor for `chains` that take `count` descriptors; the first one of a batch later, when it publishes.
    #[inline(always)]
    fn write_used(&mut self, core: &RingCore, id: u16, written: u32, count: u16, chains: u16) {
        if self.first_used.is_none() {
            self.first_used = Some((id, written));
        } else {
            self.areas.store_used(self.used_end, id, written);
            self.log_descriptors(core, self.used_end, 1);
        }
        self.used_end = self.used_end.advanced(count, core.size);
        self.unpublished += chains;
    }

    /// Publishes each chain by itself, so that nothing but its own first descriptor is written before it is used, and keeps the
    /// position before and after.
    #[inline(never)]
    fn publish_one_by_one(&mut self, core: &mut RingCore) -> bool {
        let (Some(position), false) = (&self.position, self.batch.is_empty()) else { return false };
        for &(token, written) in &self.batch {
            let (at, next) = (self.used_end, self.used_end.advanced(token.count(), core.size));
            position.persist_ring_position(at, next);
            self.areas.store_used(at, token.id(), written);
            self.log_descriptors(core, at, 1);
            position.persist_ring_position(next, next);
            self.used_end = next;
        }
        self.unpublished = self.batch.len() as u16;
        self.batch.clear();
        self.published(core)
    }

    /// Counts the batch as given back, now that the driver can see it. Returns whether the driver wants to be notified of it.
    #[inline(always)]
    fn published(&mut self, core: &mut RingCore) -> bool {
        let start = std::mem::replace(&mut self.used, self.used_end);
        core.given_back = core.given_back.wrapping_add(std::mem::take(&mut self.unpublished));
        // The driver enables notifications, then looks; the device publishes, then looks: one of them sees the other.
        fence(SeqCst);
        self.wants_notification(core, start)
    }

    /// Writes the batch of a ring with an inflight region.
    fn write_batch(&mut self, core: &RingCore) {
        if let Some(inflight) = &mut self.inflight
            && !self.batch.is_empty()
        {
            let end = self.batch.iter().fold(self.used, |at, (token, _)| at.advanced(token.count(), core.size));
            inflight.free(self.batch.iter().map(|(token, _)| token), end);
        }
        for index in 0..self.batch.len() {
            let (token, written) = self.batch[index];
            self.write_used(core, token.id(), written, token.count(), 1);
        }
    }

    /// Whether the driver wants to be notified of the descriptors used since `start`.
    fn wants_notification(&self, core: &RingCore, start: Position) -> bool {
        match self.areas.driver_event.load_u16(EVENT_FLAGS, Acquire) {
            event::DISABLE => false,
            event::DESC if core.event_idx => {
                let wanted = Position::from_bits(self.areas.driver_event.load_u16(EVENT_OFF_WRAP, Relaxed));
                let mut at = wanted.index;
                if wanted.wrap != self.used.wrap {
                    at = at.wrapping_sub(core.size);
                }
                // The driver's place and the device's are counted from the same lap.
                let old = if start.wrap == self.used.wrap { start.index } else { start.index.wrapping_sub(core.size) };
                ring::need_event(at, self.used.index, old)
            }
            _ => true,
        }
    }

    #[inline]
    fn log_descriptors(&self, core: &RingCore, at: Position, count: usize) {
        if let (Some(log), Some(_)) = (&core.log, core.addresses.used_log) {
            let offset = u64::from(at.index) * DESC_LEN as u64;
            log.mark(GuestAddress(self.areas.descriptors_at.0.wrapping_add(offset)), (DESC_LEN * count) as u64);
        }
    }
}

impl Layout for Packed {
    fn start(memory: &Arc<GuestMemory>, setup: &RingSetup) -> Result<(Packed, Vec<u16>), QueueError> {
        let size = setup.size;
        if size == 0 || size > ring::MAX_SIZE {
            return Err(QueueError::Size { size, expected: "1 to 32768" });
        }
        let areas = Areas::new(memory, &setup.addresses, size)?;
        let base = start_position(setup.base, size)?;
        let mut packed = Packed {
            areas,
            avail: base,
            used: base,
            used_end: base,
            first_used: None,
            inflight: None,
            position: None,
            unpublished: 0,
            batch: Vec::with_capacity(usize::from(size)),
            copied: Vec::with_capacity(usize::from(size)),
        };
        let resubmit = setup.inflight.clone().map_or(Ok(Vec::new()), |region| packed.recover(region, size))?;
        Ok((packed, resubmit))
    }

    fn relocate(&mut self, core: &RingCore, memory: &Arc<GuestMemory>) -> Result<(), QueueError> {
        self.areas = Areas::new(memory, &core.addresses, core.size)?;
        Ok(())
    }

    fn is_available(&mut self, _: &RingCore) -> Result<bool, QueueError> {
        Ok(self.areas.is_available(self.avail))
    }

    #[inline(always)]
    fn take_next(&mut self, core: &RingCore, chain: &mut DescriptorChain) -> Result<bool, QueueError> {
        let mut d = self.areas.load(self.avail.index);
        if !d.is_available(self.avail) {
            return Ok(false);
        }
        chain.clear();
        let tracked = self.inflight.is_some();
        if tracked {
            self.copied.clear();
        }
        let (mut at, mut count) = (self.avail, 0);
        while count < core.size {
            self.push(core, chain, d, count == 0)?;
            if tracked {
                self.copied.push(d);
            }
            count += 1;
            at = at.advanced(1, core.size);
            if d.flags & (desc::NEXT | desc::INDIRECT) != desc::NEXT {
                self.avail = at;
                let entry = self.inflight.as_mut().map_or(0, |inflight| inflight.take(&self.copied));
                chain.token = ChainToken::new(d.id, count, entry, core.taken);
                return Ok(true);
            }
            d = self.areas.load(at.index);
        }
        Err(QueueError::ChainLoop { limit: core.size })
    }

    /// The ring may no longer have the chain; the region has.
    #[cold]
    fn resubmit(&mut self, core: &RingCore, entry: u16, chain: &mut DescriptorChain) -> Result<(), QueueError> {
        chain.clear();
        let (mut id, mut count) = (0, 0);
        let inflight = self.inflight.as_ref().expect("only a region names chains to process again");
        for d in inflight.descriptors(entry) {
            self.push(core, chain, d, count == 0)?;
            id = d.id;
            count += 1;
        }
        chain.token = ChainToken::new(id, count, entry, core.taken);
        Ok(())
    }

    #[inline(always)]
    fn run_length(&mut self, core: &RingCore, room: usize) -> usize {
        // A batch ends where the ring does.
        room.min(usize::from(core.size - self.avail.index))
    }

    #[inline(always)]
    fn take_singles<const N: usize>(
        &self,
        core: &RingCore,
        access: Access,
        count: usize,
        chains: &mut [SingleBufferChain],
    ) -> bool {
        const MASK: u64 = ((Access::MASK | desc::AVAIL | desc::USED) as u64) << 48;
        let wanted = u64::from(access.flags() | if self.avail.wrap { desc::AVAIL } else { desc::USED }) << 48;
        let at = (usize::from(self.avail.index) + count) * DESC_LEN;
        let descriptors = self.areas.descriptors.load_u64_pairs::<N>(at, Acquire);
        if descriptors.iter().fold(0, |differ, (_, rest)| differ | (rest ^ wanted)) & MASK != 0 {
            return false;
        }
        for (n, (chain, (address, rest))) in chains.iter_mut().zip(descriptors).enumerate() {
            let sequence = core.taken.wrapping_add((count + n) as u16);
            let buffer = Descriptor { address: GuestAddress(address), len: rest as u32 };
            *chain =
                SingleBufferChain { buffer, token: ChainToken::new((rest >> 32) as u16, 1, 0, sequence), written: 0 };
        }
        true
    }

    #[inline(always)]
    fn advance(&mut self, core: &RingCore, count: u16) {
        self.avail = self.avail.advanced(count, core.size);
    }

    #[inline(always)]
    fn retreat(&mut self, core: &RingCore, token: ChainToken) {
        self.avail = self.avail.retreated(token.count(), core.size);
    }

    #[inline(always)]
    fn put_used(&mut self, core: &mut RingCore, token: ChainToken, written: u32, chains: u16) {
        if core.tracked {
            self.batch.push((token, written));
        } else {
            self.write_used(core, token.id(), written, token.count() * chains, chains);
        }
    }

    #[inline(always)]
    fn put_used_singles(&mut self, core: &mut RingCore, chains: &[SingleBufferChain]) {
        if core.tracked {
            return self.batch.extend(chains.iter().map(|chain| (chain.token, chain.written)));
        }
        debug_assert!(chains.iter().all(|chain| chain.token.count() == 1), "one descriptor each");
        let mut rest = chains;
        if let ([first, others @ ..], None) = (rest, self.first_used) {
            self.write_used(core, first.token.id(), first.written, 1, 1);
            rest = others;
        }
        while !rest.is_empty() {
            // A run ends where the ring does.
            let (run, others) = rest.split_at(rest.len().min(usize::from(core.size - self.used_end.index)));
            self.areas.store_used_run(self.used_end, run);
            self.log_descriptors(core, self.used_end, run.len());
            self.used_end = self.used_end.advanced(run.len() as u16, core.size);
            self.unpublished += run.len() as u16;
            rest = others;
        }
    }

    #[inline(always)]
    fn publish(&mut self, core: &mut RingCore) -> bool {
        if self.position.is_some() {
            return self.publish_one_by_one(core);
        }
        if self.inflight.is_some() {
            self.write_batch(core);
        }
        let Some((id, written)) = self.first_used.take() else { return false };
        // Last: the driver looks at the first one, and then finds the rest.
        self.areas.store_used(self.used, id, written);
        self.log_descriptors(core, self.used, 1);
        if let Some(inflight) = &mut self.inflight {
            inflight.unmark(self.batch.iter().map(|(token, _)| token));
            self.batch.clear();
        }
        self.published(core)
    }

    fn enable_kicks(&mut self, core: &RingCore) {
        if core.event_idx {
            self.areas.device_event.store_u16(EVENT_OFF_WRAP, self.avail.to_bits(), Relaxed);
            self.areas.device_event.store_u16(EVENT_FLAGS, event::DESC, Release);
        } else {
            self.areas.device_event.store_u16(EVENT_FLAGS, event::ENABLE, Relaxed);
        }
        // The front-end names the device event area as the "used ring" of a packed ring.
        core.log_used(0, EVENT_LEN as u64);
    }

    fn disable_kicks(&mut self, core: &RingCore) {
        self.areas.device_event.store_u16(EVENT_FLAGS, event::DISABLE, Relaxed);
        core.log_used(0, EVENT_LEN as u64);
    }

    fn base(&self) -> u32 {
        u32::from(self.avail.to_bits()) | u32::from(self.used.to_bits()) << 16
    }
}

/// Where to go on: a ring that was stopped is drained, so its used position equals the available one.
fn start_position(base: u32, size: u16) -> Result<Position, QueueError> {
    let at = Position::from_bits(base as u16);
    if at.index >= size {
        return Err(QueueError::DescriptorIndex { index: at.index, size });
    }
    Ok(at)
}
