//! Restore data: the state of a packet that rules began with and did not finish.

use super::key::{Layer, field};
use super::parse::{be16, parse};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restore {
    /// The group in which no rule wanted it.
    pub group: u32,
    /// The tunnel that a rule took it out of.
    pub tunnel: Option<Tunnel>,
}

/// The headers of a VXLAN tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The network.
    pub vni: u32,
    /// The addresses, of one version.
    pub source: IpAddr,
    /// The same of the receiver.
    pub destination: IpAddr,
    /// The UDP ports.
    pub ports: [u16; 2],
    /// The type of service, or traffic class.
    pub tos: u8,
    /// The time to live, or hop limit.
    pub ttl: u8,
}

impl Tunnel {
    /// The tunnel that a packet is in.
    pub(super) fn of(bytes: &[u8]) -> Option<Tunnel> {
        let (key, headers) = parse(bytes);
        let ((version, l3), (_, l4)) = (headers.l3?, headers.l4?);
        let vni = key.get(Layer::Outer, field::VNI);
        let ports = [be16(bytes, l4)?, be16(bytes, l4 + 2)?];
        let (source, destination, tos) = match version {
            4 => {
                let address = |at: usize| Some(Ipv4Addr::from(*bytes.get(l3 + at..)?.first_chunk::<4>()?).into());
                (address(12)?, address(16)?, *bytes.get(l3 + 1)?)
            }
            _ => {
                let address = |at: usize| Some(Ipv6Addr::from(*bytes.get(l3 + at..)?.first_chunk::<16>()?).into());
                (address(8)?, address(24)?, (be16(bytes, l3)? >> 4) as u8)
            }
        };
        let ttl = key.byte(Layer::Outer, field::IP_TTL);
        let vni = u32::from_be_bytes([0, vni[0], vni[1], vni[2]]);
        Some(Tunnel { vni, source, destination, ports, tos, ttl })
    }
}
