//! Our iSCSI initiator and libiscsi's `iscsi-perf` on the same tgt, on a unit that answers at once: behind one with a file both
//! would do little but fall asleep and be woken for each I/O. Both sleep in poll(2) while nothing is there, so that CPU time is
//! what an I/O costs.

use super::Reads;
use crate::measure::{Ahead, Measurement, Pinned, Plan, cpu_time, pin_process, take_turns};
use crate::report::{Report, Table};
use anyhow::{Context, Result, bail, ensure};
use block::{Bdev, BlockChannel};
use clock::Cycles;
use hwtests::iscsi_peers::{self as peers, Peer, Setup};
use iscsi::io::{Interest, sleep_on};
use iscsi::{DigestPolicy, IscsiDisk, IscsiParams, Lun};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const INITIATOR: &str = "iqn.2024-01.io.sluice:host";
/// `iscsi-perf` counts in seconds.
const SECONDS: u64 = 1;
/// Bytes and depth.
const SHAPES: [(usize, usize); 3] = [(4096, 1), (4096, 32), (131_072, 8)];

/// One window.
struct Window {
    /// CPU nanoseconds an I/O.
    cpu: f64,
    /// I/Os a second.
    iops: f64,
}

enum Side {
    Sluice(Box<dyn BlockChannel>),
    Libiscsi { url: String },
}

pub(super) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let _ahead = Ahead::enter();
    let mut table = Table::new([
        "read",
        "depth",
        "digests",
        "CPU ns an I/O",
        "CPU ns of libiscsi",
        "ratio of CPU",
        "kIOPS",
        "kIOPS of libiscsi",
    ]);
    for digests in [false, true] {
        let setup = Setup { digests, ..Setup::default() };
        let peer = peers::tgt(setup, peers::free_port()?, tempfile::tempdir()?)?;
        pin_process(peer.id(), plan.client_cpu)?;
        let disk = attach(&peer, digests)?;
        let options = if digests { "?header_digest=crc32c" } else { "" };
        let url = format!("iscsi://{}/{}/{}{options}", peer.portal, peer.target, peers::TGT_NULL_LUN);
        let mut sides = [Side::Sluice(disk.open_channel()?), Side::Libiscsi { url }];
        for (len, depth) in SHAPES {
            let windows = take_turns(plan.windows, &mut sides, |side| side.window(plan, len, depth))?;
            let figure = |side: usize, of: fn(&Window) -> f64| Measurement::new(windows[side].iter().map(of));
            let ratio = windows[0].iter().zip(&windows[1]).map(|(ours, theirs)| ours.cpu / theirs.cpu);
            table.push(vec![
                format!("{} KiB", len / 1024),
                depth.to_string(),
                if digests { "header" } else { "none" }.to_owned(),
                figure(0, |w| w.cpu).show(0),
                figure(1, |w| w.cpu).show(0),
                Measurement::new(ratio).show(2),
                figure(0, |w| w.iops / 1e3).show(1),
                figure(1, |w| w.iops / 1e3).show(1),
            ]);
        }
    }
    report.section("iSCSI initiator against libiscsi");
    report.text(&format!(
        "Rng reads from a unit without medium of one tgt on CPU {}; our initiator in a loop that sleeps, and `iscsi-perf`, in turn on CPU {}; windows of \
         {SECONDS} s, median of {} (range). Debian's libiscsi knows no data digest. The aim is a ratio of 0.5 at most.",
        plan.client_cpu, plan.backend_cpu, plan.windows,
    ));
    report.table(table);
    Ok(())
}

fn attach(peer: &Peer, digests: bool) -> Result<Arc<IscsiDisk>> {
    let mut params =
        IscsiParams::new("bench", INITIATOR, &peer.portal, peer.target, Lun::from_number(peers::TGT_NULL_LUN));
    params.header_digest = if digests { DigestPolicy::Require } else { DigestPolicy::None };
    Ok(IscsiDisk::attach(&params, Arc::new(|_| ()))?)
}

impl Side {
    fn window(&mut self, plan: &Plan, len: usize, depth: usize) -> Result<Window> {
        match self {
            Side::Sluice(channel) => ours(plan, channel.as_mut(), Reads::new(len, depth, peers::LEN)?),
            Side::Libiscsi { url } => theirs(plan, url, len, depth),
        }
    }
}

fn ours(plan: &Plan, channel: &mut dyn BlockChannel, mut reads: Reads) -> Result<Window> {
    let _pinned = Pinned::to(plan.backend_cpu)?;
    let (start, before, mut count) = (Instant::now(), cpu_time(std::process::id())?, 0);
    loop {
        let over = start.elapsed().as_secs() >= SECONDS;
        if over && reads.are_idle() {
            break;
        }
        if !over {
            reads.submit(channel);
        }
        let (events, ended) = reads.poll(channel)?;
        count += ended;
        if events == 0 {
            let interest = channel.wake_fd().map(|fd| Interest { fd, writable: false });
            sleep_on(interest.as_slice(), channel.deadline().since(Cycles::now()).to_duration());
        }
    }
    let cpu = cpu_time(std::process::id())? - before;
    Ok(Window { cpu: cpu.as_nanos() as f64 / count as f64, iops: count as f64 / start.elapsed().as_secs_f64() })
}

fn theirs(plan: &Plan, url: &str, len: usize, depth: usize) -> Result<Window> {
    // The shell tells the CPU time, as "cpu USER SYSTEM".
    let script = "TIMEFORMAT='cpu %3U %3S'; time taskset -c \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash", &plan.backend_cpu.to_string(), "iscsi-perf", "-i", INITIATOR, "-r"]);
    command.args(["-m", &depth.to_string(), "-b", &(len / 512).to_string(), "-t", &SECONDS.to_string(), url]);
    let output = command.output().context("run iscsi-perf")?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "iscsi-perf failed: {said}{errors}");
    // The last of "iops average 35034 (137 MB/s)" is that of the whole run.
    let average = said.rsplit("iops average ").next().and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    let cpu: Vec<f64> = errors
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|seconds| seconds.parse().ok())
        .collect();
    let (Some(iops), &[user, system]) = (average, cpu.as_slice()) else { bail!("iscsi-perf said {said}{errors}") };
    Ok(Window { cpu: (user + system) * 1e9 / (iops * SECONDS as f64), iops })
}
