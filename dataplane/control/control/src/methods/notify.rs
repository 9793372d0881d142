//! What happened.

use crate::Control;
use crate::events::{EventType, Notification};
use crate::rpc::RpcError;
use crate::rpc::method::{Entry, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<NotifyGetTypes>(), Entry::of::<NotifyGetNotifications>()]
}

/// Lists the types of notifications.
#[derive(Serialize, Deserialize, JsonSchema)]
struct NotifyGetTypes {}

impl Method for NotifyGetTypes {
    const NAME: &'static str = "notify_get_types";
    type Output = [EventType; EventType::ALL.len()];

    async fn call(&mut self, _: &Arc<Control>) -> Result<Self::Output, RpcError> {
        Ok(EventType::ALL)
    }
}

/// Lists what happened, oldest first.
#[derive(Serialize, Deserialize, JsonSchema)]
struct NotifyGetNotifications {
    /// The first notification wanted; ids count up from 0.
    #[serde(default)]
    id: u64,
    /// How many at most; all when it is not given.
    max: Option<u64>,
}

impl Method for NotifyGetNotifications {
    const NAME: &'static str = "notify_get_notifications";
    type Output = Vec<Notification>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<Notification>, RpcError> {
        let max = self.max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        Ok(control.events.since(self.id, max))
    }
}
