//! The `userspace` action.

use super::cursor::{Cursor, Result};
use super::value::{parse_flags, write_flags, write_hex};
use crate::action::{UserData, Userspace};
use std::fmt::{self, Write};

/// Why the control plane handles a flow.
const REASONS: &[&str] = &["cfm", "bfd", "lacp", "stp", "lldp", "action", "match"];
/// Most bytes of user data: what fits into one netlink attribute.
const MAX_USERDATA: usize = 65_508;

pub(super) fn write_userspace(out: &mut impl Write, userspace: &Userspace) -> fmt::Result {
    write!(out, "userspace(pid={}", userspace.pid)?;
    if let Some(userdata) = &userspace.userdata {
        out.write_char(',')?;
        write_userdata(out, userdata)?;
    }
    if userspace.actions {
        out.write_str(",actions")?;
    }
    if let Some(port) = userspace.tunnel_out_port {
        write!(out, ",tunnel_out_port={port}")?;
    }
    out.write_char(')')
}

fn write_userdata(out: &mut impl Write, userdata: &UserData) -> fmt::Result {
    match userdata {
        UserData::SFlow { vid, pcp, output } => write!(out, "sFlow(vid={vid},pcp={pcp},output={output})"),
        UserData::SlowPath(reasons) => {
            out.write_str("slow_path(")?;
            let mut text = String::new();
            write_flags(&mut text, REASONS, (*reasons).into(), u32::MAX.into(), u32::MAX.into())?;
            write!(out, "{})", text.replace('|', ","))
        }
        UserData::FlowSample { probability, collector_set_id, obs_domain_id, obs_point_id, output_port, egress } => {
            write!(out, "flow_sample(probability={probability},collector_set_id={collector_set_id}")?;
            write!(out, ",obs_domain_id={obs_domain_id},obs_point_id={obs_point_id},output_port={output_port}")?;
            out.write_str(match egress {
                None => ")",
                Some(false) => ",ingress)",
                Some(true) => ",egress)",
            })
        }
        UserData::Ipfix { output_port } => write!(out, "ipfix(output_port={output_port})"),
        UserData::Controller { reason, dont_send, continuation, recirc_id, rule_cookie, controller_id, max_len } => {
            write!(out, "controller(reason={reason},dont_send={},", u8::from(*dont_send))?;
            write!(out, "continuation={},recirc_id={recirc_id},rule_cookie=", u8::from(*continuation))?;
            write_hex(out, *rule_cookie)?;
            write!(out, ",controller_id={controller_id},max_len={max_len})")
        }
        UserData::Bytes(bytes) => {
            out.write_str("userdata(")?;
            bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
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

const U16: u64 = u16::MAX as u64;
const U32: u64 = u32::MAX as u64;

pub(super) fn parse_userspace(cursor: &mut Cursor<'_>) -> Result<Userspace> {
    let mut userspace = Userspace { pid: value(cursor, "pid", U32)? as u32, ..Userspace::default() };
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok(userspace);
        }
        const PARTS: &[&str] =
            &["sFlow", "slow_path", "flow_sample", "ipfix", "controller", "userdata", "actions", "tunnel_out_port"];
        let name = cursor.peek_name();
        match name {
            "actions" => {
                cursor.take(name);
                userspace.actions = true;
            }
            "tunnel_out_port" => userspace.tunnel_out_port = Some(value(cursor, name, U32)? as u32),
            _ if PARTS.contains(&name) && userspace.userdata.is_none() => {
                cursor.take(name);
                cursor.expect("(")?;
                userspace.userdata = Some(parse_userdata(cursor, name)?);
                cursor.expect(")")?;
            }
            _ => return Err(cursor.unknown("`)` or more of `userspace`", PARTS)),
        }
    }
}

fn parse_userdata(cursor: &mut Cursor<'_>, name: &str) -> Result<UserData> {
    Ok(match name {
        "sFlow" => UserData::SFlow {
            vid: value(cursor, "vid", 0xfff)? as u16,
            pcp: value(cursor, "pcp", 7)? as u8,
            output: value(cursor, "output", U32)? as u32,
        },
        "slow_path" => {
            let (mut reasons, full) = (0, (1 << REASONS.len()) - 1);
            while !cursor.rest().starts_with(')') {
                reasons |= parse_flags(cursor, REASONS, full)?.0;
                cursor.skip_delimiters();
            }
            UserData::SlowPath(reasons as u32)
        }
        "flow_sample" => UserData::FlowSample {
            probability: value(cursor, "probability", U16)? as u16,
            collector_set_id: value(cursor, "collector_set_id", U32)? as u32,
            obs_domain_id: value(cursor, "obs_domain_id", U32)? as u32,
            obs_point_id: value(cursor, "obs_point_id", U32)? as u32,
            output_port: value(cursor, "output_port", U32)? as u32,
            egress: if cursor.take(",ingress") { Some(false) } else { cursor.take(",egress").then_some(true) },
        },
        "ipfix" => UserData::Ipfix { output_port: value(cursor, "output_port", U32)? as u32 },
        "controller" => UserData::Controller {
            reason: value(cursor, "reason", U16)? as u16,
            dont_send: value(cursor, "dont_send", 1)? != 0,
            continuation: value(cursor, "continuation", 1)? != 0,
            recirc_id: value(cursor, "recirc_id", U32)? as u32,
            rule_cookie: value(cursor, "rule_cookie", u64::MAX)?,
            controller_id: value(cursor, "controller_id", U16)? as u16,
            max_len: value(cursor, "max_len", U16)? as u16,
        },
        _ => {
            let start = *cursor;
            let bytes = if cursor.rest().starts_with(')') { Vec::new() } else { cursor.hex_bytes()? };
            if bytes.len() > MAX_USERDATA {
                return Err(start.error(format!("no more than {MAX_USERDATA} bytes")));
            }
            UserData::Bytes(bytes)
        }
    })
}
