//! Reading text from left to right, and saying where it went wrong.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Text that is no key, mask or action.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("at byte {offset}, before `{rest}`: expected {expected}{}", .hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct ParseError {
    /// Byte of the text where it went wrong.
    pub offset: usize,
    /// The text from there on, shortened.
    pub rest: String,
    /// What belongs there.
    pub expected: String,
    /// What may have been meant.
    pub hint: Option<String>,
}

pub(super) type Result<T> = std::result::Result<T, ParseError>;

#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Cursor<'a> {
        Cursor { text, at: 0 }
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest().is_empty()
    }

    pub(super) fn error(&self, expected: impl Into<String>) -> ParseError {
        let rest = self.rest().chars().take(24).collect();
        ParseError { offset: self.at, rest, expected: expected.into(), hint: None }
    }

    pub(super) fn error_with_hint(&self, expected: impl Into<String>, hint: impl Into<String>) -> ParseError {
        ParseError { hint: Some(hint.into()), ..self.error(expected) }
    }

    /// Goes past the token if it is next.
    pub(super) fn take(&mut self, token: &str) -> bool {
        let is_next = self.rest().starts_with(token);
        if is_next {
            self.at += token.len();
        }
        is_next
    }

    pub(super) fn expect(&mut self, token: &str) -> Result<()> {
        if self.take(token) { Ok(()) } else { Err(self.error(format!("`{token}`"))) }
    }

    /// Past the white space and commas between two attributes.
    pub(super) fn skip_delimiters(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([',', ' ', '\t', '\r', '\n']).len();
    }

    pub(super) fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    pub(super) fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let word = &rest[..rest.find(|c| !belongs(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// The name that is next, without going past it.
    pub(super) fn peek_name(&self) -> &'a str {
        let mut ahead = *self;
        ahead.take_while(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    /// A number up to `max`, decimal or 0x...
    pub(super) fn number(&mut self, max: u64) -> Result<u64> {
        let start = *self;
        let (digits, radix) = if self.take("0x") || self.take("0X") {
            (self.take_while(|c| c.is_ascii_hexdigit()), 16)
        } else {
            (self.take_while(|c| c.is_ascii_digit()), 10)
        };
        let value = u64::from_str_radix(digits, radix).ok().filter(|value| *value <= max);
        value.ok_or_else(|| start.error(format!("a number from 0 to {max:#x}")))
    }

    pub(super) fn number_u128(&mut self) -> Result<u128> {
        let start = *self;
        let (digits, radix) = if self.take("0x") || self.take("0X") {
            (self.take_while(|c| c.is_ascii_hexdigit()), 16)
        } else {
            (self.take_while(|c| c.is_ascii_digit()), 10)
        };
        u128::from_str_radix(digits, radix).map_err(|_| start.error("a number of 128 bits"))
    }

    pub(super) fn mac(&mut self) -> Result<u64> {
        let start = *self;
        let word = self.take_while(|c| c.is_ascii_hexdigit() || c == ':');
        let mut value = 0;
        let mut count = 0;
        for part in word.split(':') {
            let byte = u8::from_str_radix(part, 16).ok().filter(|_| part.len() <= 2);
            value = value << 8 | u64::from(byte.ok_or_else(|| start.error("a MAC address"))?);
            count += 1;
            if count > 6 {
                break;
            }
        }
        if count == 6 { Ok(value) } else { Err(start.error("a MAC address")) }
    }

    pub(super) fn ipv4(&mut self) -> Result<u32> {
        let start = *self;
        let word = self.take_while(|c| c.is_ascii_digit() || c == '.');
        word.parse::<Ipv4Addr>().map(u32::from).map_err(|_| start.error("an IPv4 address"))
    }

    pub(super) fn ipv6(&mut self) -> Result<u128> {
        let start = *self;
        let word = self.take_while(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
        word.parse::<Ipv6Addr>().map(u128::from).map_err(|_| start.error("an IPv6 address"))
    }

    /// Bytes in hexadecimal, two digits each.
    pub(super) fn hex_bytes(&mut self) -> Result<Vec<u8>> {
        let start = *self;
        let digits = self.take_while(|c| c.is_ascii_hexdigit());
        if digits.is_empty() || !digits.len().is_multiple_of(2) {
            return Err(start.error("an even number of hexadecimal digits"));
        }
        let byte = |i| u8::from_str_radix(&digits[i..i + 2], 16).map_err(|_| start.error("hexadecimal digits"));
        (0..digits.len()).step_by(2).map(byte).collect()
    }

    /// The name that resembles the next one most, as a hint.
    pub(super) fn unknown(&self, what: &str, names: &[&str]) -> ParseError {
        let name = self.peek_name();
        let distance = |known: &&&str| strsim::damerau_levenshtein(known, name);
        match names.iter().min_by_key(distance).filter(|known| distance(known) <= 2 && name.len() > 2) {
            Some(known) => self.error_with_hint(what, format!("`{known}`?")),
            None => self.error_with_hint(what, names.join(", ")),
        }
    }
}
