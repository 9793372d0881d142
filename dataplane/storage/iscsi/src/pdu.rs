//! PDUs: the bytes of a Basic Header Segment, and what they mean ([RFC 7143 § 11]).
//!
//! [`Bhs`] is the view of the bytes; the structs are the meaning. Both directions are here, because the initiator and the
//! target share them. Sequence numbers sit at the same place in every PDU of a direction and are read from the view.
//!
//! [RFC 7143 § 11]: https://www.rfc-editor.org/rfc/rfc7143#section-11

/// Bytes of a Basic Header Segment (11.2.1).
pub(crate) const BHS_LEN: usize = 48;
/// The tag that means "none", for ITT and TTT (11.2.1.8).
pub(crate) const NO_TAG: u32 = 0xffff_ffff;
/// Bytes of a digest.
pub(crate) const DIGEST_LEN: usize = 4;

/// Opcodes (11.2.1.2). The immediate bit is apart.
pub(crate) mod opcode {
    pub(crate) const NOP_OUT: u8 = 0x00;
    pub(crate) const SCSI_COMMAND: u8 = 0x01;
    pub(crate) const TASK_MANAGEMENT: u8 = 0x02;
    pub(crate) const LOGIN: u8 = 0x03;
    pub(crate) const TEXT: u8 = 0x04;
    pub(crate) const DATA_OUT: u8 = 0x05;
    pub(crate) const LOGOUT: u8 = 0x06;
    pub(crate) const NOP_IN: u8 = 0x20;
    pub(crate) const SCSI_RESPONSE: u8 = 0x21;
    pub(crate) const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub(crate) const LOGIN_RESPONSE: u8 = 0x23;
    pub(crate) const TEXT_RESPONSE: u8 = 0x24;
    pub(crate) const DATA_IN: u8 = 0x25;
    pub(crate) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(crate) const R2T: u8 = 0x31;
    pub(crate) const ASYNC_MESSAGE: u8 = 0x32;
    pub(crate) const REJECT: u8 = 0x3f;
}

const IMMEDIATE: u8 = 0x40;
/// F, or T in a login: the last of its sequence.
pub(crate) const FINAL: u8 = 0x80;
/// C in login and text: the text goes on in the next PDU (11.10.2, 11.12.3).
pub(crate) const CONTINUE: u8 = 0x40;

/// The bytes of a Basic Header Segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bhs(pub(crate) [u8; BHS_LEN]);

impl std::fmt::Debug for Bhs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bhs(opcode {:#04x}, flags {:#04x}, itt {:#x})", self.opcode(), self.flags(), self.itt())
    }
}

impl Bhs {
    fn new(opcode: u8, flags: u8) -> Bhs {
        let mut bytes = [0; BHS_LEN];
        bytes[0] = opcode;
        bytes[1] = flags;
        Bhs(bytes)
    }

    /// A view of the first 48 bytes, if there are as many.
    #[inline]
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Bhs> {
        bytes.first_chunk().map(|b| Bhs(*b))
    }

    #[inline(always)]
    pub(crate) fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    pub(crate) fn is_immediate(&self) -> bool {
        self.0[0] & IMMEDIATE != 0
    }

    #[inline(always)]
    pub(crate) fn flags(&self) -> u8 {
        self.0[1]
    }

    #[inline(always)]
    pub(crate) fn is_final(&self) -> bool {
        self.0[1] & FINAL != 0
    }

    /// Bytes of all Additional Header Segments (11.2.1.5).
    #[inline(always)]
    pub(crate) fn ahs_len(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes of the data segment, padding not counted (11.2.1.6).
    #[inline(always)]
    pub(crate) fn data_len(&self) -> usize {
        (self.u32_at(4) & 0x00ff_ffff) as usize
    }

    pub(crate) fn set_data_len(&mut self, len: usize) {
        debug_assert!(len < 1 << 24);
        self.0[5..8].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
    }

    /// 11.2.1.7.
    pub(crate) fn lun(&self) -> Lun {
        Lun(u64::from_be_bytes(self.0[8..16].try_into().expect("8 bytes")))
    }

    /// Initiator Task Tag (11.2.1.8).
    #[inline(always)]
    pub(crate) fn itt(&self) -> u32 {
        self.u32_at(16)
    }

    /// Target PDUs: StatSN. For those that do not carry a status it does not advance (11.7.4).
    #[inline(always)]
    pub(crate) fn stat_sn(&self) -> u32 {
        self.u32_at(24)
    }

    #[inline(always)]
    pub(crate) fn exp_cmd_sn(&self) -> u32 {
        self.u32_at(28)
    }

    #[inline(always)]
    pub(crate) fn max_cmd_sn(&self) -> u32 {
        self.u32_at(32)
    }

    /// Initiator PDUs: CmdSN.
    pub(crate) fn cmd_sn(&self) -> u32 {
        self.u32_at(24)
    }

    /// The numbers of an initiator PDU: CmdSN (none in Data-Out) and ExpStatSN.
    #[inline(always)]
    pub(crate) fn with_command_numbers(mut self, cmd_sn: u32, exp_stat_sn: u32) -> Bhs {
        self.put(24, cmd_sn);
        self.put(28, exp_stat_sn);
        self
    }

    /// The numbers of a target PDU.
    pub(crate) fn with_status_numbers(mut self, stat_sn: u32, exp_cmd_sn: u32, max_cmd_sn: u32) -> Bhs {
        self.put(24, stat_sn);
        self.put(28, exp_cmd_sn);
        self.put(32, max_cmd_sn);
        self
    }

    /// The immediate-delivery bit (11.2.1.1).
    pub(crate) fn immediate(mut self) -> Bhs {
        self.0[0] |= IMMEDIATE;
        self
    }

    #[inline(always)]
    fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().expect("4 bytes"))
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    #[inline(always)]
    fn put(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    fn put_lun(&mut self, lun: Lun) {
        self.0[8..16].copy_from_slice(&lun.0.to_be_bytes());
    }
}

/// Bytes that pad a segment of `len` bytes to a multiple of four (11.2.3).
#[inline(always)]
pub(crate) fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// `a` comes after `b` in 32-bit serial arithmetic (RFC 1982, used by 4.2.2.1).
#[inline(always)]
pub(crate) fn serial_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// A logical unit number in its eight bytes (SAM-5 4.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lun(pub u64);

impl Lun {
    /// A small number in the form targets expect: peripheral addressing below 256, flat space addressing below 16,384, and
    /// anything larger as the eight bytes themselves.
    pub fn from_number(number: u64) -> Lun {
        match number {
            0..=0xff => Lun(number << 48),
            0x100..=0x3fff => Lun((0x4000 | number) << 48),
            _ => Lun(number),
        }
    }

    /// The small number again, or the eight bytes where they have another form.
    pub fn number(self) -> u64 {
        match (self.0 >> 62, self.0 & 0x0000_ffff_ffff_ffff) {
            (0, 0) if self.0 >> 56 == 0 => self.0 >> 48,
            (1, 0) if (self.0 >> 48) & 0x3fff >= 0x100 => (self.0 >> 48) & 0x3fff,
            _ => self.0,
        }
    }
}

impl std::fmt::Display for Lun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number() {
            small @ 0..=0x3fff => write!(f, "{small}"),
            bytes => write!(f, "{bytes:#018x}"),
        }
    }
}

/// SCSI Command (11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScsiCommand {
    /// No unsolicited Data-Out follows (11.3.1).
    pub(crate) is_final: bool,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) lun: Lun,
    pub(crate) itt: u32,
    /// Expected Data Transfer Length, bytes (11.3.4).
    pub(crate) expected_len: u32,
    pub(crate) cdb: [u8; 16],
}

impl ScsiCommand {
    /// ATTR: simple task (11.3.1).
    const SIMPLE: u8 = 1;

    #[inline]
    pub(crate) fn encode(&self) -> Bhs {
        let flags = u8::from(self.is_final) << 7 | u8::from(self.read) << 6 | u8::from(self.write) << 5 | Self::SIMPLE;
        let mut bhs = Bhs::new(opcode::SCSI_COMMAND, flags);
        bhs.put_lun(self.lun);
        bhs.put(16, self.itt);
        bhs.put(20, self.expected_len);
        bhs.0[32..].copy_from_slice(&self.cdb);
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> ScsiCommand {
        ScsiCommand {
            is_final: bhs.is_final(),
            read: bhs.flags() & 0x40 != 0,
            write: bhs.flags() & 0x20 != 0,
            lun: bhs.lun(),
            itt: bhs.itt(),
            expected_len: bhs.u32_at(20),
            cdb: bhs.0[32..].try_into().expect("16 bytes"),
        }
    }
}

/// Residual of a command: what moved against what was expected (11.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Residual {
    #[default]
    None,
    /// U: so many bytes were not transferred.
    Underflow(u32),
    /// O: so many more would have been.
    Overflow(u32),
}

impl Residual {
    /// From flags with O at 0x04 and U at 0x02.
    fn decode(flags: u8, count: u32) -> Residual {
        match flags & 0x06 {
            0x02 => Residual::Underflow(count),
            0x04 => Residual::Overflow(count),
            _ => Residual::None,
        }
    }

    fn encode(self) -> (u8, u32) {
        match self {
            Residual::None => (0, 0),
            Residual::Underflow(count) => (0x02, count),
            Residual::Overflow(count) => (0x04, count),
        }
    }
}

/// SCSI Response (11.4). The sense data is in the data segment, two bytes of length first (11.4.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScsiResponse {
    pub(crate) itt: u32,
    /// 0 completed at the target, 1 target failure (11.4.3).
    pub(crate) response: u8,
    pub(crate) status: u8,
    pub(crate) exp_data_sn: u32,
    pub(crate) residual: Residual,
}

impl ScsiResponse {
    pub(crate) fn encode(&self) -> Bhs {
        let (flags, count) = self.residual.encode();
        let mut bhs = Bhs::new(opcode::SCSI_RESPONSE, FINAL | flags);
        bhs.0[2] = self.response;
        bhs.0[3] = self.status;
        bhs.put(16, self.itt);
        bhs.put(36, self.exp_data_sn);
        bhs.put(44, count);
        bhs
    }

    #[inline]
    pub(crate) fn decode(bhs: &Bhs) -> ScsiResponse {
        ScsiResponse {
            itt: bhs.itt(),
            response: bhs.0[2],
            status: bhs.0[3],
            exp_data_sn: bhs.u32_at(36),
            residual: Residual::decode(bhs.flags(), bhs.u32_at(44)),
        }
    }
}

/// SCSI Data-Out (11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataOut {
    pub(crate) is_final: bool,
    pub(crate) lun: Lun,
    pub(crate) itt: u32,
    /// The R2T's, or [`NO_TAG`] for unsolicited data (11.7.4).
    pub(crate) ttt: u32,
    /// Restarts with every R2T and for unsolicited data (11.7.5).
    pub(crate) data_sn: u32,
    pub(crate) offset: u32,
}

impl DataOut {
    #[inline]
    pub(crate) fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::DATA_OUT, u8::from(self.is_final) << 7);
        bhs.put_lun(self.lun);
        bhs.put(16, self.itt);
        bhs.put(20, self.ttt);
        bhs.put(36, self.data_sn);
        bhs.put(40, self.offset);
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> DataOut {
        DataOut {
            is_final: bhs.is_final(),
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.u32_at(20),
            data_sn: bhs.u32_at(36),
            offset: bhs.u32_at(40),
        }
    }
}

/// SCSI Data-In (11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataIn {
    pub(crate) is_final: bool,
    /// S: this PDU carries the status, and no SCSI Response follows (11.7.3).
    pub(crate) status: Option<(u8, Residual)>,
    pub(crate) itt: u32,
    pub(crate) data_sn: u32,
    pub(crate) offset: u32,
}

impl DataIn {
    pub(crate) fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::DATA_IN, u8::from(self.is_final) << 7);
        bhs.put(16, self.itt);
        bhs.put(20, NO_TAG);
        bhs.put(36, self.data_sn);
        bhs.put(40, self.offset);
        if let Some((status, residual)) = self.status {
            let (flags, count) = residual.encode();
            bhs.0[1] |= 1 | flags;
            bhs.0[3] = status;
            bhs.put(44, count);
        }
        bhs
    }

    #[inline]
    pub(crate) fn decode(bhs: &Bhs) -> DataIn {
        let status = bhs.flags() & 1 != 0;
        DataIn {
            is_final: bhs.is_final(),
            status: status.then(|| (bhs.0[3], Residual::decode(bhs.flags(), bhs.u32_at(44)))),
            itt: bhs.itt(),
            data_sn: bhs.u32_at(36),
            offset: bhs.u32_at(40),
        }
    }
}

/// Ready To Transfer (11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct R2t {
    pub(crate) lun: Lun,
    pub(crate) itt: u32,
    pub(crate) ttt: u32,
    /// Counts the R2Ts of one command from 0 (11.8.3).
    pub(crate) r2t_sn: u32,
    pub(crate) offset: u32,
    /// Desired Data Transfer Length, bytes, not 0 (11.8.4).
    pub(crate) len: u32,
}

impl R2t {
    pub(crate) fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::R2T, FINAL);
        bhs.put_lun(self.lun);
        bhs.put(16, self.itt);
        bhs.put(20, self.ttt);
        bhs.put(36, self.r2t_sn);
        bhs.put(40, self.offset);
        bhs.put(44, self.len);
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> R2t {
        R2t {
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.u32_at(20),
            r2t_sn: bhs.u32_at(36),
            offset: bhs.u32_at(40),
            len: bhs.u32_at(44),
        }
    }
}

/// NOP-Out and NOP-In (11.18, 11.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nop {
    pub(crate) lun: Lun,
    /// NOP-Out: [`NO_TAG`] when no answer is wanted. NOP-In: [`NO_TAG`] when it is the target's own ping.
    pub(crate) itt: u32,
    /// NOP-In: what the answer must copy, or [`NO_TAG`].
    pub(crate) ttt: u32,
}

impl Nop {
    pub(crate) fn encode(&self, opcode: u8) -> Bhs {
        let mut bhs = Bhs::new(opcode, FINAL);
        bhs.put_lun(self.lun);
        bhs.put(16, self.itt);
        bhs.put(20, self.ttt);
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> Nop {
        Nop { lun: bhs.lun(), itt: bhs.itt(), ttt: bhs.u32_at(20) }
    }
}

/// Task management functions (11.5.1).
pub(crate) mod tmf {
    pub(crate) const ABORT_TASK: u8 = 1;
    pub(crate) const LOGICAL_UNIT_RESET: u8 = 5;
}

/// Task management responses (11.6.1).
pub(crate) mod tmf_response {
    pub(crate) const COMPLETE: u8 = 0;
    pub(crate) const NO_TASK: u8 = 1;
    pub(crate) const NOT_SUPPORTED: u8 = 5;
}

/// Task Management Function Request (11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskManagement {
    pub(crate) function: u8,
    pub(crate) lun: Lun,
    pub(crate) itt: u32,
    pub(crate) referenced_itt: u32,
    pub(crate) ref_cmd_sn: u32,
}

impl TaskManagement {
    pub(crate) fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::TASK_MANAGEMENT, FINAL | self.function);
        bhs.put_lun(self.lun);
        bhs.put(16, self.itt);
        bhs.put(20, self.referenced_itt);
        bhs.put(32, self.ref_cmd_sn);
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> TaskManagement {
        TaskManagement {
            function: bhs.flags() & 0x7f,
            lun: bhs.lun(),
            itt: bhs.itt(),
            referenced_itt: bhs.u32_at(20),
            ref_cmd_sn: bhs.u32_at(32),
        }
    }
}

/// A PDU that is a tag and one response code: Task Management Function Response (11.6), Reject (11.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) itt: u32,
    pub(crate) response: u8,
}

impl Answer {
    pub(crate) fn encode(&self, opcode: u8) -> Bhs {
        let mut bhs = Bhs::new(opcode, FINAL);
        bhs.0[2] = self.response;
        bhs.put(16, self.itt);
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> Answer {
        Answer { itt: bhs.itt(), response: bhs.0[2] }
    }
}

/// Asynchronous events (11.9.1).
pub(crate) mod async_event {
    pub(crate) const SCSI: u8 = 0;
    pub(crate) const LOGOUT_REQUESTED: u8 = 1;
    pub(crate) const CONNECTION_DROPPED: u8 = 2;
    pub(crate) const SESSION_DROPPED: u8 = 3;
    pub(crate) const NEGOTIATION_REQUESTED: u8 = 4;
}

/// Asynchronous Message (11.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AsyncMessage {
    pub(crate) lun: Lun,
    pub(crate) event: u8,
    pub(crate) parameters: [u16; 3],
}

impl AsyncMessage {
    pub(crate) fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::ASYNC_MESSAGE, FINAL);
        bhs.put_lun(self.lun);
        bhs.put(16, NO_TAG);
        bhs.0[36] = self.event;
        for (i, parameter) in self.parameters.iter().enumerate() {
            bhs.put_u16(38 + 2 * i, *parameter);
        }
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> AsyncMessage {
        AsyncMessage { lun: bhs.lun(), event: bhs.0[36], parameters: [38, 40, 42].map(|at| bhs.u16_at(at)) }
    }
}

/// Text Request and Response (11.10, 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) is_final: bool,
    /// C: the text goes on in the next PDU.
    pub(crate) goes_on: bool,
    pub(crate) itt: u32,
    pub(crate) ttt: u32,
}

impl Text {
    pub(crate) fn encode(&self, opcode: u8) -> Bhs {
        let mut bhs = Bhs::new(opcode, u8::from(self.is_final) << 7 | u8::from(self.goes_on) << 6);
        bhs.put(16, self.itt);
        bhs.put(20, self.ttt);
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> Text {
        let goes_on = bhs.flags() & CONTINUE != 0;
        Text { is_final: bhs.is_final(), goes_on, itt: bhs.itt(), ttt: bhs.u32_at(20) }
    }
}

/// Stages of a login (11.12.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Security,
    Operational,
    FullFeature,
}

impl Stage {
    fn decode(bits: u8) -> Option<Stage> {
        match bits & 3 {
            0 => Some(Stage::Security),
            1 => Some(Stage::Operational),
            3 => Some(Stage::FullFeature),
            _ => None,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Stage::Security => 0,
            Stage::Operational => 1,
            Stage::FullFeature => 3,
        }
    }
}

/// Initiator session ID (11.12.5).
pub(crate) type Isid = [u8; 6];

/// Login Request (11.12) and Response (11.13): the same layout but for the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Login {
    /// T: ready to go to `next`.
    pub(crate) transit: bool,
    pub(crate) goes_on: bool,
    pub(crate) current: Stage,
    pub(crate) next: Stage,
    pub(crate) isid: Isid,
    /// 0 in the first request of a new session; the target's choice in its last response (11.12.6, 11.13.3).
    pub(crate) tsih: u16,
    pub(crate) itt: u32,
    /// Response: Status-Class and Status-Detail (11.13.5).
    pub(crate) status: u16,
}

impl Login {
    pub(crate) fn encode_request(&self) -> Bhs {
        self.encode(opcode::LOGIN).immediate()
    }

    pub(crate) fn encode_response(&self) -> Bhs {
        let mut bhs = self.encode(opcode::LOGIN_RESPONSE);
        bhs.put_u16(36, self.status);
        bhs
    }

    fn encode(&self, opcode: u8) -> Bhs {
        let next = if self.transit { self.next.bits() } else { 0 };
        let flags = u8::from(self.transit) << 7 | u8::from(self.goes_on) << 6 | self.current.bits() << 2 | next;
        let mut bhs = Bhs::new(opcode, flags);
        bhs.0[8..14].copy_from_slice(&self.isid);
        bhs.put_u16(14, self.tsih);
        bhs.put(16, self.itt);
        bhs
    }

    /// `None` where a stage is the reserved value.
    pub(crate) fn decode(bhs: &Bhs) -> Option<Login> {
        let transit = bhs.is_final();
        Some(Login {
            transit,
            goes_on: bhs.flags() & CONTINUE != 0,
            current: Stage::decode(bhs.flags() >> 2)?,
            next: if transit { Stage::decode(bhs.flags())? } else { Stage::Security },
            isid: bhs.0[8..14].try_into().expect("6 bytes"),
            tsih: bhs.u16_at(14),
            itt: bhs.itt(),
            status: bhs.u16_at(36),
        })
    }
}

/// Logout Request (11.14): reason 0 closes the session, 1 the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Logout {
    pub(crate) reason: u8,
    pub(crate) itt: u32,
}

impl Logout {
    pub(crate) fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::LOGOUT, FINAL | self.reason);
        bhs.put(16, self.itt);
        bhs
    }

    pub(crate) fn decode(bhs: &Bhs) -> Logout {
        Logout { reason: bhs.flags() & 0x7f, itt: bhs.itt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_numbers_live_where_the_rfc_puts_them() {
        let mut bhs = Bhs::new(opcode::NOP_OUT, FINAL).immediate().with_command_numbers(0x0102_0304, 0x0506_0708);
        bhs.set_data_len(0x0a_0b0c);
        assert_eq!(bhs.0[..8], [0x40, 0x80, 0, 0, 0, 0x0a, 0x0b, 0x0c]);
        assert_eq!(bhs.0[24..32], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(bhs.is_immediate() && bhs.is_final());
        bhs.0[4] = 3;
        assert_eq!((bhs.ahs_len(), bhs.data_len()), (12, 0x0a_0b0c));
    }

    #[test]
    fn every_pdu_decodes_to_what_was_encoded() {
        let lun = Lun::from_number(300);
        let command = ScsiCommand {
            is_final: true,
            read: true,
            write: false,
            lun,
            itt: 7,
            expected_len: 4096,
            cdb: *b"0123456789abcdef",
        };
        assert_eq!(ScsiCommand::decode(&command.encode()), command);
        for residual in [Residual::None, Residual::Underflow(9), Residual::Overflow(11)] {
            let response = ScsiResponse { itt: 1, response: 1, status: 2, exp_data_sn: 3, residual };
            assert_eq!(ScsiResponse::decode(&response.encode()), response);
            let data = DataIn { is_final: true, status: Some((8, residual)), itt: 4, data_sn: 5, offset: 6 };
            assert_eq!(DataIn::decode(&data.encode()), data);
        }
        let out = DataOut { is_final: false, lun, itt: 1, ttt: 2, data_sn: 3, offset: 4 };
        assert_eq!(DataOut::decode(&out.encode()), out);
        let r2t = R2t { lun, itt: 1, ttt: 2, r2t_sn: 3, offset: 4, len: 5 };
        assert_eq!(R2t::decode(&r2t.encode()), r2t);
        let nop = Nop { lun, itt: 1, ttt: 2 };
        assert_eq!(Nop::decode(&nop.encode(opcode::NOP_IN)), nop);
        let tmf = TaskManagement { function: 5, lun, itt: 1, referenced_itt: 2, ref_cmd_sn: 3 };
        assert_eq!(TaskManagement::decode(&tmf.encode()), tmf);
        let message = AsyncMessage { lun, event: 1, parameters: [1, 2, 3] };
        assert_eq!(AsyncMessage::decode(&message.encode()), message);
        let login = Login {
            transit: true,
            goes_on: false,
            current: Stage::Operational,
            next: Stage::FullFeature,
            isid: [1, 2, 3, 4, 5, 6],
            tsih: 7,
            itt: 8,
            status: 0x0201,
        };
        assert_eq!(Login::decode(&login.encode_response()), Some(login));
        assert_eq!(Login::decode(&login.encode_request()), Some(Login { status: 0, ..login }));
        let mut reserved = login.encode_request();
        reserved.0[1] = 0x88;
        assert_eq!(Login::decode(&reserved), None);
    }

    #[test]
    fn luns_have_64_bits() {
        assert_eq!(Lun::from_number(1).0, 0x0001_0000_0000_0000);
        assert_eq!(Lun::from_number(300).0, 0x412c_0000_0000_0000);
        assert_eq!(Lun::from_number(0xd210_0000_0000_0001).0, 0xd210_0000_0000_0001);
        for number in [0, 1, 255, 256, 16_383, 0xd210_0000_0000_0001] {
            assert_eq!(Lun::from_number(number).number(), number);
        }
    }

    #[test]
    fn serial_numbers_wrap() {
        assert!(serial_after(0, u32::MAX));
        assert!(serial_after(5, 4));
        assert!(!serial_after(4, 4));
        assert!(!serial_after(u32::MAX, 0));
        assert_eq!([0, 1, 2, 3, 4].map(padding), [0, 3, 2, 1, 0]);
    }
}
