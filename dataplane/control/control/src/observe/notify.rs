//! What happened.

use crate::Control;
use crate::rpc::method::{Handler, Row};
use api::RpcError;
use api::notify::{EventType, GetNotifications, GetTypes, Notification};
use std::sync::Arc;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<GetTypes>(), Row::of::<GetNotifications>()]
}

impl Handler for GetTypes {
    async fn call(&mut self, _: &Arc<Control>) -> Result<Self::Output, RpcError> {
        Ok(EventType::ALL)
    }
}

impl Handler for GetNotifications {
    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<Notification>, RpcError> {
        let max = self.max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        Ok(control.events.since(self.id, max))
    }
}
