//! Structured logs, whose level changes while the daemon runs.

use super::Observe;
use crate::rpc::method::{Handler, Row};
use api::RpcError;
use api::log::{GetLevel, LogLevel, SetLevel};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use std::sync::Arc;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, reload};

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Notice => LevelFilter::INFO,
        LogLevel::Info => LevelFilter::DEBUG,
        LogLevel::Debug => LevelFilter::TRACE,
    }
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes the level.
pub struct Log {
    level: Mutex<LogLevel>,
    apply: Box<dyn Fn(LogLevel) + Send + Sync>,
}

impl Log {
    /// Logs to the standard error from now on. Call it once a process.
    pub fn start(format: LogFormat, level: LogLevel) -> Log {
        let (filter_layer, handle) = reload::Layer::new(filter(level));
        let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
        let layer = match format {
            LogFormat::Text => layer.boxed(),
            LogFormat::Json => layer.json().flatten_event(true).boxed(),
        };
        tracing_subscriber::registry().with(layer.with_filter(filter_layer)).init();
        let apply = Box::new(move |level| {
            let _ = handle.reload(filter(level)); // It fails only once the subscriber is gone.
        });
        Log { level: Mutex::new(level), apply }
    }

    /// Logs nowhere, but keeps a level: for tests and tools.
    pub fn silent() -> Log {
        Log { level: Mutex::default(), apply: Box::new(|_| {}) }
    }

    pub(crate) fn level(&self) -> LogLevel {
        *self.level.lock()
    }

    pub(crate) fn set_level(&self, level: LogLevel) {
        *self.level.lock() = level;
        (self.apply)(level);
    }
}

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<SetLevel>(), Row::of::<GetLevel>()]
}

impl Handler for SetLevel {
    type Plane = Observe;

    async fn call(&mut self, plane: &Arc<Observe>) -> Result<bool, RpcError> {
        plane.log.set_level(self.level);
        Ok(true)
    }
}

impl Handler for GetLevel {
    type Plane = Observe;

    async fn call(&mut self, plane: &Arc<Observe>) -> Result<LogLevel, RpcError> {
        Ok(plane.log.level())
    }
}
