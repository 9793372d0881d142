//! Counters and latencies of disks.

use crate::Control;
use crate::bdevs::{Holder, Registered};
use crate::rpc::RpcError;
use crate::rpc::method::{Entry, Method};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use block::stats::{KindSnapshot, bucket_floor};
use block::{IoSnapshot, OpKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<BdevGetIostat>(),
        Entry::of::<BdevResetIostat>(),
        Entry::of::<BdevEnableHistogram>(),
        Entry::of::<BdevGetHistogram>(),
    ]
}

/// What a disk has served since it was made: by the controllers on it and on the disks above it, those of today and those that
/// are gone.
pub(crate) fn total(control: &Control, disk: &Registered) -> IoSnapshot {
    let mut total = disk.stats.lock().expect("no panic under this lock").gone();
    for holder in control.bdevs.holders(disk.name()) {
        match holder {
            Holder::Controller(name) => {
                let served = control.controllers.get(&name);
                served.iter().flat_map(|s| s.controller.stats()).for_each(|stats| total += &stats.snapshot());
            }
            Holder::Bdev(name) => {
                if let Ok(above) = control.bdevs.get(&name) {
                    total += &self::total(control, &above);
                }
            }
            Holder::Copy(_) => {}
        }
    }
    total
}

/// The same since the last reset; then `mode` resets.
fn since_reset(control: &Control, disk: &Registered, mode: ResetMode) -> IoSnapshot {
    let now = total(control, disk);
    let mut stats = disk.stats.lock().expect("no panic under this lock");
    let since = now.since(&stats.reset);
    reset(&mut stats.reset, now, mode);
    since
}

/// Which counters are set to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ResetMode {
    /// All.
    All,
    /// Highest and lowest latencies, and histograms.
    Maxmin,
    /// Errors.
    Error,
    /// None.
    #[default]
    None,
}

fn reset(last: &mut IoSnapshot, now: IoSnapshot, mode: ResetMode) {
    for (then, now) in last.kinds.iter_mut().zip(now.kinds) {
        match mode {
            ResetMode::All => *then = now,
            ResetMode::Maxmin => then.histogram = now.histogram,
            ResetMode::Error => then.errors = now.errors,
            ResetMode::None => {}
        }
    }
}

/// Tells what disks have served.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevGetIostat {
    /// Only these, by name or UUID.
    names: Option<Vec<String>>,
    /// Only this one, by name or UUID.
    name: Option<String>,
    /// Not supported: counters are told a disk.
    #[serde(default)]
    per_channel: bool,
    /// What is set to zero once it is told.
    #[serde(default)]
    reset_mode: ResetMode,
}

impl Method for BdevGetIostat {
    const NAME: &'static str = "bdev_get_iostat";
    type Output = Value;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Value, RpcError> {
        if self.per_channel {
            return Err(RpcError::invalid("per_channel", true, "false: counters are told a disk"));
        }
        let names: Vec<&String> = self.names.iter().flatten().chain(&self.name).collect();
        let disks = match names.as_slice() {
            [] => control.bdevs.all(),
            names => names.iter().map(|name| control.bdevs.get(name)).collect::<Result<_, _>>()?,
        };
        let tell = |disk: &Arc<Registered>| describe(disk.name(), &since_reset(control, disk, self.reset_mode));
        let told: Vec<Value> = disks.iter().map(tell).collect();
        Ok(json!({"tick_rate": clock::hz(), "ticks": clock::Cycles::now().0, "bdevs": told}))
    }
}

/// SPDK's shape. Highest and lowest latencies come from the histogram: at most an eighth off.
fn describe(name: &str, stats: &IoSnapshot) -> Value {
    let mut told = json!({"name": name, "bytes_copied": 0, "num_copy_ops": 0});
    let write_zeroes = stats.of(OpKind::WriteZeroes);
    let mut unmaps = stats.of(OpKind::Discard).clone();
    unmaps += write_zeroes;
    let kinds = [
        ("read", "bytes_read", "num_read_ops", stats.of(OpKind::Read)),
        ("write", "bytes_written", "num_write_ops", stats.of(OpKind::Write)),
        ("unmap", "bytes_unmapped", "num_unmap_ops", &unmaps),
    ];
    for (kind, bytes, ops, counted) in kinds {
        told[bytes] = json!(counted.bytes);
        told[ops] = json!(counted.ops);
        told[format!("{kind}_latency_ticks")] = json!(counted.latency.0);
        told[format!("max_{kind}_latency_ticks")] = json!(counted.quantile(1.0).0);
        told[format!("min_{kind}_latency_ticks")] = json!(lowest(counted));
    }
    told["num_flush_ops"] = json!(stats.of(OpKind::Flush).ops);
    told["num_write_zeroes_ops"] = json!(write_zeroes.ops);
    let errors: u64 = stats.kinds.iter().map(|kind| kind.errors).sum();
    told["io_error"] = if errors > 0 { json!({"failed": errors}) } else { json!({}) };
    told
}

fn lowest(counted: &KindSnapshot) -> u64 {
    counted.histogram.iter().position(|count| *count > 0).map_or(0, |bucket| bucket_floor(bucket).0)
}

/// Sets counters of disks to zero. Metrics go on.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevResetIostat {
    /// Only of this one, by name or UUID.
    name: Option<String>,
    /// Which counters.
    #[serde(default = "all")]
    mode: ResetMode,
}

fn all() -> ResetMode {
    ResetMode::All
}

impl Method for BdevResetIostat {
    const NAME: &'static str = "bdev_reset_iostat";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let disks = match &self.name {
            Some(name) => vec![control.bdevs.get(name)?],
            None => control.bdevs.all(),
        };
        disks.iter().for_each(|disk| drop(since_reset(control, disk, self.mode)));
        Ok(true)
    }
}

/// Starts a histogram of a disk's latencies anew. They are always counted.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevEnableHistogram {
    /// The disk.
    name: String,
    /// Start anew. Counting does not end with false: it costs nothing.
    enable: bool,
    /// Accepted for SPDK's clients: each kind of request is counted, and all are told.
    opc: Option<String>,
    /// The one granularity that there is: 3, eight buckets to a power of two.
    granularity: Option<u8>,
    /// Not supported: 0 only.
    min_nsec: Option<u64>,
    /// Not supported: all are counted.
    max_nsec: Option<u64>,
}

impl Method for BdevEnableHistogram {
    const NAME: &'static str = "bdev_enable_histogram";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let disk = control.bdevs.get(&self.name)?;
        if let Some(other) = self.granularity.filter(|granularity| *granularity != GRANULARITY) {
            return Err(RpcError::invalid("granularity", other, GRANULARITY));
        }
        if self.enable {
            drop(since_reset(control, &disk, ResetMode::Maxmin));
        }
        Ok(true)
    }
}

/// Buckets to a power of two, as a power of two.
const GRANULARITY: u8 = 3;

/// Tells a disk's latencies as SPDK's histogram: counts a bucket, 64 bits each, little endian, in base64.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevGetHistogram {
    /// The disk.
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct Histogram {
    histogram: String,
    granularity: u8,
    min_range: usize,
    max_range: usize,
    tsc_rate: u64,
}

impl Method for BdevGetHistogram {
    const NAME: &'static str = "bdev_get_histogram";
    type Output = Histogram;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Histogram, RpcError> {
        let disk = control.bdevs.get(&self.name)?;
        let mut sum = KindSnapshot::default();
        since_reset(control, &disk, ResetMode::None).kinds.iter().for_each(|kind| sum += kind);
        let bytes: Vec<u8> = sum.histogram.iter().flat_map(|count| count.to_le_bytes()).collect();
        let max_range = (sum.histogram.len() >> GRANULARITY) - 1;
        Ok(Histogram {
            histogram: BASE64.encode(&bytes),
            granularity: GRANULARITY,
            min_range: 0,
            max_range,
            tsc_rate: clock::hz(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::stats::BUCKETS;

    /// Where SPDK's clients take a bucket to begin (spdk/histogram_data.h).
    fn spdk_bucket_start(index: u64) -> u64 {
        let (range, index) = (index >> GRANULARITY, index & ((1 << GRANULARITY) - 1));
        if range == 0 { index } else { (1 << (range + u64::from(GRANULARITY) - 1)) + (index << (range - 1)) }
    }

    #[test]
    fn buckets_begin_where_spdks_clients_take_them_to() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_floor(bucket).0, spdk_bucket_start(bucket as u64), "bucket {bucket}");
        }
    }

    #[test]
    fn a_reset_touches_what_its_mode_names() {
        let mut now = IoSnapshot::default();
        (now.kinds[0].ops, now.kinds[0].errors, now.kinds[0].histogram[9]) = (5, 2, 5);
        let after = |mode| {
            let mut last = IoSnapshot::default();
            reset(&mut last, now.clone(), mode);
            let since = now.since(&last).kinds[0].clone();
            (since.ops, since.errors, since.histogram[9])
        };
        assert_eq!(after(ResetMode::None), (5, 2, 5));
        assert_eq!(after(ResetMode::Error), (5, 0, 5));
        assert_eq!(after(ResetMode::Maxmin), (5, 2, 0));
        assert_eq!(after(ResetMode::All), (0, 0, 0));
    }
}
