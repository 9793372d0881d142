//! `sluicectl image write`: copies an image onto a disk and shows the progress.

use crate::error::VerbError;
use api::RpcError;
use api::client::Client;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};
use std::time::Duration;

/// The interval of progress reports.
const INTERVAL: Duration = Duration::from_millis(100);

pub(crate) fn declare(leaf: Command) -> Command {
    let verify = Arg::new("verify").long("verify").action(ArgAction::SetTrue);
    leaf.about("Copies a raw image onto an unused disk")
        .arg(Arg::new("name").required(true).help("Name or UUID of the disk"))
        .arg(Arg::new("file").required(true).help("Path of the image on the daemon's host"))
        .arg(verify.help("Verify the disk's content afterwards"))
}

/// Shows the progress on one line of the standard error.
pub(crate) fn write(client: &mut Client, leaf: &ArgMatches) -> Result<Value, VerbError> {
    let text = |name: &str| leaf.get_one::<String>(name).expect("required");
    let (name, file, verify) = (text("name"), text("file"), leaf.get_flag("verify"));
    client.call("bdev_image_write", json!({"name": name, "file": file, "verify": verify}))?;
    loop {
        let progress = client.call("bdev_image_get_progress", json!({"name": name}))?;
        let number = |field: &str| progress[field].as_u64().unwrap_or(0);
        let (total, copied, verified) = (number("total"), number("copied"), number("verified"));
        let (what, so_far) = if verify && copied == total { ("verified", verified) } else { ("copied", copied) };
        eprint!("\r{what} {} of {} MiB, {} %", so_far >> 20, total >> 20, so_far * 100 / total.max(1));
        if progress["done"] == true {
            eprintln!();
            return outcome(file, &progress);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn outcome(file: &str, progress: &Value) -> Result<Value, VerbError> {
    let Some(error) = progress["error"].as_str() else { return Ok(Value::Bool(true)) };
    let error = RpcError::internal(format!("{file}: {error}"));
    Err(VerbError::reported(match progress["differs_at"] {
        Value::Null => error,
        _ => error.hint("the disk does not keep what it is given: find the cause before using it"),
    }))
}
