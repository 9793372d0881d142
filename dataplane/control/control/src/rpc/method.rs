//! Handlers of the methods: parsed, carried out, recorded.

use crate::Control;
use crate::network::NetworkPlane;
use crate::observe::Observe;
use crate::scheduler::Scheduler;
use crate::state::desired::{Desired, Placed, Source};
use crate::state::object::{ObjectId, Slot};
use crate::storage::StoragePlane;
use crate::workers::Workers;
use api::config::Call;
use api::{Entry, Method, RpcError, schema};
use serde_json::Value;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What a method does. Its parameter type is api's; the handler is here.
pub(crate) trait Handler: Method {
    /// The part of the control plane that the method needs.
    type Plane: Plane;

    /// What a call that succeeded leaves in the desired state.
    fn effect(&self) -> Effect {
        Effect::None
    }

    /// Carries out the call. The handler completes its parameters with what it chose itself (a name, a UUID): they are what is
    /// recorded. Nothing may have changed when it returns an error.
    fn call(&mut self, plane: &Arc<Self::Plane>) -> impl Future<Output = Result<Self::Output, RpcError>> + Send;
}

/// A part of the control plane that handlers are given. All of it is for calls that are made of other calls.
pub(crate) trait Plane: Send + Sync + 'static {
    fn of(control: &Arc<Control>) -> &Arc<Self>;
}

macro_rules! planes {
    ($($plane:ty: $field:ident;)*) => {
        $(impl Plane for $plane {
            fn of(control: &Arc<Control>) -> &Arc<$plane> {
                &control.$field
            }
        })*
    };
}

planes! {
    Desired: desired;
    NetworkPlane: network;
    Observe: observe;
    Scheduler: scheduler;
    StoragePlane: storage;
    Workers: workers;
}

impl Plane for Control {
    fn of(control: &Arc<Control>) -> &Arc<Control> {
        control
    }
}

/// What a successful call does to the desired state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// The call itself is kept, in its slot. `undo` takes it back where deleting the object does not.
    Keep { slot: Slot, undo: Option<Call> },
    /// All calls about this object are forgotten.
    Forget(ObjectId),
    /// The call in this slot is forgotten.
    Clear(Slot),
}

type Answer = Pin<Box<dyn Future<Output = Result<Value, RpcError>> + Send>>;

/// The handler of a method, with its types erased.
pub(crate) struct Row {
    name: &'static str,
    call: fn(Arc<Control>, Source, Value) -> Answer,
    effect: fn(Value, &Value) -> Result<Effect, RpcError>,
}

impl Row {
    /// The row of a handler.
    pub(crate) fn of<H: Handler>() -> Row {
        Row {
            name: H::NAME,
            call: |control, source, params| Box::pin(run::<H>(control, source, params)),
            effect: |params, schema| Ok(schema::parse::<H>(params, schema)?.effect()),
        }
    }
}

/// The handlers of all methods.
pub(crate) struct Handlers {
    methods: api::Table,
    /// In the order of `methods`.
    rows: Vec<Row>,
}

impl Handlers {
    pub(crate) fn new(mut rows: Vec<Row>) -> Handlers {
        let methods = api::table();
        rows.sort_by_key(|row| row.name);
        assert!(
            rows.iter().map(|row| row.name).eq(methods.entries().iter().map(|entry| entry.name)),
            "a handler a method"
        );
        Handlers { methods, rows }
    }

    /// The methods with their schemas.
    pub(crate) fn methods(&self) -> &api::Table {
        &self.methods
    }

    fn get(&self, name: &str) -> Result<(&Entry, &Row), RpcError> {
        let at = self.methods.position(name)?;
        Ok((&self.methods.entries()[at], &self.rows[at]))
    }

    /// A call of a document, which may have been saved by an earlier version.
    pub(crate) fn read(&self, placed: &Placed) -> Result<Call, RpcError> {
        let mut call = placed.call()?;
        if let Ok((entry, _)) = self.get(&call.method) {
            schema::drop_formerly_ignored(&mut call.params, &entry.params);
        }
        Ok(call)
    }

    /// What a call would do to the desired state. Refuses one that does not fit its schema.
    pub(crate) fn effect(&self, call: &Call) -> Result<Effect, RpcError> {
        let (entry, row) = self.get(&call.method)?;
        (row.effect)(call.params.clone(), &entry.params)
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
        let call = self.handlers.get(method)?.1.call;
        call(self.clone(), source, params).await
    }
}

async fn run<H: Handler>(control: Arc<Control>, source: Source, params: Value) -> Result<Value, RpcError> {
    let mut method: H = schema::parse(params, &control.handlers.methods().get(H::NAME)?.params)?;
    if let Effect::Forget(object) = method.effect()
        && control.desired.cancel(&object)
    {
        // It was never created: there is nothing else to undo.
        return Ok(Value::Bool(true));
    }
    let output = method.call(H::Plane::of(&control)).await?;
    // No await since the handler's last step: on the control thread nothing came between the change and its record.
    match method.effect() {
        Effect::None => {}
        Effect::Keep { slot, .. } => control.desired.keep(source, slot, Call::new(H::NAME, complete(&method)?)),
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

#[cfg(test)]
mod tests {
    #[test]
    fn each_method_has_its_handler() {
        // The constructor compares the names.
        let handlers = crate::handlers();
        assert_eq!(handlers.rows.len(), api::table().entries().len());
    }
}
