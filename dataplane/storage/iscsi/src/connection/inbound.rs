//! The receiving half: bytes to PDUs, PDUs to what they change.

use super::disposition::{self, Disposition, News};
use super::receive::Header;
use super::tasks::{Outcome, Owner, SLOT_LOGOUT, SLOT_PING, SLOT_TASK_MANAGEMENT, SLOT_TEXT, slot_of};
use super::{Burst, Connection, ConnectionError, Pending, Phase};
use crate::io::{ByteStream, Pieces, Scatter};
use crate::login::ours;
use crate::lun::{Next, Probe};
use crate::pdu::{Answer, AsyncMessage, Bhs, DIGEST_LEN, DataIn, NO_TAG, Nop, R2t, Residual, ScsiResponse, opcode};
use crate::pdu::{Text, async_event, serial_after, tmf_response};
use crate::scsi::{Sense, status};
use crate::text;
use block::{Completions, Status};
use clock::Cycles;
use std::io::ErrorKind;
use std::ops::Range;

/// Reads of one turn at most: other sources of the worker want their share.
const MAX_READS: usize = 16;
/// Payload that is digested and copied at a time: it stays in the first-level cache in between.
const DIGEST_BLOCK: usize = 4 << 10;

/// Where the byte stream stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inbound {
    /// At a header.
    Header,
    /// In a data segment that is collected whole.
    Segment(Header),
    /// In the data of a Data-In PDU.
    Payload(Payload),
}

/// A Data-In PDU under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    header: Header,
    data: DataIn,
    slot: u16,
    remaining: usize,
}

impl Connection {
    /// Reads and handles what the target sent. Returns the number of PDUs and reads.
    pub(super) fn receive_all(
        &mut self,
        stream: &dyn ByteStream,
        pieces: &mut Pieces,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<usize, ConnectionError> {
        let mut events = 0;
        self.dry = true;
        for _ in 0..MAX_READS {
            let (room, straight, result) = self.read(stream, pieces);
            let count = match result {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(events),
                Err(error) => return Err(self.io_failure(&error)),
            };
            self.timers.heard = now;
            let straight = straight.min(count);
            if let Inbound::Payload(payload) = &mut self.inbound {
                payload.remaining -= straight;
                self.tasks.get_mut(payload.slot).received += straight as u32;
            }
            self.receive.filled(count - straight);
            events += 1 + self.parse(now, done)?;
            if count < room {
                return Ok(events);
            }
        }
        self.dry = false;
        Ok(events)
    }

    /// One read: straight into a request's memory where a large payload is under way, behind it the staging buffer. Returns the
    /// bytes that would have fitted, those of them that go straight, and what the connection said.
    #[inline]
    fn read(&mut self, stream: &dyn ByteStream, pieces: &mut Pieces) -> (usize, usize, std::io::Result<usize>) {
        let mut list = Scatter::new(pieces);
        let (mut straight, mut whole) = (0, true);
        if let Inbound::Payload(payload) = &self.inbound
            && self.receive.goes_straight(payload.remaining)
        {
            let task = self.tasks.get(payload.slot);
            if let Owner::Request(pending) = &task.owner {
                let at = pending.done + u64::from(task.received);
                straight = list.push_buffers(&pending.request.buffers, at, payload.remaining);
                whole = straight == payload.remaining;
            }
        }
        if whole {
            list.push(self.receive.room());
        }
        (list.len(), straight, stream.receive(&mut list))
    }

    /// Handles whole PDUs. Returns how many.
    fn parse(&mut self, now: Cycles, done: &mut Completions) -> Result<usize, ConnectionError> {
        let mut count = 0;
        loop {
            match self.inbound {
                Inbound::Header => {
                    let Some(header) = self.receive.header(ours::RECV_SEGMENT as usize)? else { return Ok(count) };
                    if header.bhs.opcode() == opcode::DATA_IN {
                        self.inbound = Inbound::Payload(self.begin_payload(header)?);
                    } else {
                        self.inbound = Inbound::Segment(header);
                    }
                }
                Inbound::Segment(header) => {
                    let Some(segment) = self.receive.segment(&header)? else { return Ok(count) };
                    self.inbound = Inbound::Header;
                    self.on_pdu(&header.bhs, segment, now, done)?;
                    count += 1;
                }
                Inbound::Payload(mut payload) => {
                    let whole = self.take_payload(&mut payload)?;
                    self.inbound = if whole { Inbound::Header } else { Inbound::Payload(payload) };
                    if !whole {
                        return Ok(count);
                    }
                    self.on_data_in(&payload, now, done)?;
                    count += 1;
                }
            }
        }
    }

    /// Checks a Data-In before a byte of it touches the request's memory.
    #[inline]
    fn begin_payload(&mut self, header: Header) -> Result<Payload, ConnectionError> {
        if matches!(self.phase, Phase::Login(_)) {
            return Err(ConnectionError::Protocol("data before the login is over"));
        }
        let data = DataIn::decode(&header.bhs);
        let Some((slot, task)) = self.tasks.by_itt(data.itt) else {
            return Err(ConnectionError::Protocol("data for a command that is not under way"));
        };
        let len = header.bhs.data_len();
        if !task.read {
            return Err(ConnectionError::Protocol("data for a command that does not read"));
        }
        if data.data_sn != task.data_sn {
            return Err(ConnectionError::Protocol("a DataSN out of order"));
        }
        if data.offset != task.received && len > 0 {
            return Err(ConnectionError::Protocol("a BufferOffset out of order"));
        }
        if len as u64 + u64::from(task.received) > task.len.into() {
            return Err(ConnectionError::Protocol("more data than was asked for"));
        }
        task.data_sn = task.data_sn.wrapping_add(1);
        task.active_at = self.timers.heard;
        if self.receive.data_digest {
            self.crc.reset();
        }
        Ok(Payload { header, data, slot, remaining: len })
    }

    /// Moves what has arrived of a payload to where it belongs. Returns whether the PDU is whole.
    #[inline]
    fn take_payload(&mut self, payload: &mut Payload) -> Result<bool, ConnectionError> {
        let digest = self.receive.data_digest;
        let block = if digest { DIGEST_BLOCK } else { usize::MAX };
        while payload.remaining > 0 {
            let chunk = self.receive.peek(payload.remaining.min(block));
            if chunk.is_empty() {
                return Ok(false);
            }
            if digest {
                self.crc.update(chunk);
            }
            let task = self.tasks.get_mut(payload.slot);
            match &task.owner {
                Owner::Request(pending) => {
                    let at = pending.done + u64::from(task.received);
                    pending.request.buffers.write(at, chunk).map_err(|_| ConnectionError::Memory)?;
                }
                _ => self.probe_answer.extend_from_slice(chunk),
            }
            let len = chunk.len();
            task.received += len as u32;
            payload.remaining -= len;
            self.receive.consume(len);
        }
        if self.receive.available() < payload.header.tail {
            return Ok(false);
        }
        let tail = self.receive.peek(payload.header.tail);
        if digest && !tail.is_empty() {
            let (pad, expected) = tail.split_at(tail.len() - DIGEST_LEN);
            self.crc.update(pad);
            if self.crc.finish().to_le_bytes() != expected {
                return Err(ConnectionError::DataDigest);
            }
        }
        self.receive.consume(payload.header.tail);
        Ok(true)
    }

    fn on_data_in(&mut self, payload: &Payload, now: Cycles, done: &mut Completions) -> Result<(), ConnectionError> {
        self.on_window(&payload.header.bhs);
        // "If the S bit is set, the PDU carries StatSN and status", and no SCSI Response follows (11.7.3).
        let Some((status, residual)) = payload.data.status else { return Ok(()) };
        self.on_status_number(&payload.header.bhs)?;
        self.end(payload.slot, status, residual, Sense::default(), now, done)
    }

    /// Every PDU but Data-In.
    fn on_pdu(
        &mut self,
        bhs: &Bhs,
        segment: Range<usize>,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<(), ConnectionError> {
        if let Phase::Login(_) = self.phase {
            return self.on_login(bhs, segment);
        }
        self.on_window(bhs);
        match bhs.opcode() {
            opcode::SCSI_RESPONSE => self.on_scsi_response(bhs, segment, now, done),
            opcode::R2T => self.on_r2t(bhs),
            opcode::NOP_IN => self.on_nop_in(bhs),
            opcode::TASK_MANAGEMENT_RESPONSE => self.on_function_done(bhs, now, done),
            opcode::TEXT_RESPONSE => self.on_text(bhs, segment, now),
            opcode::LOGOUT_RESPONSE => self.on_logout(bhs),
            opcode::ASYNC_MESSAGE => self.on_async(bhs, segment, now),
            opcode::REJECT => {
                self.on_status_number(bhs)?;
                Err(ConnectionError::Rejected(Answer::decode(bhs).response))
            }
            _ => Err(ConnectionError::Protocol("an opcode that no target sends in this phase")),
        }
    }

    fn on_login(&mut self, bhs: &Bhs, segment: Range<usize>) -> Result<(), ConnectionError> {
        let Phase::Login(login) = &mut self.phase else { unreachable!("the caller saw it") };
        if bhs.opcode() != opcode::LOGIN_RESPONSE {
            return Err(ConnectionError::Protocol("something else than a login response"));
        }
        self.exp_stat_sn = bhs.stat_sn().wrapping_add(1);
        self.max_cmd_sn = bhs.max_cmd_sn();
        let step = login.on_response(bhs, self.receive.bytes(segment))?;
        self.take_login_step(step)
    }

    /// MaxCmdSN only grows, in serial arithmetic; one below ExpCmdSN - 1 is ignored (4.2.2.1).
    #[inline]
    fn on_window(&mut self, bhs: &Bhs) {
        let (exp, max) = (bhs.exp_cmd_sn(), bhs.max_cmd_sn());
        if serial_after(max, self.max_cmd_sn) && !serial_after(exp.wrapping_sub(1), max) {
            self.max_cmd_sn = max;
        }
    }

    /// A PDU that carries a status. One connection delivers them in order: a gap is a PDU lost, and only a new session helps.
    #[inline]
    fn on_status_number(&mut self, bhs: &Bhs) -> Result<(), ConnectionError> {
        if bhs.stat_sn() != self.exp_stat_sn {
            return Err(ConnectionError::Protocol("a StatSN out of order"));
        }
        self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        Ok(())
    }

    fn on_scsi_response(
        &mut self,
        bhs: &Bhs,
        segment: Range<usize>,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<(), ConnectionError> {
        self.on_status_number(bhs)?;
        let response = ScsiResponse::decode(bhs);
        let Some((slot, _)) = self.tasks.by_itt(response.itt) else {
            return Err(ConnectionError::Protocol("a response to a command that is not under way"));
        };
        if response.response != 0 {
            self.settle(slot, Outcome::Incomplete, now, done);
            return Ok(());
        }
        let sense = Sense::from_segment(self.receive.bytes(segment));
        self.end(slot, response.status, response.residual, sense, now, done)
    }

    /// A command's status arrived.
    #[inline]
    fn end(
        &mut self,
        slot: u16,
        status: u8,
        residual: Residual,
        sense: Sense,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<(), ConnectionError> {
        let task = self.tasks.get(slot);
        if status != status::GOOD {
            self.settle(slot, Outcome::Failed { status, sense }, now, done);
            return Ok(());
        }
        if matches!(task.owner, Owner::Request(_)) {
            let short = if task.read { task.received < task.len } else { task.solicited < task.len || task.owed > 0 };
            match (residual, short) {
                (Residual::None, false) => {}
                (Residual::None, true) => {
                    return Err(ConnectionError::Protocol("good status for data that did not move"));
                }
                // The target says itself that it moved something else than asked.
                _ => {
                    self.settle(slot, Outcome::Incomplete, now, done);
                    return Ok(());
                }
            }
        }
        self.settle(slot, Outcome::Good, now, done);
        Ok(())
    }

    /// A command is over. Its memory may still wait to be sent; then it is closed when that is done.
    #[inline]
    fn settle(&mut self, slot: u16, outcome: Outcome, now: Cycles, done: &mut Completions) {
        let task = self.tasks.get_mut(slot);
        task.outcome = Some(outcome);
        if task.queued == 0 {
            self.close(slot, outcome, now, done);
        }
    }

    /// Gives a slot back and decides what becomes of its request.
    #[inline]
    pub(super) fn close(&mut self, slot: u16, outcome: Outcome, now: Cycles, done: &mut Completions) {
        let covers = self.tasks.get(slot).covers;
        let mut pending = match self.tasks.release(slot) {
            Owner::Request(pending) => pending,
            _ => return self.close_probe(outcome, now),
        };
        if outcome == Outcome::Good {
            pending.done += u64::from(covers);
            match pending.done < pending.request.len {
                true => self.waiting.push_front(pending),
                false => pending.request.complete(done, Status::Ok),
            }
            return;
        }
        self.close_failed(pending, outcome, now, done);
    }

    fn close_failed(&mut self, pending: Pending, outcome: Outcome, now: Cycles, done: &mut Completions) {
        let (disposition, news) = disposition::decide_disposition(outcome);
        self.on_news(news);
        match disposition {
            Disposition::End(status) => pending.request.complete(done, status),
            Disposition::Retry => {
                self.counters.retries += 1;
                self.waiting.push_front(pending);
            }
            Disposition::RetryLater => self.resting.push_back((now + self.config.timeouts.retry, pending)),
            Disposition::Relogin => {
                self.waiting.push_front(pending);
                self.broken = Some(ConnectionError::LunGone);
            }
        }
    }

    fn on_news(&mut self, news: News) {
        self.news.luns |= news.luns;
        if news.capacity {
            self.ask_capacity();
        }
    }

    /// A question is answered, or refused.
    fn close_probe(&mut self, outcome: Outcome, now: Cycles) {
        self.probe_asked = false;
        let Some(probe) = &mut self.probe else { return };
        let answer = match outcome {
            Outcome::Good => Ok(self.probe_answer.as_slice()),
            Outcome::Failed { status: status::CHECK_CONDITION, sense } => Err(sense),
            // Busy, and whatever else has no sense data: as good as an aborted command.
            _ => Err(Sense { key: crate::scsi::sense_key::ABORTED_COMMAND, asc: 0, ascq: 0 }),
        };
        match probe.on_answer(answer) {
            Ok(Next::Ask) => {}
            Ok(Next::Wait) => self.probe_at = now + self.config.timeouts.retry,
            Ok(Next::Done(info)) => {
                self.news.capacity |= self.info.as_ref().is_some_and(|old| old.geometry != info.geometry);
                self.info = Some(info);
                self.probe = None;
                if matches!(self.phase, Phase::Probing) {
                    self.phase = Phase::Ready;
                }
            }
            Err(error) => self.broken = Some(error.into()),
        }
    }

    fn on_r2t(&mut self, bhs: &Bhs) -> Result<(), ConnectionError> {
        let r2t = R2t::decode(bhs);
        let (max_burst, max_r2t) = (self.negotiated.max_burst, self.negotiated.max_r2t);
        let Some((slot, task)) = self.tasks.by_itt(r2t.itt) else {
            return Err(ConnectionError::Protocol("an R2T for a command that is not under way"));
        };
        let refused = match () {
            () if !task.write => "an R2T for a command that does not write",
            () if r2t.ttt == NO_TAG => "an R2T without a tag",
            () if r2t.r2t_sn != task.r2t_sn => "an R2TSN out of order",
            () if r2t.len == 0 => "an R2T for no data",
            () if r2t.len > max_burst => "an R2T for more than MaxBurstLength",
            () if r2t.offset != task.solicited => "an R2T with an offset out of order",
            () if u64::from(r2t.offset) + u64::from(r2t.len) > task.len.into() => "an R2T beyond the data",
            () if task.open_r2ts >= max_r2t => "more R2Ts than MaxOutstandingR2T",
            () => {
                task.r2t_sn += 1;
                task.active_at = self.timers.heard;
                task.solicited += r2t.len;
                task.owed += r2t.len;
                task.open_r2ts += 1;
                let generation = task.generation;
                let R2t { ttt, offset, len, .. } = r2t;
                self.bursts.push_back(Burst { slot, generation, ttt, offset, len, data_sn: 0 });
                return Ok(());
            }
        };
        Err(ConnectionError::Protocol(refused))
    }

    fn on_nop_in(&mut self, bhs: &Bhs) -> Result<(), ConnectionError> {
        let nop = Nop::decode(bhs);
        if nop.itt != NO_TAG {
            self.on_status_number(bhs)?;
            if slot_of(nop.itt) == SLOT_PING {
                self.timers.on_pong();
            }
        }
        // A ping of the target does not advance StatSN (11.19.4).
        if nop.ttt != NO_TAG && nop.itt == NO_TAG {
            self.answer_nop(nop);
        }
        Ok(())
    }

    fn on_function_done(&mut self, bhs: &Bhs, now: Cycles, done: &mut Completions) -> Result<(), ConnectionError> {
        self.on_status_number(bhs)?;
        let answer = Answer::decode(bhs);
        if slot_of(answer.itt) != SLOT_TASK_MANAGEMENT {
            return Err(ConnectionError::Protocol("an answer to a function that was not asked for"));
        }
        if matches!(self.phase, Phase::Fencing) {
            return match answer.response {
                tmf_response::COMPLETE => {
                    self.timers.functions = self.timers.functions.wrapping_add(1);
                    self.begin_probing();
                    Ok(())
                }
                _ => Err(ConnectionError::Timeout(
                    "the target refuses a LUN reset, so old writes may still be under way",
                )),
            };
        }
        let Some((slot, generation)) = self.timers.on_function_done((answer.itt >> 16) as u16) else { return Ok(()) };
        if self.tasks.by_itt(super::tasks::tag(slot, generation)).is_none() {
            return Ok(());
        }
        match answer.response {
            // "Task does not exist": its response would have come before this one, so it never arrived (11.6.1).
            tmf_response::COMPLETE | tmf_response::NO_TASK => {
                self.settle(slot, Outcome::Aborted, now, done);
                Ok(())
            }
            _ => Err(ConnectionError::Timeout("the target neither ends a command nor aborts it")),
        }
    }

    fn on_text(&mut self, bhs: &Bhs, segment: Range<usize>, now: Cycles) -> Result<(), ConnectionError> {
        self.on_status_number(bhs)?;
        let answer = Text::decode(bhs);
        let Phase::Discovery(collected) = &mut self.phase else {
            return Err(ConnectionError::Protocol("text that was not asked for"));
        };
        if slot_of(answer.itt) != SLOT_TEXT {
            return Err(ConnectionError::Protocol("text that was not asked for"));
        }
        text::append(collected, self.receive.bytes(segment)).map_err(crate::login::LoginError::from)?;
        if answer.goes_on || !answer.is_final {
            if answer.ttt == NO_TAG {
                return Err(ConnectionError::Protocol("text that goes on without a tag"));
            }
            self.send_text(answer.ttt, &[]);
            return Ok(());
        }
        self.discovered = Some(std::mem::take(collected));
        self.log_out("the discovery is over", now);
        Ok(())
    }

    fn on_logout(&mut self, bhs: &Bhs) -> Result<(), ConnectionError> {
        self.on_status_number(bhs)?;
        if slot_of(bhs.itt()) != SLOT_LOGOUT {
            return Err(ConnectionError::Protocol("an answer to a logout that was not asked for"));
        }
        Err(match self.logout_wanted {
            Some(why) => ConnectionError::Ended(why),
            None => ConnectionError::LoggedOut,
        })
    }

    fn on_async(&mut self, bhs: &Bhs, segment: Range<usize>, now: Cycles) -> Result<(), ConnectionError> {
        self.on_status_number(bhs)?;
        let message = AsyncMessage::decode(bhs);
        match message.event {
            async_event::SCSI => {
                let sense = Sense::from_segment(self.receive.bytes(segment));
                self.on_news(disposition::news(sense));
            }
            // "The initiator MUST honor this request" within Parameter3 seconds (11.9.1). A renegotiation too is a new login.
            async_event::LOGOUT_REQUESTED => self.log_out("it asked for a logout", now),
            async_event::NEGOTIATION_REQUESTED => self.log_out("it asked for a new negotiation", now),
            async_event::CONNECTION_DROPPED | async_event::SESSION_DROPPED => {
                return Err(ConnectionError::Ended("it drops all its connections"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Asks the unit for its size again.
    pub(crate) fn ask_capacity(&mut self) {
        if self.probe.is_none() && self.info.is_some() {
            self.probe = Some(Probe::new(self.config.lun, self.info.clone()));
        }
    }
}
