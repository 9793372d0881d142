//! Templates: what rules have in common is translated once, and each rule brings values alone.

use super::action::{ActionsTemplate, Done, Plan, admit, check_list};
use super::item::{self, Mode, PatternTemplate};
use super::lent::{LentAction, LentItem, list};
use super::{Context, Refusal, domain};
use crate::pipeline::{self, Domain, Key, Limits, Rss};
use dpdk_sys as sys;
use std::ffi::c_void;
use std::ptr::null;

/// The directions of packets that a template is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Directions {
    pub ingress: bool,
    pub egress: bool,
    pub transfer: bool,
}

impl Directions {
    /// Directions, one at least.
    fn check<T>(self, attributes: &T) -> Result<Directions, Refusal> {
        if self.ingress || self.egress || self.transfer {
            return Ok(self);
        }
        let message = c"one of ingress, egress and transfer is needed";
        Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ATTR, attributes, message))
    }

    fn include(self, domain: Domain) -> bool {
        match domain {
            Domain::Transfer => self.transfer,
            Domain::Ingress(_) => self.ingress,
            Domain::Egress(_) => self.egress,
        }
    }
}

/// A pattern template.
pub(crate) struct Pattern {
    directions: Directions,
    template: PatternTemplate,
}

impl Pattern {
    /// # Safety
    /// The lists are null or lead to lists that end in an END, for whose elements lent-rule holds (see [`lent`](super::lent)).
    pub(crate) unsafe fn new(
        context: &Context,
        attributes: &sys::rte_flow_pattern_template_attr,
        items: *const sys::rte_flow_item,
    ) -> Result<Pattern, Refusal> {
        let (ingress, egress, transfer) = (attributes.ingress(), attributes.egress(), attributes.transfer());
        let directions = Directions { ingress: ingress != 0, egress: egress != 0, transfer: transfer != 0 };
        let directions = directions.check(attributes)?;
        // SAFETY: the caller passes null or a list with an END, and promises lent-rule.
        let items = unsafe { list::<LentItem>(items) };
        let missing = || Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ITEM_NUM, null::<c_void>(), c"no pattern");
        let mode = Mode::Template { relaxed: attributes.relaxed_matching() != 0 };
        let template = item::pattern(context, directions.transfer, items.ok_or_else(missing)?, mode)?;
        Ok(Pattern { directions, template })
    }
}

/// An actions template.
pub(crate) struct Actions {
    directions: Directions,
    template: ActionsTemplate,
}

impl Actions {
    /// # Safety
    /// `actions` and `masks` are null or lead to lists that end in an END, for whose elements lent-rule holds (see
    /// [`lent`](super::lent)).
    pub(crate) unsafe fn new(
        context: &Context,
        attributes: &sys::rte_flow_actions_template_attr,
        actions: *const sys::rte_flow_action,
        masks: *const sys::rte_flow_action,
    ) -> Result<Actions, Refusal> {
        let (ingress, egress, transfer) = (attributes.ingress(), attributes.egress(), attributes.transfer());
        let directions = Directions { ingress: ingress != 0, egress: egress != 0, transfer: transfer != 0 };
        let directions = directions.check(attributes)?;
        let missing = |message| Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION_NUM, null::<c_void>(), message);
        // SAFETY: the caller passes null or a list with an END, and promises lent-rule.
        let actions = unsafe { list::<LentAction>(actions) };
        // SAFETY: the caller passes null or a list with an END, and promises lent-rule.
        let masks = unsafe { list::<LentAction>(masks) };
        let actions = actions.ok_or_else(|| missing(c"no actions"))?;
        let masks = masks.ok_or_else(|| missing(c"no masks"))?;
        check_list(context, actions)?;
        // The mask of INDIRECT has the type of what it stands for.
        let same = |(action, mask): (&LentAction, &LentAction)| {
            action.type_ == mask.type_ || action.type_ == sys::RTE_FLOW_ACTION_TYPE_INDIRECT
        };
        if actions.len() != masks.len() || !actions.iter().zip(masks).all(same) {
            return Err(missing(c"the masks are not those of these actions"));
        }
        let template = ActionsTemplate::read(context, actions, Some(masks))?;
        Ok(Actions { directions, template })
    }
}

/// The templates of a table, put together: each pattern with each list of actions.
pub(crate) struct Table {
    pub domain: Domain,
    pub group: u32,
    pub priority: u32,
    patterns: Vec<(PatternTemplate, pipeline::Pattern)>,
    plans: Vec<Vec<Plan>>,
    port: u16,
    ports: Vec<u16>,
    rx_queues: u16,
    rss: Option<Rss>,
    limits: Limits,
}

impl Table {
    pub(crate) fn new(
        context: &Context,
        attributes: &sys::rte_flow_attr,
        patterns: &[&Pattern],
        actions: &[&Actions],
    ) -> Result<Table, Refusal> {
        let domain = domain(context, attributes)?;
        let fits = |directions: Directions| match directions.include(domain) {
            true => Ok(()),
            false => {
                let message = c"a template is not for the direction of the table";
                Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ATTR, attributes, message))
            }
        };
        let mut table = Table {
            domain,
            group: attributes.group,
            priority: attributes.priority,
            patterns: Vec::new(),
            plans: Vec::new(),
            port: context.port,
            ports: context.ports.to_vec(),
            rx_queues: context.rx_queues,
            rss: context.rss.cloned(),
            limits: context.limits.clone(),
        };
        for pattern in patterns {
            fits(pattern.directions)?;
            let template = pattern.template.clone();
            if template.source && domain != Domain::Transfer {
                let message = c"REPRESENTED_PORT and PORT_REPRESENTOR are for transfer rules";
                return Err(Refusal::unsupported(sys::RTE_FLOW_ERROR_TYPE_ITEM, null::<c_void>(), message));
            }
            template.check_group(attributes.group, None)?;
            let plan = |actions: &&Actions| {
                fits(actions.directions)?;
                let order = admit(domain, &template.seen, actions.template.kinds(), None)?;
                Plan::new(attributes.group, &order, &actions.template, None)
            };
            table.plans.push(actions.iter().map(plan).collect::<Result<_, _>>()?);
            let fixed = template.fixed(context.port, attributes);
            table.patterns.push((template, fixed));
        }
        Ok(table)
    }

    /// The masks of its rules.
    pub(crate) fn patterns(&self) -> Vec<pipeline::Pattern> {
        self.patterns.iter().map(|&(_, fixed)| fixed).collect()
    }

    /// The values of a rule, and whether it counts.
    ///
    /// # Safety
    /// The lists are null or lead to lists that end in an END, for whose elements lent-rule holds (see [`lent`](super::lent)).
    pub(crate) unsafe fn rule(
        &self,
        (items, pattern_index): (*const sys::rte_flow_item, usize),
        (actions, actions_index): (*const sys::rte_flow_action, usize),
    ) -> Result<(Key, Done, bool), Refusal> {
        let missing = |message| Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_UNSPECIFIED, null::<c_void>(), message);
        let pattern =
            self.patterns.get(pattern_index).ok_or_else(|| missing(c"the table has fewer pattern templates"))?;
        let plan = self.plans.get(pattern_index).and_then(|plans| plans.get(actions_index));
        let plan = plan.ok_or_else(|| missing(c"the table has fewer actions templates"))?;
        let (template, fixed) = pattern;
        // SAFETY: the caller passes null or a list with an END, and promises lent-rule.
        let value = template.values(fixed, &self.ports, unsafe { template.lent(items)? })?;
        // SAFETY: the caller passes null or a list with an END, and promises lent-rule.
        let done = plan.values(&self.context(), unsafe { plan.lent(actions)? })?;
        Ok((value, done, plan.counts))
    }

    /// The names of the items and actions of a rule.
    pub(crate) fn names(&self, pattern: usize, actions: usize) -> impl Iterator<Item = &'static str> {
        let items = self.patterns.get(pattern).into_iter().flat_map(|(template, _)| template.names());
        let plan = self.plans.get(pattern).and_then(|plans| plans.get(actions));
        items.chain(plan.into_iter().flat_map(Plan::names))
    }

    fn context(&self) -> Context<'_> {
        Context {
            port: self.port,
            ports: &self.ports,
            rx_queues: self.rx_queues,
            rss: self.rss.as_ref(),
            limits: &self.limits,
            shared: None,
            meters: None,
            refuse: &[],
        }
    }
}
