//! The daemon's log.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    SetLevel: "log_set_level" -> bool;
    GetLevel: "log_get_level" -> LogLevel;
}

/// A log level, in SPDK's words; each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// What needs an operator.
    #[serde(alias = "error")]
    Error,
    /// What was refused, or failed and recovered.
    #[serde(alias = "warning")]
    Warning,
    /// Changes.
    #[default]
    #[serde(alias = "notice")]
    Notice,
    /// Each call.
    #[serde(alias = "info")]
    Info,
    /// Everything.
    #[serde(alias = "debug")]
    Debug,
}

/// Sets the log level, until the daemon stops.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SetLevel {
    /// The level; each includes those before it.
    pub level: LogLevel,
}

/// Shows the log level.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetLevel {}
