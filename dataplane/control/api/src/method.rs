//! A method as a Rust type, and the table of all methods.

use crate::{RpcError, schema};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A method of the RPC. The implementing type holds the parameters: its fields and their documentation are the method's schema.
pub trait Method: DeserializeOwned + Serialize + JsonSchema + Send + Sync + 'static {
    /// The method's name on the wire.
    const NAME: &'static str;
    /// When the method may be called.
    const PHASE: Phase = Phase::Runtime;
    /// The method's answer.
    type Output: DeserializeOwned + Serialize + JsonSchema + Send;
}

/// When a method may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Only before the daemon serves. Listed for SPDK's clients; a later call is a no-op.
    Startup,
    /// At any time.
    Runtime,
}

/// Implements [`Method`] for the parameter types of a subject, and lists them in `entries()`.
macro_rules! methods {
    ($($params:ident: $name:literal -> $output:ty $(, $phase:expr)?;)*) => {
        $(impl $crate::Method for $params {
            const NAME: &'static str = $name;
            $(const PHASE: $crate::Phase = $phase;)?
            type Output = $output;
        })*

        /// The methods of this subject.
        pub(crate) fn entries() -> Vec<$crate::Entry> {
            vec![$($crate::Entry::of::<$params>()),*]
        }
    };
}

/// One row of the method table.
pub struct Entry {
    /// The method's name on the wire.
    pub name: &'static str,
    /// When the method may be called.
    pub phase: Phase,
    /// JSON schema of the parameters; its description is the method's documentation.
    pub params: Value,
    /// JSON schema of the answer.
    pub result: Value,
}

impl Entry {
    /// The row of a method.
    pub(crate) fn of<M: Method>() -> Entry {
        Entry { name: M::NAME, phase: M::PHASE, params: schema::of::<M>(), result: schema::of::<M::Output>() }
    }

    /// The method's documentation.
    pub fn doc(&self) -> &str {
        self.params.get("description").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether another method replaces this one.
    pub fn is_deprecated(&self) -> bool {
        self.params.get("x-sluice-deprecated").is_some()
    }

    /// The parameters with their schemas.
    pub fn properties(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.params["properties"].as_object().into_iter().flatten()
    }

    /// Whether a call has to give the parameter.
    pub fn is_required(&self, param: &str) -> bool {
        self.params["required"].as_array().is_some_and(|required| required.iter().any(|name| name == param))
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

    /// The rows, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The row of a method.
    pub fn get(&self, name: &str) -> Result<&Entry, RpcError> {
        self.position(name).map(|at| &self.0[at])
    }

    /// The number of a method's row.
    pub fn position(&self, name: &str) -> Result<usize, RpcError> {
        let found = self.0.binary_search_by_key(&name, |entry| entry.name);
        found.map_err(|_| RpcError::unknown_method(name, schema::nearest(name, self.0.iter().map(|entry| entry.name))))
    }
}
