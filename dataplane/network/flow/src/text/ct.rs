//! The `ct` action.

use super::cursor::{Cursor, Result};
use super::value::{write_hex, write_ipv6_address};
use crate::action::{Ct, Nat, NatKind};
use std::fmt::{self, Write};
use std::net::IpAddr;

pub(super) fn write_ct(out: &mut impl Write, ct: &Ct) -> fmt::Result {
    let mut parts = Vec::new();
    let flags = [(ct.commit, "commit"), (ct.force_commit, "force_commit")];
    parts.extend(flags.iter().filter(|(set, _)| *set).map(|(_, name)| name.to_string()));
    if ct.zone != 0 {
        parts.push(format!("zone={}", ct.zone));
    }
    if let Some((mark, mask)) = ct.mark {
        let mut part = "mark=".to_string();
        write_hex(&mut part, mark.into())?;
        part.push('/');
        write_hex(&mut part, mask.into())?;
        parts.push(part);
    }
    if let Some((label, mask)) = ct.label {
        let mask = if mask == u128::MAX { String::new() } else { format!("/{mask:#x}") };
        parts.push(format!("label={label:#x}{mask}"));
    }
    parts.extend(ct.helper.iter().map(|helper| format!("helper={helper}")));
    parts.extend(ct.timeout.iter().map(|timeout| format!("timeout={timeout}")));
    if let Some(nat) = &ct.nat {
        let mut part = String::new();
        write_nat(&mut part, nat)?;
        parts.push(part);
    }
    if parts.is_empty() { out.write_str("ct") } else { write!(out, "ct({})", parts.join(",")) }
}

fn write_nat(out: &mut impl Write, nat: &Nat) -> fmt::Result {
    out.write_str("nat")?;
    let Some(kind) = nat.kind else { return Ok(()) };
    out.write_str(if kind == NatKind::Src { "(src" } else { "(dst" })?;
    let has_ports = nat.ports.0 != 0;
    if let Some((first, last)) = nat.addresses {
        out.write_char('=')?;
        write_address(out, first, has_ports)?;
        if last != first {
            out.write_char('-')?;
            write_address(out, last, has_ports)?;
        }
        if has_ports {
            write!(out, ":{}", nat.ports.0)?;
            if nat.ports.1 != 0 && nat.ports.1 != nat.ports.0 {
                write!(out, "-{}", nat.ports.1)?;
            }
        }
    }
    let flags = [(nat.persistent, ",persistent"), (nat.hash, ",hash"), (nat.random, ",random")];
    flags.iter().filter(|(set, _)| *set).try_for_each(|(_, name)| out.write_str(name))?;
    out.write_char(')')
}

fn write_address(out: &mut impl Write, address: IpAddr, has_ports: bool) -> fmt::Result {
    match address {
        IpAddr::V4(address) => write!(out, "{address}"),
        IpAddr::V6(address) if has_ports => {
            out.write_char('[')?;
            write_ipv6_address(out, address.into())?;
            out.write_char(']')
        }
        IpAddr::V6(address) => write_ipv6_address(out, address.into()),
    }
}

const PARTS: &[&str] = &["commit", "force_commit", "zone", "mark", "label", "helper", "timeout", "nat"];

pub(super) fn parse_ct(cursor: &mut Cursor<'_>) -> Result<Ct> {
    let mut ct = Ct::default();
    if !cursor.take("(") {
        return Ok(ct);
    }
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok(ct);
        }
        let name = cursor.peek_name();
        if !PARTS.contains(&name) {
            return Err(cursor.unknown("`)` or more of `ct`", PARTS));
        }
        cursor.take(name);
        match name {
            "commit" => ct.commit = true,
            "force_commit" => ct.force_commit = true,
            "nat" => ct.nat = Some(parse_nat(cursor)?),
            _ => {
                cursor.expect("=")?;
                parse_part(cursor, name, &mut ct)?;
            }
        }
    }
}

fn parse_part(cursor: &mut Cursor<'_>, name: &str, ct: &mut Ct) -> Result<()> {
    const U32: u64 = u32::MAX as u64;
    match name {
        "zone" => ct.zone = cursor.number(u16::MAX.into())? as u16,
        "mark" => {
            let mark = cursor.number(U32)? as u32;
            let mask = if cursor.take("/") { cursor.number(U32)? as u32 } else { u32::MAX };
            ct.mark = Some((mark, mask));
        }
        "label" => {
            let label = cursor.number_u128()?;
            ct.label = Some((label, if cursor.take("/") { cursor.number_u128()? } else { u128::MAX }));
        }
        _ => {
            let start = *cursor;
            let word = cursor.take_while(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            let most = if name == "helper" { 15 } else { 31 };
            if word.is_empty() || word.len() > most {
                return Err(start.error(format!("a name of 1 to {most} letters")));
            }
            *(if name == "helper" { &mut ct.helper } else { &mut ct.timeout }) = Some(word.to_string());
        }
    }
    Ok(())
}

fn parse_nat(cursor: &mut Cursor<'_>) -> Result<Nat> {
    let mut nat = Nat::default();
    if !cursor.take("(") {
        return Ok(nat);
    }
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok(nat);
        }
        let name = cursor.peek_name();
        match name {
            "src" | "dst" if nat.kind.is_none() => {
                cursor.take(name);
                nat.kind = Some(if name == "src" { NatKind::Src } else { NatKind::Dst });
                if cursor.take("=") {
                    parse_range(cursor, &mut nat)?;
                }
            }
            "persistent" | "hash" | "random" if nat.kind.is_some() => {
                cursor.take(name);
                *match name {
                    "persistent" => &mut nat.persistent,
                    "hash" => &mut nat.hash,
                    _ => &mut nat.random,
                } = true;
            }
            _ => return Err(cursor.unknown("`)` or more of `nat`", &["src", "dst", "persistent", "hash", "random"])),
        }
    }
}

/// Addresses and ports: `A`, `A-B`, `A-B:P-Q`, IPv6 in brackets where ports follow.
fn parse_range(cursor: &mut Cursor<'_>, nat: &mut Nat) -> Result<()> {
    let start = *cursor;
    let first = parse_address(cursor)?;
    let last = if cursor.take("-") { parse_address(cursor)? } else { first };
    if first.is_ipv4() != last.is_ipv4() || first > last {
        return Err(start.error("a range that goes up"));
    }
    nat.addresses = Some((first, last));
    if cursor.take(":") {
        let start = *cursor;
        let first = cursor.number(u16::MAX.into())? as u16;
        let last = if cursor.take("-") { cursor.number(u16::MAX.into())? as u16 } else { first };
        if first == 0 || first > last {
            return Err(start.error("a range of ports that goes up from 1"));
        }
        nat.ports = (first, last);
    }
    Ok(())
}

fn parse_address(cursor: &mut Cursor<'_>) -> Result<IpAddr> {
    if cursor.take("[") {
        let address = cursor.ipv6()?;
        cursor.expect("]")?;
        return Ok(IpAddr::V6(address.into()));
    }
    let mut ahead = *cursor;
    let word = ahead.take_while(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    if word.matches(':').count() >= 2 {
        return cursor.ipv6().map(|address| IpAddr::V6(address.into()));
    }
    cursor.ipv4().map(|address| IpAddr::V4(address.into()))
}
