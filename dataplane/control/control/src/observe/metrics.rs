//! OpenMetrics over HTTP, on a thread of its own: a scrape reads the workers' counters and waits for no call.

mod scheduler;
mod switch;

use crate::Control;
use crate::rpc::method::{Handler, Row};
use crate::storage::iostat;
use api::RpcError;
use api::metrics::MetricsGet;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use block::stats::{KindSnapshot, bucket_floor};
use block::{IoSnapshot, OpKind};
use engine::WorkerReport;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use virtio_blk::ControllerReport;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("metrics at {address}: {source}")]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// Serves metrics at `address` until the process ends. Returns the address, with its port if it was 0.
pub fn serve_metrics(control: &Arc<Control>, address: SocketAddr) -> Result<SocketAddr, MetricsError> {
    let failed = |source| MetricsError { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let control = Arc::downgrade(control);
    let scrape = move || {
        let text = control.upgrade().map(|control| render(&control)).unwrap_or_default();
        async { ([(CONTENT_TYPE, OPENMETRICS)], text) }
    };
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, Router::new().route("/metrics", get(scrape))).await
    };
    let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        if let Err(error) = runtime.block_on(serve) {
            tracing::error!(%error, "metrics end");
        }
    });
    thread.map_err(failed)?;
    Ok(bound)
}

/// All metrics as they are now.
fn render(control: &Arc<Control>) -> String {
    let mut registry = Registry::with_prefix("sluice");
    registry.register_collector(Box::new(Scrape(control.clone())));
    let mut page = String::new();
    // A String takes whatever is written to it.
    let _ = text::encode(&mut page, &registry);
    page
}

struct Scrape(Arc<Control>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let control = &self.0;
        let reports: Vec<WorkerReport> = control.workers.reports();
        workers(control, &mut encoder, &reports)?;
        sources(&mut encoder, &reports)?;
        disks(control, &mut encoder)?;
        memory(&mut encoder)?;
        controllers(control, &mut encoder)?;
        switch::encode(control, &mut encoder)?;
        scheduler::encode(control, &mut encoder)?;
        let pending = control.desired.pending().len() as u64;
        let help = "Calls of the configuration that are not in effect";
        let kind = MetricType::Gauge;
        ConstGauge::new(pending).encode(encoder.encode_descriptor("config_pending", help, None, kind)?)
    }
}

type Labels<const N: usize> = [(&'static str, String); N];

fn workers(control: &Control, encoder: &mut DescriptorEncoder, reports: &[WorkerReport]) -> fmt::Result {
    let each = |value: &dyn Fn(&WorkerReport) -> u64| -> Vec<(Labels<2>, u64)> {
        let labels = |report: &WorkerReport| [("worker", report.id.to_string()), ("cpu", report.cpu.to_string())];
        reports.iter().map(|report| (labels(report), value(report))).collect()
    };
    let time = |value| each(value).into_iter().map(|(labels, cycles)| (labels, seconds(cycles)));
    counters(encoder, "worker_busy", "Time in polls that did work", Some(Unit::Seconds), time(&|r| r.busy))?;
    counters(encoder, "worker_idle", "Time in polls that found none", Some(Unit::Seconds), time(&|r| r.idle))?;
    counters(encoder, "worker_asleep", "Time asleep", Some(Unit::Seconds), time(&|r| control.workers.asleep(r)))?;
    counters(encoder, "worker_sleeps", "Times it went to sleep", None, each(&|r| r.sleeps))?;
    counters(encoder, "worker_turns", "Turns", None, each(&|r| r.turns))
}

fn sources(encoder: &mut DescriptorEncoder, reports: &[WorkerReport]) -> fmt::Result {
    let each = || {
        reports.iter().flat_map(|report| {
            report.sources.iter().map(|source| {
                let labels = [("worker", report.id.to_string()), ("source", source.name.clone())];
                (labels, (source.busy, source.idle, source.work))
            })
        })
    };
    let (busy, idle) =
        (each().map(|(l, (busy, ..))| (l, seconds(busy))), each().map(|(l, (_, idle, _))| (l, seconds(idle))));
    counters(encoder, "source_busy", "Time in polls that did work", Some(Unit::Seconds), busy)?;
    counters(encoder, "source_idle", "Time in polls that found none", Some(Unit::Seconds), idle)?;
    counters(encoder, "source_work", "Items of work", None, each().map(|(labels, (.., work))| (labels, work)))
}

const KINDS: [(&str, OpKind); 5] = [
    ("read", OpKind::Read),
    ("write", OpKind::Write),
    ("flush", OpKind::Flush),
    ("discard", OpKind::Discard),
    ("write_zeroes", OpKind::WriteZeroes),
];

fn disks(control: &Control, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let disks = control.storage.bdevs.all();
    let totals: Vec<(&str, IoSnapshot)> =
        disks.iter().map(|disk| (disk.name(), iostat::total(&control.storage, disk))).collect();
    let each = || {
        totals.iter().flat_map(|(name, total)| {
            KINDS.map(|(kind, op)| ([("disk", (*name).to_owned()), ("op", kind.to_owned())], total.of(op)))
        })
    };
    let count = |value: fn(&KindSnapshot) -> u64| each().map(move |(labels, counted)| (labels, value(counted)));
    counters(encoder, "disk_requests", "Requests that ended, well or not", None, count(|c| c.ops))?;
    counters(encoder, "disk", "Bytes of requests that ended well", Some(Unit::Bytes), count(|c| c.bytes))?;
    counters(encoder, "disk_errors", "Requests that did not end well", None, count(|c| c.errors))?;
    let timeouts = disks.iter().map(|disk| ([("disk", disk.name().to_owned())], disk.bdev.timed_out()));
    counters(encoder, "disk_timeouts", "Requests that were not finished in the time they are given", None, timeouts)?;
    let (help, kind) = ("Time from the guest's request to its answer", MetricType::Histogram);
    let mut family = encoder.encode_descriptor("disk_latency", help, Some(&Unit::Seconds), kind)?;
    for (labels, counted) in each() {
        let buckets = latency_buckets(counted);
        let sum = seconds(counted.latency.0);
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, counted.ops, &buckets, None)?;
    }
    Ok(())
}

/// Upper bounds of the latency buckets, in seconds.
const LATENCY_BOUNDS: [f64; 22] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// The counts below each bound. A counter's bucket goes where it begins: at most an eighth too low.
fn latency_buckets(counted: &KindSnapshot) -> Vec<(f64, u64)> {
    let bounds = LATENCY_BOUNDS.into_iter().chain([f64::INFINITY]);
    let mut buckets: Vec<(f64, u64)> = bounds.map(|bound| (bound, 0)).collect();
    for (bucket, count) in counted.histogram.iter().enumerate().filter(|(_, count)| **count > 0) {
        let begin = seconds(bucket_floor(bucket).0);
        buckets[LATENCY_BOUNDS.partition_point(|bound| *bound <= begin)].1 += count;
    }
    buckets
}

fn memory(encoder: &mut DescriptorEncoder) -> fmt::Result {
    let node = |node: Option<u32>| node.map_or_else(|| "any".to_owned(), |node| node.to_string());
    let usage = memory::usage().into_iter();
    let usage = usage.map(|u| ([("page_size", u.page_size.to_string()), ("node", node(u.node))], u.bytes));
    gauges(encoder, "memory_allocated_bytes", "Memory of disks and of buffers", usage)
}

fn controllers(control: &Control, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let served = control.storage.controllers.list();
    let reports: Vec<_> =
        served.iter().map(|served| (served.name.clone(), served.device.controller.report())).collect();
    let each =
        |value: fn(&ControllerReport) -> u64| reports.iter().map(move |(n, r)| ([("controller", n.clone())], value(r)));
    gauges(encoder, "controller_connected", "Whether a front-end is connected", each(|r| r.session.connected.into()))?;
    gauges(encoder, "controller_quarantined", "Whether it serves nothing", each(|r| r.quarantine.is_some().into()))?;
    gauges(encoder, "controller_in_flight", "Requests in flight", each(|r| r.in_flight.into()))?;
    counters(encoder, "controller_connections", "Connections of front-ends", None, each(|r| r.session.connections))
}

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<MetricsGet>()]
}

impl Handler for MetricsGet {
    /// Metrics read every plane.
    type Plane = Control;

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        Ok(render(control))
    }
}

/// One family of counters.
fn counters<const N: usize, V>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    values: impl IntoIterator<Item = (Labels<N>, V)>,
) -> fmt::Result
where
    ConstCounter<V>: EncodeMetric,
{
    let kind = MetricType::Counter;
    let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// One family of gauges.
fn gauges<const N: usize, V>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<N>, V)>,
) -> fmt::Result
where
    ConstGauge<V>: EncodeMetric,
{
    let kind = MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn seconds(cycles: u64) -> f64 {
    cycles as f64 / clock::hz() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::stats::BUCKETS;

    #[test]
    fn latencies_stand_below_their_bounds() {
        let mut counted = KindSnapshot::default();
        let cycles = |seconds: f64| (seconds * clock::hz() as f64) as u64;
        let bucket_at = |cycles: u64| (0..BUCKETS).rev().find(|bucket| bucket_floor(*bucket).0 <= cycles).unwrap();
        for (seconds, count) in [(0.0, 1), (3e-6, 2), (0.04, 4), (100.0, 8)] {
            counted.histogram[bucket_at(cycles(seconds))] += count;
        }
        let filled: Vec<_> = latency_buckets(&counted).into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(1e-6, 1), (5e-6, 2), (0.05, 4), (f64::INFINITY, 8)]);
    }
}
