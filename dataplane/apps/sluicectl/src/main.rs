//! The command-line client of the daemon: nouns and verbs over the RPC socket.
//!
//! Which verb calls which method stands in `verbs`; its flags, their types and their help come from the method's schema.

mod boot;
mod capture;
mod error;
mod flags;
mod image;
mod output;
mod top;
mod verbs;

use api::client::{Client, ClientError};
use clap::{Arg, ArgAction, ArgMatches, Command};
use error::VerbError;
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use verbs::{Action, Verb};

const EXIT_CODES: &str = "Exit codes: 0 success, 1 refused by the daemon, 2 bad usage, 3 daemon unreachable.";

fn main() -> ExitCode {
    let table = api::table();
    let matches = command(&table).get_matches();
    match run(&table, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluicectl: {error}");
            if let VerbError::Call(ClientError::Refused(refusal)) = &error {
                eprint!("{}", output::details(refusal));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn command(table: &api::Table) -> Command {
    let socket = Arg::new("socket").long("socket").short('s').value_name("PATH").global(true).env("SLUICE_SOCKET");
    let json = Arg::new("json").long("json").global(true).action(ArgAction::SetTrue);
    let mut root = Command::new("sluicectl")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Command-line client for sluiced")
        .after_help(EXIT_CODES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            socket
                .help("RPC socket of the daemon [default: /run/sluice/sluice.sock, else $XDG_RUNTIME_DIR/sluice.sock]"),
        )
        .arg(json.help("Print the answer in JSON"));
    for verb in verbs::VERBS {
        root = graft(root, verb.path, &|leaf| flags::declare(leaf, verb, table));
    }
    root
}

/// Puts a leaf at `path` below `parent`, with the nouns on the way.
fn graft(parent: Command, path: &[&'static str], finish: &dyn Fn(Command) -> Command) -> Command {
    let (name, rest) = path.split_first().expect("a verb has a name");
    let there = parent.find_subcommand(name).is_some();
    let noun = |c: Command| if rest.is_empty() { finish(c) } else { graft(c, rest, finish) };
    if there {
        parent.mut_subcommand(name, noun)
    } else {
        let new = Command::new(*name);
        let about = verbs::NOUNS.iter().find(|(known, _)| known == name).map(|(_, about)| *about);
        let new = match about {
            Some(about) if !rest.is_empty() => new.about(about).subcommand_required(true).arg_required_else_help(true),
            _ => new,
        };
        parent.subcommand(noun(new))
    }
}

fn run(table: &api::Table, matches: &ArgMatches) -> Result<(), VerbError> {
    let (verb, leaf) = find(matches);
    let socket = matches.get_one::<String>("socket").map(PathBuf::from);
    let connect = || match &socket {
        Some(path) => Client::connect(path),
        None => Client::connect_default(),
    };
    let json = matches.get_flag("json");
    match verb.action {
        Action::Call { method, .. } => {
            let params = flags::params(leaf, verb, table)?;
            output::show(&connect()?.call(method, params)?, verb, json);
        }
        Action::LoadFile { method } => {
            let document = verbs::read_document(text(leaf, "file"))?;
            output::show(&connect()?.call(method, document)?, verb, json);
        }
        Action::Boot => boot::run(&mut connect()?, leaf, json)?,
        Action::Capture => capture::run(&mut connect()?, leaf, json)?,
        Action::ImageWrite => output::show(&image::write(&mut connect()?, leaf)?, verb, json),
        Action::Raw => {
            let params = leaf.get_one::<String>("params").map_or(Ok(Value::Null), |params| {
                serde_json::from_str(params).map_err(|e| VerbError::Usage(format!("PARAMS is not JSON: {e}")))
            })?;
            output::show(&connect()?.call(text(leaf, "method"), params)?, verb, true);
        }
        Action::Top => top::run(&mut connect()?, leaf)?,
        Action::Man => {
            let dir = text(leaf, "dir");
            clap_mangen::generate_to(command(table), dir).map_err(|e| VerbError::Usage(format!("{dir}: {e}")))?;
        }
        Action::Completions => {
            let shell = *leaf.get_one::<clap_complete::Shell>("shell").expect("required");
            clap_complete::generate(shell, &mut command(table), "sluicectl", &mut std::io::stdout());
        }
    }
    Ok(())
}

/// The verb on the command line, and its arguments.
fn find(matches: &ArgMatches) -> (&'static Verb, &ArgMatches) {
    let (mut path, mut leaf) = (Vec::new(), matches);
    while let Some((name, next)) = leaf.subcommand() {
        path.push(name);
        leaf = next;
    }
    let verb = verbs::VERBS.iter().find(|verb| verb.path == path).expect("clap accepts declared verbs only");
    (verb, leaf)
}

fn text<'a>(leaf: &'a ArgMatches, name: &str) -> &'a str {
    leaf.get_one::<String>(name).expect("required")
}
