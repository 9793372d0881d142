//! What happened, for who asks later: SPDK's notifications.

use crate::limits;
use api::notify::{EventType, Notification};
use parking_lot::Mutex;
use std::collections::VecDeque;
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
