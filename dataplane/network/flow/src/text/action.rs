//! Actions.

use super::cursor::{Cursor, ParseError, Result};
use super::header::{
    parse_lse_part, parse_mpls, parse_nsh, parse_tunnel, parse_vlan, parse_vlan_part, write_lse, write_mpls, write_nsh,
    write_tunnel, write_vlan,
};
use super::tnl_push::{parse_tnl_push, write_tnl_push};
use super::userspace::{parse_userspace, write_userspace};
use super::value::{self, Kind, List, Sub, parse_one, parse_subs, write_hex, write_mac, write_one};
use super::{ct::parse_ct, ct::write_ct};
use crate::action::{Action, HashAlgorithm, Header, HeaderEdit, SetField};
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
        Action::Header(edit) => write_header_edit(out, edit),
        Action::AddMpls { lse, eth_type } => write_push_mpls(out, "add_mpls", *lse, *eth_type),
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

fn write_header_edit(out: &mut impl Write, edit: &HeaderEdit) -> fmt::Result {
    match edit {
        HeaderEdit::PushVlan { tpid, tci } => {
            out.write_str("push_vlan(")?;
            if *tpid != ethertype::VLAN {
                write!(out, "tpid=0x{tpid:04x},")?;
            }
            write_vlan(out, (*tci).into(), 0xffff, false)?;
            out.write_char(')')
        }
        HeaderEdit::PopVlan => out.write_str("pop_vlan"),
        HeaderEdit::PushMpls { lse, eth_type } => write_push_mpls(out, "push_mpls", *lse, *eth_type),
        HeaderEdit::PopMpls { eth_type } => write!(out, "pop_mpls(eth_type=0x{eth_type:x})"),
        HeaderEdit::PushEth { src, dst } => {
            out.write_str("push_eth(src=")?;
            write_mac(out, *src)?;
            out.write_str(",dst=")?;
            write_mac(out, *dst)?;
            out.write_char(')')
        }
        HeaderEdit::PopEth => out.write_str("pop_eth"),
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

/// How the values of a `set` action are written.
enum Syntax {
    /// One number.
    Single(Field, Kind),
    /// A list of named fields.
    Fields(&'static [Sub]),
    EthType,
    Vlan,
    Mpls,
    Nsh,
    Tunnel,
}

fn syntax(header: Header) -> Syntax {
    match header {
        Header::Eth => Syntax::Fields(value::ETH),
        Header::EthType => Syntax::EthType,
        Header::Vlan => Syntax::Vlan,
        Header::Mpls => Syntax::Mpls,
        Header::Ipv4 => Syntax::Fields(value::IPV4),
        Header::Ipv6 => Syntax::Fields(value::IPV6),
        Header::Tcp | Header::Udp | Header::Sctp => Syntax::Fields(value::PORTS),
        Header::Icmp | Header::Icmpv6 => Syntax::Fields(value::ICMP),
        Header::Arp => Syntax::Fields(value::ARP),
        Header::Nd => Syntax::Fields(value::ND),
        Header::NdExt => Syntax::Fields(value::ND_EXT),
        Header::Nsh => Syntax::Nsh,
        Header::Tunnel => Syntax::Tunnel,
        Header::InPort => Syntax::Single(field::IN_PORT, Kind::Dec),
        Header::SkbPriority => Syntax::Single(field::SKB_PRIORITY, Kind::Hex),
        Header::SkbMark => Syntax::Single(field::SKB_MARK, Kind::Hex),
        Header::DpHash => Syntax::Single(field::DP_HASH, Kind::Hex),
    }
}

fn write_set(out: &mut impl Write, set: &SetField) -> fmt::Result {
    let SetField { header, key, mask } = set;
    let name = SETTABLE.iter().find(|(_, known)| known == header).map_or("", |(name, _)| name);
    write!(out, "set({name}(")?;
    match syntax(*header) {
        Syntax::Single(field, kind) => write_one(out, kind, key.get(field), mask.get(field), field.max())?,
        Syntax::Fields(fields) => List::new(out).subs(fields, key, mask, false)?,
        Syntax::EthType => {
            write!(out, "0x{:04x}", key.get(field::ETH_TYPE))?;
            let bits = mask.get(field::ETH_TYPE);
            if bits != field::ETH_TYPE.max() {
                write!(out, "/0x{bits:04x}")?;
            }
        }
        Syntax::Vlan => write_vlan(out, key.get(field::VLAN_TCI[0]), mask.get(field::VLAN_TCI[0]), false)?,
        Syntax::Mpls => write_mpls(out, key, mask)?,
        Syntax::Nsh => write_nsh(out, key, mask)?,
        Syntax::Tunnel => write_tunnel(out, key, mask, false)?,
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
    match syntax(*header) {
        Syntax::Single(field, kind) => parse_single(cursor, field, kind, &mut key, &mut mask)?,
        Syntax::Fields(fields) => parse_subs(cursor, fields, &mut key, &mut mask)?,
        Syntax::EthType => parse_single(cursor, field::ETH_TYPE, Kind::Hex, &mut key, &mut mask)?,
        Syntax::Vlan => {
            let (tci, bits) = parse_vlan(cursor)?;
            key.set(field::VLAN_TCI[0], tci);
            mask.0.set(field::VLAN_TCI[0], bits);
        }
        Syntax::Mpls => parse_mpls(cursor, &mut key, &mut mask)?,
        Syntax::Nsh => parse_nsh(cursor, &mut key, &mut mask)?,
        Syntax::Tunnel => parse_tunnel(cursor, &mut key, &mut mask)?,
    }
    cursor.expect(")")?;
    Ok(Action::Set(Box::new(SetField { header: *header, key, mask })))
}

fn parse_single(cursor: &mut Cursor<'_>, field: Field, kind: Kind, key: &mut Key, mask: &mut Mask) -> Result<()> {
    let (value, bits) = parse_one(cursor, kind, field.max())?;
    key.set(field, value);
    mask.0.set(field, bits);
    cursor.expect(")")
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
            "pop_vlan" => return Ok(Action::Header(HeaderEdit::PopVlan)),
            "pop_eth" => return Ok(Action::Header(HeaderEdit::PopEth)),
            "ct_clear" => return Ok(Action::CtClear),
            "drop" => return Ok(Action::Drop),
            "ct" => return parse_ct(cursor).map(|ct| Action::Ct(Box::new(ct))),
            _ => cursor.expect("(")?,
        }
        match name {
            "userspace" => parse_userspace(cursor).map(Action::Userspace),
            "set" => parse_set(cursor),
            "push_vlan" => push_vlan(cursor),
            "push_mpls" => {
                push_mpls(cursor).map(|(lse, eth_type)| Action::Header(HeaderEdit::PushMpls { lse, eth_type }))
            }
            "add_mpls" => push_mpls(cursor).map(|(lse, eth_type)| Action::AddMpls { lse, eth_type }),
            "pop_mpls" => {
                cursor.expect("eth_type=")?;
                let eth_type = cursor.number(0xffff)? as u16;
                cursor.expect(")")?;
                Ok(Action::Header(HeaderEdit::PopMpls { eth_type }))
            }
            "push_eth" => {
                let (mut key, mut mask) = (Key::EMPTY, Mask::EMPTY);
                parse_subs(cursor, value::ETH, &mut key, &mut mask)?;
                let (src, dst) = (key.get(field::ETH_SRC), key.get(field::ETH_DST));
                Ok(Action::Header(HeaderEdit::PushEth { src, dst }))
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
            return Ok(Action::Header(HeaderEdit::PushVlan { tpid, tci: tci as u16 }));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Ct, Nat, NatKind, UserData, Userspace};
    use std::collections::HashSet;

    /// An example of the action behind this one in a list of all of them; the match makes a new action add its example here.
    fn next_example(action: &Action) -> Option<Action> {
        let nested = || vec![Action::Output(4), Action::Meter(1)];
        Some(match action {
            Action::Output(_) => {
                let userdata = Some(UserData::SlowPath(1));
                Action::Userspace(Userspace { pid: 7, userdata, actions: true, tunnel_out_port: Some(3) })
            }
            Action::Userspace(_) => example_set(Header::Eth),
            Action::Set(set) => match next_header(set.header) {
                Some(header) => example_set(header),
                None => Action::Header(HeaderEdit::PushVlan { tpid: ethertype::QINQ, tci: VLAN_PRESENT as u16 | 7 }),
            },
            Action::Header(HeaderEdit::PushVlan { .. }) => Action::Header(HeaderEdit::PopVlan),
            Action::Header(HeaderEdit::PopVlan) => {
                Action::Header(HeaderEdit::PushMpls { lse: 0x1f340, eth_type: 0x8847 })
            }
            Action::Header(HeaderEdit::PushMpls { .. }) => Action::Header(HeaderEdit::PopMpls { eth_type: 0x800 }),
            Action::Header(HeaderEdit::PopMpls { .. }) => Action::Header(HeaderEdit::PushEth { src: 1, dst: 2 }),
            Action::Header(HeaderEdit::PushEth { .. }) => Action::Header(HeaderEdit::PopEth),
            Action::Header(HeaderEdit::PopEth) => Action::AddMpls { lse: 0x1f340, eth_type: 0x8847 },
            Action::AddMpls { .. } => Action::Recirc(9),
            Action::Recirc(_) => Action::Hash { algorithm: HashAlgorithm::L4, basis: 3 },
            Action::Hash { algorithm: HashAlgorithm::L4, basis } => {
                Action::Hash { algorithm: HashAlgorithm::SymL4, basis: *basis }
            }
            Action::Hash { algorithm: HashAlgorithm::SymL4, .. } => {
                Action::Sample { probability: u32::MAX / 2 + 1, actions: nested() }
            }
            Action::Sample { .. } => Action::Trunc(100),
            Action::Trunc(_) => Action::Clone(nested()),
            Action::Clone(_) => Action::CheckPktLen { size: 200, greater: nested(), less_equal: vec![] },
            Action::CheckPktLen { .. } => Action::DecTtl { exceeded: nested() },
            Action::DecTtl { .. } => Action::Meter(5),
            Action::Meter(_) => Action::Drop,
            Action::Drop => {
                let nat = Nat { kind: Some(NatKind::Src), addresses: None, ports: (0, 0), ..Nat::default() };
                Action::Ct(Box::new(Ct { commit: true, zone: 5, mark: Some((1, 3)), nat: Some(nat), ..Ct::default() }))
            }
            Action::Ct(_) => Action::CtClear,
            Action::CtClear => {
                let text = "tnl_push(tnl_port(6),header(size=50,type=4,eth(dst=f8:bc:12:44:34:b6,src=f8:bc:12:46:58:e0,\
                            dl_type=0x0800),ipv4(src=1.1.2.88,dst=1.1.2.92,proto=17,tos=0,ttl=64,frag=0x4000),\
                            udp(src=0,dst=4789,csum=0x0),vxlan(flags=0x8000000,vni=0x1c7)),out_port(1))";
                parse_actions(text).unwrap().remove(0)
            }
            Action::TnlPush(push) => Action::TnlPop(push.tnl_port),
            Action::TnlPop(_) => Action::LbOutput(2),
            Action::LbOutput(_) => return None,
        })
    }

    fn next_header(header: Header) -> Option<Header> {
        let at = SETTABLE.iter().position(|(_, known)| *known == header).expect("every header has a name");
        SETTABLE.get(at + 1).map(|(_, header)| *header)
    }

    /// Sets every field of a header that has a text.
    fn example_set(header: Header) -> Action {
        let (mut key, mut mask) = (Key::EMPTY, Mask::EMPTY);
        match syntax(header) {
            Syntax::Single(field, _) => set_exact(&mut key, &mut mask, field),
            Syntax::Fields(fields) => {
                for (_, place) in fields {
                    match place {
                        value::Place::One(field, _, full) => {
                            key.set(*field, 1);
                            mask.0.set(*field, *full);
                        }
                        value::Place::Two(wide) => {
                            key.set_wide(*wide, 1);
                            mask.set_exact_wide(*wide);
                        }
                    }
                }
            }
            Syntax::EthType => set_exact(&mut key, &mut mask, field::ETH_TYPE),
            Syntax::Vlan => {
                key.set(field::VLAN_TCI[0], VLAN_PRESENT | 7);
                mask.0.set(field::VLAN_TCI[0], 0xfff | VLAN_PRESENT);
            }
            Syntax::Mpls => set_exact(&mut key, &mut mask, field::MPLS[0]),
            Syntax::Nsh => set_exact(&mut key, &mut mask, field::NSH_TTL),
            Syntax::Tunnel => set_exact(&mut key, &mut mask, field::TUN_ID),
        }
        Action::Set(Box::new(SetField { header, key, mask }))
    }

    fn set_exact(key: &mut Key, mask: &mut Mask, field: Field) {
        key.set(field, 1);
        mask.set_exact(field);
    }

    #[test]
    fn every_action_is_read_back_from_its_text() {
        let mut names: HashSet<&str> = HashSet::new();
        let all = std::iter::successors(Some(Action::Output(3)), next_example);
        for action in all {
            let text = action.to_string();
            // A list that is `drop` alone is the empty list.
            let read = parse_actions(&format!("1,{text}")).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(read, [Action::Output(1), action], "{text}");
            names.extend(NAMES.iter().filter(|name| text.split('(').next() == Some(**name)));
        }
        assert_eq!(names.len(), NAMES.len(), "every name that is read is written by an example: {names:?}");
    }
}
