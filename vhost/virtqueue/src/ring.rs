//! A ring, seen from the device: what both layouts do in the same way, and the trait of what they do differently.

use crate::order::InOrder;
use crate::{Access, ChainToken, DescriptorChain, QueueError, RingAddresses, RingSetup, SingleBufferChain};
use guest_memory::{DirtyLog, GuestAddress, GuestMemory};
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::fence;
use virtio_spec::feature;

/// Descriptors that are loaded and tested together.
const DESCRIPTORS_PER_CACHE_LINE: usize = 4;

/// How a ring lies in memory: [`Split`](crate::Split) ([virtio 1.3 § 2.7]) or [`Packed`](crate::Packed) ([virtio 1.3 § 2.8]).
///
/// A layout reads what the driver made available and writes what is used. [`Ring`] keeps the account of chains, and their order.
///
/// [virtio 1.3 § 2.7]: https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html
/// [virtio 1.3 § 2.8]: https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html
pub trait Layout: Debug + Sized {
    /// The layout of a ring that starts, and what to process again after a crash, the next one last: heads in a split ring,
    /// entries of the inflight region in a packed one.
    fn start(memory: &Arc<GuestMemory>, setup: &RingSetup) -> Result<(Self, Vec<u16>), QueueError>;

    /// Finds the ring's areas in another epoch of the memory table.
    fn relocate(&mut self, core: &RingCore, memory: &Arc<GuestMemory>) -> Result<(), QueueError>;

    /// Whether a chain is available.
    fn is_available(&mut self, core: &RingCore) -> Result<bool, QueueError>;

    /// Takes the next chain that is available. `false` when there is none.
    fn take_next(&mut self, core: &RingCore, chain: &mut DescriptorChain) -> Result<bool, QueueError>;

    /// Takes a chain that a process before this one did not finish.
    fn resubmit(&mut self, core: &RingCore, entry: u16, chain: &mut DescriptorChain) -> Result<(), QueueError>;

    /// How many entries of `room` stand one behind the other from the next available one on, as far as that is known.
    fn run_length(&mut self, core: &RingCore, room: usize) -> usize;

    /// Copies the `N` descriptors that stand `count` behind the next available one, if each is a whole chain for `access`: one
    /// test for all. `false` where one is not.
    fn take_singles<const N: usize>(
        &self,
        core: &RingCore,
        access: Access,
        count: usize,
        chains: &mut [SingleBufferChain],
    ) -> bool;

    /// Moves the next available place on, behind `count` chains of one descriptor.
    fn advance(&mut self, core: &RingCore, count: u16);

    /// Moves the next available place back, before the chain `token`.
    fn retreat(&mut self, core: &RingCore, token: ChainToken);

    /// Writes a used element, which stands for `chains` chains that are like `token`.
    fn put_used(&mut self, core: &mut RingCore, token: ChainToken, written: u32, chains: u16);

    /// Writes a used element for each of `chains`.
    fn put_used_singles(&mut self, core: &mut RingCore, chains: &[SingleBufferChain]);

    /// Publishes used elements. Returns whether the driver wants to be notified of them.
    fn publish(&mut self, core: &mut RingCore) -> bool;

    /// Asks the driver to kick when it makes something available.
    fn enable_kicks(&mut self, core: &RingCore);

    /// Tells the driver that kicks are not needed.
    fn disable_kicks(&mut self, core: &RingCore);

    /// Where to go on, as GET_VRING_BASE has it.
    fn base(&self) -> u32;
}

/// What a ring has in any layout.
#[derive(Debug)]
pub struct RingCore {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) log: Option<DirtyLog>,
    pub(crate) addresses: RingAddresses,
    pub(crate) size: u16,
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    /// Chains in flight are kept in an inflight region.
    has_region: bool,
    /// Used chains are kept back until they are published, for a region that must know them first.
    pub(crate) tracked: bool,
    /// Chains taken and chains given back.
    pub(crate) taken: u16,
    pub(crate) given_back: u16,
    order: Option<InOrder>,
    /// What to process again after a crash, the next one last.
    resubmit: Vec<u16>,
}

impl RingCore {
    #[inline(always)]
    pub(crate) fn in_flight(&self) -> u16 {
        self.taken.wrapping_sub(self.given_back)
    }

    /// Logs a write to the area that the front-end calls the used ring.
    #[inline]
    pub(crate) fn log_used(&self, offset: usize, len: u64) {
        if let (Some(log), Some(base)) = (&self.log, self.addresses.used_log) {
            log.mark(GuestAddress(base.0.wrapping_add(offset as u64)), len);
        }
    }
}

/// A ring of one layout: for code that is the same for both and goes through a burst without asking for the layout.
#[derive(Debug)]
pub struct Ring<L> {
    pub(crate) core: RingCore,
    pub(crate) layout: L,
}

impl<L: Layout> Ring<L> {
    pub(crate) fn new(memory: Arc<GuestMemory>, setup: &RingSetup) -> Result<Ring<L>, QueueError> {
        let (layout, resubmit) = L::start(&memory, setup)?;
        let has = |feature| setup.features & feature != 0;
        let core = RingCore {
            memory,
            log: None,
            addresses: setup.addresses,
            size: setup.size,
            event_idx: has(feature::RING_EVENT_IDX),
            indirect: has(feature::RING_INDIRECT_DESC),
            has_region: setup.inflight.is_some(),
            tracked: setup.inflight.is_some(),
            taken: 0,
            given_back: 0,
            order: has(feature::IN_ORDER).then(|| InOrder::new(setup.size)),
            resubmit,
        };
        Ok(Ring { core, layout })
    }

    /// See [`Virtqueue::pop`](crate::Virtqueue::pop).
    #[inline]
    pub fn pop(&mut self, chain: &mut DescriptorChain) -> Result<bool, QueueError> {
        let Ring { core, layout } = self;
        if core.in_flight() == core.size {
            return Ok(false);
        }
        if !core.resubmit.is_empty() {
            self.pop_resubmitted(chain)?;
        } else if !layout.take_next(core, chain)? {
            return Ok(false);
        }
        self.core.taken = self.core.taken.wrapping_add(1);
        Ok(true)
    }

    #[cold]
    fn pop_resubmitted(&mut self, chain: &mut DescriptorChain) -> Result<(), QueueError> {
        let Some(entry) = self.core.resubmit.pop() else { return Ok(()) };
        self.layout.resubmit(&self.core, entry, chain)
    }

    #[inline]
    pub(crate) fn pop_singles(&mut self, access: Access, chains: &mut [SingleBufferChain]) -> usize {
        let Ring { core, layout } = self;
        if core.has_region {
            return 0;
        }
        let room = chains.len().min(usize::from(core.size - core.in_flight()));
        let chains = &mut chains[..layout.run_length(core, room)];
        let mut count = 0;
        for line in chains.chunks_exact_mut(DESCRIPTORS_PER_CACHE_LINE) {
            if !layout.take_singles::<DESCRIPTORS_PER_CACHE_LINE>(core, access, count, line) {
                break;
            }
            count += DESCRIPTORS_PER_CACHE_LINE;
        }
        for chain in chains[count..].chunks_exact_mut(1) {
            if !layout.take_singles::<1>(core, access, count, chain) {
                break;
            }
            count += 1;
        }
        layout.advance(core, count as u16);
        core.taken = core.taken.wrapping_add(count as u16);
        count
    }

    #[inline]
    pub(crate) fn unpop(&mut self, token: ChainToken) {
        assert!(!self.core.has_region, "the region has the chain already");
        debug_assert_eq!(token.sequence(), self.core.taken.wrapping_sub(1), "the last one taken");
        self.layout.retreat(&self.core, token);
        self.core.taken = self.core.taken.wrapping_sub(1);
    }

    /// See [`Virtqueue::complete`](crate::Virtqueue::complete).
    #[inline]
    pub fn complete(&mut self, token: ChainToken, written: u32) {
        let Ring { core, layout } = self;
        if core.order.as_mut().is_none_or(|order| order.advance_if_next(token, 1)) {
            layout.put_used(core, token, written, 1);
        } else {
            self.complete_out_of_order(token, written);
        }
    }

    #[cold]
    fn complete_out_of_order(&mut self, token: ChainToken, written: u32) {
        let Ring { core, layout } = self;
        if let Some(order) = &mut core.order {
            order.insert(token, written);
        }
        while let Some((token, written)) = core.order.as_mut().and_then(InOrder::take) {
            layout.put_used(core, token, written, 1);
        }
    }

    #[inline]
    pub(crate) fn complete_read(&mut self, chains: &[SingleBufferChain]) {
        let count = chains.len() as u16;
        if let ([first, .., last], Some(order), false) = (chains, &mut self.core.order, self.core.tracked)
            && order.advance_if_next(first.token, count)
        {
            // "by only writing out a single used ring entry [or descriptor] with the id [of] the last buffer in the batch" (2.7.9,
            // 2.8.9).
            return self.layout.put_used(&mut self.core, last.token, 0, count);
        }
        self.complete_written(chains);
    }

    #[inline]
    pub(crate) fn complete_written(&mut self, chains: &[SingleBufferChain]) {
        let Some(first) = chains.first() else { return };
        let order = self.core.order.as_mut();
        if order.is_none_or(|order| order.advance_if_next(first.token, chains.len() as u16)) {
            self.layout.put_used_singles(&mut self.core, chains);
        } else {
            chains.iter().for_each(|chain| self.complete(chain.token, chain.written));
        }
    }

    #[inline]
    pub(crate) fn flush(&mut self) -> bool {
        self.layout.publish(&mut self.core)
    }

    pub(crate) fn arm(&mut self) -> Result<bool, QueueError> {
        self.layout.enable_kicks(&self.core);
        fence(SeqCst);
        Ok(!self.core.resubmit.is_empty() || self.layout.is_available(&self.core)?)
    }

    pub(crate) fn disarm(&mut self) {
        self.layout.disable_kicks(&self.core);
    }

    pub(crate) fn relocate(&mut self, memory: Arc<GuestMemory>) -> Result<(), QueueError> {
        self.layout.relocate(&self.core, &memory)?;
        self.core.memory = memory;
        Ok(())
    }

    /// The memory that the ring and its chains lie in.
    #[inline(always)]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.core.memory
    }

    /// The log, if writes are logged.
    #[inline(always)]
    pub fn log(&self) -> Option<&DirtyLog> {
        self.core.log.as_ref()
    }

    pub(crate) fn base(&self) -> u32 {
        self.layout.base()
    }
}
