//! `sluicectl capture`: captures a port's packets into a pcapng file, until interrupted or a limit is reached.

use crate::error::VerbError;
use crate::output;
use api::RpcError;
use api::client::Client;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The interval of progress reports.
const INTERVAL: Duration = Duration::from_millis(100);

/// Gives `capture` its arguments.
pub(crate) fn declare(leaf: Command) -> Command {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64)).help(help)
    };
    leaf.about("Captures the packets of a port into a pcapng file until interrupted; dropped packets carry the reason")
        .arg(Arg::new("port").required(true).help("Name of the port"))
        .arg(
            Arg::new("file")
                .long("file")
                .required(true)
                .value_name("FILE")
                .help("Path of the file, written by the daemon"),
        )
        .arg(number("count", "Stop after this many packets [default: unlimited]"))
        .arg(number("snap-len", "Snapshot length: bytes kept of each packet [default: 2048]"))
        .arg(number("max-bytes", "Stop when the file has this many bytes [default: 1 GiB]"))
}

pub(crate) fn run(client: &mut Client, leaf: &ArgMatches, json: bool) -> Result<(), VerbError> {
    let text = |name: &str| leaf.get_one::<String>(name).expect("required");
    let usage = |error: std::io::Error| VerbError::Usage(format!("capture: {error}"));
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
        Some(error) => Err(VerbError::reported(RpcError::internal(error))),
        None => Ok(()),
    }
}

/// Captures until the daemon ends the capture or a signal interrupts it. Returns the daemon's report.
async fn capture(client: &mut Client, port: &str, params: Value) -> Result<Value, VerbError> {
    let listen = |kind| signal(kind).map_err(|error| VerbError::Usage(format!("signal: {error}")));
    // Before the capture starts, so that it is stopped in any case.
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    client.call("capture_start", params)?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let progress = client.call("capture_get", json!({"port": port}))?[0].take();
        if progress["running"] == false {
            break;
        }
        if std::io::stderr().is_terminal() {
            eprint!("\r{} packets, {} lost ", progress["packets"], progress["lost"]);
        }
    }
    Ok(client.call("capture_stop", json!({"port": port}))?)
}
