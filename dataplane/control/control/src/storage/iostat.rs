//! Counters and latencies of disks.

use super::StoragePlane;
use super::bdevs::{Holder, Registered};
use crate::rpc::method::{Handler, Row};
use api::RpcError;
use api::iostat::{BdevIostat, EnableHistogram, GetHistogram, GetIostat, Histogram, Iostat, ResetIostat, ResetMode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use block::stats::{KindSnapshot, bucket_floor};
use block::{IoSnapshot, OpKind};
use std::sync::Arc;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<GetIostat>(), Row::of::<ResetIostat>(), Row::of::<EnableHistogram>(), Row::of::<GetHistogram>()]
}

/// What a disk has served since it was made: by the controllers on it and on the disks above it, those of today and those that
/// are gone.
pub(crate) fn total(plane: &StoragePlane, disk: &Registered) -> IoSnapshot {
    let mut total = disk.stats.lock().gone();
    for holder in plane.bdevs.holders(disk.name()) {
        match holder {
            Holder::Controller(name) => {
                let served = plane.controllers.get(&name);
                served
                    .iter()
                    .flat_map(|served| served.device.controller.stats())
                    .for_each(|stats| total += &stats.snapshot());
            }
            Holder::Bdev(name) => {
                if let Ok(above) = plane.bdevs.get(&name) {
                    total += &self::total(plane, &above);
                }
            }
            Holder::Copy(_) => {}
        }
    }
    total
}

/// The same since the last reset; then `mode` resets.
fn since_reset(plane: &StoragePlane, disk: &Registered, mode: ResetMode) -> IoSnapshot {
    let now = total(plane, disk);
    let mut stats = disk.stats.lock();
    let since = now.since(&stats.reset);
    reset(&mut stats.reset, now, mode);
    since
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

impl Handler for GetIostat {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<Iostat, RpcError> {
        let names: Vec<&String> = self.names.iter().flatten().chain(&self.name).collect();
        let disks = match names.as_slice() {
            [] => plane.bdevs.all(),
            names => names.iter().map(|name| plane.bdevs.get(name)).collect::<Result<_, _>>()?,
        };
        let bdevs = disks.iter().map(|disk| describe(disk.name(), &since_reset(plane, disk, self.reset_mode)));
        Ok(Iostat { bdevs: bdevs.collect(), tick_rate: clock::hz(), ticks: clock::Cycles::now().0 })
    }
}

fn describe(name: &str, stats: &IoSnapshot) -> BdevIostat {
    let (read, write) = (stats.of(OpKind::Read), stats.of(OpKind::Write));
    let write_zeroes = stats.of(OpKind::WriteZeroes);
    let mut unmap = stats.of(OpKind::Discard).clone();
    unmap += write_zeroes;
    let errors: u64 = stats.kinds.iter().map(|kind| kind.errors).sum();
    BdevIostat {
        name: name.to_owned(),
        bytes_read: read.bytes,
        num_read_ops: read.ops,
        bytes_written: write.bytes,
        num_write_ops: write.ops,
        bytes_unmapped: unmap.bytes,
        num_unmap_ops: unmap.ops,
        read_latency_ticks: read.latency.0,
        max_read_latency_ticks: read.quantile(1.0).0,
        min_read_latency_ticks: lowest(read),
        write_latency_ticks: write.latency.0,
        max_write_latency_ticks: write.quantile(1.0).0,
        min_write_latency_ticks: lowest(write),
        unmap_latency_ticks: unmap.latency.0,
        max_unmap_latency_ticks: unmap.quantile(1.0).0,
        min_unmap_latency_ticks: lowest(&unmap),
        num_flush_ops: stats.of(OpKind::Flush).ops,
        num_write_zeroes_ops: write_zeroes.ops,
        io_error: (errors > 0).then(|| ("failed".to_owned(), errors)).into_iter().collect(),
        ..BdevIostat::default()
    }
}

fn lowest(counted: &KindSnapshot) -> u64 {
    counted.histogram.iter().position(|count| *count > 0).map_or(0, |bucket| bucket_floor(bucket).0)
}

impl Handler for ResetIostat {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let disks = match &self.name {
            Some(name) => vec![plane.bdevs.get(name)?],
            None => plane.bdevs.all(),
        };
        for disk in disks {
            let _ = since_reset(plane, &disk, self.mode); // The counts before the reset are not asked for.
        }
        Ok(true)
    }
}

impl Handler for EnableHistogram {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let disk = plane.bdevs.get(&self.name)?;
        if self.enable {
            let _ = since_reset(plane, &disk, ResetMode::Maxmin); // The counts before the reset are not asked for.
        }
        Ok(true)
    }
}

/// Buckets to a power of two, as a power of two.
const GRANULARITY: u8 = 3;

impl Handler for GetHistogram {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<Histogram, RpcError> {
        let disk = plane.bdevs.get(&self.name)?;
        let mut sum = KindSnapshot::default();
        since_reset(plane, &disk, ResetMode::None).kinds.iter().for_each(|kind| sum += kind);
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
    fn buckets_begin_where_spdk_clients_expect() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_floor(bucket).0, spdk_bucket_start(bucket as u64), "bucket {bucket}");
        }
    }

    #[test]
    fn a_reset_zeroes_only_the_counters_of_its_mode() {
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
