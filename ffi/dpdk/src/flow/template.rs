//! Template tables: rules of one shape, which differ in values alone.

use super::lower::Lowered;
use super::{lower, refused};
use crate::Errno;
use crate::ethdev::Port;
use dpdk_sys as sys;
use rte_rule::{Direction, FlowAction, FlowAttr, FlowError, FlowItem};
use std::mem::discriminant;
use std::ptr::{NonNull, null};
use std::sync::Arc;

/// A template table of a device, with its pattern template and its actions template. The drop destroys all three; no rule is in the
/// table by then.
pub(super) struct TemplateTable {
    pub(super) raw: NonNull<sys::rte_flow_template_table>,
    pattern_template: NonNull<sys::rte_flow_pattern_template>,
    actions_template: NonNull<sys::rte_flow_actions_template>,
    attr: FlowAttr,
    pattern: Vec<FlowItem>,
    actions: Vec<FlowAction>,
    /// Number of rules that the table has room for.
    pub(super) room: u32,
    /// Number of rules in the table.
    pub(super) rules: u32,
    port: Arc<Port>,
}

// SAFETY: rte_flow functions may be called on any thread; `&mut` of the queue that owns the table keeps it to one at a time.
unsafe impl Send for TemplateTable {}

impl TemplateTable {
    /// A table for rules of the shape of this one.
    pub(super) fn new(
        port: &Arc<Port>,
        attr: &FlowAttr,
        pattern: &[FlowItem],
        actions: &[FlowAction],
        room: u32,
    ) -> Result<TemplateTable, FlowError> {
        let lowered = Lowered::new(pattern, actions);
        // No part of an action is the same for all rules.
        let mut masks = lowered.actions.clone();
        masks.iter_mut().for_each(|mask| mask.conf = null());
        let (id, mut error) = (port.id(), sys::rte_flow_error::default());
        let no_template = |error: &sys::rte_flow_error| {
            let why = refused(port.name(), Errno::last(), error, Some(&lowered));
            FlowError::NoTemplate { device: port.name().to_owned(), said: why.to_string() }
        };
        let of_pattern = pattern_attributes(attr.direction);
        // SAFETY: lent-port and ended-lists; drivers copy what they keep.
        let pattern_template = NonNull::new(unsafe {
            sys::rte_flow_pattern_template_create(id, &raw const of_pattern, lowered.items.as_ptr(), &raw mut error)
        });
        let pattern_template = pattern_template.ok_or_else(|| no_template(&error))?;
        let of_actions = actions_attributes(attr.direction);
        let (raw_actions, raw_masks) = (lowered.actions.as_ptr(), masks.as_ptr());
        // SAFETY: lent-port and ended-lists, of which `masks` is a copy without confs; drivers copy what they keep.
        let actions_template = NonNull::new(unsafe {
            sys::rte_flow_actions_template_create(id, &raw const of_actions, raw_actions, raw_masks, &raw mut error)
        });
        let Some(actions_template) = actions_template else {
            let refusal = no_template(&error);
            destroy_pattern(port, pattern_template);
            return Err(refusal);
        };
        let of_table = sys::rte_flow_template_table_attr { flow_attr: lower::attributes(attr), nb_flows: room };
        let mut patterns = [pattern_template.as_ptr()];
        let mut all_actions = [actions_template.as_ptr()];
        let (first_pattern, first_actions) = (patterns.as_mut_ptr(), all_actions.as_mut_ptr());
        // SAFETY: lent-port; one template of each kind, which `drop` destroys after the table.
        let table = NonNull::new(unsafe {
            let (error, attr) = (&raw mut error, &raw const of_table);
            sys::rte_flow_template_table_create(id, attr, first_pattern, 1, first_actions, 1, error)
        });
        let Some(raw) = table else {
            let refusal = no_template(&error);
            destroy_actions(port, actions_template);
            destroy_pattern(port, pattern_template);
            return Err(refusal);
        };
        Ok(TemplateTable {
            raw,
            pattern_template,
            actions_template,
            attr: *attr,
            pattern: pattern.to_vec(),
            actions: actions.to_vec(),
            room,
            rules: 0,
            port: port.clone(),
        })
    }

    /// Whether a rule differs from those in the table by values alone.
    pub(super) fn is_for(&self, attr: &FlowAttr, pattern: &[FlowItem], actions: &[FlowAction]) -> bool {
        self.attr == *attr
            && (self.pattern.len(), self.actions.len()) == (pattern.len(), actions.len())
            && self.pattern.iter().zip(pattern).all(|(own, other)| same_item(own, other))
            && self.actions.iter().zip(actions).all(|(own, other)| same_action(own, other))
    }
}

impl Drop for TemplateTable {
    fn drop(&mut self) {
        let mut error = sys::rte_flow_error::default();
        // SAFETY: lent-port; the queue drops a table when no rule is in it, or when the device keeps the rules anyway.
        let returned =
            unsafe { sys::rte_flow_template_table_destroy(self.port.id(), self.raw.as_ptr(), &raw mut error) };
        warn_if_kept(&self.port, returned, &error);
        destroy_actions(&self.port, self.actions_template);
        destroy_pattern(&self.port, self.pattern_template);
    }
}

fn destroy_pattern(port: &Port, template: NonNull<sys::rte_flow_pattern_template>) {
    let mut error = sys::rte_flow_error::default();
    // SAFETY: lent-port; the template is ours, and its table is destroyed or was never made.
    let returned = unsafe { sys::rte_flow_pattern_template_destroy(port.id(), template.as_ptr(), &raw mut error) };
    warn_if_kept(port, returned, &error);
}

fn destroy_actions(port: &Port, template: NonNull<sys::rte_flow_actions_template>) {
    let mut error = sys::rte_flow_error::default();
    // SAFETY: lent-port; the template is ours, and its table is destroyed or was never made.
    let returned = unsafe { sys::rte_flow_actions_template_destroy(port.id(), template.as_ptr(), &raw mut error) };
    warn_if_kept(port, returned, &error);
}

fn warn_if_kept(port: &Port, returned: i32, error: &sys::rte_flow_error) {
    if let Err(errno) = Errno::check(returned) {
        let error = refused(port.name(), errno, error, None);
        tracing::warn!(%error, "a template stays in its device");
    }
}

fn pattern_attributes(direction: Direction) -> sys::rte_flow_pattern_template_attr {
    let mut raw = sys::rte_flow_pattern_template_attr::default();
    match direction {
        Direction::Ingress => raw.set_ingress(1),
        Direction::Egress => raw.set_egress(1),
        Direction::Transfer => raw.set_transfer(1),
    }
    raw
}

fn actions_attributes(direction: Direction) -> sys::rte_flow_actions_template_attr {
    let mut raw = sys::rte_flow_actions_template_attr::default();
    match direction {
        Direction::Ingress => raw.set_ingress(1),
        Direction::Egress => raw.set_egress(1),
        Direction::Transfer => raw.set_transfer(1),
    }
    raw
}

/// Whether two items are of one kind, with one mask.
fn same_item(one: &FlowItem, other: &FlowItem) -> bool {
    match one {
        FlowItem::Eth(one) => matches!(other, FlowItem::Eth(other) if one.mask == other.mask),
        FlowItem::Vlan(one) => matches!(other, FlowItem::Vlan(other) if one.mask == other.mask),
        FlowItem::Ipv4(one) => matches!(other, FlowItem::Ipv4(other) if one.mask == other.mask),
        FlowItem::Ipv6(one) => matches!(other, FlowItem::Ipv6(other) if one.mask == other.mask),
        FlowItem::Tcp(one) => matches!(other, FlowItem::Tcp(other) if one.mask == other.mask),
        FlowItem::Udp(one) => matches!(other, FlowItem::Udp(other) if one.mask == other.mask),
        FlowItem::Sctp(one) => matches!(other, FlowItem::Sctp(other) if one.mask == other.mask),
        FlowItem::Icmp(one) => matches!(other, FlowItem::Icmp(other) if one.mask == other.mask),
        FlowItem::Icmp6(one) => matches!(other, FlowItem::Icmp6(other) if one.mask == other.mask),
        FlowItem::Vxlan(one) => matches!(other, FlowItem::Vxlan(other) if one.mask == other.mask),
        FlowItem::RepresentedPort(_) => matches!(other, FlowItem::RepresentedPort(_)),
    }
}

/// Whether two actions differ by values alone. The headers of an encapsulation and the queues of an RSS are no values: they have to
/// be equal.
fn same_action(one: &FlowAction, other: &FlowAction) -> bool {
    match one {
        FlowAction::Set(one) => matches!(other, FlowAction::Set(other) if discriminant(one) == discriminant(other)),
        FlowAction::Rss(_) | FlowAction::VxlanEncap(_) | FlowAction::RawEncap(_) | FlowAction::RawDecap(_) => {
            one == other
        }
        FlowAction::Drop
        | FlowAction::Count
        | FlowAction::Mark(_)
        | FlowAction::Queue(_)
        | FlowAction::RepresentedPort(_)
        | FlowAction::Jump(_)
        | FlowAction::Age { .. }
        | FlowAction::DecTtl
        | FlowAction::PopVlan
        | FlowAction::PushVlan(_)
        | FlowAction::VxlanDecap => discriminant(one) == discriminant(other),
    }
}
