//! The reference of the RPC: the method table for people to read.

use crate::rpc::method::{Entry, Table};
use serde_json::Value;
use std::fmt::Write;

/// All methods with their parameters and their documentation, in Markdown.
pub fn reference(table: &Table) -> String {
    let mut page = String::from(
        "# RPC reference\n\nGenerated from the method table; `rpc.discover` gives the same as OpenRPC. A parameter with `*` is \
         required. See the crate's documentation for framing, errors and what survives a restart.\n",
    );
    for entry in table.entries() {
        // A String takes whatever is written to it.
        let _ = write!(page, "\n## {}\n\n{}\n", entry.name, entry.doc());
        let rows = parameters(entry);
        if !rows.is_empty() {
            let _ = write!(page, "\n| parameter | type | |\n|---|---|---|\n{rows}");
        }
    }
    page
}

fn parameters(entry: &Entry) -> String {
    let required =
        |name: &str| entry.params["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    let row = |(name, property): (&String, &Value)| {
        let star = if required(name) { "*" } else { "" };
        let doc = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        format!("| `{name}`{star} | {} | {doc} |\n", kind(property))
    };
    entry.params["properties"].as_object().into_iter().flatten().map(row).collect()
}

/// The type of a property in words.
fn kind(property: &Value) -> String {
    let words = words(property);
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

/// The words of an enumeration, however deep its schema wraps them.
pub fn words(property: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut found: Vec<String> = property["enum"].as_array().into_iter().flatten().filter_map(text).collect();
    found.extend(text(&property["const"]));
    for key in ["oneOf", "anyOf"] {
        found.extend(property[key].as_array().into_iter().flatten().flat_map(words));
    }
    found
}
