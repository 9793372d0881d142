//! Slower disks.

use super::bdev;
use crate::Control;
use crate::desired::Object;
use crate::rpc::method::{Effect, Handler, Row};
use api::bdev::{DelayCreate, DelayDelete, DelayLatency, DelayUpdateLatency};
use api::config::Call;
use api::{Method, RpcError};
use block::{Delay, DelayParams, LatencyType};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<DelayCreate>(), Row::of::<DelayDelete>(), Row::of::<DelayUpdateLatency>()]
}

impl Handler for DelayCreate {
    fn effect(&self) -> Effect {
        let undo = Call::new(DelayDelete::NAME, json!({"name": self.name}));
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
            deleted_by: DelayDelete::NAME,
            base: Some(base.name()),
            about: about(self),
        };
        let identity = bdev::register(control, new, move || Delay::create(params)).await?;
        self.uuid = Some(identity.uuid);
        Ok(self.name.clone())
    }
}

fn about(delay: &DelayCreate) -> Value {
    json!({"delay": delay})
}

impl Handler for DelayDelete {
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
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
    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let delay = control.bdevs.backend::<Delay>(&self.delay_bdev_name, Self::NAME)?;
        let disk = control.bdevs.get(&self.delay_bdev_name)?;
        let slot = Object::bdev(disk.name()).itself();
        let (latency_type, param) = names(self.latency_type);
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
