//! Keys and masks.

use super::cursor::{Cursor, ParseError, Result};
use super::header::{
    has_tunnel, parse_mpls, parse_nsh, parse_tunnel, parse_vlan, write_mpls, write_nsh, write_tunnel, write_vlan,
};
use super::value::{
    ARP, CT_STATES, CT_TUPLE4, CT_TUPLE6, ETH, ICMP, IPV4, IPV6, Kind, List, ND, ND_EXT, PACKET_TYPE, PORTS, Place,
    SINGLES, Sub, TCP_FLAGS, parse_flags, parse_one, parse_subs, write_flags, write_hex, write_one,
};
use crate::extract::{ethertype, protocol};
use crate::key::{Field, Key, Mask, VLAN_TAGS, field, frag};
use std::fmt::{self, Write};
use std::str::FromStr;

/// What a flow matches on: values, and which bits of them count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowMatch {
    /// The values.
    pub key: Key,
    /// The bits that count.
    pub mask: Mask,
}

impl fmt::Display for FlowMatch {
    /// The alternate form (`{:#}`) shows wildcarded fields as well, as `dpctl/dump-flows -m` does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verbose = f.alternate();
        let mut list = List::new(f);
        let mut attributes = Attributes { list: &mut list, key: &self.key, mask: &self.mask, verbose };
        attributes.metadata()?;
        attributes.layer_2()
    }
}

struct Attributes<'a, 'w, W: Write> {
    list: &'a mut List<'w, W>,
    key: &'a Key,
    mask: &'a Mask,
    verbose: bool,
}

fn is_looked_at(subs: &[Sub], mask: &Mask) -> bool {
    subs.iter().any(|(_, place)| match place {
        Place::One(field, ..) => mask.get(*field) != 0,
        Place::Two(wide) => mask.get_wide(*wide) != 0,
    })
}

impl<W: Write> Attributes<'_, '_, W> {
    fn begin(&mut self, name: &str) -> fmt::Result {
        self.list.next()?;
        write!(self.list.out, "{name}(")
    }

    fn end(&mut self) -> fmt::Result {
        self.list.out.write_char(')')
    }

    fn single(&mut self, name: &str) -> fmt::Result {
        let Some((_, field, kind)) = SINGLES.iter().find(|(known, ..)| *known == name) else { return Ok(()) };
        let bits = self.mask.get(*field);
        if bits == 0 && !self.verbose {
            return Ok(());
        }
        self.begin(name)?;
        write_one(self.list.out, *kind, self.key.get(*field), bits, field.max())?;
        self.end()
    }

    fn header(&mut self, name: &str, subs: &[Sub]) -> fmt::Result {
        if !self.verbose && !is_looked_at(subs, self.mask) {
            return Ok(());
        }
        self.begin(name)?;
        List::new(self.list.out).subs(subs, self.key, self.mask, self.verbose)?;
        self.end()
    }

    fn metadata(&mut self) -> fmt::Result {
        let (key, mask) = (self.key, self.mask);
        ["recirc_id", "dp_hash", "skb_priority"].iter().try_for_each(|name| self.single(name))?;
        if has_tunnel(key, mask) {
            self.begin("tunnel")?;
            write_tunnel(self.list.out, key, mask, self.verbose)?;
            self.end()?;
        }
        ["in_port", "skb_mark"].iter().try_for_each(|name| self.single(name))?;
        self.ct_state()?;
        ["ct_zone", "ct_mark"].iter().try_for_each(|name| self.single(name))?;
        let label = mask.get_wide(field::CT_LABEL);
        if label != 0 || self.verbose {
            self.begin("ct_label")?;
            write!(self.list.out, "{:#x}", key.get_wide(field::CT_LABEL))?;
            if label != u128::MAX {
                write!(self.list.out, "/{label:#x}")?;
            }
            self.end()?;
        }
        // Only what an original direction has is there to be shown.
        let has_tuple = mask.get(field::CT_PROTO) != 0 || mask.get(field::CT_TUPLE6) != 0;
        match key.get(field::CT_TUPLE6) {
            1 if has_tuple => self.header("ct_tuple6", CT_TUPLE6)?,
            0 if has_tuple || is_looked_at(CT_TUPLE4, mask) => self.header("ct_tuple4", CT_TUPLE4)?,
            _ => {}
        }
        self.header("packet_type", PACKET_TYPE)
    }

    fn ct_state(&mut self) -> fmt::Result {
        let (state, bits) = (self.key.get(field::CT_STATE), self.mask.get(field::CT_STATE));
        let full = field::CT_STATE.max();
        if bits == 0 && !self.verbose {
            return Ok(());
        }
        self.begin("ct_state")?;
        if self.verbose {
            write_hex(self.list.out, state)?;
            if bits != full {
                self.list.out.write_char('/')?;
                write_hex(self.list.out, bits)?;
            }
        } else {
            write_flags(self.list.out, CT_STATES, state, bits, full)?;
        }
        self.end()
    }

    fn layer_2(&mut self) -> fmt::Result {
        let (key, mask) = (self.key, self.mask);
        if key.get(field::PACKET_TYPE_NS) == 0 {
            if self.verbose || is_looked_at(ETH, mask) {
                self.header("eth", ETH)?;
            } else if !is_looked_at(PACKET_TYPE, mask) {
                self.begin("eth")?;
                self.end()?;
            }
        }
        let tags = (0..VLAN_TAGS).take_while(|tag| key.get(field::VLAN_TCI[*tag]) != 0 || tpid(key, *tag) != 0).count();
        for tag in 0..tags {
            self.begin("eth_type")?;
            write!(self.list.out, "0x{:04x}", tpid(key, tag))?;
            self.end()?;
            let (tci, bits) = (key.get(field::VLAN_TCI[tag]), mask.get(field::VLAN_TCI[tag]));
            if bits != 0 || self.verbose {
                self.begin("vlan")?;
                write_vlan(self.list.out, tci, bits, self.verbose)?;
                self.end()?;
            }
            self.begin("encap")?;
            self.list.nest();
        }
        self.layer_3()?;
        (0..tags).try_for_each(|_| self.end())
    }

    fn layer_3(&mut self) -> fmt::Result {
        let (key, mask) = (self.key, self.mask);
        let (eth_type, bits) = (key.get(field::ETH_TYPE), mask.get(field::ETH_TYPE));
        if bits == 0 && !self.verbose {
            return Ok(());
        }
        self.begin("eth_type")?;
        if eth_type == u64::from(ethertype::NONE) && bits == field::ETH_TYPE.max() {
            self.list.out.write_str("0/0xffff")?;
        } else {
            write!(self.list.out, "0x{eth_type:04x}")?;
            if bits != field::ETH_TYPE.max() {
                write!(self.list.out, "/0x{bits:04x}")?;
            }
        }
        self.end()?;
        match eth_type as u16 {
            ethertype::IPV4 => self.header("ipv4", IPV4)?,
            ethertype::IPV6 => self.header("ipv6", IPV6)?,
            ethertype::ARP | ethertype::RARP => self.header("arp", ARP)?,
            ethertype::MPLS | ethertype::MPLS_MULTICAST if field::MPLS.iter().any(|entry| mask.get(*entry) != 0) => {
                self.begin("mpls")?;
                write_mpls(self.list.out, key, mask)?;
                self.end()?;
            }
            ethertype::NSH
                if mask.words[field::NSH_FLAGS.word()..=field::NSH_C[3].word()].iter().any(|word| *word != 0) =>
            {
                self.begin("nsh")?;
                write_nsh(self.list.out, key, mask)?;
                self.end()?;
            }
            _ => {}
        }
        let is_ip = matches!(eth_type as u16, ethertype::IPV4 | ethertype::IPV6);
        if is_ip && key.get(field::NW_FRAG) != frag::LATER { self.layer_4(eth_type as u16) } else { Ok(()) }
    }

    fn layer_4(&mut self, eth_type: u16) -> fmt::Result {
        match self.key.get(field::NW_PROTO) as u8 {
            protocol::TCP => {
                self.header("tcp", PORTS)?;
                let bits = self.mask.get(field::TCP_FLAGS);
                if bits != 0 {
                    self.begin("tcp_flags")?;
                    let flags = self.key.get(field::TCP_FLAGS);
                    write_flags(self.list.out, TCP_FLAGS, flags, bits, field::TCP_FLAGS.max())?;
                    self.end()?;
                }
                Ok(())
            }
            protocol::UDP => self.header("udp", PORTS),
            protocol::SCTP => self.header("sctp", PORTS),
            protocol::ICMP if eth_type == ethertype::IPV4 => self.header("icmp", ICMP),
            protocol::ICMPV6 if eth_type == ethertype::IPV6 => {
                self.header("icmpv6", ICMP)?;
                let is_neighbour = matches!(self.key.get(field::TP_SRC), 135 | 136);
                if is_neighbour && self.mask.get(field::TP_SRC) & 0xff == 0xff {
                    self.header("nd", ND)?;
                    if is_looked_at(ND_EXT, self.mask) {
                        self.header("nd_ext", ND_EXT)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn tpid(key: &Key, tag: usize) -> u64 {
    key.get(field::VLAN_TPID[tag])
}

impl FromStr for FlowMatch {
    type Err = ParseError;

    fn from_str(text: &str) -> std::result::Result<FlowMatch, ParseError> {
        let mut cursor = Cursor::new(text);
        let flow = parse(&mut cursor)?;
        if cursor.is_at_end() { Ok(flow) } else { Err(cursor.error("the end of the flow")) }
    }
}

const ATTRIBUTES: &[&str] = &[
    "recirc_id",
    "dp_hash",
    "skb_priority",
    "tunnel",
    "in_port",
    "skb_mark",
    "ct_state",
    "ct_zone",
    "ct_mark",
    "ct_label",
    "ct_tuple4",
    "ct_tuple6",
    "packet_type",
    "eth",
    "eth_type",
    "vlan",
    "encap",
    "ipv4",
    "ipv6",
    "arp",
    "mpls",
    "nsh",
    "tcp",
    "tcp_flags",
    "udp",
    "sctp",
    "icmp",
    "icmpv6",
    "nd",
    "nd_ext",
];

/// A match under way.
struct Parser {
    flow: FlowMatch,
    seen: Vec<(&'static str, usize)>,
    /// How many `encap(` are open.
    depth: usize,
    tags: usize,
}

/// Reads attributes up to the end, or to the first thing that cannot begin one.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<FlowMatch> {
    let flow = FlowMatch { key: Key::EMPTY, mask: Mask::EMPTY };
    let mut parser = Parser { flow, seen: Vec::new(), depth: 0, tags: 0 };
    parser.attributes(cursor)?;
    let FlowMatch { key, mask } = &mut parser.flow;
    // A VLAN tag that is not named is one that is not there.
    if key.get(field::PACKET_TYPE_NS) == 0 {
        for tag in parser.tags..VLAN_TAGS {
            mask.set_exact(field::VLAN_TPID[tag]);
            mask.set_exact(field::VLAN_TCI[tag]);
        }
    }
    Ok(parser.flow)
}

impl Parser {
    fn attributes(&mut self, cursor: &mut Cursor<'_>) -> Result<()> {
        loop {
            cursor.skip_delimiters();
            if cursor.is_at_end() || cursor.rest().starts_with(')') {
                return Ok(());
            }
            let start = *cursor;
            let name = cursor.peek_name();
            let Some(name) = ATTRIBUTES.iter().find(|known| **known == name) else {
                return Err(cursor.unknown("the name of a field", ATTRIBUTES));
            };
            if self.seen.contains(&(name, self.depth)) && *name != "mpls" {
                return Err(start.error(format!("no second `{name}`")));
            }
            self.seen.push((name, self.depth));
            cursor.take(name);
            cursor.expect("(")?;
            self.attribute(cursor, name, start)?;
        }
    }

    fn attribute(&mut self, cursor: &mut Cursor<'_>, name: &str, start: Cursor<'_>) -> Result<()> {
        if let Some((_, field, kind)) = SINGLES.iter().find(|(known, ..)| *known == name) {
            return self.single(cursor, *field, *kind);
        }
        let FlowMatch { key, mask } = &mut self.flow;
        match name {
            "ct_state" => self.flags(cursor, field::CT_STATE, CT_STATES),
            "ct_label" => {
                key.set_wide(field::CT_LABEL, cursor.number_u128()?);
                mask.0.set_wide(field::CT_LABEL, if cursor.take("/") { cursor.number_u128()? } else { u128::MAX });
                cursor.expect(")")
            }
            "tunnel" => parse_tunnel(cursor, key, mask),
            "packet_type" => parse_subs(cursor, PACKET_TYPE, key, mask),
            "ct_tuple4" => parse_subs(cursor, CT_TUPLE4, key, mask),
            "ct_tuple6" => {
                key.set(field::CT_TUPLE6, 1);
                mask.set_exact(field::CT_TUPLE6);
                parse_subs(cursor, &tuple6_names(cursor), key, mask)
            }
            "eth" => parse_subs(cursor, ETH, key, mask),
            "eth_type" => self.eth_type(cursor),
            "vlan" => self.vlan(cursor, start),
            "encap" => self.encap(cursor, start),
            _ => self.layer_3_and_4(cursor, name, start),
        }
    }

    fn single(&mut self, cursor: &mut Cursor<'_>, field: Field, kind: Kind) -> Result<()> {
        let (value, bits) = parse_one(cursor, kind, field.max())?;
        self.flow.key.set(field, value);
        self.flow.mask.0.set(field, bits);
        cursor.expect(")")
    }

    fn flags(&mut self, cursor: &mut Cursor<'_>, field: Field, names: &[&str]) -> Result<()> {
        let (flags, bits) = parse_flags(cursor, names, field.max())?;
        self.flow.key.set(field, flags);
        self.flow.mask.0.set(field, bits);
        cursor.expect(")")
    }

    fn eth_type(&mut self, cursor: &mut Cursor<'_>) -> Result<()> {
        let (value, bits) = parse_one(cursor, Kind::Hex, 0xffff)?;
        let is_length = value == 0 && bits == 0xffff;
        self.flow.key.set(field::ETH_TYPE, if is_length { ethertype::NONE.into() } else { value });
        self.flow.mask.0.set(field::ETH_TYPE, bits);
        cursor.expect(")")
    }

    /// The ethertype before it was the TPID of this tag.
    fn vlan(&mut self, cursor: &mut Cursor<'_>, start: Cursor<'_>) -> Result<()> {
        let FlowMatch { key, mask } = &mut self.flow;
        let tpid = key.get(field::ETH_TYPE) as u16;
        if tpid != ethertype::VLAN && tpid != ethertype::QINQ {
            return Err(start.error("`eth_type(0x8100)` or `eth_type(0x88a8)` before `vlan`"));
        }
        if self.tags == VLAN_TAGS {
            return Err(start.error(format!("no more than {VLAN_TAGS} VLAN tags")));
        }
        let (tci, bits) = parse_vlan(cursor)?;
        key.set(field::VLAN_TPID[self.tags], tpid.into());
        mask.set_exact(field::VLAN_TPID[self.tags]);
        key.set(field::VLAN_TCI[self.tags], tci);
        mask.0.set(field::VLAN_TCI[self.tags], bits);
        key.set(field::ETH_TYPE, 0);
        mask.0.set(field::ETH_TYPE, 0);
        self.tags += 1;
        Ok(())
    }

    fn encap(&mut self, cursor: &mut Cursor<'_>, start: Cursor<'_>) -> Result<()> {
        if self.tags != self.depth + 1 {
            return Err(start.error("`vlan(...)` before `encap`"));
        }
        self.depth += 1;
        self.attributes(cursor)?;
        self.depth -= 1;
        cursor.expect(")")
    }

    fn layer_3_and_4(&mut self, cursor: &mut Cursor<'_>, name: &str, start: Cursor<'_>) -> Result<()> {
        let FlowMatch { key, mask } = &mut self.flow;
        let has = |field: Field, values: &[u64]| mask.get(field) == field.max() && values.contains(&key.get(field));
        let (ipv4, ipv6) = (u64::from(ethertype::IPV4), u64::from(ethertype::IPV6));
        let types: &[u64] = match name {
            "ipv4" | "icmp" => &[ipv4],
            "ipv6" | "icmpv6" | "nd" | "nd_ext" => &[ipv6],
            "arp" => &[0x0806, 0x8035],
            "mpls" => &[0x8847, 0x8848],
            "nsh" => &[0x894f],
            _ => &[ipv4, ipv6],
        };
        if !has(field::ETH_TYPE, types) {
            return Err(start.error_with_hint(
                format!("`eth_type(0x{:04x})` before `{name}`", types[0]),
                "a header can only be matched where the one before says that it is there",
            ));
        }
        let number = match name {
            "tcp" | "tcp_flags" => Some(protocol::TCP),
            "udp" => Some(protocol::UDP),
            "sctp" => Some(protocol::SCTP),
            "icmp" => Some(protocol::ICMP),
            "icmpv6" | "nd" | "nd_ext" => Some(protocol::ICMPV6),
            _ => None,
        };
        if let Some(number) = number.filter(|number| !has(field::NW_PROTO, &[u64::from(*number)])) {
            return Err(start.error(format!("`proto={number}` in the IP header before `{name}`")));
        }
        match name {
            "ipv4" => parse_subs(cursor, IPV4, key, mask),
            "ipv6" => parse_subs(cursor, IPV6, key, mask),
            "arp" => parse_subs(cursor, ARP, key, mask),
            "mpls" => parse_mpls(cursor, key, mask),
            "nsh" => parse_nsh(cursor, key, mask),
            "tcp_flags" => self.flags(cursor, field::TCP_FLAGS, TCP_FLAGS),
            "icmp" | "icmpv6" => parse_subs(cursor, ICMP, key, mask),
            "nd" => parse_subs(cursor, ND, key, mask),
            "nd_ext" => parse_subs(cursor, ND_EXT, key, mask),
            _ => parse_subs(cursor, PORTS, key, mask),
        }
    }
}

/// The ports of `ct_tuple6` are printed under other names than they are read by.
fn tuple6_names(cursor: &Cursor<'_>) -> Vec<Sub> {
    let inside = cursor.rest().split(')').next().unwrap_or_default();
    let ports = if inside.contains("tp_") { &CT_TUPLE4[3..] } else { &CT_TUPLE6[3..] };
    CT_TUPLE6[..3].iter().chain(ports).copied().collect()
}
