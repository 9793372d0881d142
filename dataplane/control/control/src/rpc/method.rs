//! What a method is: one Rust type whose fields are the parameters, whose documentation is the help, and which does the work.

pub(crate) use crate::blocking::blocking;

use super::{RpcError, schema};
use crate::Control;
use crate::state::desired::{Call, Source};
use crate::state::object::{ObjectId, Slot};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A method: its type is the single source of validation, of documentation, of the CLI's flags and of OpenRPC.
pub(crate) trait Method: DeserializeOwned + Serialize + JsonSchema + Send + Sync + 'static {
    /// Its name on the wire.
    const NAME: &'static str;
    /// When it may be called.
    const PHASE: Phase = Phase::Runtime;
    /// What it answers.
    type Output: Serialize + JsonSchema + Send;

    /// What a call that succeeded leaves in the desired state.
    fn effect(&self) -> Effect {
        Effect::None
    }

    /// Does it. The handler completes its parameters with what it chose itself (a name, a UUID): they are what is recorded.
    /// Nothing may have changed when it returns an error.
    fn call(&mut self, control: &Arc<Control>) -> impl Future<Output = Result<Self::Output, RpcError>> + Send;
}

/// When a method may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the daemon serves only. Listed for SPDK's clients; calling it later is a no-op.
    Startup,
    /// At any time.
    Runtime,
}

/// What a successful call does to the desired state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// The call itself is kept, in its slot. `undo` takes it back where deleting the object does not.
    Keep { slot: Slot, undo: Option<Call> },
    /// All that was kept for this object is forgotten.
    Forget(ObjectId),
    /// The call in this slot is forgotten.
    Clear(Slot),
}

type Answer = Pin<Box<dyn Future<Output = Result<Value, RpcError>> + Send>>;

/// One row of the method table.
pub struct Entry {
    /// Its name on the wire.
    pub name: &'static str,
    /// When it may be called.
    pub phase: Phase,
    /// JSON schema of the parameters; its description is the method's documentation.
    pub params: Value,
    /// JSON schema of the result.
    pub result: Value,
    call: fn(Arc<Control>, Source, Value) -> Answer,
    effect: fn(Value, &Value) -> Result<Effect, RpcError>,
}

impl Entry {
    /// The row of a method.
    pub(crate) fn of<M: Method>() -> Entry {
        Entry {
            name: M::NAME,
            phase: M::PHASE,
            params: schema::of::<M>(),
            result: schema::of::<M::Output>(),
            call: |control, source, params| Box::pin(run::<M>(control, source, params)),
            effect: |params, schema| Ok(schema::parse::<M>(params, schema)?.effect()),
        }
    }

    /// What the method does.
    pub fn doc(&self) -> &str {
        self.params.get("description").and_then(Value::as_str).unwrap_or_default()
    }
}

/// All methods, by name.
pub struct Table(Vec<Entry>);

impl Table {
    pub(crate) fn new(mut entries: Vec<Entry>) -> Table {
        entries.sort_by_key(|entry| entry.name);
        assert!(entries.windows(2).all(|pair| pair[0].name != pair[1].name), "two methods of one name");
        Table(entries)
    }

    /// Sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The row of a method.
    pub fn get(&self, name: &str) -> Result<&Entry, RpcError> {
        let found = self.0.binary_search_by_key(&name, |entry| entry.name).map(|at| &self.0[at]);
        found.map_err(|_| RpcError::unknown_method(name, schema::nearest(name, self.0.iter().map(|entry| entry.name))))
    }

    /// What a call would do to the desired state. Refuses one that does not fit its schema.
    pub(crate) fn effect(&self, call: &Call) -> Result<Effect, RpcError> {
        let entry = self.get(&call.method)?;
        (entry.effect)(call.params.clone(), &entry.params)
    }
}

impl Control {
    /// Makes a call: parses, acts, records, saves.
    pub async fn call(self: &Arc<Control>, method: &str, params: Value) -> Result<Value, RpcError> {
        let before = self.desired.revision();
        let output = self.call_unsaved(method, params).await?;
        if self.desired.revision() != before {
            self.desired.save().await?;
        }
        Ok(output)
    }

    /// Makes one of many calls; the caller saves when all are made.
    pub(crate) async fn call_unsaved(self: &Arc<Control>, method: &str, params: Value) -> Result<Value, RpcError> {
        self.call_for(Source::Rpc, method, params).await
    }

    /// Makes a call whose effect belongs to `source`.
    pub(crate) async fn call_for(
        self: &Arc<Control>,
        source: Source,
        method: &str,
        params: Value,
    ) -> Result<Value, RpcError> {
        let call = self.methods().get(method)?.call;
        call(self.clone(), source, params).await
    }
}

async fn run<M: Method>(control: Arc<Control>, source: Source, params: Value) -> Result<Value, RpcError> {
    let mut method: M = schema::parse(params, &control.methods().get(M::NAME)?.params)?;
    if let Effect::Forget(object) = method.effect()
        && control.desired.cancel(&object)
    {
        // It was never created: there is nothing else to undo.
        return Ok(Value::Bool(true));
    }
    let output = method.call(&control).await?;
    // No await since the handler's last step: on the control thread nothing came between the change and its record.
    match method.effect() {
        Effect::None => {}
        Effect::Keep { slot, .. } => control.desired.keep(source, slot, Call::new(M::NAME, complete(&method)?)),
        Effect::Forget(object) => control.desired.forget(&object),
        Effect::Clear(slot) => control.desired.clear(&slot),
    }
    serde_json::to_value(output).map_err(|error| RpcError::internal(error.to_string()))
}

/// Parameters as they are recorded: without those that were not given.
fn complete<M: Method>(method: &M) -> Result<Value, RpcError> {
    let mut params = serde_json::to_value(method).map_err(|error| RpcError::internal(error.to_string()))?;
    if let Value::Object(map) = &mut params {
        map.retain(|_, value| !value.is_null());
    }
    Ok(params)
}
