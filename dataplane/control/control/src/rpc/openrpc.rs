//! The OpenRPC document (open-rpc.org, 1.3): the method table, as others' tools read it.

use super::method::{Entry, Table};
use serde_json::{Value, json};

/// The document of all methods.
pub(crate) fn document(table: &Table) -> Value {
    json!({
        "openrpc": "1.3.2",
        "info": {"title": "Sluice", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0"}},
        "methods": table.entries().iter().map(method).collect::<Vec<_>>(),
    })
}

fn method(entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "summary": entry.doc().lines().next().unwrap_or_default(),
        "description": entry.doc(),
        "paramStructure": "by-name",
        "params": params(&entry.params),
        "result": {"name": "result", "schema": entry.result},
    })
}

fn params(schema: &Value) -> Vec<Value> {
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let one = |(name, schema): (&String, &Value)| {
        json!({
            "name": name,
            "required": required.contains(&name.as_str()),
            "description": schema.get("description"),
            "schema": schema,
        })
    };
    properties.map(one).collect()
}
