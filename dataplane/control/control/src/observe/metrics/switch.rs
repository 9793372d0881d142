//! Metrics of the switch: its ports, the flow caches, captures.

use super::{Labels, counters, gauges};
use crate::Control;
use crate::network::flow::offload_totals;
use crate::network::port;
use ::port::Counters;
use api::flow::OffloadInfo;
use l2::{PortReport, Switch, WorkerStats};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt;
use std::sync::atomic::Ordering;

/// What a port could not receive or send, among its counters.
const LOSSES: [&str; 6] = ["rx_no_buffer", "rx_invalid", "tx_full", "tx_down", "tx_no_buffer", "tx_invalid"];

/// Writes the metrics of the switch; nothing where there is no switch.
pub(super) fn encode(control: &Control, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let Some(switch) = control.network.switching.get() else { return Ok(()) };
    ports(encoder, &switch.ports())?;
    caches(encoder, &switch)?;
    offload(encoder, &offload_totals(&control.network))?;
    captures(control, encoder)
}

fn label(port: &str) -> Labels<1> {
    [("port", port.to_owned())]
}

fn ports(encoder: &mut DescriptorEncoder, ports: &[PortReport]) -> fmt::Result {
    let counted: Vec<Counters> = ports.iter().map(|report| port::counters(&*report.port)).collect();
    let each = |value: fn(&Counters) -> u64| {
        ports.iter().zip(&counted).map(move |(report, counted)| (label(&report.name), value(counted)))
    };
    let link = ports.iter().map(|report| (label(&report.name), u64::from(report.port.info().link_up)));
    gauges(encoder, "port_up", "Whether packets can come and go", link)?;
    counters(encoder, "port_receive_packets", "Packets received", None, each(|c| c.rx_packets))?;
    counters(encoder, "port_receive", "Bytes received", Some(Unit::Bytes), each(|c| c.rx_bytes))?;
    counters(encoder, "port_transmit_packets", "Packets sent", None, each(|c| c.tx_packets))?;
    counters(encoder, "port_transmit", "Bytes sent", Some(Unit::Bytes), each(|c| c.tx_bytes))?;
    let upcalls = ports.iter().map(|report| (label(&report.name), report.path.upcalls));
    counters(encoder, "port_upcalls", "Packets for which the translation was asked", None, upcalls)?;
    let drops = ports.iter().zip(&counted).flat_map(|(report, counted)| {
        let own = counted.named().filter(|(name, _)| LOSSES.contains(name));
        let path = report.path.named().filter(|(name, _)| *name != "upcalls");
        reasons(report, own.chain(path))
    });
    let help = "Packets that were not received, not sent, or dropped on their way from the port, by reason";
    counters(encoder, "port_drops", help, None, drops)?;
    let bridge = ports.iter().flat_map(|report| reasons(report, report.drops.iter().copied()));
    let help = "Why the bridge decided to drop packets of the port; port_drops counts them as flow_drop";
    counters(encoder, "port_bridge_drops", help, None, bridge)
}

/// Counts of a port, each under the name of its reason.
fn reasons(
    report: &PortReport,
    counts: impl Iterator<Item = (&'static str, u64)>,
) -> impl Iterator<Item = (Labels<2>, u64)> {
    counts.map(|(reason, count)| ([("port", report.name.clone()), ("reason", reason.to_owned())], count))
}

fn caches(encoder: &mut DescriptorEncoder, switch: &Switch) -> fmt::Result {
    let stats = switch.worker_stats();
    let each = |value: fn(&WorkerStats) -> u64| {
        stats.iter().enumerate().map(move |(worker, stats)| ([("worker", worker.to_string())], value(stats)))
    };
    let hits = stats.iter().enumerate().flat_map(|(worker, stats)| {
        let WorkerStats { hits_mark, hits_exact, hits_signature, hits_megaflow, .. } = *stats;
        [("mark", hits_mark), ("exact", hits_exact), ("signature", hits_signature), ("megaflow", hits_megaflow)]
            .map(|(tier, hits)| ([("worker", worker.to_string()), ("tier", tier.to_owned())], hits))
    });
    counters(encoder, "flow_cache_hits", "Packets that the flow cache answered, by its tier", None, hits)?;
    counters(encoder, "flow_cache_misses", "Packets that no tier answered", None, each(|s| s.misses))?;
    let help = "Flows that found no room in the cache";
    counters(encoder, "flow_cache_not_installed", help, None, each(|s| s.not_installed))?;
    gauges(encoder, "flow_cache_megaflows", "Megaflows in the worker's cache", each(|s| s.flows))?;
    gauges(encoder, "flow_cache_masks", "Different masks among them", each(|s| s.masks))?;
    gauges(encoder, "flow_parked", "Flows whose packets wait for the translation", each(|s| s.parked))?;
    let (help, kind) = ("Megaflows of all workers, each counted once", MetricType::Gauge);
    let family = encoder.encode_descriptor("switch_megaflows", help, None, kind)?;
    ConstGauge::new(switch.megaflows() as u64).encode(family)
}

fn offload(encoder: &mut DescriptorEncoder, info: &OffloadInfo) -> fmt::Result {
    let OffloadInfo { packets, bytes, insertions, insertion_us, evictions, aged, full, dropped, lost, .. } = *info;
    let (help, kind) = ("Flows that hardware does", MetricType::Gauge);
    ConstGauge::new(info.flows).encode(encoder.encode_descriptor("offload_flows", help, None, kind)?)?;
    let help = "Flows whose packets hardware marks";
    ConstGauge::new(info.partial).encode(encoder.encode_descriptor("offload_partial_flows", help, None, kind)?)?;
    let (help, kind) = ("Bytes that hardware forwarded or dropped", MetricType::Counter);
    ConstCounter::new(bytes).encode(encoder.encode_descriptor("offload", help, Some(&Unit::Bytes), kind)?)?;
    let (help, spent) = ("Time from asking for rules to their completion", insertions as f64 * insertion_us / 1e6);
    let family = encoder.encode_descriptor("offload_insertion", help, Some(&Unit::Seconds), kind)?;
    ConstCounter::new(spent).encode(family)?;
    for (name, help, value) in [
        ("offload_packets", "Packets that hardware forwarded or dropped", packets),
        ("offload_insertions", "Rules put into hardware", insertions),
        ("offload_evictions", "Rules taken out for flows that see more", evictions),
        ("offload_aged", "Rules taken out as they saw nothing any more", aged),
        ("offload_dropped", "Offers that were dropped, as too many waited", dropped),
        ("offload_lost_completions", "Operations that hardware said nothing of", info.lost_completions),
        ("offload_full", "Flows that found no room in hardware", full),
        ("offload_lost", "Rules that hardware lost: it was reset, or another program removed them", lost),
    ] {
        ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, kind)?)?;
    }
    let refusals = info.refusals.iter().map(|(clause, count)| ([("clause", (*clause).to_owned())], *count));
    counters(encoder, "offload_refusals", "Flows that hardware cannot do, by what it refused", None, refusals)
}

fn captures(control: &Control, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let captures = control.network.captures.all();
    let each = || captures.iter().map(|one| (label(&one.wanted.port), one));
    let running = each().map(|(port, one)| (port, u64::from(one.running.load(Ordering::Acquire))));
    gauges(encoder, "capture_running", "Whether the port is being captured", running)?;
    let packets = each().map(|(port, one)| (port, one.packets.load(Ordering::Relaxed)));
    counters(encoder, "capture_packets", "Packets written by the port's capture", None, packets)?;
    let bytes = each().map(|(port, one)| (port, one.bytes.load(Ordering::Relaxed)));
    counters(encoder, "capture", "Bytes of its file", Some(Unit::Bytes), bytes)?;
    let lost = each().map(|(port, one)| (port, one.lost()));
    counters(encoder, "capture_lost_packets", "Packets that could not be written in time", None, lost)
}
