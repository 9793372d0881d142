//! How the desired state comes into effect again: at start, and whenever what was missing is there again.

use crate::desired::{Call, NOT_TRIED, Pending, rank};
use crate::rpc::RpcError;
use crate::rpc::method::Effect;
use crate::{Control, EventType, StoreError};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{sleep, timeout};

/// A call that takes longer goes on beside: a target that does not answer must not keep other disks waiting.
const PATIENCE: Duration = Duration::from_millis(500);
/// The pause between two tries, at first and after progress; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A call that is being tried.
struct Attempt {
    wish: Pending,
    task: JoinHandle<Result<Value, RpcError>>,
}

impl Control {
    /// Takes up what the state directory holds; [`keep_trying`](Control::keep_trying) makes it again.
    pub fn restore(&self) -> Result<(), StoreError> {
        let Some(store) = self.desired.store() else { return Ok(()) };
        let loaded = store.read()?;
        let mut calls = loaded.document.calls();
        calls.sort_by_key(|placed| rank(&placed.subsystem));
        for placed in calls {
            let Ok(call) = placed.call() else { continue };
            let slot = match self.methods().effect(&call) {
                Ok(Effect::Keep { slot, .. }) => Some(slot),
                _ => None,
            };
            let subsystem = slot.as_ref().map_or(placed.subsystem.as_str(), |slot| slot.object.subsystem);
            self.desired.wish(subsystem, slot, call);
        }
        if let Some(damage) = loaded.damage {
            let detail = format!("damaged at {}; kept as {}", damage.place, damage.kept.display());
            self.events.add(EventType::StateDamaged, "state.json", detail);
            self.desired.touch();
        }
        Ok(())
    }

    /// Tries again and again what is wished for and not in effect. Never returns.
    pub async fn keep_trying(self: Arc<Control>) {
        let (mut slow, mut pause) = (Vec::new(), PAUSE);
        loop {
            let progress = self.try_pending(&mut slow).await;
            // What an earlier call could not save, and what replaces a damaged file.
            if let Err(error) = self.desired.save().await {
                tracing::error!(%error, "state");
            }
            self.restored.send_replace(true);
            sleep(if slow.is_empty() { pause } else { PAUSE }).await;
            pause = if progress { PAUSE } else { LONGEST_PAUSE.min(pause * 2) };
        }
    }

    /// Waits until all that is wished for was tried once.
    pub async fn restored(&self) {
        // The sender lives as long as `self`: this cannot fail.
        drop(self.restored.subscribe().wait_for(|done| *done).await);
    }

    /// Tries what is wished for and not in effect, in order; `slow` are those still under way. Returns whether anything came
    /// into effect.
    async fn try_pending(self: &Arc<Control>, slow: &mut Vec<Attempt>) -> bool {
        let mut progress = false;
        let (done, under_way): (Vec<_>, Vec<_>) = slow.drain(..).partition(|attempt| attempt.task.is_finished());
        *slow = under_way;
        for Attempt { wish, task } in done {
            progress |= self.conclude(&wish, task.await).await;
        }
        for wish in self.desired.begin_tries() {
            let (control, Call { method, params }) = (self.clone(), wish.call.clone());
            let mut task = tokio::spawn(async move { control.call_unsaved(&method, params).await });
            match timeout(PATIENCE, &mut task).await {
                Ok(result) => progress |= self.conclude(&wish, result).await,
                Err(_) => {
                    self.refused(&wish, "it takes its time");
                    slow.push(Attempt { wish, task });
                }
            }
        }
        progress
    }

    /// Takes note of how a try ended. Returns whether the call is in effect.
    async fn conclude(self: &Arc<Control>, wish: &Pending, result: Result<Result<Value, RpcError>, JoinError>) -> bool {
        let result = result.unwrap_or_else(|error| Err(RpcError::internal(error.to_string())));
        let wanted = self.desired.end_try(&wish.call);
        match result {
            Ok(_) if !wanted => {
                self.take_back(&wish.call).await;
                false
            }
            Ok(_) => {
                if wish.error != NOT_TRIED {
                    self.events.add(EventType::ConfigRestored, &wish.object, wish.call.method.clone());
                }
                true
            }
            Err(error) => {
                self.refused(wish, &error.message);
                false
            }
        }
    }

    fn refused(&self, wish: &Pending, why: &str) {
        if self.desired.not_in_effect(&wish.call, why) {
            self.events.add(EventType::ConfigPending, &wish.object, format!("{}: {why}", wish.call.method));
        }
    }

    /// Undoes a call that came into effect after it was no longer wanted.
    async fn take_back(self: &Arc<Control>, call: &Call) {
        let Ok(Effect::Keep { undo: Some(undo), .. }) = self.methods().effect(call) else { return };
        if let Err(error) = self.call_unsaved(&undo.method, undo.params).await {
            tracing::error!(method = undo.method, %error, "cannot be undone");
        }
    }
}
