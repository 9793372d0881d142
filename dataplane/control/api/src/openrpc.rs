//! The [OpenRPC 1.3] document: the method table for the tools of others.
//!
//! [OpenRPC 1.3]: https://spec.open-rpc.org/

use crate::{Entry, Table};
use serde_json::{Value, json};

/// The OpenRPC document of all methods.
pub fn document(table: &Table) -> Value {
    json!({
        "openrpc": "1.3.2",
        "info": {"title": "Sluice", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0"}},
        "methods": table.entries().iter().map(method).collect::<Vec<_>>(),
    })
}

fn method(entry: &Entry) -> Value {
    let param = |(name, schema): (&String, &Value)| {
        json!({
            "name": name,
            "required": entry.is_required(name),
            "description": schema.get("description"),
            "schema": schema,
        })
    };
    json!({
        "name": entry.name,
        "summary": entry.doc().lines().next().unwrap_or_default(),
        "description": entry.doc(),
        "paramStructure": "by-name",
        "params": entry.properties().map(param).collect::<Vec<_>>(),
        "result": {"name": "result", "schema": entry.result},
    })
}
