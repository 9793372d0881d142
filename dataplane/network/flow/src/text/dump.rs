//! A line of a dump.

use super::action::Actions;
use super::cursor::{Cursor, ParseError};
use super::flow_match::FlowMatch;
use crate::cache::Megaflow;
use clock::Cycles;
use std::fmt;

/// How far the hardware does a flow's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Offloaded {
    /// Not at all.
    #[default]
    No,
    /// It classifies, the actions are done here.
    Partial,
    /// Wholly.
    Yes,
}

/// A flow as a line of `dpctl/dump-flows`; with `{:#}` as a line of `dpctl/dump-flows -m`.
#[derive(Clone, Copy, Debug)]
pub struct DumpLine<'a> {
    /// The flow.
    pub flow: &'a Megaflow,
    /// The time, from which `used:` counts.
    pub now: Cycles,
    /// How far it is offloaded; in the long form only.
    pub offloaded: Offloaded,
    /// Which datapath does it; in the long form only.
    pub dp: Option<&'a str>,
}

impl fmt::Display for DumpLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flow = FlowMatch { key: self.flow.key, mask: self.flow.mask };
        let stats = &self.flow.stats;
        if f.alternate() {
            write!(f, "ufid:{}, {flow:#}", Ufid(self.flow.ufid))?;
        } else {
            write!(f, "{flow}")?;
        }
        write!(f, ", packets:{}, bytes:{}, used:", stats.packets, stats.bytes)?;
        if stats.used == Cycles(0) {
            f.write_str("never")?;
        } else {
            write!(f, "{:.3}s", self.now.since(stats.used).to_duration().as_secs_f64())?;
        }
        if stats.tcp_flags != 0 {
            f.write_str(", flags:")?;
            write_tcp_flags(f, stats.tcp_flags)?;
        }
        if f.alternate() {
            match self.offloaded {
                Offloaded::No => {}
                Offloaded::Partial => f.write_str(", offloaded:partial")?,
                Offloaded::Yes => f.write_str(", offloaded:yes")?,
            }
            if let Some(dp) = self.dp {
                write!(f, ", dp:{dp}")?;
            }
        }
        write!(f, ", actions:{}", Actions(&self.flow.actions))
    }
}

/// The flags as tcpdump shows them.
fn write_tcp_flags(f: &mut fmt::Formatter<'_>, flags: u16) -> fmt::Result {
    const LETTERS: [(u16, &str); 12] = [
        (0x02, "S"),
        (0x01, "F"),
        (0x08, "P"),
        (0x04, "R"),
        (0x20, "U"),
        (0x10, "."),
        (0x40, "E"),
        (0x80, "C"),
        (0x100, "N"),
        (0x200, "[200]"),
        (0x400, "[400]"),
        (0x800, "[800]"),
    ];
    LETTERS.iter().filter(|(bit, _)| flags & bit != 0).try_for_each(|(_, letter)| f.write_str(letter))
}

/// A flow's name, as a UUID.
struct Ufid(u128);

impl fmt::Display for Ufid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
    }
}

/// The name at the start of a flow's text, `ufid:UUID`, and the text behind it.
pub fn parse_ufid(text: &str) -> Result<(Option<u128>, &str), ParseError> {
    let mut cursor = Cursor::new(text);
    cursor.skip_spaces();
    if !cursor.take("ufid:") {
        return Ok((None, text));
    }
    let start = cursor;
    let word = cursor.take_while(|c| c.is_ascii_hexdigit() || c == '-');
    let lengths: Vec<usize> = word.split('-').map(str::len).collect();
    let number = u128::from_str_radix(&word.replace('-', ""), 16).ok().filter(|_| lengths == [8, 4, 4, 4, 12]);
    let ufid = number.ok_or_else(|| start.error("a UUID"))?;
    cursor.skip_delimiters();
    Ok((Some(ufid), cursor.rest()))
}
