//! The log's level.

use crate::Control;
use crate::log::LogLevel;
use crate::rpc::RpcError;
use crate::rpc::method::{Entry, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<LogSetLevel>(), Entry::of::<LogGetLevel>()]
}

/// Sets how much is logged, until the daemon ends.
#[derive(Serialize, Deserialize, JsonSchema)]
struct LogSetLevel {
    /// The level; each includes those before it.
    level: LogLevel,
}

impl Method for LogSetLevel {
    const NAME: &'static str = "log_set_level";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.log.set_level(self.level);
        Ok(true)
    }
}

/// Tells how much is logged.
#[derive(Serialize, Deserialize, JsonSchema)]
struct LogGetLevel {}

impl Method for LogGetLevel {
    const NAME: &'static str = "log_get_level";
    type Output = LogLevel;

    async fn call(&mut self, control: &Arc<Control>) -> Result<LogLevel, RpcError> {
        Ok(control.log.level())
    }
}
