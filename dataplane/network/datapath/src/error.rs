//! Why a change is refused.

use flow::text::FlowMatch;
use invalid::Invalid;
use port::PortError;

/// Why the datapath, or the switch above it, refuses a change. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// There is no object of this name.
    #[error("there is no {kind} {name}")]
    NoSuch {
        /// The kind of the object.
        kind: &'static str,
        /// The name that was asked for.
        name: String,
    },
    /// Another object has the name.
    #[error("there is a {kind} {name} already")]
    Exists {
        /// The kind of the object.
        kind: &'static str,
        /// The name that is taken.
        name: String,
    },
    /// A parameter is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A limit is reached.
    #[error("limit reached: at most {limit} {what}")]
    Limit {
        /// The objects that are limited.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The object is in use.
    #[error("{kind} {name} is in use: {by}")]
    Busy {
        /// The kind of the object.
        kind: &'static str,
        /// The name of the object.
        name: String,
        /// The user of the object.
        by: String,
    },
    /// Some packet would match this static flow and another one.
    #[error("the flow overlaps the flow {0}")]
    Overlaps(Box<FlowMatch>),
    /// The port refused.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The system refused.
    #[error("{what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// The reason that the system gave.
        source: std::io::Error,
    },
}
