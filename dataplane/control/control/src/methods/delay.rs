//! Slower disks.

use super::bdev;
use crate::Control;
use crate::desired::{Call, Object};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use block::{Delay, DelayParams, LatencyType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<BdevDelayCreate>(), Entry::of::<BdevDelayDelete>(), Entry::of::<BdevDelayUpdateLatency>()]
}

/// Makes a disk that answers later than the one it stands on: 99 of 100 requests after the average, one after the 99th
/// percentile.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevDelayCreate {
    /// Its name.
    name: String,
    /// The disk that it stands on, by name or UUID.
    base_bdev_name: String,
    /// Microseconds of 99 in 100 reads.
    avg_read_latency: u64,
    /// Microseconds of one in 100 reads, at least those of the others.
    p99_read_latency: u64,
    /// Microseconds of 99 in 100 writes.
    avg_write_latency: u64,
    /// Microseconds of one in 100 writes, at least those of the others.
    p99_write_latency: u64,
    /// Its UUID; a random one when it is not given.
    uuid: Option<Uuid>,
}

impl Method for BdevDelayCreate {
    const NAME: &'static str = "bdev_delay_create";
    type Output = String;

    fn effect(&self) -> Effect {
        let undo = Call::new(BdevDelayDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        let base = bdev::hold_base(control, &self.base_bdev_name, &self.name)?;
        self.base_bdev_name = base.name().to_owned();
        let latencies = [self.avg_read_latency, self.p99_read_latency, self.avg_write_latency, self.p99_write_latency];
        let params = DelayParams {
            name: self.name.clone(),
            base: base.bdev.clone(),
            uuid: self.uuid,
            latencies: latencies.map(Duration::from_micros),
        };
        let new = bdev::New {
            name_field: "name",
            name: &self.name,
            deleted_by: BdevDelayDelete::NAME,
            base: Some(base.name()),
            about: about(self),
        };
        let identity = bdev::register(control, new, move || Delay::create(params)).await?;
        self.uuid = Some(identity.uuid);
        Ok(self.name.clone())
    }
}

fn about(delay: &BdevDelayCreate) -> Value {
    json!({"delay": delay})
}

/// Deletes a slower disk. The one it stands on stays.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevDelayDelete {
    /// Its name.
    name: String,
}

impl Method for BdevDelayDelete {
    const NAME: &'static str = "bdev_delay_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

/// Changes one latency of a slower disk.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevDelayUpdateLatency {
    /// The disk.
    delay_bdev_name: String,
    /// Which latency.
    latency_type: Which,
    /// Microseconds.
    latency_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Which {
    /// Of 99 in 100 reads.
    AvgRead,
    /// Of one in 100 reads.
    P99Read,
    /// Of 99 in 100 writes.
    AvgWrite,
    /// Of one in 100 writes.
    P99Write,
}

impl Which {
    /// What the disk calls it, and the parameter that it was created with.
    fn names(self) -> (LatencyType, &'static str) {
        match self {
            Which::AvgRead => (LatencyType::AvgRead, "avg_read_latency"),
            Which::P99Read => (LatencyType::P99Read, "p99_read_latency"),
            Which::AvgWrite => (LatencyType::AvgWrite, "avg_write_latency"),
            Which::P99Write => (LatencyType::P99Write, "p99_write_latency"),
        }
    }
}

impl Method for BdevDelayUpdateLatency {
    const NAME: &'static str = "bdev_delay_update_latency";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let delay = control.bdevs.backend::<Delay>(&self.delay_bdev_name, Self::NAME)?;
        let disk = control.bdevs.get(&self.delay_bdev_name)?;
        let slot = Object::bdev(disk.name()).itself();
        let (latency_type, param) = self.latency_type.names();
        let mut params = control.desired.get(&slot).map(|call| call.params).unwrap_or_default();
        params[param] = json!(self.latency_us);
        for (average, p99) in [("avg_read_latency", "p99_read_latency"), ("avg_write_latency", "p99_write_latency")] {
            if params[average].as_u64() > params[p99].as_u64() {
                let expected = format!("{average} of at most {p99}: {} us", params[p99]);
                return Err(RpcError::invalid("latency_us", self.latency_us, expected)
                    .hint("raise the 99th percentile first, or lower the average first"));
            }
        }
        delay.update(latency_type, Duration::from_micros(self.latency_us));
        *disk.about.lock().expect("no panic under this lock") = json!({"delay": params});
        control.desired.amend(&slot, param, json!(self.latency_us));
        Ok(true)
    }
}
