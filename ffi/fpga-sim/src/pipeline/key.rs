//! Keys of packets and patterns of rules: arrays of bytes with every field in its place.

use std::hash::{Hash, Hasher};

/// Bytes of a key: whole words of eight.
const LEN: usize = PREAMBLE + 2 * LAYER;
const _: () = assert!(LEN.is_multiple_of(8));
/// Bytes before the layers: where the packet comes from, the tunnel between the layers, the one it was taken out of,
/// and what a connection said of it.
const PREAMBLE: usize = 20;
/// Bytes of a layer.
const LAYER: usize = 74;

/// The headers before a tunnel, or those in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The headers of the packet itself.
    Outer,
    /// The headers of the packet that a tunnel carries.
    Inner,
}

/// A place in a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    offset: usize,
    len: usize,
    layered: bool,
}

impl Field {
    const fn new(offset: usize, len: usize) -> Field {
        Field { offset, len, layered: false }
    }

    const fn of_layer(offset: usize, len: usize) -> Field {
        Field { offset: PREAMBLE + offset, len, layered: true }
    }

    pub(crate) fn range(self, layer: Layer) -> std::ops::Range<usize> {
        let inner = self.layered && layer == Layer::Inner;
        let start = self.offset + if inner { LAYER } else { 0 };
        start..start + self.len
    }

    /// Bytes of it.
    pub fn len(self) -> usize {
        self.len
    }

    /// Never: every field has bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// The fields. Values stand as on the wire; `L3` and `L4` are the protocol that was found, 0 for none.
#[allow(missing_docs)] // named after the headers' fields
pub mod field {
    use super::Field;

    pub const SOURCE: Field = Field::new(0, 1);
    pub const SOURCE_PORT: Field = Field::new(1, 2);
    pub const TUNNEL: Field = Field::new(3, 1);
    pub const TUNNEL_FLAGS: Field = Field::new(4, 1);
    pub const VNI: Field = Field::new(5, 3);
    pub const TUNNEL_OPTIONS: Field = Field::new(8, 2);
    pub const TUNNEL_PROTOCOL: Field = Field::new(10, 2);
    pub const LEFT_TUNNEL: Field = Field::new(12, 1);
    /// Bits of [`judged`](crate::pipeline::judged).
    pub const CONNTRACK: Field = Field::new(13, 1);

    pub const ETH_DST: Field = Field::of_layer(0, 6);
    pub const ETH_SRC: Field = Field::of_layer(6, 6);
    pub const ETH_TYPE: Field = Field::of_layer(12, 2);
    pub const VLAN: [(Field, Field); 2] =
        [(Field::of_layer(14, 2), Field::of_layer(16, 2)), (Field::of_layer(18, 2), Field::of_layer(20, 2))];
    pub const L3: Field = Field::of_layer(22, 1);
    pub const L4: Field = Field::of_layer(23, 1);
    /// IPv4's type of service, in the first byte, or IPv6's version, class and label.
    pub const IP_CLASS: Field = Field::of_layer(24, 4);
    pub const IPV4_TOS: Field = Field::of_layer(24, 1);
    pub const IP_TTL: Field = Field::of_layer(28, 1);
    pub const IP_PROTOCOL: Field = Field::of_layer(29, 1);
    pub const IP_FRAGMENT: Field = Field::of_layer(30, 2);
    pub const FRAGMENT_NEXT: Field = Field::of_layer(32, 1);
    pub const PRESENT: Field = Field::of_layer(33, 1);
    pub const IPV4_SRC: Field = Field::of_layer(34, 4);
    pub const IPV6_SRC: Field = Field::of_layer(34, 16);
    pub const IPV4_DST: Field = Field::of_layer(50, 4);
    pub const IPV6_DST: Field = Field::of_layer(50, 16);
    pub const L4_SRC: Field = Field::of_layer(66, 2);
    pub const L4_DST: Field = Field::of_layer(68, 2);
    pub const TCP_FLAGS: Field = Field::of_layer(70, 1);
    pub const SCTP_TAG: Field = Field::of_layer(70, 4);
    pub const ICMP_TYPE: Field = Field::of_layer(66, 1);
    pub const ICMP_CODE: Field = Field::of_layer(67, 1);
    pub const ICMP_IDENT: Field = Field::of_layer(70, 2);
    pub const ICMP_SEQUENCE: Field = Field::of_layer(72, 2);
}

/// Bits of [`field::PRESENT`].
pub mod present {
    /// A VLAN tag.
    pub const VLAN: u8 = 1;
    /// A second one.
    pub const SECOND_VLAN: u8 = 2;
    /// An IPv6 fragment header.
    pub const IPV6_FRAGMENT: u8 = 4;
}

/// Values of [`field::SOURCE`].
pub mod source {
    /// The other side of a port: the wire or a guest function.
    pub const REPRESENTED: u8 = 1;
    /// The host, through a port.
    pub const REPRESENTOR: u8 = 2;
}

/// Values of [`field::TUNNEL`], and of [`field::LEFT_TUNNEL`].
pub mod tunnel {
    /// VXLAN (RFC 7348).
    pub const VXLAN: u8 = 1;
    /// Geneve (RFC 8926).
    pub const GENEVE: u8 = 2;
}

/// All fields of a packet, or a mask over them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; LEN]);

/// A key is long and hashed often: folded to a word first.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let (words, _) = self.0.as_chunks::<8>();
        let fold =
            |hash: u64, word: &[u8; 8]| (hash.rotate_left(5) ^ u64::from_ne_bytes(*word)).wrapping_mul(MULTIPLIER);
        state.write_u64(words.iter().fold(0, fold));
    }
}

impl Default for Key {
    fn default() -> Key {
        Key([0; LEN])
    }
}

impl Key {
    /// Words of eight bytes in it.
    pub(super) const WORDS: usize = LEN / 8;

    pub(super) fn word(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0.as_chunks().0[at])
    }

    /// All its bytes, to put values where [`Field::range`] says.
    #[cfg(feature = "dpdk")]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; LEN] {
        &mut self.0
    }

    /// A field's bytes.
    pub fn get(&self, layer: Layer, field: Field) -> &[u8] {
        &self.0[field.range(layer)]
    }

    /// A field of one byte.
    pub fn byte(&self, layer: Layer, field: Field) -> u8 {
        self.get(layer, field)[0]
    }

    /// Sets a field, or as many bytes of its front as there are.
    pub fn set(&mut self, layer: Layer, field: Field, bytes: &[u8]) {
        let start = field.range(layer).start;
        let len = bytes.len().min(field.len);
        self.0[start..start + len].copy_from_slice(&bytes[..len]);
    }

    /// The key under a mask.
    pub fn masked(&self, mask: &Key) -> Key {
        let mut masked = *self;
        masked.0.iter_mut().zip(&mask.0).for_each(|(byte, mask)| *byte &= mask);
        masked
    }
}

/// The pattern of a rule: values under a mask.
#[derive(Clone, Copy)]
pub struct Pattern {
    value: Key,
    mask: Key,
    whole: bool,
}

impl Default for Pattern {
    fn default() -> Pattern {
        Pattern { value: Key::default(), mask: Key::default(), whole: true }
    }
}

impl Pattern {
    /// Wants a field to be `value` where `mask` has ones.
    pub fn want(&mut self, layer: Layer, field: Field, value: &[u8], mask: &[u8]) {
        let masked: Vec<u8> = value.iter().zip(mask).map(|(value, mask)| value & mask).collect();
        self.value.set(layer, field, &masked);
        self.mask.set(layer, field, mask);
        self.whole &= mask.iter().all(|&byte| byte == 0xff) || mask.iter().all(|&byte| byte == 0);
    }

    /// Wants a header to be there, or not.
    pub fn want_present(&mut self, layer: Layer, bit: u8, there: bool) {
        let at = field::PRESENT.range(layer).start;
        self.mask.0[at] |= bit;
        self.value.0[at] = self.value.0[at] & !bit | if there { bit } else { 0 };
    }

    /// The same with other values, which are zero where the mask is.
    #[must_use]
    pub fn with_value(self, value: Key) -> Pattern {
        Pattern { value, ..self }
    }

    /// The values, zero where the mask is.
    pub fn value(&self) -> &Key {
        &self.value
    }

    /// The mask.
    pub fn mask(&self) -> &Key {
        &self.mask
    }

    /// Whether every field is wanted whole or not at all, as the exact-match table needs it.
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}
