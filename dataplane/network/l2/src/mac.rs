//! MAC addresses and IP prefixes as operators write them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A MAC address; the low 48 bits, as a flow key holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(u64);

impl Mac {
    /// An address from the low 48 bits of a key's field.
    pub const fn new(bits: u64) -> Mac {
        Mac(bits & 0xffff_ffff_ffff)
    }

    /// As a key's field holds it.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// In the order of the wire.
    pub const fn octets(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// A group address: broadcast or multicast.
    pub const fn is_group(self) -> bool {
        self.0 >> 40 & 1 == 1
    }

    /// Whether one station can have it: neither a group address nor zero.
    pub const fn is_station(self) -> bool {
        !self.is_group() && self.0 != 0
    }

    /// 01:80:c2:00:00:00 to 0f: a bridge keeps these to the link (IEEE 802.1Q, table 8-1).
    pub const fn is_link_local(self) -> bool {
        self.0 >> 4 == 0x0180_c200_0000 >> 4
    }
}

impl From<[u8; 6]> for Mac {
    fn from(bytes: [u8; 6]) -> Mac {
        Mac(bytes.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, _, a, b, c, d, e, g] = self.0.to_be_bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is none of what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("got {got:?}, expected {expected}")]
pub struct ParseError {
    /// The text.
    pub got: String,
    /// What is accepted.
    pub expected: &'static str,
}

impl FromStr for Mac {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Mac, ParseError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let ok = bytes.iter_mut().all(|byte| {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()));
            part.and_then(|part| u8::from_str_radix(part, 16).ok()).map(|value| *byte = value).is_some()
        });
        if ok && parts.next().is_none() {
            Ok(bytes.into())
        } else {
            Err(ParseError { got: text.to_owned(), expected: "a MAC address such as 52:54:00:12:34:56" })
        }
    }
}

/// An IP address, or all addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPrefix {
    address: IpAddr,
    len: u8,
}

impl IpPrefix {
    /// Whether an IPv4 address is one of them.
    pub fn contains_v4(&self, address: u32) -> bool {
        let IpAddr::V4(own) = self.address else { return false };
        let mask = u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0);
        (u32::from(own) ^ address) & mask == 0
    }

    /// Whether an IPv6 address is one of them.
    pub fn contains_v6(&self, address: u128) -> bool {
        let IpAddr::V6(own) = self.address else { return false };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
        (u128::from(own) ^ address) & mask == 0
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = if self.address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
        match u32::from(self.len) {
            len if len == full => write!(f, "{}", self.address),
            len => write!(f, "{}/{len}", self.address),
        }
    }
}

impl FromStr for IpPrefix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<IpPrefix, ParseError> {
        let error = || ParseError {
            got: text.to_owned(),
            expected: "an IP address, or a prefix such as 10.0.0.0/24 or fd00::/64",
        };
        let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let full = if address.is_ipv4() { 32 } else { 128 };
        let len = len.map_or(Ok(full), |len| len.parse().map_err(|_| error()))?;
        if len > full { Err(error()) } else { Ok(IpPrefix { address, len }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let mac: Mac = "52:54:00:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        assert_eq!(Mac::from([0x52, 0x54, 0, 0xab, 0xcd, 0x0f]), mac);
        assert!(mac.is_station() && !mac.is_group());
        for bad in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:0f:00", "52:54:00:ab:cd:+f", "52-54-00-ab-cd-0f", "é:0"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert!("01:80:c2:00:00:0e".parse::<Mac>().unwrap().is_link_local());
        assert!(!"01:80:c2:00:00:10".parse::<Mac>().unwrap().is_link_local());
    }

    #[test]
    fn prefixes_hold_what_is_in_them() {
        let net: IpPrefix = "10.1.0.0/16".parse().unwrap();
        assert!(net.contains_v4(0x0a01_ffff) && !net.contains_v4(0x0a02_0000) && !net.contains_v6(0));
        let all: IpPrefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains_v4(u32::MAX));
        let one: IpPrefix = "fd00::1".parse().unwrap();
        assert!(one.contains_v6(0xfd00 << 112 | 1) && !one.contains_v6(0xfd00 << 112 | 2));
        assert_eq!((net.to_string(), one.to_string()), ("10.1.0.0/16".to_owned(), "fd00::1".to_owned()));
        for bad in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.1/", "x"] {
            assert!(bad.parse::<IpPrefix>().is_err(), "{bad}");
        }
    }
}
