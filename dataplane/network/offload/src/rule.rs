//! A megaflow as a rule.

use crate::pattern::Pattern;
use crate::rewrite::rewrite;
use dpdk::flow::{Direction, FlowAction, FlowAttributes, FlowItem};
use flow::text::{Actions, FlowMatch};
use flow::{Action, Key, Mask, PortNo, field};
use std::time::Duration;

/// What a device is told: items that a packet has to match, from the outside in, and what is done to it then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it matches.
    pub pattern: Vec<FlowItem>,
    /// What it does: counts, rewrites, and one fate at the end.
    pub actions: Vec<FlowAction>,
    /// What it is applied to: all that passes the device's switch, or what one port receives.
    pub direction: Direction,
}

/// The clause of a flow that no rule expresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The flow looks at this.
    #[error("match {0}: there is no item for it")]
    Match(Box<FlowMatch>),
    /// The flow does this.
    #[error("action {action}: {reason}")]
    Action {
        /// The action, in the text of the datapath.
        action: String,
        /// Why it is left to the workers.
        reason: &'static str,
    },
    /// The flow leads from or to this port.
    #[error("port {0}: it is not of the device")]
    Port(PortNo),
    /// The device's own words.
    #[error("{0}")]
    Device(String),
    /// For this reason the device does not do the flow as a whole, and for that it does not mark its packets either.
    #[error("{whole}; to mark its packets: {marking}")]
    Both {
        /// The flow as a whole.
        whole: Box<Refusal>,
        /// Its packets.
        marking: String,
    },
    /// Nothing was heard of the rule for so long: nobody knows whether it is there.
    #[error("no completion from the device in {} s", .0.as_secs())]
    Completion(Duration),
}

impl Refusal {
    /// What was refused, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::Match(_) => "match",
            Refusal::Action { .. } => "action",
            Refusal::Port(_) => "port",
            Refusal::Device(_) => "device",
            Refusal::Both { whole, .. } => whole.kind(),
            Refusal::Completion(_) => "completion",
        }
    }

    pub(crate) fn action(action: &Action, reason: &'static str) -> Refusal {
        Refusal::Action { action: Actions(std::slice::from_ref(action)).to_string(), reason }
    }
}

impl Rule {
    /// Where rules of whole flows stand: they see what passes the device's switch, whatever port it comes from.
    pub fn attributes(priority: u32) -> FlowAttributes {
        FlowAttributes { group: 0, priority, direction: Direction::Transfer }
    }

    /// Where this rule stands.
    pub fn place(&self, priority: u32) -> FlowAttributes {
        FlowAttributes { direction: self.direction, ..Rule::attributes(priority) }
    }

    /// The rule that does what this flow does. `device_port` knows the number that the device has for a port of the switch.
    pub fn of(
        key: &Key,
        mask: &Mask,
        actions: &[Action],
        device_port: impl Fn(PortNo) -> Option<u16>,
    ) -> Result<Rule, Refusal> {
        let Pattern { items, mut headers } = Pattern::of(key, mask, &device_port)?;
        let mut rule = Rule { pattern: items, actions: vec![FlowAction::Count], direction: Direction::Transfer };
        let (fate, before) = match actions.split_last() {
            None | Some((Action::Drop, [])) => (FlowAction::Drop, [].as_slice()),
            Some((Action::Output(port), before)) => {
                (FlowAction::RepresentedPort(device_port(*port).ok_or(Refusal::Port(*port))?), before)
            }
            Some((last, _)) => return Err(Refusal::action(last, "it is no fate that hardware has")),
        };
        for action in before {
            rewrite(action, &mut headers, &mut rule.actions)?;
        }
        rule.actions.push(fate);
        Ok(rule)
    }

    /// The rule that marks the packets of this flow where its port receives them, by so many queues. What it counts says how much
    /// it is worth; the flow's statistics are those of the workers.
    pub fn marking(key: &Key, mask: &Mask, mark: u32, queues: u16) -> Result<Rule, Refusal> {
        let mut of_port = *mask;
        of_port.0.set(field::IN_PORT, 0);
        let Pattern { items, .. } = Pattern::of(key, &of_port, |_| None)?;
        let actions = vec![FlowAction::Count, FlowAction::Mark(mark), FlowAction::Rss((0..queues).collect())];
        Ok(Rule { pattern: items, actions, direction: Direction::Ingress })
    }
}
