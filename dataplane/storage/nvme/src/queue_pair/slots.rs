//! The tag slab: a slot a command, and the CID that leads to it.

use super::{Data, MAX_R2T, Outcome};
use crate::spec::{Direction, Sqe};
use clock::Cycles;
use std::ops::{Index, IndexMut};

/// Bits of a CID that name the slot; the rest is the generation.
const SLOT_BITS: u32 = 10;

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No command.
    Free,
    /// The command's capsule is still to be made.
    Queued,
    /// The controller has it, or may.
    Started,
    /// The command ended, but some of its data is still listed to be sent.
    Ended(Outcome),
}

/// A Ready to Transfer that is being served.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct R2t {
    pub(super) tag: u16,
    /// Next byte to send.
    pub(super) offset: u32,
    /// Bytes left.
    pub(super) left: u32,
}

/// The R2Ts outstanding on a command, in order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct R2ts {
    list: [R2t; MAX_R2T],
    count: u8,
}

impl R2ts {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds one; the number outstanding with it where that is too many.
    pub(super) fn push(&mut self, r2t: R2t) -> Result<(), u8> {
        if usize::from(self.count) == MAX_R2T {
            return Err(self.count + 1);
        }
        self.list[usize::from(self.count)] = r2t;
        self.count += 1;
        Ok(())
    }

    pub(super) fn first_mut(&mut self) -> Option<&mut R2t> {
        if self.count == 0 { None } else { self.list.first_mut() }
    }

    pub(super) fn pop(&mut self) {
        self.list.rotate_left(1);
        self.count -= 1;
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
    }
}

/// A command under way, or room for one.
#[derive(Debug)]
pub(super) struct Slot<P> {
    pub(super) stage: Stage,
    generation: u16,
    pub(super) direction: Direction,
    pub(super) in_capsule: bool,
    pub(super) sqe: Sqe,
    pub(super) data: Data,
    pub(super) payload: Option<P>,
    /// Bytes that came from the controller, in order.
    pub(super) received: u32,
    /// The last C2HData PDU came.
    pub(super) last_seen: bool,
    /// A data digest did not match.
    pub(super) digest_failed: bool,
    /// Bytes that R2Ts asked for, in order.
    pub(super) requested: u32,
    pub(super) r2ts: R2ts,
    /// Pieces of its buffers that are listed to be sent.
    pub(super) unsent_pieces: u16,
    pub(super) submitted: Cycles,
    pub(super) sequence: u64,
}

impl<P> Slot<P> {
    fn new() -> Slot<P> {
        Slot {
            stage: Stage::Free,
            generation: 0,
            direction: Direction::None,
            in_capsule: false,
            sqe: Sqe([0; 64]),
            data: Data::None,
            payload: None,
            received: 0,
            last_seen: false,
            digest_failed: false,
            requested: 0,
            r2ts: R2ts::default(),
            unsent_pieces: 0,
            submitted: Cycles::NEVER,
            sequence: 0,
        }
    }

    #[allow(clippy::too_many_arguments)] // the one place that fills a slot
    #[inline]
    pub(super) fn start(
        &mut self,
        sqe: Sqe,
        data: Data,
        direction: Direction,
        in_capsule: bool,
        payload: P,
        now: Cycles,
        sequence: u64,
    ) {
        debug_assert!(self.stage == Stage::Free);
        self.stage = Stage::Queued;
        self.sqe = sqe;
        self.data = data;
        self.direction = direction;
        self.in_capsule = in_capsule;
        self.payload = Some(payload);
        self.received = 0;
        self.last_seen = false;
        self.digest_failed = false;
        self.requested = 0;
        self.r2ts.clear();
        self.submitted = now;
        self.sequence = sequence;
    }

    /// Where the data starts in the payload's buffers.
    #[inline]
    pub(super) fn base(&self) -> u64 {
        if let Data::Buffers { offset, .. } = self.data { offset } else { 0 }
    }
}

/// All slots of a queue; the last one is for the asynchronous event request.
#[derive(Debug)]
pub(super) struct Slots<P> {
    slots: Box<[Slot<P>]>,
    free: Vec<u16>,
}

impl<P> Slots<P> {
    pub(super) fn new(depth: usize) -> Slots<P> {
        Slots { slots: (0..=depth).map(|_| Slot::new()).collect(), free: (0..depth as u16).rev().collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn used(&self) -> usize {
        let depth = self.slots.len() - 1;
        depth - self.free.len() + usize::from(self.slots[depth].stage != Stage::Free)
    }

    #[inline]
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// A free slot; there must be one.
    #[inline]
    pub(super) fn allocate(&mut self) -> u16 {
        self.free.pop().expect("has_free was asked")
    }

    pub(super) fn event_slot(&self) -> u16 {
        (self.slots.len() - 1) as u16
    }

    #[inline]
    pub(super) fn cid(&self, index: u16) -> u16 {
        self.slots[usize::from(index)].generation << SLOT_BITS | index
    }

    /// The slot of a command under way whose CID is `cid`.
    #[inline]
    pub(super) fn find(&self, cid: u16) -> Option<u16> {
        let index = cid & ((1 << SLOT_BITS) - 1);
        let slot = self.slots.get(usize::from(index))?;
        (slot.stage == Stage::Started && slot.generation == cid >> SLOT_BITS).then_some(index)
    }

    /// Empties a slot; its CID is not used again for 64 commands of this slot.
    #[inline]
    pub(super) fn release(&mut self, index: u16) -> Option<P> {
        let is_event = index == self.event_slot();
        let slot = &mut self.slots[usize::from(index)];
        slot.stage = Stage::Free;
        slot.generation = (slot.generation + 1) & (u16::MAX >> SLOT_BITS);
        if !is_event {
            self.free.push(index);
        }
        slot.payload.take()
    }

    pub(super) fn overdue(&self, limit: Cycles) -> Option<u16> {
        let depth = self.slots.len() - 1;
        let late = |slot: &&Slot<P>| slot.stage == Stage::Started && slot.submitted < limit;
        let oldest = self.slots[..depth].iter().filter(late).min_by_key(|slot| slot.sequence)?;
        Some(oldest.sqe.cid())
    }
}

impl<P> Index<u16> for Slots<P> {
    type Output = Slot<P>;
    #[inline(always)]
    fn index(&self, index: u16) -> &Slot<P> {
        &self.slots[usize::from(index)]
    }
}

impl<P> IndexMut<u16> for Slots<P> {
    #[inline(always)]
    fn index_mut(&mut self, index: u16) -> &mut Slot<P> {
        &mut self.slots[usize::from(index)]
    }
}
