//! The sending half: commands within the window, data within its bounds, and PDUs of our own.

use super::tasks::{Owner, SLOT_LOGOUT, SLOT_PING, SLOT_TASK_MANAGEMENT, SLOT_TEXT, tag};
use super::{Burst, Connection, ConnectionError, Pending, Phase};
use crate::pdu::{self, DataOut, Logout, Lun, NO_TAG, Nop, ScsiCommand, TaskManagement, Text, opcode, serial_after};
use crate::scsi::{self, Cdb};
use block::{Completions, Geometry, Op, Status};
use clock::Cycles;

/// One step of a request: a command and the bytes it carries.
struct Command {
    cdb: Cdb,
    read: bool,
    write: bool,
    /// Bytes that move, on the wire.
    len: u32,
    /// Bytes of the request that are done when the command is.
    covers: u32,
}

/// The next command of a request, within the unit's limits. `None` where the unit has no such command.
#[inline]
fn next_command(pending: &Pending, geometry: &Geometry) -> Option<Command> {
    let block_size = u64::from(geometry.block_size);
    let request = &pending.request;
    let block = (request.offset + pending.done) / block_size;
    let rest = request.len - pending.done;
    let limited =
        |max_blocks: u32| (rest / block_size).min(max_blocks.into()).min((u32::MAX / geometry.block_size).into());
    Some(match request.op {
        Op::Read | Op::Write => {
            let blocks = limited(geometry.max_io_size / geometry.block_size);
            let (write, len) = (request.op == Op::Write, (blocks * block_size) as u32);
            Command { cdb: scsi::transfer(write, block, blocks as u32), read: !write, write, len, covers: len }
        }
        Op::Flush => Command { cdb: scsi::synchronize_cache(), read: false, write: false, len: 0, covers: 0 },
        Op::Discard if geometry.max_discard_blocks > 0 => {
            let covers = (limited(geometry.max_discard_blocks) * block_size) as u32;
            Command { cdb: scsi::unmap(), read: false, write: true, len: scsi::UNMAP_LIST_LEN as u32, covers }
        }
        Op::WriteZeroes { unmap } if geometry.max_write_zeroes_blocks > 0 => {
            let blocks = limited(geometry.max_write_zeroes_blocks) as u32;
            // The UNMAP bit is for thin disks; others may refuse it (SBC-4 5.55).
            let cdb = scsi::write_same(unmap && geometry.max_discard_blocks > 0, block, blocks);
            Command { cdb, read: false, write: true, len: geometry.block_size, covers: blocks * geometry.block_size }
        }
        Op::Compare | Op::Discard | Op::WriteZeroes { .. } => return None,
    })
}

impl Connection {
    /// Whether the target takes another command: "closed" when MaxCmdSN is ExpCmdSN - 1 (4.2.2.1).
    #[inline]
    fn window_is_open(&self) -> bool {
        !serial_after(self.cmd_sn, self.max_cmd_sn)
    }

    /// Queues what may be sent: data that is owed first, then commands in order.
    pub(super) fn fill(&mut self, now: Cycles, done: &mut Completions) -> Result<(), ConnectionError> {
        if self.transmit.is_flooded() {
            return Err(ConnectionError::Protocol("a flood of PDUs that want an answer, and none is read"));
        }
        while self.transmit.has_room() {
            if !self.bursts.is_empty() {
                self.send_burst();
            } else if self.probe.is_some() && !self.probe_asked && self.probe_at <= now {
                if !self.can_send() || !self.window_is_open() {
                    break;
                }
                self.ask(now);
            } else if self.can_start() {
                self.start_next(now, done);
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Whether a request waits and may be sent.
    #[inline]
    pub(super) fn can_start(&self) -> bool {
        matches!(self.phase, Phase::Ready) && !self.waiting.is_empty() && self.can_send() && self.window_is_open()
    }

    fn can_send(&self) -> bool {
        self.tasks.has_free() && matches!(self.phase, Phase::Ready | Phase::Probing)
    }

    /// Starts the command of the request that waits longest.
    #[inline]
    fn start_next(&mut self, now: Cycles, done: &mut Completions) {
        let pending = self.waiting.pop_front().expect("the caller saw it");
        let geometry = &self.info.as_ref().expect("known once ready").geometry;
        if !is_well_formed(&pending, geometry) {
            return pending.request.complete(done, Status::IoError);
        }
        let Some(command) = next_command(&pending, geometry) else {
            return pending.request.complete(done, Status::Unsupported);
        };
        let Command { cdb, read, write, len, covers } = command;
        let slot = self.tasks.start(Owner::Request(pending), read, write, len);
        self.tasks.get_mut(slot).covers = covers;
        self.send_command(slot, self.config.lun, cdb, now);
    }

    /// Sends the question that is next.
    fn ask(&mut self, now: Cycles) {
        let (lun, cdb, len) = self.probe.as_ref().expect("the caller saw it").question();
        let slot = self.tasks.start(Owner::Probe, len > 0, false, len);
        self.probe_answer.clear();
        self.probe_asked = true;
        self.send_command(slot, lun, cdb, now);
    }

    /// Sends the command of `slot` with as much data as the target lets come along unasked.
    #[inline]
    fn send_command(&mut self, slot: u16, lun: Lun, cdb: Cdb, now: Cycles) {
        let itt = self.tasks.itt(slot);
        let task = self.tasks.get_mut(slot);
        task.cmd_sn = self.cmd_sn;
        task.active_at = now;
        // "FirstBurstLength: the maximum amount of unsolicited data, immediate and not, during one command" (13.14).
        let negotiated = &self.negotiated;
        let (mut immediate, mut unsolicited) = (0, 0);
        if task.write {
            if negotiated.immediate_data {
                immediate = task.len.min(negotiated.first_burst).min(negotiated.send_segment);
            }
            unsolicited = if negotiated.initial_r2t { immediate } else { task.len.min(negotiated.first_burst) };
            task.solicited = unsolicited;
        }
        let command = ScsiCommand {
            is_final: immediate == unsolicited,
            read: task.read,
            write: task.write,
            lun,
            itt,
            expected_len: task.len,
            cdb,
        };
        let generation = task.generation;
        if immediate < unsolicited {
            let (offset, len) = (immediate, unsolicited - immediate);
            task.owed += len;
            self.bursts.push_back(Burst { slot, generation, ttt: NO_TAG, offset, len, data_sn: 0 });
        }
        let bhs = command.encode().with_command_numbers(self.cmd_sn, self.exp_stat_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.timers.watch(now);
        self.send_data(bhs, slot, 0, immediate);
    }

    /// Sends one Data-Out PDU of the burst that is next.
    fn send_burst(&mut self) {
        let burst = *self.bursts.front().expect("the caller saw it");
        let task = self.tasks.get_mut(burst.slot);
        if task.generation != burst.generation || task.outcome.is_some() {
            // The command is over already: the target wants no more of its data.
            self.bursts.pop_front();
            return;
        }
        let len = burst.len.min(self.negotiated.send_segment);
        let is_final = len == burst.len;
        task.owed -= len;
        if is_final {
            self.bursts.pop_front();
            task.open_r2ts -= u32::from(burst.ttt != NO_TAG);
        } else {
            let front = self.bursts.front_mut().expect("still there");
            front.offset = burst.offset + len;
            front.len = burst.len - len;
            front.data_sn = burst.data_sn + 1;
        }
        let data_out = DataOut {
            is_final,
            lun: self.config.lun,
            itt: tag(burst.slot, burst.generation),
            ttt: burst.ttt,
            data_sn: burst.data_sn,
            offset: burst.offset,
        };
        // Data-Out has no CmdSN: the field is reserved (11.7).
        let bhs = data_out.encode().with_command_numbers(0, self.exp_stat_sn);
        self.send_data(bhs, burst.slot, burst.offset, len);
    }

    /// Queues a PDU with `len` bytes at `offset` of what the command in `slot` writes.
    #[inline]
    fn send_data(&mut self, bhs: pdu::Bhs, slot: u16, offset: u32, len: u32) {
        let task = self.tasks.get_mut(slot);
        if len == 0 {
            return self.transmit.push(bhs, &[]);
        }
        let Owner::Request(pending) = &task.owner else { unreachable!("questions carry no data") };
        let request = &pending.request;
        match request.op {
            Op::Write => {
                let buffers = &request.buffers;
                let at = pending.done as u32 + offset;
                task.queued += u32::from(self.transmit.push_payload(bhs, slot, buffers, at, len));
            }
            Op::Discard => {
                let block_size = u64::from(self.info.as_ref().expect("known once ready").geometry.block_size);
                let block = (request.offset + pending.done) / block_size;
                let list = scsi::unmap_list(block, (u64::from(task.covers) / block_size) as u32);
                self.transmit.push(bhs, &list[offset as usize..][..len as usize]);
            }
            _ => self.transmit.push_zeroes(bhs, len as usize),
        }
    }

    /// A PDU for immediate delivery: it carries CmdSN and does not advance it (4.2.2.1).
    fn send_immediate(&mut self, bhs: pdu::Bhs, data: &[u8]) {
        let bhs = bhs.immediate().with_command_numbers(self.cmd_sn, self.exp_stat_sn);
        self.transmit.push(bhs, data);
    }

    /// "The NOP-Out MUST copy the Target Transfer Tag and the LUN" of the NOP-In it answers (11.18, 11.19).
    pub(super) fn answer_nop(&mut self, nop: Nop) {
        self.send_immediate(Nop { itt: NO_TAG, ..nop }.encode(opcode::NOP_OUT), &[]);
    }

    pub(super) fn send_ping(&mut self) {
        let itt = tag(SLOT_PING, self.timers.pings);
        self.send_immediate(Nop { lun: self.config.lun, itt, ttt: NO_TAG }.encode(opcode::NOP_OUT), &[]);
    }

    pub(super) fn send_abort(&mut self, slot: u16) {
        let task = self.tasks.get_mut(slot);
        task.aborting = true;
        let request = TaskManagement {
            function: pdu::tmf::ABORT_TASK,
            lun: self.config.lun,
            itt: tag(SLOT_TASK_MANAGEMENT, self.timers.functions),
            referenced_itt: tag(slot, task.generation),
            ref_cmd_sn: task.cmd_sn,
        };
        self.send_immediate(request.encode(), &[]);
    }

    pub(super) fn send_unit_reset(&mut self) {
        let request = TaskManagement {
            function: pdu::tmf::LOGICAL_UNIT_RESET,
            lun: self.config.lun,
            itt: tag(SLOT_TASK_MANAGEMENT, self.timers.functions),
            referenced_itt: NO_TAG,
            ref_cmd_sn: 0,
        };
        self.send_immediate(request.encode(), &[]);
    }

    pub(super) fn send_logout(&mut self) {
        self.send_immediate(Logout { reason: 0, itt: tag(SLOT_LOGOUT, 0) }.encode(), &[]);
    }

    pub(super) fn send_text(&mut self, ttt: u32, text: &[u8]) {
        let request = Text { is_final: true, goes_on: false, itt: tag(SLOT_TEXT, 0), ttt };
        self.send_immediate(request.encode(opcode::TEXT), text);
    }
}

/// Whether a request fits the disk's blocks and its own memory. What a guest asked for is not trusted to.
#[inline]
fn is_well_formed(pending: &Pending, geometry: &Geometry) -> bool {
    let request = &pending.request;
    let mask = u64::from(geometry.block_size) - 1;
    (request.offset | request.len) & mask == 0
        && request.offset.checked_add(request.len).is_some()
        && (!request.op.has_buffers() || (request.len == request.buffers.len() && request.len <= u32::MAX.into()))
        && (request.len > 0 || request.op == Op::Flush)
}
