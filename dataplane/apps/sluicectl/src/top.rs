//! `sluicectl top`: live rates of workers and disks.

use crate::error::VerbError;
use crate::output::{align, bytes, print};
use api::client::Client;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::Duration;

/// Gives `top` its arguments.
pub(crate) fn declare(leaf: Command) -> Command {
    let interval = Arg::new("interval").long("interval").value_name("SECONDS").default_value("1");
    let count = Arg::new("count").long("count").value_name("N").value_parser(value_parser!(u64));
    leaf.about("Shows live rates of workers and disks")
        .arg(interval.value_parser(value_parser!(f64)).help("Refresh interval in seconds"))
        .arg(count.help("Stop after this many refreshes"))
}

/// Refreshes until interrupted, or `--count` times.
pub(crate) fn run(client: &mut Client, leaf: &ArgMatches) -> Result<(), VerbError> {
    let interval = *leaf.get_one::<f64>("interval").expect("has a default");
    let interval = Duration::try_from_secs_f64(interval).map_err(|e| VerbError::Usage(format!("--interval: {e}")))?;
    let count = leaf.get_one::<u64>("count").copied().unwrap_or(u64::MAX);
    let mut before = sample(client)?;
    for _ in 0..count {
        std::thread::sleep(interval);
        let now = sample(client)?;
        // Clears the screen where there is one.
        let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        print(&format!("{clear}{}\n{}", workers(&before, &now), disks(&before, &now)));
        before = now;
    }
    Ok(())
}

fn sample(client: &mut Client) -> Result<Value, VerbError> {
    let workers = client.call("framework_get_reactors", Value::Null)?;
    let disks = client.call("bdev_get_iostat", Value::Null)?;
    Ok(
        json!({"workers": workers["reactors"], "disks": disks["bdevs"], "ticks": disks["ticks"], "rate": disks["tick_rate"]}),
    )
}

fn workers(before: &Value, now: &Value) -> String {
    let elapsed = grown(before, now, "/ticks").max(1.0);
    let mut rows = vec![["CPU", "BUSY", "IDLE", "ASLEEP"].map(str::to_owned).to_vec()];
    for (i, worker) in now["workers"].as_array().into_iter().flatten().enumerate() {
        let share = |what: &str| grown(before, now, &format!("/workers/{i}/{what}")) / elapsed * 100.0;
        let (busy, asleep) = (share("busy"), share("asleep"));
        let cells = [busy, share("idle") - asleep, asleep].map(|percent| format!("{:.1} %", percent.clamp(0.0, 100.0)));
        rows.push(std::iter::once(worker["lcore"].to_string()).chain(cells).collect());
    }
    align(&rows)
}

fn disks(before: &Value, now: &Value) -> String {
    let rate = now["rate"].as_f64().unwrap_or(1.0);
    let seconds = grown(before, now, "/ticks").max(1.0) / rate;
    let headings = ["DISK", "READ/S", "WRITE/S", "READ", "WRITTEN", "READ LATENCY", "WRITE LATENCY"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for disk in now["disks"].as_array().into_iter().flatten() {
        let nothing = Value::Null;
        let earlier =
            before["disks"].as_array().into_iter().flatten().find(|d| d["name"] == disk["name"]).unwrap_or(&nothing);
        let per_second = |what: &str| grown(earlier, disk, what) / seconds;
        let latency = |ticks: &str, ops: &str| match grown(earlier, disk, ops) {
            0.0 => "-".to_owned(),
            ops => format!("{:.1} us", grown(earlier, disk, ticks) / ops / rate * 1e6),
        };
        rows.push(vec![
            disk["name"].as_str().unwrap_or_default().to_owned(),
            format!("{:.0}", per_second("/num_read_ops")),
            format!("{:.0}", per_second("/num_write_ops")),
            format!("{}/s", bytes(per_second("/bytes_read") as u64)),
            format!("{}/s", bytes(per_second("/bytes_written") as u64)),
            latency("/read_latency_ticks", "/num_read_ops"),
            latency("/write_latency_ticks", "/num_write_ops"),
        ]);
    }
    align(&rows)
}

/// How much a counter grew; 0 if it was reset meanwhile.
fn grown(before: &Value, now: &Value, at: &str) -> f64 {
    let number = |value: &Value| value.pointer(at).and_then(Value::as_f64).unwrap_or(0.0);
    (number(now) - number(before)).max(0.0)
}
