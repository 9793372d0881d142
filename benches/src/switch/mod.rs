//! The flow cache against OVS-DPDK: from a pcap source to a null sink on one core, in cycles a packet.

mod hop;
mod ours;
mod ovs;
mod traffic;

use crate::measure::{Measurement, Plan};
use crate::report::{Bars, Report, Table};
use anyhow::Result;
use ours::{Cost, Sluice};
use ovs::{Cache, Ovs};
use traffic::{Load, Popularity};

/// Flows and masks of each load.
const LOADS: [(usize, usize); 9] =
    [(1, 1), (1000, 1), (10_000, 1), (100_000, 1), (10_000, 2), (10_000, 8), (10_000, 16), (10_000, 32), (10_000, 64)];

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let _hugepages = Hugepages::reserve(1024)?;
    let sluice = Sluice::start(plan)?;
    hops(plan, &sluice, report)?;
    let peer = Ovs::start(plan)?;
    let directory = tempfile::tempdir()?;
    let head = ["flows", "masks", "traffic", "devices alone", "Sluice", "OVS, EMC", "OVS, dpcls"];
    let mut table = Table::new(head.into_iter().chain(["ratio", "thousand insertions a second"]));
    let mut bars = Bars::new("switch", "Cycles a packet above the devices alone", "times fewer than OVS-DPDK");
    for (flows, masks) in LOADS {
        let load = Load { flows, masks };
        let pcaps =
            [Popularity::Uniform, Popularity::Zipf].map(|popularity| load.write_pcap(directory.path(), popularity));
        let [uniform, zipf] = pcaps;
        let pcaps = [uniform?, zipf?];
        let Cost { cycles, insertions } = sluice.measure(plan, &pcaps, &load)?;
        for ((popularity, pcap), cycles) in ["uniform", "Zipf"].iter().zip(&pcaps).zip(cycles) {
            let floor = sluice.floor(plan, pcap)?;
            let [emc, dpcls] = [Cache::Emc, Cache::Megaflow].map(|cache| peer.measure(plan, pcap, cache, &load));
            let (emc, dpcls) = (emc?, dpcls?);
            // Of the peer's two ways the better one counts.
            let best = emc.median().min(dpcls.median());
            let ratio = (best - floor.median()) / (cycles.median() - floor.median());
            eprintln!(
                "{flows} flows, {masks} masks, {popularity}: {:.0} cycles, {ratio:.1} times fewer",
                cycles.median()
            );
            let figures = [&floor, &cycles, &emc, &dpcls].map(|figure| figure.show(0));
            let load = [flows.to_string(), masks.to_string(), (*popularity).to_owned()];
            let rates = [format!("{ratio:.1}"), format!("{:.0}", insertions / 1e3)];
            table.push(load.into_iter().chain(figures).chain(rates).collect());
            bars.push(&format!("{flows}/{masks}"), popularity, Measurement::new([ratio]));
        }
        pcaps.iter().try_for_each(std::fs::remove_file)?;
    }
    report.section("Flow cache against OVS-DPDK");
    report.text(&format!(
        "64-byte UDP packets from DPDK's net_pcap (infinite_rx) to net_null on CPU {} alone, real-time priority; cycles a packet, all \
         included: median of {} windows (range). A flow for each destination address, the flows dealt to the masks in turn (prefixes of the \
         source address). \"Devices alone\" is what both devices cost with nothing between them; the ratio is of the cycles above that, \
         OVS's better way against ours: above 1 in our favour. EMC: as OVS-DPDK is delivered (one in a hundred is inserted); dpcls: the EMC \
         switched off. The aim: 2 up to 10,000 flows, 3 at 100,000 and from 8 masks on. Insertions: megaflows that one \
         cache takes; the aim is 500 thousand a second.",
        plan.backend_cpu, plan.windows,
    ));
    report.table(table);
    report.bars(bars)
}

fn hops(plan: &Plan, sluice: &Sluice, report: &mut Report) -> Result<()> {
    let mut table = Table::new(["layout", "Sluice", "testpmd", "ratio"]);
    for (name, layout) in hop::LAYOUTS {
        let (ours, testpmd) = (hop::ours(plan, sluice, layout)?, hop::testpmd(plan, layout)?);
        let ratio = testpmd.median() / ours.median();
        table.push(vec![name.to_owned(), ours.show(0), testpmd.show(0), format!("{ratio:.2}")]);
    }
    report.section("A hop over vhost-user, against testpmd");
    report.text(&format!(
        "DPDK's virtio-user driver and the back-end, ours or testpmd's net_vhost, on CPU {} alone, real-time priority; 512 packets of 64 \
         bytes go round. Cycles a packet and hop, the driver's part included: median of {} windows (range). The ratio is the \
         peer's cycles to ours: above 1 in our favour.",
        plan.backend_cpu, plan.windows,
    ));
    report.table(table);
    Ok(())
}

/// Hugepages for both sides, while it lives.
struct Hugepages(String);

const HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl Hugepages {
    fn reserve(pages: usize) -> Result<Hugepages> {
        let before = std::fs::read_to_string(HUGEPAGES)?;
        if before.trim().parse::<usize>()? < pages {
            std::fs::write(HUGEPAGES, pages.to_string())?;
        }
        Ok(Hugepages(before))
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        drop(std::fs::write(HUGEPAGES, self.0.trim()));
    }
}
