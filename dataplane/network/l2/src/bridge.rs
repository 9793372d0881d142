//! Bridges: the decision over one packet. The caches in front only remember what is decided here.

use crate::mac_table::{FdbKey, MacTable};
use crate::vlan::{Tag, VlanMode};
use crate::{Mac, PortNo, Security};
use datapath::{DropReason, Tracked};
use flow::key::VLAN_PRESENT;
use flow::{Action, HeaderEdit, ethertype, field};
use std::collections::BTreeMap;

/// How a port takes part in its bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// The VLANs of the port.
    pub vlan: VlanMode,
    /// The addresses behind the port.
    pub security: Security,
    /// Packets a second from this port that may be flooded; any number if not set.
    pub flood_pps: Option<u64>,
}

/// A port of a bridge, with the meter that holds its flood limit.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) config: BridgePort,
    pub(crate) meter: Option<u32>,
}

/// An IEEE 802.1Q bridge without spanning tree.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) members: BTreeMap<PortNo, Member>,
    pub(crate) stations: MacTable,
    pub(crate) meter: Option<u32>,
}

/// A packet that a bridge takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// The sender.
    pub(crate) source: FdbKey,
    /// The receiver: a station or a group.
    pub(crate) destination: FdbKey,
    tci: u64,
    tpid: u16,
}

impl Bridge {
    /// Whether the bridge takes a packet from `member`.
    pub(crate) fn admit(&self, member: &Member, packet: &mut Tracked<'_>) -> Result<Admitted, DropReason> {
        let (tci, tpid) = (packet.get(field::VLAN_TCI[0]), packet.get(field::VLAN_TPID[0]) as u16);
        let vlan = member.config.vlan.ingress(tci).ok_or(DropReason::Vlan)?;
        let source = Mac::new(packet.get(field::ETH_SRC));
        if !source.is_station() {
            return Err(DropReason::BadSource);
        }
        if !member.config.security.admits(packet) {
            return Err(DropReason::Spoofed);
        }
        let destination = Mac::new(packet.get(field::ETH_DST));
        if destination.is_link_local() {
            return Err(DropReason::LinkLocal);
        }
        let station = |mac| FdbKey { vlan, mac };
        Ok(Admitted { source: station(source), destination: station(destination), tci, tpid })
    }

    /// Where an admitted packet goes: out by one port, or by all that carry its VLAN.
    pub(crate) fn forward(&self, in_port: PortNo, packet: &Admitted) -> Result<Vec<Action>, DropReason> {
        let vlan = packet.destination.vlan;
        let egress = |port: PortNo| Some((self.members.get(&port)?.config.vlan.egress(vlan)?, port));
        let mut actions = Vec::new();
        if let Some(port) = self.known(packet) {
            let out = egress(port).filter(|_| port != in_port).ok_or(DropReason::NoEgress)?;
            packet.output(&mut [out], &mut actions);
        } else {
            let others = self.members.keys().filter(|port| **port != in_port);
            let mut out: Vec<_> = others.filter_map(|port| egress(*port)).collect();
            if out.is_empty() {
                return Err(DropReason::NoEgress);
            }
            let limits = [self.members.get(&in_port).and_then(|member| member.meter), self.meter];
            actions.extend(limits.into_iter().flatten().map(Action::Meter));
            packet.output(&mut out, &mut actions);
        }
        Ok(actions)
    }

    /// The port behind which the destination is; `None` where the packet is flooded.
    pub(crate) fn known(&self, packet: &Admitted) -> Option<PortNo> {
        let station = packet.destination;
        if station.mac.is_group() { None } else { self.stations.port(station) }
    }
}

impl Admitted {
    /// Sends by each port with the tag it wants there: first those that want what the packet has already.
    fn output(&self, ports: &mut [(Tag, PortNo)], actions: &mut Vec<Action>) {
        let mut now = Tag::from_tci(self.tci);
        ports.sort_unstable_by_key(|(tag, port)| (*tag != now, *tag, *port));
        for (wanted, port) in ports {
            if *wanted != now {
                if now != Tag::None {
                    actions.push(Action::Header(HeaderEdit::PopVlan));
                }
                if let Tag::Of(vlan) = *wanted {
                    let tpid = if self.tpid == 0 { ethertype::VLAN } else { self.tpid };
                    let priority = (self.tci & 0xe000) as u16;
                    let tci = priority | VLAN_PRESENT as u16 | vlan;
                    actions.push(Action::Header(HeaderEdit::PushVlan { tpid, tci }));
                }
                now = *wanted;
            }
            actions.push(Action::Output(*port));
        }
    }
}
