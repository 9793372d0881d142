//! Identify data structures (Base 5.17.2, NVM 4.1.5).

use super::{KasUnits, Sqe, admin, le16, le32, le64, put_text, text};
use uuid::Uuid;

/// Bytes of every identify structure.
pub const IDENTIFY_LEN: usize = 4096;

impl Sqe {
    /// Identify with `cns` (Base 5.17): 0 namespace, 1 controller, 2 active namespaces, 3 namespace identifiers.
    pub fn identify(cns: u8, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(admin::IDENTIFY, nsid);
        sqe.set_cdw(10, u32::from(cns));
        sqe
    }
}

/// The fields of Identify Controller (Base figure 275) that the initiator uses. Byte offsets stand at the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentifyController {
    /// SN, 23:04.
    pub serial: String,
    /// MN, 63:24.
    pub model: String,
    /// FR, 71:64.
    pub firmware: String,
    /// MDTS, 77: largest transfer as a power of two of pages; 0 is no limit.
    pub mdts: u8,
    /// CNTLID, 79:78.
    pub controller_id: u16,
    /// OAES, 95:92; bit 8: namespace attribute notices, bit 31: discovery log page change notices.
    pub async_events: u32,
    /// CTRATT, 99:96; bit 6: TBKAS.
    pub attributes: u32,
    /// CNTRLTYPE, 111: 1 I/O, 2 discovery.
    pub controller_type: u8,
    /// KAS, 321:320.
    pub kas: KasUnits,
    /// CQT, 387:386 (Base 2.1, TP4129): milliseconds until a controller that lost its host has stopped all commands; 0 unknown.
    pub command_quiesce_ms: u16,
    /// MAXCMD, 515:514: most commands outstanding on an I/O queue; 0 not said.
    pub max_commands: u16,
    /// ONCS, 521:520; bit 0 compare, 2 dataset management, 3 write zeroes.
    pub optional_commands: u16,
    /// VWC, 525; bit 0: a volatile write cache is present.
    pub write_cache: u8,
    /// SUBNQN, 1023:768.
    pub subnqn: String,
    /// IOCCSZ, 1795:1792: I/O command capsule size in 16 bytes.
    pub io_capsule_units: u32,
    /// ICDOFF, 1801:1800: in-capsule data offset in 16 bytes.
    pub in_capsule_offset_units: u16,
}

impl IdentifyController {
    /// Bit of `optional_commands`: Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Bit of `optional_commands`: Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Bit of `optional_commands`: Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Bit of `attributes`: Traffic Based Keep Alive Support.
    pub const TBKAS: u32 = 1 << 6;

    /// Reads the structure.
    pub fn parse(bytes: &[u8; IDENTIFY_LEN]) -> IdentifyController {
        IdentifyController {
            serial: text(&bytes[4..24]),
            model: text(&bytes[24..64]),
            firmware: text(&bytes[64..72]),
            mdts: bytes[77],
            controller_id: le16(bytes, 78),
            async_events: le32(bytes, 92),
            attributes: le32(bytes, 96),
            controller_type: bytes[111],
            kas: KasUnits(le16(bytes, 320)),
            command_quiesce_ms: le16(bytes, 386),
            max_commands: le16(bytes, 514),
            optional_commands: le16(bytes, 520),
            write_cache: bytes[525],
            subnqn: text(&bytes[768..1024]),
            io_capsule_units: le32(bytes, 1792),
            in_capsule_offset_units: le16(bytes, 1800),
        }
    }

    /// The structure as a target answers it: ours says what it holds and the mandatory fields.
    pub fn bytes(&self) -> Box<[u8; IDENTIFY_LEN]> {
        let mut bytes = Box::new([0; IDENTIFY_LEN]);
        put_text(&mut bytes[4..24], &self.serial, b' ');
        put_text(&mut bytes[24..64], &self.model, b' ');
        put_text(&mut bytes[64..72], &self.firmware, b' ');
        bytes[77] = self.mdts;
        bytes[78..80].copy_from_slice(&self.controller_id.to_le_bytes());
        bytes[80..84].copy_from_slice(&0x0002_0000u32.to_le_bytes()); // VER: 2.0
        bytes[92..96].copy_from_slice(&self.async_events.to_le_bytes());
        bytes[96..100].copy_from_slice(&self.attributes.to_le_bytes());
        bytes[111] = self.controller_type;
        bytes[258] = 3; // ACL: four aborts at once
        bytes[259] = 3; // AERL: four event requests at once
        bytes[320..322].copy_from_slice(&self.kas.0.to_le_bytes());
        bytes[386..388].copy_from_slice(&self.command_quiesce_ms.to_le_bytes());
        bytes[512] = 0x66; // SQES: 64 bytes
        bytes[513] = 0x44; // CQES: 16 bytes
        bytes[514..516].copy_from_slice(&self.max_commands.to_le_bytes());
        bytes[516..520].copy_from_slice(&1024u32.to_le_bytes()); // NN
        bytes[520..522].copy_from_slice(&self.optional_commands.to_le_bytes());
        bytes[525] = self.write_cache;
        bytes[536..540].copy_from_slice(&(1u32 | 1 << 20 | 1 << 21).to_le_bytes()); // SGLS: SGLs, offsets, transport blocks
        put_text(&mut bytes[768..1024], &self.subnqn, 0);
        bytes[1792..1796].copy_from_slice(&self.io_capsule_units.to_le_bytes());
        bytes[1796..1800].copy_from_slice(&1u32.to_le_bytes()); // IORCSZ
        bytes[1803] = 1; // MSDBD: one SGL descriptor
        bytes
    }
}

/// The fields of Identify Namespace (NVM figure 97) that the initiator uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// NSZE, 07:00: blocks.
    pub blocks: u64,
    /// LBADS of the format in use: block size as a power of two.
    pub block_shift: u8,
    /// MS of the format in use: metadata bytes a block.
    pub metadata_bytes: u16,
    /// NPWG, 65:64: preferred write granularity in blocks, zero-based, where NSFEAT bit 4 says so.
    pub write_granularity: u16,
    /// NOWS, 73:72: optimal write size in blocks, zero-based, where NSFEAT bit 4 says so.
    pub optimal_write: u16,
    /// NSATTR, 99; bit 0: write protected now.
    pub write_protected: bool,
    /// NGUID, 119:104.
    pub nguid: [u8; 16],
    /// EUI64, 127:120.
    pub eui64: [u8; 8],
}

impl IdentifyNamespace {
    /// Reads the structure.
    pub fn parse(bytes: &[u8; IDENTIFY_LEN]) -> IdentifyNamespace {
        let flbas = bytes[26];
        let format = 128 + 4 * usize::from(flbas & 0x0F | flbas >> 1 & 0x30);
        let hints = bytes[24] & 1 << 4 != 0;
        IdentifyNamespace {
            blocks: le64(bytes, 0),
            block_shift: bytes[format + 2],
            metadata_bytes: le16(bytes, format),
            write_granularity: if hints { le16(bytes, 64) } else { 0 },
            optimal_write: if hints { le16(bytes, 72) } else { 0 },
            write_protected: bytes[99] & 1 != 0,
            nguid: bytes[104..120].try_into().expect("sixteen bytes"),
            eui64: bytes[120..128].try_into().expect("eight bytes"),
        }
    }

    /// The structure as a target answers it.
    pub fn bytes(&self) -> Box<[u8; IDENTIFY_LEN]> {
        let mut bytes = Box::new([0; IDENTIFY_LEN]);
        for at in [0, 8, 16] {
            bytes[at..at + 8].copy_from_slice(&self.blocks.to_le_bytes()); // NSZE, NCAP, NUSE
        }
        bytes[33] = 1 | 1 << 3; // DLFEAT: deallocated blocks read as zero, and write zeroes may deallocate
        bytes[99] = u8::from(self.write_protected);
        bytes[104..120].copy_from_slice(&self.nguid);
        bytes[120..128].copy_from_slice(&self.eui64);
        bytes[130] = self.block_shift;
        bytes
    }
}

/// Namespace Identification Descriptor list (Base figure 277): the strongest identity a namespace has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceIds {
    /// NIDT 3.
    pub uuid: Option<Uuid>,
    /// NIDT 2.
    pub nguid: Option<[u8; 16]>,
    /// NIDT 1.
    pub eui64: Option<[u8; 8]>,
    /// NIDT 4: command set identifier, 0 for NVM.
    pub csi: u8,
}

impl NamespaceIds {
    /// Reads the list; what it does not know it skips.
    pub fn parse(bytes: &[u8]) -> NamespaceIds {
        let mut ids = NamespaceIds::default();
        let mut rest = bytes;
        while let [kind, len, _, _, tail @ ..] = rest {
            let Some((id, next)) = tail.split_at_checked(usize::from(*len)).filter(|_| *len != 0) else { break };
            match *kind {
                1 => ids.eui64 = id.try_into().ok(),
                2 => ids.nguid = id.try_into().ok(),
                3 => ids.uuid = Uuid::from_slice(id).ok(),
                4 => ids.csi = id[0],
                _ => {}
            }
            rest = next;
        }
        ids
    }

    /// The list as a target answers it.
    pub fn bytes(&self) -> Box<[u8; IDENTIFY_LEN]> {
        let mut list = Vec::new();
        let mut put = |kind: u8, id: &[u8]| {
            list.extend_from_slice(&[kind, id.len() as u8, 0, 0]);
            list.extend_from_slice(id);
        };
        self.eui64.iter().for_each(|id| put(1, id));
        self.nguid.iter().for_each(|id| put(2, id));
        self.uuid.iter().for_each(|id| put(3, id.as_bytes()));
        put(4, &[self.csi]);
        let mut bytes = Box::new([0; IDENTIFY_LEN]);
        bytes[..list.len()].copy_from_slice(&list);
        bytes
    }
}

/// The Active Namespace ID list (CNS 02h): ascending, ended by 0.
pub fn active_namespaces(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|entry| le32(entry, 0)).take_while(|&nsid| nsid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controller_round_trips() {
        let id = IdentifyController {
            serial: "S1".into(),
            model: "M".into(),
            firmware: "1".into(),
            mdts: 5,
            controller_id: 7,
            async_events: 1 << 8,
            attributes: IdentifyController::TBKAS,
            controller_type: 1,
            kas: KasUnits(10),
            command_quiesce_ms: 250,
            max_commands: 128,
            optional_commands: 0xD,
            write_cache: 1,
            subnqn: "nqn.2014-08.org.nvmexpress:uuid:a".into(),
            io_capsule_units: 516,
            in_capsule_offset_units: 0,
        };
        assert_eq!(IdentifyController::parse(&id.bytes()), id);
    }

    #[test]
    fn namespace_round_trips_and_takes_the_format_in_use() {
        let id = IdentifyNamespace { blocks: 1000, block_shift: 12, nguid: [9; 16], ..Default::default() };
        let mut bytes = id.bytes();
        assert_eq!(IdentifyNamespace::parse(&bytes), id);
        bytes[26] = 2;
        bytes[128 + 4 * 2 + 2] = 9;
        assert_eq!(IdentifyNamespace::parse(&bytes).block_shift, 9);
        bytes[26] = 0x6F;
        bytes[128 + 4 * 0x3F + 2] = 13;
        assert_eq!(IdentifyNamespace::parse(&bytes).block_shift, 13);
    }

    #[test]
    fn identifiers_survive_junk() {
        let ids =
            NamespaceIds { uuid: Some(Uuid::from_bytes([3; 16])), nguid: Some([2; 16]), eui64: Some([1; 8]), csi: 0 };
        assert_eq!(NamespaceIds::parse(&ids.bytes()[..]), ids);
        assert_eq!(NamespaceIds::parse(&[3, 255, 0, 0, 1]), NamespaceIds::default());
        assert_eq!(NamespaceIds::parse(&[9, 1, 0, 0, 1, 1, 2, 0, 0, 5, 5]).eui64, None);
    }
}
