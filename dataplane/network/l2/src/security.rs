//! Port security: the addresses that a port may use as a source.

use crate::{IpPrefix, Mac};
use datapath::Tracked;
use flow::key::frag;
use flow::{ethertype, field, protocol};

/// The addresses that the station behind a port has. Where both lists are empty it may use any.
///
/// With addresses named, ARP and neighbour discovery must name the frame's own source address, and with IP addresses named,
/// only those: so no other station's address can be claimed. A link-local IPv6 address made of the MAC address is always allowed,
/// and so is what a station sends that has no address yet: DHCP, and duplicate address detection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// MAC addresses; any if there are none.
    pub macs: Vec<Mac>,
    /// IP addresses and prefixes; any if there are none.
    pub ips: Vec<IpPrefix>,
}

const ICMPV6_LISTENER_REPORTS: [u64; 2] = [131, 143];
const ICMPV6_ROUTER_SOLICITATION: u64 = 133;
const ICMPV6_NEIGHBOUR_SOLICITATION: u64 = 135;
const ICMPV6_NEIGHBOUR_ADVERTISEMENT: u64 = 136;
const DHCP_CLIENT: u64 = 68;
const DHCP_SERVER: u64 = 67;

impl Security {
    /// Whether the packet says the truth about where it comes from. Looks at no more than what decides.
    pub(crate) fn admits(&self, packet: &mut Tracked<'_>) -> bool {
        if self.macs.is_empty() && self.ips.is_empty() {
            return true;
        }
        let source = Mac::new(packet.get(field::ETH_SRC));
        if !self.macs.is_empty() && !self.macs.contains(&source) {
            return false;
        }
        match packet.get(field::ETH_TYPE) as u16 {
            ethertype::ARP | ethertype::RARP => {
                packet.get(field::ARP_SHA) == source.bits() && self.admits_arp_sender(packet)
            }
            ethertype::IPV4 => self.ips.is_empty() || self.admits_ipv4(packet),
            ethertype::IPV6 => self.admits_ipv6(packet, source) && self.admits_neighbour(packet, source),
            _ => true,
        }
    }

    fn admits_arp_sender(&self, packet: &mut Tracked<'_>) -> bool {
        // 0 is a probe: RFC 5227, section 2.1.1.
        self.ips.is_empty() || {
            let sender = packet.get(field::IPV4_SRC) as u32;
            sender == 0 || self.ips.iter().any(|ip| ip.contains_v4(sender))
        }
    }

    fn admits_ipv4(&self, packet: &mut Tracked<'_>) -> bool {
        let source = packet.get(field::IPV4_SRC) as u32;
        if self.ips.iter().any(|ip| ip.contains_v4(source)) {
            return true;
        }
        source == 0
            && packet.get(field::NW_FRAG) == frag::NO
            && packet.get(field::NW_PROTO) == u64::from(protocol::UDP)
            && packet.get(field::TP_SRC) == DHCP_CLIENT
            && packet.get(field::TP_DST) == DHCP_SERVER
    }

    fn admits_ipv6(&self, packet: &mut Tracked<'_>, mac: Mac) -> bool {
        if self.ips.is_empty() {
            return true;
        }
        let source = packet.get_wide(field::IPV6_SRC);
        if self.has_ipv6(source, mac) {
            return true;
        }
        source == 0 && packet.get(field::NW_PROTO) == u64::from(protocol::ICMPV6) && {
            let kind = packet.get(field::TP_SRC);
            ICMPV6_LISTENER_REPORTS.contains(&kind)
                || kind == ICMPV6_NEIGHBOUR_SOLICITATION
                || kind == ICMPV6_ROUTER_SOLICITATION
        }
    }

    fn admits_neighbour(&self, packet: &mut Tracked<'_>, mac: Mac) -> bool {
        if packet.get(field::NW_PROTO) != u64::from(protocol::ICMPV6) {
            return true;
        }
        let own = |address: u64| address == 0 || address == mac.bits();
        match packet.get(field::TP_SRC) {
            ICMPV6_NEIGHBOUR_SOLICITATION => packet.get(field::TP_DST) != 0 || own(packet.get(field::ARP_SHA)),
            ICMPV6_NEIGHBOUR_ADVERTISEMENT => {
                packet.get(field::TP_DST) != 0
                    || own(packet.get(field::ARP_THA))
                        && (self.ips.is_empty() || self.has_ipv6(packet.get_wide(field::ND_TARGET), mac))
            }
            _ => true,
        }
    }

    fn has_ipv6(&self, address: u128, mac: Mac) -> bool {
        address == link_local(mac) || self.ips.iter().any(|ip| ip.contains_v6(address))
    }
}

/// The link-local address made of a MAC address: RFC 4291, appendix A.
fn link_local(mac: Mac) -> u128 {
    let bits = mac.bits();
    let identifier = (bits >> 24 ^ 0x02_0000) << 40 | 0xff_fe00_0000 | bits & 0xff_ffff;
    0xfe80 << 112 | u128::from(identifier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::Key;

    const MAC: u64 = 0x5254_0012_3456;

    fn security() -> Security {
        Security { macs: vec![Mac::new(MAC)], ips: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()] }
    }

    fn key(fields: &[(flow::key::Field, u64)]) -> Key {
        let mut key = Key::EMPTY;
        key.set(field::ETH_SRC, MAC);
        fields.iter().for_each(|(field, value)| key.set(*field, *value));
        key
    }

    fn admits(key: &Key) -> bool {
        security().admits(&mut Tracked::new(key))
    }

    fn ipv6(source: u128, kind: u64, fields: &[(flow::key::Field, u64)]) -> Key {
        let mut key = key(&[(field::ETH_TYPE, 0x86dd), (field::NW_PROTO, 58), (field::TP_SRC, kind)]);
        fields.iter().for_each(|(field, value)| key.set(*field, *value));
        key.set_wide(field::IPV6_SRC, source);
        key
    }

    #[test]
    fn a_port_may_use_only_its_own_mac_and_ipv4_addresses() {
        let ipv4 = |source: u64| key(&[(field::ETH_TYPE, 0x800), (field::IPV4_SRC, source)]);
        assert!(admits(&ipv4(0x0a00_0005)) && !admits(&ipv4(0x0a00_0006)) && !admits(&ipv4(0)));
        assert!(!admits(&key(&[(field::ETH_SRC, MAC + 1), (field::ETH_TYPE, 0x9000)])));
        assert!(admits(&key(&[(field::ETH_TYPE, 0x9000)])), "neither IP nor ARP");
        let dhcp = [(field::ETH_TYPE, 0x800), (field::NW_PROTO, 17), (field::TP_SRC, 68), (field::TP_DST, 67)];
        assert!(admits(&key(&dhcp)));
        let server = [(field::ETH_TYPE, 0x800), (field::NW_PROTO, 17), (field::TP_SRC, 67), (field::TP_DST, 68)];
        assert!(!admits(&key(&server)));
    }

    #[test]
    fn arp_with_another_sender_is_refused() {
        let arp = |sha: u64, spa: u64| key(&[(field::ETH_TYPE, 0x806), (field::ARP_SHA, sha), (field::IPV4_SRC, spa)]);
        assert!(admits(&arp(MAC, 0x0a00_0005)) && admits(&arp(MAC, 0)));
        assert!(!admits(&arp(MAC, 0x0a00_0001)) && !admits(&arp(MAC + 1, 0x0a00_0005)) && !admits(&arp(0, 0)));
    }

    #[test]
    fn neighbour_discovery_with_another_sender_is_refused() {
        let link_local = 0xfe80 << 112 | 0x5054_00ff_fe12_3456;
        let own = 0xfd00 << 112 | 5;
        assert!(admits(&ipv6(own, 128, &[])) && admits(&ipv6(link_local, 128, &[])));
        assert!(!admits(&ipv6(own + 1, 128, &[])) && !admits(&ipv6(0, 128, &[])));
        assert!(admits(&ipv6(0, 135, &[])), "duplicate address detection");
        assert!(admits(&ipv6(own, 135, &[(field::ARP_SHA, MAC)])));
        assert!(!admits(&ipv6(own, 135, &[(field::ARP_SHA, MAC + 1)])));
        let mut advertisement = ipv6(own, 136, &[(field::ARP_THA, MAC)]);
        assert!(!admits(&advertisement), "no target");
        advertisement.set_wide(field::ND_TARGET, own);
        assert!(admits(&advertisement));
        advertisement.set_wide(field::ND_TARGET, own + 1);
        assert!(!admits(&advertisement));
    }

    #[test]
    fn the_mask_has_the_fields_that_decided() {
        let mut spoofed = key(&[(field::ETH_SRC, MAC + 1)]);
        let mut packet = Tracked::new(&spoofed);
        assert!(!security().admits(&mut packet));
        assert_eq!(packet.mask(), flow::Mask::exact(&[field::ETH_SRC]));
        spoofed = key(&[(field::ETH_TYPE, 0x800), (field::IPV4_SRC, 1)]);
        let mut packet = Tracked::new(&spoofed);
        assert!(!security().admits(&mut packet));
        assert_eq!(packet.mask(), flow::Mask::exact(&[field::ETH_SRC, field::ETH_TYPE, field::IPV4_SRC]));
    }
}
