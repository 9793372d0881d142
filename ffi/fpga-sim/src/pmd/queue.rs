//! Operations by queues: what is enqueued is done at a push, all under one lock of the device, and answered when it is pulled.

use super::abi::{Actions, Error, EthDev, Items};
use super::device::Device;
use super::flow::{refuse, unspecified};
use super::meter::MAX_METERS;
use super::template::{Engine, Table, done, no_table};
use super::{Port, port};
use crate::pipeline::{Entry, RuleId};
use crate::translate::Refusal;
use dpdk_sys as sys;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::atomic::Ordering;
use std::time::Duration;

const MAX_QUEUES: u32 = 64;
const MAX_QUEUE_SIZE: u32 = 65536;
/// The size of a queue that the application leaves to us.
const QUEUE_SIZE: usize = 1024;
/// Numbers of rules that a queue takes from the device at a time.
const IDS: u64 = 4096;

/// A queue.
pub(super) struct Queue {
    size: usize,
    ids: Range<RuleId>,
    postponed: Vec<(Operation, *mut c_void)>,
    completions: VecDeque<Completion>,
    /// When the last of the operations is done.
    busy_until: Duration,
    /// Completions since the last that was lost on demand.
    completed: u64,
}

pub(super) enum Operation {
    Insert(RuleId, Box<Entry>),
    Remove(RuleId),
    /// An action that rules share is to be taken away.
    Unshare(RuleId),
    /// Nothing is left to do.
    Done,
    /// An insertion that fails on demand.
    Fail,
}

struct Completion {
    user_data: *mut c_void,
    succeeded: bool,
    /// When it can be pulled.
    due: Duration,
}

impl Queue {
    fn new(size: usize) -> Queue {
        Queue {
            size,
            ids: 0..0,
            postponed: Vec::with_capacity(size),
            completions: VecDeque::with_capacity(size),
            busy_until: Duration::ZERO,
            completed: 0,
        }
    }

    fn is_idle(&self) -> bool {
        self.postponed.is_empty() && self.completions.is_empty()
    }

    /// An operation has its place from when it is enqueued until its completion is pulled.
    fn check_room(&self) -> Result<(), Refusal> {
        match self.postponed.len() + self.completions.len() < self.size {
            true => Ok(()),
            false => Err(unspecified(libc::ENOSPC, c"the queue is full: push and pull")),
        }
    }

    fn next_id(&mut self, device: &Device) -> RuleId {
        if self.ids.is_empty() {
            self.ids = device.lock().pipeline.reserve_ids(IDS);
        }
        let id = self.ids.start;
        self.ids.start += 1;
        id
    }

    fn push(&mut self, device: &Device) {
        if self.postponed.is_empty() {
            return;
        }
        let now = device.now();
        let mut state = device.lock();
        let touched = self.postponed.iter_mut().map(|(operation, _)| match operation {
            Operation::Insert(_, entry) => state.pipeline.prepare(entry),
            Operation::Remove(id) => state.pipeline.prepare_removal(*id),
            Operation::Unshare(_) | Operation::Done | Operation::Fail => 0,
        });
        std::hint::black_box(touched.fold(0, |all, one| all ^ one));
        for (operation, user_data) in self.postponed.drain(..) {
            let mut due = now;
            let succeeded = match operation {
                Operation::Insert(id, entry) => {
                    self.busy_until = self.busy_until.max(now) + state.faults.insert_delay;
                    due = self.busy_until;
                    state.pipeline.insert_filled(id, entry, now).is_ok()
                }
                Operation::Remove(id) => state.pipeline.remove(id),
                Operation::Unshare(id) => state.pipeline.unshare(id) == Ok(true),
                Operation::Done => true,
                Operation::Fail => false,
            };
            self.completed += 1;
            if state.faults.lose_completion.is_some_and(|every| self.completed >= every) {
                self.completed = 0;
                continue;
            }
            self.completions.push_back(Completion { user_data, succeeded, due });
        }
    }
}

fn find(engine: &mut Engine, queue: u32) -> Result<&mut Queue, Refusal> {
    let queue = engine.queues.get_mut(queue as usize);
    queue.ok_or_else(|| unspecified(libc::EINVAL, c"the port has no such flow queue"))
}

pub(super) unsafe extern "C" fn info_get(
    dev: *mut EthDev,
    port_info: *mut sys::rte_flow_port_info,
    queue_info: *mut sys::rte_flow_queue_info,
    _error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let rules = rules(unsafe { port(dev) });
    let shown = sys::rte_flow_port_info {
        max_nb_queues: MAX_QUEUES,
        max_nb_counters: rules,
        max_nb_aging_objects: rules,
        max_nb_meters: MAX_METERS,
        max_nb_conn_tracks: rules,
        ..Default::default()
    };
    // SAFETY: lent-structure: a structure to fill.
    unsafe { *port_info = shown };
    // SAFETY: lent-structure: null or a structure to fill.
    if let Some(info) = unsafe { queue_info.as_mut() } {
        info.max_size = MAX_QUEUE_SIZE;
    }
    0
}

/// Rules that the device holds; there is a counter, an age and a connection for each.
fn rules(port: &Port) -> u32 {
    let state = port.device.lock();
    let limits = state.limits();
    u32::try_from(limits.exact + limits.masked).unwrap_or(u32::MAX)
}

pub(super) unsafe extern "C" fn configure(
    dev: *mut EthDev,
    attributes: *const sys::rte_flow_port_attr,
    count: u16,
    queues: *mut *const sys::rte_flow_queue_attr,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure.
    let attributes = unsafe { &*attributes };
    // SAFETY: lent-structure: a list of `count` pointers.
    let queues = unsafe { std::slice::from_raw_parts(queues, usize::from(count)) };
    // SAFETY: lent-structure: each is null or leads to attributes.
    let sizes = queues.iter().map(|&queue| unsafe { queue.as_ref() }.map_or(0, |queue| queue.size)).collect();
    done(set_up(port, attributes, sizes), error)
}

fn set_up(port: &Port, attributes: &sys::rte_flow_port_attr, sizes: Vec<u32>) -> Result<(), Refusal> {
    let rules = rules(port);
    let invalid = |message| Err(unspecified(libc::EINVAL, message));
    if attributes.nb_counters.max(attributes.nb_aging_objects).max(attributes.nb_conn_tracks) > rules {
        return invalid(c"counters, ages and connections: the device has one for each rule");
    }
    if attributes.nb_meters > MAX_METERS {
        return invalid(c"meters: the port has 65536");
    }
    if attributes.flags != 0 {
        return Err(unspecified(libc::ENOTSUP, c"the device knows no flags: any queue may change any rule"));
    }
    if sizes.len() > MAX_QUEUES as usize || sizes.iter().any(|&size| size > MAX_QUEUE_SIZE) {
        return invalid(c"64 queues of 65536 operations at most");
    }
    let mut engine = port.engine();
    if !engine.queues.iter().all(Queue::is_idle) {
        return Err(unspecified(libc::EBUSY, c"operations are pending: push and pull"));
    }
    let size = |size| if size == 0 { QUEUE_SIZE } else { size as usize };
    engine.queues = sizes.into_iter().map(|wanted| Queue::new(size(wanted))).collect();
    Ok(())
}

/// Whether an operation waits for a push.
///
/// # Safety
/// `attributes` is null or leads to attributes.
pub(super) unsafe fn is_postponed(attributes: *const sys::rte_flow_op_attr) -> bool {
    // SAFETY: the caller passes null or attributes.
    unsafe { attributes.as_ref() }.is_some_and(|attributes| attributes.postpone() != 0)
}

pub(super) unsafe extern "C" fn async_create(
    dev: *mut EthDev,
    queue: u32,
    attributes: *const sys::rte_flow_op_attr,
    table: *mut sys::rte_flow_template_table,
    items: Items,
    pattern_index: u8,
    actions: Actions,
    actions_index: u8,
    user_data: *mut c_void,
    error: Error,
) -> *mut sys::rte_flow {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: null or attributes.
    let postponed = unsafe { is_postponed(attributes) };
    let rule = ((items, pattern_index), (actions, actions_index));
    // SAFETY: lent-structure: lists for whose elements lent-rule holds.
    match unsafe { create(port, (queue, postponed), table, rule, user_data) } {
        Ok(id) => without_provenance_mut(id as usize),
        Err(refusal) => {
            refuse(error, &refusal);
            null_mut()
        }
    }
}

/// Enqueues the insertion of a rule.
///
/// # Safety
/// Items and actions are null or lead to lists that end in an END, for whose elements lent-rule holds (see `translate`).
unsafe fn create(
    port: &Port,
    (queue, postponed): (u32, bool),
    table: *mut sys::rte_flow_template_table,
    ((items, pattern_index), (actions, actions_index)): ((Items, u8), (Actions, u8)),
    user_data: *mut c_void,
) -> Result<RuleId, Refusal> {
    let engine = &mut *port.engine();
    find(engine, queue)?.check_room()?;
    let table = engine.tables.get(table.addr()).ok_or_else(|| no_table(table))?;
    let (pattern_index, actions_index) = (usize::from(pattern_index), usize::from(actions_index));
    // SAFETY: the caller passes null or lists with an END, and promises lent-rule.
    let (value, values, counts) = unsafe { table.templates.rule((items, pattern_index), (actions, actions_index))? };
    let mut entry = table.rule_templates[pattern_index].fill(value, values.actions, counts, values.age);
    if entry.is_judged() {
        port.device.lock().pipeline.set_ct_direction(&mut entry);
    }
    let fails = port.device.refuses.load(Ordering::Relaxed) && fails(port, table, pattern_index, actions_index)?;
    let queue = find(engine, queue)?;
    let id = queue.next_id(&port.device);
    queue.postponed.push((if fails { Operation::Fail } else { Operation::Insert(id, entry) }, user_data));
    if !postponed {
        queue.push(&port.device);
    }
    Ok(id)
}

/// Whether a rule is to fail; refuses one that is to be refused.
fn fails(port: &Port, table: &Table, pattern: usize, actions: usize) -> Result<bool, Refusal> {
    let state = port.device.lock();
    let named =
        |names: &[String]| table.templates.names(pattern, actions).any(|name| names.iter().any(|one| one == name));
    if named(&state.faults.refuse) {
        return Err(unspecified(libc::ENOTSUP, c"an item or action of the table is refused on demand (fault refuse)"));
    }
    Ok(named(&state.faults.refuse_create))
}

pub(super) unsafe extern "C" fn async_destroy(
    dev: *mut EthDev,
    queue: u32,
    attributes: *const sys::rte_flow_op_attr,
    flow: *mut sys::rte_flow,
    user_data: *mut c_void,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure: null or attributes.
    let postponed = unsafe { is_postponed(attributes) };
    enqueue(port, (queue, postponed, user_data), error, || Ok(Operation::Remove(flow.addr() as RuleId)))
}

/// Enqueues the operation that `prepare` returns, if the queue has room.
pub(super) fn enqueue(
    port: &Port,
    (queue, postponed, user_data): (u32, bool, *mut c_void),
    error: Error,
    prepare: impl FnOnce() -> Result<Operation, Refusal>,
) -> c_int {
    let enqueued = find(&mut port.engine(), queue).and_then(|queue| {
        queue.check_room()?;
        queue.postponed.push((prepare()?, user_data));
        if !postponed {
            queue.push(&port.device);
        }
        Ok(())
    });
    done(enqueued, error)
}

pub(super) unsafe extern "C" fn push(dev: *mut EthDev, queue: u32, error: Error) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    done(find(&mut port.engine(), queue).map(|queue| queue.push(&port.device)), error)
}

pub(super) unsafe extern "C" fn pull(
    dev: *mut EthDev,
    queue: u32,
    results: *mut sys::rte_flow_op_result,
    room: u16,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let mut engine = port.engine();
    let queue = match find(&mut engine, queue) {
        Ok(queue) => queue,
        Err(refusal) => return refuse(error, &refusal),
    };
    let now = port.device.now();
    let mut pulled = 0;
    while pulled < usize::from(room) {
        let Some(completion) = queue.completions.pop_front_if(|completion| completion.due <= now) else { break };
        let status = if completion.succeeded { sys::RTE_FLOW_OP_SUCCESS } else { sys::RTE_FLOW_OP_ERROR };
        // SAFETY: lent-structure: a list of `room` results.
        let place = unsafe { results.add(pulled) };
        // SAFETY: within that list.
        unsafe { place.write(sys::rte_flow_op_result { status, user_data: completion.user_data }) };
        pulled += 1;
    }
    pulled as c_int
}
