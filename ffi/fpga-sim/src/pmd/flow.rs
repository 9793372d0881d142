//! Flow operations: each under the device's lock, each refusal with its clause.

use super::abi::{Actions, Attributes, Error, EthDev, FlowOps, Items};
use super::device::State;
use super::{Port, indirect, port, queue, restore, template};
use crate::pipeline::{Counters, InsertError};
use crate::translate::{self, Context, Refusal};
use dpdk_sys as sys;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{null, null_mut, without_provenance_mut};
use std::time::Duration;

pub(super) static OPS: FlowOps = FlowOps {
    validate: Some(validate),
    create: Some(create),
    destroy: Some(destroy),
    flush: Some(flush),
    query: Some(query),
    isolate: Some(isolate),
    dev_dump: None,
    get_aged_flows: Some(get_aged_flows),
    get_q_aged_flows: Some(get_q_aged_flows),
    action_handle_create: Some(indirect::create),
    action_handle_destroy: Some(indirect::destroy),
    action_handle_update: Some(indirect::update),
    action_handle_query: Some(indirect::query),
    tunnel_decap_set: Some(restore::tunnel_decap_set),
    tunnel_match: Some(restore::tunnel_match),
    get_restore_info: Some(restore::get_restore_info),
    tunnel_action_decap_release: Some(restore::tunnel_action_decap_release),
    tunnel_item_release: Some(restore::tunnel_item_release),
    pick_transfer_proxy: Some(pick_transfer_proxy),
    flex_item: [None; 2],
    info_get: Some(queue::info_get),
    configure: Some(queue::configure),
    pattern_template_create: Some(template::pattern_create),
    pattern_template_destroy: Some(template::pattern_destroy),
    actions_template_create: Some(template::actions_create),
    actions_template_destroy: Some(template::actions_destroy),
    template_table_create: Some(template::table_create),
    template_table_destroy: Some(template::table_destroy),
    async_create: Some(queue::async_create),
    async_destroy: Some(queue::async_destroy),
    push: Some(queue::push),
    pull: Some(queue::pull),
    async_action_handle_create: Some(indirect::async_create),
    async_action_handle_destroy: Some(indirect::async_destroy),
    async_action_handle_update: Some(indirect::async_update),
    async_action_handle_query: Some(indirect::async_query),
};

/// Reports a refusal. Returns the error number negated, as rte_flow does, and sets `rte_errno`.
pub(super) fn refuse(error: Error, refusal: &Refusal) -> c_int {
    // SAFETY: lent-structure: `error` is null or to be filled. The message is a constant.
    unsafe { sys::rte_flow_error_set(error, refusal.errno, refusal.kind, refusal.cause, refusal.message.as_ptr()) }
}

pub(super) fn unspecified(errno: i32, message: &'static CStr) -> Refusal {
    Refusal { errno, kind: sys::RTE_FLOW_ERROR_TYPE_UNSPECIFIED, cause: null(), message }
}

/// The refusal of a rule that does not exist. The handle of a rule is its number, in a pointer that nothing follows.
fn gone(flow: *mut sys::rte_flow) -> Refusal {
    let message = c"no such rule: destroyed, or lost when the device was reset";
    Refusal { errno: libc::ENOENT, kind: sys::RTE_FLOW_ERROR_TYPE_HANDLE, cause: flow.cast(), message }
}

fn not_inserted(error: InsertError) -> Refusal {
    match error {
        InsertError::Exists => unspecified(libc::EEXIST, c"a rule of the same pattern and priority is there"),
        InsertError::ExactFull => unspecified(libc::ENOSPC, c"the exact-match table is full, and the masked table too"),
        InsertError::MaskedFull => unspecified(libc::ENOSPC, c"the masked table is full"),
        InsertError::NotShared => unspecified(
            libc::ENOENT,
            c"INDIRECT or METER: no such action: destroyed, or lost when the device was reset",
        ),
        InsertError::TableFull => unspecified(libc::ENOSPC, c"the template table is full"),
    }
}

/// Calls with what a translation for the port depends on; `creating` is it when something is to be put in.
pub(super) fn in_context<T>(
    port: &Port,
    state: &mut State,
    creating: bool,
    call: impl FnOnce(&Context) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let (ids, rss) = (state.ids(), state.rss(port.index));
    let faults = &state.faults;
    let refuse: &[&[String]] = if creating { &[&faults.refuse, &faults.refuse_create] } else { &[&faults.refuse] };
    call(&Context {
        port: ids[port.index],
        ports: &ids,
        rx_queues: state.ports[port.index].queues.len() as u16,
        rss: rss.as_ref(),
        limits: state.limits(),
        shared: Some(state.pipeline.shared()),
        meters: Some(&state.ports[port.index].meters),
        refuse,
    })
}

unsafe extern "C" fn validate(
    dev: *mut EthDev,
    attributes: Attributes,
    items: Items,
    actions: Actions,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let mut state = port.device.lock();
    // SAFETY: lent-structure: the attributes, and lists for whose elements lent-rule holds.
    let translate = |context: &Context| unsafe { translate::rule(context, attributes, items, actions) };
    let rule = in_context(port, &mut state, false, translate);
    match rule.and_then(|rule| state.pipeline.check(&rule).map_err(not_inserted)) {
        Ok(()) => 0,
        Err(refusal) => refuse(error, &refusal),
    }
}

unsafe extern "C" fn create(
    dev: *mut EthDev,
    attributes: Attributes,
    items: Items,
    actions: Actions,
    error: Error,
) -> *mut sys::rte_flow {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let delay = port.device.lock().faults.insert_delay;
    if !delay.is_zero() {
        std::thread::sleep(delay);
    }
    let now = port.device.now();
    let mut state = port.device.lock();
    // SAFETY: lent-structure: the attributes, and lists for whose elements lent-rule holds.
    let translate = |context: &Context| unsafe { translate::rule(context, attributes, items, actions) };
    let rule = in_context(port, &mut state, true, translate);
    match rule.and_then(|rule| state.pipeline.insert(rule, now).map_err(not_inserted)) {
        Ok(id) => without_provenance_mut(id as usize),
        Err(refusal) => {
            refuse(error, &refusal);
            null_mut()
        }
    }
}

unsafe extern "C" fn destroy(dev: *mut EthDev, flow: *mut sys::rte_flow, error: Error) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    if port.device.lock().pipeline.remove(flow.addr() as u64) { 0 } else { refuse(error, &gone(flow)) }
}

unsafe extern "C" fn flush(dev: *mut EthDev, _error: Error) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let mut state = port.device.lock();
    let id = state.ports[port.index].id;
    state.pipeline.remove_of(id);
    0
}

unsafe extern "C" fn query(
    dev: *mut EthDev,
    flow: *mut sys::rte_flow,
    action: Actions,
    data: *mut c_void,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: an action.
    let kind = unsafe { (*action).type_ };
    let (id, now) = (flow.addr() as u64, port.device.now());
    let mut state = port.device.lock();
    let Some(rule) = state.pipeline.rule(id) else { return refuse(error, &gone(flow)) };
    let (counts, ages) = (rule.counts, rule.age.is_some());
    match kind {
        sys::RTE_FLOW_ACTION_TYPE_COUNT if counts => {
            let counters = state.pipeline.counters(id, now).unwrap_or_default();
            // SAFETY: lent-structure: a query of COUNT comes with this structure.
            let data = unsafe { &mut *data.cast::<sys::rte_flow_query_count>() };
            show_counters(counters, data);
            if data.reset() != 0 {
                state.pipeline.reset_counters(id);
            }
            0
        }
        sys::RTE_FLOW_ACTION_TYPE_AGE if ages => {
            // SAFETY: lent-structure: a query of AGE comes with this structure.
            show_age(state.pipeline.idle(id, now).unwrap_or_default(), unsafe { &mut *data.cast() });
            0
        }
        _ => {
            let message = c"COUNT and AGE can be asked for, of a rule that has them";
            let kind = sys::RTE_FLOW_ERROR_TYPE_ACTION;
            refuse(error, &Refusal { errno: libc::ENOTSUP, kind, cause: action.cast(), message })
        }
    }
}

pub(super) fn show_counters(counters: Counters, data: &mut sys::rte_flow_query_count) {
    data.set_hits_set(1);
    data.set_bytes_set(1);
    data.hits = counters.packets;
    data.bytes = counters.bytes;
}

pub(super) fn show_age((idle, aged): (Duration, bool), data: &mut sys::rte_flow_query_age) {
    data.set_aged(u32::from(aged));
    data.set_sec_since_last_hit_valid(1);
    data.set_sec_since_last_hit(idle.as_secs().min(0x00ff_ffff) as u32);
}

unsafe extern "C" fn isolate(dev: *mut EthDev, set: c_int, _error: Error) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let mut state = port.device.lock();
    let id = state.ports[port.index].id;
    state.pipeline.port_mode(id).isolated = set != 0;
    0
}

unsafe extern "C" fn get_aged_flows(dev: *mut EthDev, contexts: *mut *mut c_void, room: u32, _error: Error) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let now = port.device.now();
    let aged = port.device.lock().aged(port.index, now);
    if contexts.is_null() || room == 0 {
        return aged.len() as c_int;
    }
    let count = aged.len().min(room as usize);
    for (index, &context) in aged[..count].iter().enumerate() {
        // SAFETY: lent-structure: a list of `room` places.
        let place = unsafe { contexts.add(index) };
        // SAFETY: within that list.
        unsafe { place.write(without_provenance_mut(context as usize)) };
    }
    count as c_int
}

/// The port's: queues have none of their own.
unsafe extern "C" fn get_q_aged_flows(
    dev: *mut EthDev,
    _queue: u32,
    contexts: *mut *mut c_void,
    room: u32,
    error: Error,
) -> c_int {
    // SAFETY: the same arguments.
    unsafe { get_aged_flows(dev, contexts, room, error) }
}

/// Transfer rules may be put in through any port; the physical one is where they belong.
unsafe extern "C" fn pick_transfer_proxy(dev: *mut EthDev, proxy: *mut u16, _error: Error) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: a place for a number.
    unsafe { *proxy = port.device.lock().ports[0].id };
    0
}
