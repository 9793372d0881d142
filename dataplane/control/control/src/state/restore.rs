//! Applies the desired state: at start, and again and again while something that a call needs is missing.

use super::desired::{NOT_APPLIED, Source, placed_calls, rank};
use crate::rpc::method::Effect;
use crate::{Control, StoreError};
use api::RpcError;
use api::config::{Call, Pending};
use api::notify::EventType;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{sleep, timeout};

/// A call that takes longer goes on in the background: a target that does not answer must not delay other disks.
const FOREGROUND: Duration = Duration::from_millis(500);
/// The pause between two attempts, at first and after progress; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A call that is being applied.
struct Attempt {
    source: Source,
    pending: Pending,
    task: JoinHandle<Result<Value, RpcError>>,
}

impl Control {
    /// Reads the calls that the state directory holds; [`keep_applying`](Control::keep_applying) applies them.
    pub fn restore(&self) -> Result<(), StoreError> {
        let Some(store) = self.desired.store() else { return Ok(()) };
        let loaded = store.read()?;
        let mut calls = placed_calls(&loaded.document.subsystems);
        calls.sort_by_key(|placed| rank(&placed.subsystem));
        for placed in calls {
            let Ok(call) = self.handlers.read(&placed) else { continue };
            let slot = match self.handlers.effect(&call) {
                Ok(Effect::Keep { slot, .. }) => Some(slot),
                _ => None,
            };
            let subsystem = slot.as_ref().map_or(placed.subsystem.as_str(), |slot| slot.object.subsystem());
            self.desired.add_pending(Source::Rpc, subsystem, slot, call);
        }
        if let Some(damage) = loaded.damage {
            let detail = format!("damaged at {}; kept as {}", damage.place, damage.kept.display());
            self.observe.events.add(EventType::StateDamaged, "state.json", detail);
            self.desired.mark_unsaved();
        }
        Ok(())
    }

    /// Applies pending calls, again and again. Never returns.
    pub async fn keep_applying(self: Arc<Control>) {
        let (mut slow, mut pause) = (Vec::new(), PAUSE);
        loop {
            let progress = self.apply_pending(&mut slow).await;
            // An earlier call may not have been saved, or the file may be damaged.
            if let Err(error) = self.desired.save().await {
                tracing::error!(%error, "state");
            }
            self.restored.send_replace(true);
            sleep(if slow.is_empty() { pause } else { PAUSE }).await;
            pause = if progress { PAUSE } else { LONGEST_PAUSE.min(pause * 2) };
        }
    }

    /// Waits until every call of the state file was applied, or refused, once.
    pub async fn restored(&self) {
        let _ = self.restored.subscribe().wait_for(|done| *done).await; // The sender lives as long as `self`.
    }

    /// Applies pending calls, in order; `slow` are those still in progress. Returns whether any call came into effect.
    async fn apply_pending(self: &Arc<Control>, slow: &mut Vec<Attempt>) -> bool {
        let mut progress = false;
        let (done, in_progress): (Vec<_>, Vec<_>) = slow.drain(..).partition(|attempt| attempt.task.is_finished());
        *slow = in_progress;
        for Attempt { source, pending, task } in done {
            progress |= self.conclude(source, &pending, task.await).await;
        }
        for (source, pending) in self.desired.begin_applying() {
            let (control, Call { method, params }) = (self.clone(), pending.call.clone());
            let mut task = tokio::spawn(async move { control.call_for(source, &method, params).await });
            match timeout(FOREGROUND, &mut task).await {
                Ok(result) => progress |= self.conclude(source, &pending, result).await,
                Err(_) => {
                    self.refused(&pending, &format!("still in progress after {} ms", FOREGROUND.as_millis()));
                    slow.push(Attempt { source, pending, task });
                }
            }
        }
        progress
    }

    /// Records how an attempt ended. Returns whether the call is in effect.
    async fn conclude(
        self: &Arc<Control>,
        source: Source,
        pending: &Pending,
        result: Result<Result<Value, RpcError>, JoinError>,
    ) -> bool {
        let result = result.unwrap_or_else(|error| Err(RpcError::internal(error.to_string())));
        let desired = self.desired.end_applying(&pending.call);
        match result {
            Ok(_) if !desired => {
                self.undo(source, &pending.call).await;
                false
            }
            Ok(_) => {
                if pending.error != NOT_APPLIED {
                    self.observe.events.add(EventType::ConfigRestored, &pending.object, pending.call.method.clone());
                }
                true
            }
            Err(error) => {
                self.refused(pending, &error.message);
                false
            }
        }
    }

    fn refused(&self, pending: &Pending, why: &str) {
        if self.desired.not_in_effect(&pending.call, why) {
            self.observe.events.add(
                EventType::ConfigPending,
                &pending.object,
                format!("{}: {why}", pending.call.method),
            );
        }
    }

    /// Undoes a call that came into effect after it was cancelled.
    async fn undo(self: &Arc<Control>, source: Source, call: &Call) {
        let Ok(Effect::Keep { undo: Some(undo), .. }) = self.handlers.effect(call) else { return };
        if let Err(error) = self.call_for(source, &undo.method, undo.params).await {
            tracing::error!(method = undo.method, %error, "a cancelled call could not be undone");
        }
    }
}
