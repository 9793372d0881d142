//! The headers that VXLAN_ENCAP describes by items.

use super::lent::LentItem;
use crate::pipeline::parse::{VXLAN_PORT, protocol};
use dpdk_sys as sys;
use std::ffi::CStr;

const ORDER: &CStr = c"VXLAN_ENCAP: ETH, perhaps VLAN, IPV4 or IPV6, UDP, VXLAN, each with a value";
const TTL: u8 = 64;

/// The bytes to put in front. What the items leave zero and every such packet has, types, protocols, versions, is filled in.
pub(super) fn vxlan(definition: Option<&[LentItem]>) -> Result<Vec<u8>, &'static CStr> {
    let items = definition.ok_or(ORDER)?;
    let items: Vec<_> = items.iter().filter(|item| item.type_ != sys::RTE_FLOW_ITEM_TYPE_VOID).collect();
    let kinds: Vec<_> = items.iter().map(|item| item.type_).collect();
    let (vlan, version) = match kinds[..] {
        [sys::RTE_FLOW_ITEM_TYPE_ETH, ref rest @ ..] => {
            let vlan = rest.first() == Some(&sys::RTE_FLOW_ITEM_TYPE_VLAN);
            match rest[usize::from(vlan)..] {
                [ip, sys::RTE_FLOW_ITEM_TYPE_UDP, sys::RTE_FLOW_ITEM_TYPE_VXLAN] => (vlan, version(ip)?),
                _ => return Err(ORDER),
            }
        }
        _ => return Err(ORDER),
    };
    let mut front = Vec::new();
    for item in items {
        let mut header = item.spec().ok_or(ORDER)?[..len(item.type_)].to_vec();
        complete(&mut header, item.type_, vlan, version);
        front.extend(header);
    }
    Ok(front)
}

fn version(kind: sys::rte_flow_item_type) -> Result<u8, &'static CStr> {
    match kind {
        sys::RTE_FLOW_ITEM_TYPE_IPV4 => Ok(4),
        sys::RTE_FLOW_ITEM_TYPE_IPV6 => Ok(6),
        _ => Err(ORDER),
    }
}

/// Bytes of the header that an item begins with.
fn len(kind: sys::rte_flow_item_type) -> usize {
    match kind {
        sys::RTE_FLOW_ITEM_TYPE_ETH => 14,
        sys::RTE_FLOW_ITEM_TYPE_VLAN => 4,
        sys::RTE_FLOW_ITEM_TYPE_IPV4 => 20,
        sys::RTE_FLOW_ITEM_TYPE_IPV6 => 40,
        _ => 8,
    }
}

fn complete(header: &mut [u8], kind: sys::rte_flow_item_type, vlan: bool, version: u8) {
    let ip: [u8; 2] = if version == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    match kind {
        sys::RTE_FLOW_ITEM_TYPE_ETH => header[12..14].copy_from_slice(if vlan { &[0x81, 0x00] } else { &ip }),
        sys::RTE_FLOW_ITEM_TYPE_VLAN => header[2..4].copy_from_slice(&ip),
        sys::RTE_FLOW_ITEM_TYPE_IPV4 => {
            header[0] = 0x45;
            header[8] = if header[8] == 0 { TTL } else { header[8] };
            header[9] = protocol::UDP;
        }
        sys::RTE_FLOW_ITEM_TYPE_IPV6 => {
            header[0] = 0x60 | header[0] & 0x0f;
            header[6] = protocol::UDP;
            header[7] = if header[7] == 0 { TTL } else { header[7] };
        }
        sys::RTE_FLOW_ITEM_TYPE_UDP if header[2..4] == [0, 0] => {
            header[2..4].copy_from_slice(&VXLAN_PORT.to_be_bytes())
        }
        // The VNI is valid (RFC 7348, section 5).
        sys::RTE_FLOW_ITEM_TYPE_VXLAN => header[0] |= 0x08,
        _ => {}
    }
}
