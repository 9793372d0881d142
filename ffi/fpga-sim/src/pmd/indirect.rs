//! Actions that rules share by a handle: a number in the place of a pointer that nobody follows.

use super::abi::{Actions, Error, EthDev};
use super::device::State;
use super::flow::{in_context, refuse, show_age, show_counters, unspecified};
use super::queue::{Operation, enqueue};
use super::template::done;
use super::{Port, port};
use crate::pipeline::{InUse, Shared, SharedKind, Tally};
use crate::translate::{self, Context, Refusal};
use dpdk_sys as sys;
use std::ffi::{c_int, c_void};
use std::ptr::{null_mut, without_provenance_mut};
use std::time::Duration;

fn gone(handle: *const sys::rte_flow_action_handle) -> Refusal {
    let message = c"no such action: destroyed, or lost when the device was reset";
    Refusal { errno: libc::ENOENT, kind: sys::RTE_FLOW_ERROR_TYPE_HANDLE, cause: handle.cast(), message }
}

fn unsupported(action: Actions, message: &'static std::ffi::CStr) -> Refusal {
    Refusal { errno: libc::ENOTSUP, kind: sys::RTE_FLOW_ERROR_TYPE_ACTION, cause: action.cast(), message }
}

pub(super) unsafe extern "C" fn create(
    dev: *mut EthDev,
    conf: *const sys::rte_flow_indir_action_conf,
    action: Actions,
    error: Error,
) -> *mut sys::rte_flow_action_handle {
    // SAFETY: DPDK lends a port of ours, and the application the action.
    match unsafe { share(port(dev), conf, action) } {
        Ok(id) => without_provenance_mut(id as usize),
        Err(refusal) => {
            refuse(error, &refusal);
            null_mut()
        }
    }
}

/// # Safety
/// `conf` and `action` are null or lead to what they are named after.
unsafe fn share(port: &Port, conf: *const sys::rte_flow_indir_action_conf, action: Actions) -> Result<u64, Refusal> {
    // SAFETY: as the caller promises.
    let (Some(conf), Some(wanted)) = (unsafe { conf.as_ref() }, unsafe { action.as_ref() }) else {
        return Err(unspecified(libc::EINVAL, c"no action, or none of its directions"));
    };
    let now = port.device.now();
    let mut state = port.device.lock();
    // SAFETY: as the caller promises.
    let shared = in_context(port, &mut state, true, |context: &Context| unsafe {
        translate::check_known(context, std::slice::from_ref(wanted))?;
        match wanted.type_ {
            sys::RTE_FLOW_ACTION_TYPE_COUNT => Ok(Shared::Count(Tally::default())),
            sys::RTE_FLOW_ACTION_TYPE_AGE => {
                Ok(Shared::Age { age: translate::age(wanted)?, last_hit: now, aged: false })
            }
            sys::RTE_FLOW_ACTION_TYPE_RSS if conf.ingress() == 0 => {
                Err(unsupported(action, c"RSS is for ingress rules: queues belong to a port"))
            }
            sys::RTE_FLOW_ACTION_TYPE_RSS => Ok(Shared::Rss(translate::rss(context, wanted)?)),
            sys::RTE_FLOW_ACTION_TYPE_CONNTRACK => {
                Ok(Shared::Conntrack(Box::new(translate::connection(context, wanted.conf.cast())?)))
            }
            _ => Err(unsupported(action, c"COUNT, AGE, RSS and CONNTRACK can be shared")),
        }
    })?;
    let owner = state.ports[port.index].id;
    Ok(state.pipeline.share(owner, shared))
}

pub(super) unsafe extern "C" fn destroy(
    dev: *mut EthDev,
    handle: *mut sys::rte_flow_action_handle,
    error: Error,
) -> c_int {
    // SAFETY: DPDK lends a port of ours.
    let port = unsafe { port(dev) };
    let id = handle.addr() as u64;
    let mut state = port.device.lock();
    // Meters are not named by handles.
    let destroyed = match state.pipeline.shared().kind(id).map_or(Ok(false), |kind| match kind {
        SharedKind::Meter => Ok(false),
        _ => state.pipeline.unshare(id),
    }) {
        Ok(true) => Ok(()),
        Ok(false) => Err(gone(handle)),
        Err(InUse) => Err(unspecified(libc::EBUSY, c"rules have the action")),
    };
    done(destroyed, error)
}

pub(super) unsafe extern "C" fn update(
    dev: *mut EthDev,
    handle: *mut sys::rte_flow_action_handle,
    update: *const c_void,
    error: Error,
) -> c_int {
    // SAFETY: DPDK lends a port of ours, and the application what belongs to the action.
    done(unsafe { change(port(dev), handle, update) }, error)
}

/// # Safety
/// `update` is null or what belongs to the action.
unsafe fn change(port: &Port, handle: *mut sys::rte_flow_action_handle, update: *const c_void) -> Result<(), Refusal> {
    let (id, now) = (handle.addr() as u64, port.device.now());
    let mut state = port.device.lock();
    let kind = state.pipeline.shared().kind(id).ok_or_else(|| gone(handle))?;
    if update.is_null() {
        return Err(unspecified(libc::EINVAL, c"no update"));
    }
    let changed = match kind {
        SharedKind::Meter => return Err(gone(handle)),
        SharedKind::Count => return Err(unspecified(libc::ENOTSUP, c"COUNT has nothing to update")),
        SharedKind::Age => {
            // SAFETY: as the caller promises.
            let update = unsafe { &*update.cast::<sys::rte_flow_update_age>() };
            let timeout = (update.timeout_valid() != 0).then(|| Duration::from_secs(update.timeout().into()));
            if timeout == Some(Duration::ZERO) {
                return Err(unspecified(libc::EINVAL, c"AGE: with a timeout"));
            }
            state.pipeline.set_shared_age(id, timeout, update.touch() != 0, now)
        }
        SharedKind::Rss => {
            // SAFETY: as the caller promises, an action.
            let action = unsafe { &*update.cast::<sys::rte_flow_action>() };
            if action.type_ != sys::RTE_FLOW_ACTION_TYPE_RSS {
                return Err(unsupported(action, c"RSS is updated by RSS"));
            }
            // SAFETY: as above.
            let rss = in_context(port, &mut state, true, |context| unsafe { translate::rss(context, action) })?;
            state.pipeline.set_shared_rss(id, rss)
        }
        // SAFETY: as the caller promises.
        SharedKind::Conntrack => change_connection(port, &mut state, id, unsafe { &*update.cast() })?,
    };
    if changed { Ok(()) } else { Err(gone(handle)) }
}

/// Changes the direction of the rules to come, or all else, or both. Says whether the connection is there.
fn change_connection(
    port: &Port,
    state: &mut State,
    id: u64,
    update: &sys::rte_flow_modify_conntrack,
) -> Result<bool, Refusal> {
    if update.direction() == 0 && update.state() == 0 {
        return Err(unspecified(libc::EINVAL, c"CONNTRACK: direction, state or both are updated"));
    }
    let new = match update.state() {
        0 => None,
        // SAFETY: it leads to a connection.
        _ => Some(in_context(port, state, true, |context| unsafe { translate::connection(context, &update.new_ct) })?),
    };
    let Some(connection) = state.pipeline.connection(id) else { return Ok(false) };
    if update.direction() != 0 {
        connection.direction = translate::direction(update.new_ct.is_original_dir());
    }
    new.into_iter().for_each(|new| connection.set_state(new));
    Ok(true)
}

pub(super) unsafe extern "C" fn query(
    dev: *mut EthDev,
    handle: *const sys::rte_flow_action_handle,
    data: *mut c_void,
    error: Error,
) -> c_int {
    // SAFETY: DPDK lends a port of ours, and the application the structure that belongs to the action.
    done(unsafe { show(port(dev), handle, data) }, error)
}

/// # Safety
/// `data` leads to the structure that belongs to the action.
unsafe fn show(port: &Port, handle: *const sys::rte_flow_action_handle, data: *mut c_void) -> Result<(), Refusal> {
    let (id, now) = (handle.addr() as u64, port.device.now());
    let mut state = port.device.lock();
    match state.pipeline.shared().kind(id) {
        Some(SharedKind::Count) => {
            // SAFETY: as the caller promises.
            let data = unsafe { &mut *data.cast::<sys::rte_flow_query_count>() };
            show_counters(state.pipeline.shared_counters(id, now, data.reset() != 0).unwrap_or_default(), data);
            Ok(())
        }
        Some(SharedKind::Age) => {
            // SAFETY: as above.
            show_age(state.pipeline.shared_idle(id, now).unwrap_or_default(), unsafe { &mut *data.cast() });
            Ok(())
        }
        Some(SharedKind::Rss) => Err(unspecified(libc::ENOTSUP, c"RSS has nothing to show")),
        Some(SharedKind::Conntrack) => {
            let connection = state.pipeline.connection(id).ok_or_else(|| gone(handle))?;
            // SAFETY: as above.
            unsafe { *data.cast() = translate::show_connection(connection) };
            Ok(())
        }
        Some(SharedKind::Meter) | None => Err(gone(handle)),
    }
}

// By queues: what is made, changed or shown is so at once, and what is taken away when its turn comes. The news comes in order.

pub(super) unsafe extern "C" fn async_create(
    dev: *mut EthDev,
    queue: u32,
    attributes: *const sys::rte_flow_op_attr,
    conf: *const sys::rte_flow_indir_action_conf,
    action: Actions,
    user_data: *mut c_void,
    error: Error,
) -> *mut sys::rte_flow_action_handle {
    let mut id = 0;
    // SAFETY: DPDK lends a port of ours, and the application the action.
    unsafe {
        let port = port(dev);
        enqueue(port, (queue, attributes, user_data), error, || {
            id = share(port, conf, action)?;
            Ok(Operation::Done)
        });
    }
    without_provenance_mut(id as usize)
}

pub(super) unsafe extern "C" fn async_destroy(
    dev: *mut EthDev,
    queue: u32,
    attributes: *const sys::rte_flow_op_attr,
    handle: *mut sys::rte_flow_action_handle,
    user_data: *mut c_void,
    error: Error,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        let (port, id) = (port(dev), handle.addr() as u64);
        enqueue(port, (queue, attributes, user_data), error, || match port.device.lock().pipeline.shared().kind(id) {
            Some(SharedKind::Meter) | None => Err(gone(handle)),
            Some(_) => Ok(Operation::Unshare(id)),
        })
    }
}

pub(super) unsafe extern "C" fn async_update(
    dev: *mut EthDev,
    queue: u32,
    attributes: *const sys::rte_flow_op_attr,
    handle: *mut sys::rte_flow_action_handle,
    update: *const c_void,
    user_data: *mut c_void,
    error: Error,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        let port = port(dev);
        enqueue(port, (queue, attributes, user_data), error, || change(port, handle, update).map(|()| Operation::Done))
    }
}

pub(super) unsafe extern "C" fn async_query(
    dev: *mut EthDev,
    queue: u32,
    attributes: *const sys::rte_flow_op_attr,
    handle: *const sys::rte_flow_action_handle,
    data: *mut c_void,
    user_data: *mut c_void,
    error: Error,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        let port = port(dev);
        enqueue(port, (queue, attributes, user_data), error, || show(port, handle, data).map(|()| Operation::Done))
    }
}
