//! The configuration: the calls that create the objects of a daemon, as a document.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

methods! {
    SaveConfig: "save_config" -> Document;
    LoadConfig: "load_config" -> bool;
    ConfigValidate: "config_validate" -> Validation;
    ConfigGetPending: "config_get_pending" -> Vec<Pending>;
}

/// A call of the configuration, in SPDK's form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The method.
    pub method: String,
    /// The parameters.
    #[serde(default)]
    pub params: Value,
}

impl Call {
    /// A call of a method.
    pub fn new(method: &str, params: Value) -> Call {
        Call { method: method.to_owned(), params }
    }
}

/// A configuration document, in the form of SPDK's `save_config`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The subsystems in the order in which they are loaded.
    pub subsystems: Vec<Section>,
}

/// The calls of one subsystem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Name of the subsystem.
    pub subsystem: String,
    /// Calls `{method, params}`, in order; a list among them is a batch of calls.
    pub config: Option<Vec<Value>>,
}

/// Shows the whole configuration, in the form that `load_config` takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct SaveConfig {}

/// Makes all calls of a configuration in order. If one fails, those before it are undone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LoadConfig {
    /// The subsystems with their calls, as `save_config` returns them.
    pub subsystems: Vec<Section>,
}

/// Checks a configuration without loading it: its form, its methods and their parameters.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConfigValidate {
    /// The subsystems with their calls, as for `load_config`.
    pub subsystems: Vec<Section>,
}

/// The result of a check.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Validation {
    /// Whether the configuration can be loaded.
    pub valid: bool,
    /// The problems: for each, the error of the call with its place in the document.
    pub problems: Vec<Value>,
}

/// Lists the calls of the configuration that are not in effect, with the reason. They are retried periodically.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ConfigGetPending {}

/// A call of the configuration that is not in effect.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Pending {
    /// The subsystem.
    pub subsystem: String,
    /// The object that the call is about.
    pub object: String,
    /// The call.
    #[serde(flatten)]
    pub call: Call,
    /// Why the call is not in effect.
    pub error: String,
}
