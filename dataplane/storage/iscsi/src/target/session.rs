//! One connection of a target.

use super::faults::WrongR2t;
use super::login::{LoginTarget, Reply, Settled};
use super::scsi::{Change, Failed, Unit, check};
use super::{Faults, Nexus, Target};
use crate::digest::crc32c;
use crate::pdu::{
    Answer, AsyncMessage, BHS_LEN, Bhs, DIGEST_LEN, DataIn, DataOut, Logout, Lun, NO_TAG, Nop, R2t, Residual,
    ScsiCommand, ScsiResponse, TaskManagement, Text, async_event, opcode, padding, tmf, tmf_response,
};
use crate::scsi::{Cdb, op, sense_key, status};
use crate::text::Pairs;
use clock::Cycles;
use initiator::target::ServerConnection;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Longest write: what one command may hold in memory.
const MAX_WRITE: u32 = 64 << 20;

/// A command that waits for its time.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) due: Cycles,
    itt: u32,
    expected_len: u32,
    cdb: Cdb,
    unit: Arc<Unit>,
    /// The epoch when the command came: a session that ended or a unit that was reset carries nothing out any more.
    nexus: Arc<Nexus>,
    epoch: u64,
    resets: u64,
    data: Vec<u8>,
}

impl Job {
    fn is_void(&self) -> bool {
        self.nexus.epoch.load(Ordering::Acquire) != self.epoch
            || self.unit.resets.load(Ordering::Acquire) != self.resets
    }

    /// Does what the command says; returns the data it reads. `None` when its session has ended.
    pub(super) fn carry_out(&self) -> Option<Result<Vec<u8>, Failed>> {
        if self.is_void() {
            return None;
        }
        Some(match self.unit.change(&self.cdb, &self.data) {
            Some(change) => change.and_then(|c: Change| self.unit.carry_out(&c, &self.data)).map(|()| Vec::new()),
            None => self.unit.answer(&self.cdb),
        })
    }

    fn writes(&self) -> bool {
        is_change(&self.cdb)
    }
}

fn is_change(cdb: &Cdb) -> bool {
    matches!(cdb[0], op::WRITE_10 | op::WRITE_16 | op::WRITE_SAME_16 | op::UNMAP)
}

/// A write whose data is on its way.
#[derive(Debug)]
struct Write {
    command: ScsiCommand,
    data: Vec<u8>,
    /// Bytes announced or asked for.
    asked: u32,
    /// R2Ts whose data is not all here.
    open: u32,
    r2t_sn: u32,
    /// Unsolicited data is still to come.
    unsolicited: bool,
}

#[derive(Debug)]
enum Phase {
    Login(LoginTarget),
    Full(Settled),
    Closed,
}

/// How often each fault had its turn.
#[derive(Debug, Default)]
struct Turns {
    pdus: u64,
    headers: u64,
    data: u64,
    reads: u64,
    commands: u64,
    answered: u64,
}

/// One connection of a target, sans-IO.
#[derive(Debug)]
pub struct TargetConnection {
    target: Arc<Target>,
    faults: Faults,
    phase: Phase,
    nexus: Option<(Arc<Nexus>, u64)>,
    input: Vec<u8>,
    output: VecDeque<u8>,
    /// Bytes of output that were ever made.
    made: u64,
    writes: HashMap<u32, Write>,
    jobs: Vec<Job>,
    stat_sn: u32,
    exp_cmd_sn: u32,
    /// Commands that are not answered.
    open: u32,
    turns: Turns,
    random: u64,
    /// Unit attentions that were sent to this initiator, by unit.
    reported: HashMap<u64, (bool, u64, u64)>,
}

impl TargetConnection {
    /// A new connection to `target`. `seed` makes its challenges and its faults.
    pub fn new(target: Arc<Target>, faults: Faults, seed: u64) -> TargetConnection {
        target.connections.fetch_add(1, Ordering::Relaxed);
        TargetConnection {
            target,
            faults,
            phase: Phase::Login(LoginTarget::new(seed)),
            nexus: None,
            input: Vec::new(),
            output: VecDeque::new(),
            made: 0,
            writes: HashMap::new(),
            jobs: Vec::new(),
            stat_sn: 1,
            exp_cmd_sn: 0,
            open: 0,
            turns: Turns::default(),
            random: seed | 1,
            reported: HashMap::new(),
        }
    }

    /// Another way to misbehave from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Sends an asynchronous message: the target requests a logout within so many seconds.
    pub fn request_logout(&mut self, seconds: u16) {
        let message = AsyncMessage { lun: Lun(0), event: async_event::LOGOUT_REQUESTED, parameters: [0, 0, seconds] };
        self.send_status(message.encode(), &[]);
    }

    /// Sends a ping that wants an answer.
    pub fn ping(&mut self, lun: Lun, ttt: u32) {
        let (exp, max) = self.window();
        let bhs = Nop { lun, itt: NO_TAG, ttt }.encode(opcode::NOP_IN).with_status_numbers(self.stat_sn, exp, max);
        self.send(bhs, &[]);
    }

    fn settled(&self) -> Option<&Settled> {
        match &self.phase {
            Phase::Full(settled) => Some(settled),
            _ => None,
        }
    }

    /// The PDU at `at` of the input: its header, where its data is, and where the next begins.
    #[allow(clippy::type_complexity)]
    fn whole_pdu(&self, at: usize) -> Result<Option<(Bhs, std::ops::Range<usize>, usize)>, ()> {
        let input = &self.input[at..];
        let Some(bhs) = Bhs::from_slice(input) else { return Ok(None) };
        let (header_digest, data_digest) = self.settled().map_or((false, false), |s| (s.header_digest, s.data_digest));
        let covered = BHS_LEN + bhs.ahs_len();
        let start = covered + if header_digest { DIGEST_LEN } else { 0 };
        let end = start + bhs.data_len();
        let padded = end + padding(bhs.data_len());
        let next = padded + if data_digest && bhs.data_len() > 0 { DIGEST_LEN } else { 0 };
        if bhs.data_len() as u32 > self.target.config.recv_segment.max(8192) {
            return Err(());
        }
        if input.len() < next {
            return Ok(None);
        }
        let header_is_damaged = header_digest && input[covered..start] != crc32c(&input[..covered]).to_le_bytes();
        let data_is_damaged = next > padded && input[padded..next] != crc32c(&input[start..padded]).to_le_bytes();
        if header_is_damaged || data_is_damaged {
            return Err(());
        }
        Ok(Some((bhs, at + start..at + end, at + next)))
    }

    fn on_pdu(&mut self, bhs: &Bhs, data: Vec<u8>, now: Cycles) {
        self.turns.pdus += 1;
        if matches!(self.phase, Phase::Login(_)) {
            return self.on_login(bhs, &data);
        }
        let numbered = !matches!(bhs.opcode(), opcode::DATA_OUT) && !bhs.is_immediate();
        if numbered {
            if bhs.cmd_sn() != self.exp_cmd_sn {
                self.phase = Phase::Closed;
                return;
            }
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        }
        match bhs.opcode() {
            opcode::SCSI_COMMAND => self.on_command(ScsiCommand::decode(bhs), data, now),
            opcode::DATA_OUT => self.on_data_out(DataOut::decode(bhs), &data, now),
            opcode::NOP_OUT => self.on_nop_out(Nop::decode(bhs), &data),
            opcode::TASK_MANAGEMENT => self.on_task_management(TaskManagement::decode(bhs)),
            opcode::TEXT => self.on_text(Text::decode(bhs)),
            opcode::LOGOUT => {
                let answer = Answer { itt: Logout::decode(bhs).itt, response: 0 };
                self.send_status(answer.encode(opcode::LOGOUT_RESPONSE), &[]);
                self.phase = Phase::Closed;
            }
            _ => {
                let reject = Answer { itt: NO_TAG, response: 0x05 }; // command not supported (11.17.1)
                self.send_status(reject.encode(opcode::REJECT), &bhs.0);
            }
        }
    }

    fn on_login(&mut self, bhs: &Bhs, data: &[u8]) {
        if bhs.opcode() != opcode::LOGIN {
            self.phase = Phase::Closed;
            return;
        }
        let Phase::Login(login) = &mut self.phase else { return };
        self.exp_cmd_sn = bhs.cmd_sn();
        let reply = login.on_request(bhs, data, &self.target.config, &self.faults);
        match reply {
            Reply::More(bhs, text) => self.send_login(bhs, &text),
            Reply::Refuse(bhs, text) => {
                self.send_login(bhs, &text);
                self.phase = Phase::Closed;
            }
            Reply::Done(bhs, text) => {
                let settled = login.settled.clone();
                if !settled.discovery {
                    let forget = self.faults.forget_reinstatement;
                    self.nexus = Some(self.target.begin_session(&settled.initiator, settled.isid, forget));
                }
                self.send_login(bhs, &text);
                self.phase = Phase::Full(settled);
            }
        }
    }

    fn send_login(&mut self, bhs: Bhs, text: &[u8]) {
        let (exp, max) = self.window();
        self.send(bhs.with_status_numbers(self.stat_sn, exp, max), text);
        self.stat_sn = self.stat_sn.wrapping_add(1);
    }

    fn on_command(&mut self, command: ScsiCommand, data: Vec<u8>, now: Cycles) {
        self.open += 1;
        self.turns.commands += 1;
        if every(self.faults.swallow_every, self.turns.commands) {
            return;
        }
        let itt = command.itt;
        if let Err(failed) = self.may_run(&command) {
            return self.reply(itt, command.expected_len, &command.cdb, Err(failed));
        }
        if self.faults.wrong_r2t == Some(WrongR2t::ForRead) && command.read && command.expected_len > 4096 {
            let r2t = R2t { lun: command.lun, itt, ttt: 1, r2t_sn: 0, offset: 0, len: 512 };
            self.send_unnumbered(r2t.encode());
        }
        if command.cdb[0] == op::REPORT_LUNS {
            return self.report_luns(&command);
        }
        if !command.write {
            return self.start(command, Vec::new(), now);
        }
        if command.expected_len > MAX_WRITE {
            return self.reply(itt, 0, &command.cdb, Err(check(sense_key::ILLEGAL_REQUEST, 0x24, 0)));
        }
        let asked = data.len() as u32;
        let write = Write { command, data, asked, open: 0, r2t_sn: 0, unsolicited: !command.is_final };
        self.writes.insert(itt, write);
        self.ask_for_data(itt, now);
    }

    /// The one command that is for the target, not for a unit (SPC-6 6.33).
    fn report_luns(&mut self, command: &ScsiCommand) {
        let luns = self.target.luns();
        let mut list = vec![0; 8];
        list[..4].copy_from_slice(&(8 * luns.len() as u32).to_be_bytes());
        list.extend(luns.iter().flat_map(|lun| lun.to_be_bytes()));
        self.reply(command.itt, command.expected_len, &command.cdb, Ok(list));
    }

    /// Unit attentions and a busy unit come before the command.
    fn may_run(&mut self, command: &ScsiCommand) -> Result<(), Failed> {
        let Some(unit) = self.target.unit(command.lun) else {
            return match command.cdb[0] {
                op::REPORT_LUNS => Ok(()),
                _ => Err(check(sense_key::ILLEGAL_REQUEST, 0x25, 0)),
            };
        };
        if matches!(command.cdb[0], op::INQUIRY | op::REPORT_LUNS) {
            return Ok(());
        }
        let capacity = unit.capacity_changes.load(Ordering::Acquire);
        let units = self.target.unit_changes.load(Ordering::Acquire);
        let reported = self.reported.entry(command.lun.0).or_insert((false, capacity, units));
        let attention = |asc, ascq| Err(check(sense_key::UNIT_ATTENTION, asc, ascq));
        if !std::mem::replace(&mut reported.0, true) {
            return attention(0x29, 0);
        }
        if std::mem::replace(&mut reported.1, capacity) != capacity {
            return attention(0x2a, 9);
        }
        if std::mem::replace(&mut reported.2, units) != units {
            return attention(0x3f, 0xe);
        }
        if every(self.faults.busy_every, self.turns.commands) {
            return Err(Failed(status::BUSY, Default::default()));
        }
        Ok(())
    }

    /// Sends the R2Ts that may be sent, or starts a write whose data is complete.
    fn ask_for_data(&mut self, itt: u32, now: Cycles) {
        let Some(Settled { max_burst, max_r2t, .. }) = self.settled().cloned() else { return };
        let Some(write) = self.writes.get_mut(&itt) else { return };
        if write.unsolicited {
            return;
        }
        let total = write.command.expected_len;
        let mut r2ts = Vec::new();
        while write.asked < total && write.open < max_r2t {
            let len = (total - write.asked).min(max_burst);
            let (lun, ttt) = (write.command.lun, self.turns.pdus as u32 & 0xffff);
            let mut r2t = R2t { lun, itt, ttt, r2t_sn: write.r2t_sn, offset: write.asked, len };
            match self.faults.wrong_r2t {
                Some(WrongR2t::Offset) => r2t.offset += 512,
                Some(WrongR2t::TooMuch) => r2t.len = total + 512,
                Some(WrongR2t::Empty) => r2t.len = 0,
                Some(WrongR2t::Number) => r2t.r2t_sn = write.r2t_sn.wrapping_sub(1),
                Some(WrongR2t::ForRead) | None => {}
            }
            write.asked += len;
            write.open += 1;
            write.r2t_sn += 1;
            r2ts.push(r2t);
        }
        let whole = write.data.len() as u32 >= total;
        for r2t in r2ts {
            self.send_unnumbered(r2t.encode());
        }
        if whole && let Some(write) = self.writes.remove(&itt) {
            self.start(write.command, write.data, now);
        }
    }

    fn on_data_out(&mut self, out: DataOut, data: &[u8], now: Cycles) {
        let max_burst = self.settled().map_or(0, |s| s.max_burst);
        // Data of a command that failed early is thrown away.
        let Some(write) = self.writes.get_mut(&out.itt) else { return };
        let in_order = out.offset as usize == write.data.len();
        let fits = write.data.len() + data.len() <= write.command.expected_len as usize;
        if !in_order || !fits || data.len() as u32 > max_burst || write.unsolicited != (out.ttt == NO_TAG) {
            self.phase = Phase::Closed;
            return;
        }
        write.data.extend_from_slice(data);
        if out.is_final {
            if write.unsolicited {
                write.unsolicited = false;
                write.asked = write.data.len() as u32;
            } else {
                write.open -= 1;
            }
        }
        self.ask_for_data(out.itt, now);
    }

    /// A command with all its data begins; it is carried out now, or late.
    fn start(&mut self, command: ScsiCommand, data: Vec<u8>, now: Cycles) {
        let (Some(unit), Some((nexus, epoch))) = (self.target.unit(command.lun), self.nexus.clone()) else {
            let missing = check(sense_key::ILLEGAL_REQUEST, 0x25, 0);
            return self.reply(command.itt, command.expected_len, &command.cdb, Err(missing));
        };
        let moves_data = is_change(&command.cdb) || matches!(command.cdb[0], op::READ_10 | op::READ_16);
        let delay = match self.faults.delay.0 {
            most if most > 0 && moves_data => self.next_random() % (most + 1),
            _ => 0,
        };
        let resets = unit.resets.load(Ordering::Acquire);
        let ScsiCommand { itt, expected_len, cdb, .. } = command;
        let due = now + Cycles(delay);
        self.jobs.push(Job { due, itt, expected_len, cdb, unit, nexus, epoch, resets, data });
    }

    /// Answers a command: its data, then its status.
    fn reply(&mut self, itt: u32, expected_len: u32, cdb: &Cdb, result: Result<Vec<u8>, Failed>) {
        self.open -= 1;
        let mut data = match result {
            Ok(data) => data,
            Err(Failed(status, sense)) => {
                let residual = Residual::None;
                let response = ScsiResponse { itt, response: 0, status, exp_data_sn: 0, residual };
                let segment: &[u8] = if status == status::CHECK_CONDITION { &sense.to_segment() } else { &[] };
                return self.send_status(response.encode(), segment);
            }
        };
        data.truncate(expected_len as usize);
        let reads = !data.is_empty();
        let is_io = matches!(cdb[0], op::READ_10 | op::READ_16);
        let mut residual = Residual::None;
        if reads && data.len() < expected_len as usize {
            residual = Residual::Underflow(expected_len - data.len() as u32);
        }
        if is_io {
            self.turns.reads += 1;
            if every(self.faults.short_data_every, self.turns.reads) {
                data.truncate(data.len() / 2);
            }
        }
        let collapse = self.target.config.collapse_status && reads;
        let data_sn = self.send_data(itt, &data, collapse.then_some((status::GOOD, residual)));
        if !collapse {
            let response = ScsiResponse { itt, response: 0, status: status::GOOD, exp_data_sn: data_sn, residual };
            self.send_status(response.encode(), &[]);
        }
    }

    /// Sends data in PDUs of the initiator's liking. Returns how many.
    fn send_data(&mut self, itt: u32, data: &[u8], status: Option<(u8, Residual)>) -> u32 {
        let Some(Settled { send_segment, max_burst, .. }) = self.settled().cloned() else { return 0 };
        let (mut offset, mut data_sn) = (0, 0);
        while offset < data.len() {
            let burst_left = max_burst as usize - offset % max_burst as usize;
            let len = (data.len() - offset).min(send_segment as usize).min(burst_left);
            let last = offset + len == data.len();
            let is_final = last || len == burst_left;
            let pdu = DataIn { is_final, status: status.filter(|_| last), itt, data_sn, offset: offset as u32 };
            let piece = &data[offset..offset + len];
            if pdu.status.is_some() {
                self.send_status(pdu.encode(), piece)
            } else {
                self.send_unnumbered_with(pdu.encode(), piece)
            }
            offset += len;
            data_sn += 1;
        }
        data_sn
    }

    fn on_nop_out(&mut self, nop: Nop, data: &[u8]) {
        if nop.itt != NO_TAG {
            let answer = Nop { lun: nop.lun, itt: nop.itt, ttt: NO_TAG };
            self.send_status(answer.encode(opcode::NOP_IN), data);
        }
    }

    fn on_task_management(&mut self, request: TaskManagement) {
        let response = match request.function {
            tmf::ABORT_TASK => {
                let before = self.jobs.len() + self.writes.len();
                self.jobs.retain(|job| job.itt != request.referenced_itt);
                self.writes.remove(&request.referenced_itt);
                let ended = before - self.jobs.len() - self.writes.len();
                self.open -= (ended as u32).min(self.open);
                if ended > 0 { tmf_response::COMPLETE } else { tmf_response::NO_TASK }
            }
            tmf::LOGICAL_UNIT_RESET => {
                if let Some(unit) = self.target.unit(request.lun) {
                    unit.resets.fetch_add(1, Ordering::AcqRel);
                }
                tmf_response::COMPLETE
            }
            _ => tmf_response::NOT_SUPPORTED,
        };
        self.send_status(Answer { itt: request.itt, response }.encode(opcode::TASK_MANAGEMENT_RESPONSE), &[]);
    }

    fn on_text(&mut self, request: Text) {
        let mut pairs = Pairs::default();
        pairs.push("TargetName", &self.target.config.iqn);
        let answer = Text { is_final: true, goes_on: false, itt: request.itt, ttt: NO_TAG };
        self.send_status(answer.encode(opcode::TEXT_RESPONSE), &pairs.into_bytes());
    }

    /// ExpCmdSN and MaxCmdSN.
    fn window(&self) -> (u32, u32) {
        let room = self.target.config.window.saturating_sub(self.open);
        (self.exp_cmd_sn, self.exp_cmd_sn.wrapping_add(room).wrapping_sub(1))
    }

    /// Sends a PDU that carries a status.
    fn send_status(&mut self, bhs: Bhs, data: &[u8]) {
        self.send_unnumbered_with(bhs, data);
        self.stat_sn = self.stat_sn.wrapping_add(1);
    }

    fn send_unnumbered(&mut self, bhs: Bhs) {
        self.send_unnumbered_with(bhs, &[]);
    }

    /// Sends a PDU with the current numbers; StatSN stays.
    fn send_unnumbered_with(&mut self, bhs: Bhs, data: &[u8]) {
        let (exp, max) = self.window();
        self.send(bhs.with_status_numbers(self.stat_sn, exp, max), data);
    }

    fn send(&mut self, mut bhs: Bhs, data: &[u8]) {
        self.turns.answered += 1;
        if self.faults.silent_after.is_some_and(|n| self.turns.answered > n) {
            return;
        }
        if self.faults.garbage_after.is_some_and(|n| self.turns.answered > n) {
            let garbage: Vec<u8> = (0..BHS_LEN + data.len()).map(|_| self.next_random() as u8).collect();
            return self.push_output(&garbage);
        }
        let (header_digest, data_digest) = self.settled().map_or((false, false), |s| (s.header_digest, s.data_digest));
        bhs.set_data_len(data.len());
        let mut pdu = bhs.0.to_vec();
        if header_digest {
            self.turns.headers += 1;
            let flip = u32::from(every(self.faults.flip_header_digest_every, self.turns.headers));
            pdu.extend((crc32c(&bhs.0) ^ flip).to_le_bytes());
        }
        if !data.is_empty() {
            let start = pdu.len();
            pdu.extend_from_slice(data);
            pdu.resize(start + data.len() + padding(data.len()), 0);
            if data_digest {
                self.turns.data += 1;
                let flip = u32::from(every(self.faults.flip_data_digest_every, self.turns.data)) << 31;
                let digest = crc32c(&pdu[start..]) ^ flip;
                pdu.extend(digest.to_le_bytes());
            }
        }
        self.push_output(&pdu);
    }

    fn push_output(&mut self, bytes: &[u8]) {
        let left = self.faults.cut_after_bytes.map_or(u64::MAX, |limit| limit.saturating_sub(self.made));
        let len = left.min(bytes.len() as u64) as usize;
        self.output.extend(&bytes[..len]);
        self.made += len as u64;
        if len < bytes.len() {
            self.phase = Phase::Closed;
        }
    }

    /// xorshift64.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl ServerConnection for TargetConnection {
    fn receive(&mut self, bytes: &[u8], now: Cycles) {
        self.input.extend_from_slice(bytes);
        let mut at = 0;
        while !self.is_closed() {
            match self.whole_pdu(at) {
                Ok(Some((bhs, data, next))) => {
                    let data = self.input[data].to_vec();
                    self.on_pdu(&bhs, data, now);
                    at = next;
                }
                Ok(None) => break,
                Err(()) => self.phase = Phase::Closed,
            }
        }
        self.input.drain(..at);
        self.poll(now);
    }

    fn poll(&mut self, now: Cycles) {
        if let Some((nexus, epoch)) = &self.nexus
            && nexus.epoch.load(Ordering::Acquire) != *epoch
        {
            self.phase = Phase::Closed;
        }
        while let Some(at) = (0..self.jobs.len()).filter(|i| self.jobs[*i].due <= now).min_by_key(|i| self.jobs[*i].due)
        {
            let job = self.jobs.swap_remove(at);
            match job.carry_out() {
                Some(result) => self.reply(job.itt, job.expected_len, &job.cdb, result),
                None => self.open -= 1,
            }
        }
    }

    fn deadline(&self) -> Cycles {
        self.jobs.iter().map(|job| job.due).min().unwrap_or(Cycles::NEVER)
    }

    fn output(&mut self) -> &[u8] {
        let bytes = self.output.make_contiguous();
        let limit = if self.faults.chunk == 0 { bytes.len() } else { self.faults.chunk };
        &bytes[..limit.min(bytes.len())]
    }

    fn consume(&mut self, count: usize) {
        self.output.drain(..count);
    }

    fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Writes that were taken and not carried out are carried out late, unless their session is ended.
    fn disconnect(&mut self, _now: Cycles) {
        let mut late = self.target.late.lock();
        for job in self.jobs.drain(..).filter(Job::writes) {
            late.push(job.due, job);
        }
    }
}

fn every(n: u64, count: u64) -> bool {
    n != 0 && count.is_multiple_of(n)
}
