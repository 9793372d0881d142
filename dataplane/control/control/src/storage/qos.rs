//! Rate limits of disks.

use super::StoragePlane;
use super::bdevs::Registered;
use crate::rpc::method::{Effect, Handler, Row};
use crate::state::object::{Aspect, ObjectId, Slot};
use api::bdev::{RateLimits, SetQosLimit};
use api::config::Call;
use api::{Method, RpcError};
use block::{QosLimits, Rate};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<SetQosLimit>()]
}

const MIB: u64 = 1 << 20;

fn slot(bdev: &str) -> Slot {
    ObjectId::bdev(bdev).aspect(Aspect::Qos)
}

/// The limits of a call, in the order of [`FIELDS`].
fn fields(call: &mut SetQosLimit) -> [&mut Option<u64>; 7] {
    [
        &mut call.rw_ios_per_sec,
        &mut call.rw_mbytes_per_sec,
        &mut call.r_mbytes_per_sec,
        &mut call.w_mbytes_per_sec,
        &mut call.r_ios_per_sec,
        &mut call.w_ios_per_sec,
        &mut call.burst_ms,
    ]
}

/// Takes what was not given from the call that is in effect.
fn complete(call: &mut SetQosLimit, in_effect: &Value) {
    for (given, field) in fields(call).into_iter().zip(FIELDS) {
        *given = given.or_else(|| in_effect.get(field)?.as_u64());
    }
}

fn limits(call: &SetQosLimit) -> Result<QosLimits, RpcError> {
    let rate = |field: &str, given: Option<u64>, unit: u64| {
        let per_second = given.unwrap_or(0);
        let per_second = per_second.checked_mul(unit).ok_or_else(|| too_large(field, per_second, unit))?;
        let burst = u128::from(per_second) * u128::from(call.burst_ms.unwrap_or(0)) / 1000;
        Ok::<Rate, RpcError>(Rate { per_second, burst: burst.try_into().unwrap_or(u64::MAX) })
    };
    Ok(QosLimits {
        rw_ios: rate("rw_ios_per_sec", call.rw_ios_per_sec, 1)?,
        r_ios: rate("r_ios_per_sec", call.r_ios_per_sec, 1)?,
        w_ios: rate("w_ios_per_sec", call.w_ios_per_sec, 1)?,
        rw_bytes: rate("rw_mbytes_per_sec", call.rw_mbytes_per_sec, MIB)?,
        r_bytes: rate("r_mbytes_per_sec", call.r_mbytes_per_sec, MIB)?,
        w_bytes: rate("w_mbytes_per_sec", call.w_mbytes_per_sec, MIB)?,
    })
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

/// The limits as bdev_get_bdevs reports them.
pub(super) fn assigned(limits: &QosLimits) -> RateLimits {
    RateLimits {
        rw_ios_per_sec: limits.rw_ios.per_second,
        rw_mbytes_per_sec: limits.rw_bytes.per_second / MIB,
        r_mbytes_per_sec: limits.r_bytes.per_second / MIB,
        w_mbytes_per_sec: limits.w_bytes.per_second / MIB,
        r_ios_per_sec: limits.r_ios.per_second,
        w_ios_per_sec: limits.w_ios.per_second,
    }
}

impl Handler for SetQosLimit {
    type Plane = StoragePlane;

    fn effect(&self) -> Effect {
        let mut lifted = json!({"name": self.name});
        FIELDS.iter().for_each(|field| lifted[*field] = json!(0));
        Effect::Keep { slot: slot(&self.name), undo: Some(Call::new(Self::NAME, lifted)) }
    }

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        if fields(self).into_iter().all(|limit| limit.is_none()) {
            return Err(RpcError::invalid("limits", "none", format!("at least one of {}", FIELDS.join(", "))));
        }
        let disk: Arc<Registered> = plane.bdevs.get(&self.name)?;
        self.name = disk.name().to_owned();
        let in_effect = plane.desired.get(&slot(&self.name));
        complete(self, &in_effect.map(|call| call.params).unwrap_or_default());
        disk.qos.set_limits(limits(self)?);
        Ok(true)
    }
}

fn too_large(field: &str, got: u64, unit: u64) -> RpcError {
    RpcError::invalid(field, got, format!("at most {}", u64::MAX / unit))
}
