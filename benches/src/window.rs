//! A window of load on a backend, and the figures of several.

use crate::backend::Backend;
use crate::client::{Client, Load};
use crate::measure::{Measurement, cpu_time};
use crate::request::Kind;
use anyhow::Result;
use clock::Cycles;
use std::time::Duration;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) kind: Kind,
    pub(crate) depth: usize,
    pub(crate) span: Duration,
}

/// One window.
pub(crate) struct Window {
    /// Requests a second.
    pub(crate) iops: f64,
    /// Latency in microseconds.
    pub(crate) p50: f64,
    /// See `p50`.
    pub(crate) p99: f64,
    /// CPU time of the backend in nanoseconds a request.
    pub(crate) cpu: f64,
    /// Of it, in turns that did work; `NaN` where the backend does not tell.
    pub(crate) busy: f64,
}

/// Puts load on a backend through one of its disks.
pub(crate) fn take(backend: &dyn Backend, client: &mut Client, demand: Demand) -> Result<Window> {
    let busy_before = backend.busy()?;
    let cpu_before = cpu_time(backend.process())?;
    let load = client.load(demand.kind, demand.depth, demand.span)?;
    let cpu = cpu_time(backend.process())? - cpu_before;
    let busy = backend.busy()?.zip(busy_before).map_or(f64::NAN, |(after, before)| (after - before).as_nanos() as f64);
    Ok(Window::of(&load, cpu, busy))
}

impl Window {
    /// With the CPU time that the backend took, and the nanoseconds in which it was busy.
    pub(crate) fn of(load: &Load, cpu: Duration, busy: f64) -> Window {
        let requests = load.latency.len() as f64;
        let micros = |quantile| Cycles(load.latency.value_at_quantile(quantile)).as_nanos() as f64 / 1000.0;
        Window {
            iops: requests / load.elapsed.as_secs_f64(),
            p50: micros(0.5),
            p99: micros(0.99),
            cpu: cpu.as_nanos() as f64 / requests,
            busy: busy / requests,
        }
    }
}

/// The figures of several windows.
pub(crate) struct Cell {
    pub(crate) iops: Measurement,
    pub(crate) p50: Measurement,
    pub(crate) p99: Measurement,
    pub(crate) cpu: Measurement,
    pub(crate) busy: Measurement,
}

impl Cell {
    pub(crate) fn of(windows: &[Window]) -> Cell {
        let figure = |of: fn(&Window) -> f64| Measurement::new(windows.iter().map(of));
        Cell {
            iops: figure(|w| w.iops),
            p50: figure(|w| w.p50),
            p99: figure(|w| w.p99),
            cpu: figure(|w| w.cpu),
            busy: figure(|w| w.busy),
        }
    }
}

/// One window's figure over the other's of the same turn.
pub(crate) fn ratio(over: &[Window], under: &[Window], of: fn(&Window) -> f64) -> Measurement {
    Measurement::new(over.iter().zip(under).map(|(over, under)| of(over) / of(under)))
}
