//! The reference of the RPC: the method table as Markdown.

use crate::{Entry, Table, schema};
use serde_json::Value;
use std::fmt::Write;

/// All methods with their parameters and their documentation, in Markdown.
pub fn reference(table: &Table) -> String {
    let mut page = String::from(
        "# RPC reference\n\nGenerated from the method table; `rpc.discover` answers the same as OpenRPC. A parameter with `*` is \
         required. See the crate's documentation for framing, errors and what survives a restart.\n",
    );
    for entry in table.entries() {
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {}\n\n{}\n", entry.name, entry.doc());
        let rows = parameters(entry);
        if !rows.is_empty() {
            let _ = write!(page, "\n| parameter | type | |\n|---|---|---|\n{rows}");
        }
    }
    page
}

fn parameters(entry: &Entry) -> String {
    let row = |(name, property): (&String, &Value)| {
        let star = if entry.is_required(name) { "*" } else { "" };
        let doc = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        format!("| `{name}`{star} | {} | {doc} |\n", kind(property))
    };
    entry.properties().map(row).collect()
}

/// The type of a property in words.
fn kind(property: &Value) -> String {
    let words = schema::words(property);
    if !words.is_empty() {
        return words.join(", ");
    }
    match &property["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("any").to_owned()
        }
        _ => "any".to_owned(),
    }
}
