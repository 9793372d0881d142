//! The RPC itself: its methods and its version.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

methods! {
    GetMethods: "rpc_get_methods" -> Vec<String>;
    GetVersion: "spdk_get_version" -> Version;
    Discover: "rpc.discover" -> Value;
}

/// Lists the methods.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetMethods {
    /// List only the methods that can be called now.
    #[serde(default)]
    pub current: bool,
    /// List deprecated methods as well.
    #[serde(default)]
    pub include_aliases: bool,
}

/// Shows the daemon's version, in the shape of SPDK's answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetVersion {}

/// A version as text and as numbers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // SPDK's names
pub struct Version {
    pub version: String,
    pub fields: VersionFields,
}

/// The parts of a version.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // SPDK's names
pub struct VersionFields {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
    pub suffix: String,
}

/// Describes all methods as an OpenRPC document.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Discover {}
