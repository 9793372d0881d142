//! Headers whose text is not a plain list of fields: VLAN, MPLS, NSH, tunnels. Reading and writing of each stand together.

use super::cursor::{Cursor, Result};
use super::value::{
    ERSPAN, GBP, GTPU, Kind, List, NSH, TUNNEL, TUNNEL_FLAGS, parse_flags, parse_one, parse_sub, parse_subs,
    write_flags, write_one,
};
use crate::key::{GENEVE_BYTES, Key, MPLS_LABELS, Mask, VLAN_PRESENT, field, tunnel_flag};
use std::fmt::{self, Write};

const VID: u64 = 0x0fff;
const PCP_SHIFT: u32 = 13;

/// The inside of `vlan(...)` and `push_vlan(...)`.
pub(super) fn write_vlan(out: &mut impl Write, tci: u64, mask: u64, verbose: bool) -> fmt::Result {
    let mut list = List::new(out);
    let parts = [("vid", tci & VID, mask & VID, VID), ("pcp", tci >> PCP_SHIFT, mask >> PCP_SHIFT, 7)];
    for (name, value, mask, full) in parts {
        if verbose || value != 0 || mask != 0 {
            list.next()?;
            write!(list.out, "{name}={value}")?;
            if mask != full {
                write!(list.out, "/{mask:#x}")?;
            }
        }
    }
    if tci & VLAN_PRESENT == 0 {
        list.next()?;
        list.out.write_str("cfi=0")?;
    }
    Ok(())
}

/// One of `vid=`, `pcp=`, `cfi=` into a TCI and its mask.
pub(super) fn parse_vlan_part(cursor: &mut Cursor<'_>, tci: &mut u64, mask: &mut u64) -> Result<()> {
    const PARTS: &[&str] = &["vid", "pcp", "cfi"];
    let name = cursor.peek_name();
    let Some(part) = PARTS.iter().position(|known| *known == name) else {
        return Err(cursor.unknown("a field of a VLAN tag or `)`", PARTS));
    };
    cursor.take(name);
    cursor.expect("=")?;
    let (shift, full) = [(0, VID), (PCP_SHIFT, 7), (12, 1)][part];
    let (value, bits) = parse_one(cursor, Kind::Dec, full)?;
    *tci = *tci & !(full << shift) | value << shift;
    *mask = *mask & !(full << shift) | bits << shift;
    Ok(())
}

/// What is in the brackets of `vlan(`: TCI and mask. The tag is there unless it says cfi=0.
pub(super) fn parse_vlan(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let (mut tci, mut mask) = (VLAN_PRESENT, VLAN_PRESENT);
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok((tci, mask));
        }
        parse_vlan_part(cursor, &mut tci, &mut mask)?;
    }
}

/// Name, shift and width of the parts of a label stack entry.
const LSE: &[(&str, u32, u64)] = &[("label", 12, 0xf_ffff), ("tc", 9, 7), ("ttl", 0, 0xff), ("bos", 8, 1)];

pub(super) fn write_lse(out: &mut impl Write, lse: u64) -> fmt::Result {
    let part = |i: usize| lse >> LSE[i].1 & LSE[i].2;
    write!(out, "label={},tc={},ttl={},bos={}", part(0), part(1), part(2), part(3))
}

/// The entries of a stack: up to the bottom, or to the last that is known.
fn stack_depth(key: &Key, mask: &Mask) -> usize {
    let bottom = field::MPLS.iter().position(|entry| key.get(*entry) & 0x100 != 0);
    let looked_at = field::MPLS.iter().rposition(|entry| mask.get(*entry) != 0 || key.get(*entry) != 0);
    bottom.map_or(looked_at.unwrap_or(0), |bottom| bottom.min(looked_at.unwrap_or(0))) + 1
}

pub(super) fn write_mpls(out: &mut impl Write, key: &Key, mask: &Mask) -> fmt::Result {
    let entries = &field::MPLS[..stack_depth(key, mask)];
    let is_exact = entries.iter().all(|entry| mask.get(*entry) == entry.max());
    let mut list = List::new(out);
    for entry in entries {
        list.next()?;
        let (lse, mask) = (key.get(*entry), mask.get(*entry));
        if is_exact {
            write_lse(list.out, lse)?;
            continue;
        }
        let part = |i: usize| (lse >> LSE[i].1 & LSE[i].2, mask >> LSE[i].1 & LSE[i].2);
        let [(label, label_mask), (tc, tc_mask), (ttl, ttl_mask), (bos, bos_mask)] = [0, 1, 2, 3].map(part);
        write!(list.out, "label={label}/{label_mask:#x},tc={tc}/{tc_mask:x},ttl={ttl}/{ttl_mask:#x}")?;
        write!(list.out, ",bos={bos}/{bos_mask:x}")?;
    }
    Ok(())
}

/// One `name=value/mask` of a label stack entry.
pub(super) fn parse_lse_part(cursor: &mut Cursor<'_>, lse: &mut u64, mask: &mut u64) -> Result<usize> {
    let name = cursor.peek_name();
    let Some(part) = LSE.iter().position(|(known, ..)| *known == name) else {
        return Err(cursor.unknown("a field of a label or `)`", &["label", "tc", "ttl", "bos"]));
    };
    cursor.take(name);
    cursor.expect("=")?;
    let (_, shift, full) = LSE[part];
    let (value, bits) = parse_one(cursor, Kind::Dec, full)?;
    *lse = *lse & !(full << shift) | value << shift;
    *mask = *mask & !(full << shift) | bits << shift;
    Ok(part)
}

/// What is in the brackets of `mpls(`. A field that comes again begins the next entry.
pub(super) fn parse_mpls(cursor: &mut Cursor<'_>, key: &mut Key, mask: &mut Mask) -> Result<()> {
    let mut entry = 0;
    let mut seen = [false; 4];
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok(());
        }
        let start = *cursor;
        let mut ahead = *cursor;
        let part = parse_lse_part(&mut ahead, &mut 0, &mut 0)?;
        if seen[part] {
            entry += 1;
            seen = [false; 4];
        }
        if entry == MPLS_LABELS {
            return Err(start.error("no more than three labels"));
        }
        seen[part] = true;
        let (mut lse, mut bits) = (key.get(field::MPLS[entry]), mask.get(field::MPLS[entry]));
        parse_lse_part(cursor, &mut lse, &mut bits)?;
        key.set(field::MPLS[entry], lse);
        mask.0.set(field::MPLS[entry], bits);
    }
}

pub(super) fn write_nsh(out: &mut impl Write, key: &Key, mask: &Mask) -> fmt::Result {
    let mut list = List::new(out);
    for (name, field, is_hex) in NSH {
        let (value, bits) = (key.get(*field), mask.get(*field));
        if bits == 0 {
            continue;
        }
        list.next()?;
        match (is_hex, bits == field.max()) {
            (false, true) => write!(list.out, "{name}={value}")?,
            (false, false) => write!(list.out, "{name}={value:#04x}/{bits:#04x}")?,
            (true, true) => write!(list.out, "{name}={value:#x}")?,
            (true, false) => write!(list.out, "{name}={value:#x}/{bits:#010x}")?,
        }
    }
    Ok(())
}

pub(super) fn parse_nsh(cursor: &mut Cursor<'_>, key: &mut Key, mask: &mut Mask) -> Result<()> {
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok(());
        }
        let name = cursor.peek_name();
        let Some((_, field, _)) = NSH.iter().find(|(known, ..)| *known == name) else {
            let names: Vec<&str> = NSH.iter().map(|(known, ..)| *known).collect();
            return Err(cursor.unknown("a field of NSH or `)`", &names));
        };
        cursor.take(name);
        cursor.expect("=")?;
        let (value, bits) = parse_one(cursor, Kind::Dec, field.max())?;
        key.set(*field, value);
        mask.0.set(*field, bits);
    }
}

/// Whether anything of a tunnel is in the key or looked at.
pub(super) fn has_tunnel(key: &Key, mask: &Mask) -> bool {
    let tunnel = field::TUN_ID.word()..;
    key.words[tunnel.clone()].iter().chain(&mask.words[tunnel]).any(|word| *word != 0)
}

pub(super) fn write_tunnel(out: &mut impl Write, key: &Key, mask: &Mask, verbose: bool) -> fmt::Result {
    let mut list = List::new(out);
    list.subs(TUNNEL, key, mask, false)?;
    let looks_at = |subs: &[(&str, super::value::Place)]| {
        subs.iter().any(|(_, place)| matches!(place, super::value::Place::One(field, ..) if mask.get(*field) != 0))
    };
    for (name, end, subs) in [("vxlan(gbp(", "))", GBP), ("gtpu(", ")", GTPU), ("erspan(", ")", ERSPAN)] {
        if looks_at(subs) {
            list.next()?;
            list.out.write_str(name)?;
            List::new(list.out).subs(subs, key, mask, verbose)?;
            list.out.write_str(end)?;
        }
    }
    if mask.get(field::GENEVE_LEN) != 0 {
        list.next()?;
        list.out.write_str("geneve(")?;
        write_geneve(list.out, &key.geneve(), &mask.geneve(), key.get(field::GENEVE_LEN) as usize)?;
        list.out.write_str(")")?;
    }
    let (flags, bits) = (key.get(field::TUN_FLAGS), mask.get(field::TUN_FLAGS) & tunnel_flag::ALL);
    if verbose || bits != 0 {
        list.next()?;
        list.out.write_str("flags(")?;
        write_flags(list.out, TUNNEL_FLAGS, flags, bits, tunnel_flag::ALL)?;
        list.out.write_str(")")?;
    }
    Ok(())
}

/// Bytes of an option before its data: class, type, length.
const GENEVE_HEADER: usize = 4;

/// The options: `{class=..,type=..,len=..,DATA/MASK}` each.
pub(super) fn write_geneve(out: &mut impl Write, options: &[u8], mask: &[u8], len: usize) -> fmt::Result {
    let end = len.min(options.len());
    let mut at = 0;
    while at + GENEVE_HEADER <= end {
        let data_len = usize::from(options[at + 3] & 0x1f) * 4;
        let next = at + GENEVE_HEADER + data_len;
        if next > end {
            break;
        }
        let class = u64::from(options[at]) << 8 | u64::from(options[at + 1]);
        let class_mask = u64::from(mask[at]) << 8 | u64::from(mask[at + 1]);
        let len_mask = if mask[at + 3] & 0x1f == 0x1f { 0xff } else { u64::from(mask[at + 3] & 0x1f) };
        out.write_char('{')?;
        let mut list = List::new(out);
        let parts = [
            ("class", Kind::Hex, class, class_mask, 0xffff),
            ("type", Kind::Hex, options[at + 2].into(), mask[at + 2].into(), 0xff),
            ("len", Kind::Dec, data_len as u64, len_mask, 0xff),
        ];
        for (name, kind, value, bits, full) in parts.into_iter().filter(|(_, _, _, bits, _)| *bits != 0) {
            list.next()?;
            write!(list.out, "{name}=")?;
            write_one(list.out, kind, value, bits, full)?;
        }
        let (data, bits) = (&options[at + GENEVE_HEADER..next], &mask[at + GENEVE_HEADER..next]);
        if bits.iter().any(|byte| *byte != 0) {
            list.next()?;
            write_hex_number(list.out, data)?;
            if bits.iter().any(|byte| *byte != 0xff) {
                list.out.write_char('/')?;
                write_hex_number(list.out, bits)?;
            }
        }
        out.write_char('}')?;
        at = next;
    }
    Ok(())
}

/// A number of any length, without leading zeros.
pub(super) fn write_hex_number(out: &mut impl Write, bytes: &[u8]) -> fmt::Result {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match digits.trim_start_matches('0') {
        "" => out.write_str("0x0"),
        digits => write!(out, "0x{digits}"),
    }
}

fn parse_hex_number(cursor: &mut Cursor<'_>, bytes: usize) -> Result<Vec<u8>> {
    let start = *cursor;
    cursor.expect("0x")?;
    let digits = cursor.take_while(|c| c.is_ascii_hexdigit()).trim_start_matches('0');
    if digits.len() > 2 * bytes {
        return Err(start.error(format!("a number of {bytes} bytes")));
    }
    let padded = format!("{digits:0>width$}", width = 2 * bytes);
    let byte = |i| u8::from_str_radix(&padded[i..i + 2], 16).map_err(|_| start.error("a hexadecimal number"));
    (0..padded.len()).step_by(2).map(byte).collect()
}

/// The options up to the closing bracket, which stays: bytes and mask.
pub(super) fn parse_geneve(cursor: &mut Cursor<'_>, most: usize) -> Result<(Vec<u8>, Vec<u8>)> {
    let (mut options, mut mask) = (Vec::new(), Vec::new());
    while cursor.take("{") {
        let start = *cursor;
        let (mut header, mut header_mask) = ([0; GENEVE_HEADER], [0; GENEVE_HEADER]);
        let mut data_len = 0;
        let (mut data, mut data_mask) = (Vec::new(), Vec::new());
        loop {
            cursor.skip_delimiters();
            if cursor.take("class=") {
                let (value, bits) = parse_one(cursor, Kind::Hex, 0xffff)?;
                header[..2].copy_from_slice(&(value as u16).to_be_bytes());
                header_mask[..2].copy_from_slice(&(bits as u16).to_be_bytes());
            } else if cursor.take("type=") {
                let (value, bits) = parse_one(cursor, Kind::Hex, 0xff)?;
                header[2] = value as u8;
                header_mask[2] = bits as u8;
            } else if cursor.take("len=") {
                let at = *cursor;
                let (value, _) = parse_one(cursor, Kind::Dec, 124)?;
                if !value.is_multiple_of(4) {
                    return Err(at.error("a multiple of 4"));
                }
                data_len = value as usize;
                header[3] = value as u8 / 4;
                header_mask[3] = 0x1f;
                data = vec![0; data_len];
                data_mask = vec![0; data_len];
            } else if cursor.rest().starts_with("0x") && data_len > 0 {
                data = parse_hex_number(cursor, data_len)?;
                data_mask = if cursor.take("/") { parse_hex_number(cursor, data_len)? } else { vec![0xff; data_len] };
            } else {
                break;
            }
        }
        if !cursor.take("}") {
            return Err(cursor.unknown("`}` or a field of a Geneve option", &["class", "type", "len", "0x<data>"]));
        }
        options.extend(header.iter().chain(&data));
        mask.extend(header_mask.iter().chain(&data_mask));
        if options.len() > most {
            return Err(start.error(format!("no more than {most} bytes of options")));
        }
        cursor.skip_delimiters();
    }
    Ok((options, mask))
}

pub(super) fn parse_tunnel(cursor: &mut Cursor<'_>, key: &mut Key, mask: &mut Mask) -> Result<()> {
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok(());
        }
        if cursor.take("vxlan(gbp(") {
            parse_subs(cursor, GBP, key, mask)?;
            cursor.expect(")")?;
        } else if cursor.take("gtpu(") {
            parse_subs(cursor, GTPU, key, mask)?;
        } else if cursor.take("erspan(") {
            parse_subs(cursor, ERSPAN, key, mask)?;
        } else if cursor.take("geneve(") {
            let (options, bits) = parse_geneve(cursor, GENEVE_BYTES)?;
            cursor.expect(")")?;
            key.set_geneve(&options);
            mask.0.set_geneve(&bits);
            key.set(field::GENEVE_LEN, options.len() as u64);
            mask.set_exact(field::GENEVE_LEN);
        } else if cursor.take("flags(") {
            let (flags, bits) = parse_flags(cursor, TUNNEL_FLAGS, tunnel_flag::ALL)?;
            cursor.expect(")")?;
            key.set(field::TUN_FLAGS, flags);
            mask.0.set(field::TUN_FLAGS, bits);
        } else {
            parse_sub(cursor, TUNNEL, key, mask)?;
        }
    }
}
