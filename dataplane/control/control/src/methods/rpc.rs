//! What can be called.

use crate::Control;
use crate::rpc::RpcError;
use crate::rpc::method::{Entry, Method, Phase};
use crate::rpc::openrpc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<RpcGetMethods>(), Entry::of::<SpdkGetVersion>(), Entry::of::<RpcDiscover>()]
}

/// Lists the methods.
#[derive(Serialize, Deserialize, JsonSchema)]
struct RpcGetMethods {
    /// Only those that can be called now.
    #[serde(default)]
    current: bool,
    /// Deprecated names too. There are none.
    #[serde(default)]
    include_aliases: bool,
}

impl Method for RpcGetMethods {
    const NAME: &'static str = "rpc_get_methods";
    type Output = Vec<&'static str>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<&'static str>, RpcError> {
        let entries = control.methods().entries().iter();
        Ok(entries.filter(|e| !self.current || e.phase == Phase::Runtime).map(|e| e.name).collect())
    }
}

/// Tells the version, in the shape of SPDK's answer.
#[derive(Serialize, Deserialize, JsonSchema)]
struct SpdkGetVersion {}

/// The version in words and in numbers.
#[derive(Serialize, JsonSchema)]
struct Version {
    version: String,
    fields: VersionFields,
}

#[derive(Serialize, JsonSchema)]
struct VersionFields {
    major: u32,
    minor: u32,
    patch: u32,
    suffix: String,
}

impl Method for SpdkGetVersion {
    const NAME: &'static str = "spdk_get_version";
    type Output = Version;

    async fn call(&mut self, _: &Arc<Control>) -> Result<Version, RpcError> {
        let number = |text: &str| text.parse().unwrap_or(0);
        let fields = VersionFields {
            major: number(env!("CARGO_PKG_VERSION_MAJOR")),
            minor: number(env!("CARGO_PKG_VERSION_MINOR")),
            patch: number(env!("CARGO_PKG_VERSION_PATCH")),
            suffix: env!("CARGO_PKG_VERSION_PRE").to_owned(),
        };
        Ok(Version { version: concat!("Sluice v", env!("CARGO_PKG_VERSION")).to_owned(), fields })
    }
}

/// Describes all methods as an OpenRPC document.
#[derive(Serialize, Deserialize, JsonSchema)]
struct RpcDiscover {}

impl Method for RpcDiscover {
    const NAME: &'static str = "rpc.discover";
    type Output = Value;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Value, RpcError> {
        Ok(openrpc::document(control.methods()))
    }
}
