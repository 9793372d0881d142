//! Actions.

use super::cursor::{Cursor, ParseError, Result};
use super::header::{
    parse_lse_part, parse_mpls, parse_nsh, parse_tunnel, parse_vlan, parse_vlan_part, write_lse, write_mpls, write_nsh,
    write_tunnel, write_vlan,
};
use super::tnl_push::{parse_tnl_push, write_tnl_push};
use super::userspace::{parse_userspace, write_userspace};
use super::value::{Kind, List, parse_one, parse_subs, subs, write_hex, write_mac, write_one};
use super::{ct::parse_ct, ct::write_ct};
use crate::action::{Action, HashAlgorithm, Header, SetField};
use crate::extract::ethertype;
use crate::key::{Field, Key, Mask, VLAN_PRESENT, field};
use std::fmt::{self, Write};

/// How deep lists of actions may be inside each other.
const MAX_DEPTH: usize = 16;
/// Most actions of one flow, over all its lists.
const MAX_ACTIONS: usize = 4096;

/// Actions as text; `drop` if there are none.
#[derive(Clone, Copy, Debug)]
pub struct Actions<'a>(pub &'a [Action]);

impl fmt::Display for Actions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("drop");
        }
        let mut list = List::new(f);
        self.0.iter().try_for_each(|action| {
            list.next()?;
            write_action(list.out, action)
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_action(f, self)
    }
}

fn write_action(out: &mut impl Write, action: &Action) -> fmt::Result {
    match action {
        Action::Output(port) => write!(out, "{port}"),
        Action::Userspace(userspace) => write_userspace(out, userspace),
        Action::Set(set) => write_set(out, set),
        Action::PushVlan { tpid, tci } => {
            out.write_str("push_vlan(")?;
            if *tpid != ethertype::VLAN {
                write!(out, "tpid=0x{tpid:04x},")?;
            }
            write_vlan(out, (*tci).into(), 0xffff, false)?;
            out.write_char(')')
        }
        Action::PopVlan => out.write_str("pop_vlan"),
        Action::PushMpls { lse, eth_type } => write_push_mpls(out, "push_mpls", *lse, *eth_type),
        Action::AddMpls { lse, eth_type } => write_push_mpls(out, "add_mpls", *lse, *eth_type),
        Action::PopMpls { eth_type } => write!(out, "pop_mpls(eth_type=0x{eth_type:x})"),
        Action::PushEth { src, dst } => {
            out.write_str("push_eth(src=")?;
            write_mac(out, *src)?;
            out.write_str(",dst=")?;
            write_mac(out, *dst)?;
            out.write_char(')')
        }
        Action::PopEth => out.write_str("pop_eth"),
        Action::Recirc(id) => {
            out.write_str("recirc(")?;
            write_hex(out, (*id).into())?;
            out.write_char(')')
        }
        Action::Hash { algorithm: HashAlgorithm::L4, basis } => write!(out, "hash(l4({basis}))"),
        Action::Hash { algorithm: HashAlgorithm::SymL4, basis } => write!(out, "hash(sym_l4({basis}))"),
        Action::Sample { probability, actions } => {
            let percentage = 100.0 * f64::from(*probability) / f64::from(u32::MAX);
            write!(out, "sample(sample={percentage:.1}%,actions({}))", Actions(actions))
        }
        Action::Trunc(len) => write!(out, "trunc({len})"),
        Action::Clone(actions) => write!(out, "clone({})", Actions(actions)),
        Action::CheckPktLen { size, greater, less_equal } => {
            write!(out, "check_pkt_len(size={size},gt({}),le({}))", Actions(greater), Actions(less_equal))
        }
        Action::DecTtl { exceeded } => write!(out, "dec_ttl(le_1({}))", Actions(exceeded)),
        Action::Meter(meter) => write!(out, "meter({meter})"),
        Action::Drop => out.write_str("drop"),
        Action::Ct(ct) => write_ct(out, ct),
        Action::CtClear => out.write_str("ct_clear"),
        Action::TnlPush(push) => write_tnl_push(out, push),
        Action::TnlPop(port) => write!(out, "tnl_pop({port})"),
        Action::LbOutput(bond) => write!(out, "lb_output({bond})"),
    }
}

fn write_push_mpls(out: &mut impl Write, name: &str, lse: u32, eth_type: u16) -> fmt::Result {
    write!(out, "{name}(")?;
    write_lse(out, lse.into())?;
    write!(out, ",eth_type=0x{eth_type:x})")
}

/// The headers that `set` knows, by name.
const SETTABLE: &[(&str, Header)] = &[
    ("eth", Header::Eth),
    ("eth_type", Header::EthType),
    ("vlan", Header::Vlan),
    ("mpls", Header::Mpls),
    ("ipv4", Header::Ipv4),
    ("ipv6", Header::Ipv6),
    ("tcp", Header::Tcp),
    ("udp", Header::Udp),
    ("sctp", Header::Sctp),
    ("icmp", Header::Icmp),
    ("icmpv6", Header::Icmpv6),
    ("arp", Header::Arp),
    ("nd", Header::Nd),
    ("nd_ext", Header::NdExt),
    ("nsh", Header::Nsh),
    ("tunnel", Header::Tunnel),
    ("in_port", Header::InPort),
    ("skb_priority", Header::SkbPriority),
    ("skb_mark", Header::SkbMark),
    ("dp_hash", Header::DpHash),
];

fn single(header: Header) -> Option<(Field, Kind)> {
    Some(match header {
        Header::InPort => (field::IN_PORT, Kind::Dec),
        Header::SkbPriority => (field::SKB_PRIORITY, Kind::Hex),
        Header::SkbMark => (field::SKB_MARK, Kind::Hex),
        Header::DpHash => (field::DP_HASH, Kind::Hex),
        _ => return None,
    })
}

fn write_set(out: &mut impl Write, set: &SetField) -> fmt::Result {
    let SetField { header, key, mask } = set;
    let name = SETTABLE.iter().find(|(_, known)| known == header).map_or("", |(name, _)| name);
    write!(out, "set({name}(")?;
    if let Some((field, kind)) = single(*header) {
        write_one(out, kind, key.get(field), mask.get(field), field.max())?;
    } else if let Some(subs) = subs(*header) {
        List::new(out).subs(subs, key, mask, false)?;
    } else {
        match header {
            Header::EthType => {
                write!(out, "0x{:04x}", key.get(field::ETH_TYPE))?;
                let bits = mask.get(field::ETH_TYPE);
                if bits != field::ETH_TYPE.max() {
                    write!(out, "/0x{bits:04x}")?;
                }
            }
            Header::Vlan => write_vlan(out, key.get(field::VLAN_TCI[0]), mask.get(field::VLAN_TCI[0]), false)?,
            Header::Mpls => write_mpls(out, key, mask)?,
            Header::Nsh => write_nsh(out, key, mask)?,
            _ => write_tunnel(out, key, mask, false)?,
        }
    }
    out.write_str("))")
}

fn parse_set(cursor: &mut Cursor<'_>) -> Result<Action> {
    let name = cursor.peek_name();
    let Some((_, header)) = SETTABLE.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = SETTABLE.iter().map(|(name, _)| *name).collect();
        return Err(cursor.unknown("a header that can be set", &names));
    };
    cursor.take(name);
    cursor.expect("(")?;
    let (mut key, mut mask) = (Key::EMPTY, Mask::EMPTY);
    if let Some((field, kind)) = single(*header) {
        let (value, bits) = parse_one(cursor, kind, field.max())?;
        key.set(field, value);
        mask.0.set(field, bits);
        cursor.expect(")")?;
    } else if let Some(subs) = subs(*header) {
        parse_subs(cursor, subs, &mut key, &mut mask)?;
    } else {
        match header {
            Header::EthType => {
                let (value, bits) = parse_one(cursor, Kind::Hex, 0xffff)?;
                key.set(field::ETH_TYPE, value);
                mask.0.set(field::ETH_TYPE, bits);
                cursor.expect(")")?;
            }
            Header::Vlan => {
                let (tci, bits) = parse_vlan(cursor)?;
                key.set(field::VLAN_TCI[0], tci);
                mask.0.set(field::VLAN_TCI[0], bits);
            }
            Header::Mpls => parse_mpls(cursor, &mut key, &mut mask)?,
            Header::Nsh => parse_nsh(cursor, &mut key, &mut mask)?,
            _ => parse_tunnel(cursor, &mut key, &mut mask)?,
        }
    }
    cursor.expect(")")?;
    Ok(Action::Set(Box::new(SetField { header: *header, key, mask })))
}

/// Reads actions, separated by commas. `drop` alone is the empty list.
pub fn parse_actions(text: &str) -> std::result::Result<Vec<Action>, ParseError> {
    let mut cursor = Cursor::new(text);
    let mut parser = ActionParser { depth: 0, count: 0 };
    cursor.skip_spaces();
    if cursor.is_at_end() {
        return Err(cursor.error_with_hint("an action", "`drop` does nothing with the packet"));
    }
    let actions = parser.list(&mut cursor)?;
    if cursor.is_at_end() { Ok(actions) } else { Err(cursor.error("`,` or the end of the actions")) }
}

struct ActionParser {
    depth: usize,
    count: usize,
}

const NAMES: &[&str] = &[
    "userspace",
    "set",
    "push_vlan",
    "pop_vlan",
    "push_mpls",
    "pop_mpls",
    "add_mpls",
    "push_eth",
    "pop_eth",
    "ct",
    "ct_clear",
    "recirc",
    "hash",
    "sample",
    "trunc",
    "clone",
    "check_pkt_len",
    "dec_ttl",
    "meter",
    "drop",
    "tnl_push",
    "tnl_pop",
    "lb_output",
];

impl ActionParser {
    /// Up to the end or a closing bracket, which stays.
    fn list(&mut self, cursor: &mut Cursor<'_>) -> Result<Vec<Action>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(cursor.error(format!("no more than {MAX_DEPTH} lists of actions inside each other")));
        }
        let mut actions = Vec::new();
        loop {
            cursor.skip_delimiters();
            if cursor.is_at_end() || cursor.rest().starts_with(')') {
                break;
            }
            self.count += 1;
            if self.count > MAX_ACTIONS {
                return Err(cursor.error(format!("no more than {MAX_ACTIONS} actions")));
            }
            actions.push(self.action(cursor)?);
        }
        self.depth -= 1;
        if actions == [Action::Drop] {
            actions.clear();
        }
        Ok(actions)
    }

    /// A list and the bracket that closes it.
    fn enclosed(&mut self, cursor: &mut Cursor<'_>) -> Result<Vec<Action>> {
        let actions = self.list(cursor)?;
        cursor.expect(")")?;
        Ok(actions)
    }

    fn action(&mut self, cursor: &mut Cursor<'_>) -> Result<Action> {
        if cursor.rest().starts_with(|c: char| c.is_ascii_digit()) {
            return number(cursor).map(Action::Output);
        }
        let name = cursor.peek_name();
        if !NAMES.contains(&name) {
            return Err(cursor.unknown("a port number or the name of an action", NAMES));
        }
        cursor.take(name);
        match name {
            "pop_vlan" => return Ok(Action::PopVlan),
            "pop_eth" => return Ok(Action::PopEth),
            "ct_clear" => return Ok(Action::CtClear),
            "drop" => return Ok(Action::Drop),
            "ct" => return parse_ct(cursor).map(|ct| Action::Ct(Box::new(ct))),
            _ => cursor.expect("(")?,
        }
        match name {
            "userspace" => parse_userspace(cursor).map(Action::Userspace),
            "set" => parse_set(cursor),
            "push_vlan" => push_vlan(cursor),
            "push_mpls" => push_mpls(cursor).map(|(lse, eth_type)| Action::PushMpls { lse, eth_type }),
            "add_mpls" => push_mpls(cursor).map(|(lse, eth_type)| Action::AddMpls { lse, eth_type }),
            "pop_mpls" => {
                cursor.expect("eth_type=")?;
                let eth_type = cursor.number(0xffff)? as u16;
                cursor.expect(")")?;
                Ok(Action::PopMpls { eth_type })
            }
            "push_eth" => {
                let (mut key, mut mask) = (Key::EMPTY, Mask::EMPTY);
                parse_subs(cursor, super::value::ETH, &mut key, &mut mask)?;
                Ok(Action::PushEth { src: key.get(field::ETH_SRC), dst: key.get(field::ETH_DST) })
            }
            "hash" => hash(cursor),
            "tnl_push" => parse_tnl_push(cursor).map(|push| Action::TnlPush(Box::new(push))),
            "recirc" => closed_number(cursor).map(Action::Recirc),
            "trunc" => closed_number(cursor).map(Action::Trunc),
            "meter" => closed_number(cursor).map(Action::Meter),
            "tnl_pop" => closed_number(cursor).map(Action::TnlPop),
            "lb_output" => closed_number(cursor).map(Action::LbOutput),
            _ => self.nesting(cursor, name),
        }
    }

    /// Actions with actions inside.
    fn nesting(&mut self, cursor: &mut Cursor<'_>, name: &str) -> Result<Action> {
        match name {
            "sample" => {
                cursor.expect("sample=")?;
                let probability = probability(cursor)?;
                cursor.expect("%,actions(")?;
                let actions = self.enclosed(cursor)?;
                cursor.expect(")")?;
                Ok(Action::Sample { probability, actions })
            }
            "check_pkt_len" => {
                cursor.expect("size=")?;
                let size = cursor.number(0xffff)? as u16;
                cursor.expect(",gt(")?;
                let greater = self.enclosed(cursor)?;
                cursor.expect(",le(")?;
                let less_equal = self.enclosed(cursor)?;
                cursor.expect(")")?;
                Ok(Action::CheckPktLen { size, greater, less_equal })
            }
            "dec_ttl" => {
                cursor.expect("le_1(")?;
                let exceeded = self.enclosed(cursor)?;
                cursor.expect(")")?;
                Ok(Action::DecTtl { exceeded })
            }
            _ => self.enclosed(cursor).map(Action::Clone),
        }
    }
}

fn number(cursor: &mut Cursor<'_>) -> Result<u32> {
    cursor.number(u32::MAX.into()).map(|number| number as u32)
}

fn closed_number(cursor: &mut Cursor<'_>) -> Result<u32> {
    let number = number(cursor)?;
    cursor.expect(")")?;
    Ok(number)
}

fn probability(cursor: &mut Cursor<'_>) -> Result<u32> {
    let start = *cursor;
    let digits = cursor.take_while(|c| c.is_ascii_digit() || c == '.');
    let percentage = digits.parse::<f64>().ok().filter(|percentage| (0.0..=100.0).contains(percentage));
    let percentage = percentage.ok_or_else(|| start.error("a percentage"))?;
    Ok((f64::from(u32::MAX) * percentage / 100.0).round() as u32)
}

fn hash(cursor: &mut Cursor<'_>) -> Result<Action> {
    let algorithm = if cursor.take("l4(") {
        HashAlgorithm::L4
    } else if cursor.take("sym_l4(") {
        HashAlgorithm::SymL4
    } else {
        return Err(cursor.error("`l4(` or `sym_l4(`"));
    };
    let basis = closed_number(cursor)?;
    cursor.expect(")")?;
    Ok(Action::Hash { algorithm, basis })
}

fn push_vlan(cursor: &mut Cursor<'_>) -> Result<Action> {
    let mut tpid = ethertype::VLAN;
    let (mut tci, mut mask) = (VLAN_PRESENT, 0);
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok(Action::PushVlan { tpid, tci: tci as u16 });
        }
        if cursor.take("tpid=") {
            tpid = cursor.number(0xffff)? as u16;
        } else {
            parse_vlan_part(cursor, &mut tci, &mut mask)?;
        }
    }
}

fn push_mpls(cursor: &mut Cursor<'_>) -> Result<(u32, u16)> {
    let (mut lse, mut mask) = (0, 0);
    let mut eth_type = ethertype::MPLS;
    loop {
        cursor.skip_delimiters();
        if cursor.take(")") {
            return Ok((lse as u32, eth_type));
        }
        if cursor.take("eth_type=") {
            eth_type = cursor.number(0xffff)? as u16;
        } else {
            parse_lse_part(cursor, &mut lse, &mut mask)?;
        }
    }
}
