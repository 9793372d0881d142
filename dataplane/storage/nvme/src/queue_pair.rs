//! The protocol of one queue over one connection, without the connection: bytes and the time go in, bytes and completions
//! come out.
//!
//! ```text
//! submit -> [slots] -> gather -> (wire) -> sent
//!                      scatter <- (wire) <- received -> pop_completion
//! ```
//!
//! Commands live in a fixed slab of slots; a CID is a slot and a generation, so that a late or doubled answer meets no other
//! command. Payload moves between the wire and the buffers of the command with no copy in between, or one copy through the
//! staging area where that saves system calls. Nothing is allocated after [`QueuePair::new`].
//!
//! Every [`ProtocolError`] is fatal: the owner sends what [`QueuePair::fail`] leaves to send, closes, and takes the commands
//! back with [`QueuePair::take`], each with whether the controller may have seen it.

mod receive;
mod slots;
mod transmit;

#[cfg(test)]
mod tests;

use crate::io::{Gather, Pieces, Scatter};
use crate::pdu::{Digests, IcReq, IcResp, ProtocolError};
use crate::spec::{Cqe, DataPointer, Direction, Sqe};
use clock::Cycles;
use memory::IoBuffers;
use receive::Receive;
use slots::{Slots, Stage};
use std::collections::VecDeque;
use transmit::Transmit;

/// R2Ts outstanding on one command at most: what ICReq offers.
pub const MAX_R2T: usize = 4;
/// Entries of a submission queue at most; one more slot is kept for the asynchronous event request.
pub const MAX_ENTRIES: u16 = 1023;
/// Bytes one command may move at most.
pub const MAX_TRANSFER: u32 = 16 << 20;

/// The payload that a command leaves with the queue pair while it is under way.
pub trait Payload {
    /// The memory its data is in.
    fn buffers(&self) -> Option<&IoBuffers>;
}

/// Where a command's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// No data.
    None,
    /// One data set management range, sent from the command itself.
    Range([u8; 16]),
    /// `len` bytes from `offset` of the payload's buffers.
    Buffers {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`MAX_TRANSFER`].
        len: u32,
    },
}

impl Data {
    fn len(&self) -> u32 {
        match self {
            Data::None => 0,
            Data::Range(bytes) => bytes.len() as u32,
            Data::Buffers { len, .. } => *len,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The controller answered.
    Answered(Cqe),
    /// The data of a read did not match its digest (TCP 3.3.1.1: this command fails, the connection goes on).
    DataDigestError,
}

/// A command that ended.
#[derive(Debug)]
pub struct Completion<P> {
    /// The payload that was submitted with the command.
    pub payload: P,
    /// How the command ended.
    pub outcome: Outcome,
}

/// A command taken back from a queue that failed.
#[derive(Debug)]
pub struct Taken<P> {
    /// The payload that was submitted with the command.
    pub payload: P,
    /// The controller may have seen the command.
    pub started: bool,
    /// Order of submission.
    pub sequence: u64,
}

/// The parameters of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries of the submission queue, 2 to [`MAX_ENTRIES`]; one fewer commands are outstanding.
    pub entries: u16,
    /// Digests to ask for; the target must agree.
    pub digests: Digests,
    /// Bytes of data that a command capsule may carry.
    pub in_capsule_len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitIcResp,
    Connected,
    Failed,
}

/// One queue. `P` is what each command leaves with it.
#[derive(Debug)]
pub struct QueuePair<P> {
    config: QueueConfig,
    state: State,
    slots: Slots<P>,
    /// Slots with a PDU to produce, in turn.
    work: VecDeque<u16>,
    tx: Transmit,
    rx: Receive,
    done: VecDeque<Completion<P>>,
    /// Reads under way of at least [`LARGE_READ`] bytes.
    large_reads: usize,
    /// Alignment of our data, in bytes: (CPDA + 1) * 4.
    alignment: usize,
    max_h2c_data: u32,
    sequence: u64,
}

/// A read from which on staging costs more than the system call that avoids it.
const LARGE_READ: u32 = 16 << 10;

impl<P: Payload> QueuePair<P> {
    /// A queue that starts with ICReq.
    pub fn new(config: QueueConfig) -> QueuePair<P> {
        debug_assert!((2..=MAX_ENTRIES).contains(&config.entries));
        let mut tx = Transmit::new(config.digests);
        let request = IcReq { version: 0, hpda: 0, digests: config.digests, max_r2t: MAX_R2T as u32 - 1 };
        tx.put(|out| request.put(out));
        let depth = usize::from(config.entries) - 1;
        QueuePair {
            config,
            state: State::AwaitIcResp,
            slots: Slots::new(depth),
            work: VecDeque::with_capacity(depth + 1),
            tx,
            rx: Receive::new(config.digests.data),
            done: VecDeque::with_capacity(depth + 1),
            large_reads: 0,
            alignment: 4,
            max_h2c_data: 0,
            sequence: 0,
        }
    }

    /// Whether ICResp came and the queue is not lost.
    pub fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    /// Commands under way.
    pub fn outstanding(&self) -> usize {
        self.slots.used()
    }

    /// Whether another command fits.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.state != State::Failed && self.slots.has_free()
    }

    /// Bytes of data that a command capsule may carry from now on (IOCCSZ is known only after Identify).
    pub fn set_in_capsule_len(&mut self, len: u32) {
        self.config.in_capsule_len = len;
    }

    /// Takes a command. Its CID and its SGL are set here. Returns the CID, or the payload when there is no room.
    #[inline]
    pub fn submit(&mut self, sqe: Sqe, data: Data, payload: P, now: Cycles) -> Result<u16, P> {
        if !self.has_room() {
            return Err(payload);
        }
        let index = self.slots.allocate();
        Ok(self.start(index, sqe, data, payload, now))
    }

    /// Takes an Asynchronous Event Request: it has a slot of its own, outside of the queue's entries, and never times out.
    /// Returns the payload where one is outstanding already.
    pub fn submit_event_request(&mut self, sqe: Sqe, payload: P) -> Result<u16, P> {
        let index = self.slots.event_slot();
        if self.state == State::Failed || self.slots[index].stage != Stage::Free {
            return Err(payload);
        }
        Ok(self.start(index, sqe, Data::None, payload, Cycles::NEVER))
    }

    #[inline]
    fn start(&mut self, index: u16, mut sqe: Sqe, data: Data, payload: P, now: Cycles) -> u16 {
        let (len, direction) = (data.len(), sqe.direction());
        debug_assert!(len <= MAX_TRANSFER && (len == 0 || direction != Direction::None));
        let cid = self.slots.cid(index);
        sqe.set_cid(cid);
        // "In-capsule data: SGL Data Block with Offset; everything else Transport SGL, also with length 0" (TCP 3.1.3).
        let in_capsule = direction == Direction::Out && len > 0 && len <= self.config.in_capsule_len;
        sqe.set_data(if in_capsule {
            DataPointer::InCapsule { offset: 0, len }
        } else {
            DataPointer::Transport { len }
        });
        self.sequence += 1;
        self.slots[index].start(sqe, data, direction, in_capsule, payload, now, self.sequence);
        self.large_reads += usize::from(self.is_large_read(direction, len));
        self.work.push_back(index);
        cid
    }

    /// Whether the data of a command goes straight into its buffers.
    #[inline]
    fn is_large_read(&self, direction: Direction, len: u32) -> bool {
        direction == Direction::In && len >= LARGE_READ && !self.config.digests.data
    }

    /// The bytes that are to be sent now, listed in `pieces`; tell [`sent`](QueuePair::sent) how much of it went.
    #[inline]
    pub fn gather<'a>(&'a mut self, pieces: &'a mut Pieces) -> Gather<'a> {
        self.produce();
        let mut gather = Gather::new(pieces);
        self.tx.list(&self.slots, &mut gather);
        gather
    }

    /// Whether something is to be sent.
    #[inline]
    pub fn wants_to_send(&self) -> bool {
        !self.tx.is_empty() || (self.state == State::Connected && !self.work.is_empty())
    }

    /// `count` bytes of what [`gather`](QueuePair::gather) listed were sent.
    pub fn sent(&mut self, count: usize) {
        let mut count = count;
        while let Some(slot) = self.tx.advance(&mut count) {
            self.slots[slot].unsent_pieces -= 1;
            self.release_if_drained(slot);
        }
    }

    /// Where the next bytes from the wire go, listed in `pieces`; tell [`received`](QueuePair::received) how many came.
    #[inline]
    pub fn scatter<'a>(&'a mut self, pieces: &'a mut Pieces) -> Scatter<'a> {
        let mut scatter = Scatter::new(pieces);
        self.rx.list(&self.slots, self.large_reads > 0, &mut scatter);
        scatter
    }

    /// The next command that ended.
    #[inline]
    pub fn pop_completion(&mut self) -> Option<Completion<P>> {
        self.done.pop_front()
    }

    /// The oldest command under way that was submitted before `limit`: its CID.
    pub fn overdue(&self, limit: Cycles) -> Option<u16> {
        self.slots.overdue(limit)
    }

    /// Whether `cid` is under way.
    pub fn is_outstanding(&self, cid: u16) -> bool {
        self.slots.find(cid).is_some()
    }

    /// Gives the queue up over `error` and leaves a terminate request to send, where the peer is to know.
    pub fn fail(&mut self, error: &ProtocolError) {
        self.state = State::Failed;
        self.work.clear();
        if let Some((fes, fei)) = error.term_fields() {
            let header = self.rx.offending_header();
            self.tx.put_term_req(fes, fei, header);
        }
    }

    /// Slots of the queue, for [`take`](QueuePair::take).
    pub fn slots(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Takes the command in slot `index` out of a queue that is given up.
    pub fn take(&mut self, index: u16) -> Option<Taken<P>> {
        self.state = State::Failed;
        if usize::from(index) >= self.slots.len() {
            return None;
        }
        let slot = &mut self.slots[index];
        let started = slot.stage != Stage::Queued;
        let sequence = slot.sequence;
        let payload = slot.payload.take()?;
        slot.stage = Stage::Free;
        Some(Taken { payload, started, sequence })
    }

    /// ICResp: the connection's parameters (TCP 3.6.2.2).
    fn on_ic_resp(&mut self, response: IcResp) -> Result<(), ProtocolError> {
        let unsupported = |field, got, expected| ProtocolError::Unsupported { field, got, expected };
        if response.version != 0 {
            return Err(unsupported("PFV", u32::from(response.version), "0"));
        }
        if response.cpda > 31 {
            return Err(unsupported("CPDA", u32::from(response.cpda), "0 to 31"));
        }
        if response.digests != self.config.digests {
            return Err(unsupported(
                "DGST",
                u32::from(response.digests.bits()),
                "the digests asked for (hdgst, ddgst)",
            ));
        }
        // "MAXH2CDATA: minimum 4,096" (TCP figure 17).
        if response.max_h2c_data < 4096 || !response.max_h2c_data.is_multiple_of(4) {
            return Err(unsupported("MAXH2CDATA", response.max_h2c_data, "a multiple of 4, at least 4096"));
        }
        self.alignment = (usize::from(response.cpda) + 1) * 4;
        self.max_h2c_data = response.max_h2c_data;
        self.state = State::Connected;
        Ok(())
    }

    /// A command ended; it is given back once nothing of it waits to be sent.
    fn complete(&mut self, index: u16, outcome: Outcome) {
        let slot = &mut self.slots[index];
        slot.stage = Stage::Ended(outcome);
        // "A target may fail a write early: drop queued H2CData only at a PDU boundary": R2Ts not yet turned into PDUs go,
        // PDUs already listed are sent whole.
        slot.r2ts.clear();
        self.release_if_drained(index);
    }

    fn release_if_drained(&mut self, index: u16) {
        let slot = &mut self.slots[index];
        let Stage::Ended(outcome) = slot.stage else { return };
        if slot.unsent_pieces > 0 {
            return;
        }
        let (direction, len) = (slot.direction, slot.data.len());
        self.large_reads -= usize::from(self.is_large_read(direction, len));
        let Some(payload) = self.slots.release(index) else { return };
        self.done.push_back(Completion { payload, outcome });
    }
}
