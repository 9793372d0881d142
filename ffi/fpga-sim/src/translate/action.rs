//! Actions: the conditions for each in its rule. Their values are translated in [`value`](super::value).

use super::item::Seen;
use super::lent::{Conf, LentAction, list_of};
use super::value::{age_of, unsupported, value};
use super::{Context, Refusal};
use crate::pipeline::{Action, Age, Domain, SharedKind};
use dpdk_sys as sys;
use std::ffi::CStr;
use std::ptr::null;
use std::sync::Arc;

/// A list of actions, with the values that all rules have.
pub(crate) struct ActionsTemplate {
    /// The actions, END among them.
    kinds: Vec<sys::rte_flow_action_type>,
    values: Vec<Values>,
}

/// The action that INDIRECT stands for.
fn shared_kind(kind: sys::rte_flow_action_type) -> Option<SharedKind> {
    match kind {
        sys::RTE_FLOW_ACTION_TYPE_COUNT => Some(SharedKind::Count),
        sys::RTE_FLOW_ACTION_TYPE_AGE => Some(SharedKind::Age),
        sys::RTE_FLOW_ACTION_TYPE_RSS => Some(SharedKind::Rss),
        sys::RTE_FLOW_ACTION_TYPE_CONNTRACK => Some(SharedKind::Conntrack),
        _ => None,
    }
}

/// Values of an action.
enum Values {
    /// No values.
    None,
    Fixed(Action),
    /// Each rule has its own.
    Own,
    /// The values of a shared action, named by a handle in each rule.
    Shared(SharedKind),
    /// Ageing, with the timeout if all rules have the same. Their contexts are their own.
    Age(Option<u32>),
}

impl ActionsTemplate {
    /// Reads a list. Where `masks` has zeros rules have values of their own; without it all is as it stands here.
    pub(super) fn read(
        context: &Context,
        actions: &[LentAction],
        masks: Option<&[LentAction]>,
    ) -> Result<ActionsTemplate, Refusal> {
        let kinds = actions.iter().map(|action| action.type_).chain([sys::RTE_FLOW_ACTION_TYPE_END]).collect();
        let read = actions.iter().enumerate().map(|(index, action)| {
            let mask = masks.and_then(|masks| masks.get(index));
            let own = mask.is_some_and(leaves_values);
            Ok(match action.type_ {
                    sys::RTE_FLOW_ACTION_TYPE_VOID | sys::RTE_FLOW_ACTION_TYPE_COUNT => Values::None,
                    sys::RTE_FLOW_ACTION_TYPE_INDIRECT => {
                        let of_handle = || context.shared?.kind(action.conf.addr() as u64);
                        let kind = mask.map_or_else(of_handle, |mask| shared_kind(mask.type_));
                        Values::Shared(kind.ok_or_else(|| {
                            unsupported(
                                action,
                                c"INDIRECT: a COUNT, AGE, RSS or CONNTRACK that is there; in a template its mask says which",
                            )
                        })?)
                    }
                    sys::RTE_FLOW_ACTION_TYPE_AGE if own || mask.is_none() => Values::Age(None),
                    sys::RTE_FLOW_ACTION_TYPE_AGE => {
                        Values::Age(Some(Conf::<sys::rte_flow_action_age>::of(action)?.timeout()))
                    }
                    sys::RTE_FLOW_ACTION_TYPE_METER if own => {
                        return Err(unsupported(
                            action,
                            c"METER: which one is the template's, so its mask is not zero",
                        ));
                    }
                    _ if own => Values::Own,
                    _ => Values::Fixed(value(context, action)?),
            })
        });
        Ok(ActionsTemplate { kinds, values: read.collect::<Result<_, _>>()? })
    }

    /// The actions without END, with the kinds of shared ones.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (sys::rte_flow_action_type, Option<SharedKind>)> {
        let shared = |values: &Values| if let Values::Shared(kind) = values { Some(*kind) } else { None };
        self.kinds.iter().zip(&self.values).map(move |(&kind, values)| (kind, shared(values)))
    }
}

/// Whether the device knows these actions, and is not asked to refuse them.
pub(crate) fn check_known(context: &Context, actions: &[LentAction]) -> Result<(), Refusal> {
    for action in actions.iter().filter(|action| action.type_ != sys::RTE_FLOW_ACTION_TYPE_VOID) {
        let name = name(action.type_).ok_or_else(|| unsupported(action, c"the device does not know this action"))?;
        if context.refuses(name) {
            return Err(unsupported(action, c"this action is refused on demand (argument refuse or refuse-create)"));
        }
    }
    Ok(())
}

/// The same of the actions of a rule or a template.
pub(super) fn check_list(context: &Context, actions: &[LentAction]) -> Result<(), Refusal> {
    check_known(context, actions)?;
    match actions.iter().find(|action| action.type_ == sys::RTE_FLOW_ACTION_TYPE_CONNTRACK) {
        Some(action) => {
            Err(unsupported(action, c"CONNTRACK: by a handle alone (INDIRECT), which keeps the connection"))
        }
        None => Ok(()),
    }
}

/// The actions of a rule, and what they share with others.
pub(super) fn kinds_of(
    context: &Context,
    actions: &[LentAction],
) -> impl Iterator<Item = (sys::rte_flow_action_type, Option<SharedKind>)> {
    actions.iter().map(|action| {
        let indirect = action.type_ == sys::RTE_FLOW_ACTION_TYPE_INDIRECT;
        let shared = context.shared.filter(|_| indirect).and_then(|shared| shared.kind(action.conf.addr() as u64));
        (action.type_, shared)
    })
}

/// The order in which the device does the actions of a list that may stand in a rule.
pub(super) struct Order {
    /// Their places in the list; the last says where packets go.
    places: Vec<usize>,
    counts: bool,
    age: Option<usize>,
}

/// Actions as they are admitted.
struct Admission<'a> {
    domain: Domain,
    seen: &'a Seen,
    /// The application's list, if it is at hand.
    causes: Option<&'a [LentAction]>,
    order: Order,
    fate: Option<usize>,
    /// A tag is there, by the pattern or by an action.
    tagged: bool,
    /// The outer headers are not those that the pattern knows.
    tunnelled: bool,
    /// A connection judges the packets.
    judged: bool,
}

/// Says whether such actions may stand in a rule of the domain behind such a pattern, whatever their values are.
pub(super) fn admit(
    domain: Domain,
    seen: &Seen,
    kinds: impl Iterator<Item = (sys::rte_flow_action_type, Option<SharedKind>)>,
    causes: Option<&[LentAction]>,
) -> Result<Order, Refusal> {
    let order = Order { places: Vec::new(), counts: false, age: None };
    let (tagged, tunnelled, judged) = (seen.vlan, false, false);
    let mut admission = Admission { domain, seen, causes, order, fate: None, tagged, tunnelled, judged };
    for (index, (kind, shared)) in kinds.enumerate() {
        admission.take(index, kind, shared)?;
    }
    if admission.fate.is_none() && !matches!(domain, Domain::Egress(_)) {
        let message = c"no action says where packets go: DROP, JUMP, QUEUE, RSS, REPRESENTED_PORT or PORT_REPRESENTOR";
        let cause = causes.map_or(null(), <[_]>::as_ptr);
        return Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION_NUM, cause, message));
    }
    admission.order.places.extend(admission.fate);
    Ok(admission.order)
}

/// The common part of rules with the same actions and the same pattern.
pub(crate) struct Plan {
    kinds: Vec<sys::rte_flow_action_type>,
    slots: Vec<Slot>,
    /// The actions, if no rule has values of its own.
    fixed: Option<Arc<[Action]>>,
    pub counts: bool,
    /// Where AGE is in the list, and the timeout if all rules have the same.
    age: Option<(usize, Option<u32>)>,
    group: u32,
}

/// An action of the device.
enum Slot {
    Fixed(Action),
    /// One whose values are in this action of the rule.
    Own(usize),
    /// One whose handle is.
    Shared(SharedKind, usize),
}

/// A rule's actions with their values.
pub(crate) struct Done {
    pub actions: Arc<[Action]>,
    pub age: Option<Age>,
}

impl Plan {
    /// Plans the actions of rules of a group. `causes` is the application's list, if it is at hand.
    pub(super) fn new(
        group: u32,
        order: &Order,
        template: &ActionsTemplate,
        causes: Option<&[LentAction]>,
    ) -> Result<Plan, Refusal> {
        let conf = |at: usize| causes.and_then(|causes| causes.get(at)).map_or(null(), |action| action.conf);
        let slot = |at| match &template.values[at] {
            Values::Fixed(action) => check_jump(group, action.clone(), conf(at)).map(Slot::Fixed),
            Values::Shared(kind) => Ok(Slot::Shared(*kind, at)),
            _ => Ok(Slot::Own(at)),
        };
        let slots = order.places.iter().map(|&at| slot(at)).collect::<Result<Vec<_>, _>>()?;
        let fixed = |slot: &Slot| if let Slot::Fixed(action) = slot { Some(action.clone()) } else { None };
        let fixed = slots.iter().map(fixed).collect();
        let timeout = |at| if let Values::Age(timeout) = template.values[at] { timeout } else { None };
        let age = order.age.map(|at| (at, timeout(at)));
        Ok(Plan { kinds: template.kinds.clone(), slots, fixed, counts: order.counts, age, group })
    }

    /// The names of its actions.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().filter_map(|&kind| name(kind))
    }

    /// The lent actions of a rule, which have to be those of the plan.
    ///
    /// # Safety
    /// `actions` is null or leads to a list that ends in an END, for whose actions lent-rule holds (see [`lent`](super::lent)).
    pub(crate) unsafe fn lent<'a>(&self, actions: *const sys::rte_flow_action) -> Result<&'a [LentAction], Refusal> {
        if actions.is_null() {
            return Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION_NUM, actions, c"no actions"));
        }
        // SAFETY: not null, so the caller passes a list with an END, and promises lent-rule.
        unsafe { list_of(actions, &self.kinds) }
            .map_err(|action: &LentAction| unsupported(action, c"the template has another action at this place"))
    }

    /// The plan's actions with a rule's values.
    pub(crate) fn values(&self, context: &Context, actions: &[LentAction]) -> Result<Done, Refusal> {
        let age = self.age.map(|(at, timeout)| age_of(&actions[at], timeout)).transpose()?;
        if let Some(fixed) = &self.fixed {
            return Ok(Done { actions: fixed.clone(), age });
        }
        // In one allocation, with the rule's own in the second pass.
        let without_own = |slot: &Slot| if let Slot::Fixed(action) = slot { action.clone() } else { Action::Drop };
        let mut done: Arc<[Action]> = self.slots.iter().map(without_own).collect();
        for (place, slot) in Arc::get_mut(&mut done).into_iter().flatten().zip(&self.slots) {
            match slot {
                Slot::Fixed(_) => {}
                // The handle is a number; that it is there the device sees when the rule is put in.
                Slot::Shared(kind, at) => *place = Action::Shared(*kind, actions[*at].conf.addr() as u64),
                Slot::Own(at) => *place = check_jump(self.group, value(context, &actions[*at])?, actions[*at].conf)?,
            }
        }
        Ok(Done { actions: done, age })
    }
}

/// A jump leads to a group of a higher number, so that every packet's way ends.
fn check_jump(from: u32, action: Action, conf: *const std::ffi::c_void) -> Result<Action, Refusal> {
    match action {
        Action::Jump(to) if to <= from => {
            let message = c"JUMP: to a group of a higher number than the rule's";
            Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, conf, message))
        }
        action => Ok(action),
    }
}

impl Admission<'_> {
    fn refuse(&self, index: usize, message: &'static CStr) -> Result<(), Refusal> {
        let cause = self.causes.and_then(|causes| causes.get(index)).map_or(null(), std::ptr::from_ref::<LentAction>);
        Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ACTION, cause, message))
    }

    fn take(
        &mut self,
        index: usize,
        kind: sys::rte_flow_action_type,
        shared: Option<SharedKind>,
    ) -> Result<(), Refusal> {
        // What shares a fate is that fate.
        let kind = if shared == Some(SharedKind::Rss) { sys::RTE_FLOW_ACTION_TYPE_RSS } else { kind };
        match kind {
            sys::RTE_FLOW_ACTION_TYPE_VOID => return Ok(()),
            sys::RTE_FLOW_ACTION_TYPE_COUNT if self.order.counts => {
                return self.refuse(index, c"COUNT: once in a rule");
            }
            sys::RTE_FLOW_ACTION_TYPE_COUNT => {
                self.order.counts = true;
                return Ok(());
            }
            sys::RTE_FLOW_ACTION_TYPE_AGE if self.order.age.is_some() => {
                return self.refuse(index, c"AGE: once in a rule");
            }
            sys::RTE_FLOW_ACTION_TYPE_AGE => {
                self.order.age = Some(index);
                return Ok(());
            }
            _ => {}
        }
        if shared == Some(SharedKind::Conntrack) && std::mem::replace(&mut self.judged, true) {
            return self.refuse(index, c"CONNTRACK: once in a rule");
        }
        if let Err(message) = self.may_stand(kind) {
            return self.refuse(index, message);
        }
        match (self.fate, is_fate(kind)) {
            (None, true) => self.fate = Some(index),
            (Some(_), true) => return self.refuse(index, c"a second action that says where packets go"),
            // A mark is no change, nor is to count.
            (Some(_), false)
                if ![sys::RTE_FLOW_ACTION_TYPE_MARK, sys::RTE_FLOW_ACTION_TYPE_INDIRECT].contains(&kind) =>
            {
                return self.refuse(index, c"changes stand before the action that says where packets go");
            }
            (_, false) => self.order.places.push(index),
        }
        Ok(())
    }

    fn may_stand(&mut self, kind: sys::rte_flow_action_type) -> Result<(), &'static CStr> {
        match kind {
            sys::RTE_FLOW_ACTION_TYPE_MARK if matches!(self.domain, Domain::Egress(_)) => {
                Err(c"MARK: packets of an egress rule are not received")
            }
            sys::RTE_FLOW_ACTION_TYPE_MARK
            | sys::RTE_FLOW_ACTION_TYPE_DROP
            | sys::RTE_FLOW_ACTION_TYPE_JUMP
            | sys::RTE_FLOW_ACTION_TYPE_METER
            | sys::RTE_FLOW_ACTION_TYPE_INDIRECT => Ok(()),
            sys::RTE_FLOW_ACTION_TYPE_QUEUE | sys::RTE_FLOW_ACTION_TYPE_RSS => match self.domain {
                Domain::Ingress(_) => Ok(()),
                _ => Err(c"QUEUE and RSS are for ingress rules: queues belong to a port"),
            },
            sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT
            | sys::RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR
            | sys::RTE_FLOW_ACTION_TYPE_PORT_ID => match self.domain {
                Domain::Transfer => Ok(()),
                _ => Err(c"an action that sends to a port is for transfer rules"),
            },
            sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN
            | sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN
            | sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID
            | sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP => self.vlan_may_stand(kind),
            sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP
            | sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP
            | sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP
            | sys::RTE_FLOW_ACTION_TYPE_RAW_DECAP => self.tunnel_may_stand(kind),
            _ => self.rewrite_may_stand(kind),
        }
    }

    fn vlan_may_stand(&mut self, kind: sys::rte_flow_action_type) -> Result<(), &'static CStr> {
        match kind {
            sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN => self.tagged = true,
            _ if !self.tagged => {
                return Err(c"no tag is sure to be there: match VLAN, or push one before");
            }
            sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN => self.tagged = false,
            _ => {}
        }
        Ok(())
    }

    fn tunnel_may_stand(&mut self, kind: sys::rte_flow_action_type) -> Result<(), &'static CStr> {
        let tunnelled = std::mem::replace(&mut self.tunnelled, true);
        self.tagged = false;
        if kind == sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP && (!self.seen.vxlan || tunnelled) {
            return Err(c"VXLAN_DECAP: the pattern must have VXLAN, and no tunnel action may stand before");
        }
        Ok(())
    }

    fn rewrite_may_stand(&self, kind: sys::rte_flow_action_type) -> Result<(), &'static CStr> {
        if self.tunnelled {
            return Err(c"headers are rewritten before a tunnel action, or in a group after a JUMP");
        }
        let Seen { ipv4, ipv6, ports, .. } = *self.seen;
        let (there, message) = match kind {
            sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST => {
                (ipv4, c"the pattern must have IPV4 for that")
            }
            sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST => {
                (ipv6, c"the pattern must have IPV6 for that")
            }
            sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST => {
                (ports, c"the pattern must have TCP or UDP for that")
            }
            sys::RTE_FLOW_ACTION_TYPE_SET_TTL | sys::RTE_FLOW_ACTION_TYPE_DEC_TTL => {
                (ipv4 || ipv6, c"the time to live: the pattern must have IPV4 or IPV6")
            }
            _ => (true, c""),
        };
        if there { Ok(()) } else { Err(message) }
    }
}

fn is_fate(kind: sys::rte_flow_action_type) -> bool {
    matches!(
        kind,
        sys::RTE_FLOW_ACTION_TYPE_DROP
            | sys::RTE_FLOW_ACTION_TYPE_JUMP
            | sys::RTE_FLOW_ACTION_TYPE_QUEUE
            | sys::RTE_FLOW_ACTION_TYPE_RSS
            | sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT
            | sys::RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR
            | sys::RTE_FLOW_ACTION_TYPE_PORT_ID
    )
}

/// Whether the mask of an action that has values leaves them to the rules; any bit of it makes them the template's.
fn leaves_values(mask: &LentAction) -> bool {
    mask.conf_bytes().is_none_or(|bytes| !bytes.is_empty() && bytes.iter().all(|&byte| byte == 0))
}

/// The names of the actions that the device does.
fn name(kind: sys::rte_flow_action_type) -> Option<&'static str> {
    Some(match kind {
        sys::RTE_FLOW_ACTION_TYPE_COUNT => "COUNT",
        sys::RTE_FLOW_ACTION_TYPE_INDIRECT => "INDIRECT",
        sys::RTE_FLOW_ACTION_TYPE_METER => "METER",
        sys::RTE_FLOW_ACTION_TYPE_AGE => "AGE",
        sys::RTE_FLOW_ACTION_TYPE_CONNTRACK => "CONNTRACK",
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
