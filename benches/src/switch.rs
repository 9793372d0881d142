//! The switch against OVS-DPDK: from a pcap source to a null sink on one core, in cycles a packet; and upcalls a second.

mod hop;
pub(crate) mod instructions;
mod ours;
mod ovs;
mod traffic;
mod upcalls;

use crate::measure::{Measurement, Plan};
use crate::report::{Bars, Report, Table};
use anyhow::Result;
use dpdk::Mempool;
use ours::{Cost, Sluice};
use ovs::Ovs;
use std::path::Path;
pub(crate) use traffic::write_stations;
use traffic::{Load, Popularity};

/// Flows and masks of each load.
const LOADS: [(usize, usize); 12] = [
    (1, 1),
    (1000, 1),
    (10_000, 1),
    (100_000, 1),
    (1_000_000, 1),
    (10_000, 2),
    (10_000, 4),
    (10_000, 8),
    (10_000, 16),
    (10_000, 32),
    (10_000, 64),
    (100_000, 32),
];

/// What flows do before the output, and how many there are.
const REWRITES: [(&str, &str, usize); 4] = [
    ("MAC addresses, TTL", ROUTE, 1000),
    ("MAC addresses, TTL", ROUTE, 10_000),
    ("MAC and IP address, TTL, port", TRANSLATE, 10_000),
    ("VLAN tag pushed", "push_vlan(vid=10,pcp=0),", 10_000),
];
const ROUTE: &str = "set(eth(src=02:00:00:00:00:03,dst=02:00:00:00:00:04)),set(ipv4(ttl=63)),";
const TRANSLATE: &str =
    "set(eth(src=02:00:00:00:00:03,dst=02:00:00:00:00:04)),set(ipv4(src=192.0.2.1,ttl=63)),set(udp(src=4096)),";

/// DPDK in this process, with its memory: it starts once.
pub(crate) struct Datapath {
    sluice: Sluice,
    _hugepages: Hugepages,
}

impl Datapath {
    /// Starts it, unless it runs.
    pub(crate) fn started<'a>(datapath: &'a mut Option<Datapath>, plan: &Plan) -> Result<&'a Datapath> {
        if datapath.is_none() {
            let hugepages = Hugepages::reserve(1024)?;
            *datapath = Some(Datapath { sluice: Sluice::start(plan)?, _hugepages: hugepages });
        }
        Ok(datapath.as_ref().expect("just made"))
    }
}

pub(crate) fn run(plan: &Plan, datapath: &Datapath, report: &mut Report) -> Result<()> {
    let sides = Sides { plan, peer: Ovs::start(plan)?, sluice: &datapath.sluice, directory: tempfile::tempdir()? };
    sides.look_ups(report)?;
    sides.rewrites(report)?;
    upcalls::run(plan, sides.sluice, &sides.peer, report)
}

/// Both sides, from a pcap source to a null sink.
struct Sides<'a> {
    plan: &'a Plan,
    peer: Ovs,
    sluice: &'a Sluice,
    directory: tempfile::TempDir,
}

/// One load on both sides, in cycles a packet.
struct Figures {
    popularity: Popularity,
    floor: Measurement,
    ours: Measurement,
    emc: Measurement,
    dpcls: Measurement,
}

impl Figures {
    /// Above the devices alone: ours, and the better way of the peer.
    fn above(&self) -> [f64; 2] {
        let best = self.emc.median().min(self.dpcls.median());
        [self.ours.median(), best].map(|figure| figure - self.floor.median())
    }

    fn ratio(&self) -> f64 {
        let [ours, best] = self.above();
        best / ours
    }

    fn cells(&self) -> impl Iterator<Item = String> {
        let figures = [&self.floor, &self.ours, &self.emc, &self.dpcls].map(|figure| figure.show(0));
        figures.into_iter().chain([format!("{:.1}", self.ratio())])
    }
}

impl Sides<'_> {
    /// Both ways of choosing flows, and how many megaflows a cache of ours takes in a second.
    fn measure(&self, load: &Load) -> Result<([Figures; 2], f64)> {
        let popularities = [Popularity::Uniform, Popularity::Zipf];
        let [uniform, zipf] = popularities.map(|popularity| load.write_pcap(self.directory.path(), popularity));
        let pcaps = [uniform?, zipf?];
        let Cost { cycles: [uniform, zipf], insertions } = self.sluice.measure(self.plan, &pcaps, load)?;
        let uniform = self.beside(load, Popularity::Uniform, &pcaps[0], uniform);
        let zipf = self.beside(load, Popularity::Zipf, &pcaps[1], zipf);
        pcaps.iter().try_for_each(std::fs::remove_file)?;
        Ok(([uniform?, zipf?], insertions))
    }

    /// What the devices alone and the peer cost beside ours.
    fn beside(&self, load: &Load, popularity: Popularity, pcap: &Path, ours: Measurement) -> Result<Figures> {
        let floor = self.sluice.floor(self.plan, pcap)?;
        let [emc, dpcls] = self.peer.measure(self.plan, pcap, load)?;
        let figures = Figures { popularity, floor, ours, emc, dpcls };
        let [ours, best] = figures.above();
        let Load { flows, masks, rewrite } = load;
        let (traffic, ratio) = (popularity.name(), figures.ratio());
        eprintln!(
            "{flows} flows, {masks} masks, {traffic}, actions {rewrite}output: {ours:.0} cycles against {best:.0}, {ratio:.1}"
        );
        Ok(figures)
    }

    fn look_ups(&self, report: &mut Report) -> Result<()> {
        let mut table = Table::new(
            ["flows", "masks", "traffic"].into_iter().chain(FIGURES).chain(["thousand insertions a second"]),
        );
        let mut ratios = Bars::new("switch", "Cycles a packet above the devices alone", "times fewer than OVS-DPDK");
        let mut cycles = Bars::new("switch-cycles", "The same in cycles (Sluice against OVS-DPDK)", "cycles a packet");
        for (flows, masks) in LOADS {
            let (figures, insertions) = self.measure(&Load { flows, masks, rewrite: "" })?;
            for figures in figures {
                let traffic = figures.popularity.name();
                let insertions = if flows < 1000 { "-".to_owned() } else { format!("{:.0}", insertions / 1e3) };
                let load = [flows.to_string(), masks.to_string(), traffic.to_owned()];
                table.push(load.into_iter().chain(figures.cells()).chain([insertions]).collect());
                let group = format!("{flows}/{masks}");
                ratios.push(&group, traffic, Measurement::new([figures.ratio()]));
                for (side, cost) in ["Sluice", "OVS-DPDK"].iter().zip(figures.above()) {
                    cycles.push(&group, &format!("{side}, {traffic}"), Measurement::new([cost]));
                }
            }
        }
        report.section("Flow cache against OVS-DPDK");
        report.text(&format!(
            "64-byte UDP packets from DPDK's net_pcap (infinite_rx) to net_null on CPU {} alone, real-time priority; cycles a packet, all \
             included: median of {} windows (range). A flow for each destination address, the flows dealt to the masks in turn (prefixes \
             of the source address); of a million flows a round of 180,000 packets goes round. \"Devices alone\" is what both devices \
             cost with nothing between them; the ratio is of the cycles above that, OVS's better way against ours: above 1 in our \
             favour. EMC: as OVS-DPDK is delivered (one in a hundred is inserted); dpcls: the EMC switched off. The aim: 2 up to 10,000 \
             flows, 3 at 100,000 and from 8 masks on. Insertions: megaflows that one cache takes; the aim is 500 thousand a second.",
            self.plan.backend_cpu, self.plan.windows,
        ));
        report.table(table);
        report.bars(ratios)?;
        report.bars(cycles)
    }

    fn rewrites(&self, report: &mut Report) -> Result<()> {
        let mut table = Table::new(["changed", "flows", "traffic"].into_iter().chain(FIGURES));
        let mut bars =
            Bars::new("switch-rewrite", "Changing headers: cycles above the devices alone", "cycles a packet");
        for (name, rewrite, flows) in REWRITES {
            let (figures, _) = self.measure(&Load { flows, masks: 1, rewrite })?;
            for figures in figures {
                let traffic = figures.popularity.name();
                let load = [name.to_owned(), flows.to_string(), traffic.to_owned()];
                table.push(load.into_iter().chain(figures.cells()).collect());
                for (side, cost) in ["Sluice", "OVS-DPDK"].iter().zip(figures.above()) {
                    bars.push(&format!("{name} ({flows})"), &format!("{side}, {traffic}"), Measurement::new([cost]));
                }
            }
        }
        report.section("Changing headers, against OVS-DPDK");
        report.text("As before, with one mask; each flow changes its packets before they go out, with the same actions on both sides.");
        report.table(table);
        report.bars(bars)
    }
}

/// What stands in a table for [`Figures`].
const FIGURES: [&str; 5] = ["devices alone", "Sluice", "OVS, EMC", "OVS, dpcls", "ratio"];

pub(crate) fn hops(plan: &Plan, datapath: &Datapath, report: &mut Report) -> Result<()> {
    let sluice = &datapath.sluice;
    let mempool = Mempool::new(&sluice.eal, "hop", hop::BUFFERS, None)?;
    let mut table = Table::new(["layout", "Sluice", "testpmd", "ratio"]);
    for (name, layout) in hop::LAYOUTS {
        let (ours, testpmd) = (hop::ours(plan, sluice, &mempool, layout)?, hop::testpmd(plan, layout)?);
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
        let _ = std::fs::write(HUGEPAGES, self.0.trim()); // the pages stay reserved, which harms nothing here
    }
}
