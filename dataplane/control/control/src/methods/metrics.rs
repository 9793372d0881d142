//! The metrics, for those without a scraper.

use crate::Control;
use crate::metrics;
use crate::rpc::method::{Handler, Row};
use api::RpcError;
use api::metrics::MetricsGet;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<MetricsGet>()]
}

impl Handler for MetricsGet {
    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        Ok(metrics::render(control))
    }
}
