//! `sluiced` and `qemu-storage-daemon` under the same client.

use crate::backend::{Backend, Disk, DiskKind, Sluice, StorageDaemon, disk_file};
use crate::client::Client;
use crate::measure::{Ahead, Measurement, Pinned, Plan, take_turns};
use crate::report::{Bars, Report, Table};
use crate::request::Kind;
use crate::window::{Cell, Demand, Window, ratio, take};
use anyhow::{Context, Result};
use std::path::Path;

const DEPTHS: [usize; 3] = [1, 32, 128];

/// One row of the report.
struct Case<'a> {
    disk: &'a str,
    ring: &'static str,
    kind: Kind,
    depth: usize,
}

pub(crate) fn run(plan: &Plan, directory: &Path, report: &mut Report) -> Result<()> {
    let tmpfs = disk_file(Path::new("/dev/shm"))?;
    let file = disk_file(directory)?;
    let disks = [
        Disk::new("null", DiskKind::Null),
        Disk::new("ram", DiskKind::Ram(tmpfs.path().into())),
        Disk::new("file", DiskKind::File(file.path().into())),
    ];
    let sluice = Sluice::start(plan, &disks)?;
    let peer = StorageDaemon::start(plan, &disks)?;
    let _pinned = Pinned::to(plan.client_cpu)?;
    let mut results = Results::new();
    for disk in &disks {
        let on_file = matches!(disk.kind, DiskKind::File(_));
        let _ahead = (!on_file).then(Ahead::enter);
        for (ring, packed, depths) in [("split", false, &DEPTHS[..]), ("packed", true, &DEPTHS[1..2])] {
            let mut sides: Vec<(&dyn Backend, Client)> = Vec::new();
            for backend in [&sluice as &dyn Backend, &peer] {
                if let Some(mut client) = Client::connect(&backend.socket(&disk.name), packed)? {
                    client.fill()?;
                    if on_file {
                        // As a guest does; a core of its own would go on spinning while the kernel needs it.
                        client.sleep_when_idle()?;
                    }
                    sides.push((backend, client));
                }
            }
            for kind in [Kind::Read, Kind::Write] {
                for &depth in depths {
                    let demand = Demand { kind, depth, span: plan.window };
                    let window = |(backend, client): &mut (&dyn Backend, Client)| take(*backend, client, demand);
                    // A first window, of which nothing is kept.
                    let mut windows = take_turns(plan.windows + 1, &mut sides, window)?;
                    for of_side in &mut windows {
                        of_side.remove(0);
                    }
                    let case = Case { disk: &disk.name, ring, kind, depth };
                    results.add(&case, &windows).with_context(|| format!("{} {ring}", disk.name))?;
                }
            }
        }
    }
    results.write(plan, report)
}

struct Results {
    summary: Table,
    latency: Table,
    iops: Bars,
    cpu: Bars,
}

impl Results {
    fn new() -> Results {
        let case = ["disk", "ring", "request", "depth"];
        let summary =
            ["kIOPS", "kIOPS of the peer", "CPU ns a request", "of it busy", "CPU ns of the peer", "ratio of IOPS"];
        let latency = ["p50 µs", "p50 µs of the peer", "p99 µs", "p99 µs of the peer"];
        Results {
            summary: Table::new(case.into_iter().chain(summary).chain(["ratio of requests a CPU second"])),
            latency: Table::new(case.into_iter().chain(latency)),
            iops: Bars::new("peers-iops", "Requests a second, split, by depth", "times those of qemu-storage-daemon"),
            cpu: Bars::new("peers-cpu", "Requests a CPU second, split, by depth", "times those of qemu-storage-daemon"),
        }
    }

    /// `windows` are those of `sluiced` and, where it can do it, of the peer.
    fn add(&mut self, case: &Case, windows: &[Vec<Window>]) -> Result<()> {
        let ours = windows.first().context("sluiced does not offer this ring")?;
        let cell = Cell::of(ours);
        let peer = windows.get(1).map(|windows| (Cell::of(windows), windows));
        let head = [case.disk.to_owned(), case.ring.to_owned(), case.kind.name().to_owned(), case.depth.to_string()];
        let of_peer = |show: &dyn Fn(&Cell, &[Window]) -> String| {
            peer.as_ref().map_or("not offered".to_owned(), |(cell, windows)| show(cell, windows))
        };
        let kilo = |figure: &Measurement| figure.scaled(1e-3).show(1);
        let summary = [
            kilo(&cell.iops),
            of_peer(&|peer, _| kilo(&peer.iops)),
            cell.cpu.show(0),
            cell.busy.show(0),
            of_peer(&|peer, _| peer.cpu.show(0)),
            of_peer(&|_, peer| ratio(ours, peer, |w| w.iops).show(2)),
            of_peer(&|_, peer| ratio(peer, ours, |w| w.cpu).show(2)),
        ];
        let latency = [
            cell.p50.show(1),
            of_peer(&|peer, _| peer.p50.show(1)),
            cell.p99.show(1),
            of_peer(&|peer, _| peer.p99.show(1)),
        ];
        self.summary.push(head.iter().cloned().chain(summary).collect());
        self.latency.push(head.into_iter().chain(latency).collect());
        if let ("split", Some((_, peer))) = (case.ring, peer) {
            let (group, depth) = (format!("{} {}", case.disk, case.kind.name()), case.depth.to_string());
            self.iops.push(&group, &depth, ratio(ours, peer, |w| w.iops));
            self.cpu.push(&group, &depth, ratio(peer, ours, |w| w.cpu));
        }
        Ok(())
    }

    fn write(self, plan: &Plan, report: &mut Report) -> Result<()> {
        report.section("Against qemu-storage-daemon");
        report.text(&format!(
            "4 KiB requests at random places from one client (rust-vmm's front-end, a closed loop; it polls, but for `file` it sleeps) on CPU {}; \
             each backend with one worker or I/O thread, all its threads on CPU {}; windows of {:?} of both in turn, median of \
             {} (range). CPU time is that of all threads of the process, spinning included; \"busy\" is the part that \
             `sluiced` spent in turns that did work. The ratios are of windows of the same turn, above 1 in our favour. \
             `null`: `null-co` for the peer; `ram`: `bdev_malloc` against a file on tmpfs; `file`: io_uring with O_DIRECT on \
             both. The aim is a ratio of 5 in requests a CPU second on `null` at depth 32.",
            plan.client_cpu, plan.backend_cpu, plan.window, plan.windows,
        ));
        report.table(self.summary);
        report.text("Latency as the client sees it, from submission to answer:");
        report.table(self.latency);
        report.bars(self.iops)?;
        report.bars(self.cpu)
    }
}
