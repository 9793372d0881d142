//! Log pages (Base 5.16) and asynchronous events (Base 5.2).

use super::{Sqe, admin, le16, le64, put_text, text};

/// Log page identifiers (Base figure 202).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogPage {
    /// Changed Namespace List (Base 5.16.1.5): reading it clears the event.
    ChangedNamespaces = 0x04,
    /// Discovery (Base 5.16.1.23).
    Discovery = 0x70,
}

impl Sqe {
    /// Get Log Page of `len` bytes (a multiple of 4) from `offset`.
    pub fn get_log_page(page: LogPage, offset: u64, len: u32) -> Sqe {
        let mut sqe = Sqe::new(admin::GET_LOG_PAGE, super::ALL_NAMESPACES);
        let dwords = len / 4 - 1;
        sqe.set_cdw(10, u32::from(page as u8) | (dwords & 0xFFFF) << 16);
        sqe.set_cdw(11, dwords >> 16);
        sqe.set_cdw(12, offset as u32);
        sqe.set_cdw(13, (offset >> 32) as u32);
        sqe
    }

    /// Identifier, offset and bytes of a Get Log Page; `None` when the length does not fit 32 bits.
    pub fn log_page(&self) -> Option<(u8, u64, u32)> {
        let dwords = u64::from(self.cdw(10) >> 16) | u64::from(self.cdw(11) & 0xFFFF) << 16;
        let len = u32::try_from((dwords + 1) * 4).ok()?;
        Some((self.cdw(10) as u8, u64::from(self.cdw(12)) | u64::from(self.cdw(13)) << 32, len))
    }
}

/// The event that an Asynchronous Event Request completed with (Base figure 146).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// Notice: the namespaces of this controller, or one's attributes, changed.
    NamespaceAttributeChanged,
    /// Notice: the discovery log page changed.
    DiscoveryLogChanged,
    /// Anything else, as dword 0 said it.
    Other(u32),
}

impl AsyncEvent {
    /// Reads dword 0.
    pub fn from_dw0(dw0: u32) -> AsyncEvent {
        match (dw0 & 7, dw0 >> 8 & 0xFF) {
            (2, 0x00) => AsyncEvent::NamespaceAttributeChanged,
            (2, 0xF0) => AsyncEvent::DiscoveryLogChanged,
            _ => AsyncEvent::Other(dw0),
        }
    }

    /// Dword 0 as a target says it: type, information, and the log page that clears it.
    pub fn dw0(self) -> u32 {
        match self {
            AsyncEvent::NamespaceAttributeChanged => 2 | (LogPage::ChangedNamespaces as u32) << 16,
            AsyncEvent::DiscoveryLogChanged => 2 | 0xF0 << 8 | (LogPage::Discovery as u32) << 16,
            AsyncEvent::Other(dw0) => dw0,
        }
    }
}

/// Head of the discovery log page: 1024 bytes (Base figure 263).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscoveryHeader {
    /// GENCTR, 07:00: changes with the log.
    pub generation: u64,
    /// NUMREC, 15:08.
    pub records: u64,
}

impl DiscoveryHeader {
    /// Bytes on the wire, of the header and of each entry.
    pub const LEN: usize = 1024;

    /// Reads the header.
    pub fn parse(bytes: &[u8; DiscoveryHeader::LEN]) -> DiscoveryHeader {
        DiscoveryHeader { generation: le64(bytes, 0), records: le64(bytes, 8) }
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> [u8; DiscoveryHeader::LEN] {
        let mut bytes = [0; DiscoveryHeader::LEN];
        bytes[..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.records.to_le_bytes());
        bytes
    }
}

/// SUBTYPE of a discovery entry (Base figure 264, byte 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsystemType {
    /// Another discovery subsystem: a referral.
    Referral,
    /// A subsystem with namespaces.
    Nvm,
    /// The discovery subsystem itself.
    CurrentDiscovery,
    /// Reserved values, as found.
    Other(u8),
}

/// An entry of the discovery log page: 1024 bytes (Base figure 264).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// TRTYPE, 0: 3 is TCP.
    pub transport: u8,
    /// ADRFAM, 1: 1 IPv4, 2 IPv6.
    pub address_family: u8,
    /// SUBTYPE, 2.
    pub subtype: SubsystemType,
    /// PORTID, 05:04.
    pub port_id: u16,
    /// CNTLID, 07:06.
    pub controller_id: u16,
    /// TRSVCID, 63:32: the port.
    pub trsvcid: String,
    /// SUBNQN, 511:256.
    pub subnqn: String,
    /// TRADDR, 767:512.
    pub traddr: String,
}

impl DiscoveryEntry {
    /// TRTYPE of TCP.
    pub const TCP: u8 = 3;

    /// Reads an entry.
    pub fn parse(bytes: &[u8; DiscoveryHeader::LEN]) -> DiscoveryEntry {
        DiscoveryEntry {
            transport: bytes[0],
            address_family: bytes[1],
            subtype: match bytes[2] {
                1 => SubsystemType::Referral,
                2 => SubsystemType::Nvm,
                3 => SubsystemType::CurrentDiscovery,
                other => SubsystemType::Other(other),
            },
            port_id: le16(bytes, 4),
            controller_id: le16(bytes, 6),
            trsvcid: text(&bytes[32..64]),
            subnqn: text(&bytes[256..512]),
            traddr: text(&bytes[512..768]),
        }
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> [u8; DiscoveryHeader::LEN] {
        let mut bytes = [0; DiscoveryHeader::LEN];
        bytes[0] = self.transport;
        bytes[1] = self.address_family;
        bytes[2] = match self.subtype {
            SubsystemType::Referral => 1,
            SubsystemType::Nvm => 2,
            SubsystemType::CurrentDiscovery => 3,
            SubsystemType::Other(other) => other,
        };
        bytes[4..6].copy_from_slice(&self.port_id.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.controller_id.to_le_bytes());
        bytes[8..10].copy_from_slice(&32u16.to_le_bytes()); // ASQSZ
        put_text(&mut bytes[32..64], &self.trsvcid, b' ');
        put_text(&mut bytes[256..512], &self.subnqn, 0);
        put_text(&mut bytes[512..768], &self.traddr, b' ');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discovery_entries_round_trip() {
        let entry = DiscoveryEntry {
            transport: DiscoveryEntry::TCP,
            address_family: 2,
            subtype: SubsystemType::Referral,
            port_id: 1,
            controller_id: 0xFFFF,
            trsvcid: "8009".into(),
            subnqn: super::super::DISCOVERY_NQN.into(),
            traddr: "::1".into(),
        };
        assert_eq!(DiscoveryEntry::parse(&entry.bytes()), entry);
    }

    #[test]
    fn log_page_length_and_offset_round_trip() {
        let sqe = Sqe::get_log_page(LogPage::Discovery, 0x1_0000_0400, 1 << 20);
        assert_eq!(sqe.log_page(), Some((0x70, 0x1_0000_0400, 1 << 20)));
    }

    #[test]
    fn events_round_trip() {
        for event in [AsyncEvent::NamespaceAttributeChanged, AsyncEvent::DiscoveryLogChanged, AsyncEvent::Other(1)] {
            assert_eq!(AsyncEvent::from_dw0(event.dw0()), event);
        }
    }
}
