//! A megaflow as a rule.

use crate::pattern::Pattern;
use crate::rewrite::rewrite;
use flow::text::{Actions, FlowMatch};
use flow::{Action, Key, Mask, PortNo, field};
use rte_rule::{Direction, FlowAction, FlowAttr, FlowItem};
use std::time::Duration;

/// A rule for a device, without its priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Items that a packet has to match, from the outermost header inwards.
    pub pattern: Vec<FlowItem>,
    /// Actions: COUNT, header changes, and one terminal (fate) action at the end.
    pub actions: Vec<FlowAction>,
    /// The traffic that the rule applies to: what passes the device's embedded switch, or what one port receives.
    pub direction: Direction,
}

/// The reason why a flow is not offloaded, or not as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// These fields of the match have no item.
    #[error("match {0}: has no rte_flow item")]
    Match(Box<FlowMatch>),
    /// This action is left to the workers.
    #[error("action {action}: {reason}")]
    Action {
        /// The action, in the text of the datapath.
        action: String,
        /// The reason.
        reason: &'static str,
    },
    /// The flow leads from or to this port of another device or none.
    #[error("port {0} is not in this device's switch domain")]
    Port(PortNo),
    /// The device's own message.
    #[error("{0}")]
    Device(String),
    /// The device takes neither the flow as a whole nor a rule that marks its packets.
    #[error("{whole}; to mark its packets: {marking}")]
    Both {
        /// The reason why the flow is not offloaded as a whole.
        whole: Box<Refusal>,
        /// The reason why its packets are not marked.
        marking: String,
    },
    /// The completion of the insertion did not come within this time.
    #[error("no completion from the device in {} s", .0.as_secs())]
    Completion(Duration),
}

impl Refusal {
    /// The kind of the reason, in a word.
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
    /// The attributes of the rule.
    pub fn attr(&self, priority: u32) -> FlowAttr {
        FlowAttr { group: 0, priority, direction: self.direction }
    }

    /// The rule that is equivalent to a flow. `device_port` returns the device's number for a port of the switch.
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
            Some((last, _)) => return Err(Refusal::action(last, "not a terminal (fate) action of rte_flow")),
        };
        for action in before {
            rewrite(action, &mut headers, &mut rule.actions)?;
        }
        rule.actions.push(fate);
        Ok(rule)
    }

    /// The rule that marks the packets of a flow where its port receives them, by `queues` queues. The rule's counters tell how much
    /// it spares the workers; the flow's statistics are those of the workers.
    pub fn marking(key: &Key, mask: &Mask, mark: u32, queues: u16) -> Result<Rule, Refusal> {
        let mut of_port = *mask;
        of_port.0.set(field::IN_PORT, 0);
        let Pattern { items, .. } = Pattern::of(key, &of_port, |_| None)?;
        let actions = vec![FlowAction::Count, FlowAction::Mark(mark), FlowAction::Rss((0..queues).collect())];
        Ok(Rule { pattern: items, actions, direction: Direction::Ingress })
    }
}
