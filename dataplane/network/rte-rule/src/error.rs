//! Refusals of a device.

/// The part of a rule that a device refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clause {
    /// The item of the pattern at this index.
    Item(usize),
    /// The action at this index.
    Action(usize),
    /// Group, priority or direction.
    Attributes,
    /// The rule as a whole.
    Rule,
}

impl std::fmt::Display for Clause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Clause::Item(index) => write!(f, "item {index}"),
            Clause::Action(index) => write!(f, "action {index}"),
            Clause::Attributes => f.write_str("attributes"),
            Clause::Rule => f.write_str("rule"),
        }
    }
}

/// The reason why a device did not carry out an operation on a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The driver does not implement flow rules.
    #[error("{device}: the driver has no flow rules (rte_flow)")]
    NotImplemented {
        /// Name of the device.
        device: String,
    },
    /// The device does not support a part of the rule.
    #[error("{device}: {clause} is not supported: {said}")]
    Unsupported {
        /// Name of the device.
        device: String,
        /// The refused part.
        clause: Clause,
        /// The driver's message.
        said: String,
    },
    /// The driver takes a value of the rule for invalid.
    #[error("{device}: {clause} is not valid: {said}")]
    Invalid {
        /// Name of the device.
        device: String,
        /// The refused part.
        clause: Clause,
        /// The driver's message.
        said: String,
    },
    /// A rule with the same pattern exists already.
    #[error("{device}: such a rule exists already: {said}")]
    Exists {
        /// Name of the device.
        device: String,
        /// The driver's message.
        said: String,
    },
    /// A table of the device is full.
    #[error("{device}: no room for more flow rules: {said}")]
    Full {
        /// Name of the device.
        device: String,
        /// The driver's message.
        said: String,
    },
    /// The flow queue is full: operations have to complete first.
    #[error("{device}: the flow queue is full")]
    Busy {
        /// Name of the device.
        device: String,
    },
    /// No template table takes a rule of this shape.
    #[error("{device}: no template for such a rule: {said}")]
    NoTemplate {
        /// Name of the device.
        device: String,
        /// The reason.
        said: String,
    },
    /// The rule is gone: taken by a reset of the device or removed by another program.
    #[error("{device}: the rule does not exist any more: {said}")]
    Lost {
        /// Name of the device.
        device: String,
        /// The driver's message.
        said: String,
    },
    /// The device is gone.
    #[error("{device}: the device is gone")]
    Gone {
        /// Name of the device.
        device: String,
    },
    /// Any other failure.
    #[error("{device}: {clause}: {said}")]
    Failed {
        /// Name of the device.
        device: String,
        /// The refused part.
        clause: Clause,
        /// The driver's error number and message.
        said: String,
    },
}
