//! A NIC with rte_flow, as far as the switch has its ports: rules by templates and a queue where the driver has them, else one call
//! a rule.

use crate::Rule;
use flow::PortNo;
use rte_rule::{
    Clause, Completion, Direction, FlowAction, FlowAttr, FlowCount, FlowDevice, FlowError, FlowEvents, FlowQueue,
    FlowRule, RuleId,
};
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;

/// A port of a NIC.
pub(crate) struct NicPort {
    pub(crate) device: Arc<dyn FlowDevice>,
    /// Subscription to the events of the NIC, where its driver has some.
    pub(crate) _events: Option<FlowEvents>,
}

/// The name of a rule in a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NicRule {
    /// A rule of the flow queue.
    Queued(RuleId),
    /// A rule inserted by a call of its own.
    Single(u32),
}

/// Whether a NIC has completed an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The operation is complete.
    Done,
    /// A completion of the flow queue will tell the outcome.
    Pending,
}

/// A NIC with those of its ports that the switch has. It owns its rules.
#[derive(Default)]
pub(crate) struct Nic {
    ports: HashMap<PortNo, NicPort>,
    /// The flow queue, with the transfer proxy that it belongs to.
    queue: Option<(PortNo, Box<dyn FlowQueue>)>,
    single: Slab<Box<dyn FlowRule>>,
    /// Whether the NIC ages rules; `None` until a rule has shown it.
    ages: Option<bool>,
    /// Reused memory for the actions of a rule.
    actions: Vec<FlowAction>,
}

impl Nic {
    /// Adds a port of the switch.
    pub(crate) fn attach(&mut self, number: PortNo, port: NicPort) {
        if self.queue.is_none() {
            self.queue = port.device.queue().map(|queue| (number, queue));
        }
        self.ports.insert(number, port);
    }

    /// Removes a port of the switch. Nothing of the port is held afterwards.
    pub(crate) fn detach(&mut self, number: PortNo) {
        self.queue.take_if(|(proxy, _)| *proxy == number);
        self.ports.remove(&number);
    }

    /// Whether the port takes the transfer rules of all ports.
    pub(crate) fn is_transfer_proxy(&self, number: PortNo) -> bool {
        self.ports.get(&number).is_some_and(|port| port.device.info().is_transfer_proxy())
    }

    /// Number of receive queues of a port.
    pub(crate) fn rx_queues(&self, number: PortNo) -> u16 {
        self.ports.get(&number).map_or(0, |port| port.device.info().rx_queues)
    }

    /// Inserts a rule. Once the rule has matched nothing for a time, `name` is among the [aged](Self::aged) ones.
    pub(crate) fn insert(
        &mut self,
        from: PortNo,
        rule: &Rule,
        priority: u32,
        name: u64,
    ) -> Result<(NicRule, Progress), FlowError> {
        let attr = rule.attr(priority);
        if self.ages.is_none() && rule.direction == Direction::Transfer {
            let actions = self.actions_with_age(rule, name);
            self.probe_ageing(from, &attr, rule, &actions);
            self.actions = actions;
        }
        let actions = self.actions_with_age(rule, name);
        let inserted = self.insert_with(from, &attr, rule, &actions);
        self.actions = actions;
        match inserted {
            // Valid as `validate` has it, and refused all the same.
            Err(FlowError::Unsupported { clause: Clause::Action(at), .. }) if at == rule.actions.len() => {
                self.ages = Some(false);
                self.insert(from, rule, priority, name)
            }
            inserted => inserted,
        }
    }

    /// Removes a rule. After an error the NIC still has it.
    pub(crate) fn remove(&mut self, rule: NicRule) -> Result<Progress, FlowError> {
        match rule {
            NicRule::Queued(id) => {
                let (_, queue) = self.queue.as_mut().ok_or_else(lost)?;
                // A rule whose insertion has timed out may be in the NIC.
                queue.give_up(id);
                queue.destroy(id).map(|()| Progress::Pending)
            }
            NicRule::Single(at) => {
                self.single.get_mut(at as usize).ok_or_else(lost)?.remove()?;
                self.single.remove(at as usize);
                Ok(Progress::Done)
            }
        }
    }

    /// Forgets a rule that the NIC has lost, or of which it told nothing.
    pub(crate) fn abandon(&mut self, rule: NicRule) {
        match rule {
            NicRule::Queued(id) => {
                if let Some((_, queue)) = &mut self.queue {
                    queue.abandon(id);
                }
            }
            NicRule::Single(at) => {
                if let Some(rule) = self.single.try_remove(at as usize) {
                    rule.abandon();
                }
            }
        }
    }

    /// The counters of a rule.
    pub(crate) fn query(&self, rule: NicRule) -> Result<FlowCount, FlowError> {
        match rule {
            NicRule::Queued(id) => self.queue.as_ref().ok_or_else(lost)?.1.query(id),
            NicRule::Single(at) => self.single.get(at as usize).ok_or_else(lost)?.query(),
        }
    }

    /// The reason why the NIC did not take a rule, where the completion tells no more than that.
    pub(crate) fn explain(&self, from: PortNo, rule: &Rule, priority: u32) -> FlowError {
        let device = match self.device(from) {
            Ok(device) => device,
            Err(error) => return error,
        };
        let valid = device.validate(&rule.attr(priority), &rule.pattern, &rule.actions);
        valid.err().unwrap_or_else(|| FlowError::Failed {
            device: device.info().name.clone(),
            clause: Clause::Rule,
            said: "the NIC finds the rule valid, but did not take it".to_owned(),
        })
    }

    /// Hands all enqueued operations to the NIC, and adds the completions that have come.
    pub(crate) fn poll(&mut self, completions: &mut Vec<Completion>) {
        if let Some((_, queue)) = self.queue.as_mut().filter(|(_, queue)| queue.pending() > 0) {
            let _ = queue.push().and_then(|()| queue.pull(completions)); // a completion that does not come times out
        }
    }

    /// Adds the names of aged rules.
    pub(crate) fn aged(&self, names: &mut Vec<u64>) {
        // Every port knows the aged rules of the transfer proxy.
        if let Some(port) = self.ports.values().next() {
            let _ = port.device.aged(names); // a rule that is not reported is found idle by its counters
        }
    }

    fn device(&self, number: PortNo) -> Result<&dyn FlowDevice, FlowError> {
        let found = self.ports.get(&number).map(|port| &*port.device);
        found.ok_or_else(|| FlowError::Gone { device: format!("port {number}") })
    }

    /// Finds out whether the NIC would age a rule, by one that it takes without.
    fn probe_ageing(&mut self, from: PortNo, attr: &FlowAttr, rule: &Rule, with_age: &[FlowAction]) {
        let Ok(device) = self.device(from) else { return };
        let takes = |actions: &[FlowAction]| device.validate(attr, &rule.pattern, actions).is_ok();
        self.ages = match takes(with_age) {
            true => Some(true),
            false => takes(&rule.actions).then_some(false),
        };
    }

    /// The rule's actions, with an AGE action where the NIC ages rules.
    fn actions_with_age(&mut self, rule: &Rule, name: u64) -> Vec<FlowAction> {
        let mut actions = std::mem::take(&mut self.actions);
        actions.clear();
        actions.extend_from_slice(&rule.actions);
        // `aged` reports the rules of the transfer proxy alone.
        if self.ages != Some(false) && rule.direction == Direction::Transfer {
            actions.push(FlowAction::Age { seconds: crate::IDLE.as_secs() as u32, context: name });
        }
        actions
    }

    fn insert_with(
        &mut self,
        from: PortNo,
        attr: &FlowAttr,
        rule: &Rule,
        actions: &[FlowAction],
    ) -> Result<(NicRule, Progress), FlowError> {
        if let Some((_, queue)) = self.queue.as_mut().filter(|_| attr.direction == Direction::Transfer) {
            match queue.create(attr, &rule.pattern, actions) {
                Err(FlowError::NoTemplate { .. }) => {}
                created => return created.map(|rule| (NicRule::Queued(rule), Progress::Pending)),
            }
        }
        let created = self.device(from)?.create(attr, &rule.pattern, actions)?;
        Ok((NicRule::Single(self.single.insert(created) as u32), Progress::Done))
    }
}

fn lost() -> FlowError {
    FlowError::Lost { device: "NIC".to_owned(), said: "its port was removed".to_owned() }
}
