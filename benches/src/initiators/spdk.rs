//! Our NVMe/TCP initiator and SPDK's `spdk_nvme_perf` on the same target, for users who have SPDK: both poll on one core.

use super::Reads;
use crate::measure::{Ahead, Measurement, Pinned, Plan, take_turns};
use crate::report::{Report, Table};
use anyhow::{Context, Result, ensure};
use block::BlockChannel;
use nvme::target::{Access, MemoryStore, Namespace, Server, Target, TargetConfig};
use nvme::{AttachParams, NvmeController};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const NQN: &str = "nqn.2024-01.io.sluice:bench";
const DISK_LEN: usize = 64 << 20;
/// `spdk_nvme_perf` counts in seconds.
const SECONDS: u64 = 1;
/// Bytes and depth.
const SHAPES: [(usize, usize); 4] = [(4096, 1), (4096, 32), (4096, 128), (131_072, 8)];
/// Where the program is below a directory of binaries, a build or a source tree; the last is what it was called before 22.01.
const PLACES: [&str; 4] = ["spdk_nvme_perf", "bin/spdk_nvme_perf", "build/bin/spdk_nvme_perf", "build/examples/perf"];

enum Side {
    Sluice(Box<dyn BlockChannel>),
    Spdk { program: PathBuf, target: SocketAddr, digests: bool },
}

/// Without the directory of SPDK's binaries there is nothing to measure against.
pub(super) fn run(plan: &Plan, spdk: Option<&Path>, report: &mut Report) -> Result<()> {
    report.section("NVMe/TCP initiator against SPDK's");
    let Some(directory) = spdk else {
        report.text("Skipped: `--spdk DIR` says where SPDK's binaries are.");
        return Ok(());
    };
    let program = find(directory)?;
    let server = serve(plan)?;
    let _ahead = Ahead::enter();
    let mut table = Table::new(["read", "depth", "digests", "kIOPS", "kIOPS of SPDK", "ratio of IOPS"]);
    for digests in [false, true] {
        let controller = attach(server.address(), digests)?;
        let channel = controller.namespaces()[0].1.open_channel()?;
        let theirs = Side::Spdk { program: program.clone(), target: server.address(), digests };
        let mut sides = [Side::Sluice(channel), theirs];
        for (len, depth) in SHAPES {
            let iops = take_turns(plan.windows, &mut sides, |side| side.window(plan, len, depth))?;
            let ratio = iops[0].iter().zip(&iops[1]).map(|(ours, theirs)| ours / theirs);
            let figure = |side: usize| Measurement::new(iops[side].iter().copied()).scaled(1e-3).show(1);
            table.push(vec![
                format!("{} KiB", len / 1024),
                depth.to_string(),
                if digests { "header and data" } else { "none" }.to_owned(),
                figure(0),
                figure(1),
                Measurement::new(ratio).show(2),
            ]);
        }
    }
    report.text(&format!(
        "Rng reads from our own target in memory, on CPU {}; our initiator in a loop that polls, and `spdk_nvme_perf` ({}), in turn on \
         CPU {}; windows of {SECONDS} s, median of {} (range). Where both say the same, the target is the limit.",
        plan.client_cpu,
        program.display(),
        plan.backend_cpu,
        plan.windows,
    ));
    report.table(table);
    Ok(())
}

fn find(directory: &Path) -> Result<PathBuf> {
    let found = PLACES.iter().map(|place| directory.join(place)).find(|path| path.is_file());
    found.with_context(|| format!("--spdk {}: got none of {PLACES:?}, expected one below it", directory.display()))
}

/// The target's thread is on the core of the one that starts it.
fn serve(plan: &Plan) -> Result<Server> {
    let _pinned = Pinned::to(plan.client_cpu)?;
    let target = Target::new(TargetConfig::new(NQN), 1);
    let (store, uuid) = (Arc::new(MemoryStore::new(DISK_LEN)), uuid::Uuid::from_u128(1));
    target.set_namespace(1, Namespace { store, block_size: 512, access: Access::ReadWrite, uuid });
    Ok(Server::start(target, "127.0.0.1:0")?)
}

fn attach(target: SocketAddr, digests: bool) -> Result<NvmeController> {
    let mut params = AttachParams::new("bench", target, NQN);
    (params.hdgst, params.ddgst) = (digests, digests);
    Ok(NvmeController::attach(&params, nvme::no_events())?)
}

impl Side {
    /// I/Os a second.
    fn window(&mut self, plan: &Plan, len: usize, depth: usize) -> Result<f64> {
        match self {
            Side::Sluice(channel) => ours(plan, channel.as_mut(), Reads::new(len, depth, DISK_LEN as u64)?),
            Side::Spdk { program, target, digests } => {
                theirs(Command::new(program).args(arguments(*target, plan.backend_cpu, len, depth, *digests)))
            }
        }
    }
}

fn ours(plan: &Plan, channel: &mut dyn BlockChannel, mut reads: Reads) -> Result<f64> {
    let _pinned = Pinned::to(plan.backend_cpu)?;
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed().as_secs() < SECONDS {
        reads.submit(channel);
        count += reads.poll(channel)?.1;
    }
    let iops = count as f64 / start.elapsed().as_secs_f64();
    while !reads.are_idle() {
        reads.poll(channel)?;
    }
    Ok(iops)
}

/// Without hugepages: nothing here is reached by a device.
fn arguments(target: SocketAddr, cpu: usize, len: usize, depth: usize, digests: bool) -> Vec<String> {
    let transport = format!("trtype:TCP adrfam:IPv4 traddr:{} trsvcid:{} subnqn:{NQN}", target.ip(), target.port());
    let values = [
        ("-q", depth.to_string()),
        ("-o", len.to_string()),
        ("-w", "randread".to_owned()),
        ("-t", SECONDS.to_string()),
        ("-c", format!("[{cpu}]")),
        ("-s", "512".to_owned()),
        ("-r", transport),
    ];
    let flags = ["--no-huge"].into_iter().chain(digests.then_some("-H")).chain(digests.then_some("-I"));
    values.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).chain(flags.map(str::to_owned)).collect()
}

fn theirs(command: &mut Command) -> Result<f64> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} failed: {said}{errors}");
    total_iops(&said).with_context(|| format!("{command:?} gave no total: {said}{errors}"))
}

/// The first figure of the line `Total : IOPS MiB/s Average min max`, which comes last.
fn total_iops(said: &str) -> Option<f64> {
    let (name, figures) = said.lines().rev().find(|line| line.starts_with("Total"))?.split_once(':')?;
    (name.trim_end() == "Total").then(|| figures.split_whitespace().next()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// As SPDK's documentation shows it.
    const SAID: &str = "\
Initializing NVMe Controllers
Attached to NVMe over Fabrics controller at 127.0.0.1:4420: nqn.2024-01.io.sluice:bench
Associating TCP (addr:127.0.0.1 subnqn:nqn.2024-01.io.sluice:bench) NSID 1 with lcore 1
Initialization complete. Launching workers.
========================================================
                                                                                                               Latency(us)
Device Information                                                       :       IOPS      MiB/s    Average        min        max
TCP (addr:127.0.0.1 subnqn:nqn.2024-01.io.sluice:bench) NSID 1 from core  1:  652439.48    2548.59      49.03       5.12    1617.14
========================================================
Total                                                                    :  652439.48    2548.59      49.03       5.12    1617.14

";

    #[test]
    fn the_total_is_found_and_nothing_else_is_taken_for_it() {
        assert_eq!(total_iops(SAID), Some(652_439.48));
        let (before, _) = SAID.split_once("Total").unwrap();
        for wrong in ["", before, "Total : nan?", "Total IOs: 12", "Total"] {
            assert_eq!(total_iops(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_argument_is_what_spdk_nvme_perf_takes() {
        let target = "127.0.0.1:4420".parse().unwrap();
        let plain = arguments(target, 1, 4096, 32, false).join(" ");
        let transport = "-r trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.2024-01.io.sluice:bench";
        assert_eq!(plain, format!("-q 32 -o 4096 -w randread -t 1 -c [1] -s 512 {transport} --no-huge"));
        assert_eq!(arguments(target, 1, 4096, 32, true).join(" "), format!("{plain} -H -I"));
    }

    #[test]
    fn the_program_is_found_and_run_and_a_failure_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let missing = find(directory.path()).unwrap_err().to_string();
        assert!(missing.contains("--spdk") && missing.contains("build/bin/spdk_nvme_perf"), "{missing}");
        let bin = directory.path().join("build/bin");
        std::fs::create_dir_all(&bin).unwrap();
        let place = |script: &str| {
            let path = bin.join("spdk_nvme_perf");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        place(&format!("cat <<'END'\n{SAID}END"));
        let program = find(directory.path()).unwrap();
        assert_eq!(theirs(&mut Command::new(&program)).unwrap(), 652_439.48);
        place("echo 'no free hugepages' >&2; exit 1");
        let failed = theirs(&mut Command::new(&program)).unwrap_err().to_string();
        assert!(failed.contains("no free hugepages"), "{failed}");
    }
}
