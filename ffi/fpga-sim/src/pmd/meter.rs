//! Meters (`rte_mtr`): profiles of RFC 2697, policies that let a color pass or drop it.

use super::abi::{
    Actions, EthDev, MeterCapabilities, MeterError, MeterErrorInfo, MeterOps, MeterParams, MeterPolicy, MeterProfile,
    MeterStats,
};
use super::device::State;
use super::{Port, port};
use crate::pipeline::{InUse, Meter, Rate, Shared};
use crate::translate::MadeOf;
use dpdk_sys as sys;
use std::ffi::{CStr, c_int};
use std::ptr::null;
use std::time::Duration;

/// `RTE_MTR_SRTCM_RFC2697`
const SRTCM_RFC2697: u32 = 1;
/// `RTE_COLOR_GREEN`
const GREEN: u32 = 0;
/// Packets and bytes of each color, and of those dropped.
const STATS: u64 = 0xff;
pub(super) const MAX_METERS: u32 = 65536;
/// `RTE_MTR_ERROR_TYPE_UNSPECIFIED`
const UNSPECIFIED: u32 = 1;

pub(super) static OPS: MeterOps = MeterOps {
    capabilities_get: Some(capabilities_get),
    meter_profile_add: Some(profile_add),
    meter_profile_delete: Some(profile_delete),
    create: Some(create),
    destroy: Some(destroy),
    meter_enable: Some(enable),
    meter_disable: Some(disable),
    meter_profile_update: Some(profile_update),
    tables_and_input: [None; 5],
    stats_update: None,
    stats_read: Some(stats_read),
    meter_policy_validate: Some(policy_validate),
    meter_policy_add: Some(policy_add),
    meter_policy_delete: Some(policy_delete),
    from_policy_update: [None; 3],
};

/// Why not.
type Refused = (i32, &'static CStr);

/// Zero, or why not.
fn done(result: Result<(), Refused>, error: MeterError) -> c_int {
    let Err((errno, message)) = result else { return 0 };
    // SAFETY: lent-structure: null or a place to fill.
    if let Some(error) = unsafe { error.as_mut() } {
        *error = MeterErrorInfo { kind: UNSPECIFIED, cause: null(), message: message.as_ptr() };
    }
    -errno
}

/// Calls with the device's state, the port's index and the time.
fn with(
    port: &Port,
    error: MeterError,
    call: impl FnOnce(&mut State, usize, Duration) -> Result<(), Refused>,
) -> c_int {
    let now = port.device.now();
    done(call(&mut port.device.lock(), port.index, now), error)
}

unsafe extern "C" fn capabilities_get(
    _dev: *mut EthDev,
    capabilities: *mut MeterCapabilities,
    _error: MeterError,
) -> c_int {
    let shown = MeterCapabilities {
        n_max: MAX_METERS,
        n_shared_max: MAX_METERS,
        identical: 1,
        shared_identical: 1,
        shared_n_flows_per_mtr_max: u32::MAX,
        chaining_n_mtrs_per_flow_max: 1,
        meter_srtcm_rfc2697_n_max: MAX_METERS,
        meter_rate_max: u64::MAX,
        meter_policy_n_max: u64::from(MAX_METERS),
        srtcm_rfc2697_byte_mode_supported: 1,
        stats_mask: STATS,
        ..Default::default()
    };
    // SAFETY: lent-structure: a structure to fill.
    unsafe { *capabilities = shown };
    0
}

unsafe extern "C" fn profile_add(dev: *mut EthDev, id: u32, profile: *const MeterProfile, error: MeterError) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure.
    let profile = unsafe { &*profile };
    let [cir, cbs, ebs, _] = profile.values;
    with(port, error, |state, index, _| {
        let rates = &mut state.ports[index].meters.rates;
        match (profile.alg, profile.packet_mode) {
            _ if rates.contains_key(&id) => Err((libc::EEXIST, c"a profile of this number is there")),
            (SRTCM_RFC2697, 0) => {
                rates.insert(id, Rate { cir, cbs, ebs });
                Ok(())
            }
            (SRTCM_RFC2697, _) => Err((libc::ENOTSUP, c"bytes are metered, not packets")),
            _ => Err((libc::ENOTSUP, c"the device meters by RFC 2697 alone")),
        }
    })
}

unsafe extern "C" fn profile_delete(dev: *mut EthDev, id: u32, error: MeterError) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    with(port, error, |state, index, _| {
        let meters = &mut state.ports[index].meters;
        if meters.meters.values().any(|meter| meter.profile == id) {
            return Err((libc::EBUSY, c"a meter has the profile"));
        }
        meters.rates.remove(&id).map(drop).ok_or((libc::ENOENT, c"no such profile"))
    })
}

/// Whether a color is dropped: its actions are none or DROP.
///
/// # Safety
/// `actions` is null or leads to a list that ends in an END.
unsafe fn drops(actions: Actions) -> Result<bool, Refused> {
    if actions.is_null() {
        return Ok(false);
    }
    // SAFETY: not null, so the caller passes a list with one action or an END.
    match unsafe { (*actions).type_ } {
        sys::RTE_FLOW_ACTION_TYPE_END => return Ok(false),
        sys::RTE_FLOW_ACTION_TYPE_DROP => {
            // SAFETY: the first action is not the END, so the list goes on.
            let second = unsafe { actions.add(1) };
            // SAFETY: an action of the caller's list.
            if unsafe { (*second).type_ } == sys::RTE_FLOW_ACTION_TYPE_END {
                return Ok(true);
            }
        }
        _ => {}
    }
    Err((libc::ENOTSUP, c"a policy lets a color pass (no action) or drops it (DROP)"))
}

/// The colors that a policy drops: green, yellow, red.
///
/// # Safety
/// `policy` leads to a policy, whose lists of actions are null or end in an END.
unsafe fn policy_of(policy: *const MeterPolicy) -> Result<[bool; 3], Refused> {
    // SAFETY: the caller passes a policy.
    let actions = unsafe { (*policy).actions };
    let mut dropped = [false; 3];
    for (dropped, actions) in dropped.iter_mut().zip(actions) {
        // SAFETY: the lists of the caller's policy are null or end in an END.
        *dropped = unsafe { drops(actions)? };
    }
    Ok(dropped)
}

unsafe extern "C" fn policy_validate(_dev: *mut EthDev, policy: *const MeterPolicy, error: MeterError) -> c_int {
    // SAFETY: lent-structure: a policy.
    done(unsafe { policy_of(policy) }.map(drop), error)
}

unsafe extern "C" fn policy_add(dev: *mut EthDev, id: u32, policy: *const MeterPolicy, error: MeterError) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: a policy.
    let policy = unsafe { policy_of(policy) };
    with(port, error, |state, index, _| {
        let policies = &mut state.ports[index].meters.policies;
        if policies.contains_key(&id) {
            return Err((libc::EEXIST, c"a policy of this number is there"));
        }
        policies.insert(id, policy?);
        Ok(())
    })
}

unsafe extern "C" fn policy_delete(dev: *mut EthDev, id: u32, error: MeterError) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    with(port, error, |state, index, _| {
        let meters = &mut state.ports[index].meters;
        if meters.meters.values().any(|meter| meter.policy == id) {
            return Err((libc::EBUSY, c"a meter has the policy"));
        }
        meters.policies.remove(&id).map(drop).ok_or((libc::ENOENT, c"no such policy"))
    })
}

unsafe extern "C" fn create(
    dev: *mut EthDev,
    id: u32,
    params: *const MeterParams,
    _shared: c_int,
    error: MeterError,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure.
    let params = unsafe { &*params };
    with(port, error, |state, index, now| {
        let State { pipeline, ports, .. } = state;
        let (owner, meters) = (ports[index].id, &mut ports[index].meters);
        let (profile, policy) = (params.meter_profile_id, params.meter_policy_id);
        let by_tables = !params.dscp_table.is_null() || !params.vlan_table.is_null();
        if params.use_prev_mtr_color != 0 || by_tables || params.default_input_color != GREEN {
            return Err((libc::ENOTSUP, c"the device is color-blind"));
        }
        if meters.meters.contains_key(&id) {
            return Err((libc::EEXIST, c"a meter of this number is there"));
        }
        if meters.meters.len() >= MAX_METERS as usize {
            return Err((libc::ENOSPC, c"the port has no room for another meter"));
        }
        let rate = *meters.rates.get(&profile).ok_or((libc::ENOENT, c"no such profile"))?;
        let drops = *meters.policies.get(&policy).ok_or((libc::ENOENT, c"no such policy"))?;
        let meter = Meter::new(rate, drops, params.meter_enable != 0, now);
        let number = pipeline.share(owner, Shared::Meter(Box::new(meter)));
        meters.meters.insert(id, MadeOf { number, profile, policy });
        Ok(())
    })
}

const NO_METER: Refused = (libc::ENOENT, c"no such meter: destroyed, or lost when the device was reset");

unsafe extern "C" fn destroy(dev: *mut EthDev, id: u32, error: MeterError) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    with(port, error, |state, index, _| {
        let number = state.ports[index].meters.number(id).ok_or(NO_METER)?;
        // One that a reset has taken is forgotten.
        state.pipeline.unshare(number).map_err(|InUse| (libc::EBUSY, c"rules have the meter"))?;
        state.ports[index].meters.meters.remove(&id);
        Ok(())
    })
}

/// Changes a meter.
fn change(port: &Port, id: u32, error: MeterError, call: impl FnOnce(&mut Meter, Duration)) -> c_int {
    with(port, error, |state, index, now| {
        let number = state.ports[index].meters.number(id).ok_or(NO_METER)?;
        call(state.pipeline.meter(number).ok_or(NO_METER)?, now);
        Ok(())
    })
}

unsafe extern "C" fn enable(dev: *mut EthDev, id: u32, error: MeterError) -> c_int {
    // SAFETY: lent-port.
    change(unsafe { port(dev) }, id, error, |meter, _| meter.enabled = true)
}

unsafe extern "C" fn disable(dev: *mut EthDev, id: u32, error: MeterError) -> c_int {
    // SAFETY: lent-port.
    change(unsafe { port(dev) }, id, error, |meter, _| meter.enabled = false)
}

unsafe extern "C" fn profile_update(dev: *mut EthDev, id: u32, profile: u32, error: MeterError) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    with(port, error, |state, index, now| {
        let State { pipeline, ports, .. } = state;
        let meters = &mut ports[index].meters;
        let rate = *meters.rates.get(&profile).ok_or((libc::ENOENT, c"no such profile"))?;
        let made_of = meters.meters.get_mut(&id).ok_or(NO_METER)?;
        pipeline.meter(made_of.number).ok_or(NO_METER)?.set_rate(rate, now);
        made_of.profile = profile;
        Ok(())
    })
}

unsafe extern "C" fn stats_read(
    dev: *mut EthDev,
    id: u32,
    stats: *mut MeterStats,
    mask: *mut u64,
    clear: c_int,
    error: MeterError,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: a structure to fill.
    let stats = unsafe { &mut *stats };
    // SAFETY: lent-structure: a number to fill.
    let mask = unsafe { &mut *mask };
    change(port, id, error, |meter, _| {
        let seen = if clear != 0 { std::mem::take(&mut meter.seen) } else { meter.seen };
        *stats = MeterStats {
            n_pkts: seen.colors.map(|color| color.packets),
            n_bytes: seen.colors.map(|color| color.bytes),
            n_pkts_dropped: seen.dropped.packets,
            n_bytes_dropped: seen.dropped.bytes,
        };
        *mask = STATS;
    })
}
