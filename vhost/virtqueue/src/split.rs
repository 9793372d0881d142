//! The split layout ([virtio 1.3 § 2.7]).
//!
//! [virtio 1.3 § 2.7]: https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html

use crate::inflight::SplitInflight;
use crate::ring::{Layout, RingCore};
use crate::{Access, ChainToken, Descriptor, DescriptorChain, QueueError, RingAddresses, RingSetup, SingleBufferChain};
use guest_memory::{GuestAddress, GuestMemory, Window};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use virtio_spec::ring::{self, DESC_LEN, desc};

const AVAIL_FLAGS: usize = 0;
const AVAIL_IDX: usize = 2;
const AVAIL_RING: usize = 4;
const USED_FLAGS: usize = 0;
const USED_IDX: usize = 2;
const USED_RING: usize = 4;

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

/// The split layout: a descriptor table, an available ring and a used ring.
#[derive(Debug)]
pub struct Split {
    areas: Areas,
    mask: u16,
    /// Next entry to take, and how far the driver is known to have gone.
    next_avail: u16,
    known_avail: u16,
    /// Next used entry to write, and the index that the driver can see.
    next_used: u16,
    published_used: u16,
    /// The used index when the driver was last asked whether it wants to be notified.
    signalled_used: u16,
    inflight: Option<SplitInflight>,
    /// Heads of the batch that is not published yet; kept only for the inflight region.
    batch: Vec<u16>,
}

impl Split {
    /// Reads the driver's index. Returns whether there is something to take.
    #[inline]
    fn refresh_avail_idx(&mut self, size: u16) -> Result<bool, QueueError> {
        let index = self.areas.avail.load_u16(AVAIL_IDX, Acquire);
        if index.wrapping_sub(self.next_avail) > size {
            return Err(QueueError::AvailIndex { index, next: self.next_avail, size });
        }
        self.known_avail = index;
        Ok(index != self.next_avail)
    }

    /// Copies the chain that starts at `head`.
    #[inline]
    fn walk(&self, core: &RingCore, head: u16, chain: &mut DescriptorChain) -> Result<(), QueueError> {
        chain.clear();
        chain.token = ChainToken::new(head, 1, 0, core.taken);
        let mut index = head;
        for _ in 0..core.size {
            let at = usize::from(index) * DESC_LEN;
            let (address, rest) = self.areas.descriptors.load_u64_pair(at, Relaxed);
            let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            if flags & desc::INDIRECT != 0 {
                if !core.indirect || flags & desc::NEXT != 0 {
                    return Err(QueueError::Indirect("without the feature, or with a next descriptor"));
                }
                return chain.push_split_table(&core.memory, address, len);
            }
            chain.push(address, len, flags)?;
            if flags & desc::NEXT == 0 {
                return Ok(());
            }
            check_index(next, core.size)?;
            index = next;
        }
        Err(QueueError::ChainLoop { limit: core.size })
    }

    /// Counts `chains` chains as given back by `elements` used elements, which stand at `at`.
    #[inline(always)]
    fn count_used(&mut self, core: &mut RingCore, at: usize, elements: u16, chains: u16) {
        core.log_used(at, 8 * u64::from(elements));
        self.next_used = self.next_used.wrapping_add(chains);
        debug_assert!(core.in_flight() >= chains, "completed twice");
        core.given_back = core.given_back.wrapping_add(chains);
    }

    fn wants_notification(&mut self, core: &RingCore) -> bool {
        if !core.event_idx {
            return self.areas.avail.load_u16(AVAIL_FLAGS, Relaxed) & ring::AVAIL_NO_INTERRUPT == 0;
        }
        let used_event = self.areas.avail.load_u16(AVAIL_RING + 2 * usize::from(core.size), Relaxed);
        let old = std::mem::replace(&mut self.signalled_used, self.published_used);
        ring::need_event(used_event, self.published_used, old)
    }
}

impl Layout for Split {
    fn start(memory: &Arc<GuestMemory>, setup: &RingSetup) -> Result<(Split, Vec<u16>), QueueError> {
        let size = setup.size;
        if size == 0 || size > ring::MAX_SIZE || !size.is_power_of_two() {
            return Err(QueueError::Size { size, expected: "a power of two from 1 to 32768" });
        }
        let areas = Areas::new(memory, &setup.addresses, size)?;
        // "re-read used->idx": what the driver saw is the truth, not what a front-end remembers.
        let used = areas.used.load_u16(USED_IDX, Acquire);
        let mut inflight = setup.inflight.clone().map(|region| SplitInflight::new(region, size)).transpose()?;
        let mut resubmit = inflight.as_mut().map_or(Vec::new(), |region| region.recover(used));
        resubmit.reverse();
        let next_avail = match inflight {
            Some(_) => used.wrapping_add(resubmit.len() as u16),
            None => setup.base as u16,
        };
        let split = Split {
            areas,
            mask: size - 1,
            next_avail,
            known_avail: next_avail,
            next_used: used,
            published_used: used,
            signalled_used: used,
            inflight,
            batch: Vec::with_capacity(usize::from(size)),
        };
        Ok((split, resubmit))
    }

    fn relocate(&mut self, core: &RingCore, memory: &Arc<GuestMemory>) -> Result<(), QueueError> {
        self.areas = Areas::new(memory, &core.addresses, core.size)?;
        Ok(())
    }

    fn is_available(&mut self, core: &RingCore) -> Result<bool, QueueError> {
        self.refresh_avail_idx(core.size)
    }

    #[inline(always)]
    fn take_next(&mut self, core: &RingCore, chain: &mut DescriptorChain) -> Result<bool, QueueError> {
        if self.next_avail == self.known_avail && !self.refresh_avail_idx(core.size)? {
            return Ok(false);
        }
        let slot = usize::from(self.next_avail & self.mask);
        let head = self.areas.avail.load_u16(AVAIL_RING + 2 * slot, Relaxed);
        check_index(head, core.size)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.take(head);
        }
        self.walk(core, head, chain)?;
        Ok(true)
    }

    #[cold]
    fn resubmit(&mut self, core: &RingCore, head: u16, chain: &mut DescriptorChain) -> Result<(), QueueError> {
        self.walk(core, head, chain)
    }

    #[inline(always)]
    fn run_length(&mut self, core: &RingCore, room: usize) -> usize {
        if usize::from(self.known_avail.wrapping_sub(self.next_avail)) < room {
            let _ = self.refresh_avail_idx(core.size); // The error shows at the next pop.
        }
        let available = room.min(usize::from(self.known_avail.wrapping_sub(self.next_avail)));
        // A batch ends where the ring does.
        available.min(usize::from(core.size - (self.next_avail & self.mask)))
    }

    #[inline(always)]
    fn take_singles<const N: usize>(
        &self,
        core: &RingCore,
        access: Access,
        count: usize,
        chains: &mut [SingleBufferChain],
    ) -> bool {
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
        for (n, (chain, (address, rest))) in chains.iter_mut().zip(descriptors).enumerate() {
            let sequence = core.taken.wrapping_add((count + n) as u16);
            let buffer = Descriptor { address: GuestAddress(address), len: rest as u32 };
            *chain = SingleBufferChain { buffer, token: ChainToken::new(heads[n], 1, 0, sequence), written: 0 };
        }
        true
    }

    #[inline(always)]
    fn advance(&mut self, _: &RingCore, count: u16) {
        self.next_avail = self.next_avail.wrapping_add(count);
    }

    #[inline(always)]
    fn retreat(&mut self, _: &RingCore, _: ChainToken) {
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    #[inline(always)]
    fn put_used(&mut self, core: &mut RingCore, token: ChainToken, written: u32, chains: u16) {
        let at = USED_RING + 8 * usize::from(self.next_used & self.mask);
        self.areas.used.store_u32_pairs(at, std::iter::once((u32::from(token.id()), written)));
        self.count_used(core, at, 1, chains);
        if core.tracked {
            self.batch.push(token.id());
        }
    }

    #[inline(always)]
    fn put_used_singles(&mut self, core: &mut RingCore, chains: &[SingleBufferChain]) {
        let mut rest = chains;
        while !rest.is_empty() {
            let slot = self.next_used & self.mask;
            // A run ends where the ring does.
            let (run, others) = rest.split_at(rest.len().min(usize::from(core.size - slot)));
            let at = USED_RING + 8 * usize::from(slot);
            let elements = run.iter().map(|chain| (u32::from(chain.token.id()), chain.written));
            self.areas.used.store_u32_pairs(at, elements);
            self.count_used(core, at, run.len() as u16, run.len() as u16);
            rest = others;
        }
        if core.tracked {
            self.batch.extend(chains.iter().map(|chain| chain.token.id()));
        }
    }

    #[inline(always)]
    fn publish(&mut self, core: &mut RingCore) -> bool {
        if self.next_used == self.published_used {
            return false;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.link(&self.batch);
        }
        self.areas.used.store_u16(USED_IDX, self.next_used, Release);
        core.log_used(USED_IDX, 2);
        self.published_used = self.next_used;
        if let Some(inflight) = &mut self.inflight {
            inflight.unmark(&self.batch, self.next_used);
            self.batch.clear();
        }
        // The driver enables notifications, then looks; the device publishes, then looks: one of them sees the other.
        fence(SeqCst);
        self.wants_notification(core)
    }

    fn enable_kicks(&mut self, core: &RingCore) {
        if core.event_idx {
            let at = USED_RING + 8 * usize::from(core.size);
            self.areas.used.store_u16(at, self.next_avail, Relaxed);
            core.log_used(at, 2);
        } else {
            self.areas.used.store_u16(USED_FLAGS, 0, Relaxed);
            core.log_used(USED_FLAGS, 2);
        }
    }

    fn disable_kicks(&mut self, core: &RingCore) {
        // With event idx the driver kicks only when it passes the entry that the device named: nothing to take back.
        if !core.event_idx {
            self.areas.used.store_u16(USED_FLAGS, ring::USED_NO_NOTIFY, Relaxed);
            core.log_used(USED_FLAGS, 2);
        }
    }

    fn base(&self) -> u32 {
        u32::from(self.next_avail)
    }
}

#[inline(always)]
fn check_index(index: u16, size: u16) -> Result<(), QueueError> {
    if index >= size {
        return Err(QueueError::DescriptorIndex { index, size });
    }
    Ok(())
}
