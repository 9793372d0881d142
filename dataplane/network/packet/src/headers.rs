//! Where the headers of a frame are.

/// Protocol numbers (IANA).
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const DESTINATION: u8 = 60;
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
const ADDRESSES: usize = 12;
/// VLAN tags that are looked behind.
const MAX_TAGS: usize = 2;
/// Extension headers that are looked behind.
const MAX_EXTENSIONS: usize = 8;

/// The lengths of a frame's headers up to L4, as far as they lie in its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Bytes of the Ethernet header, tags included.
    pub l2_len: usize,
    /// Bytes of the IP header, options and extensions included.
    pub l3_len: usize,
    /// IPv6, else IPv4.
    pub ipv6: bool,
    /// IANA's number of the protocol after the IP header.
    pub protocol: u8,
    /// A fragment: the L4 header is not there, or not for all of its data.
    pub fragment: bool,
}

impl Headers {
    /// Finds the headers of an IP packet in `frame`. `None` when it is none, or they do not lie in it.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Headers> {
        let mut at = ADDRESSES;
        let mut ethertype = be16(frame, at)?;
        for _ in 0..MAX_TAGS {
            if !ETHERTYPE_VLAN.contains(&ethertype) {
                break;
            }
            at += 4;
            ethertype = be16(frame, at)?;
        }
        let l2_len = at + 2;
        match ethertype {
            ETHERTYPE_IPV4 => ipv4(frame, l2_len),
            ETHERTYPE_IPV6 => ipv6(frame, l2_len),
            _ => None,
        }
    }

    /// Where the L4 header starts.
    #[inline(always)]
    pub fn l4_start(&self) -> usize {
        self.l2_len + self.l3_len
    }
}

fn ipv4(frame: &[u8], l2_len: usize) -> Option<Headers> {
    let header = frame.get(l2_len..)?.first_chunk::<20>()?;
    let l3_len = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || l3_len < 20 || frame.len() < l2_len + l3_len {
        return None;
    }
    // More fragments, or an offset.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    Some(Headers { l2_len, l3_len, ipv6: false, protocol: header[9], fragment })
}

fn ipv6(frame: &[u8], l2_len: usize) -> Option<Headers> {
    let header = frame.get(l2_len..)?.first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut next, mut l3_len) = (header[6], 40);
    for _ in 0..MAX_EXTENSIONS {
        let extension = frame.get(l2_len + l3_len..);
        match next {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                let extension = extension?.first_chunk::<8>()?;
                next = extension[0];
                l3_len += (usize::from(extension[1]) + 1) * 8;
            }
            protocol::FRAGMENT => {
                let next = extension?.first_chunk::<8>()?[0];
                return Some(Headers { l2_len, l3_len: l3_len + 8, ipv6: true, protocol: next, fragment: true });
            }
            _ => break,
        }
    }
    (frame.len() >= l2_len + l3_len).then_some(Headers { l2_len, l3_len, ipv6: true, protocol: next, fragment: false })
}

#[inline(always)]
fn be16(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}
