//! How the fields of a header are written: `name=value`, `name=value/mask`, left out where the mask is 0.

use super::cursor::{Cursor, Result};
use crate::key::{Field, Key, Mask, Wide, field, frag};
use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// 17/0xff
    Dec,
    /// 0x11/0xff, and 0 for 0
    Hex,
    /// 0x0 for 0 as well
    HexPrefixed,
    Mac,
    Ipv4,
    Frag,
}

/// Where the value is.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// A field, and the mask that counts as all of it where it is not the field's own.
    One(Field, Kind, u64),
    /// An IPv6 address.
    Two(Wide),
}

pub(super) type Sub = (&'static str, Place);

const fn one(name: &'static str, field: Field, kind: Kind) -> Sub {
    (name, Place::One(field, kind, field.max()))
}

const fn two(name: &'static str, wide: Wide) -> Sub {
    (name, Place::Two(wide))
}

pub(super) const ETH: &[Sub] = &[one("src", field::ETH_SRC, Kind::Mac), one("dst", field::ETH_DST, Kind::Mac)];
pub(super) const IPV4: &[Sub] = &[
    one("src", field::IPV4_SRC, Kind::Ipv4),
    one("dst", field::IPV4_DST, Kind::Ipv4),
    one("proto", field::NW_PROTO, Kind::Dec),
    one("tos", field::NW_TOS, Kind::Hex),
    one("ttl", field::NW_TTL, Kind::Dec),
    one("frag", field::NW_FRAG, Kind::Frag),
];
pub(super) const IPV6: &[Sub] = &[
    two("src", field::IPV6_SRC),
    two("dst", field::IPV6_DST),
    one("label", field::IPV6_LABEL, Kind::Hex),
    one("proto", field::NW_PROTO, Kind::Dec),
    one("tclass", field::NW_TOS, Kind::Hex),
    one("hlimit", field::NW_TTL, Kind::Dec),
    one("frag", field::NW_FRAG, Kind::Frag),
];
pub(super) const PORTS: &[Sub] = &[one("src", field::TP_SRC, Kind::Dec), one("dst", field::TP_DST, Kind::Dec)];
pub(super) const ICMP: &[Sub] =
    &[("type", Place::One(field::TP_SRC, Kind::Dec, 0xff)), ("code", Place::One(field::TP_DST, Kind::Dec, 0xff))];
pub(super) const ARP: &[Sub] = &[
    one("sip", field::IPV4_SRC, Kind::Ipv4),
    one("tip", field::IPV4_DST, Kind::Ipv4),
    one("op", field::NW_PROTO, Kind::Dec),
    one("sha", field::ARP_SHA, Kind::Mac),
    one("tha", field::ARP_THA, Kind::Mac),
];
pub(super) const ND: &[Sub] =
    &[two("target", field::ND_TARGET), one("sll", field::ARP_SHA, Kind::Mac), one("tll", field::ARP_THA, Kind::Mac)];
pub(super) const ND_EXT: &[Sub] = &[
    one("nd_reserved", field::ND_RESERVED, Kind::HexPrefixed),
    one("nd_options_type", field::ND_OPTIONS_TYPE, Kind::Dec),
];
pub(super) const PACKET_TYPE: &[Sub] =
    &[one("ns", field::PACKET_TYPE_NS, Kind::Dec), one("id", field::PACKET_TYPE_ID, Kind::Hex)];
pub(super) const CT_TUPLE4: &[Sub] = &[
    one("src", field::CT_IPV4_SRC, Kind::Ipv4),
    one("dst", field::CT_IPV4_DST, Kind::Ipv4),
    one("proto", field::CT_PROTO, Kind::Dec),
    one("tp_src", field::CT_TP_SRC, Kind::Dec),
    one("tp_dst", field::CT_TP_DST, Kind::Dec),
];
pub(super) const CT_TUPLE6: &[Sub] = &[
    two("src", field::CT_IPV6_SRC),
    two("dst", field::CT_IPV6_DST),
    one("proto", field::CT_PROTO, Kind::Dec),
    one("src_port", field::CT_TP_SRC, Kind::Dec),
    one("dst_port", field::CT_TP_DST, Kind::Dec),
];
pub(super) const TUNNEL: &[Sub] = &[
    one("tun_id", field::TUN_ID, Kind::HexPrefixed),
    one("src", field::TUN_IPV4_SRC, Kind::Ipv4),
    one("dst", field::TUN_IPV4_DST, Kind::Ipv4),
    two("ipv6_src", field::TUN_IPV6_SRC),
    two("ipv6_dst", field::TUN_IPV6_DST),
    one("tos", field::TUN_TOS, Kind::Hex),
    one("ttl", field::TUN_TTL, Kind::Dec),
    one("tp_src", field::TUN_TP_SRC, Kind::Dec),
    one("tp_dst", field::TUN_TP_DST, Kind::Dec),
];
pub(super) const GBP: &[Sub] = &[one("id", field::GBP_ID, Kind::Dec), one("flags", field::GBP_FLAGS, Kind::Hex)];
pub(super) const GTPU: &[Sub] =
    &[one("flags", field::GTPU_FLAGS, Kind::Hex), one("msgtype", field::GTPU_MSGTYPE, Kind::Dec)];
pub(super) const ERSPAN: &[Sub] = &[
    one("ver", field::ERSPAN_VER, Kind::Dec),
    one("idx", field::ERSPAN_IDX, Kind::Hex),
    one("dir", field::ERSPAN_DIR, Kind::Dec),
    one("hwid", field::ERSPAN_HWID, Kind::Hex),
];
pub(super) const NSH: &[(&str, Field, bool)] = &[
    ("flags", field::NSH_FLAGS, false),
    ("ttl", field::NSH_TTL, false),
    ("mdtype", field::NSH_MDTYPE, false),
    ("np", field::NSH_NP, false),
    ("spi", field::NSH_SPI, true),
    ("si", field::NSH_SI, false),
    ("c1", field::NSH_C[0], true),
    ("c2", field::NSH_C[1], true),
    ("c3", field::NSH_C[2], true),
    ("c4", field::NSH_C[3], true),
];

/// What an attribute with one number in it is: name, header where it can be set, field, and how it is written.
pub(super) const SINGLES: &[(&str, Field, Kind)] = &[
    ("recirc_id", field::RECIRC_ID, Kind::Hex),
    ("dp_hash", field::DP_HASH, Kind::Hex),
    ("skb_priority", field::SKB_PRIORITY, Kind::Hex),
    ("in_port", field::IN_PORT, Kind::Dec),
    ("skb_mark", field::SKB_MARK, Kind::Hex),
    ("ct_zone", field::CT_ZONE, Kind::Hex),
    ("ct_mark", field::CT_MARK, Kind::Hex),
];

/// A value/mask list under way.
pub(super) struct List<'a, W: Write> {
    pub(super) out: &'a mut W,
    first: bool,
}

impl<'a, W: Write> List<'a, W> {
    pub(super) fn new(out: &'a mut W) -> List<'a, W> {
        List { out, first: true }
    }

    /// Goes on as the first item of a list inside this one.
    pub(super) fn nest(&mut self) {
        self.first = true;
    }

    /// Writes the comma before the next item, if it needs one.
    pub(super) fn next(&mut self) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.out.write_char(',')?;
        }
        Ok(())
    }

    pub(super) fn sub(&mut self, (name, place): &Sub, key: &Key, mask: &Mask, verbose: bool) -> fmt::Result {
        let is_wild = match place {
            Place::One(field, ..) => mask.get(*field) == 0,
            Place::Two(wide) => mask.get_wide(*wide) == 0,
        };
        if is_wild && (!verbose || matches!(place, Place::One(_, Kind::Frag, _))) {
            return Ok(());
        }
        self.next()?;
        write!(self.out, "{name}=")?;
        match place {
            Place::One(field, kind, full) => write_one(self.out, *kind, key.get(*field), mask.get(*field), *full),
            Place::Two(wide) => write_ipv6(self.out, key.get_wide(*wide), mask.get_wide(*wide)),
        }
    }

    pub(super) fn subs(&mut self, subs: &[Sub], key: &Key, mask: &Mask, verbose: bool) -> fmt::Result {
        subs.iter().try_for_each(|sub| self.sub(sub, key, mask, verbose))
    }
}

fn write_ipv6(out: &mut impl Write, value: u128, mask: u128) -> fmt::Result {
    write_ipv6_address(out, value)?;
    if mask != u128::MAX {
        out.write_char('/')?;
        write_ipv6_address(out, mask)?;
    }
    Ok(())
}

/// As inet_ntop of the C library writes it: it ends `::x.y.z.w` where Rust writes hexadecimal.
pub(super) fn write_ipv6_address(out: &mut impl Write, value: u128) -> fmt::Result {
    if value >> 32 == 0 && value >> 16 != 0 {
        return write!(out, "::{}", Ipv4Addr::from(value as u32));
    }
    write!(out, "{}", Ipv6Addr::from(value))
}

pub(super) fn write_mac(out: &mut impl Write, value: u64) -> fmt::Result {
    let b = value.to_be_bytes();
    write!(out, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[2], b[3], b[4], b[5], b[6], b[7])
}

/// `%#x` of C: no prefix on 0.
pub(super) fn write_hex(out: &mut impl Write, value: u64) -> fmt::Result {
    if value == 0 { out.write_char('0') } else { write!(out, "{value:#x}") }
}

/// A value, and its mask unless that is all of the field.
pub(super) fn write_one(out: &mut impl Write, kind: Kind, value: u64, mask: u64, full: u64) -> fmt::Result {
    match kind {
        Kind::Dec => write!(out, "{value}")?,
        Kind::Hex => write_hex(out, value)?,
        Kind::HexPrefixed => write!(out, "{value:#x}")?,
        Kind::Mac => write_mac(out, value)?,
        Kind::Ipv4 => write!(out, "{}", Ipv4Addr::from(value as u32))?,
        Kind::Frag => return out.write_str(frag_name(value)),
    }
    if mask & full == full {
        return Ok(());
    }
    out.write_char('/')?;
    match kind {
        Kind::Mac => write_mac(out, mask),
        Kind::Ipv4 => write!(out, "{}", Ipv4Addr::from(mask as u32)),
        Kind::Dec | Kind::Hex | Kind::HexPrefixed | Kind::Frag => write_hex(out, mask & full),
    }
}

fn frag_name(value: u64) -> &'static str {
    match value {
        frag::NO => "no",
        frag::FIRST => "first",
        frag::LATER => "later",
        _ => "<error>",
    }
}

/// Reads one value and its mask.
pub(super) fn parse_one(cursor: &mut Cursor<'_>, kind: Kind, full: u64) -> Result<(u64, u64)> {
    if kind == Kind::Frag {
        let start = *cursor;
        let value = match cursor.take_while(|c| c.is_ascii_alphabetic()) {
            "no" => frag::NO,
            "first" => frag::FIRST,
            "later" => frag::LATER,
            _ => return Err(start.error("`no`, `first` or `later`")),
        };
        return Ok((value, full));
    }
    let value = |cursor: &mut Cursor<'_>| match kind {
        Kind::Mac => cursor.mac(),
        Kind::Ipv4 => cursor.ipv4().map(u64::from),
        Kind::Dec | Kind::Hex | Kind::HexPrefixed | Kind::Frag => cursor.number(full),
    };
    let number = value(cursor)?;
    if !cursor.take("/") {
        return Ok((number, full));
    }
    if kind == Kind::Ipv4
        && let Some(prefix) = prefix(cursor, 32)?
    {
        return Ok((number, u64::from(u32::MAX.checked_shl(32 - prefix).unwrap_or(0))));
    }
    Ok((number, value(cursor)?))
}

/// The length of a prefix, if that is next and not an address.
fn prefix(cursor: &mut Cursor<'_>, max: u32) -> Result<Option<u32>> {
    let mut ahead = *cursor;
    let digits = ahead.take_while(|c| c.is_ascii_hexdigit() || c == '.' || c == ':');
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    cursor.number(max.into()).map(|prefix| Some(prefix as u32))
}

fn parse_ipv6(cursor: &mut Cursor<'_>) -> Result<(u128, u128)> {
    let value = cursor.ipv6()?;
    if !cursor.take("/") {
        return Ok((value, u128::MAX));
    }
    match prefix(cursor, 128)? {
        Some(prefix) => Ok((value, u128::MAX.checked_shl(128 - prefix).unwrap_or(0))),
        None => Ok((value, cursor.ipv6()?)),
    }
}

/// Reads the fields of a header up to and past its closing bracket.
pub(super) fn parse_subs(cursor: &mut Cursor<'_>, subs: &[Sub], key: &mut Key, mask: &mut Mask) -> Result<()> {
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok(());
        }
        parse_sub(cursor, subs, key, mask)?;
    }
}

/// Reads one `name=value/mask`.
pub(super) fn parse_sub(cursor: &mut Cursor<'_>, subs: &[Sub], key: &mut Key, mask: &mut Mask) -> Result<()> {
    let name = cursor.peek_name();
    let Some((_, place)) = subs.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = subs.iter().map(|(known, _)| *known).collect();
        return Err(cursor.unknown("a field of this header or `)`", &names));
    };
    cursor.take(name);
    cursor.expect("=")?;
    match place {
        Place::One(field, kind, full) => {
            let start = *cursor;
            let (value, bits) = parse_one(cursor, *kind, *full)?;
            if value & !field.max() != 0 {
                return Err(start.error(format!("a number from 0 to {:#x}", field.max())));
            }
            key.set(*field, value);
            mask.0.set(*field, bits);
        }
        Place::Two(wide) => {
            let (value, bits) = parse_ipv6(cursor)?;
            key.set_wide(*wide, value);
            mask.0.set_wide(*wide, bits);
        }
    }
    Ok(())
}

/// Flags by name, from bit 0 on; unnamed bits are numbers.
pub(super) fn write_flags(out: &mut impl Write, names: &[&str], flags: u64, mask: u64, full: u64) -> fmt::Result {
    let name = |bit: usize| names.get(bit).copied();
    if mask == full {
        let mut list = (0..64).filter(|bit| flags >> bit & 1 == 1);
        let mut unnamed = 0;
        let mut first = true;
        if flags == 0 {
            return out.write_char('0');
        }
        list.try_for_each(|bit| match name(bit) {
            Some(name) => {
                let separator = if std::mem::take(&mut first) { "" } else { "|" };
                write!(out, "{separator}{name}")
            }
            None => {
                unnamed |= 1u64 << bit;
                Ok(())
            }
        })?;
        return match unnamed {
            0 => Ok(()),
            unnamed => write!(out, "{}{unnamed:#x}", if first { "" } else { "|" }),
        };
    }
    if mask == 0 {
        return out.write_str("0/0");
    }
    (0..64).filter(|bit| mask >> bit & 1 == 1).try_for_each(|bit| {
        let sign = if flags >> bit & 1 == 1 { '+' } else { '-' };
        write!(out, "{sign}{}", name(bit).unwrap_or("[Unknown]"))
    })
}

/// `+a-b`, `a|b`, or value/mask; up to the closing bracket, which stays.
pub(super) fn parse_flags(cursor: &mut Cursor<'_>, names: &[&str], full: u64) -> Result<(u64, u64)> {
    if cursor.rest().starts_with(|c: char| c.is_ascii_digit()) {
        let value = cursor.number(full)?;
        let mask = if cursor.take("/") { cursor.number(u64::MAX >> 32)? & full } else { full };
        return Ok((value, mask));
    }
    let (mut flags, mut mask) = (0, 0);
    let is_signed = cursor.rest().starts_with(['+', '-']);
    loop {
        let set = !cursor.rest().starts_with('-');
        if is_signed && !cursor.take("+") && !cursor.take("-") {
            return Ok((flags, mask));
        }
        let start = *cursor;
        let name = cursor.take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '[' || c == ']');
        let Some(bit) = names.iter().position(|known| *known == name) else {
            return Err(start.unknown("the name of a flag", names));
        };
        flags |= u64::from(set) << bit;
        mask |= 1 << bit;
        if !is_signed && !cursor.take("|") {
            return Ok((flags, full));
        }
    }
}

pub(super) const CT_STATES: &[&str] = &["new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"];
pub(super) const TCP_FLAGS: &[&str] =
    &["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];
pub(super) const TUNNEL_FLAGS: &[&str] = &["oam", "df", "csum", "key"];
