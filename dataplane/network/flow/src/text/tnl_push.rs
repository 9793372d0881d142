//! The `tnl_push` action: the bytes of a tunnel's headers, shown as what they mean.

use super::cursor::{Cursor, Result};
use super::header::{parse_geneve, write_geneve};
use super::value::{write_hex, write_ipv6_address, write_mac};
use crate::action::TnlPush;
use crate::extract::ethertype;
use std::fmt::{self, Write};
use std::net::Ipv4Addr;

/// Numbers of the kinds of tunnel.
mod kind {
    pub(super) const GRE: u64 = 3;
    pub(super) const VXLAN: u64 = 4;
    pub(super) const GENEVE: u64 = 5;
    pub(super) const IP6GRE: u64 = 109;
    pub(super) const SRV6: u64 = 112;
}

/// Most bytes of headers.
const MAX_HEADER: usize = 512;
/// Most bytes of Geneve options.
const MAX_OPTIONS: usize = 252;
const GRE_CSUM: u64 = 0x8000;
const GRE_KEY: u64 = 0x2000;
const GRE_SEQ: u64 = 0x1000;

/// Reads numbers from bytes, 0 past the end.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn number(&self, at: usize, len: usize) -> u64 {
        (at..at + len).fold(0, |value, i| value << 8 | u64::from(self.0.get(i).copied().unwrap_or(0)))
    }

    fn ipv6(&self, at: usize) -> u128 {
        u128::from(self.number(at, 8)) << 64 | u128::from(self.number(at + 8, 8))
    }
}

pub(super) fn write_tnl_push(out: &mut impl Write, push: &TnlPush) -> fmt::Result {
    let bytes = Bytes(&push.header);
    write!(out, "tnl_push(tnl_port({}),header(size={},type={}", push.tnl_port, push.header.len(), push.tnl_type)?;
    out.write_str(",eth(dst=")?;
    write_mac(out, bytes.number(0, 6))?;
    out.write_str(",src=")?;
    write_mac(out, bytes.number(6, 6))?;
    write!(out, ",dl_type=0x{:04x}),", bytes.number(12, 2))?;
    let layer_4 = if bytes.number(12, 2) == u64::from(ethertype::IPV4) {
        let address = |at| Ipv4Addr::from(bytes.number(at, 4) as u32);
        write!(out, "ipv4(src={},dst={},proto={},tos=", address(26), address(30), bytes.number(23, 1))?;
        write_hex(out, bytes.number(15, 1))?;
        write!(out, ",ttl={},frag={:#x}),", bytes.number(22, 1), bytes.number(20, 2))?;
        34
    } else {
        out.write_str("ipv6(src=")?;
        write_ipv6_address(out, bytes.ipv6(22))?;
        out.write_str(",dst=")?;
        write_ipv6_address(out, bytes.ipv6(38))?;
        let first = bytes.number(14, 4);
        write!(out, ",label={},proto={},", first & 0xf_ffff, bytes.number(20, 1))?;
        write!(out, "tclass={:#x},hlimit={}),", first >> 20 & 0xff, bytes.number(21, 1))?;
        54
    };
    write_layer_4(out, push, &bytes, layer_4)?;
    write!(out, "),out_port({}))", push.out_port)
}

fn write_layer_4(out: &mut impl Write, push: &TnlPush, bytes: &Bytes<'_>, at: usize) -> fmt::Result {
    let is_udp = matches!(u64::from(push.tnl_type), kind::VXLAN | kind::GENEVE);
    if is_udp {
        let (src, dst, csum) = (bytes.number(at, 2), bytes.number(at + 2, 2), bytes.number(at + 6, 2));
        write!(out, "udp(src={src},dst={dst},csum={csum:#x}),")?;
    }
    let inner = at + 8;
    match u64::from(push.tnl_type) {
        kind::VXLAN => write!(out, "vxlan(flags={:#x},vni={:#x})", bytes.number(inner, 4), bytes.number(inner + 4, 3)),
        kind::GENEVE => {
            let flags = bytes.number(inner + 1, 1);
            let (oam, critical) =
                (if flags & 0x80 != 0 { "oam," } else { "" }, if flags & 0x40 != 0 { "crit," } else { "" });
            write!(out, "geneve({oam}{critical}vni={:#x}", bytes.number(inner + 4, 3))?;
            let options = push.header.get(inner + 8..).unwrap_or_default();
            let len = (bytes.number(inner, 1) & 0x3f) as usize * 4;
            if len != 0 {
                out.write_str(",options(")?;
                write_geneve(out, options, &vec![0xff; options.len()], len)?;
                out.write_char(')')?;
            }
            out.write_char(')')
        }
        kind::SRV6 => {
            write!(out, "srv6(segments_left={},segs(", bytes.number(at + 3, 1))?;
            let segments = bytes.number(at + 4, 1) as usize + 1;
            for i in 0..segments {
                if i > 0 {
                    out.write_char(',')?;
                }
                write_ipv6_address(out, bytes.ipv6(at + 8 + 16 * (segments - i - 1)))?;
            }
            out.write_str("))")
        }
        _ => {
            let flags = bytes.number(at, 2);
            write!(out, "gre((flags={flags:#x},proto={:#x})", bytes.number(at + 2, 2))?;
            let mut option = at + 4;
            for (flag, name, len) in [(GRE_CSUM, "csum", 2), (GRE_KEY, "key", 4), (GRE_SEQ, "seq", 4)] {
                if flags & flag != 0 {
                    write!(out, ",{name}={:#x}", bytes.number(option, len))?;
                    option += 4;
                }
            }
            out.write_char(')')
        }
    }
}

/// `name=` and a number.
fn value(cursor: &mut Cursor<'_>, name: &str, max: u64) -> Result<u64> {
    cursor.skip_delimiters();
    cursor.expect(name)?;
    cursor.expect("=")?;
    cursor.number(max)
}

fn put(header: &mut Vec<u8>, value: u64, len: usize) {
    header.extend(&value.to_be_bytes()[8 - len..]);
}

pub(super) fn parse_tnl_push(cursor: &mut Cursor<'_>) -> Result<TnlPush> {
    cursor.expect("tnl_port(")?;
    let tnl_port = cursor.number(u32::MAX.into())? as u32;
    cursor.expect("),header(")?;
    let start = *cursor;
    let size = value(cursor, "size", MAX_HEADER as u64)? as usize;
    let tnl_type = value(cursor, "type", u32::MAX.into())?;
    let mut header = Vec::with_capacity(size);
    cursor.expect(",eth(dst=")?;
    put(&mut header, cursor.mac()?, 6);
    cursor.expect(",src=")?;
    put(&mut header, cursor.mac()?, 6);
    let dl_type = value(cursor, "dl_type", 0xffff)?;
    put(&mut header, dl_type, 2);
    cursor.expect("),")?;
    if dl_type == u64::from(ethertype::IPV4) {
        parse_ipv4(cursor, &mut header)?
    } else {
        parse_ipv6(cursor, &mut header)?
    }
    cursor.expect(",")?;
    match tnl_type {
        kind::VXLAN | kind::GENEVE => {
            cursor.expect("udp(")?;
            put(&mut header, value(cursor, "src", 0xffff)?, 2);
            put(&mut header, value(cursor, "dst", 0xffff)?, 2);
            put(&mut header, 0, 2);
            put(&mut header, value(cursor, "csum", 0xffff)?, 2);
            cursor.expect("),")?;
            if tnl_type == kind::VXLAN {
                parse_vxlan(cursor, &mut header)?
            } else {
                parse_geneve_header(cursor, &mut header)?
            }
        }
        kind::SRV6 => parse_srv6(cursor, &mut header)?,
        kind::GRE | kind::IP6GRE => parse_gre(cursor, &mut header)?,
        _ => return Err(start.error("type 3 or 109 (GRE), 4 (VXLAN), 5 (Geneve) or 112 (SRv6)")),
    }
    cursor.expect("),out_port(")?;
    let out_port = cursor.number(u32::MAX.into())? as u32;
    cursor.expect("))")?;
    if header.len() != size {
        return Err(start.error(format!("size={}, which is what these headers have", header.len())));
    }
    Ok(TnlPush { tnl_port, out_port, tnl_type: tnl_type as u32, header })
}

fn parse_ipv4(cursor: &mut Cursor<'_>, header: &mut Vec<u8>) -> Result<()> {
    cursor.expect("ipv4(src=")?;
    let src = cursor.ipv4()?;
    cursor.expect(",dst=")?;
    let dst = cursor.ipv4()?;
    let proto = value(cursor, "proto", 0xff)?;
    let tos = value(cursor, "tos", 0xff)?;
    let ttl = value(cursor, "ttl", 0xff)?;
    let frag = value(cursor, "frag", 0xffff)?;
    cursor.expect(")")?;
    let words =
        [(0x45 << 8 | tos, 2), (0, 4), (frag, 2), (ttl << 8 | proto, 2), (0, 2), (src.into(), 4), (dst.into(), 4)];
    words.iter().for_each(|(value, len)| put(header, *value, *len));
    Ok(())
}

fn parse_ipv6(cursor: &mut Cursor<'_>, header: &mut Vec<u8>) -> Result<()> {
    cursor.expect("ipv6(src=")?;
    let src = cursor.ipv6()?;
    cursor.expect(",dst=")?;
    let dst = cursor.ipv6()?;
    let label = value(cursor, "label", 0xf_ffff)?;
    let proto = value(cursor, "proto", 0xff)?;
    let tclass = value(cursor, "tclass", 0xff)?;
    let hlimit = value(cursor, "hlimit", 0xff)?;
    cursor.expect(")")?;
    put(header, 6 << 28 | tclass << 20 | label, 4);
    put(header, proto << 8 | hlimit, 4);
    header.extend(src.to_be_bytes().iter().chain(&dst.to_be_bytes()));
    Ok(())
}

fn parse_vxlan(cursor: &mut Cursor<'_>, header: &mut Vec<u8>) -> Result<()> {
    cursor.expect("vxlan(")?;
    put(header, value(cursor, "flags", u32::MAX.into())?, 4);
    put(header, value(cursor, "vni", 0xff_ffff)? << 8, 4);
    cursor.expect(")")
}

fn parse_geneve_header(cursor: &mut Cursor<'_>, header: &mut Vec<u8>) -> Result<()> {
    cursor.expect("geneve(")?;
    let oam = u64::from(cursor.take("oam,")) << 7;
    let critical = u64::from(cursor.take("crit,")) << 6;
    let vni = value(cursor, "vni", 0xff_ffff)?;
    let mut options = Vec::new();
    if cursor.take(",options(") {
        options = parse_geneve(cursor, MAX_OPTIONS)?.0;
        cursor.expect(")")?;
    }
    cursor.expect(")")?;
    put(header, (options.len() / 4) as u64, 1);
    put(header, oam | critical, 1);
    put(header, 0x6558, 2);
    put(header, vni << 8, 4);
    header.extend(options);
    Ok(())
}

fn parse_gre(cursor: &mut Cursor<'_>, header: &mut Vec<u8>) -> Result<()> {
    cursor.expect("gre((")?;
    let flags = value(cursor, "flags", 0xffff)?;
    put(header, flags, 2);
    put(header, value(cursor, "proto", 0xffff)?, 2);
    cursor.expect(")")?;
    if flags & GRE_CSUM != 0 {
        put(header, value(cursor, "csum", 0xffff)? << 16, 4);
    }
    for (flag, name) in [(GRE_KEY, "key"), (GRE_SEQ, "seq")] {
        if flags & flag != 0 {
            put(header, value(cursor, name, u32::MAX.into())?, 4);
        }
    }
    cursor.expect(")")
}

/// Segment routing header: RFC 8754, section 2. Its segments are in the header last first.
fn parse_srv6(cursor: &mut Cursor<'_>, header: &mut Vec<u8>) -> Result<()> {
    cursor.expect("srv6(")?;
    let start = *cursor;
    let left = value(cursor, "segments_left", 0xff)?;
    cursor.expect(",segs(")?;
    let mut segments = vec![cursor.ipv6()?];
    while cursor.take(",") {
        segments.push(cursor.ipv6()?);
        if segments.len() * 16 > MAX_HEADER {
            return Err(start.error("fewer segments"));
        }
    }
    cursor.expect("))")?;
    let last = segments.len() as u64 - 1;
    if left > last {
        return Err(start.error("no more segments left than there are"));
    }
    [0, segments.len() as u64 * 2, 4, left].iter().for_each(|byte| put(header, *byte, 1));
    put(header, last << 24, 4);
    segments.iter().rev().for_each(|segment| header.extend(segment.to_be_bytes()));
    Ok(())
}
