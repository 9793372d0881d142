//! The log's level.

use crate::Control;
use crate::rpc::method::{Handler, Row};
use api::RpcError;
use api::log::{GetLevel, LogLevel, SetLevel};
use std::sync::Arc;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<SetLevel>(), Row::of::<GetLevel>()]
}

impl Handler for SetLevel {
    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        control.log.set_level(self.level);
        Ok(true)
    }
}

impl Handler for GetLevel {
    async fn call(&mut self, control: &Arc<Control>) -> Result<LogLevel, RpcError> {
        Ok(control.log.level())
    }
}
