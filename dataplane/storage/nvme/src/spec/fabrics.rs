//! Fabrics commands: Connect, Property Get and Set (Base 6), and the controller properties (Base 3.1.3).

use super::{Cqe, NvmeStatus, Sqe, le16, put_text, text};

/// CNTLID of a Connect that lets the target choose the controller (Base 6.3).
pub const DYNAMIC_CONTROLLER: u16 = 0xFFFF;

/// The unit of KAS: keep-alive granularity is in 100 ms (Base figure 275, bytes 321:320).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KasUnits(pub u16);

impl KasUnits {
    /// Milliseconds; 0 where keep-alive is not supported.
    pub fn millis(self) -> u32 {
        u32::from(self.0) * 100
    }
}

/// Controller properties by offset (Base figure 33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// Controller Capabilities, 8 bytes.
    Cap,
    /// Version.
    Vs,
    /// Controller Configuration.
    Cc,
    /// Controller Status.
    Csts,
}

impl Property {
    /// Offset of the property.
    pub fn offset(self) -> u32 {
        match self {
            Property::Cap => 0x00,
            Property::Vs => 0x08,
            Property::Cc => 0x14,
            Property::Csts => 0x1C,
        }
    }

    /// The property at `offset`.
    pub fn at(offset: u32) -> Option<Property> {
        [Property::Cap, Property::Vs, Property::Cc, Property::Csts].into_iter().find(|p| p.offset() == offset)
    }

    fn is_wide(self) -> bool {
        self == Property::Cap
    }
}

/// Bits of Controller Status (Base figure 47).
pub mod csts {
    /// Ready.
    pub const RDY: u32 = 1 << 0;
    /// Controller Fatal Status.
    pub const CFS: u32 = 1 << 1;
    /// Shutdown Status, two bits.
    pub const SHST: u32 = 3 << 2;
    /// Shutdown Status: complete.
    pub const SHUTDOWN_COMPLETE: u32 = 2 << 2;
}

/// Bits of Controller Configuration (Base figure 46).
pub mod cc {
    /// Enable.
    pub const EN: u32 = 1 << 0;
    /// Shutdown Notification: normal.
    pub const SHN_NORMAL: u32 = 1 << 14;
}

/// CC that enables a controller: NVM command set, 4 KiB pages, 64-byte SQEs and 16-byte CQEs (Base figure 46).
pub fn enable_configuration() -> u32 {
    cc::EN | 6 << 16 | 4 << 20
}

impl Sqe {
    /// Connect (Base 6.3): `entries` of the submission queue, keep-alive timeout in milliseconds (admin queue only).
    pub fn connect(queue_id: u16, entries: u16, keep_alive_ms: u32) -> Sqe {
        let mut sqe = Sqe::fabrics(0x01);
        sqe.0[42..44].copy_from_slice(&queue_id.to_le_bytes());
        sqe.0[44..46].copy_from_slice(&(entries - 1).to_le_bytes());
        sqe.0[48..52].copy_from_slice(&keep_alive_ms.to_le_bytes());
        sqe
    }

    /// Queue identifier of a Connect (bytes 43:42).
    pub fn connect_queue_id(&self) -> u16 {
        le16(&self.0, 42)
    }

    /// Submission queue size of a Connect, zero-based (bytes 45:44).
    pub fn connect_sqsize(&self) -> u16 {
        le16(&self.0, 44)
    }

    /// Property Get (Base 6.5).
    pub fn property_get(property: Property) -> Sqe {
        let mut sqe = Sqe::fabrics(0x04);
        sqe.0[40] = u8::from(property.is_wide());
        sqe.set_cdw(11, property.offset());
        sqe
    }

    /// Property Set (Base 6.6).
    pub fn property_set(property: Property, value: u64) -> Sqe {
        let mut sqe = Sqe::fabrics(0x00);
        sqe.0[40] = u8::from(property.is_wide());
        sqe.set_cdw(11, property.offset());
        sqe.0[48..56].copy_from_slice(&value.to_le_bytes());
        sqe
    }
}

/// Connect's data: 1024 bytes (Base figure 382).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// Host Identifier.
    pub host_id: [u8; 16],
    /// Controller ID, [`DYNAMIC_CONTROLLER`] to let the target choose.
    pub controller_id: u16,
    /// NQN of the subsystem.
    pub subnqn: String,
    /// NQN of the host.
    pub hostnqn: String,
}

impl ConnectData {
    /// Bytes on the wire.
    pub const LEN: usize = 1024;

    /// The bytes on the wire.
    pub fn bytes(&self) -> [u8; ConnectData::LEN] {
        let mut bytes = [0; ConnectData::LEN];
        bytes[..16].copy_from_slice(&self.host_id);
        bytes[16..18].copy_from_slice(&self.controller_id.to_le_bytes());
        put_text(&mut bytes[256..512], &self.subnqn, 0);
        put_text(&mut bytes[512..768], &self.hostnqn, 0);
        bytes
    }

    /// Reads the bytes; `None` when there are too few.
    pub fn parse(bytes: &[u8]) -> Option<ConnectData> {
        let bytes = bytes.get(..ConnectData::LEN)?;
        Some(ConnectData {
            host_id: bytes[..16].try_into().expect("sixteen bytes"),
            controller_id: le16(bytes, 16),
            subnqn: text(&bytes[256..512]),
            hostnqn: text(&bytes[512..768]),
        })
    }
}

/// Says in words what a target had against a Connect (Base figure 385: DW0 bits 15:0 IPO, bit 16 IATTR).
pub fn connect_error(cqe: &Cqe) -> String {
    let status = cqe.status();
    if !status.is(NvmeStatus::CONNECT_INVALID_PARAMETERS) {
        return status.to_string();
    }
    let (offset, in_data) = (cqe.dw0() as u16, cqe.dw0() & 1 << 16 != 0);
    let field = match (in_data, offset) {
        (true, 0) => "HOSTID",
        (true, 16) => "CNTLID",
        (true, 256) => "SUBNQN: no such subsystem",
        (true, 512) => "HOSTNQN: this host is not allowed",
        (false, 42) => "QID",
        (false, 44) => "SQSIZE",
        (false, 48) => "KATO",
        _ => "a field",
    };
    format!("{status}: the target refuses {field}, {} {offset}", if in_data { "data offset" } else { "command offset" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_data_round_trips() {
        let data = ConnectData {
            host_id: [7; 16],
            controller_id: DYNAMIC_CONTROLLER,
            subnqn: "nqn.2014-08.org.nvmexpress:uuid:a".into(),
            hostnqn: "nqn.2014-08.org.nvmexpress:uuid:b".into(),
        };
        assert_eq!(ConnectData::parse(&data.bytes()), Some(data));
        assert_eq!(ConnectData::parse(&[0; 1023]), None);
    }

    #[test]
    fn a_refused_connect_names_its_field() {
        let cqe = Cqe::new(1, NvmeStatus::CONNECT_INVALID_PARAMETERS, 1 << 16 | 256, 0);
        assert!(connect_error(&cqe).contains("SUBNQN: no such subsystem"), "{}", connect_error(&cqe));
    }
}
