//! The protocol's difficult cases, each against a target made of bytes.

use super::*;
use crate::chap::Credentials;
use crate::digest::crc32c;
use crate::io::MemoryStream;
use crate::login::{Auth, DigestPolicy};
use crate::pdu::{
    Answer, AsyncMessage, BHS_LEN, DataIn, DataOut, Login, NO_TAG, Nop, R2t, Residual, ScsiCommand, ScsiResponse,
    Stage, async_event, opcode, padding,
};
use crate::scsi::{Sense, op};
use block::{Op, Request};
use memory::IoBuffers;

/// What a test's target agrees to.
#[derive(Clone, Copy)]
struct Agreed {
    digests: bool,
    initial_r2t: bool,
    immediate_data: bool,
    first_burst: u32,
    send_segment: u32,
    max_burst: u32,
    max_r2t: u32,
}

const AGREED: Agreed = Agreed {
    digests: false,
    initial_r2t: true,
    immediate_data: true,
    first_burst: 8192,
    send_segment: 4096,
    max_burst: 16_384,
    max_r2t: 1,
};

/// An initiator that is ready, and the target's pen.
struct Pair {
    connection: Connection,
    stream: MemoryStream,
    pieces: Pieces,
    done: Completions,
    now: Cycles,
    digests: bool,
    stat_sn: u32,
    /// ExpCmdSN and MaxCmdSN of the next PDU.
    window: (u32, u32),
}

fn config(digests: bool) -> ConnectionConfig {
    let policy = if digests { DigestPolicy::Require } else { DigestPolicy::None };
    ConnectionConfig {
        login: LoginConfig {
            initiator_iqn: "iqn.i".into(),
            target_iqn: Some("iqn.t".into()),
            isid: [0x80, 1, 2, 3, 0, 0],
            auth: Auth::default(),
            header_digest: policy,
            data_digest: policy,
            challenge: [7; 33],
            segment_limit: 8192,
        },
        lun: Lun::from_number(300),
        depth: 8,
        timeouts: Timeouts {
            bring_up: Cycles(1000),
            task: Cycles(1000),
            abort: Cycles(500),
            ping_interval: Cycles(400),
            ping: Cycles(200),
            retry: Cycles(50),
        },
        known: None,
        fence: None,
    }
}

impl Pair {
    /// Logged in by a target that agrees to `agreed`, with the unit's questions answered.
    fn new(agreed: Agreed) -> Pair {
        let mut pair = Pair::logged_in(agreed, config(agreed.digests));
        pair.answer_questions();
        assert!(pair.connection.is_ready());
        pair.sent();
        pair
    }

    fn logged_in(agreed: Agreed, config: ConnectionConfig) -> Pair {
        let mut pair = Pair {
            connection: Connection::new(config, Cycles(1)),
            stream: MemoryStream::default(),
            pieces: Pieces::new(),
            done: Completions::default(),
            now: Cycles(1),
            digests: false,
            stat_sn: 100,
            window: (1, 64),
        };
        pair.turn().unwrap();
        pair.login(Stage::Security, Stage::Operational, "AuthMethod=None\0TargetPortalGroupTag=1\0");
        let yes = |on| if on { "Yes" } else { "No" };
        let digest = if agreed.digests { "CRC32C" } else { "None" };
        let text = format!(
            "HeaderDigest={digest}\0DataDigest={digest}\0MaxRecvDataSegmentLength={}\0InitialR2T={}\0ImmediateData={}\0\
             FirstBurstLength={}\0MaxBurstLength={}\0MaxOutstandingR2T={}\0ErrorRecoveryLevel=0\0",
            agreed.send_segment,
            yes(agreed.initial_r2t),
            yes(agreed.immediate_data),
            agreed.first_burst,
            agreed.max_burst,
            agreed.max_r2t
        );
        pair.login(Stage::Operational, Stage::FullFeature, &text);
        pair.digests = agreed.digests;
        pair
    }

    fn login(&mut self, current: Stage, next: Stage, text: &str) {
        let isid = [0x80, 1, 2, 3, 0, 0];
        let login = Login { transit: true, goes_on: false, current, next, isid, tsih: 1, itt: 0, status: 0 };
        self.say_status(login.encode_response(), text.as_bytes());
        self.turn().unwrap();
    }

    fn turn(&mut self) -> Result<usize, ConnectionError> {
        self.connection.turn(&self.stream, &mut self.pieces, self.now, &mut self.done)
    }

    /// The target sends a PDU that carries a status.
    fn say_status(&mut self, bhs: Bhs, data: &[u8]) {
        self.say(bhs, data);
        self.stat_sn = self.stat_sn.wrapping_add(1);
    }

    /// The target sends a PDU.
    fn say(&mut self, bhs: Bhs, data: &[u8]) {
        let bytes = self.encode(bhs, data);
        self.stream.push(&bytes);
    }

    fn encode(&self, bhs: Bhs, data: &[u8]) -> Vec<u8> {
        let mut bhs = bhs.with_status_numbers(self.stat_sn, self.window.0, self.window.1);
        bhs.set_data_len(data.len());
        let mut pdu = bhs.0.to_vec();
        if self.digests {
            pdu.extend(crc32c(&bhs.0).to_le_bytes());
        }
        let start = pdu.len();
        pdu.extend_from_slice(data);
        pdu.resize(start + data.len() + padding(data.len()), 0);
        if self.digests && !data.is_empty() {
            pdu.extend(crc32c(&pdu[start..]).to_le_bytes());
        }
        pdu
    }

    /// What the initiator sent since the last call, PDU by PDU, digests checked.
    fn sent(&mut self) -> Vec<(Bhs, Vec<u8>)> {
        let bytes = self.stream.take_sent();
        let (mut rest, mut pdus) = (bytes.as_slice(), Vec::new());
        while let Some(bhs) = Bhs::from_slice(rest) {
            rest = &rest[BHS_LEN..];
            let digests = self.digests && bhs.opcode() != opcode::LOGIN;
            if digests {
                assert_eq!(rest[..4], crc32c(&bhs.0).to_le_bytes());
                rest = &rest[4..];
            }
            let len = bhs.data_len();
            let padded = len + padding(len);
            assert!(rest[len..padded].iter().all(|b| *b == 0), "padding is zero");
            let data = rest[..len].to_vec();
            if digests && len > 0 {
                assert_eq!(rest[padded..padded + 4], crc32c(&rest[..padded]).to_le_bytes());
                rest = &rest[4..];
            }
            rest = &rest[padded..];
            pdus.push((bhs, data));
        }
        assert!(rest.is_empty());
        pdus
    }

    /// Answers the questions to the unit as a disk of 8192 blocks would, with a unit attention first.
    fn answer_questions(&mut self) {
        let mut attention = true;
        for _ in 0..20 {
            for (bhs, _) in self.sent() {
                if bhs.opcode() != opcode::SCSI_COMMAND {
                    continue;
                }
                let command = ScsiCommand::decode(&bhs);
                self.window = (self.window.0 + 1, self.window.1 + 1);
                if std::mem::take(&mut attention) {
                    self.fail(command.itt, Sense { key: 6, asc: 0x29, ascq: 0 });
                    continue;
                }
                let mut capacity = vec![0; 32];
                capacity[6] = 0x1f;
                capacity[7] = 0xff;
                capacity[10] = 2;
                let answer = match (command.cdb[0], command.cdb[1] & 1) {
                    (op::TEST_UNIT_READY, _) => Vec::new(),
                    (op::INQUIRY, 0) => vec![0; 36],
                    (op::SERVICE_ACTION_IN_16, _) => capacity,
                    _ => {
                        self.fail(command.itt, Sense { key: 5, asc: 0x24, ascq: 0 });
                        continue;
                    }
                };
                self.read_answer(command.itt, &answer);
            }
            self.turn().unwrap();
        }
    }

    fn read_answer(&mut self, itt: u32, data: &[u8]) {
        if data.is_empty() {
            return self.good(itt);
        }
        let status = Some((0, Residual::None));
        self.say_status(DataIn { is_final: true, status, itt, data_sn: 0, offset: 0 }.encode(), data);
    }

    fn good(&mut self, itt: u32) {
        let residual = Residual::None;
        self.say_status(ScsiResponse { itt, response: 0, status: 0, exp_data_sn: 0, residual }.encode(), &[]);
    }

    fn fail(&mut self, itt: u32, sense: Sense) {
        let residual = Residual::None;
        let response = ScsiResponse { itt, response: 0, status: 2, exp_data_sn: 0, residual };
        self.say_status(response.encode(), &sense.to_segment());
    }

    fn submit(&mut self, op: Op, offset: u64, len: usize) {
        let mut request = Request::new(IoBuffers::anonymous(len.max(512)).unwrap());
        let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
        request.buffers.write(0, &bytes).unwrap();
        request.op = op;
        request.offset = offset;
        request.len = len as u64;
        self.connection.submit(Pending { request: BlockRequest::new(request), since: self.now, done: 0 });
        self.turn().unwrap();
    }

    /// Submits and returns the one PDU that goes out.
    fn command(&mut self, op: Op, len: usize) -> (ScsiCommand, Vec<u8>) {
        self.submit(op, 0, len);
        let mut sent = self.sent();
        let (bhs, data) = sent.remove(0);
        assert!(sent.is_empty(), "{sent:?}");
        (ScsiCommand::decode(&bhs), data)
    }

    fn ended(&mut self) -> Vec<Status> {
        self.done.drain().map(|c| c.status).collect()
    }

    fn r2t(&mut self, itt: u32, r2t_sn: u32, offset: u32, len: u32) {
        let lun = Lun::from_number(300);
        self.say(R2t { lun, itt, ttt: 0x77, r2t_sn, offset, len }.encode(), &[]);
    }

    /// What the initiator says to this, which must break the protocol.
    fn refused(mut self, why: &str) {
        match self.turn() {
            Err(ConnectionError::Protocol(reason)) => assert!(reason.contains(why), "{reason}"),
            other => panic!("{other:?} instead of {why}"),
        }
        self.abandon();
    }

    fn abandon(mut self) {
        for (pending, _) in self.connection.take_requests(&mut self.done) {
            pending.request.abandon();
        }
        self.done.drain().for_each(drop);
    }
}

#[test]
fn the_command_window_closes_and_wraps() {
    let mut pair = Pair::new(AGREED);
    pair.connection.cmd_sn = u32::MAX;
    pair.connection.max_cmd_sn = u32::MAX;
    pair.submit(Op::Read, 0, 512);
    pair.submit(Op::Read, 0, 512);
    assert_eq!(pair.sent().len(), 1, "MaxCmdSN is reached");
    // MaxCmdSN = ExpCmdSN - 1: closed, and older numbers do not open it.
    pair.window = (0, u32::MAX);
    pair.say(Nop { lun: Lun(0), itt: NO_TAG, ttt: NO_TAG }.encode(opcode::NOP_IN), &[]);
    pair.window = (u32::MAX - 10, u32::MAX - 2);
    pair.say(Nop { lun: Lun(0), itt: NO_TAG, ttt: NO_TAG }.encode(opcode::NOP_IN), &[]);
    pair.turn().unwrap();
    assert!(pair.sent().is_empty());
    pair.window = (0, 0);
    pair.say(Nop { lun: Lun(0), itt: NO_TAG, ttt: NO_TAG }.encode(opcode::NOP_IN), &[]);
    pair.turn().unwrap();
    let sent = pair.sent();
    assert_eq!((sent.len(), sent[0].0.cmd_sn()), (1, 0), "the number wraps");
    pair.abandon();
}

#[test]
fn immediate_pdus_do_not_advance_cmd_sn() {
    let mut pair = Pair::new(AGREED);
    let before = pair.connection.cmd_sn;
    pair.say(Nop { lun: Lun::from_number(300), itt: NO_TAG, ttt: 5 }.encode(opcode::NOP_IN), &[]);
    pair.turn().unwrap();
    let sent = pair.sent();
    assert!(sent[0].0.is_immediate());
    assert_eq!((sent[0].0.cmd_sn(), pair.connection.cmd_sn), (before, before));
}

#[test]
fn only_pdus_with_a_status_advance_stat_sn() {
    let mut pair = Pair::new(AGREED);
    let expected = pair.connection.exp_stat_sn;
    let (command, _) = pair.command(Op::Write, 16_384);
    pair.say(Nop { lun: Lun(0), itt: NO_TAG, ttt: NO_TAG }.encode(opcode::NOP_IN), &[]);
    pair.r2t(command.itt, 0, 4096, 12_288);
    pair.turn().unwrap();
    assert_eq!(pair.connection.exp_stat_sn, expected);
    assert_eq!(pair.sent().len(), 3);
    pair.good(command.itt);
    pair.turn().unwrap();
    assert_eq!(pair.connection.exp_stat_sn, expected + 1);
    assert_eq!(pair.ended(), [Status::Ok]);
    let (command, _) = pair.command(Op::Read, 1024);
    let data = DataIn { is_final: true, status: None, itt: command.itt, data_sn: 0, offset: 0 };
    pair.say(data.encode(), &[1; 512]);
    pair.turn().unwrap();
    assert_eq!(pair.connection.exp_stat_sn, expected + 1, "Data-In without S");
    let status = Some((0, Residual::None));
    pair.say_status(DataIn { is_final: true, status, data_sn: 1, offset: 512, ..data }.encode(), &[2; 512]);
    pair.turn().unwrap();
    assert_eq!(
        (pair.connection.exp_stat_sn, pair.ended()),
        (expected + 2, vec![Status::Ok]),
        "S replaces the response"
    );
}

#[test]
fn a_lost_status_ends_the_session() {
    let mut pair = Pair::new(AGREED);
    let (command, _) = pair.command(Op::Flush, 0);
    pair.stat_sn += 1;
    pair.good(command.itt);
    pair.refused("StatSN");
}

#[test]
fn data_sn_restarts_with_every_r2t_and_offsets_are_checked() {
    let mut pair = Pair::new(AGREED);
    let (command, immediate) = pair.command(Op::Write, 24_576);
    assert_eq!((immediate.len(), command.is_final), (4096, true));
    for (r2t_sn, offset, len) in [(0, 4096, 8192), (1, 12_288, 12_288)] {
        pair.r2t(command.itt, r2t_sn, offset, len);
        pair.turn().unwrap();
        let sent: Vec<DataOut> = pair.sent().iter().map(|(bhs, _)| DataOut::decode(bhs)).collect();
        let numbers: Vec<(u32, u32, bool)> = sent.iter().map(|d| (d.data_sn, d.offset, d.is_final)).collect();
        let count = len / 4096;
        let expected: Vec<_> = (0..count).map(|i| (i, offset + i * 4096, i == count - 1)).collect();
        assert_eq!(numbers, expected);
        assert!(sent.iter().all(|d| d.ttt == 0x77 && d.lun == Lun::from_number(300)));
    }
    pair.good(command.itt);
    pair.turn().unwrap();
    assert_eq!(pair.ended(), [Status::Ok]);
}

#[test]
fn wrong_r2ts_are_refused() {
    type Wrong = fn(&mut Pair, u32);
    let cases: [(&str, Wrong); 8] = [
        ("offset", |p, itt| p.r2t(itt, 0, 8192, 512)),
        ("R2TSN", |p, itt| p.r2t(itt, 1, 4096, 512)),
        ("no data", |p, itt| p.r2t(itt, 0, 4096, 0)),
        ("MaxBurstLength", |p, itt| p.r2t(itt, 0, 4096, 20_000)),
        ("beyond", |p, itt| p.r2t(itt, 0, 4096, 16_384)),
        ("not under way", |p, itt| p.r2t(itt ^ 0x10_0000, 0, 4096, 512)),
        ("did not move", |p, itt| p.good(itt)),
        ("does not read", |p, itt| p.read_answer(itt, &[0; 512])),
    ];
    for (why, wrong) in cases {
        let mut pair = Pair::new(AGREED);
        let (command, _) = pair.command(Op::Write, 16_384);
        wrong(&mut pair, command.itt);
        pair.refused(why);
    }
    let mut pair = Pair::new(AGREED);
    let (command, _) = pair.command(Op::Read, 4096);
    pair.r2t(command.itt, 0, 0, 512);
    pair.refused("does not write");
}

#[test]
fn data_in_out_of_order_or_too_much_is_refused() {
    type Wrong = fn(&mut DataIn) -> usize;
    let cases: [(&str, Wrong); 4] = [
        ("BufferOffset", |d| {
            d.offset = 512;
            512
        }),
        ("DataSN", |d| {
            d.data_sn = 1;
            512
        }),
        ("more data", |_| 4096 + 512),
        ("not under way", |d| {
            d.itt = d.itt.wrapping_add(1 << 16);
            512
        }),
    ];
    for (why, wrong) in cases {
        let mut pair = Pair::new(AGREED);
        let (command, _) = pair.command(Op::Read, 4096);
        let mut data = DataIn { is_final: true, status: None, itt: command.itt, data_sn: 0, offset: 0 };
        let len = wrong(&mut data);
        pair.say(data.encode(), &vec![0; len]);
        pair.refused(why);
    }
}

#[test]
fn padding_and_ahs_are_inside_the_digests() {
    let mut pair = Pair::new(Agreed { digests: true, ..AGREED });
    // An odd length from the target: sense data of 18 + 2 bytes is even, so cut it.
    let (command, _) = pair.command(Op::Flush, 0);
    let residual = Residual::None;
    let response = ScsiResponse { itt: command.itt, response: 0, status: 2, exp_data_sn: 0, residual };
    pair.say_status(response.encode(), &Sense { key: 3, asc: 0x11, ascq: 0 }.to_segment()[..17]);
    pair.turn().unwrap();
    assert_eq!(pair.ended(), [Status::IoError]);
    // A header with an AHS: the digest covers both.
    let (command, _) = pair.command(Op::Flush, 0);
    let response = ScsiResponse { itt: command.itt, response: 0, status: 0, exp_data_sn: 0, residual };
    let mut bhs = response.encode().with_status_numbers(pair.stat_sn, pair.window.0, pair.window.1);
    bhs.0[4] = 2;
    let mut bytes = [&bhs.0[..], &[0xaa; 8]].concat();
    bytes.extend(crc32c(&bytes).to_le_bytes());
    pair.stream.push(&bytes);
    pair.turn().unwrap();
    assert_eq!(pair.ended(), [Status::Ok]);
}

#[test]
fn first_burst_counts_immediate_and_unsolicited_data() {
    // FirstBurst 8192: 4096 come with the command, 4096 after it, and no more.
    let mut pair = Pair::new(Agreed { initial_r2t: false, ..AGREED });
    pair.submit(Op::Write, 0, 24_576);
    let sent = pair.sent();
    assert_eq!(sent.iter().map(|(_, data)| data.len()).collect::<Vec<_>>(), [4096, 4096]);
    let command = ScsiCommand::decode(&sent[0].0);
    let data = DataOut::decode(&sent[1].0);
    assert!(!command.is_final && data.is_final && data.ttt == NO_TAG && data.offset == 4096);
    pair.r2t(command.itt, 0, 8192, 16_384);
    pair.turn().unwrap();
    assert_eq!(pair.sent().len(), 4);
    pair.abandon();
    // Without immediate data all of it follows; with InitialR2T as well, none does.
    for (initial_r2t, pieces) in [(false, vec![0, 4096, 4096]), (true, vec![0])] {
        let mut pair = Pair::new(Agreed { initial_r2t, immediate_data: false, ..AGREED });
        pair.submit(Op::Write, 0, 24_576);
        let sent = pair.sent();
        assert_eq!(sent.iter().map(|(_, data)| data.len()).collect::<Vec<_>>(), pieces);
        assert_eq!(ScsiCommand::decode(&sent[0].0).is_final, initial_r2t);
        pair.abandon();
    }
}

#[test]
fn damaged_digests_end_the_session() {
    for (at, expected) in [(BHS_LEN, ConnectionError::HeaderDigest), (BHS_LEN + 10, ConnectionError::DataDigest)] {
        let mut pair = Pair::new(Agreed { digests: true, ..AGREED });
        let (command, _) = pair.command(Op::Read, 512);
        let status = Some((0, Residual::None));
        let data = DataIn { is_final: true, status, itt: command.itt, data_sn: 0, offset: 0 };
        let mut bytes = pair.encode(data.encode(), &[3; 512]);
        bytes[at] ^= 1;
        pair.stream.push(&bytes);
        assert_eq!(pair.turn(), Err(expected));
        assert!(pair.done.is_empty(), "the request is not lost and not done");
        pair.abandon();
    }
}

#[test]
fn a_nop_answer_copies_tag_and_lun() {
    let mut pair = Pair::new(AGREED);
    let lun = Lun(0x0102_0304_0506_0708);
    pair.say(Nop { lun, itt: NO_TAG, ttt: 0xabcd }.encode(opcode::NOP_IN), &[1, 2, 3]);
    pair.turn().unwrap();
    let sent = pair.sent();
    assert_eq!(sent[0].0.opcode(), opcode::NOP_OUT);
    assert_eq!(Nop::decode(&sent[0].0), Nop { lun, itt: NO_TAG, ttt: 0xabcd });
}

#[test]
fn a_new_session_is_announced_by_tsih_0_and_the_same_isid() {
    let mut pair = Pair {
        connection: Connection::new(config(false), Cycles(1)),
        stream: MemoryStream::default(),
        pieces: Pieces::new(),
        done: Completions::default(),
        now: Cycles(1),
        digests: false,
        stat_sn: 0,
        window: (1, 1),
    };
    pair.turn().unwrap();
    let (bhs, text) = pair.sent().remove(0);
    let login = Login::decode(&bhs).unwrap();
    assert_eq!((login.tsih, login.isid), (0, [0x80, 1, 2, 3, 0, 0]));
    assert!(text.starts_with(b"InitiatorName=iqn.i\0SessionType=Normal\0TargetName=iqn.t\0"));
}

#[test]
fn another_portal_group_is_fenced_by_a_unit_reset() {
    let mut fenced = config(false);
    fenced.fence = Some(Some(9));
    let mut pair = Pair::logged_in(AGREED, fenced);
    let sent = pair.sent();
    let (bhs, _) = sent.last().unwrap();
    assert_eq!((bhs.opcode(), bhs.flags() & 0x7f), (opcode::TASK_MANAGEMENT, crate::pdu::tmf::LOGICAL_UNIT_RESET));
    assert!(!pair.connection.is_ready());
    pair.say_status(Answer { itt: bhs.itt(), response: 0 }.encode(opcode::TASK_MANAGEMENT_RESPONSE), &[]);
    pair.turn().unwrap();
    pair.answer_questions();
    assert!(pair.connection.is_ready(), "and then all goes on");
}

#[test]
fn a_unit_attention_is_retried_and_the_capacity_read_again() {
    let mut pair = Pair::new(AGREED);
    let (command, _) = pair.command(Op::Read, 512);
    pair.fail(command.itt, Sense { key: 6, asc: 0x2a, ascq: 9 });
    pair.turn().unwrap();
    let codes: Vec<u8> = pair.sent().iter().map(|(bhs, _)| ScsiCommand::decode(bhs).cdb[0]).collect();
    assert_eq!(codes, [op::TEST_UNIT_READY, op::READ_10], "the questions begin, the read goes again");
    assert!(pair.done.is_empty());
    pair.abandon();
}

#[test]
fn async_messages_end_or_drain_the_session() {
    let message = |event| AsyncMessage { lun: Lun(0), event, parameters: [0, 0, 3] }.encode();
    let mut pair = Pair::new(AGREED);
    pair.say_status(message(async_event::SESSION_DROPPED), &[]);
    assert!(matches!(pair.turn(), Err(ConnectionError::Ended(_))));
    let mut pair = Pair::new(AGREED);
    let (command, _) = pair.command(Op::Flush, 0);
    pair.say_status(message(async_event::LOGOUT_REQUESTED), &[]);
    pair.submit(Op::Flush, 0, 0);
    assert!(pair.sent().is_empty(), "nothing new, and no logout while a command is under way");
    pair.good(command.itt);
    pair.turn().unwrap();
    pair.now = Cycles(200);
    pair.turn().unwrap();
    let logout = pair.sent().remove(0).0;
    assert_eq!(logout.opcode(), opcode::LOGOUT);
    pair.say_status(Answer { itt: logout.itt(), response: 0 }.encode(opcode::LOGOUT_RESPONSE), &[]);
    assert_eq!(pair.turn(), Err(ConnectionError::Ended("it asked for a logout")));
    assert_eq!(
        (pair.ended().len(), pair.connection.outstanding()),
        (1, 1),
        "the second flush waits for the next session"
    );
    pair.abandon();
}

#[test]
fn a_late_command_is_aborted_and_sent_again() {
    let mut pair = Pair::new(AGREED);
    let (command, _) = pair.command(Op::Read, 512);
    pair.now = Cycles(1500);
    pair.turn().unwrap();
    let abort = pair.sent().into_iter().find(|(bhs, _)| bhs.opcode() == opcode::TASK_MANAGEMENT).unwrap().0;
    assert_eq!(crate::pdu::TaskManagement::decode(&abort).referenced_itt, command.itt);
    pair.say_status(Answer { itt: abort.itt(), response: 0 }.encode(opcode::TASK_MANAGEMENT_RESPONSE), &[]);
    pair.turn().unwrap();
    let again = ScsiCommand::decode(&pair.sent().remove(0).0);
    assert_eq!(again.cdb, command.cdb);
    assert_ne!(again.itt, command.itt, "another tag: what is still said about the old one means nothing");
    pair.read_answer(command.itt, &[0; 512]);
    pair.refused("not under way");
}

#[test]
fn an_early_failure_drops_data_that_is_still_owed() {
    let mut pair = Pair::new(AGREED);
    let (command, _) = pair.command(Op::Write, 24_576);
    pair.r2t(command.itt, 0, 4096, 16_384);
    pair.fail(command.itt, Sense { key: 3, asc: 0x0c, ascq: 0 });
    pair.turn().unwrap();
    assert_eq!(pair.ended(), [Status::IoError]);
    assert!(pair.sent().is_empty(), "no data for a command that is over");
}

#[test]
fn large_requests_go_in_steps_and_odd_ones_are_refused() {
    let mut pair = Pair::new(AGREED);
    pair.connection.info.as_mut().unwrap().geometry.max_io_size = 1024;
    let (first, _) = pair.command(Op::Read, 1536);
    assert_eq!(first.expected_len, 1024);
    pair.read_answer(first.itt, &[1; 1024]);
    pair.turn().unwrap();
    let second = ScsiCommand::decode(&pair.sent().remove(0).0);
    assert_eq!((second.expected_len, second.cdb[5]), (512, 2));
    pair.read_answer(second.itt, &[2; 512]);
    pair.turn().unwrap();
    assert_eq!(pair.ended(), [Status::Ok]);
    pair.submit(Op::Read, 100, 512);
    pair.submit(Op::Write, 0, 513);
    assert_eq!(pair.ended(), [Status::IoError; 2]);
    assert!(pair.sent().is_empty(), "they are not sent to the target");
}

#[test]
fn every_key_is_sent_explicitly() {
    let mut pair = Pair::logged_in(AGREED, config(false));
    let text: Vec<u8> = pair.sent().into_iter().flat_map(|(_, data)| data).collect();
    let text = String::from_utf8_lossy(&text);
    for key in [
        "HeaderDigest=None",
        "DataDigest=None",
        "MaxRecvDataSegmentLength=",
        "DefaultTime2Wait=",
        "DefaultTime2Retain=0",
        "ErrorRecoveryLevel=0",
        "InitialR2T=No",
        "ImmediateData=Yes",
        "MaxBurstLength=",
        "FirstBurstLength=",
        "MaxOutstandingR2T=",
        "MaxConnections=1",
        "DataPDUInOrder=Yes",
        "DataSequenceInOrder=Yes",
        "AuthMethod=None",
    ] {
        assert!(text.contains(key), "{key}");
    }
    pair.abandon();
}

/// A response of the target during login.
fn login_response(login: Login) -> Bhs {
    Login { isid: [0x80, 1, 2, 3, 0, 0], tsih: 1, itt: 0, status: 0, ..login }.encode_response()
}

#[test]
fn keys_may_span_pdus() {
    const GOES_ON: Login = Login {
        transit: false,
        goes_on: true,
        current: Stage::Security,
        next: Stage::Operational,
        isid: [0; 6],
        tsih: 0,
        itt: 0,
        status: 0,
    };
    let mut login = LoginMachine::new(LoginConfig { segment_limit: 20, ..config(false).login });
    let (mut step, mut text, mut pieces) = (login.start(), Vec::new(), 0);
    loop {
        let Step::Send(bhs, segment) = step else { panic!("{step:?}") };
        let request = Login::decode(&bhs).unwrap();
        assert!(segment.len() <= 20 && request.transit != request.goes_on);
        text.extend(segment);
        pieces += 1;
        if !request.goes_on {
            break;
        }
        step = login.on_response(&login_response(Login { goes_on: false, ..GOES_ON }), &[]).unwrap();
    }
    assert_eq!(text, b"InitiatorName=iqn.i\0SessionType=Normal\0TargetName=iqn.t\0AuthMethod=None\0");
    assert_eq!(pieces, text.len().div_ceil(20));
    let step = login.on_response(&login_response(GOES_ON), b"AuthMethod=No").unwrap();
    let Step::Send(bhs, segment) = step else { panic!("{step:?}") };
    assert!(segment.is_empty() && !Login::decode(&bhs).unwrap().transit, "an empty request asks for the rest");
    let rest = login_response(Login { transit: true, goes_on: false, ..GOES_ON });
    let step = login.on_response(&rest, b"ne\0TargetPortalGroupTag=1\0").unwrap();
    assert!(matches!(step, Step::Send(_, text) if text.starts_with(b"HeaderDigest=None")), "the next stage");
}

#[test]
fn a_reflected_challenge_is_refused() {
    let credentials = |name: &str| Some(Credentials { name: name.into(), secret: "a secret of ours".into() });
    let auth = Auth { initiator: credentials("host"), target: credentials("disk"), algorithms: Vec::new() };
    let mut login = LoginMachine::new(LoginConfig { auth, ..config(false).login });
    login.start();
    let stage = Stage::Security;
    let stays =
        Login { transit: false, goes_on: false, current: stage, next: stage, ..Login::decode(&Bhs([0; 48])).unwrap() };
    login.on_response(&login_response(stays), b"AuthMethod=CHAP\0").unwrap();
    // MD5, and the challenge that the initiator is about to send.
    let text = format!("CHAP_A=5\0CHAP_I=1\0CHAP_C={}\0", crate::text::to_hex(&[7; 16]));
    let error = login.on_response(&login_response(stays), text.as_bytes()).unwrap_err();
    assert_eq!(error, LoginError::Authentication("the target reflected our challenge"));
}

#[test]
fn unmap_and_write_same_are_used_where_the_unit_has_them() {
    let mut pair = Pair::new(AGREED);
    pair.submit(Op::Discard, 0, 4096);
    assert_eq!((pair.ended(), pair.sent().len()), (vec![Status::Unsupported], 0));
    let geometry = &mut pair.connection.info.as_mut().unwrap().geometry;
    geometry.max_discard_blocks = 64;
    geometry.max_write_zeroes_blocks = 64;
    let (command, list) = pair.command(Op::Discard, 4096);
    assert_eq!((command.cdb[0], list), (op::UNMAP, crate::scsi::unmap_list(0, 8).to_vec()));
    pair.good(command.itt);
    let (command, block) = pair.command(Op::WriteZeroes { unmap: true }, 4096);
    assert_eq!((command.cdb[0], command.cdb[1], command.cdb[13], block), (op::WRITE_SAME_16, 8, 8, vec![0; 512]));
    pair.good(command.itt);
    pair.turn().unwrap();
    assert_eq!(pair.ended(), [Status::Ok; 2]);
}
