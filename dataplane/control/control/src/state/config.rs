//! The desired state as a document.

use super::desired::{Desired, placed_calls};
use crate::Control;
use crate::rpc::method::{Effect, Handler, Row};
use api::RpcError;
use api::config::{
    Call, ConfigGetPending, ConfigValidate, Document, LoadConfig, Pending, SaveConfig, Section, Validation,
};
use serde_json::Value;
use std::sync::Arc;

pub(crate) fn rows() -> Vec<Row> {
    vec![Row::of::<SaveConfig>(), Row::of::<LoadConfig>(), Row::of::<ConfigValidate>(), Row::of::<ConfigGetPending>()]
}

impl Handler for SaveConfig {
    type Plane = Desired;

    async fn call(&mut self, desired: &Arc<Desired>) -> Result<Document, RpcError> {
        Ok(desired.document())
    }
}

impl Handler for LoadConfig {
    type Plane = Control;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let calls = checked(control, &self.subsystems).map_err(|mut problems| problems.swap_remove(0))?;
        let mut undo = Vec::new();
        for (place, call) in calls {
            // What takes the call back: the call that it replaces, or the opposite of it.
            let back = match control.handlers.effect(&call)? {
                Effect::Keep { slot, undo } => control.desired.get(&slot).or(undo),
                Effect::None | Effect::Forget(_) | Effect::Clear(_) => None,
            };
            // Boxed: this future is one of those that it awaits.
            if let Err(mut error) = Box::pin(control.call_unsaved(&call.method, call.params.clone())).await {
                error.message = format!("{place}: {}: {}", call.method, error.message);
                return Err(take_back(control, undo, error).await);
            }
            undo.extend(back);
        }
        Ok(true)
    }
}

async fn take_back(control: &Arc<Control>, undo: Vec<Call>, mut error: RpcError) -> RpcError {
    for call in undo.into_iter().rev() {
        if let Err(failed) = Box::pin(control.call_unsaved(&call.method, call.params.clone())).await {
            error.message += &format!("; and {} could not be undone: {failed}", call.method);
        }
    }
    error
}

impl Handler for ConfigValidate {
    type Plane = Control;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Validation, RpcError> {
        let problems = checked(control, &self.subsystems).err().unwrap_or_default();
        let problems: Vec<Value> = problems.iter().map(|problem| serde_json::json!(problem)).collect();
        Ok(Validation { valid: problems.is_empty(), problems })
    }
}

/// Each call with its place, or all that is wrong.
fn checked(control: &Control, subsystems: &[Section]) -> Result<Vec<(String, Call)>, Vec<RpcError>> {
    let (mut calls, mut problems, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    for placed in placed_calls(subsystems) {
        let effect = control.handlers.read(&placed).and_then(|call| Ok((control.handlers.effect(&call)?, call)));
        match effect {
            Ok((Effect::Keep { slot, .. }, _)) if slots.contains(&slot) => {
                let message = format!("{}: {} {} is given twice", placed.place, slot.object.subsystem(), slot.object);
                problems.push(RpcError::errno(libc::EEXIST, message));
            }
            Ok((effect, call)) => {
                if let Effect::Keep { slot, .. } = effect {
                    slots.push(slot);
                }
                calls.push((placed.place, call));
            }
            Err(mut error) => {
                error.message = format!("{}: {}", placed.place, error.message);
                problems.push(error);
            }
        }
    }
    if problems.is_empty() { Ok(calls) } else { Err(problems) }
}

impl Handler for ConfigGetPending {
    type Plane = Desired;

    async fn call(&mut self, desired: &Arc<Desired>) -> Result<Vec<Pending>, RpcError> {
        Ok(desired.pending())
    }
}
