//! Instructions an item, counted by callgrind: the same in every run, whatever else the machine does.
//!
//! Each step runs in a process of its own under valgrind. callgrind counts while [`measured`] is on the stack, so a step's set-up
//! and its driver's part cost nothing; of the datapath, which a worker polls, it counts all between two calls of [`mark`].

use crate::initiators::alone::{self, Protocol};
use crate::request::Kind;
use crate::{path, ring, switch};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::Command;
use virtio_spec::feature::RING_PACKED;

/// A step: sets up, warms up, does what is measured, and returns the number of items that it did so.
type Step = fn() -> Result<u64>;

/// Steps by name. Those that start with `datapath` are counted between marks.
const STEPS: [(&str, Step); 33] = [
    ("ring-split", || ring::instructions("plain", 0)),
    ("ring-split-in-order", || ring::instructions("in order", 0)),
    ("ring-split-event-idx", || ring::instructions("event idx", 0)),
    ("ring-split-inflight", || ring::instructions("inflight region", 0)),
    ("ring-split-chain-of-3", || ring::instructions("chain of 3", 0)),
    ("ring-split-indirect", || ring::instructions("indirect table of 3", 0)),
    ("ring-packed", || ring::instructions("plain", RING_PACKED)),
    ("ring-packed-in-order", || ring::instructions("in order", RING_PACKED)),
    ("ring-packed-event-idx", || ring::instructions("event idx", RING_PACKED)),
    ("ring-packed-inflight", || ring::instructions("inflight region", RING_PACKED)),
    ("ring-packed-chain-of-3", || ring::instructions("chain of 3", RING_PACKED)),
    ("ring-packed-indirect", || ring::instructions("indirect table of 3", RING_PACKED)),
    ("extract", switch::instructions::extract_keys),
    ("lookup-exact", switch::instructions::look_up_exact),
    ("lookup-signature", switch::instructions::look_up_signature),
    ("lookup-megaflow-32-masks", switch::instructions::look_up_megaflow),
    ("execute-output", switch::instructions::execute_output),
    ("execute-route", switch::instructions::execute_route),
    ("datapath-output", switch::instructions::datapath_output),
    ("hop-split", || switch::instructions::hop(0)),
    ("hop-split-in-order", || switch::instructions::hop(virtio_spec::feature::IN_ORDER)),
    ("hop-packed", || switch::instructions::hop(RING_PACKED)),
    ("hop-packed-in-order", || switch::instructions::hop(RING_PACKED | virtio_spec::feature::IN_ORDER)),
    ("block-null-split", || path::instructions("null", Kind::Read, 0)),
    ("block-ram-split-read", || path::instructions("ram", Kind::Read, 0)),
    ("block-ram-split-write", || path::instructions("ram", Kind::Write, 0)),
    ("block-null-packed", || path::instructions("null", Kind::Read, RING_PACKED)),
    ("nvme-read", || alone::instructions(Protocol::Nvme, Kind::Read, false)),
    ("nvme-write", || alone::instructions(Protocol::Nvme, Kind::Write, false)),
    ("nvme-read-digests", || alone::instructions(Protocol::Nvme, Kind::Read, true)),
    ("iscsi-read", || alone::instructions(Protocol::Iscsi, Kind::Read, false)),
    ("iscsi-write", || alone::instructions(Protocol::Iscsi, Kind::Write, false)),
    ("iscsi-read-digests", || alone::instructions(Protocol::Iscsi, Kind::Read, true)),
];

/// Runs `work`; instructions count within it.
#[inline(never)]
pub(crate) fn measured<T>(work: impl FnOnce() -> T) -> T {
    // Nothing may follow the call in here as its tail, or this function would have left the stack.
    std::hint::black_box(work())
}

/// The place of the datapath's step between which instructions count.
#[inline(never)]
pub(crate) fn mark() {
    std::hint::black_box(());
}

/// Runs the step in this process and prints its items.
pub(crate) fn step(name: &str) -> Result<()> {
    let (_, step) = STEPS.iter().find(|(step, _)| *step == name).with_context(|| format!("no step `{name}`"))?;
    println!("{}", step()?);
    Ok(())
}

/// Prints instructions an item for each step whose name starts with one of `names`, or for all.
pub(crate) fn run(names: &[String]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|start| name.starts_with(start.as_str()));
    for (name, _) in STEPS.iter().filter(|(name, _)| is_wanted(name)) {
        let (instructions, items) = count(name, directory.path()).with_context(|| name.to_string())?;
        println!("{name:<28} {:>10.2}", instructions as f64 / items as f64);
    }
    Ok(())
}

/// Instructions and items of a step, in a process of its own.
fn count(name: &str, directory: &Path) -> Result<(u64, u64)> {
    let out = directory.join(name);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", "--fair-sched=try"]);
    let between_marks = name.starts_with("datapath");
    valgrind.arg(if between_marks {
        "--dump-before=*instructions*mark*"
    } else {
        "--toggle-collect=*instructions*measured*"
    });
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    let output = valgrind.arg(std::env::current_exe()?).args(["--instructions-step", name]).output();
    let output = output.context("valgrind: cannot be started (install Debian's package valgrind)")?;
    ensure!(output.status.success(), "valgrind: {}", String::from_utf8_lossy(&output.stderr));
    let items = String::from_utf8(output.stdout)?.trim().parse()?;
    // The second part lies between the marks.
    let profile = if between_marks { format!("{}.2", out.display()) } else { out.display().to_string() };
    let profile = std::fs::read_to_string(&profile).with_context(|| profile.clone())?;
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    let instructions = total.context("the profile has no total")?.trim().parse()?;
    if instructions == 0 {
        bail!("nothing was counted");
    }
    Ok((instructions, items))
}
