//! What a logical unit is: the questions asked of it after every login, and what follows from the answers.

use crate::pdu::Lun;
use crate::scsi::{self, BlockLimits, Capacity, Cdb, Provisioning, Sense, sense_key, vpd};
use block::Geometry;
use initiator::{DiskIdentity, DiskReplaced};
use invalid::Invalid;

/// Bytes asked for at most in one answer.
const ANSWER: u16 = 4096;
/// Blocks a READ or WRITE moves at most where the target sets no limit, in bytes: keeps one command from filling the network.
const MAX_TRANSFER: u64 = 8 << 20;
/// Unit attentions in a row before a unit counts as broken.
const MAX_ATTENTIONS: u32 = 64;

/// The identity and geometry of a logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LunInfo {
    /// The best designator of VPD page 0x83, else the serial number; empty where the unit has neither.
    pub(crate) designator: Vec<u8>,
    pub(crate) geometry: Geometry,
}

impl LunInfo {
    fn identity(&self) -> DiskIdentity {
        DiskIdentity { id: self.designator.clone(), block_size: self.geometry.block_size }
    }
}

impl From<DiskReplaced> for LunError {
    fn from(_: DiskReplaced) -> LunError {
        LunError::Replaced
    }
}

/// Why a logical unit cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LunError {
    /// The target has no such unit.
    #[error("the target has no LUN {lun}; it has {}", list(.available))]
    Missing {
        /// The number asked for.
        lun: Lun,
        /// The units that REPORT LUNS lists.
        available: Vec<Lun>,
    },
    /// The unit is no disk.
    #[error("LUN type: got device type {0:#04x}, expected a disk (0x00)")]
    NotADisk(u8),
    /// A command that every disk must do failed.
    #[error("{command} failed: {sense}")]
    Command {
        /// The command.
        command: &'static str,
        /// The target's sense data.
        sense: String,
    },
    /// An answer that makes no sense.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Another disk than before answers under the same name.
    #[error("another disk answers at this LUN: its identity or block size changed")]
    Replaced,
}

fn list(luns: &[Lun]) -> String {
    let numbers: Vec<String> = luns.iter().map(Lun::to_string).collect();
    if numbers.is_empty() { "none".into() } else { format!("LUN {}", numbers.join(", ")) }
}

/// The questions, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Ready,
    Inquiry,
    Serial,
    Identification,
    Limits,
    Provisioning,
    Capacity16,
    Capacity10,
    Caching,
    Luns,
}

/// The step that follows an answer.
#[derive(Debug)]
pub(crate) enum Next {
    /// Ask [`Probe::question`].
    Ask,
    /// Ask again after a while: the unit is not ready yet.
    Wait,
    /// All is known.
    Done(Box<LunInfo>),
}

/// A walk through the questions.
#[derive(Debug)]
pub(crate) struct Probe {
    lun: Lun,
    question: Question,
    attentions: u32,
    /// The unit as it was before: the disk must be the same.
    known: Option<Box<LunInfo>>,
    serial: Vec<u8>,
    designator: Option<Vec<u8>>,
    limits: BlockLimits,
    provisioning: Provisioning,
    capacity: Option<Capacity>,
}

impl Probe {
    /// Asks everything. With `known`, the unit must still be that disk.
    pub(crate) fn new(lun: Lun, known: Option<Box<LunInfo>>) -> Probe {
        Probe {
            lun,
            question: Question::Ready,
            attentions: 0,
            known,
            serial: Vec::new(),
            designator: None,
            limits: BlockLimits::default(),
            provisioning: Provisioning::default(),
            capacity: None,
        }
    }

    /// The unit to ask, the command, and the bytes of its answer at most.
    pub(crate) fn question(&self) -> (Lun, Cdb, u32) {
        let page = |page| (scsi::inquiry(Some(page), ANSWER), ANSWER.into());
        let (cdb, len) = match self.question {
            Question::Ready => (scsi::test_unit_ready(), 0),
            Question::Inquiry => (scsi::inquiry(None, 36), 36),
            Question::Serial => page(vpd::SERIAL_NUMBER),
            Question::Identification => page(vpd::DEVICE_IDENTIFICATION),
            Question::Limits => page(vpd::BLOCK_LIMITS),
            Question::Provisioning => page(vpd::PROVISIONING),
            Question::Capacity16 => (scsi::read_capacity_16(32), 32),
            Question::Capacity10 => (scsi::read_capacity_10(), 8),
            Question::Caching => (scsi::mode_sense(scsi::CACHING_PAGE, 64), 64),
            Question::Luns => (scsi::report_luns(ANSWER.into()), ANSWER.into()),
        };
        let lun = if self.question == Question::Luns { Lun(0) } else { self.lun };
        (lun, cdb, len)
    }

    /// Takes the answer to [`question`](Self::question), or the sense data of its failure.
    pub(crate) fn on_answer(&mut self, answer: Result<&[u8], Sense>) -> Result<Next, LunError> {
        match answer {
            Err(sense) if sense.key == sense_key::UNIT_ATTENTION && self.attentions < MAX_ATTENTIONS => {
                self.attentions += 1;
                Ok(Next::Ask)
            }
            Err(sense) if is_transient(sense) => Ok(Next::Wait),
            // 25/00: logical unit not supported.
            Err(sense) if sense.asc == 0x25 => {
                self.question = Question::Luns;
                Ok(Next::Ask)
            }
            Err(sense) => self.on_refusal(sense),
            Ok(bytes) => self.on_bytes(bytes),
        }
    }

    /// Optional questions may be refused; the others may not.
    fn on_refusal(&mut self, sense: Sense) -> Result<Next, LunError> {
        let failed = |command| Err(LunError::Command { command, sense: sense.to_string() });
        match self.question {
            Question::Ready => failed("TEST UNIT READY"),
            Question::Inquiry => failed("INQUIRY"),
            Question::Capacity10 => failed("READ CAPACITY"),
            Question::Luns => Err(LunError::Missing { lun: self.lun, available: Vec::new() }),
            Question::Capacity16 => self.ask(Question::Capacity10),
            Question::Caching => self.finish(&[]).map(Next::Done),
            Question::Serial => self.ask(Question::Identification),
            Question::Identification => self.ask(Question::Limits),
            Question::Limits => self.ask(Question::Provisioning),
            Question::Provisioning => self.ask(Question::Capacity16),
        }
    }

    fn on_bytes(&mut self, bytes: &[u8]) -> Result<Next, LunError> {
        // A target that answers a question with another page than asked for is answered as one that refuses it.
        let page = |code| bytes.get(1) == Some(&code);
        match self.question {
            Question::Ready => self.ask(Question::Inquiry),
            Question::Inquiry => match bytes.first() {
                // Peripheral qualifier 011b or 001b: no unit there (SPC-6 6.7.2).
                Some(byte) if byte >> 5 != 0 => self.ask(Question::Luns),
                Some(0) => self.ask(Question::Serial),
                other => Err(LunError::NotADisk(other.map_or(0x1f, |byte| byte & 0x1f))),
            },
            Question::Serial => {
                if page(vpd::SERIAL_NUMBER) {
                    self.serial = bytes.get(4..).unwrap_or(&[]).to_vec();
                }
                self.ask(Question::Identification)
            }
            Question::Identification => {
                if page(vpd::DEVICE_IDENTIFICATION) {
                    self.designator = scsi::best_designator(bytes);
                }
                self.ask(Question::Limits)
            }
            Question::Limits => {
                if page(vpd::BLOCK_LIMITS) {
                    self.limits = BlockLimits::decode(bytes);
                }
                self.ask(Question::Provisioning)
            }
            Question::Provisioning => {
                if page(vpd::PROVISIONING) {
                    self.provisioning = Provisioning::decode(bytes);
                }
                self.ask(Question::Capacity16)
            }
            Question::Capacity16 => self.take_capacity(Capacity::decode_16(bytes)),
            Question::Capacity10 => self.take_capacity(Capacity::decode_10(bytes)),
            Question::Caching => self.finish(bytes).map(Next::Done),
            Question::Luns => Err(LunError::Missing { lun: self.lun, available: scsi::decode_luns(bytes) }),
        }
    }

    fn ask(&mut self, question: Question) -> Result<Next, LunError> {
        self.question = question;
        Ok(Next::Ask)
    }

    fn take_capacity(&mut self, capacity: Option<Capacity>) -> Result<Next, LunError> {
        let capacity = capacity.ok_or(Invalid::new(
            "READ CAPACITY",
            "an answer that is cut or counts 2^64 blocks",
            "a last block and a block size",
        ))?;
        if !capacity.block_size.is_power_of_two() || !(512..=65_536).contains(&capacity.block_size) {
            return Err(Invalid::new("block size", capacity.block_size, "a power of two from 512 to 65536").into());
        }
        if capacity.num_blocks.checked_mul(capacity.block_size.into()).is_none_or(|bytes| bytes > 1 << 62) {
            let got = capacity.num_blocks.to_string();
            return Err(Invalid::new("blocks", got, "a disk of at most 2^62 bytes").into());
        }
        self.capacity = Some(capacity);
        self.ask(Question::Caching)
    }

    fn finish(&mut self, mode: &[u8]) -> Result<Box<LunInfo>, LunError> {
        let capacity = self.capacity.expect("asked before");
        let (read_only, write_cache) = decode_mode(mode);
        let block_size = u64::from(capacity.block_size);
        let limit = |blocks: u64| (blocks * block_size).min(MAX_TRANSFER) as u32;
        let max_transfer = match self.limits.max_transfer_blocks {
            0 => MAX_TRANSFER as u32,
            blocks => limit(blocks.into()),
        };
        let max_unmap_blocks = match (self.provisioning.unmap || capacity.thin, self.limits.max_unmap_blocks) {
            (false, _) => 0,
            (true, 0) if self.provisioning.unmap => u32::MAX,
            (true, blocks) => blocks,
        };
        let max_write_same = match self.limits.max_write_same_blocks {
            0 => (MAX_TRANSFER / block_size) as u32,
            blocks => blocks.min(u32::MAX.into()) as u32,
        };
        let designator = self.designator.take().unwrap_or_else(|| std::mem::take(&mut self.serial));
        let geometry = Geometry {
            block_size: capacity.block_size,
            num_blocks: capacity.num_blocks,
            physical_block_size: capacity.physical_block_size,
            optimal_io_size: limit(self.limits.optimal_transfer_blocks.into()),
            max_io_size: max_transfer,
            max_discard_blocks: max_unmap_blocks,
            max_write_zeroes_blocks: max_write_same,
            // VERIFY with BYTCHK would do it; whether a unit has that, it does not say in its VPD pages.
            compare: false,
            read_only,
            write_cache,
        };
        let info = LunInfo { designator, geometry };
        if let Some(known) = &self.known {
            known.identity().check(&info.identity())?;
        }
        Ok(Box::new(info))
    }
}

/// A unit that will be ready by itself: 04/00, 04/01, 04/0A (SPC-6 annex F), or an aborted command.
pub(crate) fn is_transient(sense: Sense) -> bool {
    match sense.key {
        sense_key::NOT_READY => sense.asc == 0x04 && !matches!(sense.ascq, 0x02 | 0x03 | 0x0c),
        sense_key::ABORTED_COMMAND => true,
        _ => false,
    }
}

/// Write protection and write cache, from MODE SENSE(6) of the caching page (SPC-6 7.5.6, SBC-4 6.5.5). Without an answer a
/// cache is assumed: a flush too many does no harm.
fn decode_mode(bytes: &[u8]) -> (bool, bool) {
    let (Some(parameter), Some(descriptors)) = (bytes.get(2), bytes.get(3)) else { return (false, true) };
    let read_only = parameter & 0x80 != 0;
    let page = bytes.get(4 + usize::from(*descriptors)..).unwrap_or(&[]);
    match page {
        [code, _, flags, ..] if code & 0x3f == scsi::CACHING_PAGE => (read_only, flags & 0x04 != 0),
        _ => (read_only, true),
    }
}
