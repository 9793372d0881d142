//! `key=value` text of login and text PDUs ([RFC 7143 § 6.1]).
//!
//! [RFC 7143 § 6.1]: https://www.rfc-editor.org/rfc/rfc7143#section-6.1

/// Bytes of text that one sequence of PDUs may add up to: more is a peer gone wrong.
pub(crate) const MAX_TEXT: usize = 64 * 1024;

/// Text under construction: `key=value` pairs, each with a zero byte at its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pairs(Vec<u8>);

impl Pairs {
    pub(crate) fn push(&mut self, key: &str, value: impl std::fmt::Display) {
        use std::io::Write as _;
        write!(self.0, "{key}={value}\0").expect("a vector takes every byte");
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Why text cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A pair without a `=`, or that is not UTF-8.
    #[error("text {0:?} is not key=value")]
    NotAPair(String),
    /// A key longer than 63 bytes (6.1).
    #[error("a key of {0} bytes, at most 63 are allowed")]
    KeyTooLong(usize),
    /// A sequence of PDUs with too much text.
    #[error("text of more than {MAX_TEXT} bytes")]
    TooLong,
}

/// The pairs of a complete text.
pub(crate) fn parse(bytes: &[u8]) -> impl Iterator<Item = Result<(&str, &str), TextError>> {
    bytes.split(|b| *b == 0).filter(|pair| !pair.is_empty()).map(|pair| {
        let not_a_pair = || TextError::NotAPair(String::from_utf8_lossy(&pair[..pair.len().min(80)]).into_owned());
        let text = std::str::from_utf8(pair).map_err(|_| not_a_pair())?;
        let (key, value) = text.split_once('=').ok_or_else(not_a_pair)?;
        if key.len() > 63 {
            return Err(TextError::KeyTooLong(key.len()));
        }
        Ok((key, value))
    })
}

/// Adds the text of one PDU to what came before, within the bound.
pub(crate) fn append(text: &mut Vec<u8>, segment: &[u8]) -> Result<(), TextError> {
    if text.len() + segment.len() > MAX_TEXT {
        return Err(TextError::TooLong);
    }
    text.extend_from_slice(segment);
    Ok(())
}

/// A number, decimal or hexadecimal with `0x` (6.1, numerical-value).
pub(crate) fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

/// A binary value: hexadecimal with `0x`, base64 with `0b` (6.1, binary-value).
pub(crate) fn binary(value: &str) -> Option<Vec<u8>> {
    let (prefix, digits) = value.split_at_checked(2)?;
    match prefix {
        "0x" | "0X" => hex(digits),
        "0b" | "0B" => base64(digits),
        _ => None,
    }
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let nibbles: Option<Vec<u8>> = digits.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let mut nibbles = nibbles?;
    if nibbles.len() % 2 == 1 {
        nibbles.insert(0, 0);
    }
    Some(nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn base64(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.trim_end_matches('=');
    let (mut bytes, mut bits, mut pending) = (Vec::with_capacity(digits.len() * 3 / 4), 0u32, 0);
    for c in digits.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        pending += 6;
        if pending >= 8 {
            pending -= 8;
            bytes.push((bits >> pending) as u8);
        }
    }
    Some(bytes)
}

/// Bytes as a hexadecimal value.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes every character");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_read_back() {
        let mut pairs = Pairs::default();
        pairs.push("HeaderDigest", "CRC32C,None");
        pairs.push("MaxBurstLength", 262_144);
        let bytes = pairs.into_bytes();
        let read: Vec<_> = parse(&bytes).map(Result::unwrap).collect();
        assert_eq!(read, [("HeaderDigest", "CRC32C,None"), ("MaxBurstLength", "262144")]);
    }

    #[test]
    fn bad_text_is_named() {
        assert_eq!(parse(b"nonsense\0").next(), Some(Err(TextError::NotAPair("nonsense".into()))));
        assert!(matches!(parse(b"\xff=\0").next(), Some(Err(TextError::NotAPair(_)))));
        let long = format!("{}=1\0", "k".repeat(64));
        assert_eq!(parse(long.as_bytes()).next(), Some(Err(TextError::KeyTooLong(64))));
        assert_eq!(append(&mut vec![0; MAX_TEXT], b"x"), Err(TextError::TooLong));
    }

    #[test]
    fn binary_values_are_hex_or_base64() {
        assert_eq!(binary("0x00ffA5"), Some(vec![0, 0xff, 0xa5]));
        assert_eq!(binary("0xfff"), Some(vec![0x0f, 0xff]));
        assert_eq!(binary("0bAP+l"), Some(vec![0, 0xff, 0xa5]));
        assert_eq!(binary("0bAP8="), Some(vec![0, 0xff]));
        assert_eq!(binary("0xzz"), None);
        assert_eq!(binary("0b*"), None);
        assert_eq!(binary("12"), None);
        assert_eq!(binary(&to_hex(&[1, 2, 0xfe])), Some(vec![1, 2, 0xfe]));
        assert_eq!((number("0x10"), number("16"), number("x")), (Some(16), Some(16), None));
    }
}
