//! The seam to devices that take rules.

use crate::{FlowAction, FlowAttr, FlowError, FlowItem};

/// A port of a device that takes rules, on any thread.
pub trait FlowDevice: Send + Sync {
    /// The port's identity, which does not change.
    fn info(&self) -> &DeviceInfo;

    /// Whether the device would take this rule now.
    fn validate(&self, attr: &FlowAttr, pattern: &[FlowItem], actions: &[FlowAction]) -> Result<(), FlowError>;

    /// Inserts a rule, and returns when the device has it.
    fn create(
        &self,
        attr: &FlowAttr,
        pattern: &[FlowItem],
        actions: &[FlowAction],
    ) -> Result<Box<dyn FlowRule>, FlowError>;

    /// The port's flow queue. `None` where the driver has no templates, the queue has an owner already, or another port is the
    /// transfer proxy.
    fn queue(&self) -> Option<Box<dyn FlowQueue>> {
        None
    }

    /// Adds the contexts of aged rules ([`FlowAction::Age`]), of all rules that the transfer proxy keeps. A rule that still exists
    /// at the next call may be reported again.
    fn aged(&self, contexts: &mut Vec<u64>) -> Result<(), FlowError>;

    /// Calls `listener` for each event until the returned subscription is dropped. The call may come from a thread that polls the
    /// port, so `listener` must not wait.
    fn listen(&self, listener: Box<dyn Fn(FlowEvent) + Send + Sync>) -> Result<FlowEvents, FlowError>;
}

/// The identity of a port of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name of the port on its bus.
    pub name: String,
    /// Number by which rules refer to the port.
    pub port_id: u16,
    /// Switch domain of the device; rules lead between ports of one domain. `None` where the device has no embedded switch.
    pub switch_domain: Option<u16>,
    /// Number of the port that takes the device's rules of [`Direction::Transfer`](crate::Direction::Transfer).
    pub transfer_proxy: u16,
    /// Number of receive queues.
    pub rx_queues: u16,
}

impl DeviceInfo {
    /// Whether the port takes the device's rules of [`Direction::Transfer`](crate::Direction::Transfer) itself.
    pub fn is_transfer_proxy(&self) -> bool {
        self.transfer_proxy == self.port_id
    }
}

/// A rule that [`FlowDevice::create`] inserted. Dropping it removes it from the device.
pub trait FlowRule: Send + Sync + std::fmt::Debug {
    /// The rule's counters; without values where the rule has no [`FlowAction::Count`].
    fn query(&self) -> Result<FlowCount, FlowError>;

    /// Removes the rule. After an error the device still has it.
    fn remove(&mut self) -> Result<(), FlowError>;

    /// Forgets a rule that the device has lost, by a reset or another program.
    fn abandon(self: Box<Self>);
}

/// A queue of insertions and removals that nothing waits for. It owns its rules: dropping it removes them.
pub trait FlowQueue: Send {
    /// Enqueues the insertion of a rule; the next [`push`](Self::push) hands it to the device, and a completion tells the outcome.
    fn create(&mut self, attr: &FlowAttr, pattern: &[FlowItem], actions: &[FlowAction]) -> Result<RuleId, FlowError>;

    /// Enqueues the removal of a rule.
    fn destroy(&mut self, rule: RuleId) -> Result<(), FlowError>;

    /// The counters of a rule with a [`FlowAction::Count`].
    fn query(&self, rule: RuleId) -> Result<FlowCount, FlowError>;

    /// Number of operations without a completion.
    fn pending(&self) -> u32;

    /// Hands all enqueued operations to the device.
    fn push(&mut self) -> Result<(), FlowError>;

    /// Adds the completions that have come.
    fn pull(&mut self, completions: &mut Vec<Completion>) -> Result<(), FlowError>;

    /// Stops waiting for the completion of a rule's operation: an insertion counts as done, and so does a removal.
    fn give_up(&mut self, rule: RuleId);

    /// Forgets a rule that the device has lost, by a reset or another program.
    fn abandon(&mut self, rule: RuleId);
}

/// The name of a rule in a [`FlowQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId {
    /// The rule's slot in the queue.
    pub index: u32,
    /// Number of rules that had the slot before.
    pub generation: u32,
}

/// An operation of a [`FlowQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Insertion by [`FlowQueue::create`].
    Create,
    /// Removal by [`FlowQueue::destroy`].
    Destroy,
}

/// The outcome of an operation of a [`FlowQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The rule.
    pub rule: RuleId,
    /// The operation.
    pub operation: Operation,
    /// Whether the operation succeeded. After a failed insertion the device does not have the rule, after a failed removal it has.
    pub done: bool,
}

/// The counters of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Packets, where the device counts them.
    pub packets: Option<u64>,
    /// Bytes, where the device counts them.
    pub bytes: Option<u64>,
}

/// An event that a device reports about its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEvent {
    /// Rules have aged: [`FlowDevice::aged`] returns them.
    Aged,
    /// The device was reset: rules may be lost.
    Reset,
}

/// A subscription to the events of a device, which ends when this is dropped.
pub type FlowEvents = Box<dyn Send + Sync>;
