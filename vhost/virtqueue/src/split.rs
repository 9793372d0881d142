//! The split layout (virtio 1.3, 2.7).

use crate::inflight::SplitInflight;
use crate::order::InOrder;
use crate::{Access, Chain, Descriptor, QueueError, RingAddresses, Setup, Single, Token};
use guest_memory::{DirtyLog, GuestAddress, GuestMemory, Window};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use virtio_spec::feature;
use virtio_spec::ring::{self, DESC_LEN, desc};

const AVAIL_FLAGS: usize = 0;
const AVAIL_IDX: usize = 2;
const AVAIL_RING: usize = 4;
const USED_FLAGS: usize = 0;
const USED_IDX: usize = 2;
const USED_RING: usize = 4;

/// Entries that are looked at together.
const TOGETHER: usize = 4;

/// The three areas, checked.
#[derive(Debug)]
struct Areas {
    descriptors: Window,
    avail: Window,
    used: Window,
}

impl Areas {
    fn new(memory: &Arc<GuestMemory>, at: &RingAddresses, size: u16) -> Result<Areas, QueueError> {
        let area =
            |name, address, len, align| memory.user_window(address, len, align).map_err(QueueError::access(name));
        Ok(Areas {
            descriptors: area("descriptor table", at.descriptor, DESC_LEN * usize::from(size), 16)?,
            avail: area("available ring", at.driver, ring::avail_len(size), 2)?,
            used: area("used ring", at.device, ring::used_len(size), 4)?,
        })
    }
}

/// A split virtqueue.
#[derive(Debug)]
pub(crate) struct SplitQueue {
    areas: Areas,
    memory: Arc<GuestMemory>,
    addresses: RingAddresses,
    size: u16,
    mask: u16,
    event_idx: bool,
    indirect: bool,
    /// Next entry to take, and how far the driver is known to have gone.
    next_avail: u16,
    known_avail: u16,
    /// Next used entry to write, and the index that the driver can see.
    next_used: u16,
    published_used: u16,
    /// The used index when the driver was last asked whether it wants to be notified.
    signalled_used: u16,
    /// Chains taken and chains given back.
    taken: u16,
    given_back: u16,
    order: Option<InOrder>,
    inflight: Option<SplitInflight>,
    /// Heads to serve again after a restart, the next one last.
    again: Vec<u16>,
    /// Heads of the batch that is not published yet; kept only for the inflight region.
    batch: Vec<u16>,
    log: Option<DirtyLog>,
}

impl SplitQueue {
    pub(crate) fn new(memory: Arc<GuestMemory>, setup: &Setup) -> Result<SplitQueue, QueueError> {
        let size = setup.size;
        if size == 0 || size > ring::MAX_SIZE || !size.is_power_of_two() {
            return Err(QueueError::Size { size, expected: "a power of two from 1 to 32768" });
        }
        let areas = Areas::new(&memory, &setup.addresses, size)?;
        // "re-read used->idx": what the driver saw is the truth, not what a front-end remembers.
        let used = areas.used.load_u16(USED_IDX, Acquire);
        let mut inflight = setup.inflight.clone().map(|region| SplitInflight::new(region, size)).transpose()?;
        let mut again = inflight.as_mut().map_or(Vec::new(), |region| region.recover(used));
        again.reverse();
        let next_avail = match inflight {
            Some(_) => used.wrapping_add(again.len() as u16),
            None => setup.base as u16,
        };
        Ok(SplitQueue {
            areas,
            memory,
            addresses: setup.addresses,
            size,
            mask: size - 1,
            event_idx: setup.features & feature::RING_EVENT_IDX != 0,
            indirect: setup.features & feature::RING_INDIRECT_DESC != 0,
            next_avail,
            known_avail: next_avail,
            next_used: used,
            published_used: used,
            signalled_used: used,
            taken: 0,
            given_back: 0,
            order: (setup.features & feature::IN_ORDER != 0).then(|| InOrder::new(size)),
            inflight,
            again,
            batch: Vec::with_capacity(usize::from(size)),
            log: None,
        })
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
        let head = match self.again.pop() {
            Some(head) => head,
            None => {
                if self.next_avail == self.known_avail && !self.look()? {
                    return Ok(false);
                }
                let slot = usize::from(self.next_avail & self.mask);
                let head = self.areas.avail.load_u16(AVAIL_RING + 2 * slot, Relaxed);
                self.check_index(head)?;
                self.next_avail = self.next_avail.wrapping_add(1);
                if let Some(inflight) = &mut self.inflight {
                    inflight.take(head);
                }
                head
            }
        };
        chain.clear();
        self.walk(head, chain)?;
        chain.token = Token::new(head, 1, 0, self.taken);
        self.taken = self.taken.wrapping_add(1);
        Ok(true)
    }

    #[inline]
    pub(crate) fn pop_singles(&mut self, access: Access, singles: &mut [Single]) -> usize {
        let room = singles.len().min(usize::from(self.size - self.in_flight()));
        if self.inflight.is_some() {
            return 0;
        }
        if usize::from(self.known_avail.wrapping_sub(self.next_avail)) < room {
            let _error_shows_at_the_next_pop = self.look();
        }
        let available = room.min(usize::from(self.known_avail.wrapping_sub(self.next_avail)));
        // A batch ends where the ring does.
        let run = available.min(usize::from(self.size - (self.next_avail & self.mask)));
        let singles = &mut singles[..run];
        let mut count = 0;
        for four in singles.chunks_exact_mut(TOGETHER) {
            if !self.take_singles::<TOGETHER>(access, count, four) {
                break;
            }
            count += TOGETHER;
        }
        for single in singles[count..].chunks_exact_mut(1) {
            if !self.take_singles::<1>(access, count, single) {
                break;
            }
            count += 1;
        }
        self.next_avail = self.next_avail.wrapping_add(count as u16);
        self.taken = self.taken.wrapping_add(count as u16);
        count
    }

    /// Copies the `N` descriptors whose heads stand `count` behind the next entry, if each is a whole chain for `access`: one test
    /// for all heads, one for all flags. `false` where one is not.
    #[inline(always)]
    fn take_singles<const N: usize>(&self, access: Access, count: usize, singles: &mut [Single]) -> bool {
        let slot = usize::from(self.next_avail & self.mask) + count;
        let heads = self.areas.avail.load_u16s::<N>(AVAIL_RING + 2 * slot, Relaxed);
        if heads.iter().fold(0, |all, head| all | head) > self.mask {
            return false;
        }
        let load = |head| self.areas.descriptors.load_u64_pair(usize::from(head) * DESC_LEN, Relaxed);
        let descriptors = heads.map(load);
        let (mask, wanted) = (u64::from(Access::MASK) << 32, u64::from(access.flags()) << 32);
        if descriptors.iter().fold(0, |differ, (_, rest)| differ | (rest ^ wanted)) & mask != 0 {
            return false;
        }
        for (n, (single, (address, rest))) in singles.iter_mut().zip(descriptors).enumerate() {
            let sequence = self.taken.wrapping_add((count + n) as u16);
            let buffer = Descriptor { address: GuestAddress(address), len: rest as u32 };
            *single = Single { buffer, token: Token::new(heads[n], 1, 0, sequence), written: 0 };
        }
        true
    }

    #[inline]
    pub(crate) fn unpop(&mut self, token: Token) {
        assert!(self.inflight.is_none(), "the region has the chain already");
        debug_assert_eq!(token.sequence(), self.taken.wrapping_sub(1), "the last one taken");
        self.next_avail = self.next_avail.wrapping_sub(1);
        self.taken = self.taken.wrapping_sub(1);
    }

    /// Reads the driver's index. Returns whether there is something to take.
    #[inline]
    fn look(&mut self) -> Result<bool, QueueError> {
        let index = self.areas.avail.load_u16(AVAIL_IDX, Acquire);
        if index.wrapping_sub(self.next_avail) > self.size {
            return Err(QueueError::AvailIndex { index, next: self.next_avail, size: self.size });
        }
        self.known_avail = index;
        Ok(index != self.next_avail)
    }

    #[inline(always)]
    fn check_index(&self, index: u16) -> Result<(), QueueError> {
        if index >= self.size {
            return Err(QueueError::DescriptorIndex { index, size: self.size });
        }
        Ok(())
    }

    #[inline]
    fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        let mut index = head;
        for _ in 0..self.size {
            let at = usize::from(index) * DESC_LEN;
            let (address, rest) = self.areas.descriptors.load_u64_pair(at, Relaxed);
            let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            if flags & desc::INDIRECT != 0 {
                if !self.indirect || flags & desc::NEXT != 0 {
                    return Err(QueueError::Indirect("without the feature, or with a next descriptor"));
                }
                return chain.push_split_table(&self.memory, address, len);
            }
            chain.push(address, len, flags)?;
            if flags & desc::NEXT == 0 {
                return Ok(());
            }
            self.check_index(next)?;
            index = next;
        }
        Err(QueueError::ChainLoop { limit: self.size })
    }

    #[inline]
    pub(crate) fn complete(&mut self, token: Token, written: u32) {
        let Some(order) = &mut self.order else { return self.put(token, written, 1) };
        if order.pass(token, 1) {
            return self.put(token, written, 1);
        }
        order.insert(token, written);
        while let Some((token, written)) = self.order.as_mut().and_then(InOrder::take) {
            self.put(token, written, 1);
        }
    }

    #[inline]
    pub(crate) fn complete_read(&mut self, singles: &[Single]) {
        let (count, tracked) = (singles.len() as u16, self.inflight.is_some());
        if let ([first, .., last], Some(order), false) = (singles, &mut self.order, tracked)
            && order.pass(first.token, count)
        {
            // "by only writing out a single used ring entry with the id [of] the last buffer in the batch" (2.7.9).
            return self.put(last.token, 0, count);
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
        let mut rest = singles;
        while !rest.is_empty() {
            let slot = self.next_used & self.mask;
            // A run ends where the ring does.
            let (run, others) = rest.split_at(rest.len().min(usize::from(self.size - slot)));
            self.put_run(USED_RING + 8 * usize::from(slot), run);
            rest = others;
        }
    }

    /// Writes used elements that stand one behind the other from `at` on.
    #[inline(always)]
    fn put_run(&mut self, at: usize, singles: &[Single]) {
        let count = singles.len() as u16;
        let elements = singles.iter().map(|single| (u32::from(single.token.id()), single.written));
        self.areas.used.store_u32_pairs(at, elements);
        self.log_used(at, 8 * u64::from(count));
        self.next_used = self.next_used.wrapping_add(count);
        debug_assert!(self.in_flight() >= count, "completed twice");
        self.given_back = self.given_back.wrapping_add(count);
        if self.inflight.is_some() {
            self.batch.extend(singles.iter().map(|single| single.token.id()));
        }
    }

    /// Writes a used element, which stands for `count` chains.
    #[inline(always)]
    fn put(&mut self, token: Token, written: u32, count: u16) {
        let at = USED_RING + 8 * usize::from(self.next_used & self.mask);
        self.areas.used.store_u32_pairs(at, std::iter::once((u32::from(token.id()), written)));
        self.log_used(at, 8);
        self.next_used = self.next_used.wrapping_add(count);
        debug_assert!(self.in_flight() >= count, "completed twice");
        self.given_back = self.given_back.wrapping_add(count);
        if self.inflight.is_some() {
            self.batch.push(token.id());
        }
    }

    #[inline]
    pub(crate) fn flush(&mut self) -> bool {
        if self.next_used == self.published_used {
            return false;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.link(&self.batch);
        }
        self.areas.used.store_u16(USED_IDX, self.next_used, Release);
        self.log_used(USED_IDX, 2);
        self.published_used = self.next_used;
        if let Some(inflight) = &mut self.inflight {
            inflight.unmark(&self.batch, self.next_used);
            self.batch.clear();
        }
        // The driver enables notifications, then looks; we publish, then look: one of us sees the other.
        fence(SeqCst);
        self.wants_notification()
    }

    fn wants_notification(&mut self) -> bool {
        if !self.event_idx {
            return self.areas.avail.load_u16(AVAIL_FLAGS, Relaxed) & ring::AVAIL_NO_INTERRUPT == 0;
        }
        let used_event = self.areas.avail.load_u16(AVAIL_RING + 2 * usize::from(self.size), Relaxed);
        let old = std::mem::replace(&mut self.signalled_used, self.published_used);
        ring::need_event(used_event, self.published_used, old)
    }

    pub(crate) fn arm(&mut self) -> Result<bool, QueueError> {
        if self.event_idx {
            let at = USED_RING + 8 * usize::from(self.size);
            self.areas.used.store_u16(at, self.next_avail, Relaxed);
            self.log_used(at, 2);
        } else {
            self.areas.used.store_u16(USED_FLAGS, 0, Relaxed);
            self.log_used(USED_FLAGS, 2);
        }
        fence(SeqCst);
        Ok(!self.again.is_empty() || self.look()?)
    }

    pub(crate) fn disarm(&mut self) {
        // With event idx the driver kicks only when it passes the entry we named: nothing to take back.
        if !self.event_idx {
            self.areas.used.store_u16(USED_FLAGS, ring::USED_NO_NOTIFY, Relaxed);
            self.log_used(USED_FLAGS, 2);
        }
    }

    pub(crate) fn base(&self) -> u32 {
        u32::from(self.next_avail)
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
    fn log_used(&self, offset: usize, len: u64) {
        if let (Some(log), Some(base)) = (&self.log, self.addresses.used_log) {
            log.mark(GuestAddress(base.0.wrapping_add(offset as u64)), len);
        }
    }
}
