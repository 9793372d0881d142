//! Actions that rules share by a handle, which is a number in a pointer that nothing follows.

use super::abi::{Actions, Error, EthDev};
use super::device::State;
use super::flow::{in_context, refuse, show_age, show_counters, unspecified};
use super::queue::{Operation, enqueue, is_postponed};
use super::template::done;
use super::{Port, port};
use crate::pipeline::{InUse, Shared, SharedKind, Tally};
use crate::translate::{self, Context, LentAction, Refusal};
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
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: null, or directions and an action for which lent-rule holds.
    match unsafe { share(port, conf, action) } {
        Ok(id) => without_provenance_mut(id as usize),
        Err(refusal) => {
            refuse(error, &refusal);
            null_mut()
        }
    }
}

/// Makes an action that rules can share.
///
/// # Safety
/// `conf` is null or leads to directions; `action` is null or leads to an action for which lent-rule holds (see `translate`).
unsafe fn share(port: &Port, conf: *const sys::rte_flow_indir_action_conf, action: Actions) -> Result<u64, Refusal> {
    // SAFETY: the caller passes null or directions.
    let conf = unsafe { conf.as_ref() };
    // SAFETY: the caller passes null or an action, and promises lent-rule.
    let wanted = unsafe { LentAction::new(action) };
    let (Some(conf), Some(wanted)) = (conf, wanted) else {
        return Err(unspecified(libc::EINVAL, c"no action, or none of its directions"));
    };
    let now = port.device.now();
    let mut state = port.device.lock();
    let shared = in_context(port, &mut state, true, |context: &Context| {
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
                Ok(Shared::Conntrack(Box::new(translate::connection(context, wanted.connection())?)))
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
    // SAFETY: lent-port.
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
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: null or the update of the handle's action.
    done(unsafe { change(port, handle, update) }, error)
}

/// Changes a shared action.
///
/// # Safety
/// `update` is null or leads to the structure by which rte_flow updates the handle's action; to an action for which lent-rule holds,
/// where that is RSS.
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
            // SAFETY: not null, so the caller passes the update of AGE.
            let update = unsafe { &*update.cast::<sys::rte_flow_update_age>() };
            let timeout = (update.timeout_valid() != 0).then(|| Duration::from_secs(update.timeout().into()));
            if timeout == Some(Duration::ZERO) {
                return Err(unspecified(libc::EINVAL, c"AGE: with a timeout"));
            }
            state.pipeline.set_shared_age(id, timeout, update.touch() != 0, now)
        }
        SharedKind::Rss => {
            // SAFETY: the caller passes an action, and promises lent-rule.
            let action = unsafe { LentAction::new(update.cast()) }.ok_or_else(|| gone(handle))?;
            if action.type_ != sys::RTE_FLOW_ACTION_TYPE_RSS {
                return Err(unsupported(&raw const **action, c"RSS is updated by RSS"));
            }
            let rss = in_context(port, &mut state, true, |context| translate::rss(context, action))?;
            state.pipeline.set_shared_rss(id, rss)
        }
        // SAFETY: not null, so the caller passes the update of CONNTRACK.
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
        _ => Some(in_context(port, state, true, |context| translate::connection(context, Some(&update.new_ct)))?),
    };
    let Some(connection) = state.pipeline.connection(id) else { return Ok(false) };
    if update.direction() != 0 {
        connection.direction = translate::direction(update.new_ct.is_original_dir());
    }
    if let Some(new) = new {
        connection.set_state(new);
    }
    Ok(true)
}

pub(super) unsafe extern "C" fn query(
    dev: *mut EthDev,
    handle: *const sys::rte_flow_action_handle,
    data: *mut c_void,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: the answer of the handle's action.
    done(unsafe { show(port, handle, data) }, error)
}

/// Answers a query of a shared action.
///
/// # Safety
/// `data` leads to the structure by which rte_flow answers a query of the handle's action.
unsafe fn show(port: &Port, handle: *const sys::rte_flow_action_handle, data: *mut c_void) -> Result<(), Refusal> {
    let (id, now) = (handle.addr() as u64, port.device.now());
    let mut state = port.device.lock();
    match state.pipeline.shared().kind(id) {
        Some(SharedKind::Count) => {
            // SAFETY: the caller passes the answer of COUNT.
            let data = unsafe { &mut *data.cast::<sys::rte_flow_query_count>() };
            show_counters(state.pipeline.shared_counters(id, now, data.reset() != 0).unwrap_or_default(), data);
            Ok(())
        }
        Some(SharedKind::Age) => {
            // SAFETY: the caller passes the answer of AGE.
            show_age(state.pipeline.shared_idle(id, now).unwrap_or_default(), unsafe { &mut *data.cast() });
            Ok(())
        }
        Some(SharedKind::Rss) => Err(unspecified(libc::ENOTSUP, c"RSS has nothing to show")),
        Some(SharedKind::Conntrack) => {
            let connection = state.pipeline.connection(id).ok_or_else(|| gone(handle))?;
            // SAFETY: the caller passes the answer of CONNTRACK.
            unsafe { *data.cast() = translate::show_connection(connection) };
            Ok(())
        }
        Some(SharedKind::Meter) | None => Err(gone(handle)),
    }
}

// By queues: making, changing and showing happen at once, destroying in its turn. Completions come in order.

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
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: null or attributes.
    let postponed = unsafe { is_postponed(attributes) };
    enqueue(port, (queue, postponed, user_data), error, || {
        // SAFETY: lent-structure: null, or directions and an action for which lent-rule holds.
        id = unsafe { share(port, conf, action)? };
        Ok(Operation::Done)
    });
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
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: null or attributes.
    let postponed = unsafe { is_postponed(attributes) };
    let id = handle.addr() as u64;
    enqueue(port, (queue, postponed, user_data), error, || match port.device.lock().pipeline.shared().kind(id) {
        Some(SharedKind::Meter) | None => Err(gone(handle)),
        Some(_) => Ok(Operation::Unshare(id)),
    })
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
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: null or attributes.
    let postponed = unsafe { is_postponed(attributes) };
    enqueue(port, (queue, postponed, user_data), error, || {
        // SAFETY: lent-structure: null or the update of the handle's action.
        unsafe { change(port, handle, update) }.map(|()| Operation::Done)
    })
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
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: null or attributes.
    let postponed = unsafe { is_postponed(attributes) };
    enqueue(port, (queue, postponed, user_data), error, || {
        // SAFETY: lent-structure: the answer of the handle's action.
        unsafe { show(port, handle, data) }.map(|()| Operation::Done)
    })
}
