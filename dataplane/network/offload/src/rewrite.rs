//! What a megaflow changes, as actions.

use crate::Refusal;
use crate::pattern::{Headers, mac};
use dpdk::flow::{FlowAction, SetField};
use flow::action::{Header, SetField as Set};
use flow::key::{Field, VLAN_PRESENT, Wide, field};
use flow::{Action, HeaderEdit, Mask, ethertype, protocol};

const VID: u64 = 0x0fff;
const PCP: u64 = 0xe000;

/// Adds to `to` what does the same as `action` to packets that have these headers, which it may change.
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
        // What hardware does with a TTL that is spent, no rule says: it gets only packets whose TTL cannot be.
        Action::DecTtl { .. } if headers.ttl < 2 => return refused("the flow does not say that the TTL is above 1"),
        Action::DecTtl { .. } => {
            headers.ttl -= 1;
            to.push(FlowAction::DecTtl);
        }
        Action::Set(set) if !headers.have(set.header) => {
            return refused("the flow does not say that it has this header");
        }
        Action::Set(set) => match fields(set) {
            Some(fields) => to.extend(fields.into_iter().map(FlowAction::Set)),
            None => return refused("hardware sets only whole fields, and not every field"),
        },
        Action::Output(_) => return refused("hardware has one output a rule"),
        _ => return refused("hardware does not do it"),
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
            _ => true,
        }
    }
}

/// The fields that are set, if hardware sets each of them, and each is set as a whole.
fn fields(set: &Set) -> Option<Vec<SetField>> {
    let mut whole = Whole { set, left: set.mask, fields: Vec::new() };
    match set.header {
        Header::Eth => {
            whole.one(field::ETH_SRC, |value| SetField::MacSrc(mac(value)));
            whole.one(field::ETH_DST, |value| SetField::MacDst(mac(value)));
        }
        Header::Ipv4 => {
            whole.one(field::IPV4_SRC, |value| SetField::Ipv4Src((value as u32).to_be_bytes()));
            whole.one(field::IPV4_DST, |value| SetField::Ipv4Dst((value as u32).to_be_bytes()));
            whole.one(field::NW_TTL, |value| SetField::Ttl(value as u8));
        }
        Header::Ipv6 => {
            whole.wide(field::IPV6_SRC, SetField::Ipv6Src);
            whole.wide(field::IPV6_DST, SetField::Ipv6Dst);
            whole.one(field::NW_TTL, |value| SetField::Ttl(value as u8));
        }
        Header::Tcp | Header::Udp => {
            whole.one(field::TP_SRC, |value| SetField::TpSrc(value as u16));
            whole.one(field::TP_DST, |value| SetField::TpDst(value as u16));
        }
        Header::Vlan => whole.tag(),
        _ => {}
    }
    (whole.left == Mask::EMPTY).then_some(whole.fields)
}

/// The fields of a `set` action, taken from its mask one after the other.
struct Whole<'a> {
    set: &'a Set,
    left: Mask,
    fields: Vec<SetField>,
}

impl Whole<'_> {
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

/// Sets those parts of a tag whose bits are given.
fn tag(tci: u64, bits: u64) -> impl Iterator<Item = SetField> {
    let vid = (bits & VID != 0).then_some(SetField::VlanVid((tci & VID) as u16));
    let pcp = (bits & PCP != 0).then_some(SetField::VlanPcp((tci >> 13) as u8));
    vid.into_iter().chain(pcp)
}
