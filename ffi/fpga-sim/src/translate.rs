//! From rte_flow's attributes, pattern and actions to a [`Rule`], or to the clause that the device does not do and why.

mod action;
mod conntrack;
mod encap;
mod item;
mod lent;
mod template;
mod value;

pub(crate) use action::check_known;
pub(crate) use conntrack::{connection, direction, show_connection};
pub(crate) use item::LEFT_TUNNEL;
pub(crate) use lent::LentAction;
pub(crate) use template::{Actions, Pattern, Table};
pub(crate) use value::RSS_TYPES;

use crate::pipeline::{Action, Age, Domain, Limits, Rate, Rss, Rule, RuleId, SharedActions};
use action::{ActionsTemplate, Plan};
use dpdk_sys as sys;
use item::Mode;
use lent::{LentItem, list};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::ptr::null;
use std::sync::Arc;

/// The properties of the device and of the port that a translation depends on.
pub(crate) struct Context<'a> {
    /// The port that the application called.
    pub port: u16,
    /// The ports of the device.
    pub ports: &'a [u16],
    /// Receive queues of the port.
    pub rx_queues: u16,
    /// RSS of packets that no rule matches.
    pub rss: Option<&'a Rss>,
    /// Sizes of the device.
    pub limits: &'a Limits,
    /// Actions that rules can share.
    pub shared: Option<&'a SharedActions>,
    /// The meters of the port.
    pub meters: Option<&'a Meters>,
    /// Names of items and actions that are refused on demand.
    pub refuse: &'a [&'a [String]],
}

/// The meters of a port, with what they were made of.
#[derive(Default)]
pub(crate) struct Meters {
    /// Profiles.
    pub rates: BTreeMap<u32, Rate>,
    /// Policies: which of the colors green, yellow and red are dropped.
    pub policies: BTreeMap<u32, [bool; 3]>,
    pub meters: BTreeMap<u32, MadeOf>,
}

/// A meter's number in the pipeline, and its profile and policy.
pub(crate) struct MadeOf {
    pub number: RuleId,
    pub profile: u32,
    pub policy: u32,
}

impl Meters {
    pub(crate) fn number(&self, meter: u32) -> Option<RuleId> {
        self.meters.get(&meter).map(|made_of| made_of.number)
    }
}

impl Context<'_> {
    fn refuses(&self, name: &str) -> bool {
        self.refuse.iter().any(|names| names.iter().any(|refused| refused == name))
    }
}

/// A clause that is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub errno: i32,
    pub kind: sys::rte_flow_error_type,
    /// The refused item, action or attributes, or a part of one.
    pub cause: *const c_void,
    pub message: &'static CStr,
}

impl Refusal {
    /// Refuses a feature that the device does not have.
    fn unsupported<T>(kind: sys::rte_flow_error_type, cause: *const T, message: &'static CStr) -> Refusal {
        Refusal { errno: libc::ENOTSUP, kind, cause: cause.cast(), message }
    }

    /// Refuses an invalid value.
    fn invalid<T>(kind: sys::rte_flow_error_type, cause: *const T, message: &'static CStr) -> Refusal {
        Refusal { errno: libc::EINVAL, kind, cause: cause.cast(), message }
    }
}

/// Translates a rule.
///
/// # Safety
/// `attributes` is null or leads to attributes; `pattern` and `actions` are null or lead to lists that end in an END, for whose
/// elements lent-rule holds (see [`lent`]).
pub(crate) unsafe fn rule(
    context: &Context,
    attributes: *const sys::rte_flow_attr,
    pattern: *const sys::rte_flow_item,
    actions: *const sys::rte_flow_action,
) -> Result<Rule, Refusal> {
    // SAFETY: the caller passes null or attributes.
    let attributes = unsafe { attributes.as_ref() };
    // SAFETY: the caller passes null or a list with an END, and promises lent-rule.
    let pattern = unsafe { list::<LentItem>(pattern) };
    // SAFETY: the caller passes null or a list with an END, and promises lent-rule.
    let actions = unsafe { list::<LentAction>(actions) };
    let missing = |kind, message| Refusal::invalid(kind, null::<c_void>(), message);
    let attributes = attributes.ok_or_else(|| missing(sys::RTE_FLOW_ERROR_TYPE_ATTR, c"no attributes"))?;
    let pattern = pattern.ok_or_else(|| missing(sys::RTE_FLOW_ERROR_TYPE_ITEM_NUM, c"no pattern"))?;
    let actions = actions.ok_or_else(|| missing(sys::RTE_FLOW_ERROR_TYPE_ACTION_NUM, c"no actions"))?;
    let domain = domain(context, attributes)?;
    let template = item::pattern(context, attributes.transfer() != 0, pattern, Mode::Rule)?;
    template.check_group(attributes.group, Some(pattern))?;
    let fixed = template.fixed(context.port, attributes);
    let value = template.values(&fixed, context.ports, pattern)?;
    action::check_list(context, actions)?;
    let order = action::admit(domain, &template.seen, action::kinds_of(context, actions), Some(actions))?;
    let values = ActionsTemplate::read(context, actions, None)?;
    let plan = Plan::new(attributes.group, &order, &values, Some(actions))?;
    let done = plan.values(context, actions)?;
    Ok(Rule {
        owner: context.port,
        domain,
        group: attributes.group,
        priority: attributes.priority,
        pattern: fixed.with_value(value),
        actions: done.actions,
        counts: plan.counts,
        age: done.age,
    })
}

/// The queues of an RSS action in an ingress rule of the port.
pub(crate) fn rss(context: &Context, action: &LentAction) -> Result<Arc<Rss>, Refusal> {
    match value::value(context, action)? {
        Action::Spread(rss) => Ok(rss),
        _ => Err(value::unsupported(action, c"not RSS")),
    }
}

/// The age of an AGE action.
pub(crate) fn age(action: &LentAction) -> Result<Age, Refusal> {
    value::age_of(action, None)
}

fn domain(context: &Context, attributes: &sys::rte_flow_attr) -> Result<Domain, Refusal> {
    if attributes.group >= context.limits.groups {
        let message = c"group: the device has fewer (argument groups)";
        return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ATTR_GROUP, attributes, message));
    }
    if attributes.priority >= context.limits.priorities {
        let message = c"priority: the device has fewer (argument priorities)";
        return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ATTR_PRIORITY, attributes, message));
    }
    match (attributes.transfer() != 0, attributes.ingress() != 0, attributes.egress() != 0) {
        (_, true, true) => {
            let message = c"ingress and egress: a rule sees packets of one direction";
            Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ATTR_EGRESS, attributes, message))
        }
        (true, ..) => Ok(Domain::Transfer),
        (false, true, false) => Ok(Domain::Ingress(context.port)),
        (false, false, true) => Ok(Domain::Egress(context.port)),
        (false, false, false) => {
            let message = c"one of ingress, egress and transfer is needed";
            Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ATTR, attributes, message))
        }
    }
}

#[cfg(test)]
mod tests;
