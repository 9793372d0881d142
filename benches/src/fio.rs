//! The file backend against fio's io_uring engine: the same file, depth and core.

use crate::alone::Alone;
use crate::backend::{Backend, Disk, DiskKind, Sluice, disk_file};
use crate::client::Client;
use crate::measure::{Measurement, Pinned, Plan, take_turns};
use crate::report::{Bars, Report, Table};
use crate::request::Kind;
use crate::window::{Cell, Demand, Window, ratio, take};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const DEPTHS: [usize; 3] = [1, 32, 128];

/// Who does the I/O.
enum Side<'a> {
    Fio(&'a Path),
    /// Our backend in this process.
    Alone(Box<Alone>),
    /// With a worker that spins for so many microseconds before it sleeps.
    Sluice {
        backend: &'a Sluice,
        client: &'a std::cell::RefCell<Client>,
        spin: u64,
    },
}

pub(crate) fn run(plan: &Plan, directory: &Path, report: &mut Report) -> Result<()> {
    let file = disk_file(directory)?;
    let sluice = Sluice::start(plan, &[Disk::new("file", DiskKind::File(file.path().into()))])?;
    let _pinned = Pinned::to(plan.client_cpu)?;
    let mut client = Client::connect(&sluice.socket("file"), false)?.context("split rings are not offered")?;
    client.sleep_when_idle()?;
    let client = std::cell::RefCell::new(client);
    let sluice = |spin| Side::Sluice { backend: &sluice, client: &client, spin };
    let alone = Side::Alone(Box::new(Alone::open(file.path())?));
    let mut sides = [Side::Fio(file.path()), alone, sluice(50), sluice(0)];
    let mut table = Table::new([
        "request",
        "depth",
        "side",
        "kIOPS",
        "of fio's",
        "CPU ns a request",
        "of it busy",
        "of fio's",
        "p50 µs",
        "p99 µs",
    ]);
    let mut bars = Bars::new("fio", "4 KiB on a file: CPU time a request, by depth", "ns");
    for kind in [Kind::Read, Kind::Write] {
        for depth in DEPTHS {
            let demand = Demand { kind, depth, span: plan.window };
            let windows = take_turns(plan.windows, &mut sides, |side| side.window(plan, demand))?;
            for (side, of_side) in sides.iter().zip(&windows) {
                let cell = Cell::of(of_side);
                bars.push(&format!("{} {depth}", kind.name()), &side.name(), cell.cpu.clone());
                table.push(vec![
                    kind.name().to_owned(),
                    depth.to_string(),
                    side.name(),
                    cell.iops.scaled(1e-3).show(1),
                    ratio(of_side, &windows[0], |w| w.iops).show(2),
                    cell.cpu.show(0),
                    show_busy(&cell.busy),
                    ratio(of_side, &windows[0], |w| w.cpu).show(2),
                    cell.p50.show(0),
                    cell.p99.show(0),
                ]);
            }
        }
    }
    report.section("File backend against fio");
    report.text(&format!(
        "4 KiB at random places of one file with io_uring and O_DIRECT, windows of {:?} in turn, median of {} (range), ratios to \
         fio's window of the same turn. fio submits and waits on CPU {}; the backend alone is a loop over our block channel in \
         its place; `sluiced` serves on that CPU a client that sleeps on CPU {}, so it also pays for rings, kicks and calls. A \
         worker spins before it sleeps: for 50 µs by default, which is CPU time; 0 is the setting for the least of it. The aim is \
         that the backend is within 5 % of fio in IOPS and in CPU time a request.",
        plan.window, plan.windows, plan.backend_cpu, plan.client_cpu,
    ));
    report.table(table);
    report.bars(bars)
}

fn show_busy(busy: &Measurement) -> String {
    if busy.median().is_nan() { "all".to_owned() } else { busy.show(0) }
}

impl Side<'_> {
    fn name(&self) -> String {
        match self {
            Side::Fio(_) => "fio".to_owned(),
            Side::Alone(_) => "the backend alone".to_owned(),
            Side::Sluice { spin, .. } => format!("sluiced, spin {spin} µs"),
        }
    }

    fn window(&mut self, plan: &Plan, demand: Demand) -> Result<Window> {
        match self {
            Side::Fio(file) => fio(plan, file, demand),
            Side::Alone(alone) => alone.window(plan, demand),
            Side::Sluice { backend, client, spin } => {
                backend.set_idle_spin(*spin)?;
                take(*backend, &mut client.borrow_mut(), demand)
            }
        }
    }
}

fn fio(plan: &Plan, file: &Path, demand: Demand) -> Result<Window> {
    let direction = demand.kind.name();
    let mut command = Command::new("taskset");
    command.args(["-c", &plan.backend_cpu.to_string(), "fio", "--name=bench", "--output-format=json"]);
    command.args(["--ioengine=io_uring", "--direct=1", "--bs=4k", "--norandommap", "--time_based"]);
    command.arg(format!("--rw=rand{direction}")).arg(format!("--iodepth={}", demand.depth));
    command.arg(format!("--runtime={}ms", demand.span.as_millis())).arg(format!("--filename={}", file.display()));
    let output = command.output().context("run fio")?;
    ensure!(output.status.success(), "fio failed: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).context("fio's report")?;
    let job = &report["jobs"][0];
    let number = |value: &Value, name: &str| value.as_f64().with_context(|| format!("fio's report has no {name}"));
    let side = &job[direction];
    let requests = number(&side["total_ios"], "total_ios")?;
    let cpu_percent = number(&job["usr_cpu"], "usr_cpu")? + number(&job["sys_cpu"], "sys_cpu")?;
    let job_ms = number(&job["job_runtime"], "job_runtime")?;
    let percentile = |key: &str| Ok::<f64, anyhow::Error>(number(&side["clat_ns"]["percentile"][key], key)? / 1000.0);
    Ok(Window {
        iops: number(&side["iops"], "iops")?,
        p50: percentile("50.000000")?,
        p99: percentile("99.000000")?,
        cpu: cpu_percent / 100.0 * job_ms * 1e6 / requests,
        busy: f64::NAN,
    })
}
