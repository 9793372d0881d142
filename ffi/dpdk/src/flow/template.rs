//! Template tables: rules of one shape, which differ in values alone.

use super::lower::Lowered;
use super::{Direction, FlowAction, FlowAttributes, FlowError, FlowItem, lower, refused};
use crate::Errno;
use crate::ethdev::Port;
use dpdk_sys as sys;
use std::mem::discriminant;
use std::ptr::{NonNull, null};
use std::sync::Arc;

/// A table of a device, with its two templates. Empty by the time that it is dropped.
pub(super) struct TemplateTable {
    pub(super) raw: NonNull<sys::rte_flow_template_table>,
    pattern_template: NonNull<sys::rte_flow_pattern_template>,
    actions_template: NonNull<sys::rte_flow_actions_template>,
    attributes: FlowAttributes,
    pattern: Vec<FlowItem>,
    actions: Vec<FlowAction>,
    /// Rules that it has room for, and those that it has.
    pub(super) room: u32,
    pub(super) rules: u32,
    port: Arc<Port>,
}

// SAFETY: any thread may use a table, one at a time.
unsafe impl Send for TemplateTable {}

impl TemplateTable {
    /// A table for rules of the shape of this one.
    pub(super) fn new(
        port: &Arc<Port>,
        attributes: &FlowAttributes,
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
        let of_pattern = pattern_attributes(attributes.direction);
        // SAFETY: the lists end in an END and live across the calls, with all that they lead to; drivers copy what they keep.
        let pattern_template = NonNull::new(unsafe {
            sys::rte_flow_pattern_template_create(id, &raw const of_pattern, lowered.items.as_ptr(), &raw mut error)
        });
        let pattern_template = pattern_template.ok_or_else(|| no_template(&error))?;
        let of_actions = actions_attributes(attributes.direction);
        // SAFETY: as above.
        let actions_template = NonNull::new(unsafe {
            let (actions, masks) = (lowered.actions.as_ptr(), masks.as_ptr());
            sys::rte_flow_actions_template_create(id, &raw const of_actions, actions, masks, &raw mut error)
        });
        let Some(actions_template) = actions_template else {
            let refusal = no_template(&error);
            destroy_pattern(port, pattern_template);
            return Err(refusal);
        };
        let attr = sys::rte_flow_template_table_attr { flow_attr: lower::attributes(attributes), nb_flows: room };
        let (mut patterns, mut all_actions) = ([pattern_template.as_ptr()], [actions_template.as_ptr()]);
        // SAFETY: one template of each kind, which live longer than the table.
        let table = NonNull::new(unsafe {
            let (patterns, actions) = (patterns.as_mut_ptr(), all_actions.as_mut_ptr());
            sys::rte_flow_template_table_create(id, &raw const attr, patterns, 1, actions, 1, &raw mut error)
        });
        let Some(raw) = table else {
            let refusal = no_template(&error);
            destroy_actions(port, actions_template);
            destroy_pattern(port, pattern_template);
            return Err(refusal);
        };
        let (attributes, pattern, actions) = (*attributes, pattern.to_vec(), actions.to_vec());
        let port = port.clone();
        Ok(TemplateTable {
            raw,
            pattern_template,
            actions_template,
            attributes,
            pattern,
            actions,
            room,
            rules: 0,
            port,
        })
    }

    /// Whether a rule differs from those in the table by values alone.
    pub(super) fn is_for(&self, attributes: &FlowAttributes, pattern: &[FlowItem], actions: &[FlowAction]) -> bool {
        self.attributes == *attributes
            && (self.pattern.len(), self.actions.len()) == (pattern.len(), actions.len())
            && self.pattern.iter().zip(pattern).all(|(own, other)| same_item(own, other))
            && self.actions.iter().zip(actions).all(|(own, other)| same_action(own, other))
    }
}

impl Drop for TemplateTable {
    fn drop(&mut self) {
        let mut error = sys::rte_flow_error::default();
        // SAFETY: no rule is in the table.
        let returned =
            unsafe { sys::rte_flow_template_table_destroy(self.port.id(), self.raw.as_ptr(), &raw mut error) };
        told(&self.port, returned, &error);
        destroy_actions(&self.port, self.actions_template);
        destroy_pattern(&self.port, self.pattern_template);
    }
}

fn destroy_pattern(port: &Port, template: NonNull<sys::rte_flow_pattern_template>) {
    let mut error = sys::rte_flow_error::default();
    // SAFETY: no table has it.
    let returned = unsafe { sys::rte_flow_pattern_template_destroy(port.id(), template.as_ptr(), &raw mut error) };
    told(port, returned, &error);
}

fn destroy_actions(port: &Port, template: NonNull<sys::rte_flow_actions_template>) {
    let mut error = sys::rte_flow_error::default();
    // SAFETY: no table has it.
    let returned = unsafe { sys::rte_flow_actions_template_destroy(port.id(), template.as_ptr(), &raw mut error) };
    told(port, returned, &error);
}

fn told(port: &Port, returned: i32, error: &sys::rte_flow_error) {
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

fn same_item(one: &FlowItem, other: &FlowItem) -> bool {
    match (one, other) {
        (FlowItem::Eth(one), FlowItem::Eth(other)) => one.mask == other.mask,
        (FlowItem::Vlan(one), FlowItem::Vlan(other)) => one.mask == other.mask,
        (FlowItem::Ipv4(one), FlowItem::Ipv4(other)) => one.mask == other.mask,
        (FlowItem::Ipv6(one), FlowItem::Ipv6(other)) => one.mask == other.mask,
        (FlowItem::Tcp(one), FlowItem::Tcp(other)) => one.mask == other.mask,
        (FlowItem::Udp(one), FlowItem::Udp(other)) | (FlowItem::Sctp(one), FlowItem::Sctp(other)) => {
            one.mask == other.mask
        }
        (FlowItem::Icmp(one), FlowItem::Icmp(other)) | (FlowItem::Icmp6(one), FlowItem::Icmp6(other)) => {
            one.mask == other.mask
        }
        (FlowItem::Vxlan(one), FlowItem::Vxlan(other)) => one.mask == other.mask,
        (FlowItem::RepresentedPort(_), FlowItem::RepresentedPort(_)) => true,
        _ => false,
    }
}

/// What an encapsulation puts in front, and what an RSS spreads over, is no value: it is compared as a whole.
fn same_action(one: &FlowAction, other: &FlowAction) -> bool {
    match (one, other) {
        (FlowAction::Set(one), FlowAction::Set(other)) => discriminant(one) == discriminant(other),
        (FlowAction::Rss(_) | FlowAction::VxlanEncap(_) | FlowAction::RawEncap(_) | FlowAction::RawDecap(_), other) => {
            one == other
        }
        _ => discriminant(one) == discriminant(other),
    }
}
