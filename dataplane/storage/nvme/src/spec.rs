//! What the specifications define, as types: commands, completions, identify structures, log pages and Fabrics commands.
//!
//! "Base" is the NVM Express Base Specification 2.0, "NVM" the NVM Command Set Specification 1.0, "TCP" the TCP Transport
//! Specification 1.0 (<https://nvmexpress.org/specifications/>). Byte views come first, meaning second: unknown values pass
//! through unchanged.

mod command;
mod fabrics;
mod identify;
mod log;

pub use command::{Cqe, DataPointer, Direction, DsmRange, NvmeStatus, Sqe, admin, feature, nvm};
pub use fabrics::{ConnectData, DYNAMIC_CONTROLLER, KasUnits, Property, cc, connect_error, csts, enable_configuration};
pub use identify::{IDENTIFY_LEN, IdentifyController, IdentifyNamespace, NamespaceIds, active_namespaces};
pub use log::{AsyncEvent, DiscoveryEntry, DiscoveryHeader, LogPage, SubsystemType};

/// The discovery subsystem's well-known name (Base 3.1.3.3).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Bytes of a qualified name at most (Base 4.5).
pub const MAX_NQN_BYTES: usize = 223;
/// The NSID that means all namespaces (Base 3.2.1.2).
pub const ALL_NAMESPACES: u32 = 0xFFFF_FFFF;

#[inline(always)]
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

#[inline(always)]
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline(always)]
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Text in a fixed field: ends at a NUL, trailing spaces dropped, what is not UTF-8 replaced.
pub(crate) fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).trim_end().to_owned()
}

/// Copies `value` into a fixed field, cut at its end.
pub(crate) fn put_text(field: &mut [u8], value: &str, fill: u8) {
    field.fill(fill);
    let len = value.len().min(field.len());
    field[..len].copy_from_slice(&value.as_bytes()[..len]);
}
