//! The header changes of a megaflow as actions of rte_flow.

use crate::Refusal;
use crate::pattern::{Headers, mac};
use flow::action::{Header, SetField as Set};
use flow::key::{Field, VLAN_PRESENT, Wide, field};
use flow::{Action, HeaderEdit, Mask, ethertype, protocol};
use rte_rule::{FlowAction, SetField};

const VID: u64 = 0x0fff;
const PCP: u64 = 0xe000;

/// Adds to `to` the equivalent of `action` for packets with these headers, and changes the headers accordingly.
pub(crate) fn rewrite(action: &Action, headers: &mut Headers, to: &mut Vec<FlowAction>) -> Result<(), Refusal> {
    let refused = |reason| Err(Refusal::action(action, reason));
    match action {
        Action::Header(HeaderEdit::PopVlan) if headers.tags == 0 => {
            return refused("the flow does not say that there is a tag");
        }
        Action::Header(HeaderEdit::PopVlan) => {
            headers.tags -= 1;
            to.push(FlowAction::PopVlan);
        }
        Action::Header(HeaderEdit::PushVlan { tpid, tci }) => {
            headers.tags += 1;
            to.push(FlowAction::PushVlan(*tpid));
            to.extend(tag((*tci).into(), VID | PCP).map(FlowAction::Set));
        }
        // No rule says what a NIC does when the TTL expires, so its rules match only packets whose TTL does not.
        Action::DecTtl { .. } if headers.ttl < 2 => return refused("the flow does not say that the TTL is above 1"),
        Action::DecTtl { .. } => {
            headers.ttl -= 1;
            to.push(FlowAction::DecTtl);
        }
        Action::Set(set) if !headers.have(set.header) => {
            return refused("the flow does not say that it has this header");
        }
        Action::Set(set) => match split_fields(set) {
            Some(fields) => to.extend(fields.into_iter().map(FlowAction::Set)),
            None => return refused("rte_flow sets only whole fields, and not every field"),
        },
        Action::Output(_) => return refused("a rule of rte_flow has one output"),
        Action::Userspace(_)
        | Action::Header(_)
        | Action::AddMpls { .. }
        | Action::Recirc(_)
        | Action::Hash { .. }
        | Action::Sample { .. }
        | Action::Trunc(_)
        | Action::Clone(_)
        | Action::CheckPktLen { .. }
        | Action::Meter(_)
        | Action::Drop
        | Action::Ct(_)
        | Action::CtClear
        | Action::TnlPush(_)
        | Action::TnlPop(_)
        | Action::LbOutput(_) => return refused("has no rte_flow equivalent"),
    }
    Ok(())
}

impl Headers {
    fn have(&self, header: Header) -> bool {
        match header {
            Header::Vlan => self.tags > 0,
            Header::Ipv4 => self.eth_type == Some(ethertype::IPV4),
            Header::Ipv6 => self.eth_type == Some(ethertype::IPV6),
            Header::Tcp => self.protocol == Some(protocol::TCP),
            Header::Udp => self.protocol == Some(protocol::UDP),
            // `split_fields` refuses all of these but Ethernet, which every packet has.
            Header::Eth
            | Header::EthType
            | Header::Mpls
            | Header::Sctp
            | Header::Icmp
            | Header::Icmpv6
            | Header::Arp
            | Header::Nd
            | Header::NdExt
            | Header::Nsh
            | Header::Tunnel
            | Header::InPort
            | Header::SkbPriority
            | Header::SkbMark
            | Header::DpHash => true,
        }
    }
}

/// The fields that a `set` action sets. `None` if a field is not set as a whole, or has no action of rte_flow.
fn split_fields(set: &Set) -> Option<Vec<SetField>> {
    let mut splitter = FieldSplitter { set, left: set.mask, fields: Vec::new() };
    match set.header {
        Header::Eth => {
            splitter.one(field::ETH_SRC, |value| SetField::MacSrc(mac(value)));
            splitter.one(field::ETH_DST, |value| SetField::MacDst(mac(value)));
        }
        Header::Ipv4 => {
            splitter.one(field::IPV4_SRC, |value| SetField::Ipv4Src((value as u32).to_be_bytes()));
            splitter.one(field::IPV4_DST, |value| SetField::Ipv4Dst((value as u32).to_be_bytes()));
            splitter.one(field::NW_TTL, |value| SetField::Ttl(value as u8));
        }
        Header::Ipv6 => {
            splitter.wide(field::IPV6_SRC, SetField::Ipv6Src);
            splitter.wide(field::IPV6_DST, SetField::Ipv6Dst);
            splitter.one(field::NW_TTL, |value| SetField::Ttl(value as u8));
        }
        Header::Tcp | Header::Udp => {
            splitter.one(field::TP_SRC, |value| SetField::TpSrc(value as u16));
            splitter.one(field::TP_DST, |value| SetField::TpDst(value as u16));
        }
        Header::Vlan => splitter.tag(),
        Header::EthType
        | Header::Mpls
        | Header::Sctp
        | Header::Icmp
        | Header::Icmpv6
        | Header::Arp
        | Header::Nd
        | Header::NdExt
        | Header::Nsh
        | Header::Tunnel
        | Header::InPort
        | Header::SkbPriority
        | Header::SkbMark
        | Header::DpHash => {}
    }
    (splitter.left == Mask::EMPTY).then_some(splitter.fields)
}

/// Splits a `set` action into fields, which it takes from the action's mask one by one.
struct FieldSplitter<'a> {
    set: &'a Set,
    left: Mask,
    fields: Vec<SetField>,
}

impl FieldSplitter<'_> {
    fn one(&mut self, field: Field, make: impl Fn(u64) -> SetField) {
        if self.left.get(field) == field.max() {
            self.left.0.set(field, 0);
            self.fields.push(make(self.set.key.get(field)));
        }
    }

    fn wide(&mut self, wide: Wide, make: impl Fn([u8; 16]) -> SetField) {
        if self.left.get_wide(wide) == u128::MAX {
            self.left.0.set_wide(wide, 0);
            self.fields.push(make(self.set.key.get_wide(wide).to_be_bytes()));
        }
    }

    fn tag(&mut self) {
        let tci = field::VLAN_TCI[0];
        let bits = self.left.get(tci) & !VLAN_PRESENT;
        if matches!(bits & VID, 0 | VID) && matches!(bits & PCP, 0 | PCP) {
            self.left.0.set(tci, 0);
            self.fields.extend(tag(self.set.key.get(tci), bits));
        }
    }
}

/// Sets the parts of a VLAN tag that `bits` names.
fn tag(tci: u64, bits: u64) -> impl Iterator<Item = SetField> {
    let vid = (bits & VID != 0).then_some(SetField::VlanVid((tci & VID) as u16));
    let pcp = (bits & PCP != 0).then_some(SetField::VlanPcp((tci >> 13) as u8));
    vid.into_iter().chain(pcp)
}
