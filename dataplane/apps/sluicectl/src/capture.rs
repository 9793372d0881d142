//! `sluicectl capture`: a port's packets into a pcapng file, until it is interrupted or has enough.

use crate::client::{CallError, Client};
use crate::output;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// Gives `capture` its arguments.
pub(crate) fn declare(leaf: Command) -> Command {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64)).help(help)
    };
    leaf.about("Writes the packets of a port into a pcapng file until it is interrupted, dropped ones with the reason")
        .arg(Arg::new("port").required(true).help("The port"))
        .arg(Arg::new("file").long("file").required(true).value_name("FILE").help("The file, written by the daemon"))
        .arg(number("count", "End after so many packets"))
        .arg(number("snap-len", "Bytes of each packet that are kept [default: 2048]"))
        .arg(number("max-bytes", "End when the file has so many bytes [default: a GiB]"))
}

pub(crate) fn run(client: &mut Client, leaf: &ArgMatches, json: bool) -> Result<(), CallError> {
    let text = |name: &str| leaf.get_one::<String>(name).expect("required");
    let usage = |error: std::io::Error| CallError::Usage(format!("capture: {error}"));
    let mut params = json!({"port": text("port"), "file": std::path::absolute(text("file")).map_err(usage)?});
    for (flag, field) in [("count", "count"), ("snap-len", "snap_len"), ("max-bytes", "max_bytes")] {
        if let Some(number) = leaf.get_one::<u64>(flag) {
            params[field] = json!(number);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(usage)?;
    let report = runtime.block_on(capture(client, text("port"), params))?;
    if json {
        output::print(&format!("{report:#}\n"));
    } else {
        let [packets, lost] = ["packets", "lost"].map(|field| report[field].as_u64().unwrap_or(0));
        output::print(&format!("{packets} packets in {}, {lost} lost\n", text("file")));
    }
    match report["error"].as_str() {
        Some(error) => Err(CallError::Refused(json!({"message": error}))),
        None => Ok(()),
    }
}

/// Captures until there is enough or somebody interrupts. Returns the daemon's report.
async fn capture(client: &mut Client, port: &str, params: Value) -> Result<Value, CallError> {
    let listen = |kind| signal(kind).map_err(|error| CallError::Usage(format!("signal: {error}")));
    // Before it starts: what starts is stopped.
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    client.call("capture_start", params)?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
        let progress = client.call("capture_get", json!({"port": port}))?[0].take();
        if progress["running"] == false {
            break;
        }
        if std::io::stderr().is_terminal() {
            eprint!("\r{} packets, {} lost ", progress["packets"], progress["lost"]);
        }
    }
    client.call("capture_stop", json!({"port": port}))
}
