//! Submission and completion queue entries (Base 3.3.3).

use super::{le16, le32, le64};
use std::fmt;

/// Admin opcodes (Base figure 138).
pub mod admin {
    /// Get Log Page (Base 5.16).
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify (Base 5.17).
    pub const IDENTIFY: u8 = 0x06;
    /// Abort (Base 5.1).
    pub const ABORT: u8 = 0x08;
    /// Set Features (Base 5.27).
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features (Base 5.15).
    pub const GET_FEATURES: u8 = 0x0A;
    /// Asynchronous Event Request (Base 5.2).
    pub const ASYNC_EVENT: u8 = 0x0C;
    /// Keep Alive (Base 5.18).
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Fabrics commands (Base 6).
    pub const FABRICS: u8 = 0x7F;
}

/// I/O opcodes of the NVM command set (NVM figure 21, Base figure 390).
pub mod nvm {
    /// Flush (Base 7.1).
    pub const FLUSH: u8 = 0x00;
    /// Write (NVM 3.2.6).
    pub const WRITE: u8 = 0x01;
    /// Read (NVM 3.2.4).
    pub const READ: u8 = 0x02;
    /// Compare (NVM 3.2.1).
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes (NVM 3.2.8).
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management (NVM 3.2.3).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Feature identifiers (Base figure 317).
pub mod feature {
    /// Number of Queues (Base 5.27.1.5).
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Asynchronous Event Configuration (Base 5.27.1.8).
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0B;
    /// Bit of the configuration: Attached Namespace Attribute Notices.
    pub const NAMESPACE_NOTICES: u32 = 1 << 8;
    /// Bit of the configuration: Discovery Log Page Change Notices.
    pub const DISCOVERY_NOTICES: u32 = 1 << 31;
}

/// Which way a command's data goes (Base 3.3.3.1, opcode bits 1:0; Fabrics commands carry it in FCTYPE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// Host to controller.
    Out,
    /// Controller to host.
    In,
}

/// Where a command's data is: its SGL 1 (TCP 3.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// SGL Data Block with Offset (0x01): in the capsule, at `offset` after ICDOFF.
    InCapsule {
        /// Bytes after the start of the capsule's data.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Transport SGL Data Block (0x5A): moved by data PDUs.
    Transport {
        /// Bytes; may be 0.
        len: u32,
    },
    /// Anything else, as found.
    Other {
        /// The descriptor's identifier byte.
        identifier: u8,
    },
}

const DATA_BLOCK_OFFSET: u8 = 0x01;
const TRANSPORT_DATA_BLOCK: u8 = 0x5A;

/// A submission queue entry: 64 bytes (Base figure 87, figure 89).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sqe(pub [u8; 64]);

impl Sqe {
    /// A command without data.
    #[inline]
    pub fn new(opcode: u8, nsid: u32) -> Sqe {
        let mut sqe = Sqe([0; 64]);
        sqe.0[0] = opcode;
        // "PSDT shall be 01b for NVMe over Fabrics" (Base figure 86): SGLs are used.
        sqe.0[1] = 0x40;
        sqe.0[4..8].copy_from_slice(&nsid.to_le_bytes());
        sqe.set_data(DataPointer::Transport { len: 0 });
        sqe
    }

    /// A Fabrics command (Base figure 379): FCTYPE stands where other commands have NSID.
    pub fn fabrics(fctype: u8) -> Sqe {
        Sqe::new(admin::FABRICS, u32::from(fctype))
    }

    /// Read, write, compare or write zeroes of `blocks` (1 to 65,536) blocks at `lba` (NVM 3.2, CDW10 to CDW12).
    #[inline]
    pub fn io(opcode: u8, nsid: u32, lba: u64, blocks: u32) -> Sqe {
        debug_assert!((1..=65_536).contains(&blocks));
        let mut sqe = Sqe::new(opcode, nsid);
        sqe.0[40..48].copy_from_slice(&lba.to_le_bytes());
        sqe.set_cdw(12, (blocks - 1) & 0xFFFF);
        sqe
    }

    /// Opcode (byte 0).
    #[inline]
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Command identifier (bytes 3:2).
    #[inline]
    pub fn cid(&self) -> u16 {
        le16(&self.0, 2)
    }

    /// Sets the command identifier.
    #[inline]
    pub fn set_cid(&mut self, cid: u16) {
        self.0[2..4].copy_from_slice(&cid.to_le_bytes());
    }

    /// Namespace identifier (bytes 7:4).
    #[inline]
    pub fn nsid(&self) -> u32 {
        le32(&self.0, 4)
    }

    /// Fabrics command type (byte 4).
    pub fn fctype(&self) -> u8 {
        self.0[4]
    }

    /// Command dword `n`, 10 to 15.
    #[inline]
    pub fn cdw(&self, n: usize) -> u32 {
        le32(&self.0, 4 * n)
    }

    /// Sets command dword `n`, 10 to 15.
    #[inline]
    pub fn set_cdw(&mut self, n: usize, value: u32) {
        self.0[4 * n..4 * n + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Starting LBA (NVM figure 54: CDW10 and CDW11).
    pub fn lba(&self) -> u64 {
        le64(&self.0, 40)
    }

    /// Number of logical blocks (NVM figure 55: CDW12 bits 15:0, zero-based).
    pub fn blocks(&self) -> u32 {
        (self.cdw(12) & 0xFFFF) + 1
    }

    /// Which way data goes.
    #[inline]
    pub fn direction(&self) -> Direction {
        let code = if self.opcode() == admin::FABRICS { self.fctype() } else { self.opcode() };
        match code & 3 {
            1 => Direction::Out,
            2 => Direction::In,
            _ => Direction::None,
        }
    }

    /// SGL 1 (bytes 39:24).
    pub fn data(&self) -> DataPointer {
        let len = le32(&self.0, 32);
        match self.0[39] {
            DATA_BLOCK_OFFSET => DataPointer::InCapsule { offset: le64(&self.0, 24), len },
            TRANSPORT_DATA_BLOCK => DataPointer::Transport { len },
            identifier => DataPointer::Other { identifier },
        }
    }

    /// Sets SGL 1.
    #[inline]
    pub fn set_data(&mut self, pointer: DataPointer) {
        let (offset, len, identifier) = match pointer {
            DataPointer::InCapsule { offset, len } => (offset, len, DATA_BLOCK_OFFSET),
            DataPointer::Transport { len } => (0, len, TRANSPORT_DATA_BLOCK),
            DataPointer::Other { identifier } => (0, 0, identifier),
        };
        self.0[24..32].copy_from_slice(&offset.to_le_bytes());
        self.0[32..36].copy_from_slice(&len.to_le_bytes());
        self.0[36..39].fill(0);
        self.0[39] = identifier;
    }
}

impl fmt::Debug for Sqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Sqe(opcode {:#04x}, cid {:#06x}, nsid {:#x}, {:?})",
            self.opcode(),
            self.cid(),
            self.nsid(),
            self.data()
        )
    }
}

/// A range of a Dataset Management command: 16 bytes (NVM figure 38).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DsmRange {
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub blocks: u32,
}

impl DsmRange {
    /// The bytes on the wire; context attributes are 0.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[4..8].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.lba.to_le_bytes());
        bytes
    }

    /// Reads the bytes of one range.
    pub fn parse(bytes: &[u8; 16]) -> DsmRange {
        DsmRange { lba: le64(bytes, 8), blocks: le32(bytes, 4) }
    }
}

/// A completion queue entry: 16 bytes (Base figure 90).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cqe(pub [u8; 16]);

impl Cqe {
    /// A completion of `cid` with `status` and dwords 0 and 1.
    pub fn new(cid: u16, status: NvmeStatus, result: u64, sq_head: u16) -> Cqe {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&result.to_le_bytes());
        bytes[8..10].copy_from_slice(&sq_head.to_le_bytes());
        bytes[12..14].copy_from_slice(&cid.to_le_bytes());
        bytes[14..16].copy_from_slice(&status.0.to_le_bytes());
        Cqe(bytes)
    }

    /// Dword 0.
    pub fn dw0(&self) -> u32 {
        le32(&self.0, 0)
    }

    /// Dwords 0 and 1: the value of a Property Get (Base 6.4).
    pub fn result(&self) -> u64 {
        le64(&self.0, 0)
    }

    /// Command identifier (bytes 13:12).
    #[inline]
    pub fn cid(&self) -> u16 {
        le16(&self.0, 12)
    }

    /// Status field (bytes 15:14).
    #[inline]
    pub fn status(&self) -> NvmeStatus {
        NvmeStatus(le16(&self.0, 14) & !1)
    }
}

impl fmt::Debug for Cqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cqe(cid {:#06x}, {}, result {:#x})", self.cid(), self.status(), self.result())
    }
}

/// A status field with its phase bit cleared (Base 3.3.3.2.1): SC in bits 8:1, SCT in 11:9, DNR in 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvmeStatus(pub u16);

impl NvmeStatus {
    /// Successful Completion.
    pub const SUCCESS: NvmeStatus = NvmeStatus::new(0, 0x00);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: NvmeStatus = NvmeStatus::new(0, 0x01).dnr();
    /// Invalid Field in Command.
    pub const INVALID_FIELD: NvmeStatus = NvmeStatus::new(0, 0x02).dnr();
    /// Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: NvmeStatus = NvmeStatus::new(0, 0x04);
    /// Internal Error.
    pub const INTERNAL_ERROR: NvmeStatus = NvmeStatus::new(0, 0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: NvmeStatus = NvmeStatus::new(0, 0x07);
    /// Command Aborted due to SQ Deletion.
    pub const ABORTED_SQ_DELETION: NvmeStatus = NvmeStatus::new(0, 0x08);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: NvmeStatus = NvmeStatus::new(0, 0x0B).dnr();
    /// Command Sequence Error.
    pub const SEQUENCE_ERROR: NvmeStatus = NvmeStatus::new(0, 0x0C).dnr();
    /// Namespace is Write Protected.
    pub const WRITE_PROTECTED: NvmeStatus = NvmeStatus::new(0, 0x20).dnr();
    /// Transient Transport Error.
    pub const TRANSIENT_TRANSPORT_ERROR: NvmeStatus = NvmeStatus::new(0, 0x22);
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: NvmeStatus = NvmeStatus::new(0, 0x80).dnr();
    /// Capacity Exceeded.
    pub const CAPACITY_EXCEEDED: NvmeStatus = NvmeStatus::new(0, 0x81).dnr();
    /// Invalid Log Page (command specific).
    pub const INVALID_LOG_PAGE: NvmeStatus = NvmeStatus::new(1, 0x09).dnr();
    /// Connect Invalid Parameters (Base 6.3).
    pub const CONNECT_INVALID_PARAMETERS: NvmeStatus = NvmeStatus::new(1, 0x82).dnr();
    /// Connect Invalid Host (Base 6.3).
    pub const CONNECT_INVALID_HOST: NvmeStatus = NvmeStatus::new(1, 0x84).dnr();
    /// Compare Failure (media error).
    pub const COMPARE_FAILURE: NvmeStatus = NvmeStatus::new(2, 0x85).dnr();

    /// A status of type `sct` and code `sc`.
    pub const fn new(sct: u8, sc: u8) -> NvmeStatus {
        NvmeStatus((sct as u16 & 7) << 9 | (sc as u16) << 1)
    }

    /// The same with Do Not Retry.
    pub const fn dnr(self) -> NvmeStatus {
        NvmeStatus(self.0 | 1 << 15)
    }

    /// Status code type: 0 generic, 1 command specific, 2 media, 3 path.
    pub fn code_type(self) -> u8 {
        (self.0 >> 9 & 7) as u8
    }

    /// Status code.
    pub fn code(self) -> u8 {
        (self.0 >> 1) as u8
    }

    /// Whether the command succeeded.
    #[inline]
    pub fn is_success(self) -> bool {
        self.0 & 0x0FFE == 0
    }

    /// Whether a retry is expected to fail too.
    pub fn do_not_retry(self) -> bool {
        self.0 & 1 << 15 != 0
    }

    /// Whether type and code are those of `other`; flags do not count.
    pub fn is(self, other: NvmeStatus) -> bool {
        self.0 & 0x0FFE == other.0 & 0x0FFE
    }
}

impl fmt::Display for NvmeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.code_type(), self.code()) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "invalid field",
            (0, 0x04) => "data transfer error",
            (0, 0x06) => "internal error",
            (0, 0x07) => "abort requested",
            (0, 0x0B) => "invalid namespace or format",
            (0, 0x0C) => "command sequence error",
            (0, 0x20) => "namespace is write protected",
            (0, 0x22) => "transient transport error",
            (0, 0x80) => "LBA out of range",
            (0, 0x81) => "capacity exceeded",
            (0, 0x82) => "namespace not ready",
            (1, 0x80) => "connect: incompatible format",
            (1, 0x81) => "connect: controller busy",
            (1, 0x82) => "connect: invalid parameters",
            (1, 0x83) => "connect: restart discovery",
            (1, 0x84) => "connect: invalid host",
            (1, 0x91) => "authentication required",
            (2, 0x85) => "compare failure",
            _ => "",
        };
        write!(f, "status {:x}h/{:02x}h", self.code_type(), self.code())?;
        if !name.is_empty() {
            write!(f, " ({name})")?;
        }
        if self.do_not_retry() { f.write_str(", do not retry") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_pointers_round_trip() {
        let pointers = [
            DataPointer::InCapsule { offset: 16, len: 4096 },
            DataPointer::Transport { len: 0 },
            DataPointer::Transport { len: 1 << 20 },
        ];
        for pointer in pointers {
            let mut sqe = Sqe::new(nvm::WRITE, 1);
            sqe.set_data(pointer);
            assert_eq!(sqe.data(), pointer);
        }
    }

    #[test]
    fn directions_follow_opcode_and_fabrics_type() {
        assert_eq!(Sqe::new(nvm::READ, 1).direction(), Direction::In);
        assert_eq!(Sqe::new(nvm::WRITE, 1).direction(), Direction::Out);
        assert_eq!(Sqe::new(nvm::DATASET_MANAGEMENT, 1).direction(), Direction::Out);
        assert_eq!(Sqe::new(nvm::COMPARE, 1).direction(), Direction::Out);
        assert_eq!(Sqe::new(nvm::WRITE_ZEROES, 1).direction(), Direction::None);
        assert_eq!(Sqe::fabrics(1).direction(), Direction::Out);
        assert_eq!(Sqe::fabrics(4).direction(), Direction::None);
    }

    #[test]
    fn a_status_keeps_its_parts() {
        let status = NvmeStatus::CONNECT_INVALID_HOST;
        assert_eq!((status.code_type(), status.code(), status.do_not_retry()), (1, 0x84, true));
        assert_eq!(status.to_string(), "status 1h/84h (connect: invalid host), do not retry");
        assert!(Cqe::new(1, NvmeStatus::SUCCESS, 0, 0).status().is_success());
    }
}
