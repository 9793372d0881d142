//! A card behind the API of DPDK: by templates and a queue where its driver has them, else one call a rule.

use crate::Rule;
use crate::device::{Completed, Device, Progress};
use dpdk::Errno;
use dpdk::flow::{
    Clause, Completion, Direction, FlowAction, FlowAttributes, FlowCount, FlowError, FlowEvents, FlowPort, FlowQueue,
    FlowRule, RuleId,
};
use flow::PortNo;
use slab::Slab;
use std::collections::HashMap;

/// A port of a card, and what makes the card tell of itself.
pub(crate) struct CardPort {
    pub(crate) port: FlowPort,
    pub(crate) _events: Option<FlowEvents>,
}

/// A rule in a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CardRule {
    /// In the queue's care.
    Queued(RuleId),
    /// Put in by a call of its own.
    Single(u32),
}

/// The card, as far as the switch has its ports.
#[derive(Default)]
pub(crate) struct Card {
    ports: HashMap<PortNo, CardPort>,
    /// Of the port that is in charge.
    queue: Option<(PortNo, FlowQueue)>,
    single: Slab<FlowRule>,
    /// Whether rules age, once that is known.
    ages: Option<bool>,
    /// Memory for what each rule does.
    actions: Vec<FlowAction>,
    completions: Vec<Completion>,
}

impl Card {
    fn port(&self, number: PortNo) -> Result<&FlowPort, FlowError> {
        let found = self.ports.get(&number).map(|port| &port.port);
        found.ok_or_else(|| FlowError::Gone { device: format!("port {number}") })
    }

    /// Finds out whether the device would age a rule, by one that it takes without.
    fn probe(&mut self, from: PortNo, attributes: &FlowAttributes, rule: &Rule, with_age: &[FlowAction]) {
        let Ok(port) = self.port(from) else { return };
        let takes = |actions: &[FlowAction]| port.validate(attributes, &rule.pattern, actions).is_ok();
        self.ages = match takes(with_age) {
            true => Some(true),
            false => takes(&rule.actions).then_some(false),
        };
    }

    /// What the rule does, and that it ages where rules do.
    fn actions(&mut self, rule: &Rule, name: u64) -> Vec<FlowAction> {
        let mut actions = std::mem::take(&mut self.actions);
        actions.clear();
        actions.extend_from_slice(&rule.actions);
        // Only those in the care of the port in charge are asked for.
        if self.ages != Some(false) && rule.direction == Direction::Transfer {
            actions.push(FlowAction::Age { seconds: crate::IDLE.as_secs() as u32, context: name });
        }
        actions
    }

    fn put(
        &mut self,
        from: PortNo,
        attributes: &FlowAttributes,
        rule: &Rule,
        actions: &[FlowAction],
    ) -> Result<(CardRule, Progress), FlowError> {
        if let Some((_, queue)) = self.queue.as_mut().filter(|_| attributes.direction == Direction::Transfer) {
            match queue.create(attributes, &rule.pattern, actions) {
                Err(FlowError::NoTemplate { .. }) => {}
                created => return created.map(|rule| (CardRule::Queued(rule), Progress::Asked)),
            }
        }
        let placed = self.port(from)?.create(attributes, &rule.pattern, actions)?;
        Ok((CardRule::Single(self.single.insert(placed) as u32), Progress::Done))
    }

    fn no_such() -> FlowError {
        FlowError::Lost { device: "card".to_owned(), said: "its port is gone".to_owned() }
    }
}

impl Device for Card {
    type Port = CardPort;
    type Rule = CardRule;

    fn attach(&mut self, number: PortNo, port: CardPort) {
        if self.queue.is_none() {
            self.queue = port.port.queue().map(|queue| (number, queue));
        }
        self.ports.insert(number, port);
    }

    fn detach(&mut self, number: PortNo) {
        self.queue.take_if(|(of, _)| *of == number);
        self.ports.remove(&number);
    }

    fn is_in_charge(&self, number: PortNo) -> bool {
        self.ports.get(&number).is_some_and(|port| port.port.is_transfer_proxy())
    }

    fn queues(&self, number: PortNo) -> u16 {
        self.ports.get(&number).map_or(0, |port| port.port.rx_queues())
    }

    fn place(
        &mut self,
        from: PortNo,
        rule: &Rule,
        priority: u32,
        name: u64,
    ) -> Result<(CardRule, Progress), FlowError> {
        let attributes = rule.place(priority);
        if self.ages.is_none() && rule.direction == Direction::Transfer {
            let actions = self.actions(rule, name);
            self.probe(from, &attributes, rule, &actions);
            self.actions = actions;
        }
        let actions = self.actions(rule, name);
        let placed = self.put(from, &attributes, rule, &actions);
        self.actions = actions;
        match placed {
            // Fine in validate, and refused all the same.
            Err(FlowError::Unsupported { clause: Clause::Action(at), .. }) if at == rule.actions.len() => {
                self.ages = Some(false);
                self.place(from, rule, priority, name)
            }
            placed => placed,
        }
    }

    fn remove(&mut self, rule: CardRule) -> Result<Progress, FlowError> {
        match rule {
            CardRule::Queued(id) => {
                let (_, queue) = self.queue.as_mut().ok_or_else(Card::no_such)?;
                // One whose creation nobody waits for any more may be there.
                queue.give_up(id);
                queue.destroy(id).map(|()| Progress::Asked)
            }
            CardRule::Single(at) => {
                self.single.get_mut(at as usize).ok_or_else(Card::no_such)?.remove()?;
                self.single.remove(at as usize);
                Ok(Progress::Done)
            }
        }
    }

    fn abandon(&mut self, rule: CardRule) {
        match rule {
            CardRule::Queued(id) => self.queue.iter_mut().for_each(|(_, queue)| queue.abandon(id)),
            CardRule::Single(at) => self.single.try_remove(at as usize).into_iter().for_each(FlowRule::abandon),
        }
    }

    fn count(&self, rule: CardRule) -> Result<FlowCount, FlowError> {
        match rule {
            CardRule::Queued(id) => self.queue.as_ref().ok_or_else(Card::no_such)?.1.query(id),
            CardRule::Single(at) => self.single.get(at as usize).ok_or_else(Card::no_such)?.query(),
        }
    }

    fn explain(&self, from: PortNo, rule: &Rule, priority: u32) -> FlowError {
        let port = match self.port(from) {
            Ok(port) => port,
            Err(error) => return error,
        };
        let valid = port.validate(&rule.place(priority), &rule.pattern, &rule.actions);
        valid.err().unwrap_or_else(|| FlowError::Failed {
            device: port.name().to_owned(),
            clause: Clause::Rule,
            errno: Errno(0),
            said: "it finds the rule valid, and does not take it".to_owned(),
        })
    }

    fn poll(&mut self, completed: &mut Vec<Completed<CardRule>>) {
        let Some((_, queue)) = self.queue.as_mut().filter(|(_, queue)| queue.pending() > 0) else { return };
        // A device that cannot has no completions either, and whoever waits for them gives up.
        let _ = queue.push().and_then(|()| queue.pull(&mut self.completions));
        completed.extend(self.completions.drain(..).map(|Completion { rule, operation, done }| Completed {
            rule: CardRule::Queued(rule),
            operation,
            done,
        }));
    }

    fn aged(&mut self, names: &mut Vec<u64>) {
        // The rules of all ports are with the one in charge.
        let _ = self.ports.values().next().map(|port| port.port.aged(names));
    }
}
