//! What operators see of the daemon: events, logs, metrics.

pub(crate) mod events;
pub(crate) mod log;
pub(crate) mod metrics;

use crate::rpc::method::Row;
use events::Events;
use log::Log;

/// What every plane reports to.
pub(crate) struct Observe {
    pub(crate) events: Events,
    pub(crate) log: Log,
}

/// The handlers of this plane.
pub(crate) fn rows() -> Vec<Row> {
    [events::rows(), log::rows(), metrics::rows()].into_iter().flatten().collect()
}
