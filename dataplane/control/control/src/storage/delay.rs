//! Disks that delay the requests to a base disk.

use super::StoragePlane;
use super::disk_kind::{DiskKind, New};
use crate::rpc::OrRefuse;
use crate::rpc::method::{Handler, Row};
use crate::state::object::ObjectId;
use api::bdev::{DelayCreate, DelayDelete, DelayLatency, DelayUpdateLatency};
use api::{Method, RpcError};
use block::{Bdev, Delay, DelayParams, LatencyType};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<DelayUpdateLatency>()]
}

impl DiskKind for DelayCreate {
    const DELETED_BY: &'static str = DelayDelete::NAME;
    type Disk = Delay;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn base(&mut self) -> Option<&mut String> {
        Some(&mut self.base_bdev_name)
    }

    fn prepare(&mut self, _: &Arc<StoragePlane>, base: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError> {
        let latencies = [self.avg_read_latency, self.p99_read_latency, self.avg_write_latency, self.p99_write_latency];
        let params = DelayParams {
            name: self.name.clone(),
            base: base.expect("a delay disk has a base"),
            uuid: self.uuid,
            latencies: latencies.map(Duration::from_micros),
        };
        let open = Box::new(move || Delay::create(params).or_refuse());
        Ok(New { open, details: json!({"delay": self}), answer: self.name.clone() })
    }

    fn set_uuid(&mut self, uuid: Uuid) {
        self.uuid = Some(uuid);
    }
}

/// The latency as the disk has it, and the parameter that creates it.
fn names(latency: DelayLatency) -> (LatencyType, &'static str) {
    match latency {
        DelayLatency::AvgRead => (LatencyType::AvgRead, "avg_read_latency"),
        DelayLatency::P99Read => (LatencyType::P99Read, "p99_read_latency"),
        DelayLatency::AvgWrite => (LatencyType::AvgWrite, "avg_write_latency"),
        DelayLatency::P99Write => (LatencyType::P99Write, "p99_write_latency"),
    }
}

impl Handler for DelayUpdateLatency {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let delay = plane.bdevs.backend::<Delay>(&self.delay_bdev_name, Self::NAME)?;
        let disk = plane.bdevs.get(&self.delay_bdev_name)?;
        let slot = ObjectId::bdev(disk.name()).itself();
        let (latency_type, param) = names(self.latency_type);
        let mut params = plane.desired.get(&slot).map(|call| call.params).unwrap_or_default();
        params[param] = json!(self.latency_us);
        for (average, p99) in [("avg_read_latency", "p99_read_latency"), ("avg_write_latency", "p99_write_latency")] {
            if params[average].as_u64() > params[p99].as_u64() {
                let expected = format!("{average} of at most {p99}: {} us", params[p99]);
                return Err(RpcError::invalid("latency_us", self.latency_us, expected)
                    .hint("raise the 99th percentile first, or lower the average first"));
            }
        }
        delay.update(latency_type, Duration::from_micros(self.latency_us));
        *disk.details.lock() = json!({"delay": params});
        plane.desired.amend(&slot, param, json!(self.latency_us));
        Ok(true)
    }
}
