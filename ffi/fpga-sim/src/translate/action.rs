//! Actions: what each needs of the rule it stands in, and what the device makes of it.

use super::item::Seen;
use super::{Context, Refusal, copy, encap};
use crate::pipeline::toeplitz::{DEFAULT_KEY, KEY_LEN};
use crate::pipeline::{Action, Age, Domain, End, Rss};
use dpdk_sys as sys;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that an encapsulation puts in front at most: the room that DPDK leaves there.
const MAX_ENCAP: usize = 128;
/// What RSS can be asked to hash.
pub(crate) const RSS_TYPES: u64 = (sys::RTE_ETH_RSS_IP | sys::RTE_ETH_RSS_TCP | sys::RTE_ETH_RSS_UDP) as u64;
const RSS_PORTS: u64 = (sys::RTE_ETH_RSS_TCP | sys::RTE_ETH_RSS_UDP) as u64 & !(sys::RTE_ETH_RSS_IP as u64);

/// What a rule's actions come to.
pub(super) struct Done {
    pub actions: Vec<Action>,
    pub counts: bool,
    pub age: Option<Age>,
}

/// Actions as they are read.
struct Reader<'a> {
    context: &'a Context<'a>,
    domain: Domain,
    group: u32,
    seen: &'a Seen,
    done: Done,
    fate: Option<Action>,
    /// A tag is there, by the pattern or by an action.
    tagged: bool,
    /// The outer headers are not those that the pattern knows.
    tunnelled: bool,
}

/// Translates the actions.
///
/// # Safety
/// As for [`rule`](super::rule).
pub(super) unsafe fn actions(
    context: &Context,
    domain: Domain,
    group: u32,
    seen: &Seen,
    actions: &[sys::rte_flow_action],
) -> Result<Done, Refusal> {
    let done = Done { actions: Vec::new(), counts: false, age: None };
    let mut reader = Reader { context, domain, group, seen, done, fate: None, tagged: seen.vlan, tunnelled: false };
    for action in actions {
        // SAFETY: as the caller promises.
        unsafe { reader.read(action)? };
    }
    if reader.fate.is_none() && !matches!(domain, Domain::Egress(_)) {
        let message = c"no action says where packets go: DROP, JUMP, QUEUE, RSS, REPRESENTED_PORT or PORT_REPRESENTOR";
        return Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION_NUM, actions.as_ptr(), message));
    }
    reader.done.actions.extend(reader.fate);
    Ok(reader.done)
}

fn unsupported(action: &sys::rte_flow_action, message: &'static CStr) -> Refusal {
    Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ACTION, action, message)
}

fn bad_conf(action: &sys::rte_flow_action, message: &'static CStr) -> Refusal {
    Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, action.conf, message)
}

/// An action's configuration.
///
/// # Safety
/// It is null or a `T`.
unsafe fn conf<T: Copy>(action: &sys::rte_flow_action) -> Result<T, Refusal> {
    let missing = || Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION, action, c"the action has no configuration");
    // SAFETY: as the caller promises; some of these structures have no alignment.
    (!action.conf.is_null()).then(|| unsafe { action.conf.cast::<T>().read_unaligned() }).ok_or_else(missing)
}

impl Reader<'_> {
    /// # Safety
    /// As for [`rule`](super::rule).
    unsafe fn read(&mut self, action: &sys::rte_flow_action) -> Result<(), Refusal> {
        if action.type_ == sys::RTE_FLOW_ACTION_TYPE_VOID {
            return Ok(());
        }
        let name = name(action.type_).ok_or_else(|| unsupported(action, c"the device does not know this action"))?;
        if self.context.refuses(name) {
            return Err(unsupported(action, c"this action is refused on demand (argument refuse or refuse-create)"));
        }
        // SAFETY: as the caller promises.
        let read = unsafe {
            match action.type_ {
                sys::RTE_FLOW_ACTION_TYPE_COUNT => return self.count(action),
                sys::RTE_FLOW_ACTION_TYPE_AGE => return self.age(action),
                sys::RTE_FLOW_ACTION_TYPE_MARK => return self.mark(action),
                sys::RTE_FLOW_ACTION_TYPE_DROP => Action::Drop,
                sys::RTE_FLOW_ACTION_TYPE_JUMP => self.jump(action)?,
                sys::RTE_FLOW_ACTION_TYPE_QUEUE => self.queue(action)?,
                sys::RTE_FLOW_ACTION_TYPE_RSS => self.rss(action)?,
                sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT => Action::ToRepresented(self.port(action)?),
                sys::RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR => Action::ToRepresentor(self.port(action)?),
                sys::RTE_FLOW_ACTION_TYPE_PORT_ID => Action::ToRepresented(self.port_id(action)?),
                _ => self.change(action)?,
            }
        };
        match (&self.fate, read.is_fate()) {
            (Some(_), true) => Err(unsupported(action, c"a second action that says where packets go")),
            (Some(_), false) => Err(unsupported(action, c"changes stand before the action that says where packets go")),
            (None, true) => {
                self.fate = Some(read);
                Ok(())
            }
            (None, false) => {
                self.done.actions.push(read);
                Ok(())
            }
        }
    }

    fn count(&mut self, action: &sys::rte_flow_action) -> Result<(), Refusal> {
        if self.done.counts {
            return Err(unsupported(action, c"COUNT: once in a rule"));
        }
        self.done.counts = true;
        Ok(())
    }

    unsafe fn age(&mut self, action: &sys::rte_flow_action) -> Result<(), Refusal> {
        // SAFETY: as the caller promises.
        let age = unsafe { conf::<sys::rte_flow_action_age>(action)? };
        if self.done.age.is_some() || age.timeout() == 0 {
            return Err(bad_conf(action, c"AGE: once in a rule, with a timeout"));
        }
        let context = (!age.context.is_null()).then_some(age.context.addr() as u64);
        self.done.age = Some(Age { timeout: Duration::from_secs(age.timeout().into()), context });
        Ok(())
    }

    unsafe fn mark(&mut self, action: &sys::rte_flow_action) -> Result<(), Refusal> {
        if matches!(self.domain, Domain::Egress(_)) {
            return Err(unsupported(action, c"MARK: nobody receives what an egress rule sees"));
        }
        // SAFETY: as the caller promises.
        let mark = unsafe { conf::<sys::rte_flow_action_mark>(action)? };
        self.done.actions.push(Action::Mark(mark.id));
        Ok(())
    }

    unsafe fn jump(&self, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
        // SAFETY: as the caller promises.
        let group = unsafe { conf::<sys::rte_flow_action_jump>(action)? }.group;
        if group <= self.group || group >= self.context.limits.groups {
            let message = c"JUMP: to a group of a higher number that the device has (argument groups)";
            return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, action.conf, message));
        }
        Ok(Action::Jump(group))
    }

    unsafe fn queue(&self, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
        self.check_ingress(action)?;
        // SAFETY: as the caller promises.
        let queue = unsafe { conf::<sys::rte_flow_action_queue>(action)? }.index;
        if queue >= self.context.rx_queues {
            return Err(bad_conf(action, c"QUEUE: the port has no such receive queue"));
        }
        Ok(Action::Queue(queue))
    }

    unsafe fn rss(&self, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
        self.check_ingress(action)?;
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
        if queues.is_empty() || queues.iter().any(|&queue| queue >= self.context.rx_queues) {
            return Err(bad_conf(action, c"RSS: queues of the port, one at least"));
        }
        let key = match key {
            None => DEFAULT_KEY,
            Some(key) => <[u8; KEY_LEN]>::try_from(key).map_err(|_| unsupported(action, c"RSS: a key has 40 bytes"))?,
        };
        // No types: as the port does it.
        let ports =
            if rss.types == 0 { self.context.rss.is_some_and(|rss| rss.ports) } else { rss.types & RSS_PORTS != 0 };
        Ok(Action::Spread(Arc::new(Rss { queues, key, ports })))
    }

    fn check_ingress(&self, action: &sys::rte_flow_action) -> Result<(), Refusal> {
        match self.domain {
            Domain::Ingress(_) => Ok(()),
            _ => Err(unsupported(action, c"QUEUE and RSS are for ingress rules: queues belong to a port")),
        }
    }

    unsafe fn port(&self, action: &sys::rte_flow_action) -> Result<u16, Refusal> {
        if self.domain != Domain::Transfer {
            return Err(unsupported(action, c"REPRESENTED_PORT and PORT_REPRESENTOR are for transfer rules"));
        }
        // SAFETY: as the caller promises.
        let port = unsafe { conf::<sys::rte_flow_action_ethdev>(action)? }.port_id;
        self.check_port(action, port.into())
    }

    /// The old name of REPRESENTED_PORT, which Open vSwitch 3.1 uses.
    unsafe fn port_id(&self, action: &sys::rte_flow_action) -> Result<u16, Refusal> {
        // SAFETY: as the caller promises.
        let conf = unsafe { conf::<sys::rte_flow_action_port_id>(action)? };
        if self.domain != Domain::Transfer || conf.original() != 0 {
            return Err(unsupported(action, c"PORT_ID: in transfer rules, without original"));
        }
        self.check_port(action, conf.id)
    }

    fn check_port(&self, action: &sys::rte_flow_action, port: u32) -> Result<u16, Refusal> {
        let ours = self.context.ports.iter().copied().find(|&ours| u32::from(ours) == port);
        ours.ok_or_else(|| bad_conf(action, c"the port is not one of this device"))
    }

    /// An action that changes the packet.
    unsafe fn change(&mut self, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
        // SAFETY: as the caller promises.
        unsafe {
            match action.type_ {
                sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN
                | sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN
                | sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID
                | sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP => self.vlan(action),
                sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP
                | sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP
                | sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP
                | sys::RTE_FLOW_ACTION_TYPE_RAW_DECAP => self.tunnel(action),
                _ => self.rewrite(action),
            }
        }
    }

    unsafe fn vlan(&mut self, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
        if action.type_ == sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN {
            // SAFETY: as the caller promises.
            let tpid = u16::from_be(unsafe { conf::<sys::rte_flow_action_of_push_vlan>(action)? }.ethertype);
            if ![0x8100, 0x88a8].contains(&tpid) {
                return Err(bad_conf(action, c"OF_PUSH_VLAN: 0x8100 or 0x88a8"));
            }
            self.tagged = true;
            return Ok(Action::PushVlan { tpid });
        }
        if !self.tagged {
            return Err(unsupported(action, c"no tag is sure to be there: match VLAN, or push one before"));
        }
        match action.type_ {
            sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN => {
                self.tagged = false;
                Ok(Action::PopVlan)
            }
            sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID => {
                // SAFETY: as the caller promises.
                let id = u16::from_be(unsafe { conf::<sys::rte_flow_action_of_set_vlan_vid>(action)? }.vlan_vid);
                if id > 0xfff {
                    Err(bad_conf(action, c"OF_SET_VLAN_VID: 0 to 4095"))
                } else {
                    Ok(Action::SetVlanId(id))
                }
            }
            _ => {
                // SAFETY: as the caller promises.
                let priority = unsafe { conf::<sys::rte_flow_action_of_set_vlan_pcp>(action)? }.vlan_pcp;
                if priority > 7 {
                    return Err(bad_conf(action, c"OF_SET_VLAN_PCP: 0 to 7"));
                }
                Ok(Action::SetVlanPriority(priority))
            }
        }
    }

    unsafe fn tunnel(&mut self, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
        let tunnelled = std::mem::replace(&mut self.tunnelled, true);
        self.tagged = false;
        match action.type_ {
            sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP if self.seen.vxlan && !tunnelled => Ok(Action::DecapsulateVxlan),
            sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP => Err(unsupported(
                action,
                c"VXLAN_DECAP: the pattern must have VXLAN, and no tunnel action may stand before",
            )),
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
                front
                    .map(|front| Action::Encapsulate(front.into()))
                    .ok_or_else(|| bad_conf(action, c"RAW_ENCAP: no data"))
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

    unsafe fn rewrite(&self, action: &sys::rte_flow_action) -> Result<Action, Refusal> {
        if self.tunnelled {
            return Err(unsupported(
                action,
                c"headers are rewritten before a tunnel action, or in a group after a JUMP",
            ));
        }
        let need = |there: bool, message| if there { Ok(()) } else { Err(unsupported(action, message)) };
        let (ipv4, ipv6) = (c"the pattern must have IPV4 for that", c"the pattern must have IPV6 for that");
        let source = [
            sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC,
            sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC,
            sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC,
            sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC,
        ];
        let end = if source.contains(&action.type_) { End::Source } else { End::Destination };
        // SAFETY: as the caller promises.
        unsafe {
            match action.type_ {
                sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_MAC_DST => {
                    Ok(Action::SetMac(end, conf::<[u8; 6]>(action)?))
                }
                sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST => {
                    need(self.seen.ipv4, ipv4)?;
                    Ok(Action::SetIpv4(end, conf::<[u8; 4]>(action)?))
                }
                sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST => {
                    need(self.seen.ipv6, ipv6)?;
                    Ok(Action::SetIpv6(end, conf::<[u8; 16]>(action)?))
                }
                sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST => {
                    need(self.seen.ports, c"the pattern must have TCP or UDP for that")?;
                    Ok(Action::SetPort(end, u16::from_be_bytes(conf::<[u8; 2]>(action)?)))
                }
                sys::RTE_FLOW_ACTION_TYPE_SET_TTL => {
                    need(self.seen.ipv4 || self.seen.ipv6, c"SET_TTL: the pattern must have IPV4 or IPV6")?;
                    Ok(Action::SetTtl(conf::<u8>(action)?))
                }
                _ => {
                    need(self.seen.ipv4 || self.seen.ipv6, c"DEC_TTL: the pattern must have IPV4 or IPV6")?;
                    Ok(Action::DecrementTtl)
                }
            }
        }
    }
}

/// The names of the actions that the device does.
fn name(kind: sys::rte_flow_action_type) -> Option<&'static str> {
    Some(match kind {
        sys::RTE_FLOW_ACTION_TYPE_COUNT => "COUNT",
        sys::RTE_FLOW_ACTION_TYPE_AGE => "AGE",
        sys::RTE_FLOW_ACTION_TYPE_MARK => "MARK",
        sys::RTE_FLOW_ACTION_TYPE_DROP => "DROP",
        sys::RTE_FLOW_ACTION_TYPE_JUMP => "JUMP",
        sys::RTE_FLOW_ACTION_TYPE_QUEUE => "QUEUE",
        sys::RTE_FLOW_ACTION_TYPE_RSS => "RSS",
        sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT => "REPRESENTED_PORT",
        sys::RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR => "PORT_REPRESENTOR",
        sys::RTE_FLOW_ACTION_TYPE_PORT_ID => "PORT_ID",
        sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN => "OF_PUSH_VLAN",
        sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN => "OF_POP_VLAN",
        sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID => "OF_SET_VLAN_VID",
        sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP => "OF_SET_VLAN_PCP",
        sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC => "SET_MAC_SRC",
        sys::RTE_FLOW_ACTION_TYPE_SET_MAC_DST => "SET_MAC_DST",
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC => "SET_IPV4_SRC",
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST => "SET_IPV4_DST",
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC => "SET_IPV6_SRC",
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST => "SET_IPV6_DST",
        sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC => "SET_TP_SRC",
        sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST => "SET_TP_DST",
        sys::RTE_FLOW_ACTION_TYPE_SET_TTL => "SET_TTL",
        sys::RTE_FLOW_ACTION_TYPE_DEC_TTL => "DEC_TTL",
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP => "VXLAN_ENCAP",
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP => "VXLAN_DECAP",
        sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP => "RAW_ENCAP",
        sys::RTE_FLOW_ACTION_TYPE_RAW_DECAP => "RAW_DECAP",
        _ => return None,
    })
}
