//! A method's schema as command line flags, and back.

use crate::error::VerbError;
use crate::verbs::{Action, Verb};
use api::{Entry, Table, schema};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Map, Value, json};

/// Gives a verb its arguments.
pub(crate) fn declare(leaf: Command, verb: &Verb, table: &Table) -> Command {
    match verb.action {
        Action::Call { method, positional } => match table.get(method) {
            Ok(entry) => declare_call(leaf.about(entry.doc().to_owned()), entry, positional),
            Err(error) => panic!("{error}"),
        },
        Action::LoadFile { method } => {
            let doc = table.get(method).map(|entry| entry.doc().to_owned()).unwrap_or_default();
            leaf.about(doc).arg(Arg::new("file").required(true).help("A JSON document, or - for the standard input"))
        }
        Action::Boot => crate::boot::declare(leaf),
        Action::Capture => crate::capture::declare(leaf),
        Action::ImageWrite => crate::image::declare(leaf),
        Action::Raw => leaf
            .about("Calls any method with parameters in JSON")
            .arg(Arg::new("method").required(true).help("The method; rpc_get_methods lists all"))
            .arg(Arg::new("params").help("Parameters: a JSON object")),
        Action::Man => leaf
            .about("Writes the man pages of all verbs into a directory")
            .arg(Arg::new("dir").required(true).help("The directory; it must exist")),
        Action::Top => crate::top::declare(leaf),
        Action::Completions => {
            let shell = Arg::new("shell").required(true).value_parser(value_parser!(clap_complete::Shell));
            leaf.about("Prints the completions of a shell").arg(shell)
        }
    }
}

fn declare_call(mut leaf: Command, entry: &Entry, positional: &[&'static str]) -> Command {
    for (i, name) in positional.iter().enumerate() {
        let arg = argument(entry, name, &entry.params["properties"][name]).index(i + 1);
        leaf = leaf.arg(arg);
    }
    for (name, property) in entry.properties().filter(|(name, _)| !positional.contains(&name.as_str())) {
        leaf = leaf.arg(argument(entry, name, property).long(name.replace('_', "-")));
    }
    if has_size(entry) {
        let help =
            "Size instead of --num-blocks: bytes, or with suffix K, M, G or T; the block size is 512 by default then";
        leaf = leaf.arg(Arg::new("size").long("size").value_name("SIZE").conflicts_with("num_blocks").help(help));
    }
    leaf
}

fn argument(entry: &Entry, name: &str, property: &Value) -> Arg {
    let doc = property["description"].as_str().unwrap_or_default();
    let arg = Arg::new(name.to_owned()).help(doc.to_owned()).hide(schema::is_hidden(property));
    let required = entry.is_required(name) && !(has_size(entry) && ["num_blocks", "block_size"].contains(&name));
    match kind(property) {
        Kind::Switch => arg.action(ArgAction::SetTrue),
        Kind::Word(words) => arg.required(required).value_parser(PossibleValuesParser::new(words)).ignore_case(true),
        Kind::List => arg.required(required).value_delimiter(',').action(ArgAction::Append),
        Kind::Json | Kind::Text => arg.required(required),
    }
}

/// The parameters on the command line.
pub(crate) fn params(leaf: &ArgMatches, verb: &Verb, table: &Table) -> Result<Value, VerbError> {
    let Action::Call { method, .. } = verb.action else { return Ok(Value::Null) };
    let entry = table.get(method).map_err(|e| VerbError::Usage(e.to_string()))?;
    let mut params = Map::new();
    for (name, property) in entry.properties() {
        let value = match kind(property) {
            Kind::Switch => leaf.get_flag(name).then_some(Value::Bool(true)),
            Kind::List => leaf.get_many::<String>(name).map(|words| words.map(|w| element(property, w)).collect()),
            Kind::Text | Kind::Word(_) => leaf.get_one::<String>(name).map(|text| json!(text)),
            // What is no JSON goes as text: the daemon says what it expected.
            Kind::Json => leaf.get_one::<String>(name).map(|t| serde_json::from_str(t).unwrap_or_else(|_| json!(t))),
        };
        params.extend(value.map(|value| (name.clone(), value)));
    }
    if has_size(entry)
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

fn blocks(size: &str, block_size: u64) -> Result<u64, VerbError> {
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
        bytes.ok_or_else(|| VerbError::Usage(format!("--size: got {size}, expected bytes, or with K, M, G or T")))?;
    if block_size == 0 || bytes % block_size != 0 {
        return Err(VerbError::Usage(format!(
            "--size: got {size}, expected a multiple of the block size {block_size}"
        )));
    }
    Ok(bytes / block_size)
}

fn has_size(entry: &Entry) -> bool {
    entry.is_required("num_blocks") && entry.is_required("block_size")
}

enum Kind {
    Switch,
    Text,
    Word(Vec<String>),
    List,
    /// Numbers, and all else that JSON has.
    Json,
}

/// What a property's schema says of its values. An optional one is its type or null.
fn kind(property: &Value) -> Kind {
    let named = |kind: &str| match &property["type"] {
        Value::String(only) => only == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => false,
    };
    let words = schema::words(property);
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
