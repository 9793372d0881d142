//! `sluicectl image write`: copies an image onto a disk and shows how far it is.

use crate::client::{CallError, Client};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};
use std::time::Duration;

/// The pause between two looks at the progress.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn declare(leaf: Command) -> Command {
    let verify = Arg::new("verify").long("verify").action(ArgAction::SetTrue);
    leaf.about("Copies a raw image onto a disk that nothing holds")
        .arg(Arg::new("name").required(true).help("The disk"))
        .arg(Arg::new("file").required(true).help("The image, on the daemon's side"))
        .arg(verify.help("When all is written, look whether the disk holds it"))
}

/// Shows the progress on one line of the standard error.
pub(crate) fn write(client: &mut Client, leaf: &ArgMatches) -> Result<Value, CallError> {
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
        std::thread::sleep(LOOK);
    }
}

fn outcome(file: &str, progress: &Value) -> Result<Value, CallError> {
    let Some(error) = progress["error"].as_str() else { return Ok(Value::Bool(true)) };
    let mut refusal = json!({"message": format!("{file}: {error}")});
    if !progress["differs_at"].is_null() {
        refusal["data"]["hint"] = json!("something changes what this disk is given: find out what before using it");
    }
    Err(CallError::Refused(refusal))
}
