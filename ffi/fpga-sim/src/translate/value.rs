//! The values of actions, as the device has them.

use super::lent::{Conf, LentAction};
use super::{Context, Refusal, encap};
use crate::pipeline::toeplitz::{DEFAULT_KEY, KEY_LEN};
use crate::pipeline::{Action, Age, End, Rss, SharedKind};
use dpdk_sys as sys;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that an encapsulation puts in front at most: the room that DPDK leaves there.
const MAX_ENCAP: usize = 128;
/// The types that RSS can hash.
pub(crate) const RSS_TYPES: u64 = (sys::RTE_ETH_RSS_IP | sys::RTE_ETH_RSS_TCP | sys::RTE_ETH_RSS_UDP) as u64;
const RSS_PORTS: u64 = (sys::RTE_ETH_RSS_TCP | sys::RTE_ETH_RSS_UDP) as u64 & !(sys::RTE_ETH_RSS_IP as u64);

pub(super) fn unsupported(action: &sys::rte_flow_action, message: &'static CStr) -> Refusal {
    Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ACTION, action, message)
}

pub(super) fn bad_conf(action: &sys::rte_flow_action, message: &'static CStr) -> Refusal {
    Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, action.conf, message)
}

/// The age of a rule. `timeout` is the template's, if that has one.
pub(super) fn age_of(action: &LentAction, timeout: Option<u32>) -> Result<Age, Refusal> {
    let (timeout, context) = match timeout {
        Some(timeout) if action.conf.is_null() => (timeout, std::ptr::null_mut()),
        _ => {
            let age = Conf::<sys::rte_flow_action_age>::of(action)?;
            (timeout.unwrap_or(age.timeout()), age.context)
        }
    };
    if timeout == 0 {
        return Err(bad_conf(action, c"AGE: with a timeout"));
    }
    let context = (!context.is_null()).then_some(context.addr() as u64);
    Ok(Age { timeout: Duration::from_secs(timeout.into()), context })
}

/// The device's action for one that is admitted in its place, with its values.
pub(super) fn value(context: &Context, action: &LentAction) -> Result<Action, Refusal> {
    Ok(match action.type_ {
        sys::RTE_FLOW_ACTION_TYPE_MARK => Action::Mark(Conf::<sys::rte_flow_action_mark>::of(action)?.id),
        sys::RTE_FLOW_ACTION_TYPE_DROP => Action::Drop,
        sys::RTE_FLOW_ACTION_TYPE_METER => {
            let meter = Conf::<sys::rte_flow_action_meter>::of(action)?.mtr_id;
            let number = context.meters.and_then(|meters| meters.number(meter));
            let number = number.ok_or_else(|| bad_conf(action, c"METER: the port has no such meter"))?;
            Action::Shared(SharedKind::Meter, number)
        }
        sys::RTE_FLOW_ACTION_TYPE_JUMP => jump(context, action)?,
        sys::RTE_FLOW_ACTION_TYPE_QUEUE => match Conf::<sys::rte_flow_action_queue>::of(action)?.index {
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

fn jump(context: &Context, action: &LentAction) -> Result<Action, Refusal> {
    let group = Conf::<sys::rte_flow_action_jump>::of(action)?.group;
    if group >= context.limits.groups {
        let message = c"JUMP: the device has fewer groups (argument groups)";
        return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, action.conf, message));
    }
    Ok(Action::Jump(group))
}

fn rss(context: &Context, action: &LentAction) -> Result<Action, Refusal> {
    let (rss, queues, key) = action.rss()?;
    if rss.level > 1 {
        return Err(unsupported(action, c"RSS: outer headers are hashed (level 0 or 1)"));
    }
    if ![sys::RTE_ETH_HASH_FUNCTION_DEFAULT, sys::RTE_ETH_HASH_FUNCTION_TOEPLITZ].contains(&rss.func) {
        return Err(unsupported(action, c"RSS: the hash is Toeplitz"));
    }
    if rss.types & !RSS_TYPES != 0 {
        return Err(unsupported(action, c"RSS: IP, TCP and UDP can be hashed"));
    }
    if queues.is_empty() || queues.iter().any(|&queue| queue >= context.rx_queues) {
        return Err(bad_conf(action, c"RSS: queues of the port, one at least"));
    }
    let key = match key.is_empty() {
        true => DEFAULT_KEY,
        false => <[u8; KEY_LEN]>::try_from(key).map_err(|_| unsupported(action, c"RSS: a key has 40 bytes"))?,
    };
    // No types: as the port does it.
    let ports = if rss.types == 0 { context.rss.is_some_and(|rss| rss.ports) } else { rss.types & RSS_PORTS != 0 };
    Ok(Action::Spread(Arc::new(Rss { queues, key, ports })))
}

fn port(context: &Context, action: &LentAction) -> Result<u16, Refusal> {
    let port = Conf::<sys::rte_flow_action_ethdev>::of(action)?.port_id;
    check_port(context, action, port.into())
}

/// The old name of REPRESENTED_PORT, which Open vSwitch 3.1 uses.
fn port_id(context: &Context, action: &LentAction) -> Result<u16, Refusal> {
    let conf = Conf::<sys::rte_flow_action_port_id>::of(action)?;
    if conf.original() != 0 {
        return Err(unsupported(action, c"PORT_ID: without original"));
    }
    check_port(context, action, conf.id)
}

fn check_port(context: &Context, action: &sys::rte_flow_action, port: u32) -> Result<u16, Refusal> {
    let ours = context.ports.iter().copied().find(|&ours| u32::from(ours) == port);
    ours.ok_or_else(|| bad_conf(action, c"the port is not one of this device"))
}

fn vlan(action: &LentAction) -> Result<Action, Refusal> {
    match action.type_ {
        sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN => {
            match u16::from_be(Conf::<sys::rte_flow_action_of_push_vlan>::of(action)?.ethertype) {
                tpid @ (0x8100 | 0x88a8) => Ok(Action::PushVlan { tpid }),
                _ => Err(bad_conf(action, c"OF_PUSH_VLAN: 0x8100 or 0x88a8")),
            }
        }
        sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN => Ok(Action::PopVlan),
        sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID => {
            match u16::from_be(Conf::<sys::rte_flow_action_of_set_vlan_vid>::of(action)?.vlan_vid) {
                id @ ..=0xfff => Ok(Action::SetVlanId(id)),
                _ => Err(bad_conf(action, c"OF_SET_VLAN_VID: 0 to 4095")),
            }
        }
        _ => match Conf::<sys::rte_flow_action_of_set_vlan_pcp>::of(action)?.vlan_pcp {
            priority @ ..=7 => Ok(Action::SetVlanPriority(priority)),
            _ => Err(bad_conf(action, c"OF_SET_VLAN_PCP: 0 to 7")),
        },
    }
}

fn tunnel(action: &LentAction) -> Result<Action, Refusal> {
    match action.type_ {
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP => Ok(Action::DecapsulateVxlan),
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP => {
            let front = encap::vxlan(action.encap_items()?);
            front.map(|front| Action::Encapsulate(front.into())).map_err(|message| bad_conf(action, message))
        }
        sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP => {
            let conf = Conf::<sys::rte_flow_action_raw_encap>::of(action)?;
            if !conf.preserve.is_null() {
                return Err(unsupported(action, c"RAW_ENCAP: preserve is not known to the device"));
            }
            if conf.size == 0 || conf.size > MAX_ENCAP {
                return Err(bad_conf(action, c"RAW_ENCAP: 1 to 128 bytes"));
            }
            let front = action.raw_encap_data()?;
            front.map(|front| Action::Encapsulate(front.into())).ok_or_else(|| bad_conf(action, c"RAW_ENCAP: no data"))
        }
        _ => match Conf::<sys::rte_flow_action_raw_decap>::of(action)?.size {
            0 => Err(bad_conf(action, c"RAW_DECAP: no bytes")),
            size if size > MAX_ENCAP => Err(bad_conf(action, c"RAW_DECAP: 128 bytes at most")),
            size => Ok(Action::StripFront(size)),
        },
    }
}

fn rewrite(action: &LentAction) -> Result<Action, Refusal> {
    use End::{Destination, Source};
    Ok(match action.type_ {
        sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC => Action::SetMac(Source, Conf::of(action)?),
        sys::RTE_FLOW_ACTION_TYPE_SET_MAC_DST => Action::SetMac(Destination, Conf::of(action)?),
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC => Action::SetIpv4(Source, Conf::of(action)?),
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST => Action::SetIpv4(Destination, Conf::of(action)?),
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC => Action::SetIpv6(Source, Conf::of(action)?),
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST => Action::SetIpv6(Destination, Conf::of(action)?),
        sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC => Action::SetPort(Source, u16::from_be_bytes(Conf::of(action)?)),
        sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST => Action::SetPort(Destination, u16::from_be_bytes(Conf::of(action)?)),
        sys::RTE_FLOW_ACTION_TYPE_SET_TTL => Action::SetTtl(Conf::of(action)?),
        _ => Action::DecrementTtl,
    })
}
