//! The seam to devices: what a table needs of one. A card is behind it, and in tests a fake.

use crate::Rule;
use dpdk::flow::{FlowCount, FlowError, Operation};
use flow::PortNo;
use std::hash::Hash;

/// Whether the device has done what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is done.
    Done,
    /// A completion will say.
    Asked,
}

/// The device has done it, or has not and will not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completed<R> {
    pub(crate) rule: R,
    pub(crate) operation: Operation,
    pub(crate) done: bool,
}

/// A device that takes rules, with those of its ports that the switch has. It owns the rules.
pub(crate) trait Device: Default + Send {
    /// A port of it.
    type Port: Send;
    /// The name of a rule in it.
    type Rule: Copy + Eq + Hash + Send;

    /// The switch has this port.
    fn attach(&mut self, number: PortNo, port: Self::Port);

    /// The switch has this port no more, and nothing holds it.
    fn detach(&mut self, number: PortNo);

    /// Rules from all ports are in the care of this one.
    fn is_in_charge(&self, number: PortNo) -> bool;

    /// How many queues a port receives by.
    fn queues(&self, number: PortNo) -> u16;

    /// Puts a rule in. When it has seen nothing for a time, `name` is among those that have [aged](Self::aged).
    fn place(
        &mut self,
        from: PortNo,
        rule: &Rule,
        priority: u32,
        name: u64,
    ) -> Result<(Self::Rule, Progress), FlowError>;

    /// Takes a rule out. After an error it is still there.
    fn remove(&mut self, rule: Self::Rule) -> Result<Progress, FlowError>;

    /// A rule is lost, or nobody knows what became of it: it is nobody's.
    fn abandon(&mut self, rule: Self::Rule);

    /// What a rule has counted.
    fn count(&self, rule: Self::Rule) -> Result<FlowCount, FlowError>;

    /// Why the device did not take a rule, when its completion says no more than that.
    fn explain(&self, from: PortNo, rule: &Rule, priority: u32) -> FlowError;

    /// Gives the device all that was asked, and adds what it has done.
    fn poll(&mut self, completed: &mut Vec<Completed<Self::Rule>>);

    /// Adds the names of rules that have aged.
    fn aged(&mut self, names: &mut Vec<u64>);
}
