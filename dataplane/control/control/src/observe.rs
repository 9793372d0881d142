//! What operators see of the daemon: events, logs, metrics.

pub(crate) mod events;
pub(crate) mod log;
pub(crate) mod metrics;
