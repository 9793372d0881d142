//! What happened, for who asks later: SPDK's notifications.

use crate::limits;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

/// What kinds of things happen. The first three are SPDK's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A disk is there.
    BdevRegister,
    /// A disk is gone.
    BdevUnregister,
    /// A disk has another size.
    BdevResize,
    /// The way from a disk to its target was lost or won back, or is being tried again.
    BdevPath,
    /// A controller is there.
    VhostControllerCreate,
    /// A controller is gone.
    VhostControllerDelete,
    /// A controller's guest or front-end misbehaved: it is served no more until it connects again.
    VhostQuarantine,
    /// A port of the switch is there.
    PortCreate,
    /// A port of the switch is gone.
    PortDelete,
    /// A queue was moved to another worker.
    QueueMove,
    /// A call of the desired state could not be carried out; it is tried again.
    ConfigPending,
    /// A call of the desired state that was pending is in effect.
    ConfigRestored,
    /// The state file was damaged.
    StateDamaged,
}

impl EventType {
    /// All of them.
    pub const ALL: [EventType; 13] = [
        EventType::BdevRegister,
        EventType::BdevUnregister,
        EventType::BdevResize,
        EventType::BdevPath,
        EventType::VhostControllerCreate,
        EventType::VhostControllerDelete,
        EventType::VhostQuarantine,
        EventType::PortCreate,
        EventType::PortDelete,
        EventType::QueueMove,
        EventType::ConfigPending,
        EventType::ConfigRestored,
        EventType::StateDamaged,
    ];

    fn is_bad(self) -> bool {
        matches!(self, EventType::VhostQuarantine | EventType::ConfigPending | EventType::StateDamaged)
    }
}

/// One thing that happened.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Notification {
    /// What.
    #[serde(rename = "type")]
    kind: EventType,
    /// To whom: the name of the object.
    ctx: String,
    /// Counts up from 0.
    id: u64,
    /// When, in milliseconds since 1970.
    time_ms: u64,
    /// More about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
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
        if kind.is_bad() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_ids_go_on() {
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
