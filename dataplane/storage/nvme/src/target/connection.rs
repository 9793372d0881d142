//! One connection of the target: bytes and the time in, bytes out.

use super::admin::{Association, Reply};
use super::faults::{Faults, Misbehaviour};
use super::subsystem::{Access, Target};
use crate::digest::crc32c;
use crate::pdu::flags;
use crate::pdu::{
    self, COMMON_LEN, CommonHeader, DIGEST_LEN, Digests, IcReq, IcResp, PduType, ProtocolError, Transfer,
};
use crate::spec::{Cqe, DataPointer, Direction, DsmRange, NvmeStatus, Sqe, admin, le32, nvm};
use clock::Cycles;
use initiator::target::ServerConnection;
use std::io::ErrorKind;
use std::sync::Arc;

/// Bytes of one command's data at most, whatever MDTS says.
const MAX_COMMAND_DATA: u32 = 16 << 20;
/// PLEN at most of what an initiator may send: MAXH2CDATA and in-capsule data are far below.
const MAX_PDU: usize = 2 << 20;

/// A command that is executed and answered when its time comes.
#[derive(Debug)]
struct Pending {
    due: Cycles,
    sqe: Sqe,
    data: Vec<u8>,
    act: Option<Misbehaviour>,
}

/// A command whose data is being fetched with R2Ts. Its place in the list is the transfer tag.
#[derive(Debug)]
struct Fetch {
    sqe: Sqe,
    data: Vec<u8>,
    received: u32,
    /// Bytes asked for so far.
    requested: u32,
    /// Ends of the R2Ts outstanding, in order.
    ends: Vec<u32>,
    act: Option<Misbehaviour>,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    target: Arc<Target>,
    faults: Arc<Faults>,
    rx: Vec<u8>,
    rx_at: usize,
    tx: Vec<u8>,
    tx_at: usize,
    greeted: bool,
    digests: Digests,
    max_r2t: u32,
    association: Option<Association>,
    fetches: Vec<Option<Fetch>>,
    pending: Vec<Pending>,
    /// Commands that are never answered, but may be aborted.
    dropped: Vec<u16>,
    event_request: Option<u16>,
    sq_head: u16,
    silent: bool,
    closed: bool,
}

impl Connection {
    /// A connection that waits for ICReq.
    pub fn new(target: Arc<Target>) -> Connection {
        let faults = target.state().faults.clone();
        Connection {
            target,
            faults,
            rx: Vec::new(),
            rx_at: 0,
            tx: Vec::new(),
            tx_at: 0,
            greeted: false,
            digests: Digests::default(),
            max_r2t: 1,
            association: None,
            fetches: Vec::new(),
            pending: Vec::new(),
            dropped: Vec::new(),
            event_request: None,
            sq_head: 0,
            silent: false,
            closed: false,
        }
    }

    fn serve_aborts(&mut self, association: Association) {
        let mut aborted = Vec::new();
        self.target.state().aborts.retain(|&(controller, queue, cid)| {
            let ours = (controller, queue) == (association.controller, association.queue);
            if ours && self.dropped.contains(&cid) {
                aborted.push(cid);
            }
            !ours
        });
        for cid in aborted {
            self.dropped.retain(|&d| d != cid);
            self.answer_status(cid, NvmeStatus::ABORT_REQUESTED, 0);
        }
    }
}

impl ServerConnection for Connection {
    fn receive(&mut self, bytes: &[u8], now: Cycles) {
        if self.closed {
            return;
        }
        self.faults = self.target.state().faults.clone();
        self.rx.extend_from_slice(bytes);
        while !self.closed {
            match self.step(now) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => self.terminate(&error),
            }
        }
        self.rx.drain(..self.rx_at);
        self.rx_at = 0;
    }

    fn poll(&mut self, now: Cycles) {
        let Some(association) = self.association else { return };
        // A controller that is gone executes nothing any more.
        if !self.target.state().controllers.contains_key(&association.controller) {
            self.pending.clear();
            self.closed = true;
            return;
        }
        if association.queue > 0 && self.target.is_stopping(association.controller) {
            return self.disconnect(now);
        }
        while let Some(at) = self.pending.iter().position(|p| p.due <= now) {
            let Pending { sqe, data, act, .. } = self.pending.swap_remove(at);
            self.execute(&sqe, &data, act);
        }
        if association.queue == 0
            && let Some(cid) = self.event_request
            && let Some(event) = self.target.take_event(association.controller)
        {
            self.event_request = None;
            self.answer_status(cid, NvmeStatus::SUCCESS, event.dw0().into());
        }
        self.serve_aborts(association);
    }

    fn deadline(&self) -> Cycles {
        self.pending.iter().map(|p| p.due).min().unwrap_or(Cycles::NEVER)
    }

    fn output(&mut self) -> &[u8] {
        let bytes = &self.tx[self.tx_at..];
        &bytes[..bytes.len().min(self.faults.output_limit)]
    }

    fn consume(&mut self, count: usize) {
        self.tx_at += count;
        if self.tx_at == self.tx.len() {
            self.tx.clear();
            self.tx_at = 0;
        }
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    fn disconnect(&mut self, now: Cycles) {
        self.closed = true;
        let Some(association) = self.association.take() else { return };
        if association.queue > 0 {
            let writes = if self.faults.late_writes { self.late_writes() } else { Vec::new() };
            self.target.let_go(association.controller, writes, now);
        }
        if self.faults.late_writes {
            return; // The controller does not notice.
        }
        let mut state = self.target.state();
        if association.queue == 0 {
            state.controllers.remove(&association.controller);
        } else if let Some(controller) = state.controllers.get_mut(&association.controller) {
            controller.queues.retain(|&queue| queue != association.queue);
        }
    }
}

impl Connection {
    fn late_writes(&mut self) -> Vec<(u32, u64, Vec<u8>)> {
        let writes = self.pending.drain(..).filter(|p| p.sqe.opcode() == nvm::WRITE);
        let mut late = Vec::new();
        for Pending { sqe, data, .. } in writes {
            let block_size = self.target.state().namespaces.get(&sqe.nsid()).map_or(512, |n| n.block_size);
            late.push((sqe.nsid(), sqe.lba() * u64::from(block_size), data));
        }
        late
    }

    /// Understands the next PDU; `false` when more bytes are needed.
    fn step(&mut self, now: Cycles) -> Result<bool, ProtocolError> {
        let bytes = &self.rx[self.rx_at..];
        if bytes.len() < COMMON_LEN {
            return Ok(false);
        }
        let common = CommonHeader::parse(bytes, self.digests, MAX_PDU)?;
        if bytes.len() < common.len {
            return Ok(false);
        }
        common.verify(bytes)?;
        let pdu: Vec<u8> = bytes[..common.len].to_vec();
        self.rx_at += common.len;
        let out_of_sequence = |why| Err(ProtocolError::Sequence { pdu: common.kind as u8, why });
        match common.kind {
            PduType::IcReq if !self.greeted => self.on_ic_req(IcReq::parse(&pdu))?,
            _ if !self.greeted => return out_of_sequence("ICReq comes first"),
            PduType::CapsuleCmd => self.on_capsule(common, &pdu, now)?,
            PduType::H2cData => self.on_data(common, &pdu, now)?,
            PduType::H2cTermReq => self.closed = true,
            _ => return out_of_sequence("a host does not send this"),
        }
        Ok(true)
    }

    fn on_ic_req(&mut self, request: IcReq) -> Result<(), ProtocolError> {
        if request.version != 0 {
            return Err(ProtocolError::Unsupported { field: "PFV", got: request.version.into(), expected: "0" });
        }
        self.greeted = true;
        self.digests = if self.faults.refuse_digests { Digests::default() } else { request.digests };
        self.max_r2t = request.max_r2t.saturating_add(1);
        self.put_ic_resp();
        Ok(())
    }

    fn put_ic_resp(&mut self) {
        let max_h2c_data = self.faults.max_h2c_data;
        let response = IcResp { version: 0, cpda: self.faults.cpda, digests: self.digests, max_h2c_data };
        self.put(|out| response.put(out));
    }

    /// Data of a PDU, its digest verified: `None` where that does not match.
    fn data<'a>(&self, common: CommonHeader, pdu: &'a [u8]) -> Option<&'a [u8]> {
        let data = &pdu[common.data_offset.min(pdu.len())..][..common.data_len()];
        let matches = !self.digests.data || data.is_empty() || le32(pdu, common.len - DIGEST_LEN) == crc32c(data);
        matches.then_some(data)
    }

    /// "PDO: a multiple of (CPDA + 1) dwords" (TCP 3.6.1): an initiator that gets it wrong is sent a terminate request.
    fn check_alignment(&self, common: CommonHeader) -> Result<(), ProtocolError> {
        let alignment = (usize::from(self.faults.cpda) + 1) * 4;
        if common.has_data() && !common.data_offset.is_multiple_of(alignment) {
            let (pdu, got) = (common.kind as u8, common.data_offset as u32);
            return Err(ProtocolError::InvalidField { pdu, field: "PDO", offset: 3, got });
        }
        Ok(())
    }

    fn on_capsule(&mut self, common: CommonHeader, pdu: &[u8], now: Cycles) -> Result<(), ProtocolError> {
        self.check_alignment(common)?;
        let sqe = pdu::capsule_sqe(pdu);
        self.sq_head = self.sq_head.wrapping_add(1);
        let Some(data) = self.data(common, pdu) else {
            self.answer_status(sqe.cid(), NvmeStatus::TRANSIENT_TRANSPORT_ERROR, 0);
            return Ok(());
        };
        let misplaced =
            |got| ProtocolError::InvalidField { pdu: PduType::CapsuleCmd as u8, field: "SGL1", offset: 32, got };
        let (in_capsule, len) = match sqe.data() {
            DataPointer::InCapsule { offset: 0, len } if len as usize == data.len() && len > 0 => (true, len),
            DataPointer::Transport { len } if data.is_empty() && len <= MAX_COMMAND_DATA => (false, len),
            _ => return Err(misplaced(data.len() as u32)),
        };
        if let Some(association) = self.association
            && let Some(controller) = self.target.state().controllers.get_mut(&association.controller)
        {
            controller.traffic = now;
        }
        let act = self.next_act();
        if self.misbehave_first(&sqe, act) {
            return Ok(());
        }
        if !in_capsule && len > 0 && sqe.direction() == Direction::Out {
            self.fetch(sqe, len, act);
        } else {
            self.schedule(sqe, data.to_vec(), act, now);
        }
        Ok(())
    }

    fn next_act(&self) -> Option<Misbehaviour> {
        if self.association.is_none_or(|a| a.queue == 0) {
            return None;
        }
        let number = self.target.count_io_command();
        self.faults.script.iter().find(|(at, _)| *at == number).map(|(_, act)| *act)
    }

    /// Misbehaviour that comes before the command is looked at. Whether that was all.
    fn misbehave_first(&mut self, sqe: &Sqe, act: Option<Misbehaviour>) -> bool {
        let cid = sqe.cid();
        match act {
            Some(Misbehaviour::DropCommand) => self.dropped.push(cid),
            Some(Misbehaviour::Silence) => self.silent = true,
            Some(Misbehaviour::Reset) => self.closed = true,
            Some(Misbehaviour::Garbage) => self.put_raw(&[0xA5; 200]),
            Some(Misbehaviour::IcRespAgain) => self.put_ic_resp(),
            Some(Misbehaviour::HugePlen) => {
                let mut header = [0; 24];
                header[0] = PduType::C2hData as u8;
                header[2] = 24;
                header[3] = 24;
                header[4..8].fill(0xFF);
                self.put_raw(&header);
            }
            Some(Misbehaviour::TermReq) => {
                self.put(|out| pdu::put_term_req(out, PduType::C2hTermReq, 2, 0, &[]));
                self.closed = true;
            }
            Some(Misbehaviour::UnknownCid) => self.answer_status(cid ^ 0x0400, NvmeStatus::SUCCESS, 0),
            Some(Misbehaviour::R2tForRead) if sqe.direction() == Direction::In => {
                self.put_r2t(Transfer { cid, tag: 0, offset: 0, len: 512 });
            }
            Some(Misbehaviour::TransientError) => self.answer_status(cid, NvmeStatus::TRANSIENT_TRANSPORT_ERROR, 0),
            Some(Misbehaviour::MediaError) => self.answer_status(cid, NvmeStatus::new(2, 0x81).dnr(), 0),
            _ => return false,
        }
        true
    }

    /// Starts to fetch the data of a write.
    fn fetch(&mut self, sqe: Sqe, len: u32, act: Option<Misbehaviour>) {
        let cid = sqe.cid();
        match act {
            Some(Misbehaviour::AcceptWriteEarly) => return self.answer_status(cid, NvmeStatus::SUCCESS, 0),
            Some(Misbehaviour::FailWriteEarly) => {
                self.put_r2t(Transfer { cid, tag: 0xBEEF, offset: 0, len: len / 2 + 1 });
                return self.answer_status(cid, NvmeStatus::TRANSIENT_TRANSPORT_ERROR, 0);
            }
            _ => {}
        }
        let fetch = Fetch { sqe, data: vec![0; len as usize], received: 0, requested: 0, ends: Vec::new(), act };
        let tag = self.fetches.iter().position(Option::is_none).unwrap_or(self.fetches.len());
        if tag == self.fetches.len() {
            self.fetches.push(None);
        }
        self.fetches[tag] = Some(fetch);
        self.request_more(tag);
    }

    /// Sends R2Ts until as many are outstanding as the initiator offered, or all is asked for.
    fn request_more(&mut self, tag: usize) {
        let flood =
            if self.fetches[tag].as_ref().is_some_and(|f| f.act == Some(Misbehaviour::R2tFlood)) { 8 } else { 0 };
        let at_once = self.faults.r2ts.min(self.max_r2t).max(1) as usize + flood;
        loop {
            let Some(fetch) = &mut self.fetches[tag] else { return };
            let total = fetch.data.len() as u32;
            if fetch.requested == total || fetch.ends.len() >= at_once {
                return;
            }
            let chunk = if flood > 0 { 4 } else { self.faults.r2t_len };
            let len = chunk.min(total - fetch.requested);
            let mut r2t = Transfer { cid: fetch.sqe.cid(), tag: tag as u16, offset: fetch.requested, len };
            fetch.requested += len;
            fetch.ends.push(fetch.requested);
            match fetch.act {
                Some(Misbehaviour::R2tWrongOffset) => r2t.offset += 4,
                Some(Misbehaviour::R2tEmpty) => r2t.len = 0,
                Some(Misbehaviour::R2tTooLong) => r2t.len = total + 4,
                _ => {}
            }
            self.put_r2t(r2t);
        }
    }

    fn on_data(&mut self, common: CommonHeader, pdu: &[u8], now: Cycles) -> Result<(), ProtocolError> {
        self.check_alignment(common)?;
        let transfer = Transfer::parse(pdu);
        let data = self.data(common, pdu);
        if transfer.tag == 0xBEEF {
            return Ok(()); // on its way when the write was failed
        }
        let tag = usize::from(transfer.tag);
        let kind = PduType::H2cData as u8;
        let sequence = |why| ProtocolError::Sequence { pdu: kind, why };
        let fetch = self.fetches.get_mut(tag).and_then(Option::as_mut).ok_or(sequence("no such transfer tag"))?;
        let (offset, len) = (transfer.offset, common.data_len() as u32);
        let end = *fetch.ends.first().ok_or(sequence("no R2T is outstanding"))?;
        if fetch.sqe.cid() != transfer.cid || transfer.len != len || len > self.faults.max_h2c_data {
            return Err(sequence("CCCID, DATAL or MAXH2CDATA"));
        }
        if offset != fetch.received || offset + len > end {
            return Err(ProtocolError::DataOutOfRange { pdu: kind, offset, len, expected: fetch.received });
        }
        // "LAST_PDU: set in the last H2CData PDU of an R2T" (TCP 3.6.2.9), and only there.
        if (common.flags & flags::LAST != 0) != (offset + len == end) {
            return Err(sequence("LAST_PDU"));
        }
        let Some(data) = data else {
            let cid = transfer.cid;
            self.fetches[tag] = None;
            self.answer_status(cid, NvmeStatus::TRANSIENT_TRANSPORT_ERROR, 0);
            return Ok(());
        };
        fetch.data[offset as usize..(offset + len) as usize].copy_from_slice(data);
        fetch.received += len;
        if fetch.received == end {
            fetch.ends.remove(0);
        }
        if fetch.received as usize == fetch.data.len() {
            let Some(Fetch { sqe, data, act, .. }) = self.fetches[tag].take() else { return Ok(()) };
            self.schedule(sqe, data, act, now);
        } else {
            self.request_more(tag);
        }
        Ok(())
    }

    /// Executes a command now, or later where the faults delay it.
    fn schedule(&mut self, sqe: Sqe, data: Vec<u8>, act: Option<Misbehaviour>, now: Cycles) {
        if self.association.is_none() {
            return self.on_first_command(&sqe, &data, now);
        }
        if sqe.opcode() == admin::ASYNC_EVENT && self.queue() == 0 {
            self.event_request = Some(sqe.cid());
            return;
        }
        let delay = &self.faults.delay;
        if delay.is_empty() || self.queue() == 0 {
            return self.execute(&sqe, &data, act);
        }
        let span = (delay.end - delay.start).as_nanos() as u64;
        let extra = std::time::Duration::from_nanos(self.target.state().random() % span.max(1));
        self.pending.push(Pending { due: now + Cycles::from(delay.start + extra), sqe, data, act });
    }

    /// "The first command on a queue is Connect" (Base 6.3).
    fn on_first_command(&mut self, sqe: &Sqe, data: &[u8], now: Cycles) {
        let is_connect = sqe.opcode() == admin::FABRICS && sqe.fctype() == 0x01;
        if !is_connect {
            return self.answer_status(sqe.cid(), NvmeStatus::SEQUENCE_ERROR, 0);
        }
        let reply = match self.target.connect(sqe, data, now) {
            Ok((association, reply)) => {
                self.association = Some(association);
                reply
            }
            Err(reply) => reply,
        };
        self.answer_status(sqe.cid(), reply.status, reply.result);
    }

    fn queue(&self) -> u16 {
        self.association.map_or(0, |a| a.queue)
    }

    fn execute(&mut self, sqe: &Sqe, data: &[u8], act: Option<Misbehaviour>) {
        let Some(association) = self.association else { return };
        let reply = match (association.queue, sqe.opcode()) {
            (0, admin::KEEP_ALIVE) if self.faults.ignore_keep_alive => return,
            (0, admin::ABORT) => {
                let (queue, cid) = (sqe.cdw(10) as u16, (sqe.cdw(10) >> 16) as u16);
                self.target.state().aborts.push((association.controller, queue, cid));
                Reply::status(NvmeStatus::SUCCESS)
            }
            (0, _) => self.target.admin(association.controller, sqe),
            _ => self.io(sqe, data).unwrap_or_else(Reply::status),
        };
        self.answer(sqe, reply, act);
    }

    fn io(&self, sqe: &Sqe, data: &[u8]) -> Result<Reply, NvmeStatus> {
        let namespace =
            self.target.state().namespaces.get(&sqe.nsid()).cloned().ok_or(NvmeStatus::INVALID_NAMESPACE)?;
        let store = namespace.store.as_ref();
        let block_size = u64::from(namespace.block_size);
        let range = |lba: u64, blocks: u64| {
            let end = lba.checked_add(blocks).and_then(|end| end.checked_mul(block_size));
            let inside = end.is_some_and(|end| end <= store.len());
            if inside { Ok((lba * block_size, blocks * block_size)) } else { Err(NvmeStatus::LBA_OUT_OF_RANGE) }
        };
        let io_error = |error: std::io::Error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => NvmeStatus::CAPACITY_EXCEEDED,
            ErrorKind::UnexpectedEof => NvmeStatus::LBA_OUT_OF_RANGE,
            _ => NvmeStatus::INTERNAL_ERROR,
        };
        let writes = matches!(sqe.opcode(), nvm::WRITE | nvm::WRITE_ZEROES | nvm::DATASET_MANAGEMENT);
        if writes && namespace.access == Access::ReadOnly {
            return Err(NvmeStatus::WRITE_PROTECTED);
        }
        match sqe.opcode() {
            nvm::FLUSH => store.flush().map_err(io_error)?,
            nvm::READ | nvm::COMPARE => {
                let (offset, len) = range(sqe.lba(), sqe.blocks().into())?;
                let mut bytes = vec![0; len as usize];
                store.read(offset, &mut bytes).map_err(io_error)?;
                if sqe.opcode() == nvm::READ {
                    return Ok(Reply { status: NvmeStatus::SUCCESS, result: 0, data: bytes });
                }
                if bytes != data {
                    return Err(NvmeStatus::COMPARE_FAILURE);
                }
            }
            nvm::WRITE => {
                let (offset, len) = range(sqe.lba(), sqe.blocks().into())?;
                if data.len() as u64 != len {
                    return Err(NvmeStatus::INVALID_FIELD);
                }
                store.write(offset, data).map_err(io_error)?;
            }
            nvm::WRITE_ZEROES => {
                let (offset, len) = range(sqe.lba(), sqe.blocks().into())?;
                store.zero(offset, len).map_err(io_error)?;
            }
            nvm::DATASET_MANAGEMENT => {
                let deallocate = sqe.cdw(11) & 1 << 2 != 0;
                for bytes in data.as_chunks::<16>().0.iter().filter(|_| deallocate) {
                    let DsmRange { lba, blocks } = DsmRange::parse(bytes);
                    let (offset, len) = range(lba, blocks.into())?;
                    store.zero(offset, len).map_err(io_error)?;
                }
            }
            _ => return Err(NvmeStatus::INVALID_OPCODE),
        }
        Ok(Reply::status(NvmeStatus::SUCCESS))
    }

    /// Sends an answer, with its data before it.
    fn answer(&mut self, sqe: &Sqe, reply: Reply, act: Option<Misbehaviour>) {
        let Reply { status, result, mut data } = reply;
        let cid = sqe.cid();
        if !status.is_success() || data.is_empty() {
            return self.answer_with(cid, status, result, act);
        }
        if let DataPointer::Transport { len } = sqe.data() {
            data.truncate(len as usize);
        }
        match act {
            Some(Misbehaviour::ShortRead) => data.truncate(data.len() / 2),
            Some(Misbehaviour::ExcessData) => data.extend_from_slice(&[0; 512]),
            _ => {}
        }
        let success = !self.faults.no_success_flag && result == 0;
        let chunk = self.faults.c2h_len as usize;
        let count = data.len().div_ceil(chunk);
        for (i, piece) in data.chunks(chunk).enumerate() {
            let last = i + 1 == count;
            let mut bits = if last { flags::LAST } else { 0 } | if last && success { flags::SUCCESS } else { 0 };
            let mut offset = (i * chunk) as u32;
            match act {
                Some(Misbehaviour::SuccessWithoutLast) => bits = flags::SUCCESS,
                Some(Misbehaviour::WrongDataOffset) => offset += 4,
                _ => {}
            }
            self.put_data(cid, offset, piece, bits, act);
        }
        if !success || act == Some(Misbehaviour::AnswerTwice) {
            self.answer_with(cid, status, result, act);
        }
    }

    fn answer_status(&mut self, cid: u16, status: NvmeStatus, result: u64) {
        self.answer_with(cid, status, result, None);
    }

    fn answer_with(&mut self, cid: u16, status: NvmeStatus, result: u64, act: Option<Misbehaviour>) {
        let cqe = Cqe::new(cid, status, result, self.sq_head);
        let digests = self.digests;
        let start = self.tx.len();
        self.put(|out| pdu::put_capsule_resp(out, &cqe, digests));
        match act {
            Some(Misbehaviour::HeaderDigestFlip) if self.tx.len() > start => self.tx[start + 9] ^= 0x10,
            Some(Misbehaviour::AnswerTwice) => self.put(|out| pdu::put_capsule_resp(out, &cqe, digests)),
            _ => {}
        }
    }

    fn put_data(&mut self, cid: u16, offset: u32, data: &[u8], bits: u8, act: Option<Misbehaviour>) {
        let (digests, alignment) = (self.digests, self.faults.c2h_alignment);
        let transfer = Transfer { cid, tag: 0, offset, len: data.len() as u32 };
        let start = self.tx.len();
        self.put(|out| transfer.put(out, PduType::C2hData, bits, digests, alignment));
        let data_at = self.tx.len();
        self.put_raw(data);
        if digests.data {
            self.put_raw(&crc32c(data).to_le_bytes());
        }
        if self.tx.len() > start {
            match act {
                Some(Misbehaviour::HeaderDigestFlip) => self.tx[start + 16] ^= 0x10,
                Some(Misbehaviour::DataDigestFlip) => self.tx[data_at] ^= 0x01,
                _ => {}
            }
        }
    }

    fn put_r2t(&mut self, r2t: Transfer) {
        let digests = self.digests;
        self.put(|out| r2t.put(out, PduType::R2t, 0, digests, 4));
    }

    /// Tells the initiator what is wrong with it, and ends the connection.
    fn terminate(&mut self, error: &ProtocolError) {
        if let Some((fes, fei)) = error.term_fields() {
            let header: Vec<u8> = self.rx[self.rx_at..].iter().copied().take(24).collect();
            self.put(|out| pdu::put_term_req(out, PduType::C2hTermReq, fes, fei, &header));
        }
        self.closed = true;
    }

    fn put(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut header = [0; 512];
        let len = write(&mut header);
        self.put_raw(&header[..len]);
    }

    fn put_raw(&mut self, bytes: &[u8]) {
        if !self.silent {
            self.tx.extend_from_slice(bytes);
        }
    }
}
