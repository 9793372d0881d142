//! Upcalls a second: how fast flows of unknown stations are decided and installed.

use super::ours::Sluice;
use super::ovs::Ovs;
use super::traffic::write_stations;
use crate::measure::{Measurement, Plan};
use crate::report::{Report, Table};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// Flows of a run: fewer than either side has room for.
const STATIONS: usize = 60_000;
const FLOWS_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(plan: &Plan, sluice: &Sluice, peer: &Ovs, report: &mut Report) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let pcap = directory.path().join("stations.pcap");
    write_stations(&pcap, STATIONS)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..plan.windows {
        ours.push(sluice.upcalls(&pcap, STATIONS)? / 1e3);
        theirs.push(peer.upcalls(&pcap, STATIONS)? / 1e3);
    }
    let (ours, theirs) = (Measurement::new(ours), Measurement::new(theirs));
    let mut table = Table::new(["thousand upcalls a second", "Sluice", "OVS-DPDK", "ratio"]);
    let ratio = format!("{:.1}", ours.median() / theirs.median());
    table.push(vec![format!("{STATIONS} new flows"), ours.show(0), theirs.show(0), ratio]);
    report.section("Upcalls a second, against OVS-DPDK");
    report.text(&format!(
        "Packets to {STATIONS} unknown stations come as fast as the source gives them, round after round, into a bridge with \
         one other port (OVS: NORMAL), until each has its megaflow: flows a second between a tenth and nine tenths of them, median of {} \
         runs (range). OVS decides on the poll core; ours leaves it, so the upcall handler has the other core beside it.",
        plan.windows,
    ));
    report.table(table);
    Ok(())
}

/// How fast a count grows, from a tenth to nine tenths of `all`, a second.
pub(super) fn rate_to(all: usize, count: impl Fn() -> Result<usize>) -> Result<f64> {
    let deadline = Instant::now() + FLOWS_TIMEOUT;
    let mut first = None;
    loop {
        let (counted, now) = (count()?, Instant::now());
        if counted >= all / 10 {
            let (start, since) = *first.get_or_insert((counted, now));
            if counted >= all / 10 * 9 && now > since {
                return Ok((counted - start) as f64 / (now - since).as_secs_f64());
            }
        }
        ensure!(now < deadline, "{counted} of {all} flows after {FLOWS_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
