//! A method's schema as command line flags, and back.

use crate::client::CallError;
use crate::verbs::{Action, Verb};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Map, Value, json};

/// Gives a verb its arguments.
pub(crate) fn declare(leaf: Command, verb: &Verb, table: &api::Table) -> Command {
    match verb.action {
        Action::Call { method, positional } => match table.get(method) {
            Ok(entry) => declare_call(leaf.about(entry.doc().to_owned()), &entry.params, positional),
            Err(error) => panic!("{error}"),
        },
        Action::Rescan => leaf.about("Takes a file's size anew").arg(Arg::new("name").required(true).help("The disk")),
        Action::LoadFile { method } => {
            let doc = table.get(method).map(|entry| entry.doc().to_owned()).unwrap_or_default();
            leaf.about(doc).arg(Arg::new("file").required(true).help("A JSON document, or - for the standard input"))
        }
        Action::Boot => crate::boot::declare(leaf),
        Action::Capture => crate::capture::declare(leaf),
        Action::ImageWrite => crate::image::declare(leaf),
        Action::Target(protocol) => crate::target::declare(leaf, protocol),
        Action::Raw => leaf
            .about("Calls any method with parameters in JSON")
            .arg(Arg::new("method").required(true).help("Its name; rpc_get_methods lists all"))
            .arg(Arg::new("params").help("Its parameters, a JSON object")),
        Action::Top => crate::top::declare(leaf),
        Action::Completions => {
            let shell = Arg::new("shell").required(true).value_parser(value_parser!(clap_complete::Shell));
            leaf.about("Writes a shell's completions to the standard output").arg(shell)
        }
    }
}

fn declare_call(mut leaf: Command, schema: &Value, positional: &[&'static str]) -> Command {
    for (i, name) in positional.iter().enumerate() {
        let arg = argument(schema, name, &schema["properties"][name]).index(i + 1);
        leaf = leaf.arg(arg);
    }
    let flags = schema["properties"].as_object().into_iter().flatten();
    for (name, property) in flags.filter(|(name, _)| !positional.contains(&name.as_str())) {
        leaf = leaf.arg(argument(schema, name, property).long(name.replace('_', "-")));
    }
    if has_size(schema) {
        let help = "The size in place of the number of blocks: bytes, or with K, M, G or T; blocks are of 512 bytes then, unless told";
        leaf = leaf.arg(Arg::new("size").long("size").value_name("SIZE").conflicts_with("num_blocks").help(help));
    }
    leaf
}

fn argument(schema: &Value, name: &str, property: &Value) -> Arg {
    let doc = property["description"].as_str().unwrap_or_default();
    let arg = Arg::new(name.to_owned()).help(doc.to_owned()).hide(api::schema::is_hidden(property));
    let required = is_required(schema, name) && !(has_size(schema) && ["num_blocks", "block_size"].contains(&name));
    match kind(property) {
        Kind::Switch => arg.action(ArgAction::SetTrue),
        Kind::Word(words) => arg.required(required).value_parser(PossibleValuesParser::new(words)).ignore_case(true),
        Kind::List => arg.required(required).value_delimiter(',').action(ArgAction::Append),
        Kind::Json | Kind::Text => arg.required(required),
    }
}

/// The parameters that were said.
pub(crate) fn params(leaf: &ArgMatches, verb: &Verb, table: &api::Table) -> Result<Value, CallError> {
    let Action::Call { method, .. } = verb.action else { return Ok(Value::Null) };
    let entry = table.get(method).map_err(|e| CallError::Usage(e.to_string()))?;
    let mut params = Map::new();
    for (name, property) in entry.params["properties"].as_object().into_iter().flatten() {
        let value = match kind(property) {
            Kind::Switch => leaf.get_flag(name).then_some(Value::Bool(true)),
            Kind::List => leaf.get_many::<String>(name).map(|words| words.map(|w| element(property, w)).collect()),
            Kind::Text | Kind::Word(_) => leaf.get_one::<String>(name).map(|text| json!(text)),
            // What is no JSON goes as text: the daemon says what it expected.
            Kind::Json => leaf.get_one::<String>(name).map(|t| serde_json::from_str(t).unwrap_or_else(|_| json!(t))),
        };
        params.extend(value.map(|value| (name.clone(), value)));
    }
    if has_size(&entry.params)
        && let Some(size) = leaf.get_one::<String>("size")
    {
        let block_size = params.entry("block_size").or_insert(json!(512)).as_u64().unwrap_or_default();
        params.insert("num_blocks".to_owned(), json!(blocks(size, block_size)?));
    }
    Ok(if params.is_empty() { Value::Null } else { Value::Object(params) })
}

/// One value of a list: a number where the list is of numbers, else text.
fn element(property: &Value, word: &str) -> Value {
    let number = property["items"]["type"] == "integer";
    word.parse::<u64>().ok().filter(|_| number).map_or_else(|| json!(word), |n| json!(n))
}

fn blocks(size: &str, block_size: u64) -> Result<u64, CallError> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &size[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1_u64 << 40,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|bytes| *bytes > 0);
    let bytes =
        bytes.ok_or_else(|| CallError::Usage(format!("--size: got {size}, expected bytes, or with K, M, G or T")))?;
    if block_size == 0 || bytes % block_size != 0 {
        return Err(CallError::Usage(format!(
            "--size: got {size}, expected a multiple of the block size {block_size}"
        )));
    }
    Ok(bytes / block_size)
}

fn has_size(schema: &Value) -> bool {
    is_required(schema, "num_blocks") && is_required(schema, "block_size")
}

fn is_required(schema: &Value, name: &str) -> bool {
    schema["required"].as_array().is_some_and(|required| required.iter().any(|r| r == name))
}

enum Kind {
    Switch,
    Text,
    Word(Vec<String>),
    List,
    /// Numbers, and whatever else JSON has.
    Json,
}

/// What a property's schema says of its values. An optional one is its type or null.
fn kind(property: &Value) -> Kind {
    let named = |kind: &str| match &property["type"] {
        Value::String(only) => only == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => false,
    };
    let words = api::schema::words(property);
    if !words.is_empty() {
        Kind::Word(words)
    } else if named("boolean") && !named("null") {
        Kind::Switch
    } else if named("string") {
        Kind::Text
    } else if named("array") {
        Kind::List
    } else {
        Kind::Json
    }
}
