//! The fixed slab of commands under way, and the tags that name them.

use super::Pending;
use crate::scsi::Sense;
use clock::Cycles;

/// Slots that are not tasks, for the tags of our own PDUs. They lie above every slab.
pub(crate) const SLOT_PING: u16 = 0xfff0;
pub(crate) const SLOT_TASK_MANAGEMENT: u16 = 0xfff1;
pub(crate) const SLOT_LOGOUT: u16 = 0xfff2;
pub(crate) const SLOT_TEXT: u16 = 0xfff3;

/// An Initiator Task Tag: slot in the low half, the slot's generation in the high half. Never [`crate::pdu::NO_TAG`], because no
/// slot is 0xffff.
#[inline(always)]
pub(crate) fn tag(slot: u16, generation: u16) -> u32 {
    u32::from(generation) << 16 | u32::from(slot)
}

/// The slot of a tag.
#[inline(always)]
pub(crate) fn slot_of(itt: u32) -> u16 {
    itt as u16
}

/// How a command ended on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// GOOD, all data moved.
    Good,
    /// Another status, with its sense where there is one.
    Failed { status: u8, sense: Sense },
    /// The target could not process the command (response code, 11.4.3), or it moved less than asked.
    Incomplete,
    /// Taken back by ABORT TASK: as if it had never been sent.
    Aborted,
}

/// The use of a slot.
#[derive(Debug, Default)]
pub(crate) enum Owner {
    #[default]
    Free,
    /// A request of the disk's user.
    Request(Pending),
    /// A command of our own, its answer in the connection's probe buffer.
    Probe,
}

/// One command under way.
#[derive(Debug, Default)]
pub(crate) struct Task {
    pub(crate) owner: Owner,
    pub(crate) generation: u16,
    pub(crate) cmd_sn: u32,
    /// When the command was sent, or last moved data: a large command on a slow network is not late.
    pub(crate) active_at: Cycles,
    /// Whether data flows in. A command with neither flag moves no data.
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Bytes this command moves on the wire.
    pub(crate) len: u32,
    /// Bytes of the request that are done when this command is.
    pub(crate) covers: u32,
    /// Bytes received in order: the only BufferOffset that the next Data-In may have.
    pub(crate) received: u32,
    /// DataSN of the next Data-In.
    pub(crate) data_sn: u32,
    /// Bytes sent unasked or asked for by R2Ts: the only offset that the next R2T may have.
    pub(crate) solicited: u32,
    /// R2TSN of the next R2T.
    pub(crate) r2t_sn: u32,
    /// R2Ts whose data is not yet all queued.
    pub(crate) open_r2ts: u32,
    /// Bytes asked for or announced, and not yet queued.
    pub(crate) owed: u32,
    /// Pieces of the request's memory that wait in the transmit queue.
    pub(crate) queued: u32,
    /// The end, waiting for `queued` to come to zero.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) aborting: bool,
}

/// Tasks by slot.
#[derive(Debug)]
pub(crate) struct Tasks {
    slots: Vec<Task>,
    free: Vec<u16>,
}

impl Tasks {
    pub(crate) fn new(depth: u16) -> Tasks {
        assert!((1..SLOT_PING).contains(&depth));
        Tasks { slots: (0..depth).map(|_| Task::default()).collect(), free: (0..depth).rev().collect() }
    }

    pub(crate) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a slot for a command of `len` bytes. The caller has checked that one is free.
    #[inline]
    pub(crate) fn start(&mut self, owner: Owner, read: bool, write: bool, len: u32) -> u16 {
        let slot = self.free.pop().expect("the caller checked for a free slot");
        let task = &mut self.slots[usize::from(slot)];
        *task = Task { owner, read, write, len, generation: task.generation, ..Task::default() };
        slot
    }

    /// Gives a slot back; its tag is dead from now on.
    #[inline]
    pub(crate) fn release(&mut self, slot: u16) -> Owner {
        let task = &mut self.slots[usize::from(slot)];
        let owner = std::mem::take(&mut task.owner);
        debug_assert!(!matches!(owner, Owner::Free), "a slot is given back once");
        task.generation = task.generation.wrapping_add(1);
        task.outcome = None;
        self.free.push(slot);
        owner
    }

    #[inline]
    pub(crate) fn itt(&self, slot: u16) -> u32 {
        tag(slot, self.slots[usize::from(slot)].generation)
    }

    /// The live task that a tag from the wire names.
    #[inline]
    pub(crate) fn by_itt(&mut self, itt: u32) -> Option<(u16, &mut Task)> {
        let slot = slot_of(itt);
        let task = self.slots.get_mut(usize::from(slot))?;
        let live = !matches!(task.owner, Owner::Free) && task.outcome.is_none();
        (live && tag(slot, task.generation) == itt).then_some((slot, task))
    }

    #[inline]
    pub(crate) fn get(&self, slot: u16) -> &Task {
        &self.slots[usize::from(slot)]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u16) -> &mut Task {
        &mut self.slots[usize::from(slot)]
    }

    /// The slots in use, in no order.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u16, &Task)> {
        let used = |(_, task): &(usize, &Task)| !matches!(task.owner, Owner::Free);
        self.slots.iter().enumerate().filter(used).map(|(slot, task)| (slot as u16, task))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_one_use_of_a_slot() {
        let mut tasks = Tasks::new(1);
        let slot = tasks.start(Owner::Probe, true, false, 8);
        let old = tasks.itt(slot);
        assert!(tasks.by_itt(old).is_some() && !tasks.has_free());
        tasks.release(slot);
        assert!(tasks.by_itt(old).is_none(), "dead after release");
        let slot = tasks.start(Owner::Probe, true, false, 8);
        assert!(tasks.by_itt(old).is_none(), "dead after reuse");
        assert_ne!(tasks.itt(slot), old);
        assert!(tasks.by_itt(crate::pdu::NO_TAG).is_none());
        assert_eq!(tasks.live().count(), tasks.in_use());
    }
}
