//! JSON schemas of the types, and parameters checked against them: what is wrong, where, and what was expected.

use crate::RpcError;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The JSON schema of a type, without references.
pub fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::default().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Parses parameters against their type and its schema. `null` is no parameters at all, and a parameter that is `null` is one
/// that was not given.
pub fn parse<T: DeserializeOwned>(params: Value, schema: &Value) -> Result<T, RpcError> {
    let params = match params {
        Value::Null => Map::new(),
        Value::Object(map) => map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => return Err(RpcError::invalid("params", brief(&other), "an object: parameters go by name")),
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    let known: Vec<&str> = properties.into_iter().flat_map(|p| p.keys()).map(String::as_str).collect();
    if let Some((name, value)) = params.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return Err(unknown_parameter(name, value, &known));
    }
    for (name, value) in &params {
        refuse_unsupported(name, value, &schema["properties"][name])?;
    }
    let params = Value::Object(params);
    serde_path_to_error::deserialize(&params).map_err(|error| explain(&error, &params, schema))
}

/// The known name nearest to `name`, if one is near at all.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|k| (strsim::jaro_winkler(name, k), k));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.75).map(|(_, k)| k)
}

/// Refuses a value other than the one that leaves an unsupported parameter unused.
fn refuse_unsupported(name: &str, value: &Value, property: &Value) -> Result<(), RpcError> {
    let unused = property.get("const");
    if !is_unsupported(property) || unused == Some(value) {
        return Ok(());
    }
    let expected = match unused {
        Some(unused) => format!("{unused}: other values are not supported"),
        None => "no value: it is not supported".to_owned(),
    };
    // A parameter that no value leaves unused may be a secret.
    let got = if unused.is_some() { brief(value) } else { "a value".to_owned() };
    let error = RpcError::invalid(name, got, expected);
    Err(match property["description"].as_str() {
        Some(doc) => error.hint(doc.replace('\n', " ")),
        None => error,
    })
}

/// Whether a property's schema says that the parameter is not supported.
pub fn is_unsupported(property: &Value) -> bool {
    property["x-sluice-unsupported"] == true
}

/// Removes from a call that an earlier version has saved what that version accepted and ignored.
pub fn drop_formerly_ignored(params: &mut Value, schema: &Value) {
    if let Value::Object(params) = params {
        params.retain(|name, _| schema["properties"][name]["x-sluice-formerly-ignored"] != true);
    }
}

/// Whether a CLI need not show a parameter: it is not supported, changes nothing, or is deprecated.
pub fn is_hidden(property: &Value) -> bool {
    is_unsupported(property) || property["x-sluice-hidden"] == true || property["deprecated"] == true
}

/// The words of an enumeration, however deep the schema wraps them.
pub fn words(property: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut found: Vec<String> = property["enum"].as_array().into_iter().flatten().filter_map(text).collect();
    found.extend(text(&property["const"]));
    for key in ["oneOf", "anyOf"] {
        found.extend(property[key].as_array().into_iter().flatten().flat_map(words));
    }
    found
}

fn unknown_parameter(name: &str, value: &Value, known: &[&str]) -> RpcError {
    let expected = if known.is_empty() { "no parameters".to_owned() } else { format!("one of {}", known.join(", ")) };
    let mut error = RpcError::invalid(name, brief(value), expected);
    error.message = format!("unknown parameter {name}");
    match nearest(name, known.iter().copied()) {
        Some(nearest) => error.hint(format!("did you mean {nearest}?")),
        None => error,
    }
}

/// Turns serde's sentence into field, got, expected, and the field's own documentation.
fn explain(error: &serde_path_to_error::Error<serde_json::Error>, params: &Value, schema: &Value) -> RpcError {
    let (path, sentence) = (error.path().to_string(), error.inner().to_string());
    let missing = sentence.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    let field = match (missing, path.as_str()) {
        (Some(name), ".") => name.to_owned(),
        (Some(name), parent) => format!("{parent}.{name}"),
        (None, path) => path.to_owned(),
    };
    let property = field.split(['.', '[']).next().and_then(|top| schema.get("properties")?.get(top));
    let expected = match sentence.split_once(", expected ") {
        Some((_, expected)) => expected.to_owned(),
        None => property.and_then(|p| p.get("type")).map_or_else(|| sentence.clone(), type_words),
    };
    let got = if missing.is_some() { "nothing".to_owned() } else { value_at(params, &field).map_or(sentence, brief) };
    let error = RpcError::invalid(field, got, expected);
    match property.and_then(|p| p.get("description")?.as_str()) {
        Some(doc) => error.hint(doc.replace('\n', " ")),
        None => error,
    }
}

fn type_words(kind: &Value) -> String {
    match kind {
        Value::String(kind) => format!("a value of type {kind}"),
        other => format!("a value of one of the types {other}"),
    }
}

fn value_at<'a>(params: &'a Value, path: &str) -> Option<&'a Value> {
    let pointer: String = path.split(['.', '[']).map(|part| format!("/{}", part.trim_end_matches(']'))).collect();
    params.pointer(&pointer)
}

/// A value in at most a line.
fn brief(value: &Value) -> String {
    const CHARS: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= CHARS { text } else { text.chars().take(CHARS).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    /// A disk.
    #[derive(Debug, Deserialize, JsonSchema, PartialEq)]
    struct Disk {
        /// What it is called.
        name: String,
        /// Bytes a block.
        block_size: u32,
        #[serde(default)]
        read_only: bool,
        kind: Option<Kind>,
        #[serde(default)]
        names: Vec<String>,
        #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
        md_size: Option<u32>,
        #[schemars(extend("x-sluice-unsupported" = true))]
        psk: Option<String>,
    }

    #[derive(Debug, Deserialize, JsonSchema, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Ram,
        File,
    }

    fn refused(params: Value) -> (String, String, String, String) {
        let data = *parse::<Disk>(params, &of::<Disk>()).unwrap_err().data;
        let text = |part: Option<String>| part.unwrap_or_default();
        (text(data.field), text(data.got), text(data.expected), text(data.hint))
    }

    fn words(field: &str, got: &str, expected: &str, hint: &str) -> (String, String, String, String) {
        (field.into(), got.into(), expected.into(), hint.into())
    }

    #[test]
    fn null_is_not_given() {
        let disk =
            parse::<Disk>(json!({"name": "a", "block_size": 512, "kind": null, "read_only": null}), &of::<Disk>())
                .unwrap();
        assert_eq!(
            disk,
            Disk {
                name: "a".into(),
                block_size: 512,
                read_only: false,
                kind: None,
                names: vec![],
                md_size: None,
                psk: None
            }
        );
    }

    #[test]
    fn each_error_has_its_parts() {
        let good = json!({"name": "a", "block_size": 512});
        let with = |key: &str, value: Value| {
            let mut params = good.clone();
            params[key] = value;
            refused(params)
        };
        assert_eq!(with("block_size", json!("big")), words("block_size", "\"big\"", "u32", "Bytes a block."));
        assert_eq!(with("block_size", json!(-1)), words("block_size", "-1", "u32", "Bytes a block."));
        assert_eq!(
            with("block_size", json!(1_u64 << 40)),
            words("block_size", "1099511627776", "u32", "Bytes a block.")
        );
        assert_eq!(with("read_only", json!(1)), words("read_only", "1", "a boolean", ""));
        assert_eq!(with("kind", json!("tape")), words("kind", "\"tape\"", "`ram` or `file`", ""));
        assert_eq!(with("names", json!(["b", 3])), words("names[1]", "3", "a string", ""));
        assert_eq!(
            refused(json!({"name": "a"})),
            words("block_size", "nothing", "a value of type integer", "Bytes a block.")
        );
        assert_eq!(
            with("blocksize", json!(512)),
            words(
                "blocksize",
                "512",
                "one of name, block_size, read_only, kind, names, md_size, psk",
                "did you mean block_size?"
            )
        );
        assert_eq!(with("md_size", json!(8)), words("md_size", "8", "0: other values are not supported", ""));
        assert_eq!(with("psk", json!("k")), words("psk", "a value", "no value: it is not supported", ""));
        let unused = json!({"name": "a", "block_size": 512, "md_size": 0, "psk": null});
        assert_eq!(parse::<Disk>(unused, &of::<Disk>()).unwrap().md_size, Some(0));
        assert_eq!(refused(json!(["a", 512])), words("params", "[\"a\",512]", "an object: parameters go by name", ""));
    }
}
