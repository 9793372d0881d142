//! The methods and the version, as a client asks for them.

use crate::Control;
use crate::rpc::method::{Handler, Row};
use api::rpc::{Discover, GetMethods, GetVersion, Version, VersionFields};
use api::{Phase, RpcError};
use serde_json::Value;
use std::sync::Arc;

pub(crate) fn rows() -> Vec<Row> {
    vec![Row::of::<GetMethods>(), Row::of::<GetVersion>(), Row::of::<Discover>()]
}

impl Handler for GetMethods {
    type Plane = Control;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<String>, RpcError> {
        let entries = control.handlers.methods().entries().iter();
        let entries = entries.filter(|entry| !self.current || entry.phase == Phase::Runtime);
        let entries = entries.filter(|entry| self.include_aliases || !entry.is_deprecated());
        Ok(entries.map(|entry| entry.name.to_owned()).collect())
    }
}

impl Handler for GetVersion {
    type Plane = Control;

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

impl Handler for Discover {
    type Plane = Control;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Value, RpcError> {
        Ok(api::openrpc(control.handlers.methods()))
    }
}
