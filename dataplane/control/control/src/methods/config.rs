//! The desired state as a document.

use crate::Control;
use crate::desired::{Call, Document, Pending};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<SaveConfig>(),
        Entry::of::<LoadConfig>(),
        Entry::of::<ConfigValidate>(),
        Entry::of::<ConfigGetPending>(),
    ]
}

/// Tells the whole configuration, in the form that `load_config` takes.
#[derive(Serialize, Deserialize, JsonSchema)]
struct SaveConfig {}

impl Method for SaveConfig {
    const NAME: &'static str = "save_config";
    type Output = Document;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Document, RpcError> {
        Ok(control.desired.document())
    }
}

/// Makes all calls of a configuration, in order. When one fails, those before it are undone.
#[derive(Serialize, Deserialize, JsonSchema)]
struct LoadConfig {
    /// What `save_config` gave: subsystems, each with its calls.
    subsystems: Vec<crate::desired::Section>,
}

impl Method for LoadConfig {
    const NAME: &'static str = "load_config";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let calls = checked(control, &self.subsystems).map_err(|mut problems| problems.swap_remove(0))?;
        let mut undo = Vec::new();
        for (place, call) in calls {
            // What takes the call back: the call that it replaces, or the opposite of it.
            let back = match control.methods().effect(&call)? {
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

/// Says what is wrong with a configuration without loading it: its form, its methods and their parameters.
#[derive(Serialize, Deserialize, JsonSchema)]
struct ConfigValidate {
    /// What `load_config` would be given.
    subsystems: Vec<crate::desired::Section>,
}

#[derive(Serialize, JsonSchema)]
struct Validation {
    /// Whether it can be loaded.
    valid: bool,
    /// What stands in the way, each an error of the call at its place.
    problems: Vec<Value>,
}

impl Method for ConfigValidate {
    const NAME: &'static str = "config_validate";
    type Output = Validation;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Validation, RpcError> {
        let problems = checked(control, &self.subsystems).err().unwrap_or_default();
        let problems: Vec<Value> = problems.iter().map(|problem| serde_json::json!(problem)).collect();
        Ok(Validation { valid: problems.is_empty(), problems })
    }
}

/// Each call with its place, or all that is wrong.
fn checked(control: &Control, subsystems: &[crate::desired::Section]) -> Result<Vec<(String, Call)>, Vec<RpcError>> {
    let (mut calls, mut problems, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    for placed in (Document { subsystems: subsystems.to_vec() }).calls() {
        let effect = placed.call().and_then(|call| Ok((control.methods().effect(&call)?, call)));
        match effect {
            Ok((Effect::Keep { slot, .. }, _)) if slots.contains(&slot) => {
                let message = format!("{}: {} {} is there twice", placed.place, slot.object.subsystem(), slot.object);
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

/// Lists the calls of the configuration that are not in effect, and why. They are tried again by and by.
#[derive(Serialize, Deserialize, JsonSchema)]
struct ConfigGetPending {}

impl Method for ConfigGetPending {
    const NAME: &'static str = "config_get_pending";
    type Output = Vec<Pending>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<Pending>, RpcError> {
        Ok(control.desired.pending())
    }
}
