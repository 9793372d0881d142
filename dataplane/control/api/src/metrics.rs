//! The metrics, without a scraper.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    MetricsGet: "metrics_get" -> String;
}

/// Shows all metrics in the OpenMetrics text format, as the HTTP endpoint does. Their names begin with `sluice_`: `worker_`,
/// `source_` and `memory_` are of the daemon, `disk_` and `controller_` of disks, `port_`, `flow_`, `switch_`, `offload_` and
/// `capture_` of packets, `queue_` of the scheduler. Dropped packets are counted by `port_drops_total` with their reason.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct MetricsGet {}
