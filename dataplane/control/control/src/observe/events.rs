//! Events of the daemon: SPDK's notifications.

use super::Observe;
use crate::limits;
use crate::rpc::method::{Handler, Row};
use api::RpcError;
use api::notify::{EventType, GetNotifications, GetTypes, Notification};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether an event needs an operator.
fn is_bad(kind: EventType) -> bool {
    matches!(kind, EventType::VhostQuarantine | EventType::ConfigPending | EventType::StateDamaged)
}

/// The latest events. Any thread but a worker may add one.
#[derive(Default)]
pub(crate) struct Events(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    next_id: u64,
    kept: VecDeque<Notification>,
}

impl Events {
    pub(crate) fn add(&self, kind: EventType, ctx: &str, detail: impl Into<String>) {
        let detail = detail.into();
        if is_bad(kind) {
            tracing::error!(event = ?kind, object = ctx, "{detail}");
        } else {
            tracing::info!(event = ?kind, object = ctx, "{detail}");
        }
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64);
        let mut ring = self.0.lock();
        let id = ring.next_id;
        ring.next_id += 1;
        if ring.kept.len() == limits::EVENTS {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Notification { kind, ctx: ctx.to_owned(), id, time_ms, detail });
    }

    /// Up to `max` events from `id` on, oldest first.
    pub(crate) fn since(&self, id: u64, max: usize) -> Vec<Notification> {
        let ring = self.0.lock();
        ring.kept.iter().filter(|event| event.id >= id).take(max).cloned().collect()
    }
}

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<GetTypes>(), Row::of::<GetNotifications>()]
}

impl Handler for GetTypes {
    type Plane = Observe;

    async fn call(&mut self, _: &Arc<Observe>) -> Result<Self::Output, RpcError> {
        Ok(EventType::ALL)
    }
}

impl Handler for GetNotifications {
    type Plane = Observe;

    async fn call(&mut self, plane: &Arc<Observe>) -> Result<Vec<Notification>, RpcError> {
        let max = self.max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        Ok(plane.events.since(self.id, max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_events_are_dropped_and_ids_go_on() {
        let events = Events::default();
        for i in 0..limits::EVENTS + 10 {
            events.add(EventType::BdevRegister, &format!("d{i}"), "");
        }
        let all = events.since(0, usize::MAX);
        assert_eq!((all.len(), all[0].id, all[0].ctx.as_str()), (limits::EVENTS, 10, "d10"));
        let some = events.since(100, 3);
        assert_eq!(some.iter().map(|e| e.id).collect::<Vec<_>>(), [100, 101, 102]);
    }
}
