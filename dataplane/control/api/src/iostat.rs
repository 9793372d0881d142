//! I/O counters and latency histograms of disks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

methods! {
    GetIostat: "bdev_get_iostat" -> Iostat;
    ResetIostat: "bdev_reset_iostat" -> bool;
    EnableHistogram: "bdev_enable_histogram" -> bool;
    GetHistogram: "bdev_get_histogram" -> Histogram;
}

/// The counters that a reset clears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResetMode {
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

/// Shows the I/O counters of disks.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetIostat {
    /// Show only these disks; names or UUIDs.
    pub names: Option<Vec<String>>,
    /// Show only this disk; name or UUID.
    pub name: Option<String>,
    /// Counters per channel are not supported.
    #[serde(default)]
    #[schemars(extend("x-sluice-unsupported" = true, "const" = false))]
    pub per_channel: bool,
    /// The counters to reset once they are read.
    #[serde(default)]
    pub reset_mode: ResetMode,
}

/// I/O counters of disks, in SPDK's shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Iostat {
    /// Ticks per second.
    pub tick_rate: u64,
    /// The time of the answer in ticks.
    pub ticks: u64,
    /// The disks.
    pub bdevs: Vec<BdevIostat>,
}

/// I/O counters of a disk. Highest and lowest latencies come from the histogram: they are at most an eighth off.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // SPDK's names
pub struct BdevIostat {
    pub name: String,
    pub bytes_read: u64,
    pub num_read_ops: u64,
    pub bytes_written: u64,
    pub num_write_ops: u64,
    pub bytes_unmapped: u64,
    pub num_unmap_ops: u64,
    pub bytes_copied: u64,
    pub num_copy_ops: u64,
    pub read_latency_ticks: u64,
    pub max_read_latency_ticks: u64,
    pub min_read_latency_ticks: u64,
    pub write_latency_ticks: u64,
    pub max_write_latency_ticks: u64,
    pub min_write_latency_ticks: u64,
    pub unmap_latency_ticks: u64,
    pub max_unmap_latency_ticks: u64,
    pub min_unmap_latency_ticks: u64,
    pub num_flush_ops: u64,
    pub num_write_zeroes_ops: u64,
    /// Requests that failed, by status.
    pub io_error: BTreeMap<String, u64>,
}

/// Resets I/O counters of disks. Metrics are not affected.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ResetIostat {
    /// Reset only this disk; name or UUID.
    pub name: Option<String>,
    /// The counters to reset.
    #[serde(default = "all")]
    pub mode: ResetMode,
}

fn all() -> ResetMode {
    ResetMode::All
}

/// Restarts the latency histogram of a disk. Latencies are always counted.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EnableHistogram {
    /// The disk; name or UUID.
    pub name: String,
    /// true restarts the histogram; false changes nothing: counting costs nothing.
    pub enable: bool,
    /// Histograms of one kind of request are not supported.
    #[schemars(extend("x-sluice-unsupported" = true))]
    pub opc: Option<String>,
    /// Granularity as a power of two: eight buckets per power of two is the only one.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 3))]
    pub granularity: Option<u8>,
    /// A lower bound of latencies is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub min_nsec: Option<u64>,
    /// An upper bound of latencies is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 18_446_744_073_709_551_615_u64))]
    pub max_nsec: Option<u64>,
}

/// Shows the latency histogram of a disk in SPDK's format.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GetHistogram {
    /// The disk; name or UUID.
    pub name: String,
}

/// A latency histogram.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// The count of each bucket: 64 bits each, little endian, in base64.
    pub histogram: String,
    /// Buckets per power of two, as a power of two.
    pub granularity: u8,
    /// The first range.
    pub min_range: usize,
    /// The last range.
    pub max_range: usize,
    /// Ticks per second.
    pub tsc_rate: u64,
}
