//! The packed layout (virtio 1.3, 2.8).

use crate::inflight::{PackedDesc, PackedInflight, Position};
use crate::order::InOrder;
use crate::{Access, Chain, Descriptor, QueueError, RingAddresses, Setup, Single, Token};
use guest_memory::{DirtyLog, GuestAddress, GuestMemory, Window};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use virtio_spec::feature;
use virtio_spec::ring::{self, DESC_LEN, desc, event};

const EVENT_LEN: usize = 4;
const EVENT_OFF_WRAP: usize = 0;
const EVENT_FLAGS: usize = 2;

#[derive(Debug)]
struct Areas {
    descriptors: Window,
    /// What the driver wants to hear.
    driver_event: Window,
    /// What we want to hear.
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

    /// The same for chains of one descriptor each, from `at` on, as far as the ring goes.
    #[inline(always)]
    fn store_used_run(&self, at: Position, singles: &[Single]) {
        let seconds = singles.iter().map(|single| used(at.wrap, single.token.id(), single.written));
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

/// Descriptors of a cache line, which are looked at together.
const LINE: usize = 4;

/// A packed virtqueue.
#[derive(Debug)]
pub(crate) struct PackedQueue {
    areas: Areas,
    memory: Arc<GuestMemory>,
    addresses: RingAddresses,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// Next descriptor to take.
    avail: Position,
    /// Where the next batch of used descriptors starts, and where it ends by now.
    used: Position,
    used_end: Position,
    /// What the batch's first descriptor will say, which publishes it: id and bytes written.
    first_used: Option<(u16, u32)>,
    /// Chains taken and chains given back.
    taken: u16,
    given_back: u16,
    order: Option<InOrder>,
    inflight: Option<PackedInflight>,
    /// Where the place in the ring is noted, when chains are not.
    place: Option<PackedInflight>,
    /// Inflight entries to serve again after a restart, the next one last.
    again: Vec<u16>,
    /// Chains of the batch that is not published yet.
    unpublished: u16,
    /// The batch, and the bytes written; kept only for the inflight region.
    batch: Vec<(Token, u32)>,
    /// Staging for the ring's descriptors of one chain; kept only for the inflight region.
    copied: Vec<PackedDesc>,
    log: Option<DirtyLog>,
}

impl PackedQueue {
    pub(crate) fn new(memory: Arc<GuestMemory>, setup: &Setup) -> Result<PackedQueue, QueueError> {
        let size = setup.size;
        if size == 0 || size > ring::MAX_SIZE {
            return Err(QueueError::Size { size, expected: "1 to 32768" });
        }
        let areas = Areas::new(&memory, &setup.addresses, size)?;
        let base = start_position(setup.base, size)?;
        let mut queue = PackedQueue {
            areas,
            memory,
            addresses: setup.addresses,
            size,
            event_idx: setup.features & feature::RING_EVENT_IDX != 0,
            indirect: setup.features & feature::RING_INDIRECT_DESC != 0,
            avail: base,
            used: base,
            used_end: base,
            first_used: None,
            taken: 0,
            given_back: 0,
            order: (setup.features & feature::IN_ORDER != 0).then(|| InOrder::new(size)),
            inflight: None,
            place: None,
            again: Vec::new(),
            unpublished: 0,
            batch: Vec::with_capacity(usize::from(size)),
            copied: Vec::with_capacity(usize::from(size)),
            log: None,
        };
        if let Some(region) = setup.inflight.clone() {
            queue.recover(region, base)?;
        }
        Ok(queue)
    }

    fn recover(&mut self, region: Window, base: Position) -> Result<(), QueueError> {
        let (mut inflight, fresh) = PackedInflight::new(region, self.size, base)?;
        if !fresh {
            let recovery = inflight.recover(|at| self.areas.is_available(at), |at| self.areas.set_available(at));
            if let Some(used) = recovery.used {
                let held: u32 = recovery.entries.iter().map(|&e| u32::from(inflight.count(e))).sum();
                (self.used, self.used_end) = (used, used);
                self.avail = used.advanced(held.min(u32::from(self.size)) as u16, self.size);
            }
            self.again = recovery.entries;
            self.again.reverse();
        }
        self.inflight = Some(inflight);
        Ok(())
    }

    pub(crate) fn note_place(&mut self, region: Window) -> Result<(), QueueError> {
        let (place, fresh) = PackedInflight::new(region, self.size, self.used)?;
        if !fresh && let Some(used) = place.recover_place(|at| self.areas.is_available(at)) {
            (self.avail, self.used, self.used_end) = (used, used, used);
        }
        self.place = Some(place);
        Ok(())
    }

    pub(crate) fn relocate(&mut self, memory: Arc<GuestMemory>) -> Result<(), QueueError> {
        self.areas = Areas::new(&memory, &self.addresses, self.size)?;
        self.memory = memory;
        Ok(())
    }

    #[inline]
    pub(crate) fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.in_flight() == self.size {
            return Ok(false);
        }
        let first = self.areas.load(self.avail.index);
        if self.again.is_empty() && !first.is_available(self.avail) {
            return Ok(false);
        }
        chain.clear();
        chain.token = match self.again.pop() {
            Some(entry) => self.pop_again(entry, chain)?,
            None => self.pop_ring(first, chain)?,
        };
        self.taken = self.taken.wrapping_add(1);
        Ok(true)
    }

    #[inline]
    pub(crate) fn pop_singles(&mut self, access: Access, singles: &mut [Single]) -> usize {
        if self.inflight.is_some() {
            return 0;
        }
        let (room, start) = (singles.len().min(usize::from(self.size - self.in_flight())), self.avail);
        // A batch ends where the ring does.
        let run = room.min(usize::from(self.size - start.index));
        let singles = &mut singles[..run];
        let mut count = 0;
        for line in singles.chunks_exact_mut(LINE) {
            if !self.take_singles::<LINE>(access, count, line) {
                break;
            }
            count += LINE;
        }
        for single in singles[count..].chunks_exact_mut(1) {
            if !self.take_singles::<1>(access, count, single) {
                break;
            }
            count += 1;
        }
        self.avail = start.advanced(count as u16, self.size);
        self.taken = self.taken.wrapping_add(count as u16);
        count
    }

    /// Copies the `N` descriptors that stand `count` behind the available position, if each is available and a whole chain for
    /// `access`: one test for all. `false` where one is not.
    #[inline(always)]
    fn take_singles<const N: usize>(&self, access: Access, count: usize, singles: &mut [Single]) -> bool {
        const MASK: u64 = ((Access::MASK | desc::AVAIL | desc::USED) as u64) << 48;
        let wanted = u64::from(access.flags() | if self.avail.wrap { desc::AVAIL } else { desc::USED }) << 48;
        let at = (usize::from(self.avail.index) + count) * DESC_LEN;
        let descriptors = self.areas.descriptors.load_u64_pairs::<N>(at, Acquire);
        if descriptors.iter().fold(0, |differ, (_, rest)| differ | (rest ^ wanted)) & MASK != 0 {
            return false;
        }
        for (n, (single, (address, rest))) in singles.iter_mut().zip(descriptors).enumerate() {
            let sequence = self.taken.wrapping_add((count + n) as u16);
            let buffer = Descriptor { address: GuestAddress(address), len: rest as u32 };
            *single = Single { buffer, token: Token::new((rest >> 32) as u16, 1, 0, sequence), written: 0 };
        }
        true
    }

    #[inline]
    pub(crate) fn unpop(&mut self, token: Token) {
        assert!(self.inflight.is_none(), "the region has the chain already");
        debug_assert_eq!(token.sequence(), self.taken.wrapping_sub(1), "the last one taken");
        self.avail = self.avail.retreated(token.count(), self.size);
        self.taken = self.taken.wrapping_sub(1);
    }

    /// Takes the chain that starts with `first` at the available position.
    #[inline]
    fn pop_ring(&mut self, first: PackedDesc, chain: &mut Chain) -> Result<Token, QueueError> {
        let tracked = self.inflight.is_some();
        if tracked {
            self.copied.clear();
        }
        let (mut d, mut count) = (first, 0);
        let mut at = self.avail;
        while count < self.size {
            self.push(chain, d, count == 0)?;
            if tracked {
                self.copied.push(d);
            }
            count += 1;
            at = at.advanced(1, self.size);
            if d.flags & (desc::NEXT | desc::INDIRECT) != desc::NEXT {
                self.avail = at;
                let entry = self.inflight.as_mut().map_or(0, |inflight| inflight.take(&self.copied));
                return Ok(Token::new(d.id, count, entry, self.taken));
            }
            d = self.areas.load(at.index);
        }
        Err(QueueError::ChainLoop { limit: self.size })
    }

    /// Takes a chain that the process before us did not finish: the ring may no longer have it, the region has.
    fn pop_again(&mut self, entry: u16, chain: &mut Chain) -> Result<Token, QueueError> {
        let (mut id, mut count) = (0, 0);
        let inflight = self.inflight.as_ref().expect("only a region names chains to serve again");
        for d in inflight.descriptors(entry) {
            self.push(chain, d, count == 0)?;
            (id, count) = (d.id, count + 1);
        }
        Ok(Token::new(id, count, entry, self.taken))
    }

    #[inline(always)]
    fn push(&self, chain: &mut Chain, d: PackedDesc, first: bool) -> Result<(), QueueError> {
        if d.flags & desc::INDIRECT == 0 {
            return chain.push(d.addr, d.len, d.flags);
        }
        if !self.indirect || !first || d.flags & desc::NEXT != 0 {
            return Err(QueueError::Indirect("without the feature, or in a chain"));
        }
        chain.push_packed_table(&self.memory, d.addr, d.len)
    }

    #[inline]
    pub(crate) fn complete(&mut self, token: Token, written: u32) {
        let Some(order) = &mut self.order else { return self.put(token, written) };
        if order.pass(token, 1) {
            return self.put(token, written);
        }
        order.insert(token, written);
        while let Some((token, written)) = self.order.as_mut().and_then(InOrder::take) {
            self.put(token, written);
        }
    }

    #[inline]
    pub(crate) fn complete_read(&mut self, singles: &[Single]) {
        let (count, tracked) = (singles.len() as u16, self.is_tracked());
        if let ([first, .., last], Some(order), false) = (singles, &mut self.order, tracked)
            && order.pass(first.token, count)
        {
            // "by only writing out a single used descriptor with the Buffer ID [of] the last descriptor in the batch" (2.8.9).
            return self.write_used(last.token.id(), 0, count, count);
        }
        self.complete_written(singles);
    }

    #[inline]
    pub(crate) fn complete_written(&mut self, singles: &[Single]) {
        let Some(first) = singles.first() else { return };
        let in_order = self.order.as_mut().is_none_or(|order| order.pass(first.token, singles.len() as u16));
        if !in_order {
            return singles.iter().for_each(|single| self.complete(single.token, single.written));
        }
        if self.is_tracked() {
            return self.batch.extend(singles.iter().map(|single| (single.token, single.written)));
        }
        self.write_used_singles(singles);
    }

    /// As [`write_used`](Self::write_used) for each of `singles`, in one go.
    #[inline]
    fn write_used_singles(&mut self, singles: &[Single]) {
        debug_assert!(singles.iter().all(|single| single.token.count() == 1), "one descriptor each");
        let mut rest = singles;
        if let ([first, others @ ..], None) = (rest, self.first_used) {
            self.write_used(first.token.id(), first.written, 1, 1);
            rest = others;
        }
        while !rest.is_empty() {
            // A run ends where the ring does.
            let (run, others) = rest.split_at(rest.len().min(usize::from(self.size - self.used_end.index)));
            self.areas.store_used_run(self.used_end, run);
            self.log_descriptors(self.used_end, run.len());
            self.used_end = self.used_end.advanced(run.len() as u16, self.size);
            self.unpublished += run.len() as u16;
            rest = others;
        }
    }

    #[inline(always)]
    fn put(&mut self, token: Token, written: u32) {
        if self.is_tracked() {
            self.batch.push((token, written));
        } else {
            self.write_used(token.id(), written, token.count(), 1);
        }
    }

    /// Whether the batch is kept for a region, which must know it, or the place in it, before the ring does.
    #[inline(always)]
    fn is_tracked(&self) -> bool {
        self.inflight.is_some() || self.place.is_some()
    }

    /// Writes a used descriptor for `chains` that take `count` descriptors; the first one of a batch later, when it publishes.
    #[inline(always)]
    fn write_used(&mut self, id: u16, written: u32, count: u16, chains: u16) {
        if self.first_used.is_none() {
            self.first_used = Some((id, written));
        } else {
            self.areas.store_used(self.used_end, id, written);
            self.log_descriptors(self.used_end, 1);
        }
        self.used_end = self.used_end.advanced(count, self.size);
        self.unpublished += chains;
    }

    #[inline]
    pub(crate) fn flush(&mut self) -> bool {
        if self.place.is_some() {
            return self.flush_one_by_one();
        }
        if self.inflight.is_some() {
            self.write_batch();
        }
        let Some((id, written)) = self.first_used.take() else { return false };
        // Last: the driver looks at the first one, and then finds the rest.
        self.areas.store_used(self.used, id, written);
        self.log_descriptors(self.used, 1);
        if let Some(inflight) = &mut self.inflight {
            inflight.unmark(self.batch.iter().map(|(token, _)| token));
            self.batch.clear();
        }
        self.flushed()
    }

    /// Publishes each chain by itself, so that nothing but its own first descriptor is written before it is used, and notes the
    /// place before and after.
    #[inline(never)]
    fn flush_one_by_one(&mut self) -> bool {
        let (Some(place), false) = (&self.place, self.batch.is_empty()) else { return false };
        for &(token, written) in &self.batch {
            let (at, next) = (self.used_end, self.used_end.advanced(token.count(), self.size));
            place.note_place(at, next);
            self.areas.store_used(at, token.id(), written);
            self.log_descriptors(at, 1);
            place.note_place(next, next);
            self.used_end = next;
        }
        self.unpublished = self.batch.len() as u16;
        self.batch.clear();
        self.flushed()
    }

    /// The batch is published. Returns whether the driver wants to hear of it.
    #[inline(always)]
    fn flushed(&mut self) -> bool {
        let start = std::mem::replace(&mut self.used, self.used_end);
        self.given_back = self.given_back.wrapping_add(std::mem::take(&mut self.unpublished));
        // The driver enables notifications, then looks; we publish, then look: one of us sees the other.
        fence(SeqCst);
        self.wants_notification(start)
    }

    /// Writes the batch of a ring with an inflight region.
    fn write_batch(&mut self) {
        if let Some(inflight) = &mut self.inflight
            && !self.batch.is_empty()
        {
            let end = self.batch.iter().fold(self.used, |at, (token, _)| at.advanced(token.count(), self.size));
            inflight.free(self.batch.iter().map(|(token, _)| token), end);
        }
        for index in 0..self.batch.len() {
            let (token, written) = self.batch[index];
            self.write_used(token.id(), written, token.count(), 1);
        }
    }

    /// Whether the driver wants to hear of the descriptors used since `start`.
    fn wants_notification(&self, start: Position) -> bool {
        match self.areas.driver_event.load_u16(EVENT_FLAGS, Acquire) {
            event::DISABLE => false,
            event::DESC if self.event_idx => {
                let wanted = Position::from_bits(self.areas.driver_event.load_u16(EVENT_OFF_WRAP, Relaxed));
                let mut at = wanted.index;
                if wanted.wrap != self.used.wrap {
                    at = at.wrapping_sub(self.size);
                }
                // The driver's place and ours are counted from the same lap.
                let old = if start.wrap == self.used.wrap { start.index } else { start.index.wrapping_sub(self.size) };
                ring::need_event(at, self.used.index, old)
            }
            _ => true,
        }
    }

    pub(crate) fn arm(&mut self) -> Result<bool, QueueError> {
        if self.event_idx {
            self.areas.device_event.store_u16(EVENT_OFF_WRAP, self.avail.to_bits(), Relaxed);
            self.areas.device_event.store_u16(EVENT_FLAGS, event::DESC, Release);
        } else {
            self.areas.device_event.store_u16(EVENT_FLAGS, event::ENABLE, Relaxed);
        }
        self.log_event();
        fence(SeqCst);
        Ok(!self.again.is_empty() || self.areas.is_available(self.avail))
    }

    pub(crate) fn disarm(&mut self) {
        self.areas.device_event.store_u16(EVENT_FLAGS, event::DISABLE, Relaxed);
        self.log_event();
    }

    pub(crate) fn base(&self) -> u32 {
        u32::from(self.avail.to_bits()) | u32::from(self.used.to_bits()) << 16
    }

    pub(crate) fn in_flight(&self) -> u16 {
        self.taken.wrapping_sub(self.given_back)
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub(crate) fn log(&self) -> Option<&DirtyLog> {
        self.log.as_ref()
    }

    pub(crate) fn set_used_log(&mut self, address: Option<GuestAddress>) {
        self.addresses.used_log = address;
    }

    pub(crate) fn set_log(&mut self, log: Option<DirtyLog>) {
        self.log = log;
    }

    #[inline]
    fn log_descriptors(&self, at: Position, count: usize) {
        if let (Some(log), Some(_)) = (&self.log, self.addresses.used_log) {
            let offset = u64::from(at.index) * DESC_LEN as u64;
            log.mark(GuestAddress(self.areas.descriptors_at.0.wrapping_add(offset)), (DESC_LEN * count) as u64);
        }
    }

    /// The front-end names the device event area as the "used ring" of a packed ring.
    fn log_event(&self) {
        if let (Some(log), Some(at)) = (&self.log, self.addresses.used_log) {
            log.mark(at, EVENT_LEN as u64);
        }
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
