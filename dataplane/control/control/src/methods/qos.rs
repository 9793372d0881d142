//! Limits of disks.

use crate::Control;
use crate::bdevs::Registered;
use crate::desired::{Call, Object, Slot};
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method};
use block::{QosLimits, Rate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<BdevSetQosLimit>()]
}

const MIB: u64 = 1 << 20;

/// Limits what a disk serves, from now on. A limit that is not given stays as it is; 0 lifts it.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevSetQosLimit {
    /// The disk.
    name: String,
    /// Requests a second.
    rw_ios_per_sec: Option<u64>,
    /// MiB a second.
    rw_mbytes_per_sec: Option<u64>,
    /// MiB read a second.
    r_mbytes_per_sec: Option<u64>,
    /// MiB written a second.
    w_mbytes_per_sec: Option<u64>,
    /// Reads a second.
    r_ios_per_sec: Option<u64>,
    /// Writes a second.
    w_ios_per_sec: Option<u64>,
    /// How much may pass at once after a pause: milliseconds' worth of each limit; 10 are always allowed.
    burst_ms: Option<u64>,
}

impl BdevSetQosLimit {
    fn slot(&self) -> Slot {
        Object::bdev(&self.name).aspect(crate::desired::Aspect::Qos)
    }

    fn limits(&mut self) -> [&mut Option<u64>; 7] {
        [
            &mut self.rw_ios_per_sec,
            &mut self.rw_mbytes_per_sec,
            &mut self.r_mbytes_per_sec,
            &mut self.w_mbytes_per_sec,
            &mut self.r_ios_per_sec,
            &mut self.w_ios_per_sec,
            &mut self.burst_ms,
        ]
    }

    /// Takes what was not given from the call that is in effect.
    fn complete(&mut self, in_effect: &Value) {
        for (given, field) in self.limits().into_iter().zip(FIELDS) {
            *given = given.or_else(|| in_effect.get(field)?.as_u64());
        }
    }

    fn to_limits(&self) -> Result<QosLimits, RpcError> {
        let rate = |field: &str, given: Option<u64>, unit: u64| {
            let per_second = given.unwrap_or(0);
            let per_second = per_second.checked_mul(unit).ok_or_else(|| too_large(field, per_second, unit))?;
            let burst = u128::from(per_second) * u128::from(self.burst_ms.unwrap_or(0)) / 1000;
            Ok::<Rate, RpcError>(Rate { per_second, burst: burst.try_into().unwrap_or(u64::MAX) })
        };
        Ok(QosLimits {
            rw_ios: rate("rw_ios_per_sec", self.rw_ios_per_sec, 1)?,
            r_ios: rate("r_ios_per_sec", self.r_ios_per_sec, 1)?,
            w_ios: rate("w_ios_per_sec", self.w_ios_per_sec, 1)?,
            rw_bytes: rate("rw_mbytes_per_sec", self.rw_mbytes_per_sec, MIB)?,
            r_bytes: rate("r_mbytes_per_sec", self.r_mbytes_per_sec, MIB)?,
            w_bytes: rate("w_mbytes_per_sec", self.w_mbytes_per_sec, MIB)?,
        })
    }
}

const FIELDS: [&str; 7] = [
    "rw_ios_per_sec",
    "rw_mbytes_per_sec",
    "r_mbytes_per_sec",
    "w_mbytes_per_sec",
    "r_ios_per_sec",
    "w_ios_per_sec",
    "burst_ms",
];

/// The limits as bdev_get_bdevs tells them.
pub(super) fn assigned(limits: &QosLimits) -> Value {
    json!({
        "rw_ios_per_sec": limits.rw_ios.per_second,
        "rw_mbytes_per_sec": limits.rw_bytes.per_second / MIB,
        "r_mbytes_per_sec": limits.r_bytes.per_second / MIB,
        "w_mbytes_per_sec": limits.w_bytes.per_second / MIB,
        "r_ios_per_sec": limits.r_ios.per_second,
        "w_ios_per_sec": limits.w_ios.per_second,
    })
}

impl Method for BdevSetQosLimit {
    const NAME: &'static str = "bdev_set_qos_limit";
    type Output = bool;

    fn effect(&self) -> Effect {
        let mut lifted = json!({"name": self.name});
        FIELDS.iter().for_each(|field| lifted[*field] = json!(0));
        Effect::Keep { slot: self.slot(), undo: Some(Call::new(Self::NAME, lifted)) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        if self.limits().into_iter().all(|limit| limit.is_none()) {
            return Err(RpcError::invalid("limits", "none", format!("at least one of {}", FIELDS.join(", "))));
        }
        let disk: Arc<Registered> = control.bdevs.get(&self.name)?;
        self.name = disk.name().to_owned();
        let in_effect = control.desired.get(&self.slot());
        self.complete(&in_effect.map(|call| call.params).unwrap_or_default());
        disk.qos.set_limits(self.to_limits()?);
        Ok(true)
    }
}

fn too_large(field: &str, got: u64, unit: u64) -> RpcError {
    RpcError::invalid(field, got, format!("at most {}", u64::MAX / unit))
}
