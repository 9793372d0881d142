//! Measurements against peers, in one run: the ring alone, the whole path, both daemons under one client, idleness, and fio.
//!
//! `scripts/bench` builds everything and runs it; the report is target/bench/report.md.

mod alone;
mod backend;
mod client;
mod fio;
mod idle;
mod initiators;
mod instructions;
mod measure;
mod offload;
mod path;
mod peers;
mod report;
mod request;
mod ring;
mod switch;
mod window;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use measure::Plan;
use report::Report;
use std::path::PathBuf;
use std::time::Duration;
use switch::Datapath;

/// Measures Sluice alone and against its peers, and writes a report.
#[derive(Parser)]
struct Options {
    /// Takes a look at everything, in less than a minute; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Runs these parts instead of all
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Where the report and the disk file go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// The core of the client
    #[arg(long, default_value_t = 0)]
    client_cpu: usize,
    /// The core of the backends, and of what is measured in process
    #[arg(long, default_value_t = 1)]
    backend_cpu: usize,
    /// Where SPDK's binaries are: its source tree, a build or a directory of programs. Without, what needs them is skipped
    #[arg(long, value_name = "DIR")]
    spdk: Option<PathBuf>,
    /// Counts instructions an item with callgrind, of all steps or of those whose names start like this, and measures nothing else
    #[arg(long, value_name = "STEP", num_args = 0..)]
    instructions: Option<Vec<String>>,
    /// One of these steps, in a process of its own
    #[arg(long, hide = true)]
    instructions_step: Option<String>,
    /// One measurement of the offload, in a process of its own
    #[arg(long, hide = true)]
    offload_step: Option<offload::Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The ring alone
    Ring,
    /// The whole path in process
    Path,
    /// Against qemu-storage-daemon
    Peers,
    /// What idleness costs
    Idle,
    /// The file backend against fio
    Fio,
    /// The initiators, alone, against libiscsi and, with --spdk, against SPDK's
    Initiators,
    /// A hop over vhost-user against testpmd
    Hop,
    /// The flow cache against OVS-DPDK
    Switch,
    /// Rules into the model of a card, against one call a rule and dpdk-test-flow-perf
    Offload,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(step) = &options.instructions_step {
        return instructions::step(step);
    }
    if let Some(steps) = &options.instructions {
        return instructions::run(steps);
    }
    let (client_cpu, backend_cpu) = (options.client_cpu, options.backend_cpu);
    ensure!(client_cpu != backend_cpu, "--client-cpu and --backend-cpu: both are {client_cpu}, expected two cores");
    let plan = if options.quick {
        Plan { windows: 2, window: Duration::from_millis(50), items: 20_000, client_cpu, backend_cpu }
    } else {
        Plan { windows: 5, window: Duration::from_millis(400), items: 400_000, client_cpu, backend_cpu }
    };
    if let Some(step) = options.offload_step {
        return offload::step(step, &plan);
    }
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    // The peer does not share our working directory.
    let out = options.out.canonicalize()?;
    let mut report = Report::new(out.clone(), "Sluice measured")?;
    report.text(&machine(options.quick)?);
    let mut datapath = None;
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    for part in Part::value_variants().iter().copied().filter(|part| wanted(*part)) {
        match part {
            Part::Ring => ring::run(&plan, &mut report),
            Part::Path => path::run(&plan, &mut report),
            Part::Peers => peers::run(&plan, &out, &mut report),
            Part::Idle => idle::run(&plan, &mut report),
            Part::Fio => fio::run(&plan, &out, &mut report),
            Part::Initiators => initiators::run(&plan, options.spdk.as_deref(), &mut report),
            Part::Hop => Datapath::started(&mut datapath, &plan).and_then(|it| switch::hops(&plan, it, &mut report)),
            Part::Switch => Datapath::started(&mut datapath, &plan).and_then(|it| switch::run(&plan, it, &mut report)),
            Part::Offload => offload::run(&plan, options.quick, &mut report),
        }
        .with_context(|| format!("{part:?}"))?;
    }
    println!("\nreport: {}", report.write()?.display());
    Ok(())
}

/// What the figures were taken on.
fn machine(quick: bool) -> Result<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let field = |name| cpuinfo.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1));
    let model = field("model name").unwrap_or("an unknown CPU");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or("unknown");
    let note = if quick { " A quick look: the figures mean little." } else { "" };
    Ok(format!(
        "{model}, {cpus} CPUs, time-stamp counter at {:.2} GHz, Linux {}, load average {load} at the start.{note}",
        clock::hz() as f64 / 1e9,
        kernel.trim()
    ))
}
