//! The match of a megaflow as a pattern of items.

use crate::Refusal;
use flow::key::{Field, VLAN_PRESENT, Wide, field, frag};
use flow::text::FlowMatch;
use flow::{Key, Mask, PortNo, ethertype, protocol};
use rte_rule::{Eth, FlowItem, Icmp, Ipv4, Ipv6, L4Ports, Match, Tcp, Vlan};

/// The pattern of a flow, and the headers that it implies.
pub(crate) struct Pattern {
    pub(crate) items: Vec<FlowItem>,
    pub(crate) headers: Headers,
}

/// The headers that every packet of a flow has.
pub(crate) struct Headers {
    /// Smallest number of VLAN tags.
    pub(crate) tags: usize,
    /// EtherType behind the tags, where it is known.
    pub(crate) eth_type: Option<u16>,
    /// Transport protocol, where every packet has its header.
    pub(crate) protocol: Option<u8>,
    /// Smallest TTL.
    pub(crate) ttl: u8,
}

/// The fields of a flow's match that no item covers yet. Those left at the end have no item.
struct UnmatchedFields<'a> {
    key: &'a Key,
    left: Mask,
}

impl UnmatchedFields<'_> {
    fn value(&self, field: Field) -> u64 {
        self.key.get(field)
    }

    /// Takes the mask of a field.
    fn take(&mut self, field: Field) -> u64 {
        self.take_bits(field, field.max())
    }

    /// Takes the mask of these bits of a field.
    fn take_bits(&mut self, field: Field, bits: u64) -> u64 {
        let mask = self.left.get(field);
        self.left.0.set(field, mask & !bits);
        mask & bits
    }

    /// Takes value and mask of a field.
    fn pair(&mut self, field: Field) -> (u64, u64) {
        let mask = self.take(field);
        (self.value(field) & mask, mask)
    }

    fn pair_wide(&mut self, wide: Wide) -> (u128, u128) {
        let mask = self.left.get_wide(wide);
        self.left.0.set_wide(wide, 0);
        (self.key.get_wide(wide) & mask, mask)
    }

    fn is_exact(&self, field: Field) -> bool {
        self.left.get(field) == field.max()
    }
}

impl Pattern {
    pub(crate) fn of(key: &Key, mask: &Mask, device_port: impl Fn(PortNo) -> Option<u16>) -> Result<Pattern, Refusal> {
        let mut flow = UnmatchedFields { key, left: *mask };
        let mut items = Vec::with_capacity(5);
        if flow.is_exact(field::IN_PORT) {
            flow.take(field::IN_PORT);
            let port = flow.value(field::IN_PORT) as PortNo;
            items.push(FlowItem::RepresentedPort(device_port(port).ok_or(Refusal::Port(port))?));
        }
        flow.take_constants();
        let eth_type = flow.is_exact(field::ETH_TYPE).then(|| flow.value(field::ETH_TYPE) as u16);
        // The bits that are matched: whatever the others are, the TTL is as large.
        let ttl = (flow.value(field::NW_TTL) & flow.left.get(field::NW_TTL)) as u8;
        let tags = flow.layer_2(&mut items);
        let protocol = match eth_type {
            Some(ethertype::IPV4) => flow.ipv4(&mut items),
            Some(ethertype::IPV6) => flow.ipv6(&mut items),
            _ => None,
        };
        match protocol {
            Some(protocol::TCP) => items.push(flow.tcp()),
            Some(protocol::UDP) => items.push(FlowItem::Udp(flow.ports())),
            Some(protocol::SCTP) => items.push(FlowItem::Sctp(flow.ports())),
            Some(protocol::ICMP) if eth_type == Some(ethertype::IPV4) => items.push(FlowItem::Icmp(flow.icmp())),
            Some(protocol::ICMPV6) if eth_type == Some(ethertype::IPV6) => items.push(FlowItem::Icmp6(flow.icmp())),
            _ => {}
        }
        if flow.left != Mask::EMPTY {
            // With the fields that say what the others mean.
            let context = mask.intersection(&Mask::exact(&[field::ETH_TYPE, field::NW_PROTO]));
            let mask = flow.left.union(&context);
            return Err(Refusal::Match(Box::new(FlowMatch { key: *key, mask })));
        }
        Ok(Pattern { items, headers: Headers { tags, eth_type, protocol, ttl } })
    }
}

impl UnmatchedFields<'_> {
    /// Takes the fields that are the same for every packet from a port: it is Ethernet, was not recirculated, and has no metadata.
    fn take_constants(&mut self) {
        const FIELDS: [Field; 12] = [
            field::RECIRC_ID,
            field::PACKET_TYPE_NS,
            field::PACKET_TYPE_ID,
            field::SKB_PRIORITY,
            field::SKB_MARK,
            field::DP_HASH,
            field::CT_STATE,
            field::CT_ZONE,
            field::CT_MARK,
            field::TUN_ID,
            field::TUN_IPV4_SRC,
            field::TUN_IPV4_DST,
        ];
        for field in FIELDS {
            if self.value(field) & self.left.get(field) == 0 {
                self.take(field);
            }
        }
    }

    /// Ethernet and up to two VLAN tags. Returns how many tags.
    fn layer_2(&mut self, items: &mut Vec<FlowItem>) -> usize {
        let ((dst, dst_mask), (src, src_mask)) = (self.pair(field::ETH_DST), self.pair(field::ETH_SRC));
        let mut eth = Match {
            spec: Eth { dst: mac(dst), src: mac(src), ..Eth::default() },
            mask: Eth { dst: mac(dst_mask), src: mac(src_mask), ..Eth::default() },
        };
        let tags: Vec<Tag> = (0..2).map_while(|i| self.tag(i)).collect();
        if tags.is_empty() && self.take_untagged(0) {
            eth.mask.has_vlan = true;
        }
        // A type that is matched says that no tag follows.
        let (kind, kind_mask) = self.eth_type();
        if kind_mask != 0 {
            for i in tags.len()..2 {
                self.take_untagged(i);
            }
        }
        // Each layer says what the next one is.
        let mut types: Vec<_> = tags.iter().map(|tag| (tag.tpid, tag.tpid_mask)).collect();
        types.push((kind, kind_mask));
        (eth.spec.ether_type, eth.mask.ether_type) = types[0];
        if !tags.is_empty() {
            (eth.spec.has_vlan, eth.mask.has_vlan) = (true, true);
        }
        items.push(FlowItem::Eth(eth));
        for (tag, (inner, inner_mask)) in tags.iter().zip(&types[1..]) {
            items.push(FlowItem::Vlan(Match {
                spec: Vlan { tci: tag.tci, inner_type: *inner },
                mask: Vlan { tci: tag.tci_mask, inner_type: *inner_mask },
            }));
        }
        tags.len()
    }

    /// The type behind the tags. A frame with a length instead of a type has nothing that an item could match.
    fn eth_type(&mut self) -> (u16, u16) {
        if self.value(field::ETH_TYPE) < u64::from(ethertype::MIN) || !self.is_exact(field::ETH_TYPE) {
            return (0, 0);
        }
        let (value, mask) = self.pair(field::ETH_TYPE);
        (value as u16, mask as u16)
    }

    /// A VLAN tag that every packet of the flow has.
    fn tag(&mut self, i: usize) -> Option<Tag> {
        let (tci, tpid) = (field::VLAN_TCI[i], field::VLAN_TPID[i]);
        if self.value(tci) & self.left.get(tci) & VLAN_PRESENT == 0 || !self.is_exact(tpid) {
            return None;
        }
        let ((tci, tci_mask), (tpid, tpid_mask)) = (self.pair(tci), self.pair(tpid));
        Some(Tag {
            tci: (tci & !VLAN_PRESENT) as u16,
            tci_mask: (tci_mask & !VLAN_PRESENT) as u16,
            tpid: tpid as u16,
            tpid_mask: tpid_mask as u16,
        })
    }

    /// Takes that there is no tag here, where the flow says so. Returns whether it does.
    fn take_untagged(&mut self, i: usize) -> bool {
        let (tci, tpid) = (field::VLAN_TCI[i], field::VLAN_TPID[i]);
        let says = self.left.get(tci) & VLAN_PRESENT != 0
            && self.value(tci) & self.left.get(tci) == 0
            && self.value(tpid) & self.left.get(tpid) == 0;
        if says {
            self.take(tci);
            self.take(tpid);
        }
        says
    }

    /// IPv4. Returns the transport protocol where the flow says which.
    fn ipv4(&mut self, items: &mut Vec<FlowItem>) -> Option<u8> {
        let protocol = self.protocol();
        let ((src, src_mask), (dst, dst_mask)) = (self.pair(field::IPV4_SRC), self.pair(field::IPV4_DST));
        let ((proto, proto_mask), (tos, tos_mask)) = (self.pair(field::NW_PROTO), self.pair(field::NW_TOS));
        let (ttl, ttl_mask) = self.pair(field::NW_TTL);
        let (fragment, fragment_mask) = self.ipv4_fragment();
        let ip = |src: u64, dst: u64, proto: u64, ttl: u64, tos: u64, fragment| Ipv4 {
            src: (src as u32).to_be_bytes(),
            dst: (dst as u32).to_be_bytes(),
            proto: proto as u8,
            ttl: ttl as u8,
            tos: tos as u8,
            fragment,
        };
        items.push(FlowItem::Ipv4(Match {
            spec: ip(src, dst, proto, ttl, tos, fragment),
            mask: ip(src_mask, dst_mask, proto_mask, ttl_mask, tos_mask, fragment_mask),
        }));
        protocol
    }

    /// Flags and offset, with mask. That an offset is not zero cannot be said by a mask.
    fn ipv4_fragment(&mut self) -> (u16, u16) {
        const MORE: u16 = 0x2000;
        const OFFSET: u16 = 0x1fff;
        const ALL: u64 = frag::FIRST | frag::LATER;
        let mask = self.left.get(field::NW_FRAG) & ALL;
        let fragment = match (self.value(field::NW_FRAG) & mask, mask) {
            (_, 0) => (0, 0),
            (frag::NO, ALL) => (0, MORE | OFFSET),
            (frag::NO, frag::LATER) => (0, OFFSET),
            (frag::FIRST, ALL) => (MORE, MORE | OFFSET),
            _ => return (0, 0),
        };
        self.take(field::NW_FRAG);
        fragment
    }

    /// IPv6. A packet with extension headers does not match a transport protocol here: it goes to the workers.
    fn ipv6(&mut self, items: &mut Vec<FlowItem>) -> Option<u8> {
        let protocol = self.protocol();
        let ((src, src_mask), (dst, dst_mask)) = (self.pair_wide(field::IPV6_SRC), self.pair_wide(field::IPV6_DST));
        let ((proto, proto_mask), (class, class_mask)) = (self.pair(field::NW_PROTO), self.pair(field::NW_TOS));
        let ((hops, hops_mask), (label, label_mask)) = (self.pair(field::NW_TTL), self.pair(field::IPV6_LABEL));
        let unfragmented = self.is_exact(field::NW_FRAG) && self.value(field::NW_FRAG) == frag::NO;
        if unfragmented {
            self.take(field::NW_FRAG);
        }
        let ip = |src: u128, dst: u128, proto: u64, hops: u64, class: u64, label: u64| Ipv6 {
            src: src.to_be_bytes(),
            dst: dst.to_be_bytes(),
            proto: proto as u8,
            hop_limit: hops as u8,
            traffic_class: class as u8,
            flow_label: label as u32,
            has_fragment: false,
        };
        items.push(FlowItem::Ipv6(Match {
            spec: ip(src, dst, proto, hops, class, label),
            mask: Ipv6 {
                has_fragment: unfragmented,
                ..ip(src_mask, dst_mask, proto_mask, hops_mask, class_mask, label_mask)
            },
        }));
        protocol
    }

    /// The transport protocol, where every packet of the flow has its header.
    fn protocol(&self) -> Option<u8> {
        let offset_zero =
            self.left.get(field::NW_FRAG) & frag::LATER != 0 && self.value(field::NW_FRAG) & frag::LATER == 0;
        (self.is_exact(field::NW_PROTO) && offset_zero).then(|| self.value(field::NW_PROTO) as u8)
    }

    fn ports(&mut self) -> Match<L4Ports> {
        let ((src, src_mask), (dst, dst_mask)) = (self.pair(field::TP_SRC), self.pair(field::TP_DST));
        let ports = |src: u64, dst: u64| L4Ports { src: src as u16, dst: dst as u16 };
        Match { spec: ports(src, dst), mask: ports(src_mask, dst_mask) }
    }

    /// TCP, with the eight flags that items have. The four above them stay.
    fn tcp(&mut self) -> FlowItem {
        let Match { spec, mask } = self.ports();
        let flags_mask = self.take_bits(field::TCP_FLAGS, 0xff);
        let flags = self.value(field::TCP_FLAGS) & flags_mask;
        let tcp = |ports: L4Ports, flags: u64| Tcp { src: ports.src, dst: ports.dst, flags: flags as u8 };
        FlowItem::Tcp(Match { spec: tcp(spec, flags), mask: tcp(mask, flags_mask) })
    }

    /// Type and code: eight bits of what are 16 in other protocols, the rest of which are zero in every packet.
    fn icmp(&mut self) -> Match<Icmp> {
        let ((kind, kind_mask), (code, code_mask)) = (self.pair(field::TP_SRC), self.pair(field::TP_DST));
        let icmp = |kind: u64, code: u64| Icmp { kind: kind as u8, code: code as u8 };
        Match { spec: icmp(kind, code), mask: icmp(kind_mask, code_mask) }
    }
}

/// One VLAN tag's match.
struct Tag {
    tci: u16,
    tci_mask: u16,
    tpid: u16,
    tpid_mask: u16,
}

pub(crate) fn mac(value: u64) -> [u8; 6] {
    let [_, _, mac @ ..] = value.to_be_bytes();
    mac
}
