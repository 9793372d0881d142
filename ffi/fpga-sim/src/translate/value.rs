//! What the device makes of the values of actions.

use super::{Context, Refusal, copy, encap};
use crate::pipeline::toeplitz::{DEFAULT_KEY, KEY_LEN};
use crate::pipeline::{Action, Age, End, Rss, SharedKind};
use dpdk_sys as sys;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that an encapsulation puts in front at most: the room that DPDK leaves there.
const MAX_ENCAP: usize = 128;
/// What RSS can be asked to hash.
pub(crate) const RSS_TYPES: u64 = (sys::RTE_ETH_RSS_IP | sys::RTE_ETH_RSS_TCP | sys::RTE_ETH_RSS_UDP) as u64;
const RSS_PORTS: u64 = (sys::RTE_ETH_RSS_TCP | sys::RTE_ETH_RSS_UDP) as u64 & !(sys::RTE_ETH_RSS_IP as u64);

pub(super) fn unsupported(action: &sys::rte_flow_action, message: &'static CStr) -> Refusal {
    Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ACTION, action, message)
}

pub(super) fn bad_conf(action: &sys::rte_flow_action, message: &'static CStr) -> Refusal {
    Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, action.conf, message)
}

/// An action's configuration.
///
/// # Safety
/// It is null or a `T`.
pub(super) unsafe fn conf<T: Copy>(action: &sys::rte_flow_action) -> Result<T, Refusal> {
    let missing = || Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION, action, c"the action has no configuration");
    // SAFETY: as the caller promises; some of these structures have no alignment.
    (!action.conf.is_null()).then(|| unsafe { action.conf.cast::<T>().read_unaligned() }).ok_or_else(missing)
}

/// Bytes of the configuration of an action, of AGE those of the timeout; 0 for one without.
pub(super) fn conf_len(kind: sys::rte_flow_action_type) -> usize {
    match kind {
        sys::RTE_FLOW_ACTION_TYPE_MARK
        | sys::RTE_FLOW_ACTION_TYPE_JUMP
        | sys::RTE_FLOW_ACTION_TYPE_METER
        | sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC
        | sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST
        | sys::RTE_FLOW_ACTION_TYPE_AGE => 4,
        sys::RTE_FLOW_ACTION_TYPE_QUEUE
        | sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT
        | sys::RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR
        | sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN
        | sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID
        | sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC
        | sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST => 2,
        sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP | sys::RTE_FLOW_ACTION_TYPE_SET_TTL => 1,
        sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_MAC_DST => 6,
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST => 16,
        sys::RTE_FLOW_ACTION_TYPE_PORT_ID => size_of::<sys::rte_flow_action_port_id>(),
        sys::RTE_FLOW_ACTION_TYPE_RSS => size_of::<sys::rte_flow_action_rss>(),
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP => size_of::<sys::rte_flow_action_vxlan_encap>(),
        sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP => size_of::<sys::rte_flow_action_raw_encap>(),
        sys::RTE_FLOW_ACTION_TYPE_RAW_DECAP => size_of::<sys::rte_flow_action_raw_decap>(),
        _ => 0,
    }
}

/// The age of a rule; its timeout is the template's if that has one.
///
/// # Safety
/// The configuration is null or of its type.
pub(super) unsafe fn age_of(action: &sys::rte_flow_action, timeout: Option<u32>) -> Result<Age, Refusal> {
    let (timeout, context) = match timeout {
        Some(timeout) if action.conf.is_null() => (timeout, std::ptr::null_mut()),
        _ => {
            // SAFETY: as the caller promises.
            let age = unsafe { conf::<sys::rte_flow_action_age>(action)? };
            (timeout.unwrap_or(age.timeout()), age.context)
        }
    };
    if timeout == 0 {
        return Err(bad_conf(action, c"AGE: with a timeout"));
    }
    let context = (!context.is_null()).then_some(context.addr() as u64);
    Ok(Age { timeout: Duration::from_secs(timeout.into()), context })
}

/// An action that may stand where it stands, with its values.
///
/// # Safety
/// As for [`rule`](super::rule).
pub(super) unsafe fn value(context: &Context, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
    // SAFETY: as the caller promises.
    unsafe {
        Ok(match action.type_ {
            sys::RTE_FLOW_ACTION_TYPE_MARK => Action::Mark(conf::<sys::rte_flow_action_mark>(action)?.id),
            sys::RTE_FLOW_ACTION_TYPE_DROP => Action::Drop,
            sys::RTE_FLOW_ACTION_TYPE_METER => {
                let meter = conf::<sys::rte_flow_action_meter>(action)?.mtr_id;
                let number = context.meters.and_then(|meters| meters.number(meter));
                let number = number.ok_or_else(|| bad_conf(action, c"METER: the port has no such meter"))?;
                Action::Shared(SharedKind::Meter, number)
            }
            sys::RTE_FLOW_ACTION_TYPE_JUMP => jump(context, action)?,
            sys::RTE_FLOW_ACTION_TYPE_QUEUE => match conf::<sys::rte_flow_action_queue>(action)?.index {
                queue if queue < context.rx_queues => Action::Queue(queue),
                _ => return Err(bad_conf(action, c"QUEUE: the port has no such receive queue")),
            },
            sys::RTE_FLOW_ACTION_TYPE_RSS => rss(context, action)?,
            sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT => Action::ToRepresented(port(context, action)?),
            sys::RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR => Action::ToRepresentor(port(context, action)?),
            sys::RTE_FLOW_ACTION_TYPE_PORT_ID => Action::ToRepresented(port_id(context, action)?),
            sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN
            | sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN
            | sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID
            | sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP => vlan(action)?,
            sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP
            | sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP
            | sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP
            | sys::RTE_FLOW_ACTION_TYPE_RAW_DECAP => tunnel(action)?,
            _ => rewrite(action)?,
        })
    }
}

unsafe fn jump(context: &Context, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
    // SAFETY: as the caller promises.
    let group = unsafe { conf::<sys::rte_flow_action_jump>(action)? }.group;
    if group >= context.limits.groups {
        let message = c"JUMP: the device has fewer groups (argument groups)";
        return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, action.conf, message));
    }
    Ok(Action::Jump(group))
}

unsafe fn rss(context: &Context, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
    // SAFETY: as the caller promises.
    let rss = unsafe { conf::<sys::rte_flow_action_rss>(action)? };
    if rss.level > 1 {
        return Err(unsupported(action, c"RSS: outer headers are hashed (level 0 or 1)"));
    }
    if ![sys::RTE_ETH_HASH_FUNCTION_DEFAULT, sys::RTE_ETH_HASH_FUNCTION_TOEPLITZ].contains(&rss.func) {
        return Err(unsupported(action, c"RSS: the hash is Toeplitz"));
    }
    if rss.types & !RSS_TYPES != 0 {
        return Err(unsupported(action, c"RSS: IP, TCP and UDP can be hashed"));
    }
    // SAFETY: the lists have the lengths that stand beside them.
    let (queues, key) = unsafe {
        let queues = copy(rss.queue.cast(), rss.queue_num as usize * 2).unwrap_or_default();
        (queues, copy(rss.key.cast(), rss.key_len as usize).filter(|key| !key.is_empty()))
    };
    let queues: Vec<u16> = queues.chunks(2).map(|queue| u16::from_ne_bytes([queue[0], queue[1]])).collect();
    if queues.is_empty() || queues.iter().any(|&queue| queue >= context.rx_queues) {
        return Err(bad_conf(action, c"RSS: queues of the port, one at least"));
    }
    let key = match key {
        None => DEFAULT_KEY,
        Some(key) => <[u8; KEY_LEN]>::try_from(key).map_err(|_| unsupported(action, c"RSS: a key has 40 bytes"))?,
    };
    // No types: as the port does it.
    let ports = if rss.types == 0 { context.rss.is_some_and(|rss| rss.ports) } else { rss.types & RSS_PORTS != 0 };
    Ok(Action::Spread(Arc::new(Rss { queues, key, ports })))
}

unsafe fn port(context: &Context, action: &sys::rte_flow_action) -> Result<u16, Refusal> {
    // SAFETY: as the caller promises.
    let port = unsafe { conf::<sys::rte_flow_action_ethdev>(action)? }.port_id;
    check_port(context, action, port.into())
}

/// The old name of REPRESENTED_PORT, which Open vSwitch 3.1 uses.
unsafe fn port_id(context: &Context, action: &sys::rte_flow_action) -> Result<u16, Refusal> {
    // SAFETY: as the caller promises.
    let conf = unsafe { conf::<sys::rte_flow_action_port_id>(action)? };
    if conf.original() != 0 {
        return Err(unsupported(action, c"PORT_ID: without original"));
    }
    check_port(context, action, conf.id)
}

fn check_port(context: &Context, action: &sys::rte_flow_action, port: u32) -> Result<u16, Refusal> {
    let ours = context.ports.iter().copied().find(|&ours| u32::from(ours) == port);
    ours.ok_or_else(|| bad_conf(action, c"the port is not one of this device"))
}

unsafe fn vlan(action: &sys::rte_flow_action) -> Result<Action, Refusal> {
    // SAFETY: as the caller promises.
    unsafe {
        match action.type_ {
            sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN => {
                match u16::from_be(conf::<sys::rte_flow_action_of_push_vlan>(action)?.ethertype) {
                    tpid @ (0x8100 | 0x88a8) => Ok(Action::PushVlan { tpid }),
                    _ => Err(bad_conf(action, c"OF_PUSH_VLAN: 0x8100 or 0x88a8")),
                }
            }
            sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN => Ok(Action::PopVlan),
            sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID => {
                match u16::from_be(conf::<sys::rte_flow_action_of_set_vlan_vid>(action)?.vlan_vid) {
                    id @ ..=0xfff => Ok(Action::SetVlanId(id)),
                    _ => Err(bad_conf(action, c"OF_SET_VLAN_VID: 0 to 4095")),
                }
            }
            _ => match conf::<sys::rte_flow_action_of_set_vlan_pcp>(action)?.vlan_pcp {
                priority @ ..=7 => Ok(Action::SetVlanPriority(priority)),
                _ => Err(bad_conf(action, c"OF_SET_VLAN_PCP: 0 to 7")),
            },
        }
    }
}

unsafe fn tunnel(action: &sys::rte_flow_action) -> Result<Action, Refusal> {
    match action.type_ {
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP => Ok(Action::DecapsulateVxlan),
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP => {
            // SAFETY: as the caller promises.
            let conf = unsafe { conf::<sys::rte_flow_action_vxlan_encap>(action)? };
            // SAFETY: as the caller promises.
            let front = unsafe { encap::vxlan(conf.definition) };
            front.map(|front| Action::Encapsulate(front.into())).map_err(|message| bad_conf(action, message))
        }
        sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP => {
            // SAFETY: as the caller promises.
            let conf = unsafe { conf::<sys::rte_flow_action_raw_encap>(action)? };
            if !conf.preserve.is_null() {
                return Err(unsupported(action, c"RAW_ENCAP: preserve is not known to the device"));
            }
            if conf.size == 0 || conf.size > MAX_ENCAP {
                return Err(bad_conf(action, c"RAW_ENCAP: 1 to 128 bytes"));
            }
            // SAFETY: `data` has `size` bytes.
            let front = unsafe { copy(conf.data.cast(), conf.size) };
            front.map(|front| Action::Encapsulate(front.into())).ok_or_else(|| bad_conf(action, c"RAW_ENCAP: no data"))
        }
        _ => {
            // SAFETY: as the caller promises.
            match unsafe { conf::<sys::rte_flow_action_raw_decap>(action)? }.size {
                0 => Err(bad_conf(action, c"RAW_DECAP: no bytes")),
                size if size > MAX_ENCAP => Err(bad_conf(action, c"RAW_DECAP: 128 bytes at most")),
                size => Ok(Action::StripFront(size)),
            }
        }
    }
}

unsafe fn rewrite(action: &sys::rte_flow_action) -> Result<Action, Refusal> {
    use End::{Destination, Source};
    // SAFETY: as the caller promises.
    unsafe {
        Ok(match action.type_ {
            sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC => Action::SetMac(Source, conf(action)?),
            sys::RTE_FLOW_ACTION_TYPE_SET_MAC_DST => Action::SetMac(Destination, conf(action)?),
            sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC => Action::SetIpv4(Source, conf(action)?),
            sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST => Action::SetIpv4(Destination, conf(action)?),
            sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC => Action::SetIpv6(Source, conf(action)?),
            sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST => Action::SetIpv6(Destination, conf(action)?),
            sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC => Action::SetPort(Source, u16::from_be_bytes(conf(action)?)),
            sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST => Action::SetPort(Destination, u16::from_be_bytes(conf(action)?)),
            sys::RTE_FLOW_ACTION_TYPE_SET_TTL => Action::SetTtl(conf(action)?),
            _ => Action::DecrementTtl,
        })
    }
}
