//! The flow key: every field that a flow can match on, packed into 64-bit words.
//!
//! A [`Key`] is flat: a field is a few bits of one word, wider values are two words. Values are held as numbers, not in wire
//! order, so a [`Field`] reads the same from a key, a mask or a packet. The words that nearly every flow looks at come first
//! ([`NARROW`] for IPv4 and layer 2, [`WIDE`] with IPv6), so that a comparison touches one or two cache lines.

use std::fmt;
use std::ops::Deref;

/// Words of a key.
pub const WORDS: usize = 56;
/// The first words: port, Ethernet, VLAN, IPv4 and the transport header.
pub const NARROW: usize = 6;
/// The first words with the addresses of IPv6.
pub const WIDE: usize = 10;
/// Bytes of Geneve options that a flow can match on.
pub const GENEVE_BYTES: usize = 128;
/// Labels of an MPLS stack that a flow can match on.
pub const MPLS_LABELS: usize = 3;
/// VLAN tags that a flow can match on.
pub const VLAN_TAGS: usize = 2;

/// A field: `bits` bits of one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    word: u8,
    shift: u8,
    bits: u8,
}

impl Field {
    const fn new(word: u8, shift: u8, bits: u8) -> Field {
        assert!((word as usize) < WORDS && shift as usize + bits as usize <= 64);
        Field { word, shift, bits }
    }

    /// The word that holds it.
    pub const fn word(self) -> usize {
        self.word as usize
    }

    /// Its largest value; as a mask, all of it.
    pub const fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }
}

/// A value of two words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wide(u8);

impl Wide {
    /// The first of its two words.
    pub const fn word(self) -> usize {
        self.0 as usize
    }
}

/// The fields, in the order of their words.
pub mod field {
    use super::{Field, Wide};

    /// Port that the packet came in by.
    pub const IN_PORT: Field = Field::new(0, 32, 32);
    /// 0 for a packet from a port, else what the `recirc` action gave it.
    pub const RECIRC_ID: Field = Field::new(0, 0, 32);
    /// Destination MAC address.
    pub const ETH_DST: Field = Field::new(1, 16, 48);
    /// Ethertype behind the VLAN tags; 0x5ff where the frame has a length instead.
    pub const ETH_TYPE: Field = Field::new(1, 0, 16);
    /// Source MAC address.
    pub const ETH_SRC: Field = Field::new(2, 16, 48);
    /// IP protocol, or the low 8 bits of ARP's operation.
    pub const NW_PROTO: Field = Field::new(2, 8, 8);
    /// Fragment: [`super::frag`].
    pub const NW_FRAG: Field = Field::new(2, 0, 8);
    /// IPv4 source, or ARP's sender.
    pub const IPV4_SRC: Field = Field::new(3, 32, 32);
    /// IPv4 destination, or ARP's target.
    pub const IPV4_DST: Field = Field::new(3, 0, 32);
    /// TCP, UDP and SCTP source port, or ICMP's type.
    pub const TP_SRC: Field = Field::new(4, 48, 16);
    /// TCP, UDP and SCTP destination port, or ICMP's code.
    pub const TP_DST: Field = Field::new(4, 32, 16);
    /// Name space of the packet type: 0 is Ethernet.
    pub const PACKET_TYPE_NS: Field = Field::new(4, 28, 4);
    /// The 12 flags of TCP.
    pub const TCP_FLAGS: Field = Field::new(4, 16, 12);
    /// DSCP and ECN.
    pub const NW_TOS: Field = Field::new(4, 8, 8);
    /// TTL or hop limit.
    pub const NW_TTL: Field = Field::new(4, 0, 8);
    /// TPID of the VLAN tags, outermost first.
    pub const VLAN_TPID: [Field; 2] = [Field::new(5, 48, 16), Field::new(5, 16, 16)];
    /// TCI of the VLAN tags, with [`super::VLAN_PRESENT`] set; 0 where there is no tag.
    pub const VLAN_TCI: [Field; 2] = [Field::new(5, 32, 16), Field::new(5, 0, 16)];
    /// IPv6 source.
    pub const IPV6_SRC: Wide = Wide(6);
    /// IPv6 destination.
    pub const IPV6_DST: Wide = Wide(8);
    /// IPv6 flow label.
    pub const IPV6_LABEL: Field = Field::new(10, 32, 20);
    /// Packet type within its name space; 0 for Ethernet.
    pub const PACKET_TYPE_ID: Field = Field::new(10, 8, 16);
    /// Type of the first option of a neighbour message.
    pub const ND_OPTIONS_TYPE: Field = Field::new(10, 0, 8);
    /// MPLS label stack entries, outermost first.
    pub const MPLS: [Field; super::MPLS_LABELS] =
        [Field::new(11, 32, 32), Field::new(11, 0, 32), Field::new(12, 32, 32)];
    /// Reserved word, or flags, of a neighbour message.
    pub const ND_RESERVED: Field = Field::new(12, 0, 32);
    /// Sender of ARP, or the source link-layer address of a neighbour message.
    pub const ARP_SHA: Field = Field::new(13, 0, 48);
    /// Target of ARP, or the target link-layer address of a neighbour message.
    pub const ARP_THA: Field = Field::new(14, 0, 48);
    /// Target of a neighbour message.
    pub const ND_TARGET: Wide = Wide(15);
    /// NSH: flags.
    pub const NSH_FLAGS: Field = Field::new(17, 56, 8);
    /// NSH: TTL.
    pub const NSH_TTL: Field = Field::new(17, 48, 8);
    /// NSH: metadata type.
    pub const NSH_MDTYPE: Field = Field::new(17, 40, 8);
    /// NSH: next protocol.
    pub const NSH_NP: Field = Field::new(17, 32, 8);
    /// NSH: service path.
    pub const NSH_SPI: Field = Field::new(17, 8, 24);
    /// NSH: service index.
    pub const NSH_SI: Field = Field::new(17, 0, 8);
    /// NSH: the four context words of metadata type 1.
    pub const NSH_C: [Field; 4] =
        [Field::new(18, 32, 32), Field::new(18, 0, 32), Field::new(19, 32, 32), Field::new(19, 0, 32)];
    /// Priority of the packet inside the host.
    pub const SKB_PRIORITY: Field = Field::new(20, 32, 32);
    /// Mark of the packet inside the host.
    pub const SKB_MARK: Field = Field::new(20, 0, 32);
    /// What the `hash` action computed.
    pub const DP_HASH: Field = Field::new(21, 32, 32);
    /// Connection tracking: mark.
    pub const CT_MARK: Field = Field::new(21, 0, 32);
    /// Connection tracking: state.
    pub const CT_STATE: Field = Field::new(22, 32, 32);
    /// Connection tracking: zone.
    pub const CT_ZONE: Field = Field::new(22, 16, 16);
    /// Connection tracking: protocol of the original direction.
    pub const CT_PROTO: Field = Field::new(22, 8, 8);
    /// Whether the original direction is IPv6: 1, or 0 for IPv4.
    pub const CT_TUPLE6: Field = Field::new(22, 0, 1);
    /// Connection tracking: label.
    pub const CT_LABEL: Wide = Wide(23);
    /// Connection tracking: source of the original direction, IPv6.
    pub const CT_IPV6_SRC: Wide = Wide(25);
    /// Connection tracking: destination of the original direction, IPv6.
    pub const CT_IPV6_DST: Wide = Wide(27);
    /// Connection tracking: source of the original direction, IPv4.
    pub const CT_IPV4_SRC: Field = Field::new(26, 0, 32);
    /// Connection tracking: destination of the original direction, IPv4.
    pub const CT_IPV4_DST: Field = Field::new(28, 0, 32);
    /// Connection tracking: source port of the original direction.
    pub const CT_TP_SRC: Field = Field::new(29, 16, 16);
    /// Connection tracking: destination port of the original direction.
    pub const CT_TP_DST: Field = Field::new(29, 0, 16);
    /// Tunnel: identifier.
    pub const TUN_ID: Field = Field::new(30, 0, 64);
    /// Tunnel: outer IPv4 source.
    pub const TUN_IPV4_SRC: Field = Field::new(31, 32, 32);
    /// Tunnel: outer IPv4 destination.
    pub const TUN_IPV4_DST: Field = Field::new(31, 0, 32);
    /// Tunnel: outer IPv6 source.
    pub const TUN_IPV6_SRC: Wide = Wide(32);
    /// Tunnel: outer IPv6 destination.
    pub const TUN_IPV6_DST: Wide = Wide(34);
    /// Tunnel: [`super::tunnel_flag`].
    pub const TUN_FLAGS: Field = Field::new(36, 48, 16);
    /// Tunnel: outer type of service.
    pub const TUN_TOS: Field = Field::new(36, 40, 8);
    /// Tunnel: outer TTL.
    pub const TUN_TTL: Field = Field::new(36, 32, 8);
    /// Tunnel: outer source port.
    pub const TUN_TP_SRC: Field = Field::new(36, 16, 16);
    /// Tunnel: outer destination port.
    pub const TUN_TP_DST: Field = Field::new(36, 0, 16);
    /// VXLAN group based policy: identifier.
    pub const GBP_ID: Field = Field::new(37, 48, 16);
    /// VXLAN group based policy: flags.
    pub const GBP_FLAGS: Field = Field::new(37, 40, 8);
    /// GTP-U: flags.
    pub const GTPU_FLAGS: Field = Field::new(37, 32, 8);
    /// GTP-U: message type.
    pub const GTPU_MSGTYPE: Field = Field::new(37, 24, 8);
    /// ERSPAN: version.
    pub const ERSPAN_VER: Field = Field::new(37, 16, 8);
    /// ERSPAN 2: direction.
    pub const ERSPAN_DIR: Field = Field::new(37, 8, 8);
    /// ERSPAN 2: hardware.
    pub const ERSPAN_HWID: Field = Field::new(37, 0, 8);
    /// ERSPAN 1: index.
    pub const ERSPAN_IDX: Field = Field::new(38, 32, 32);
    /// Geneve: bytes of options.
    pub const GENEVE_LEN: Field = Field::new(38, 0, 16);
    /// Geneve: first word of the options, as they are on the wire.
    pub const GENEVE: usize = 39;
}

/// Set in the TCI of a VLAN tag that is there, as DPDK and OVS do with the CFI bit.
pub const VLAN_PRESENT: u64 = 0x1000;

/// Values of [`field::NW_FRAG`].
pub mod frag {
    /// Not a fragment.
    pub const NO: u64 = 0;
    /// The first fragment: the transport header is there.
    pub const FIRST: u64 = 1;
    /// A later fragment: no transport header.
    pub const LATER: u64 = 2;
}

/// Bits of [`field::TUN_FLAGS`].
pub mod tunnel_flag {
    /// Operations and maintenance.
    pub const OAM: u64 = 1;
    /// Don't fragment.
    pub const DF: u64 = 2;
    /// Checksummed outside.
    pub const CSUM: u64 = 4;
    /// Has an identifier.
    pub const KEY: u64 = 8;
    /// All of them.
    pub const ALL: u64 = 15;
}

/// The value of every field.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub(crate) words: [u64; WORDS],
}

impl Default for Key {
    fn default() -> Key {
        Key::EMPTY
    }
}

impl Key {
    /// Every field 0.
    pub const EMPTY: Key = Key { words: [0; WORDS] };

    /// The value of a field.
    #[inline]
    pub const fn get(&self, field: Field) -> u64 {
        self.words[field.word()] >> field.shift & field.max()
    }

    /// Sets a field; bits beyond it are dropped.
    #[inline]
    pub const fn set(&mut self, field: Field, value: u64) {
        let word = &mut self.words[field.word()];
        *word = *word & !(field.max() << field.shift) | (value & field.max()) << field.shift;
    }

    /// The value of two words.
    pub const fn get_wide(&self, wide: Wide) -> u128 {
        (self.words[wide.word()] as u128) << 64 | self.words[wide.word() + 1] as u128
    }

    /// Sets two words.
    pub const fn set_wide(&mut self, wide: Wide, value: u128) {
        self.words[wide.word()] = (value >> 64) as u64;
        self.words[wide.word() + 1] = value as u64;
    }

    /// The words, to be hashed or compared.
    pub const fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    /// A bit for each word that is not 0.
    pub fn bitmap(&self) -> u64 {
        self.words.iter().enumerate().fold(0, |map, (i, word)| map | u64::from(*word != 0) << i)
    }

    /// The key with what the mask leaves out set to 0.
    pub fn masked(&self, mask: &Mask) -> Key {
        Key { words: std::array::from_fn(|i| self.words[i] & mask.words[i]) }
    }

    /// Whether this packet's key agrees with `key` where `mask` looks.
    pub fn matches(&self, key: &Key, mask: &Mask) -> bool {
        (0..WORDS).all(|i| (self.words[i] ^ key.words[i]) & mask.words[i] == 0)
    }

    /// The options of Geneve, as they are on the wire.
    pub fn geneve(&self) -> [u8; GENEVE_BYTES] {
        std::array::from_fn(|i| self.words[field::GENEVE + i / 8].to_be_bytes()[i % 8])
    }

    /// Sets the options of Geneve and, in a key, their length. More than [`GENEVE_BYTES`] are cut off.
    pub fn set_geneve(&mut self, options: &[u8]) {
        for (i, byte) in options.iter().take(GENEVE_BYTES).enumerate() {
            let word = &mut self.words[field::GENEVE + i / 8];
            let shift = 56 - i % 8 * 8;
            *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.words.iter().enumerate().filter(|(_, word)| **word != 0);
        f.debug_map().entries(words.map(|(i, word)| (i, format!("{word:#x}")))).finish()
    }
}

/// Which bits of a [`Key`] a flow looks at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Mask(pub Key);

impl Deref for Mask {
    type Target = Key;
    fn deref(&self) -> &Key {
        &self.0
    }
}

impl Mask {
    /// Looks at nothing.
    pub const EMPTY: Mask = Mask(Key::EMPTY);

    /// Looks at everything that tells transport connections apart, and at what says how to read it.
    pub const CONNECTION: Mask = {
        let mut mask = Mask::EMPTY;
        let words = &mut mask.0.words;
        words[0] = u64::MAX;
        words[1] = u64::MAX;
        words[2] = u64::MAX;
        words[3] = u64::MAX;
        words[5] = u64::MAX;
        mask.set_exact_wide(field::IPV6_SRC);
        mask.set_exact_wide(field::IPV6_DST);
        mask.set_exact(field::TP_SRC);
        mask.set_exact(field::TP_DST);
        mask.set_exact(field::PACKET_TYPE_NS);
        mask
    };

    /// Looks at all of a field.
    pub const fn set_exact(&mut self, field: Field) {
        self.0.set(field, field.max());
    }

    /// Looks at all of a two-word value.
    pub const fn set_exact_wide(&mut self, wide: Wide) {
        self.0.set_wide(wide, u128::MAX);
    }

    /// Looks at all of these fields.
    pub fn exact(fields: &[Field]) -> Mask {
        let mut mask = Mask::EMPTY;
        fields.iter().for_each(|field| mask.set_exact(*field));
        mask
    }

    /// What both look at.
    pub fn intersection(&self, other: &Mask) -> Mask {
        Mask(self.0.masked(other))
    }

    /// What either looks at.
    pub fn union(&self, other: &Mask) -> Mask {
        Mask(Key { words: std::array::from_fn(|i| self.words[i] | other.words[i]) })
    }

    /// Whether everything that `self` looks at, `other` looks at as well.
    pub fn is_subset(&self, other: &Mask) -> bool {
        (0..WORDS).all(|i| self.words[i] & !other.words[i] == 0)
    }

    /// Bits looked at.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }
}

/// The key of one packet, with a bitmap of the words that may be other than 0. It is filled by [`crate::extract`] and used
/// again for the next packet, so that nothing but the words in use is ever written.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Miniflow {
    pub(crate) map: u64,
    pub(crate) len: u32,
    pub(crate) hash: u32,
    pub(crate) key: Key,
}

impl Default for Miniflow {
    fn default() -> Miniflow {
        Miniflow { map: 0, len: 0, hash: 0, key: Key::EMPTY }
    }
}

impl Miniflow {
    /// The key.
    #[inline]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// A bit for each word that may be other than 0.
    #[inline]
    pub fn bitmap(&self) -> u64 {
        self.map
    }

    /// Bytes of the packet.
    #[inline]
    pub fn packet_len(&self) -> u32 {
        self.len
    }

    /// The flags of TCP.
    #[inline]
    pub fn tcp_flags(&self) -> u16 {
        self.key.get(field::TCP_FLAGS) as u16
    }
}

impl From<&Key> for Miniflow {
    fn from(key: &Key) -> Miniflow {
        Miniflow { map: key.bitmap(), len: 0, hash: 0, key: *key }
    }
}

impl PartialEq for Miniflow {
    fn eq(&self, other: &Miniflow) -> bool {
        self.key == other.key
    }
}

impl Eq for Miniflow {}

impl fmt::Debug for Miniflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Miniflow").field("len", &self.len).field("key", &self.key).finish()
    }
}
