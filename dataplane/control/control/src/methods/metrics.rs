//! The metrics, for those without a scraper.

use crate::Control;
use crate::metrics;
use crate::rpc::RpcError;
use crate::rpc::method::{Entry, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<MetricsGet>()]
}

/// Tells all metrics in OpenMetrics' text format, as the HTTP endpoint does. Their names begin with `sluice_`; `worker_`, `source_`
/// and `memory_` are the daemon's own, `disk_` and `controller_` those of disks, `port_`, `flow_`, `switch_`, `offload_` and `capture_` those
/// of packets, `queue_` what the scheduler sees. Packets that went nowhere are counted by `port_drops_total` with their reason.
#[derive(Serialize, Deserialize, JsonSchema)]
struct MetricsGet {}

impl Method for MetricsGet {
    const NAME: &'static str = "metrics_get";
    type Output = String;

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        Ok(metrics::render(control))
    }
}
