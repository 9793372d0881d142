//! Restore data: the group and tunnel of a packet at which rules stopped, for the host to go on, and the tunnel helpers of rte_flow.
//!
//! A packet has a number in a dynamic field; the device knows the restore data of the last of them.

use super::abi::{self, DynamicField, Error, EthDev};
use super::flow::{refuse, unspecified};
use super::port;
use crate::pipeline::{Restore, Tunnel};
use crate::translate::{LEFT_TUNNEL, Refusal};
use dpdk_sys as sys;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::net::IpAddr;
use std::ptr::null;
use std::sync::OnceLock;

/// Packets whose restore data the device knows.
const KNOWN: usize = 65536;

/// Restore data of packets, by number.
#[derive(Default)]
pub(super) struct Restores {
    known: VecDeque<Restore>,
    /// The number of the first.
    first: u64,
}

impl Restores {
    /// Keeps what belongs to a packet. Returns the packet's number, which is not 0.
    pub(super) fn add(&mut self, restore: Restore) -> u64 {
        if self.known.len() == KNOWN {
            self.known.pop_front();
            self.first += 1;
        }
        self.known.push_back(restore);
        self.first + self.known.len() as u64
    }

    fn get(&self, number: u64) -> Option<Restore> {
        let index = number.checked_sub(self.first + 1)?;
        self.known.get(usize::try_from(index).ok()?).copied()
    }
}

/// Where a packet has its number. Nothing if there is no room for it in DPDK's packets.
pub(super) fn offset() -> Option<usize> {
    static OFFSET: OnceLock<Option<usize>> = OnceLock::new();
    *OFFSET.get_or_init(|| {
        let mut field = DynamicField { name: [0; 64], size: size_of::<u64>(), align: align_of::<u64>(), flags: 0 };
        field.name.iter_mut().zip(b"fpgasim_restore").for_each(|(place, &byte)| *place = byte as _);
        // SAFETY: `field` outlives the call, which copies it.
        usize::try_from(unsafe { abi::rte_mbuf_dynfield_register(&raw const field) }).ok()
    })
}

pub(super) unsafe extern "C" fn get_restore_info(
    dev: *mut EthDev,
    packet: *mut sys::rte_mbuf,
    info: *mut sys::rte_flow_restore_info,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let number = offset().map(|offset| {
        // SAFETY: DPDK has registered the field at this offset within an mbuf.
        let field = unsafe { packet.cast::<u8>().add(offset) }.cast::<u64>();
        // SAFETY: lent-structure: a packet; DPDK has aligned the field for its type.
        unsafe { field.read() }
    });
    let restore = number.and_then(|number| port.device.lock().restores.get(number));
    let Some(Restore { group, tunnel }) = restore else {
        return refuse(error, &unspecified(libc::ENOENT, c"the packet has no restore data"));
    };
    // SAFETY: lent-structure: a structure to fill.
    let info = unsafe { &mut *info };
    *info = sys::rte_flow_restore_info::default();
    info.flags = u64::from(sys::RTE_FLOW_RESTORE_INFO_GROUP_ID);
    info.group_id = group;
    if let Some(tunnel) = tunnel {
        info.flags |= u64::from(sys::RTE_FLOW_RESTORE_INFO_TUNNEL);
        info.tunnel = as_dpdk(tunnel);
    }
    0
}

fn as_dpdk(tunnel: Tunnel) -> sys::rte_flow_tunnel {
    let mut shown = sys::rte_flow_tunnel {
        type_: sys::RTE_FLOW_ITEM_TYPE_VXLAN,
        tun_id: u64::from(tunnel.vni),
        tp_src: tunnel.ports[0].to_be(),
        tp_dst: tunnel.ports[1].to_be(),
        is_ipv6: tunnel.source.is_ipv6(),
        tos: tunnel.tos,
        ttl: tunnel.ttl,
        ..Default::default()
    };
    match (tunnel.source, tunnel.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            shown.__bindgen_anon_1.ipv4.src_addr = u32::from_ne_bytes(source.octets());
            shown.__bindgen_anon_1.ipv4.dst_addr = u32::from_ne_bytes(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            shown.__bindgen_anon_1.ipv6.src_addr = source.octets();
            shown.__bindgen_anon_1.ipv6.dst_addr = destination.octets();
        }
        // A packet has one version of addresses.
        _ => {}
    }
    shown
}

/// The action that decapsulates a packet.
struct Decap([sys::rte_flow_action; 1]);
/// The item that matches decapsulated packets.
struct Left([sys::rte_flow_item; 1]);

// SAFETY: its pointers are null.
unsafe impl Sync for Decap {}
// SAFETY: its pointers are null.
unsafe impl Sync for Left {}

static DECAP: Decap = Decap([sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP, conf: null() }]);
static LEFT: Left = Left([sys::rte_flow_item { type_: LEFT_TUNNEL, spec: null(), last: null(), mask: null() }]);

/// # Safety
/// `tunnel` is null or leads to a tunnel.
unsafe fn check_tunnel(tunnel: *const sys::rte_flow_tunnel) -> Result<(), Refusal> {
    // SAFETY: the caller passes null or a tunnel.
    match unsafe { tunnel.as_ref() }.map(|tunnel| tunnel.type_) {
        Some(sys::RTE_FLOW_ITEM_TYPE_VXLAN) => Ok(()),
        _ => Err(Refusal {
            errno: libc::ENOTSUP,
            kind: sys::RTE_FLOW_ERROR_TYPE_UNSPECIFIED,
            cause: tunnel.cast::<c_void>(),
            message: c"the device takes packets out of VXLAN tunnels alone",
        }),
    }
}

pub(super) unsafe extern "C" fn tunnel_decap_set(
    _dev: *mut EthDev,
    tunnel: *mut sys::rte_flow_tunnel,
    actions: *mut *mut sys::rte_flow_action,
    count: *mut u32,
    error: Error,
) -> c_int {
    // SAFETY: lent-structure: null or a tunnel.
    if let Err(refusal) = unsafe { check_tunnel(tunnel) } {
        return refuse(error, &refusal);
    }
    // SAFETY: lent-structure: a place to fill; rte_flow lets applications read the actions alone.
    unsafe { *actions = DECAP.0.as_ptr().cast_mut() };
    // SAFETY: lent-structure: a place to fill.
    unsafe { *count = 1 };
    0
}

pub(super) unsafe extern "C" fn tunnel_match(
    _dev: *mut EthDev,
    tunnel: *mut sys::rte_flow_tunnel,
    items: *mut *mut sys::rte_flow_item,
    count: *mut u32,
    error: Error,
) -> c_int {
    // SAFETY: lent-structure: null or a tunnel.
    if let Err(refusal) = unsafe { check_tunnel(tunnel) } {
        return refuse(error, &refusal);
    }
    // SAFETY: lent-structure: a place to fill; rte_flow lets applications read the items alone.
    unsafe { *items = LEFT.0.as_ptr().cast_mut() };
    // SAFETY: lent-structure: a place to fill.
    unsafe { *count = 1 };
    0
}

/// The actions are the same for all, and stay.
pub(super) unsafe extern "C" fn tunnel_action_decap_release(
    _dev: *mut EthDev,
    _actions: *mut sys::rte_flow_action,
    _count: u32,
    _error: Error,
) -> c_int {
    0
}

/// The items are the same for all, and stay.
pub(super) unsafe extern "C" fn tunnel_item_release(
    _dev: *mut EthDev,
    _items: *mut sys::rte_flow_item,
    _count: u32,
    _error: Error,
) -> c_int {
    0
}
