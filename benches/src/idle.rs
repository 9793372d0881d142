//! What daemons cost that have nothing to do, and what the first request pays for it.

use crate::backend::{Backend, Disk, DiskKind, Sluice, StorageDaemon};
use crate::client::Client;
use crate::measure::{Ahead, Measurement, Pinned, Plan, cpu_time};
use crate::report::{Report, Table};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

const DISKS: usize = 16;
/// Long enough for every worker to fall asleep.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let disks: Vec<Disk> = (0..DISKS).map(|i| Disk::new(&format!("null{i}"), DiskKind::Null)).collect();
    let mut table =
        Table::new(["backend", "resident MiB", "with clients", "CPU % of a core", "first request p50 µs", "worst µs"]);
    let (sluice, peer) = (Sluice::start(plan, &disks)?, StorageDaemon::start(plan, &disks)?);
    let _pinned = Pinned::to(plan.client_cpu)?;
    let _ahead = Ahead::enter();
    for backend in [&sluice as &dyn Backend, &peer] {
        table.push(measure(plan, backend, &disks)?);
    }
    report.section("Idle");
    report.text(&format!(
        "{DISKS} null disks, each with a connected client and a started ring and nothing to do; then single reads, each after \
         {PAUSE:?} of silence, by a client that polls. The aims: below 1 % of a core, below 100 µs, below 64 MiB."
    ));
    report.table(table);
    Ok(())
}

fn measure(plan: &Plan, backend: &dyn Backend, disks: &[Disk]) -> Result<Vec<String>> {
    let connect =
        |disk: &Disk| Client::connect(&backend.socket(&disk.name), false)?.context("split rings are not offered");
    // The first connection shows that the backend is up.
    let mut clients = vec![connect(&disks[0])?];
    let resident = resident_mib(backend.process())?;
    for disk in &disks[1..] {
        clients.push(connect(disk)?);
    }
    std::thread::sleep(10 * PAUSE);
    let (start, before) = (Instant::now(), cpu_time(backend.process())?);
    std::thread::sleep(10 * plan.window);
    let cpu = (cpu_time(backend.process())? - before).as_secs_f64() / start.elapsed().as_secs_f64();
    let mut first = Vec::new();
    for _ in 0..10 * plan.windows {
        std::thread::sleep(PAUSE);
        first.push(clients[0].once()?.as_nanos() as f64 / 1000.0);
    }
    let first = Measurement::new(first);
    Ok(vec![
        backend.name().to_owned(),
        format!("{resident:.1}"),
        format!("{:.1}", resident_mib(backend.process())?),
        format!("{:.2}", cpu * 100.0),
        format!("{:.1}", first.median()),
        format!("{:.1}", first.max()),
    ])
}

fn resident_mib(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|field| field.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("{path}: no VmRSS"))? / 1024.0)
}
