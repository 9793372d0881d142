//! The Toeplitz hash, by which network cards spread connections over queues.

use super::key::{Key, Layer, field};

/// Bytes of its key.
pub const KEY_LEN: usize = 40;

/// The key of Microsoft's receive-side scaling specification, which most cards have by default.
pub const DEFAULT_KEY: [u8; KEY_LEN] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

/// The hash of a packet's addresses and, if wanted and there, ports. Nothing for what is not IP.
pub fn hash(rss_key: &[u8; KEY_LEN], packet: &Key, ports: bool) -> Option<u32> {
    use super::parse::protocol::{TCP, UDP};
    let (source, destination) = match packet.byte(Layer::Outer, field::L3) {
        4 => (field::IPV4_SRC, field::IPV4_DST),
        6 => (field::IPV6_SRC, field::IPV6_DST),
        _ => return None,
    };
    let mut input = [packet.get(Layer::Outer, source), packet.get(Layer::Outer, destination)].concat();
    if ports && matches!(packet.byte(Layer::Outer, field::L4), TCP | UDP) {
        input.extend_from_slice(packet.get(Layer::Outer, field::L4_SRC));
        input.extend_from_slice(packet.get(Layer::Outer, field::L4_DST));
    }
    Some(toeplitz(rss_key, &input))
}

fn toeplitz(key: &[u8; KEY_LEN], input: &[u8]) -> u32 {
    let mut result = 0;
    let mut window = u32::from_be_bytes([key[0], key[1], key[2], key[3]]);
    for (index, byte) in input.iter().enumerate() {
        for bit in (0..8).rev() {
            if byte >> bit & 1 == 1 {
                result ^= window;
            }
            window = window << 1 | u32::from(key[(index + 4) % KEY_LEN] >> bit & 1);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that Microsoft's specification gives to verify an implementation.
    #[test]
    fn hashes_are_those_of_the_specification() {
        let addresses = [66, 9, 149, 187, 161, 142, 100, 80];
        assert_eq!(toeplitz(&DEFAULT_KEY, &addresses), 0x323e_8fc2);
        let with_ports = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&DEFAULT_KEY, &with_ports), 0x51cc_c178);
    }
}
